"""The ledger of a search: what it asked for, what it cost, and the limit it must keep."""

from __future__ import annotations

from dataclasses import dataclass

from rayprompt.errors import InputError


@dataclass
class Ledger:
    """Counts of one search; ``budget`` is a hard limit on ``evaluations``.

    Attributes:
        budget: the most distinct pairs (candidate, example, sample) that the search may ask for.
        evaluations: distinct pairs asked for so far; the x-axis of every curve.
        lm_evaluations: pairs the LM really ran, those that were run again after a scorer was lost included. What a
            search that was killed had on its way is not known.
        report_evaluations: pairs of the closing report (dev for finalists, test for winner and baselines).
        asked_tokens, asked_written, asked_seconds: what the pairs in ``evaluations`` cost whoever had them scored
            first, this search or an earlier one: the cost of the search had it been alone with an empty store.
        cache_hits: pairs answered without the LM: asked for again, known from a store, or replayed after a death.
        tokens: tokens of the LM's input and output, padding not counted.
        written: those of them that the LM wrote.
        cut: completions that the limit of new tokens ended.
        seconds: the scorers' time, in seconds, summed over lanes that work side by side.
        shape_breaks: batches cut smaller than the shape table says, for lack of memory.
    """

    budget: int
    evaluations: int = 0
    asked_tokens: int = 0
    asked_written: int = 0
    asked_seconds: float = 0.0
    lm_evaluations: int = 0
    report_evaluations: int = 0
    cache_hits: int = 0
    tokens: int = 0
    written: int = 0
    cut: int = 0
    seconds: float = 0.0
    shape_breaks: int = 0

    def __post_init__(self) -> None:
        if self.budget <= 0:
            raise InputError(f"budget {self.budget}: must be 1 or more evaluations (candidate x example pairs)")

    @property
    def remaining(self) -> int:
        """Evaluations that may still be asked for."""
        return self.budget - self.evaluations

    def charge(self, pairs: int) -> None:
        """Take ``pairs`` new evaluations from the budget, before they are scored.

        Raises:
            BudgetExceeded: they would cross the limit; nothing is charged.
        """
        if pairs > self.remaining:
            raise BudgetExceeded(f"{pairs} evaluations asked for, {self.remaining} of {self.budget} left")
        self.evaluations += pairs


class BudgetExceeded(RuntimeError):
    """A request would cross the budget. Callers cut what they ask for, so this is a programming error."""
