"""W&B and MLflow: real runs, in MLflow's file store and in W&B's offline files."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.cli.options import with_defaults
from rayprompt.errors import InputError
from rayprompt.study.config import read_config
from rayprompt.study.manifest import read_manifest
from rayprompt.study.mlflow_runs import MLflowRuns, place
from rayprompt.study.progress import Progress
from rayprompt.study.trackers import Trackers

KEY = "key-of-w-and-b-0123456789012345678901234"
PATIENCE = 60.0  # seconds
SMALL: dict[str, Any] = {"searcher": "random", "seed": 1, "scorers": 1}

pytestmark = pytest.mark.usefixtures("kept_pool")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The runs that MLflow's own client finds in a folder, by experiment; and its address is put back."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()

    def found(folder: str = "mlruns", experiment: str = "rayprompt") -> list[tuple[Any, list[tuple[int, float]]]]:
        client = mlflow.MlflowClient((tmp_path / folder).as_uri())
        listed = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        curves = [client.get_metric_history(run.info.run_id, "best_score") for run in listed]
        return [(run, [(m.step, m.value) for m in curve]) for run, curve in zip(listed, curves, strict=True)]

    yield found
    mlflow.set_tracking_uri(before)


def test_mlflow_holds_the_search(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, and then resumed with more: one run, in which nothing stands twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rayprompt.study.trackers.EVERY_SECONDS", 0.0)
    given = ["--mlflow", "./mlruns#reviews", "--set", "length=4"]
    assert (
        run(app, ["search", "--searcher", "random", "--budget", "512", "--scorers", "1", "--out", "one", *given]) == 0
    )
    capsys.readouterr()
    ((first, curve),) = runs(experiment="reviews")
    assert first.info.status == "FINISHED"
    assert [step for step, _ in curve] == [512]
    more = rayprompt.resume(tmp_path / "one", budget=2048, scorers=1)
    ((found, curve),) = runs(experiment="reviews")
    assert found.info.run_id == first.info.run_id
    assert found.info.status == "FINISHED"
    steps = [step for step, _ in curve]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (512, 2048)
    assert curve[-1][1] == more.train.value
    about = {"searcher": "random", "seed": "0", "task": "reviews", "model": "tiny-masked", "settings/length": "4"}
    assert about.items() <= found.data.params.items()
    metrics = found.data.metrics
    for name in ("evaluations", "lm_evaluations", "tokens"):
        assert metrics[name] == getattr(more, name)
    assert (metrics["final/dev"], metrics["final/test"]) == (more.dev.value, more.test.value)
    assert found.data.tags["best_prompt"] == more.best_prompt.text
    assert not {"pid", "best_prompt", "done"} & set(metrics)


@pytest.mark.slow  # quick: mlflow_holds_the_search, and native searches below
def test_mlflow_holds_every_run_of_a_comparison(runs: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "mlruns")
    found = rayprompt.compare(
        searchers={"random": "random", "longer": "random"}, settings={"longer": {"length": 8}}, seeds=1, budget=512,
        baselines=[], out=tmp_path / "study", scorers=1, mlflow=folder,
    )  # fmt: skip
    by_name = {run.info.run_name: run for run, _ in runs()}
    assert set(by_name) == {outcome.name for outcome in found.runs}
    for outcome in found.runs:
        run = by_name[outcome.name]
        assert run.data.params["searcher"] == outcome.searcher
        assert run.data.metrics["final/test"] == outcome.test.value


def test_a_process_of_wandb_that_dies_is_told_of(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from rayprompt.study.wandb_runs import WandbRuns

    @ray.remote
    def dies() -> None:
        raise RuntimeError("run initialization has timed out")

    said: list[str] = []
    tracker = WandbRuns("prompts", tmp_path, {}, lambda progress: said.append(progress.message))
    future = dies.remote()
    tracker._trial_logging_futures["one"] = future
    tracker._logging_future_to_trial[future] = "one"
    monkeypatch.setattr(tracker, "_cleanup_logging_actor", tracker._trial_logging_futures.pop)
    tracker._cleanup_logging_actors(timeout=30)
    assert not tracker._trial_logging_futures
    assert said == ["note: W&B fails and is left out from here on: run initialization has timed out"]


@pytest.mark.slow
def test_a_search_with_a_trial_a_batch_is_one_run(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both at once; W&B offline, with a key that comes to stand nowhere."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    study = tmp_path / "study"
    result = rayprompt.search(
        budget=512, out=study, tune_native=True, batch_size=2, wandb="prompts", mlflow=str(tmp_path / "mlruns"), **SMALL
    )
    ((run, curve),) = runs()
    assert run.info.status == "FINISHED"
    assert curve[-1] == (512, result.train.value)
    (file,) = study.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + PATIENCE
    while "exit" not in (kinds := [r.WhichOneof("record_type") for r in offline_records(file)]):
        assert time.monotonic() < until, f"W&B's process, which writes the file, has come no further than {kinds}"
        time.sleep(0.2)
    records = list(offline_records(file))
    (about,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (about.project, about.run_group, about.display_name) == ("prompts", "study", "random-s1")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert {"searcher": "random", "seed": 1, "task": "reviews", "model": "tiny-masked"}.items() <= config.items()
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert (rows[-1]["evaluations"], rows[-1]["best_score"]) == (512, result.train.value)
    summary = {i.key: json.loads(i.value_json) for r in records for i in r.summary.update if i.key}
    assert summary["best_prompt"] == run.data.tags["best_prompt"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
    assert read_manifest(study)["trackers"] == {"wandb": "prompts", "mlflow": str(tmp_path / "mlruns")}


def offline_records(path: Path) -> Iterator[Any]:
    """The records of a run's file, which is a LevelDB log: blocks of 32 KiB with headers of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        position += 7 + size
        record += content[position - size : position]
        if kind in (1, 4):  # the whole record, or its last part
            yield Record.FromString(record)
            record = b""


