"""How many scorers a pool has: ``--scorers auto``, ``N`` or ``MIN:MAX``; or whose they are: ``pool:NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayprompt.errors import InputError
from rayprompt.typed import whole

Scorers = int | str | None  # as a user gives it
POOL = "pool:"  # in front of the name of a pool that is up


def shared_name(scorers: Scorers) -> str | None:
    """The pool's name of ``pool:NAME``; None where scorers are started.

    Raises:
        InputError: there is no name.
    """
    if not isinstance(scorers, str) or not scorers.startswith(POOL):
        return None
    if scorers == POOL:
        raise InputError(f"--scorers {scorers}: must be {POOL}NAME (see: rayprompt pool status)")
    return scorers.removeprefix(POOL)


@dataclass(frozen=True)
class PoolSize:
    """The fewest and the most scorers of a pool; ``most`` None is as many as there is room for."""

    least: int = 1
    most: int | None = None

    @classmethod
    def of(cls, given: Scorers) -> PoolSize:
        """Read ``auto`` (or None), ``N`` or ``MIN:MAX``.

        Raises:
            InputError: it is none of them.
        """
        if given is None or given == "auto":
            return cls()
        low, colon, high = str(given).partition(":")
        ends = (low, high) if colon else (low, low)
        least, most = map(whole, ends)
        if isinstance(given, bool) or least is None or most is None:
            raise InputError(f"--scorers {given}: must be auto, a number, MIN:MAX as in 2:16, or pool:NAME")
        if least < 1:
            raise InputError(f"--scorers {given}: must be 1 or more")
        if most < least:
            raise InputError(f"--scorers {given}: the most must not be fewer than the least, as in {most}:{least}")
        return cls(least, most)

    def within(self, room: int) -> int:
        """How many there are to be where there is room for so many; never fewer than ``least``."""
        return max(self.least, room if self.most is None else min(room, self.most))

    @property
    def varies(self) -> bool:
        return self.most != self.least


def room_for(share: float, resources: Mapping[str, float]) -> int:
    """How many scorers with that share of a GPU find room; a share lies on one GPU."""
    return int(resources.get("GPU", 0.0) + 1e-6) * int(1 / share + 1e-9)
