"""Reason: why a pair that was asked has no usable answer. Plain data, no imports of the project."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Whether the LM answered a pair, and if not, why. The numbers are part of the store's format.

    An unanswered pair is neither a wrong answer nor a gap: its log-probabilities are NaN, or its completion is None or
    not to be used. Every metric and every objective counts it as not right.
    """

    ANSWERED = 0
    NAN = 1
    REFUSED = 2
    FAILED = 3
    CUT = 4
    UNSEEN = 5
    SKIPPED = 6

    @property
    def label(self) -> str:
        """The name in files and tables: ``refused``, ``failed`` and so on."""
        return self.name.lower()

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return MEANING[self]


MEANING = {
    Reason.ANSWERED: "the LM answered",
    Reason.NAN: "the LM's scores were not finite",
    Reason.REFUSED: "the service refused this input",
    Reason.FAILED: "no usable answer after all tries",
    Reason.CUT: "the answer was cut before its end",
    Reason.UNSEEN: "the answer had none of the label words",
    Reason.SKIPPED: "not asked: no prompt got an answer on this example",
}
