"""Words, numbers and fields in any script: what an extractor finds, and what may stand in a prompt."""

from __future__ import annotations

import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from rayprompt.answers import contains, get_extractor, match, token_f1
from rayprompt.errors import InputError
from rayprompt.lm.chat import TooLong, limited
from rayprompt.lm.source import BUNDLED, describe_model
from rayprompt.searcher.problem import LabelWarning, Problem
from rayprompt.tables import read_rows
from rayprompt.task import Task, load_task
from rayprompt.task_data import Reading
from rayprompt.template import Template


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("答案是-5", "-5"),
        ("答案是\uff0d\uff15。", "-5"),
        ("x-5", "5"),
        ("5-3", "3"),
        ("الجواب -\u0664\u0662", "-42"),
        ("\u0663\u066b\u0665", "3.5"),
        ("\u0967\u0968\u0969", "123"),
        ("\uff15\uff10\uff05", "50"),
        ("12,34,567", "1234567"),
        ("\u22127", "-7"),
        ("9" * 5000, "9" * 5000),
        ("12345678901234567890", "12345678901234567890"),
        ("the answer is \u20115.", "-5"),  # a hyphen that does not break
        ("\u200f-\u200e5", "-5"),
        ("1_000_000", "1000000"),
        ("\u20ac1.234,56.", "1234.56"),
        ("1.234.567", "1234567"),
        ("(1.000,2.000)", "2"),
        ("1,234.5", "1234.5"),
        ("5\u00bd", "5.5"),
        ("2 \u00be cups", "2.75"),
        ("\u00bc", "0.25"),
        ("5\u2153", "16/3"),
        ("\u2154", "2/3"),
        ("\u0663 \u0661/\u0662", "3.5"),
        ("1\u20442", "0.5"),
        ("10\u00b2", "100"),
        ("1.5 \u00d7 10\u207b\u00b3", "0.0015"),
        ("25 cm\u00b2", "25"),
        ("1\u00a0000,5", "1000.5"),
        ("20\u20ac-30\u20ac", "30"),
        ("5\u00b0-7\u00b0", "7"),
    ],
)
def test_the_last_number_in_any_script(text: str, number: str) -> None:
    assert get_extractor("last-number").find(text) == number


@pytest.mark.parametrize(
    ("choices", "text", "found"),
    [
        ("正面,负面", "情感是正面的。", "正面"),
        ("ดี,แย่", "หนังเรื่องนี้ดีมาก", "ดี"),
        ("긍정,부정", "긍정입니다.", "긍정"),
        ("İyi,kötü", "iyi bir film", "İyi"),
        ("evet,hay\u0131r", "HAYIR", "hay\u0131r"),
        ("weiß,rot", "WEISS", "weiß"),
        ("café,thé", "cafe\u0301", "café"),
        ("cafe,thé", "cafe\u0301", None),
        ("yes,no", "是yes的", "yes"),
        ("yes,no", "nothing", None),
        ("хорошо,плохо", "нехорошо", None),
        ("A,B", "a B", "B"),
        ("yes,no", "_Yes_", "yes"),
        ("yes,no", "__no__.", "no"),
        ("entailment,not_entailment", "_not_entailment_", "not_entailment"),
        ("yes,no", "yes_man", None),
        ("1,2,3,4,5", "1.5 of 4", "4"),
        ("0,1", "0.1", None),
        ("1,2", "1,000", None),
        ("1,2", "1,2", "1"),
        ("1,2", "2.", "2"),
        ("1,2", "1.正面", "1"),
        ("1,2", "-1", None),
        ("1,2", "A-1", "1"),
        ("-1,0,1", "是-1", "-1"),
        ("know,don't know", "I don\u2019t know", "don't know"),
        ("positive,very positive", "Very\n positive", "very positive"),
        ("positive,non-positive", "non\u2011positive", "non-positive"),
        ("positive,negative", "po\u00adsi\u00adtive", "positive"),
        ("\u2764\ufe0f,x", "\u2764", "\u2764\ufe0f"),
        ("\u2764,x", "\u2764\ufe0f", "\u2764"),
        ("1,2", "2\ufe0f\u20e3", "2"),
        ("x2,y", "x\u00b2", None),
        ("102,10", "10\u00b2", None),
        ("مثبت,منفی", "منفی\u200c", "منفی"),
        ("می,خوب", "می\u200cشود", None),
    ],
)
def test_a_choice_is_a_word_by_its_script(choices: str, text: str, found: str | None) -> None:
    assert get_extractor(f"choice:{choices}").find(text) == found


