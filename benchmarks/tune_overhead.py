"""What a Tune trial costs: trials/s and candidates/s of batches under Ray Tune, beside a whole search in one trial.

    python benchmarks/tune_overhead.py [--seconds 20] [--quick]

Production actors, router, ledger and searchers; only the LM's forward pass is replaced (benchmarks/free_lm.py). One
run measures, each on 32 examples with random search:

1. batches of 1, 16, 64 and 256 candidates a trial, three ways: ``ours`` (what --tune-native sets), ``defaults`` (the
   same trainable and searcher in a Tuner with Tune's defaults), ``NevergradSearch`` (Ray's own searcher, OnePlusOne,
   a trial per candidate, a function trainable with Tune's defaults: it knows no batches);
2. 200, 500, 2,000 and 5,000 trials of ``ours``: does a trial cost more when there are many?
3. the default path (one trial for the whole search), a generation of 16: milliseconds.

Writes benchmarks/tune_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

import ray
from ray import tune
from router import Search, problem_of

from rayprompt.scoring.cluster import TRIAL_CPUS, connect
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.native import tuner_of, without_loggers
from rayprompt.study.trainable import prompt_trainable
from rayprompt.study.tuning import quiet_tune
from searchers.random import RandomSearcher

OUT = Path(__file__).with_suffix(".json")
BATCHES = (1, 16, 64, 256)
EXAMPLES = 32


def timed(tuner: tune.Tuner, candidates: int) -> dict[str, Any]:
    """Run it; trials/s and candidates/s from the first trial's start to the last one's end, and with Tune's start."""
    begun = time.perf_counter()
    with quiet_tune():
        results = tuner.fit()
    whole = time.perf_counter() - begun
    assert not results.errors, results.errors[0]
    ends = [result.metrics["timestamp"] for result in results]
    inner = max(max(ends) - min(ends), 1)
    return {
        "trials": len(results),
        "candidates": candidates,
        "seconds": round(whole, 2),
        "trials_per_second": round(len(results) / whole, 2),
        "candidates_per_second": round(candidates / whole, 1),
        "trials_per_second_once_started": round(len(results) / inner, 2),
    }


def ours(trainable: type[tune.Trainable], problem: Problem, batch: int, trials: int, folder: str) -> dict[str, Any]:
    """The settings of --tune-native."""
    searcher = RandomSearcher(problem, budget=batch * trials, batch_size=batch)
    with without_loggers():
        return timed(tuner_of(searcher, trainable, folder, "ours", []), batch * trials)


def defaults(trainable: type[tune.Trainable], problem: Problem, batch: int, trials: int, folder: str) -> dict[str, Any]:
    """Tune's defaults."""
    searcher = RandomSearcher(problem, budget=batch * trials, batch_size=batch)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1),
        run_config=tune.RunConfig(name="defaults", storage_path=folder, verbose=0),
    )
    return timed(tuner, batch * trials)


def rays_own(trials: int, folder: str) -> dict[str, Any]:
    """Ray's NevergradSearch with Tune's defaults; the trial computes next to nothing."""
    import nevergrad as ng
    from ray.tune.search.nevergrad import NevergradSearch

    def trial(config: dict[str, float]) -> None:
        tune.report({"score": -((config["x"] - 0.5) ** 2)})

    searcher = NevergradSearch(ng.optimizers.OnePlusOne, metric="score", mode="max")
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": TRIAL_CPUS}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=trials, metric="score", mode="max"),
        run_config=tune.RunConfig(name="nevergrad", storage_path=folder, verbose=0),
    )
    return timed(tuner, trials)


def default_path(problem: Problem, pool: ScoringPool, seconds: float, folder: str) -> dict[str, Any]:
    """The whole search in one trial: milliseconds of a generation of 20 candidates, router included."""
    ScoreStore(folder).prepare()
    search = ray.remote(num_cpus=TRIAL_CPUS)(Search).remote(problem, pool, folder, 0)
    ray.get(search.run.remote(2.0))
    found = ray.get(search.run.remote(seconds))
    ray.kill(search)
    return {
        "milliseconds_a_generation": round(1000 * found["loop_seconds"] / found["generations"], 2),
        "candidates_per_second": round(found["evaluations"] / EXAMPLES / found["seconds"]),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="of ours in part 1")
    parser.add_argument("--slow-trials", type=int, default=30, help="of the ways that start a process for each trial")
    parser.add_argument("--many", type=int, nargs="*", default=[200, 500, 2000, 5000])
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    problem = problem_of(EXAMPLES)
    connect("local")
    pool = ScoringPool.start(problem.lm, scorers=1)
    trainable = prompt_trainable(problem, pool=pool)
    report: dict[str, Any] = {
        "command": " ".join(["python benchmarks/tune_overhead.py", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "examples": EXAMPLES,
        "batches": {},
        "many": [],
    }

    def show(name: str, row: dict[str, Any]) -> dict[str, Any]:
        print(
            f"{name}: {row['trials']} trials in {row['seconds']} s: {row['trials_per_second']} trials/s "
            f"({row['trials_per_second_once_started']} once started), {row['candidates_per_second']:,} candidates/s",
            flush=True,
        )
        return row

    with tempfile.TemporaryDirectory() as folder:
        report["default_path"] = default_path(problem, pool, args.seconds, str(Path(folder) / "search"))
        print(f"default path: {report['default_path']}", flush=True)
        for batch in BATCHES:
            row = {}
            for way, trials in ((ours, args.trials), (defaults, args.slow_trials)):
                where = str(Path(folder) / f"{way.__name__}-{batch}")
                row[way.__name__] = show(
                    f"{way.__name__}, {batch} a trial", way(trainable, problem, batch, trials, where)
                )
            report["batches"][str(batch)] = row
        found = rays_own(args.slow_trials, str(Path(folder) / "rays"))
        report["nevergrad_search"] = show("NevergradSearch, Tune's defaults", found)
        for trials in args.many:
            row = ours(trainable, problem, 1, trials, str(Path(folder) / f"many-{trials}"))
            report["many"].append(show("ours, 1 a trial", row))
    pool.shutdown()
    ray.shutdown()
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
