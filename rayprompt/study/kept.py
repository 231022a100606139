"""Pools that trainables share: an LM is loaded once in a process, and put away with the last of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ray

from rayprompt.lm.source import LMSource
from rayprompt.scoring.cluster import address_of, connect
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers

_pools: dict[tuple[Any, ...], tuple[ScoringPool, int]] = {}  # of this process: pool, and trainables that use it


def shared_pool(
    source: LMSource,
    *,
    address: str | None,
    scorers: Scorers,
    gpus_per_scorer: float | None,
    spare_gpu: float = 0.0,
) -> tuple[ScoringPool, Callable[[], None]]:
    """A pool for ``source``, started or taken from a trainable that has the same; and what gives it back.

    Raises:
        InputError, ScoringError: as ``ScoringPool.start``.
    """
    connect(address_of(address, scorers))
    key = (ray.get_runtime_context().get_job_id(), source, scorers, gpus_per_scorer, spare_gpu)
    if key not in _pools:
        _pools[key] = (
            ScoringPool.start(source, scorers=scorers, gpus_per_scorer=gpus_per_scorer, spare_gpu=spare_gpu),
            0,
        )
    pool, users = _pools[key]
    _pools[key] = (pool, users + 1)
    return pool, lambda: _give_back(key)


def _give_back(key: tuple[Any, ...]) -> None:
    pool, users = _pools[key]
    _pools[key] = (pool, users - 1)
    if users > 1:
        return
    del _pools[key]
    if ray.is_initialized() and ray.get_runtime_context().get_job_id() == key[0]:
        with contextlib.suppress(Exception):
            pool.shutdown()
