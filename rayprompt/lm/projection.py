"""The random projections of soft prompts (Black-Box Tuning, arXiv 2201.03514, 3.2 and 3.3; BBTv2, 2205.11200)."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import Generic, TypeVar

import numpy as np

from rayprompt.candidate import Subspace
from rayprompt.errors import ScoringError
from rayprompt.scores import FloatArray

ROWS_A_DRAW = 16  # of the d rows, drawn at a time
ANOTHER = "NumPy {} draws another projection here than where the search began; use one version"
T = TypeVar("T")


def entry_scale(projection: str, *, alpha: float, sigma: float, dim: int, embedding_std: float) -> float:
    """The standard deviation of the entries of A.

    ``normal``: alpha std(E) / (sqrt(d) sigma), as released (E the word embeddings, z of standard deviation sigma): A z
    has the standard deviation alpha std(E) whatever sigma is. ``uniform``: U(-alpha / sqrt(d), alpha / sqrt(d)), as
    published (alpha = 1): A z has alpha sigma / sqrt(3) whatever the LM is.
    """
    if projection == "normal":
        return alpha * embedding_std / (math.sqrt(dim) * sigma)
    return alpha / math.sqrt(3 * dim)


def draws(seed: int, projection: str, dim: int, size: int) -> Iterator[FloatArray]:
    """The rows of A^T (dim, size) at scale 1, float32, a few at a time.

    Philox is counter-based: the same numbers on every machine, whatever was drawn before.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    for start in range(0, dim, ROWS_A_DRAW):
        yield _drawn(rng, projection, (min(ROWS_A_DRAW, dim - start), size))


def layer_rows(seed: int, projection: str, dim: int, size: int, layer: int, number: int) -> FloatArray:
    """Some rows of a deep prompt's A^T (dim, size) in a layer, at scale 1, float32: those from 16 ``number`` on.

    They have a generator of their own, so that some can be drawn while others are used; no layer has the numbers of
    another one. A layer's A is not kept: of 24 layers 1,024 wide they would take 2.5 GB.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(layer, number))
    rows = min(ROWS_A_DRAW, dim - number * ROWS_A_DRAW)
    return _drawn(np.random.Generator(np.random.Philox(sequence)), projection, (rows, size))


def layer_matrix(space: Subspace, layer: int) -> FloatArray:
    """A^T of one layer of a deep prompt: (dim, length * width) float32; prompts are Z A^T. For whoever has the room."""
    size = space.length * space.width_of(layer)
    numbers = range(-(-space.dim // ROWS_A_DRAW))
    rows = [layer_rows(space.seed, space.projection, space.dim, size, layer, number) for number in numbers]
    return np.concatenate(rows) * np.float32(space.scale_of(layer))


def _drawn(rng: np.random.Generator, projection: str, shape: tuple[int, int]) -> FloatArray:
    if projection == "normal":
        return rng.standard_normal(shape, dtype=np.float32)
    return np.float32(12**0.5) * (rng.random(shape, dtype=np.float32) - np.float32(0.5))


def deep_digest(seed: int, projection: str, dim: int, sizes: Mapping[int, int]) -> str:
    """SHA-256 of the first rows of every layer's A at scale 1, the first 32 hex digits; ``sizes``: layer -> numbers.

    That tells one generator from another; to draw all of 24 layers would take ten seconds.
    """
    total = hashlib.sha256()
    for layer, size in sizes.items():
        total.update(layer_rows(seed, projection, dim, size, layer, 0).astype("<f4", copy=False).tobytes())
    return total.hexdigest()[:32]


def check_deep(space: Subspace) -> None:
    """See that this machine draws what the one drew where the search began.

    Raises:
        ScoringError: it does not.
    """
    sizes = {layer: space.length * space.width_of(layer) for layer in space.layers}
    if space.digest and deep_digest(space.seed, space.projection, space.dim, sizes) != space.digest:
        raise ScoringError(ANOTHER.format(np.__version__))


def projection_digest(seed: int, projection: str, dim: int, size: int) -> str:
    """SHA-256 of A at scale 1, the first 32 hex digits; A is not kept."""
    total = hashlib.sha256()
    for rows in draws(seed, projection, dim, size):
        total.update(rows.astype("<f4", copy=False).tobytes())
    return total.hexdigest()[:32]


def projection_matrix(space: Subspace) -> FloatArray:
    """A^T of a subspace: (dim, length * width) float32, row-major; prompts are Z A^T.

    Raises:
        ScoringError: this machine draws other numbers than the one where the search began.
    """
    size = space.length * space.width
    matrix = np.empty((space.dim, size), dtype=np.float32)
    total = hashlib.sha256()
    at = 0
    for rows in draws(space.seed, space.projection, space.dim, size):
        total.update(rows.astype("<f4", copy=False).tobytes())
        np.multiply(rows, np.float32(space.scale), out=matrix[at : at + len(rows)])
        at += len(rows)
    if space.digest and total.hexdigest()[:32] != space.digest:
        raise ScoringError(ANOTHER.format(np.__version__))
    return matrix


class Bounded(Generic[T]):
    """A cache that keeps at most so many bytes, and always the newest entry; what was used last goes last.

    Args:
        most: bytes.
        size: of an entry, in bytes.
    """

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self.most = most
        self.size = size
        self.entries: OrderedDict[object, T] = OrderedDict()
        self.bytes = 0
        self.lock = Lock()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The entry of that key; one that is not there is made, by one thread at a time."""
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
                return self.entries[key]
            entry = make()
            self._keep(key, entry)
            return entry

    def find(self, key: object) -> T | None:
        """The entry of that key, if there is one."""
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
            return self.entries.get(key)

    def put(self, key: object, entry: T) -> None:
        """Keep an entry that was made elsewhere; one that is there already stays."""
        with self.lock:
            if key not in self.entries:
                self._keep(key, entry)

    def clear(self) -> None:
        """Keep nothing."""
        with self.lock:
            self.entries.clear()
            self.bytes = 0

    def _keep(self, key: object, entry: T) -> None:
        self.entries[key] = entry
        self.bytes += self.size(entry)
        while self.bytes > self.most and len(self.entries) > 1:
            _, oldest = self.entries.popitem(last=False)
            self.bytes -= self.size(oldest)
