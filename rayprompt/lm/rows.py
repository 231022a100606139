"""Examples with one soft prompt in them, as padded rows: for those who look at the LM's states rather than scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayprompt.candidate import Subspace
from rayprompt.lm.encode import EncodedPart
from rayprompt.scores import IntArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """Some examples on the LM's device: ids (B, T), mask (B, T), where to read (B,), and where the prompt is (B,)."""

    ids: torch.Tensor
    mask: torch.Tensor
    read: torch.Tensor
    start: torch.Tensor


def input_lengths(part: EncodedPart, space: Subspace) -> IntArray:
    """(E,) the tokens of every example with a prompt of a subspace.

    Raises:
        InputError: there is no room for it.
    """
    front = space.front
    count = 0 if front else len(space.tokens)
    return part.reserving(front).lengths(np.full(len(part), count), np.arange(len(part))) + front


def rows_of(
    part: EncodedPart, space: Subspace, examples: IntArray, device: torch.device, *, rows: int, tokens: int
) -> Iterator[tuple[IntArray, Rows]]:
    """Cut examples into batches, in their order; each batch is padded to its longest input.

    Args:
        part: they are of.
        space: of the prompt, whose tokens stand at its place.
        examples: (n,) which.
        device: of the LM.
        rows, tokens: of a batch, at most; but one row at least.
    """
    import torch

    front = space.front
    prompt = space.tokens if not front else ()
    lengths = input_lengths(part, space)
    while len(examples):
        count = min(rows, len(examples))
        while count > 1 and count * int(lengths[examples[:count]].max()) > tokens:
            count -= 1
        some, examples = examples[:count], examples[count:]
        longest = int(lengths[some].max())
        ids, sizes, read, start = part.reserving(front).render(
            (prompt,), np.zeros(len(some), dtype=np.int64), some, longest - front, len(some)
        )
        if front:
            dummies = np.full((len(some), front), part.pad_id, dtype=np.int64)
            ids, start = np.concatenate([dummies, ids], axis=1), start * 0
            sizes, read = sizes + front, read + front
        mask = (np.arange(longest) < sizes[:, None]).astype(np.int64)
        yield some, Rows(*(torch.from_numpy(x).to(device) for x in (ids, mask, read, start)))
