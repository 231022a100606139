"""Pairs without an answer: what they are to tables, stores, metrics, searches and reports."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import finish, plan_of
from test_store import without_checksum

from rayprompt.budget import Ledger
from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.objective import OBJECTIVES, pair_values
from rayprompt.pairs import Answers, PairTable
from rayprompt.report.model import Run
from rayprompt.report.rebuilt import rebuilt
from rayprompt.scores import PairError, Scores, right, tally_of
from rayprompt.scoring.actor import ScorerInfo
from rayprompt.scoring.endpoint import RemoteTable
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import Cost
from rayprompt.scoring.unloaded import UnloadedPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter
from rayprompt.study.closing import PartScorer, _with_nominations
from rayprompt.study.loop import SearchLoop
from rayprompt.study.statistics import answers as answers_of
from rayprompt.study.statistics import estimate, f1_permutation, paired_test, wilson
from rayprompt.study.statistics import test_name as name_of_test
from rayprompt.study.warm import stored_scores
from rayprompt.unanswered import Reason, shown
from searchers.random import RandomSearcher

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
    pq.write_table(table.drop_columns(["reason"]).replace_schema_metadata(metadata), without_checksum(file))
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


# Searches


class Filtering(UnloadedPool):
    """Made-up scores, drawn by prompt and example; some pairs have no answer. ``asked``: (prompt, example) in order."""

    deterministic = False

    def __init__(self, problem: Problem, refused: Collection[int] = (), failed: float = 0.0) -> None:
        self.source = problem.lm
        self.infos = [ScorerInfo("test", "test", 1, "", 0, 0.0, ())]
        self.shapes, self.device_class = RemoteTable("test", "test"), "test"  # type: ignore[assignment]
        self.refused, self.failed = set(refused), failed
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def answers(
        self, part: Any, prompts: Any, prompt: Any, example: Any, *more: Any, **how: Any
    ) -> Iterator[tuple[Any, Answers, Cost]]:
        found = Answers.empty(len(prompt), len(part.labels))
        for i, (ids, e) in enumerate(zip([tuple(prompts[p]) for p in prompt], example.tolist(), strict=True)):
            self.asked.append((ids, e))
            draw = np.random.default_rng([len(ids), *ids, e])
            p = draw.dirichlet(np.ones(len(part.labels)))
            found.label_log_probs[i] = np.log(p)
            if e in self.refused or draw.random() < self.failed:
                found.reason[i] = Reason.REFUSED if e in self.refused else Reason.FAILED
        found.tokens[:] = 7
        yield np.arange(len(prompt)), found, Cost(len(prompt))

    def no_lm(self) -> InputError:
        return InputError("there is none")


def test_a_nomination_without_an_answer_has_no_objective(few: Problem) -> None:
    scorer = PartScorer(few, Filtering(few, refused=range(99)), "train", Ledger(1))
    _, (row,) = _with_nominations(lambda part: scorer, [], [], [few.prompt("good")], "cross_entropy")
    assert (row["metric"], row["objective"]) == (0.0, None)  # NaN is no JSON


class Fours(RandomSearcher):
    generation = 4


def loop_of(few: Problem, pool: Filtering, folder: Path, budget: int, **more: Any) -> SearchLoop:
    return SearchLoop(Fours(few.for_search(), seed=3), pool, plan_of(folder, budget, **more))


def test_an_example_that_nobody_can_answer_is_not_paid_for_again(few: Problem) -> None:
    """Against a plain loop over sets: who is asked for what, and what is charged, generation by generation."""
    pool = Filtering(few, refused=[2, 9], failed=0.2)
    evaluator = Evaluator(pool, few.part("train"), few.gold, Ledger(16 * 11), examples=few.digests("train"))
    asked: dict[str, set[int]] = {}
    answered: set[tuple[str, int]] = set()
    left = 16 * 11
    for sizes in ((0, 1), (1, 2), (3, 7), (7, 20)):
        prompts = [few.prompt(f"good {'very ' * i}") for i in range(*sizes)]
        before = len(pool.asked)
        scores = evaluator.score(prompts, [few.token_ids(p) for p in prompts])
        out = {
            e
            for e in range(16)
            if sum(e in of for of in asked.values()) >= 3 and not any((key, e) in answered for key in asked)
        }
        wanted = [(p, e) for p in prompts for e in range(16) if e not in out][:left]
        left -= len(wanted)
        assert pool.asked[before:] == [(tuple(few.token_ids(p)), e) for p, e in wanted]
        assert evaluator.ledger.remaining == left
        for p, e in wanted:
            asked.setdefault(p.key, set()).add(e)
        answered |= {(scores.candidates[c].key, e) for c, e in zip(scores.candidate, scores.example, strict=True)}
        skipped = {(e.candidate, e.example) for e in scores.errors if e.reason == Reason.SKIPPED}
        assert skipped == {(c, e) for c in range(len(prompts)) for e in out}
    assert left == 0
    assert out == {2, 9}
    found = evaluator.unanswered()
    assert found["examples"] == [2, 9]
    assert found["reasons"]["refused"] == 2 * 6  # three generations, after which it is seen
    assert found["reasons"]["skipped"] == 2 * (len(asked) - 6)
    assert found["pairs"] == 16 * 11 + found["reasons"]["skipped"]


def test_candidates_are_compared_where_one_example_is_always_refused(few: Problem, tmp_path: Path) -> None:
    pool, budget = Filtering(few, refused=[5]), 16 * 12
    loop = finish(loop_of(few, pool, tmp_path, budget))
    report = loop.report()
    assert loop.end == "budget"
    assert loop.ledger.evaluations == len(pool.asked) == len(set(pool.asked)) == budget
    assert sum(e == 5 for _, e in pool.asked) == 4  # the first generation, and no other
    best = loop.finalists.best[0]
    assert best.complete
    assert best.n == 16
    assert 0 < best.metric < 1
    values = [slow_metric(pool, few, f.candidate, {5}) for f in loop.finalists.best]
    assert [f.metric for f in loop.finalists.best] == pytest.approx(values)
    assert report["unanswered"]["examples"] == [5]
    assert shown({"train": report["unanswered"]}).endswith("no prompt got an answer on example 6")


def slow_metric(pool: Filtering, few: Problem, candidate: Any, refused: set[int]) -> float:
    """Accuracy of a prompt by the pool's own draws, with what is refused as not right."""
    ids = few.token_ids(candidate)
    draws = [np.random.default_rng([len(ids), *ids, e]).dirichlet(np.ones(2)) for e in range(16)]
    return sum(e not in refused and p.argmax() == few.gold[e] for e, p in enumerate(draws)) / 16


