"""The errors a user can meet. Each carries the exit code of the command line (0 done, 1 failed, 2 bad input)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RayPromptError(Exception):
    """Something failed; the message is one line that says what and where."""

    exit_code = 1


class InputError(RayPromptError, ValueError):
    """What the user gave cannot be used: the message says what was given, what is right, and where."""

    exit_code = 2


class DamagedError(InputError):
    """A file is not what was written: bits have changed on the disk, or somebody has edited it."""


class ScoringError(RayPromptError, RuntimeError):
    """The LM could not score: an actor failed for good, or its LM did not load."""


class StoreError(RayPromptError, OSError):
    """A file of a score store or a study could not be written: the disk is full, or the directory is gone."""


class LeaseLost(StoreError):
    """Another process has taken the study over."""


class RestoreError(RayPromptError, RuntimeError):
    """A run that was to be restored was not: going on would start it from the beginning."""


class Interrupted(RayPromptError):
    """The run was stopped by SIGINT (Ctrl-C)."""

    exit_code = 130


def last_line(error: BaseException) -> str:
    """The last line of an error's message, which says what went wrong where a remote traceback is before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the known name nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(what: str, name: object, known: Iterable[str], where: str = "") -> InputError:
    """The error for a name that is not in a registry: what was given, the nearest, and all that are known."""
    names = sorted(known)
    place = f" in {where}" if where else ""
    return InputError(f"unknown {what} {name!r}{place}{did_you_mean(name, names)}; known: {', '.join(names)}")
