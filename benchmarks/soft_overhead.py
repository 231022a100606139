"""What the framework itself takes for a generation of soft prompts, beside the LM's forward passes.

    python benchmarks/soft_overhead.py [--generations 8]

Needs the shared data (RAYPROMPT_SHARED, or ../shared): few-shot/mr and the LM minilm-reviews. A generation of cma-es as
released (d = 500, 50 tokens, 20 candidates, 32 train examples): ask, projection and tell, against scoring it on
minilm-reviews (hidden 384) with two threads, all in one process and one run. The projection for a hidden size of 1024
(roberta-large) is timed apart. Writes benchmarks/soft_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rayprompt import Problem
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.projection import projection_digest, projection_matrix
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of
from rayprompt.lm.soft import block_of
from rayprompt.scores import Scores
from searchers.cma_es import CMAESSearcher

OUT = Path(__file__).with_suffix(".json")
LANES = 2


def main() -> None:
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=8)
    args = parser.parse_args()
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, model = shared / "data" / "few-shot" / "mr", shared / "models" / "minilm-reviews"
    if not data.is_dir() or not model.is_dir():
        raise SystemExit(f"needs {data} and {model}: set RAYPROMPT_SHARED")
    problem = Problem("mr", str(model), split="16-13", data=data)
    result = {
        "command": " ".join(["python benchmarks/soft_overhead.py", "--generations", str(args.generations)]),
        **generations(problem, args.generations),
        "projection_hidden_1024": projection(problem),
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def generations(problem: Problem, count: int) -> dict[str, Any]:
    """Median milliseconds of each part of a generation; the first, which draws the matrix, is given apart."""
    searcher = CMAESSearcher(problem, seed=0, alpha=10.0)
    scorer, part, gold = LMScorer(problem.lm), problem.part("train"), problem.gold
    table = table_of("cpu", scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    times: dict[str, list[float]] = {"ask": [], "projection": [], "tell": [], "scoring": []}
    with ThreadPoolExecutor(LANES) as pool:
        for _ in range(count + 1):
            clock = time.perf_counter()
            prompts: list[Any] = list(searcher.ask(searcher.generation))
            clock = lap(times["ask"], clock)
            block = block_of(prompts, problem.vectors)
            with torch.inference_mode():
                torch.set_num_threads(1)
                scorer.soft.vectors(block, np.arange(len(prompts)))  # kept: scoring finds it done
            clock = lap(times["projection"], clock)
            ids = [problem.token_ids(p) for p in prompts]
            request = replace(Request.of_all(part, ids), soft=np.arange(len(prompts)))
            values = score_request(scorer, table, request, block, threads=pool)[0].reshape(len(prompts), len(part), -1)
            clock = lap(times["scoring"], clock)
            searcher.tell(prompts, Scores.of_values(prompts, values[:, np.arange(len(gold)), gold].mean(axis=1)))
            lap(times["tell"], clock)
    assert len(part) == len(gold)
    middle = {name: median(seconds[1:]) for name, seconds in times.items()}
    own = middle["ask"] + middle["projection"] + middle["tell"]
    return {
        "candidates": len(prompts),
        "examples": len(gold),
        "intrinsic_dim": searcher.settings.intrinsic_dim,
        "prompt_tokens": searcher.space.subspace.length,
        "hidden": problem.lm.width,
        "milliseconds_a_generation": {name: round(1000 * seconds, 1) for name, seconds in middle.items()},
        "first_projection_milliseconds": round(1000 * times["projection"][0], 1),
        "own_share_of_scoring": round(own / middle["scoring"], 4),
    }


def projection(problem: Problem) -> dict[str, float]:
    """Milliseconds for hidden 1024, 50 tokens, d = 500: to draw the matrix once, and the product of a generation."""
    space = CMAESSearcher(problem, seed=0).space.subspace
    space = replace(space, width=1024, digest=projection_digest(space.seed, space.projection, 500, 50 * 1024))
    started = time.perf_counter()
    matrix = torch.from_numpy(projection_matrix(space))
    drawn = time.perf_counter() - started
    z = torch.randn(32, 500)
    seconds = []
    torch.set_num_threads(1)
    for _ in range(20):
        started = time.perf_counter()
        z @ matrix
        seconds.append(time.perf_counter() - started)
    floor = 2 * 32 * 500 * 50 * 1024
    return {
        "draw_milliseconds": round(1000 * drawn, 1),
        "product_milliseconds": round(1000 * median(seconds), 1),
        "product_gflops": round(floor / median(seconds) / 1e9, 1),
        "matrix_megabytes": round(matrix.numel() * 4 / 2**20, 1),
    }


def lap(seconds: list[float], since: float) -> float:
    """Note the time since ``since``; gives the time now."""
    now = time.perf_counter()
    seconds.append(now - since)
    return now


if __name__ == "__main__":
    main()
