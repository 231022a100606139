"""Token ids equal those of the whole string, for every kind of tokenizer, template and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizer_kinds import CAUSAL, MASKED
from tokenizers import AddedToken, Tokenizer

from rayprompt.candidate import TextIds
from rayprompt.errors import InputError
from rayprompt.lm.characters import CharacterTokenizer, messages_of
from rayprompt.lm.chat import in_chat
from rayprompt.lm.encode import EncodedPart, Encoder
from rayprompt.lm.joined import Joiner, by_form
from rayprompt.task import Example
from rayprompt.template import Template

BUNDLED = Path(__file__).parent.parent / "rayprompt" / "bundled"
TEXTS = (
    "a film so good",
    "How many?",
    "He said \"so what?\" and 'left'",
    'ends with a quote"',
    "line one\nline two\n",
    " leading and trailing ",
    "\ta tab\tinside",
    "这部电影很好看。",
    "映画はとても良かったです",
    "الفيلم كان جيدا جدا؟",
    "ภาพยนตร์เรื่องนี้ดีมาก",
    "영화가 정말 좋았어요",
    "👨\u200d👩\u200d👧 ok 👍🏽",
    "cafe\u0301 nai\u0308ve",
    "1234567 and 12,5%",
    "x",
    "",
    "...",
    "don't",
)
PROMPTS = (
    *("", "it was", "It was:", "Let's think step by step.", '"quoted"', "?", "...", "123", "'s", "情感是", "ดี"),
    *(" leading", "trailing ", "line\n", "\nline", "\u0301x", "👍🏽", "(", "\t"),
)


def _templates() -> dict[str, tuple[str, ...]]:
    """Every template of the bundled tasks, and the documentation's own."""
    found: dict[str, dict[str, None]] = {"causal": {}, "masked": {}}
    for path in [*BUNDLED.glob("tasks/*/task.yaml"), *BUNDLED.glob("public/*.yaml")]:
        spec = yaml.safe_load(path.read_text())
        for one in (spec, *spec.get("variants", {}).values()):
            given = one.get("template", {})
            for family, source in given.items():
                found["causal" if family == "causal" else "masked"][source] = None
    found["causal"] |= dict.fromkeys(
        [
            *(
                "Q: {text}\nA: {prompt}",
                "{prompt}\n{text}\nAnswer:\n",
                "{text}{prompt}",
                "{prompt}{text}",
                "{text}\n{prompt}\n\n",
            ),
            *("[INST] {text} {prompt} [/INST]", '"{text}" {prompt}:', "{prompt}: {text}?"),
        ]
    )
    found["masked"] |= dict.fromkeys(["{text}{prompt}{mask}", "{mask}{prompt}{text}", "{prompt}\n{text}\n{mask}\n"])
    return {family: tuple(sources) for family, sources in found.items()}


TEMPLATES = _templates()


def encoded(
    tokenizer: Any, source: str | Template, texts: tuple[str, ...], masked: bool
) -> tuple[Encoder, Template, EncodedPart, list[Example]]:
    template = source if isinstance(source, Template) else Template.parse(source, _fields(source), "here")
    rows = [
        {name: texts[(i + 3 * k) % len(texts)] for k, name in enumerate(template.fields)} for i in range(len(texts))
    ]
    examples = [Example(row, 0) for row in rows]
    encoder = Encoder(tokenizer, "kind", 512)
    part = encoder.part(template, examples, (), reads_mask=masked, where="here")
    edges = encoder.edges(template, examples)
    joiner = Joiner(lambda: encoder, template, examples, edges, encoder.texts.special, reads_mask=masked)
    object.__setattr__(part, "joiner", joiner)
    return encoder, template, part, examples


def _fields(source: str) -> list[str]:
    import string

    return [name for _, name, _, _ in string.Formatter().parse(source) if name not in (None, "prompt", "mask")]  # type: ignore[misc]


def check(
    tokenizer: Any, source: str, masked: bool, texts: tuple[str, ...] = TEXTS, prompts: tuple[str, ...] = PROMPTS
) -> None:
    encoder, template, part, examples = encoded(tokenizer, source, texts, masked)
    for prompt, ids in zip(prompts, encoder.prompt_ids(template, prompts), strict=True):
        strings = [template.render(e.fields, prompt, encoder.mask) for e in examples]
        given = TextIds(ids.tolist(), prompt)
        for i, whole in enumerate(tokenizer(strings)["input_ids"]):
            if not masked and encoder.suffix:
                whole = whole[: -len(encoder.suffix)]
            row, read, _ = part.row(i, given)
            assert row.tolist() == whole, (source, prompt, strings[i])
            assert row[read] == encoder.mask_id if masked else read == len(row) - 1
        # What scorers are given for the same pairs.
        where = np.arange(len(examples))
        got = {}
        for rows, own, some, prompt_at, example in by_form(part, [given], np.zeros(len(where), int), where):
            for j, row in enumerate(rows.tolist()):
                spliced, read, _ = own.spliced(int(example[j]), some[prompt_at[j]])
                got[row] = (spliced.tolist(), read)
        assert got == {i: (part.row(i, given)[0].tolist(), part.row(i, given)[1]) for i in where.tolist()}


