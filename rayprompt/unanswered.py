"""Reason: why a pair that was asked has no usable answer. Plain data, no imports of the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

TRIED = 3  # candidates without an answer on an example, after which it is not asked any more
NAMED = 10  # examples in a line for people


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


def tally(pairs: int, counts: Sequence[int], examples: Sequence[int]) -> dict[str, Any]:
    """The JSON form of how many pairs of a part are unanswered, and why.

    Args:
        pairs: all that were asked, those that were skipped included.
        counts: of each reason, by its number.
        examples: positions of the examples on which no prompt got an answer.
    """
    reasons = {reason.label: int(counts[reason]) for reason in Reason if reason != Reason.ANSWERED}
    return {"pairs": int(pairs), "unanswered": sum(reasons.values()), "reasons": reasons, "examples": list(examples)}


def shown(parts: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Part -> :func:`tally` as one line for people; empty where every pair was answered."""
    lines = []
    for part, found in parts.items():
        if not found or not found["unanswered"]:
            continue
        why = [f"{count:,} {name}" for name, count in found["reasons"].items() if count]
        share = f"{found['unanswered']:,} of {found['pairs']:,} pairs on {part} ({share_of(found):.1%})"
        examples = found["examples"]
        more = ", ..." if len(examples) > NAMED else ""
        named = ", ".join(str(i + 1) for i in examples[:NAMED]) + more
        nobody = f"; no prompt got an answer on example{'s' if len(examples) > 1 else ''} {named}" if examples else ""
        lines.append(f"{share}: {', '.join(why)}{nobody}")
    return f"unanswered, counted as not right: {'; '.join(lines)}" if lines else ""


def share_of(found: Mapping[str, Any]) -> float:
    """The share of unanswered pairs in a :func:`tally`."""
    return float(found["unanswered"]) / max(1, int(found["pairs"]))
