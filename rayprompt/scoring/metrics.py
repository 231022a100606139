"""What a run tells Ray's metrics. Every metric stands in :data:`METRICS`; Prometheus has it as ``ray_<name>``.

A process collects and sends about once a second, which costs next to nothing; Ray sends on every ten seconds, and
forgets a gauge that was not set for twenty. Metrics are for people who watch: where they cannot be sent, nothing else
changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SEND_SECONDS = 1.0
KEEP_SECONDS = 5.0
SEARCH = ("study", "run", "searcher", "task", "model")
POOL = ("model",)
SCORER = ("model", "scorer")
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
UNLIMITED = 2**60  # a budget from here on is none

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A metric by its name in Ray. ``tags``: the labels that say whose it is; Ray adds those of node and process."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> tuple[str, ...]:
        """Its names in Prometheus."""
        ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{end}" for end in ends[self.kind])


METRICS = (
    # Of a search. Counters count what was done since the process began: what a resumed search takes up from its files
    # was counted before, and is not counted again.
    Metric("rayprompt_evaluations", "counter", "pairs", "distinct (candidate, example) pairs asked for", SEARCH),
    Metric("rayprompt_lm_evaluations", "counter", "pairs", "pairs that the LM ran", SEARCH),
    Metric("rayprompt_cache_hits", "counter", "pairs", "pairs answered without the LM", SEARCH),
    Metric("rayprompt_tokens", "counter", "tokens", "tokens of the LM's input and output, padding not counted", SEARCH),
    Metric("rayprompt_lm_seconds", "counter", "seconds", "scorers' time, summed over lanes side by side", SEARCH),
    Metric("rayprompt_candidates", "counter", "candidates", "candidates of which a pair was asked for", SEARCH),
    Metric("rayprompt_budget_spent", "gauge", "pairs", "evaluations of the whole search, as in its ledger", SEARCH),
    Metric("rayprompt_budget", "gauge", "pairs", "the most evaluations of the search", SEARCH),
    Metric("rayprompt_best_score", "gauge", "", "the task metric of the best candidate on train so far", SEARCH),
    Metric("rayprompt_best_objective", "gauge", "", "the objective of the best candidate on train so far", SEARCH),
    # Of a pool.
    Metric("rayprompt_queue_depth", "gauge", "orders", "orders that wait for a scorer, or for a service", POOL),
    Metric("rayprompt_in_flight", "gauge", "orders", "orders that scorers, or a service, have in their hands", POOL),
    Metric("rayprompt_scorers_alive", "gauge", "scorers", "scorers that take orders", POOL),
    Metric("rayprompt_restarts", "gauge", "restarts", "scorers that were lost, and started again, so far", POOL),
    Metric("rayprompt_scorers_stuck", "gauge", "scorers", "scorers that stood still and were killed, so far", POOL),
    Metric("rayprompt_order_seconds", "histogram", "seconds", "from an order's arrival to its answer", POOL),
    # Of a scorer.
    Metric("rayprompt_scorer_passes", "counter", "passes", "forward passes that the scorer has answered", SCORER),
    Metric("rayprompt_scorer_in_flight", "gauge", "orders", "orders that the scorer has in its hands", SCORER),
    Metric("rayprompt_scorer_restarts", "gauge", "restarts", "how often it was lost, and started again", SCORER),
    Metric("rayprompt_batch_fill", "gauge", "", "share of a forward pass that is no padding, of one a second", SCORER),
    # Of an LM behind a service.
    Metric("rayprompt_requests_again", "gauge", "requests", "requests that failed and were sent again, so far", POOL),
)
BY_NAME = {metric.name: metric for metric in METRICS}

# What a search reports -> counters and gauges.
COUNTED = {
    "evaluations": "rayprompt_evaluations",
    "lm_evaluations": "rayprompt_lm_evaluations",
    "cache_hits": "rayprompt_cache_hits",
    "tokens": "rayprompt_tokens",
    "lm_seconds": "rayprompt_lm_seconds",
    "candidates": "rayprompt_candidates",
}
SHOWN = {
    "evaluations": "rayprompt_budget_spent",
    "budget": "rayprompt_budget",
    "best_score": "rayprompt_best_score",
    "best_objective": "rayprompt_best_objective",
}


class Meter:
    """Sends metrics with one set of tags. The first that Ray does not take is the last one: it is logged, not raised.

    Args:
        tags: a value for every label; names and paths are shortened to what can be read in a legend.
        like: one of this process whose metrics it sends as well, with its own tags.
    """

    def __init__(self, tags: Mapping[str, str], like: Meter | None = None) -> None:
        self.tags = {key: os.path.basename(value) if os.path.isabs(value) else value for key, value in tags.items()}
        self.made: dict[str, Any] = {} if like is None else like.made
        self.shown: dict[str, float] = {}
        self.off = False

    def count(self, name: str, more: float) -> None:
        """Add to a counter."""
        if more > 0 and math.isfinite(more):
            self._send(name, "inc", (more,))

    def show(self, name: str, value: float) -> None:
        """Set a gauge, and keep it up. What is no number, as the best score before there is one, is left out."""
        if math.isfinite(value):
            if not self.shown:
                KEPT_UP.add(self)
            self.shown[name] = value
            self._send(name, "set", (value,))

    def repeat(self) -> None:
        """Set the gauges once more."""
        for name, value in list(self.shown.items()):
            self._send(name, "set", (value,))

    def observe(self, name: str, values: Iterable[float]) -> None:
        """Add observations to a histogram."""
        self._send(name, "observe", values)

    def _send(self, name: str, method: str, values: Iterable[float]) -> None:
        if self.off:
            return
        try:
            record = getattr(self._made(name), method)
            for value in values:
                record(float(value), tags=self.tags)
        except Exception as error:  # a search does not fail of what is shown of it
            self.off = True
            logger.info("metrics are off: %s: %s", type(error).__name__, error)

    def _made(self, name: str) -> Any:
        if name not in self.made:
            from ray.util import metrics as ray_metrics

            metric = BY_NAME[name]
            kind = getattr(ray_metrics, metric.kind.capitalize())
            more = {"boundaries": list(SECONDS)} if metric.kind == "histogram" else {}
            self.made[name] = kind(metric.name, description=metric.description, tag_keys=metric.tags, **more)
        return self.made[name]


class _KeptUp:
    """The meters of this process whose gauges are set again and again, as long as there are the meters; one thread."""

    def __init__(self) -> None:
        self.meters: weakref.WeakSet[Meter] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.pid = 0  # of the process whose thread runs: a fork has none

    def add(self, meter: Meter) -> None:
        with self.lock:
            self.meters.add(meter)
            if self.pid != os.getpid():
                self.pid = os.getpid()
                threading.Thread(target=self._run, name="rayprompt-gauges", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(KEEP_SECONDS)
            self._repeat()

    def _repeat(self) -> None:
        with self.lock:
            meters = [meter for meter in self.meters if not meter.off]
        for meter in meters:
            meter.repeat()


KEPT_UP = _KeptUp()


class SearchMeter:
    """Metrics of one search in this process.

    Args:
        study: its directory or URI, of which the last part is shown.
        run: the name of the search in the study.
        searcher, task, model: what it is made of.
        counted: the counts of what was done before, which are not counted again.
    """

    def __init__(
        self, *, study: str, run: str, searcher: str, task: str, model: str, counted: Mapping[str, Any]
    ) -> None:
        names = {"study": Path(study).name, "run": run, "searcher": searcher, "task": task, "model": model}
        self.meter = Meter(names)
        self.counted = {key: float(counted.get(key, 0.0)) for key in COUNTED}
        self.sent_at = -math.inf

    def update(self, report: Mapping[str, Any], *, now: bool = False) -> None:
        """Send a report of the search, if the last was sent a second ago; ``now`` sends it in any case."""
        if not now and time.monotonic() - self.sent_at < SEND_SECONDS:
            return
        self.sent_at = time.monotonic()
        for key, name in COUNTED.items():
            value = float(report.get(key, 0.0))
            self.meter.count(name, value - self.counted[key])
            self.counted[key] = max(value, self.counted[key])
        for key, name in SHOWN.items():
            value = float(report.get(key, math.nan))
            if key != "budget" or value < UNLIMITED:
                self.meter.show(name, value)


class PoolMeter:
    """Metrics of a pool, from the actor that hands out orders. Sends while there is work, and once when it is done.

    Args:
        model: the LM's name.
        state: metric -> value at this moment; ``rayprompt_queue_depth`` and ``rayprompt_in_flight`` say whether there
            is work.
        scorers: for each scorer metric -> value at this moment.
    """

    def __init__(
        self,
        model: str,
        state: Callable[[], Mapping[str, float]],
        scorers: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
    ) -> None:
        self.meter = Meter({"model": model})
        self.state = state
        self.scorers = scorers
        self.meters: dict[str, Meter] = {}
        self.counted: dict[str, float] = {}
        self.seconds: list[float] = []
        self.sending: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is work. Call it from the actor's loop."""
        if self.sending is None:
            self.sending = asyncio.get_running_loop().create_task(self._send_on())

    def took(self, seconds: float) -> None:
        """An order was answered."""
        self.seconds.append(seconds)

    async def _send_on(self) -> None:
        while self.send():
            await asyncio.sleep(SEND_SECONDS)
        self.sending = None

    def send(self) -> bool:
        """Send what there is; False = there is no work."""
        state, seconds, self.seconds = self.state(), self.seconds, []
        for name, value in state.items():
            self.meter.show(name, value)
        self.meter.observe("rayprompt_order_seconds", seconds)
        now = self.scorers()
        self.meters = {
            name: self.meters.get(name) or Meter({**self.meter.tags, "scorer": name}, self.meter) for name in now
        }  # of those that are gone nothing is shown any more
        self.counted = {name: self.counted.get(name, 0.0) for name in now}
        for name, values in now.items():
            for metric, value in values.items():
                if BY_NAME[metric].kind == "counter":
                    self.meters[name].count(metric, value - self.counted[name])
                    self.counted[name] = value
                else:
                    self.meters[name].show(metric, value)
        return bool(seconds or state["rayprompt_queue_depth"] or state["rayprompt_in_flight"])


class FillMeter:
    """How full the forward passes of a scorer are: one of them is looked at about every second."""

    def __init__(self, model: str, scorer: str) -> None:
        self.meter = Meter({"model": model, "scorer": scorer})
        self.sent_at = -math.inf

    def look(self, fill: Callable[[], float]) -> None:
        """Send what ``fill`` says, if the last look was a second ago."""
        if time.monotonic() - self.sent_at >= SEND_SECONDS:
            self.sent_at = time.monotonic()
            with contextlib.suppress(Exception):  # scoring does not fail of it
                self.meter.show("rayprompt_batch_fill", fill())
