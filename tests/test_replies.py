"""What replies of services mean, in the formats that servers give: label words, completions, errors, odd JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rayprompt.decoding import Decoding
from rayprompt.lm.replies import (
    address,
    choices_of,
    content_of_reply,
    error_in,
    line,
    next_tokens,
    shown,
    steps_of,
    used,
    without_thinking,
    written_in,
)
from rayprompt.lm.words import alike, echoed, of_words
from rayprompt.unanswered import Reason

KEY = "sk-a-very-secret-key-0123456789"


def echo(tokens: list[str], text: str, word: str, written: tuple[int, ...] = (0,)) -> float:
    """The word's log-probability where that of token i is -2^-i: which tokens were added is seen in the sum."""
    values = [None, *(-(2.0**-i) for i in range(1, len(tokens)))][: len(tokens)]
    return echoed(steps_of({"logprobs": {"tokens": tokens, "token_logprobs": values}}), text, word, written)


def of(*places: int) -> float:
    return sum(-(2.0**-i) for i in places)


@pytest.mark.parametrize(
    ("tokens", "text", "word", "places"),
    [
        (["a", " film", " good"], "a film", " good", (2,)),
        (["<|begin_of_text|>", "a", " film", " good"], "a film", " good", (3,)),
        (["<s>", "\u2581a", "\u2581film", "\u2581good"], "a film", " good", (3,)),
        (["<s>", " a", " film", " good"], "a film", " good", (3,)),
        (["<s>", "a", "film", "good"], "a film", " good", (3,)),  # decoded one by one, without spaces
        (["\u0120a", "\u0120film", "\u0120go", "od"], " a film", " good", (2, 3)),
        (["a", " film", ".", " g", "oo", "d"], "a film.", " good", (3, 4, 5)),
        (["a", " film", " very", " good"], "a film", " very good", (2, 3)),
        (["a", " fil", "m g", "ood"], "a film", " good", (2, 3)),  # a token over the edge
        (["\u00c3\u00a9", "t\u00c3\u00a9", "\u0120good"], "été", " good", (2,)),
        (["é", "t", "é", " good"], "été", " good", (3,)),
        (["\ufffd", "\ufffd", "\ufffd", " film", " good"], "東 film", " good", (4,)),
        (["<0xE6>", "<0x9D>", "<0xB1>", " good"], "東", " good", (3,)),
        (["bytes:\\xe6\\x9d", "bytes:\\xb1", " good"], "東", " good", (2,)),
        (["", "", "東", " good"], "東", " good", (3,)),
        (["", "", "", " good"], "東", " good", (3,)),  # a server that leaves out what it cannot decode
        (["東", "東", "東", " good"], "東", " good", (3,)),
        (["\ufffd\ufffd", " g\ufffd", "\ufffd", "t"], "é", " gût", (1, 2, 3)),
        (["情感", "是", " ", "\ufffd", "\ufffd", "面"], "情感是", " 正面", (2, 3, 4, 5)),
        (["情感", "是", " ", "", "正", "面"], "情感是", " 正面", (2, 3, 4, 5)),
        (["情感", "是", " 正", "正", "正", "面"], "情感是", " 正面", (2, 3, 4, 5)),
        (["a", " ï", "ï", " É", "É"], "a ï", " É", (3, 4)),  # the second token of "ï" is not part of "É"
        (["it", " is", " good"], "It IS", " Good", (2,)),  # a tokenizer of lower case
        (["é", " Ü", "ber", " good"], "É ÜBER", " good", (3,)),
        (["a", " film", " good", "</s>"], "a film", " good", (2,)),
    ],
)
def test_label_words_are_found_by_the_texts_of_tokens(
    tokens: list[str], text: str, word: str, places: tuple[int, ...]
) -> None:
    assert echo(tokens, text, word, (0, 1)) == pytest.approx(of(*places))


