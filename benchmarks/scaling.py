"""How far a pool scales: the production actor, router, ledger, store and search loop; a forward pass takes 50 ms.

    python benchmarks/scaling.py [--actors 1 2 4 8 16 32 64] [--searches 1 8] [--seconds 20]
    python benchmarks/scaling.py --only generation     # one search, 4,096 candidates a generation, 16 scorers

Only the LM is replaced (benchmarks/fixed_actor.py): a pass waits, as for a GPU, and takes no core. Random search asks
for generations of 256 candidates, each scored on 32 examples (16 pairs a pass), none twice; pairs are charged, stored
and told. Ideal is that every scorer is in a pass all the time. Prints, for each number of scorers and searches, the
share of that time, passes and pairs a second, and CPU seconds a pass by kind of process: what bounds it on one machine
of a few cores. Written to scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import numpy as np
import psutil
import ray
from fixed_actor import PASS_SECONDS, FixedPool

import rayprompt
from rayprompt.scoring import cluster
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop, SearchPlan
from searchers.random import RandomSearcher

EXAMPLES = 32
KINDS = {"ray::FixedActor": "scorers", "ray::Scorer": "scorers", "ray::Router": "router", "ray::Search": "searches"}


class Generations(RandomSearcher):
    """Random search, so many candidates at a time."""

    size = 256

    @property
    def generation(self) -> int:
        return self.size


def problem_of(examples: int) -> Problem:
    """The bundled task with so many train examples."""
    task = rayprompt.load_task("reviews")
    parts = dict(task.parts())
    splits = {"default": {**parts, "train": parts["train"][:examples]}}
    return Problem(replace(task, splits=splits, source=""), "tiny-masked", allow_leaks=True)


class Search:
    """One search, as a trial runs it; a Ray actor."""

    def __init__(self, problem: Problem, pool: ScoringPool, folder: str, seed: int, size: int) -> None:
        searcher = Generations(problem.for_search(), seed=seed)
        searcher.size = size
        self.loop = SearchLoop(searcher, pool, SearchPlan(f"bench_{seed}", 10**9, 5, folder, folder))

    def run(self, seconds: float, generations: int | None = None) -> dict[str, float]:
        """Generations for so long, or so many."""
        started, before, done = time.perf_counter(), self.loop.ledger.evaluations, 0
        parts = dict(self.loop.seconds)
        while done < generations if generations is not None else time.perf_counter() - started < seconds:
            self.loop.step()
            self.loop.report()
            done += 1
        return {
            "evaluations": self.loop.ledger.evaluations - before,
            "generations": done,
            "seconds": time.perf_counter() - started,
            **{name: self.loop.seconds[name] - parts[name] for name in parts},
        }


def processes() -> dict[int, tuple[str, float, int]]:
    """pid -> kind, CPU seconds and bytes of the processes that Ray has started here."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            times, memory = process.cpu_times(), process.memory_info().rss
        except psutil.Error:
            continue
        kind = next((kind for start, kind in KINDS.items() if title.startswith(start)), "ray itself")
        found[process.pid] = (kind, times.user + times.system, memory)
    own = psutil.Process()
    found[own.pid] = ("driver", sum(own.cpu_times()[:2]), own.memory_info().rss)
    return found


def by_kind(before: dict[int, Any], after: dict[int, Any]) -> dict[str, float]:
    """CPU seconds of each kind in between."""
    spent: dict[str, float] = {}
    for pid, (kind, seconds, _) in after.items():
        spent[kind] = spent.get(kind, 0.0) + seconds - (before[pid][1] if pid in before else 0.0)
    return spent


