"""The Tune trial: a whole search. One step is one generation."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from typing import Any

from ray import tune

from rayprompt.errors import LeaseLost, RayPromptError
from rayprompt.scoring.metrics import SearchMeter
from rayprompt.study.loop import SearchLoop

FAILED = "failed"


class SearchTrial(tune.Trainable):
    """Runs one search to its end: ask -> score -> tell, a generation a step.

    Reports ``best_score`` (the task metric on train, best so far) and ``timesteps_total`` = evaluations, so that
    curves of searchers with other generation sizes have one x-axis. A trial that is killed is started again by Tune
    and goes on from the files of its search. A search that fails would fail again: it reports the error and is done.
    """

    loop: SearchLoop | None = None
    meter: SearchMeter | None = None  # of the loop, once it has begun here
    failure: str = ""
    stepped = False  # whether this process has taken the search any further

    def setup(self, config: dict[str, Any], job: bytes) -> None:  # type: ignore[override]  # tune.with_parameters
        """``job``: searcher, pool and plan, pickled: what cannot be unpickled here is a failure to tell of, too."""
        try:
            searcher, pool, plan = pickle.loads(job)
            self.loop = SearchLoop(searcher, pool, plan)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Keep what the search failed of: its next report says so."""
        self.failure = _describe(error)

    def step(self) -> dict[str, Any]:
        if self.loop is None:
            return self._failed({"best_score": float("-inf")})
        self.stepped = True
        self.meter = self.meter or self._meter(self.loop)
        try:
            self.loop.step()
            if self.loop.end is not None:
                self.loop.close()
        except Exception as error:
            self.fail(error)
            with contextlib.suppress(Exception):  # the first failure is the one to tell of
                self.loop.abandon()
            report = self._failed(self.loop.report())
        else:
            report = self.loop.report()
        self.meter.update(report, now=report["done"])
        return report

    def cleanup(self) -> None:
        """Tune ends the trial, because it is done or because somebody pressed Ctrl-C.

        It may also have made it ready here and then had it run in another process, whose files are not to be touched;
        nor are those of a study that another process has taken over.
        """
        if self.loop is not None and self.stepped and self.loop.end is None and not self.failure:
            try:
                self.loop.close()
            except LeaseLost:  # what there is to be written is another process's now
                return
            if self.meter is not None:
                self.meter.update(self.loop.report(), now=True)

    def _meter(self, loop: SearchLoop) -> SearchMeter:
        """Names are those of Tune's trial: a comparison has its own for searchers and runs."""
        problem, label = loop.searcher.problem, (self.config or {}).get("searcher")
        return SearchMeter(
            study=loop.plan.study,
            run=str(self.trial_name or loop.plan.search),
            searcher=label if isinstance(label, str) else loop.searcher.name,
            task=problem.task.name,
            model=problem.lm.name,
            counted=loop.taken_up,
        )

    def _failed(self, report: dict[str, Any]) -> dict[str, Any]:
        return {**report, "end": FAILED, "error": self.failure, "done": True}


def _describe(error: Exception) -> str:
    """An expected error as its type and line, any other with its traceback."""
    if isinstance(error, RayPromptError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return traceback.format_exc()
