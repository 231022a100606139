"""Which prompt for which query: rules that ask the LM once, and what they are measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.scores import FloatArray, IntArray

GRID = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)  # weights of a guard
CAUTION = 1.0  # standard errors by which a gain must be above nothing


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
        weight: found by cross-validation on train.
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

    The weight is the one whose gain on train over the best prompt of the other folds is largest, less its standard
    error; none is kept that is not above 0.
    """
    correct = data.correct
    groups = data.groups("template")
    gains: dict[float, FloatArray] = {w: np.zeros(len(correct)) for w in GRID}
    for k in np.unique(fold).tolist():
        rest, here = fold != k, fold == k
        prior = np.nanmean(correct[rest], axis=0)
        guard = {w: Guard(w, prior, np.nanmean(p[rest], axis=0)) for w in GRID}
        best = taken(correct[here], np.full(int(here.sum()), prior.argmax()))
        for w in GRID:
            gains[w][here] = taken(correct[here], guard[w].choose(p[here])) - best
    lower = {w: mean_se(g, groups)[0] - CAUTION * mean_se(g, groups)[1] for w, g in gains.items()}
    best_weight = max(GRID, key=lambda w: lower[w] if w else 0.0)
    return Guard(best_weight, np.nanmean(correct, axis=0), np.nanmean(p, axis=0))


def switch(p: FloatArray, seen: IntArray, unseen: IntArray, threshold: float = 0.5) -> IntArray:
    """(I,) the seen prompt with the highest probability; where none reaches the threshold, the best unseen one.

    Prompt-OIRL's rule (its code's ``smart_combined``). Of equals the first.
    """
    choice = seen[p[:, seen].argmax(axis=1)]
    if len(unseen):
        low = p[:, seen].max(axis=1) < threshold
        choice = np.where(low, unseen[p[:, unseen].argmax(axis=1)], choice)
    return np.asarray(choice)


def taken(correct: FloatArray, chosen: IntArray) -> FloatArray:
    """(I,) whether the chosen prompts (I,) were right; NaN where there is no label."""
    return np.asarray(correct[np.arange(len(correct)), chosen])


def best_on_train(train: Demonstrations, prompts: tuple[str, ...]) -> int:
    """The place among ``prompts`` of the one with the highest success on train; of equals the first."""
    means = dict(zip(train.prompts, np.nanmean(train.correct, axis=0), strict=True))
    known = [i for i, text in enumerate(prompts) if text in means]
    if not known:
        raise InputError("none of the prompts has labels in train")
    return max(known, key=lambda i: (means[prompts[i]], -i))


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
    """(I,) the prompt with the highest confidence or verdict; of equals the first. None where there is no signal."""
    if signal is None or np.isnan(signal).all():
        return None
    return np.asarray(np.where(np.isnan(signal) | np.isnan(correct), -np.inf, signal).argmax(axis=1))


def references(
    data: Demonstrations, best: int, rules: Mapping[str, tuple[FloatArray, float]], by: str = "template"
) -> list[Outcome]:
    """Outcomes of the rules (name -> (right (I,), calls)), below those that need no model, or that nobody can follow.

    ``random`` is the mean of all prompts, ``hindsight`` the one that is best on these very instances, ``oracle`` counts
    an instance as right where any prompt was: also by luck, so it is no target.
    """
    correct, groups, count = data.correct, data.groups(by), len(data.prompts)
    base = correct[:, best]
    found: dict[str, tuple[FloatArray, float]] = {
        "random": (np.nanmean(correct, axis=1), 1.0),
        "best on train": (base, 1.0),
        **rules,
    }
    for name in ("confidence", "critic"):
        chosen = signal_choice(getattr(data, name), correct)
        if chosen is not None:
            found[f"highest {name}"] = (taken(correct, chosen), 2.0 * count)
    found["hindsight"] = (correct[:, int(np.nanmean(correct, axis=0).argmax())], 1.0)
    found["oracle"] = (np.nanmax(correct, axis=1), float(count))
    return [outcome(name, right, base, groups, calls) for name, (right, calls) in found.items()]


Chooser = Callable[[FloatArray], IntArray]
