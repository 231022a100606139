"""What MKL's strict mode costs: way (b) of scoring.py with it and without, in processes that take turns.

    python benchmarks/strict.py [--seconds 4] [--rounds 6] [--settings masked-mr,causal-mr,causal-before-mr]

A process scores the work of a setting on one thread, again and again for some seconds, and says the least CPU time
that one time took. The cost is the median over rounds of strict / loose, of neighbors in time. It also says whether the
test at load found the same bits at other addresses. Writes benchmarks/strict.json; needs the shared data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scoring import SETTINGS, Work, in_process, problem_of, random_lm

from rayprompt.lm.bits import machine_of, same_bits
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of

OUT = Path(__file__).with_suffix(".json")
WAYS = {"strict": "AUTO,STRICT", "loose": ""}  # MKL takes an empty MKL_CBWR for none


def child(name: str, seconds: float, model: str, data: Path) -> dict[str, Any]:
    """What one process finds."""
    work = Work.of(problem_of(SETTINGS[name], data, model), SETTINGS[name].prompt_tokens, 16)
    scorer = LMScorer(work.problem.lm)
    table = table_of("cpu", scorer.token_bytes, work.problem.lm.max_length, scorer.tokens)
    run = in_process(work, scorer, table, 1)
    run()
    least, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.process_time()
        run()
        least = min(least, time.process_time() - begun)
    return {"seconds": least, "same_bits": same_bits(scorer), "machine": machine_of(scorer.device, scorer.dtype)}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a process")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--settings", default="masked-mr,causal-mr,causal-before-mr")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, minilm = shared / "data" / "few-shot", shared / "models" / "minilm-reviews"
    if args.child:
        print(json.dumps(child(args.child, args.seconds, args.model, data)))
        return
    rows = []
    for name in args.settings.split(","):
        with tempfile.TemporaryDirectory() as folder:
            causal = SETTINGS[name].family == "causal"
            model = random_lm(Path(folder), "gpt2-6x384", minilm) if causal else str(minilm)
            command = [sys.executable, __file__, "--child", name, "--model", model, "--seconds", str(args.seconds)]
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for number in range(args.rounds):
                for way in list(WAYS) if number % 2 else list(WAYS)[::-1]:
                    done = subprocess.run(
                        command, env={**os.environ, "MKL_CBWR": WAYS[way]}, capture_output=True, text=True, check=True
                    )
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
        took = {way: np.array([one["seconds"] for one in found[way]]) for way in WAYS}
        ratios = took["strict"] / took["loose"]
        row = {
            "setting": name,
            "machine": {way: found[way][0]["machine"] for way in WAYS},
            "same_bits": {way: all(one["same_bits"] for one in found[way]) for way in WAYS},
            "least_seconds": {way: round(float(took[way].min()), 4) for way in WAYS},
            "strict/loose": round(float(np.median(ratios)), 3),
            "of_rounds": [round(float(r), 3) for r in ratios],
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
