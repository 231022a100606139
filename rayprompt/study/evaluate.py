"""``evaluate`` a given prompt, ``score`` many: the pool for anyone's own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import InputError
from rayprompt.lm.source import describe_model
from rayprompt.scores import BoolArray, FloatArray, Scores, tally_of
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.closing import PartScorer
from rayprompt.study.prepare import bind
from rayprompt.study.progress import Listener, silent
from rayprompt.study.results import EVALUATE_SCHEMA
from rayprompt.study.session import Cluster, session
from rayprompt.study.statistics import Estimate
from rayprompt.study.style import StyleReport, style_report
from rayprompt.task import Task

T = TypeVar("T")
EVALUATE = "evaluate"  # who stores what these functions score


@dataclass(frozen=True)
class Evaluation:
    """A prompt's task metric on one part of a task; of a style transfer task also what came out."""

    prompt: Candidate
    on: str
    estimate: Estimate
    evaluations: int
    truncated: int
    task: str
    split: str
    model: str
    style: StyleReport | None = None
    unanswered: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema ``rayprompt.evaluate/1``."""
        return {
            "schema": EVALUATE_SCHEMA,
            self.on: self.estimate.to_json(),
            "evaluations": self.evaluations,
            "prompt": {**self.prompt.to_json(), "key": self.prompt.key},
            "truncated": self.truncated,
            "unanswered": dict(self.unanswered),
            "task": self.task,
            "split": self.split,
            "model": self.model,
            **({} if self.style is None else {"style": self.style.to_json()}),
        }


def evaluate(
    prompt: str | Candidate,
    task: str | Path | Mapping[str, Any] | Task | Problem,
    model: str | Path | None = None,
    *,
    on: str = "test",
    split: str | None = None,
    data: str | Path | None = None,
    lm: Mapping[str, Any] | None = None,
    extractor: str | None = None,
    answer_scorer: str | None = None,
    store: str | Path | None = None,
    pool: ScoringPool | None = None,
    cluster: Cluster | None = None,
    listener: Listener = silent,
) -> Evaluation:
    """Measure one prompt on ``train``, ``dev`` or ``test``. With ``store``, scores are looked up and kept there.

    Raises:
        InputError: something given cannot be used.
        ScoringError: the LM did not load or could not score.
    """
    problem = _problem(task, model, split, data, on, lm, extractor, answer_scorer)
    candidate = problem.prompt(prompt) if isinstance(prompt, str) else prompt
    size = len(problem.token_ids(candidate))
    front = candidate.subspace.front if isinstance(candidate, SoftPrompt) else 0
    ledger = Ledger(budget=1)

    known = _store(store)

    def run(pool: ScoringPool) -> tuple[Estimate, StyleReport | None, dict[str, Any]]:
        scorer = PartScorer(problem, pool, on, ledger, store=known, search=EVALUATE)
        scores = scorer.scores([candidate])[0]
        transfers = problem.judge is not None and problem.judge.style is not None
        report = style_report(problem, on, scores, pool.judge) if transfers else None
        return scorer.estimate(scores), report, tally_of([scores])

    part = problem.part(on)
    estimate, style, unanswered = _with_pool(problem, pool, cluster, listener, run)
    return Evaluation(
        prompt=candidate,
        on=on,
        estimate=estimate,
        evaluations=ledger.report_evaluations,
        truncated=part.reserving(front).truncated(size),
        task=problem.task.name,
        split=problem.split,
        model=problem.lm.name,
        style=style,
        unanswered=unanswered,
    )


def score(
    prompts: Sequence[str | Candidate],
    task: str | Path | Mapping[str, Any] | Task | Problem,
    model: str | Path | None = None,
    *,
    on: str = "train",
    examples: Sequence[int] | BoolArray | None = None,
    split: str | None = None,
    data: str | Path | None = None,
    lm: Mapping[str, Any] | None = None,
    extractor: str | None = None,
    answer_scorer: str | None = None,
    store: str | Path | None = None,
    pool: ScoringPool | None = None,
    cluster: Cluster | None = None,
    listener: Listener = silent,
) -> Scores:
    """Score C prompts on the E examples of a part: anyone's own search can be built on this.

    ``examples`` says on which: their positions in the part, the same for all prompts, or a boolean (C, E) array of
    pairs. No other pair is scored or stored. None is all of them.

    With ``store`` (a directory or URI), scores that are known are looked up there, and new ones are kept.
    ``Scores.errors`` has the pairs without an answer; they count as not right.
    Every call without ``pool`` starts and stops the scoring actors; with ``pool`` (``ScoringPool.start``) they stay.

    Raises:
        InputError: something given cannot be used.
        ScoringError: the LM did not load or could not score.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"prompts must be a list of one or more prompts, not {prompts!r}")
    problem = _problem(task, model, split, data, on, lm, extractor, answer_scorer)
    candidates = [problem.prompt(p) if isinstance(p, str) else p for p in prompts]
    pairs = None if examples is None else pairs_of(examples, len(candidates), len(problem.part(on)))
    known = _store(store)

    def run(pool: ScoringPool) -> Scores:
        scorer = PartScorer(problem, pool, on, Ledger(budget=1), store=known, search=EVALUATE)
        return scorer.score(candidates, pairs)

    return _with_pool(problem, pool, cluster, listener, run)


