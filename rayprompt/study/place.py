"""Studies on object storage: a directory of this machine stands for one, and what is written there is carried over.

Trials write their scores and snapshots straight to where the study lies, from whichever node they run on. What the
driver writes (study.yaml, tables, reports, results) it writes to the directory, from which it is copied every few
seconds and once more at the end. A directory that stands for a study says so in a file, see :func:`location_of`.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from rayprompt.errors import InputError, LeaseLost, StoreError
from rayprompt.store.files import Folder, reason
from rayprompt.study.lease import BEAT_SECONDS, LEASE, Lease, check_lease
from rayprompt.written import STUDY_FILE

MARK = ".stands-for"  # in a directory: the URI of the study that it stands for
TRIES = 4  # to copy what is left at the end
P0_FILE = "p0.safetensors"
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
    mirror = Mirror(folder, here)
    mirror.pull(whole=whole)
    _pulled[here] = mirror
    return here


def new_place(location: str) -> Path:
    """The local directory of a new study at a URI.

    Raises:
        InputError: there is something already, or the URI cannot be used.
        StoreError: it cannot be written to.
    """
    folder = Folder.at(location)
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    if any(i.base_name not in LEFT_OVER and not i.base_name.startswith((".writable-", LEASE)) for i in infos):
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


_pulled: dict[Path, Mirror] = {}  # of studies that were fetched here
_at_work: dict[Path, tuple[Lease, Mirror]] = {}  # of studies that this process is at work on


def carry(study: Path) -> None:
    """Copy now what was written in a directory that stands for a study: what else depends on it can follow.

    Raises:
        StoreError: it cannot be written.
    """
    if study in _at_work:
        lease, mirror = _at_work[study]
        lease.renew()
        mirror.push()


def lease_of(study: Path) -> str:
    """The id of the lease under which this process works on a study; empty where that has a lock."""
    return _at_work[study][0].owner_id if study in _at_work else ""


def is_lost(study: Path) -> bool:
    """Whether another process has taken over a study that this one was at work on."""
    return study in _at_work and _at_work[study][0].lost


def check_held(location: str | Path, owner: str) -> None:
    """See that the lease of a study is still that of ``owner`` (:func:`lease_of`): before something is written for it.

    Raises:
        LeaseLost: another process has taken the study over.
        StoreError: the lease cannot be read.
    """
    if owner:
        check_lease(Folder.at(location), owner)


class Mirror:
    """Copies between a folder of a filesystem and the directory that stands for it."""

    def __init__(self, folder: Folder, here: Path) -> None:
        self.pushing = threading.Lock()
        self.folder = folder
        self.here = here
        self.states: dict[str, tuple[int, int]] = {}  # of files that are there as they are here: time and size by name
        self.known: dict[str, str] = {}  # and a digest of their content
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
                if info.type != pafs.FileType.File or name.rpartition("/")[2].startswith("."):
                    continue
                if name.partition("/")[0] in (APART[-1:] if whole else APART):
                    continue
                path = self.here / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # one that was made a part of another in the meantime
                    pafs.copy_files(info.path, str(path), self.folder.filesystem, pafs.LocalFileSystem())
                    self.states[name], self.known[name] = _state(path), _digest(path.read_bytes())
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.folder.shown}: cannot be read ({reason(error)})") from None

    def push(self) -> None:
        """Copy what is new or has changed here, and delete there what was taken away here.

        Raises:
            StoreError: something cannot be written; all else is.
        """
        with self.pushing:
            self._push()

    def _push(self) -> None:
        now: dict[str, tuple[int, int]] = {}
        for folder, _, files in os.walk(self.here):
            for file in files:
                path = Path(folder, file)
                if not file.startswith(".") and not path.is_symlink():
                    with contextlib.suppress(FileNotFoundError):  # written under another name, then renamed
                        now[str(path.relative_to(self.here))] = _state(path)
        failed: StoreError | None = None
        for name in sorted(now, key=lambda name: (name != P0_FILE, name != STUDY_FILE, name)):
            if self.states.get(name) != now[name]:
                try:
                    self._copy(name, now[name])
                except StoreError as error:
                    failed = failed or error
        for name in [name for name in self.known if name not in now]:
            child, _, file = name.rpartition("/")
            (self.folder.child(child) if child else self.folder).remove(file)
            del self.known[name]
            self.states.pop(name, None)
        if failed is not None:
            raise failed

    def _copy(self, name: str, state: tuple[int, int]) -> None:
        try:
            content = (self.here / name).read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self.here / name}: cannot be read ({reason(error)})") from None
        if self.known.get(name) != _digest(content):  # Tune writes its files again as they are
            child, _, file = name.rpartition("/")
            target = self.folder.child(child) if child else self.folder
            if child not in self.made:
                target.make()
                self.made.add(child)
            target.write(file, content, again=True)
        self.states[name], self.known[name] = state, _digest(content)


@contextmanager
def carried_over(study: Path, said: Callable[[str], None], seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """While a process works on a study in a directory that stands for it: hold its lease, and copy what is written.

    Raises:
        InputError: another process is at work on it, or was, since its files were read here.
        StoreError: what was written could not be copied, or another process has taken the study over.
    """
    folder = Folder.at(location_of(study))
    lease, mirror = Lease(folder), _pulled.pop(study, None) or Mirror(folder, study)
    lease.take(said, seconds)
    if _content(folder) != ((study / STUDY_FILE).read_bytes() if (study / STUDY_FILE).is_file() else None):
        lease.give_back()
        raise InputError(f"{folder.shown}: another process has worked on this study in the meantime; run this again")
    over = threading.Event()
    lost: list[LeaseLost] = []

    def renew() -> None:
        try:
            lease.renew()
        except LeaseLost as error:
            if not lost:
                lost.append(error)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes what sleeps, too
            raise

    def push() -> None:
        check_lease(folder, lease.owner_id)
        mirror.push()

    def now_and_then(work: Callable[[], None]) -> None:
        while not over.wait(seconds):
            with contextlib.suppress(Exception):  # perhaps the next time; at the end it is said
                if not lost:
                    work()

    threads = [threading.Thread(target=now_and_then, args=(w,), daemon=True) for w in (renew, push)]
    for thread in threads:
        thread.start()
    _at_work[study] = (lease, mirror)

    def finish() -> None:
        for _ in range(TRIES - 1):
            try:
                lease.renew()
                mirror.push()
                break
            except LeaseLost:
                raise
            except StoreError:
                time.sleep(min(3.0, seconds))
        else:
            lease.renew()
            mirror.push()
        over.set()
        for thread in threads:
            thread.join()
        lease.give_back()

    try:
        yield
    except BaseException:
        with contextlib.suppress(StoreError):  # the first error is the one to tell of
            finish()
        over.set()
        _at_work.pop(study, None)
        if lost:
            raise lost[0] from None
        raise
    try:
        finish()
    finally:
        over.set()
        _at_work.pop(study, None)


def _content(folder: Folder) -> bytes | None:
    """study.yaml as it is there; None where there is none."""
    try:
        return folder.read(STUDY_FILE)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{folder.shown}: cannot be read ({reason(error)})") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size
