"""The pool: the right answers, whatever the number of scorers, and in spite of a scorer's death."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import ray
from conftest import PoolOf
from killing import descendants

from rayprompt.budget import Ledger
from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.loads import Request, passes_of, score_request
from rayprompt.lm.packed import Pack
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import PackTable, ShapeTable
from rayprompt.scoring.cluster import plan_scorers
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.orders import cut_orders
from rayprompt.scoring.pool import PairResult, ScoringPool
from rayprompt.scoring.router import Router
from rayprompt.searcher.problem import Problem


def pairs(problem: Problem, candidates: int, part: str) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
    """Prompts of one to five words with all examples of a part."""
    words = [w.later[0] for w in problem.words]
    prompts = [tuple(words[i : i + 1 + i % 5]) for i in range(candidates)]
    size = len(problem.part(part))
    return prompts, np.repeat(np.arange(candidates), size), np.tile(np.arange(size), candidates)


def score(pool: ScoringPool, problem: Problem, candidates: int = 6, part: str = "train") -> PairResult:
    pool.add(problem.part(part))
    return pool.score_pairs(problem.part(part), *pairs(problem, candidates, part))


def test_the_pool_gives_what_one_scorer_gives(pool: ScoringPool, problem: Problem) -> None:
    encoded = problem.part("train")
    prompts, prompt, example = pairs(problem, 6, "train")
    result = score(pool, problem)
    scorer = LMScorer(problem.lm)
    log_probs, tokens = score_request(scorer, pool.shapes, Request(encoded, prompts, prompt, example))
    assert result.label_log_probs.tobytes() == log_probs.tobytes()
    assert result.tokens.tolist() == tokens.tolist()
    assert (result.seconds > 0).all()


@pytest.mark.parametrize(
    "table", [ShapeTable.of("cpu", 128), PackTable.of(512, 128, causal=False)], ids=["rows", "pack"]
)
@pytest.mark.parametrize("seconds", [None, 1e-5, 6e-3, 10.0])
def test_orders_hold_every_pair_once_and_never_split_a_forward_pass(
    problem: Problem, seconds: float | None, table: ShapeTable | PackTable
) -> None:
    rng = np.random.default_rng(0)
    part = problem.part("train")
    for pairs, lanes in ((1, 2), (17, 1), (640, 2), (640, 9)):
        prompts = [tuple(rng.integers(200, 900, size=rng.integers(0, 40)).tolist()) for _ in range(20)]
        prompt, example = rng.integers(20, size=pairs), rng.integers(len(part), size=pairs)
        request = Request(part, prompts, prompt, example)
        orders = cut_orders(table, lanes, seconds, request)
        assert sorted(np.concatenate([order.rows for order in orders])) == list(range(pairs))
        whole = {(shape, tuple(members)) for shape, members in passes_of(table, request)}
        passes = []
        for order in orders:
            at = 0
            for load in pickle.loads(order.content):
                rows = order.rows[at : at + len(load.prompt)]
                at += len(rows)
                assert [load.prompts[i] for i in load.prompt] == [prompts[prompt[i]] for i in rows]
                assert load.example.tolist() == example[rows].tolist()
                if isinstance(load, Pack):
                    passes += [((load.tokens,), tuple(some)) for some in np.split(rows, load.ends[:-1])]
                else:
                    shape, starts = (load.length, load.rows), range(0, len(rows), load.rows)
                    passes += [(shape, tuple(rows[i : i + load.rows])) for i in starts]
        assert set(passes) == whole
        assert len(passes) == len(whole) == sum(order.passes for order in orders)
        if seconds == 10.0:
            assert {order.passes for order in orders} == {1}


@pytest.mark.slow  # quick: the same of a whole search, in tests/test_search.py
def test_two_scorers_give_the_same_bits(pool_of: PoolOf, problem: Problem) -> None:
    one, two = (score(pool_of(problem.lm, scorers), problem, 12) for scorers in (1, 2))
    assert len({info.pid for info in pool_of(problem.lm, 2).infos}) == 2
    assert one.label_log_probs.tobytes() == two.label_log_probs.tobytes()


def test_a_dead_scorer_loses_nothing(pool_of: PoolOf, problem: Problem) -> None:
    pool = pool_of(problem.lm, 2)
    quiet = score(pool, problem, 24)
    threading.Timer(0.3, os.kill, (pool.infos[0].pid, signal.SIGKILL)).start()
    killed = score(pool, problem, 24)
    assert quiet.label_log_probs.tobytes() == killed.label_log_probs.tobytes()
    # What the dead scorer had in its hands was run again, and is counted.
    pairs = len(quiet.tokens)
    assert quiet.lm_evaluations == pairs
    assert pairs < killed.lm_evaluations <= pairs + 16 * 8 * pool.window
    deadline = time.monotonic() + 60
    while ray.get(pool.router.stats.remote()) != {"queued": 0, "in_flight": 0, "alive": 2, "restarts": 1}:
        assert time.monotonic() < deadline, ray.get(pool.router.stats.remote())
        time.sleep(0.2)


@pytest.mark.slow  # quick: test_a_dead_scorer_loses_nothing, and test_resume's scorer that cannot load again
def test_a_scorer_that_dies_while_it_loads_is_started_again(problem: Problem, ray_session: None) -> None:
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            family = descendants(os.getpid()).items()
            for pid in [pid for pid, title in family if "ScorerActor.__init__" in title][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    pool = ScoringPool.start(problem.lm, scorers=1)
    try:
        killer.join()
        assert len(killed) == 1
        assert pool.infos[0].pid != killed[0]
        assert len(score(pool, problem, 2).tokens) == 128
    finally:
        pool.shutdown()


def test_a_dead_router_loses_nothing(problem: Problem, pool: ScoringPool) -> None:
    quiet = score(pool, problem, 30)
    threading.Timer(0.3, ray.kill, (pool.router,), {"no_restart": False}).start()
    killed = score(pool, problem, 30)
    assert quiet.label_log_probs.tobytes() == killed.label_log_probs.tobytes()


class FakeScorer:
    """Stands for an actor handle: answers when it is told to, or fails."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.score = self
        self.asked: list[str] = []
        self.fail = fail
        self.go = asyncio.Event()

    async def remote(self, order: bytes, part: None, soft: None) -> bytes:
        self.asked.append(order.decode())
        await self.go.wait()
        if self.fail is not None:
            raise self.fail
        return b"scores"

    @property
    def ready(self) -> FakeScorer:
        return self


