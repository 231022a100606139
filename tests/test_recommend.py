"""``rayprompt recommend`` from the command line, fits as Tune trials, and demonstrations from scores and studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from test_reward import rows, world
from typer.testing import CliRunner

import rayprompt
from rayprompt.cli.main import app
from rayprompt.errors import InputError
from rayprompt.lm.embed import encoder
from rayprompt.lm.source import load_tokenizer, model_folder
from rayprompt.reward.demonstrations import Demonstrations, read_demonstrations
from rayprompt.reward.features import Vectors
from rayprompt.reward.models import model_class
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.study.demonstrations import from_scores, from_study
from rayprompt.study.rewards import Fit, fit_many, run_fit


def run(*arguments: Any, given: str | None = None) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["recommend", *map(str, arguments)], input=given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with train and test."""
    file = tmp_path_factory.mktemp("demos") / "demos.parquet"
    train, test = world(500).to_table().to_pydict(), world(200, seed=9).to_table().to_pydict()
    test["split"] = ["test"] * len(test["split"])
    for name in ("query_uid", "template_uid"):
        test[name] = [f"t{i}" for i in test[name]]
    test["query"] = [q.replace("basket", "bowl") for q in test["query"]]
    Demonstrations.from_columns({name: train[name] + test[name] for name in train}).write(file)
    return file


def test_from_demonstrations_to_a_prompt_for_each_query(demos: Path, tmp_path: Path) -> None:
    assert "nothing wrong was found" in run("check", demos)
    found = json.loads(run("fit", demos, "--out", tmp_path / "r", "--json"))
    assert found["guard_weight"] > 0
    result = json.loads(run("eval", demos, "--recommender", tmp_path / "r", "--json"))
    rules = {o["rule"]: o for o in result["outcomes"]}
    assert rules["guarded"]["gain"] > 2 * rules["guarded"]["gain_se"]
    assert "over best on train" in run("eval", demos, "--recommender", tmp_path / "r")
    folded = json.loads(run("eval", demos, "--folds", 3, "--split", "train", "--reward-model", "neighbours", "--json"))
    assert len(folded["guard_weights"]) == 3
    queries = ["how many red apples are old in basket 7", "how many big pears are ripe in basket 8"]
    lines = [json.loads(line) for line in run("run", tmp_path / "r", given="\n".join(queries)).splitlines()]
    assert [line["prompt"] for line in lines] == ["prompt a", "prompt b"]
    (tmp_path / "q.txt").write_text("\n".join(queries))
    run("run", tmp_path / "r", tmp_path / "q.txt", "--out", tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet").to_pylist() == lines
    (tmp_path / "p.txt").write_text("prompt b\nbrand new\n")
    others = run("run", tmp_path / "r", tmp_path / "q.txt", "--prompts", tmp_path / "p.txt", "--rule", "best-of-n")
    assert {json.loads(line)["prompt"] for line in others.splitlines()} <= {"prompt b", "brand new"}


def test_what_the_commands_refuse(demos: Path, tmp_path: Path) -> None:
    run("fit", demos, "--out", tmp_path / "r", "--reward-model", "prior")
    leaking = world(60).to_table().to_pydict()
    both = {name: values * 2 for name, values in leaking.items()}
    both["split"] = ["train"] * len(leaking["split"]) + ["test"] * len(leaking["split"])
    Demonstrations.from_columns(both).write(tmp_path / "leak.parquet")
    zero = rows(query_uid=[str(i) for i in range(60)], correct=[0] * 60)
    Demonstrations.from_columns(zero).write(tmp_path / "zero.parquet")
    world(80, seed=4).write(tmp_path / "other.parquet")
    for arguments, message in (
        (("fit", tmp_path / "leak.parquet", "--out", tmp_path / "x"), "60 of 60 test queries (100.0%) stand in train"),
        (("fit", tmp_path / "zero.parquet", "--out", tmp_path / "x"), "labels that never change: prompt a in train"),
        (("eval", tmp_path / "other.parquet", "--recommender", tmp_path / "r"), "was fitted on other demonstrations"),
        (("run", tmp_path / "none", "-"), "no recommender there"),
        (("run", tmp_path / "r", tmp_path / "none.txt"), "no such file"),
        (("fit", demos, "--out", tmp_path / "x", "--reward-model", "lightgmb"), "did you mean 'lightgbm'?"),
        (("fit", demos, "--out", tmp_path / "x", "--set", "cc=1"), "unknown setting 'cc'"),
        (
            ("fit", demos, "--out", tmp_path / "x", "--features", "bert"),
            "--features bert: text, vectors:FILE, lm:MODEL or",
        ),
        (("eval", demos, "--split", "dev"), "no demonstrations of split 'dev'; there are test, train"),
    ):
        with pytest.raises(InputError) as error:
            run(*arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="line 2: a query without text"):
        run("run", tmp_path / "r", given="one\n\nthree\n")
    allowed = ("--allow", "leak-query", "--allow", "leak-template", "--reward-model", "prior")
    assert "opinion counts 0" in run("fit", tmp_path / "leak.parquet", "--out", tmp_path / "y", *allowed)


@pytest.mark.usefixtures("ray_session")
def test_fits_side_by_side_are_those_of_one_after_the_other(demos: Path, tmp_path: Path) -> None:
    data = read_demonstrations(demos)
    train, test = data.of(split="train"), data.of(split="test")
    fits = [
        Fit(),
        Fit(prompts=("a",)),
        Fit("lightgbm", {"trees": 20}, prompts=("a", "b"), seed=3),
        Fit("mlp", {"epochs": 2}, fold=(4, 1)),
    ]
    found = fit_many(fits, train, test, out=tmp_path / "fits")
    for fit, p in zip(fits, found, strict=True):
        np.testing.assert_array_equal(p, run_fit(fit, train, test)[0])
    gone = tmp_path / "fits" / "fits" / f"{fits[1].key}.npy"
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "fits" / "fits").glob("*.npy")}
    again = fit_many(fits, train, test, out=tmp_path / "fits")
    np.testing.assert_array_equal(again[1], found[1])
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing else was computed again
    with pytest.raises(InputError, match="holds fits of other demonstrations"):
        fit_many(fits, test, train, out=tmp_path / "fits")
    with pytest.raises(InputError, match="no prompt 'zz'"):
        fit_many([Fit(prompts=("zz",))], train, test, out=tmp_path / "fits")


