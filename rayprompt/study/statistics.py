"""Intervals and tests: how sure a measured metric is, and whether two prompts differ in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.objective import best_of_samples, f1_labels, predicted
from rayprompt.scores import FloatArray, IntArray, Scores

RESAMPLES = 2000
DRAWS = 9999  # of a permutation test; where there are no more arrangements than that, all are enumerated
TIE = 1e-12  # two statistics nearer than this are equal but for rounding
MCNEMAR, PERMUTATION = "exact McNemar", "paired permutation test"


@dataclass(frozen=True)
class Estimate:
    """A metric measured on ``n`` examples, with its 95 % interval."""

    metric: str
    value: float
    n: int
    ci95: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """The JSON form of design 8: metric, value, n, ci95."""
        return {"metric": self.metric, "value": self.value, "n": self.n, "ci95": list(self.ci95)}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Estimate:
        """Read the JSON form back."""
        return cls(form["metric"], float(form["value"]), int(form["n"]), (form["ci95"][0], form["ci95"][1]))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}] (n={self.n})"


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson, 1927): right of n."""
    z = 1.959963984540054
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    low = 0.0 if right == 0 else max(0.0, centre - half)  # rounding leaves 1e-17 there
    return low, 1.0 if right == n else min(1.0, centre + half)


def estimate(
    metric: str, scores: Scores, gold: IntArray, function: Callable[[Scores, IntArray], FloatArray]
) -> Estimate:
    """The metric of the one candidate in ``scores``: Wilson's interval for accuracy, else the bootstrap's.

    An unanswered pair counts as not right: a prompt with which the LM fails is no better for it. So ``n`` is all
    examples of the part. Values between right and wrong, of a graded scorer or of several samples, get the bootstrap's
    interval over examples.
    """
    n = len(gold)
    if metric in ("accuracy", "best_sample"):
        values = answers(scores, metric)
        if is_binary(values):
            hits = int(values.sum())
            return Estimate(metric, hits / n, n, wilson(hits, n))
        value = float(values.mean())
        return Estimate(metric, value, n, _with(value, bootstrap_mean(values)))
    value = float(np.nan_to_num(function(scores, gold)[0]))
    return Estimate(metric, value, n, _with(value, bootstrap(scores, gold, function)))


def _with(value: float, interval: tuple[float, float]) -> tuple[float, float]:
    """An interval that has the value in it: most samples of few examples of many labels lack a label, so their F1 is
    lower."""
    return min(value, interval[0]), max(value, interval[1])


def answers(scores: Scores, metric: str = "accuracy") -> FloatArray:
    """(E,) 1 where the one candidate in ``scores`` is right; 0 where it is wrong, or unanswered.

    Of several samples the mean, in which one without an answer counts as wrong; where the metric is ``best_sample``,
    the best.
    """
    if metric == "best_sample":
        return np.asarray(np.nan_to_num(best_of_samples(scores)[0]))
    total = np.zeros(len(scores.examples))
    np.add.at(total, scores.example, scores.value)
    return total / scores.samples