def test_a_tracker_that_fails_fails_no_search(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ConnectionError("no answer from the server\nand more")

    monkeypatch.setattr(MLflowRuns, "send", broken)
    told: list[Progress] = []
    result = rayprompt.search(
        budget=256, out=tmp_path / "study", mlflow=str(tmp_path / "mlruns"), listener=told.append, **SMALL
    )
    assert result.evaluations == 256
    notes = [progress.message for progress in told if "MLflow" in progress.message]
    assert notes == ["note: MLflow fails and is left out from here on: no answer from the server"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *rest: None if n == name else real(n, *rest))
    with pytest.raises(InputError, match=rf"--{name}: {name} is not installed .pip install 'rayprompt\[{name}\]'."):
        rayprompt.search(out=tmp_path / "study", **{name: "x"})
    assert not (tmp_path / "study").exists()


def test_without_a_key_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def no_key() -> None:
        raise ValueError("No WandB API key found.")

    monkeypatch.setattr("rayprompt.study.wandb_runs._set_api_key", no_key)  # whatever login this machine has
    with pytest.raises(InputError, match="--wandb prompts: no key for W&B; set WANDB_API_KEY, .*WANDB_MODE=offline"):
        rayprompt.search(out=tmp_path / "study", wandb="prompts")


def test_where_mlflow_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert place("reviews") == ((tmp_path / "mlruns").as_uri(), "reviews")
    assert place("./runs") == ((tmp_path / "runs").as_uri(), "rayprompt")
    assert place("http://host:5000") == ("http://host:5000", "rayprompt")
    assert place("http://host:5000#mine") == ("http://host:5000", "mine")
    assert place("databricks#/Shared/mine") == ("databricks", "/Shared/mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert place("reviews") == (None, "reviews")
    for uri in ("https://me:secret@host", "https://secret@host#x"):
        with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME") as caught:
            place(uri)
        assert "secret" not in str(caught.value)


def test_options_without_a_value() -> None:
    assert with_defaults(["search", "--wandb", "--mlflow"]) == [
        "search",
        "--wandb",
        "rayprompt",
        "--mlflow",
        "rayprompt",
    ]
    assert with_defaults(["search", "--mlflow", "mine", "x"]) == ["search", "--mlflow", "mine", "x"]


def test_study_files_have_them(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("task: reviews\nwandb: prompts\nmlflow: ./mlruns#reviews\n")
    given = read_config(tmp_path / "study.yaml")
    assert (given["wandb"], given["mlflow"]) == ("prompts", f"{tmp_path}/mlruns#reviews")
    assert Trackers.of({}) == Trackers()
