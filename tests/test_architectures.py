"""Architectures of transformers: short and long inputs side by side have the scores of a plain forward pass each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import CAUSAL, MASKED, REFUSED, SEQ2SEQ, make
from loads import passes_for

from rayprompt.errors import ScoringError
from rayprompt.lm.loads import Request, score_request, write_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import Layout
from rayprompt.lm.source import load_tokenizer, model_folder
from rayprompt.lm.write import WriteTable
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.task import Task

QUICK = {
    "llama",
    "mistral",
    "phi3-longrope",
    "llama-dynamic",
    "mixtral",
    "bert",
    "big-bird",
    "fnet",
    "modernbert",
    "mbart",
}
KNOWN = {**CAUSAL, **MASKED, **SEQ2SEQ}
WORDS = "a film so good that nobody should miss it , however long it may be".split()  # noqa: SIM905
PROMPTS = ["", "it was", "overall , this one was"]
LENGTHS = (1, 4, 12, 20, 33, 100)  # words; windows are of 16 or 24 tokens, other switches lie at 32
TEMPLATES = {
    "masked": "{text} {prompt} {mask} .",
    "encoder-decoder": "{text} {prompt} {mask} .",
    "causal": "{text} {prompt}",
}


def task_of(lengths: tuple[int, ...] = LENGTHS) -> Task:
    """A task with texts of so many words."""
    return Task.from_examples(
        "texts",
        template=TEMPLATES,
        label_words={0: "terrible", 1: "great"},
        train=[{"text": " ".join((WORDS * 8)[:n]), "label": i % 2} for i, n in enumerate(lengths)],
        dev=[{"text": "another", "label": 0}],
        test=[{"text": "other", "label": 0}],
    )


def plain(cls: str, problem: Problem, request: Request) -> FloatArray:
    """(P, L) from transformers alone: each input is given to a model that has just been loaded."""
    model_class = getattr(transformers, cls)
    fresh = bool({"rope_parameters", "block_size"} & set(changes_of(cls, problem)))  # what remembers other inputs
    lm, rows = None, []
    for prompt, example in zip(request.prompt, request.example, strict=True):
        ids, read, _ = request.part.row(int(example), request.prompts[prompt])
        if lm is None or fresh:
            lm = model_class.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
        tokens, more = torch.from_numpy(ids)[None], {}
        if lm.config.is_encoder_decoder and "t5" in lm.config.model_type:
            start = lm.config.decoder_start_token_id
            more["decoder_input_ids"], read = torch.tensor([[start, int(ids[read])]]), 1
        with torch.inference_mode():
            logits = lm(input_ids=tokens, **more).logits[0, read]
        rows.append(torch.log_softmax(logits[problem.label_ids].double(), -1).numpy())
    return np.array(rows)


def changes_of(cls: str, problem: Problem) -> dict[str, Any]:
    """The settings of a checkpoint's config."""
    import json

    config: dict[str, Any] = json.loads((Path(problem.lm.path) / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    return {k: v for k, v in config.items() if k != "rope_parameters" or rope.get("rope_type", "default") != "default"}


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    # By the model's type some families would get a tokenizer class of their own.
    def load(location: str, **keywords: Any) -> Any:
        return transformers.PreTrainedTokenizerFast.from_pretrained(location)

    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", load)
    monkeypatch.setattr(
        "rayprompt.lm.scorer.load_tokenizer", lambda location, **more: load(str(model_folder(location)))
    )


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN]
)
def test_scores_are_those_of_a_plain_forward_pass(name: str, tmp_path: Path, one_tokenizer: None) -> None:
    cls, changes, layout = KNOWN[name]
    make(cls, changes, tmp_path)
    problem = Problem(task_of(), str(tmp_path))
    scorer = LMScorer(problem.lm)
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in PROMPTS])
    expected = plain(cls, problem, request)
    assert expected.std() > 1e-2
    found, _ = score_request(scorer, passes_for(scorer, problem), request)
    assert np.abs(found - expected).max() < 1e-4
    assert scorer.layout.kind == (layout or scorer.layout.kind)
    for pair in (0, 5, 7):  # alone: the same bits
        one = Request(request.part, request.prompts, request.prompt[[pair]], request.example[[pair]])
        assert score_request(scorer, passes_for(scorer, problem), one)[0].tobytes() == found[[pair]].tobytes()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scored_is_refused(name: str, tmp_path: Path, one_tokenizer: None) -> None:
    cls, changes, reason = REFUSED[name]
    make(cls, changes, tmp_path)
    with pytest.raises(ScoringError, match=reason):
        LMScorer(Problem(task_of(), str(tmp_path)).lm)


