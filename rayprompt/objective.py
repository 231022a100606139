"""Objectives: pure functions of Scores and gold labels, one value per candidate, always maximised.

Every function takes ``scores`` (C candidates, E examples) and ``gold`` (E,), the label index of each example, and
returns (C,) float64; NaN for a candidate that has no answered pair. Partial rows are averaged over what is there.

A pair that was asked and has no answer (``scores.errors``) counts as not right: its value is 0, and its L labels are
equally likely, so cross_entropy gives it -log L, hinge -2 (L - 1), gap 0, and F1 a gold label that nothing predicted.

A function of the user's own is named by where it is imported from, ``module:function``. It sees the rows of the
answered pairs; ``scores.dense()``, ``scores.mean_value()`` and ``scores.counts()`` include the unanswered ones. For a
candidate without a single answer its value is not used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from rayprompt.errors import InputError, unknown
from rayprompt.scores import FloatArray, IntArray, Scores

Objective = Callable[[Scores, IntArray], FloatArray]

HINGE_MARGIN = 2.0
GAP_WRONG, GAP_RIGHT = 180.0, 200.0
GROUPS = 4  # of samples


def accuracy(scores: Scores, gold: IntArray) -> FloatArray:
    """The share of examples answered right: the mean of the task metric's per-pair value."""
    return scores.mean_value()


def f1(scores: Scores, gold: IntArray) -> FloatArray:
    """F1 of the last label where there are two, the macro average where there are more.

    Where no label is strictly the most likely, or the pair is unanswered, no label is predicted.
    """
    answer, labels = predicted(scores)
    seen = ~np.isnan(scores.dense("value"))
    parts = []
    for label in f1_labels(labels):
        hit = ((answer == label) & (gold == label) & seen).sum(axis=1)
        total = ((answer == label) & seen).sum(axis=1) + ((gold == label) & seen).sum(axis=1)
        parts.append(np.where(total > 0, 2 * hit / np.maximum(total, 1), 0.0))
    return np.where(scores.answered(), np.mean(parts, axis=0), np.nan)


def predicted(scores: Scores) -> tuple[IntArray, int]:
    """(C, E) the label that is strictly the most likely, -1 where there is none; and how many labels there are."""
    log_probs = np.nan_to_num(scores.dense("label_log_probs"), nan=-np.inf)
    most = log_probs.max(axis=2)
    alone = (log_probs == most[:, :, None]).sum(axis=2) == 1
    return np.where(alone, log_probs.argmax(axis=2), -1), log_probs.shape[2]


def f1_labels(labels: int) -> list[int]:
    """The labels whose F1 scores are averaged."""
    return [labels - 1] if labels == 2 else list(range(labels))


def cross_entropy(scores: Scores, gold: IntArray) -> FloatArray:
    """Minus the mean cross-entropy over the label words (nats): the mean log-probability of the gold label."""
    return _mean(scores, _gold_log_prob(scores, gold))


def hinge(scores: Scores, gold: IntArray) -> FloatArray:
    """Minus the mean hinge loss, sum over wrong labels of max(0, l_c - l_y + 2) (Black-Box Tuning, section 3.3).

    The loss depends on differences of logits only, so log-probabilities give the same number as logits.
    """
    return _mean(scores, _minus_hinge(scores, gold))


def gap(scores: Scores, gold: IntArray) -> FloatArray:
    """RLPrompt's reward (arXiv 2205.12548, section 4.1): 200 x gap when right, 180 x gap when wrong, averaged.

    gap = P(gold) - the greatest P of the other labels, P a softmax over the label words; right means gap > 0. The
    gold label is masked by its index: by equality two tied labels would both vanish.
    """
    return _mean(scores, _weighted_gap(scores, gold))


def best_sample(scores: Scores, gold: IntArray) -> FloatArray:
    """The value of the best of each example's samples, averaged: what is left when the best one is chosen."""
    return _mean(scores, best_of_samples(scores))


def group_maxima(scores: Scores, gold: IntArray) -> FloatArray:
    """RLPrompt's reward where the LM writes (arXiv 2205.12548, section 4.2): samples in four groups, the best of each.

    100 x the value, averaged over groups and examples.
    """
    return _mean(scores, _group_maxima(scores, gold))


OBJECTIVES: dict[str, Objective] = {
    "accuracy": accuracy,
    "f1": f1,
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "gap": gap,
    "best_sample": best_sample,
    "group_maxima": group_maxima,
}

OWN = "module:function"  # one of the user's

NEEDS_LOG_PROBS = frozenset({"f1", "cross_entropy", "hinge", "gap"})


def get_objective(name: str, *, log_probs: bool = True) -> Objective:
    """The objective called ``name``, or imported from ``module:function``.

    Raises:
        InputError: no such objective, it cannot be imported, or it needs label log-probabilities and the LM gives none.
    """
    if ":" in name:
        return _imported(name)
    if name not in OBJECTIVES:
        raise unknown("objective", name, [*OBJECTIVES, OWN])
    if name in NEEDS_LOG_PROBS and not log_probs:
        raise InputError(
            f"objective {name!r} needs label log-probabilities, which this LM does not give; use 'accuracy'"
        )
    return OBJECTIVES[name]


