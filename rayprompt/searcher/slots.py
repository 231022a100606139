"""Slots: text prompts as a fixed number of places, each filled with one of many words or phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.searcher.problem import Option, Problem
from rayprompt.tables import read_lines

DEFAULT_WORDS, DEFAULT_PHRASES = 5, 1


def read_phrases(phrases: str | list[str] | None) -> list[str] | None:
    """The phrases of the setting of that name: a text file with one a line, or the phrases themselves.

    A searcher reads them once, where it is made, and keeps the list: a trial may run on another node.

    Raises:
        InputError: the file cannot be read or holds none.
    """
    lines = read_lines(Path(phrases), "phrases") if isinstance(phrases, str) else phrases
    return None if lines is None else list(dict.fromkeys(" ".join(str(line).split()) for line in lines))


@dataclass(frozen=True)
class Slots:
    """``length`` places with the same ``options``. A prompt is a tuple of option indices, -1 = the place is empty."""

    length: int
    options: tuple[Option, ...]

    @classmethod
    def of(
        cls, problem: Problem, *, length: int | None, vocabulary: int | None, phrases: Sequence[str] | None
    ) -> Slots:
        """Places for the vocabulary's whole words, or for given phrases.

        Args:
            problem: whose LM's vocabulary it is.
            length: places; None is 5 words or 1 phrase.
            vocabulary: only the first so many words; None is all.
            phrases: see :func:`read_phrases`.

        Raises:
            InputError: a number is out of range, or there is nothing to choose from.
        """
        count = length if length is not None else DEFAULT_PHRASES if phrases else DEFAULT_WORDS
        if count < 1:
            raise InputError(f"setting length={count}: must be 1 or more")
        if vocabulary is not None and vocabulary < 2:
            raise InputError(f"setting vocabulary={vocabulary}: must be 2 or more words")
        if phrases:
            by_ids = {option.first: option for option in reversed(problem.options(list(phrases)))}
            return cls(count, tuple(reversed(by_ids.values())))
        options = problem.words[:vocabulary]
        if len(options) < 2:
            raise InputError(
                f"model {problem.lm.name}: its vocabulary has no whole words to draw from; give phrases=FILE"
            )
        return cls(count, options)

    def prompt(self, places: Sequence[int]) -> TextPrompt:
        """The prompt with the given option in each place."""
        chosen = [self.options[i] for i in places if i >= 0]
        ids = [i for n, option in enumerate(chosen) for i in (option.later if n else option.first)]
        return TextPrompt(" ".join(option.text for option in chosen), tuple(ids))

    def places(self, prompt: TextPrompt) -> tuple[int, ...] | None:
        """The places of a prompt, empty ones last; None where it is not made of these options."""
        ids = prompt.token_ids or ()
        found = self._split(ids, first=True)
        if found is None or len(found) > self.length:
            return None
        return (*found, *[-1] * (self.length - len(found)))

    def _split(self, ids: tuple[int, ...], *, first: bool) -> tuple[int, ...] | None:
        """Token ids as a sequence of options, longest options first; None where that cannot be."""
        if not ids:
            return ()
        index = self._by_first if first else self._by_later
        for size in range(min(len(ids), self._longest), 0, -1):
            option = index.get(ids[:size])
            rest = None if option is None else self._split(ids[size:], first=False)
            if option is not None and rest is not None:
                return (option, *rest)
        return None

    @cached_property
    def _by_first(self) -> dict[tuple[int, ...], int]:
        return {option.first: i for i, option in enumerate(self.options)}

    @cached_property
    def _by_later(self) -> dict[tuple[int, ...], int]:
        return {option.later: i for i, option in enumerate(self.options)}

    @cached_property
    def _longest(self) -> int:
        return max(max(len(option.first), len(option.later)) for option in self.options)
