"""One step of a search: ask -> score -> tell. Every way of running a searcher goes through here."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from rayprompt.candidate import Candidate
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.searcher.base import PromptSearcher


@dataclass(frozen=True)
class Step:
    """What a step did: C candidates, their scores, the searcher's objective (C,), and where the time went."""

    candidates: tuple[Candidate, ...]
    scores: Scores
    values: FloatArray
    new_pairs: int
    ask_seconds: float
    score_seconds: float
    tell_seconds: float


def ask_score_tell(searcher: PromptSearcher, evaluator: Evaluator) -> Step:
    """Ask for a generation, or for what the budget still pays, score it, and tell. No candidates: nothing is left."""
    started = time.perf_counter()
    candidates = searcher.ask(evaluator.affordable(searcher.generation))
    asked = time.perf_counter()
    before = evaluator.ledger.evaluations
    scores = evaluator.score(candidates, [searcher.problem.token_ids(c) for c in candidates])
    scored = time.perf_counter()
    values = searcher.values(scores) if candidates else np.empty(0)
    if candidates:
        searcher.tell(candidates, scores)
    return Step(
        candidates=tuple(candidates),
        scores=scores,
        values=values,
        new_pairs=evaluator.ledger.evaluations - before,
        ask_seconds=asked - started,
        score_seconds=scored - asked,
        tell_seconds=time.perf_counter() - scored,
    )
