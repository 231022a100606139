"""A search with a Tune trial per batch of candidates: ``rayprompt search --tune-native``.

The searcher sits in the Tuner, on the driver, and each of its batches is a trial. It costs some tens of milliseconds
a batch that one trial for the whole search does not cost; for the rest it is the same search.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Callback

from rayprompt.candidate import candidates
from rayprompt.errors import Interrupted, RayPromptError, ScoringError, last_line
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.study.loop import Finalist, Finalists, SearchPlan
from rayprompt.study.progress import Listener, Progress
from rayprompt.study.trackers import NO_TRACKERS, AsOne, Trackers, WholeSearch
from rayprompt.study.trainable import SLOTS, Desk
from rayprompt.study.tuning import MOST_TRIAL_DEATHS, parameters_of, quiet_tune, trial_error

NO_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
STAGED = 3  # trials that wait for each that runs, so that its process is used again


def run_native(
    searcher: PromptSearcher,
    pool: ScoringPool,
    plan: SearchPlan,
    name: str,
    listener: Listener,
    trackers: Trackers = NO_TRACKERS,
) -> dict[str, Any]:
    """Run the search as a Tune experiment of its own and give a report like that of a search in one trial.

    A search that was interrupted is begun again: what it had scored is in the store, and costs nothing but its trials.

    Raises:
        RayPromptError: what a trial failed of.
        Interrupted: SIGINT came first; what was scored is written.
    """
    begun = time.perf_counter()
    searcher.most_candidates = plan.budget // len(set(searcher.problem.digests("train")))
    names = {"study": plan.study, "run": name, "searcher": searcher.name}
    desk = Desk.open(searcher.problem, pool, plan.store, plan.search, plan.budget, names, plan.check_held)
    whole = WholeSearch(name, str(plan.directory), parameters_of(searcher, plan))
    runs = [
        AsOne(logger, whole, lambda: bool(searcher.ended))
        for logger in trackers.callbacks(plan.directory, {name: plan.search}, listener)
    ]
    collect = Collect(searcher, plan, listener, runs)
    trainable, folder = desk.trainable(report_errors=True), experiment_name(plan.directory, name)
    tuner = tuner_of(searcher, trainable, str(plan.directory), folder, [*runs, collect])
    try:
        with quiet_tune(), without_loggers():
            outcome = tuner.fit()
        counts = desk.report()
    except RayPromptError:
        raise
    except Exception as error:  # of the searcher, on the driver; or of a trial that reported one
        raise trial_error(collect.error or f"{type(error).__name__}: {error}") from None
    finally:
        desk.close()
    if outcome.errors:
        raise ScoringError(f"the search failed: {last_line(outcome.errors[0])}")
    seconds = time.perf_counter() - begun
    report = collect.report()
    if not searcher.ended:
        raise Interrupted(
            f"interrupted after {report['evaluations']} of {plan.budget} evaluations; dev and test were not opened"
        )
    return {
        **counts,
        **report,
        "searcher": searcher.metrics(),
        "nominations": [c.to_json() for c in searcher.nominations()],
        "evaluations_per_second": report["evaluations"] / max(seconds, 1e-9),
        "lm_seconds": counts["seconds"],
        "loop_seconds": seconds,
        "ask_seconds": 0.0,  # on the driver, between Tune's own work
        "score_seconds": seconds,
        "tell_seconds": 0.0,
        "replay_differs": 0,
        "end": searcher.ended,
    }


def tuner_of(
    searcher: PromptSearcher, trainable: type[tune.Trainable], storage: str, name: str, callbacks: list[Callback]
) -> tune.Tuner:
    """A Tuner with the settings that make small trials cheap: processes used again, short names, no checkpoints."""
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            metric="score",
            mode="max",
            num_samples=-1,  # the searcher ends the run
            max_concurrent_trials=concurrency(searcher),
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            verbose=0,
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MOST_TRIAL_DEATHS),
        ),
    )


@contextmanager
def without_loggers() -> Iterator[None]:
    """Tune's loggers would write five files a trial: what a trial found is in the store and in Tune's own state."""
    before = os.environ.get(NO_LOGGERS)
    os.environ[NO_LOGGERS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_LOGGERS]
        else:
            os.environ[NO_LOGGERS] = before


def concurrency(searcher: PromptSearcher) -> int:
    """Trials that may be out: for one that learns the pieces of a generation, so that it asks as it would alone."""
    return searcher.pieces if searcher.learns else SLOTS * (1 + STAGED)


def experiment_name(study: Path, name: str) -> str:
    """A new directory for Tune's files, beside those of runs that were interrupted."""
    tried = [f"{name}{'' if n == 1 else f'-{n}'}" for n in range(1, 1000)]
    return next(t for t in tried if not (study / t).exists())


class Collect(Callback):
    """Keeps the results of the batches, by number, and tells the listener how it goes."""

    def __init__(
        self, searcher: PromptSearcher, plan: SearchPlan, listener: Listener, runs: Sequence[AsOne] = ()
    ) -> None:
        self.runs = list(runs)
        self.search = f"{searcher.name} s{searcher.seed}"
        self.examples = len(searcher.problem.gold)
        self.distinct = len(set(searcher.problem.digests("train")))
        self.plan = plan
        self.listener = listener
        self.results: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.best = (float("-inf"), float("-inf"), "")
        self.error = ""
        self.started = time.perf_counter()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("error"):
            self.error = str(result["error"])
            raise ScoringError(self.error)  # it would go wrong again: the run is over
        self.results.setdefault(trial.config["batch"], (trial.config, result))
        self.best = max(self.best, (result["score"], result["best_score"], result["best_prompt"]))
        elapsed = time.perf_counter() - self.started
        now: dict[str, Any] = {
            "evaluations": result["evaluations"],
            "budget": self.plan.budget,
            "best_score": self.best[1],
            "best_prompt": self.best[2],
            "evaluations_per_second": result["evaluations"] / max(elapsed, 1e-9),
        }
        self.listener(Progress(phase="search", search=self.search, **now))
        for run in self.runs:
            run.report({**now, "best_objective": self.best[0]})

    def report(self) -> dict[str, Any]:
        """Best, finalists and evaluations over all batches, in the order in which they were asked for."""
        finalists = Finalists(self.plan.finalists)
        metric = objective = float("-inf")
        keys = set()
        for _, (config, result) in sorted(self.results.items()):
            rows = zip(candidates(config), result["candidate_scores"], result["candidate_metrics"], strict=True)
            for candidate, value, score in rows:
                keys.add(candidate.key)
                finalists.add(Finalist(candidate, value, score, self.examples))
                if not np.isnan(value):
                    metric, objective = max(metric, score), max(objective, value)
        return {
            "evaluations": len(keys) * self.distinct,
            "candidates": len(keys),
            "best_score": metric,
            "best_objective": objective,
            "finalists": [f.to_json() for f in finalists.best],
        }

    def __getstate__(self) -> dict[str, Any]:
        # Tune snapshots callbacks; what shows the progress is not part of the experiment.
        return {**self.__dict__, "listener": None, "results": {}, "runs": []}
