"""What a search, an evaluation and an exported prompt look like, in Python and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayprompt.candidate import Candidate, TextPrompt, candidate_from_json
from rayprompt.errors import InputError
from rayprompt.searcher.problem import Problem
from rayprompt.study.statistics import Estimate
from rayprompt.tables import read_text

SEARCH_SCHEMA = "rayprompt.search/1"
EVALUATE_SCHEMA = "rayprompt.evaluate/1"
SCORE_SCHEMA = "rayprompt.score/1"
PROMPT_SCHEMA = "rayprompt.prompt/1"


@dataclass(frozen=True)
class Baseline:
    """A prompt that nobody searched for, measured beside the winner."""

    prompt: TextPrompt
    dev: Estimate
    test: Estimate

    def to_json(self) -> dict[str, Any]:
        return {**self.test.to_json(), "text": self.prompt.text, "dev": self.dev.to_json()}


@dataclass(frozen=True)
class Result:
    """The outcome of a search. ``to_json`` is what ``--json`` prints and ``result.json`` holds.

    Attributes:
        best_prompt: the winner: the finalist with the best dev metric.
        train, dev, test: its task metric; test was opened once, after dev had fixed the winner.
        baselines: name (``empty``, ``manual``) -> what they reach.
        p_value: exact McNemar test of winner against the manual prompt on test; None where there is no manual prompt.
        finalists: the best on train, each with its train and dev metric.
        evaluations: distinct (candidate, example) pairs the search asked for.
        end: why the search ended: ``budget``, ``exhausted``, ``stalled``, or the searcher's own reason.
        truncated: part -> how many of its texts lost words to fit the LM with the winner.
        timings: seconds by phase.
    """

    best_prompt: Candidate
    train: Estimate
    dev: Estimate
    test: Estimate
    baselines: Mapping[str, Baseline]
    p_value: float | None
    finalists: tuple[dict[str, Any], ...]
    evaluations: int
    lm_evaluations: int
    report_evaluations: int
    cache_hits: int
    tokens: int
    seconds: float
    evaluations_per_second: float
    end: str
    study_dir: Path
    task: str
    split: str
    model: str
    searcher: str
    seed: int
    budget: int
    round_trips: bool
    truncated: Mapping[str, int] = field(default_factory=dict)
    leaks: Mapping[str, int] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema ``rayprompt.search/1``."""
        prompt = {**self.best_prompt.to_json(), "key": self.best_prompt.key, "round_trips": self.round_trips}
        counts = ("evaluations", "lm_evaluations", "report_evaluations", "cache_hits", "tokens")
        about = ("task", "split", "model", "searcher", "seed", "budget", "end")
        return {
            "schema": SEARCH_SCHEMA,
            "best_prompt": prompt,
            **{part: getattr(self, part).to_json() for part in ("train", "dev", "test")},
            "baselines": {name: baseline.to_json() for name, baseline in self.baselines.items()},
            "p_value_manual": self.p_value,
            "finalists": list(self.finalists),
            **{name: getattr(self, name) for name in counts},
            "seconds": self.seconds,
            "evaluations_per_second": self.evaluations_per_second,
            **{name: getattr(self, name) for name in about},
            "truncated": dict(self.truncated),
            "leaks": dict(self.leaks),
            "timings": dict(self.timings),
            "study_dir": str(self.study_dir),
        }


def export_prompt(problem: Problem, prompt: Candidate, scores: Mapping[str, Estimate]) -> dict[str, Any]:
    """The JSON form of an exported prompt, schema ``rayprompt.prompt/1``: all that is needed to use it elsewhere."""
    return {
        "schema": PROMPT_SCHEMA,
        "prompt": {**prompt.to_json(), "key": prompt.key},
        "round_trips": isinstance(prompt, TextPrompt) and problem.round_trips(prompt),
        "task": {"name": problem.task.name, "split": problem.split, "digest": problem.task.digest},
        "template": problem.template.source,
        "label_words": dict(zip(problem.task.labels, problem.task.label_words, strict=True)),
        "model": {"name": problem.lm.name, "digest": problem.lm.digest},
        "scores": {part: estimate.to_json() for part, estimate in scores.items()},
    }


@dataclass(frozen=True)
class PromptFile:
    """An exported prompt, read back: the candidate, and the LM and task it was found on (None: not said)."""

    prompt: Candidate
    model: str | None
    model_digest: str | None
    task_digest: str | None


def read_prompt_file(path: Path) -> PromptFile:
    """Read an exported prompt, or the bare JSON form of a candidate.

    Raises:
        InputError: the file is missing or is neither.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: an exported prompt is a JSON object, not {type(content).__name__}")
    if "schema" not in content:
        return PromptFile(candidate_from_json(content), None, None, None)
    if content["schema"] != PROMPT_SCHEMA:
        raise InputError(f"{path}: schema {content['schema']!r}; this version reads {PROMPT_SCHEMA!r}")
    model, task = content.get("model", {}), content.get("task", {})
    return PromptFile(
        candidate_from_json(content.get("prompt", {})), model.get("name"), model.get("digest"), task.get("digest")
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
