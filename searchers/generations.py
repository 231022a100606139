"""Searchers that learn from whole generations: what is out, what has come back, and a state that is their history."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.base import PromptSearcher


@dataclass(eq=False)
class Generation:
    """What a CMA-ES asked for at once: points x (C, d) as it drew them, the candidates, and the losses that are known.

    ``of``: the how manieth run of CMA-ES drew it, or the layer that it is a turn of.
    """

    points: list[FloatArray]
    candidates: list[SoftPrompt]
    of: int
    handed_out: int = 0
    losses: dict[int, float] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every loss is known."""
        return len(self.losses) == len(self.candidates)


class GenerationSearcher(PromptSearcher):
    """Hands out generations and collects their losses; a subclass draws them (``_draw``) and learns (``_learn``).

    Its state is the list of what was drawn, learned and taken in from elsewhere: seeded, CMA-ES draws the same again.

    Attributes:
        open: generations that are not learned yet.
        history: (event, what) since the beginning; a subclass adds each in the method that does it.
    """

    open: list[Generation]
    history: list[tuple[str, Any]]

    @abstractmethod
    def _blank(self) -> None:
        """Be as at the beginning."""

    @abstractmethod
    def _draw(self) -> None:
        """Draw a generation and open it."""

    @abstractmethod
    def _learn(self, generation: Generation, losses: list[float]) -> None:
        """Learn from an open generation and close it."""

    @abstractmethod
    def _found(self, candidate: Candidate, loss: float) -> None:
        """Somebody has scored what was not asked for."""

    @abstractmethod
    def _again(self, event: str, what: Any) -> None:
        """Take in from the history what :meth:`_found` has."""

    @property
    def _over(self) -> bool:
        """Whether no further generation is to be drawn."""
        return False

    def ask(self, n: int) -> list[Candidate]:
        """What is left of the generation that is out, else a new one; at most ``n``, none when all is over."""
        if not self.open or self.open[-1].handed_out == len(self.open[-1].candidates):
            if self._over:
                return []
            self._draw()
        generation = self.open[-1]
        batch: list[Candidate] = list(generation.candidates[generation.handed_out : generation.handed_out + n])
        generation.handed_out += len(batch)
        return batch

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """CMA-ES learns from whole generations.

        A candidate that failed counts as worse than the worst of its generation. One that was not evaluated to the
        end, because the budget ended, teaches nothing.
        """
        places: dict[str, list[tuple[Generation, int]]] = {}
        for generation in self.open:
            for i, c in enumerate(generation.candidates):
                if i not in generation.losses:
                    places.setdefault(c.key, []).append((generation, i))
        for candidate, value, complete in zip(candidates, self.values(scores), scores.complete(), strict=True):
            if not complete:
                continue
            if candidate.key in places:
                for generation, index in places.pop(candidate.key):  # a point that was injected may stand there twice
                    generation.losses[index] = -float(value) if np.isfinite(value) else math.inf
            elif np.isfinite(value):
                self._found(candidate, -float(value))
        for generation in [g for g in self.open if g.whole]:
            self._learn(generation, [generation.losses[i] for i in range(len(generation.candidates))])

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [tuple(event) for event in self.history],
            "open": [(g.handed_out, dict(g.losses)) for g in self.open],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blank()
        for event, what in state["history"]:
            if event == "draw":
                self._draw()
            elif event == "learn":
                self._learn(self.open[what[0]], list(what[1]))
            else:
                self._again(event, what)
        for generation, (handed_out, losses) in zip(self.open, state["open"], strict=True):
            generation.handed_out, generation.losses = handed_out, dict(losses)

    def _close(self, generation: Generation, losses: list[float]) -> None:
        """A generation is learned now."""
        number = self.open.index(generation)
        self.history.append(("learn", (number, tuple(losses))))
        del self.open[number]