def test_numbers_are_compared_exactly() -> None:
    assert match("12345678901234567890", "12345678901234567891") == 0
    assert match("0.30", "0.3") == 1
    assert contains("1.5", "5") == contains("-5", "5") == contains("1,500", "500") == 0
    assert contains("1,5", "5") == contains("3-5", "5") == contains("(5)", "5") == contains("is 5.", "5") == 1
    assert contains("10\u00b2", "102") == contains("5\u00bd", "51") == token_f1("x\u00b2", "x2") == 0
    exact = get_extractor("exact")
    for one, other in (
        ("İyi", "iyi"),
        ("HAYIR", "hay\u0131r"),
        ("ﬁne", "fine"),
        ("\uff39\uff25\uff33", "yes"),
        ("STRASSE", "straße"),
    ):
        assert exact.find(one) == exact.gold(other)
    assert get_extractor("exact").find("Don\u2019t know.") == get_extractor("exact").gold("don't know")
    assert token_f1("电影很好", "电影好") == pytest.approx(6 / 7)


def task(rows: list[dict[str, Any]], template: str = "{text} {other} {prompt}", **more: Any) -> Task:
    words = {"0": "terrible", "1": "great"}
    return Task.from_examples(
        "fields", template=template, label_words=more.pop("label_words", words), train=rows, dev=rows, test=rows
    )


def test_zero_and_false_are_texts() -> None:
    made = task([{"text": 0, "other": False, "label": 0}, {"text": 0.5, "other": np.int64(3), "label": 1}])
    assert [dict(e.fields) for e in made.examples("train")] == [
        {"text": "0", "other": "false"},
        {"text": "0.5", "other": "3"},
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"en": "x"}, "must be a text or a number, not dict"),
        (["x"], "not list"),
        (b"good", "not bytes"),
        (None, "is empty"),
        (float("nan"), "is empty"),
        ("good \ud83d", "no valid Unicode"),
        (10**5000, "too many digits"),
        (pd.NA, "is empty"),
        (Decimal("sNaN"), "is empty"),
        (Decimal("Infinity"), "finite number"),
    ],
    ids=["dict", "list", "bytes", "none", "nan", "surrogate", "huge", "NA", "sNaN", "infinity"],
)
def test_what_is_no_text_is_refused_with_its_row(value: Any, said: str) -> None:
    rows = [{"text": "a", "other": "b", "label": 0}, {"text": "a", "other": value, "label": 1}]
    with pytest.raises(InputError, match=f"train, example 2: column 'other' .*{said}"):
        task(rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.datetime64("2020-01-02T03:04:05", "ns"), "2020-01-02 03:04:05"),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        (Decimal("1.10"), "1.10"),
    ],
)
def test_numbers_and_dates_are_written_as_they_are(value: Any, text: str) -> None:
    made = task([{"text": "a", "other": value, "label": 0}, {"text": "b", "other": "", "label": 1}])
    assert made.examples("train")[0].fields["other"] == text


@pytest.mark.parametrize("value", [pd.NA, np.array([1, 2]), {"en": "x"}, None])
def test_a_field_that_no_template_shows_may_be_anything(value: Any) -> None:
    made = task([{"text": "a", "other": value, "label": 0}, {"text": "b", "other": 1, "label": 1}], "{text} {prompt}")
    assert len(made.examples("train")) == 2


