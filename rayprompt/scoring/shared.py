"""Pools that outlive who started them: kept up for several studies, until their lease is over.

A pool NAME is a few detached actors of the namespace :data:`rayprompt.scoring.keeper.NAMESPACE`: its host
``pool:NAME``, which keeps it, its router ``NAME/router`` and its scorers ``NAME-0``, ``NAME-1``. Studies find it by
name (``--scorers pool:NAME``). Each of them may die and comes back; the host finds the others by their names.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError

from rayprompt import __version__
from rayprompt.errors import InputError, ScoringError, did_you_mean, last_line
from rayprompt.lm.source import LMSource
from rayprompt.scoring.actor import ScorerActor, ScorerInfo
from rayprompt.scoring.cluster import PoolPlan, await_room, largest_machine, most_resources, plan_scorers
from rayprompt.scoring.keeper import (
    IDLE_SECONDS,
    NAMESPACE,
    Keeper,
    KeeperPlan,
    KeeperThread,
    here,
    seconds_from,
)
from rayprompt.scoring.size import POOL, Scorers

LEASE_SECONDS = 1800.0
TOUCH_SECONDS = 5.0  # between two signs of a study that it has use for the pool
ANSWER_SECONDS = 30.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DECIDING = ("dtype", "cache", "memory")  # LM settings that scorers are loaded with


@dataclass(frozen=True)
class HostPlan:
    """What a host is told: a keeper's plan, and the seconds without use after which the pool ends."""

    keeper: KeeperPlan
    lease: float = LEASE_SECONDS
    gpus: float = 0.0


class PoolHost:
    """Keeps a pool up; made into a detached Ray actor by :func:`up`."""

    def __init__(self, name: str, plan: HostPlan) -> None:
        self.name = name
        self.plan = plan
        self.keeper = Keeper(plan.keeper)
        self.infos: list[ScorerInfo] = []
        self.failed: str | None = None
        self.started = threading.Event()
        self.since = time.time()
        self.status: dict[str, Any] = {}
        self.thread: KeeperThread | None = None
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        try:
            self.infos = self.keeper.adopt() or self.keeper.start()
        except Exception as error:
            self.failed = str(error) if isinstance(error, ScoringError) else f"{type(error).__name__}: {error}"
        self.started.set()
        if self.failed is None:
            self.thread = KeeperThread(self.keeper, self._look)

    def _look(self, status: dict[str, Any]) -> None:
        self.status = status
        if status["idle"] > self.plan.lease:
            self.close()

    def up(self) -> list[ScorerInfo]:
        """Wait until the pool is up.

        Raises:
            ScoringError: an LM did not load, or there was no room in time.
        """
        self.started.wait()
        if self.failed is not None:
            raise ScoringError(self.failed)
        return self.infos

    def describe(self) -> dict[str, Any]:
        """What the pool is, and how it is at work."""
        facts = self.keeper.facts
        return {
            "name": self.name,
            "version": __version__,
            "source": self.plan.keeper.source,
            "infos": self.infos,
            "gpus": self.plan.gpus,
            "size": self.keeper.size,
            "target": self.keeper.target,
            "loading": sum(slot.info is None for slot in self.keeper.slots.values()),
            "nodes": {s.name: s.info.node for s in self.keeper.slots.values() if s.info is not None},
            "device": "" if facts is None else facts.device,
            "dtype": "" if facts is None else facts.dtype,
            "state": "failed" if self.failed else "up" if self.started.is_set() else "starting",
            "lease": self.plan.lease,
            "since": self.since,
            "remarks": self.keeper.remarks,
            "status": self.status,
        }

    def close(self) -> None:
        """End the pool, and this actor."""
        if self.thread is not None:
            self.thread.close()
        else:
            self.keeper.stop()
        with contextlib.suppress(Exception):
            ray.kill(ray.get_actor(f"{POOL}{self.name}", namespace=NAMESPACE))


def up(
    name: str,
    source: LMSource,
    *,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    lease: float = LEASE_SECONDS,
    idle: float = IDLE_SECONDS,
    patience: float | None = None,
    actor: type[ScorerActor] = ScorerActor,
) -> list[ScorerInfo]:
    """Start a pool that outlives this process, on the connected Ray cluster; returns when it is up.

    Args:
        name: of letters, digits, ``.``, ``_`` and ``-``.
        source: the LM.
        scorers, gpus_per_scorer: as for :meth:`rayprompt.ScoringPool.start`.
        lease: seconds without use after which it ends and gives its machines back.
        idle: seconds without work after which it is made as small as it may be.
        patience: seconds that a scorer may stand still before it is replaced; None goes by what passes take.
        actor: the class of the scorers.

    Raises:
        InputError: there is one of that name, or the cluster cannot hold it.
        ScoringError: the LM did not load, or there was no room in time.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"pool {name}: a name is of letters, digits, '.', '_' and '-', 63 at most")
    if lease <= 0 or idle <= 0:
        raise InputError(f"--lease {lease:g}, --idle {idle:g}: must be more than 0 seconds")
    if source.endpoint is not None or source.replay:
        raise InputError(f"model {source.name}: is not loaded here, it needs no pool")
    if name in names():
        raise InputError(f"pool {name}: is up already (rayprompt pool status {name}; rayprompt pool down {name})")
    there, limit = ray.cluster_resources(), most_resources()
    plan: PoolPlan = plan_scorers(there, scorers, gpus_per_scorer, 0.0, limit, largest_machine())
    await_room(plan)
    patience = seconds_from("RAYPROMPT_PATIENCE") if patience is None else patience
    keeper = KeeperPlan(source, plan, name, actor, shared=True, idle=idle, patience=patience)
    host: Any = (
        ray.remote(PoolHost)
        .options(
            name=f"{POOL}{name}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=8,
            scheduling_strategy=here(),
        )
        .remote(name, HostPlan(keeper, lease, plan.gpus))
    )
    try:
        infos: list[ScorerInfo] = ray.get(host.up.remote())
    except BaseException as error:
        down(name)
        if isinstance(error, ray.exceptions.RayTaskError):
            raise ScoringError(last_line(error).removeprefix(f"{ScoringError.__module__}.ScoringError: ")) from None
        raise
    return infos


def names() -> list[str]:
    """The pools that are up on the connected cluster."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"].removeprefix(POOL) for a in found if a["namespace"] == NAMESPACE and POOL in a["name"])


