"""The scoring actor: one LM on one device, fed with micro-batches by the router."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.scorer import LMScorer, MicroBatch
from rayprompt.lm.source import LMSource
from rayprompt.scores import FloatArray, IntArray


@dataclass(frozen=True)
class BatchResult:
    """Answers to an order, the n pairs of its micro-batches: (n, L) label log-probabilities, (n,) tokens, (n,) seconds.

    ``breaks`` counts the times it was cut in two for lack of memory, ``tries`` the scorers it was sent to.
    """

    label_log_probs: FloatArray
    tokens: IntArray
    seconds: FloatArray
    breaks: int
    tries: int = 1


@dataclass(frozen=True)
class ScorerInfo:
    """What a ready actor says of itself."""

    device: str
    dtype: str
    lanes: int
    node: str
    pid: int
    load_seconds: float
    gpus: tuple[int, ...]


def cuda_is_available() -> bool:
    """Whether torch finds a GPU in this process."""
    import torch

    return torch.cuda.is_available()


class ScorerActor:
    """Holds an LM; made into a Ray actor by the pool. ``lanes`` micro-batches run side by side, a thread each."""

    def __init__(self, source: LMSource, lanes: int, use_gpu: bool) -> None:
        started = time.perf_counter()
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        self.source = source
        # Ray's GPUs are logical: a test may declare some on a machine that has none.
        self.device = "cuda" if use_gpu and cuda_is_available() else "cpu"
        self.scorer = LMScorer(source, self.device)
        self.parts: dict[str, EncodedPart] = {}
        self.lanes = lanes
        self.gate = threading.BoundedSemaphore(lanes)
        self.load_seconds = time.perf_counter() - started

    def __repr__(self) -> str:
        # Ray asks for this after a failed constructor too: it may rest on the first assignments only.
        return f"Scorer({self.source.name}, {self.device})"

    def ready(self) -> ScorerInfo:
        """Answers once the LM is loaded."""
        return ScorerInfo(
            device=self.device,
            dtype=str(self.scorer.dtype).removeprefix("torch."),
            lanes=self.lanes,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            load_seconds=self.load_seconds,
            gpus=tuple(int(i) for i in ray.get_gpu_ids()),
        )

    def score(self, order: list[MicroBatch], part: list[Any]) -> BatchResult:
        """Score micro-batches of one part, one after the other; ``part`` holds the reference to its examples."""
        key = order[0].part
        if key not in self.parts:
            self.parts[key] = ray.get(part[0])
        log_probs, tokens, seconds, breaks = [], [], [], 0
        with self.gate:  # one more call than there are lanes is let in, so that the next is at hand
            for batch in order:
                started = time.perf_counter()
                scores, sizes, broken = self.scorer.score(batch, self.parts[key])
                log_probs.append(scores)
                tokens.append(sizes)
                seconds.append(np.full(len(sizes), (time.perf_counter() - started) / len(sizes), dtype=np.float32))
                breaks += broken
        return BatchResult(np.concatenate(log_probs), np.concatenate(tokens), np.concatenate(seconds), breaks)
