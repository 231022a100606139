"""Demonstrations, reward models, their evaluation and the choices made with them."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from rayprompt.answers import canonical, last_number
from rayprompt.errors import InputError
from rayprompt.reward.assess import PRICES, assess, assess_folds
from rayprompt.reward.checks import check, leaks, refuse
from rayprompt.reward.demonstrations import Demonstrations, mask_numbers, read_demonstrations
from rayprompt.reward.evaluation import auc_within, by_kind, quality
from rayprompt.reward.features import TextFeatures, Vectors, read_vectors
from rayprompt.reward.folds import folds, held_out
from rayprompt.reward.logs import read_answers, read_log, read_logs
from rayprompt.reward.model import load_model
from rayprompt.reward.models import model_class
from rayprompt.reward.recommender import Recommender
from rayprompt.reward.selection import fit_guard, mean_se, references, signal_choice, switch, taken
from rayprompt.reward.voting import (
    CostAware,
    answers_of,
    best_first,
    right_answers,
    success_of,
    tally,
    vote,
    vote_weights,
)

MODELS = ("prior", "logistic", "logistic-per-prompt", "logistic-shared", "neighbours", "lightgbm", "mlp")


def rows(**columns: Any) -> dict[str, list[Any]]:
    """Columns of demonstrations with defaults for what is not given."""
    count = len(columns["correct"])
    base: dict[str, list[Any]] = {
        "llm": ["lm"] * count,
        "dataset": ["d"] * count,
        "split": ["train"] * count,
        "query_uid": [str(i) for i in range(count)],
        "query": [f"query {i}?" for i in range(count)],
        "prompt_id": ["a"] * count,
        "prompt": ["p"] * count,
    }
    base.update(columns)
    if "query_uid" in columns and "query" not in columns:
        base["query"] = [f"query {uid}?" for uid in columns["query_uid"]]
    if "prompt_id" in columns and "prompt" not in columns:
        base["prompt"] = [f"prompt {i}" for i in columns["prompt_id"]]
    return base


def world(queries: int = 300, seed: int = 0, truth: float = 2.0) -> Demonstrations:
    """Two kinds of queries; prompt a is better on apples, b on pears, c is bad; words tell the kinds."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {name: [] for name in ("query_uid", "query", "prompt_id", "correct", "template_uid")}
    kinds = rng.integers(2, size=queries)
    fillers = ["red", "ripe", "old", "sweet", "big", "new"]
    for i, kind in enumerate(kinds.tolist()):
        fruit = ("apples", "pears")[kind]
        query = f"how many {rng.choice(fillers)} {fruit} are {rng.choice(fillers)} in basket {i}"
        for prompt, effect in (("a", truth * (0.5 - kind)), ("b", truth * (kind - 0.5)), ("c", -1.5)):
            found["query_uid"].append(str(i))
            found["query"].append(query)
            found["template_uid"].append(str(i))
            found["prompt_id"].append(prompt)
            found["correct"].append(int(rng.random() < 1 / (1 + np.exp(-effect))))
    return Demonstrations.from_columns(rows(**found))


@pytest.fixture(scope="module")
def oirl(shared: Path) -> Path:
    return shared / "data" / "prompt-oirl"


@pytest.fixture(scope="module")
def gsm8k(oirl: Path) -> Demonstrations:
    return read_demonstrations(oirl / "demonstrations.parquet", dataset="gsm8k", answers=oirl / "answers.parquet")


@pytest.fixture(scope="module")
def mawps(oirl: Path) -> Demonstrations:
    return read_demonstrations(oirl / "demonstrations.parquet", dataset="mawps")


# Demonstrations.


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


