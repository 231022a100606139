"""Random search: the baseline of every other searcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate
from rayprompt.scores import Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.layered import LayeredSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.slots import Slots, read_phrases
from rayprompt.searcher.soft import SoftSettings

TRIES = 1000


class RandomDraws(PromptSearcher):
    """A generator of its own, and nothing learned."""

    learns = False
    partial_rows = True

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.rng = np.random.Generator(np.random.PCG64(self.seed))

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


@dataclass(frozen=True)
class RandomSettings:
    """Settings of ``random``."""

    length: int | None = setting(None, "words of a prompt (default 5), or phrases (default 1)")
    vocabulary: int | None = setting(3000, "draw from the first so many whole words of the vocabulary; null is all")
    phrases: str | list[str] | None = setting(None, "draw from the lines of this text file instead of the vocabulary")


class RandomSearcher(RandomDraws):
    """Draws prompts uniformly, none twice."""

    name = "random"
    kind = "text"
    Settings = RandomSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings = replace(self.settings, phrases=read_phrases(self.settings.phrases))
        self.slots = Slots.of(problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.asked: set[str] = set()

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts that were not asked for before; fewer when the space is (nearly) exhausted."""
        fresh: list[Candidate] = []
        for _ in range(n * TRIES):
            if len(fresh) == n:
                break
            places = self.rng.integers(len(self.slots.options), size=self.slots.length).tolist()
            prompt = self.slots.prompt(places)
            if prompt.key not in self.asked:
                self.asked.add(prompt.key)
                fresh.append(prompt)
        return fresh

    def release(self, candidates: Sequence[Candidate]) -> None:
        self.asked.difference_update(candidate.key for candidate in candidates)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "asked": sorted(self.asked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.asked = set(state["asked"])


@dataclass(frozen=True)
class RandomSoftSettings(SoftSettings):
    """Settings of ``random-soft``."""

    layers: str = setting("0", "the layers that get a prompt: 0 is the embeddings'; 'all', or some, as '0,4-7'")


class RandomSoftSearcher(RandomDraws, LayeredSearcher):
    """Draws soft prompts: z from a normal distribution of standard deviation sigma, cut at the bounds."""

    name = "random-soft"
    kind = "soft"
    Settings = RandomSoftSettings

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts."""
        s = self.settings
        z = s.sigma * self.rng.standard_normal((n, self.outline.numbers))
        return [self.space.prompt(row) for row in (z if s.bound is None else z.clip(-s.bound, s.bound))]
