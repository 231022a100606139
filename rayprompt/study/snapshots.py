"""Snapshots of a running search: whole files with a checksum, the newest good one counts."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
from ray import cloudpickle

from rayprompt.store.files import Folder
from rayprompt.store.schema import new_incarnation

MAGIC = b"rayprompt.snapshot/1\n"
KEPT = 2


class Snapshots:
    """Snapshots of one search in a folder. They are pickles: a study directory is trusted by who resumes it."""

    def __init__(self, folder: Folder, search: str) -> None:
        self.folder = folder
        self.search = search
        self.incarnation = new_incarnation()
        self.number = 0

    def write(self, generation: int, payload: bytes) -> None:
        """Write the state after a generation, then delete all but the last two.

        Raises:
            StoreError: it could not be written.
        """
        self.number += 1
        name = f"{self.search}.{generation:010d}.{self.incarnation}.{self.number:06d}.snapshot"
        self.folder.write(name, MAGIC + hashlib.sha256(payload).digest() + payload)
        for old in self._names()[KEPT:]:
            self.folder.remove(old)

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest snapshot that is whole; None where there is none."""
        for name in self._names():
            try:
                content = self.folder.read(name)
            except (pa.ArrowException, OSError):
                continue
            size = len(MAGIC) + 32
            payload = content[size:]
            if payload and content[:size] == MAGIC + hashlib.sha256(payload).digest():
                state: dict[str, Any] = cloudpickle.loads(payload)
                return state
        return None

    def _names(self) -> list[str]:
        """Newest first: the later generation, then the later writer."""
        ours = [n for n in self.folder.names() if n.startswith(f"{self.search}.") and n.endswith(".snapshot")]
        return sorted(ours, key=lambda name: name.split(".")[1:], reverse=True)


def freeze(state: dict[str, Any]) -> bytes:
    """A state as bytes, so that what goes on cannot change it."""
    payload: bytes = cloudpickle.dumps(state)
    return payload
