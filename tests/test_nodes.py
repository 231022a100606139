"""A cluster of several nodes, of which some vanish and some join: a result is that of a quiet run.

All of them are slow. Quick: the same of processes, tests/test_{pool,router,shared_pool,kills}.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import same
from nodes import COMMAND, grown, nodes, wait_for
from test_compare import stable
from test_kills import stored

pytestmark = pytest.mark.slow
SEARCH = ("search", "--searcher", "nevergrad", "--budget", "64000", "--seed", "3")
COMPARE = ("compare", "reviews", "--baselines", "none", "--seeds", "2", "--budget", "32000")


def alone(*arguments: str, out: Path) -> None:
    """The same on a Ray of its own, with a scorer on the CPU."""
    subprocess.run(
        [COMMAND, *arguments, "--out", str(out), "--address", "local"], check=True, timeout=400, capture_output=True
    )


def result(study: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study / "result.json").read_text())
    return content


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search, undisturbed."""
    folder = tmp_path_factory.mktemp("quiet") / "study"
    alone(*SEARCH, out=folder)
    return folder


def test_nodes_vanish_and_join_while_searchers_are_compared(tmp_path: Path) -> None:
    alone(*COMPARE, out=tmp_path / "quiet")
    with nodes(4) as cluster:
        study = tmp_path / "study"
        process = cluster.start(*COMPARE, "--out", str(study), "--scorers", "auto", log=tmp_path / "log")
        wait_for(lambda: grown(study, 2) or process.poll() is not None)
        for _ in range(3):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            files = len(list((study / "scores").glob("*.parquet")))
            cluster.remove()
            wait_for(lambda files=files: grown(study, files + 2) or process.poll() is not None)  # type: ignore[misc]
            cluster.add()
        assert process.wait(timeout=400) == 0, (tmp_path / "log").read_text()[-3000:]
    wanted, found = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("quiet", "study"))
    assert stable(found) == stable(wanted)


def test_the_driver_dies_then_the_head_and_the_search_goes_on(quiet: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    go_on = (*SEARCH, "--out", str(study), "--start-or-resume", "--scorers", "auto")
    with nodes(2) as cluster:
        process = cluster.start(*go_on, log=tmp_path / "log1")
        wait_for(lambda: grown(study, 1) or process.poll() is not None)
        process.kill()
        process.wait()
        process = cluster.start(*go_on, log=tmp_path / "log2")
        wait_for(lambda: grown(study, 3) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log2").read_text()[-3000:]
        cluster.lose_head()
        # Ray's own processes give up by themselves after a minute; whoever restarts a head does not wait for that.
        process.kill()
        process.wait()
    with nodes(2) as cluster:
        cluster.run(*go_on)
    assert same(result(study)) == same(result(quiet))
    assert stored(study) == stored(quiet)


def test_a_pool_grows_with_its_work_and_its_nodes_and_shrinks(quiet: Path, tmp_path: Path) -> None:
    """A pool of 1 to 3 begins on the only node; under load more are asked for, come with the nodes, and go."""
    with nodes(1) as cluster:
        cluster.run("pool", "up", "grows", "--scorers", "1:3", "--idle", "10s", "--lease", "1h")
        study = tmp_path / "study"
        process = cluster.start(*SEARCH, "--out", str(study), "--scorers", "pool:grows", log=tmp_path / "log")
        wait_for(lambda: cluster.pool("grows")["loading"])  # asked for: an autoscaler would see it
        assert len(cluster.pool("grows")["scorers"]) == 1
        cluster.add(2)
        wait_for(lambda: len(cluster.pool("grows")["scorers"]) >= 2 or process.poll() is not None)
        assert process.wait(timeout=400) == 0, (tmp_path / "log").read_text()[-3000:]
        assert len(cluster.pool("grows")["scorers"]) >= 2
        wait_for(lambda: len(cluster.pool("grows")["scorers"]) == 1, 60.0)
        assert cluster.pool("grows")["loading"] == 0
    assert same(result(study)) == same(result(quiet))


def test_two_studies_on_one_pool_whose_node_vanishes_are_as_alone(quiet: Path, tmp_path: Path) -> None:
    other = ("search", "--searcher", "random", "--budget", "32000")
    alone(*other, out=tmp_path / "other-alone")
    with nodes(3) as cluster:
        cluster.run("pool", "up", "both", "--lease", "20s")
        studies = [
            cluster.start(*what, "--out", str(tmp_path / name), "--scorers", "pool:both", log=tmp_path / f"{name}.log")
            for name, what in (("one", SEARCH), ("two", other))
        ]
        wait_for(lambda: grown(tmp_path / "one", 2) or studies[0].poll() is not None)
        cluster.remove(1)
        for process, name in zip(studies, ("one", "two"), strict=True):
            assert process.wait(timeout=400) == 0, (tmp_path / f"{name}.log").read_text()[-3000:]
        wait_for(lambda: not json.loads(cluster.run("pool", "status", "--json"))["pools"], 90.0)  # its lease is over
        gpus = (
            "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(ray.available_resources()['GPU'])"
        )
        free = subprocess.run(
            [sys.executable, "-c", gpus], capture_output=True, text=True, env=cluster.environment, check=True
        )
        assert float(free.stdout.split()[-1]) == 2.0
    assert same(result(tmp_path / "one")) == same(result(quiet))
    assert same(result(tmp_path / "two")) == same(result(tmp_path / "other-alone"))


def test_a_scorer_whose_process_stands_still_is_replaced(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_PATIENCE", "3")
    with nodes(2) as cluster:
        study = tmp_path / "study"
        process = cluster.start(*SEARCH, "--out", str(study), log=tmp_path / "log")
        wait_for(lambda: grown(study, 1) or process.poll() is not None)
        scorers = subprocess.run(["pgrep", "-f", "^ray::Scorer"], capture_output=True, text=True, check=True)
        os.kill(int(scorers.stdout.split()[-1]), signal.SIGSTOP)
        assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    assert same(result(study)) == same(result(quiet))
