"""The main path, end to end on real actors: search, its files, evaluate and score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PoolOf, task_of
from jsonschema import Draft202012Validator

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.objective import OBJECTIVES
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.results import read_prompt_file

SCHEMAS = Path(rayprompt.__file__).parent / "schemas"
VOLATILE = ("seconds", "lm_seconds", "evaluations_per_second", "timings", "study_dir", "store")

pytestmark = pytest.mark.usefixtures("kept_pool")


def check(content: dict[str, Any]) -> None:
    """Valid against the schema that the object names."""
    name = content["schema"].removeprefix("rayprompt.").replace("/", "-")
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(content)


def stable(result: rayprompt.Result) -> dict[str, Any]:
    return {k: v for k, v in result.to_json().items() if k not in VOLATILE}


@pytest.fixture(scope="module")
def found(kept_pool: None, tmp_path_factory: pytest.TempPathFactory) -> rayprompt.Result:
    return rayprompt.search(budget=64 * 24, seed=3, scorers=1, out=tmp_path_factory.mktemp("study") / "one")


def test_result_and_files(found: rayprompt.Result, problem: Problem) -> None:
    study = found.study_dir
    content = json.loads((study / "result.json").read_text())
    assert content == json.loads(json.dumps(found.to_json()))
    check(content)
    assert found.evaluations == found.lm_evaluations == 64 * 24
    assert found.end == "budget"
    assert (found.train.n, found.dev.n) == (64, 64)
    assert found.test.n == len(problem.task.examples("test")) >= 300
    assert set(found.baselines) == {"empty", "manual"}
    # dev for at most 5 finalists and 2 baselines, test for the winner and the baselines; a prompt twice costs once
    assert found.report_evaluations <= 7 * 64 + 3 * found.test.n
    assert found.dev.value == max(f["dev"] for f in found.finalists)
    manifest = yaml.safe_load((study / "study.yaml").read_text())
    assert manifest["task"]["digest"] == problem.task.digest
    assert manifest["model"]["digest"] == problem.lm.digest
    assert manifest["searcher"]["settings"]["optimizer"]
    assert manifest["pool"]["shapes"]["tokens"] == [1024]
    assert list(study.glob("*/events.out.tfevents.*")), "TensorBoard reads Tune's files"
    rows = [json.loads(line) for line in (study / "nevergrad-s3" / "result.json").read_text().splitlines()]
    assert [r["timesteps_total"] for r in rows] == sorted(r["evaluations"] for r in rows)
    assert rows[-1]["timesteps_total"] == 64 * 24
    scores = [r["best_score"] for r in rows]
    assert scores == sorted(scores)


@pytest.mark.slow  # quick: two studies on a pool of two scorers get what one alone gets, tests/test_shared_pool.py
@pytest.mark.usefixtures("trial_here")
def test_same_seed_same_result_on_one_scorer_and_on_two(found: rayprompt.Result, tmp_path: Path) -> None:
    again = rayprompt.search(budget=64 * 24, seed=3, scorers=2, out=tmp_path / "again")
    assert stable(again) == stable(found)


def test_the_exported_prompt_gives_that_same_score(found: rayprompt.Result, capsys: pytest.CaptureFixture[str]) -> None:
    path = found.study_dir / "prompt.json"
    check(json.loads(path.read_text()))
    for on in ("dev", "test"):
        arguments = ["evaluate", "reviews", "--prompt-file", str(path), "--on", on, "--scorers", "1", "--json"]
        assert run(app, arguments) == 0
        content = json.loads(capsys.readouterr().out.splitlines()[-1])
        check(content)
        assert content[on] == json.loads(path.read_text())["scores"][on]
        assert content["evaluations"] == content[on]["n"]


def test_a_prompt_file_on_another_lm_is_used_by_its_text(found: rayprompt.Result, tmp_path: Path) -> None:
    exported = read_prompt_file(found.study_dir / "prompt.json")
    other = Problem("reviews", "tiny-causal")
    assert exported.on(other) == other.prompt(exported.prompt.to_json()["text"])
    assert exported.on(Problem("reviews", "tiny-masked")) == exported.prompt
    assert exported.split == "default"
    content = json.loads((found.study_dir / "prompt.json").read_text())
    (tmp_path / "ids.json").write_text(json.dumps({**content, "round_trips": False}))
    with pytest.raises(InputError, match="cannot be used on tiny-causal"):
        read_prompt_file(tmp_path / "ids.json").on(other)
    (tmp_path / "bad.json").write_text(json.dumps({**content, "model": None}))
    with pytest.raises(InputError, match="model must be a mapping, not None"):
        read_prompt_file(tmp_path / "bad.json")


def test_evaluate_equals_the_baseline_of_the_search(found: rayprompt.Result, pool: ScoringPool) -> None:
    manual = rayprompt.evaluate("it was", "reviews", pool=pool)
    assert manual.estimate == found.baselines["manual"].test
    assert rayprompt.evaluate("", "reviews", pool=pool).estimate == found.baselines["empty"].test


def test_score_gives_scores_to_anyones_own_loop(pool: ScoringPool, problem: Problem) -> None:
    prompts = ["it was", "overall", "it was", ""]
    scores = rayprompt.score(prompts, problem, on="dev", pool=pool)
    assert scores.dense().shape == (4, 64)
    dense = scores.dense()
    assert (dense[0] == dense[2]).all()
    gold = problem.task.gold("dev")
    assert scores.label_log_probs is not None
    answers = scores.dense("label_log_probs").argmax(axis=2)
    assert OBJECTIVES["accuracy"](scores, gold) == pytest.approx((answers == gold).mean(axis=1))
    assert np.exp(scores.label_log_probs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="must be a list"):
        rayprompt.score("it was", problem, pool=pool)
    with pytest.raises(InputError, match="unknown part 'tset'"):
        rayprompt.score(["x"], problem, on="tset", pool=pool)


def test_score_of_given_examples_scores_these_pairs_alone(pool: ScoringPool, problem: Problem, tmp_path: Path) -> None:
    """A minibatch, or other examples for each prompt: the same bits as in the whole part, no others stored."""
    prompts = ["it was", "overall", "it was"]
    whole = rayprompt.score(prompts, problem, on="dev", pool=pool).dense("label_log_probs")
    store = tmp_path / "scores"
    for examples in ([5, 0, 5, 40], np.array([40, 0, 5])):
        scores = rayprompt.score(prompts, problem, on="dev", examples=examples, pool=pool, store=store)
        assert scores.asked is not None
        assert scores.asked.sum() == 9
        assert scores.complete().all()
        found = scores.dense("label_log_probs")
        assert (found[:, [0, 5, 40]] == whole[:, [0, 5, 40]]).all()
        assert np.isnan(found).sum() == 2 * 3 * (64 - 3)
        assert len(ScoreStore(store).pairs(part="dev").to_pylist()) == 6  # two distinct prompts
    mask = np.zeros((3, 64), dtype=bool)
    mask[0, 1] = mask[1, [2, 3]] = True
    scores = rayprompt.score(prompts, problem, on="dev", examples=mask, pool=pool, store=store)
    rows = {(int(c), int(e)) for c, e in zip(scores.candidate, scores.example, strict=True)}
    assert rows == {(0, 1), (1, 2), (1, 3)}
    assert len(ScoreStore(store).pairs(part="dev").to_pylist()) == 9


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([64], "64 is not there; must be positions from 0 to 63, or a boolean"),
        ([-1], "-1 is not there"),
        ([], "none is named"),
        ([0.5], "[0.5]; must be positions"),
        (["a"], "['a']; must be positions"),
        (np.zeros((1, 64), dtype=bool), "none is named"),
        (np.ones(64, dtype=bool), "a boolean array of shape (64,); must be"),
    ],
)
def test_examples_that_are_none(problem: Problem, examples: Any, message: str) -> None:
    with pytest.raises(InputError) as found:
        rayprompt.score(["it was"], problem, on="dev", examples=examples)
    assert str(found.value).startswith(f"examples: {message}")


def test_score_command_writes_parquet(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("it was\noverall it felt\n")
    out = tmp_path / "pairs.parquet"
    arguments = ["score", "reviews", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(out), "--scorers", "1"]
    assert run(app, [*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    check(content)
    table = pq.read_table(out).to_pandas()
    assert len(table) == content["evaluations"] == 128
    means = table.groupby("prompt")["value"].mean()
    for row in content["prompts"]:
        assert means[row["text"]] == pytest.approx(row["value"])
    assert len(table["label_log_probs"][0]) == 2


def test_a_search_on_the_causal_lm_and_a_task_of_python_objects(
    ray_session: None, trial_here: None, tmp_path: Path
) -> None:
    result = rayprompt.search(
        task_of(train=6), model="tiny-causal", searcher="random", budget=60, objective="gap", scorers=1,
        settings={"length": 2}, out=tmp_path / "s",
    )  # fmt: skip
    assert result.evaluations == 60
    assert isinstance(result.best_prompt, rayprompt.TextPrompt)
    assert len(result.best_prompt.text.split()) == 2


def test_a_task_whose_metric_is_f1(ray_session: None, trial_here: None, tmp_path: Path) -> None:
    result = rayprompt.search(
        task_of(train=6, metric="f1"), searcher="random", budget=60, scorers=1, out=tmp_path / "s"
    )
    check(result.to_json())
    for found in (result.train, result.dev, result.test):
        assert found.metric == "f1"
        assert found.ci95[0] <= found.value <= found.ci95[1]
    assert result.train.value == next(f["train"] for f in result.finalists if f["key"] == result.best_prompt.key)


def test_a_search_that_has_no_more_prompts_ends_as_exhausted(
    ray_session: None, trial_here: None, tmp_path: Path
) -> None:
    (tmp_path / "phrases.txt").write_text("it was\noverall\n")
    settings = {"phrases": str(tmp_path / "phrases.txt")}
    result = rayprompt.search(searcher="random", settings=settings, scorers=1, out=tmp_path / "s")
    assert result.end == "exhausted"
    assert result.evaluations == 128
    assert {f["text"] for f in result.finalists} == {"it was", "overall"}


def test_a_failing_searcher_ends_the_run_with_its_reason(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayprompt.study import search as module

    real = module.make_searcher

    def make(*args: Any) -> Any:
        searcher = real(*args)
        searcher.problem.lm = searcher.problem.lm.__class__(**{**vars(searcher.problem.lm), "vocab_size": 3})
        return searcher

    monkeypatch.setattr(module, "make_searcher", make)
    with pytest.raises(InputError, match="token id .* is not in the vocabulary"):
        rayprompt.search(searcher="random", budget=640, scorers=1, out=tmp_path / "s")


@pytest.mark.slow  # quick: this LM against a plain forward pass on this text, in tests/test_lm.py
def test_real_text_and_a_real_lm(mr_folder: Path, minilm: str, tmp_path: Path) -> None:
    """MR and minilm-reviews: a plain forward pass of the manual prompt is right on 65 of 100 of test."""
    result = rayprompt.search(
        mr_folder, model=minilm, split="short", budget=32 * 5, finalists=2, scorers=1, out=tmp_path / "s"
    )
    assert result.evaluations <= 32 * 5
    manual = result.baselines["manual"].test
    assert (manual.value, manual.n) == (pytest.approx(0.65), 100)


@pytest.mark.slow
def test_a_real_lms_accuracy(pool_of: PoolOf, mr_folder: Path, minilm: str) -> None:
    """MR, 16-13, minilm-reviews: the manual prompt's accuracy is the one measured independently (.739 on test)."""
    problem = Problem(mr_folder, minilm, split="16-13")
    measured = rayprompt.evaluate("It was", problem, pool=pool_of(problem.lm, 1)).estimate
    assert measured.value == pytest.approx(0.739, abs=0.002)
    assert measured.n == 2000


def test_what_cannot_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a prompt of 200 tokens does not fit: the LM takes 128"):
        rayprompt.search(task_of(train=6, manual_prompt="good " * 200), budget=60, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="has its model and split"):
        rayprompt.search(Problem("reviews"), model="tiny-causal")


def test_list_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("tasks", "searchers", "models"):
        assert run(app, ["list", what, "--json"]) == 0
        content = json.loads(capsys.readouterr().out.splitlines()[-1])
        check(content)
        assert content[what]