def measure(problem: Problem, actors: int, searches: int, seconds: float, size: int = 256) -> dict[str, Any]:
    """One pool, some searches on it for so long."""
    pool = FixedPool.start(problem.lm, scorers=actors)
    scorers = pool.scorers()
    with tempfile.TemporaryDirectory() as folder:
        ScoreStore(folder).prepare()
        remote: Any = ray.remote(num_cpus=0)(Search)
        running = [remote.remote(problem, pool, folder, seed, size) for seed in range(searches)]
        ray.get([s.run.remote(2.0) for s in running])  # warm
        spent, before, began = ray.get([s.spent.remote() for s in scorers]), processes(), time.perf_counter()
        found = [s.run.remote(seconds) for s in running]
        time.sleep(seconds)  # the last generations of several searches do not end together
        after, wall = processes(), time.perf_counter() - began
        more = ray.get([s.spent.remote() for s in scorers])
        rounds = ray.get(found)
        for search in running:
            ray.kill(search)
    pool.shutdown()
    delta = np.array(more) - np.array(spent)
    passes = int(delta[:, 1].sum())
    cpu = by_kind(before, after)
    count = sum(r["generations"] for r in rounds)
    own = {name: round(1000 * sum(r[name] for r in rounds) / count) for name in ("ask", "score", "tell")}
    own["else"] = round(1000 * sum(r["seconds"] for r in rounds) / count) - sum(own.values())
    return {
        "actors": actors,
        "searches": searches,
        "generation": size,
        "share_of_ideal": round(float(delta[:, 1].sum() * PASS_SECONDS / (actors * wall)), 3),
        "in_passes": round(float(delta[:, 0].sum() / (actors * wall)), 3),
        "passes_per_second": round(passes / wall, 1),
        "evaluations_per_second": round(float(delta[:, 2].sum()) / wall),
        "milliseconds_a_generation": own,
        "cores_used": round(sum(cpu.values()) / wall, 2),
        "cpu_milliseconds_a_pass": {kind: round(1000 * s / max(1, passes), 3) for kind, s in sorted(cpu.items())},
    }


def generation(problem: Problem, actors: int, size: int, count: int) -> dict[str, Any]:
    """One search with generations of so many candidates: how busy scorers are, and what processes take."""
    pool = FixedPool.start(problem.lm, scorers=actors)
    scorers = pool.scorers()
    with tempfile.TemporaryDirectory() as folder:
        ScoreStore(folder).prepare()
        remote: Any = ray.remote(num_cpus=0)(Search)
        search = remote.remote(problem, pool, folder, 0, size)
        ray.get(search.run.remote(0.0, 1))  # warm
        spent, began = ray.get([s.spent.remote() for s in scorers]), time.perf_counter()
        memory: list[dict[str, int]] = []
        waiting = search.run.remote(0.0, count)
        while not ray.wait([waiting], timeout=1.0)[0]:
            most: dict[str, int] = {}
            for kind, _, rss in processes().values():
                most[kind] = max(most.get(kind, 0), rss)
            memory.append(most)
        wall = time.perf_counter() - began
        done = ray.get(waiting)
        delta = np.array(ray.get([s.spent.remote() for s in scorers])) - np.array(spent)
        ray.kill(search)
    pool.shutdown()
    quarter = max(1, len(memory) // 4)
    kinds = ("searches", "router", "driver", "scorers")
    return {
        "actors": actors,
        "generation": size,
        "generations": count,
        "evaluations": done["evaluations"],
        "seconds": round(wall, 1),
        "busy": round(float(delta[:, 0].sum() / (actors * wall)), 3),
        "least_busy_scorer": round(float(delta[:, 0].min() / wall), 3),
        "megabytes": {
            kind: {
                "first_quarter": round(max(m.get(kind, 0) for m in memory[:quarter]) / 2**20),
                "last_quarter": round(max(m.get(kind, 0) for m in memory[-quarter:]) / 2**20),
            }
            for kind in kinds
        },
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--searches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=["scaling", "generation"])
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (so it is called)
    cluster.MOST_LANES = 1  # as on a GPU
    problem = problem_of(EXAMPLES)
    content: dict[str, Any] = json.loads(args.result.read_text()) if args.result.exists() else {}
    content |= {"cores": len(os.sched_getaffinity(0)), "pass_seconds": PASS_SECONDS, "examples": EXAMPLES}
    ray.init(
        address="local", num_cpus=max(args.actors) + 1, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    if args.only in (None, "scaling"):
        rows = content.setdefault("scaling", [])
        for searches in args.searches:
            for actors in args.actors:
                row = measure(problem, actors, searches, args.seconds)
                rows[:] = [r for r in rows if (r["actors"], r["searches"]) != (actors, searches)] + [row]
                print(row, flush=True)
                args.result.write_text(json.dumps(content, indent=1) + "\n")
    if args.only in (None, "generation"):
        content["generation"] = generation(problem, 16, 4096, args.generations)
        print(content["generation"], flush=True)
    args.result.write_text(json.dumps(content, indent=1) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
