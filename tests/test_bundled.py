"""The bundled task and LMs are what their cards say."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from conftest import REPOSITORY
from loads import passes_for

import rayprompt
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.source import BUNDLED
from rayprompt.searcher.problem import Problem

RESULTS = json.loads((REPOSITORY / "benchmarks" / "bundled_lms" / "results.json").read_text())
MODELS = ["tiny-masked", "tiny-causal"]


class Local:
    """Test accuracies without Ray, by the project's own scorer."""

    def __init__(self, model: str) -> None:
        self.problem = Problem("reviews", model)
        self.scorer = LMScorer(self.problem.lm)
        self.part = self.problem.part("test")
        self.gold = self.problem.task.gold("test")

    def accuracy(self, prompt: str) -> float:
        ids = self.problem.prompt(prompt).token_ids or ()
        passes = passes_for(self.scorer, self.problem)
        answers = score_request(self.scorer, passes, Request.of_all(self.part, [ids]))[0].argmax(axis=1)
        return float((answers == self.gold).mean())


@pytest.fixture(scope="module", params=MODELS)
def local(request: pytest.FixtureRequest) -> Local:
    return Local(request.param)


def test_sizes() -> None:
    sizes = [path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(sizes) < 10_000_000
    assert {p.name for p in BUNDLED.iterdir()} == set(MODELS)


@pytest.mark.slow  # quick: what is in the folders, and tests/test_lm.py on their forward passes
def test_measured_numbers_are_those_of_the_card(local: Local) -> None:
    """measure.py uses plain transformers; the project's scorer must come to the same accuracies."""
    name = local.problem.lm.name
    measured: dict[str, Any] = RESULTS[name]
    card = (BUNDLED / name / "README.md").read_text()
    for key, prompt in (("empty", ""), ("manual", "it was")):
        assert local.accuracy(prompt) == pytest.approx(measured[key], abs=1e-3)
    best = measured["best"]
    assert local.accuracy(best["prompt"]) == pytest.approx(best["test"], abs=1e-3)
    assert best["prompt"] in card
    assert f"{best['test']:.3f}" in card
    for row in measured["different prompts within 3 points"]:
        assert local.accuracy(row["prompt"]) == pytest.approx(row["test"], abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_prompts_matter(model: str) -> None:
    measured = RESULTS[model]
    best = measured["best"]["test"]
    assert measured["empty"] <= 0.65
    assert measured["empty"] < measured["manual"] < best
    assert best >= 0.88
    assert measured["random prompts"]["median"] < 0.7
    good = measured["different prompts within 3 points"]
    assert len(good) >= 10
    assert all(row["test"] >= best - 0.03 - 1e-9 for row in good)
    words = [set(row["prompt"].split()) for row in good]
    assert all(len(a & b) <= 1 for i, a in enumerate(words) for b in words[:i])


def test_test_sentences_are_of_patterns_held_out_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "bundled_lms"))
    import sentences

    sets = [set(sentences.FRAMES[name]) for name in ("P0", "P1", "P2")]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    monkeypatch.delitem(sys.modules, "sentences")
    monkeypatch.delitem(sys.modules, "words")


def test_the_task() -> None:
    task = rayprompt.load_task("reviews")
    assert len(task.examples("test")) >= 300
    assert task.leaks() == {}
    for part in ("train", "dev", "test"):
        gold = task.gold(part)
        assert (gold == 1).mean() == pytest.approx(0.5)
        assert len({e.digest for e in task.examples(part)}) == len(gold)


def test_causal_tokenizer_takes_any_text() -> None:
    problem = Problem("reviews", "tiny-causal")
    text = "naïve 東京 🙂 \t mixed Case"
    ids = problem.encoder.ids([text], " ")[0].tolist()
    assert problem.encoder.tokenizer.unk_token_id not in ids
    assert problem.encoder.tokenizer.decode(ids).strip().split() == text.lower().split()
