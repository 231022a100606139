"""The keeper of a pool: starts scorers, replaces those that are gone for good, lets the pool grow and shrink.

Scorers that find no room wait for it in Ray, where an autoscaler sees them: asking for machines is making scorers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from rayprompt.durations import seconds_of
from rayprompt.errors import ScoringError, last_line
from rayprompt.lm.source import LMSource
from rayprompt.scoring.actor import ScorerActor, ScorerInfo
from rayprompt.scoring.cluster import PoolPlan, most_resources
from rayprompt.scoring.router import Router
from rayprompt.scoring.size import room_for

START_TIMEOUT_SECONDS = 600.0
MOST_START_DEATHS = 5  # of a scorer while it loads its LM
RESTART_PAUSE_SECONDS = 0.5
TEND_SECONDS = 1.0
GROW_SECONDS = 5.0  # that are looked back on: was there more to do than scorers take
GROW_SHARE = 0.5  # for so much of the time, before there are more; a search's generation ends, and the next begins
IDLE_SECONDS = 300.0  # without work, before there are fewer
RESTARTING = "is restarting"  # what Ray says of a call to an actor that is not there yet
STRAGGLERS = 3.0  # times what the first took to load their LM: as long the others are waited for, if they need not be
NAMESPACE = "rayprompt"  # of pools that outlive who started them

logger = logging.getLogger(__name__)


@dataclass
class Slot:
    """A scorer that was started: loading until it has said what it is."""

    name: str
    handle: Any
    ready: Any
    info: ScorerInfo | None = None
    deaths: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class KeeperPlan:
    """What a keeper is told.

    Attributes:
        source: the LM.
        plan: how many scorers, and what each asks of Ray.
        name: what the names of actors begin with.
        actor: the class of the scorers.
        shared: they outlive who started them.
        idle: seconds without work after which the pool is made as small as may be.
        patience: seconds that a scorer may stand still before it is replaced; None goes by what passes take.
    """

    source: LMSource
    plan: PoolPlan
    name: str
    actor: type[ScorerActor] = ScorerActor
    shared: bool = False
    idle: float = IDLE_SECONDS
    patience: float | None = None

    @classmethod
    def of(cls, source: LMSource, plan: PoolPlan, actor: type[ScorerActor]) -> KeeperPlan:
        """For the pool of one study."""
        name = f"scorer-{uuid.uuid4().hex[:12]}"
        idle = seconds_from("RAYPROMPT_IDLE") or IDLE_SECONDS
        return cls(source, plan, name, actor, idle=idle, patience=seconds_from("RAYPROMPT_PATIENCE"))


class Keeper:
    """Keeps as many scorers as there should be, and tells the router of them."""

    def __init__(self, plan: KeeperPlan) -> None:
        self.plan = plan
        self.size = plan.plan.size
        self.target = plan.plan.count
        self.slots: dict[str, Slot] = {}
        self.number = 0
        self.deaths = 0  # of scorers that could not load, in a row
        self.refused: str | None = None
        self.remarks: list[str] = []
        self.facts: ScorerInfo | None = None
        self.router: Any = None
        self.small = False  # made so because nobody had use for it
        self.looks: deque[tuple[float, float]] = deque()  # the router's clock, and for how long orders have waited

    def adopt(self) -> list[ScorerInfo]:
        """Take over the scorers and the router that another keeper of this name has left; nothing if there are none."""
        try:
            self.router = ray.get_actor(f"{self.plan.name}/router", namespace=NAMESPACE)
        except ValueError:
            return []
        known = re.compile(f"{re.escape(self.plan.name)}-([0-9]+)")
        for found in ray.util.list_named_actors(all_namespaces=True):
            number = known.fullmatch(found["name"]) if found["namespace"] == NAMESPACE else None
            if number:
                handle = ray.get_actor(found["name"], namespace=NAMESPACE)
                self.slots[found["name"]] = Slot(found["name"], handle, handle.ready.remote())
                self.number = max(self.number, int(number[1]) + 1)
        self.target = max(self.size.least, len(self.slots))
        self._make()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self.facts is None and time.monotonic() < deadline:
            self._hear(1.0)
            if self.facts is None and not self.slots:
                self._make()
        return [slot.info for slot in self.slots.values() if slot.info is not None]

    # The start.

    def start(self) -> list[ScorerInfo]:
        """Start scorers and the router; returns when as many as there must be have loaded the LM.

        Raises:
            ScoringError: an LM did not load, or there was no room in time.
        """
        try:
            self._make()
            infos = self._wait_ready()
        except BaseException:
            self.stop()
            raise
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 10_000}
        if self.plan.shared:
            options |= {"name": f"{self.plan.name}/router", "namespace": NAMESPACE, "lifetime": "detached"}
        self.router = (
            ray.remote(Router)
            .options(scheduling_strategy=here(), **options)
            .remote(self._members(), self.plan.source.name, self._namespace, self.plan.patience, True)
        )
        return infos

    @property
    def _namespace(self) -> str | None:
        return NAMESPACE if self.plan.shared else None

    def _members(self) -> list[tuple[str, int]]:
        return [(slot.name, slot.info.lanes) for slot in self.slots.values() if slot.info is not None]

    def _make(self) -> None:
        """Start scorers until there are as many as there should be."""
        plan = self.plan.plan
        while len(self.slots) < self.target:
            name = f"{self.plan.name}-{self.number}"
            self.number += 1
            options: dict[str, Any] = {"name": name}
            if self.plan.shared:
                options |= {"namespace": NAMESPACE, "lifetime": "detached"}
            remote: Any = ray.remote
            handle: Any = (
                remote(concurrency_groups={"health": 1})(self.plan.actor)
                .options(
                    **options,
                    num_cpus=plan.cpus,
                    num_gpus=plan.gpus,
                    max_restarts=-1,
                    max_task_retries=0,
                    max_concurrency=plan.lanes + 1,
                    scheduling_strategy="DEFAULT",  # never captured by a trial's placement group
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}},
                )
                .remote(self.plan.source, plan.lanes, plan.gpus > 0)
            )
            self.slots[name] = Slot(name, handle, handle.ready.remote())

    def _wait_ready(self) -> list[ScorerInfo]:
        """Wait for those that there must be, and a while for the others that were started."""
        least, started, enough = self.size.least, time.monotonic(), float("inf")
        while True:
            self._hear(1.0)
            infos = [slot.info for slot in self.slots.values() if slot.info is not None]
            now = time.monotonic()
            if self.refused is not None:
                raise ScoringError(self.refused)
            if len(infos) >= min(least, self.target) and enough == float("inf"):
                enough = now + STRAGGLERS * (now - started) + 2.0
            if len(infos) == self.target or now > enough:
                return infos
            if now - started > START_TIMEOUT_SECONDS:
                raise ScoringError(
                    f"{self.target - len(infos)} of {self.target} scorers were not ready in "
                    f"{START_TIMEOUT_SECONDS:.0f} s"
                )

    def _hear(self, timeout: float) -> None:
        """Who has loaded the LM, and who could not."""
        loading = {slot.ready: slot for slot in self.slots.values() if slot.info is None}
        if not loading:
            return
        for reference in ray.wait(list(loading), num_returns=len(loading), timeout=timeout)[0]:
            slot = loading[reference]
            try:
                info: ScorerInfo = ray.get(reference)
            except ActorUnavailableError as error:  # one that dies while it loads is started again by Ray
                if RESTARTING not in str(error):  # one that waits for its restart, or for room, has not died again
                    slot.deaths += 1
                if slot.deaths > MOST_START_DEATHS:
                    self._drop(slot)
                    self._refuse(f"the scoring actors die while they load {self._lm}: {last_line(error)}")
                    continue
                time.sleep(RESTART_PAUSE_SECONDS if self.router is None else 0.0)
                slot.ready = slot.handle.ready.remote()
            except (RayActorError, RayTaskError) as error:
                reason = last_line(error).removeprefix(f"{ScoringError.__module__}.{ScoringError.__name__}: ")
                self._drop(slot)
                self._refuse(f"the LM {self._lm} did not load in a scoring actor: {reason}")
            else:
                self._take_in(slot, info)

    @property
    def _lm(self) -> str:
        return self.plan.source.name

    def _refuse(self, reason: str) -> None:
        """A scorer that cannot be: the end of a start; of a pool at work only if it has no other, many times."""
        self.deaths += 1
        self._remark(reason)
        if self.router is None:
            self.refused = reason
        elif self.deaths > MOST_START_DEATHS and not self._members():
            self.router.give_up.remote(f"every scorer is lost: {reason}")

    def _take_in(self, slot: Slot, info: ScorerInfo) -> None:
        """One more scorer, if what it says of itself fits: other devices give other last bits."""
        facts = self.facts
        # At the start passes are made as large as all have room for; later they are what they are.
        why = None if facts is None else unlike(facts if self.router else replace(facts, tokens=info.tokens), info)
        if why is not None:
            if self.router is None:
                self.refused = f"scorers {why}; one search uses one device class"
                return
            self._remark(f"a scorer that came later was refused: they {why}")
            self._drop(slot)
            self.target = max(self.size.least, min(self.target, len(self.slots)))
            return
        slot.info, self.deaths = info, 0
        room = info if facts is None or info.tokens < facts.tokens else facts
        if self.router is None or facts is None:
            self.facts = room

    def _drop(self, slot: Slot) -> None:
        self.slots.pop(slot.name, None)
        with contextlib.suppress(Exception):
            ray.kill(slot.handle)

    def _remark(self, line: str) -> None:
        if line not in self.remarks:
            self.remarks = [*self.remarks[-19:], line]
            logger.warning("%s", line)

    # While it works.

    def tend(self) -> dict[str, Any]:
        """One look after the pool; gives the router's status."""
        self._hear(0.0)
        status: dict[str, Any] = ray.get(self.router.status.remote(), timeout=10.0)
        for name, scorer in status["scorers"].items():
            if scorer["gone"] and name in self.slots:  # it could not load when Ray started it again
                self._drop(self.slots[name])
                self._refuse(f"a scorer could not be started again with {self._lm}")
        self._resize(status)
        if self.deaths <= MOST_START_DEATHS:
            self._make()
        ray.get(self.router.members_are.remote(self._members()), timeout=10.0)
        return status

    def _resize(self, status: dict[str, Any]) -> None:
        if not self.size.varies:
            return
        loading = any(slot.info is None for slot in self.slots.values())
        most = self._most()
        if self.small and not status["idle"]:
            self.small = False
        if self._pressed(status) and not loading:
            self.target = max(self.target, min(2 * self.target, most))
            self.looks.clear()
        elif self.size.most is None and not self.small:  # machines that join are used
            self.target = max(self.target, room_for(self.plan.plan.gpus, ray.cluster_resources()) if self._gpus else 0)
        if status["idle"] > self.plan.idle and self.target > self.size.least:
            self.target, self.small = self.size.least, True
            # Those that wait for room first, then the youngest.
            order = sorted(self.slots.values(), key=lambda slot: (slot.info is not None, slot.since))
            surplus = [s for s in order if s.info is None]
            surplus += [s for s in reversed(order) if s.info is not None]
            for slot in surplus[: len(self.slots) - self.target]:
                self._drop(slot)

    def _pressed(self, status: dict[str, Any]) -> bool:
        """Whether orders have waited for scorers for much of the last seconds."""
        if self.looks and (status["pressed"] < self.looks[-1][1] or status["clock"] < self.looks[-1][0]):
            self.looks.clear()  # another router
        self.looks.append((status["clock"], status["pressed"]))
        while len(self.looks) > 1 and self.looks[1][0] <= status["clock"] - GROW_SECONDS:
            self.looks.popleft()
        seconds, waited = (now - before for now, before in zip(self.looks[-1], self.looks[0], strict=True))
        return seconds >= GROW_SECONDS and waited >= GROW_SHARE * seconds

    @property
    def _gpus(self) -> bool:
        return self.plan.plan.gpus > 0

    def _most(self) -> int:
        """As many as the size allows, and as there is room for on what the cluster has, or may come to have."""
        if self.size.most is not None:
            return self.size.most
        if not self._gpus:
            return self.target
        return max(self.target, room_for(self.plan.plan.gpus, most_resources()))

    def stop(self) -> None:
        """Stop all actors."""
        for slot in list(self.slots.values()):
            self._drop(slot)
        if self.router is not None:
            with contextlib.suppress(Exception):
                ray.kill(self.router)


