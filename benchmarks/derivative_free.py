"""Derivative-free search on MR, 16-shot: soft prompts and words, at equal numbers of candidates.

    python benchmarks/derivative_free.py              # MR, 3 splits, 300 candidates: about half an hour on 2 cores
    python benchmarks/derivative_free.py --full       # MR, CR, AG News, TREC; 5 splits; 8,000 candidates
    python benchmarks/derivative_free.py --searchers cma-es random-soft --seeds 1 2     # adds runs
    python benchmarks/derivative_free.py --summary    # only prints what is in the file

Needs the shared data (RAYPROMPT_SHARED, or ../shared): few-shot/ and the LM minilm-reviews. Every run is a
`rayprompt.search`; runs that stand in benchmarks/derivative_free.json are not repeated: what was stopped goes on.
Best train loss is minus the objective (mean cross-entropy over the label words, nats). The settings of the soft
searchers were chosen on the train loss of split 16-13, which is not among those reported.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import ray
from scipy.stats import t as student

import rayprompt
from rayprompt import Problem

OUT = Path(__file__).with_suffix(".json")
SOFT = {"length": 10, "intrinsic_dim": 100, "alpha": 10.0, "p0": "text:It was"}  # nevergrad starts there, too
DEEP = {"length": 10, "intrinsic_dim": 100, "population": 10, "p0": "text:It was"}  # alpha: BBTv2's .2, and 1
SETTINGS: dict[str, dict[str, Any]] = {
    "random": {},
    "nevergrad": {},
    "random-soft": SOFT,
    "cma-es": SOFT,
    "nevergrad-soft": {**SOFT, "optimizer": "DiagonalCMA"},
    "cma-es-deep": {**DEEP, "alpha": 0.2},
    "cma-es-deep-1": {**DEEP, "alpha": 1.0},
}
NAMES = {"cma-es-deep-1": "cma-es-deep"}  # the searcher of a row, where it is not the row's name
SPLITS = ("16-21", "16-42", "16-87")
FULL_TASKS, FULL_SPLITS, FULL_CANDIDATES = ("mr", "cr", "agnews", "trec"), ("16-100", "16-13", *SPLITS), 8000


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searchers", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    tasks, splits, candidates = ("mr",), SPLITS, args.candidates
    if args.full:
        tasks, splits, candidates = FULL_TASKS, FULL_SPLITS, FULL_CANDIDATES
    rows = json.loads(OUT.read_text())["runs"] if OUT.exists() else []
    if not args.summary:
        shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
        data, model = shared / "data" / "few-shot", shared / "models" / "minilm-reviews"
        if not data.is_dir() or not model.is_dir():
            raise SystemExit(f"needs {data} and {model}: set RAYPROMPT_SHARED")
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as folder:
            for seed in args.seeds:
                for task in tasks:
                    for split in splits:
                        for name in args.searchers:
                            key = {"task": task, "split": split, "searcher": name, "seed": seed}
                            key = {**key, "candidates": candidates, "settings": SETTINGS[name]}
                            if any(all(row[k] == v for k, v in key.items()) for row in rows):
                                continue
                            # TREC's split 16-42 has a text in train and in test; the row says so.
                            problem = Problem(task, str(model), split=split, data=data / task, allow_leaks=True)
                            rows.append({**key, **run(problem, key, Path(folder))})
                            write(rows)
                            print(json.dumps({k: v for k, v in rows[-1].items() if k != "curve"}), flush=True)
        ray.shutdown()
    write(rows)
    show(json.loads(OUT.read_text())["summary"])


def run(problem: Problem, key: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One search: what it found, and the curve of its best train loss against evaluations."""
    started = time.perf_counter()
    out = folder / "-".join(str(key[k]) for k in ("task", "split", "searcher", "seed", "candidates"))
    result = rayprompt.search(
        problem, searcher=NAMES.get(key["searcher"], key["searcher"]), seed=key["seed"],
        budget=key["candidates"] * len(problem.gold), settings=key["settings"], out=out, store=folder / "store",
    )  # fmt: skip
    prompt = result.best_prompt.to_json()
    others = {name: b.test for name, b in result.baselines.items()}
    if result.decoded is not None:
        others["decoded"] = result.decoded.test
    return {
        "prompt": prompt.get("text", "(soft)"),
        "decoded": None if result.decoded is None else result.decoded.prompt.text,
        "dev": result.dev.value,
        "test": result.test.value,
        "ci95": list(result.test.ci95),
        "n": result.test.n,
        "baselines": {name: {"test": e.value, "ci95": list(e.ci95)} for name, e in others.items()},
        "leaks": dict(result.leaks),
        "evaluations": result.evaluations,
        "end": result.end,
        "curve": curve(out),
        "seconds": round(time.perf_counter() - started),
    }


