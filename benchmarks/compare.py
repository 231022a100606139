"""`rayprompt compare` on two cores: how long the README's comparison takes, and what 30 trials take in memory.

    python benchmarks/compare.py            # both: a few minutes on 2 cores
    python benchmarks/compare.py --runs 30  # the second alone

Runs the command as a process of its own and samples its whole process tree: memory, processes that hold an LM, trial
processes side by side. Beside it stands the floor: the same comparison's own seconds of scoring, on as many threads as
the pool has. Writes benchmarks/compare.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from first_run import memory, watched

OUT = Path(__file__).with_suffix(".json")
SEARCHERS = "random,nevergrad,random-soft,cma-es"
SETTINGS = ["--set", "length=10", "--set", "alpha=10"]
CLAIMS = {
    12: ["--searchers", SEARCHERS, "--seeds", "3", *SETTINGS],
    30: ["--searchers", f"{SEARCHERS},nevergrad-soft", "--seeds", "6", "--budget", "2560", *SETTINGS],
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, choices=sorted(CLAIMS), nargs="+", default=sorted(CLAIMS))
    args = parser.parse_args()
    known = json.loads(OUT.read_text())["runs"] if OUT.exists() else {}
    for runs in args.runs:
        known[str(runs)] = measure(CLAIMS[runs])
        print(json.dumps(known[str(runs)], indent=1), flush=True)
    OUT.write_text(json.dumps({"command": "python benchmarks/compare.py", "runs": known}, indent=1) + "\n")


def measure(options: list[str]) -> dict[str, Any]:
    """One comparison: its seconds, its memory at its peak (GB), and the processes that it had."""
    peaks: list[float] = []
    scorers: set[int] = set()
    trials: list[int] = []

    def look(pids: list[int]) -> None:
        peaks.append(memory(pids))
        titles = {pid: title(pid) for pid in pids}
        scorers.update(pid for pid, name in titles.items() if name.startswith("ray::ScorerActor"))
        trials.append(sum(name.startswith("ray::ResourceTrainable") for name in titles.values()))

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "rayprompt.cli.main",
            "compare",
            "--json",
            "--out",
            f"{folder}/study",
            *options,
        ]
        found, seconds = watched(command, look)
    third = len(peaks) // 3
    return {
        "command": " ".join(["rayprompt compare", *options]),
        "seconds": round(seconds, 1),
        "runs": len(found["runs"]),
        "evaluations": sum(run["evaluations"] for run in found["runs"]),
        "report_evaluations": found["report_evaluations"],
        "device_seconds": round(sum(run["device_seconds"] for run in found["runs"]), 1),
        "gradient_seconds": round(sum(b["seconds"] for b in found["baselines"]), 1),
        "peak_memory_gb": round(max(peaks), 2),
        "memory_gb_by_thirds": [round(max(peaks[i : i + third]), 2) for i in (0, third, 2 * third)],
        "processes_that_held_an_lm": len(scorers),
        "most_trial_processes": max(trials),
        "table": [
            {"searcher": row["searcher"], "test": row["test"], "letters": row["letters"]}
            for row in found["tables"][0]["rows"]
        ],
        "baselines": [{"name": row["name"], "test": row["test"]} for row in found["tables"][0]["baselines"]],
    }


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    main()
