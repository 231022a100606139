"""Pairs without an answer: what they are to tables, stores, metrics, searches and reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rayprompt.candidate import TextPrompt
from rayprompt.objective import OBJECTIVES, pair_values
from rayprompt.pairs import Answers, PairTable
from rayprompt.scores import PairError, Scores, right, tally_of
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter
from rayprompt.study.statistics import answers as answers_of
from rayprompt.study.statistics import estimate, f1_permutation, paired_test, wilson
from rayprompt.study.statistics import test_name as name_of_test
from rayprompt.unanswered import Reason

CONTEXT = Context({"model": "m"})
EXAMPLES = [f"example{i}" for i in range(4)]


def reading(*rows: float) -> Answers:
    """Log-probabilities of two labels; NaN = overflowed."""
    first = np.array(rows, dtype=np.float32)
    log_probs = np.stack([first, np.log1p(-np.exp(first))], axis=1)
    return Answers(log_probs, np.ones(len(rows), np.int32), np.ones(len(rows), np.float32))


def writing(*texts: str | None) -> Answers:
    answers = Answers.empty(len(texts), 0)
    assert answers.completion is not None
    answers.completion[:] = texts
    return answers


def test_answers_without_a_reason_get_one() -> None:
    answers = reading(-0.5, np.nan, -0.1)
    assert answers.reason.dtype == np.int8
    assert answers.reason.tolist() == [Reason.ANSWERED, Reason.NAN, Reason.ANSWERED]
    answers.reason[2] = Reason.REFUSED
    assert answers.settle().tolist() == [False, True, True]
    assert np.isnan(answers.label_log_probs).any(axis=1).tolist() == [False, True, True]
    texts = writing("4", None, "4 and")
    texts.reason[2] = Reason.CUT
    texts.settle()
    assert texts.reason.tolist() == [Reason.ANSWERED, Reason.FAILED, Reason.CUT]
    assert texts.completion is not None
    assert texts.completion[2] == "4 and"  # stays for the record
    assert texts.take(np.array([2, 0])).reason.tolist() == [Reason.CUT, Reason.ANSWERED]


def test_a_table_keeps_reasons() -> None:
    table = PairTable(EXAMPLES, 2)
    row = table.index(["a"]).repeat(3)
    answers = reading(-0.5, np.nan, np.nan)
    answers.reason[2] = Reason.UNSEEN
    table.fill(row, np.arange(3), answers)
    table.index([str(i) for i in range(100)])  # it grows
    assert table.answers(row, np.arange(3)).reason.tolist() == [Reason.ANSWERED, Reason.NAN, Reason.UNSEEN]
    assert table.unanswered.tolist() == [False, True, True, False]


def stored(store: ScoreStore, answers: Answers, search: str = "s") -> ShardWriter:
    writer = ShardWriter(store, search, CONTEXT, part="train", split="default", examples=EXAMPLES)
    value = np.where(answers.reason == 0, 1.0, np.nan)
    writer.add(["a"], np.zeros(len(answers), dtype=np.int64), np.arange(len(answers)), value, answers)
    writer.flush()
    return writer


def loaded(store: ScoreStore, labels: int, **how: bool) -> PairTable:
    table = PairTable(EXAMPLES, labels)
    store.load(table, CONTEXT.key, "train", "s", **how)
    return table


def test_a_store_keeps_reasons(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.prepare()
    answers = reading(-0.5, np.nan, np.nan, -0.2)
    answers.reason[1:3] = Reason.REFUSED, Reason.FAILED
    stored(store, answers)
    table = loaded(store, 2)
    assert table.reason[0].tolist() == [0, Reason.REFUSED, Reason.FAILED, 0]
    assert pq.read_table(tmp_path / "scores").column("reason").to_pylist() == [0, 2, 3, 0]


def test_a_search_takes_its_own_unanswered_pairs_and_not_those_of_others(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.prepare()
    stored(store, reading(-0.5, np.nan), "other")
    assert loaded(store, 2, failed=False).known[0].tolist() == [True, False, False, False]
    stored(store, reading(-0.5, np.nan), "s")
    assert loaded(store, 2, failed=False).known[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("answers", "reason"), [(reading(-0.5, np.nan), Reason.NAN), (writing("4", None), Reason.FAILED)]
)
def test_a_store_of_an_earlier_version_gives_reasons(tmp_path: Path, answers: Answers, reason: Reason) -> None:
    store = ScoreStore(tmp_path)
    store.prepare()
    stored(store, answers)
    (file,) = (tmp_path / "scores").iterdir()
    table = pq.read_table(file)
    metadata = {**table.schema.metadata, b"rayprompt.schema": b"rayprompt.scores/2"}
    pq.write_table(table.drop_columns(["reason"]).replace_schema_metadata(metadata), file)
    found = loaded(ScoreStore(tmp_path), answers.label_log_probs.shape[1])
    assert found.reason[0, :2].tolist() == [Reason.ANSWERED, reason]


# Metrics, objectives, intervals and tests


def with_unanswered(
    labels: int, examples: int, candidates: int = 3, seed: int = 0
) -> tuple[Scores, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Scores with about a third of the pairs unanswered; gold; (C, E, L) log-probabilities, NaN where unanswered."""
    rng = np.random.default_rng(seed)
    dense = np.log(rng.dirichlet(np.ones(labels), size=(candidates, examples)))
    gold = rng.integers(labels, size=examples)
    dense[rng.random((candidates, examples)) < 0.35] = np.nan
    return scored(dense, gold), gold, dense


