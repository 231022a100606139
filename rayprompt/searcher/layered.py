"""What searchers of deep prompts share: which layers get a prompt, and a subspace whose scales are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rayprompt.candidate import Subspace
from rayprompt.errors import InputError
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.soft import SoftSpace

if TYPE_CHECKING:
    from rayprompt.scoring.pool import ScoringPool


class LayeredSearcher(PromptSearcher):
    """A searcher of soft prompts whose settings have ``layers``: see :func:`layers_of`.

    Attributes:
        layers: that get a prompt, from the bottom up.
    """

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        lm = self.problem.lm
        self.layers = layers_of(self.settings.layers, lm.layers, lm.name)
        self._outline = SoftSpace.of(self.problem, self.settings, self.seed, self.layers)

    @property
    def outline(self) -> Subspace:
        return self._outline.subspace

    @cached_property
    def space(self) -> SoftSpace:
        """Its subspace. The scales are measured on the LM, in this process unless :meth:`prepare` came first."""
        return self._outline.scaled(self.problem, self.settings)

    @property
    def measured(self) -> dict[str, Any]:
        return {"scales": list(self.space.subspace.scales)} if self.outline.deep else {}

    def recall(self, measured: Mapping[str, Any]) -> None:
        if self.outline.deep:
            self.problem.layer_scales[self.outline.key] = tuple(measured["scales"])
            vars(self).pop("space", None)

    def prepare(self, pool: ScoringPool) -> None:
        self.space = self._outline.scaled(self.problem, self.settings, pool)


def layers_of(text: str, count: int, lm: str) -> tuple[int, ...]:
    """The layers that a setting names, of an LM with ``count``: ``all``, or some, as ``0,4-7``.

    Raises:
        InputError: it is not a list of layers, or the LM has no such layer.
    """
    if text == "all":
        return tuple(range(count))
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", piece)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if high < low:
            raise InputError(f"setting layers={text!r}: must be 'all', or layers as '0,4-7'; {piece!r} is none")
        if high >= count:
            raise InputError(f"setting layers={text!r}: {lm} has layers 0 to {count - 1}")
        found |= set(range(low, high + 1))
    return tuple(sorted(found))
