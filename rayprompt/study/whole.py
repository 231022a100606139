"""Files of a study directory that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from rayprompt.errors import StoreError
from rayprompt.store.files import reason


def write_whole(path: Path, text: str) -> None:
    """Write a file of a study so that nobody ever sees half of it.

    Raises:
        StoreError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({reason(error)})") from None
