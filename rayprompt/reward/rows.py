"""What rows of demonstrations hold, seen to be right: labels, signals, and which query and prompt they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, IntArray

TextArray = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Identified:
    """Things with ids in rows: their keys and texts, and (N,) which of them each row is about."""

    keys: list[tuple[str, ...]]
    texts: list[str]
    of: IntArray


@dataclass(frozen=True)
class Places:
    """What messages call a row: the file, and its number there."""

    where: str
    numbers: Sequence[int]

    def __call__(self, row: int) -> str:
        return f"{self.where}, row {self.numbers[row]}"


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: JSON can hold half of a surrogate pair, UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def refuse_nulls(columns: Mapping[str, Sequence[Any]], place_of: Places) -> None:
    """Raise ``InputError`` where there is no row, or one that does not say whose and of what it is."""
    for name in ("llm", "dataset", "split", "query_uid", "prompt_id"):
        values = columns.get(name, [None])
        if not len(values):
            raise InputError(f"{place_of.where}: holds no rows")
        if name in columns and None in values:
            raise InputError(f"{place_of(list(values).index(None))}: {name} is null")


def labels_of(values: Sequence[Any], place_of: Places) -> FloatArray:
    """(N,) labels, each 0 or 1."""
    for row, value in enumerate(values):
        if value not in (0, 1):  # True and False are
            raise InputError(f"{place_of(row)}: correct is {value!r}; it must be 0 or 1")
    return np.array(values, dtype=np.float32)


def signal_of(name: str, values: Sequence[Any], place_of: Places) -> FloatArray:
    """(N,) numbers, NaN where there is none."""
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, (int, float)):
            raise InputError(f"{place_of(row)}: {name} is {value!r}; it must be a number, or null")
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def identified(columns: Mapping[str, Sequence[Any]], by: tuple[str, ...], text: str, place_of: Places) -> Identified:
    """The distinct queries or prompts, in order of their first row.

    Raises:
        InputError: an id without text, or with two.
    """
    known: dict[tuple[str, ...], int] = {}
    texts: list[str] = []
    of = np.empty(len(columns[text]), dtype=np.int64)
    for row, (key, value) in enumerate(
        zip(zip(*(map(str, columns[name]) for name in by), strict=True), columns[text], strict=True)
    ):
        if key not in known:
            if not isinstance(value, str) or (not value.strip() and text == "query"):
                raise InputError(f"{place_of(row)}: {by[-1]} {key[-1]} has no text in column {text!r}")
            if not is_unicode(value):
                raise InputError(f"{place_of(row)}: {text} holds half of a surrogate pair, which no file can hold")
            known[key] = len(texts)
            texts.append(value)
        of[row] = known[key]
        if texts[of[row]] != value:
            raise InputError(f"{place_of(row)}: {by[-1]} {key[-1]} has another {text} than in an earlier row")
    return Identified(list(known), texts, of)


def first_of(values: Sequence[Any], things: Identified) -> list[str | None]:
    """The first value of each thing that is not null."""
    found: list[str | None] = [None] * len(things.texts)
    for thing, value in zip(things.of.tolist(), values, strict=True):
        if found[thing] is None and value is not None and value == value:
            found[thing] = str(value)
    return found


def instances_of(split: TextArray, query: IntArray, prompt: IntArray) -> tuple[IntArray, IntArray]:
    """(N,) the instance of each row, and (I,) the query of each instance: the k-th row of a (query, prompt) is in k."""
    splits = np.unique(split, return_inverse=True)[1]
    order = np.lexsort((prompt, query, splits))  # stable: rows of one pair stay in order
    same = np.ones(len(order), dtype=bool)
    for values in (prompt, query, splits):
        same[1:] &= values[order][1:] == values[order][:-1]
    same[:1] = False
    start = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    sample = np.empty(len(order), dtype=np.int64)
    sample[order] = np.arange(len(order)) - start
    keys = np.stack([splits, query, sample], axis=1)
    found, rows, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(rows))  # in order of their first rows
    queries = np.empty(len(found), dtype=np.int64)
    queries[rank] = found[:, 1]
    return rank[place.reshape(-1)], queries