def is_binary(values: FloatArray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def test_name(metric: str, *values: FloatArray) -> str:
    """What :func:`paired_test` does where the prompts have such ``values`` (:func:`answers`)."""
    return MCNEMAR if metric != "f1" and all(map(is_binary, values)) else PERMUTATION


def paired_test(metric: str, first: Scores, second: Scores, gold: IntArray) -> float:
    """Two-sided p-value that the prompts of two one-candidate scores on the same examples are equal in ``metric``.

    Of a mean over examples :func:`paired`. F1 is no mean: its test is :func:`f1_permutation`.
    """
    if metric == "f1":
        (a, labels), (b, _) = predicted(first), predicted(second)
        return f1_permutation(a[0], b[0], gold, labels)
    return paired(answers(first, metric), answers(second, metric))


def f1_permutation(first: IntArray, second: IntArray, gold: IntArray, labels: int) -> float:
    """Two-sided p-value that two prompts have the same F1, from the labels (E,) that they predict; -1 = none.

    If the prompts are equally good, their answers to an example may change places. So the statistic, the difference of
    the two F1 scores, is compared with what it is when answers change places on some of the examples (Fisher, 1935).
    Exact where few examples differ, else with 9,999 draws of a fixed seed and p = (b + 1) / (m + 1).
    """
    wanted = np.array(f1_labels(labels))
    differ = np.flatnonzero(first != second)
    if not len(differ):
        return 1.0
    exact = 2 ** len(differ) <= DRAWS
    if exact:
        swap = (np.arange(2 ** len(differ))[:, None] >> np.arange(len(differ))) & 1
    else:
        swap = np.random.Generator(np.random.PCG64(0)).integers(2, size=(DRAWS, len(differ)))
    golds = (gold[:, None] == wanted).sum(axis=0)

    def counts(answer: IntArray) -> IntArray:
        """(2, E, labels) hits and predictions."""
        said = answer[:, None] == wanted
        return np.stack([said & (gold[:, None] == wanted), said]).astype(np.int64)

    def score(hits: IntArray, said: IntArray) -> FloatArray:
        return np.asarray((2 * hits / np.maximum(said + golds, 1)).mean(axis=-1))

    a, b = counts(first), counts(second)
    moved = swap @ (b - a)[:, differ]  # (2, arrangements, labels) what the first gains and the second loses
    totals = score(*(a.sum(axis=1)[:, None] + moved)) - score(*(b.sum(axis=1)[:, None] - moved))
    observed = abs(float(score(*a.sum(axis=1)) - score(*b.sum(axis=1))))
    extreme = int((np.abs(totals) >= observed - TIE).sum())
    return extreme / len(totals) if exact else (extreme + 1) / (len(totals) + 1)


def bootstrap_mean(values: FloatArray) -> tuple[float, float]:
    """The 95 % percentile interval of a mean over resampled examples (Efron, 1979); the resampling has a fixed seed."""
    rng = np.random.Generator(np.random.PCG64(0))
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired(first: FloatArray, second: FloatArray) -> float:
    """Two-sided p-value that two prompts are equally good on the same examples, from their values (E,).

    Of right and wrong McNemar's exact test, else a permutation test that flips the signs of differences (Fisher, 1935;
    exact for few examples, else 9,999 draws with a fixed seed).
    """
    if is_binary(first) and is_binary(second):
        return mcnemar(first, second)
    from scipy.stats import permutation_test

    difference = first - second
    if not difference.any() or len(difference) == 1:  # either sign is as extreme
        return 1.0
    found = permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=DRAWS, rng=0)
    return float(found.pvalue)


def bootstrap(
    scores: Scores, gold: IntArray, function: Callable[[Scores, IntArray], FloatArray]
) -> tuple[float, float]:
    """The 95 % percentile interval over resampled examples (Efron, 1979); the resampling has a fixed seed."""
    rng = np.random.Generator(np.random.PCG64(0))
    log_probs = scores.dense("label_log_probs")[0]
    values = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(gold), size=len(gold))
        values.append(float(np.nan_to_num(function(_one_row(scores, log_probs[drawn]), gold[drawn])[0])))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(first: FloatArray, second: FloatArray) -> float:
    """Exact two-sided p-value that two prompts are equally good on the same examples (McNemar, 1947).

    ``first`` and ``second`` hold 1 (right) or 0 per example.
    """
    wins = int(((first > 0.5) & (second <= 0.5)).sum())
    losses = int(((first <= 0.5) & (second > 0.5)).sum())
    return sign_test(wins, losses)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value that wins and losses are equally likely."""
    from scipy.stats import binomtest

    return 1.0 if wins + losses == 0 else float(binomtest(wins, wins + losses, 0.5).pvalue)


def _one_row(scores: Scores, log_probs: FloatArray) -> Scores:
    n = len(log_probs)
    index = np.arange(n)
    zeros = np.zeros(n, dtype=np.int32)
    return Scores(scores.candidates, index, zeros, index, zeros, np.zeros(n), log_probs, zeros, np.zeros(n))
