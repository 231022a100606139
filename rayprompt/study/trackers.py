"""W&B and MLflow: each search is a run there, through Tune's callbacks. A search does not fail of them.

They get the numbers of a search about once a second and at its end, its parameters, and the best prompt. A search that
is resumed goes on in its run. Keys come from the environment, and stay there.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.logger import LoggerCallback

from rayprompt.errors import InputError
from rayprompt.store.files import refuse_credentials
from rayprompt.study.place import is_lost
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.tensorboard import finite

if TYPE_CHECKING:
    from rayprompt.study.mlflow_runs import MLflowRuns

EVERY_SECONDS = 1.0
TUNES_OWN = ("pid", "timestamp", "time_this_iter_s", "time_since_restore", "iterations_since_restore")


@dataclass(frozen=True)
class Trackers:
    """Where the runs of a study go.

    Attributes:
        wandb: a project of W&B.
        mlflow: an experiment of MLflow, a tracking URI, or ``URI#EXPERIMENT``.
    """

    wandb: str | None = None
    mlflow: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Trackers:
        """As a study's record has them; an older one has none."""
        return cls(record.get("wandb"), record.get("mlflow"))

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        return asdict(self)

    def check(self) -> None:
        """Say what is missing, before anything is started.

        Raises:
            InputError: a package is not installed, there is no key or one in a URI, or the tracking server cannot be
                used.
        """
        for name, given in asdict(self).items():
            refuse_credentials((given or "").partition("#")[0])  # it goes into study.yaml
            if given is not None and importlib.util.find_spec(name) is None:
                raise InputError(f"--{name}: {name} is not installed (pip install 'rayprompt[{name}]')")
        if self.wandb is not None:
            from rayprompt.study.wandb_runs import check_key

            check_key(self.wandb)
        if self.mlflow is not None:
            self._mlflow({}).check()

    def callbacks(
        self, study: str | Path, searches: Mapping[str, str], listener: Listener = silent
    ) -> list[LoggerCallback]:
        """Tune's callbacks. ``searches``: trial's name -> the id of its search, by which its run is found again."""
        found: list[Tracked] = []
        if self.wandb is not None:
            from rayprompt.study.wandb_runs import WandbRuns

            found.append(WandbRuns(self.wandb, Path(study), searches, listener))
        if self.mlflow is not None:
            found.append(self._mlflow(searches, listener))
        for callback in found:
            callback.study = Path(study)
        return list(found)

    def finish(
        self, search: str, step: int, numbers: Mapping[str, float], prompt: str, listener: Listener = silent
    ) -> None:
        """Add to the run of a search what its closing report found: the winner, and its dev and test. MLflow only."""
        if self.mlflow is not None:
            runs = self._mlflow({}, listener)
            runs.attempt(runs.finish, search, step, {f"final/{k}": v for k, v in numbers.items()}, prompt)

    def _mlflow(self, searches: Mapping[str, str], listener: Listener = silent) -> MLflowRuns:
        from rayprompt.study.mlflow_runs import MLflowRuns

        return MLflowRuns(str(self.mlflow), searches, listener)


NO_TRACKERS = Trackers()