# Models.


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_saved_without_a_pickle_and_says_the_same(name: str, tmp_path: Path) -> None:
    data = world()
    model = model_class(name)().fit(data.of(prompts=[0, 1]), seed=3)
    queries, prompts = ["how many ripe pears are big", *data.queries[:40]], ("prompt a", "prompt b", "something new")
    p = model.predict(queries, prompts)
    assert p.shape == (41, 3)
    assert ((p > 0) & (p < 1)).all()
    model.save(tmp_path / "m")
    again = load_model(tmp_path / "m")
    np.testing.assert_allclose(again.predict(queries, prompts), p, rtol=0, atol=1e-12)
    assert again.data == data.of(prompts=[0, 1]).digest
    np.testing.assert_allclose(model.predict(queries[:1], prompts), p[:1], rtol=0, atol=1e-6)  # alone as in company
    same = model_class(name)().fit(data.of(prompts=[0, 1]), seed=3)
    np.testing.assert_array_equal(same.predict(queries, prompts), p)
    assert not list((tmp_path / "m").rglob("*.pkl"))
    for path in (tmp_path / "m").rglob("*.np?"):
        np.load(path, allow_pickle=False)


def test_the_prior_is_the_mean_and_per_prompt_models_are_sklearns() -> None:
    data = world()
    means = np.nanmean(data.correct, axis=0)
    assert model_class("prior")().fit(data).predict(["any?"])[0] == pytest.approx(means, abs=0.02)
    model = model_class("logistic-per-prompt")(c=0.5).fit(data)
    x = TextFeatures().fit(data.queries).transform(data.queries)
    for p in range(3):
        expected = LogisticRegression(C=0.5, max_iter=1000).fit(x, data.correct[:, p]).predict_proba(x)[:, 1]
        assert model.predict(data.queries)[:, p] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["logistic-per-prompt", "neighbours", "lightgbm", "mlp"])
def test_models_learn_which_prompt_suits_which_query(name: str) -> None:
    settings = {"epochs": 40} if name == "mlp" else {}
    model = model_class(name)(**settings).fit(world(800))
    test = world(400, seed=1)
    p = model.predict(test.texts)
    q = quality(p, test.correct)
    assert q.brier < q.brier_prior
    if name != "mlp":  # which sees a prompt by its success alone: a and b are alike
        assert taken(test.correct, p.argmax(axis=1)).mean() > np.nanmean(test.correct, axis=0).max() + 0.1


def test_what_models_refuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown reward model 'logistics' \(did you mean 'logistic'\?\)"):
        model_class("logistics")
    with pytest.raises(InputError, match="no setting 'cc'"):
        model_class("logistic")(cc=1)
    model = model_class("prior")().fit(world(60))
    with pytest.raises(InputError, match="query 2: has no text"):
        model.predict(["a?", "  "])
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"schema": "other/1"}')
    with pytest.raises(InputError, match="schema 'other/1'"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value", "right"),
    [
        ("logistic", "c", 0.0, "1e-06 to 1e+06"),
        ("logistic-per-prompt", "c", float("nan"), "1e-06 to 1e+06"),
        ("logistic-shared", "own", -1.0, "0 to 1000"),
        ("neighbours", "k", 0, "a whole number, 1 or more"),
        ("neighbours", "strength", -5.0, "0.001 to 1e+06"),
        ("lightgbm", "trees", 0, "a whole number, 1 to 100000"),
        ("lightgbm", "leaves", 1, "a whole number, 2 to 100000"),
        ("lightgbm", "rate", -1.0, "1e-06 to 1"),
        ("lightgbm", "least", -1, "a whole number, 1 or more"),
        ("mlp", "units", 0, "a whole number, 1 to 100000"),
        ("mlp", "epochs", -1, "a whole number, 1 to 100000"),
        ("mlp", "epochs", 1.5, "a whole number, 1 to 100000"),
        ("mlp", "learning_rate", float("nan"), "1e-09 to 10"),
    ],
)
def test_settings_have_ranges(name: str, key: str, value: float, right: str) -> None:
    with pytest.raises(InputError) as error:
        model_class(name)(**{key: value})
    assert str(error.value) == f"setting {key}={value}: must be {right}"


def test_seeds_are_not_below_0() -> None:
    for call in (lambda: model_class("mlp")().fit(world(60), seed=-1), lambda: folds(world(60), 5, seed=-1)):
        with pytest.raises(InputError, match="seed -1: must be 0 or more"):
            call()


