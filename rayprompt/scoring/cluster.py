"""The Ray cluster under a pool: connecting, and how scorers and searches share its CPUs and GPUs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from rayprompt.errors import InputError, ScoringError

NO_ROOM_SECONDS = 20.0
TRIAL_CPUS = 0.1  # what a search claims for itself: it waits for the scorers nearly all the time
MOST_LANES = 8
CPU_SHARE = 0.8  # of the cores; the searches' own work gets the rest


@dataclass(frozen=True)
class PoolPlan:
    """How many scorers, and what each asks of Ray; ``lanes`` is how many forward passes it runs side by side."""

    count: int
    gpus: float
    cpus: float
    lanes: int


def plan_scorers(
    resources: Mapping[str, float], scorers: int | None, gpus_per_scorer: float | None, spare_gpu: float = 0.0
) -> PoolPlan:
    """Lay scorers over a cluster's ``resources`` (as ``ray.cluster_resources()`` gives them).

    ``spare_gpu``: share of a GPU that some searcher wants for its own work; what is left of it is the scorers'.

    Raises:
        InputError: the cluster cannot hold them, or they leave no GPU with that share.
    """
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    if scorers is not None and scorers < 1:
        raise InputError(f"--scorers {scorers}: must be 1 or more")
    share = (1.0 - spare_gpu if gpus >= 1 else 0.0) if gpus_per_scorer is None else gpus_per_scorer
    if not 0 <= share < float("inf") or (share > 1 and share != int(share)):
        raise InputError(f"--gpus-per-scorer {share}: must be 0, a share of 1, or a whole number")
    if share > 0:
        # A share lies on one GPU: on four GPUs there is room for twelve scorers with 0.3 each, not thirteen.
        room = int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share)
        count = max(1, room) if scorers is None else scorers
        if count > room:
            raise InputError(
                f"{count} scorers with {share:g} GPUs each: there is room for {room}; the cluster has {gpus:g} GPUs"
            )
        # However Ray lays them, some GPU holds no more than this of them.
        full = count // int(gpus) * share + spare_gpu > 1 + 1e-6 if share <= 1 else gpus - count * share < 1
        if spare_gpu and full:
            raise InputError(
                f"{count} scorers with {share:g} GPUs each leave no GPU with the share of {spare_gpu:g} that a "
                f"searcher wants for its own work (the cluster has {gpus:g} GPUs): give --gpus-per-scorer "
                f"{1 - spare_gpu:g} or less, or keep the searcher off the GPUs (rl: --set gpu=0)"
            )
        return PoolPlan(count, share, min(1.0, CPU_SHARE * cpus / count), 1)
    count = 1 if scorers is None else scorers
    lanes = max(1, min(MOST_LANES, int(cpus) // count))
    return PoolPlan(count, 0.0, round(min(CPU_SHARE * lanes, CPU_SHARE * cpus / count), 4), lanes)


def trial_resources(wanted: Mapping[str, float]) -> dict[str, float]:
    """What a trial asks of the connected cluster: next to no CPU, and what its searcher ``wanted``.

    A share of a GPU only where there are GPUs.
    """
    has_gpus = ray.cluster_resources().get("GPU", 0.0) >= 1
    return {"CPU": TRIAL_CPUS, **{name: share for name, share in wanted.items() if name != "GPU" or has_gpus}}


def connect(address: str | None) -> bool:
    """Connect to Ray: ``local`` starts one here; ``auto`` or ``host:port`` joins one. True if it was started here.

    ``None`` takes ``RAY_ADDRESS``, else ``local``. An existing connection of this process is used as it is.

    Raises:
        InputError: there is no cluster at the address.
    """
    if ray.is_initialized():
        return False
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if where == "local":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=200 * 1024**2, **quiet)
        return True
    _check_address(where)
    try:
        ray.init(address=where, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--address {where}: no Ray cluster there ({reason[:160]})") from None
    return False


def _check_address(address: str) -> None:
    """Ray itself tries an address for minutes before it gives up."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address}: Ray Client is not supported; run it on the cluster, as with: ray job submit"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--address {address}: must be local, auto or host:port")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        raise InputError(f"--address {address}: no Ray cluster there (nothing answers)") from None


def await_room(plan: PoolPlan) -> None:
    """Wait a little for the cluster to have room: what an ended study held comes free after a moment."""
    started = time.monotonic()
    while True:
        free = ray.available_resources()
        cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
        if cpus + 1e-6 >= plan.count * plan.cpus + TRIAL_CPUS and gpus + 1e-6 >= plan.count * plan.gpus:
            return
        if time.monotonic() - started > NO_ROOM_SECONDS:
            raise ScoringError(
                f"no room for {plan.count} scorers: each needs {plan.cpus:g} CPUs and {plan.gpus:g} GPUs, and "
                f"{cpus:g} CPUs and {gpus:g} GPUs are free on the cluster (is another study running on it?)"
            )
        time.sleep(0.2)
