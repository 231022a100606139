"""One process at a time works on a study. The lock goes with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayprompt.errors import InputError, StoreError
from rayprompt.store.files import reason
from rayprompt.study.place import carried_over, location_of
from rayprompt.study.progress import Listener, Progress

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


LOCK = ".lock"


@contextmanager
def study_lock(study: Path, listener: Listener) -> Iterator[None]:
    """Hold the study's lock; of a study at a URI its lease.

    The listener is told if that takes a while.

    Raises:
        InputError: another process holds it.
        StoreError: the study's directory cannot be written to, or has no locks.
    """
    if location_of(study) != str(study):
        with carried_over(study, lambda line: listener(Progress("start", line))):
            yield
        return
    try:
        opened = (study / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{study}: cannot be written to ({reason(error)})") from None
    with opened as file:
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise InputError(f"{study}: another process is at work on this study ({file.read().strip()})") from None
        except OSError as error:
            raise StoreError(
                f"{study}: files cannot be locked there ({reason(error)}), so that two processes could work on this "
                f"study at once; give it as {study.as_uri()}, which takes a lease instead, or use another directory"
            ) from None
        with contextlib.suppress(OSError):  # who holds it is said for people only
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
        yield
