"""Splits that tear no group apart, and predictions for queries that a model has not seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.model import RewardModel, check_seed
from rayprompt.scores import FloatArray, IntArray


def folds(data: Demonstrations, count: int, *, by: str = "template", seed: int = 0) -> IntArray:
    """(I,) the fold of each instance, 0 to count - 1: groups (query texts or templates) are never torn apart.

    Groups are shuffled and dealt out, the largest first, to the fold that has fewest instances.

    Raises:
        InputError: there are fewer groups than folds, or the seed is below 0.
    """
    check_seed(seed)
    groups = data.groups(by)
    sizes = np.bincount(groups)
    if count < 2 or len(sizes) < count:
        raise InputError(f"{count} folds of {len(sizes)} groups (by {by}): must be 2 to {len(sizes)}")
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(count, dtype=np.int64)
    for group in order.tolist():
        fold[group] = int(filled.argmin())
        filled[fold[group]] += sizes[group]
    return np.asarray(fold[groups])


def held_out(data: Demonstrations, fold: IntArray, make: Callable[[], RewardModel], *, seed: int = 0) -> FloatArray:
    """(I, P) the probabilities that models say which have not seen the instance's fold."""
    found = np.full(data.correct.shape, np.nan)
    for k in np.unique(fold).tolist():
        model = make().fit(data.of(instances=fold != k), seed=seed)
        chosen = np.flatnonzero(fold == k)
        found[chosen] = model.predict([data.queries[q] for q in data.query[chosen].tolist()], data.prompts)
    return found
