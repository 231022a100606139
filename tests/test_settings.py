"""How an LM is run: dtype, tokens of a pass, memory, chat template."""

from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import task_of
from loads import passes_for

import rayprompt
from rayprompt.comparison.sources import sources_of
from rayprompt.errors import InputError, RayPromptError, ScoringError
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.memory import room_for_tokens, token_memory
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.source import BUNDLED, describe_model, load_tokenizer
from rayprompt.searcher.problem import Problem

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_settings_are_read_from_text() -> None:
    given = {"dtype": "bf16", "tokens": "1024", "cache": "1.5GB", "memory": "16 gb", "chat": "user"}
    assert LMSettings.of(given) == LMSettings("bfloat16", 1024, 1_500_000_000, 16_000_000_000, "user")
    assert LMSettings.of(None) == LMSettings.of({}) == LMSettings()
    assert LMSettings.of({"cache": 0}).cache == 0
    assert LMSettings.of({"chat": "none", "memory": "none", "tokens": None}) == LMSettings()
    assert LMSettings.of(json.loads(json.dumps(LMSettings.of(given).to_json()))) == LMSettings.of(given)
    assert LMSettings.of({"dtype": "fp16"}).changed() == {"dtype": "float16"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtpe": "bf16"}, "unknown LM setting 'dtpe' .did you mean 'dtype'"),
        ({"dtype": "int8"}, "--lm dtype=int8: must be auto, fp32, bf16 or fp16"),
        ({"tokens": "many"}, "--lm tokens=many: must be a number of tokens"),
        ({"tokens": 0}, "--lm tokens=0: must be"),
        ({"cache": "-1"}, "--lm cache=-1: must be a size in bytes"),
        ({"memory": "16 gallons"}, "--lm memory=16 gallons: must be a size in bytes, as 500MB or 2GB"),
        ({"chat": "assistant"}, "--lm chat=assistant: must be user or system"),
    ],
)
def test_bad_settings_get_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Problem(task_of(), "tiny-causal", lm=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_half_precision_agrees_wherever_it_is_not_close(model: str) -> None:
    problem = Problem("reviews", model)
    texts = ("", "it was", "overall , this one was", "in short it simply felt")
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in texts])
    exact, _ = score_request(scorer := LMScorer(problem.lm), passes_for(scorer, problem), request)
    clear = np.abs(exact[:, 0] - exact[:, 1]) > 0.05
    assert clear.mean() > 0.5
    for dtype in ("bfloat16", "float16"):
        half = LMScorer(replace(problem.lm, settings=LMSettings(dtype=dtype)))
        assert half.dtype == getattr(torch, dtype)
        assert half.packed is not None
        found, _ = score_request(half, passes_for(half, problem), request)
        assert found.dtype == np.float32
        assert (found.argmax(1) == exact.argmax(1))[clear].all()
        assert 0 < np.abs(found - exact).max() < 0.2


def test_an_lm_that_does_not_fit_says_how_much_it_needs() -> None:
    source, _ = describe_model("tiny-masked", LMSettings(memory=2_000_000))
    weights = sum(
        tensor.numel() for tensor in LMScorer(replace(source, settings=LMSettings())).forward.model.parameters()
    )
    assert source.parameters == pytest.approx(weights, rel=0.02)  # buffers, tied weights
    with pytest.raises(
        ScoringError, match=r"^it needs [\d.]+ MB \([\d.]+ MB for [\d,]+ weights in float32.*allows 2 MB$"
    ):
        LMScorer(source)
    enough = replace(source, settings=LMSettings(memory=200_000_000))
    assert LMScorer(enough).memory == 200_000_000


@pytest.mark.usefixtures("ray_session")
def test_a_pool_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RayPromptError, match="the LM tiny-causal did not load in a scoring actor: it needs .* MB") as e:
        rayprompt.search(task_of(), model="tiny-causal", budget=4, out=tmp_path / "s", lm={"memory": "1MB", "cache": 0})
    assert "\n" not in str(e.value)


def test_passes_get_smaller_where_memory_is_short() -> None:
    source, _ = describe_model("tiny-masked")
    weights, token = 2 * source.parameters, token_memory(source, 2)
    assert room_for_tokens(source, "cuda", 2, 80_000_000_000) == 16384
    assert room_for_tokens(source, "cuda", 2, None) == 16384
    for tokens in (256, 2048):
        memory = int((weights + 1.5 * tokens * token) / 0.95)
        assert room_for_tokens(source, "cuda", 2, memory) == tokens
    assert room_for_tokens(source, "cpu", 4, None) == 1024
    assert room_for_tokens(replace(source, parameters=22_000_000), "cpu", 4, None) == 512


