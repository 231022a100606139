"""Derivative-free search with any optimizer of Nevergrad (Rapin and Teytaud, 2018), over words or soft prompts."""

from __future__ import annotations

import contextlib
import difflib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import nevergrad as ng
import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.slots import Slots, read_phrases
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from rayprompt.searcher.undisturbed import undisturbed

STALE_ASKS = 200  # asks in a row without a new prompt, after which one is drawn at random


@dataclass(frozen=True)
class NevergradSettings:
    """Settings of ``nevergrad``."""

    optimizer: str = setting("DiscreteLenglerOnePlusOne", "a name in Nevergrad's registry of optimizers")
    length: int | None = setting(None, "words of a prompt (default 5), or phrases (default 1), at most")
    vocabulary: int | None = setting(3000, "choose from the first so many whole words of the vocabulary; null is all")
    phrases: str | list[str] | None = setting(None, "choose from the lines of this text file instead of the vocabulary")
    start: str = setting("manual", "where to start: 'manual' (the task's manual prompt), 'random', or a prompt")
    population: int = setting(16, "candidates asked for at a time")


@dataclass(frozen=True)
class NevergradSoftSettings(SoftSettings):
    """Settings of ``nevergrad-soft``."""

    optimizer: str = setting("TwoPointsDE", "a name in Nevergrad's registry of optimizers")
    population: int = setting(20, "candidates asked for at a time")


