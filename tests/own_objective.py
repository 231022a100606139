"""Objectives of a user's own, for tests: a search imports them in another process."""

from __future__ import annotations

import numpy as np

from rayprompt.scores import FloatArray, IntArray, Scores


def brevity(scores: Scores, gold: IntArray) -> FloatArray:
    """Accuracy, less a little for every character of the prompt."""
    return scores.mean_value() - 0.001 * np.array([len(c.to_json()["text"]) for c in scores.candidates])


def too_many(scores: Scores, gold: IntArray) -> FloatArray:
    """A value too many."""
    return np.zeros(len(scores.candidates) + 1)