@pytest.mark.slow  # quick: the settings in a pool, and in what must be the same
@pytest.mark.usefixtures("ray_session", "trials_here")
def test_a_study_keeps_them_and_goes_on_with_them(tmp_path: Path) -> None:
    study, task = tmp_path / "study", task_of(train=8)
    settings = {"tokens": 64, "cache": "1KB", "dtype": "bf16"}
    arguments: dict[str, Any] = {"model": "tiny-causal", "searcher": "random", "seed": 1, "lm": settings}
    said: list[str] = []
    first = rayprompt.search(task, budget=8 * 3, out=study, listener=lambda p: said.append(p.message), **arguments)
    assert any("of the 8 texts of train take" in line and "keep 1 KB (--lm cache)" in line for line in said)
    content = yaml.safe_load((study / "study.yaml").read_text())
    assert content["model"]["settings"] == LMSettings.of(settings).to_json()
    assert (content["pool"]["dtype"], content["pool"]["tokens"]) == ("bfloat16", 64)
    assert content["pool"]["shapes"]["tokens"] == [32, 64, 128]
    assert content["pool"]["reuse"]["shared"] == "text"
    assert [text["kept"] for text in content["pool"]["reuse"]["texts"].values()] == [False] * 3
    more = rayprompt.resume(study, budget=8 * 6, task=task)
    assert (first.evaluations, more.evaluations) == (8 * 3, 8 * 6)
    again = yaml.safe_load((study / "study.yaml").read_text())
    assert (again["model"]["settings"], again["pool"]["tokens"]) == (content["model"]["settings"], 64)
    (source,) = sources_of(study)  # what transfer takes up
    assert source.settings == LMSettings.of(settings)
    exported = json.loads((study / "prompt.json").read_text())["model"]["settings"]
    assert LMSettings.of(exported) == LMSettings.of(settings)


def chat_folder(folder: Path, template: str | None = CHAT) -> str:
    """tiny-causal with a chat template."""
    shutil.copytree(BUNDLED / "tiny-causal", folder)
    tokenizer = load_tokenizer("tiny-causal")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("template", ["{text} {prompt}", "{prompt} : {text} so"])
@pytest.mark.parametrize("chat", ["user", "system"])
def test_a_chat_template_wraps_the_input(chat: str, template: str, tmp_path: Path) -> None:
    task = task_of(train=6, template={"causal": template})
    problem = Problem(task, chat_folder(tmp_path / "lm"), lm={"chat": chat})
    plain = Problem(task, "tiny-causal")
    assert problem.content["template"] != plain.content["template"]
    tokenizer = load_tokenizer(problem.lm.location)
    part = problem.part("train")
    for text in ("it was", "overall , this one was", ""):
        ids = problem.prompt(text).token_ids or ()
        for i, example in enumerate(task.examples("train")):
            shown = plain.template.render(example.fields, text)
            messages = [{"role": "user", "content": shown}]
            if chat == "system":
                rest = plain.template.render(example.fields, "").removeprefix(": ")
                rest = ": " + rest if template.startswith("{prompt}") else rest
                messages = [{"role": "system", "content": text}, {"role": "user", "content": rest}]
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            row, read, _ = part.row(i, ids)
            assert tokenizer.decode(row) == whole
            assert row.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
            assert read == len(row) - 1
            assert problem.template.render(example.fields, text) == whole
    # The answer begins the assistant's turn: no space before it.
    assert [tokenizer.decode(list(word)) for word in problem.labels.words] == ["terrible", "great"]
    scorer = LMScorer(problem.lm)
    request = Request.of_all(part, [problem.prompt("it was").token_ids or (), ()])
    packed, _ = score_request(scorer, passes_for(scorer, problem), request)
    padded, _ = score_request(scorer, passes_for(scorer, problem, packed=False), request)
    assert np.abs(packed - padded).max() < 1e-4


def test_a_study_keeps_the_date_that_its_chat_template_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3's templates show today's date, so an input would be another one each day."""
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    name = chat_folder(tmp_path / "lm", dated + "Today Date: {{ date_string }} " + CHAT)

    class Day(datetime.date):
        @classmethod
        def today(cls) -> Day:
            return cls(2026, 1, 31)

    monkeypatch.setattr("rayprompt.lm.chat.date", Day)
    first = Problem(task_of(), name, lm={"chat": "user"})
    assert first.lm.settings.chat_date == "2026-01-31"
    monkeypatch.undo()
    again = Problem(task_of(), name, lm=first.lm.settings.to_json())
    assert again.template == first.template
    assert "Today Date: 31 Jan 2026" in again.template.source
    with pytest.raises(InputError, match="--lm chat_date=31.1.: must be a date, as 2026-01-31"):
        Problem(task_of(), name, lm={"chat": "user", "chat_date": "31.1."})


def test_an_lm_without_a_chat_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lm chat=user: tiny-causal has no chat template"):
        Problem(task_of(), "tiny-causal", lm={"chat": "user"})
    with pytest.raises(InputError, match="--lm chat=user: tiny-masked is no causal LM"):
        Problem(task_of(), "tiny-masked", lm={"chat": "user"})
    only_users = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT
    folder = chat_folder(tmp_path / "users", only_users)
    with pytest.raises(InputError, match="--lm chat=system: the chat template of .* does not take it .no system role"):
        Problem(task_of(), folder, lm={"chat": "system"})
    silent = chat_folder(tmp_path / "silent", "<|assistant|>")
    with pytest.raises(InputError, match="does not show the user"):
        Problem(task_of(), silent, lm={"chat": "user"})
