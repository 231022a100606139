"""What router, ledger and store cost: the production actor, router, ledger, store and search loop, with a free LM.

    python benchmarks/router.py [--examples 32] [--seconds 15] [--scorers 1] [--searches 1 2 4]

Only the LM's forward pass is replaced (benchmarks/free_lm.py). Random search asks for generations of 20 candidates,
each scored on all examples, none twice; pairs are charged, stored and told. Prints evaluations/s and candidates/s of
some searches side by side (a Ray actor each, as trials are), the milliseconds of a generation of one search alone and
where they go, and the floor in the same run: LMScorer.score over the same batches in this process, without Ray,
ledger or store. Writes benchmarks/router.json.
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
import ray

import rayprompt
from rayprompt.lm.loads import Request, loads_of, passes_of
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of
from rayprompt.scoring.cluster import TRIAL_CPUS, connect
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop, SearchPlan
from searchers.random import RandomSearcher

GENERATION = 20
OUT = Path(__file__).with_suffix(".json")


class Twenty(RandomSearcher):
    """Random search, 20 candidates at a time."""

    @property
    def generation(self) -> int:
        return GENERATION


def problem_of(examples: int) -> Problem:
    """The bundled task with so many train examples, on a masked LM whose forward pass is free."""
    task = rayprompt.load_task("reviews")
    parts = dict(task.parts())
    rows = (parts["train"] + parts["dev"])[:examples]
    if len(rows) < examples:
        raise SystemExit(f"--examples {examples}: the bundled task has {len(rows)}")
    splits = {"default": {**parts, "train": rows}}
    problem = Problem(replace(task, splits=splits, source=""), "tiny-masked", allow_leaks=True)
    problem.lm = replace(problem.lm, family="free_lm:Free")
    return problem


class Search:
    """One search, as the trial runs it; a Ray actor."""

    def __init__(self, problem: Problem, pool: ScoringPool, folder: str, seed: int) -> None:
        searcher = Twenty(problem.for_search(), seed=seed)
        plan = SearchPlan(f"bench_{seed}", 10**9, 5, folder, folder)
        self.loop = SearchLoop(searcher, pool, plan)

    def run(self, seconds: float) -> dict[str, Any]:
        """Generations for so long, written to the last pair; what was done and where the time went."""
        before, started = dict(self.loop.seconds), time.perf_counter()
        generation, evaluations = self.loop.generation, self.loop.ledger.evaluations
        while time.perf_counter() - started < seconds:
            self.loop.step()
            self.loop.report()
        loop_seconds = time.perf_counter() - started
        self.loop.writer.flush()
        return {
            "evaluations": self.loop.ledger.evaluations - evaluations,
            "generations": self.loop.generation - generation,
            "seconds": time.perf_counter() - started,
            "loop_seconds": loop_seconds,
            **{name: self.loop.seconds[name] - before[name] for name in before},
        }


def floor(problem: Problem, seconds: float) -> float:
    """Evaluations a second of the scorer alone over batches of random prompts, on one core."""
    part, scorer = problem.part("train"), LMScorer(problem.lm)
    rng = np.random.default_rng(0)
    prompts = [tuple(int(i) for i in rng.integers(1000, 2000, size=5)) for _ in range(GENERATION)]
    request = Request.of_all(part, prompts)
    table = table_of("cpu", scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    batches = loads_of(table, request, passes_of(table, request))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for batch in batches:
            scorer.score(batch, part)
        done += len(request.prompt)
    return done / (time.perf_counter() - started)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--scorers", type=int, default=1)
    parser.add_argument("--searches", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    problem = problem_of(args.examples)
    bare = floor(problem, 5.0)
    connect("local")
    pool = ScoringPool.start(problem.lm, scorers=args.scorers)
    pool.add(problem.part("train"))
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/router.py", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "examples": args.examples,
        "generation": GENERATION,
        "scorer_alone_evaluations_per_second": round(bare),
        "searches": [],
    }
    print(f"the scorer alone, one core: {bare:,.0f} evaluations/s")
    for count in args.searches:
        with tempfile.TemporaryDirectory() as folder:
            ScoreStore(folder).prepare()
            actor = ray.remote(num_cpus=TRIAL_CPUS / count)(Search)
            searches = [actor.remote(problem, pool, folder, seed) for seed in range(count)]
            ray.get([s.run.remote(2.0) for s in searches])
            results = ray.get([s.run.remote(args.seconds) for s in searches])
            written = sum(path.stat().st_size for path in Path(folder, "scores").iterdir())
            for search in searches:
                ray.kill(search)
        rate = sum(r["evaluations"] / r["seconds"] for r in results)
        generation = [1000 * sum(r[name] for r in results) / sum(r["generations"] for r in results)
                      for name in ("loop_seconds", "ask", "score", "tell")]  # fmt: skip
        report["searches"].append({
            "searches": count,
            "evaluations_per_second": round(rate),
            "candidates_per_second": round(rate / args.examples),
            "ratio_to_scorer_alone": round(rate / bare, 3),
            "milliseconds_a_generation": round(generation[0], 2),
            "of_which": dict(zip(("ask", "score", "tell"), (round(g, 2) for g in generation[1:]), strict=True)),
            "store_bytes": written,
        })  # fmt: skip
        print(
            f"{count} searches: {rate:,.0f} evaluations/s, {rate / args.examples:,.0f} candidates/s, "
            f"{generation[0]:.2f} ms a generation of {GENERATION} (ask {generation[1]:.2f}, score {generation[2]:.2f}, "
            f"tell {generation[3]:.2f}); {rate / bare:.2f} of the scorer alone"
        )
    pool.shutdown()
    ray.shutdown()
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