FEW_TEXTS = ("How many?", "a film so good", "这部电影很好看。", "👨\u200d👩\u200d👧 ok", "")
FEW_PROMPTS = ("", "it was:", '"quoted"', "情感是", "line\n")


@pytest.mark.slow  # quick: the next one
@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED], ids=lambda kind: kind.__name__)
def test_every_template_has_the_ids_of_the_whole_string(kind: Any) -> None:
    tokenizer = kind()
    for source in TEMPLATES["masked" if kind in MASKED else "causal"]:
        check(tokenizer, source, masked=kind in MASKED)


@pytest.mark.parametrize("kind", [*CAUSAL, *MASKED], ids=lambda kind: kind.__name__)
def test_inputs_have_the_ids_of_the_whole_string(kind: Any) -> None:
    tokenizer, masked = kind(), kind in MASKED
    for source in TEMPLATES["masked" if masked else "causal"]:
        check(tokenizer, source, masked, FEW_TEXTS, FEW_PROMPTS)


def test_usual_tokenizers_need_no_whole_strings() -> None:
    for kind in (CAUSAL[0], *MASKED[:2]):
        source = TEMPLATES["masked" if kind in MASKED else "causal"][0]
        part = encoded(kind(), source, ("a film so good", "How many?"), kind in MASKED)[2]
        assert part.joiner is not None
        for prompt in ("", "it was", "Let's see:"):
            assert not part.joiner.unsure(prompt, np.arange(2)).any()


def test_a_question_and_its_line_break_are_one_token() -> None:
    # The smallest case: a Llama 3 tokenizer makes one token of "?" and the line break behind it.
    tokenizer = CAUSAL[2]()
    part = encoded(tokenizer, "Q: {text}\nA: {prompt}", ("How many?",), masked=False)[2]
    row = part.row(0, TextIds(tokenizer(" Let's see", add_special_tokens=False)["input_ids"], "Let's see"))[0]
    assert row.tolist() == tokenizer("Q: How many?\nA: Let's see")["input_ids"]
    assert "?Ċ" in tokenizer.convert_ids_to_tokens(row.tolist())


@pytest.mark.parametrize(
    ("kind", "token", "templates"),
    [
        ("mistral", "</s>", ("{text} {prompt}", "<s>{text} {prompt}<s>", "<s>{prompt}\n{text}", "{text}<s>{prompt}")),
        ("llama2", "</s>", ("<s>{text} {prompt}<s>", "{text}<s>{prompt}")),
        ("llama3", "<|eot_id|>", ("<|begin_of_text|>{text} {prompt}<|start_header_id|>", "{text}{prompt}")),
        ("gemma", "<end_of_turn>", ("<start_of_turn> {text}\n{prompt}<start_of_turn>",)),
        ("roberta", "</s>", ("{text} {prompt} {mask}.", "{mask}{text}{prompt}")),
        ("xlmr", "</s>", ("{text} {prompt} {mask}.", "{mask}{text}{prompt}")),
        ("t5", "<pad>", ("{text} {prompt} {mask}.", "{mask}{text}{prompt}")),
    ],
)
def test_a_special_token_in_a_text_is_plain_text(kind: str, token: str, templates: tuple[str, ...]) -> None:
    """As a tokenizer that does not know the token reads the string."""
    (make,) = (one for one in (*CAUSAL, *MASKED) if one.__name__ == kind)
    tokenizer, masked = make(), make in MASKED
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] != token]
    plain = Tokenizer.from_str(json.dumps({**state, "post_processor": None}))
    texts = (f"a {token} film", f"{token}good", f" {token}\n", "a film")
    for source in templates:
        encoder, template, part, examples = encoded(tokenizer, source, texts, masked)
        head, tail = encoder.around(template, reads_mask=masked)
        for prompt, ids in zip(prompts := (f"say {token}", " so"), encoder.prompt_ids(template, prompts), strict=True):
            for i, example in enumerate(examples):
                whole = template.render(example.fields, prompt, encoder.mask)
                row = part.row(i, TextIds(ids.tolist(), prompt))[0].tolist()
                assert row == [*head, *plain.encode(whole, add_special_tokens=False).ids, *tail], whole


@pytest.mark.parametrize("text", ["</s>", "<pad> good", "good<unk>"])
def test_a_special_token_in_a_text_of_bytes_is_plain_text(text: str) -> None:
    (make,) = (one for one in MASKED if one.__name__ == "byt5")
    encoder, template, part, _ = encoded(make(), "{text} {prompt} {mask} .", (text, " a "), True)
    ids = part.row(0, TextIds(encoder.prompt_ids(template, ["so"])[0].tolist(), "so"))[0].tolist()
    assert ids[: len(text)] == [byte + 3 for byte in text.encode()]


