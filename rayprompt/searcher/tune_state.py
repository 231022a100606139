"""What Ray Tune left behind of an experiment, for a searcher that is restored."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict
from ray.tune.utils.serialization import _loads_with_cloudpickle


@dataclass(frozen=True)
class KnownTrial:
    """A trial in Tune's snapshot: its batch, and its last result (flat) if it had come to its end."""

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
    result = flatten_dict(trial.last_result) if finished and not failed and trial.last_result else None
    return KnownTrial(trial.trial_id, batch if isinstance(batch, int) else None, finished, failed, result)


def tuner_is_restoring() -> bool:
    """Whether this is called while ``Tuner.restore`` unpickles the Tuner that an experiment was begun with."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "ray.tune.impl.tuner_internal":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