def fake_router(monkeypatch: pytest.MonkeyPatch, scorer: FakeScorer) -> Router:
    monkeypatch.setattr("rayprompt.scoring.router.ray.get_actor", lambda name, namespace=None: scorer)
    return Router([("only", 0)])


def test_searches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> list[str]:
        scorer = FakeScorer()
        router = fake_router(monkeypatch, scorer)
        order = ["large"] * 5 + ["small"] * 2
        waiting = [asyncio.ensure_future(router.run(search, search.encode(), None)) for search in order]
        await asyncio.sleep(0)
        scorer.go.set()
        await asyncio.gather(*waiting)
        return scorer.asked

    asked = asyncio.run(play())
    assert asked[0] == "large"  # nobody else was there
    assert asked.count("large") == 5
    assert "small" not in asked[5:], asked


@pytest.mark.parametrize(
    ("error", "message", "times"),
    [
        (ray.exceptions.ActorDiedError(), "every scorer is lost", 1),
        (ray.exceptions.ActorUnavailableError("away for a moment", b"0" * 16), "lost with its scorer 3 times", 3),
        (OSError("something else"), "scoring failed: OSError: something else", 1),
    ],
)
def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, times: int) -> None:
    monkeypatch.setattr("rayprompt.scoring.router.RESTART_POLL_SECONDS", 0.01)

    class Dying(FakeScorer):
        @property
        def ready(self) -> FakeScorer:
            return Dead() if isinstance(self.fail, ray.exceptions.ActorDiedError) else FineAgain()

    class FineAgain(FakeScorer):
        async def remote(self, *args: object) -> bytes:
            return b"ready"

    class Dead(FakeScorer):
        async def remote(self, *args: object) -> bytes:
            raise error

    async def play() -> Dying:
        scorer = Dying(error)
        scorer.go.set()
        router = fake_router(monkeypatch, scorer)
        with pytest.raises(ScoringError, match=message):
            await asyncio.wait_for(router.run("a", b"a", None), timeout=5)
        return scorer

    scorer = asyncio.run(play())
    assert scorer.asked.count("a") >= times


