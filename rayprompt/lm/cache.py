"""Models on object storage: each node fetches one once, into a cache on its own disk, for all of its scoring actors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from pyarrow import ArrowException
from pyarrow import fs as pafs

from rayprompt.candidate import digest
from rayprompt.errors import InputError
from rayprompt.store.files import Folder, reason

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE = "RAYPROMPT_CACHE"


def cache_folder() -> Path:
    """Where this node keeps what it fetched: RAYPROMPT_CACHE, else ``~/.cache/rayprompt``."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "rayprompt").expanduser()


def fetched(uri: str, patterns: Sequence[str]) -> Path:
    """The local folder with a model's files that match a pattern, fetched if they are not there as they are now.

    Actors of one node that want it at the same time wait for the one that fetches it.

    Raises:
        InputError: there is no such folder, it cannot be read, or there is no room for it.
    """
    folder = Folder.at(uri)
    try:
        infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    except (ArrowException, OSError) as error:
        raise InputError(f"model {folder.shown}: cannot be read ({reason(error)})") from None
    files = sorted(
        (i.base_name, i.size, i.mtime_ns or 0)
        for i in infos
        if i.type == pafs.FileType.File and any(fnmatch(i.base_name, pattern) for pattern in patterns)
    )
    if not files:
        raise InputError(f"model {folder.shown}: no such folder, or it holds none of {', '.join(patterns)}")
    here = cache_folder() / "models" / digest([folder.shown, files])[:24]
    if here.is_dir():
        return here
    try:
        here.parent.mkdir(parents=True, exist_ok=True)
        with _alone(here.with_suffix(".lock")):
            if not here.is_dir():
                _fetch(folder, [name for name, _, _ in files], here)
    except (ArrowException, OSError) as error:
        raise InputError(f"model {folder.shown}: cannot be fetched into {here.parent} ({reason(error)})") from None
    return here


def _fetch(folder: Folder, names: Sequence[str], here: Path) -> None:
    """All files or none: the folder has its name when it is whole."""
    part = here.with_suffix(f".{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for name in names:
            source = f"{folder.path}/{name}"
            pafs.copy_files(source, str(part / name), folder.filesystem, pafs.LocalFileSystem())
        (part / ".from").write_text(json.dumps({"uri": folder.shown, "files": list(names)}))
        part.rename(here)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
