"""TensorBoard: Tune's scalars and hyper-parameters, and the best prompt of a search as text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.logger import TBXLoggerCallback
from ray.tune.utils import flatten_dict

from rayprompt.unanswered import share_of

FINAL = ".final"  # ends the name of the file with what a closing report found


class PromptBoard(TBXLoggerCallback):
    """Tune's TensorBoard logger, which leaves texts out, with the best prompt added whenever it changes.

    The step is ``timesteps_total``: evaluations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shown: dict[Any, str] = {}

    def log_trial_start(self, trial: Any) -> None:
        """Opens the trial's file. What its config says are its hyper-parameters, drawn by Tune or not."""
        trial.evaluated_params = trial.evaluated_params or flatten_dict(trial.config)
        super().log_trial_start(trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Scalars of a report, and the prompt where it is another one."""
        told = {**result, "searcher": None, "config": None}
        numbers = {**finite(told), **{f"searcher/{k}": v for k, v in finite(result.get("searcher") or {}).items()}}
        found = result.get("unanswered") or {}
        if found.get("unanswered"):
            numbers["unanswered_share"] = share_of(found)
        super().log_trial_result(iteration, trial, numbers)
        prompt = str(result.get("best_prompt") or result.get("best_key", ""))
        if prompt and self._shown.get(trial) != prompt:
            self._shown[trial] = prompt
            step = result.get("timesteps_total") or result.get("training_iteration")
            score = f"{result.get('best_score', float('nan')):.4f}"
            self._trial_writer[trial].add_text("best_prompt", f"`{prompt}` (train {score})", global_step=step)
            self._trial_writer[trial].flush()


def write_final(folder: Path, step: int, scalars: Mapping[str, float], text: str) -> None:
    """Add what a closing report found to a trial's curves: ``final/...`` at its last evaluation, and the winner.

    Where TensorBoard's files cannot be written, they lack it: the report has it. What was written before goes.
    """
    from tensorboardX import SummaryWriter

    with contextlib.suppress(OSError):
        for before in folder.glob(f"*{FINAL}"):
            before.unlink()
    with contextlib.suppress(OSError), SummaryWriter(str(folder), filename_suffix=FINAL) as writer:
        for name, value in scalars.items():
            writer.add_scalar(f"final/{name}", value, global_step=step)
        writer.add_text("final/prompt", text, global_step=step)


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among some values: lists, texts and infinities are no scalars."""
    numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return {k: v for k, v in numbers.items() if math.isfinite(v)}