def test_what_the_lm_wrote_behind_an_echo_is_no_part_of_the_word() -> None:
    assert echo(["a", " good", " good"], "a", " good", (1, 0)) == of(1)
    assert echo(["a", " ", "\ufffd", "\ufffd", "\ufffd", "\ufffd"], "a", " 正", (1, 0)) == of(1, 2, 3, 4)
    assert echo(["a", " ", "\ufffd", "\ufffd", "\ufffd"], "a", " 正", (0, 1)) == of(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("tokens", "text", "word"),
    [
        (["film", " good"], "a film", " good"),  # the front was cut off
        (["a", " film"], "a film", " good"),
        (["a", " film", " bad"], "a film", " good"),
        (["a"] * 6 + [" film", " good"], "a film", " good"),  # too much before it for a mark
        ([], "a film", " good"),
    ],
)
def test_tokens_of_another_text_are_refused(tokens: list[str], text: str, word: str) -> None:
    with pytest.raises(ValueError, match="the tokens are not those of the text"):
        echo(tokens, text, word, (0, 1))


def test_a_word_without_a_log_probability_is_refused() -> None:
    steps = steps_of({"logprobs": {"tokens": ["a", " good"], "token_logprobs": [None, None]}})
    with pytest.raises(ValueError, match="no log-probability of token ' good'"):
        echoed(steps, "a", " good")


@pytest.mark.parametrize(
    ("tokens", "values", "word"),
    [([" good"], [None], " good"), (["<s>", " ", "\ufffd", "\ufffd"], [None, None, -1.0, -1.0], " é")],
)
def test_a_word_that_begins_an_echo_has_no_log_probability(
    tokens: list[str], values: list[float | None], word: str
) -> None:
    """Behind an empty text, of a tokenizer without a token that begins a text."""
    with pytest.raises(ValueError, match="no log-probability of token"):
        echoed(steps_of({"logprobs": {"tokens": tokens, "token_logprobs": values}}), "", word)


def test_a_mark_without_a_text_may_begin_an_echo() -> None:
    assert echo(["", " good"], "", " good") == of(1)


def test_next_tokens_in_all_formats() -> None:
    wanted = ((" good", -0.1), (" bad", -2.5))
    plain = {"logprobs": {"tokens": [" good"], "token_logprobs": [-0.1], "top_logprobs": [dict(wanted)]}}
    rows = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in wanted]
    chat = {"logprobs": {"content": [{**rows[0], "top_logprobs": rows}]}}
    bare = {"logprobs": {"top_logprobs": [dict(wanted)]}}
    listed = {"logprobs": {"tokens": [" good"], "token_logprobs": [-0.1], "top_logprobs": [rows]}}
    for choice in (plain, chat, bare, listed):
        assert next_tokens(choice) == wanted
    split = {"token": "bytes:\\xe6", "logprob": -0.1, "bytes": [0xE6]}
    assert next_tokens({"logprobs": {"content": [{**split, "top_logprobs": [split]}]}}) == (("\ufffd", -0.1),)
    odd: list[Any] = [None, {}, {"top_logprobs": []}, {"top_logprobs": [{}]}, {"content": []}, [], "x", 3]
    for logprobs in odd:
        with pytest.raises((ValueError, TypeError, AttributeError, KeyError, IndexError)):
            next_tokens({"logprobs": logprobs})
    with pytest.raises(ValueError, match="no log-probability"):
        next_tokens({"logprobs": {"top_logprobs": [{" good": 0.9}]}})  # a probability
    with pytest.raises(ValueError, match="shown by their ids"):
        next_tokens({"logprobs": {"top_logprobs": [{"token_id:12": -0.1, "token_id:7": -2.5}]}})
    assert next_tokens({"logprobs": {"top_logprobs": [{" good": -math.inf}]}}) == ((" good", -9999.0),)


