"""What Ray Tune knows and does not pass to a searcher: the trials of an experiment, the run's metric, the wrappers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import Repeater
from ray.tune.utils import flatten_dict
from ray.tune.utils.serialization import _loads_with_cloudpickle


@dataclass(frozen=True)
class KnownTrial:
    """A trial in Tune's snapshot: its batch, and its last result (flat) unless it failed."""

    id: str
    batch: int | None
    finished: bool
    failed: bool
    result: dict[str, Any] | None


def known_trials(directory: str) -> list[KnownTrial] | None:
    """The trials of the newest experiment state in a directory; None where there is none that can be read."""
    files = sorted(Path(directory).glob("experiment_state-*.json"))
    if not files:
        return None
    try:
        content = _loads_with_cloudpickle(files[-1].read_bytes())
        trials = []
        for state, metadata in content["trial_data"]:
            trial = Trial.from_json_state(state, stub=True)
            trial.restore_run_metadata(metadata)
            trials.append(trial)
    except Exception:  # whatever is wrong with it, the searcher can do without
        return None
    return [_known(trial) for trial in trials]


def _known(trial: Any) -> KnownTrial:
    batch = trial.config.get("batch")
    finished, failed = trial.status in (Trial.TERMINATED, Trial.ERROR), trial.status == Trial.ERROR
    result = flatten_dict(trial.last_result) if not failed and trial.last_result else None
    return KnownTrial(trial.trial_id, batch if isinstance(batch, int) else None, finished, failed, result)


def tuner_is_restoring() -> bool:
    """Whether this is called while ``Tuner.restore`` unpickles the Tuner that an experiment was begun with."""
    return any(_callers("ray.tune.impl.tuner_internal"))


def metric_of_run() -> tuple[str | None, str | None]:
    """Metric and mode of the Tune run that calls; (None, None) outside of one.

    Tune calls ``set_search_properties`` only where ``param_space`` is not empty. A ``mode="min"`` that never arrives
    would be maximized.
    """
    for frame in _callers("ray.tune.tune"):
        if frame.f_code.co_name == "run":
            return frame.f_locals.get("metric"), frame.f_locals.get("mode")
    return None, None


def is_repeated() -> bool:
    """Whether the caller, or a searcher that it wraps, is a ``Repeater``."""
    for frame in _callers("ray.tune.search."):
        wrapper = frame.f_locals.get("self")
        while wrapper is not None:
            if isinstance(wrapper, Repeater):
                return True
            wrapper = getattr(wrapper, "searcher", None)
    return False


def _callers(module: str) -> Iterator[FrameType]:
    """The frames of a module that are being executed, or of all modules of a package whose name ends with a dot."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == module or (module.endswith(".") and name.startswith(module)):
            yield frame
        frame = frame.f_back
