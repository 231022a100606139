"""The one place where the command line prints: everything through :func:`rayprompt.printable.printable`."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayprompt.printable import one_line, printable, printable_json, redacted


def say(text: object = "", *, to_stderr: bool = False) -> None:
    """Print a text, of one line or several."""
    print(printable(text), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def say_json(content: Mapping[str, Any]) -> None:
    """Print an object as one line on standard output."""
    print(printable_json(json.dumps(content, ensure_ascii=False)), flush=True)


def note(message: str) -> None:
    """A remark on standard error."""
    print(f"rayprompt: note: {one_line(message)}", file=sys.stderr, flush=True)


def fail(message: str, code: int) -> int:
    """One line on standard error that says what went wrong; gives the exit code."""
    print(f"rayprompt: {one_line(message)}", file=sys.stderr, flush=True)
    return code


def unexpected(error: BaseException) -> str:
    """The line for an error that nothing else has a line for. Its traceback is in a file that the line names."""
    reason = one_line(f"{type(error).__name__}: {error}".strip(": "))[:300]
    try:
        lines = traceback.format_exception(error, limit=-100)
        with tempfile.NamedTemporaryFile("w", prefix="rayprompt-error-", suffix=".txt", delete=False, encoding="utf-8",
                                         errors="backslashreplace") as file:  # fmt: skip
            file.write(redacted("".join(lines)))
    except Exception as second:  # no room, or no memory: the line is what counts
        return f"unexpected {reason} (its traceback cannot be written: {second})"
    return f"unexpected {reason}; the traceback is in {Path(file.name)}"
