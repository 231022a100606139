"""The scoring actor: one LM on one device, fed with micro-batches by the router."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import ray

from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.scorer import LMScorer, MicroBatch
from rayprompt.lm.source import LMSource
from rayprompt.scores import FloatArray, IntArray


@dataclass(frozen=True)
class BatchResult:
    """Answers to a micro-batch of n pairs: (n, L) label log-probabilities, (n,) tokens, seconds of the pass."""

    label_log_probs: FloatArray
    tokens: IntArray
    seconds: float


@dataclass(frozen=True)
class ScorerInfo:
    """What a ready actor says of itself."""

    device: str
    dtype: str
    lanes: int
    node: str
    pid: int
    load_seconds: float


class ScorerActor:
    """Holds an LM; made into a Ray actor by the pool. ``lanes`` micro-batches run side by side, a thread each."""

    def __init__(self, source: LMSource, lanes: int, use_gpu: bool) -> None:
        started = time.perf_counter()
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        self.source = source
        self.device = "cuda" if use_gpu else "cpu"
        self.scorer = LMScorer(source, self.device)
        self.parts: dict[str, EncodedPart] = {}
        self.lanes = lanes
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
        )

    def score(self, batch: MicroBatch, part: list[Any]) -> BatchResult:
        """Score a micro-batch; ``part`` holds the reference to its examples, fetched once per part."""
        started = time.perf_counter()
        if batch.part not in self.parts:
            self.parts[batch.part] = ray.get(part[0])
        log_probs, tokens = self.scorer.score(batch, self.parts[batch.part])
        return BatchResult(log_probs, tokens, time.perf_counter() - started)
