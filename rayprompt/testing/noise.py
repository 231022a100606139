"""A reward model that knows nothing: what is built on one must not be worse than without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.model import RewardModel
from rayprompt.scores import FloatArray, IntArray

NOISE = f"{__name__}:Noise"  # as --set reward_model=


class Noise(RewardModel):
    """Random numbers."""

    name = "noise"

    def _fit(self, x: Any, data: Demonstrations, rng: np.random.Generator) -> None:
        self.rng = rng

    def _predict(self, x: Any, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        return self.rng.random((x.shape[0], len(which)))
