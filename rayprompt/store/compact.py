"""Compaction: many small files become few. Nothing is lost if it dies, and readers need not wait.

The new file names those it replaces in its metadata and is written before they are deleted: a reader that sees both
leaves the old ones out.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from rayprompt.store.schema import TABLES, ShardName, metadata_of, new_incarnation, to_parquet
from rayprompt.store.store import FileGoneError, ScoreStore, Shard

QUIET_SECONDS = 600.0
FULL_ROWS = 8_000_000  # a file of so many rows is left as it is, and none is made larger


@dataclass(frozen=True)
class Compaction:
    """What was done: files before and after, and rows of the files that were joined."""

    before: int
    after: int
    rows: int


def compact(store: ScoreStore, quiet_seconds: float = QUIET_SECONDS) -> Compaction:
    """Join the small files of every search in a store that has written nothing for a while.

    A search that is at work joins its files itself: they are left to it.

    Args:
        store: whose files.
        quiet_seconds: how long a search must have written nothing.

    Raises:
        StoreError: a file could not be written; the old ones stay.
        InputError: the store has files of another version.
    """
    done = []
    for kind in TABLES:
        written = store.folder.child(kind).written()
        names = [ShardName.parse(file) for file in written]
        last: dict[str, float] = {}
        for name, when in zip(names, written.values(), strict=True):
            if name is not None:
                last[name.search] = max(when, last.get(name.search, 0.0))
        busy = {search for search, when in last.items() if time.time() - when < quiet_seconds}
        done.append(compact_shards(store, kind, leave=busy))
    return Compaction(sum(d.before for d in done), sum(d.after for d in done), sum(d.rows for d in done))


def compact_shards(
    store: ScoreStore,
    kind: str,
    *,
    search: str | None = None,
    part: str | None = None,
    context: str | None = None,
    leave: Collection[str] = (),
) -> Compaction:
    """Join the small files of a table, those of one search, part and context with each other.

    ``leave``: searches whose files are left as they are.
    """
    every = store.shards(kind, search=search, part=part, context=context)
    shards = [shard for shard in every if shard.name.search not in leave]
    _finish_deletions(store, kind, shards)

    def whose(shard: Shard) -> tuple[str, str, str]:
        return shard.name.search, shard.name.part, shard.name.context

    rows, after = 0, len(every) - len(shards)
    for _, group in groupby(sorted(shards, key=lambda s: (whose(s), s.age)), key=whose):
        for members in _portions(list(group)):
            joined = len(members) > 1 and _join(store, kind, members)
            after += 1 if joined else len(members)
            rows += sum(shard.rows for shard in members) if joined else 0
    return Compaction(len(every), after, rows)


def _portions(shards: list[Shard]) -> list[list[Shard]]:
    """Neighbours in age that fit into one file together."""
    portions: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        if portions[-1] and size + shard.rows > FULL_ROWS:
            portions.append([])
            size = 0
        portions[-1].append(shard)
        size += shard.rows
    return portions


def _join(store: ScoreStore, kind: str, members: Sequence[Shard]) -> bool:
    """Write one file with the rows of all, in their order, then delete them; False leaves them all as they are."""
    folder, last = store.folder.child(kind), members[-1]
    there = set(folder.names())
    replaced = {str(shard.name) for shard in members} | {f for shard in members for f in shard.replaces if f in there}
    metadata = {k: v for k, v in last.metadata.items() if k not in ("schema", "rayprompt", "replaces", "age")}
    metadata["last_generation"] = str(max(shard.last_generation for shard in members))
    metadata["age"] = "{} {}".format(*members[0].age)
    full = metadata_of(kind, **metadata, replaces=" ".join(sorted(replaced)))
    try:
        content, rows = to_parquet(kind, (table for shard in members for table in store._tables(kind, shard)), full)
    except FileGoneError:
        return False  # somebody else is joining them
    if rows != sum(shard.rows for shard in members):
        return False  # one of them turned out to be broken
    name = ShardName(last.name.search, last.name.part, last.name.context, new_incarnation(), 0)
    folder.write(str(name.of(content)), content)
    for file in replaced:
        folder.remove(file)
    return True


def _finish_deletions(store: ScoreStore, kind: str, shards: Sequence[Shard]) -> None:
    """Delete what an earlier compaction has replaced and did not come to delete."""
    folder = store.folder.child(kind)
    there = set(folder.names())
    for shard in shards:
        for file in shard.replaces:
            if file in there:
                folder.remove(file)
