"""What pools have in common whose LM is not loaded here: nothing is shaped, kept or computed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from rayprompt.candidate import SoftPrompt, Subspace
from rayprompt.errors import InputError
from rayprompt.lm.encode import EncodedPart
from rayprompt.scores import FloatArray
from rayprompt.scoring.pool import ScoringPool


class UnloadedPool(ScoringPool):
    """A :class:`ScoringPool` without scorers of its own. What works with the LM itself is refused by :meth:`no_lm`."""

    loaded = False

    @abstractmethod
    def no_lm(self) -> InputError:
        """What to raise where the LM itself is asked for."""

    def table_for(self, part: EncodedPart) -> Any:
        """Nothing is shaped here."""
        return self.shapes

    @property
    def tokens(self) -> int | None:  # type: ignore[override]
        """Of a forward pass: not ours to say."""
        return None

    def keeps(self, part: EncodedPart) -> bool:
        """There is nothing to keep."""
        return True

    def reuse(self, parts: Mapping[str, EncodedPart], space: Subspace | None = None) -> dict[str, Any]:
        """Nothing that we know of."""
        return {"shared": "none"}

    def add(self, part: EncodedPart) -> None:
        """Nothing travels ahead."""

    def nearest(self, *arguments: Any, **how: Any) -> list[tuple[int, ...]]:
        raise self.no_lm()

    def vectors(self, *arguments: Any, **how: Any) -> dict[int, FloatArray]:
        raise self.no_lm()

    def embed(self, texts: Sequence[str]) -> FloatArray:
        raise self.no_lm()

    def tune(self, *arguments: Any, **options: Any) -> Any:
        raise self.no_lm()

    def hidden_stds(
        self, part: EncodedPart, prompt: SoftPrompt, layers: Sequence[int], *arguments: Any, **how: Any
    ) -> dict[int, float]:
        raise self.no_lm()