def test_a_search_that_is_resumed_skips_the_same_and_asks_nothing_twice(few: Problem, tmp_path: Path) -> None:
    budget = 16 * 14 + 5
    quiet = Filtering(few, refused=[5, 11], failed=0.1)
    whole = finish(loop_of(few, quiet, tmp_path / "whole", budget))
    again = Filtering(few, refused=[5, 11], failed=0.1)
    first = finish(loop_of(few, again, tmp_path / "cut", 16 * 9), steps=2)
    first.writer.flush()  # and it dies: no snapshot
    second = finish(loop_of(few, again, tmp_path / "cut", 16 * 9))
    second.close()
    last = finish(loop_of(few, again, tmp_path / "cut", budget))
    assert len(set(again.asked)) == len(again.asked)
    assert sorted(again.asked) == sorted(quiet.asked)
    assert last.finalists.best == whole.finalists.best
    assert last.ledger.evaluations == whole.ledger.evaluations == budget
    assert last.report()["unanswered"] == whole.report()["unanswered"]


@pytest.mark.parametrize("failed", [0.0, 0.15])
def test_a_race_goes_on_over_pairs_without_an_answer(few: Problem, tmp_path: Path, failed: float) -> None:
    pool = Filtering(few, refused=[3], failed=failed)
    loop = finish(loop_of(few, pool, tmp_path, 16 * 40, race=0.2))
    assert loop.ledger.evaluations == len(pool.asked) == 16 * 40
    assert loop.racer is not None
    assert loop.racer.dropped > 0
    assert math.isfinite(loop.best_score)
    assert all(f.complete and f.n == 16 for f in loop.finalists.best)
    assert sum(e == 3 for _, e in pool.asked) == 4


def test_an_lm_that_answers_nothing_finds_nothing_and_spends_little(few: Problem, tmp_path: Path) -> None:
    """Local NaN, as when fp16 overflows, or a service that fails each input but the harmless one."""
    pool = Filtering(few, refused=range(16))
    loop = finish(loop_of(few, pool, tmp_path, 16 * 40))
    assert loop.end == "stalled"
    assert loop.finalists.best == []
    assert loop.ledger.evaluations == 16 * 4


def test_a_warm_start_takes_prompts_of_a_store_with_an_unanswerable_example(few: Problem, tmp_path: Path) -> None:
    loop = finish(loop_of(few, Filtering(few, refused=[5], failed=0.1), tmp_path, 16 * 12))
    loop.close()
    told = {c.key: s for c, s in stored_scores(few, tmp_path, "text")}
    assert len(told) >= 12
    for finalist in loop.finalists.best:
        scores = told[finalist.candidate.key]
        assert scores.complete().all()
        assert loop.searcher.objective(scores)[0] == pytest.approx(finalist.objective)
        assert np.isnan(scores.judged()[0, 5])


def test_a_report_of_a_search_that_died_counts_them_as_the_search_does(few: Problem, tmp_path: Path) -> None:
    loop = finish(loop_of(few, Filtering(few, refused=[5], failed=0.1), tmp_path, 16 * 12))
    loop.writer.flush()
    run = Run(
        name="one", searcher="random", group="random", settings={}, objective="accuracy", task="reviews",
        split="default", model="m", seed=3, study="s", digest="d", budget=16 * 12, search="one",
    )  # fmt: skip
    for examples in (16, None):
        found = rebuilt(run, str(tmp_path), examples)
        assert found.evaluations == loop.ledger.evaluations
        assert found.best_score == pytest.approx(loop.best_score)
        assert len(found.finalists) == 5
        assert max(f.train or 0 for f in found.finalists) == pytest.approx(loop.best_score)
