"""A Ray cluster of several nodes on this machine: a head without CPUs, and workers of one CPU and one logical GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

COMMAND = str(Path(sys.executable).with_name("rayprompt"))


class Nodes:
    """The cluster; its processes are others than those of the Ray that the tests share."""

    def __init__(self, workers: int) -> None:
        self.cluster = Cluster(
            initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.workers: list[Any] = []
        self.started: list[subprocess.Popen[str]] = []
        self.add(workers)

    def add(self, count: int = 1) -> None:
        """More workers join."""
        self.workers += [self.cluster.add_node(num_cpus=1, num_gpus=1, wait=False) for _ in range(count)]
        self.cluster.wait_for_nodes()

    def remove(self, place: int = 0) -> None:
        """A worker vanishes, as a spot machine does."""
        self.cluster.remove_node(self.workers.pop(place), allow_graceful=False)

    def lose_head(self) -> None:
        """The machine with Ray's own memory vanishes, and with it the cluster."""
        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_ADDRESS": self.cluster.address, "RAYPROMPT_IDLE": "5"}

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """Start the command on the cluster."""
        with log.open("w") as file:
            command = [COMMAND, *arguments]
            process = subprocess.Popen(command, stdout=file, stderr=file, text=True, env=self.environment)
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run the command on the cluster; gives its standard output."""
        done = subprocess.run(
            [COMMAND, *arguments], capture_output=True, text=True, timeout=400, check=False, env=self.environment
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def pool(self, name: str) -> dict[str, Any]:
        """What ``pool status`` says."""
        (content,) = json.loads(self.run("pool", "status", name, "--json").splitlines()[-1])["pools"]
        return dict(content)

    def close(self) -> None:
        """All of its processes end."""
        for process in self.started:
            process.kill()
            process.wait()
        self.cluster.shutdown()


@contextmanager
def nodes(workers: int) -> Iterator[Nodes]:
    """Such a cluster, and its end."""
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setenv("RAY_health_check_period_ms", "1000")  # a node that vanished is missed after ten seconds
        monkey.setenv("RAY_health_check_failure_threshold", "10")
        made = Nodes(workers)
        try:
            yield made
        finally:
            made.close()


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.3)
    return found


def grown(study: Path, files: int = 1) -> bool:
    """Whether a study's searches have written so many files of scores."""
    return len(list((study / "scores").glob("*.parquet"))) >= files
