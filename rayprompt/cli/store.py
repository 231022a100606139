"""``rayprompt store``: what a score store holds, and its compaction."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rayprompt.errors import InputError
from rayprompt.store.compact import compact
from rayprompt.store.store import ScoreStore

STORE_SCHEMA = "rayprompt.store-info/1"


def describe_store(location: str) -> dict[str, Any]:
    """Files, pairs by part, and the files that cannot be read; from the files' footers alone.

    Raises:
        InputError: there is no store, or another version made it.
    """
    store = _open(location)
    pairs: Counter[str] = Counter()
    scores, candidates = store.shards("scores"), store.shards("candidates")
    for shard in scores:
        pairs[shard.name.part] += shard.rows
    return {
        "schema": STORE_SCHEMA,
        "store": store.folder.shown,
        "files": len(scores) + len(candidates),
        "pairs": dict(sorted(pairs.items())),
        "asks": sum(shard.rows for shard in candidates),
        "searches": len({shard.name.search for shard in scores if shard.name.part == "train"}),
        "contexts": len({shard.name.context for shard in scores}),
        "broken": dict(sorted(store.broken.items())),
    }


def show_store(content: dict[str, Any]) -> None:
    """The description, for people."""
    parts = ", ".join(f"{count:,} of {part}" for part, count in content["pairs"].items()) or "none"
    print(f"pairs: {parts}; asks: {content['asks']:,}")
    print(f"{content['files']} files of {content['searches']} searches, {content['contexts']} contexts")
    for file, why in content["broken"].items():
        print(f"skipped {file}: {why}")


def compact_store(location: str) -> dict[str, Any]:
    """Join the small files of a store.

    Raises:
        InputError: there is no store, or another version made it.
        StoreError: a file could not be written; the old ones stay.
    """
    store = _open(location)
    done = compact(store)
    return {
        "schema": STORE_SCHEMA,
        "store": store.folder.shown,
        "files_before": done.before,
        "files_after": done.after,
        "broken": dict(sorted(store.broken.items())),
    }


def _open(location: str) -> ScoreStore:
    store = ScoreStore(location)
    store.check_version()
    if not store.folder.child("scores").exists():
        raise InputError(f"{store.folder.shown}: not a score store (it holds no directory 'scores')")
    return store
