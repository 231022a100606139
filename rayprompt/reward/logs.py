"""Demonstrations from text logs: one for each prompt, with a line ``(index, True)`` or ``(index, False)`` a query."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError
from rayprompt.foreign import check_file, read_text
from rayprompt.numerals import last_number
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.tables import read_rows

LINE = re.compile(r"\(\s*([0-9]{1,18})\s*,\s*(True|False)\s*\)")
SEPARATOR = re.compile(r"^={5,}\s*$", re.MULTILINE)


def read_logs(path: Path, queries: Path, *, llm: str, dataset: str, split: str, gaps: bool = False) -> Demonstrations:
    """Logs of one LM on one part of a data set.

    Args:
        path: a table, a row for each prompt: ``prompt``, its ``log``, and perhaps ``prompt_id`` and ``answers``, a
            file of what the LM wrote: entries ``(index, 'text')`` between lines of =. Files are named as seen from it.
        queries: a table with the queries in the order of their indices: ``query``, perhaps ``query_uid`` (else it is
            split:index), ``gold``.
        llm, dataset, split: what to call them.
        gaps: whether queries may be missing in a log.

    Raises:
        InputError: a file cannot be read; an index occurs twice, is too large, or is missing; the message says where.
    """
    texts = read_rows(queries)
    if "query" not in texts[0]:
        raise InputError(f"{queries}: no column 'query' (it has {', '.join(map(str, texts[0]))})")
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(read_rows(path)):
        for name in ("prompt", "log"):
            if not isinstance(row.get(name), str):
                raise InputError(f"{path}, row {number + 1}: needs prompt and log, each a text")
        log = path.parent / row["log"]
        labels = read_log(log, len(texts), gaps=gaps)
        answers = read_answers(path.parent / row["answers"], len(texts)) if row.get("answers") else {}
        for index, correct in labels.items():
            query = texts[index]
            found = {
                "llm": llm,
                "dataset": dataset,
                "split": split,
                "query_uid": query.get("query_uid", f"{split}:{index}"),
                "query": query["query"],
                "prompt_id": row.get("prompt_id", number),
                "prompt": row["prompt"],
                "correct": correct,
                **({"gold": query["gold"]} if "gold" in query else {}),
                **({"answer": last_number(answers.get(index, ""))} if row.get("answers") else {"answer": None}),
            }
            for name, value in found.items():
                columns.setdefault(name, []).append(value)
    if not columns:
        raise InputError(f"{path}: its logs hold no labels")
    if all(answer is None for answer in columns["answer"]):
        del columns["answer"]
    return Demonstrations.from_columns(columns, str(path))


def read_log(path: Path, count: int, *, gaps: bool = False) -> dict[int, bool]:
    """Index -> whether it was right, of a log about ``count`` queries.

    Raises:
        InputError: a line is something else, an index is too large, there twice, or missing.
    """
    found: dict[int, bool] = {}
    check_file(path)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.strip().rstrip(","))
        if match is None:
            raise InputError(f"{path}, line {number}: {line.strip()[:60]!r} is not (index, True) or (index, False)")
        index = int(match[1])
        if index in found:
            raise InputError(f"{path}, line {number}: index {index} for the second time")
        if index >= count:
            raise InputError(f"{path}, line {number}: index {index}, but there are {count} queries (0 to {count - 1})")
        found[index] = match[2] == "True"
    _complete(found, count, path, gaps)
    return dict(sorted(found.items()))


def read_answers(path: Path, count: int) -> dict[int, str]:
    """Index -> what the LM wrote.

    Raises:
        InputError: an entry is something else, or an index is too large or there twice.
    """
    found: dict[int, str] = {}
    check_file(path)
    for number, entry in enumerate(SEPARATOR.split(read_text(path)), start=1):
        if not entry.strip():
            continue
        try:
            index, text = ast.literal_eval(entry.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise InputError(f"{path}, entry {number}: is not (index, 'text')") from None
        if not isinstance(index, int) or not isinstance(text, str) or not 0 <= index < count or index in found:
            raise InputError(f"{path}, entry {number}: index {index!r} of {count} queries, each at most once")
        found[index] = text
    return found


def _complete(found: Mapping[int, bool], count: int, path: Path, gaps: bool) -> None:
    missing = [i for i in range(count) if i not in found]
    if missing and not gaps:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise InputError(
            f"{path}: {len(missing)} of {count} queries are missing (index {some}); --allow gaps to go on all the same"
        )