def test_a_run_says_what_is_not_done_together() -> None:
    single = Layout("single", reason="padding or neighbors change its scores", writes="recomputed")
    assert single.notes("m", 10, writes=False) == [
        "m: inputs are scored one a pass, since padding or neighbors change its scores: this is slower"
    ]
    assert "written one a pass, without a cache" in single.notes("m", 10, writes=True)[0]
    assert single.to_json() == {"one_a_pass": "padding or neighbors change its scores", "written": "recomputed"}
    beyond = Layout("packed", 64.0, 32)
    assert beyond.notes("m", 33, writes=False) == [
        "m: inputs of more than 32 tokens are scored one a pass: this is slower"
    ]
    assert beyond.notes("m", 32, writes=False) == []
    assert beyond.to_json() == {"one_a_pass_beyond": 32}
    assert Layout("packed", 64.0).to_json() == {}  # a usual LM's contexts stay what they were


def test_at_least_sixty_architectures_are_held_to_it() -> None:
    assert len({cls for cls, _, _ in KNOWN.values()}) >= 60
    assert load_tokenizer("tiny-masked").mask_token_id is not None


WRITERS = {
    "mistral": "padded", "bloom": "padded", "gemma2": "padded", "mamba": "recomputed", "mixtral": "single",
    "phi3-longrope": "padded", "cpmant": "recomputed",
}  # fmt: skip
QUICK_WRITERS = ("mistral", "mamba", "phi3-longrope")


@pytest.mark.parametrize(
    "name", [n if n in QUICK_WRITERS else pytest.param(n, marks=pytest.mark.slow) for n in WRITERS]
)
@pytest.mark.parametrize("template", ["{text} {prompt}", "{prompt} {text}"])
def test_texts_are_those_that_plain_forward_passes_write(
    template: str, name: str, tmp_path: Path, one_tokenizer: None
) -> None:
    """Greedy, short and long inputs side by side; every token from a forward pass over all that stands before it."""
    cls, changes, _ = CAUSAL[name]
    lm = make(cls, changes, tmp_path)
    rows = [{"text": " ".join((WORDS * 8)[:n]), "answer": "good"} for n in LENGTHS]
    task = Task.from_examples(
        "writes", template={"causal": template}, extractor="exact", max_tokens=6, train=rows, dev=rows, test=rows
    )
    problem = Problem(task, str(tmp_path), allow_leaks=True)
    scorer = LMScorer(problem.lm)
    part = problem.part("train")
    request = Request.of_all(part, [problem.prompt(p).token_ids or () for p in ("it was", "so")])
    found = write_request(scorer, WriteTable.of("cpu", 1 << 28, scorer.cache_bytes, scorer.window), request).completion
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert found is not None
    assert part.decoding is not None
    for pair, (prompt, example) in enumerate(zip(request.prompt, request.example, strict=True)):
        ids = part.row(int(example), request.prompts[prompt])[0].tolist()
        start, lead = len(ids), np.inf
        while len(ids) < start + 6 and tokenizer.sep_token_id not in ids[start:]:
            with torch.inference_mode():
                top = lm(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
            lead = min(lead, float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
        if lead > 1e-3:  # of random weights two tokens may be as likely
            assert found[pair] == part.decoding.cut(tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert scorer.layout.writes == WRITERS[name]
