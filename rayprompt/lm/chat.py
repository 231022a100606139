"""Chat templates: the tokenizer's own wraps a task's template, so that the answer is the assistant's turn."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from rayprompt.errors import InputError
from rayprompt.template import Piece, Template

MARKS = ("\ue000", "\ue001")  # private use: in no template
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")  # today's date, in a chat template
# Prompts and texts that a chat template may change: it may trim, escape, or leave out an empty message.
PROBES = (("It was:", "a film"), ("", " a film\n"), ('"It" <is> A & B\'s {x}', "\tTwo  films:\n\n'so' \"good\" \\n \n"))


def today_in(tokenizer: Any) -> str | None:
    """Today's date, where the chat template shows it (as Llama 3's does), else None: a study keeps the one it has."""
    return date.today().isoformat() if NOW.search(str(getattr(tokenizer, "chat_template", None))) else None


def in_chat(template: Template, tokenizer: Any, chat: str, model: str, day: str | None = None) -> Template:
    """``template`` inside the tokenizer's chat template.

    Args:
        template, tokenizer, model: the task's template; the LM's tokenizer and name.
        chat: ``user`` puts all of it into one user message, ``system`` the prompt into a system message of its own.
        day: the date that the chat template shows; None is today.

    Raises:
        InputError: the LM has no chat template, none with a system message, or one that changes what messages say.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"--lm chat={chat}: {model} has no chat template (its tokenizer_config.json names none)")
    roles = ("user",) if chat == "user" else ("system", "user")
    marks = MARKS[: len(roles)]
    dated = {}
    if day is not None:
        when = datetime.fromisoformat(day)
        dated["chat_template"] = NOW.sub(lambda call: repr(when.strftime(call[2])), tokenizer.get_chat_template())

    def show(contents: Iterable[str]) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            with limited():
                return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **dated))
        except TooLong as error:
            raise InputError(f"--lm chat={chat}: the chat template of {model} does not end ({error})") from None
        except Exception as error:  # chat templates raise what they like
            raise InputError(f"--lm chat={chat}: the chat template of {model} does not take it ({error})") from None

    def split(shown: str, marks: Sequence[str]) -> list[str]:
        for role, mark in zip(roles[-len(marks) :], marks, strict=True):
            if shown.count(mark) != 1:
                raise InputError(f"--lm chat={chat}: the chat template of {model} does not show the {role}")
        found = re.split("|".join(marks), shown)
        if shown != "".join(a + b for a, b in zip(found, (*marks, ""), strict=True)):
            raise InputError(f"--lm chat={chat}: the chat template of {model} does not show the user behind the system")
        return found

    *around, text = split(show(marks), marks)
    spaced = show(f" \n{mark} \n" for mark in marks)
    trims = tuple((f" \n{mark}" not in spaced, f"{mark} \n" not in spaced) for mark in marks)
    bare: tuple[str, ...] = ()
    if chat == "system":
        first, last = split(show(["", marks[1]]), marks[1:])
        bare = () if (first, last) == ("".join(around), text) else (first, "", last)
    contents = [list(template.pieces)]
    if chat == "system":
        contents = [[p for p in template.pieces if p.kind == kind] for kind in ("prompt",)]
        contents.append([p for p in template.pieces if p.kind != "prompt"])
    pieces: list[Piece] = []
    source = ""
    for before, inside in zip(around, contents, strict=True):
        pieces += [Piece("raw", before, ""), *inside]
        source += before + "".join(p.space * bool(i) + _written(p) for i, p in enumerate(inside))
    end = "" if trims[-1][1] else template.end
    bare = (*bare[:-1], end + bare[-1]) if bare else ()
    made = Template(source + end + text, (*pieces, Piece("raw", end + text, "")), trims=trims, bare=bare)
    for prompt, field in PROBES:
        fields = dict.fromkeys(template.fields, field)
        written = [_content(inside, fields, prompt) for inside in contents]
        written[-1] += template.end
        if made.render(fields, prompt) != show(written):
            raise InputError(f"--lm chat={chat}: the chat template of {model} changes what the messages say")
    return made


def _content(inside: Sequence[Piece], fields: Mapping[str, str], prompt: str) -> str:
    """The text of a message."""
    return Template("", (Piece("raw", "", ""), *inside)).render(fields, prompt)


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