def test_an_lm_that_does_not_load_stops_the_start(problem: Problem, ray_session: None, tmp_path: object) -> None:
    import dataclasses

    broken = dataclasses.replace(problem.lm, family="rayprompt.lm.family:Nope")
    with pytest.raises(ScoringError, match="did not load in a scoring actor: AttributeError.*Nope"):
        ScoringPool.start(broken, scorers=1)


def test_no_room_on_the_cluster_is_said(problem: Problem, pool: ScoringPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprompt.scoring.cluster.NO_ROOM_SECONDS", 2.0)
    monkeypatch.setattr("rayprompt.scoring.cluster.CPU_SHARE", 0.95)
    with pytest.raises(ScoringError, match="no room for 2 scorers: each needs 3.8 CPUs.*are free"):
        ScoringPool.start(problem.lm, scorers=2)


def test_errors_in_scoring_reach_the_caller(pool: ScoringPool, problem: Problem) -> None:
    encoded = problem.part("train")
    pool.add(encoded)
    with pytest.raises(ScoringError, match="scoring failed: IndexError"):
        pool.score_pairs(encoded, [(10**6,)], np.zeros(1, int), np.zeros(1, int))
    assert len(score(pool, problem, 1).tokens) == len(encoded)


def test_evaluator_charges_every_pair_once(pool: ScoringPool, problem: Problem) -> None:
    size = len(problem.part("train"))
    ledger = Ledger(2 * size + 5)
    evaluator = Evaluator(pool, problem.part("train"), problem.gold, ledger)
    first, second, third = (problem.prompt(t) for t in ("it was", "overall", "so"))
    ids = [p.token_ids or () for p in (first, second, third)]
    scores = evaluator.score([first, first], [ids[0], ids[0]])
    assert (ledger.evaluations, ledger.lm_evaluations, ledger.cache_hits) == (size, size, size)
    assert scores.dense().shape == (2, size)
    again = evaluator.score([first, second], ids[:2])
    assert (ledger.evaluations, ledger.cache_hits) == (2 * size, 2 * size)
    assert again.label_log_probs is not None
    assert scores.label_log_probs is not None
    assert again.label_log_probs[:size].tobytes() == scores.label_log_probs[:size].tobytes()
    cut = evaluator.score([third, first], [ids[2], ids[0]])
    assert ledger.evaluations == 2 * size + 5
    assert cut.complete().tolist() == [False, True]
    assert (~np.isnan(cut.dense()[0])).tolist() == [i < 5 for i in range(size)]
    nothing = evaluator.score([problem.prompt("well")], [(5,)])
    assert (len(nothing), nothing.complete().tolist(), ledger.evaluations) == (0, [False], 2 * size + 5)
    assert isinstance(first, TextPrompt)


def test_an_example_that_stands_twice_is_scored_and_charged_once(pool: ScoringPool, problem: Problem) -> None:
    part, gold = problem.part("train"), problem.gold
    digests = problem.digests("train")
    digests[3] = digests[0]  # as if the fourth text were the first one again
    ledger = Ledger(1000)
    evaluator = Evaluator(pool, part, gold, ledger, examples=digests)
    scores = evaluator.score([problem.prompt("it was")], [problem.prompt("it was").token_ids or ()])
    assert ledger.evaluations == ledger.lm_evaluations == evaluator.size == len(part) - 1
    dense = scores.dense("label_log_probs")[0]
    assert dense.shape[0] == len(part)
    assert (dense[3] == dense[0]).all()


def test_scorers_leave_a_share_of_a_gpu_to_the_searches() -> None:
    one = plan_scorers({"CPU": 2.0, "GPU": 1.0}, None, None, 0.2)
    assert (one.count, one.gpus) == (1, 0.8)
    four = plan_scorers({"CPU": 16.0, "GPU": 4.0}, None, None, 0.2)
    assert (four.count, four.gpus) == (4, 0.8)
    assert plan_scorers({"CPU": 2.0}, None, None, 0.2).gpus == 0.0
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, 3, 1.0, 0.2).gpus == 1.0  # one GPU is left over
    assert plan_scorers({"CPU": 16.0, "GPU": 1.0}, 2, 0.4, 0.2).count == 2
    for scorers, share in ((4, 1.0), (None, 1.0), (8, 0.5)):
        with pytest.raises(InputError, match=r"leave no GPU with the share of 0.2 .*--gpus-per-scorer 0.8 or less"):
            plan_scorers({"CPU": 16.0, "GPU": 4.0}, scorers, share, 0.2)


