"""Demonstrations, reward models, their evaluation and the choices made with them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reward_data import rows, world
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.evaluation import auc_within, by_kind, quality
from rayprompt.reward.features import TextFeatures, Vectors, read_vectors
from rayprompt.reward.folds import folds, held_out
from rayprompt.reward.model import load_model
from rayprompt.reward.models import model_class
from rayprompt.reward.recommender import Recommender
from rayprompt.reward.selection import fit_guard, mean_se, references, signal_choice, switch, taken

MODELS = ("prior", "logistic", "logistic-per-prompt", "logistic-shared", "neighbours", "lightgbm", "mlp")


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
