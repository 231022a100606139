"""`reward-model` beside what it improves on: how many evaluations a learned reward spares.

    python benchmarks/reward_search.py                     # the bundled task and MR, 64,000 evaluations, 5 seeds
    python benchmarks/reward_search.py --tasks reviews --seeds 0 1 --searchers random reward-model   # adds runs
    python benchmarks/reward_search.py --ranking           # only how long 5,000 proposals take to rank
    python benchmarks/reward_search.py --summary           # only prints what is in the file

Searches in this process: the searchers' own ask and tell, the LM's scores as a scorer gives them, two passes side by
side. After each prompt that is the best on train so far, its dev score. For each searcher: after how many evaluations
the mean dev score of its seeds is what `random` has at the full budget, in shares of that; and the train objective at
equal evaluations against the inner searcher without the filter, with its 95 % interval over seeds. `noise` is the same
searcher with a reward model that says random numbers. Runs that stand in benchmarks/reward_search.json are not
repeated. MR needs the shared data (RAYPROMPT_SHARED, or ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from rayprompt import Problem
from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.comparison.curves import Curve
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of
from rayprompt.objective import OBJECTIVES
from rayprompt.scores import FloatArray, Scores, right
from rayprompt.searcher.registry import load_searcher
from rayprompt.testing.noise import NOISE

OUT = Path(__file__).with_suffix(".json")
BUDGET, SEEDS = 64_000, (0, 1, 2, 3, 4)
SEARCHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "nevergrad": ("nevergrad", {}),
    "reward-model": ("reward-model", {}),
    "reward-model, nevergrad": ("reward-model", {"inner": "nevergrad"}),
    "filter, random": ("reward-model", {"edits": 0.0}),
    "filter, nevergrad": ("reward-model", {"inner": "nevergrad", "edits": 0.0}),
    "noise, nevergrad": ("reward-model", {"inner": "nevergrad", "reward_model": NOISE}),
}
INNER = {
    "reward-model": "random", "reward-model, nevergrad": "nevergrad", "filter, random": "random",
    "filter, nevergrad": "nevergrad", "noise, nevergrad": "nevergrad",
}  # fmt: skip
MR_SPLIT = "16-13"
RANKED, CHOSEN = 5000, 16


class Bench:
    """A task with its LM in this process; what was scored stays known."""

    def __init__(self, task: str, shared: Path) -> None:
        if task == "reviews":
            self.problem = Problem("reviews", "tiny-masked")
        else:
            model, data = shared / "models" / "minilm-reviews", shared / "data" / "few-shot" / task
            if not model.is_dir() or not data.is_dir():
                raise SystemExit(f"needs {model} and {data}: set RAYPROMPT_SHARED")
            self.problem = Problem(task, str(model), split=MR_SPLIT, data=data, allow_leaks=True)
        self.scorer = LMScorer(self.problem.lm)
        self.table = table_of("cpu", self.scorer.token_bytes, self.problem.lm.max_length, self.scorer.tokens)
        self.threads = ThreadPoolExecutor(os.cpu_count() or 1)
        self.known: dict[tuple[str, str], FloatArray] = {}

    def scores(self, prompts: Sequence[Candidate], part: str = "train") -> Scores:
        """Of prompts on a whole part."""
        encoded = self.problem.part(part)
        gold = self.problem.task.gold(part, self.problem.split)
        new = [p for p in prompts if (part, p.key) not in self.known]
        if new:
            request = Request.of_all(encoded, [self.problem.token_ids(p) for p in new])
            found, _ = score_request(self.scorer, self.table, request, threads=self.threads)
            rows = found.reshape(len(new), len(encoded), -1)
            self.known.update({(part, p.key): row for p, row in zip(new, rows, strict=True)})
        log_probs = np.concatenate([self.known[part, p.key] for p in prompts])
        size = len(encoded)
        example = np.tile(np.arange(size), len(prompts))
        return Scores(
            candidates=tuple(prompts), examples=np.arange(size), example=example,
            candidate=np.repeat(np.arange(len(prompts)), size), sample=np.zeros(len(example), dtype=np.int16),
            value=right(log_probs, gold[example]), label_log_probs=log_probs,
            tokens=np.ones(len(example), dtype=np.int32), seconds=np.zeros(len(example)),
        )  # fmt: skip

    def dev(self, prompt: Candidate) -> tuple[float, float]:
        """Accuracy and mean log-probability on dev."""
        scores, gold = self.scores([prompt], "dev"), self.problem.task.gold("dev", self.problem.split)
        return float(scores.mean_value()[0]), float(OBJECTIVES["cross_entropy"](scores, gold)[0])

    def run(self, searcher: str, seed: int, budget: int) -> dict[str, Any]:
        """One search: (evaluations, train objective, dev accuracy, dev log-probability) at each new best on train."""
        name, settings = SEARCHERS[searcher]
        self.known.clear()
        size = len(self.problem.part("train"))
        most = budget // size
        agent = load_searcher(name)(self.problem, seed=seed, budget=most, **settings)
        curve: list[list[float]] = []
        done, best, own, begun = 0, -np.inf, 0.0, time.perf_counter()
        prompt = ""
        while done < most:
            clock = time.perf_counter()
            batch = agent.ask(min(agent.generation, most - done))
            own += time.perf_counter() - clock
            if not batch:
                break
            scores = self.scores(batch)
            clock = time.perf_counter()
            values = agent.objective(scores)
            agent.tell(batch, scores)
            own += time.perf_counter() - clock
            done += len(batch)
            i = int(np.nanargmax(values))
            if values[i] > best:
                best, found = float(values[i]), batch[i]
                assert isinstance(found, TextPrompt)
                prompt = found.text
                curve.append([done * size, round(best, 5), *(round(x, 5) for x in self.dev(found))])
        seconds = time.perf_counter() - begun
        metrics = {k: v for k, v in agent.metrics().items() if name == "reward-model"}
        return {
            "evaluations": done * size, "prompt": prompt, "curve": curve, "metrics": metrics,
            "own_seconds": round(own, 1), "seconds": round(seconds, 1),
        }  # fmt: skip

    def ranking(self) -> dict[str, Any]:
        """How long ranking takes beside scoring what it chooses, with 1,000 prompts to have learned from."""
        agent = load_searcher("reward-model")(self.problem, seed=0, proposals=RANKED, length=5)
        rng = np.random.default_rng(0)
        count = len(self.problem.part("train"))
        draws: list[Any] = list(agent.inner.ask(1000))  # type: ignore[attr-defined]
        values = rng.normal(-0.6, 0.1, 1000)
        agent.tell(draws, Scores.of_values(draws, values))
        agent.ask(CHOSEN)  # type: ignore[attr-defined]
        inner, proposals = agent._proposals(CHOSEN)  # type: ignore[attr-defined]
        times = {"fit": [], "propose": [], "rank": [], "score": []}  # type: dict[str, list[float]]
        for _ in range(5):
            clock = time.perf_counter()
            agent.surrogate.fitted = 0  # type: ignore[attr-defined]
            agent._fit()  # type: ignore[attr-defined]
            times["fit"].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            inner, proposals = agent._proposals(CHOSEN)  # type: ignore[attr-defined]
            times["propose"].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            chosen = agent._choose(inner, proposals, CHOSEN)  # type: ignore[attr-defined]
            times["rank"].append(time.perf_counter() - clock)
            self.known.clear()
            clock = time.perf_counter()
            self.scores(chosen)
            times["score"].append(time.perf_counter() - clock)
        took = {name: float(np.median(values)) for name, values in times.items()}
        return {
            "proposals": len(proposals), "chosen": CHOSEN, "evaluations": CHOSEN * count,
            **{f"{name}_seconds": round(value, 4) for name, value in took.items()},
            "rank/score": round(took["rank"] / took["score"], 4),
            "all_own/score": round((took["fit"] + took["propose"] + took["rank"]) / took["score"], 4),
        }  # fmt: skip


def half(values: Sequence[float]) -> float | None:
    """The half width of the 95 % t interval of a mean; None of a single value."""
    if len(values) < 2:
        return None
    return round(float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5), 4)


def summarise(rows: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """A row per task and searcher."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task and row["budget"] == budget]
        curves = {name: {r["seed"]: r["curve"] for r in mine if r["searcher"] == name} for name in SEARCHERS}
        target = {k: np.mean([c[-1][k] for c in curves["random"].values()]) for k in (2, 3)} if curves["random"] else {}
        for name, runs in curves.items():
            if not runs:
                continue
            row: dict[str, Any] = {"task": task, "searcher": name, "seeds": len(runs)}
            for label, k in (("train_objective", 1), ("dev_accuracy", 2), ("dev_log_probability", 3)):
                ends = [curve[-1][k] for curve in runs.values()]
                row[label] = [round(float(np.mean(ends)), 4), half(ends)]
            for label, k in (("accuracy", 2), ("log_probability", 3)):
                if target:
                    at = reached(list(runs.values()), k, float(target[k]))
                    row[f"reaches_random's_dev_{label}_at"] = None if at is None else round(at / budget, 4)
            inner = curves.get(INNER.get(name, ""), {})
            both = sorted(set(inner) & set(runs))
            if both:
                row["against"] = INNER[name]
                for share in (0.125, 0.25, 0.5, 1.0):
                    differences = [at_share(runs[s], share * budget) - at_share(inner[s], share * budget) for s in both]
                    row[f"train_minus_inner_at_{share:g}"] = [round(float(np.mean(differences)), 4), half(differences)]
                ours = [reached([runs[s]], 1, inner[s][-1][1]) for s in both]
                row["evaluations_to_inner's_train"] = [None if x is None else round(x / budget, 3) for x in ours]
            found.append(row)
    return found


