"""The RL policy against random search and Nevergrad at equal evaluations: bundled task and MR (16-shot).

    python benchmarks/rl.py                          # what benchmarks/rl.json lacks: about two hours on 2 cores
    python benchmarks/rl.py --tasks reviews          # the bundled task alone: some minutes
    python benchmarks/rl.py --summary                # only prints what is in the file
    python benchmarks/rl.py --work                   # the policy's own share of a step, with a task LM as large

MR needs the shared data (RAYPROMPT_SHARED, or ../shared): few-shot/ and the LM minilm-reviews; its run i has seed i and
the i-th of the five splits. Every run is a `rayprompt.search` of 64,000 evaluations that maximises the gap reward; what
was stopped goes on. Differences are paired by run. `rl` runs its preset `fast`, which was found on the bundled
task with other seeds (100 to 105) and on nothing else.
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
import transformers
from scipy.stats import t as student

import rayprompt
from rayprompt import Problem

OUT = Path(__file__).with_suffix(".json")
SEARCHERS = ("random", "nevergrad", "rl")
TASKS = {"reviews-masked": "tiny-masked", "reviews-causal": "tiny-causal", "mr": "minilm-reviews"}
SPLITS = ("16-100", "16-13", "16-21", "16-42", "16-87")
SIZED = {"tiny-causal": None, "gpt2 6 x 384": 384, "gpt2 6 x 384, masked bert 6 x 384": 384, "gpt2 6 x 768": 768}
LMS = "policy LM, and task LM where it is another"
BUDGET, SEEDS = 64_000, {"reviews-masked": 10, "reviews-causal": 10, "mr": 5}  # MR: a split each
STEPS, WARM = 25, 4  # of measuring the policy's own work, and how many of them are not counted


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--searchers", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS))
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--work", nargs="*", choices=list(SIZED), metavar="LMS")
    args = parser.parse_args()
    content = json.loads(OUT.read_text()) if OUT.exists() else {"runs": []}
    if args.work is not None:
        with tempfile.TemporaryDirectory() as folder:
            rows = work(Path(folder), args.work or list(SIZED))
        done = {row[LMS] for row in rows}
        content["work"] = [row for row in content.get("work", []) if row[LMS] not in done] + rows
    elif not args.summary:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as folder:
            for task in args.tasks:
                for seed in range(SEEDS[task]):
                    for name in args.searchers:
                        key = {"task": task, "searcher": name, "seed": seed, "budget": BUDGET}
                        if not any(all(row[k] == v for k, v in key.items()) for row in content["runs"]):
                            content["runs"].append({**key, **run(key, Path(folder))})
                            write(content)
                            print(
                                json.dumps({k: v for k, v in content["runs"][-1].items() if k != "curve"}), flush=True
                            )
        ray.shutdown()
    write(content)
    show(summarise(content["runs"]))
    for row in content.get("work", []):
        print("the policy's own work: " + ", ".join(f"{name} {value}" for name, value in row.items()))


def problem_of(task: str, seed: int) -> Problem:
    """The task and LM of a run."""
    if task != "mr":
        return Problem("reviews", TASKS[task])
    shared = shared_folder()
    model = shared / "models" / TASKS[task]
    return Problem("mr", str(model), split=SPLITS[seed], data=shared / "data" / "few-shot" / "mr")


def shared_folder() -> Path:
    """Where the real data and LM are."""
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (shared / "data" / "few-shot").is_dir() or not (shared / "models").is_dir():
        raise SystemExit(f"needs data and models in {shared}: set RAYPROMPT_SHARED")
    return shared


def run(key: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One search: what it found, and the curve of its best train objective against evaluations."""
    started = time.perf_counter()
    out = folder / "-".join(str(value) for value in key.values())
    problem = problem_of(key["task"], key["seed"])
    result = rayprompt.search(
        problem, searcher=key["searcher"], seed=key["seed"], budget=key["budget"], objective="gap", out=out
    )
    reports = [json.loads(line) for line in next(out.glob("*/result.json")).read_text().splitlines()]
    last = reports[-1]
    return {
        "split": problem.split,
        "prompt": result.best_prompt.to_json()["text"],
        "objective": last["best_objective"],
        "train": last["best_score"],
        "dev": result.dev.value,
        "test": result.test.value,
        "n": result.test.n,
        "baselines": {
            name: {"prompt": b.prompt.text, "dev": b.dev.value, "test": b.test.value}
            for name, b in result.baselines.items()
        },
        "evaluations": result.evaluations,
        "end": result.end,
        "share_of_ask_and_tell": round((last["ask_seconds"] + last["tell_seconds"]) / last["loop_seconds"], 4),
        "curve": thinned([(r["timesteps_total"], round(r["best_objective"], 3)) for r in reports]),
        "seconds": round(time.perf_counter() - started),
    }


