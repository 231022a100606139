"""What a running search says of itself; the command line shows it, a notebook may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback


@dataclass(frozen=True)
class Progress:
    """One report. ``phase`` is ``start``, ``search`` or ``report``; the rest belongs to ``search``."""

    phase: str
    message: str = ""
    search: str = ""
    evaluations: int = 0
    budget: int = 0
    best_score: float = float("nan")
    best_prompt: str = ""
    evaluations_per_second: float = 0.0
    searcher: str = ""
    runs: int = 1  # how many searches there are
    ended: int = 0  # of them were over before
    over: bool = False

    @property
    def eta_seconds(self) -> float:
        """Seconds until the budget is spent, at the present rate."""
        return (self.budget - self.evaluations) / max(self.evaluations_per_second, 1e-9)


Listener = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The listener that shows nothing."""


class ProgressCallback(Callback):
    """Tells a listener about every generation of every trial."""

    def __init__(self, listener: Listener, budget: int, runs: int = 1, ended: int = 0) -> None:
        self.listener = listener
        self.budget = budget
        self.runs = runs
        self.ended = ended
        self.unanswerable: dict[str, set[int]] = {}  # search -> examples that were named

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        config = result.get("config", {})
        name = config.get("run") or f"{config.get('searcher', '')} s{config.get('seed', '')}"
        named = self.unanswerable.setdefault(name, set())
        new = sorted(set((result.get("unanswered") or {}).get("examples", ())) - named)
        named.update(new)
        if new:
            which = ", ".join(str(i + 1) for i in new)
            said = f"{name}: no prompt gets an answer on train example {which}; it is not asked again"
            self.listener(Progress("start", said))
        self.listener(
            Progress(
                phase="search",
                search=name,
                evaluations=int(result.get("evaluations", 0)),
                budget=self.budget,
                best_score=float(result.get("best_score", float("nan"))),
                best_prompt=str(result.get("best_prompt", "")),
                evaluations_per_second=float(result.get("evaluations_per_second", 0.0)),
                searcher=str(config.get("searcher", "")),
                runs=self.runs,
                ended=self.ended,
                over=bool(result.get("done")),
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        # Tune snapshots callbacks; what shows the progress is not part of the experiment.
        return {**self.__dict__, "listener": silent}
