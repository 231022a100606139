"""Two processes on one study, and processes that die at its end: nothing is lost, doubled, or taken back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killing
import pytest
from conftest import plan_of
from killing import CLOSING, at, same
from test_place import bucket as bucket

import rayprompt
from rayprompt.comparison.outcome import COMPARISON_SCHEMA
from rayprompt.errors import InputError, LeaseLost, StoreError
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.files import Folder
from rayprompt.study.lease import LEASE, AnyFile, Lease, LocalFile, S3File
from rayprompt.study.lock import study_lock
from rayprompt.study.loop import SearchLoop
from rayprompt.study.manifest import read_manifest
from rayprompt.study.progress import silent
from rayprompt.study.trial import SearchTrial
from searchers.random import RandomSearcher

SMALL: dict[str, Any] = {"searcher": "random", "seed": 2, "scorers": 1}
BUDGET, MORE, MOST = 640, 1280, 1920

pytestmark = pytest.mark.usefixtures("kept_pool")


@pytest.fixture(scope="module")
def study(kept_pool: None, trials_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one of 640 evaluations."""
    path = tmp_path_factory.mktemp("study") / "s"
    rayprompt.search(budget=BUDGET, out=path, **SMALL)
    return path


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    shutil.copytree(study, tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture(scope="module")
def grown(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What an undisturbed resume comes to."""
    known: dict[int, dict[str, Any]] = {}

    def result(budget: int) -> dict[str, Any]:
        if budget not in known:
            path = tmp_path_factory.mktemp("grown") / "s"
            shutil.copytree(study, path)
            known[budget] = same(rayprompt.resume(path, budget=budget, scorers=1).to_json())
        return known[budget]

    return result


# Two resumes.


def test_a_resume_that_comes_first_keeps_the_other_out_until_it_has_ended(
    copied: Path, grown: Callable[[int], dict[str, Any]]
) -> None:
    def other() -> None:
        with pytest.raises(InputError, match="another process is at work on this study"):
            rayprompt.resume(copied, budget=MOST, scorers=1)

    with at("load", other):
        first = rayprompt.resume(copied, budget=MORE, scorers=1)
    assert same(first.to_json()) == grown(MORE)
    assert read_manifest(copied)["test_opened"] == [BUDGET, MORE]


def test_a_resume_that_was_held_up_before_its_lock_reads_what_the_other_has_done(
    copied: Path, grown: Callable[[int], dict[str, Any]]
) -> None:
    with (
        at("lock", lambda: rayprompt.resume(copied, budget=MOST, scorers=1)),
        pytest.raises(InputError, match=f"--budget {MORE}: the study in .* has {MOST}; a resumed study's budget can"),
    ):
        rayprompt.resume(copied, budget=MORE, scorers=1)
    record = read_manifest(copied)
    assert (record["budget"], record["test_opened"]) == (MOST, [BUDGET, MOST])
    found = rayprompt.resume(copied).to_json()
    assert {**same(found), "test_opened": 2} == {**grown(MOST), "test_opened": 2}


def test_a_new_study_is_not_begun_over_one_that_began_meanwhile(tmp_path: Path, study: Path) -> None:
    def other() -> None:
        shutil.copytree(study, tmp_path / "s")

    before = (study / "study.yaml").read_bytes()
    with at("load", other), pytest.raises(InputError, match="another process has begun a study there in the meantime"):
        rayprompt.search(budget=BUDGET, out=tmp_path / "s", **SMALL)
    assert (tmp_path / "s" / "study.yaml").read_bytes() == before


@pytest.mark.slow  # quick: the same in one process, above
@pytest.mark.parametrize("point", ["lock", "read", "load", "begin", "measure"])
def test_two_resumes_of_which_one_is_stopped_on_its_way(
    point: str, copied: Path, grown: Callable[[int], dict[str, Any]]
) -> None:
    """SIGSTOP, the other one, SIGCONT."""
    first = resume_process(copied, MORE, point, signal.SIGSTOP)
    until = time.monotonic() + 240
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    second = resume_process(copied, MOST)
    out = second.communicate(timeout=240)[0]
    first.send_signal(signal.SIGCONT)
    text = first.communicate(timeout=240)[0]
    record = read_manifest(copied)
    if point == "lock":  # the other one was first
        assert (second.returncode, first.returncode) == (0, 2), out + text
        assert f"--budget {MORE}: the study in {copied} has {MOST}" in text
        assert record["test_opened"] == [BUDGET, MOST]
    else:
        assert (second.returncode, first.returncode) == (2, 0), out + text
        assert f"another process is at work on this study (process {first.pid})" in out
        assert (record["budget"], record["test_opened"]) == (MORE, [BUDGET, MORE])
        assert same(rayprompt.resume(copied).to_json()) == grown(MORE)
        rayprompt.resume(copied, budget=MOST, scorers=1)
        assert read_manifest(copied)["test_opened"] == [BUDGET, MORE, MOST]
    found = same(rayprompt.resume(copied).to_json())
    assert {**found, "test_opened": 0} == {**grown(MOST), "test_opened": 0}


def resume_process(study: Path, budget: int, point: str = "", number: int = 0) -> subprocess.Popen[str]:
    """``rayprompt search --resume``, which sends itself a signal when it comes to a point."""
    given = {"RAYPROMPT_TEST_POINT": point, "RAYPROMPT_TEST_SIGNAL": str(int(number))} if point else {}
    command = [sys.executable, killing.__file__, "search", "--resume", str(study), "--budget", str(budget)]
    return subprocess.Popen(
        [*command, "--scorers", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **given},
    )  # fmt: skip


# The steps of a study's end.


class Died(BaseException):
    """Stands for a kill: nobody catches it."""


def test_a_study_that_died_between_two_closing_steps_does_what_is_missing(
    copied: Path, grown: Callable[[int], dict[str, Any]]
) -> None:
    """One after the other: each resume dies a step further on."""

    def die() -> None:
        raise Died

    for point in CLOSING:
        with at(point, die), pytest.raises(Died):
            rayprompt.resume(copied, budget=MORE, scorers=1)
        record = read_manifest(copied)
        assert record["budget"] == MORE
        assert record["test_opened"] == ([BUDGET] if point in CLOSING[:2] else [BUDGET, MORE])
    (copied / "report.html").unlink()
    found = rayprompt.resume(copied, scorers=1).to_json()
    assert same(found) == grown(MORE)
    assert (copied / "report.html").is_file()
    record = read_manifest(copied)
    assert record["test_opened"] == [BUDGET, MORE]
    assert record["closed"]["budget"] == MORE
    assert set(record["closed"]["files"]) == {"prompt.json", "result.json"}
    assert rayprompt.resume(copied).to_json() == found  # and now it is over


@pytest.mark.slow  # quick: the same in one process, above
@pytest.mark.parametrize("point", CLOSING)
def test_a_kill_between_two_closing_steps(point: str, copied: Path, grown: Callable[[int], dict[str, Any]]) -> None:
    killed = resume_process(copied, MORE, point, signal.SIGKILL)
    out = killed.communicate(timeout=240)[0]
    assert killed.returncode == -signal.SIGKILL, out
    (copied / "report.html").unlink()
    assert same(rayprompt.resume(copied, scorers=1).to_json()) == grown(MORE)
    assert (copied / "report.html").is_file()
    assert read_manifest(copied)["test_opened"] == [BUDGET, MORE]


def test_a_comparison_that_died_between_its_closing_steps_does_what_is_missing(
    trials_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any) -> None:
        raise Died

    study = tmp_path / "s"
    with monkeypatch.context() as patched:
        patched.setattr("rayprompt.comparison.compare.write_json", die)
        with pytest.raises(Died):
            rayprompt.compare("reviews", ["random"], seeds=1, budget=BUDGET, baselines=[], scorers=1, out=study)
    for step in ("write_page", "finish_runs", "close_manifest"):
        with monkeypatch.context() as patched:
            patched.setattr(f"rayprompt.comparison.compare.{step}", die)
            with pytest.raises(Died):
                rayprompt.resume_comparison(study, scorers=1)
        assert read_manifest(study, COMPARISON_SCHEMA)["closed"] is None
        (study / "report.html").unlink(missing_ok=True)
    found = rayprompt.resume_comparison(study, scorers=1)
    assert (study / "report.html").is_file()
    assert len(list((study / found.runs[0].name).glob("*.final"))) == 1  # TensorBoard's
    record = read_manifest(study, COMPARISON_SCHEMA)
    assert list(record["closed"]["files"]) == ["comparison.json"]
    assert record["test_opened"] == ["tiny-masked"]
    assert rayprompt.resume_comparison(study).to_json() == found.to_json()


def test_a_study_of_an_earlier_version_is_finished_when_it_has_its_result(copied: Path) -> None:
    import yaml

    record = {**read_manifest(copied), "schema": "rayprompt.study/4"}
    del record["closed"]
    (copied / "study.yaml").write_text(yaml.safe_dump(record))
    assert rayprompt.resume(copied).to_json() == json.loads((copied / "result.json").read_text())


# Locks and leases.


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_file_locks_a_study_is_refused_with_what_to_do(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(
        StoreError, match=f"files cannot be locked there .*; give it as {tmp_path.as_uri()}, which takes"
    ):
        with study_lock(tmp_path, silent):
            pass


def two_at_once(first: Lease, second: Lease) -> list[bool]:
    """Which of two leases is had that are taken at the same time."""
    had = [False, False]

    def take(number: int, lease: Lease) -> None:
        try:
            lease.take(lambda line: None, 0.1)
        except InputError:
            return
        else:
            had[number] = True

    threads = [threading.Thread(target=take, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return had


class Slow:
    """A lease's file of which the first reads meet, and whose writes take their time: the worst of all starts."""

    def __init__(self, file: Any, meet: threading.Barrier, seconds: float) -> None:
        self.file, self.meet, self.seconds = file, meet, seconds
        self.reads = 0

    def read(self) -> Any:
        found = self.file.read()
        self.reads += 1
        if self.reads == 1:
            self.meet.wait(30)
        return found

    def create(self, content: bytes) -> Any:
        time.sleep(self.seconds)
        return self.file.create(content)

    def take(self, content: bytes, tag: str) -> Any:
        time.sleep(self.seconds)
        return self.file.take(content, tag)


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A new folder at a URI."""
    if request.param == "file":
        return Folder.at((tmp_path / "there").as_uri())
    query = request.getfixturevalue("bucket")
    return Folder.at(f"s3://bucket/leases/{tmp_path.name}?{query}")


@pytest.mark.parametrize("dead", [False, True])
def test_of_two_that_start_within_one_write_one_owns_the_lease(place: Folder, dead: bool) -> None:
    if dead:  # both take over that of an owner that shows no sign of life
        place.make()
        place.write(LEASE, json.dumps({"host": "another", "process": 1, "id": "gone"}).encode())
    first, second, meet = Lease(place), Lease(place), threading.Barrier(2)
    assert isinstance(first.file, LocalFile if place.uri.startswith("file") else S3File)
    for lease, seconds in ((first, 0.0), (second, 0.5)):
        lease.file = Slow(lease.file, meet, seconds)  # type: ignore[assignment]
    had = two_at_once(first, second)
    assert sorted(had) == [False, True]
    owner = first if had[0] else second
    owner.file = owner.file.file  # type: ignore[attr-defined]
    for _ in range(3):
        owner.renew()
    assert json.loads(AnyFile(place).read()[0] or b"")["id"] == owner.owner_id
    owner.give_back()
    assert AnyFile(place).read()[0] is None


def test_elsewhere_the_lease_is_read_back_after_longer_than_a_write(tmp_path: Path) -> None:
    folder = Folder.at((tmp_path / "there").as_uri())
    first, second, meet = Lease(folder), Lease(folder), threading.Barrier(2)
    for lease, seconds in ((first, 0.0), (second, 0.5)):
        lease.file = Slow(AnyFile(folder), meet, seconds)  # type: ignore[assignment]
    assert two_at_once(first, second) == [False, True]


def test_renewals_from_several_threads_do_not_lose_the_lease(place: Folder) -> None:
    lease = Lease(place)
    lease.take(lambda line: None, 0.1)
    assert isinstance(lease.file, LocalFile if place.uri.startswith("file") else S3File)
    threads = [threading.Thread(target=lambda: [lease.renew() for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lease.lost
    other = Lease(place)
    other.owner["host"] = "another"
    lease.file.take(other._next(), lease.tag)
    with pytest.raises(LeaseLost, match="process .* on another has taken this study over"):
        lease.renew()
    assert lease.lost
    with pytest.raises(LeaseLost):  # again: it does not take it back
        lease.renew()
    assert json.loads(AnyFile(place).read()[0] or b"")["id"] == other.owner_id


def test_a_service_that_ignores_conditions_is_noticed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = S3File._put
    monkeypatch.setattr(S3File, "_put", lambda self, content, **condition: put(self, content))
    monkeypatch.setattr("rayprompt.study.lease.PUT_SECONDS", 0.1)
    lease = Lease(Folder.at(f"s3://bucket/leases/ignored?{bucket}"))
    lease.take(lambda line: None, 0.1)
    assert type(lease.file) is AnyFile
    lease.renew()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_trial_whose_study_was_taken_over_writes_nothing_more(
    pool: ScoringPool, problem: Problem, tmp_path: Path
) -> None:
    (tmp_path / LEASE).write_text(json.dumps({"id": "mine"}))
    plan = plan_of(tmp_path, 64 * 64, snapshot_seconds=1e9, flush_seconds=1e9, lease="mine")
    trial = SearchTrial.__new__(SearchTrial)
    trial.loop = SearchLoop(RandomSearcher(problem.for_search(), seed=0), pool, plan)
    trial.stepped = True
    trial.loop.step()
    trial.loop.writer.flush()
    trial.loop.step()
    (tmp_path / LEASE).write_text(json.dumps({"id": "another", "process": 7, "host": "there"}))
    before = files(tmp_path)
    trial.cleanup()
    with pytest.raises(LeaseLost, match="process 7 on there has taken this study over; nothing more is written"):
        trial.loop.close()
    with pytest.raises(LeaseLost):
        trial.loop.abandon()
    with pytest.raises(LeaseLost):
        SearchLoop(RandomSearcher(problem.for_search(), seed=0), pool, plan)
    assert files(tmp_path) == before