class AnyNevergradSearcher(PromptSearcher):
    """What both have in common. A subclass says how Nevergrad's points and candidates belong together.

    Its state is the list of what Nevergrad was asked and told: a seeded optimizer that goes through the same list
    again stands where the saved one stood, whichever optimizer it is.
    """

    partial_rows = True
    worst: float

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings
        if s.optimizer not in ng.optimizers.registry:
            near = difflib.get_close_matches(s.optimizer, list(ng.optimizers.registry), n=3, cutoff=0.4)
            raise InputError(
                f"setting optimizer={s.optimizer!r}: not in Nevergrad's registry; nearest: {', '.join(near) or 'none'}"
            )
        if s.population < 1:
            raise InputError(f"setting population={s.population}: must be 1 or more")
        self._prepare()
        with self._refused():
            self._blank()

    @property
    def generation(self) -> int:
        return int(self.settings.population)

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts that were not asked for before; fewer when the space is (nearly) exhausted."""
        fresh: list[Candidate] = []
        stale = 0
        while len(fresh) < n and stale < 2 * STALE_ASKS:
            # An optimizer that has converged proposes nothing new: then a uniform draw takes its place.
            prompt = self._ask_optimizer() if stale < STALE_ASKS else self._draw()
            if prompt.key in self.losses:
                stale += 1
                continue
            self.losses[prompt.key] = None
            fresh.append(prompt)
            stale = 0
        return fresh

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """Minimises minus the objective; a candidate that failed is told as worse than the worst so far.

        One that was not evaluated to the end, because the budget ended, teaches nothing; of one that a race has
        dropped it is told the estimate.
        """
        for candidate, value, settled in zip(candidates, self.values(scores), scores.settled(), strict=True):
            if candidate.kind != self.kind or not settled:
                continue
            loss = -float(value) if np.isfinite(value) else self.worst + 1.0
            self.worst = max(self.worst, loss) if np.isfinite(value) else self.worst
            self.losses[candidate.key] = loss
            number = self.waiting.pop(candidate.key, None)
            point = self._point(candidate)
            with self._refused():
                if number is not None:
                    self._tell_asked(number, loss)
                elif point is not None:
                    self._tell_other(point, loss)

    def release(self, candidates: Sequence[Candidate]) -> None:
        """Nevergrad keeps waiting for them; where it proposes one again, that counts as new."""
        for candidate in candidates:
            number = self.waiting.pop(candidate.key, None)
            if number is not None:
                self.history.append(("drop", number))
                self._drop(number)
            if self.losses.get(candidate.key, 0.0) is None:
                del self.losses[candidate.key]

    def _drop(self, number: int) -> None:
        self.asked.pop(number, None)

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": list(self.history),
            "losses": dict(self.losses),
            "waiting": dict(self.waiting),
            "worst": self.worst,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blank()
        replay: dict[str, Callable[..., object]]
        replay = {"ask": self._raw_ask, "tell": self._tell_asked, "other": self._tell_other, "drop": self._drop}
        for event, *what in state["history"]:
            replay[event](*what)
        self.losses.update(state["losses"])
        self.waiting.update(state["waiting"])
        self.worst = state["worst"]
        self.rng.bit_generator.state = state["rng"]

    @abstractmethod
    def _prepare(self) -> None:
        """Work out the search space, once."""

    @abstractmethod
    def _array(self) -> ng.p.Array:
        """The search space as Nevergrad has it: a fresh one, without a generator of its own yet."""

    @abstractmethod
    def _candidate(self, point: Any) -> Candidate:
        """The candidate of a point, a value of the array."""

    @abstractmethod
    def _point(self, candidate: Candidate) -> bytes | tuple[int, ...] | None:
        """The point of a candidate, as it stands in the state; None where it is outside of the search space."""

    @abstractmethod
    def _value(self, point: Any) -> FloatArray:
        """The value of the array that stands in the state as ``point``."""

    @abstractmethod
    def _draw(self) -> Candidate:
        """A candidate at random."""

    def _begin(self) -> None:
        """Tell a fresh optimizer where to begin."""

    def _blank(self) -> None:
        self.variable = self._array()
        with undisturbed():
            self.optimizer = ng.optimizers.registry[self.settings.optimizer](
                parametrization=self.variable, budget=self.budget, num_workers=self.generation
            )
            self.optimizer.enable_pickling()  # so that a caller may keep it with its dump()
        self.rng = np.random.Generator(np.random.PCG64(self.seed))
        self._begin()
        self.asked: dict[int, Any] = {}  # number of an ask -> Nevergrad's candidate, until it is told
        self.asks = 0
        self.waiting: dict[str, int] = {}  # key of a prompt -> number of its ask
        self.losses: dict[str, float | None] = {}  # key of every prompt asked for -> its loss, None while it is out
        self.worst = 0.0  # the greatest loss of a candidate that did not fail
        self.history: list[tuple[Any, ...]] = []

    def _ask_optimizer(self) -> Candidate:
        """Nevergrad's next proposal; one that is known already is told its loss at once."""
        with self._refused():
            number, prompt = self._raw_ask()
        loss = self.losses.get(prompt.key)
        if loss is not None:
            self._tell_asked(number, loss)
        elif prompt.key not in self.losses:
            self.waiting[prompt.key] = number
        return prompt

    def _raw_ask(self) -> tuple[int, Candidate]:
        with undisturbed():
            asked = self.optimizer.ask()
        self.history.append(("ask",))
        self.asks += 1
        self.asked[self.asks] = asked
        return self.asks, self._candidate(asked.value)

    def _tell_asked(self, number: int, loss: float) -> None:
        self.history.append(("tell", number, loss))
        # Some optimizers do not learn from a suggested start, which counts as not asked for.
        with undisturbed(), contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
            self.optimizer.tell(self.asked.pop(number), loss)

    def _tell_other(self, point: Any, loss: float) -> None:
        """Tell a prompt that Nevergrad did not propose, if this optimizer takes such."""
        self.history.append(("other", point, loss))
        child = self.variable.spawn_child(new_value=self._value(point))
        with undisturbed(), contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
            self.optimizer.tell(child, loss)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """Optimizers that cannot do what is asked say so with errors of many types."""
        name = self.settings.optimizer
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            wants = "a budget (budget=N), " if self.budget is None else ""
            raise InputError(
                f"setting optimizer={name!r}: Nevergrad refuses it here ({type(error).__name__}: {reason[:200]}); "
                f"try {wants}population=1, which asks for one candidate at a time, or another optimizer"
            ) from None


