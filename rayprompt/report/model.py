"""What a report is made of: studies as plain data, whichever command made them and however far they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt.candidate import SoftPrompt, TextPrompt, candidate_from_json
from rayprompt.comparison.outcome import STOPPED, RunIdentity
from rayprompt.errors import InputError
from rayprompt.study.statistics import Estimate

Stratum = tuple[str, str, str]  # task, split, model


@dataclass(frozen=True)
class Prompt:
    """A prompt as a report shows it.

    Attributes:
        key: digest of what is scored; empty where it is not known.
        text: None for a soft prompt.
        length, norm: of a soft prompt, its tokens, and the Euclidean norm of z.
        near: the text whose tokens are nearest to a soft prompt, where it was decoded.
    """

    key: str
    text: str | None
    length: int = 0
    norm: float = 0.0
    near: str | None = None

    @classmethod
    def of(cls, form: Mapping[str, Any], near: str | None = None) -> Prompt:
        """Of a candidate's JSON form."""
        try:
            candidate = candidate_from_json(form)
        except InputError:  # of a later version, say: it is shown, not scored
            return cls(str(form.get("key", "")), str(form.get("text", "")))
        if isinstance(candidate, SoftPrompt):
            norm = float(np.linalg.norm(candidate.vector.astype(np.float64)))
            return cls(candidate.key, None, candidate.subspace.length, norm, near)
        return cls(candidate.key, candidate.text)

    @property
    def shown(self) -> str:
        """In a word or two, for people."""
        if self.text is None:
            near = f", near “{self.near}”" if self.near else ""
            return f"soft prompt {self.key[:8]}, {self.length} tokens{near}"
        return self.text or "(empty prompt)"


EMPTY = TextPrompt("", ()).key


@dataclass(frozen=True)
class Finalist:
    """One of the best on train. ``test`` only where the closing report measured it."""

    prompt: Prompt
    train: float | None
    dev: float | None
    test: Estimate | None = None


@dataclass(frozen=True)
class Run(RunIdentity):
    """One search, however far it has come.

    Attributes:
        study: the name of its study; ``name`` is its own in it.
        digest: of its task and LM: runs of one stratum can be compared where these are the same.
        end: why it ended; empty where it has not.
        winner: picked on dev, with ``train``, ``dev`` and ``test``; None where dev was not opened yet.
        top: test of the best on dev, the winner first.
        decoded: test of the text nearest to a soft winner.
        p_manual, p_test: of a paired test against the manual prompt on test, and what test that was.
        best_score, best_objective: the best on train; NaN where it is not known.
        curve: rows (evaluations, own seconds, best objective, best score), NaN where it is not known.
        dev_curve: rows (evaluations, own seconds, dev of the best by objective).
        costs: figures by name, as in a comparison's runs.
        search: whose pairs in the store are its own.
    """

    study: str
    digest: str
    budget: int
    search: str = ""
    end: str = ""
    winner: Prompt | None = None
    train: Estimate | None = None
    dev: Estimate | None = None
    test: Estimate | None = None
    top: tuple[Estimate, ...] = ()
    decoded: Estimate | None = None
    p_manual: float | None = None
    p_test: str = ""
    finalists: tuple[Finalist, ...] = ()
    best_score: float = float("nan")
    best_objective: float = float("nan")
    evaluations: int = 0
    curve: tuple[tuple[float, ...], ...] = ()
    dev_curve: tuple[tuple[float, ...], ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """How it stands, for people."""
        if self.winner is not None:
            return "the scheduler" if self.end == STOPPED else self.end
        if self.end:
            return f"{self.end}; dev and test not opened"
        return "not finished" if self.evaluations else "not begun"


@dataclass(frozen=True)
class Baseline:
    """A prompt that nobody searched for; ``prompt`` is None for one that is not a prompt's text alone."""

    name: str
    task: str
    split: str
    model: str
    digest: str
    dev: Estimate
    test: Estimate
    prompt: Prompt | None = None
    white_box: bool = False
    tokens_per_use: float | None = None

    @property
    def stratum(self) -> Stratum:
        """Task, split, model."""
        return self.task, self.split, self.model


@dataclass(frozen=True)
class Source:
    """Where a stratum's examples and scores are to be found.

    Attributes:
        location, data: what loads the task; None for Python objects.
        task_digest, judge: what it must be, and what judges completions.
        model_digest: of the LM.
        store: location of the score store.
        report: the search under which the closing report's pairs stand.
        searches: those of the runs.
    """

    location: str | Mapping[str, Any] | None
    data: str | None
    task_digest: str
    judge: Mapping[str, Any] | None
    model_digest: str
    store: str
    report: str
    searches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study's directory, read.

    Attributes:
        kind: the command that made it, ``search`` or ``compare``.
        finished: whether it has come to its result.
        record: its study.yaml.
        tables: of a finished comparison, as in its JSON.
        sources: by stratum.
        remarks: what a reader must know.
        seconds: the wall's time; None where it is not finished.
    """

    path: Path
    kind: str
    finished: bool
    record: Mapping[str, Any]
    runs: tuple[Run, ...]
    baselines: tuple[Baseline, ...]
    sources: Mapping[Stratum, Source]
    tables: tuple[Mapping[str, Any], ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: float | None = None
    report_evaluations: int | None = None
    alias: str = ""

    @property
    def name(self) -> str:
        """The directory's name, or what tells it from another of that name."""
        return self.alias or self.path.name

    def renamed(self, alias: str) -> Study:
        """The same under another name."""
        return replace(self, alias=alias, runs=tuple(replace(run, study=alias) for run in self.runs))
