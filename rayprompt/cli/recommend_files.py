"""What ``rayprompt recommend`` reads, and the files that it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayprompt.errors import InputError
from rayprompt.foreign import Unreadable, parse_json

if TYPE_CHECKING:
    from rayprompt.reward.demonstrations import Demonstrations


def check_file(out: Path) -> None:
    """Raise ``InputError`` unless a file may be written there."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a directory; name a file")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no such directory: {out.parent}")


def read_earlier(out: Path, force: bool) -> Demonstrations | None:
    """The demonstrations in a file that is there already; None where there are none, or ``force`` writes over the rest.

    Raises:
        InputError: there is something else.
    """
    from rayprompt.reward.demonstrations import read_demonstrations

    check_file(out)
    if not out.is_file() or not out.stat().st_size:
        return None
    try:
        return read_demonstrations(out)
    except InputError as error:
        if force:
            return None
        raise InputError(f"--out {error}; --force to write over it") from None


def joined(earlier: Demonstrations | None, data: Demonstrations, out: Path, force: bool) -> Demonstrations:
    """What is to be in the file: both.

    Raises:
        InputError: those that are there are of another LM or of the same split, and ``force`` is not given.
    """
    if earlier is None or (force and earlier.llm != data.llm):
        return data
    if earlier.llm != data.llm:
        raise InputError(f"--out {out}: is of {earlier.llm}, not of {data.llm}; --force to write over it")
    both = sorted(earlier.parts & data.parts)
    if both and not force:
        raise InputError(f"--out {out}: holds {both[0][1]} of {both[0][0]} already; --force to replace it")
    return earlier.joined(data)


def read_queries(given: str) -> list[str]:
    """Queries from a file or standard input: a line each, or a row each of a table.

    Raises:
        InputError: it cannot be read, or a query has no text.
    """
    from rayprompt.tables import read_rows

    path = Path(given)
    if given == "-":
        return parse_queries(sys.stdin.buffer.read(), "standard input")
    if path.suffix in (".txt", ""):
        if not path.is_file():
            raise InputError(f"no such file: {path} (a text file of queries, one a line)")
        return parse_queries(path.read_bytes(), str(path))
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("query"), str) or not row["query"].strip():
            raise InputError(f"{path}, row {number}: a query without text (column 'query')")
    return check_unicode([row["query"] for row in rows], f"{path}, row")


def parse_queries(content: bytes, where: str) -> list[str]:
    """A query for each line: its text, or where it starts with { a JSON object's ``query``.

    Raises:
        InputError: there is none, a line has none, or it is not UTF-8.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")  # and nowhere else: a text may hold other ends of lines
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from None
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{where}: holds no queries (one a line)")
    found = []
    for number, line in enumerate(lines, start=1):
        text: Any = line.removesuffix("\r")
        if line.startswith("{"):
            try:
                text = parse_json(line).get("query")
            except Unreadable as error:
                begin = "starts with { but is " if str(error).startswith("not ") else ""
                raise InputError(f"{where}, line {number}: {begin}{error}") from None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}, line {number}: a query without text")
        found.append(text)
    return check_unicode(found, f"{where}, line")


def check_unicode(texts: list[str], where: str) -> list[str]:
    """The texts.

    Raises:
        InputError: one cannot be written as UTF-8.
    """
    from rayprompt.reward.rows import is_unicode

    for number, text in enumerate(texts, start=1):
        if not is_unicode(text):
            raise InputError(f"{where} {number}: holds half of a surrogate pair, which cannot be written")
    return texts
