"""Where the time of the main job goes, what memory it takes, and how far scoring is from a bare torch loop.

    python benchmarks/first_run.py [TASK] [--model MODEL] [other options of `rayprompt search`]

Runs `rayprompt search` (the README's first command) as a process of its own, samples the memory of its whole process
tree, and scores the same kind of batches in this process without Ray, Tune or a searcher: the floor. Writes
benchmarks/first_run.json. Memory is read from /proc (Linux): the sum of the processes' proportional set sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt import defaults

OUT = Path(__file__).with_suffix(".json")


def tree(root: int) -> list[int]:
    """The process ids of ``root`` and all that descend from it (Ray's processes are children of the driver)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def memory(pids: list[int]) -> float:
    """Proportional set size of processes together, in GB: shared pages count once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024**2


def watched(command: list[str], look: Callable[[list[int]], None]) -> tuple[dict[str, Any], float]:
    """The JSON object that a command prints last, and its seconds; ``look`` sees its process tree twice a second."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            look(tree(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1]), seconds


def run_search(options: list[str]) -> tuple[dict[str, Any], float, float]:
    """The search's JSON object, its wall-clock seconds as a process, and the peak memory of its tree in GB."""
    peaks = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rayprompt.cli.main", "search", "--json", "--out", f"{folder}/study", *options]
        content, seconds = watched(command, lambda pids: peaks.append(memory(pids)))
    return content, seconds, max(peaks)


def bare_rate(task: str, model: str, split: str | None, seconds: float = 10.0) -> float:
    """Evaluations a second of a bare loop: the same LM, shapes and threads; prompts like the search's."""
    from rayprompt.lm.loads import Request, score_request
    from rayprompt.lm.scorer import LMScorer
    from rayprompt.lm.shapes import table_of
    from rayprompt.scoring.cluster import plan_scorers
    from rayprompt.searcher.problem import Problem

    problem = Problem(task, model, split=split)
    part, scorer = problem.part("train"), LMScorer(problem.lm)
    rng = np.random.default_rng(0)
    prompts = [
        tuple(int(problem.words[i].later[0]) for i in rng.integers(len(problem.words), size=5)) for _ in range(16)
    ]
    request = Request.of_all(part, prompts)
    table = table_of("cpu", scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    lanes = plan_scorers({"CPU": float(len(os.sched_getaffinity(0)))}, None, None).lanes
    done, started = 0, 0.0
    with ThreadPoolExecutor(lanes) as threads:
        while not started or time.perf_counter() - started < seconds:
            score_request(scorer, table, request, threads=threads)
            if started:
                done += len(request.prompt)
            else:
                started = time.perf_counter()  # the first round warms up
        return done / (time.perf_counter() - started)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default=defaults.TASK)
    parser.add_argument("--model", default=defaults.MODEL)
    parser.add_argument("--split")
    args, options = parser.parse_known_args()
    options = [args.task, "--model", args.model, *(["--split", args.split] if args.split else []), *options]
    result, seconds, peak = run_search(options)
    timings: dict[str, float] = result["timings"]  # type: ignore[assignment]
    loop = timings["ask"] + timings["score"] + timings["tell"]
    phases = {
        "imports, interpreter": seconds - float(result["seconds"]),  # type: ignore[arg-type]
        "task, tokenizer, vocabulary": timings["prepare"],
        "Ray start": timings["ray_start"],
        "model load (scoring actors)": timings["model_load"],
        "Tune: trial start, reports": timings["search"] - loop,
        "searcher: ask and tell": timings["ask"] + timings["tell"],
        "scoring: search": timings["score"],
        "scoring: closing report": timings["report"],
        "shutdown": timings["shutdown"],
    }
    phases["rest"] = seconds - sum(phases.values())
    rate, bare = float(result["evaluations"]) / timings["score"], bare_rate(args.task, args.model, args.split)  # type: ignore[arg-type]
    for name, value in phases.items():
        print(f"{name:30} {value:7.1f} s {value / seconds:6.1%}")
    scoring = phases["scoring: search"] + phases["scoring: closing report"]
    print(f"{'all':30} {seconds:7.1f} s, of which scoring {scoring / seconds:.0%}")
    print(f"peak memory of all processes   {peak:7.2f} GB")
    print(f"{result['evaluations']} evaluations: {rate:,.0f}/s, bare torch loop {bare:,.0f}/s: ratio {rate / bare:.2f}")
    report = {
        "command": " ".join(["python benchmarks/first_run.py", *sys.argv[1:]]),
        "seconds": round(seconds, 1),
        "phases": {name: round(value, 2) for name, value in phases.items()},
        "scoring_share": round(scoring / seconds, 3),
        "peak_memory_gb": round(peak, 2),
        "evaluations": result["evaluations"],
        "evaluations_per_second": round(rate),
        "bare_evaluations_per_second": round(bare),
        "ratio_to_bare": round(rate / bare, 3),
        "best_prompt": result["best_prompt"],
        "dev": result["dev"],
        "test": result["test"],
        "baselines": result["baselines"],
    }
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
