"""The Tune trial: a whole search. One step is one generation."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate
from rayprompt.objective import OBJECTIVES
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.step import Step, ask_score_tell

STALLED_AFTER = 20  # asks in a row without a new pair


@dataclass(frozen=True)
class Finalist:
    """One of the best candidates on train: its objective and its task metric there."""

    candidate: Candidate
    objective: float
    metric: float

    def to_json(self) -> dict[str, Any]:
        return {"candidate": self.candidate.to_json(), "objective": self.objective, "metric": self.metric}


class Finalists:
    """The ``size`` best candidates by objective; of equals the earlier one stays."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.best: list[Finalist] = []

    def add(self, finalist: Finalist) -> None:
        if np.isnan(finalist.objective) or any(f.candidate.key == finalist.candidate.key for f in self.best):
            return
        self.best.append(finalist)
        self.best.sort(key=lambda f: -f.objective)  # stable
        del self.best[self.size :]


class SearchTrial(tune.Trainable):
    """Runs one search to its end: ask -> score -> tell, a generation a step.

    Reports ``best_score`` (the task metric on train, best so far) and ``timesteps_total`` = evaluations, so that
    curves of searchers with other generation sizes have one x-axis.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds the rest
        self, config: dict[str, Any], searcher: PromptSearcher, pool: ScoringPool, budget: int, finalists: int
    ) -> None:
        self.searcher = searcher
        problem = searcher.problem
        self.gold = problem.gold
        self.metric = OBJECTIVES[problem.task.metric]
        self.ledger = Ledger(budget)
        self.evaluator = Evaluator(pool, problem.part("train"), self.gold, self.ledger, search=self.trial_id)
        self.finalists = Finalists(finalists)
        self.best_score = self.best_objective = float("-inf")
        self.stale = 0
        self.seconds = {"ask": 0.0, "score": 0.0, "tell": 0.0}
        self.started = time.perf_counter()

    def step(self) -> dict[str, Any]:
        step = ask_score_tell(self.searcher, self.evaluator)
        self._keep(step)
        self.stale = 0 if step.new_pairs else self.stale + 1
        reason = self._end(step)
        return self._report(step, reason)

    def _keep(self, step: Step) -> None:
        for name in self.seconds:
            self.seconds[name] += getattr(step, f"{name}_seconds")
        if not step.candidates:
            return
        metrics = np.where(np.isnan(step.values), np.nan, self.metric(step.scores, self.gold))
        for candidate, value, metric in zip(step.candidates, step.values, metrics, strict=True):
            self.finalists.add(Finalist(candidate, float(value), float(metric)))
        for metric, value in zip(metrics, step.values, strict=True):
            if not np.isnan(value):
                self.best_score = max(self.best_score, float(metric))
                self.best_objective = max(self.best_objective, float(value))

    def _end(self, step: Step) -> str | None:
        """Why the search ends here, or None."""
        if self.evaluator.affordable(1) == 0:
            return "budget"
        if self.searcher.stop():
            return ", ".join(f"{k}={v}" for k, v in self.searcher.stop().items())
        if not step.candidates:
            return "exhausted"
        return "stalled" if self.stale >= STALLED_AFTER else None

    def _report(self, step: Step, reason: str | None) -> dict[str, Any]:
        elapsed = time.perf_counter() - self.started
        report: dict[str, Any] = {
            "score": float(np.max(np.nan_to_num(step.values, nan=-np.inf), initial=-np.inf)),
            "best_score": self.best_score,
            "best_objective": self.best_objective,
            "evaluations": self.ledger.evaluations,
            "timesteps_total": self.ledger.evaluations,
            "candidates": len(self.evaluator.rows),
            "lm_evaluations": self.ledger.lm_evaluations,
            "cache_hits": self.ledger.cache_hits,
            "tokens": self.ledger.tokens,
            "evaluations_per_second": self.ledger.evaluations / max(elapsed, 1e-9),
            "done": reason is not None,
        }
        if reason is not None:
            report |= {
                "end": reason,
                "finalists": [f.to_json() for f in self.finalists.best],
                "ledger": dataclasses.asdict(self.ledger),
                "truncated": self.evaluator.part.truncated(self.evaluator.longest_prompt),
                "loop_seconds": elapsed,
                **{f"{name}_seconds": value for name, value in self.seconds.items()},
            }
        elif self.finalists.best:
            report["best_prompt"] = self.finalists.best[0].candidate.to_json().get("text", "")
        return report
