"""The documents: their code runs, their commands are the ones that CI runs, and no machine's paths stand in them."""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

import rayprompt
from rayprompt.lm import family as families
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.scores import Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.testing import check_searcher

README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
TUNE = (REPOSITORY / "docs" / "tune.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def module_of(code: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code block as an importable module."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_contributed_searcher(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = module_of(blocks(CONTRIBUTING, "python")[0], "mutate", tmp_path, monkeypatch).MutateSearcher
    searcher = cls(problem.for_search(), seed=1, length=2)
    first = searcher.ask(8)
    searcher.tell(first, Scores.of_values(first, np.arange(8.0)))
    assert searcher.best == first[-1].text.split()
    copy = pickle.loads(pickle.dumps(searcher))
    assert [c.key for c in copy.ask(8)] == [c.key for c in searcher.ask(8)]


def test_contributed_searcher_conforms(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = module_of(blocks(CONTRIBUTING, "python")[0], "mutate", tmp_path, monkeypatch).MutateSearcher
    check_searcher(lambda **keywords: cls(problem.for_search(), **keywords))


@pytest.mark.slow  # quick: it conforms, above
@pytest.mark.usefixtures("kept_pool", "trial_here")
def test_contributed_searcher_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = module_of(blocks(CONTRIBUTING, "python")[0], "mutate", tmp_path, monkeypatch).MutateSearcher
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["mutate"])
    result = rayprompt.search(searcher=cls, budget=64 * 20, scorers=1, out=tmp_path / "s", settings={"length": 2})
    assert result.searcher == "mutate"
    assert result.evaluations <= 64 * 20


def test_contributed_task() -> None:
    space: dict[str, object] = {}
    exec(blocks(CONTRIBUTING, "python")[1], space)
    task = space["task"]
    assert isinstance(task, rayprompt.Task)
    assert task.label_words == ("terrible", "great")
    assert len(Problem(task, "tiny-masked").part("train")) == 2


def test_contributed_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import torch
    from conftest import task_of
    from transformers import GPT2Config, GPT2DoubleHeadsModel

    from rayprompt.lm.source import BUNDLED

    module = module_of(blocks(CONTRIBUTING, "python")[2], "contributed", tmp_path, monkeypatch)
    point = SimpleNamespace(load=lambda: module.GPT2DoubleHeads)
    monkeypatch.setattr(families, "entry_points", lambda group: [point] if group == "rayprompt.families" else [])
    torch.manual_seed(0)
    tokenizer = json.loads((BUNDLED / "tiny-causal" / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    folder = tmp_path / "model"
    GPT2DoubleHeadsModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        folder
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((BUNDLED / "tiny-causal" / name).read_text())
    problem = Problem(task_of(train=2), str(folder))
    part = problem.part("train")
    log_probs, _, _ = LMScorer(problem.lm).score(Bucket(part.key, 32, 2, ((),), np.zeros(2, int), np.arange(2)), part)
    assert np.exp(log_probs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_readme_python(kept_pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _ = blocks(README, "python")
    space: dict[str, object] = {}
    exec(code.replace("budget=6400", "budget=640"), space)
    assert isinstance(space["result"], rayprompt.Result)


# The Tuners of README and docs/tune.md, with the session's pool.


@pytest.fixture
def tuner_space(pool: ScoringPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a block finds: the session's pool, in an empty folder that takes Tune's files too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(tmp_path / "ray_results"))
    return {"__name__": "__main__", "pool": pool}


def with_pool(code: str, **changes: str) -> str:
    """The block with the session's pool and smaller budgets; what is changed must stand in it."""
    code = re.sub(r"_trainable\(problem", "_trainable(problem, pool=pool", code)
    for name, (old, new) in {name: change.split("->") for name, change in changes.items()}.items():
        assert f"{name}={old}" in code
        code = code.replace(f"{name}={old}", f"{name}={new}")
    return code


def section(heading: str) -> list[str]:
    """The Python blocks of a section of docs/tune.md."""
    (text,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", TUNE, flags=re.DOTALL | re.MULTILINE)
    return blocks(text, "python")


@pytest.fixture
def tune_space(tuner_space: dict[str, Any]) -> dict[str, Any]:
    """With the block that all others of docs/tune.md need, and few examples."""
    exec(blocks(TUNE, "python")[0], tuner_space)
    task = tuner_space["problem"].task
    splits = {"default": {**task.parts(), "train": task.examples("train")[:16]}}
    tuner_space["problem"] = Problem(dataclasses.replace(task, splits=splits), "tiny-masked")
    return tuner_space


def test_readme_tuner(tuner_space: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _, code = blocks(README, "python")
    exec(with_pool(code, budget="320->48"), tuner_space)
    best = tuner_space["best"].metrics
    assert capsys.readouterr().out.splitlines()[-1] == f"{best['best_prompt']} {best['best_score']}"


def test_every_block_of_the_tune_page_is_in_a_section_that_is_tested() -> None:
    tested = {
        "Your own Tuner": 1, "A trainable of your own": 1, "Concurrency": 1, "Restore": 1,
        "ASHA over whole searches": 1, "W&B and MLflow": 2, "The conformance kit": 2,
    }  # fmt: skip
    assert {heading: len(section(heading)) for heading in tested} == tested
    assert len(blocks(TUNE, "python")) == 1 + sum(tested.values())


@pytest.mark.slow  # quick: the README's, above
def test_tune_own_tuner(tune_space: dict[str, Any]) -> None:
    (code,) = section("Your own Tuner")
    exec(with_pool(code, budget="320->34"), tune_space)
    best = tune_space["best"]
    assert {f"`{key}`" for key in best.config} <= set(re.findall("`[a-z]+`", TUNE))
    reported = {"score", "best_prompt", "best_score", "candidate_scores", "candidate_metrics", "evaluations"}
    assert reported <= set(best.metrics)
    first, *_ = (r for r in tune_space["tuner"].get_results() if r.config["batch"] == 0)
    assert [c.text for c in rayprompt.candidates(first.config)] == ["it was", "overall it felt"]


def test_tune_own_trainable(tune_space: dict[str, Any]) -> None:
    (code,) = section("A trainable of your own")
    exec(code, tune_space)
    results = tune_space["tuner"].get_results()
    first, *_ = (r for r in results if r.config["batch"] == 0)
    assert (len(results), len(results.errors)) == (4, 0)
    assert results.get_best_result().metrics["characters"] < first.metrics["characters"]


@pytest.mark.slow  # quick: tests/test_tune.py
def test_tune_concurrency(tune_space: dict[str, Any]) -> None:
    (code,) = section("Concurrency")
    exec(with_pool(code, budget="64->32"), tune_space)
    assert (len(tune_space["tuner"].get_results()), tune_space["searcher"].ended) == (8, "budget")


@pytest.mark.slow  # quick: tests/test_tune.py
def test_tune_restore(tune_space: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script twice: a run that is broken off after some trials, and the rest of it."""
    from ray import tune

    class Stop(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if len(trials) >= 3 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise RuntimeError("enough")

    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    (code,) = section("Restore")
    code = with_pool(code, budget="320->80").replace("RunConfig(", "RunConfig(callbacks=[stop], ")
    tune_space["stop"] = Stop()
    with pytest.raises(Exception, match="enough"):
        exec(code, tune_space)
    del tune_space["searcher"]
    exec(code, tune_space)
    assert "searcher" not in tune_space, "the second run did not restore"
    results = tune_space["results"]
    assert sorted(r.config["batch"] for r in results) == list(range(5))
    assert len({c.key for r in results for c in rayprompt.candidates(r.config)}) == 80


@pytest.mark.slow  # quick: a scheduler over whole searches is in tests/test_compare.py
def test_tune_asha(tune_space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """How many it stops depends on the order in which searches come to a rung; that the best one is not stopped does
    not."""
    monkeypatch.delenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS")
    (code,) = section("ASHA over whole searches")
    exec(with_pool(code, budget="6400->512", max_t="6400->512", grace_period="1600->256"), tune_space)
    results = tune_space["tuner"].get_results()
    assert (len(results), len(results.errors)) == (4, 0)
    assert {r.metrics["timesteps_total"] for r in results} <= {256, 512}
    assert results.get_best_result().metrics["timesteps_total"] == 512
    curves = {path.parent for path in (tune_space["runs"] / "asha").rglob("events.out.tfevents.*")}
    assert len(curves) == 4  # one for each search, for TensorBoard


@pytest.mark.slow  # quick: tests/test_trackers.py
def test_tune_mlflow(tune_space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # the block sets it; this puts it back
    before = mlflow.get_tracking_uri()
    try:
        exec(with_pool(section("W&B and MLflow")[0], budget="3200->256"), tune_space)
        client = mlflow.MlflowClient((tune_space["runs"] / "mlruns").as_uri())
        runs = client.search_runs([client.get_experiment_by_name("reviews").experiment_id])
    finally:
        mlflow.set_tracking_uri(before)
    assert {run.data.params["searcher"] for run in runs} == {"random", "nevergrad"}
    assert all(step.step == 256 for run in runs for step in client.get_metric_history(run.info.run_id, "best_score"))


@pytest.mark.slow  # quick: mlflow
def test_tune_wandb(tune_space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "")
    exec(with_pool(section("W&B and MLflow")[1], budget="3200->64"), tune_space)
    assert len(tune_space["results"]) == 2
    assert not tune_space["results"].errors
    logs = list((tune_space["runs"] / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2


def test_tune_kit(tune_space: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    own, optuna = section("The conformance kit")
    assert "**keywords))  # raises" in own
    exec(own.replace("**keywords))", "**keywords), only='seed')"), tune_space)  # test_conformance.py runs all of them
    pytest.importorskip("optuna")
    exec(optuna, tune_space)
    printed = {line.split(" - ")[0] for line in capsys.readouterr().out.splitlines()}
    assert printed == {outcome.check for outcome in tune_space["outcomes"] if not outcome.passed}
    table = {check for row in re.findall(r"^\| (`[a-z-]+`.*?) \|", TUNE, re.MULTILINE) for check in row.split(", ")}
    assert {f"`{check}`" for check in printed} <= table


def test_readme_task_is_a_task(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    spec = yaml.safe_load(text)
    for file in spec["splits"].values():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"sentence\tlabel\ngood {file}\t1\nbad {file}\t0\n")
    (tmp_path / "task.yaml").write_text(text)
    assert rayprompt.load_task(tmp_path).name == "mr"


def test_readme_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from rayprompt.cli.main import app, run

    reward = (REPOSITORY / "docs" / "reward.md").read_text()
    for line in "\n".join([*blocks(README, "bash"), *blocks(reward, "bash")]).splitlines():
        if not line.startswith("rayprompt "):
            continue
        words = line.split("#")[0].split()
        command = words[1:3] if words[1] in ("recommend", "store", "clusters") else words[1:2]
        assert run(app, [*command, "--help"]) == 0
        text = capsys.readouterr().out
        for option in (w for w in words if w.startswith("--")):
            assert option in text, f"{words[1]} has no {option}"


def test_ci_runs_the_readmes_test_command() -> None:
    install, tests = [b.strip() for b in blocks(README, "bash") if ".venv/bin/pip install" in b]
    assert "rayprompt search" in install
    assert tests.endswith("/pytest")
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "README.md" in ci, ".ci/run takes the test command from the README"


def test_no_paths_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.split()
    found = []
    for name in files:
        path = REPOSITORY / name
        if path.suffix in (".safetensors", ".tsv") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"(^|[^A-Za-z0-9_./])/(home|root|work|Users)/", line):
                found.append(f"{name}:{number}")
    assert found == []
