"""Reads tables of examples or prompts: tsv, csv, jsonl, parquet (and plain text, a row a line)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayprompt.errors import InputError, did_you_mean
from rayprompt.foreign import Unreadable, check_file, parse_json, read_text

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
MOST_ROWS = 20_000_000  # of a Parquet table: a small file may hold any number of equal rows
Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, each a dict from column name to value.

    Raises:
        InputError: the file is missing, empty, of an unknown type, or broken; the message names file and line.
    """
    check_file(path)
    readers = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path}: unknown type {path.suffix!r}; a table is one of {', '.join(SUFFIXES)}")
    rows = readers[path.suffix](path)
    if not rows:
        raise InputError(f"{path}: no rows")
    return rows


def read_prompts(path: Path) -> list[str]:
    """Prompts from a file: a line each (.txt), or the column ``prompt`` or ``text`` of a table.

    Raises:
        InputError: the file cannot be read or holds no prompt.
    """
    if path.suffix in (".txt", ""):
        return read_lines(path, "prompts")
    rows = read_rows(path)
    column = next((c for c in ("prompt", "text") if c in rows[0]), None)
    if column is None:
        raise InputError(f"{path}: no column 'prompt' or 'text' (it has {', '.join(map(str, rows[0]))})")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(column), str):
            raise InputError(f"{path}, row {number}: {column} must be a string, not {row.get(column)!r}")
    return [row[column] for row in rows]


def read_lines(path: Path, what: str) -> list[str]:
    """The non-empty lines of a UTF-8 text file; ``what`` they are is for the error message."""
    check_file(path, f" (a text file of {what}, one a line)")
    lines = [line.strip() for line in read_text(path).split("\n")]  # a text may hold other ends of lines
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"{path}: holds no {what} (one a line)")
    return lines


def text_of(row: Mapping[str, Any], column: str, field: str, where: str) -> str:
    """The text of a cell: of a number or date as it is written, of true and false as in JSON.

    Raises:
        InputError: there is none, or it is no text; ``where`` names table and row, ``field`` what it is for.
    """
    name = f"column {column!r}" + (f" (field {field})" if field != column else "")
    if column not in row:
        raise InputError(f"{where}: no {name}{did_you_mean(column, [str(c) for c in row])}; it has {_columns(row)}")
    value = _plain(row[column])
    if is_missing(value):
        raise InputError(f"{where}: {name} is empty (null or NaN); give a text, or '' for an empty one")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal | date | time):
        return _written(value, f"{where}: {name}")
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be a text or a number, not {_shown(value)}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: {name} is no valid Unicode text (half of a surrogate pair): {_shown(value)}")
    return value


def label_of(value: Any, known: Collection[str]) -> str | None:
    """The label of a cell as a text, true and false as Python or as JSON writes them; None where there is none."""
    if is_missing(value):
        return None
    label = str(value)
    return label.lower() if label in ("True", "False") and label not in known else label


def is_missing(value: Any) -> bool:
    """Whether a cell is null, NaN, or pandas' NA or NaT."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ArithmeticError):  # pandas' NA, a signaling NaN of decimal
        return True
    except ValueError:  # an array
        return False


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python value that is written alike."""
    if not hasattr(value, "item") or getattr(value, "shape", None) != ():
        return value
    kind, item = getattr(value.dtype, "kind", ""), value.item()
    if kind in "mM" and isinstance(item, int):  # nanoseconds
        return value.astype(f"{kind}8[us]").item()
    return float(str(value)) if kind == "f" else item


def unseen(value: Any) -> str:
    """A cell that no template shows: it only tells examples apart."""
    try:
        return str(value or "")
    except (TypeError, ValueError):  # pandas' NA and arrays are neither true nor false
        return str(value)


def _written(value: Any, where: str) -> str:
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise InputError(f"{where} must be a text or a finite number, not {value}")
    try:
        return str(value)
    except ValueError:
        raise InputError(f"{where} is a number of too many digits; write it as a text") from None


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _shown(value: Any) -> str:
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _read_tsv(path: Path) -> list[Row]:
    """Tab-separated, a row a line where every line has the header's cells; else as csv, where a cell may hold lines.

    A cell that is quoted as csv quotes is unquoted; any other quotation mark is ordinary text.
    """
    text = read_text(path)
    plain = [line.rstrip("\r").split("\t") for line in text.split("\n") if line]
    if all(len(cells) == len(plain[0]) for cells in plain):
        return _rows(path, [[_unquoted(cell) for cell in cells] for cells in plain])
    try:
        return _rows(path, list(_cells(text, "\t")))
    except (csv.Error, InputError):
        return _rows(path, plain)


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def _read_csv(path: Path) -> list[Row]:
    reader = _cells(read_text(path), ",")
    try:
        return _rows(path, list(reader))
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            raise InputError(f"{path}: a cell begins with a quotation mark that is never closed") from None
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _cells(text: str, delimiter: str) -> Any:
    csv.field_size_limit(2**31 - 1)  # of the process; the file's size has a limit of its own
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _rows(path: Path, table: Sequence[Sequence[str]]) -> list[Row]:
    if not table:
        return []
    header = [name.strip() for name in table[0]]
    if len(set(header)) < len(header):
        raise InputError(f"{path}: a column name appears twice in the header {header}")
    rows: list[Row] = []
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}, row {number}: {len(cells)} cells, the header has {len(header)}")
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except Unreadable as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a row is a JSON object, not {type(row).__name__}")
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa

    try:
        table = read_parquet(path)
        for i, column in enumerate(table.schema):
            if column.type == pa.float32():  # 0.1 is not to become 0.10000000149011612
                table = table.set_column(i, column.name, table.column(i).cast(pa.string()).cast(pa.float64()))
        rows: list[Row] = table.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, times that Python does not have
        if isinstance(error, InputError):
            raise
        zone = "a time zone that is not known" if "pytz" in str(error) else str(error)[:160]
        raise InputError(f"{path}: a value cannot be read ({zone})") from None
    return rows


def read_parquet(path: Path) -> pa.Table:
    """A Parquet table.

    Raises:
        InputError: it is none, or has too many rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        count = pq.read_metadata(path).num_rows
        if count > MOST_ROWS:
            raise InputError(f"{path}: {count:,} rows; at most {MOST_ROWS:,} are read")
        return pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: not a Parquet file ({reason[:160]})") from None
