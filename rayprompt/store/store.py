"""ScoreStore: reads what any search has stored. Files that are cut or foreign are named and skipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayprompt.candidate import Candidate, parse_candidate
from rayprompt.errors import InputError, StoreError
from rayprompt.foreign import parse_json
from rayprompt.pairs import Answers, PairTable
from rayprompt.scores import IntArray
from rayprompt.store.files import Folder, reason
from rayprompt.store.schema import TABLES, ShardName, check_schema, of_schema

STORE_SCHEMA = "rayprompt.store/1"
MARK = "store.json"
KEY = ["context", "candidate", "example", "sample"]
BATCH_ROWS = 1 << 20
MOST_READS = 20
SET_ASIDE = ".damaged"  # behind the name of a file that nobody reads any more
T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """A readable file of the store: rows, and what its metadata says."""

    name: ShardName
    rows: int
    metadata: dict[str, str]

    @cached_property
    def replaces(self) -> tuple[str, ...]:
        """Files whose rows this one took over in a compaction."""
        return tuple(self.metadata.get("replaces", "").split())

    @property
    def age(self) -> tuple[str, int]:
        """Sorts older files first; one that was made by a compaction is as old as the oldest it replaces."""
        incarnation, _, number = self.metadata.get("age", "").partition(" ")
        return (incarnation, int(number)) if number else self.name.age

    @property
    def last_generation(self) -> int:
        """The last generation of asks in it; 0 where it has none."""
        return int(self.metadata.get("last_generation", 0))

    @cached_property
    def context(self) -> dict[str, Any]:
        """The content of the context of its scores; empty where it says none."""
        content = parse_json(self.metadata.get("context", "{}"))
        return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Spent:
    """What a search has stored: pairs that the LM ran for it, their tokens, and the scorers' seconds."""

    lm_evaluations: int = 0
    tokens: int = 0
    written: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class FileGoneError(Exception):
    """A file was deleted since it was listed: a compaction took it over. What was being read is read anew."""


