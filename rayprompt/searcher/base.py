"""PromptSearcher: the base class of every prompt optimizer, a real ``ray.tune.search.Searcher``.

An algorithm implements ``ask``, ``tell``, ``state_dict`` and ``load_state_dict``. Everything that Tune needs is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ray import cloudpickle
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import Searcher
from ray.tune.search.variant_generator import parse_spec_vars
from ray.tune.utils import flatten_dict

from rayprompt.candidate import (
    Candidate,
    CandidateForms,
    ConditionedPrompt,
    SoftPrompt,
    Subspace,
    TextPrompt,
    candidate_from_json,
    candidates,
)
from rayprompt.errors import InputError, RestoreError
from rayprompt.objective import Objective, get_objective, objective_name
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.batches import Batches
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import NoSettings, check_sizes, make_settings
from rayprompt.searcher.tune_state import is_repeated, known_trials, metric_of_run, tuner_is_restoring
from rayprompt.task import Example

if TYPE_CHECKING:
    from rayprompt.scoring.pool import ScoringPool

STATE_VERSION = 3
IDLE_ASKS, IDLE_SECONDS = 3, 0.9
SCORE = "score"  # the metric of prompt_trainable, taken where nobody names one

logger = logging.getLogger(__name__)


class PromptSearcher(Searcher):
    """Base class of prompt optimizers: ``ask`` for candidates, ``tell`` their scores; always maximised.

    Class attributes a subclass sets:
        name: in the registry and on the command line.
        kind: ``text`` or ``soft``, the kind of its candidates.
        Settings: a frozen dataclass of its own hyper-parameters, each field made with :func:`setting`.
        default_objective: what it maximises unless told otherwise.
        barrier: an ask needs the tells of all earlier asks.
        learns: later asks depend on what it was told; False for a baseline.
        partial_rows: it can learn from candidates that a race has dropped after some of the examples: ``values`` has
            an estimate for them, below what they would have to reach.

    Args:
        problem: what to search on.
        objective: name of an objective, ``module:function``, or such a function; None is the searcher's default.
        seed: of its own random generator; no library's global generator is touched.
        budget: candidates it may expect to have scored in all, for optimizers that plan ahead; None = not known.
            In a ``Tuner`` it suggests no more than these.
        metric, mode: what a trial reports, and ``max`` or ``min``, for use in a ``Tuner``. None takes those of the
            ``Tuner``; where it has none either, ``score`` (or the bare number that a function returns) and ``max``.
        points_to_evaluate: prompts to begin with (texts, candidates, or JSON forms).
        batch_size: in a ``Tuner``: candidates of a trial; None is the generation.
        settings: fields of ``Settings``.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "text"
    Settings: ClassVar[type[Any]] = NoSettings
    default_objective: ClassVar[str] = "cross_entropy"
    barrier: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    partial_rows: ClassVar[bool] = False

    def __init__(
        self,
        problem: Problem,
        *,
        objective: str | Objective | None = None,
        seed: int = 0,
        budget: int | None = None,
        metric: str | None = None,
        mode: str | None = None,
        points_to_evaluate: Sequence[Any] | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        _check_metric(metric, mode)
        super().__init__(metric=metric, mode=mode)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size {batch_size}: must be 1 or more candidates")
        if not 0 <= int(seed) < 2**32:
            raise InputError(f"seed {seed}: must be from 0 to 2**32 - 1")
        self.problem = problem.for_search()  # train is all that it sees
        self.seed = int(seed)
        self.budget = budget
        self._extended: int | None = None
        self.settings = make_settings(type(self), settings)
        check_sizes(self.name, self.settings, problem.lm.max_length)
        if self.kind == "soft" and not problem.takes_soft:
            raise InputError(f"searcher {self.name} makes soft prompts, and {problem.soft_reason}")
        default = self.default_objective if problem.gives_log_probs else problem.default_objective
        self.objective_name = objective_name(objective or default)
        self._objective = (
            objective if callable(objective) else get_objective(self.objective_name, log_probs=problem.gives_log_probs)
        )
        self._points = _points(self.problem, points_to_evaluate)
        self._batch_size = batch_size
        self._most_live: int | None = None
        self.most_candidates = budget  # that are suggested in all
        self.ended = ""  # why there are no more suggestions
        self._not_restored = False
        self._in_doubt: set[int] = set()  # batches of trials that Tune had not finished when it was restored
        self._idle: list[float] = []
        self._settled = False  # it has seen what the run that asks wants
        self._warned = False
        self._reported: dict[str, list[float]] = {}  # live trial -> the values that it reported last

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
    def subspace(self) -> Subspace | None:
        """The subspace of its soft prompts; None where it makes none, or none in a subspace."""
        space = getattr(self, "space", None)
        return None if space is None else space.subspace

    @property
    def outline(self) -> Subspace | None:
        """The subspace as far as it is known without asking the LM: a deep prompt's has no scales."""
        return self.subspace

    def prepare(self, pool: ScoringPool) -> None:
        """Ask scorers what it wants to know of the LM before it begins; called once they are there.

        In a ``Tuner`` of somebody's own nobody calls it: there the searcher finds it out by itself when it must.
        """

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self._batch_size or self.generation)

    @property
    def generation(self) -> int:
        """Candidates that it likes to have scored between two asks."""
        return 16

    @property
    def measured(self) -> dict[str, Any]:
        """What :meth:`prepare` found, as JSON has it: a search that goes on elsewhere must not measure it again."""
        return {}

    def recall(self, measured: Mapping[str, Any]) -> None:
        """Take what :attr:`measured` gave when the search began, in place of :meth:`prepare`."""

    def extend(self, budget: int) -> None:
        """There are more candidates to be had than it was built with: a search is resumed with a larger budget.

        What it has asked for so far stays as it was; only when it ends may depend on it.
        """
        self._extended = budget

    def ask_generation(self, at_least: int = 0) -> tuple[Candidate, ...]:
        """Ask for a generation, or for ``at_least`` candidates if that is more; none means that there are no more.

        The first are the points to evaluate, where there are any.
        """
        if self._points:
            points, self._points = tuple(self._points), []
            return points
        n = max(self.generation, at_least)
        return tuple(self.ask(n))[:n]

    def release(self, candidates: Sequence[Candidate]) -> None:
        """Take back candidates that it was asked for: they will not be scored, and may be proposed again."""

    def stop(self) -> dict[str, Any]:
        """Reasons to end the search; empty while it goes on."""
        return {}

    @classmethod
    def resources(cls, settings: Mapping[str, Any]) -> dict[str, float]:
        """What its own work in a trial wants, as ``{"GPU": 0.2}``, with these settings.

        A share of a GPU is asked for where the cluster has GPUs, and the scorers leave it; at most one.
        """
        return {}

    @property
    def content(self) -> dict[str, Any]:
        """What decides its run besides its class, settings and seed: the digest of a file or an LM of its own."""
        return {}

    @property
    def nominates_alone(self) -> bool:
        """Whether dev is to pick among its nominations only, and not among the best on train as well."""
        return False

    @property
    def conditioned(self) -> bool:
        """Whether its prompts are for single inputs: what :meth:`write_for` writes is then what it has found."""
        return False

    def write_for(self, examples: Sequence[Example]) -> ConditionedPrompt:
        """Where it is :attr:`conditioned`: the prompts that it has for inputs, also for ones that it has not seen."""
        raise InputError(f"searcher {self.name} writes one prompt for all inputs")

    def metrics(self) -> dict[str, Any]:
        """Numbers and texts of its own for the trial's reports, always of the same names."""
        return {}

    def nominations(self) -> list[Candidate]:
        """What it wants to have scored on dev when the search has ended, besides the best on train."""
        return []

    def objective(self, scores: Scores) -> FloatArray:
        """(C,) the objective of each candidate over what was evaluated of it; NaN = it got no answer at all."""
        if scores.objective is not None:
            return scores.objective
        values = np.array(self._objective(scores, self.problem.gold), dtype=np.float64)
        if values.shape != (len(scores.candidates),):
            raise InputError(
                f"objective {self.objective_name} gave values of shape {values.shape} for {len(scores.candidates)} "
                "candidates; it must give one value for each"
            )
        return np.where(scores.answered(), values, np.nan)  # whatever a function of the user's makes of no answers

    def values(self, scores: Scores) -> FloatArray:
        """(C,) what ``tell`` learns from: the objective, to be maximised; NaN = the candidate could not be evaluated.

        Where the budget ended, candidates are evaluated in part or not at all (``scores.complete()``): NaN as well.
        For what a race has dropped it is an estimate, or -inf where it got no answer at all.
        """
        values = np.where(scores.complete(), self.objective(scores), np.nan)
        return values if scores.estimate is None else np.where(scores.dropped, scores.estimate, values)

    # What Tune needs. A Tune trial is a batch of candidates: a generation, or a piece of one.

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Adopt metric and mode. The search space is the prompt space: ``config`` must hold constants only.

        Raises:
            InputError: the searcher has another metric or mode already.
        """
        _, domains, grids = parse_spec_vars(config)
        if domains or grids:
            return False  # Tune says what is wrong
        self._adopt(metric, mode)
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """At most so many trials are out at a time; True: the searcher sees to it, no limiter need.

        One that learns has one generation out unless it is allowed more trials than that: then it asks for
        generation g when exactly those up to g - w have been told, w being the generations that fill the trials, so
        that the run does not depend on which trial is faster.
        """
        if max_concurrent < 1:
            raise InputError(f"max_concurrent {max_concurrent}: must be 1 or more trials")
        self._most_live = max_concurrent
        return True

    def suggest(self, trial_id: str) -> Any:
        """A batch of candidates as a trial's config; ``FINISHED`` when there are no more, None to wait for results.

        Raises:
            RestoreError: ``Tuner.restore`` was asked for, and Tune starts from the beginning instead.
            InputError: the searcher and the ``Tuner`` have different metrics or modes, or a ``Repeater`` asks for
                batches of several candidates.
        """
        self._check_restored()
        self._settle()
        batches = self._batches
        if trial_id not in batches.live:
            if self._most_live is not None and len(batches.live) >= self._most_live:
                return self._wait()
            if not batches.waiting and not self._open_generation():
                return self._wait() if batches.out else str(Searcher.FINISHED)
            number, batch = batches.hand_out(trial_id)
        else:
            number = batches.live[trial_id]
            batch = batches.of(number)
        self._idle.clear()
        return {"candidates": CandidateForms.of(batch), "batch": number, "objective": self.objective_name}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep the values of a live trial: a scheduler that stops a paused trial completes it without a result."""
        number = self._batches.live.get(trial_id)
        if number is not None:
            self._reported[trial_id] = self._values_of(result, len(self._batches.of(number))).tolist()

    def on_pause(self, trial_id: str) -> None:
        """``HyperBandForBOHB`` pauses a trial; nothing changes, as a paused trial is still out."""

    def on_unpause(self, trial_id: str) -> None:
        """``HyperBandForBOHB`` lets a trial go on."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the values of a trial's candidates: ``candidate_scores`` of the result, or its scalar metric.

        A trial that was stopped counts with what it reported last, a failure as NaN. A trial that is not known but
        says in its config which batch it had (Tune gave it a new id) counts as that one; a batch that failed and
        comes again is told again; all else is ignored.
        """
        self._idle.clear()
        number = self._batches.live.pop(trial_id, None)
        reported = self._reported.pop(trial_id, None)
        if number is None:
            number = self._batch_of(result)
        batch = () if number is None else self._batches.of(number)
        if number is None or not batch:
            return
        self._in_doubt.discard(number)
        values = np.full(len(batch), np.nan)
        if result is not None and not error:
            values = self._values_of(result, len(batch))
            self._warn_of_one_value(result, len(batch))
        elif reported is not None and not error:
            values = np.array(reported)
        if self._batches.finish(number, values):
            self._tell_whole()
        elif not np.isnan(values).all():
            del self._batches.failed[number]
            self.tell(batch, Scores.of_values(batch, values))

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Tell candidates (a trial's config) that were evaluated before, each with the same value."""
        batch = candidates(parameters)
        result = {} if error or value is None else {str(self._metric or SCORE): value}
        self.tell(batch, Scores.of_values(batch, self._values_of(result, len(batch))))

    def add_evaluated_trials(self, trials_or_analysis: Any, metric: str) -> None:
        """Tell the candidates of earlier trials, each with its own value where the trial reported them."""
        trials = getattr(trials_or_analysis, "trials", trials_or_analysis)
        for trial in trials if isinstance(trials, (list, tuple)) else [trials]:
            batch, last = candidates(trial.config), flatten_dict(trial.last_result or {})
            values = self._values_of(last, len(batch), metric)
            if not np.isnan(values).all():
                self.tell(batch, Scores.of_values(batch, values))

    def save(self, checkpoint_path: str) -> None:
        """Write the state; :meth:`restore` reads it.

        Raises:
            RestoreError: as for :meth:`suggest`; the good state would be written over.
        """
        self._check_restored()
        with Path(checkpoint_path).open("wb") as file:
            cloudpickle.dump(self._state(), file)

    def restore(self, checkpoint_path: str) -> None:
        """Go on from a file of :meth:`save`."""
        with Path(checkpoint_path).open("rb") as file:
            self._set_state(cloudpickle.load(file))

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Go on from the newest state in an experiment's directory, put right by what Tune knows of its trials.

        The two are written one after the other, and a killed run can leave them some trials apart: results that Tune
        has and the searcher has not are taken, and batches whose trials Tune does not know go to other trials.
        """
        super().restore_from_dir(checkpoint_dir)
        trials = known_trials(checkpoint_dir)
        if trials is None or is_repeated():  # a Repeater's trials have one repetition's result each, not the mean
            self._in_doubt = self._batches.out
            return
        for trial in trials:
            if trial.finished:
                self.on_trial_complete(trial.id, {"config/batch": trial.batch, **(trial.result or {})}, trial.failed)
        running = {trial.id: trial.batch for trial in trials if not trial.finished}
        out = self._batches.out
        self._batches.live = {id: n for id, n in running.items() if n is not None and n in out}
        for trial in trials:
            if trial.result and not trial.finished:
                self.on_trial_result(trial.id, trial.result)
        self._batches.hand_out_again([n for n in out if n not in self._batches.live.values()])
        self._in_doubt = set(self._batches.live.values())

    def get_state(self) -> dict[str, Any]:
        """What :meth:`save` writes."""
        return self._state()

    def set_state(self, state: dict[str, Any]) -> None:
        """What :meth:`restore` reads."""
        self._set_state(state)

    def _check_restored(self) -> None:
        if self._not_restored:
            raise RestoreError(
                "Tune could not restore this run and would start it from the beginning (its log says why, after "
                "'Failed to restore the run state'); remove the three files of its newest state (experiment_state-, "
                "search_gen_state-, searcher-state-TIME) if there is an older one, or start a new run on the same store"
            )

    def _settle(self) -> None:
        """Before the first suggestion: adopt the run's metric and mode, which Tune may not have passed on."""
        if self._settled:
            return
        self._adopt(*metric_of_run())
        if is_repeated():
            self._metric = self._metric or SCORE  # a Repeater looks for it in results
            if self._batches.size > 1:
                raise InputError(
                    f"searcher {self.name}: Repeater tells it one mean for all {self._batches.size} candidates of a "
                    "trial, from which it cannot learn; give the searcher batch_size=1"
                )
        self._settled = True

    def _adopt(self, metric: str | None, mode: str | None) -> None:
        _check_metric(metric, mode)
        for what, mine, given in (("metric", self._metric, metric), ("mode", self._mode, mode)):
            if mine is not None and given is not None and mine != given:
                raise InputError(
                    f"searcher {self.name} has {what}={mine!r}, the Tuner {what}={given!r}: give it to the Tuner only"
                )
        self._metric = self._metric or metric
        self._mode = self._mode or mode

    def _warn_of_one_value(self, result: dict[str, Any], count: int) -> None:
        """Say once that a trial's only value is told for all of its candidates."""
        if count > 1 and not self._warned and "candidate_scores" not in result:
            self._warned = True
            logger.warning(
                "searcher %s: a trial reported no candidate_scores, its metric counts for all of its %d candidates: "
                "report them, or give the searcher batch_size=1",
                self.name,
                count,
            )

    def _open_generation(self) -> bool:
        """Ask for the next generation, if that may be done now; True: there are batches to hand out."""
        batches = self._batches
        self._tell_whole(to_ask=True)
        if len(batches.generations) >= self._window:
            return False
        left = None if self.most_candidates is None else self.most_candidates - batches.candidates
        reasons = ", ".join(f"{k}={v}" for k, v in self.stop().items())
        self.ended = reasons or ("budget" if left is not None and left <= 0 else "")
        if self.ended:
            return False
        generation = self.ask_generation(batches.size)
        if generation:
            batches.add(generation, left)
        elif not batches.out:
            self.ended = "exhausted"
        return bool(batches.waiting)

    @property
    def _window(self) -> float:
        """Generations that may be open, that is asked for and not told, at a time."""
        if not self.learns:
            return float("inf")
        if self.barrier or self._most_live is None:
            return 1
        return -(-self._most_live // self.pieces)

    @property
    def pieces(self) -> int:
        """Batches of a generation."""
        return -(-max(self.generation, self._batches.size) // self._batches.size)

    def _tell_whole(self, *, to_ask: bool = False) -> None:
        """Tell the generations that are whole, in their order, but none too early: see :meth:`set_max_concurrency`."""
        generations = self._batches.generations
        kept = 0 if self.ended or self._window in (1, float("inf")) else self._window - to_ask
        while generations and generations[0].whole and len(generations) > kept:
            generation = generations.popleft()
            evaluated = np.arange(len(generation.candidates)) < generation.handed_out
            self.tell(generation.candidates, Scores.of_values(generation.candidates, generation.values, evaluated))

    def _wait(self) -> None:
        """Nothing to suggest now. After a restore, a trial that Tune did not start again would be waited for in vain.

        Tune asks many times a second while trials run, and once a second when there are none.
        """
        now = time.monotonic()
        if self._idle and now - self._idle[-1] < IDLE_SECONDS:
            self._idle.clear()
        self._idle.append(now)
        if self._in_doubt and len(self._idle) > IDLE_ASKS:
            self._batches.hand_out_again(sorted(self._in_doubt & self._batches.out))
            self._in_doubt.clear()

    def _batch_of(self, result: dict[str, Any] | None) -> int | None:
        """The batch that an unknown trial says it had."""
        number = (result or {}).get("config/batch")
        if not isinstance(number, int):
            return None
        forms = (result or {}).get("config/candidates")
        if forms is None or candidates({"candidates": forms}) == list(self._batches.of(number)):
            return number
        return None

    def _values_of(self, result: dict[str, Any], count: int, metric: str | None = None) -> FloatArray:
        """(count,) values of a trial's candidates, to be maximised; NaN where the result has none."""
        values = np.full(count, np.nan)
        named = result.get(str(metric or self._metric or SCORE), result.get(DEFAULT_METRIC))
        given = result.get("candidate_scores", named)
        with contextlib.suppress(TypeError, ValueError):
            numbers = np.asarray(given, dtype=np.float64).reshape(-1)
            if len(numbers) in (1, count):
                values[:] = numbers
        values[~np.isfinite(values)] = np.nan
        return -values if self._mode == "min" else values

    def _state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "searcher": type(self).__name__,
            "metric": self._metric,
            "mode": self._mode,
            "most_live": self._most_live,
            "points": [c.to_json() for c in self._points],
            "reported": dict(self._reported),
            "ended": self.ended,
            "batches": self._batches.state_dict(),
            "state": self.state_dict(),
        }

    def _set_state(self, saved: dict[str, Any]) -> None:
        if saved.get("version") != STATE_VERSION or saved["searcher"] != type(self).__name__:
            raise InputError(
                f"a state of {saved.get('searcher')}, version {saved.get('version')}, is not one of "
                f"{type(self).__name__}, version {STATE_VERSION}"
            )
        self._metric, self._mode = saved["metric"], saved["mode"]
        self._most_live = self._most_live if saved["most_live"] is None else saved["most_live"]
        self._points = [candidate_from_json(form) for form in saved["points"]]
        self._reported = dict(saved.get("reported", {}))
        self.ended = saved["ended"]
        self._batches.load_state_dict(saved["batches"])
        self._not_restored = False
        self.load_state_dict(saved["state"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as constructor arguments and state, so that no optimizer internals and no handles travel."""
        objective = self.objective_name if ":" not in self.objective_name else by_value(self._objective)
        kwargs = {"objective": objective, "seed": self.seed, "budget": self.budget, **self._settings_dict()}
        return _rebuild, (type(self), self.problem, kwargs, self._state(), self._extended)

    def _settings_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}


def _check_metric(metric: Any, mode: Any) -> None:
    if not (metric is None or isinstance(metric, str)) or mode not in (None, "max", "min"):
        raise InputError(f"metric={metric!r}, mode={mode!r}: must be one metric's name, and 'max' or 'min'")


def by_value(function: Objective) -> Any:
    """A function that is pickled with its code: its module may be on nobody's path but the driver's."""
    module = sys.modules.get(function.__module__)
    if module is None or module.__name__ == "__main__":  # cloudpickle does so by itself
        return function
    cloudpickle.register_pickle_by_value(module)
    try:
        return _Unpickled(cloudpickle.dumps(function))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


class _Unpickled:
    """Becomes what its bytes hold."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (self.content,)


def _rebuild(
    cls: type[PromptSearcher],
    problem: Problem,
    kwargs: dict[str, Any],
    state: dict[str, Any],
    extended: int | None = None,
) -> PromptSearcher:
    searcher = cls(problem, **kwargs)
    if extended is not None:
        searcher.extend(extended)
    searcher._set_state(state)
    # What comes out of tuner.pkl stands at the beginning: Tune must restore it, or start the whole run anew.
    searcher._not_restored = tuner_is_restoring()
    return searcher


def _points(problem: Problem, given: Sequence[Any] | None) -> list[Candidate]:
    """Prompts to evaluate first: texts, candidates, their JSON forms, or configs of earlier trials."""
    points: list[Candidate] = []
    for point in given or ():
        if isinstance(point, str):
            points.append(problem.prompt(point))
        elif isinstance(point, Mapping):
            points += candidates(point) if "candidates" in point else [candidate_from_json(point)]
        elif isinstance(point, (TextPrompt, SoftPrompt)):
            points.append(point)
        else:
            raise InputError(f"points_to_evaluate: {point!r} is not a prompt (a text, a candidate or its JSON form)")
    return points
