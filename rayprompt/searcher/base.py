"""PromptSearcher: the base class of every prompt optimizer, a real ``ray.tune.search.Searcher``.

An algorithm implements ``ask``, ``tell``, ``state_dict`` and ``load_state_dict``. Everything that Tune needs is here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray import cloudpickle
from ray.tune.search import Searcher

from rayprompt.candidate import Candidate, candidate_from_json
from rayprompt.errors import InputError, unknown
from rayprompt.objective import get_objective
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.problem import Problem

STATE_VERSION = 1


@dataclass(frozen=True)
class NoSettings:
    """A searcher without settings of its own."""


def setting(default: Any, doc: str) -> Any:
    """A field of a searcher's ``Settings``: its default and one line that says what it is."""
    return dataclasses.field(default=default, metadata={"doc": doc})


class PromptSearcher(Searcher):
    """Base class of prompt optimizers: ``ask`` for candidates, ``tell`` their scores; always maximised.

    Class attributes a subclass sets:
        name: in the registry and on the command line.
        kind: ``text`` or ``soft``, the kind of its candidates.
        Settings: a frozen dataclass of its own hyper-parameters, each field made with :func:`setting`.
        default_objective: what it maximises unless told otherwise.
        barrier: an ask needs the tells of all earlier asks.
        partial_rows: it can learn from candidates that were scored on some of the examples only.
        resources: what its own work in a trial wants, as ``{"CPU": 1, "GPU": 0.2}``.

    Args:
        problem: what to search on.
        objective: name of an objective; None is the searcher's default.
        seed: of its own random generator; no library's global generator is touched.
        budget: candidates it may expect to have scored in all, for optimizers that plan ahead; None = not known.
        metric, mode: Tune's, for use in a ``Tuner``.
        settings: fields of ``Settings``.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "text"
    Settings: ClassVar[type[Any]] = NoSettings
    default_objective: ClassVar[str] = "cross_entropy"
    barrier: ClassVar[bool] = False
    partial_rows: ClassVar[bool] = False
    resources: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        problem: Problem,
        *,
        objective: str | None = None,
        seed: int = 0,
        budget: int | None = None,
        metric: str = "score",
        mode: str = "max",
        **settings: Any,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        if not 0 <= int(seed) < 2**32:
            raise InputError(f"seed {seed}: must be from 0 to 2**32 - 1")
        self.problem = problem
        self.seed = int(seed)
        self.budget = budget
        self.settings = make_settings(type(self), settings)
        self.objective_name = objective or self.default_objective
        self._objective = get_objective(self.objective_name)
        self._live: dict[str, tuple[Candidate, ...]] = {}

    @abstractmethod
    def ask(self, n: int) -> list[Candidate]:
        """At most ``n`` candidates to score next; none means that it has no more."""

    @abstractmethod
    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """Learn from the scores of candidates, in any order; candidates that it did not ask for are welcome."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain data from which :meth:`load_state_dict` goes on exactly here, random generator included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`; the searcher was built with the same arguments."""

    @property
    def generation(self) -> int:
        """Candidates that it likes to have scored between two asks."""
        return 16

    def stop(self) -> dict[str, Any]:
        """Reasons to end the search; empty while it goes on."""
        return {}

    def objective(self, scores: Scores) -> FloatArray:
        """(C,) the objective of each candidate over what was evaluated of it; NaN = nothing was, or a pair failed."""
        if scores.objective is not None:
            return scores.objective
        values = np.array(self._objective(scores, self.problem.gold))
        values[[error.candidate for error in scores.errors]] = np.nan  # the rest of its pairs would flatter it
        return values

    def values(self, scores: Scores) -> FloatArray:
        """(C,) what ``tell`` learns from: the objective, to be maximised; NaN = the candidate could not be evaluated.

        Where the budget ended, candidates are evaluated in part or not at all (``scores.complete()``): NaN as well,
        unless the searcher takes ``partial_rows``.
        """
        values = self.objective(scores)
        return values if self.partial_rows else np.where(scores.complete(), values, np.nan)

    # What Tune needs. A Tune trial is a batch of candidates; config["candidates"] holds their JSON forms.

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Adopt metric and mode; the search space is the prompt space, so ``config`` is taken as constants."""
        self._metric = metric or self._metric
        self._mode = mode or self._mode
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next batch of candidates as a trial's config; ``FINISHED`` when there are no more, None to wait."""
        if self.stop():
            return str(Searcher.FINISHED)
        batch = tuple(self.ask(self.generation))
        if not batch:
            return None if self._live else str(Searcher.FINISHED)
        self._live[trial_id] = batch
        return {"candidates": [candidate.to_json() for candidate in batch]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the scores of a trial's candidates: ``candidate_scores`` of the result, or its scalar metric.

        A failure is told as NaN; an id that is unknown or was told already is ignored.
        """
        batch = self._live.pop(trial_id, None)
        if batch is None:
            return
        values = np.full(len(batch), np.nan)
        if result is not None and not error:
            given = result.get("candidate_scores", result.get(str(self.metric)))
            if given is not None and np.size(given) in (1, len(batch)):
                values[:] = np.asarray(given, dtype=np.float64).reshape(-1)
        if self.mode == "min":
            values = -values
        self.tell(batch, Scores.of_values(batch, np.where(np.isfinite(values), values, np.nan)))

    def save(self, checkpoint_path: str) -> None:
        """Write the state; :meth:`restore` reads it."""
        with Path(checkpoint_path).open("wb") as file:
            cloudpickle.dump(self._state(), file)

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a file of :meth:`save`."""
        with Path(checkpoint_path).open("rb") as file:
            self._set_state(cloudpickle.load(file))

    def _state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "searcher": type(self).__name__,
            "metric": self._metric,
            "mode": self._mode,
            "live": {trial: [c.to_json() for c in batch] for trial, batch in self._live.items()},
            "state": self.state_dict(),
        }

    def _set_state(self, saved: dict[str, Any]) -> None:
        if saved["version"] != STATE_VERSION or saved["searcher"] != type(self).__name__:
            raise InputError(
                f"a state of {saved['searcher']}, version {saved['version']}, is not one of "
                f"{type(self).__name__}, version {STATE_VERSION}"
            )
        self._metric, self._mode = saved["metric"], saved["mode"]
        self._live = {trial: tuple(map(candidate_from_json, batch)) for trial, batch in saved["live"].items()}
        self.load_state_dict(saved["state"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as constructor arguments and state, so that no optimizer internals and no handles travel."""
        kwargs = {"objective": self.objective_name, "seed": self.seed, "budget": self.budget, **self._settings_dict()}
        return _rebuild, (type(self), self.problem, kwargs, self._state())

    def _settings_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}


def _rebuild(
    cls: type[PromptSearcher], problem: Problem, kwargs: dict[str, Any], state: dict[str, Any]
) -> PromptSearcher:
    searcher = cls(problem, **kwargs)
    searcher._set_state(state)
    return searcher


def make_settings(cls: type[PromptSearcher], given: dict[str, Any]) -> Any:
    """``cls.Settings`` from given values, checked against names and types.

    Raises:
        InputError: an unknown setting, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls.Settings)
    known = [f.name for f in dataclasses.fields(cls.Settings)]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise unknown("setting", name, known or ["(none)"], f"searcher {cls.name}")
        values[name] = _from_text(value, hints[name]) if isinstance(value, str) else value
        if isinstance(value, list) and typing.get_origin(hints[name]) is tuple:  # YAML and JSON have no tuples
            values[name] = tuple(value)
        if not _fits(values[name], hints[name]):
            raise InputError(
                f"searcher {cls.name}: setting {name}={value!r} must be {_type_name(hints[name])}, "
                f"not {type(value).__name__}"
            )
    return cls.Settings(**values)


def _from_text(text: str, hint: Any) -> Any:
    """A setting given as text (the command line has no other), read as YAML unless text is what is wanted."""
    if text in ("null", "~") and _fits(None, hint):
        return None
    if _fits(text, hint):
        return text
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if _fits(value, hint) else text


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, typing.get_origin(hint) or hint)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    return "null" if hint is type(None) else str(getattr(hint, "__name__", hint))
