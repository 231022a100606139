"""Room for scorers and trials on a cluster: how they are laid out, and what is said where there is none."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import ray
from conftest import task_of

import rayprompt
from rayprompt.errors import ScoringError
from rayprompt.scoring import cluster
from rayprompt.scoring.cluster import PoolPlan, await_room, fitting, plan_scorers
from rayprompt.scoring.placement import PlacementWatch, shown


def test_a_scorer_finds_room_on_one_machine() -> None:
    """Four machines of four CPUs: 0.8 of all of them is more than any has."""
    plan = plan_scorers({"CPU": 16.0}, None, None, machine_cpus=4.0)
    assert (plan.count, plan.lanes, plan.cpus) == (1, 4, 3.2)
    assert plan_scorers({"CPU": 16.0}, None, None).lanes == 8
    machines: list[dict[str, float]] = [{"CPU": 3.0}, {"CPU": 4.0, "GPU": 1.0}, {}]
    assert fitting(plan, machines) == 1
    assert fitting(PoolPlan(2, 0.5, 1.0, 1), machines) == 2
    assert fitting(plan, None) == float("inf")


def group(state: str, **bundle: float) -> dict[str, Any]:
    return {"state": state, "bundles": {0: bundle}}


def test_trials_that_find_no_room_are_named_once() -> None:
    said: list[str] = []
    watch = PlacementWatch(said.append)
    watch.close()
    free, there = {"CPU": 0.4}, {"CPU": 2.0}
    waiting = [group("PENDING", CPU=1.0)]
    for now in (0.0, 19.0):
        watch.look(waiting, free, there, now)
    watch.look([*waiting, group("CREATED", CPU=0.1)], free, there, 30.0)  # one runs: the others wait for it
    watch.look(waiting, free, there, 40.0)
    assert not said
    for now in (61.0, 90.0):
        watch.look(waiting, free, there, now)
    assert len(said) == 1
    assert said[0].startswith("no trial runs: one that asks for 1 CPU has waited for 21 s; 0.4 CPU free, 2 CPU in the ")
    assert shown({"node:10.0.0.1": 0.5}) == "a place on one machine"


def test_no_room_names_a_pool(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "NO_ROOM_SECONDS", 0.0)
    plan = PoolPlan(1, 0.0, 1000.0, 1)
    with pytest.raises(ScoringError, match=r"another run holds the rest: .*rayprompt pool up NAME, then --scorers"):
        await_room(plan)
    monkeypatch.setattr("rayprompt.scoring.shared.names", lambda: ["night"])
    with pytest.raises(ScoringError, match="pool night is up: take its scorers with --scorers pool:night"):
        await_room(plan)


def test_all_trainables_and_searches_of_a_process_share_a_pool(ray_session: None) -> None:
    """Each with all of the CPUs that scorers may have: side by side they would find no room."""
    tiny = rayprompt.Problem(task_of(8), "tiny-masked")

    def scorers() -> set[str]:
        return {name for name in ray.util.list_named_actors() if name.startswith("scorer")}

    before = scorers()
    first = rayprompt.prompt_trainable(tiny)
    mine = scorers() - before
    assert len(mine) == 1
    second = rayprompt.search_trainable(tiny, budget=64)
    scores = rayprompt.score(["it was"], tiny)
    assert scores.dense().shape == (1, 8)
    assert scorers() - before == mine
    del first
    gc.collect()
    assert scorers() - before == mine
    del second
    gc.collect()
    deadline = time.monotonic() + 20
    while scorers() & mine and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not scorers() & mine


@pytest.mark.slow  # quick: what the watch says of what it sees, above
def test_a_trial_that_asks_for_more_than_is_left_says_so(
    ray_session: None, tmp_path: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    monkeypatch.setattr("rayprompt.scoring.placement.WAIT_SECONDS", 3.0)
    monkeypatch.setattr("rayprompt.scoring.placement.LOOK_SECONDS", 0.5)
    tiny = rayprompt.Problem(task_of(8), "tiny-masked")
    trainable = rayprompt.search_trainable(tiny, budget=64, out=tmp_path / "scores")

    class Stop(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if any("no trial runs" in record.getMessage() for record in caplog.records):
                raise RuntimeError("said")

    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 4}),
        param_space={"searcher": "random"},
        run_config=tune.RunConfig(name="run", storage_path=str(tmp_path), verbose=0, callbacks=[Stop()]),
    )
    with pytest.raises(RuntimeError, match="said"):
        tuner.fit()
    assert any("asks for 4 CPU has waited" in record.getMessage() for record in caplog.records)
