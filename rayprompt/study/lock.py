"""One process at a time works on a study. The lock goes with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayprompt.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


LOCK = ".lock"


@contextmanager
def study_lock(study: Path) -> Iterator[None]:
    """Hold the study's lock, where its filesystem has locks.

    Raises:
        InputError: another process holds it.
    """
    with (study / LOCK).open("a+", encoding="utf-8") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{study}: another process is at work on this study ({file.read().strip()})") from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