def at_share(curve: Sequence[Sequence[float]], evaluations: float) -> float:
    """The best train objective after so many evaluations."""
    return max((point[1] for point in curve if point[0] <= evaluations), default=float("-inf"))


def reached(runs: Sequence[Sequence[Sequence[float]]], k: int, target: float) -> float | None:
    """From how many evaluations on the mean over runs stays at ``target`` or above; None where it does not end there.

    Dev scores of the best on train go up and down: when the mean first touches the target says less.
    """
    curves = [Curve([p[0] for p in run], [p[k] for p in run]) for run in runs]
    found = None
    for x in sorted({p[0] for run in runs for p in run}, reverse=True):
        values = [float(curve.at(x)) for curve in curves]
        if np.isnan(values).any() or np.mean(values) < target - 1e-9:
            break
        found = float(x)
    return found


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["reviews", "mr"])
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--ranking", action="store_true")
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    content = json.loads(OUT.read_text()) if OUT.exists() else {"runs": []}
    rows = content["runs"]

    def write() -> None:
        whole = {"command": "python benchmarks/reward_search.py", **content, "summary": summarise(rows, args.budget)}
        OUT.write_text(json.dumps(whole, indent=1) + "\n")

    for task in [] if args.summary else args.tasks:
        bench = Bench(task, shared)
        if args.ranking or (task != "reviews" and "ranking" not in content):
            content.setdefault("ranking", {})[task] = bench.ranking()
            print(json.dumps({task: content["ranking"][task]}), flush=True)
        for seed in [] if args.ranking else args.seeds:
            for name in args.searchers:
                key = {"task": task, "searcher": name, "seed": seed, "budget": args.budget}
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                rows.append({**key, **bench.run(name, seed, args.budget)})
                write()
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "curve"}), flush=True)
    write()
    for row in summarise(rows, args.budget):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