def test_words_that_one_token_may_begin() -> None:
    assert alike(("card_arrival", "card_linking")) == [("card_arrival", "card_linking")]
    assert alike(("1", "2", "10")) == [("1", "10")]
    assert alike(("very good", "very bad")) == [("very good", "very bad")]
    assert alike(("positive", "Positively")) == [("positive", "Positively")]
    assert alike(("terrible", "terrific", "great")) == []
    assert of_words([("terr", -0.1)], ("terrible", "terrific")) is None


@pytest.mark.parametrize(
    ("choice", "text", "reason", "cut"),
    [
        ({"text": " 42", "finish_reason": "stop"}, " 42", Reason.ANSWERED, False),
        ({"text": "", "finish_reason": "stop"}, "", Reason.ANSWERED, False),
        ({"text": "", "finish_reason": "length"}, None, Reason.CUT, True),
        ({"text": " 42 and", "finish_reason": "length"}, " 42 and", Reason.CUT, True),
        ({"text": " 42 and", "finish_reason": "MAX_TOKENS"}, " 42 and", Reason.CUT, True),
        ({"text": " 42\nQ: and", "finish_reason": "length"}, " 42", Reason.ANSWERED, False),  # cut behind its end
        ({"message": {"content": "42"}, "finish_reason": "stop"}, "42", Reason.ANSWERED, False),
        ({"message": {"content": "42"}}, "42", Reason.ANSWERED, False),
        ({"message": {"content": ""}, "finish_reason": "length"}, None, Reason.CUT, True),
        ({"message": {"content": None}, "finish_reason": "length"}, None, Reason.CUT, True),
        ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "stop"}, None, Reason.CUT, True),
        ({"message": {"content": "", "reasoning": "hm"}, "finish_reason": "stop"}, None, Reason.CUT, True),
        ({"message": {"content": "42", "reasoning": "hm"}, "finish_reason": "stop"}, "42", Reason.ANSWERED, False),
        ({"message": {"content": None}, "finish_reason": "stop"}, None, Reason.FAILED, False),
        ({"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}, None, Reason.FAILED, False),
        ({"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}, None, Reason.REFUSED, False),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, None, Reason.REFUSED, False),
        ({"message": {"content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]}}, "42", 0, False),
        ({"message": {"content": ["4", {"type": "output_text", "text": {"value": "2"}}]}}, "42", 0, False),
        (
            {"message": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "42"}]}},
            "42",
            0,
            0,
        ),
        ({"message": {"content": [{"type": "thinking", "thinking": "hm"}]}}, None, Reason.CUT, True),
        ({"message": {"content": [{"type": "reasoning_text", "text": "4"}, {"type": "text", "text": "2"}]}}, "2", 0, 0),
        ({"message": {"content": [{"type": "summary_text", "text": "4"}, {"type": None, "text": "2"}]}}, "2", 0, 0),
        ({"message": {"content": [{"type": "text", "text": None}]}}, None, Reason.FAILED, False),
        ({"text": " 42", "finish_reason": {"type": "length", "length": 8}}, " 42", Reason.CUT, True),
        ({"text": " 42", "finish_reason": "max_new_tokens"}, " 42", Reason.CUT, True),
        ({"text": " 42", "finish_reason": "model_context_window_exceeded"}, " 42", Reason.CUT, True),
        ({"text": " 42", "finish_reason": "eos_token"}, " 42", Reason.ANSWERED, False),
        ({"text": " 42", "finish_reason": "content-filter"}, None, Reason.REFUSED, False),
        ({"text": " 42", "finish_reason": "ContentFilter"}, None, Reason.REFUSED, False),
        ({"message": {"content": [{"type": "refusal", "refusal": "no"}]}}, None, Reason.REFUSED, False),
        ({"message": {"content": "<think>1 2</think>\n\n42"}, "finish_reason": "stop"}, "42", Reason.ANSWERED, False),
        ({"message": {"content": "1 2\n</think>\n\n42"}, "finish_reason": "stop"}, "42", Reason.ANSWERED, False),
        ({"message": {"content": "<think>1 2"}, "finish_reason": "length"}, None, Reason.CUT, True),
        ({"message": {"content": "<think>1 2"}, "finish_reason": "stop"}, None, Reason.CUT, True),
        ({"text": "[THINK]1[/THINK]42", "finish_reason": "stop"}, "42", Reason.ANSWERED, False),
        ({"text": "gre\ud83d. 42", "finish_reason": "stop"}, "gre\ufffd. 42", Reason.ANSWERED, False),
    ],
)
def test_completions(choice: dict[str, Any], text: str | None, reason: Reason, cut: bool) -> None:
    found = written_in(choice, Decoding(stop=("\nQ:",)))
    assert (found.text, found.reason, found.cut) == (text, reason, bool(cut))
    assert bool(found.why) == bool(reason)


@pytest.mark.parametrize(
    ("text", "answer", "thinks"),
    [
        ("plain", "plain", False),
        ("<think>a</think> b", "b", False),
        ("<think>a</think>b<think>c</think>d", "d", False),
        ("<think>a</think>b<think>c", "b", True),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b", False),
        ("\u25c1think\u25b7a\u25c1/think\u25b7b", "b", False),
        ("<seed:think>a</seed:think>b", "b", False),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2", False),
        ("Use <think> tags?", "Use <think> tags?", False),
        ("<think>a</think>Use <thinking> tags", "Use <thinking> tags", False),
        (" \n<think>negative", "", True),
        ("<thinking>a <think>b</think> negative", "", True),
        ("<think>a <thinking>b</thinking> negative", "", True),
        ("<thinking>a <think>b</think> c</thinking>positive", "positive", False),
    ],
)
def test_thinking_is_left_out(text: str, answer: str, thinks: bool) -> None:
    assert without_thinking(text) == (answer, thinks)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"choices": [{}]}, None),
        ({"choices": [{}], "error": None}, None),
        ({"choices": []}, None),
        ({"error": {"code": "content_filter", "message": "no"}}, 400),
        ({"error": {"code": "content_filter", "innererror": {}, "status": 400}}, 400),
        ({"error": {"code": 502, "message": "upstream"}}, 502),
        ({"error": {"code": "429", "message": "slowly"}}, 429),
        ({"error": {"code": "rate_limit_exceeded"}}, 429),
        ({"error": {"type": "insufficient_quota"}}, 402),
        ({"error": {"code": "model_not_found"}}, 404),
        ({"error": {"code": "context_length_exceeded", "type": "invalid_request_error"}}, 400),
        ({"error": "it broke"}, 500),
        ({"object": "error", "message": "x", "code": 400}, 400),
        ({"choices": [{"error": {"code": 502}}]}, 502),
        ({"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}, None),
    ],
)
def test_errors_in_replies(content: dict[str, Any], status: int | None) -> None:
    found = error_in(content)
    assert (found and found[0]) == status


