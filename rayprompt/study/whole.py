"""Files of a study directory that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from contextlib import suppress
from pathlib import Path

from rayprompt.errors import StoreError
from rayprompt.store.files import reason


def sync_directory(folder: Path) -> None:
    """Have the disk hold what was renamed in a directory, where the system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file of a study so that nobody ever sees half of it.

    Raises:
        StoreError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # a device or a pipe: the rename would put a file in its place
        raise StoreError(f"{path}: cannot be written (it is a directory, device or pipe, and no file)")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, nothing can be deleted
            part.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({reason(error)})") from None