class NevergradSearcher(AnyNevergradSearcher):
    """Each place of the prompt is one categorical variable; Nevergrad proposes which option fills it."""

    name = "nevergrad"
    kind = "text"
    Settings = NevergradSettings

    def _prepare(self) -> None:
        s = self.settings = replace(self.settings, phrases=read_phrases(self.settings.phrases))
        self.slots = Slots.of(self.problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.empty = len(self.slots.options)  # the last value of a place: it holds nothing
        self.start = self._start_places()

    def _array(self) -> ng.p.Array:
        """Standardised data N(0, 1) of a place is a uniform choice among its options."""
        places = ng.p.Array(init=np.full(self.slots.length, (self.empty + 1) / 2.0))
        places.random_state = np.random.RandomState(self.seed)  # else it would be drawn from NumPy's global one
        places.set_bounds(0, self.empty + 1, method="gaussian")
        variable = (places - 0.5).set_integer_casting()
        variable.random_state = np.random.RandomState(self.seed)
        return variable

    def _begin(self) -> None:
        """Without a start of ours, some optimizers start at the middle of the vocabulary, whatever the seed."""
        start = self.rng.integers(self.empty, size=self.slots.length).tolist() if self.start is None else self.start
        with contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
            self.optimizer.suggest(self._value(start))

    def _candidate(self, point: Any) -> TextPrompt:
        return self.slots.prompt([-1 if p >= self.empty else int(p) for p in np.asarray(point).reshape(-1)])

    def _point(self, candidate: Candidate) -> tuple[int, ...] | None:
        return self.slots.places(candidate) if isinstance(candidate, TextPrompt) else None

    def _value(self, point: Any) -> FloatArray:
        return np.array([p if p >= 0 else self.empty for p in point])

    def _draw(self) -> TextPrompt:
        return self.slots.prompt(self.rng.integers(self.empty, size=self.slots.length).tolist())

    def _start_places(self) -> tuple[int, ...] | None:
        """The places of the prompt to start from; None is a start at random."""
        start = self.settings.start
        if start == "random":
            return None
        text = self.problem.task.manual_prompt if start == "manual" else start
        places = self.slots.places(self.problem.prompt(text)) if text else None
        if places is None and start != "manual":
            raise InputError(
                f"setting start={start!r}: not made of at most {self.slots.length} of the words or phrases searched"
            )
        return places


class NevergradSoftSearcher(AnyNevergradSearcher):
    """Nevergrad proposes z, from a normal distribution of standard deviation sigma, where the prompt is A z + p0."""

    name = "nevergrad-soft"
    kind = "soft"
    Settings = NevergradSoftSettings

    def _prepare(self) -> None:
        self.space = SoftSpace.of(self.problem, self.settings, self.seed)

    def _array(self) -> ng.p.Array:
        s = self.settings
        z = ng.p.Array(init=np.zeros(s.intrinsic_dim))
        z.random_state = np.random.RandomState(self.seed)
        z.set_mutation(sigma=s.sigma)
        if s.bound is not None:
            z.set_bounds(-s.bound, s.bound, method="clipping")
        z.random_state = np.random.RandomState(self.seed)  # again: what was added since has none
        return z

    def _candidate(self, point: Any) -> SoftPrompt:
        return self.space.prompt(np.asarray(point))

    def _point(self, candidate: Candidate) -> bytes | None:
        z = self.space.z(candidate)
        return None if z is None else z.tobytes()

    def _value(self, point: Any) -> FloatArray:
        z, bound = np.frombuffer(point), self.settings.bound
        return z if bound is None else z.clip(-bound, bound)  # as float32 it may be a little outside

    def _draw(self) -> SoftPrompt:
        s = self.settings
        z = s.sigma * self.rng.standard_normal(s.intrinsic_dim)
        return self.space.prompt(z if s.bound is None else z.clip(-s.bound, s.bound))