@pytest.mark.parametrize(
    "usage",
    [
        *(None, 3, "x", [], {"prompt_tokens": math.inf}, {"prompt_tokens": math.nan}, {"prompt_tokens": -4}),
        *({"prompt_tokens": 10**400}, {"prompt_tokens": "12"}, {"prompt_tokens": True}, {"prompt_tokens": [1]}),
    ],
)
def test_numbers_of_tokens_that_are_none(usage: Any) -> None:
    assert used({"usage": usage}) == (0, 0)


def test_numbers_of_tokens() -> None:
    assert used({"usage": {"prompt_tokens": 7, "completion_tokens": 2.0}}) == (9, 2)
    assert used(content_of_reply(b'{"usage": {"prompt_tokens": 1e999, "completion_tokens": 3}}')) == (3, 3)


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"null", b"3", b"[]", b"<html>", b"\xff\xfe", b'{"a": ', b'{"a": ' + b"9" * 5000 + b"}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_what_is_no_reply_is_a_value_error_and_can_be_shown(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (many messages)
        content_of_reply(raw)
    assert len(shown(raw, KEY)) <= 300


def test_choices_in_the_order_of_the_prompts() -> None:
    found = choices_of({"choices": [{"index": 1}, {"index": 0}]}, 2)
    assert [choice["index"] for choice in found] == [0, 1]
    for choices in ([], [{}], [{"index": 0}, {"index": 0}], [{"index": 1e999}, {}], None, {}):
        with pytest.raises((ValueError, TypeError, OverflowError, KeyError)):
            choices_of(json.loads(json.dumps({"choices": choices})), 2)


