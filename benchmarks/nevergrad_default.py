"""Which Nevergrad optimizer is the default of `nevergrad`: found by trying.

    python benchmarks/nevergrad_default.py [--task FOLDER --model MODEL] [--candidates 400] [--seeds 4] [NAME ...]

Every optimizer searches the bundled task on tiny-masked (or what is given) from a random start, at the same budget, on
one scoring pool. Prints the mean over seeds of the best train objective (minus cross-entropy) and of the test accuracy
of the finalist that dev picks. Adds its rows to benchmarks/nevergrad_default.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.searcher.step import ask_score_tell
from rayprompt.study.closing import Closer
from rayprompt.study.loop import Finalist, Finalists
from rayprompt.study.session import Cluster, session

OUT = Path(__file__).with_suffix(".json")
NAMES = [
    "random", "DiscreteOnePlusOne", "DiscreteLenglerOnePlusOne", "PortfolioDiscreteOnePlusOne",
    "FastGADiscreteOnePlusOne", "DoubleFastGADiscreteOnePlusOne", "RecombiningPortfolioDiscreteOnePlusOne",
    "DE", "TwoPointsDE", "NGOpt",
]  # fmt: skip


def search(
    problem: Problem, pool: ScoringPool, name: str, seed: int, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Best train objective, its accuracy on train, and the winner's on test."""
    settings = {} if name == "random" else {"optimizer": name, "start": "random", "population": args.population}
    if args.vocabulary:
        settings["vocabulary"] = args.vocabulary
    cls = load_searcher("random" if name == "random" else "nevergrad")
    searcher = cls(problem.for_search(), seed=seed, budget=args.candidates, **settings)
    part = problem.part("train")
    evaluator = Evaluator(pool, part, problem.gold, Ledger(args.candidates * len(part)))
    finalists = Finalists(5)
    while evaluator.ledger.remaining:
        step = ask_score_tell(searcher, evaluator)
        if not step.candidates:
            break
        values, metrics, complete = searcher.objective(step.scores), step.scores.mean_value(), step.scores.complete()
        for candidate, value, metric, whole in zip(step.candidates, values, metrics, complete, strict=True):
            finalists.add(Finalist(candidate, float(value), float(metric), len(part), bool(whole)))
    best = finalists.best
    closer = Closer(problem, pool, Ledger(1))
    closing = closer.measure(closer.choose([f.candidate for f in best], [f.to_json() for f in best]))
    return best[0].objective, best[0].metric, closing.test.value


def main() -> None:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--model", default="tiny-masked")
    parser.add_argument("--candidates", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=3000)
    args = parser.parse_args()
    problem = Problem(args.task, args.model)
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    with session(problem.lm, Cluster()) as pool:
        pool.add(problem.part("train"))
        for name in args.names:
            found = np.array([search(problem, pool, name, seed, args) for seed in range(args.seeds)])
            mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(args.seeds)
            row = {
                "task": problem.task.name, "model": problem.lm.name.rstrip("/").split("/")[-1], "optimizer": name,
                "candidates": args.candidates, "population": args.population, "vocabulary": args.vocabulary,
                "seeds": args.seeds, "train_objective": round(mean[0], 4), "train_objective_se": round(error[0], 4),
                "train_accuracy": round(mean[1], 4), "test_accuracy": round(mean[2], 4),
                "test_accuracy_se": round(error[2], 4),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{name:40} train objective {mean[0]:.4f} ± {error[0]:.4f}  train accuracy {mean[1]:.3f}"
                f"  test accuracy {mean[2]:.3f} ± {error[2]:.3f}",
                flush=True,
            )
            OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
