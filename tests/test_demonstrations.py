"""Demonstrations: how they are read and joined, what is refused, leaks, and text logs."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reward_data import rows

from rayprompt.errors import InputError
from rayprompt.numerals import canonical, last_number
from rayprompt.reward.checks import check, leaks, refuse
from rayprompt.reward.demonstrations import Demonstrations, mask_numbers, read_demonstrations
from rayprompt.reward.logs import read_answers, read_log, read_logs
from rayprompt.reward.voting import (
    answers_of,
    right_answers,
)


def test_repeated_rows_are_samples_and_a_file_gives_the_same_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = rows(
        query_uid=[str(i) for i in rng.integers(6, size=80)],
        prompt_id=[str(i) for i in rng.integers(4, size=80)],
        split=[("train", "test")[i] for i in rng.integers(2, size=80)],
        correct=rng.integers(2, size=80).tolist(),
        confidence=[None if c < 0.2 else float(np.float32(c)) for c in rng.random(80)],
        answer=[str(i) for i in rng.integers(3, size=80)],
    )
    data = Demonstrations.from_columns(given)
    cells = Counter(zip(given["split"], given["query_uid"], given["prompt_id"], strict=True))
    queries = {(s, q) for s, q, _ in cells}
    most = {key: max(n for (s, q, _), n in cells.items() if (s, q) == key) for key in queries}
    assert len(data) == sum(most.values())
    assert data.rows == 80
    seen: Counter[tuple[str, ...]] = Counter()
    names = ("split", "query_uid", "prompt_id", "correct", "confidence")
    for s, q, p, c, x in zip(*(given[n] for n in names), strict=True):
        k = seen[s, q, p]
        seen[s, q, p] += 1
        mine = [i for i in range(len(data)) if data.split[i] == s and data.uids[data.query[i]] == q]
        column = data.prompt_ids.index(p)
        known = [i for i in mine if not np.isnan(data.correct[i, column])]
        assert data.correct[known[k], column] == c
        assert data.confidence is not None
        assert np.isnan(data.confidence[known[k], column]) if x is None else data.confidence[known[k], column] == x
    data.write(tmp_path / "d.parquet")
    again = read_demonstrations(tmp_path / "d.parquet")
    assert again.rows == data.rows
    assert sorted(map(str, again.to_table().to_pylist())) == sorted(map(str, data.to_table().to_pylist()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": [0, 2]}, "row 2: correct is 2; it must be 0 or 1"),
        ({"query": ["a?", " "]}, "row 2: query_uid 1 has no text in column 'query'"),
        ({"query_uid": ["0", "0"], "query": ["a?", "b?"]}, "row 2: query_uid 0 has another query than in an earlier"),
        ({"prompt": ["p", "q"]}, "row 2: prompt_id a has another prompt"),
        ({"llm": ["x", "y"]}, "demonstrations of 2 LMs (x, y); choose one with --llm"),
        ({"split": ["train", None]}, "row 2: split is null"),
        ({"llm": [None, "lm"]}, "row 1: llm is null"),
        ({"confidence": [0.5, "high"]}, "row 2: confidence is 'high'; it must be a number, or null"),
        ({"query": ["a?", "b\ud800"]}, "row 2: query holds half of a surrogate pair"),
        ({name: [] for name in rows(correct=[])}, "demonstrations: holds no rows"),
    ],
)
def test_what_demonstrations_refuse(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Demonstrations.from_columns(rows(**{"correct": [0, 1], **change}))
    assert message in str(error.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"llm": ["x"], "querry": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no")
    Demonstrations.from_columns(rows(correct=[0, 1])).write(tmp_path / "c.parquet")
    wrong = rows(correct=[0, 1, None, 1], dataset=["x", "x", "y", "y"])
    pq.write_table(pa.table(wrong), tmp_path / "e.parquet")
    pq.write_table(pa.table(rows(correct=[0, 1], dataset=["x", None])), tmp_path / "n.parquet")
    for file, more, message in (
        ("a.parquet", {}, "no column 'dataset'"),
        ("b.parquet", {}, "not a Parquet file"),
        ("none.parquet", {}, "no such file"),
        ("c.parquet", {"llm": "ln"}, "no llm 'ln' (did you mean 'lm'?); it has lm"),
        ("c.parquet", {"answers": tmp_path / "c.parquet"}, "no column 'answer'"),
        ("n.parquet", {"dataset": "x"}, "n.parquet, row 2: dataset is null"),  # not what is left out, unsaid
        ("e.parquet", {"dataset": "y"}, "e.parquet, row 3: correct is None"),  # as the file counts, not what is left
    ):
        with pytest.raises(InputError, match=None) as error:
            read_demonstrations(tmp_path / file, **more)  # type: ignore[arg-type]
        assert message in str(error.value)


def test_nulls_of_templates_and_right_answers() -> None:
    """A null is a template or a right answer that is not known, not the text None."""
    given = rows(
        correct=[1, 0, 0, 1],
        template_uid=[None, "t", None, float("nan")],
        answer=["4", "5", "6", "7"],
        gold=[None, "5", "9", None],
    )
    data = Demonstrations.from_columns(given)
    assert data.templates == ("query #?", "t", "query #?", "query #?")
    assert data.gold == (None, "5", "9", None)
    assert right_answers(data, answers_of(data)).tolist() == [0, 0, -2, 0]  # by the label where no answer is known
    assert data.to_table().column("gold").to_pylist() == [None, "5", "9", None]
    assert Demonstrations.from_columns({**given, "gold": [None] * 4}).gold is None


@pytest.mark.parametrize(
    ("template", "query"),
    [
        (["x", "x", "y", "z"], ["one", "two", "three", "four"]),  # the same id
        (["w", "x", "y", "z"], ["One  more", "one more", "three", "four"]),  # the same text
        (["w", "x", "y", "z"], ["has 3", "has 41", "three", "four"]),  # the same but for numbers
        (["w", "x", "x", "z"], ["has 3", "has 41", "three", "four"]),  # both, in a chain
    ],
)
def test_groups_are_all_that_may_be_one_template(template: list[str], query: list[str]) -> None:
    data = Demonstrations.from_columns(rows(correct=[0, 1, 0, 1], template_uid=template, query=query))
    groups = data.groups("template")
    assert groups[0] == groups[1] != groups[3]
    assert (groups[2] == groups[0]) == (template[2] == "x")
    assert len(set(data.groups("query").tolist())) == (3 if query[0] == "One  more" else 4)


def test_a_long_query_takes_no_more_memory_than_it_is_long() -> None:
    queries = ["x y " * 50_000, *(f"word {'ab' * i}" for i in range(600))]
    data = Demonstrations.from_columns(rows(correct=[0, 1] * 300 + [0], query=queries))
    tracemalloc.start()
    assert len(set(data.groups("template").tolist())) == 601
    assert tracemalloc.get_traced_memory()[1] < 20e6  # an array of texts is as wide as the longest: 480 MB
    tracemalloc.stop()


def test_answers_are_joined_sample_by_sample(tmp_path: Path) -> None:
    samples = rows(correct=[1, 0, 1], query_uid=["0"] * 3)
    Demonstrations.from_columns(samples).write(tmp_path / "d.parquet")
    keys = {name: samples[name] for name in ("llm", "dataset", "split", "query_uid", "prompt_id")}
    pq.write_table(pa.table({**keys, "answer": ["5", "9", "5x"], "gold": ["5"] * 3}), tmp_path / "a.parquet")
    data = read_demonstrations(tmp_path / "d.parquet", answers=tmp_path / "a.parquet")
    assert data.answer is not None
    assert (data.answer.ravel().tolist(), data.gold) == (["5", "9", "5x"], ("5",))
    fewer = {name: values[:2] for name, values in keys.items()}
    pq.write_table(pa.table({**fewer, "answer": ["5", "9"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="2 answers to 3 labels of split train, query_uid 0, prompt_id a; each needs"):
        read_demonstrations(tmp_path / "d.parquet", answers=tmp_path / "a.parquet")


def test_joined_keeps_other_splits() -> None:
    train, test = (Demonstrations.from_columns(rows(correct=[0, 1], split=[s] * 2)) for s in ("train", "test"))
    both = train.joined(test)
    assert (both.rows, sorted(set(both.split.tolist()))) == (4, ["test", "train"])
    newer = Demonstrations.from_columns(rows(correct=[1, 1], split=["test"] * 2))
    assert both.joined(newer).of(split="test").correct.tolist() == [[1.0], [1.0]]
    assert both.joined(newer).rows == 4


def test_the_published_table(gsm8k: Demonstrations, mawps: Demonstrations) -> None:
    """Table 4.1 of the reference: accuracy of each prompt on test."""
    assert gsm8k.rows == 7473 * 6 + 1000 * 16
    assert mawps.rows == 6000 * 6 + 1685 * 16
    expected = {
        "gsm8k": ".248 .240 .246 .071 .069 .237 .221 .234 .220 .197 .191 .241 .135 .224 .238 .045",
        "mawps": ".646 .602 .553 .196 .115 .466 .534 .504 .510 .374 .370 .563 .294 .536 .587 .128",
    }
    for data, name in ((gsm8k, "gsm8k"), (mawps, "mawps")):
        means = np.nanmean(data.of(split="test").correct, axis=0)
        assert means == pytest.approx([float(x) for x in expected[name].split()], abs=1e-3)
    train = np.nanmean(gsm8k.of(split="train").correct[:, :6], axis=0)
    assert train == pytest.approx([0.247, 0.255, 0.246, 0.064, 0.062, 0.204], abs=1e-3)


# Checks.


def test_leaks_are_found(gsm8k: Demonstrations, mawps: Demonstrations) -> None:
    assert leaks(gsm8k) == []
    found = {finding.name: finding for finding in check(mawps)}
    assert (found["leak-query"].count, found["leak-template"].count) == (1685, 1685)
    assert "100.0%" in found["leak-query"].message
    with pytest.raises(InputError, match="1685 of 1685 test queries .* --allow leak-query"):
        refuse(check(mawps))
    refuse(check(mawps), ["leak-query", "leak-template"])
    with pytest.raises(InputError, match="unknown finding 'leak-querry'"):
        refuse([], ["leak-querry"])


def test_a_leak_by_numbers_alone() -> None:
    queries = ["Tom has 3 apples", "Ann has 5 pears", "tom  has 41 apples", "Sue has 2 cats"]
    data = Demonstrations.from_columns(rows(correct=[0, 1, 1, 0], query=queries, split=["train"] * 2 + ["test"] * 2))
    (found,) = leaks(data)
    assert (found.name, found.count, found.refused) == ("leak-template", 1, True)
    assert mask_numbers("$1,234.50 and 7") == "$# and #"


def parts(*given: tuple[str, str, list[str], list[int]]) -> Demonstrations:
    """One prompt's labels: data set, split, queries, correct."""
    table = rows(
        dataset=[d for d, _, queries, _ in given for _ in queries],
        split=[s for _, s, queries, _ in given for _ in queries],
        query=[q for _, _, queries, _ in given for q in queries],
        correct=[c for *_, correct in given for c in correct],
    )
    return Demonstrations.from_columns(table)


