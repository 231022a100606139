"""A search that races: candidates are scored on blocks of examples, and no further once they cannot be a finalist."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayprompt.candidate import Candidate
from rayprompt.errors import InputError
from rayprompt.objective import pair_values
from rayprompt.racing import MOST, Race, reference_row
from rayprompt.scores import BoolArray, FloatArray, IntArray, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.registry import load_searcher, searcher_paths

STREAM = 0x52414345  # no searcher draws from this one
SHARES = ("match", "contains", "f1")  # scorers of answers whose values are from 0 to 1


class Racer:
    """Scores the generations of one search by racing them against its last finalist (:mod:`rayprompt.racing`).

    Args:
        searcher: whose objective decides, and whose seed the orders of the examples come from.
        error: the probability at which a candidate that reaches the last finalist may be dropped.

    Attributes:
        dropped, spared: candidates that were, and the evaluations which that has spared.

    Raises:
        InputError: the searcher needs full rows, or its objective is no mean of values with a greatest one.
    """

    def __init__(self, searcher: PromptSearcher, error: float) -> None:
        if not searcher.partial_rows:
            raise InputError(
                f"--race: searcher {searcher.name} needs every candidate's score on all examples; {racing()}"
            )
        check_objective(searcher)
        self.searcher = searcher
        self.problem = searcher.problem
        self.error = error
        self.dropped = self.spared = 0

    def score(
        self, evaluator: Evaluator, candidates: Sequence[Candidate], finalists: Sequence[Candidate], number: int
    ) -> Scores:
        """Scores of a generation, the ``number``-th; in full where there are no finalists to race against.

        A candidate that was dropped before stays so; one that was scored in full before is asked for nothing more.
        Where the budget ends on the way, what is neither complete nor dropped has no estimate.
        """
        ids = [self.problem.token_ids(c) for c in candidates]
        evaluator.skip_unanswerable()
        if not finalists:
            return evaluator.score(candidates, ids)
        weights, place = evaluator.weights()
        rows = self._values(evaluator.recall(finalists, [self.problem.token_ids(c) for c in finalists]), weights, place)
        reference = reference_row(rows, weights)
        new = evaluator.new(candidates)
        random = np.random.default_rng([self.searcher.seed, number, STREAM])
        # What is not asked any more has the value of an unanswered pair, whoever races.
        most = np.where(evaluator.skipped[:: evaluator.samples], rows[-1], weights * MOST[self.searcher.objective_name])
        race = Race(len(new), reference, most - reference, self.error, random)
        start = 0
        for look in race.looks:
            which = np.flatnonzero(~race.dropped)
            if not len(which):
                break
            block = race.order[start:look]
            some = [candidates[i] for i in new[which]]
            scores = evaluator.score(some, [ids[i] for i in new[which]], block)
            values = self._values(scores, weights, place)[:, block]
            whole = ~np.isnan(values).any(axis=1)
            if not whole.all():
                break  # the budget has ended
            race.enter(which[whole], start, values[whole])
            start = look
        scores = evaluator.recall(candidates, ids)
        out = ~scores.complete()
        out[new] &= race.dropped
        gone = new[out[new]]
        self.dropped += len(gone)
        askable = evaluator.size - int(evaluator.skipped.sum())
        asked = evaluator.asked([candidates[i] for i in gone])
        self.spared += max(0, len(gone) * askable - asked)
        return replace(scores, estimate=self._estimate(scores, out, reference, weights, place))

    def _values(self, scores: Scores, weights: IntArray, place: IntArray) -> FloatArray:
        """(C, D) what the objective sums up, over distinct examples; NaN = not evaluated."""
        values = pair_values(self.searcher.objective_name, scores, self.problem.gold)
        assert values is not None
        return np.asarray(values[:, place] * weights)

    def _estimate(
        self, scores: Scores, out: BoolArray, reference: FloatArray, weights: IntArray, place: IntArray
    ) -> FloatArray:
        """(C,) the objective of candidates that are out, as their examples let expect; NaN of the others.

        The bar and the mean difference from the reference: easy and hard examples do not count for or against anyone.
        Never above the bar; -inf where it got no answer at all.
        """
        found = np.full(len(out), np.nan)
        differences = self._values(scores, weights, place)[out] - reference
        seen = ~np.isnan(differences)
        mean = np.where(seen, differences, 0.0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        found[out] = (reference.sum() + np.minimum(mean, 0.0) * len(reference)) / weights.sum()
        found[out & ~scores.answered()] = -np.inf
        return found


def racing() -> str:
    """Which registered searchers race, for messages."""
    found = []
    for name in searcher_paths():
        with contextlib.suppress(InputError):  # one that cannot be imported runs nowhere
            found += [name] if load_searcher(name).partial_rows else []
    return f"those that race: {', '.join(found)}"


def check_objective(searcher: PromptSearcher) -> None:
    """Refuse an objective that cannot be raced.

    Raises:
        InputError: it is not the mean of values of which the greatest possible one is known.
    """
    name, judge = searcher.objective_name, searcher.problem.judge
    if name not in MOST:
        raise InputError(
            f"--race: objective {name} is not a mean over examples with a greatest value; {', '.join(MOST)} are"
        )
    if name == "accuracy" and judge is not None and judge.scorer not in SHARES:
        raise InputError(f"--race: the greatest value of scorer {judge.scorer} is not known; {', '.join(SHARES)} race")