def objective_name(objective: str | Objective) -> str:
    """The name of an objective; of a function its ``module:function``.

    Raises:
        InputError: it is not a function that has a name in its module.
    """
    if isinstance(objective, str):
        return objective
    module, name = getattr(objective, "__module__", None), getattr(objective, "__qualname__", "")
    if not callable(objective) or module is None or not name.isidentifier():
        raise InputError(
            f"objective {objective!r}: must be a name ({', '.join(OBJECTIVES)}) or a function at the top of a module "
            "or script: by its name a resumed search finds it again"
        )
    return f"{module}:{name}"


def pair_values(name: str, scores: Scores, gold: IntArray) -> FloatArray | None:
    """(C, E) what an objective is the mean of, over the examples; NaN = not evaluated. None where it is no mean."""
    return PAIRS[name](scores, gold) if name in PAIRS else None


def group_values(name: str, scores: Scores, gold: IntArray) -> FloatArray | None:
    """(C, E, G) what :func:`pair_values` are the means of: groups of samples, where the objective has some."""
    if name == "group_maxima":
        return maxima_of_groups(scores)
    pairs = pair_values(name, scores, gold)
    return None if pairs is None else pairs[:, :, None]


def best_of_samples(scores: Scores) -> FloatArray:
    """(C, E) the greatest value among the samples of each pair; NaN = not evaluated."""
    return _maxima(scores, 1)[:, :, 0]


def maxima_of_groups(scores: Scores) -> FloatArray:
    """(C, E, G) 100 x the greatest value of each group of samples: four groups of as many, those in order.

    NaN = none of that group was evaluated. There are fewer groups where there are fewer samples.
    """
    groups = min(GROUPS, scores.samples)
    return 100.0 * _maxima(scores, groups)


def _maxima(scores: Scores, groups: int) -> FloatArray:
    """(C, E, groups) the greatest value among the samples of each group; an unanswered sample has the value 0."""
    found = np.full((len(scores.candidates), len(scores.examples), groups), -np.inf)
    candidate, example, sample, _ = scores.unanswered
    for c, e, k, value in (
        (scores.candidate, scores.example, scores.sample, scores.value),
        (candidate, example, sample, 0.0),
    ):
        np.maximum.at(found, (c, e, k.astype(np.int64) * groups // scores.samples), value)
    return np.where(np.isneginf(found), np.nan, found)


def _group_maxima(scores: Scores, gold: IntArray) -> FloatArray:
    found = maxima_of_groups(scores)
    seen = ~np.isnan(found)
    count = seen.sum(axis=2)
    return np.where(count > 0, np.where(seen, found, 0.0).sum(axis=2) / np.maximum(count, 1), np.nan)


def _best_sample(scores: Scores, gold: IntArray) -> FloatArray:
    return best_of_samples(scores)


def _imported(path: str) -> Objective:
    module, _, name = path.partition(":")
    try:
        found: Objective = getattr(importlib.import_module(module), name)
    except Exception as error:  # what a module of the user's raises is not ours to know
        raise InputError(f"objective {path}: cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise InputError(f"objective {path}: is {type(found).__name__}, not a function of scores and gold labels")
    return found


def _value(scores: Scores, gold: IntArray) -> FloatArray:
    return scores.dense("value")


def _gold_log_prob(scores: Scores, gold: IntArray) -> FloatArray:
    own, _ = _own_and_others(scores, gold)
    return own


def _minus_hinge(scores: Scores, gold: IntArray) -> FloatArray:
    own, others = _own_and_others(scores, gold)
    return np.asarray(-np.maximum(0.0, others - own[:, :, None] + HINGE_MARGIN).sum(axis=2))


def _weighted_gap(scores: Scores, gold: IntArray) -> FloatArray:
    own, others = _own_and_others(scores, gold)
    difference = np.exp(own) - np.exp(others).max(axis=2)
    return np.asarray(np.where(difference > 0, GAP_RIGHT, GAP_WRONG) * difference)


PAIRS: dict[str, Objective] = {
    "accuracy": _value,
    "cross_entropy": _gold_log_prob,
    "hinge": _minus_hinge,
    "gap": _weighted_gap,
    "best_sample": _best_sample,
    "group_maxima": _group_maxima,
}


def _own_and_others(scores: Scores, gold: IntArray) -> tuple[FloatArray, FloatArray]:
    """Log-probabilities of the gold label (C, E) and of the L labels with the gold one at -inf (C, E, L)."""
    log_probs = scores.dense("label_log_probs")
    columns = np.arange(len(gold))
    own = log_probs[:, columns, gold]
    others = log_probs.copy()
    others[:, columns, gold] = -np.inf
    return own, others


def _mean(scores: Scores, values: FloatArray) -> FloatArray:
    """(C, E) -> (C,), NaN = not evaluated or no answer at all; a plain sum in a fixed order, the same on every run."""
    seen = ~np.isnan(values)
    total = np.where(seen, values, 0.0).sum(axis=1)
    count = seen.sum(axis=1)
    return np.asarray(np.where(scores.answered(), total / np.maximum(count, 1), np.nan), dtype=np.float64)
