"""The pool: the right answers, whatever the number of scorers, and in spite of a scorer's death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import ray

from rayprompt.budget import BudgetExceeded, Ledger
from rayprompt.candidate import SoftPrompt, Subspace, TextPrompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.scorer import LMScorer, MicroBatch
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import PairResult, ScoringPool, plan_scorers
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
    lengths = encoded.lengths(np.array([len(p) for p in prompts])[prompt], example)
    for length, rows, members in pool.shapes.batches(lengths):
        batch = MicroBatch(encoded.key, length, rows, tuple(prompts), prompt[members], example[members])
        log_probs, tokens = scorer.score(batch, encoded)
        assert result.label_log_probs[members].tobytes() == log_probs.tobytes()
        assert result.tokens[members].tolist() == tokens.tolist()
    assert (result.seconds > 0).all()


def test_two_scorers_give_the_same_bits(pool: ScoringPool, problem: Problem) -> None:
    one = score(pool, problem, 12)
    other = ScoringPool.start(problem.lm, scorers=2)
    try:
        assert len({info.pid for info in other.infos}) == 2
        two = score(other, problem, 12)
    finally:
        other.shutdown()
    assert one.label_log_probs.tobytes() == two.label_log_probs.tobytes()


def test_a_dead_scorer_loses_nothing(problem: Problem, ray_session: None) -> None:
    pool = ScoringPool.start(problem.lm, scorers=2)
    try:
        quiet = score(pool, problem, 60)
        threading.Timer(0.3, os.kill, (pool.infos[0].pid, signal.SIGKILL)).start()
        killed = score(pool, problem, 60)
        assert quiet.label_log_probs.tobytes() == killed.label_log_probs.tobytes()
        deadline = time.monotonic() + 60
        while ray.get(pool.router.stats.remote()) != {"queued": 0, "in_flight": 0, "alive": 2, "restarts": 1}:
            assert time.monotonic() < deadline, ray.get(pool.router.stats.remote())
            time.sleep(0.2)
    finally:
        pool.shutdown()


def test_searches_take_turns(pool: ScoringPool, problem: Problem) -> None:
    """A small request beside a large one of another search does not wait until the large one is through."""
    pool.add(problem.part("test"))
    pool.add(problem.part("train"))
    done: dict[str, float] = {}

    def run(name: str, candidates: int, part: str) -> None:
        pool.score_pairs(problem.part(part), *pairs(problem, candidates, part), search=name)
        done[name] = time.monotonic()

    large = threading.Thread(target=run, args=("large", 12, "test"))
    large.start()
    time.sleep(0.3)
    run("small", 1, "train")
    large.join()
    assert done["small"] < done["large"]


def test_an_lm_that_does_not_load_stops_the_start(problem: Problem, ray_session: None, tmp_path: object) -> None:
    import dataclasses

    broken = dataclasses.replace(problem.lm, family="rayprompt.lm.family:Nope")
    with pytest.raises(ScoringError, match="did not load in a scoring actor: AttributeError.*Nope"):
        ScoringPool.start(broken, scorers=1)


def test_no_room_on_the_cluster_is_said(problem: Problem, pool: ScoringPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprompt.scoring.pool.NO_ROOM_SECONDS", 2.0)
    monkeypatch.setattr("rayprompt.scoring.pool.CPU_SHARE", 0.95)
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
    pool.add(problem.part("train"))
    evaluator = Evaluator(pool, problem.part("train"), problem.gold, ledger)
    assert evaluator.affordable(16) == 2
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
    with pytest.raises(BudgetExceeded):
        evaluator.score([third], ids[2:])
    assert ledger.evaluations == 2 * size
    with pytest.raises(InputError, match="soft prompts cannot be scored"):
        evaluator.score([SoftPrompt((0.0,), Subspace(0, 1.0, 1))], [()])
    assert isinstance(first, TextPrompt)


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
    assert plan_scorers({"CPU": 16.0, "GPU": 4.0}, 2, 0.0).gpus == 0.0
    for resources, scorers, share, message in (
        ({"CPU": 2.0}, 0, None, "must be 1 or more"),
        ({"CPU": 2.0}, 1, 1.0, "the cluster has 0"),
        ({"CPU": 2.0, "GPU": 2.0}, 3, 1.0, "need 3; the cluster has 2"),
        ({"CPU": 2.0, "GPU": 2.0}, 1, 1.5, "a share of 1, or a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            plan_scorers(resources, scorers, share)


GPU_TEST = """
import ray
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
pool = ScoringPool.start(Problem("reviews", "tiny-masked").lm)
print(sorted(info.gpus for info in pool.infos), len({info.pid for info in pool.infos}))
pool.shutdown()
"""


def test_one_actor_per_gpu_each_on_its_own() -> None:
    """Two logical GPUs, in a Ray of its own: Ray pins an actor to each."""
    done = subprocess.run([sys.executable, "-c", GPU_TEST], capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines()[-1] == "[(0,), (1,)] 2", done.stderr
