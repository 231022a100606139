"""Batch shapes: a fixed table, so that a score does not depend on chance.

A forward pass gives other last bits in another batch shape. So the bucket of a row comes from its own length alone,
the number of rows of a bucket is fixed, and short batches are filled up with dummy rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayprompt.scores import IntArray

DeviceClass = Literal["cpu", "cuda"]
LENGTHS = (*range(8, 129, 8), *range(144, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), 1536, 2048, 3072, 4096)
TOKENS_A_BATCH: dict[DeviceClass, int] = {"cpu": 512, "cuda": 16384}
MOST_ROWS: dict[DeviceClass, int] = {"cpu": 16, "cuda": 512}


@dataclass(frozen=True)
class ShapeTable:
    """The batch shapes of a search: a row of ``length`` tokens or fewer goes into a batch of ``rows`` rows.

    Attributes:
        lengths: increasing padded lengths, the last one the LM's longest input.
        rows: rows of a batch at each length.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, device: DeviceClass, max_length: int) -> ShapeTable:
        """The table of a device class for an LM that takes ``max_length`` tokens."""
        lengths = (*(n for n in LENGTHS if n < max_length), max_length)
        budget, most = TOKENS_A_BATCH[device], MOST_ROWS[device]
        rows = tuple(max(1, min(most, 2 ** int(np.log2(max(1, budget // n))))) for n in lengths)
        return cls(lengths, rows)

    def buckets(self, lengths: IntArray) -> Iterator[tuple[int, int, IntArray]]:
        """Sort rows of the given lengths (P,) into buckets: (padded length, rows of a pass, indices of its rows)."""
        bucket = np.searchsorted(np.array(self.lengths), lengths)
        order = np.argsort(bucket, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1):
            if len(members):
                b = bucket[members[0]]
                yield self.lengths[b], self.rows[b], members

    def batches(self, lengths: IntArray) -> Iterator[tuple[int, int, IntArray]]:
        """The same, cut into forward passes: (padded length, rows of the pass, indices of its rows)."""
        for length, rows, members in self.buckets(lengths):
            for start in range(0, len(members), rows):
                yield length, rows, members[start : start + rows]

    def to_json(self) -> list[dict[str, Any]]:
        """For study.yaml."""
        return [{"length": n, "rows": r} for n, r in zip(self.lengths, self.rows, strict=True)]