class Tracked(LoggerCallback):
    """What the callbacks have in common: it stands before Ray's own among the bases.

    Reports come faster than a server takes them, and the search waits for its callbacks: one a second is sent, and the
    last. The first error ends the tracking, with a line that says so.
    """

    tracker = ""
    study: Path | None = None  # nothing more is sent of one that another process has taken over
    listener: Listener = staticmethod(silent)

    def begin(self, searches: Mapping[str, str], listener: Listener) -> None:
        """``searches``: trial's name -> id of its search."""
        self.searches = dict(searches)
        self.listener = listener
        self.sent_at: dict[Any, float] = {}
        self.held: dict[Any, dict[str, Any]] = {}
        self.broken = False

    def start(self, trial: Any) -> None:
        """Begin the trial's run, or take it up."""
        raise NotImplementedError

    def send(self, trial: Any, step: int, numbers: dict[str, float], prompt: str) -> None:
        """Log a report at its evaluations, ``step``."""
        raise NotImplementedError

    def end(self, trial: Any, status: str) -> None:
        """End the run: ``FINISHED``, ``FAILED``, or ``KILLED`` where it may go on."""
        raise NotImplementedError

    def log_trial_start(self, trial: Any) -> None:
        """As Tune calls it."""
        self.attempt(self.start, trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """As Tune calls it."""
        self.held[trial] = result
        if time.monotonic() - self.sent_at.get(trial, float("-inf")) >= EVERY_SECONDS:
            self._send_held(trial)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """As Tune calls it."""
        self._send_held(trial)
        last = self.held.pop(trial, {})
        ended = "FINISHED" if last.get("done") else "KILLED"
        self.attempt(self.end, trial, "FAILED" if failed or last.get("error") else ended)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """As Tune calls it; what was interrupted has come to no end."""
        for trial in list(self.held):
            self.log_trial_end(trial)
        super().on_experiment_end(trials, **info)

    def _send_held(self, trial: Any) -> None:
        result = self.held.get(trial)
        if result is None or result.get("_sent"):
            return
        self.sent_at[trial] = time.monotonic()
        self.held[trial] = {**result, "_sent": True}
        told = {k: v for k, v in result.items() if k not in ("searcher", "config", *TUNES_OWN)}
        searcher = result.get("searcher")
        own = finite(searcher) if isinstance(searcher, Mapping) else {}
        numbers = {**finite(told), **{f"searcher/{k}": v for k, v in own.items()}}
        prompt = str(result.get("best_prompt") or result.get("best_key", ""))
        self.attempt(self.send, trial, int(result.get("evaluations", 0)), numbers, prompt)

    def attempt(self, work: Any, *arguments: Any) -> None:
        """Do it; where that fails say so, and do nothing more."""
        if self.broken or (self.study is not None and is_lost(self.study)):
            return
        try:
            work(*arguments)
        except Exception as error:
            self.broken = True
            cause = getattr(error, "cause", None) or error  # of what a Ray task has raised
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            self.listener(Progress("start", f"note: {self.tracker} fails and is left out from here on: {lines[0]}"))

    def __getstate__(self) -> dict[str, Any]:
        # Tune snapshots callbacks; what shows the progress is not part of the experiment.
        return {**self.__dict__, "listener": silent}


class WholeSearch:
    """Stands for the trial of a search whose batches are Tune's trials: one run for all of them.

    Args:
        name: of the run.
        study: the study's directory.
        config: parameters of the search.
    """

    def __init__(self, name: str, study: str | Path, config: Mapping[str, Any]) -> None:
        self.name = name
        self.trial_id = name
        self.config = dict(config)
        self.local_path = str(study)
        self.experiment_dir_name = Path(study).name

    def __str__(self) -> str:
        return self.name


class AsOne(Callback):
    """Hands reports to a logger as those of one search; ``done`` says at the end whether it is over."""

    def __init__(self, logger: Any, search: WholeSearch, done: Callable[[], bool]) -> None:
        self.logger = logger
        self.search = search
        self.done = done
        self.last: dict[str, Any] = {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """As Tune calls it."""
        self.logger.setup(*arguments, **info)
        self.logger.log_trial_start(self.search)

    def report(self, report: Mapping[str, Any]) -> None:
        """A report of the whole search."""
        self.last = dict(report)
        self.logger.log_trial_result(0, self.search, self.last)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """As Tune calls it."""
        if self.last:
            self.logger.log_trial_result(0, self.search, {**self.last, "done": self.done()})
        self.logger.log_trial_end(self.search)
        self.logger.on_experiment_end(trials, **info)

    def __getstate__(self) -> dict[str, Any]:
        # Tune snapshots callbacks.
        return {**self.__dict__, "done": bool, "last": {}}
