"""MR, 16-shot, on a real LM: what `rayprompt search` finds, beside the empty and the manual prompt.

    python benchmarks/few_shot_mr.py [--split 16-13] [--budget 32000] [--searcher nevergrad] [search options]

Needs the shared data (RAYPROMPT_SHARED, or ../shared): few-shot/mr and the LM minilm-reviews. Makes the task folder
that the README shows and runs the command line on it; adds the result to benchmarks/few_shot_mr.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).with_suffix(".json")
TASK = """\
name: mr
kind: classification
template: {{masked: "{{text}} {{prompt}} {{mask}} .", causal: "{{text}} {{prompt}}"}}
label_words: {{0: terrible, 1: great}}
manual_prompt: It was
columns: {{text: [sentence, text], label: label}}
splits: {{train: {data}/{split}/train.tsv, dev: {data}/{split}/dev.tsv, test: {data}/test.tsv}}
"""


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="16-13")
    args, options = parser.parse_known_args()
    if "--budget" not in options:
        options += ["--budget", "32000"]
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, model = shared / "data" / "few-shot" / "mr", shared / "models" / "minilm-reviews"
    if not data.is_dir() or not model.is_dir():
        raise SystemExit(f"needs {data} and {model}: set RAYPROMPT_SHARED")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "task.yaml").write_text(TASK.format(data=data.resolve(), split=args.split))
        command = [sys.executable, "-m", "rayprompt.cli.main", "search", folder, "--model", str(model), "--json"]
        done = subprocess.run(
            [*command, "--out", f"{folder}/study", *options], stdout=subprocess.PIPE, text=True, check=True
        )
    result = json.loads(done.stdout.splitlines()[-1])
    baselines = result["baselines"].items()
    row = {
        "command": " ".join(["python benchmarks/few_shot_mr.py --split", args.split, *options]),
        "prompt": result["best_prompt"]["text"],
        **{part: result[part] for part in ("train", "dev", "test")},
        "baselines": {n: {"dev": b["dev"]["value"], "test": b["value"], "ci95": b["ci95"]} for n, b in baselines},
        "p_value_manual": result["p_value_manual"],
        "evaluations": result["evaluations"],
        "seconds": round(result["seconds"]),
        "evaluations_per_second": round(result["evaluations_per_second"]),
    }  # fmt: skip
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    OUT.write_text(json.dumps([r for r in rows if r["command"] != row["command"]] + [row], indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
