"""The Ray cluster under a pool: connecting, and how scorers and searches share its CPUs and GPUs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring.size import PoolSize, Scorers, room_for, shared_name
from rayprompt.scoring.starting import join_cluster, start_here

NO_ROOM_SECONDS = 20.0
TRIAL_CPUS = 0.1  # what a search claims for itself: it waits for the scorers nearly all the time
MOST_LANES = 8
CPU_SHARE = 0.8  # of the cores; the searches' own work gets the rest


@dataclass(frozen=True)
class PoolPlan:
    """How many scorers there are at first, and what each asks of Ray; ``size`` is how many there may be.

    ``lanes`` is how many forward passes a scorer runs side by side; ``room`` how many find room on what there is now.
    """

    count: int
    gpus: float
    cpus: float
    lanes: int
    size: PoolSize = PoolSize()
    room: int = 1


def plan_scorers(
    resources: Mapping[str, float],
    scorers: Scorers,
    gpus_per_scorer: float | None,
    spare_gpu: float = 0.0,
    limit: Mapping[str, float] | None = None,
    machine_cpus: float | None = None,
) -> PoolPlan:
    """Lay scorers over a cluster's ``resources`` (as ``ray.cluster_resources()`` gives them).

    Args:
        resources: what there is.
        scorers: ``auto`` (or None), a number, or ``MIN:MAX``.
        gpus_per_scorer: share of a GPU; None is a whole one where there are, or may be, GPUs, else none.
        spare_gpu: share of a GPU that some searcher wants for its own work; what is left of it is the scorers'.
        limit: what an autoscaler may bring; None is nothing more.
        machine_cpus: CPUs of the largest machine, on which a scorer must find room; None is all that there are.

    Raises:
        InputError: the cluster cannot hold them, or they leave no GPU with that share.
    """
    size = PoolSize.of(scorers)
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    most = max(gpus, (limit or {}).get("GPU", 0.0))
    share = (1.0 - spare_gpu if most >= 1 else 0.0) if gpus_per_scorer is None else gpus_per_scorer
    if 1 < share < float("inf"):
        raise InputError(
            f"--gpus-per-scorer {share:g}: must be 0 or a share of 1, a scorer runs on one GPU; serve an LM that is "
            "too large for one over several with vLLM (--tensor-parallel-size), and give --model endpoint:URL#NAME"
        )
    if not 0 <= share <= 1:
        raise InputError(f"--gpus-per-scorer {share}: must be 0 or a share of 1")
    if share > 0:
        # A share lies on one GPU: on four GPUs there is room for twelve scorers with 0.3 each, not thirteen.
        room, later = room_for(share, resources), room_for(share, {"GPU": most})
        if size.least > later:
            may = "" if most <= gpus else f" and may come to have {most:g}"
            raise InputError(
                f"{size.least} scorers with {share:g} GPUs each: there is room for {later}; the cluster has {gpus:g} "
                f"GPUs{may}"
            )
        count = size.within(room)
        # However Ray lays them, some GPU holds no more than this of them.
        if spare_gpu and gpus >= 1 and count // int(gpus) * share + spare_gpu > 1 + 1e-6:
            raise InputError(
                f"{count} scorers with {share:g} GPUs each leave no GPU with the share of {spare_gpu:g} that a "
                f"searcher wants for its own work (the cluster has {gpus:g} GPUs): give --gpus-per-scorer "
                f"{1 - spare_gpu:g} or less, or keep the searcher off the GPUs (rl: --set gpu=0)"
            )
        return PoolPlan(count, share, min(1.0, CPU_SHARE * cpus / max(1, count)), 1, size, room)
    count = 1 if scorers in (None, "auto") else size.within(max(1, int(cpus)))
    own = min(cpus / (size.most or count), cpus if machine_cpus is None else machine_cpus)
    lanes = max(1, min(MOST_LANES, int(own)))
    each = round(CPU_SHARE * min(lanes, own), 4)
    return PoolPlan(count, 0.0, each, lanes, PoolSize(size.least, size.most or 1), count)


def most_resources() -> dict[str, float]:
    """What the connected cluster has, or may come to have where an autoscaler looks after it."""
    there = ray.cluster_resources()
    limit: Mapping[str, float] = {}
    with contextlib.suppress(Exception):  # no part of Ray's public interface: without it, what is there counts
        from ray._private.state import state

        limit = state.get_max_resources_from_cluster_config() or {}
    return {name: max(there.get(name, 0.0), limit.get(name, 0.0)) for name in {*there, *limit}}


def trial_resources(wanted: Mapping[str, float]) -> dict[str, float]:
    """What a trial asks of the connected cluster: next to no CPU, and what its searcher ``wanted``.

    A share of a GPU only where there are GPUs.
    """
    has_gpus = ray.cluster_resources().get("GPU", 0.0) >= 1
    return {"CPU": TRIAL_CPUS, **{name: share for name, share in wanted.items() if name != "GPU" or has_gpus}}


def address_of(address: str | None, scorers: Scorers) -> str | None:
    """Where to connect to: to a cluster that there is, where scorers are those of a pool that is up.

    Raises:
        InputError: a pool, and ``local``.
    """
    name = shared_name(scorers)
    if name is None:
        return address
    if address == "local":
        raise InputError(f"--scorers {scorers}: a Ray of its own has no pool {name}; leave out --address local")
    return address or os.environ.get("RAY_ADDRESS") or "auto"


def connect(address: str | None) -> bool:
    """Connect to Ray: ``local`` starts one here; ``auto`` or ``host:port`` joins one. True if it was started here.

    ``None`` takes ``RAY_ADDRESS``, else ``local``. An existing connection of this process is used as it is.

    Raises:
        InputError: there is no cluster at the address, or it refuses this process.
        ScoringError: Ray does not start here.
    """
    if ray.is_initialized():
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if where == "local":
        start_here()
        return True
    join_cluster(where)
    return False


def largest_machine() -> float | None:
    """CPUs of the largest machine of the connected cluster; None where none has any."""
    found = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return max(found, default=0.0) or None


def await_room(plan: PoolPlan) -> None:
    """Wait a little for the cluster to have room: what an ended study held comes free after a moment.

    Only as many as there must be are waited for, and none that a machine yet to come would hold.

    Raises:
        ScoringError: there is none.
    """
    count = min(plan.size.least, plan.count)
    if plan.gpus > 0 and count > plan.room:
        return
    started = time.monotonic()
    while True:
        free, machines = ray.available_resources(), free_of_machines()
        cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
        enough = cpus + 1e-6 >= count * plan.cpus + TRIAL_CPUS and gpus + 1e-6 >= count * plan.gpus
        if enough and fitting(plan, machines) >= count:
            return
        if time.monotonic() - started > NO_ROOM_SECONDS:
            where = "no machine of the cluster has that free" if enough else (
                f"{cpus:g} CPUs and {gpus:g} GPUs are free on the cluster"
            )  # fmt: skip
            raise ScoringError(
                f"no room for {count} scorers: each needs {plan.cpus:g} CPUs and {plan.gpus:g} GPUs, and {where}; "
                f"{_instead()}"
            )
        time.sleep(0.2)


def free_of_machines() -> list[Mapping[str, float]] | None:
    """What is free on each machine of the connected cluster; None where Ray does not say."""
    with contextlib.suppress(Exception):  # no part of Ray's public interface
        from ray._private.state import available_resources_per_node

        return list(available_resources_per_node().values())
    return None


def fitting(plan: PoolPlan, machines: Sequence[Mapping[str, float]] | None) -> float:
    """How many scorers find room on machines, each on one of them."""
    if machines is None:
        return float("inf")
    count = 0
    for free in machines:
        rooms = [
            int((free.get(name, 0.0) + 1e-6) / share)
            for name, share in (("CPU", plan.cpus), ("GPU", plan.gpus))
            if share > 0
        ]
        count += min(rooms, default=1)
    return count


def _instead() -> str:
    """What helps where other scorers hold the cluster."""
    from rayprompt.scoring.shared import names

    up: list[str] = []
    with contextlib.suppress(Exception):
        up = names()
    if up:
        return f"pool {up[0]} is up: take its scorers with --scorers pool:{up[0]} (rayprompt pool status)"
    return (
        "another run holds the rest: wait for its end, or have all runs use one pool (rayprompt pool up NAME, then "
        "--scorers pool:NAME)"
    )
