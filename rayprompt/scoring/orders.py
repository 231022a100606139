"""Orders: what travels to a scorer at a time. How a request is cut into them cannot change a result."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.lm.loads import Request, Table, loads_of, passes_of
from rayprompt.scores import IntArray

MOST_PASSES = 8  # forward passes of an order, before it is known what one takes
ORDER_SECONDS = 0.05  # of work in an order
MOST_ORDERS_A_SECOND = 100  # of a search: what it and the router do for an order takes a millisecond or two each
LEAST_SECONDS = 0.005  # an order with less work than this costs as much on its way as in the LM


@dataclass(frozen=True)
class Order:
    """Some loads of one part, pickled; the pairs (n,) of the request in them, and the forward passes they take."""

    content: bytes
    rows: IntArray
    passes: int
    with_part: bool = False
    soft: Any = None  # the key of its soft prompts and the reference to them


def cut_orders(table: Table, lanes: int, pass_seconds: float | None, request: Request, soft: Any = None) -> list[Order]:
    """Cut a request into orders, at the bounds of forward passes: how they are cut does not change a result.

    An order is to take ORDER_SECONDS, so that what it costs on its way does not count, and longer on so many lanes that
    there would be too many of them a second; but no lane is to be idle, unless there is next to nothing to do, and
    the last ones are smaller, so that lanes end together.

    Args:
        table: of the forward passes.
        lanes: forward passes that the pool runs side by side.
        pass_seconds: what one takes; None = not known yet.
        request: the pairs.
        soft: the key of its soft prompts and the reference to them.
    """
    passes = passes_of(table, request)
    orders = []
    start = 0
    for size in _sizes(len(passes), lanes, pass_seconds):
        some = passes[start : start + size]
        start += size
        content = pickle.dumps(loads_of(table, request, some), protocol=5)
        orders.append(Order(content, np.concatenate([members for _, members in some]), len(some), soft=soft))
    return orders


def _sizes(passes: int, lanes: int, pass_seconds: float | None) -> Iterator[int]:
    """Passes of each order: as many as are good for an order, and towards the end fewer, so that lanes end together."""
    share = -(-passes // lanes)
    if pass_seconds is None:
        most = least = max(1, min(MOST_PASSES, -(-share // 4)))
    else:
        most = max(1, round(max(ORDER_SECONDS, lanes / MOST_ORDERS_A_SECOND) / pass_seconds))
        least = max(1, int(LEAST_SECONDS / pass_seconds), -(-min(most, share) // 4))
    while passes > 0:
        size = min(passes, max(least, min(most, passes // (2 * lanes))))
        yield size
        passes -= size
