"""How checks say what is wrong: exceptions, and messages of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager


class ConformanceError(AssertionError):
    """A searcher failed checks: one line for each."""


class Failed(Exception):
    """A check found a fault in the searcher; the message is one line."""


class Skip(Exception):
    """A check does not apply to the searcher; the message says why."""


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {cut(lines[0], 200)}".rstrip(": ")


def short(value: object, most: int = 90) -> str:
    """A value for a message, in ``most`` characters."""
    return cut(repr(value), most)


def cut(text: str, most: int = 90) -> str:
    """A text for a message, in ``most`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Around a call of the searcher's: an exception from it is the searcher's fault."""
    try:
        yield
    except (Failed, Skip):
        raise
    except Exception as error:
        raise Failed(f"{what} raised {one_line(error)}") from error


@contextmanager
def when(what: str) -> Iterator[None]:
    """Puts the circumstances before the message of a fault."""
    try:
        yield
    except Failed as fault:
        raise Failed(f"{what}: {fault}") from fault


def expect(right: object, message: str) -> None:
    """Fault the searcher unless ``right``."""
    if not right:
        raise Failed(message)


def form(value: object) -> str:
    """A config as text, for comparisons: equal forms are equal configs."""
    return json.dumps(value, sort_keys=True, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v))


def expect_same(got: list[str], expected: list[str], what: str) -> None:
    """Fault the searcher where two lists of suggestions (forms) differ, naming the first difference."""
    for number, (one, other) in enumerate(zip(got, expected, strict=False)):
        expect(one == other, f"{what}; suggestion {number} is {cut(one)}, right: {cut(other)}")
    expect(len(got) == len(expected), f"{what}; {len(got)} suggestions came, right: {len(expected)}")
