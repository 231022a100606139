"""W&B: a search is a run of a project, in the study's group."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.air.integrations.wandb import WandbLoggerCallback, _QueueItem, _set_api_key, _WandbLoggingActor
from ray.air.util.node import _force_on_current_node

from rayprompt.errors import InputError
from rayprompt.lm.endpoint import Secret
from rayprompt.study.progress import Listener, silent
from rayprompt.study.trackers import Tracked

OFFLINE = ("offline", "disabled", "dryrun")
MOST_CHARACTERS = 128  # of a run's id


def check_key(project: str) -> None:
    """See that W&B can be written to.

    Raises:
        InputError: there is no key.
    """
    if os.environ.get("WANDB_MODE") in OFFLINE:
        return
    try:
        _set_api_key()
    except ValueError:
        raise InputError(
            f"--wandb {project}: no key for W&B; set WANDB_API_KEY, log in with: wandb login, or work without the "
            "network: WANDB_MODE=offline"
        ) from None


class WandbRuns(Tracked, WandbLoggerCallback):
    """Ray's callback, with evaluations as the x-axis, runs that are taken up again, and a key that nobody sees.

    Args:
        project: of W&B.
        study: the study's directory: the runs' group, and where runs lie that are offline.
        searches: trial's name -> the id of its search.
    """

    tracker = "W&B"

    def __init__(self, project: str, study: Path, searches: Mapping[str, str], listener: Listener = silent) -> None:
        mode = os.environ.get("WANDB_MODE")
        how: dict[str, Any] = {"mode": mode} if mode else {}
        if mode not in OFFLINE:
            how["resume"] = "allow"
        super().__init__(project=project, group=study.name, dir=str(study), **how)
        self.begin(searches, listener)

    def start(self, trial: Any) -> None:
        """A process that logs the trial."""
        if self._remote_logger_class is None:
            # Ray's own gives the key to the process as a part of its runtime environment, which Ray's dashboard shows.
            here: Any = _force_on_current_node()
            options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, **here}
            self._remote_logger_class: Any = ray.remote(**options)(LoggingActor)
        WandbLoggerCallback.log_trial_start(self, trial)

    def _start_logging_actor(self, trial: Any, exclude_results: list[str], **arguments: Any) -> None:
        search = self.searches.get(str(trial), str(trial))
        environment = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
        arguments |= {"id": search[-MOST_CHARACTERS:], "environment": Secret(json.dumps(environment))}
        super()._start_logging_actor(trial, exclude_results, **arguments)

    def _cleanup_logging_actors(self, timeout: int = 0, kill_on_timeout: bool = False) -> None:
        """Say of what a process has died: Ray's own takes it for one that is done."""
        futures = list(self._trial_logging_futures.values())
        done = ray.wait(futures, num_returns=len(futures), timeout=timeout)[0] if futures else []
        for future in done:
            self.attempt(ray.get, future)
        super()._cleanup_logging_actors(timeout, kill_on_timeout)

    def send(self, trial: Any, step: int, numbers: dict[str, float], prompt: str) -> None:
        """Numbers and the best prompt; W&B has them in the order of generations."""
        self._trial_queues[trial].put((_QueueItem.RESULT, {**numbers, "best_prompt": prompt}))

    def end(self, trial: Any, status: str) -> None:
        """Let the process come to its end."""
        WandbLoggerCallback.log_trial_end(self, trial, failed=status == "FAILED")


class LoggingActor(_WandbLoggingActor):
    """Ray's process that logs a trial, with the best prompt in the run's summary."""

    def __init__(self, *arguments: Any, environment: Secret, **keywords: Any) -> None:
        os.environ.update(json.loads(environment.value or "{}"))
        super().__init__(*arguments, **keywords)
        self.told = False

    def _handle_result(self, result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self.told:
            self.told = True
            self._wandb.define_metric("*", step_metric="evaluations")
        self._wandb.run.summary["best_prompt"] = result.pop("best_prompt")
        log, config = super()._handle_result(result)
        return log, config
