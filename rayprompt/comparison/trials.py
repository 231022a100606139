"""The runs of a comparison as trials of one Tune experiment, on pools that they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from rayprompt.comparison.plan import Run, Stratum, resources_of
from rayprompt.comparison.schedulers import Make, PerStratum
from rayprompt.errors import InputError
from rayprompt.objective import Objective, get_objective
from rayprompt.scoring.cluster import trial_resources
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher, by_value
from rayprompt.searcher.problem import Problem
from rayprompt.study.loop import SearchLoop, SearchPlan
from rayprompt.study.prepare import make_searcher, planned
from rayprompt.study.progress import Listener, ProgressCallback
from rayprompt.study.tensorboard import PromptBoard
from rayprompt.study.trackers import NO_TRACKERS, Trackers
from rayprompt.study.trial import SearchTrial
from rayprompt.study.tuning import MOST_TRIAL_DEATHS, KeepLogs, quiet_tune

PENDING = "8"  # trials whose process is on its way; Tune starts one after the other otherwise


@dataclass(frozen=True)
class Searches:
    """All that a trial needs to make its search: it travels once, every trial takes its own out of it.

    Problems travel as bytes: a process holds the one that it works on, however many splits there are.
    """

    problems: Mapping[Stratum, Problem | bytes]
    pools: Mapping[str, ScoringPool]
    plans: Mapping[str, SearchPlan]
    runs: Mapping[str, Run]
    objective: str | None
    function: Objective | None = None  # of the user's own, once it has travelled

    def __getstate__(self) -> dict[str, Any]:
        problems = {s: p if isinstance(p, bytes) else cloudpickle.dumps(p) for s, p in self.problems.items()}
        own = self.objective is not None and ":" in self.objective
        function = by_value(get_objective(str(self.objective))) if own and self.function is None else self.function
        return {**self.__dict__, "problems": problems, "function": function}

    def problem(self, stratum: Stratum) -> Problem:
        """The problem of a task, split and LM, as a searcher sees it."""
        problem = self.problems[stratum]
        return cloudpickle.loads(problem) if isinstance(problem, bytes) else problem

    def searcher(self, name: str) -> PromptSearcher:
        """The searcher of a run, in its first state."""
        run = self.runs[name]
        problem = self.problem(run.stratum)
        candidates = planned(problem, self.plans[name].budget)
        objective = self.function or self.objective
        made = make_searcher(problem, run.entry.searcher, candidates, run.seed, objective, run.entry.settings)
        if made.conditioned:
            raise InputError(f"{name}: prompts for single inputs cannot be compared; search for them one by one")
        return made

    def loop(self, name: str) -> SearchLoop:
        """The search of a run, where its files say that it stands; it races if it is to and its searcher can."""
        searcher, plan = self.searcher(name), self.plans[name]
        plan = plan if searcher.partial_rows else replace(plan, race=None)
        return SearchLoop(searcher, self.pools[self.runs[name].stratum[2]], plan)


class ComparedSearch(SearchTrial):
    """A search that its trial's config names. Its process is used again for the next one."""

    searches: Searches | None = None

    def setup(self, config: dict[str, Any], job: bytes) -> None:  # type: ignore[override]
        """``job``: the pickled :class:`Searches`."""
        self.job = job
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another run."""
        self.cleanup()
        self.loop, self.meter, self.failure, self.stepped = None, None, "", False
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        try:
            if self.searches is None:
                self.searches = cloudpickle.loads(self.job)
            self.loop = self.searches.loop(config["run"])
        except Exception as error:
            self.fail(error)


class RunList(Searcher):
    """Hands the runs to Tune in their order."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(metric="best_score", mode="max")
        self.waiting = list(runs)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Adopt nothing: there is nothing to search."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next run's config."""
        return self.waiting.pop(0).config if self.waiting else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a comparison goes on from its own files."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def run_searches(
    searches: Searches,
    runs: Sequence[Run],
    study: Path,
    listener: Listener,
    *,
    total: int | None = None,
    ended: int = 0,
    scheduler: Make | None = None,
    stopped: Callable[[str, int], None] = lambda name, evaluations: None,
    most_at_a_time: int | None = None,
    trackers: Trackers = NO_TRACKERS,
) -> dict[str, str]:
    """Run searches to their end as Tune trials; gives what failed: a run's name and its error.

    Where the run was interrupted, some have come to no end: their files say so.

    Args:
        searches: what they are made of.
        runs: those to be run.
        study: the comparison's directory, which is the experiment's.
        listener: told of every generation.
        total, ended: runs of the whole comparison, and those that were over before, for the listener.
        scheduler: makes a Tune scheduler, for each task, split and LM its own.
        stopped: told the names of the runs that it stops, and after how many evaluations.
        most_at_a_time: trials side by side; None is as many as the cluster has room for.
        trackers: where the runs are shown besides.
    """
    for stratum in {run.stratum for run in runs}:
        searches.pools[stratum[2]].add(searches.problem(stratum).part("train"))
    trainable = tune.with_resources(
        tune.with_parameters(ComparedSearch, job=cloudpickle.dumps(searches)),
        tune.PlacementGroupFactory([trial_resources(resources_of(run.entry for run in runs))]),
    )
    budget = searches.plans[runs[0].name].budget

    def name_of(trial: Trial) -> str:
        return str(trial.config["run"])

    def tell_stopped(trial: Trial, result: dict[str, Any]) -> None:
        stopped(name_of(trial), int(result["evaluations"]))

    ids = {run.name: searches.plans[run.name].search for run in runs}
    shown = trackers.callbacks(study, ids, listener)
    progress = ProgressCallback(listener, budget, total or len(runs), ended)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="best_score",
            mode="max",
            num_samples=len(runs),
            search_alg=RunList(runs),
            scheduler=None if scheduler is None else PerStratum(scheduler, tell_stopped),
            max_concurrent_trials=most_at_a_time,
            reuse_actors=scheduler is None,  # the process of a trial that is stopped must end: it writes its files then
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(study.parent),
            verbose=0,
            callbacks=[KeepLogs(searches.plans), PromptBoard(), progress, *shown],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MOST_TRIAL_DEATHS),
        ),
    )
    with quiet_tune(), _several_pending():
        outcome = tuner.fit()
    failed = {}
    for result in (outcome[i] for i in range(len(outcome))):
        metrics = result.metrics or {}
        error = str(result.error or "") or metrics.get("error", "")
        if error:
            lines = [line.strip() for line in error.splitlines() if line.strip()]
            failed[Path(result.path).name] = lines[-1]
    return failed


@contextmanager
def _several_pending() -> Iterator[None]:
    variable = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(variable)
    os.environ[variable] = before or PENDING
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
