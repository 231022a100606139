"""One search as one Tune trial, and what it left behind."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import Callback

from rayprompt import errors
from rayprompt.errors import Interrupted, RayPromptError, ScoringError, last_line
from rayprompt.scoring.cluster import trial_resources
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchPlan
from rayprompt.study.progress import Listener, ProgressCallback
from rayprompt.study.tensorboard import PromptBoard
from rayprompt.study.trackers import NO_TRACKERS, Trackers
from rayprompt.study.trial import FAILED, SearchTrial

MOST_TRIAL_DEATHS = 50


def run_trial(
    searcher: PromptSearcher,
    pool: ScoringPool,
    plan: SearchPlan,
    name: str,
    listener: Listener,
    trackers: Trackers = NO_TRACKERS,
) -> dict[str, Any]:
    """Run the search as a Tune trial called ``name`` and give its last report.

    Raises:
        RayPromptError: what the search failed of.
        Interrupted: SIGINT came first; the search's files are written.
    """
    pool.add(searcher.problem.part("train"))
    trainable = tune.with_resources(
        tune.with_parameters(SearchTrial, job=cloudpickle.dumps((searcher, pool, plan))),
        tune.PlacementGroupFactory([trial_resources(searcher.resources(searcher._settings_dict()))]),
    )
    study = plan.directory
    tuner = tune.Tuner(
        trainable,
        param_space=parameters_of(searcher, plan),
        tune_config=tune.TuneConfig(
            metric="best_score",
            mode="max",
            trial_name_creator=lambda trial: name,
            trial_dirname_creator=lambda trial: name,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(study.parent),
            verbose=0,
            callbacks=[
                KeepLogs({name: plan}),
                PromptBoard(),
                ProgressCallback(listener, plan.budget),
                *trackers.callbacks(study, {name: plan.search}, listener),
            ],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MOST_TRIAL_DEATHS),
        ),
    )
    with quiet_tune():
        outcome = tuner.fit()[0]
    if outcome.error is not None:
        raise ScoringError(f"the search failed: {last_line(outcome.error)}")
    last: dict[str, Any] = outcome.metrics or {}
    if last.get("end") == FAILED:
        raise trial_error(last["error"])
    if not last.get("end"):
        spent = f"{last.get('evaluations', 0)} of {plan.budget} evaluations"
        best = (
            f"; best so far on train: {last['best_prompt']!r} ({last['best_score']:.3f})"
            if last.get("best_prompt")
            else ""
        )
        recorded = ScoreStore(plan.store).last_generation(plan.search)
        lost = "" if recorded >= last.get("training_iteration", 0) else "; its last scores could not be written"
        raise Interrupted(f"interrupted after {spent}{best}; dev and test were not opened{lost}")
    return last


def parameters_of(searcher: PromptSearcher, plan: SearchPlan) -> dict[str, Any]:
    """A trial's config: what TensorBoard, W&B and MLflow show as its parameters."""
    problem = searcher.problem
    given = {k: v for k, v in searcher._settings_dict().items() if v is not None}
    return {
        "searcher": searcher.name,
        "seed": searcher.seed,
        "task": problem.task.name,
        "split": problem.split,
        "model": problem.lm.name,
        "budget": plan.budget,
        "objective": searcher.objective_name,
        "settings": {k: v if isinstance(v, str | int | float) else str(v) for k, v in given.items()},
    }


class KeepLogs(Callback):
    """Lets Tune's tables of a search that was resumed, or whose trial died, go on where its record ends.

    Tune itself would begin the tables of a resumed study anew, and write reports twice that come twice: the first
    report of a resumed search is that of its last recorded generation.
    """

    def __init__(self, plans: Mapping[str, SearchPlan]) -> None:
        self.plans = plans  # by the name of the trial

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called before Tune's loggers open their files."""
        new = Path(trial.local_path)
        plan = self.plans[new.name]
        old = plan.directory / new.name
        last = ScoreStore(plan.store).last_generation(plan.search)
        for name, keep in (("result.json", kept_lines), ("progress.csv", kept_rows)):
            source = next((folder / name for folder in (new, old) if (folder / name).is_file()), None)
            if source is not None:
                trial.init_local_path()
                (new / name).write_text(keep(source.read_text(), last - 1))


def kept_lines(text: str, done: int) -> str:
    """The JSON lines of generations up to ``done``; a line that was cut is left out."""
    lines = []
    for line in text.splitlines():
        try:
            if json.loads(line)["training_iteration"] <= done:
                lines.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return "".join(lines)


def kept_rows(text: str, done: int) -> str:
    """The rows of a CSV table of generations up to ``done``."""
    reader = csv.DictReader(io.StringIO(text))
    out = io.StringIO()
    writer = csv.DictWriter(out, reader.fieldnames or [], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in reader:
        number = row.get("training_iteration") or ""
        if number.isdigit() and int(number) <= done:
            writer.writerow(row)
    return out.getvalue()


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Tune's own tables and advice are not shown: the listener shows the progress, and the outcome is raised.

    Nor does it keep SIGINT to itself: its handler, which would make nothing of the next Ctrl-C, goes with its run.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers} if main else {}
    engine = os.environ.get("RAY_AIR_NEW_OUTPUT")
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output engine prints even when it is told to be silent
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set by Python cannot be set
                signal.signal(number, handler)
        logger.setLevel(level)
        if engine is None:
            del os.environ["RAY_AIR_NEW_OUTPUT"]
        else:
            os.environ["RAY_AIR_NEW_OUTPUT"] = engine


def trial_error(text: str) -> RayPromptError:
    """The error that a trial has reported: its type and line, or a traceback."""
    last = text.strip().splitlines()[-1]
    name, _, message = last.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, RayPromptError) and "\n" not in text.strip():
        return kind(message)
    return ScoringError(f"the search failed: {last}")
