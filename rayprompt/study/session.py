"""A session: Ray connected, and a scoring pool for one LM; both are put away at the end if they were started here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from rayprompt.lm.source import LMSource
from rayprompt.scoring.cluster import address_of, connect
from rayprompt.scoring.placement import PlacementWatch
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import PoolSize, Scorers, shared_name
from rayprompt.study.kept import kept_pool
from rayprompt.study.progress import Listener, Progress, silent


@dataclass(frozen=True)
class Cluster:
    """Where to run: ``address`` of a Ray cluster (None: RAY_ADDRESS, else a local one), and how many scorers.

    Of ``scorers`` that are a pool's which is up somewhere, ``address`` None is the cluster of this machine.
    """

    address: str | None = None
    scorers: Scorers = None
    gpus_per_scorer: float | None = None
    spare_gpu: float = 0.0  # share of a GPU that the scorers leave to the searches' own work
    other_machine: bool = False  # a resumed study may go on with scorers of another machine class

    def __post_init__(self) -> None:
        """Say before anything is started that it cannot be.

        Raises:
            InputError: scorers that are none.
        """
        if shared_name(self.scorers) is None:
            PoolSize.of(self.scorers)


@contextmanager
def connected(cluster: Cluster, listener: Listener = silent, timings: dict[str, float] | None = None) -> Iterator[None]:
    """Ray: started here and put away at the end, or joined.

    Raises:
        InputError: no cluster at the address.
    """
    clock = {} if timings is None else timings
    started = time.perf_counter()
    listener(Progress("start", "starting Ray" if not ray.is_initialized() else "using the running Ray"))
    ours = connect(address_of(cluster.address, cluster.scorers))
    clock["ray_start"] = time.perf_counter() - started
    try:
        yield
    finally:
        started = time.perf_counter()
        if ours:
            ray.shutdown()
        clock["shutdown"] = clock.get("shutdown", 0.0) + time.perf_counter() - started


@contextmanager
def loaded(
    source: LMSource, cluster: Cluster, listener: Listener = silent, timings: dict[str, float] | None = None
) -> Iterator[ScoringPool]:
    """A pool for ``source`` on the connected Ray; several may follow one another.

    A trainable of this process may hold scorers of that LM: then they are taken, and left.

    Raises:
        InputError: the cluster cannot hold the scorers.
        ScoringError: the LM did not load.
    """
    clock = {} if timings is None else timings
    started = time.perf_counter()
    shared = shared_name(cluster.scorers)
    listener(Progress("start", f"loading {source.name}" if shared is None else f"taking the scorers of pool {shared}"))
    asked = (cluster.scorers, cluster.gpus_per_scorer, cluster.spare_gpu)
    kept = kept_pool(source, *asked)
    if kept is None:
        pool = ScoringPool.start(source, scorers=asked[0], gpus_per_scorer=asked[1], spare_gpu=asked[2])
        put_away: Callable[[], None] = pool.shutdown
    else:
        pool, put_away = kept
    clock["model_load"] = time.perf_counter() - started
    watch = PlacementWatch(lambda line: listener(Progress("start", line)))
    try:
        yield pool
    finally:
        started = time.perf_counter()
        watch.close()
        put_away()
        clock["shutdown"] = time.perf_counter() - started


@contextmanager
def session(
    source: LMSource, cluster: Cluster, listener: Listener = silent, timings: dict[str, float] | None = None
) -> Iterator[ScoringPool]:
    """Ray and a pool for ``source``; ``timings`` gets the seconds that Ray and the LM took to start.

    Raises:
        InputError: no cluster at the address, or it cannot hold the scorers.
        ScoringError: the LM did not load.
    """
    with connected(cluster, listener, timings), loaded(source, cluster, listener, timings) as pool:
        yield pool
