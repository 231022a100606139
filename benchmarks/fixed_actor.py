"""The production scoring actor with a forward pass of a fixed time, as a GPU has: it waits, and takes no core."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from rayprompt.lm.shapes import Layout
from rayprompt.scoring.actor import ScorerActor
from rayprompt.scoring.pool import ScoringPool

PASS_SECONDS = float(os.environ.get("FIXED_PASS_SECONDS", "0.05"))


class FixedScorer:
    """In place of an LM: label log-probabilities from the numbers of prompt and example, after a fixed time a pass."""

    dtype, layout, tokens, cache_bytes, window = "float32", Layout("padded"), 512, 0.0, None

    def __init__(self) -> None:
        self.spent = 0.0
        self.passes = 0
        self.pairs = 0

    def score(self, load: Any, part: Any, block: Any = None) -> tuple[Any, Any, int]:
        """As :meth:`rayprompt.lm.scorer.LMScorer.score`."""
        passes = -(-len(load.prompt) // load.rows)
        began = time.perf_counter()
        time.sleep(PASS_SECONDS * passes)
        self.spent += time.perf_counter() - began
        self.passes += passes
        self.pairs += len(load.prompt)
        of_prompt = np.array([sum((i + 1) * t for i, t in enumerate(ids)) % 997 for ids in load.prompts]) / 997
        x = of_prompt[load.prompt] + 0.3 * np.sin(np.asarray(load.example, dtype=np.float64))
        log_probs = np.stack([-np.log1p(np.exp(-x)), -np.log1p(np.exp(x))], axis=1).astype(np.float32)
        lengths = np.array([len(ids) for ids in load.prompts])[load.prompt] + 8
        return log_probs, lengths.astype(np.int32), 0


class FixedActor(ScorerActor):
    """The actor, all but its LM."""

    def load(self) -> Any:
        """No LM."""
        return FixedScorer()

    def spent(self) -> tuple[float, int, int]:
        """Seconds in passes, passes and pairs, since the start."""
        return self.scorer.spent, self.scorer.passes, self.scorer.pairs  # type: ignore[attr-defined]


class FixedPool(ScoringPool):
    """A pool of them."""

    actor = FixedActor