class ScoreStore:
    """A directory (a local path, or a URI of a pyarrow filesystem) of immutable Parquet files; see docs/store.md.

    Every search writes files of its own, every reader sees them all. A pair that stands in several files has one
    score: the first that was stored.

    Attributes:
        before_write: called before a search writes its files: may refuse, with an error.
        broken: file -> why it was skipped. A file that is being written at the moment looks cut, too.

    Raises:
        InputError: the location cannot be used.
    """

    def __init__(self, location: str | Path) -> None:
        self.folder = Folder.at(location)
        self.broken: dict[str, str] = {}
        self.before_write: Callable[[], None] = lambda: None
        self._shards: dict[tuple[str, str], Shard] = {}

    def __repr__(self) -> str:
        return f"ScoreStore({self.folder.shown!r})"

    def prepare(self) -> None:
        """Make the store's directories and see that files can be written.

        Raises:
            InputError: they cannot, or the store is one of another version.
        """
        try:
            self.check_version()
            for kind in TABLES:
                self.folder.child(kind).check_writable()
            if MARK not in self.folder.names():
                self.folder.write(MARK, json.dumps({"schema": STORE_SCHEMA}).encode())
        except StoreError as error:
            raise InputError(f"store {error}") from None

    def check_version(self) -> None:
        """Raise ``InputError`` if another version of rayprompt made this store."""
        if MARK not in self.folder.names():
            return
        try:
            found = parse_json(self.folder.read(MARK))["schema"]
        except OSError as error:
            raise StoreError(f"{self.folder.shown}/{MARK}: cannot be read ({reason(error)})") from None
        except (ValueError, KeyError, TypeError):
            return  # cut while it was written: the files say what they are, too
        if found != STORE_SCHEMA:
            raise InputError(f"store {self.folder.shown}/{MARK}: schema {found}; this version reads {STORE_SCHEMA}")

    def shards(
        self, kind: str, *, search: str | None = None, part: str | None = None, context: str | None = None
    ) -> list[Shard]:
        """The readable files of a table (``scores`` or ``candidates``), oldest first.

        Raises:
            InputError: a file was written by another version of the store.
        """
        return self._again(lambda: self._list(kind, search, part, context))

    def _list(self, kind: str, search: str | None, part: str | None, context: str | None) -> list[Shard]:
        folder = self.folder.child(kind)
        found = []
        for file in folder.names():
            name = ShardName.parse(file)
            if name is None:
                if file.endswith(".parquet"):
                    self.broken[f"{folder.shown}/{file}"] = "not a file of a score store"
                continue
            wanted = ((search, name.search), (part, name.part), (context and context[:16], name.context))
            if any(asked not in (None, has) for asked, has in wanted):
                continue
            shard = self._shard(kind, folder, file, name)
            if shard is not None:
                found.append(shard)
        replaced = {file for shard in found for file in shard.replaces}
        kept = [shard for shard in found if str(shard.name) not in replaced]
        return sorted(kept, key=lambda shard: shard.age)

    def _again(self, read: Callable[[], T]) -> T:
        """Read; where a compaction takes files away meanwhile, from the beginning.

        Raises:
            StoreError: that happens again and again.
        """
        for _ in range(MOST_READS):
            try:
                return read()
            except FileGoneError as error:
                gone = error
        raise StoreError(f"{gone}: files vanish while they are read; is something deleting them?")

    def pairs(
        self,
        *,
        part: str = "train",
        split: str | None = None,
        context: str | None = None,
        search: str | None = None,
    ) -> pa.Table:
        """All pairs of ``part``, each once, with the columns of docs/store.md. Train, unless something else is asked.

        Args:
            part: ``train``, ``dev`` or ``test``.
            split: only those of one split of the task. Give it where a store holds several: what is train in one may
                be test in another.
            context: only those of one context (its digest).
            search: only those that one search stored.
        """

        def read() -> list[pa.Table]:
            shards = self._list("scores", search, part, context)
            return [table for shard in shards for table in self._tables("scores", shard)]

        tables = self._again(read)
        whole = pa.concat_tables(tables) if tables else TABLES["scores"][1].empty_table()
        if split is not None:
            whole = whole.filter(pc.equal(whole.column("split"), split))
        return _first_of_each(whole.unify_dictionaries().combine_chunks())

    def load(
        self,
        table: PairTable,
        context: str,
        part: str,
        search: str = "",
        *,
        alone: bool = False,
        failed: bool = True,
    ) -> Spent:
        """Enter all that is known of a part into ``table``; gives what ``search`` itself has stored of it.

        Where others have stored another score of the same pair, a search goes on with its own. ``alone``: only what
        the search has stored is entered. ``failed``: also the unanswered pairs of others, where the LM would fail
        again. The search's own always are: they are paid for, and not asked again.
        """
        counts = [0, 0, 0, 0.0]

        def read() -> None:
            shards = self._list("scores", search if alone else None, part, context)
            for shard in sorted(shards, key=lambda shard: shard.name.search != search):
                for batch in self._tables("scores", shard, BATCH_ROWS):
                    if not failed and shard.name.search != search:
                        batch = batch.filter(pc.is_finite(batch.column("value")))
                    new = _enter(table, batch)
                    if shard.name.search == search:  # what stands twice counts once
                        counts[0] += len(new)
                        counts[1] += int(batch.column("tokens").to_numpy()[new].sum())
                        counts[2] += pc.sum(batch.column("written").take(new)).as_py() or 0
                        counts[3] += float(batch.column("seconds").to_numpy()[new].sum())

        self._again(read)
        return Spent(int(counts[0]), int(counts[1]), int(counts[2]), counts[3])

    def asks(self, search: str, after: int = 0) -> Iterator[tuple[int, tuple[Candidate, ...]]]:
        """The recorded generations of a search behind generation ``after``, in order: what was asked for in each."""

        def read() -> dict[int, dict[int, str]]:
            found: dict[int, dict[int, str]] = {}
            for shard in self._list("candidates", search, "search", None):
                if shard.last_generation <= after:
                    continue
                for batch in self._tables("candidates", shard):
                    rows = batch.select(["generation", "position", "form"]).to_pydict()
                    for generation, position, form in zip(*rows.values(), strict=True):
                        if generation > after:
                            found.setdefault(generation, {}).setdefault(position, form)
            return found

        for generation, forms in sorted(self._again(read).items()):
            yield generation, tuple(parse_candidate(forms[i]) for i in sorted(forms))

    def last_generation(self, search: str) -> int:
        """The last generation that is recorded of a search; 0 = none."""
        shards = self.shards("candidates", search=search, part="search")
        return max((shard.last_generation for shard in shards), default=0)

    def candidates(self) -> pa.Table:
        """The table of candidates: a row for each time a search asked for one, with its text and origin."""

        def read() -> list[pa.Table]:
            shards = self._list("candidates", None, None, None)
            return [table for shard in shards for table in self._tables("candidates", shard)]

        tables = self._again(read)
        return pa.concat_tables(tables) if tables else TABLES["candidates"][1].empty_table()

    def reduced(
        self,
        kind: str,
        columns: Sequence[str],
        reduce: Callable[[pa.Table], pa.Table],
        *,
        search: str | None = None,
        part: str | None = None,
        context: str | None = None,
    ) -> list[pa.Table]:
        """What ``reduce`` makes of each piece of a table's files, oldest first, of which only ``columns`` are read.

        For few of many rows: a piece has a million rows at the most, and what is kept of it is all that stays in
        memory. A pair that stands in several files comes several times.
        """

        def read() -> list[pa.Table]:
            shards = self._list(kind, search, part, context)
            return [reduce(table) for shard in shards for table in self._tables(kind, shard, columns=columns)]

        return self._again(read)

    def check(
        self, kind: str, *, search: str | None = None, part: str | None = None, context: str | None = None
    ) -> list[str]:
        """Read every file of a table to its end; gives the names of the damaged ones, and says in ``broken`` why.

        Raises:
            InputError: a file was written by another version of the store.
        """

        def read() -> None:
            for shard in self._list(kind, search, part, context):
                if not shard.name.checksum:
                    for _ in self._tables(kind, shard):
                        pass
                elif kind == "scores":  # of the others the footer is not read before
                    self._content(kind, shard.name)

        self._again(read)
        files = set(self.folder.child(kind).names())
        names = {file: name for file in files if (name := ShardName.parse(file)) is not None}
        wanted = {"search": search, "part": part, "context": context and context[:16]}
        return sorted(
            file
            for file, name in names.items()
            if f"{self.folder.child(kind).shown}/{file}" in self.broken
            and all(value in (None, getattr(name, field)) for field, value in wanted.items())
        )

    def set_aside(self, kind: str, file: str) -> str:
        """Give a damaged file a name under which nobody reads it any more; gives that name.

        Raises:
            StoreError: it cannot be renamed.
        """
        self.folder.child(kind).rename(file, file + SET_ASIDE)
        self._shards.pop((kind, file), None)
        return file + SET_ASIDE

    def _shard(self, kind: str, folder: Folder, file: str, name: ShardName) -> Shard | None:
        """A file's footer, read once: files do not change. None where it is broken or gone."""
        if (kind, file) in self._shards:
            return self._shards[kind, file]
        shown = f"{folder.shown}/{file}"
        try:
            # What a search asked for decides how it goes on: these files are small, and checked before they count.
            if kind == "candidates" and name.checksum and self._content(kind, name) is None:
                return None
            with folder.open(file) as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            raise FileGoneError(shown) from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            _raise_if_unreadable(error, shown)
            self.broken[shown] = f"cut, or still being written ({reason(error)})"
            return None
        metadata = footer.metadata or {}
        try:
            if not check_schema(kind, metadata, shown):
                self.broken[shown] = "not a file of a score store"
                return None
            ours = {k.decode()[10:]: v.decode() for k, v in metadata.items() if k.startswith(b"rayprompt.")}
            shard = Shard(name, footer.num_rows, ours)
            _ = shard.context, shard.age, shard.last_generation
        except ValueError as error:  # another version's, somebody else's, or damaged so that it looks like it
            if self._content(kind, name) is not None:
                if isinstance(error, InputError):
                    raise
                self.broken[shown] = f"its metadata cannot be read ({reason(error)})"
            return None
        self.broken.pop(shown, None)
        self._shards[kind, file] = shard
        return shard

    def _content(self, kind: str, name: ShardName) -> pa.Buffer | None:
        """A file's bytes; None where they are not those that its checksum says: then it is broken."""
        folder = self.folder.child(kind)
        try:
            content = folder.read_buffer(str(name))
        except FileNotFoundError:
            raise FileGoneError(f"{folder.shown}/{name}") from None
        if name.matches(content):
            return content
        self.broken[f"{folder.shown}/{name}"] = "its content cannot be read (it does not match its checksum)"
        return None

    def _tables(
        self, kind: str, shard: Shard, rows: int = BATCH_ROWS, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """A file's content, or some of its columns, in pieces; one that cannot be read is broken and skipped."""
        shown = f"{self.folder.child(kind).shown}/{shard.name}"
        try:
            content = self._content(kind, shard.name)
            if content is None:
                return
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            has = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=rows, columns=has):
                yield of_schema(kind, pa.Table.from_batches([batch]), columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            _raise_if_unreadable(error, shown)
            self.broken[shown] = f"its content cannot be read ({reason(error)})"


def _raise_if_unreadable(error: Exception, file: str) -> None:
    """A file that cannot be opened or read (permission, network) is not a broken one: its rows are there.

    pyarrow raises ``OSError`` for both; what the system refused has a number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise StoreError(f"{file}: cannot be read ({reason(error)})") from None


def _enter(table: PairTable, pairs: pa.Table) -> IntArray:
    """Rows of the scores table into a pair table; gives the (n,) rows that were new.

    Examples that are not of its part are left out.
    """
    pairs = pairs.combine_chunks()
    candidate, example = (_codes(pairs, column) for column in ("candidate", "example"))
    first = np.array([table.columns.get(digest, -1) for digest in example[1]], dtype=np.int64)
    column = first[example[0]] if len(first) else np.empty(0, dtype=np.int64)
    sample = pairs.column("sample").to_numpy()
    keep = np.flatnonzero((column >= 0) & (sample < table.samples))
    if not len(keep):
        return keep
    codes, keys = candidate
    used, position = np.unique(codes[keep], return_inverse=True)
    row = table.index(keys[int(i)] for i in used)[position]
    if table.writes:
        log_probs = np.empty((len(pairs), 0), dtype=np.float32)
    else:
        flat = pairs.column("label_log_probs").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        log_probs = flat.reshape(len(pairs), -1)
    column = (column + sample)[keep]
    if len(keep) < len(pairs):
        pairs, log_probs = pairs.take(pa.array(keep)), log_probs[keep]
    tokens, seconds, written, reason = (
        pairs.column(name).fill_null(0).to_numpy() for name in ("tokens", "seconds", "written", "reason")
    )
    answers = Answers(log_probs, tokens, seconds, reason=reason.copy())
    if table.writes:
        answers.completion = np.array([*pairs.column("completion").to_pylist(), None], dtype=object)[:-1]
        answers.written = written
    answers.settle()  # a file of an earlier version gives no reasons
    return keep[table.fill(row, column, answers)]


def _codes(table: pa.Table, name: str) -> tuple[Any, list[str]]:
    """A dictionary column as (rows,) indices and the list of values."""
    chunks = table.column(name).combine_chunks()
    array = chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks
    return array.indices.to_numpy(zero_copy_only=False), array.dictionary.to_pylist()


def _first_of_each(pairs: pa.Table) -> pa.Table:
    """The first row of every key."""
    numbered = pairs.select(KEY).append_column("row", pa.array(np.arange(len(pairs))))
    for name in KEY[:3]:  # grouping by codes instead of by strings
        codes, _ = _codes(pairs, name)
        numbered = numbered.set_column(KEY.index(name), name, pa.array(codes))
    first = numbered.group_by(KEY).aggregate([("row", "min")]).column("row_min").to_numpy()
    return pairs if len(first) == len(pairs) else pairs.take(pa.array(np.sort(first)))