@pytest.mark.parametrize("name", [*MODELS, *(["xgboost"] if find_spec("xgboost") else [])])
@pytest.mark.filterwarnings("error")
def test_labels_that_are_nearly_all_the_same(name: str) -> None:
    """24 labels of which one is wrong: in one fold's training part all are right."""
    data = world(12).of(prompts=[0, 1])
    data = replace(data, correct=np.where(np.arange(24).reshape(12, 2) == 0, 0.0, 1.0))
    p = Recommender.fit(data, model_class(name)).predict(data.queries)
    assert ((p > 0) & (p < 1)).all()


def test_texts_without_a_word(tmp_path: Path) -> None:
    queries = ["\U0001f600" * (i + 1) for i in range(40)]
    data = Demonstrations.from_columns(rows(query=queries, correct=[0, 1] * 20, prompt=[""] * 40))
    model = model_class("logistic")().fit(data)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(load_model(tmp_path / "m").predict(queries), model.predict(queries))
    assert TextFeatures().fit([""]).transform(["", "a"]).shape == (2, 12)


def test_a_folder_is_one_model_or_none(tmp_path: Path) -> None:
    """Files that are missing, cut off, or of another model are found, whichever they are."""
    data = world(80)
    one, other = (Recommender.fit(data.of(prompts=p), model_class("logistic-per-prompt")) for p in ([0, 1], [0, 2]))
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "recommender.json" in names
    for name in names:
        place = tmp_path / "one" / name
        whole = place.read_bytes()
        for content in (None, whole[: len(whole) // 2], (tmp_path / "other" / name).read_bytes()):
            if content == whole:
                continue
            place.unlink()
            if content is not None:
                place.write_bytes(content)
            with pytest.raises(InputError) as error:
                Recommender.load(tmp_path / "one")
            assert "\n" not in str(error.value)
            place.write_bytes(whole)
    Recommender.load(tmp_path / "one")
    one.model.save(tmp_path / "bare")
    (tmp_path / "bare" / "recommender.json").write_bytes((tmp_path / "other" / "recommender.json").read_bytes())
    with pytest.raises(InputError, match="recommender.json was not saved with the model there"):
        Recommender.load(tmp_path / "bare")
    mark = tmp_path / "one" / "model.json"
    content = json.loads(mark.read_text())
    for change in ({"files": 3}, {"prompts": ["a"]}, {"model": "x"}, {"settings": {"c": "x"}}):
        mark.write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError):
            Recommender.load(tmp_path / "one")


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = model_class("prior")().fit(world(60)), tmp_path / "m"
    model.save(target)
    with pytest.raises(InputError, match="is not empty .it holds model.json.; name a new directory, or --force"):
        model.save(target)
    model.save(target, force=True)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "_save", full)
    with pytest.raises(InputError, match="cannot be written .No space left"):
        model.save(target, force=True)
    load_model(target)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # and nothing is left lying about
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds notes.txt, which is no part of a recommender"):
        model.save(target, force=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'.' is the working directory"):
        model.save(Path(), force=True)
    with pytest.raises(InputError, match=r"x: .*notes.txt is a file; a model is a directory"):
        model.save(target / "notes.txt" / "x")


def test_xgboost_where_it_is_installed(tmp_path: Path) -> None:
    if find_spec("xgboost") is None:
        with pytest.raises(InputError, match=r"xgboost is not installed \(pip install 'rayprompt\[xgboost\]'\)"):
            model_class("xgboost")
        return
    data = world()
    model = model_class("xgboost")(trees=20).fit(data)
    model.save(tmp_path / "m")
    np.testing.assert_allclose(load_model(tmp_path / "m").predict(data.queries), model.predict(data.queries))
    few = model_class("xgboost")(trees=20, least=1).fit(data)
    assert not np.array_equal(few.predict(data.queries), model.predict(data.queries))  # least is heard


def test_given_vectors(tmp_path: Path) -> None:
    data, rng = world(100), np.random.default_rng(0)
    known = {text: rng.normal(size=8) for text in data.queries}
    model = model_class("logistic-per-prompt")(Vectors(known, origin="mine")).fit(data)
    model.save(tmp_path / "m")
    found = load_model(tmp_path / "m", Vectors(known)).predict(data.queries)
    np.testing.assert_allclose(found, model.predict(data.queries))
    with pytest.raises(InputError, match="learned on vectors 8 wide; those given are 5 wide"):
        load_model(tmp_path / "m", Vectors({"a": np.zeros(5)}))
    with pytest.raises(InputError, match="give the vectors of new texts with --features"):
        load_model(tmp_path / "m")
    with pytest.raises(InputError, match="learned on vectors of mine; those given are of lm:tiny"):
        load_model(tmp_path / "m", Vectors(embed=lambda texts: np.zeros((len(texts), 8)), origin="lm:tiny"))
    with pytest.raises(InputError, match="learned on other vectors than those of other: 'how many"):
        load_model(tmp_path / "m", Vectors({text: -vector for text, vector in known.items()}, origin="other"))
    model_class("prior")().fit(data).save(tmp_path / "text")
    with pytest.raises(InputError, match="learned on texts, not on vectors; leave --features out"):
        load_model(tmp_path / "text", Vectors(known))
    with pytest.raises(InputError, match="mine: no vector for 'new"):
        model.predict(["new query?"])
    with pytest.raises(InputError, match=r"gave vectors of shape \(1, 3\)"):
        load_model(tmp_path / "m", Vectors(embed=lambda texts: np.zeros((len(texts), 3)))).predict(["x?"])
    pq.write_table(pa.table({"text": ["a", "b"], "vector": [[1.0, 2.0], [1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"vectors of 2 widths \(1, 2\)"):
        read_vectors(tmp_path / "v.parquet")
    for values in (["abc"], [1.0], [[float("nan")]], [[]], [["1"]]):
        pq.write_table(pa.table({"text": ["a"], "vector": values}), tmp_path / "v.parquet")
        with pytest.raises(InputError, match=r"row 1: vector is .*; it must be a list of finite numbers"):
            read_vectors(tmp_path / "v.parquet")


# Evaluation.


def test_quality_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random((200, 5)).round(2), rng.integers(2, size=(200, 5)).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    known = ~np.isnan(y)
    q = quality(p, y)
    a, b = y[known], p[known]
    assert q.auc == pytest.approx(sklearn_metrics.roc_auc_score(a, b))
    assert q.brier == pytest.approx(sklearn_metrics.brier_score_loss(a, b))
    for name in ("accuracy", "precision", "recall", "f1"):
        expected = getattr(sklearn_metrics, f"{name}_score")(a, b >= 0.5)
        assert getattr(q, name) == pytest.approx(expected)
    assert q.majority == pytest.approx(max(a.mean(), 1 - a.mean()))
    pairs = [
        sklearn_metrics.roc_auc_score(y[i, known[i]], p[i, known[i]])
        for i in range(200)
        if len(set(y[i, known[i]])) == 2
    ]
    assert auc_within(p, y) == pytest.approx(np.mean(pairs))
    kinds = by_kind(p, world(200), {"prompt a"}, set()) if p.shape[1] == 3 else {}
    assert kinds == {}


def test_critics_figures(gsm8k: Demonstrations) -> None:
    """The LM's own verdict as a reward model: .227 / .187 (accuracy, precision) on the six training prompts."""
    test = gsm8k.of(split="test", prompts=range(6))
    assert test.critic is not None
    each = [quality(test.critic[:, [p]], test.correct[:, [p]]) for p in range(6)]
    found = np.mean([(q.accuracy, q.precision) for q in each], axis=0)  # of each prompt, as the reference
    assert found == pytest.approx((0.227, 0.187), abs=1e-3)


@pytest.mark.parametrize("by", ["query", "template"])
def test_folds_tear_no_group_apart(mawps: Demonstrations, by: str) -> None:
    test = mawps.of(split="test")
    fold, groups = folds(test, 5, by=by, seed=1), test.groups(by)
    assert all(len(set(fold[groups == g].tolist())) == 1 for g in np.unique(groups))
    assert np.bincount(fold).tolist() == [337] * 5
    assert fold.tolist() == folds(test, 5, by=by, seed=1).tolist()
    with pytest.raises(InputError, match="2000 folds"):
        folds(test, 2000)


# Choices.


def test_reference_figures(gsm8k: Demonstrations, mawps: Demonstrations) -> None:
    """Section 4.2 of the reference: random, best on train, hindsight, confidence, oracle."""
    test = gsm8k.of(split="test")
    train = np.nanmean(gsm8k.of(split="train").correct[:, :6], axis=0)
    assert int(train.argmax()) == 1
    found = {o.rule: o for o in references(test, np.full(len(test), 1), {})}
    figures = {
        "random": 0.191,
        "best on train": 0.240,
        "hindsight": 0.248,
        "highest confidence": 0.201,
        "oracle": 0.648,
    }
    for name, value in figures.items():
        assert found[name].success == pytest.approx(value, abs=1e-3)
    assert found["highest confidence"].calls == 32
    assert np.nanmax(test.correct[:, :6], axis=1).mean() == pytest.approx(0.501, abs=1e-3)
    other = {o.rule: o.success for o in references(mawps.of(split="test"), np.zeros(1685, dtype=int), {})}
    assert other["random"] == pytest.approx(0.436, abs=1e-3)
    assert other["highest confidence"] == pytest.approx(0.478, abs=1e-3)
    assert other["oracle"] == pytest.approx(0.926, abs=1e-3)


def test_best_of_k_training_prompts(gsm8k: Demonstrations) -> None:
    """Averaged over the subsets of K of 6: chosen on test as published, and on train."""
    train = np.nanmean(gsm8k.of(split="train").correct[:, :6], axis=0)
    test = np.nanmean(gsm8k.of(split="test").correct[:, :6], axis=0)
    for k, published, honest in ((1, 0.185, 0.185), (5, 0.248, 0.241), (6, 0.248, 0.240)):
        subsets = [list(s) for s in combinations(range(6), k)]
        assert np.mean([test[s].max() for s in subsets]) == pytest.approx(published, abs=1e-3)
        assert np.mean([test[s][train[s].argmax()] for s in subsets]) == pytest.approx(honest, abs=1e-3)


def test_standard_errors_know_groups() -> None:
    x = np.random.default_rng(0).normal(size=200)
    mean, se = mean_se(x, np.arange(200))
    assert (mean, se) == pytest.approx((x.mean(), x.std(ddof=1) / 200**0.5))
    twice = mean_se(np.repeat(x, 2), np.repeat(np.arange(200), 2))
    assert twice == pytest.approx((mean, se))  # copies say nothing new


def test_a_guard_keeps_an_opinion_only_where_it_is_worth_something() -> None:
    data = world(900)
    fold = folds(data, 5)
    p = held_out(data, fold, model_class("logistic-per-prompt"))
    guard = fit_guard(p, data, fold)
    assert guard.weight > 0
    noise = np.random.default_rng(0).random(p.shape)
    alone = fit_guard(noise, data, fold)
    assert alone.weight == 0
    with np.errstate(all="raise"):  # weight 0 of what is not allowed is nothing, not NaN
        recommender = Recommender(model_class("prior")().fit(data), alone)
        allowed = np.tile([False, True, True], (len(noise), 1))
        assert set(recommender.choose(noise, data.prompts, "guarded", allowed)[0].tolist()) == {1}
    assert set(alone.choose(noise).tolist()) == {int(np.nanmean(data.correct, axis=0).argmax())}


def test_switch_and_signals() -> None:
    p = np.array([[0.6, 0.4, 0.9], [0.4, 0.3, 0.2], [0.5, 0.5, 0.1]])
    seen, unseen = np.array([0, 1]), np.array([2])
    assert switch(p, seen, unseen).tolist() == [0, 2, 0]
    assert switch(p, seen, np.array([], dtype=int)).tolist() == [0, 0, 0]
    correct = np.array([[1.0, np.nan], [0.0, 1.0]])
    found = signal_choice(np.array([[0.2, 0.9], [0.5, 0.5]]), correct)
    assert found is not None
    assert found.tolist() == [0, 0]
    assert signal_choice(None, correct) is None


def test_a_recommender(tmp_path: Path) -> None:
    data = world(800)
    recommender = Recommender.fit(data, model_class("logistic-per-prompt"))
    assert recommender.guard.weight > 0
    test = world(300, seed=5)
    choice = recommender.recommend(test.texts)
    right = taken(test.correct, choice.chosen).mean()
    assert right > np.nanmean(test.correct, axis=0).max() + 0.1
    assert quality(recommender.predict(test.texts), test.correct).calibration < 0.06
    recommender.save(tmp_path / "r")
    assert Recommender.load(tmp_path / "r").recommend(test.texts).rows() == choice.rows()
    row = choice.rows()[0]
    assert set(row) == {"query", "prompt", "p", "runner_up", "margin"}
    assert row["prompt"] != row["runner_up"]
    assert choice.to_table().num_rows == 300
    unseen = recommender.recommend(["any?"], ["brand new", "another"], rule="best-of-n")
    assert unseen.prompts[int(unseen.chosen[0])] == "brand new"  # of equals the first
    with pytest.raises(InputError, match="none of the prompts was learned from"):
        recommender.recommend(["any?"], ["brand new"])
    with pytest.raises(InputError, match="rule 'best'"):
        recommender.recommend(["any?"], rule="best")
    with pytest.raises(InputError, match="no recommender there"):
        Recommender.load(tmp_path)


# Votes.


def test_a_tally_is_a_count() -> None:
    rng = np.random.default_rng(0)
    answers, weights = rng.integers(-1, 4, size=(150, 7)), np.array([3.0, 1, 2, 1, 1, 2, 1])
    found = tally(answers, weights)
    for i in range(150):
        for k in range(7):
            votes: Counter[int] = Counter()
            for a, w in zip(answers[i, : k + 1].tolist(), weights, strict=False):
                if a >= 0:
                    votes[a] += w
            if not votes:
                assert found.leader[i, k] == -1
                continue
            most = max(votes.values())
            first = next(a for a in answers[i, : k + 1].tolist() if votes.get(a) == most)
            assert found.leader[i, k] == first
            assert found.top[i, k] == pytest.approx(most / sum(votes.values()))
            assert found.distinct[i, k] == len(votes)


def test_votes_of_the_published_answers(gsm8k: Demonstrations) -> None:
    """About .295 with the six training prompts and .33 with all; of equals the answer of the prompt asked first."""
    test = gsm8k.of(split="test")
    assert vote(test, range(6)).mean() == pytest.approx(0.295, abs=0.006)
    assert vote(test, range(16)).mean() == pytest.approx(0.332, abs=0.006)
    answers = answers_of(test)
    agree = (answers == right_answers(test, answers)[:, None]) == (test.correct == 1)
    assert agree.mean() > 0.995


def asked_of(success: list[float], seed: int, queries: int = 500, copies: int = 0) -> Demonstrations:
    """Prompts right about that often, on queries of unequal ease; of wrong answers there are eight.

    After them come copies of the first.
    """
    rng, often = np.random.default_rng(seed), np.array(success)
    ease, count = rng.normal(size=(queries, 1)), len(success)
    right = rng.random((queries, count)) < 1 / (1 + np.exp(-ease - np.log(often / (1 - often))))
    answer = np.where(right, 0, rng.integers(1, 9, size=(queries, count)))
    answer = np.hstack([answer, np.repeat(answer[:, :1], copies, axis=1)])
    uid, prompt = (grid.ravel() for grid in np.indices(answer.shape))
    table = rows(
        query_uid=uid.astype(str).tolist(),
        query=[f"what is {'x' * u}?" for u in uid.tolist()],  # each a template of its own
        prompt_id=prompt.astype(str).tolist(),
        correct=(answer.ravel() == 0).astype(int).tolist(),
        answer=answer.ravel().astype(str).tolist(),
        gold=["0"] * answer.size,
    )
    return Demonstrations.from_columns(table)


def test_votes_count_the_same_until_they_have_earned_more() -> None:
    """Equally good prompts vote as a plain majority does; of copies, and of bad prompts, the votes count less."""
    seeds, gains = range(8), []
    for seed in seeds:
        train, test = asked_of([0.3] * 8, seed), asked_of([0.3] * 8, 100 + seed)
        noise = np.random.default_rng(seed).uniform(0.05, 0.95, size=(len(train), 8))
        rule = CostAware(-1.0).fit(train, noise)
        right, asked = rule.decide(test, noise)
        assert asked.min() == 8
        gains.append(right - vote(test, rule.order.tolist()))
        if np.ptp(rule.weights) == 0:
            assert not gains[-1].any()
    assert sum(not gain.any() for gain in gains) >= len(seeds) / 2
    mean, se = mean_se(np.concatenate(gains), np.arange(500 * len(seeds)))
    assert mean >= -2 * se
    train, test = (asked_of([0.35, 0.35, 0.35, 0.35, 0.02, 0.02], seed, copies=3) for seed in (1, 2))
    answers = answers_of(train)
    weights = vote_weights(train, answers, right_answers(train, answers))
    assert weights.mean() == pytest.approx(1)
    assert max(weights[[0, 4, 5, 6, 7, 8]]) < min(weights[1:4])
    right, _ = CostAware(-1.0).fit(train, np.full((500, 9), 0.3)).decide(test, np.full((500, 9), 0.3))
    gain, gain_se = mean_se(right - vote(test, best_first(success_of(train)).tolist()), np.arange(500))
    assert gain > 2 * gain_se
    same = asked_of([0.3], 0, copies=2)
    answers = answers_of(same)
    assert np.ptp(vote_weights(same, answers, right_answers(same, answers))) == 0


def test_a_price_decides_how_many_are_asked(gsm8k: Demonstrations) -> None:
    test = gsm8k.of(split="test")
    p = np.tile(np.nanmean(test.correct, axis=0), (len(test), 1))
    half = np.arange(len(test)) % 2 == 0
    train, other = test.of(instances=half), test.of(instances=~half)
    calls = []
    for price in (0.0, 0.005, 0.02, 1.0):
        right, asked = CostAware(price).fit(train, p[half]).decide(other, p[~half])
        calls.append(float(asked.mean()))
        assert set(np.unique(right).tolist()) <= {0.0, 1.0}
        rule = CostAware.from_json(json.loads(json.dumps(CostAware(price).fit(train, p[half]).to_json())))
        for i in range(0, 60):  # asked call by call, it decides the same
            given: list[Any] = []
            while (place := rule.following(given, p[~half][i])) is not None:
                given.append(None if other.answer is None else other.answer[i, place])
            assert len(given) == asked[i]
            assert other.gold is not None
            assert (canonical(rule.leader(given)) == canonical(other.gold[other.query[i]])) == bool(right[i])
    assert calls == sorted(calls, reverse=True)
    assert calls[0] > 4
    assert calls[-1] == 1.0
    with pytest.raises(InputError, match="needs a column 'answer'"):
        CostAware(0.1).fit(world(50), np.zeros((50, 3)))
    with pytest.raises(InputError, match="price nan"):
        CostAware(float("nan"))
    rule = CostAware(-1.0).fit(train, p[half], np.linspace(1, 0, 16))  # who is paid for calls makes all of them
    assert rule.decide(other, p[~half])[1].min() == 16
    assert rule.order.tolist() == list(range(16))  # known success decides, not that in the data
    alone = test.of(prompts=[0])
    assert CostAware(0.0).fit(alone, p[:, :1]).decide(alone, p[:, :1])[1].max() == 1


def voted(queries: int = 120, **change: Any) -> Demonstrations:
    """The world with answers: 1 is right, of wrong ones there are three."""
    table = world(queries).to_table().to_pydict()
    rng = np.random.default_rng(1)
    table["answer"] = ["1" if c else str(rng.integers(2, 5)) for c in table["correct"]]
    return Demonstrations.from_columns({**table, "gold": ["1"] * len(table["answer"]), **change})


def test_no_label_of_a_fold_has_a_part_in_when_its_votes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = voted()
    other = replace(data, correct=np.where((folds(data, 5) == 0)[:, None], 1 - data.correct, data.correct))
    learn, rules = CostAware.fit, []

    def kept(self: CostAware, *given: Any) -> CostAware:
        rules.append(learn(self, *given).gain)
        return self

    monkeypatch.setattr(CostAware, "fit", kept)
    found = assess_folds(data, model_class("prior"))
    assess_folds(other, model_class("prior"))
    first, again = rules[: len(PRICES)], rules[5 * len(PRICES) : 6 * len(PRICES)]
    np.testing.assert_array_equal(first, again)  # of the fold whose labels changed
    assert not np.array_equal(rules[len(PRICES)], rules[6 * len(PRICES)])
    assert [c.calls for c in found.compared] == [1, 2, 3]
    assert found.compared[0].gain == 0  # one call is the best prompt, for both
    assert (found.frontier[0].calls, found.frontier[-1].calls) == (1.0, 3.0)
    assert found.compared[-1].cost_aware == pytest.approx(found.frontier[-1].success)


def test_votes_are_in_the_order_of_train_where_it_has_labels() -> None:
    """c is asked first: it is best on train, though worst on test; b has labels on test alone."""
    train = voted(100).of(prompts=[0, 2])
    train = replace(train, correct=np.tile([0.0, 1.0], (100, 1)), answer=None, gold=None)
    test = voted()
    found = assess(Recommender.fit(train, model_class("prior")), train, test)
    assert found.votes[0].success == pytest.approx(test.correct[:, 2].mean())
    few = assess(Recommender.fit(train, model_class("prior")), train, test.of(instances=range(3)))
    assert (few.votes, few.note[:8], few.outcomes[0].n) == ([], "no votes", 3)
    gone = replace(test, correct=np.where([True, True, False], test.correct, np.nan))  # c on train alone
    assert len(assess(Recommender.fit(train, model_class("prior")), train, gone).votes) == 2
    table = test.to_table().to_pydict()
    halves = {**table, "split": ["train" if int(u) < 60 else "test" for u in table["query_uid"]]}
    halves["answer"] = [a if s == "test" else None for a, s in zip(table["answer"], halves["split"], strict=True)]
    assert (
        assess_folds(Demonstrations.from_columns(halves), model_class("prior")).note == "no votes: train has no answers"
    )


def test_a_rule_takes_no_prompt_without_a_label() -> None:
    """Where no seen prompt reaches a half and the unseen one has no label, switch stays."""
    train, test = world(200), world(60, seed=3).to_table().to_pydict()
    keep = [i for i, (u, p) in enumerate(zip(test["query_uid"], test["prompt_id"], strict=True)) if p != "b" or u < "3"]
    sparse = Demonstrations.from_columns({name: [values[i] for i in keep] for name, values in test.items()})
    found = assess(Recommender.fit(train.of(prompts=[0, 2]), model_class("prior")), train.of(prompts=[0, 2]), sparse)
    assert {o.n for o in found.outcomes} == {60}
    p = np.array([[0.2, -np.inf], [0.2, 0.1], [0.7, 0.9], [-np.inf, 0.1]])
    assert switch(p, np.array([0]), np.array([1])).tolist() == [0, 1, 0, 1]


def test_json_of_findings_is_plain(mawps: Demonstrations) -> None:
    assert json.loads(json.dumps([finding.to_json() for finding in check(mawps)]))[0]["refused"] is True
