"""Intervals and tests against published numbers and closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_objective import log_softmax, scores_of

from rayprompt.objective import OBJECTIVES
from rayprompt.scores import PairError
from rayprompt.study.statistics import answers, bootstrap, estimate, mcnemar, paired, wilson
from rayprompt.study.statistics import test_name as name_of_test


def test_wilson_equals_scipy() -> None:
    from scipy.stats import binomtest

    for right, n in ((0, 10), (5, 10), (10, 10), (293, 480), (1, 3)):
        low, high = binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert wilson(right, n) == pytest.approx((low, high), abs=1e-12)


def test_intervals_hold_the_value() -> None:
    for n in range(1, 200):
        for right in {0, 1, n // 2, n}:
            low, high = wilson(right, n)
            assert 0 <= low <= right / n <= high <= 1
    gold = np.arange(20)  # 20 labels, all right: nearly every resample lacks some of them
    rows = np.full((20, 20), -5.0)
    rows[gold, gold] = -0.1
    found = estimate("f1", scores_of([rows.tolist()], gold.tolist()), gold, OBJECTIVES["f1"])
    assert found.value == 1.0
    assert found.ci95[0] < 1.0 == found.ci95[1]


def test_one_graded_example_tells_nothing() -> None:
    assert paired(np.array([0.3]), np.array([0.8])) == 1.0


def test_the_test_is_named_by_the_values_of_both() -> None:
    binary, graded = np.array([0.0, 1.0]), np.array([0.5, 1.0])
    assert name_of_test("accuracy", binary, binary) == "exact McNemar"
    assert name_of_test("accuracy", binary, graded) == "paired permutation test"


def test_mcnemar_fixture() -> None:
    # 3 wins and 9 losses: two-sided exact binomial p = 2 * P(X <= 3 | 12, 1/2) = 0.1460
    first = np.array([1] * 3 + [0] * 9 + [1] * 20)
    second = np.array([0] * 3 + [1] * 9 + [1] * 20)
    assert mcnemar(first, second) == pytest.approx(0.14599609375)
    assert mcnemar(first, first) == 1.0


def test_f1_interval_holds_the_value_and_narrows_with_n() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (30, 300):
        gold = rng.integers(2, size=n)
        logits = rng.normal(size=(n, 2))
        logits[np.arange(n), gold] += 1.0
        scores = scores_of([[log_softmax(row.tolist()) for row in logits]], gold.tolist())
        found = estimate("f1", scores, gold, OBJECTIVES["f1"])
        assert found.ci95[0] <= found.value <= found.ci95[1]
        assert bootstrap(scores, gold, OBJECTIVES["f1"]) == found.ci95
        widths.append(found.ci95[1] - found.ci95[0])
    assert widths[1] < widths[0]


def test_accuracy_estimate() -> None:
    scores = scores_of([[log_softmax([1.0, 0.0]), log_softmax([0.0, 1.0]), log_softmax([3.0, 0.0])]], [0, 0, 0])
    found = estimate("accuracy", scores, np.zeros(3, dtype=int), OBJECTIVES["accuracy"])
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 3
    assert found.ci95 == wilson(2, 3)


def test_a_pair_without_an_answer_is_not_right_and_keeps_its_place() -> None:
    gold = np.array([0, 1, 0, 1])
    rows = [[-0.1, -2.0], [-2.0, -0.1], [-0.1, -2.0], [-0.1, -2.0]]  # right, right, right, wrong
    whole = scores_of([rows], gold.tolist())
    keep = np.array([0, 1, 3])
    columns = ("candidate", "example", "sample", "value", "label_log_probs", "tokens", "seconds")
    broken = dataclasses.replace(
        whole, **{name: getattr(whole, name)[keep] for name in columns}, errors=(PairError(0, 2, "the LM gave NaN"),)
    )
    assert answers(whole).tolist() == [1, 1, 1, 0]
    assert answers(broken).tolist() == [1, 1, 0, 0]
    found = estimate("accuracy", broken, gold, OBJECTIVES["accuracy"])
    assert (found.value, found.n) == (0.5, 4)
    assert mcnemar(answers(whole), answers(broken)) == 1.0
    nothing = dataclasses.replace(whole, **{name: getattr(whole, name)[:0] for name in columns})
    for metric in ("accuracy", "f1"):
        assert estimate(metric, nothing, gold, OBJECTIVES[metric]).value == 0.0