@pytest.mark.parametrize("indexes", [[2, 0, 1], [2, 0], [0, 1, 2], [0, 0, 1]])
def test_choices_of_other_prompts_are_refused(indexes: list[int]) -> None:
    with pytest.raises(ValueError, match="choices"):
        choices_of({"choices": [{"index": i, "text": str(i)} for i in indexes]}, 2)
    assert choices_of({"choices": [{"index": 1}, {"index": 0}]})[0]["index"] == 0


@pytest.mark.parametrize("finish", ["error", "abort", "cancelled", "timeout", "insufficient_system_resource"])
def test_a_completion_that_broke_off_is_no_answer(finish: str) -> None:
    choice = {"message": {"content": "positive"}, "finish_reason": finish}
    assert written_in(choice, Decoding(max_tokens=8)).reason == Reason.FAILED


@pytest.mark.parametrize("content", ["", "  ", None])
def test_a_call_of_a_tool_is_no_answer(content: str | None) -> None:
    choice = {"message": {"content": content, "tool_calls": [{}]}, "finish_reason": "tool_calls"}
    assert written_in(choice, Decoding(max_tokens=8)).reason == Reason.FAILED


def test_thinking_in_capitals() -> None:
    assert without_thinking("<THINK>negative?</Think>\npositive") == ("positive", False)
    assert without_thinking("<Think>İ negative?") == ("", True)
    assert without_thinking("İ</THINK>positive") == ("positive", False)


def test_an_error_beside_an_empty_choice_is_an_error() -> None:
    choices = [{"text": "", "index": 0}]
    assert error_in({"error": {"code": 400, "message": "x"}, "choices": choices}) == (400, "")
    for empty in (None, {}, {"message": "", "code": None}):
        assert error_in({"error": empty, "choices": choices}) is None


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("\uff11", ("1", "2")),
        ("don\u2019t", ("don't", "do")),
        ("İyi", ("iyi", "kötü")),
        ("iyi", ("İyi", "kötü")),
        ("e\u0301t", ("ét", "no")),
        ("great.", ("great", "bad")),
        ('"great', ("great", "bad")),
        ("bytes:\\xe6\\xad\\xa3", ("正", "负")),
        ("\u00e6\u0143\u00a3", ("正", "负")),  # as byte-level vocabularies write it
        ("C#", ("C#", "C")),
        ("Don\u2019t", ("don't know", "know")),
    ],
)
def test_a_token_names_the_same_word_in_any_way_of_writing_it(token: str, words: tuple[str, str]) -> None:
    found = of_words([(token, -0.1), (words[1], -3.0)], words)
    assert found is not None
    assert math.exp(found[0]) == pytest.approx(math.exp(-0.1) / (math.exp(-0.1) + math.exp(-3.0)), abs=1e-4)


def test_what_is_shown_is_one_line_without_the_key_or_control_characters() -> None:
    error = {"error": {"message": f"bad\nkey {KEY} \x1b[31m\u202e\x07"}}
    assert shown(json.dumps(error).encode(), KEY) == "bad key *** [31m"
    assert KEY not in line(f"https://x/?k={KEY}", KEY)
    assert address(f"https://me:{KEY}@host:8/v1/x?key={KEY}#{KEY}", KEY) == "https://host:8/v1/x"
    assert address(f"https://host/{KEY}/v1", KEY) == "https://host/***/v1"
    assert address("http://[::1", KEY) == "elsewhere"
