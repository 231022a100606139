"""The router: who gets which order, by speed and fairly; what happens to scorers that stand still or come and go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import ray

from rayprompt.errors import ScoringError
from rayprompt.scoring.router import Router


class Call:
    """A method of an actor handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class TimedScorer:
    """Stands for a scorer with one lane that takes so many seconds for a pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []
        self.lane = asyncio.Lock()
        self.stands = False
        self.killed = asyncio.Event()
        self.loads = itertools.count()
        self.score, self.ready, self.progress = Call(self._score), Call(self._ready), Call(self._progress)

    async def _score(self, order: bytes, part: None, soft: None) -> bytes:
        async with self.lane:
            self.asked.append(order.decode())
            if self.stands:
                await self.killed.wait()
                self.stands = False
                raise ray.exceptions.ActorUnavailableError("killed", b"0" * 16)
            await asyncio.sleep(self.seconds * int(order.decode().rpartition(":")[2] or 1))
            return b"scores"

    async def _ready(self) -> bytes:
        return b"ready"

    async def _progress(self) -> int:
        return 7 if self.stands else next(self.loads)


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> dict[str, TimedScorer]:
    """By name, what the router finds."""
    found: dict[str, TimedScorer] = {}

    def get_actor(name: str, namespace: str | None = None) -> TimedScorer:
        if name not in found:
            raise ValueError(f"no actor {name}")
        return found[name]

    monkeypatch.setattr("rayprompt.scoring.router.ray.get_actor", get_actor)
    monkeypatch.setattr(
        "rayprompt.scoring.router.ray.kill", lambda handle, no_restart: handle.killed.set() if not no_restart else None
    )
    return found


async def ask(router: Router, search: str, count: int, passes: int = 1) -> None:
    await asyncio.gather(
        *(router.run(search, f"{search}:{passes}".encode(), None, passes=passes) for _ in range(count))
    )


def test_orders_go_by_speed(scorers: dict[str, TimedScorer]) -> None:
    """A scorer ten times as fast does about ten times as much, and none of the last waits for the slow one."""
    scorers.update(fast=TimedScorer(0.004), slow=TimedScorer(0.04))

    async def play() -> list[dict[str, Any]]:
        router = Router([("fast", 1), ("slow", 1)])
        await ask(router, "a", 20)  # now their speeds are known
        before = len(scorers["slow"].asked)
        await ask(router, "a", 3)
        assert len(scorers["slow"].asked) == before, (
            "three orders take the fast one less than the slow one needs for one"
        )
        await ask(router, "a", 110)
        status = await router.status()
        return list(status["scorers"].values())

    fast, slow = asyncio.run(play())
    assert fast["orders"] + slow["orders"] == 133
    assert slow["orders"] < 25
    assert fast["speed"] > 4 * slow["speed"]


def test_one_that_was_slow_once_gets_orders_again(scorers: dict[str, TimedScorer]) -> None:
    """What a caller has not sent yet counts: the end is not near, and a scorer that is idle is tried again."""
    scorers.update({name: TimedScorer(0.002) for name in "abcd"})

    async def play() -> None:
        router = Router([(name, 1) for name in "abcd"])
        await ask(router, "s", 40)
        router.members["d"].slowness = 20.0
        before = len(scorers["d"].asked)
        left = 300
        running: set[asyncio.Future[Any]] = set()
        while left or running:
            while left and len(running) < 16:  # no more at a time, as a pool does it
                left -= 1
                running.add(asyncio.ensure_future(router.run("s", b"s:1", None, behind=left)))
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        assert len(scorers["d"].asked) - before > 40
        assert router.members["d"].slowness < 3.0

    asyncio.run(play())


def test_searches_have_the_same_share_of_time_not_of_orders(scorers: dict[str, TimedScorer]) -> None:
    scorers.update(one=TimedScorer(0.001))

    async def play() -> list[str]:
        router = Router([("one", 0)])
        await asyncio.gather(ask(router, "long", 1, passes=8), ask(router, "short", 1))  # known from here on
        await asyncio.gather(ask(router, "long", 20, passes=8), ask(router, "short", 80))
        return scorers["one"].asked[2:]

    asked = asyncio.run(play())
    assert len(asked) == 100
    half = asked[:50]  # of all orders: by turns it would be 20 and 30
    assert half.count("short:1") > 34, half


def test_one_that_comes_late_does_not_wait_for_what_others_have_had(scorers: dict[str, TimedScorer]) -> None:
    scorers.update(one=TimedScorer(0.001))

    async def play() -> list[str]:
        router = Router([("one", 0)])
        await ask(router, "early", 50)
        await asyncio.gather(ask(router, "early", 20), ask(router, "late", 20))
        return scorers["one"].asked[50:]

    asked = asyncio.run(play())
    first = [name.partition(":")[0] for name in asked[:20]]
    assert 5 <= first.count("late") <= 15, first


def test_a_scorer_that_stands_still_is_killed_and_its_order_goes_on(scorers: dict[str, TimedScorer]) -> None:
    scorers.update(good=TimedScorer(0.001), bad=TimedScorer(0.001))
    scorers["bad"].stands = True

    async def play() -> dict[str, Any]:
        router = Router([("good", 0), ("bad", 0)], patience=0.2)
        await asyncio.wait_for(ask(router, "a", 20), timeout=20)
        return await router.status()

    status = asyncio.run(play())
    assert (status["stuck"], status["restarts"]) == (1, 1)
    assert status["scorers"]["bad"]["stuck"] == 1
    assert status["scorers"]["bad"]["alive"]
    assert status["scorers"]["good"]["stuck"] == 0


def test_a_slow_scorer_that_gets_on_is_left_alone(scorers: dict[str, TimedScorer]) -> None:
    scorers.update(slow=TimedScorer(1.0))

    async def play() -> dict[str, Any]:
        router = Router([("slow", 0)], patience=0.2)
        await asyncio.wait_for(ask(router, "a", 1), timeout=20)
        return await router.status()

    assert asyncio.run(play())["stuck"] == 0


def test_scorers_come_and_go(scorers: dict[str, TimedScorer]) -> None:
    scorers.update({name: TimedScorer(0.002) for name in "abc"})

    async def play() -> None:
        router = Router([("a", 0)])
        work = asyncio.ensure_future(ask(router, "s", 60))
        await asyncio.sleep(0.02)
        await router.members_are([("a", 0), ("b", 0), ("gone", 0)])  # which has died since it was said
        await asyncio.sleep(0.03)
        had = len(scorers["a"].asked)
        await router.members_are([("b", 0), ("c", 0)])  # what a has in its hands it keeps
        await work
        assert len(scorers["a"].asked) <= had + 1
        assert scorers["b"].asked
        assert scorers["c"].asked
        assert sum(len(s.asked) for s in scorers.values()) == 60
        assert set((await router.status())["scorers"]) == {"b", "c"}
        assert (await router.run("s", b"s:1", None))[2] == 1  # with no lane beyond the one at hand, one at least

    asyncio.run(play())


def test_a_pool_that_is_kept_waits_for_another_scorer(scorers: dict[str, TimedScorer]) -> None:
    """All are gone for good: with a keeper the next that joins gets the order, and without hope all are told."""
    scorers.update(dead=TimedScorer(0.001), new=TimedScorer(0.001))

    async def dies(*arguments: Any) -> bytes:
        raise ray.exceptions.ActorDiedError()

    scorers["dead"].score = scorers["dead"].ready = Call(dies)

    async def play() -> None:
        router = Router([("dead", 0)], kept=True)
        waiting = asyncio.ensure_future(router.run("a", b"a:1", None))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert (await router.status())["scorers"]["dead"]["gone"]
        await router.members_are([("new", 0)])
        assert (await waiting)[0] == b"scores"
        await router.members_are([])
        waiting = asyncio.ensure_future(router.run("a", b"a:1", None))
        await asyncio.sleep(0.01)
        await router.give_up("every scorer is lost: no such file")
        with pytest.raises(ScoringError, match="no such file"):
            await waiting

    asyncio.run(play())