def host_of(name: str) -> Any:
    """The actor that keeps a pool.

    Raises:
        InputError: there is no such pool.
    """
    try:
        return ray.get_actor(f"{POOL}{name}", namespace=NAMESPACE)
    except ValueError:
        there = names()
        which = f"there are {', '.join(there)}" if there else "there is none"
        raise InputError(f"pool {name}: is not up on this cluster; {which}{did_you_mean(name, there)}") from None


def describe(name: str) -> dict[str, Any]:
    """What :meth:`PoolHost.describe` says of a pool.

    Raises:
        InputError: there is no such pool.
        ScoringError: it does not answer.
    """
    host = host_of(name)
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            content: dict[str, Any] = ray.get(host.describe.remote(), timeout=ANSWER_SECONDS)
            return content
        except (RayActorError, GetTimeoutError) as error:  # Ray starts the host anew, elsewhere if its node is lost
            if time.monotonic() > deadline or isinstance(error, ActorDiedError):
                raise ScoringError(f"pool {name}: does not answer ({last_line(error)})") from None
            time.sleep(0.5)


def down(name: str) -> None:
    """End a pool.

    Raises:
        InputError: there is no such pool.
    """
    host = host_of(name)
    with contextlib.suppress(RayActorError, GetTimeoutError):  # it ends with its answer
        ray.get(host.close.remote(), timeout=60.0)
    # Whatever the host knew, nothing of its name stays.
    with contextlib.suppress(Exception):
        ray.kill(host)
    for found in ray.util.list_named_actors(all_namespaces=True):
        if found["namespace"] == NAMESPACE and re.fullmatch(f"{re.escape(name)}(/router|-[0-9]+)", found["name"]):
            with contextlib.suppress(Exception):
                ray.kill(ray.get_actor(found["name"], namespace=NAMESPACE))


@dataclass
class Joined:
    """A shared pool as a study has it."""

    router: Any
    infos: Sequence[ScorerInfo]
    gpus: float


def join(name: str, source: LMSource, spare_gpu: float = 0.0) -> Joined:
    """Find the pool for a study's LM; of several names with commas between them, the one that has it.

    Raises:
        InputError: there is none, it has another LM or loaded it otherwise, or leaves no GPU to the searches.
        ScoringError: it does not answer, or did not start.
    """
    wrong = []
    for one in name.split(","):
        content = describe(one)
        why = _other(content["source"], source)
        if content["version"] != __version__:
            why = f"was started by rayprompt {content['version']}, this is {__version__}"
        if why is not None:
            wrong.append(f"pool {one} {why}")
            continue
        infos = ray.get(host_of(one).up.remote()) if content["state"] != "up" else content["infos"]
        if spare_gpu and content["gpus"] and ray.available_resources().get("GPU", 0.0) + 1e-6 < spare_gpu:
            raise InputError(
                f"pool {one}: leaves no GPU with the share of {spare_gpu:g} that a searcher wants for its own work: "
                f"start it with --gpus-per-scorer {1 - spare_gpu:g}, or keep the searcher off the GPUs "
                "(rl: --set gpu=0)"
            )
        tokens = source.settings.tokens
        if tokens is not None and tokens != min(info.tokens for info in infos):
            raise InputError(
                f"pool {one}: its forward passes take {min(info.tokens for info in infos)} tokens, the study's {tokens}"
            )
        return Joined(ray.get_actor(f"{one}/router", namespace=NAMESPACE), infos, content["gpus"])
    raise InputError("; ".join(wrong))


def _other(has: LMSource, wanted: LMSource) -> str | None:
    """In what a pool's LM is not the one that is wanted; None where it is."""
    if not wanted.same(has.digest) and not has.same(wanted.digest):
        return f"has the LM {has.name}, not {wanted.name}"
    for key in DECIDING:
        mine, theirs = getattr(has.settings, key), getattr(wanted.settings, key)
        if mine != theirs:
            return f"has {has.name} with --lm {key}={mine}, not {theirs}"
    return None


class Touch:
    """Says from time to time that a study has use for its pool, until it is closed."""

    def __init__(self, router: Any) -> None:
        self.router = router
        self.closed = threading.Event()
        threading.Thread(target=self._run, name="rayprompt-touch", daemon=True).start()

    def _run(self) -> None:
        while not self.closed.wait(TOUCH_SECONDS):
            if not ray.is_initialized():
                return
            with contextlib.suppress(Exception):  # the next one will do
                ray.get(self.router.touch.remote(), timeout=TOUCH_SECONDS)

    def close(self) -> None:
        """The study has no more use for it."""
        self.closed.set()
