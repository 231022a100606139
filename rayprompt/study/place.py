"""Studies on object storage: a directory of this machine stands for one, and what is written there is carried over.

Trials write their scores and snapshots straight to where the study lies, from whichever node they run on. What the
driver writes (study.yaml, tables, reports, results) it writes to the directory, from which it is copied every few
seconds and once more at the end. A directory that stands for a study says so in a file, see :func:`location_of`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from rayprompt.errors import InputError, StoreError
from rayprompt.store.files import Folder, reason

MARK = ".stands-for"  # in a directory: the URI of the study that it stands for
LEASE = ".lease.json"  # in a study on object storage: who is at work on it
BEAT_SECONDS = 10.0
DEAD_AFTER = 3.0  # beats
STUDY_FILE, P0_FILE = "study.yaml", "p0.safetensors"
LEFT_OVER = {LEASE, P0_FILE}  # by one that died before it began
APART = ("scores", "candidates", "snapshots")  # what trials write


def is_uri(location: str | Path) -> bool:
    """Whether a study's location is a URI of a filesystem, and not a local path."""
    return "://" in str(location)


def location_of(study: Path) -> str:
    """Where the study of a directory lies: a URI where the directory only stands for it."""
    try:
        return (study / MARK).read_text(encoding="utf-8").strip()
    except OSError:
        return str(study)


def place_of(study: Path) -> Path | str:
    """The same, for those who look at results: a path, or a URI."""
    found = location_of(study)
    return found if is_uri(found) else study


def opened(location: str | Path, *, whole: bool = False) -> Path:
    """The local directory of a study; of one on object storage, a copy of its files.

    ``whole``: with the scores, for what reads a study; a search reads them where they are.

    Raises:
        InputError: there is no study, or the URI cannot be used.
        StoreError: it cannot be read.
    """
    if not is_uri(location):
        return Path(location).expanduser().resolve()
    folder = Folder.at(location)
    if not folder.names():
        raise InputError(f"{folder.shown}: holds no study")
    here = standing_for(str(location))
    Mirror(folder, here).pull(whole=whole)
    return here


def new_place(location: str) -> Path:
    """The local directory of a new study at a URI.

    Raises:
        InputError: there is something already, or the URI cannot be used.
        StoreError: it cannot be written to.
    """
    folder = Folder.at(location)
    if set(folder.names()) - LEFT_OVER:
        raise InputError(f"--out {folder.shown}: exists already and is not empty; give a new directory")
    folder.check_writable()
    return standing_for(location)


def standing_for(location: str) -> Path:
    """An empty directory of this machine that stands for a URI, for as long as this process lives."""
    folder = Folder.at(location)
    here = Path(tempfile.mkdtemp(prefix="rayprompt-")).resolve() / folder.path.rpartition("/")[2]
    try:
        here.mkdir()
        (here / MARK).write_text(location + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{here}: cannot be made, to stand for {folder.shown} ({reason(error)})") from None
    atexit.register(shutil.rmtree, here.parent, ignore_errors=True)
    return here


def has_begun(location: str | Path) -> bool:
    """Whether there is a study that can be gone on with."""
    if is_uri(location):
        return STUDY_FILE in Folder.at(location).names()
    return (Path(location).expanduser() / STUDY_FILE).is_file()


_at_work: dict[Path, Mirror] = {}  # of studies that this process is at work on


def carry(study: Path) -> None:
    """Copy now what was written in a directory that stands for a study: what else depends on it can follow.

    Raises:
        StoreError: it cannot be written.
    """
    if study in _at_work:
        _at_work[study].push()


class Mirror:
    """Copies between a folder of a filesystem and the directory that stands for it."""

    def __init__(self, folder: Folder, here: Path) -> None:
        self.pushing = threading.Lock()
        self.folder = folder
        self.here = here
        self.known: dict[str, tuple[int, int]] = {}  # what is there as it is here: time and size by name
        self.made: set[str] = set()  # folders

    def pull(self, *, whole: bool = False) -> None:
        """Fetch what is there.

        Raises:
            StoreError: it cannot be read.
        """
        root = self.folder.path.rstrip("/")
        try:
            found = self.folder.filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
            for info in found:
                name = info.path[len(root) + 1 :]
                if info.type != pafs.FileType.File or name == LEASE:
                    continue
                if not whole and name.partition("/")[0] in APART:
                    continue
                path = self.here / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pafs.copy_files(info.path, str(path), self.folder.filesystem, pafs.LocalFileSystem())
                self.known[name] = _state(path)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.folder.shown}: cannot be read ({reason(error)})") from None

    def push(self) -> None:
        """Copy what is new or has changed here, and delete there what was taken away here.

        Raises:
            StoreError: it cannot be written.
        """
        with self.pushing:
            self._push()

    def _push(self) -> None:
        now: dict[str, tuple[int, int]] = {}
        for path in sorted(self.here.rglob("*")):
            name = str(path.relative_to(self.here))
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # written under another name, then renamed
                    now[name] = _state(path)
        for name, state in now.items():
            if self.known.get(name) != state and self._copied(name):
                self.known[name] = state
        for name in [name for name in self.known if name not in now]:
            child, _, file = name.rpartition("/")
            (self.folder.child(child) if child else self.folder).remove(file)
            del self.known[name]

    def _copied(self, name: str) -> bool:
        try:
            content = (self.here / name).read_bytes()
        except FileNotFoundError:
            return False
        child, _, file = name.rpartition("/")
        target = self.folder.child(child) if child else self.folder
        if child not in self.made:
            target.make()
            self.made.add(child)
        target.write(file, content)
        return True


