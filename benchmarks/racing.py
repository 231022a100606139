"""What a race spares, and whether it loses anything: real prompts on MR, and searches at equal budgets.

    python benchmarks/racing.py                       # all of it, about 40 minutes on two quiet cores
    python benchmarks/racing.py --parts same          # MR: the same prompts in full and racing; many orders
    python benchmarks/racing.py --parts equal         # the bundled task: with and without a race at equal evaluations

`same`: 800 random prompts on MR (16-shot, minilm-reviews), scored in full, then raced by the same search on the same
store. What was spared; whether the five best are the same; dev and test of both winners. Then the table of their
scores, raced again in 200 orders of the examples: how often one of the five best is dropped, against a bar that it is
above and against one that it just reaches, which must not be more than the stated 5 %. `equal`: searches of 64,000
evaluations on the bundled task with and without a race: train objective, candidates seen and time, mean difference
with its 95 % interval over seeds. MR needs the shared data (RAYPROMPT_SHARED, or ../shared). Runs that stand in
benchmarks/racing.json are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

import rayprompt
from rayprompt.candidate import Candidate
from rayprompt.racing import ERROR, Race, reference_row
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from searchers.random import RandomSearcher

sys.path.insert(0, str(Path(__file__).parent))
OUT = Path(__file__).with_suffix(".json")
PROMPTS, ORDERS, BUDGET, SEEDS = 800, 200, 64_000, (0, 1, 2, 3, 4)
SEARCHERS = ("random", "nevergrad", "reward-model")


class FirstPrompts(RandomSearcher):
    """Random search that ends after 800 prompts."""

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.taken = 0

    def ask(self, n: int) -> list[Candidate]:
        found = super().ask(min(n, PROMPTS - self.taken))
        self.taken += len(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.taken = state["taken"]


def mr_problem() -> Problem:
    """MR on the real LM."""
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    model, data = shared / "models" / "minilm-reviews", shared / "data" / "few-shot" / "mr"
    if not model.is_dir() or not data.is_dir():
        raise SystemExit(f"needs {model} and {data}: set RAYPROMPT_SHARED")
    return Problem("mr", str(model), split="16-13", data=data, allow_leaks=True)


def same(problem: Problem, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same prompts, in full and racing; and the race's five best in many orders."""
    with tempfile.TemporaryDirectory() as folder:
        budget = PROMPTS * len(problem.part("train"))
        options: dict[str, Any] = {"searcher": FirstPrompts, "seed": seed, "budget": budget, "store": f"{folder}/store"}
        full = rayprompt.search(problem, out=f"{folder}/full", **options)
        race = rayprompt.search(problem, out=f"{folder}/race", race=True, **options)
        table = ScoreStore(f"{folder}/store").pairs()
        rows = matrix(problem, table)
    assert race.race is not None
    keys = [[f["key"] for f in found.finalists] for found in (full, race)]
    winners = {
        name: {"prompt": found.best_prompt.to_json()["text"], "dev": found.dev.value, "test": found.test.value,
               "test_ci95": list(found.test.ci95)}
        for name, found in (("full", full), ("race", race))
    }  # fmt: skip
    row = {
        "evaluations": [full.evaluations, race.evaluations],
        "spared": round(race.race["spared"] / full.evaluations, 4),
        "dropped": race.race["dropped"],
        "lm_evaluations_of_race": race.lm_evaluations,
        "same_winner": full.best_prompt.key == race.best_prompt.key,
        "finalists_kept": len(set(keys[0]) & set(keys[1])),
        **winners,
    }
    return row, orders(rows, seed)


def matrix(problem: Problem, table: Any) -> FloatArray:
    """(prompts, E) log-probabilities of the gold label, from the rows of a store."""
    example = {digest: i for i, digest in enumerate(problem.digests("train"))}
    place: dict[str, int] = {}
    columns = (table.column(name).to_pylist() for name in ("candidate", "example", "label_log_probs"))
    rows = np.full((PROMPTS, len(example)), np.nan)
    for candidate, digest, log_probs in zip(*columns, strict=True):
        i = example[digest]
        rows[place.setdefault(candidate, len(place)), i] = log_probs[problem.gold[i]]
    assert not np.isnan(rows).any()
    return rows


