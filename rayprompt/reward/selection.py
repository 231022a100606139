"""Which prompt for which query: rules that ask the LM once, and what they are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.scores import BoolArray, FloatArray, IntArray

GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # weights of a guard


@dataclass(frozen=True)
class Outcome:
    """How a rule did.

    Attributes:
        rule: its name.
        success, se: share of instances that came out right, and its standard error, over groups of queries.
        gain, gain_se: over the prompt that is best on train, paired.
        calls: LM calls a query.
        n: instances.
    """

    rule: str
    success: float
    se: float
    gain: float
    gain_se: float
    calls: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Guard:
    """Best of the seen prompts, with the model's opinion on a query shrunk: prior + weight (p - its mean on train).

    With weight 0 it is the prompt that is best on train, with 1 nearly the model's own choice.

    Attributes:
        weight: of the opinion; found by cross-validation on train.
        prior, mean: (P,) success of each prompt on train, and the mean of what the model says of it there.
    """

    weight: float
    prior: FloatArray
    mean: FloatArray

    def scores(self, p: FloatArray) -> FloatArray:
        """(I, P) what the largest of is taken, from probabilities (I, P)."""
        return np.asarray(self.prior + self.weight * (p - self.mean))

    def choose(self, p: FloatArray) -> IntArray:
        """(I,) the prompts; of equals the first."""
        return np.asarray(self.scores(p).argmax(axis=1))


def fit_guard(p: FloatArray, data: Demonstrations, fold: IntArray) -> Guard:
    """A guard from probabilities (I, P) of models that had not seen the instance's fold.

    Its weight is the one of a grid whose gain on train over the best prompt of the other folds is largest, less its
    standard error (over groups of queries); 0 where no such bound is above 0. An instance has the choice of the prompts
    that it has labels of.
    """
    known, groups = data.known & ~np.isnan(p), data.groups("template")
    gains = {w: np.zeros(len(p)) for w in GRID}
    for k in np.unique(fold).tolist():
        here, rest = fold == k, fold != k
        prior = means_of(np.where(known[rest], data.correct[rest], np.nan))
        mean = means_of(np.where(known[rest], p[rest], np.nan))
        best = masked(np.tile(prior, (int(here.sum()), 1)), known[here]).argmax(axis=1)
        for w in GRID:
            chosen = masked(Guard(w, prior, mean).scores(p[here]), known[here]).argmax(axis=1)
            gains[w][here] = taken(data.correct[here], chosen) - taken(data.correct[here], best)
    lower = {w: np.subtract(*mean_se(gain, groups)) if w else 0.0 for w, gain in gains.items()}
    weight = max(GRID, key=lambda w: (lower[w], -w))
    return Guard(weight, means_of(data.correct), means_of(np.where(known, p, np.nan)))


def means_of(values: FloatArray) -> FloatArray:
    """(P,) the mean of each column of (I, P), NaN left out; that of all where a column has nothing else."""
    count = (~np.isnan(values)).sum(axis=0)
    total = np.nansum(values, axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), total.sum() / max(int(count.sum()), 1)))


def masked(scores: FloatArray, allowed: BoolArray) -> FloatArray:
    """Scores, minus infinity where a choice is not allowed."""
    return np.asarray(np.where(allowed, scores, -np.inf))


def switch(p: FloatArray, seen: IntArray, unseen: IntArray, threshold: float = 0.5) -> IntArray:
    """(I,) the seen prompt with the highest probability; where none reaches the threshold, the best unseen one.

    Prompt-OIRL's rule (its code's ``smart_combined``). Of equals the first. What is minus infinity is no choice.
    """
    choice = seen[p[:, seen].argmax(axis=1)]
    if len(unseen):
        low = (p[:, seen].max(axis=1) < threshold) & ~np.isneginf(p[:, unseen]).all(axis=1)
        choice = np.where(low, unseen[p[:, unseen].argmax(axis=1)], choice)
    return np.asarray(choice)


def taken(correct: FloatArray, chosen: IntArray) -> FloatArray:
    """(I,) whether the chosen prompts (I,) were right; NaN where there is no label."""
    return np.asarray(correct[np.arange(len(correct)), chosen])


def best_on_train(train: Demonstrations, test: Demonstrations) -> IntArray:
    """(I,) the prompt with the highest success on train, of those that an instance of test has labels of.

    Of equals the first.

    Raises:
        InputError: an instance has no label under a prompt of train.
    """
    means = dict(zip(train.prompts, means_of(train.correct), strict=True))
    with_labels = {train.prompts[i] for i in train.labelled()}
    row = np.array([means[text] if text in with_labels else -np.inf for text in test.prompts])
    scores = masked(np.tile(row, (len(test), 1)), test.known)
    if np.isneginf(scores).all(axis=1).any():
        raise InputError("an instance has labels under none of the prompts of train: nothing to compare with")
    return np.asarray(scores.argmax(axis=1))


def mean_se(x: FloatArray, groups: IntArray) -> tuple[float, float]:
    """Mean of x (I,) and its standard error, where values of one group (I,) may depend on each other."""
    keep = ~np.isnan(x)
    x, groups = x[keep], groups[keep]
    if len(x) < 2:
        return (float(x.mean()) if len(x) else float("nan")), float("nan")
    mean = float(x.mean())
    sums = np.bincount(groups, weights=x - mean)
    count = len(np.unique(groups))
    if count < 2:
        return mean, float("nan")
    return mean, float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(x))


def outcome(rule: str, right: FloatArray, base: FloatArray, groups: IntArray, calls: float) -> Outcome:
    """From whether each instance was right (I,) under the rule, and under the prompt that is best on train."""
    success, se = mean_se(right, groups)
    gain, gain_se = mean_se(right - base, groups)
    return Outcome(rule, success, se, gain, gain_se, calls, int((~np.isnan(right)).sum()))


def signal_choice(signal: FloatArray | None, correct: FloatArray) -> IntArray | None:
    """(I,) the prompt with the highest confidence or verdict; of equals the first. None where an instance has none."""
    if signal is None or np.isnan(np.where(np.isnan(correct), np.nan, signal)).all(axis=1).any():
        return None
    return np.asarray(np.where(np.isnan(signal) | np.isnan(correct), -np.inf, signal).argmax(axis=1))


def references(
    data: Demonstrations, base: IntArray, rules: Mapping[str, tuple[FloatArray, float]], by: str = "template"
) -> list[Outcome]:
    """Outcomes of the rules (name -> (right (I,), calls)), below those that need no model, or that nobody can follow.

    ``base`` (I,) are the prompts that are best on train. ``random`` is the mean of all prompts, ``hindsight`` the one
    that is best on these very instances, ``oracle`` counts an instance as right where any prompt was: also by luck, so
    it is no target. All are of the same instances: a rule that takes a prompt without a label is a mistake of ours.
    """
    correct, groups, count = data.correct, data.groups(by), float(data.known.sum(axis=1).mean())
    right = taken(correct, base)
    found: dict[str, tuple[FloatArray, float]] = {
        "random": (np.nanmean(correct, axis=1), 1.0),
        "best on train": (right, 1.0),
        **rules,
    }
    for name in ("confidence", "critic"):
        chosen = signal_choice(getattr(data, name), correct)
        if chosen is not None:
            found[f"highest {name}"] = (taken(correct, chosen), 2.0 * count)
    best = masked(np.tile(means_of(correct), (len(data), 1)), data.known).argmax(axis=1)
    found["hindsight"] = (taken(correct, best), 1.0)
    found["oracle"] = (np.nanmax(correct, axis=1), count)
    outcomes = [outcome(name, was, right, groups, calls) for name, (was, calls) in found.items()]
    assert all(o.n == len(data) for o in outcomes), "a rule took a prompt that has no label"
    return outcomes
