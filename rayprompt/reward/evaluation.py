"""How good the probabilities of a reward model are, always beside what knowing nothing gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.scores import FloatArray

BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Quality:
    """Of probabilities against labels.

    Attributes:
        n: labels.
        majority: accuracy of always saying what most labels are: without it accuracy says nothing.
        accuracy, precision, recall, f1: at 0.5; precision, recall and f1 of the label 1, 0 where they are undefined.
        auc: over all rows: mostly whether hard queries are told from easy ones.
        auc_within: the mean over queries of the AUC among its prompts: whether prompts are told apart for a query.
        brier: mean squared error; ``brier_prior`` that of saying each prompt's mean.
        calibration: expected calibration error, in ten bins of equally many rows.
    """

    n: int
    majority: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    auc_within: float
    brier: float
    brier_prior: float
    calibration: float

    def to_json(self) -> dict[str, Any]:
        """Numbers by name."""
        return asdict(self)


def quality(p: FloatArray, correct: FloatArray) -> Quality:
    """Of probabilities (I, P) against labels (I, P), NaN where there is none."""
    known = ~np.isnan(correct)
    y, q = correct[known], p[known]
    said = q >= 0.5
    hits = float((said & (y == 1)).sum())
    precision = hits / said.sum() if said.any() else 0.0
    recall = hits / y.sum() if y.any() else 0.0
    columns = known.any(axis=0)
    means = np.nanmean(correct[:, columns], axis=0)
    return Quality(
        n=len(y),
        majority=float(max(y.mean(), 1 - y.mean())),
        accuracy=float((said == (y == 1)).mean()),
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0,
        auc=auc(q, y),
        auc_within=auc_within(p, correct),
        brier=float(((q - y) ** 2).mean()),
        brier_prior=float(np.nanmean((means - correct[:, columns]) ** 2)),
        calibration=calibration_error(q, y),
    )


def auc(p: FloatArray, y: FloatArray) -> float:
    """Area under the ROC curve: how often a right one is above a wrong one, ties half. NaN where one is missing."""
    right = int(y.sum())
    wrong = len(y) - right
    if not right or not wrong:
        return float("nan")
    ranks = rankdata(p)[y == 1].sum()
    return float((ranks - right * (right + 1) / 2) / (right * wrong))


def auc_within(p: FloatArray, correct: FloatArray) -> float:
    """The mean AUC among the prompts of one instance, over those with labels of both kinds."""
    found = []
    for q, y in zip(p, correct, strict=True):
        known = ~np.isnan(y)
        if known.any() and 0 < y[known].sum() < known.sum():
            found.append(auc(q[known], y[known]))
    return float(np.mean(found)) if found else float("nan")


def calibration_error(p: FloatArray, y: FloatArray) -> float:
    """Mean distance of probability and frequency, over bins of equally many rows."""
    order = np.argsort(p, kind="stable")
    return float(
        sum(len(some) * abs(p[some].mean() - y[some].mean()) for some in np.array_split(order, BINS) if len(some))
        / len(p)
    )


def by_kind(p: FloatArray, data: Demonstrations, seen_prompts: set[str], seen_queries: set[str]) -> dict[str, Quality]:
    """Quality by what the model has seen: ``seen prompts, unseen queries`` and so on; only where there are labels."""
    found = {}
    prompts = np.array([text in seen_prompts for text in data.prompts])
    queries = np.array([text in seen_queries for text in data.texts])
    for some_prompts, of_prompts in (("seen prompts", prompts), ("unseen prompts", ~prompts)):
        for some_queries, of_queries in (("seen queries", queries), ("unseen queries", ~queries)):
            at = np.ix_(of_queries, of_prompts)
            if (~np.isnan(data.correct[at])).any():
                found[f"{some_prompts}, {some_queries}"] = quality(p[at], data.correct[at])
    return found