@pytest.mark.usefixtures("kept_pool")
def test_demonstrations_of_a_study(problem: Problem, tmp_path: Path) -> None:
    result = rayprompt.search(problem, searcher="random", budget=10 * len(problem.gold), out=tmp_path / "s")
    data = from_study(result.study_dir)
    assert (data.rows, len(data.prompts), set(data.split.tolist())) == (10 * len(problem.gold), 10, {"train"})
    best = data.prompts.index(result.best_prompt.text)  # type: ignore[union-attr]
    assert float(np.nanmean(data.correct[:, best])) == pytest.approx(result.train.value)
    run("collect", result.study_dir, "--out", tmp_path / "d.parquet")
    assert read_demonstrations(tmp_path / "d.parquet").rows == data.rows
    run("fit", result.study_dir, "--out", tmp_path / "r", "--reward-model", "prior", "--allow", "constant")
    (line,) = run("run", tmp_path / "r", given="a fine film").splitlines()
    means = dict(zip(data.prompts, np.nanmean(data.correct, axis=0), strict=True))
    assert means[json.loads(line)["prompt"]] == max(means.values())
    with pytest.raises(InputError, match="not a study"):
        from_study(tmp_path)


def test_demonstrations_of_scores(problem: Problem, pool: ScoringPool, tmp_path: Path) -> None:
    texts = ["it was", "so"]
    scores = rayprompt.score(texts, problem, on="dev", pool=pool)
    data = from_scores(problem, scores, texts, "dev")
    assert np.nanmean(data.correct, axis=0) == pytest.approx(scores.mean_value())
    assert set(data.split.tolist()) == {"dev"}


def test_vectors_by_the_scoring_actors_and_by_an_encoder(pool: ScoringPool) -> None:
    """The mean of the last hidden states, against transformers' own pass, one text at a time without padding."""
    texts = ["it was good", "so", "the plot was slow and the acting was worse, but we stayed " * 6, "it was good"]
    name = pool.source.location
    tokenizer, model = load_tokenizer(name), transformers.AutoModel.from_pretrained(model_folder(name)).eval()
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][: pool.source.max_length]])
        with torch.no_grad():
            expected.append(model(ids).last_hidden_state[0].mean(dim=0).numpy())
    found = pool.embed(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(pool.embed(texts[1:2])[0], found[1])  # alone as in company
    np.testing.assert_allclose(encoder(str(model_folder(name)))(texts), expected, rtol=0, atol=2e-5)
    data = world(60)
    fitted = model_class("logistic-per-prompt")(Vectors(embed=pool.embed)).fit(data)
    assert fitted.predict(data.queries).shape == (60, 3)
