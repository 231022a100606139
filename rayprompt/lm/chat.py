"""Chat templates: the tokenizer's own wraps a task's template, so that the answer is the assistant's turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from rayprompt.errors import InputError
from rayprompt.template import Piece, Template

MARKS = ("\ue000", "\ue001")  # private use: in no template


def in_chat(template: Template, tokenizer: Any, chat: str, model: str) -> Template:
    """``template`` inside the tokenizer's chat template.

    ``chat``: ``user`` puts all of it into one user message, ``system`` the prompt into a system message of its own.

    Raises:
        InputError: the LM has no chat template, or none with a system message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"--lm chat={chat}: {model} has no chat template (its tokenizer_config.json names none)")
    roles = ("user",) if chat == "user" else ("system", "user")
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)]
    try:
        with limited():
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            bare = [{**m, "content": m["content"] + "\n"} for m in messages]
            trims = MARKS[0] + "\n" not in tokenizer.apply_chat_template(
                bare, tokenize=False, add_generation_prompt=True
            )
    except TooLong as error:
        raise InputError(f"--lm chat={chat}: the chat template of {model} does not end ({error})") from None
    except Exception as error:  # chat templates raise what they like
        raise InputError(f"--lm chat={chat}: the chat template of {model} does not take it ({error})") from None
    around: list[str] = []
    for mark in MARKS[: len(roles)]:
        if text.count(mark) != 1:
            raise InputError(f"--lm chat={chat}: the chat template of {model} does not show the {roles[len(around)]}")
        before, text = text.split(mark)
        around.append(before)
    contents = [list(template.pieces)]
    if chat == "system":
        contents = [[p for p in template.pieces if p.kind == kind] for kind in ("prompt",)]
        contents.append([p for p in template.pieces if p.kind != "prompt"])
    pieces: list[Piece] = []
    source = ""
    for before, inside in zip(around, contents, strict=True):
        pieces += [Piece("raw", before, ""), *inside]
        source += before + "".join(p.space * bool(i) + _written(p) for i, p in enumerate(inside))
    end = "" if trims else template.end  # many chat templates trim what a message has around it
    return Template(source + end + text, (*pieces, Piece("raw", end + text, "")))


class TooLong(Exception):
    """A chat template took too many steps, too much time, or too much memory."""


@contextmanager
def limited(seconds: float = 10.0, steps: int = 2_000_000, megabytes: int = 1024) -> Iterator[None]:
    """Raise :class:`TooLong` in Python code that goes beyond a limit; for code from elsewhere, as chat templates are.

    A chat template is a program, whose loops and recursions may have no end.
    """
    end = time.monotonic() + seconds
    most = _peak() + megabytes
    done = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal done
        done += 1
        if done > steps:
            raise TooLong(f"more than {steps:,} steps")
        if done % 256 == 0:
            if time.monotonic() > end:
                raise TooLong(f"more than {seconds:g} seconds")
            if _peak() > most:
                raise TooLong(f"more than {megabytes} MB")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _peak() -> float:
    """The most memory that this process has had, in MB; 0 where it is not told."""
    if resource is None:
        return 0.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (1024 if sys.platform == "linux" else 1024**2)


def _written(piece: Piece) -> str:
    return piece.text if piece.kind == "literal" else "{" + piece.text + "}"
