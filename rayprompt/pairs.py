"""PairTable: what one search knows of the pairs of one part, candidates x examples, as dense arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, IntArray

FIRST_ROWS = 64


class PairTable:
    """A row per candidate key, a column per example; grows by doubling. R rows in use, E examples, L labels.

    Two facts of a pair are kept apart: it may be ``known`` (there is a score, from the LM or from a store), and it may
    be ``asked`` (this search asked for it, so it is charged). A row's numbers are valid where ``known``.

    Attributes:
        rows: candidate key -> row.
        log_probs: (capacity, E, L) float32.
        tokens: (capacity, E) int32.
        seconds: (capacity, E) float32.
        known, asked: (capacity, E) bool.
    """

    def __init__(self, examples: Sequence[str], labels: int) -> None:
        self.examples = list(examples)
        self.columns = {digest: i for i, digest in enumerate(self.examples)}
        if len(self.columns) < len(self.examples):
            raise InputError("an example stands twice in a pair table; give each digest once")
        self.rows: dict[str, int] = {}
        size = len(self.examples)
        self.log_probs: FloatArray = np.empty((0, size, labels), dtype=np.float32)
        self.tokens: IntArray = np.empty((0, size), dtype=np.int32)
        self.seconds: FloatArray = np.empty((0, size), dtype=np.float32)
        self.known = np.zeros((0, size), dtype=bool)
        self.asked = np.zeros((0, size), dtype=bool)

    def __len__(self) -> int:
        return len(self.rows)

    def index(self, keys: Iterable[str]) -> IntArray:
        """The row of each key; keys that are new get one."""
        rows = self.rows
        found = np.fromiter((rows.setdefault(key, len(rows)) for key in keys), dtype=np.int64)
        if len(rows) > len(self.known):
            self._grow(len(rows))
        return found

    def fill(
        self, row: IntArray, column: IntArray, log_probs: FloatArray, tokens: IntArray, seconds: FloatArray
    ) -> IntArray:
        """Enter the scores of P pairs; where one is known already, or given twice, the first stands.

        Returns:
            the indices of the pairs that were entered.
        """
        flat = row * len(self.examples) + column
        new = np.flatnonzero(~self.known.reshape(-1)[flat])
        _, first = np.unique(flat[new], return_index=True)
        new = new[np.sort(first)]
        row, column = row[new], column[new]
        self.log_probs[row, column] = log_probs[new]
        self.tokens[row, column] = tokens[new]
        self.seconds[row, column] = seconds[new]
        self.known[row, column] = True
        return np.asarray(new)

    def asked_state(self) -> dict[str, Any]:
        """Which pairs were asked for, as plain data: keys of whole rows, and masks of the others."""
        used = len(self.rows)
        whole, some = self.asked[:used].all(axis=1), self.asked[:used].any(axis=1)
        keys = list(self.rows)
        return {
            "whole": [keys[i] for i in np.flatnonzero(whole)],
            "part": {keys[i]: np.packbits(self.asked[i]).tobytes() for i in np.flatnonzero(some & ~whole)},
        }

    def restore_asked(self, state: dict[str, Any]) -> None:
        """Mark what :meth:`asked_state` listed, and nothing else, as asked for."""
        self.asked[:] = False
        whole, part = self.index(state["whole"]), self.index(state["part"])  # before `asked` is looked at: it may grow
        self.asked[whole] = True
        for row, packed in zip(part, state["part"].values(), strict=True):
            bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=len(self.examples))
            self.asked[row] = bits.astype(bool)

    def _grow(self, need: int) -> None:
        size = max(FIRST_ROWS, len(self.known))
        while size < need:
            size *= 2
        for name in ("log_probs", "tokens", "seconds", "known", "asked"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