def test_a_sign_for_a_space_in_a_text_may_join_a_space() -> None:
    for kind in MASKED[2:5]:
        check(kind(), "{text} {prompt} {mask} .", True, ("\u2581", "a \u2581", "\u2581a"), ("", "it was", "\u2581"))


def test_a_mask_that_the_tokenizer_does_not_see_is_refused() -> None:
    tokenizer = MASKED[0]()
    mask = AddedToken("[HIDE]", single_word=True, special=True)
    tokenizer.add_special_tokens({"mask_token": mask})
    with pytest.raises(InputError, match="does not read .HIDE. there as the mask"):
        encoded(tokenizer, "{prompt} {text}{mask}", ("a film",), True)
    check(tokenizer, "{prompt} {text} {mask} .", True, ("a film",), ("so",))


USER = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}\n<answer>\n"
CHATS = {
    "llama3": (
        "llama3",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama2": (
        "llama2",
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set s = '' %}{% endif %}{{ bos_token }}[INST] {{ (s + messages[-1].content).strip() }} [/INST]",
    ),
    "gemma3": (
        "gemma",
        "{{ bos_token }}<start_of_turn>user\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
        "{% endif %}{{ messages[-1].content | trim }}<end_of_turn>\n<start_of_turn>model\n",
    ),
    "phi3": (
        "phi",
        "{% for m in messages %}{% if m.role == 'system' and m.content %}<|system|>\n{{ m.content }}<|end|>\n"
        "{% elif m.role == 'user' %}<|user|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}<|assistant|>\n",
    ),
    "qwen": ("qwen", USER),
}
CHAT_TEXTS = ("a film so good", " leading", "trailing\u00a0 ", "\nline\n", "How many?", "这部", 'He said "so" & <b>')


@pytest.mark.parametrize("chat", ["user", "system"])
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_has_the_ids_of_the_chat_template(name: str, chat: str) -> None:
    """Of templates that trim what messages say, or leave out an empty one."""
    kind, source = CHATS[name]
    (make,) = (one for one in CAUSAL if one.__name__ == kind)
    tokenizer = make()
    tokenizer.chat_template = source
    for form in ("{text} {prompt}", "{prompt}\n{text}\n"):
        template = in_chat(Template.parse(form, ["text"], "here"), tokenizer, chat, "m")
        encoder, _, part, _ = encoded(tokenizer, template, CHAT_TEXTS, masked=False)
        for prompt in ("", "it was:", "?"):
            given = TextIds(encoder.prompt_ids(template, [prompt])[0].tolist(), prompt)
            for i, text in enumerate(CHAT_TEXTS):
                pieces = {"{text} {prompt}": [text, prompt], "{prompt}\n{text}\n": [prompt, text]}[form]
                between, end = (" ", "") if form.endswith("}") else ("\n", "\n")
                contents = [between.join(filter(None, pieces)) + end] if chat == "user" else [prompt, text + end]
                messages = [
                    {"role": r, "content": c}
                    for r, c in zip(("system", "user")[-len(contents) :], contents, strict=True)
                ]
                whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                row = part.row(i, given)[0].tolist()
                assert row == tokenizer(whole, add_special_tokens=False)["input_ids"], (whole, prompt)


@pytest.mark.parametrize("chat", ["user", "system"])
def test_the_characters_of_a_chat_are_messages(chat: str) -> None:
    tokenizer = CharacterTokenizer()
    template = in_chat(Template.parse("{text} {prompt}", ["text"], "here"), tokenizer, chat, "m")
    encoder, _, part, _ = encoded(tokenizer, template, ("a film",), masked=False)
    given = TextIds(encoder.prompt_ids(template, ["it was"])[0].tolist(), "it was")
    contents = {"user": "a film it was"} if chat == "user" else {"system": "it was", "user": "a film"}
    found = messages_of(tokenizer.decode(part.row(0, given)[0]))
    assert found == [{"role": role, "content": content} for role, content in contents.items()]


@pytest.mark.parametrize("change", ["tojson", "e", "upper", "replace('\n', ' ')", "replace('&', '')"])
def test_a_chat_template_that_changes_messages_is_refused(change: str) -> None:
    tokenizer = CAUSAL[0]()
    tokenizer.chat_template = USER.replace("m.content", f"m.content | {change}")
    with pytest.raises(InputError, match="--lm chat=user: the chat template of m changes what the messages say"):
        in_chat(Template.parse("{text} {prompt}", ["text"], "here"), tokenizer, "user", "m")


def test_ids_of_no_text_are_spliced_in_as_they_are() -> None:
    part = encoded(CAUSAL[2](), "{text}{prompt}", ("How many?",), masked=False)[2]
    assert part.row(0, (7, 8, 9))[0].tolist()[-3:] == [7, 8, 9]
