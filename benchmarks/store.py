"""The score store at 10 million pairs: bytes a pair, write and read rates, time to resume, memory.

    python benchmarks/store.py [--pairs 10000000] [--examples 32] [--labels 2] [--folder DIR]

A process writes random scores through the production writer, as a search does: generations of 20 candidates on all
examples, a file every 400,000 pairs, then one compaction. A second process opens the store as a resumed search does
(ScoreStore.load into a PairTable, then the recorded asks) and a third reads all of it as a plain table. Random
log-probabilities are the hardest to compress: real ones are smaller. Beside the rates stand the floors of the same run:
writing and reading the same bytes as plain files. Writes benchmarks/store.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).with_suffix(".json")
GENERATION = 20
PAIRS_A_FILE = 400_000


def write(folder: str, pairs: int, examples: int, labels: int) -> dict[str, Any]:
    """Write the store; the seconds are those of the writer, not of making random numbers."""
    from rayprompt.candidate import TextPrompt
    from rayprompt.pairs import Answers
    from rayprompt.store.schema import Context
    from rayprompt.store.store import ScoreStore
    from rayprompt.store.writer import ShardWriter

    store = ScoreStore(folder)
    store.prepare()
    names = [f"{i:032x}" for i in range(examples)]
    writer = ShardWriter(store, "bench", Context({"lm": "none"}), part="train", split="default", examples=names)
    rng = np.random.default_rng(0)
    block = GENERATION * examples
    candidate, example = np.repeat(np.arange(GENERATION), examples), np.tile(np.arange(examples), GENERATION)
    seconds, waiting = 0.0, 0
    for generation in range(1, -(-pairs // block) + 1):
        prompts = [TextPrompt("five words of a prompt", tuple(row)) for row in rng.integers(0, 30_000, (GENERATION, 5))]
        logits = rng.normal(size=(block, labels)).astype(np.float32)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        tokens = rng.integers(15, 40, examples)[example]
        times = np.repeat(rng.random(block // 16 + 1), 16)[:block]
        keys = [prompt.key for prompt in prompts]
        started = time.perf_counter()
        writer.add(keys, candidate, example, log_probs[:, 0] > log_probs[:, 1], Answers(log_probs, tokens, times))
        writer.add_asks(generation, prompts)
        waiting += block
        if waiting >= PAIRS_A_FILE:
            writer.flush()
            waiting = 0
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    writer.flush()
    seconds += time.perf_counter() - started
    before, files = size_of(folder)
    started = time.perf_counter()
    writer.close()
    compaction = time.perf_counter() - started
    after, fewer = size_of(folder)
    return {
        "pairs": block * generation,
        "write_seconds": round(seconds, 2),
        "write_pairs_per_second": round(block * generation / seconds),
        "files": files,
        "bytes_a_pair": round(before["scores"] / (block * generation), 2),
        "bytes_a_candidate": round(before["candidates"] / (GENERATION * generation), 1),
        "compaction_seconds": round(compaction, 2),
        "files_after_compaction": fewer,
        "bytes_a_pair_after_compaction": round(after["scores"] / (block * generation), 2),
    }


def load(folder: str, pairs: int, examples: int, labels: int) -> dict[str, Any]:
    """What a resumed search does before it goes on: its pair table, and its recorded asks."""
    from rayprompt.pairs import PairTable
    from rayprompt.store.schema import Context
    from rayprompt.store.store import ScoreStore

    before = memory()
    started = time.perf_counter()
    table = PairTable([f"{i:032x}" for i in range(examples)], labels)
    spent = ScoreStore(folder).load(table, Context({"lm": "none"}).key, "train", "bench")
    seconds = time.perf_counter() - started
    known = int(table.known.sum())
    started = time.perf_counter()
    generations = sum(
        1 for _ in ScoreStore(folder).asks("bench", after=ScoreStore(folder).last_generation("bench") - 100)
    )
    return {
        "resume_pairs": known,
        "resume_seconds": round(seconds, 2),
        "resume_pairs_per_second": round(spent.lm_evaluations / seconds),
        "asks_generations": generations,
        "asks_seconds": round(time.perf_counter() - started, 2),
        "resume_peak_memory_mb": round(memory() - before),
        "table_mb": round((table.log_probs.nbytes + table.tokens.nbytes + table.seconds.nbytes) / 2**20),
    }


def read(folder: str, pairs: int, examples: int, labels: int) -> dict[str, Any]:
    """All pairs as one table, each once."""
    from rayprompt.store.store import ScoreStore

    started = time.perf_counter()
    table = ScoreStore(folder).pairs()
    seconds = time.perf_counter() - started
    assert len(table) >= pairs
    return {"read_seconds": round(seconds, 2), "read_pairs_per_second": round(len(table) / seconds)}


def floors(folder: str, pairs: int, examples: int, labels: int) -> dict[str, Any]:
    """Plain files of as many bytes as the scores, and the arrays of all pairs in memory: nothing can be faster."""
    size = size_of(folder)[0]["scores"]
    content, path = os.urandom(size), Path(folder, "floor")
    started = time.perf_counter()
    path.write_bytes(content)
    written = time.perf_counter() - started
    started = time.perf_counter()
    path.read_bytes()
    done = time.perf_counter() - started
    path.unlink()
    return {"floor_write_seconds": round(written, 3), "floor_read_seconds": round(done, 3)}


def size_of(folder: str) -> tuple[dict[str, int], int]:
    """Bytes by table, and files in all."""
    paths = {kind: list(Path(folder, kind).iterdir()) for kind in ("scores", "candidates")}
    return {k: sum(p.stat().st_size for p in v) for k, v in paths.items()}, sum(len(v) for v in paths.values())


def memory() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own; with its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(work, arguments)
        return {**result, f"{work.__name__}_process_peak_mb": round(pool.apply(memory))}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    report: dict[str, Any] = {"command": " ".join(["python benchmarks/store.py", *sys.argv[1:]])}
    report |= {"cores": len(os.sched_getaffinity(0)), "examples": args.examples, "labels": args.labels}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for work in (write, load, read, floors):
            result = apart(work, folder, args.pairs, args.examples, args.labels)
            for name, value in result.items():
                print(f"{name:34} {value:>14,}")
            report |= result
    OUT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
