"""What deep prompts take in memory: a scorer and a searcher for an LM of 24 layers, 1,024 wide.

    python benchmarks/deep_memory.py [--turns 24] [--candidates 4]

A random LM of RoBERTa-large's size, prompts of 50 tokens in all layers, 500 numbers each: BBTv2's setting, where 24
projections of 51,200 x 500 numbers would be 2.5 GB. In a process of its own each, peak memory (resident) of
- the scorer, behind loading the LM, measuring the hidden states, and a turn of each layer;
- the searcher, behind 16 rounds of 24 turns of 20 candidates.
Writes benchmarks/deep_memory.json. Takes some ten minutes on two cores; needs the shared LM's tokenizer
(RAYPROMPT_SHARED, or ../shared).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scoring import random_lm

from rayprompt import Problem, Task
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of
from rayprompt.lm.soft import block_of
from rayprompt.scores import Scores
from searchers.cma_es_deep import DeepCMAESSearcher

OUT = Path(__file__).with_suffix(".json")
LAYERS, WIDTH, LENGTH, DIM = 24, 1024, 50, 500
TEXTS = ("a film so good that nobody should miss it", "however long it may be , it is a bad one")


def problem_of(model: str) -> Problem:
    """Two examples: memory does not depend on their number."""
    rows = [{"text": text, "label": i} for i, text in enumerate(TEXTS)]
    task = Task.from_examples(
        "memory", template={"masked": "{prompt} . {text} It was {mask} ."}, label_words={0: "great", 1: "terrible"},
        train=rows, dev=[{"text": "one", "label": 0}], test=[{"text": "two", "label": 1}],
    )  # fmt: skip
    return Problem(task, model)


def peak() -> int:
    """The peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def scorer_peaks(model: str, turns: int, candidates: int) -> dict[str, Any]:
    """MB of a scorer, step by step."""
    problem = problem_of(model)
    found: dict[str, Any] = {"imported": peak()}
    scorer = LMScorer(problem.lm)
    found["loaded"] = peak()
    searcher = DeepCMAESSearcher(problem, length=LENGTH, intrinsic_dim=DIM, projection="normal", budget=8000)
    searcher._outline.scaled(problem, searcher.settings, _Here(scorer))  # type: ignore[arg-type]
    found["measured"] = peak()
    table = table_of("cpu", scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    part = problem.part("train")
    seconds = []
    for _ in range(turns):
        begun = time.perf_counter()
        prompts = searcher.ask(20)
        request = Request.of_all(part, [problem.token_ids(p) for p in prompts[:candidates]])
        block = block_of(prompts[:candidates], problem.vectors)  # type: ignore[arg-type]
        score_request(scorer, table, replace(request, soft=np.arange(candidates)), block)
        values = np.arange(20.0)
        searcher.tell(prompts, Scores.of_values(prompts, values))
        seconds.append(time.perf_counter() - begun)
    found["turns"] = peak()
    found["vectors_kept"] = scorer.soft.products.bytes // 2**20
    found["states_kept"] = 0 if scorer.packed is None else scorer.packed.states.bytes // 2**20
    return found


class _Here:
    """Measures in this process, as a scoring actor does in its own."""

    def __init__(self, scorer: LMScorer) -> None:
        self.scorer = scorer

    def hidden_stds(self, part: Any, prompt: Any, layers: Any, p0: Any) -> Any:
        from rayprompt.lm.deep import hidden_stds

        return hidden_stds(self.scorer, part, block_of([prompt], p0), layers)


def searcher_peaks(model: str) -> dict[str, Any]:
    """MB of a search's own process, step by step, for each kind of covariance."""
    problem = problem_of(model)
    found: dict[str, Any] = {"imported": peak()}
    rng = np.random.default_rng(0)
    for covariance in ("separable", "full"):
        searcher = DeepCMAESSearcher(
            problem, length=LENGTH, intrinsic_dim=DIM, projection="uniform", covariance=covariance, budget=8000
        )
        begun = time.perf_counter()
        while prompts := searcher.ask(20):
            searcher.tell(prompts, Scores.of_values(prompts, rng.random(20)))
        found[covariance] = peak()
        found[f"{covariance}_seconds"] = round(time.perf_counter() - begun, 1)
        found["candidates"] = searcher.learned * 20
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=LAYERS)
    parser.add_argument("--candidates", type=int, default=4, help="that are scored of each turn's 20")
    args = parser.parse_args()
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    minilm = shared / "models" / "minilm-reviews"
    if not minilm.is_dir():
        raise SystemExit(f"needs {minilm}: set RAYPROMPT_SHARED")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with spawn.Pool(1) as making:
            model = making.apply(random_lm, (Path(folder), "roberta-large", minilm))
        with spawn.Pool(1) as one:
            scorer = one.apply(scorer_peaks, (model, args.turns, args.candidates))
        with spawn.Pool(1) as other:
            searcher = other.apply(searcher_peaks, (model,))
    content = {
        "command": "python benchmarks/deep_memory.py",
        "lm": f"{LAYERS} layers x {WIDTH}, prompts of {LENGTH} tokens, {DIM} numbers a layer",
        "kept_projections_would_take_mb": LAYERS * LENGTH * WIDTH * DIM * 4 // 2**20,
        "scorer_peak_mb": scorer,
        "searcher_peak_mb": searcher,
    }
    OUT.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
