"""The router: hands orders to free scorers, fairly between searches. Async, light, without torch.

It holds nothing that cannot be rebuilt: queued orders belong to callers, who wait for the answer. Orders and answers
are bytes to it: it never looks inside.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rayprompt.errors import ScoringError
from rayprompt.scoring.metrics import PoolMeter

RESTART_POLL_SECONDS = 0.5
Answer = tuple[bytes | None, int]  # what a scorer answered, and to how many scorers the order was sent
MOST_TRIES = 3  # of an order: one that takes its scorer down with it must not go round for ever


@dataclass
class _Job:
    order: bytes
    part: list[Any] | None
    soft: list[Any] | None
    answer: asyncio.Future[Answer]
    tries: int = 0


class Router:
    """Dispatches orders; made into an async Ray actor by the pool.

    Every scorer has at most ``in_flight`` orders, so that it never waits for the next and none piles up behind a
    slow one. Searches take turns. An order on a scorer that dies goes to another one; the scorer is asked again until
    Ray has restarted it.
    """

    def __init__(self, scorers: list[str], in_flight: int, model: str = "") -> None:
        # By name: a handle among the arguments would keep Ray from restarting a router that dies.
        self.scorers: list[Any] = [ray.get_actor(name) for name in scorers]
        self.in_flight = in_flight
        self.busy = [0] * len(scorers)
        self.alive = [True] * len(scorers)
        self.queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self.lost: str | None = None
        self.restarts = 0
        self.background: set[asyncio.Task[None]] = set()
        self.meter = PoolMeter(model, self._state)

    async def run(self, search: str, order: bytes, part: list[Any] | None, soft: list[Any] | None = None) -> Answer:
        """Have an order scored for ``search``; the answer is None if the scorer wants the part's examples.

        Raises:
            ScoringError: the LM raised, or no scorer is left.
        """
        if self.lost:
            raise ScoringError(self.lost)
        job = _Job(order, part, soft, asyncio.get_running_loop().create_future())
        self.queues.setdefault(search, deque()).append(job)
        self._dispatch()
        self.meter.wake()
        began = time.perf_counter()
        answer = await job.answer
        self.meter.took(time.perf_counter() - began)
        return answer

    async def stats(self) -> dict[str, int]:
        """Queue depth, orders in flight, scorers alive, restarts."""
        return {
            "queued": sum(len(q) for q in self.queues.values()),
            "in_flight": sum(self.busy),
            "alive": sum(self.alive),
            "restarts": self.restarts,
        }

    def _state(self) -> dict[str, float]:
        return {
            "rayprompt_queue_depth": sum(len(q) for q in self.queues.values()),
            "rayprompt_in_flight": sum(self.busy),
            "rayprompt_scorers_alive": sum(self.alive),
            "rayprompt_restarts": self.restarts,
        }

    def _dispatch(self) -> None:
        """Give waiting orders to free scorers: the least busy scorer, the search whose turn it is."""
        while self.queues:
            free = [i for i, alive in enumerate(self.alive) if alive and self.busy[i] < self.in_flight]
            if not free:
                return
            scorer = min(free, key=lambda i: self.busy[i])
            search, queue = next(iter(self.queues.items()))
            job = queue.popleft()
            if queue:
                self.queues.move_to_end(search)
            else:
                del self.queues[search]
            self.busy[scorer] += 1
            self._spawn(self._work(scorer, search, job))

    async def _work(self, scorer: int, search: str, job: _Job) -> None:
        job.tries += 1
        try:
            result = await self.scorers[scorer].score.remote(job.order, job.part, job.soft)
            if not job.answer.done():
                job.answer.set_result((result, job.tries))
        except RayActorError as error:
            self._scorer_lost(scorer)
            if self.lost:
                self._fail(job, self.lost)
            elif job.tries >= MOST_TRIES:
                self._fail(job, f"an order was lost with its scorer {job.tries} times: {_last_line(error)}")
            else:
                self.queues.setdefault(search, deque()).appendleft(job)
        except RayTaskError as error:
            self._fail(job, f"scoring failed: {_last_line(error)}")
        except Exception as error:  # whatever it is, somebody waits for the answer
            self._fail(job, f"scoring failed: {type(error).__name__}: {_last_line(error)}")
        finally:
            self.busy[scorer] -= 1
            self._dispatch()

    def _fail(self, job: _Job, reason: str) -> None:
        if not job.answer.done():
            job.answer.set_exception(ScoringError(reason))

    def _scorer_lost(self, scorer: int) -> None:
        if not self.alive[scorer]:
            return
        self.alive[scorer] = False
        self.restarts += 1
        self._spawn(self._await_restart(scorer))

    async def _await_restart(self, scorer: int) -> None:
        while True:
            try:
                await self.scorers[scorer].ready.remote()
                self.alive[scorer] = True
                break
            except ActorUnavailableError:
                await asyncio.sleep(RESTART_POLL_SECONDS)
            except Exception as died:
                self.scorers[scorer] = None
                if all(s is None for s in self.scorers):
                    self._give_up(f"every scorer is lost: {_last_line(died)}")
                return
        self._dispatch()

    def _give_up(self, reason: str) -> None:
        self.lost = reason
        for queue in self.queues.values():
            for job in queue:
                self._fail(job, reason)
        self.queues.clear()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
