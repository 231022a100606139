"""Orders: what travels to a scorer at a time. How a request is cut into them cannot change a result."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.scorer import Bucket
from rayprompt.lm.shapes import ShapeTable
from rayprompt.scores import IntArray

MOST_PASSES = 8  # forward passes of an order, before it is known what one takes
ORDER_SECONDS = 0.05  # of work in an order
LEAST_SECONDS = 0.005  # an order with less work than this costs as much on its way as in the LM


@dataclass(frozen=True)
class Order:
    """Some buckets of one part, pickled; the pairs (n,) of the request in them, and the forward passes they take."""

    content: bytes
    rows: IntArray
    passes: int
    with_part: bool = False
    soft: Any = None  # the key of its soft prompts and the reference to them


@dataclass(frozen=True)
class SoftRows:
    """Where the soft prompts of a request are: row ``rows[i]`` of a block is prompt i, -1 = none."""

    rows: IntArray
    front: int
    reference: Any


def cut_orders(
    shapes: ShapeTable,
    lanes: int,
    pass_seconds: float | None,
    part: EncodedPart,
    prompts: Sequence[tuple[int, ...]],
    prompt: IntArray,
    example: IntArray,
    lengths: IntArray,
    soft: SoftRows | None = None,
) -> list[Order]:
    """Cut P pairs into orders, at the bounds of forward passes: how they are cut does not change a result.

    An order is to take ORDER_SECONDS, so that what it costs on its way does not count; but no lane is to be idle,
    unless there is next to nothing to do.

    Args:
        shapes: of the forward passes.
        lanes: forward passes that the pool runs side by side.
        pass_seconds: what one takes; None = not known yet.
        part, prompts, prompt, example: as for ``ScoringPool.score_pairs``.
        lengths: (P,) tokens of each input.
        soft: for soft prompts, where they are.
    """
    buckets = list(shapes.buckets(lengths))
    passes = sum(-(-len(members) // rows) for _, rows, members in buckets)
    share = -(-passes // lanes)
    if pass_seconds is None:
        size = max(1, min(MOST_PASSES, -(-share // 4)))
    else:
        size = max(1, int(LEAST_SECONDS / pass_seconds), min(int(ORDER_SECONDS / pass_seconds), share))
    orders, pieces, room = [], [], size
    for length, rows, members in buckets:
        at = 0
        while at < len(members):
            piece = members[at : at + room * rows]
            at += len(piece)
            room -= -(-len(piece) // rows)
            pieces.append((length, rows, piece))
            if room == 0:
                orders.append(_order(part, prompts, prompt, example, pieces, size, soft))
                pieces, room = [], size
    if pieces:
        orders.append(_order(part, prompts, prompt, example, pieces, size - room, soft))
    return orders


def _order(
    part: EncodedPart,
    prompts: Sequence[tuple[int, ...]],
    prompt: IntArray,
    example: IntArray,
    pieces: Sequence[tuple[int, int, IntArray]],
    passes: int,
    soft: SoftRows | None,
) -> Order:
    """An order for the pairs of some pieces (padded length, rows of a pass, pairs (n,))."""
    buckets = []
    for length, rows, members in pieces:
        used, index = np.unique(prompt[members], return_inverse=True)
        own = tuple(prompts[int(i)] for i in used)
        bucket = Bucket(part.key, length, rows, own, index.astype(np.int32), example[members].astype(np.int32))
        if soft is not None:
            bucket = replace(bucket, soft=soft.rows[used], front=soft.front)
        buckets.append(bucket)
    content = pickle.dumps(buckets, protocol=5)
    rows_of = np.concatenate([members for _, _, members in pieces])
    return Order(content, rows_of, passes, soft=None if soft is None else soft.reference)
