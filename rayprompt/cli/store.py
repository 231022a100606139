"""``rayprompt store``: what a score store holds, what of it is damaged, and its compaction."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rayprompt.cli.say import say
from rayprompt.errors import InputError
from rayprompt.store.compact import compact
from rayprompt.store.files import Folder
from rayprompt.store.schema import TABLES, ShardName
from rayprompt.store.store import SET_ASIDE, ScoreStore
from rayprompt.study.damage import Checked, check_study
from rayprompt.study.place import has_begun

STORE_SCHEMA = "rayprompt.store-info/1"
VERIFY_SCHEMA = "rayprompt.store-verify/1"


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
    say(f"pairs: {parts}; asks: {content['asks']:,}")
    say(f"{content['files']} files of {content['searches']} searches, {content['contexts']} contexts")
    for file, why in content["broken"].items():
        say(f"skipped {file}: {why}")


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


def verify_store(location: str) -> dict[str, Any]:
    """Read all files of a store; of a study also what else it reads back, and its store where that is elsewhere.

    Raises:
        InputError: there is neither, or another version made it.
    """
    study = Checked()
    if has_begun(location):
        study = check_study(location)
    at = study.store or location
    damaged, unsealed, files, aside = dict(study.damaged), study.unsealed, study.files, 0
    if not study.damaged or Folder.at(at).child("scores").exists():
        store = _open(at)
        for kind in TABLES:
            store.check(kind)
            names = store.folder.child(kind).names()
            shards = [name for file in names if (name := ShardName.parse(file)) is not None]
            files += len(shards)
            unsealed += sum(not name.checksum for name in shards)
            aside += sum(file.endswith(SET_ASIDE) for file in names)
        damaged |= store.broken
    return {
        "schema": VERIFY_SCHEMA,
        "store": Folder.at(at).shown,
        "files": files,
        "without_checksum": unsealed,
        "set_aside": aside,
        "damaged": dict(sorted(damaged.items())),
    }


def show_check(content: dict[str, Any]) -> None:
    """What was found, for people."""
    for file, why in content["damaged"].items():
        say(f"damaged {file}: {why}")
    say(f"{content['files']} files read, {len(content['damaged'])} damaged")
    if content["without_checksum"]:
        say(f"{content['without_checksum']} of them are of an earlier version, without a checksum: only read")
    if content["set_aside"]:
        say(f"{content['set_aside']} damaged files were set aside earlier (*{SET_ASIDE}); they may be deleted")


def _open(location: str) -> ScoreStore:
    store = ScoreStore(location)
    store.check_version()
    if not store.folder.child("scores").exists():
        raise InputError(f"{store.folder.shown}: not a score store (it holds no directory 'scores')")
    return store
