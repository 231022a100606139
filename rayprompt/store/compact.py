"""Compaction: many small files become few. Nothing is lost if it dies, and readers need not wait.

The new file names those it replaces in its metadata and is written before they are deleted: a reader that sees both
leaves the old ones out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rayprompt.store.schema import ShardName, metadata_of, new_incarnation, to_parquet
from rayprompt.store.store import ScoreStore, Shard

FULL_ROWS = 8_000_000  # a file of so many rows is left as it is, and none is made larger


@dataclass(frozen=True)
class Compaction:
    """What was done: files before and after, and rows of the files that were joined."""

    before: int
    after: int
    rows: int


def compact(store: ScoreStore) -> Compaction:
    """Join the small files of every search in a store.

    Raises:
        StoreError: a file could not be written; the old ones stay.
        InputError: the store has files of another version.
    """
    done = [compact_shards(store, kind) for kind in ("scores", "candidates")]
    return Compaction(sum(d.before for d in done), sum(d.after for d in done), sum(d.rows for d in done))


def compact_shards(
    store: ScoreStore, kind: str, *, search: str | None = None, part: str | None = None, context: str | None = None
) -> Compaction:
    """Join the small files of a table, those of one search, part and context with each other."""
    shards = store.shards(kind, search=search, part=part, context=context)
    _finish_deletions(store, kind, shards)

    def whose(shard: Shard) -> tuple[str, str, str]:
        return shard.name.search, shard.name.part, shard.name.context

    rows, after = 0, 0
    for _, group in groupby(sorted(shards, key=lambda s: (whose(s), s.name.age)), key=whose):
        for members in _portions(list(group)):
            after += 1
            if len(members) > 1:
                rows += sum(shard.rows for shard in members)
                _join(store, kind, members)
    return Compaction(len(shards), after, rows)


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


def _join(store: ScoreStore, kind: str, members: Sequence[Shard]) -> None:
    """Write one file with the rows of all, in their order, then delete them."""
    folder, last = store.folder.child(kind), members[-1]
    there = set(folder.names())
    replaced = {str(shard.name) for shard in members} | {f for shard in members for f in shard.replaces if f in there}
    metadata = {k: v for k, v in last.metadata.items() if k not in ("schema", "rayprompt", "replaces")}
    metadata["last_generation"] = str(max(shard.last_generation for shard in members))
    full = metadata_of(kind, **metadata, replaces=" ".join(sorted(replaced)))
    content, rows = to_parquet(kind, (table for shard in members for table in store._tables(kind, shard)), full)
    if rows != sum(shard.rows for shard in members):
        return  # one of them turned out to be broken: leave them all
    name = ShardName(last.name.search, last.name.part, last.name.context, new_incarnation(), 0)
    folder.write(str(name), content)
    for file in replaced:
        folder.remove(file)


def _finish_deletions(store: ScoreStore, kind: str, shards: Sequence[Shard]) -> None:
    """Delete what an earlier compaction has replaced and did not come to delete."""
    folder = store.folder.child(kind)
    there = set(folder.names())
    for shard in shards:
        for file in shard.replaces:
            if file in there:
                folder.remove(file)
