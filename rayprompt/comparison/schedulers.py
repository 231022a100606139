"""Tune schedulers for comparisons: weak runs are stopped, each judged against runs on the same task, split and LM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from rayprompt.errors import InputError, unknown

TIME = "timesteps_total"  # evaluations
Make = Callable[[], TrialScheduler]
Stopped = Callable[[Trial, dict[str, Any]], None]


def asha(budget: int, **given: Any) -> TrialScheduler:
    """Asynchronous successive halving, by thirds: the first cut at a ninth of the budget."""
    options = {"grace_period": max(1, budget // 9), "reduction_factor": 3, **given}
    return AsyncHyperBandScheduler(time_attr=TIME, max_t=budget, **options)


def median(budget: int, **given: Any) -> TrialScheduler:
    """The median rule, from a fifth of the budget on."""
    if not given.get("hard_stop", True):
        raise TypeError("hard_stop: a search is stopped, not paused")
    return MedianStoppingRule(time_attr=TIME, **{"grace_period": max(1, budget // 5), **given})


SCHEDULERS: dict[str, Callable[..., TrialScheduler]] = {"asha": asha, "median": median}


def scheduler_of(given: str | Mapping[str, Any] | None, budget: int) -> Make | None:
    """What makes the scheduler ``asha`` or ``median``, or ``{"name": "asha", "grace_period": 2000, ...}``.

    Raises:
        InputError: no such scheduler, or an option that it does not have.
    """
    if given is None:
        return None
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise unknown("scheduler", name, SCHEDULERS)

    def make() -> TrialScheduler:
        return SCHEDULERS[name](budget, **options)

    try:
        make()
    except (TypeError, AssertionError) as error:
        raise InputError(f"scheduler {name}: {error}") from None
    return make


class PerStratum(FIFOScheduler):
    """A scheduler of its own for each task, split and LM: scores of different problems say nothing of each other.

    Args:
        make: makes one.
        stopped: told of each trial that is stopped, and its last report.
    """

    def __init__(self, make: Make, stopped: Stopped) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.make = make
        self.stopped: Stopped | None = stopped
        self.properties: tuple[Any, ...] = ()
        self.schedulers: dict[tuple[str, ...], TrialScheduler] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Adopt metric and mode."""
        self.properties = (metric, mode)
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and not result.get("done") and self.stopped is not None:
            self.stopped(trial, result)
        # The median rule pauses what it cannot judge yet: a search goes on instead.
        return str(TrialScheduler.CONTINUE if decision == TrialScheduler.PAUSE else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        return "; ".join(scheduler.debug_string() for scheduler in self.schedulers.values())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a comparison that is resumed decides anew."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its settings; who is told is not part of the experiment.
        return {**self.__dict__, "stopped": None}

    def _of(self, trial: Trial) -> TrialScheduler:
        key = tuple(str(trial.config[name]) for name in ("task", "split", "model"))
        if key not in self.schedulers:
            self.schedulers[key] = self.make()
            self.schedulers[key].set_search_properties(*self.properties)
        return self.schedulers[key]
