"""Pairs without an answer: what they are to tables, stores, metrics, searches and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayprompt.pairs import Answers, PairTable
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter
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
