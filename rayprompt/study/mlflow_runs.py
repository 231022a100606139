"""MLflow: a search is a run of an experiment."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.utils import flatten_dict

from rayprompt.errors import InputError
from rayprompt.study.progress import Listener, silent
from rayprompt.study.trackers import Tracked

EXPERIMENT = "rayprompt"
SEARCH_TAG = "rayprompt.search"
MOST_CHARACTERS = 5000  # of a tag
MOST_METRICS = 1000  # of a request
# With a server that does not answer; MLflow's own is minutes, and a search waits for its callbacks.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflowRuns(Tracked, MLflowLoggerCallback):
    """Ray's callback, with evaluations as the step, many numbers in a request, and runs that are taken up again.

    Args:
        given: an experiment, a tracking URI, or ``URI#EXPERIMENT``.
        searches: trial's name -> the id of its search.
    """

    tracker = "MLflow"

    def __init__(self, given: str, searches: Mapping[str, str], listener: Listener = silent) -> None:
        uri, experiment = place(given)
        if uri is not None and uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be told
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        super().__init__(tracking_uri=uri, experiment_name=experiment)
        self.given = given
        self.begin(searches, listener)
        self.steps: dict[Any, int] = {}

    def check(self) -> None:
        """Find the experiment, or make it.

        Raises:
            InputError: that cannot be done.
        """
        try:
            self.setup()  # type: ignore[no-untyped-call]
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(f"--mlflow {self.given}: {lines[0]}") from None

    def start(self, trial: Any) -> None:
        """A new run, or that of the search which is resumed."""
        client, search = self.mlflow_util._get_client(), self.searches.get(str(trial), str(trial))
        run = self._run_of(client, search)
        if run is None:
            tags = {SEARCH_TAG: search, "rayprompt.study": str(trial.experiment_dir_name), "trial_name": str(trial)}
            run = client.create_run(str(self.mlflow_util.experiment_id), run_name=str(trial), tags=tags)
            for key, value in flatten_dict(trial.config).items():
                client.log_param(run.info.run_id, key, str(value)[:MOST_CHARACTERS])
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        self._trial_runs[trial] = run.info.run_id
        self.steps[trial] = int(run.data.metrics.get("evaluations", -1))

    def send(self, trial: Any, step: int, numbers: dict[str, float], prompt: str) -> None:
        """Numbers at their step. What is known, as the first report of a resumed search, is not logged again."""
        if step <= self.steps[trial] and step > 0:
            return
        self.steps[trial] = step
        self._log(self.mlflow_util._get_client(), self._trial_runs[trial], step, numbers, prompt)

    def end(self, trial: Any, status: str) -> None:
        """Close the run."""
        self.mlflow_util._get_client().set_terminated(self._trial_runs[trial], status)

    def finish(self, search: str, step: int, numbers: Mapping[str, float], prompt: str) -> None:
        """Add to the run of a search what was found when it was over; once, also where the end is written again."""
        self.setup()  # type: ignore[no-untyped-call]
        client = self.mlflow_util._get_client()
        run = self._run_of(client, search)
        if run is None:
            return
        known = client.get_metric_history(run.info.run_id, next(iter(numbers)))
        if all(metric.step != step for metric in known):
            self._log(client, run.info.run_id, step, numbers, prompt)

    def _run_of(self, client: Any, search: str) -> Any:
        wanted = f"tags.`{SEARCH_TAG}` = '{search}'"
        return next(iter(client.search_runs([self.mlflow_util.experiment_id], wanted, max_results=1)), None)

    def _log(self, client: Any, run: str, step: int, numbers: Mapping[str, float], prompt: str) -> None:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()][:MOST_METRICS]
        tags = [RunTag("best_prompt", prompt[:MOST_CHARACTERS])] if prompt else []
        client.log_batch(run, metrics=metrics, tags=tags)


def place(given: str) -> tuple[str | None, str]:
    """Tracking URI and experiment of ``EXPERIMENT``, ``URI``, or ``URI#EXPERIMENT``. A path is a folder's URI.

    The URI is None where MLFLOW_TRACKING_URI has it; where nobody says, it is the folder ``mlruns``.

    Raises:
        InputError: the URI holds credentials.
    """
    uri, _, experiment = given.partition("#")
    folder = uri.startswith((".", "/", "~"))
    if not folder and "://" not in uri and not uri.startswith(("file:", "databricks")):
        uri, experiment, folder = "mlruns", given, True
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return None, experiment
    if not folder and (urlsplit(uri).password or urlsplit(uri).username):
        raise InputError(
            "--mlflow: a URI with credentials is not taken; give them in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    return Path(uri).expanduser().absolute().as_uri() if folder else uri, experiment or EXPERIMENT