def scored(dense: npt.NDArray[np.float64], gold: npt.NDArray[np.int64]) -> Scores:
    """The scores that say what (C, E, L) log-probabilities say; NaN = unanswered."""
    candidate, example = np.nonzero(~np.isnan(dense[:, :, 0]))
    rows = dense[candidate, example]
    none = np.zeros(len(rows), dtype=np.int32)
    missing = np.argwhere(np.isnan(dense[:, :, 0])).tolist()
    return Scores(
        candidates=tuple(TextPrompt(str(i)) for i in range(len(dense))),
        examples=np.arange(dense.shape[1]),
        candidate=candidate,
        example=example,
        sample=none,
        value=right(rows, gold[example]),
        label_log_probs=rows,
        tokens=none + 7,
        seconds=none.astype(float),
        errors=tuple(PairError(c, e, "refused", Reason.REFUSED) for c, e in missing),
    )


def slow(name: str, rows: npt.NDArray[np.float64], gold: npt.NDArray[np.int64]) -> float:
    """An objective of one candidate, pair by pair."""
    total = 0.0
    for row, label in zip(rows, gold, strict=True):
        size = len(row)
        p = [1 / size] * size if np.isnan(row).any() else [math.exp(x) for x in row]
        others = [p[i] for i in range(size) if i != label]
        if name == "accuracy":
            total += p[label] > max(others)
        elif name == "cross_entropy":
            total += math.log(p[label])
        elif name == "hinge":
            total -= sum(max(0.0, math.log(q) - math.log(p[label]) + 2) for q in others)
        elif name == "gap":
            gap = p[label] - max(others)
            total += (200 if gap > 0 else 180) * gap
    return total / len(rows)


@pytest.mark.parametrize("labels", [2, 3])
def test_objectives_count_unanswered_pairs_as_a_slow_loop_does(labels: int) -> None:
    scores, gold, dense = with_unanswered(labels, 40)
    for name in ("accuracy", "cross_entropy", "hinge", "gap"):
        expected = [slow(name, rows, gold) for rows in dense]
        assert OBJECTIVES[name](scores, gold) == pytest.approx(expected), name
        pairs = pair_values(name, scores, gold)
        assert pairs is not None
        assert pairs.mean(axis=1) == pytest.approx(expected), name
    assert scores.complete().all()
    assert scores.counts().tolist() == [40, 40, 40]


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_f1_counts_them_as_scikit_learn_does_a_class_of_its_own(labels: int) -> None:
    from sklearn.metrics import f1_score

    scores, gold, dense = with_unanswered(labels, 60, seed=labels)
    said = np.where(np.isnan(dense[:, :, 0]), labels, np.nan_to_num(dense, nan=-np.inf).argmax(axis=2))
    own = [labels - 1] if labels == 2 else list(range(labels))
    for value, answers in zip(OBJECTIVES["f1"](scores, gold), said, strict=True):
        assert value == pytest.approx(f1_score(gold, answers, labels=own, average="macro"))


