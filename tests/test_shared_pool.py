"""Pools that stay up for several studies: who may take them, what studies get of them, when they end."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import ray
from conftest import REPOSITORY
from test_pool import pairs, score

from rayprompt.cli.main import app, run
from rayprompt.durations import seconds_of, span
from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring import shared
from rayprompt.scoring.actor import MOST_PARTS, ScorerActor
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

SCHEMA = json.loads((REPOSITORY / "rayprompt" / "schemas" / "pool-1.json").read_text())


@pytest.fixture(autouse=True)
def next_to_no_cpus(monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    monkeypatch.setattr("rayprompt.scoring.cluster.CPU_SHARE", 0.02)


@pytest.fixture(scope="module")
def kept(problem: Problem, ray_session: None) -> Iterator[str]:
    """A pool of two scorers."""
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("rayprompt.scoring.cluster.CPU_SHARE", 0.02)
        shared.up("kept", problem.lm, scorers=2, lease=600)
    yield "kept"
    shared.down("kept")


def pids(name: str) -> set[int]:
    scorers = list(shared.describe(name)["status"]["scorers"])
    handles = [ray.get_actor(s, namespace="rayprompt") for s in scorers]
    return {info.pid for info in ray.get([h.ready.remote() for h in handles])}


def wait_for(what: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_two_studies_at_once_get_what_one_alone_gets(kept: str, pool: ScoringPool, problem: Problem) -> None:
    alone = score(pool, problem, 24)
    joined = [ScoringPool.start(problem.lm, scorers=f"pool:{kept}") for _ in range(2)]
    assert joined[0].caller != joined[1].caller
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: score(joined[i], problem, 24)}))  # type: ignore[misc]
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert found[i].label_log_probs.tobytes() == alone.label_log_probs.tobytes()
    for one in joined:
        one.shutdown()
    assert len(score(ScoringPool.start(problem.lm, scorers=f"pool:{kept}"), problem, 1).tokens) == 64  # it is still up


def test_the_host_dies_and_finds_its_pool_again(kept: str, problem: Problem) -> None:
    wait_for(lambda: len(shared.describe(kept)["status"].get("scorers", {})) == 2)
    before = pids(kept)
    ray.kill(shared.host_of(kept), no_restart=False)
    wait_for(lambda: shared.describe(kept)["state"] == "up" and shared.describe(kept)["status"])
    assert pids(kept) == before
    assert shared.describe(kept)["target"] == 2


def test_the_router_dies_and_learns_of_the_scorers_again(kept: str, pool: ScoringPool, problem: Problem) -> None:
    quiet = score(pool, problem, 24)
    joined = ScoringPool.start(problem.lm, scorers=f"pool:{kept}")
    threading.Timer(0.2, ray.kill, (joined.router,), {"no_restart": False}).start()
    killed = score(joined, problem, 24)
    assert killed.label_log_probs.tobytes() == quiet.label_log_probs.tobytes()


def test_a_lease_ends_when_no_study_has_use_for_it(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "TOUCH_SECONDS", 0.3)
    shared.up("short", problem.lm, scorers=1, lease=3.0)
    free = ray.available_resources()["CPU"]
    joined = ScoringPool.start(problem.lm, scorers="pool:short")
    time.sleep(6.0)
    assert "short" in shared.names(), "a study has use for it"
    joined.shutdown()
    wait_for(lambda: "short" not in shared.names())
    wait_for(lambda: ray.available_resources()["CPU"] > free + 0.01)  # what it held is given back
    left = {a["name"] for a in ray.util.list_named_actors(all_namespaces=True)}
    assert not {name for name in left if name.startswith(("short", "pool:short"))}


def test_what_cannot_be(kept: str, problem: Problem) -> None:
    other = Problem("reviews", "tiny-causal").lm
    cache = Problem("reviews", "tiny-masked", lm={"cache": "1MB"}).lm
    for lm, scorers, message in (
        (problem.lm, "pool:kep", r"pool kep: is not up on this cluster; there are kept \(did you mean 'kept'\?\)"),
        (problem.lm, "pool:", "must be pool:NAME"),
        (other, "pool:kept", "pool kept has the LM tiny-masked, not tiny-causal"),
        (cache, "pool:kept", "pool kept has tiny-masked with --lm cache=512000000, not 1000000"),
    ):
        with pytest.raises(InputError, match=message):
            ScoringPool.start(lm, scorers=scorers)
    with pytest.raises(InputError, match="pool kept has its scorers already; leave it out"):
        ScoringPool.start(problem.lm, scorers="pool:kept", gpus_per_scorer=0.5)
    with pytest.raises(InputError, match="is up already"):
        shared.up("kept", problem.lm)
    with pytest.raises(InputError, match="a name is of letters"):
        shared.up("a/b", problem.lm)
    broken = dataclasses.replace(problem.lm, family="rayprompt.lm.family:Nope")
    with pytest.raises(ScoringError, match="did not load in a scoring actor"):
        shared.up("broken", broken, scorers=1)
    assert shared.names() == ["kept"]


def test_the_commands(kept: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["pool", "up", "mine", "--model", "tiny-causal", "--scorers", "1", "--lease", "10m", "--json"]) == 0
    captured = capsys.readouterr()
    assert "pool mine: 1 scorer of tiny-causal on 1 node" in captured.err
    content = json.loads(captured.out.splitlines()[-1])
    jsonschema.validate(content, SCHEMA)
    assert content["pools"][0]["lease_seconds"] == 600
    problem = Problem("reviews", "tiny-causal")
    joined = ScoringPool.start(problem.lm, scorers="pool:kept,mine")  # of several the one that has the LM
    prompts, prompt, example = pairs(problem, 2, "train")
    joined.add(problem.part("train"))
    joined.score_pairs(problem.part("train"), prompts, prompt, example)
    wait_for(lambda: shared.describe("mine")["status"].get("scorers", {}).get("mine-0", {}).get("passes"))
    assert run(app, ["pool", "status", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pool mine (tiny-causal, cpu, float32): up, 1 scorer (1 to 1)")
    assert any(line.split()[:1] == ["mine-0"] and " up " in line for line in lines)
    assert run(app, ["pool", "status", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out.splitlines()[-1]), SCHEMA)
    assert run(app, ["pool", "down", "mine", "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    jsonschema.validate(content, SCHEMA)
    assert content["ended"] == ["mine"]
    assert run(app, ["pool", "down", "mine"]) == 2
    assert "pool mine: is not up on this cluster" in capsys.readouterr().err
    assert run(app, ["pool", "down"]) == 2
    assert "must be given a pool's name, or --all" in capsys.readouterr().err
    assert run(app, ["pool", "up", "--lease", "soon"]) == 2
    assert "--lease soon: must be a time, as 90s, 30m or 2h" in capsys.readouterr().err


def test_spans() -> None:
    assert [seconds_of(t, "--lease") for t in ("90", "90s", "1.5m", "2h", "1d")] == [90, 90, 90, 7200, 86400]
    assert [span(s) for s in (90, 1800, 9000)] == ["90 s", "30 min", "2.5 h"]
    for text in ("", "0", "-3", "3w", "1h30"):
        with pytest.raises(InputError):
            seconds_of(text, "--lease")


def test_a_scorer_forgets_examples_that_are_not_asked_for(problem: Problem) -> None:
    """One of a pool that stays up sees those of many studies."""
    actor = ScorerActor.__new__(ScorerActor)
    actor.parts = OrderedDict()
    part = problem.part("train")
    for i in range(3 * MOST_PARTS):
        actor.parts[f"{i}"] = part
        assert actor._part(f"{i}", None) is actor._part("0", None) is part  # the first is used again and again
    assert len(actor.parts) == MOST_PARTS
    assert "0" in actor.parts
