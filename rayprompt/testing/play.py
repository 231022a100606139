"""A stand-in for Ray Tune, which plays with a searcher: starts trials, reports their results, completes them."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from rayprompt.candidate import candidates
from rayprompt.testing.faults import Failed, calling, expect, form, short

if TYPE_CHECKING:
    from rayprompt.testing.kit import Kit

Config: TypeAlias = dict[str, Any]
METRIC = "score"


@dataclass(frozen=True)
class Trial:
    """A live trial: its config and the values that it will report, one for each candidate where it is a batch."""

    config: Config
    values: tuple[float, ...]


@dataclass
class TuneRun:
    """Plays Tune's part with one searcher: starts trials, reports and completes them.

    Unless there is ``evaluate``, every trial is better than all trials started before it. So a result that is lost,
    credited to another trial or taken twice changes what a learner suggests next.

    Args:
        kit, searcher: who plays.
        metric: the key of the values in the results.
        sign: -1 where the metric is to be minimised.
        evaluate: gives a config's value; a config of one candidate where a trial is a batch.
        extra: further keys of every result.
    """

    kit: Kit
    searcher: Searcher
    metric: str = METRIC
    sign: float = 1.0
    evaluate: Callable[[Config], float] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    live: dict[str, Trial] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    finished: bool = False

    def fork(self, searcher: Searcher) -> TuneRun:
        """The same moment of the run, with a copy of the searcher."""
        return replace(self, searcher=searcher, live=dict(self.live), forms=list(self.forms), values=list(self.values))

    def suggest(self) -> str | None:
        """Start a trial: its id; None where the searcher would rather wait, or has finished."""
        trial_id = f"{len(self.forms):08x}"
        with calling("suggest()"):
            config = self.searcher.suggest(trial_id)
        if config is None:
            expect(
                self.live, "suggest() gave None with no trial live, on which Tune sleeps; right: a config, or FINISHED"
            )
            return None
        if isinstance(config, str):
            expect(config == Searcher.FINISHED, f"suggest() gave {config!r}, right: a dict, None or 'FINISHED'")
            self.finished = True
            return None
        expect(isinstance(config, dict), f"suggest() gave {short(config)}, right: a dict, None or 'FINISHED'")
        config = copy.deepcopy(config)
        self.forms.append(form(config))
        self.live[trial_id] = Trial(config, self._values_of(config))
        return trial_id

    def must_suggest(self, what: str) -> str:
        """Start a trial, which must be possible now."""
        trial_id = self.suggest()
        if trial_id is None:
            raise Failed(f"{what}: suggest() gave {'FINISHED' if self.finished else 'None'}, right: a config")
        return trial_id

    def result(self, trial_id: str, /, **changes: Any) -> dict[str, Any]:
        """The flat result of a live trial, as Tune gives it to searchers; a change to ``...`` leaves the key out."""
        trial = self.live[trial_id]
        result: dict[str, Any] = {
            self.metric: self.sign * sum(trial.values) / len(trial.values),
            "training_iteration": 1,
            "trial_id": trial_id,
            "done": True,
            "config": trial.config,
        }
        if self.kit.prompt:
            result["candidate_scores"] = [self.sign * value for value in trial.values]
        result |= {**self.extra, **changes}
        flat: dict[str, Any] = flatten_dict({key: value for key, value in result.items() if value is not ...})
        return flat

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        """A result on the way."""
        with calling(f"on_trial_result({short(_reported(result, self.metric))})"):
            self.searcher.on_trial_result(trial_id, result)

    def tell(self, trial_id: str, result: dict[str, Any] | None, error: bool = False) -> None:
        """The end of a trial, whether it is live or not."""
        self.live.pop(trial_id, None)
        with calling(f"on_trial_complete({short(_reported(result, self.metric))}{', error=True' if error else ''})"):
            self.searcher.on_trial_complete(trial_id=trial_id, result=result, error=error)

    def complete(self, trial_id: str, /, **changes: Any) -> None:
        """A trial reports its result and ends with it."""
        result = self.result(trial_id, **changes)
        self.report(trial_id, {**result, "done": False})
        self.tell(trial_id, result)

    def play(self, trials: int, live: int = 1, order: Callable[[list[str]], str] | None = None) -> list[str]:
        """Run so many trials (fewer where the searcher finishes) and complete all that are live.

        Args:
            trials: how many to start.
            live: how many may be live at a time.
            order: picks the next live trial to complete; the oldest by default.

        Returns:
            The forms of the trials' configs.
        """
        begun = len(self.forms)
        while True:
            while len(self.forms) - begun < trials and len(self.live) < live and not self.finished:
                if self.suggest() is None:
                    break
            if not self.live:
                return self.forms[begun:]
            ids = list(self.live)
            self.complete(ids[0] if order is None else order(ids))

    def _values_of(self, config: Config) -> tuple[float, ...]:
        parts = [config]
        if self.kit.prompt:
            expect(config.get("candidates"), f"suggest() gave {short(config)}, right: a config with candidates")
            parts = [{**config, "candidates": [c.to_json()]} for c in candidates(config)]
        for part in parts:
            if self.evaluate is not None:
                self.values.append(float(self.evaluate(part)))
            else:
                self.values.append(len(self.values) / 1000 + zlib.crc32(form(part).encode()) / 2**43)
        return tuple(self.values[-len(parts) :])


def _reported(result: dict[str, Any] | None, metric: str) -> object:
    """A result without what Tune adds, for messages."""
    if result is None:
        return None
    return {key: value for key, value in result.items() if key in (metric, "candidate_scores")}
