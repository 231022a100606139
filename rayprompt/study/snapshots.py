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
            payload = self._payload(name)
            if payload is not None:
                state: dict[str, Any] = cloudpickle.loads(payload)
                return state
        return None

    def damaged(self) -> list[str]:
        """The names of those that cannot be used."""
        return [name for name in self._names() if self._payload(name) is None]

    def _payload(self, name: str) -> bytes | None:
        try:
            return payload_of(self.folder.read(name))
        except (pa.ArrowException, OSError):
            return None

    def _names(self) -> list[str]:
        """Newest first: the later generation, then the later writer."""
        ours = [n for n in self.folder.names() if n.startswith(f"{self.search}.") and n.endswith(".snapshot")]
        return sorted(ours, key=lambda name: name.split(".")[1:], reverse=True)


def payload_of(content: bytes) -> bytes | None:
    """What is in a snapshot's file; None where it does not match its checksum."""
    size = len(MAGIC) + 32
    payload = content[size:]
    return payload if payload and content[:size] == MAGIC + hashlib.sha256(payload).digest() else None


def freeze(state: dict[str, Any]) -> bytes:
    """A state as bytes, so that what goes on cannot change it."""
    payload: bytes = cloudpickle.dumps(state)
    return payload
