"""Files of a study that are not what was written: named, and written or scored again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayprompt.errors import DamagedError, InputError, StoreError
from rayprompt.foreign import parse_json
from rayprompt.records import check_record
from rayprompt.store.checksum import open_json
from rayprompt.store.files import Folder
from rayprompt.store.schema import ShardName
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchPlan
from rayprompt.study.place import opened
from rayprompt.study.prepare import HERE
from rayprompt.study.progress import Listener, Progress
from rayprompt.study.snapshots import Snapshots, payload_of
from rayprompt.study.trace import FOLDER as RUNS
from rayprompt.written import CLOSED, STUDY_FILE, check_written, is_closed, read_record


def is_whole(study: Path, record: Mapping[str, Any], budget: int, listener: Listener) -> bool:
    """Whether all that a study ends with is there as it was written; the listener is told of what is not."""
    if not is_closed(record, budget):
        return False
    whole = True
    for name in (record.get(CLOSED) or {"files": {}})["files"]:
        try:
            check_written(study / name)
            whole = whole and (study / name).is_file()
        except DamagedError as error:
            listener(Progress("start", f"note: {error}"))
            whole = False
    return whole


def name_damage(store: ScoreStore, plan: SearchPlan, listener: Listener, own: str, context: str | None) -> None:
    """Name the files of scores, asks and snapshots that cannot be used; set those aside that this study has written.

    Others' stay: they may be written at the moment. What such files held is scored or asked for again.

    Args:
        own: begins the names of this study's searches.
        context: of a store that others write to, too: only scores of this one, and this search's asks. None: all.
    """
    for kind, which in (("scores", {"context": context}), ("candidates", {"search": context and plan.search})):
        name_damaged_tables(store, kind, listener, own, **which)
    snapshots = Snapshots(Folder.at(plan.study).child("snapshots"), plan.search)
    for file in snapshots.damaged():
        listener(Progress("start", f"skipped {snapshots.folder.shown}/{file}: it does not match its checksum"))


def name_damaged_tables(store: ScoreStore, kind: str, listener: Listener, own: str, **which: Any) -> None:
    """The same for one of a store's tables."""
    folder = store.folder.child(kind)
    for file in store.check(kind, **which):
        name = ShardName.parse(file)
        if name is None or not name.search.startswith(own):
            continue
        why = store.broken.pop(f"{folder.shown}/{file}")
        try:
            kept = f"kept as {store.set_aside(kind, file)}"
        except StoreError as error:
            kept = str(error)
        listener(Progress("start", f"damaged {folder.shown}/{file}: {why}; what it held is scored again; {kept}"))
    for file, why in store.broken.items():
        if file.startswith(folder.shown):
            listener(Progress("start", f"skipped {file}: {why}"))


@dataclass
class Checked:
    """What was found of a study's own files: how many, those without a checksum, damaged ones and why."""

    store: str = ""
    files: int = 0
    unsealed: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def check_study(location: str | Path) -> Checked:
    """Read what a study reads back besides its store: study.yaml, results, runs and snapshots.

    Raises:
        StoreError: it cannot be read.
    """
    found, here, there = Checked(), opened(location), Folder.at(location)
    files: Mapping[str, Any] = {}
    try:
        record = read_record(here / STUDY_FILE)
        store = str(record["store"])
        found.store = there.uri or there.path if store == HERE else store
        files = (record.get(CLOSED) or {"files": {}})["files"]
        check_record(record, f"{there.shown}/{STUDY_FILE}")  # cut at its end it has no checksum
    except (InputError, KeyError, TypeError, AttributeError) as error:
        found.damaged[f"{there.shown}/{STUDY_FILE}"] = " ".join(str(error).split())
    found.files += 1
    for name in files:
        found.files += 1
        if not (here / name).is_file():
            found.damaged[f"{there.shown}/{name}"] = "gone; resume the study, which writes it again"
            continue
        try:
            check_written(here / name)
        except DamagedError as error:
            found.damaged[f"{there.shown}/{name}"] = str(error).partition(": ")[2]
    for name in ("result.json", "comparison.json"):
        found.unsealed += (here / name).is_file() and name not in files
    _check_many(found, there.child(RUNS), ".json", _is_object)
    _check_many(found, there.child("snapshots"), ".json", _is_object)
    _check_many(found, there.child("snapshots"), ".snapshot", lambda content: payload_of(content) is not None)
    return found


def _is_object(content: bytes) -> bool:
    """Whether it is JSON as it was written; cut at its end it has no checksum, as one of an earlier version."""
    return isinstance(parse_json(open_json(content)), dict | list)


def _check_many(found: Checked, folder: Folder, end: str, is_good: Callable[[bytes], bool]) -> None:
    for name in (name for name in folder.names() if name.endswith(end)):
        found.files += 1
        try:
            good = is_good(folder.read(name))
        except FileNotFoundError:  # a newer snapshot has replaced it
            continue
        except ValueError:  # no JSON, another checksum, no UTF-8
            good = False
        if not good:
            found.damaged[f"{folder.shown}/{name}"] = "it does not match its checksum; a resumed study does without it"