def curve(study: Path) -> list[tuple[int, float]]:
    """(evaluations, best train loss) after each generation, from the trial's own reports."""
    (file,) = study.glob("*/result.json")
    reports = [json.loads(line) for line in file.read_text().splitlines()]
    points = {r["timesteps_total"]: -r["best_objective"] for r in reports}
    return [(n, round(loss, 5)) for n, loss in sorted(points.items())]


def interval(values: list[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % t interval."""
    half = float("nan")
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {"mean": round(mean(values), 4), "half_width": round(half, 4), "n": len(values)}


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task and number of candidates: a row per searcher, and the paired difference in train loss to random-soft."""
    tables = []
    for task, candidates in sorted({(r["task"], r["candidates"]) for r in rows}):
        mine = [r for r in rows if (r["task"], r["candidates"]) == (task, candidates)]
        searchers = {}
        for name in SETTINGS:
            runs = {(r["split"], r["seed"]): r for r in mine if r["searcher"] == name}
            if not runs:
                continue
            table: dict[str, Any] = {
                "train_loss": interval([r["curve"][-1][1] for r in runs.values()]),
                "dev": interval([r["dev"] for r in runs.values()]),
                "test": interval([r["test"] for r in runs.values()]),
            }
            texts = [r["baselines"]["decoded"]["test"] for r in runs.values() if "decoded" in r["baselines"]]
            if texts:
                table["decoded_test"] = interval(texts)
            base = {(r["split"], r["seed"]): r for r in mine if r["searcher"] == "random-soft"}
            both = [key for key in runs if key in base]
            if name != "random-soft" and both:
                differences = [runs[key]["curve"][-1][1] - base[key]["curve"][-1][1] for key in both]
                table["train_loss_minus_random_soft"] = interval(differences)
            steps = sorted({n for r in runs.values() for n, _ in r["curve"]})
            at = [s for i, s in enumerate(steps) if i % max(1, len(steps) // 15) == 0 or s == steps[-1]]
            table["curve"] = [
                [n, round(mean([best for r in runs.values() if (best := loss_at(r["curve"], n)) is not None]), 4)]
                for n in at
                if all(loss_at(r["curve"], n) is not None for r in runs.values())
            ]
            searchers[name] = table
        empty, manual = ({n: b for r in mine for n, b in r["baselines"].items()}.get(k) for k in ("empty", "manual"))
        tables.append({"task": task, "candidates": candidates, "empty": empty, "manual": manual, **searchers})
    return tables


def loss_at(points: list[list[float]], evaluations: int) -> float | None:
    """The best train loss of a run when it had spent so many evaluations."""
    done = [loss for n, loss in points if n <= evaluations]
    return done[-1] if done else None


def write(rows: list[dict[str, Any]]) -> None:
    content = {"command": "python benchmarks/derivative_free.py", "summary": summarise(rows), "runs": rows}
    OUT.write_text(json.dumps(content, indent=1) + "\n")


def show(tables: list[dict[str, Any]]) -> None:
    """The summary, for people."""
    for table in tables:
        print(f"{table['task']}, {table['candidates']} candidates; means over splits and seeds, 95 % t intervals")
        for name in ("empty", "manual"):
            if table[name]:
                low, high = table[name]["ci95"]
                print(f"  {name:<15} test {table[name]['test']:.3f} [{low:.3f}, {high:.3f}]")
        for name in SETTINGS:
            if name in table:
                row = table[name]
                print(f"  {name:<15} test {_shown(row['test'])}, train loss {_shown(row['train_loss'])}", end="")
                if "decoded_test" in row:
                    print(f", as text {_shown(row['decoded_test'])}", end="")
                if "train_loss_minus_random_soft" in row:
                    print(f", against random-soft {_shown(row['train_loss_minus_random_soft'])}", end="")
                print()


def _shown(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} +- {value['half_width']:.3f} (n={value['n']})"


if __name__ == "__main__":
    main()
