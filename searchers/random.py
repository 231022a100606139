"""Random search: the baseline of every other searcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate
from rayprompt.scores import Scores
from rayprompt.searcher.base import PromptSearcher, setting
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.slots import Slots

TRIES = 1000


@dataclass(frozen=True)
class RandomSettings:
    """Settings of ``random``."""

    length: int | None = setting(None, "words of a prompt (default 5), or phrases (default 1)")
    vocabulary: int | None = setting(None, "draw from the first so many whole words of the vocabulary only")
    phrases: str | None = setting(None, "draw from the lines of this text file instead of the vocabulary")


class RandomSearcher(PromptSearcher):
    """Draws prompts uniformly, none twice."""

    name = "random"
    kind = "text"
    Settings = RandomSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings
        self.slots = Slots.of(problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.rng = np.random.Generator(np.random.PCG64(self.seed))
        self.asked: set[tuple[int, ...]] = set()

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts that were not asked for before; fewer when the space is (nearly) exhausted."""
        fresh: list[Candidate] = []
        for _ in range(n * TRIES):
            if len(fresh) == n:
                break
            places = tuple(self.rng.integers(len(self.slots.options), size=self.slots.length).tolist())
            if places not in self.asked:
                self.asked.add(places)
                fresh.append(self.slots.prompt(places))
        return fresh

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "asked": sorted(self.asked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.asked = {tuple(places) for places in state["asked"]}
