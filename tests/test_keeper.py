"""The keeper: when a pool grows and shrinks, and which scorers it takes in."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rayprompt.errors import InputError
from rayprompt.scoring.actor import ScorerInfo
from rayprompt.scoring.cluster import PoolPlan, plan_scorers
from rayprompt.scoring.keeper import Keeper, KeeperPlan, Slot, seconds_from
from rayprompt.scoring.size import PoolSize
from rayprompt.searcher.problem import Problem

INFO = ScorerInfo("cuda", "bfloat16", 1, "node", 1, 1.0, (0,), None, 4096)


class Played:
    """A keeper whose actors are names, on a cluster with so many GPUs; a step is a second."""

    def __init__(
        self, problem: Problem, size: PoolSize, count: int, gpus: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.gpus = self.limit = gpus
        self.time = self.waited = 0.0
        self.keeper = Keeper(KeeperPlan(problem.lm, PoolPlan(count, 1.0, 0.5, 1, size, gpus), "p", idle=60.0))
        self.keeper.router = SimpleNamespace()
        module = "rayprompt.scoring.keeper"
        monkeypatch.setattr(f"{module}.ray.cluster_resources", lambda: {"GPU": float(self.gpus)})
        monkeypatch.setattr(f"{module}.most_resources", lambda: {"GPU": float(self.limit)})
        monkeypatch.setattr(f"{module}.ray.kill", lambda handle: None)
        self.fill()

    def fill(self) -> None:
        """What finds room is up; what does not, waits for it."""
        keeper = self.keeper
        while len(keeper.slots) < keeper.target:
            name = f"p-{keeper.number}"
            keeper.number += 1
            keeper.slots[name] = Slot(name, None, None)
        for place, slot in enumerate(keeper.slots.values()):
            slot.info = INFO if place < self.gpus else None

    def play(self, seconds: int, pressed: float, idle: float = 0.0) -> tuple[int, int]:
        """So many seconds, orders waiting for that share of them; scorers that are up, and that wait for room."""
        for second in range(seconds):
            self.time += 1.0
            self.waited += pressed
            status: dict[str, Any] = {"clock": self.time, "pressed": self.waited, "idle": idle and idle + second}
            self.keeper._resize(status)
            self.fill()
        ready = sum(slot.info is not None for slot in self.keeper.slots.values())
        return ready, len(self.keeper.slots) - ready


def test_a_pool_of_some_to_many_follows_the_work(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(problem, PoolSize(1, 12), 2, 2, monkeypatch)
    assert played.play(60, pressed=0.2) == (2, 0)
    assert played.play(7, pressed=0.9) == (2, 2)  # twice as many: two wait for machines
    assert played.play(60, pressed=0.9) == (2, 2)  # no more are asked for before those have come
    played.gpus = 16
    assert played.play(30, pressed=0.9) == (12, 0)
    assert played.play(30, pressed=0.0, idle=10.0) == (12, 0)
    assert played.play(30, pressed=0.0, idle=40.0) == (1, 0)
    assert played.play(20, pressed=0.9) == (8, 0)


def test_a_pool_takes_gpus_that_join_and_asks_for_what_the_autoscaler_may_bring(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(problem, PoolSize(), 2, 2, monkeypatch)
    assert played.play(30, pressed=0.9) == (2, 0), "nobody will bring more"
    played.gpus = played.limit = 3
    assert played.play(2, pressed=0.0) == (3, 0)
    played.limit = 5
    assert played.play(10, pressed=0.9) == (3, 2)
    assert played.play(5, pressed=0.0, idle=70.0) == (1, 0)
    played.gpus = 5
    assert played.play(5, pressed=0.0, idle=80.0) == (1, 0), "left alone it stays small"
    assert played.play(2, pressed=0.1) == (5, 0)


def test_a_pool_of_a_number_stays_as_it_is(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(problem, PoolSize(2, 2), 2, 4, monkeypatch)
    assert played.play(60, pressed=1.0) == (2, 0)
    assert played.play(60, pressed=0.0, idle=600.0) == (2, 0)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"device": "cpu"}, "they run on cpu and cuda"),
        ({"dtype": "float32"}, "they compute in bfloat16 and float32"),
        ({"tokens": 2048}, r"room for passes of 4096 and 2048 tokens \(--lm tokens=2048 suits both\)"),
    ],
)
def test_a_scorer_that_would_give_other_bits_is_refused(
    other: dict[str, Any], why: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(problem, PoolSize(1, 3), 3, 1, monkeypatch)
    keeper = played.keeper
    keeper.facts = INFO
    late = list(keeper.slots.values())[1]
    keeper._take_in(late, replace(INFO, **other))
    assert late.name not in keeper.slots
    assert re.search(why, keeper.remarks[0])
    keeper._take_in(next(iter(keeper.slots.values())), replace(INFO, tokens=8192))  # more room than it needs: fine
    assert keeper.facts.tokens == 4096


def test_a_scorer_that_waits_for_its_restart_is_not_given_up(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node is lost, and there is no room: that may take long. One that dies again and again is another matter."""
    played = Played(problem, PoolSize(1, 1), 1, 0, monkeypatch)
    keeper, gave_up = played.keeper, []
    keeper.router = SimpleNamespace(give_up=SimpleNamespace(remote=gave_up.append))
    (slot,) = keeper.slots.values()
    slot.handle = SimpleNamespace(ready=SimpleNamespace(remote=lambda: "asked"))
    slot.ready = "asked"
    said = "The actor is temporarily unavailable: IOError: The actor is restarting."

    def get(reference: str) -> None:
        raise ray.exceptions.ActorUnavailableError(said, b"0" * 16)

    monkeypatch.setattr("rayprompt.scoring.keeper.ray.wait", lambda some, **how: (some, []))
    monkeypatch.setattr("rayprompt.scoring.keeper.ray.get", get)
    for _ in range(100):
        keeper._hear(0.0)
    assert (slot.deaths, gave_up, keeper.remarks) == (0, [], [])
    said = "The actor died before it answered"
    for _ in range(6):
        keeper._hear(0.0)
    assert not keeper.slots
    assert "die while they load tiny-masked" in keeper.remarks[0]
    assert not gave_up, "others are tried"


def test_plans_where_machines_are_still_to_come() -> None:
    """A head alone, and an autoscaler that may bring eight GPUs."""
    head, limit = {"object_store_memory": 1e9}, {"GPU": 8.0, "CPU": 64.0}
    auto = plan_scorers(head, None, None, limit=limit)
    assert (auto.count, auto.gpus, auto.size) == (1, 1.0, PoolSize(1, None))
    some = plan_scorers(head, "2:6", None, limit=limit)
    assert (some.count, some.size) == (2, PoolSize(2, 6))
    there = plan_scorers({"GPU": 4.0, "CPU": 16.0}, "2:6", None, limit=limit)
    assert there.count == 4
    with pytest.raises(InputError, match="there is room for 8; the cluster has 0 GPUs and may come to have 8"):
        plan_scorers(head, 9, None, limit=limit)


def test_seconds_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_from("RAYPROMPT_IDLE") is None
    monkeypatch.setenv("RAYPROMPT_IDLE", "2m")
    assert seconds_from("RAYPROMPT_IDLE") == 120
    monkeypatch.setenv("RAYPROMPT_IDLE", "later")
    with pytest.raises(InputError, match="RAYPROMPT_IDLE later: must be a time"):
        seconds_from("RAYPROMPT_IDLE")
