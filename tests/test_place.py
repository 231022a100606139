"""Studies that lie elsewhere: on an S3 API (moto's server), or at a file:// URI, which takes the same way."""

from __future__ import annotations

import html
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import in_this_process
from pyarrow import fs as pafs

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError, StoreError
from rayprompt.lm.source import describe_model, model_folder
from rayprompt.store.files import Folder
from rayprompt.study.place import LEASE, Lease, Mirror, carried_over, carry, has_begun, location_of, new_place, opened
from rayprompt.study.results import read_result

SMALL: dict[str, Any] = {"searcher": "random", "seed": 3, "scorers": 1}
SECONDS = 0.1  # of a lease's beat

pytestmark = pytest.mark.usefixtures("kept_pool")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The query of a URI that leads to moto's server, which holds a bucket called ``bucket``."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setenv("AWS_ACCESS_KEY_ID", "key")
        monkey.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkey.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server.start()
        try:
            host, port = server.get_host_and_port()
            filesystem = pafs.S3FileSystem(
                access_key="key", secret_key="secret", region="us-east-1", scheme="http",
                endpoint_override=f"{host}:{port}", allow_bucket_creation=True,
            )  # fmt: skip
            filesystem.create_dir("bucket")
            yield f"scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        finally:
            server.stop()


def names(location: str) -> set[str]:
    """The files at a location, by their path in it."""
    folder = Folder.at(location)
    found = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, recursive=True))
    return {i.path[len(folder.path) + 1 :] for i in found if i.type == pafs.FileType.File}


# Copies.


def test_what_is_new_changes_and_goes_is_carried_over(tmp_path: Path) -> None:
    there = (tmp_path / "there").as_uri()
    here = new_place(there)
    assert location_of(here) == there
    mirror = Mirror(Folder.at(there), here)
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "b" / "c.json").write_text("1")
    (here / "study.yaml").write_text("x")
    (here / ".part.123").write_text("half")
    mirror.push()
    assert names(there) == {"a/b/c.json", "study.yaml"}
    assert has_begun(there)
    before = (tmp_path / "there" / "study.yaml").stat().st_mtime_ns
    (here / "a" / "b" / "c.json").write_text("22")
    mirror.push()
    assert (tmp_path / "there" / "a" / "b" / "c.json").read_text() == "22"
    assert (tmp_path / "there" / "study.yaml").stat().st_mtime_ns == before  # what is the same is not written again
    (here / "a" / "b" / "c.json").unlink()
    mirror.push()
    assert names(there) == {"study.yaml"}


def test_a_study_is_fetched_without_what_trials_write_unless_it_is_to_be_read(tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name in ("study.yaml", "scores/x.parquet", "snapshots/y.snapshot", "runs/one.json", LEASE):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(name)
    here = opened(there.as_uri())
    fetched = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file() and not p.name.startswith(".stands")}
    assert fetched == {"study.yaml", "runs/one.json"}
    assert (opened(there.as_uri(), whole=True) / "scores" / "x.parquet").read_text() == "scores/x.parquet"
    assert opened(there) == there  # a local one is where it is
    with pytest.raises(InputError, match="holds no study"):
        opened((tmp_path / "nothing").as_uri())
    with pytest.raises(InputError, match="exists already and is not empty"):
        new_place(there.as_uri())


# One process at a time.


def test_a_lease_that_is_renewed_is_respected_and_one_that_is_not_is_taken_over(tmp_path: Path) -> None:
    folder, said = Folder.at((tmp_path / "there").as_uri()), []
    first, second = Lease(folder), Lease(folder)
    first.owner["host"] = "another"
    first.take(said.append, SECONDS)
    assert not said
    second.take(said.append, SECONDS)  # the first shows no sign of life
    assert len(said) == 1
    assert "process" in said[0]
    assert "on another" in said[0]
    with pytest.raises(StoreError, match="has taken this study over"):
        first.renew()
    first.give_back()  # which is not its own
    assert LEASE in folder.names()
    second.give_back()
    assert LEASE not in folder.names()


