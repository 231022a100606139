"""Spans of time as people write them: ``90``, ``90s``, ``30m``, ``2h``, ``1d``."""

from __future__ import annotations

import re

from rayprompt.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def seconds_of(text: str, option: str) -> float:
    """Seconds of ``90``, ``90s``, ``30m``, ``2h`` or ``1d``.

    Raises:
        InputError: it is none of them, or 0.
    """
    found = SPAN.fullmatch(text.strip())
    seconds = float(found[1]) * UNITS[found[2] or "s"] if found else 0.0
    if not seconds:
        raise InputError(f"{option} {text}: must be a time, as 90s, 30m or 2h")
    return seconds


def span(seconds: float) -> str:
    """``90 s``, ``30 min``, ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