def work(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """The policy's own share of a step, where the task's LM is as large: asking and telling, of all that it takes.

    LMs with a width are random, in GPT-2's form with BERT's vocabulary; 6 x 768 is distilgpt2's shape. In a causal task
    LM the text stands in front of the prompt and is computed once for all steps, which makes its steps short; the
    masked one reads it anew. The uniform first steps are left out.
    """
    shared = shared_folder()
    rows = []
    for name in names:
        width, model = SIZED[name], "tiny-causal"
        if width is not None:
            size = {"n_embd": width, "n_layer": 6, "n_head": width // 32}
            where = folder / str(width)
            tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models" / "minilm-reviews")
            config = transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=512, bos_token_id=101, **size)
            transformers.GPT2LMHeadModel(config).save_pretrained(where)
            tokenizer.save_pretrained(where)
            model = str(where)
        task_model = str(shared / "models" / "minilm-reviews") if "masked" in name else model
        problem = Problem("mr", task_model, split="16-13", data=shared / "data" / "few-shot" / "mr")
        for preset in ("fast", "paper"):
            out = folder / f"{name}-{preset}"
            settings = {"preset": preset, "policy_model": model, **({"uniform_steps": 0} if preset == "fast" else {})}
            budget = STEPS * 16 * len(problem.gold)
            rayprompt.search(problem, searcher="rl", budget=budget, settings=settings, out=out)
            reports = [json.loads(line) for line in next(out.glob("*/result.json")).read_text().splitlines()]
            first, last = reports[WARM], reports[-1]
            own, scoring = (
                sum(last[f"{part}_seconds"] - first[f"{part}_seconds"] for part in parts)
                for parts in (("ask", "tell"), ("score",))
            )
            steps = last["training_iteration"] - first["training_iteration"]
            rows.append(
                {
                    LMS: name,
                    "preset": preset,
                    "own ms a step": round(1000 * own / steps),
                    "scoring ms a step (16 prompts x 32 examples)": round(1000 * scoring / steps),
                    "share": round(own / (own + scoring), 3),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Where the best grew, and the end."""
    grew = [p for i, p in enumerate(points) if i == 0 or p[1] != points[i - 1][1]]
    return [*grew, points[-1]]


def interval(values: list[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % t interval."""
    half = float("nan")
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return {"mean": round(mean(values), 4), "half_width": round(half, 4), "n": len(values)}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per task: a row for each searcher, its paired differences to the others, and the baselines."""
    tables: dict[str, Any] = {}
    for task in TASKS:
        runs = {(r["searcher"], r["seed"]): r for r in rows if r["task"] == task}
        names = [n for n in SEARCHERS if any(s == n for s, _ in runs)]
        if not names:
            continue
        table: dict[str, Any] = {
            n: {m: interval([r[m] for (s, _), r in runs.items() if s == n]) for m in MEASURES} for n in names
        }
        for base in ("empty", "manual"):
            found = {r["seed"]: r["baselines"][base] for r in runs.values() if base in r["baselines"]}
            table[base] = {m: interval([b[m] for b in found.values()]) for m in ("dev", "test")}
        for other in ("random", "nevergrad"):
            both = [seed for seed in range(SEEDS[task]) if ("rl", seed) in runs and (other, seed) in runs]
            if both:
                table[f"rl - {other}"] = {
                    m: interval([runs["rl", seed][m] - runs[other, seed][m] for seed in both]) for m in MEASURES
                }
        tables[task] = table
    return tables


MEASURES = ("objective", "train", "dev", "test")


def write(content: dict[str, Any]) -> None:
    content = {"command": "python benchmarks/rl.py", **content, "summary": summarise(content["runs"])}
    OUT.write_text(json.dumps(content, indent=1) + "\n")


def show(tables: dict[str, Any]) -> None:
    """The summary, for people."""
    for task, table in tables.items():
        print(f"{task}: {BUDGET:,} evaluations; means over runs, 95 % t intervals; differences paired by run")
        for name, row in table.items():
            cells = ", ".join(f"{m} {v['mean']:.3f} +- {v['half_width']:.3f}" for m, v in row.items())
            print(f"  {name:<15} {cells} (n={next(iter(row.values()))['n']})")


if __name__ == "__main__":
    main()