class Lease:
    """The right to work on a study, where files have no locks: a small file that is written anew every few seconds.

    A process that finds another's waits whether it is written again. If not, its owner has died, and the lease is
    taken over; no clocks are compared.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.owner = {"host": socket.gethostname(), "process": os.getpid(), "id": secrets.token_hex(8)}
        self.beat = 0

    def take(self, said: Callable[[str], None], seconds: float = BEAT_SECONDS) -> None:
        """Take it, if need be after some seconds.

        Raises:
            InputError: another process is at work.
            StoreError: the study cannot be written to.
        """
        found = self._read()
        if found is not None and not _is_dead(found):
            said(f"{self.folder.shown}: begun by {_who(found)}; waiting {DEAD_AFTER * seconds:.0f} s for a sign of it")
            until = time.monotonic() + DEAD_AFTER * seconds
            while time.monotonic() < until:
                time.sleep(min(1.0, seconds / 4))
                later = self._read()
                if later is None:
                    break
                if later != found:
                    raise InputError(f"{self.folder.shown}: another process is at work on this study ({_who(later)})")
        self._write()

    def renew(self) -> None:
        """Show that its owner lives.

        Raises:
            StoreError: another process has taken the study over.
        """
        found = self._read()
        if found is not None and found.get("id") != self.owner["id"]:
            raise StoreError(f"{self.folder.shown}: {_who(found)} has taken this study over; nothing more is written")
        self._write()

    def give_back(self) -> None:
        """Whoever comes next need not wait."""
        found = self._read()
        if found is not None and found.get("id") == self.owner["id"]:
            self.folder.remove(LEASE)

    def _write(self) -> None:
        self.beat += 1
        self.folder.make()
        self.folder.write(LEASE, json.dumps({**self.owner, "beat": self.beat}).encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self.folder.read(LEASE))
        except (pa.ArrowException, OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None


@contextmanager
def carried_over(study: Path, said: Callable[[str], None], seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """While a process works on a study in a directory that stands for it: hold its lease, and copy what is written.

    Raises:
        InputError: another process is at work on it.
        StoreError: what was written could not be copied.
    """
    folder = Folder.at(location_of(study))
    lease, mirror = Lease(folder), Mirror(folder, study)
    lease.take(said, seconds)
    over = threading.Event()

    def copy() -> None:
        lease.renew()  # first: what another process has taken over is left alone
        mirror.push()

    def copy_now_and_then() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(StoreError):  # perhaps the next time; at the end it is said
                copy()

    thread = threading.Thread(target=copy_now_and_then, name="study", daemon=True)
    thread.start()
    _at_work[study] = mirror

    def finish() -> None:
        over.set()
        thread.join()
        del _at_work[study]
        copy()
        lease.give_back()

    try:
        yield
    except BaseException:
        with contextlib.suppress(StoreError):  # the first error is the one to tell of
            finish()
        raise
    finish()


def _state(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease.get('process')} on {lease.get('host')}"


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether a lease's owner was a process of this machine that is gone."""
    if lease.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(lease["process"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return True
    except PermissionError:
        return False
    return False