def test_two_right_and_eight_failed_are_no_f1_of_one() -> None:
    gold = np.ones(10, dtype=np.int64)
    dense = np.full((1, 10, 2), np.nan)
    dense[0, :2] = np.log([0.1, 0.9])
    scores = scored(dense, gold)
    assert OBJECTIVES["f1"](scores, gold)[0] == pytest.approx(2 * 2 / (2 + 10))
    assert OBJECTIVES["accuracy"](scores, gold)[0] == 0.2
    for metric, low in (("accuracy", 0.2), ("f1", 1 / 3)):
        found = estimate(metric, scores, gold, OBJECTIVES[metric])
        assert (found.value, found.n) == (pytest.approx(low), 10)
        assert found.ci95[0] <= found.value <= found.ci95[1] < 1
    assert estimate("accuracy", scores, gold, OBJECTIVES["accuracy"]).ci95 == wilson(2, 10)


def test_a_candidate_without_an_answer_has_failed() -> None:
    gold = np.array([0, 1, 0])
    dense = np.full((2, 3, 2), np.nan)
    dense[0, 0] = np.log([0.9, 0.1])
    scores = scored(dense, gold)
    for name, objective in OBJECTIVES.items():
        values = objective(scores, gold)
        assert np.isfinite(values[0]), name
        assert np.isnan(values[1]), name
    assert scores.complete().all()
    assert estimate("f1", scored(dense[1:], gold), gold, OBJECTIVES["f1"]).value == 0.0


def test_samples_without_an_answer_are_worth_nothing() -> None:
    values = {(0, 0): 0.2, (0, 1): 0.6, (1, 0): 0.5}  # (example, sample); the others are unanswered
    example, sample = np.array(list(values)).T
    none = np.zeros(3, dtype=np.int32)
    scores = Scores(
        candidates=(TextPrompt(""),), examples=np.arange(3), candidate=none, example=example, sample=sample,
        value=np.array(list(values.values())), label_log_probs=None, tokens=none, seconds=none.astype(float),
        completion=("a", "b", "c"), samples=2,
        errors=tuple(PairError(0, e, "cut", Reason.CUT, k) for e, k in ((1, 1), (2, 0), (2, 1))),
    )  # fmt: skip
    gold = np.zeros(3, dtype=np.int64)
    assert OBJECTIVES["accuracy"](scores, gold)[0] == pytest.approx((0.8 + 0.5) / 6)
    assert OBJECTIVES["best_sample"](scores, gold)[0] == pytest.approx((0.6 + 0.5) / 3)
    assert OBJECTIVES["group_maxima"](scores, gold)[0] == pytest.approx(100 * np.mean([0.2, 0.6, 0.5, 0, 0, 0]))
    assert answers_of(scores).tolist() == pytest.approx([0.4, 0.25, 0.0])
    assert answers_of(scores, "best_sample").tolist() == pytest.approx([0.6, 0.5, 0.0])
    frame = pd.DataFrame(scores.to_dict())
    assert frame.value.mean() == pytest.approx(OBJECTIVES["accuracy"](scores, gold)[0])
    assert frame.reason.tolist() == ["", "", "", "cut", "cut", "cut"]
    assert frame["sample"].tolist() == [0, 1, 0, 1, 0, 1]


