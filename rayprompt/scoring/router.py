"""The router: hands orders to free scorers, fairly between searches, by their speed. Async, light, without torch.

It holds nothing that cannot be rebuilt: queued orders belong to callers, who wait for the answer. Orders and answers
are bytes to it: it never looks inside. Scorers come and go while it runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rayprompt.errors import ScoringError, last_line
from rayprompt.scoring.metrics import PoolMeter

RESTART_POLL_SECONDS = 0.5
Answer = tuple[bytes | None, int, int]  # what a scorer answered; scorers that had the order; lanes of the pool now
MOST_TRIES = 3  # of an order: one that takes its scorer down with it must not go round for ever
FIRST_PATIENCE = 600.0  # seconds that a scorer may be silent for before it is known what a pass takes
LEAST_PATIENCE = 60.0
PATIENCE_ORDERS = 30.0  # times what its order should take
HEALTH_SECONDS = 10.0  # in which a scorer says how far it is; one whose process stands still does not
MEMORY = 0.8  # of averages, an order


@dataclass
class _Job:
    search: str
    order: bytes
    part: list[Any] | None
    soft: list[Any] | None
    passes: int
    answer: asyncio.Future[Answer]
    tries: int = 0
    charged: float = 0.0  # to its search, until it is known what it took


@dataclass
class Member:
    """A scorer as the router knows it.

    Attributes:
        lanes: orders that it runs side by side; one more is at hand, so that it never waits for the next.
        jobs: what it has in its hands, and since when.
        slowness: what its work takes, 1 is the pool's average; what is not known yet counts as 1.
        done, passes: orders and forward passes that it has answered.
        restarts: how often it was lost, and ``stuck`` how often that was because it stood still.
        leaving: it gets no more orders.
    """

    name: str
    handle: Any
    lanes: int
    jobs: dict[int, tuple[_Job, float]] = field(default_factory=dict)
    slowness: float = 1.0
    done: int = 0
    passes: int = 0
    seconds: float = 0.0
    restarts: int = 0
    stuck: int = 0
    alive: bool = True
    gone: bool = False
    leaving: bool = False
    last_done: float = 0.0
    moved: float = 0.0  # when it was last seen to get on
    progress: int = -1
    joined: float = field(default_factory=time.monotonic)

    @property
    def speed(self) -> float:
        return 1.0 / max(self.slowness, 1e-3)

    @property
    def free(self) -> bool:
        return self.alive and not self.leaving and len(self.jobs) <= self.lanes


class Router:
    """Dispatches orders; made into an async Ray actor by the pool.

    Every scorer has at most one order more than it has lanes, so that it never waits for the next and none piles up
    behind a slow one. An order goes to the scorer that should have it done first; a slow one gets none of the last
    that the others will have done before it. The search goes first that has had the least of the scorers' time. An
    order on a scorer that dies goes to another one; the scorer is asked again until Ray has restarted it. One that
    stands still is killed, so that Ray restarts it.

    Args:
        scorers: (name, lanes) of each.
        model: the LM's name, for metrics.
        namespace: where their names are known; None is the caller's.
        patience: seconds that a scorer may stand still; None goes by what passes take.
        kept: somebody replaces scorers that are gone for good: wait for others instead of giving up.
    """

    def __init__(
        self,
        scorers: Sequence[tuple[str, int]],
        model: str = "",
        namespace: str | None = None,
        patience: float | None = None,
        kept: bool = False,
    ) -> None:
        self.namespace = namespace
        self.patience = patience
        self.kept = kept
        self.members: dict[str, Member] = {}
        self.queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self.served: dict[str, float] = {}  # search -> scorers' seconds that it has had, from where it came in
        self.now = 0.0  # how much the search has had whose turn it was last
        self.behind: dict[str, int] = {}  # forward passes of a search that are still to come
        self.pass_seconds: dict[str, float] = {}  # of a search, on a scorer of speed 1
        self.lost: str | None = None
        self.restarts = 0
        self.stuck = 0
        self.used = time.monotonic()
        self.pressed: float | None = None  # since when there are more orders than scorers take
        self.pressed_seconds = 0.0  # how long there were, before that
        self.background: set[asyncio.Task[None]] = set()
        self.watching: asyncio.Task[None] | None = None
        self.meter = PoolMeter(model, self._state, self._of_scorers)
        self._set(scorers)

    async def run(
        self,
        search: str,
        order: bytes,
        part: list[Any] | None,
        soft: list[Any] | None = None,
        passes: int = 1,
        behind: int = 0,
    ) -> Answer:
        """Have an order of so many forward passes scored for ``search``, which has so many more passes ``behind`` it.

        The answer is None if the scorer wants the part's examples.

        Raises:
            ScoringError: the LM raised, or no scorer is left.
        """
        if self.lost:
            raise ScoringError(self.lost)
        job = _Job(search, order, part, soft, passes, asyncio.get_running_loop().create_future())
        if search not in self.queues:
            self.queues[search] = deque()
            self.served[search] = max(self.served.get(search, 0.0), self.now)
        self.queues[search].append(job)
        self.behind[search] = behind
        self._dispatch()
        self.meter.wake()
        if self.watching is None:
            self.watching = asyncio.get_running_loop().create_task(self._watch())
        began = self.used = time.monotonic()
        answer = await job.answer
        self.used = time.monotonic()
        self.meter.took(self.used - began)
        return answer

    async def members_are(self, scorers: Sequence[tuple[str, int]]) -> None:
        """From now on these are the scorers. One that is left out keeps what it has in its hands, and gets no more."""
        self._set(scorers)
        self._dispatch()

    async def give_up(self, reason: str) -> None:
        """There will be no scorer: tell all who wait."""
        self._give_up(reason)

    async def names(self) -> list[str]:
        """Of the scorers that take orders."""
        return [m.name for m in self.members.values() if m.alive and not m.leaving]

    async def touch(self) -> None:
        """Somebody has use for the pool, though no order."""
        self.used = time.monotonic()

    async def stats(self) -> dict[str, int]:
        """Queue depth, orders in flight, scorers alive, restarts."""
        return {
            "queued": sum(len(q) for q in self.queues.values()),
            "in_flight": sum(len(m.jobs) for m in self.members.values()),
            "alive": sum(m.alive for m in self.members.values()),
            "restarts": self.restarts,
        }

    async def status(self) -> dict[str, Any]:
        """All that is known of the pool at work; times are seconds."""
        now = time.monotonic()
        return {
            **await self.stats(),
            "stuck": self.stuck,
            "idle": 0.0 if self._busy else now - self.used,
            "pressed": self.pressed_seconds + (0.0 if self.pressed is None else now - self.pressed),
            "clock": now,
            "searches": {name: len(queue) for name, queue in self.queues.items()},
            "scorers": {
                m.name: {
                    "alive": m.alive and not m.gone,
                    "gone": m.gone,
                    "leaving": m.leaving,
                    "in_flight": len(m.jobs),
                    "speed": m.speed,
                    "orders": m.done,
                    "passes": m.passes,
                    "passes_per_second": m.passes / m.seconds if m.seconds else 0.0,
                    "restarts": m.restarts,
                    "stuck": m.stuck,
                    "age": now - m.joined,
                    "idle": 0.0 if m.jobs else now - max(m.last_done, m.joined),
                }
                for m in self.members.values()
            },
        }

    @property
    def _busy(self) -> bool:
        return bool(self.queues) or any(m.jobs for m in self.members.values())

    @property
    def _lanes(self) -> int:
        return sum(m.lanes for m in self.members.values() if not m.leaving and not m.gone)

    def _state(self) -> dict[str, float]:
        return {
            "rayprompt_queue_depth": sum(len(q) for q in self.queues.values()),
            "rayprompt_in_flight": sum(len(m.jobs) for m in self.members.values()),
            "rayprompt_scorers_alive": sum(m.alive for m in self.members.values()),
            "rayprompt_restarts": self.restarts,
            "rayprompt_scorers_stuck": self.stuck,
        }

    def _of_scorers(self) -> dict[str, dict[str, float]]:
        return {
            m.name: {
                "rayprompt_scorer_passes": m.passes,
                "rayprompt_scorer_in_flight": len(m.jobs),
                "rayprompt_scorer_restarts": m.restarts,
            }
            for m in self.members.values()
        }

    def _set(self, scorers: Iterable[tuple[str, int]]) -> None:
        wanted = dict(scorers)
        for name, lanes in wanted.items():
            if name in self.members:
                self.members[name].leaving = False
                continue
            # By name: a handle among the arguments would keep Ray from restarting a router that dies.
            try:
                self.members[name] = Member(name, ray.get_actor(name, namespace=self.namespace), lanes)
            except ValueError:  # it has gone in the meantime: whoever keeps the pool will say so
                continue
        for name, member in list(self.members.items()):
            member.leaving = name not in wanted
            if member.leaving and not member.jobs:
                del self.members[name]

    # Who gets which order.

    def _cost(self, job: _Job) -> float:
        known = self.pass_seconds.get(job.search)
        if known is None:
            known = sum(self.pass_seconds.values()) / len(self.pass_seconds) if self.pass_seconds else 1.0
        return known * job.passes

    def _load(self, member: Member) -> float:
        return sum(self._cost(job) for job, _ in member.jobs.values())

    def _dispatch(self) -> None:
        """Give waiting orders to free scorers."""
        while self.queues:
            free = [m for m in self.members.values() if m.free]
            if not free:
                break
            search = min(self.queues, key=self.served.__getitem__)
            job = self.queues[search][0]
            cost = self._cost(job)
            member, finish = min(((m, (self._load(m) + cost) / m.speed) for m in free), key=lambda found: found[1])
            if self._others_sooner(member, finish):
                break
            self.queues[search].popleft()
            self.now = self.served[search]
            self.served[search] += cost
            job.charged = cost
            if not self.queues[search]:
                del self.queues[search]
                self._forget()
            member.jobs[id(job)] = (job, time.monotonic())
            if len(member.jobs) == 1:
                member.moved = time.monotonic()
            self._spawn(self._work(member, job))
        if not self.queues:
            if self.pressed is not None:
                self.pressed_seconds += time.monotonic() - self.pressed
            self.pressed = None
        elif self.pressed is None:
            self.pressed = time.monotonic()

    def _others_sooner(self, member: Member, finish: float) -> bool:
        """Whether the other scorers would have all that waits done before this one has done the next order."""
        others = [m for m in self.members.values() if m is not member and m.alive and not m.leaving]
        speed = sum(m.speed for m in others)
        if not speed or not any(m.speed > 1.5 * member.speed for m in others):
            return False
        waiting = sum(self._cost(job) for queue in self.queues.values() for job in queue)
        waiting += sum(self.behind.get(name, 0) * self.pass_seconds.get(name, 0.0) for name in self.queues)
        return (sum(map(self._load, others)) + waiting) / speed < finish

    def _forget(self) -> None:
        """What searches have had that are long done with it."""
        if len(self.served) > 1000:
            self.served = {name: had for name, had in self.served.items() if name in self.queues or had > self.now}
            self.pass_seconds = {name: took for name, took in self.pass_seconds.items() if name in self.served}
            self.behind = {name: passes for name, passes in self.behind.items() if name in self.served}

    async def _work(self, member: Member, job: _Job) -> None:
        job.tries += 1
        began = time.monotonic()
        try:
            result = await member.handle.score.remote(job.order, job.part, job.soft)
            self._learn(member, job, began, fetched=result is None or job.part is not None)
            if not job.answer.done():
                job.answer.set_result((result, job.tries, max(1, self._lanes)))
        except RayActorError as error:
            self._scorer_lost(member)
            if self.lost:
                self._fail(job, self.lost)
            elif job.tries >= MOST_TRIES and not member.leaving:
                self._fail(job, f"an order was lost with its scorer {job.tries} times: {last_line(error)}")
            else:
                self.queues.setdefault(job.search, deque()).appendleft(job)
                self.served.setdefault(job.search, self.now)
        except RayTaskError as error:
            self._fail(job, f"scoring failed: {last_line(error)}")
        except Exception as error:  # whatever it is, somebody waits for the answer
            self._fail(job, f"scoring failed: {type(error).__name__}: {last_line(error)}")
        finally:
            member.jobs.pop(id(job), None)
            if member.leaving and not member.jobs:
                self.members.pop(member.name, None)
            self._dispatch()

    def _learn(self, member: Member, job: _Job, began: float, *, fetched: bool) -> None:
        """What a pass of the search takes, and how fast the scorer is beside the others."""
        now = time.monotonic()
        took = max(1e-6, now - max(began, member.last_done)) / job.passes
        member.last_done = member.moved = now
        member.done, member.passes, member.seconds = (
            member.done + 1,
            member.passes + job.passes,
            member.seconds + took * job.passes,
        )
        if fetched:  # the examples, once: that says nothing of the scorer
            return
        if job.search in self.served:
            self.served[job.search] += took * job.passes / member.slowness - job.charged
        known = self.pass_seconds.get(job.search)
        if known is None:
            self.pass_seconds[job.search] = took / member.slowness
            return
        self.pass_seconds[job.search] = MEMORY * known + (1 - MEMORY) * took / member.slowness
        # Several lanes end at once: times are averaged, not speeds, of which one would be next to infinite.
        member.slowness = MEMORY * member.slowness + (1 - MEMORY) * min(took / known, 100.0)
        # They are beside each other: what they have in common belongs to what passes take.
        mean = sum(m.slowness for m in self.members.values()) / len(self.members)
        if member.name in self.members and mean > 0:
            for other in self.members.values():
                other.slowness /= mean
            for name in self.pass_seconds:
                self.pass_seconds[name] *= mean

    def _fail(self, job: _Job, reason: str) -> None:
        if not job.answer.done():
            job.answer.set_exception(ScoringError(reason))

    # Scorers that die, or stand still.

    def _scorer_lost(self, member: Member) -> None:
        if not member.alive or member.gone:
            return
        member.alive = False
        member.restarts += 1
        self.restarts += 1
        self._spawn(self._await_restart(member))

    async def _await_restart(self, member: Member) -> None:
        while True:
            try:
                await member.handle.ready.remote()
                member.alive, member.progress = True, -1
                break
            except ActorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)
            except Exception as died:
                member.gone = True
                if all(m.gone for m in self.members.values()) and not self.kept:
                    self._give_up(f"every scorer is lost: {last_line(died)}")
                return
        self._dispatch()

    def _give_up(self, reason: str) -> None:
        self.lost = reason
        for queue in self.queues.values():
            for job in queue:
                self._fail(job, reason)
        self.queues.clear()

    async def _watch(self) -> None:
        """As long as there is work: look after scorers that have had an order for long."""
        while self._busy:
            await asyncio.sleep(min(5.0, (self.patience or LEAST_PATIENCE) / 4))
            await asyncio.gather(*(self._look_after(m) for m in list(self.members.values()) if m.alive and m.jobs))
        self.watching = None

    async def _look_after(self, member: Member) -> None:
        patience = self._patience(member)
        if time.monotonic() - member.moved < patience / 2:
            return
        try:
            progress = await asyncio.wait_for(member.handle.progress.remote(), min(HEALTH_SECONDS, patience))
        except RayActorError:  # who waits for its order hears of it, too
            return
        except Exception:
            progress = member.progress
        if progress != member.progress:
            member.progress, member.moved = progress, time.monotonic()
        elif time.monotonic() - member.moved > patience and member.jobs and member.alive:
            member.stuck += 1
            self.stuck += 1
            member.moved = time.monotonic()
            ray.kill(member.handle, no_restart=False)

    def _patience(self, member: Member) -> float:
        """Seconds that a scorer may stand still with what it has in its hands."""
        if self.patience is not None:
            return self.patience
        if any(job.search not in self.pass_seconds for job, _ in member.jobs.values()):
            return FIRST_PATIENCE
        longest = max((self._cost(job) / member.speed for job, _ in member.jobs.values()), default=0.0)
        return max(LEAST_PATIENCE, PATIENCE_ORDERS * longest)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