def test_a_living_owner_keeps_others_out_and_a_dead_one_of_this_machine_is_known_at_once(tmp_path: Path) -> None:
    there = (tmp_path / "there").as_uri()
    here, folder = new_place(there), Folder.at(there)
    with carried_over(here, print, SECONDS):
        began = json.loads(folder.read(LEASE))
        other = Lease(folder)
        with pytest.raises(InputError, match=f"another process is at work on this study .process {os.getpid()} on"):
            other.take(lambda line: None, 10 * SECONDS)
        (here / "study.yaml").write_text("x")
    assert names(there) == {"study.yaml"}  # and the lease was given back
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    folder.write(LEASE, json.dumps({**began, "process": gone.pid}).encode())
    started = time.monotonic()
    Lease(folder).take(lambda line: pytest.fail(line), 60.0)
    assert time.monotonic() - started < 30


# Models.


def test_a_node_fetches_a_model_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_CACHE", str(tmp_path / "cache"))
    there = tmp_path / "there"
    shutil.copytree(model_folder("tiny-masked"), there)
    (there / "notes.md").write_text("not of the model")
    script = "import sys; from rayprompt.lm.source import model_folder; print(model_folder(sys.argv[1]))"
    both = [
        subprocess.Popen([sys.executable, "-c", script, there.as_uri()], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = {process.communicate(timeout=60)[0].strip() for process in both}
    assert len(found) == 1
    here = Path(found.pop())
    assert here.is_relative_to(tmp_path / "cache")
    assert not (here / "notes.md").exists()
    source, _ = describe_model(there.as_uri())
    assert source.digest == describe_model("tiny-masked")[0].digest
    assert source.path == here
    assert [p for p in here.parent.iterdir() if p.is_dir()] == [here]
    (there / "config.json").write_text((there / "config.json").read_text() + " ")
    assert model_folder(there.as_uri()) != here
    for wrong in ("nothing", "there/none"):
        with pytest.raises(InputError, match="no such folder, or it holds none of"):
            model_folder((tmp_path / wrong).as_uri())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt: whoever used Tune here may have left its handler, which makes nothing of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_who_has_lost_a_study_stops_and_writes_nothing_more(tmp_path: Path) -> None:
    there, stopped = (tmp_path / "there").as_uri(), False
    here, folder = new_place(there), Folder.at(there)
    with pytest.raises(StoreError, match="has taken this study over"), carried_over(here, print, SECONDS):  # noqa: PT012
        (here / "study.yaml").write_text("mine")
        carry(here)
        until = time.monotonic() + 60
        try:  # it may be noticed as soon as it is written
            folder.write(LEASE, json.dumps({"host": "another", "process": 1, "id": "another"}).encode(), again=True)
            while time.monotonic() < until:
                time.sleep(0.01)
        except KeyboardInterrupt:  # it has noticed: what is written from here on is not carried over any more
            stopped = True
            (here / "study.yaml").write_text("mine again")
            time.sleep(5 * SECONDS)
            raise
    assert stopped
    assert folder.read("study.yaml") == b"mine"
    assert json.loads(folder.read(LEASE))["id"] == "another"


def test_a_study_that_was_worked_on_since_it_was_read_is_not_written_over(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "study.yaml").write_text("one")
    here = opened(there.as_uri())
    (there / "study.yaml").write_text("two")
    with pytest.raises(InputError, match="in the meantime; run this again"), carried_over(here, print, SECONDS):
        pass
    assert names(there.as_uri()) == {"study.yaml"}
    assert (there / "study.yaml").read_text() == "two"


# Whole studies.


def test_a_search_at_a_uri_is_the_local_one(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Searched, given more, looked at, begun from."""
    there = f"s3://bucket/runs/one?{bucket}"
    found = rayprompt.search(budget=1024, out=there, **SMALL)
    with in_this_process():
        local = rayprompt.search(budget=1024, out=tmp_path / "local", **SMALL)
        longer = rayprompt.resume(tmp_path / "local", budget=2048)
    assert found.best_prompt == local.best_prompt
    assert found.test == local.test
    assert found.to_json()["study_dir"] == str(found.study_dir) == there
    with pytest.raises(InputError, match="--out s3://bucket/runs/one: exists already and is not empty"):
        rayprompt.search(budget=1024, out=there, **SMALL)
    with in_this_process():
        more = rayprompt.search(budget=2048, out=there, start_or_resume=True, **SMALL)
    assert (more.evaluations, more.lm_evaluations, more.test_opened) == (2048, 2048, 2)
    assert more.best_prompt == longer.best_prompt
    again = rayprompt.resume(there)
    assert again.to_json() == more.to_json()
    assert run(app, ["report", there]) == 0
    assert capsys.readouterr().out == f"report in 's3://bucket/runs/one/report.html?{bucket}'\n"
    for other, said in (
        ({"seed": 4}, "searcher seed was 3 when the study began"),
        ({"searcher": "nevergrad"}, "searcher class was"),
        ({"finalists": 3}, "--finalists"),
        ({"model": "tiny-causal"}, "was"),
        ({"budget": 640}, "can only grow"),
    ):  # not the result of that one
        with pytest.raises(InputError, match=said):
            rayprompt.search(**{"budget": 2048, "out": there, "start_or_resume": True, **SMALL, **other})
    wanted = {"study.yaml", "result.json", "prompt.json", "report.html", "store.json", "random-s3/result.json"}
    assert wanted <= names(there)
    assert any(name.startswith("scores/") for name in names(there))
    page = Folder.at(there).read("report.html").decode()
    assert html.escape(f"rayprompt report {shlex.quote(there)}") in page
    assert "tensorboard --logdir" not in page
    assert tempfile.gettempdir() + "/rayprompt-" not in page
    with in_this_process():
        begun = rayprompt.search(budget=640, out=tmp_path / "begun", warm_start=there, **SMALL)
    assert begun.train.value >= more.train.value
    assert not any("endpoint" in part for part in Folder.at(there).shown.split("/"))


@pytest.mark.slow
def test_a_comparison_at_a_uri_goes_on(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an LM that lies there, too."""
    monkeypatch.setenv("RAYPROMPT_CACHE", str(tmp_path / "cache"))
    there = f"s3://bucket/runs/compared?{bucket}"
    model = f"s3://bucket/models/tiny?{bucket}"
    for path in model_folder("tiny-masked").iterdir():
        Folder.at(model).write(path.name, path.read_bytes())
    options: dict[str, Any] = {"seeds": 1, "budget": 640, "baselines": [], "scorers": 1}
    found = rayprompt.compare("reviews", ["random", "nevergrad"], out=there, **options)
    local = rayprompt.compare("reviews", ["random", "nevergrad"], out=tmp_path / "local", **options)
    assert [r.prompt for r in found.runs] == [r.prompt for r in local.runs]
    again = rayprompt.compare("reviews", ["random", "nevergrad"], out=there, start_or_resume=True, **options)
    assert again.to_json() == found.to_json()
    assert str(again.study_dir) == there
    for other, said in (({"seeds": 2}, "--seeds"), ({"budget": 1280}, "--budget")):
        with pytest.raises(InputError, match=said):
            rayprompt.compare("reviews", ["random", "nevergrad"], out=there, start_or_resume=True, **options | other)
    with pytest.raises(InputError, match="--searchers"):
        rayprompt.compare("reviews", ["random"], out=there, start_or_resume=True, **options)


@pytest.mark.slow
def test_killed_and_submitted_again_it_goes_on(bucket: str, tmp_path: Path) -> None:
    """The very same command twice: the first is killed on its way, the second ends as an undisturbed one."""
    there = f"s3://bucket/runs/killed?{bucket}"
    command = [
        *(sys.executable, "-m", "rayprompt", "search", "--searcher", "random", "--seed", "3", "--scorers", "1"),
        *("--budget", "200000", "--out", there, "--start-or-resume"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    until = time.monotonic() + 240
    for line in process.stderr:
        if "best on train" in line and any(name.startswith("scores/") for name in names(there)):
            break
        assert time.monotonic() < until
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = {name for name in names(there) if name.startswith("scores/")}
    assert stored
    assert "result.json" not in names(there)
    record = Folder.at(there).read("study.yaml").decode()
    edited = record.rpartition("# sha256: ")[0].replace("budget: 200000", "budget: 64")
    Folder.at(there).write("study.yaml", edited.encode())
    spent = 64 * 16 * 20
    with pytest.raises(InputError, match="--seed|seed was 3 when the study began"):
        rayprompt.search(budget=spent, out=there, start_or_resume=True, **{**SMALL, "seed": 4})
    found = rayprompt.search(budget=spent, out=there, start_or_resume=True, **SMALL)
    alone = rayprompt.search(budget=spent, out=tmp_path / "alone", **SMALL)
    assert found.best_prompt == alone.best_prompt
    assert found.evaluations == alone.evaluations == spent
    assert found.lm_evaluations <= spent
    assert read_result(opened(there) / "result.json").test == alone.test