def test_plans() -> None:
    cpu = plan_scorers({"CPU": 2.0}, None, None)
    assert (cpu.count, cpu.gpus, cpu.lanes) == (1, 0.0, 2)
    two = plan_scorers({"CPU": 2.0}, 2, None)
    assert two.count * two.cpus < 2.0
    assert two.lanes == 1
    crowded = plan_scorers({"CPU": 2.0}, 5, None)
    assert crowded.count * crowded.cpus < 2.0
    gpu = plan_scorers({"CPU": 16.0, "GPU": 4.0}, None, None)
    assert (gpu.count, gpu.gpus) == (4, 1.0)
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, None, 0.5).count == 8
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, None, 0.3).count == 12  # a share lies on one GPU
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, None, 0.6).count == 4
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, 2, 0.0).gpus == 0.0
    for resources, scorers, share, message in (
        ({"CPU": 2.0}, 0, None, "must be 1 or more"),
        ({"CPU": 2.0}, 1, 1.0, "the cluster has 0"),
        ({"CPU": 2.0}, 1, float("inf"), "must be 0 or a share of 1"),
        ({"CPU": 2.0, "GPU": 2.0}, 3, 1.0, "room for 2; the cluster has 2"),
        ({"CPU": 2.0, "GPU": 4.0}, 13, 0.3, "room for 12"),
        ({"CPU": 2.0, "GPU": 2.0}, 1, -0.5, "must be 0 or a share of 1"),
        ({"CPU": 2.0, "GPU": 2.0}, 1, 2.0, "a scorer runs on one GPU; serve an LM .* with vLLM"),
        ({"CPU": 2.0}, "many", None, "must be auto, a number, MIN:MAX"),
        ({"CPU": 2.0}, "3:2", None, "must not be fewer than the least, as in 2:3"),
        ({"CPU": 2.0}, "0:2", None, "must be 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            plan_scorers(resources, scorers, share)


GPU_TEST = """
import ray
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)
pool = ScoringPool.start(Problem("reviews", "tiny-masked").lm)
print(sorted(info.gpus for info in pool.infos), len({info.pid for info in pool.infos}))
pool.shutdown()
"""


@pytest.mark.slow
def test_one_actor_per_gpu_each_on_its_own() -> None:
    """Two logical GPUs, in a Ray of its own: Ray pins an actor to each."""
    done = subprocess.run([sys.executable, "-c", GPU_TEST], capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines()[-1] == "[(0,), (1,)] 2", done.stderr