def orders(rows: FloatArray, seed: int) -> dict[str, Any]:
    """Each of the five best against the five best of the others, in many orders: how often it is dropped."""
    best = np.argsort(-rows.mean(axis=1))[:10].tolist()
    dropped, earlier = 0, 0
    for number in range(ORDERS):
        for i in best[:5]:
            rivals = [k for k in best if k != i][4:9]  # the sixth to the tenth best: the candidate does reach the last
            reference = reference_row(rows[rivals], np.ones(rows.shape[1]))
            race = Race(1, reference, -reference, ERROR, np.random.default_rng([seed, number, i]))
            race.enter(np.array([0]), 0, rows[i : i + 1, race.order])
            dropped += bool(race.dropped[0])
            tight = reference_row(rows[[k for k in best if k != i][:5]], np.ones(rows.shape[1]))
            shift = (rows[i].sum() - tight.sum()) / len(tight)  # the hardest null: exactly the bar
            race = Race(1, tight + shift, -(tight + shift), ERROR, np.random.default_rng([seed, number, i]))
            race.enter(np.array([0]), 0, rows[i : i + 1, race.order])
            earlier += bool(race.dropped[0])
    count = 5 * ORDERS
    return {"orders": ORDERS, "dropped_above_the_bar": dropped / count, "dropped_at_the_bar": earlier / count}


def equal(searcher: str, seed: int, race: bool) -> dict[str, Any]:
    """One search of the bundled task."""
    with tempfile.TemporaryDirectory() as folder:
        found = rayprompt.search("reviews", searcher=searcher, seed=seed, budget=BUDGET, race=race, out=f"{folder}/s")
    best = max(f["objective"] for f in found.finalists)
    counts = found.race or {"candidates": found.evaluations // 64, "dropped": 0, "spared": 0}
    return {
        "train_objective": round(best, 5), "dev": found.dev.value, "test": found.test.value,
        "candidates": counts["candidates"], "dropped": counts["dropped"],
        "seconds": round(found.timings["search"], 1),
    }  # fmt: skip


def summary(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runs say together."""
    rows: list[dict[str, Any]] = []
    mr = content["same"]
    if mr:
        rows.append({
            "part": "same prompts, MR", "seeds": len(mr), "spared": round(float(np.mean([r["spared"] for r in mr])), 3),
            "same_winner": sum(r["same_winner"] for r in mr), "finalists_kept_of_5": [r["finalists_kept"] for r in mr],
            "dropped_at_the_bar": round(float(np.mean([r["orders"]["dropped_at_the_bar"] for r in mr])), 4),
            "stated_error": ERROR,
        })  # fmt: skip
    for name in SEARCHERS:
        runs = {(r["seed"], r["race"]): r for r in content["equal"] if r["searcher"] == name}
        both = [s for s in SEEDS if (s, True) in runs and (s, False) in runs]
        if both:
            gains = [runs[s, True]["train_objective"] - runs[s, False]["train_objective"] for s in both]
            half = student.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5 if both[1:] else None
            more = [runs[s, True]["candidates"] / runs[s, False]["candidates"] for s in both]
            rows.append({
                "part": "equal evaluations, reviews", "searcher": name, "seeds": len(both),
                "train_objective_race_minus_full": [round(float(np.mean(gains)), 4), half and round(float(half), 4)],
                "candidates_race_over_full": round(float(np.mean(more)), 2),
                "seconds_race_over_full": round(
                    float(np.mean([runs[s, True]["seconds"] / runs[s, False]["seconds"] for s in both])), 2
                ),
            })  # fmt: skip
    return rows


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["same", "equal"], choices=["same", "equal"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=SEARCHERS, help="of the part equal")
    args = parser.parse_args()
    content: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"same": [], "equal": []}

    def write() -> None:
        whole = {"command": "python benchmarks/racing.py", **content, "summary": summary(content)}
        OUT.write_text(json.dumps(whole, indent=1) + "\n")

    for seed in args.seeds:
        if "same" in args.parts and all(r["seed"] != seed for r in content["same"]):
            row, dropped = same(mr_problem(), seed)
            content["same"].append({"seed": seed, **row, "orders": dropped})
            write()
            print(json.dumps(content["same"][-1]), flush=True)
        for name in args.searchers if "equal" in args.parts else ():
            for race in (False, True):
                about = {"searcher": name, "seed": seed, "race": race}
                if not any(all(r[k] == v for k, v in about.items()) for r in content["equal"]):
                    content["equal"].append({**about, **equal(name, seed, race)})
                    write()
                    print(json.dumps(content["equal"][-1]), flush=True)
    write()
    for row in summary(content):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