def pairs_of(examples: Sequence[int] | BoolArray, prompts: int, size: int) -> BoolArray:
    """(C, E) the pairs that ``examples`` says: positions, or a boolean (C, E) array.

    Raises:
        InputError: it is neither, or names an example that is not there, or no pair.
    """
    given = np.asarray(examples)
    right = (
        f"must be positions from 0 to {size - 1}, or a boolean array (prompts, examples) of shape ({prompts}, {size})"
    )
    if given.dtype == bool:
        if given.shape != (prompts, size):
            raise InputError(f"examples: a boolean array of shape {given.shape}; {right}")
        pairs = given.copy()
    elif given.ndim == 1 and (np.issubdtype(given.dtype, np.integer) or not given.size):
        outside = [int(i) for i in given if not 0 <= i < size]
        if outside:
            raise InputError(f"examples: {outside[0]} is not there; {right}")
        pairs = np.zeros((prompts, size), dtype=bool)
        pairs[:, given.astype(np.int64)] = True
    else:
        raise InputError(f"examples: {examples!r}; {right}")
    if not pairs.any():
        raise InputError(f"examples: none is named; {right}")
    return pairs


def embedder(model: str | Path, cluster: Cluster | None = None) -> Callable[[Sequence[str]], FloatArray]:
    """Texts -> (N, d) vectors, by scoring actors that hold the LM: they are started for each call.

    Raises:
        InputError: no such LM.
    """
    source, _ = describe_model(str(model))

    def embed(texts: Sequence[str]) -> FloatArray:
        with session(source, cluster or Cluster(), silent) as pool:
            return pool.embed(texts)

    return embed


def _store(location: str | Path | None) -> ScoreStore | None:
    """The store at a location, seen to be writable."""
    if location is None:
        return None
    store = ScoreStore(location)
    store.prepare()
    return store


def _problem(
    task: str | Path | Mapping[str, Any] | Task | Problem,
    model: str | Path | None,
    split: str | None,
    data: str | Path | None,
    on: str,
    lm: Mapping[str, Any] | None = None,
    extractor: str | None = None,
    answer_scorer: str | None = None,
) -> Problem:
    problem = bind(task, model, split, data, allow_leaks=True, lm=lm, extractor=extractor, answer_scorer=answer_scorer)
    problem.task.examples(on, problem.split)
    return problem


def _with_pool(
    problem: Problem,
    pool: ScoringPool | None,
    cluster: Cluster | None,
    listener: Listener,
    run: Callable[[ScoringPool], T],
) -> T:
    if pool is None:
        with session(problem.lm, cluster or Cluster(), listener) as own:
            return run(own)
    if not problem.lm.same(pool.source.digest):
        raise InputError(f"the pool holds {pool.source.name}, the problem is on {problem.lm.name}")
    return run(pool)