def test_each_split_of_each_data_set_is_looked_at() -> None:
    def words(start: int, count: int) -> list[str]:
        return ["a" * (i % 30 + 1) + " " + "b" * (i // 30 + 1) for i in range(start, start + count)]

    half = [0, 1] * 200
    numbers = [[f"{'z' * i} has {n}" for i in range(4)] for n in (1, 2)]
    hidden = parts(
        ("big", "train", words(0, 400), half),
        ("big", "test", words(400, 400), half),
        ("small", "train", numbers[0], half[:4]),
        ("small", "test", numbers[1], half[:4]),
    )
    (found,) = check(hidden)
    assert found.message.startswith("4 of 4 test queries of small (100.0%) stand in train with the same text but")
    dev = parts(("d", "train", words(0, 9), half[:9]), ("d", "dev", words(0, 9), half[:9]))
    assert [f.name for f in check(dev)] == ["leak-query", "leak-template"]
    assert [f.name for f in check(dev, "dev")] == ["leak-query", "leak-template"]
    assert "9 of 9 train queries (100.0%) stand in dev" in check(dev, "dev")[0].message
    zero = parts(("d", "train", words(0, 60), half[:60]), ("e", "train", words(60, 60), [0] * 60))
    assert [f.message for f in check(zero)] == ["labels that never change: all 60 labels of train of e are 0"]
    few = parts(("d", "train", words(0, 9), half[:9]), ("d", "test", words(60, 2), [1, 1]))
    assert [f.message for f in check(few)] == ["labels that never change: all 2 labels of test are 1"]


def test_constant_labels_gaps_repeats_and_flat_signals() -> None:
    many = 60
    data = Demonstrations.from_columns(
        rows(
            query_uid=[str(i) for i in range(many)] * 2 + ["0"],
            prompt_id=["a"] * many + ["b"] * (many + 1),
            correct=[0] * many + [i % 2 for i in range(many)] + [1],
            confidence=[0.5] * (2 * many + 1),
        )
    )
    found = {finding.name: finding for finding in check(data)}
    assert set(found) == {"constant", "repeats", "gaps", "flat-signal"}
    assert "prompt a in train: all 60 are 0" in found["constant"].message
    assert (found["repeats"].count, found["gaps"].count) == (1, 1)
    with pytest.raises(InputError, match="labels that never change"):
        refuse(found.values())


# Logs.


def test_logs_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("(0, True)\n(2, False)\n\n(1, True)\n")
    (tmp_path / "b.log").write_text("(0, False)\n(1, True)\n(2, True)\n")
    line = "\n====================\n"
    (tmp_path / "b.txt").write_text(line.join(["(0, 'so 4')", '(1, "it\'s $1,234.")', "(2, 'none')", ""]))
    (tmp_path / "logs.jsonl").write_text(
        '{"prompt": "one", "log": "a.log"}\n{"prompt": "two", "log": "b.log", "answers": "b.txt"}\n'
    )
    (tmp_path / "queries.tsv").write_text("query\tgold\nQ0?\t4\nQ1?\t1234\nQ2?\t9\n")
    about = {"llm": "lm", "dataset": "d", "split": "test"}
    data = read_logs(tmp_path / "logs.jsonl", tmp_path / "queries.tsv", **about)  # type: ignore[arg-type]
    assert data.correct.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert data.answer is not None
    assert data.answer.tolist() == [[None, "4"], [None, "1234"], [None, None]]
    assert data.gold == ("4", "1234", "9")
    for text, message in (
        ("(0, True)\n(0, True)\n", "line 2: index 0 for the second time"),
        ("(0, True)\n(3, True)\n", "line 2: index 3, but there are 3 queries"),
        ("(0, True)\n(2, True)\n", "1 of 3 queries are missing (index 1); --allow gaps"),
        ("(0, maybe)\n", "line 1: '(0, maybe)' is not"),
    ):
        (tmp_path / "a.log").write_text(text)
        with pytest.raises(InputError) as error:
            read_log(tmp_path / "a.log", 3)
        assert message in str(error.value)
    (tmp_path / "a.log").write_text("")
    (tmp_path / "one.jsonl").write_text('{"prompt": "one", "log": "a.log"}\n')
    with pytest.raises(InputError, match="its logs hold no labels"):
        read_logs(tmp_path / "one.jsonl", tmp_path / "queries.tsv", gaps=True, **about)  # type: ignore[arg-type]
    (tmp_path / "a.log").write_text("(0, True)\n(2, True)\n")
    assert read_log(tmp_path / "a.log", 3, gaps=True) == {0: True, 2: True}
    (tmp_path / "b.txt").write_text("(0, __import__('os'))")
    with pytest.raises(InputError, match="entry 1: is not"):
        read_answers(tmp_path / "b.txt", 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [("it is 1,234", "1234"), ("so $5.00.", "5"), ("-3", "-3"), ("no idea", None), ("1 or 2.50", "2.5"), ("007", "7")],
)
def test_last_numbers(text: str, number: str | None) -> None:
    assert last_number(text) == number
    assert canonical(number) == number
