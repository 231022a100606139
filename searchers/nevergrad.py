"""Derivative-free search with any discrete-capable optimizer of Nevergrad (Rapin and Teytaud, 2018)."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nevergrad as ng
import numpy as np

from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.errors import InputError
from rayprompt.scores import Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.slots import Slots, read_phrases

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


class NevergradSearcher(PromptSearcher):
    """Each place of the prompt is one categorical variable; Nevergrad proposes which option fills it.

    Its state is the list of what Nevergrad was asked and told: a seeded optimizer that goes through the same list
    again stands where the saved one stood, whichever optimizer it is.
    """

    name = "nevergrad"
    kind = "text"
    Settings = NevergradSettings
    worst: float

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings = replace(self.settings, phrases=read_phrases(self.settings.phrases))
        if s.optimizer not in ng.optimizers.registry:
            near = difflib.get_close_matches(s.optimizer, list(ng.optimizers.registry), n=3, cutoff=0.4)
            raise InputError(
                f"setting optimizer={s.optimizer!r}: not in Nevergrad's registry; nearest: {', '.join(near) or 'none'}"
            )
        if s.population < 1:
            raise InputError(f"setting population={s.population}: must be 1 or more")
        self.slots = Slots.of(problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.start = self._start_places()
        try:
            self._blank()
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(
                f"setting optimizer={s.optimizer!r}: Nevergrad refuses it here ({error}); "
                "try population=1, which asks for one candidate at a time, or another optimizer"
            ) from None

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

        One that was not evaluated to the end, because the budget ended, teaches nothing.
        """
        for candidate, value, complete in zip(candidates, self.values(scores), scores.complete(), strict=True):
            if not isinstance(candidate, TextPrompt) or not complete:
                continue
            loss = -float(value) if np.isfinite(value) else self.worst + 1.0
            self.worst = max(self.worst, loss) if np.isfinite(value) else self.worst
            self.losses[candidate.key] = loss
            number = self.waiting.pop(candidate.key, None)
            places = self.slots.places(candidate)
            if number is not None:
                self._tell_asked(number, loss)
            elif places is not None:
                self._tell_other(places, loss)

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
        replay = {"ask": self._raw_ask, "tell": self._tell_asked, "other": self._tell_other}
        for event, *what in state["history"]:
            replay[event](*what)
        self.losses.update(state["losses"])
        self.waiting.update(state["waiting"])
        self.worst = state["worst"]
        self.rng.bit_generator.state = state["rng"]

    def _blank(self) -> None:
        """A fresh optimizer. Standardised data N(0, 1) of a place is a uniform choice among its options."""
        empty = len(self.slots.options)  # the last value of a place: it holds nothing
        places = ng.p.Array(init=np.full(self.slots.length, (empty + 1) / 2.0))
        places.random_state = np.random.RandomState(self.seed)  # else it would be drawn from NumPy's global one
        places.set_bounds(0, empty + 1, method="gaussian")
        self.variable = (places - 0.5).set_integer_casting()
        self.variable.random_state = np.random.RandomState(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on settings, meant for Nevergrad's own users
            self.optimizer = ng.optimizers.registry[self.settings.optimizer](
                parametrization=self.variable, budget=self.budget, num_workers=self.generation
            )
        self.rng = np.random.Generator(np.random.PCG64(self.seed))
        # Without a start of ours, some optimizers start at the middle of the vocabulary, whatever the seed.
        start = self.rng.integers(empty, size=self.slots.length).tolist() if self.start is None else self.start
        with contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
            self.optimizer.suggest(np.array([p if p >= 0 else empty for p in start]))
        self.asked: dict[int, Any] = {}  # number of an ask -> Nevergrad's candidate, until it is told
        self.asks = 0
        self.waiting: dict[str, int] = {}  # key of a prompt -> number of its ask
        self.losses: dict[str, float | None] = {}  # key of every prompt asked for -> its loss, None while it is out
        self.worst = 0.0  # the greatest loss of a candidate that did not fail
        self.history: list[tuple[Any, ...]] = []

    def _ask_optimizer(self) -> TextPrompt:
        """Nevergrad's next proposal; one that is known already is told its loss at once."""
        number, places = self._raw_ask()
        prompt = self.slots.prompt(places)
        loss = self.losses.get(prompt.key)
        if loss is not None:
            self._tell_asked(number, loss)
        elif prompt.key not in self.losses:
            self.waiting[prompt.key] = number
        return prompt

    def _raw_ask(self) -> tuple[int, tuple[int, ...]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            candidate = self.optimizer.ask()
        self.history.append(("ask",))
        self.asks += 1
        self.asked[self.asks] = candidate
        empty = len(self.slots.options)
        return self.asks, tuple(-1 if p >= empty else int(p) for p in np.asarray(candidate.value).reshape(-1))

    def _tell_asked(self, number: int, loss: float) -> None:
        self.history.append(("tell", number, loss))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some optimizers do not learn from a suggested start, which counts as not asked for.
            with contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
                self.optimizer.tell(self.asked.pop(number), loss)

    def _tell_other(self, places: Sequence[int], loss: float) -> None:
        """Tell a prompt that Nevergrad did not propose, if this optimizer takes such."""
        self.history.append(("other", tuple(places), loss))
        empty = len(self.slots.options)
        child = self.variable.spawn_child(new_value=np.array([p if p >= 0 else empty for p in places]))
        with contextlib.suppress(ng.errors.TellNotAskedNotSupportedError):
            self.optimizer.tell(child, loss)

    def _draw(self) -> TextPrompt:
        return self.slots.prompt(self.rng.integers(len(self.slots.options), size=self.slots.length).tolist())

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
