"""The machine classes that a study's scores come from: scores of two are never taken for equal unawares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayprompt.errors import InputError
from rayprompt.scoring.pool import ScoringPool

UNNAMED = ("cpu", "cuda")  # what studies and stores of earlier versions say


def classes_of(pool: Mapping[str, Any]) -> list[str]:
    """The machine classes of a pool as study.yaml has it, the latest last; of older studies ``cpu`` or ``cuda``."""
    latest = pool.get("device_class")
    return [*pool.get("earlier_classes", []), *([] if latest is None else [str(latest)])]


def admit(pool: ScoringPool, classes: Sequence[str], where: str, *, allowed: bool) -> str | None:
    """Let a pool go on with what has scores from machines of ``classes``; gives a remark where last bits may differ.

    The pool then reads the scores of those classes that its search has stored, too (``ScoringPool.earlier``).

    Raises:
        InputError: they are of another machine class, and that is not ``allowed``.
    """
    now = pool.device_class
    pool.earlier = tuple(name for name in dict.fromkeys(classes) if name != now)
    if not classes or classes[-1] == now:
        return None
    was = classes[-1]
    if was in UNNAMED and was == now.partition(":")[0]:
        return (
            f"{where} does not name the machine that its scores are from ({was}), this is {now}: last bits may differ"
        )
    if not allowed:
        raise InputError(
            f"{where}: its scores are from machine class {was}, the scorers here are {now}; last bits would differ: "
            "resume on a machine of that class, or allow it with --other-machine"
        )
    return f"{where} has scores from {was}, those from here on are from {now} (--other-machine): last bits differ"
