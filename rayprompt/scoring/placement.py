"""Says so when trials of this process find no room on the cluster: Tune itself waits without a word."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

LOOK_SECONDS = 5.0
WAIT_SECONDS = 20.0


class PlacementWatch:
    """Looks at the placement groups of this process's trials from time to time, until it is closed.

    Args:
        say: what is called with the line, once for each request that finds no room.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.said: set[str] = set()
        self.since: float | None = None  # trials have waited, and none has run
        self.closed = threading.Event()
        threading.Thread(target=self._run, name="rayprompt-placement", daemon=True).start()

    def _run(self) -> None:
        while not self.closed.wait(LOOK_SECONDS):
            if not ray.is_initialized():
                return
            with contextlib.suppress(Exception):  # a look that fails is made again
                self.look(own_groups(), ray.available_resources(), ray.cluster_resources(), time.monotonic())

    def look(
        self, groups: Iterable[Mapping[str, Any]], free: Mapping[str, float], there: Mapping[str, float], now: float
    ) -> None:
        """One look at ``groups``, as ``ray.util.placement_group_table`` has them, and what is free and there."""
        waiting = [group for group in groups if group["state"] == "PENDING"]
        if not waiting or any(group["state"] == "CREATED" for group in groups):
            self.since = None
            return
        self.since = now if self.since is None else self.since
        wanted = _sum(waiting[0]["bundles"].values())
        line = shown(wanted)
        if now - self.since < WAIT_SECONDS or line in self.said:
            return
        self.said.add(line)
        self.say(
            f"no trial runs: one that asks for {line} has waited for {now - self.since:.0f} s; "
            f"{shown({name: free.get(name, 0.0) for name in wanted})} free, "
            f"{shown({name: there.get(name, 0.0) for name in wanted})} in the cluster. Let trials ask for less "
            "(tune.with_resources), or have fewer scorers, or one pool for all runs (scorers='pool:NAME')"
        )

    def close(self) -> None:
        """No more looks."""
        self.closed.set()


def own_groups() -> list[Mapping[str, Any]]:
    """The placement groups of this process, which Ray calls a job: a group's id ends with the job's."""
    job = ray.get_runtime_context().get_job_id()
    return [group for id, group in ray.util.placement_group_table().items() if id.endswith(job)]


def shown(resources: Mapping[str, float]) -> str:
    """Resources as text: ``2 CPU and 0.5 GPU``; shares of a certain machine are left out."""
    named = [f"{share:g} {name}" for name, share in resources.items() if not name.startswith("node:")]
    return " and ".join(named) or "a place on one machine"


def _sum(bundles: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, share in bundle.items():
            total[name] = total.get(name, 0.0) + share
    return total
