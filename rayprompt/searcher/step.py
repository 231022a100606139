"""One step of a search: ask -> score -> tell.

Every way of running a searcher goes through the same three: ``PromptSearcher.ask_generation``,
:func:`score_generation`, ``PromptSearcher.tell``. A search in one trial does them in turn (:func:`ask_score_tell`);
with a Tune trial per batch the searcher asks and is told on the driver, and the trials have the batches scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayprompt.candidate import Candidate
from rayprompt.scores import Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.conditioned import score_candidates
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.race import Racer


@dataclass(frozen=True)
class Step:
    """What a step did: C candidates, their scores, and where the time went.

    ``differs``: the searcher asked for other candidates than it is on record to have asked for.
    """

    candidates: tuple[Candidate, ...]
    scores: Scores
    new_pairs: int
    ask_seconds: float
    score_seconds: float
    tell_seconds: float
    differs: bool = False


@dataclass(frozen=True)
class Heat:
    """A generation that races: whom against, best first (none: scored in full), and the how manieth generation."""

    racer: Racer
    finalists: Sequence[Candidate]
    number: int


def score_generation(
    problem: Problem, evaluator: Evaluator, candidates: Sequence[Candidate], heat: Heat | None = None
) -> Scores:
    """Score candidates on the train examples, as far as the budget goes, or as far as they get in a race."""
    if heat is not None:
        return heat.racer.score(evaluator, candidates, heat.finalists, heat.number)
    return score_candidates(problem, evaluator, candidates)


def ask_score_tell(
    searcher: PromptSearcher,
    evaluator: Evaluator,
    *,
    recorded: Sequence[Candidate] | None = None,
    record: Callable[[Sequence[Candidate]], None] | None = None,
    heat: Heat | None = None,
) -> Step:
    """Ask for a generation, score it as far as the budget goes, and tell. No candidates: nothing is left to ask for.

    Args:
        searcher, evaluator: who asks, and who answers.
        recorded: what was asked for here by the process that this one replaces; it is scored and told again.
        record: called with the candidates when they are scored, before they are told.
        heat: how they race; None: all are scored in full.
    """
    started = time.perf_counter()
    candidates = searcher.ask_generation()
    differs = recorded is not None and [c.key for c in candidates] != [c.key for c in recorded]
    if recorded is not None:
        candidates = tuple(recorded)
    asked = time.perf_counter()
    before = evaluator.ledger.evaluations
    scores = score_generation(searcher.problem, evaluator, candidates, heat)
    scored = time.perf_counter()
    if candidates and record is not None:
        record(candidates)
    if candidates:
        searcher.tell(candidates, scores)
    return Step(
        candidates=candidates,
        scores=scores,
        new_pairs=evaluator.ledger.evaluations - before,
        ask_seconds=asked - started,
        score_seconds=scored - asked,
        tell_seconds=time.perf_counter() - scored,
        differs=differs,
    )
