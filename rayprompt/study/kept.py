"""Pools that trainables of a process share: an LM is loaded once, and its scorers end with the last who uses them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import ray

from rayprompt.lm.source import LMSource
from rayprompt.scoring.cluster import address_of, connect
from rayprompt.scoring.placement import PlacementWatch
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers

logger = logging.getLogger(__name__)


@dataclass
class Kept:
    """A pool of this process: how it was asked for, and how many use it."""

    job: str  # Ray's, while this process is connected
    source: LMSource
    options: tuple[Scorers, float | None]
    spare_gpu: float
    pool: ScoringPool
    watch: PlacementWatch
    users: int = 0

    def suits(self, source: LMSource, options: tuple[Scorers, float | None], spare_gpu: float) -> bool:
        """Whether it is what somebody asks for; who names no options takes any."""
        room = spare_gpu <= self.spare_gpu or ray.cluster_resources().get("GPU", 0.0) < 1
        return self.source == source and options in ((None, None), self.options) and room

    def give_back(self) -> None:
        """One user less."""
        self.users -= 1
        if self.users > 0:
            return
        _pools.remove(self)
        self.watch.close()
        if ray.is_initialized() and ray.get_runtime_context().get_job_id() == self.job:
            with contextlib.suppress(Exception):
                self.pool.shutdown()


_pools: list[Kept] = []


def kept_pool(
    source: LMSource, scorers: Scorers, gpus_per_scorer: float | None, spare_gpu: float = 0.0
) -> tuple[ScoringPool, Callable[[], None]] | None:
    """A pool for ``source`` that a trainable of this process holds, and what gives it back; None where none suits."""
    if not ray.is_initialized():
        return None
    job = ray.get_runtime_context().get_job_id()
    options = (None if scorers == "auto" else scorers, gpus_per_scorer)
    for kept in _pools:
        if kept.job == job and kept.suits(source, options, spare_gpu):
            kept.users += 1
            return kept.pool, kept.give_back
    return None


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
    found = kept_pool(source, scorers, gpus_per_scorer, spare_gpu)
    if found is not None:
        return found
    pool = ScoringPool.start(source, scorers=scorers, gpus_per_scorer=gpus_per_scorer, spare_gpu=spare_gpu)
    options = (None if scorers == "auto" else scorers, gpus_per_scorer)
    kept = Kept(
        ray.get_runtime_context().get_job_id(), source, options, spare_gpu, pool, PlacementWatch(logger.warning), 1
    )
    _pools.append(kept)
    return pool, kept.give_back
