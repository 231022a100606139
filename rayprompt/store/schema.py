"""The store's two tables, documented in docs/store.md, and the names of their files."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayprompt.candidate import digest
from rayprompt.errors import InputError
from rayprompt.store.checksum import sha256_of

SCORES_SCHEMA = "rayprompt.scores/3"
# Files of these versions lack some of the columns that may be null: those read as null.
EARLIER = {f"rayprompt.scores/{version}": SCORES_SCHEMA for version in (1, 2)}
CANDIDATES_SCHEMA = "rayprompt.candidates/1"
ROWS_A_GROUP = 1 << 20
CHECKSUM_DIGITS = 16
DICTIONARY_BYTES = 16 * 2**20  # beyond it Parquet writes the keys of the candidates out, once a row
_NAME = pa.dictionary(pa.int32(), pa.string())

SCORES = pa.schema(
    [
        ("context", _NAME),
        ("candidate", _NAME),
        ("example", _NAME),
        ("sample", pa.int16()),
        ("part", _NAME),
        ("split", _NAME),
        ("value", pa.float32()),
        ("label_log_probs", pa.list_(pa.field("element", pa.float32(), nullable=False))),
        ("tokens", pa.int32()),
        ("seconds", pa.float32()),
        ("search", _NAME),
        ("completion", pa.string()),
        ("written", pa.int32()),
        ("judge", _NAME),
        ("reason", pa.int8()),
    ]
)
CANDIDATES = pa.schema(
    [
        ("candidate", pa.string()),
        ("kind", _NAME),
        ("text", pa.string()),
        ("form", pa.string()),
        ("search", _NAME),
        ("origin", _NAME),
        ("generation", pa.int32()),
        ("position", pa.int32()),
    ]
)
TABLES = {"scores": (SCORES_SCHEMA, SCORES), "candidates": (CANDIDATES_SCHEMA, CANDIDATES)}


@dataclass(frozen=True)
class Context:
    """Everything but candidate, example and sample that decides a score; its digest is part of a pair's key.

    ``content`` holds the LM's digest, the rendered template, the label token ids, the truncation, dtype, device class
    and batch shapes.
    """

    content: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Digest of the content."""
        return digest(dict(self.content))

    def to_json(self) -> str:
        """The content as it stands in the metadata of a file."""
        return json.dumps(dict(self.content), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class ShardName:
    """The name of a file: whose it is, so that readers open only what they want, and when it was written.

    Names sort by time within a search: ``incarnation`` is the time at which its writer was made (µs since 1970, hex)
    with the writer's process id, ``number`` counts the writer's files. ``checksum`` begins the SHA-256 of the content;
    files of earlier versions have none.
    """

    search: str
    part: str
    context: str
    incarnation: str
    number: int
    checksum: str = ""

    def __str__(self) -> str:
        end = f".{self.checksum}.parquet" if self.checksum else ".parquet"
        return f"{self.search}.{self.part}.{self.context[:16]}.{self.incarnation}.{self.number:06d}{end}"

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        """Read a file's name; None where it is not one of a store's files."""
        pieces = name.split(".")
        number = pieces[4] if len(pieces) in (6, 7) and pieces[-1] == "parquet" else ""
        if not (number.isascii() and number.isdigit()):
            return None
        return cls(pieces[0], pieces[1], pieces[2], pieces[3], int(pieces[4]), *pieces[5:-1])

    def of(self, content: Any) -> ShardName:
        """The name of a file with this content."""
        return replace(self, checksum=sha256_of(content)[:CHECKSUM_DIGITS])

    def matches(self, content: Any) -> bool:
        """Whether the content is what was written; of a file without a checksum nobody can say, so it is."""
        return not self.checksum or sha256_of(content)[:CHECKSUM_DIGITS] == self.checksum

    @property
    def age(self) -> tuple[str, int]:
        """Sorts older files first."""
        return self.incarnation, self.number


def new_incarnation() -> str:
    """The name of a writer."""
    return f"{time.time_ns() // 1000:014x}{os.getpid() & 0xFFFFFF:06x}{os.urandom(2).hex()}"


def safe_name(text: str) -> str:
    """``text`` with what must not stand in a file's name, dots included, replaced."""
    return re.sub(r"[^\w-]+", "_", text, flags=re.ASCII)


def metadata_of(kind: str, **content: Any) -> dict[bytes, bytes]:
    """The Parquet metadata of a file of a table (``scores`` or ``candidates``)."""
    from rayprompt import __version__

    full = {"schema": TABLES[kind][0], "rayprompt": __version__, **content}
    return {f"rayprompt.{k}".encode(): str(v).encode() for k, v in full.items()}


def check_schema(kind: str, metadata: Mapping[bytes, bytes] | None, where: str) -> bool:
    """Whether a file with this metadata is one of ours.

    Raises:
        InputError: it is one of another version.
    """
    wanted = TABLES[kind][0]
    found = (metadata or {}).get(b"rayprompt.schema", b"").decode()
    if found.partition("/")[0] != wanted.partition("/")[0]:
        return False
    if EARLIER.get(found, found) != wanted:
        raise InputError(f"{where}: schema {found}, written by another version of rayprompt; this one reads {wanted}")
    return True


def of_schema(kind: str, table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """A table that was read, with the columns that files of an earlier version lack; all ``columns`` unless said."""
    schema = TABLES[kind][1]
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def to_parquet(kind: str, tables: Iterable[pa.Table], metadata: dict[bytes, bytes]) -> tuple[pa.Buffer, int]:
    """Tables, one after the other, as the bytes of one Parquet file; and how many rows they have."""
    sink, rows = pa.BufferOutputStream(), 0
    schema = TABLES[kind][1].with_metadata(metadata)
    options: dict[str, Any] = {"compression": "zstd", "dictionary_pagesize_limit": DICTIONARY_BYTES}
    options["write_page_checksum"] = True  # for other readers: ours check the whole file
    if kind == "scores":
        # Floats hardly repeat: their bytes, split by significance, compress better than a dictionary of them.
        names = [f.name for f in SCORES if f.name != "label_log_probs"]
        options |= {"use_dictionary": names, "use_byte_stream_split": ["label_log_probs.list.element"]}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(metadata), row_group_size=ROWS_A_GROUP)
            rows += len(table)
    return sink.getvalue(), rows