def test_single_precision_of_parquet_is_written_as_pandas_does(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": np.array([0.1, 2.5], dtype=np.float32)})
    frame.to_parquet(tmp_path / "a.parquet")
    assert [str(row["text"]) for row in read_rows(tmp_path / "a.parquet")] == frame["text"].astype(str).tolist()


@pytest.mark.parametrize(
    ("value", "label"), [(True, 1), (np.bool_(False), 0), ("true", 1), (None, None), (np.nan, None)]
)
def test_labels_of_true_and_false_and_missing_ones(value: Any, label: int | None) -> None:
    words = {"false": "bad", "true": "good", "nan": "odd", "None": "none"}
    rows = [{"text": "a", "other": "b", "label": value}]
    if label is None:
        with pytest.raises(InputError, match="train, example 1: no label"):
            task(rows, label_words=words)
        with pytest.raises(InputError, match="t, example 1: no label"):
            Reading({"text": "text", "label": "label"}, list(words)).rows(rows, "t")
    else:
        assert task(rows, label_words=words).examples("train")[0].label == label


def test_a_missing_field_is_refused_with_its_row() -> None:
    with pytest.raises(InputError, match="train, example 2: no column 'other'.*did you mean 'othr'"):
        task([{"text": "a", "other": "b", "label": 0}, {"text": "a", "othr": "b", "label": 1}])


def test_a_label_word_that_begins_another_is_warned_of() -> None:
    rows = [{"text": "a", "other": "b", "label": i} for i in "01"]
    with pytest.warns(LabelWarning, match="label word '11' can never win on tiny-causal.*begin with those of '1'"):
        Problem(task(rows, label_words={"0": "1", "1": "11"}), "tiny-causal", allow_leaks=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Problem("reviews", "tiny-causal")


def test_a_line_break_at_the_end_of_a_template_stays() -> None:
    template = Template.parse("{text} {prompt}\nAnswer:\n", ["text"], "here")
    assert template.render({"text": "a"}, "b") == "a b\nAnswer:\n"
    problem = Problem(task([{"text": "x", "other": "y", "label": i} for i in "01"], "{text}{other} {prompt}:\n"),
                      "tiny-causal", allow_leaks=True)  # fmt: skip
    row = problem.part("train").row(0, problem.token_ids(problem.prompt("so")))[0]
    tokenizer = AutoTokenizer.from_pretrained(problem.lm.path)
    assert row.tolist() == tokenizer("xy so:\n")["input_ids"]


def test_code_without_end_is_stopped() -> None:
    with pytest.raises(TooLong), limited(steps=1000):
        _endless()


def _endless() -> None:
    while True:
        pass


def test_a_chat_template_without_end_is_one_line(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{{ c }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless + "{% endfor %}{% endfor %}{{ messages[0].content }}")
    with pytest.raises(InputError, match="--lm chat=user: the chat template of .* does not end"):
        Problem("reviews", folder, lm={"chat": "user"})


def copied(tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(BUNDLED / "tiny-causal", tmp_path / "lm"))


@pytest.mark.parametrize(
    "name",
    [
        *("generation_config.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"),
        *("spm.model", "spiece.model", "sentencepiece.bpe.model", "qwen.tiktoken", "adapter_config.json"),
    ],
)
def test_every_file_that_decides_is_digested(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / name).write_text("{}")
    before = describe_model(str(folder))[0]
    (folder / name).write_text('{"eos_token_id": 7}')
    after = describe_model(str(folder))[0]
    assert before.digest != after.digest
    assert after.same(before.former)  # what a study of an earlier version has on record
    assert after.as_recorded(before.former).digest == before.former


def test_files_that_decide_nothing_are_left_out(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    before = describe_model(str(folder))[0].digest
    (folder / "README.md").write_text("other")
    assert describe_model(str(folder))[0].digest == before


@pytest.mark.parametrize("stated", [None, float("nan"), "512", True, [1], -5, 1e30])
def test_an_odd_limit_of_a_tokenizer_is_left_to_the_config(stated: Any, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": stated}))
    config = json.loads((folder / "config.json").read_text())
    assert describe_model(str(folder))[0].max_length == config.get("max_position_embeddings", config.get("n_positions"))


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\xff"])
def test_an_odd_tokenizer_config_is_one_line(text: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="tokenizer_config.json"):
        describe_model(str(folder))


def test_a_folder_of_save_to_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match="save_to_disk"):
        load_task(tmp_path)
    with pytest.raises(InputError, match="written by save_to_disk"):
        load_task("mr", data=tmp_path)