def test_a_table_of_scores_has_the_unanswered_pairs_in_their_places() -> None:
    scores, _, dense = with_unanswered(2, 20)
    frame = pd.DataFrame(scores.to_dict())
    assert frame.groupby("prompt").value.mean().tolist() == pytest.approx(scores.mean_value().tolist())
    assert frame.example.tolist() == list(range(20)) * 3
    assert (frame.reason == "refused").tolist() == np.isnan(dense[:, :, 0]).reshape(-1).tolist()
    assert frame.label_log_probs.isna().tolist() == (frame.reason == "refused").tolist()
    found = tally_of([scores])
    assert found["pairs"] == 60
    assert found["reasons"]["refused"] == found["unanswered"] == int(np.isnan(dense[:, :, 0]).sum())
    assert found["examples"] == np.flatnonzero(np.isnan(dense[:, :, 0]).all(axis=0)).tolist()
    np.testing.assert_array_equal(scores.judged(), np.where(np.isnan(dense[:, :, 0]), np.nan, scores.dense()))


def f1_of(answers: npt.NDArray[Any], gold: npt.NDArray[Any], labels: int) -> float:
    from sklearn.metrics import f1_score

    own = [labels - 1] if labels == 2 else list(range(labels))
    return float(f1_score(gold, answers, labels=own, average="macro", zero_division=0.0))


@pytest.mark.parametrize(("labels", "differ"), [(2, 7), (3, 9), (2, 40), (4, 60)])
def test_the_test_of_f1_equals_scipy(labels: int, differ: int) -> None:
    from scipy.stats import permutation_test

    rng = np.random.default_rng(differ)
    gold = rng.integers(labels, size=80)
    first = np.where(rng.random(80) < 0.8, gold, rng.integers(-1, labels, size=80))
    second = first.copy()
    second[:differ] = (first[:differ] + 2) % (labels + 1) - 1  # another answer, or none
    assert (first != second).sum() == differ
    found = f1_permutation(first, second, gold, labels)
    exact = differ <= 13
    kept = slice(0, differ) if exact else slice(None)  # where both say the same, changing places changes nothing

    def statistic(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
        rest = first[differ:] if exact else first[:0]
        return f1_of(np.concatenate([a, rest]), gold, labels) - f1_of(np.concatenate([b, rest]), gold, labels)

    wanted = permutation_test(
        (first[kept], second[kept]), statistic, permutation_type="samples", vectorized=False,
        n_resamples=np.inf if exact else 999,
    ).pvalue  # fmt: skip
    assert found == pytest.approx(wanted, abs=1e-12 if exact else 0.06)
    assert f1_permutation(first, second, gold, labels) == found  # the draws have a seed
    assert f1_permutation(second, first, gold, labels) == pytest.approx(found, abs=1e-12 if exact else 0.06)
    assert f1_permutation(first, first, gold, labels) == 1.0


def test_prompts_of_equal_accuracy_may_differ_in_f1() -> None:
    """Accuracy .90 twice, F1 .667 and .000: McNemar sees nothing, the test of F1 does."""
    gold = np.array([1] * 10 + [0] * 90)
    first, second = gold.copy(), np.zeros(100, dtype=np.int64)
    first[10:20] = 1  # 10 hits, 10 false alarms; the other misses all 10
    dense = np.log(np.where(np.arange(2) == np.stack([first, second])[:, :, None], 0.9, 0.1))
    one, other = scored(dense[:1], gold), scored(dense[1:], gold)
    assert [estimate("accuracy", s, gold, OBJECTIVES["accuracy"]).value for s in (one, other)] == [0.9, 0.9]
    assert [estimate("f1", s, gold, OBJECTIVES["f1"]).value for s in (one, other)] == pytest.approx([2 / 3, 0])
    assert paired_test("accuracy", one, other, gold) == 1.0
    assert paired_test("f1", one, other, gold) < 0.01
    assert name_of_test("f1", gold.astype(float)) == "paired permutation test"
    assert name_of_test("accuracy", gold.astype(float)) == "exact McNemar"