class KeeperThread:
    """A keeper at work beside the driver. Closed, it ends the pool."""

    def __init__(self, keeper: Keeper, each: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.keeper = keeper
        self.each = each
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._run, name="rayprompt-keeper", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.closed.wait(TEND_SECONDS):
            if not ray.is_initialized():
                return
            try:
                status = self.keeper.tend()
                if self.each is not None:
                    self.each(status)
            except (RayActorError, GetTimeoutError):  # the router is being started again
                continue
            except Exception as error:  # the pool at work does not need it
                if not self.closed.is_set():
                    logger.warning("the keeper of the scoring pool: %s: %s", type(error).__name__, last_line(error))

    def close(self) -> None:
        """No more looks after the pool; its actors are stopped."""
        self.closed.set()
        if self.thread is not threading.current_thread():
            self.thread.join(timeout=30.0)
        self.keeper.stop()


def seconds_from(variable: str) -> float | None:
    """Seconds that an environment variable holds; None where it is not set.

    Raises:
        InputError: it holds something else.
    """
    text = os.environ.get(variable)
    return None if text is None else seconds_of(text, variable)


def here() -> Any:
    """Where actors that hold no machine are put: beside who starts them, if that can be; in no placement group."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def unlike(facts: ScorerInfo, info: ScorerInfo) -> str | None:
    """In what a scorer differs from the others so that scores would not be the same; None where it does not."""
    here, there = (one.machine or one.device for one in (facts, info))
    if here != there:
        return f"run on {' and '.join(sorted({here, there}))}"
    if info.dtype != facts.dtype:
        return f"compute in {facts.dtype} and {info.dtype}"
    if info.tokens < facts.tokens:
        return f"have room for passes of {facts.tokens} and {info.tokens} tokens (--lm tokens={info.tokens} suits both)"
    return None
