"""Deep Black-Box Tuning, BBTv2 (Sun et al., 2022, arXiv 2205.11200): CMA-ES over a soft prompt in every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray
from rayprompt.searcher.layered import LayeredSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.soft import SoftSettings
from searchers.cma_run import COVARIANCES, CMARun, check_choice, population_of, ranked
from searchers.generations import Generation, GenerationSearcher

INCUMBENTS = ("measured", "best-ever", "mean")
DEV = ("none", "mean")


@dataclass(frozen=True)
class DeepCMAESSettings(SoftSettings):
    """Settings of ``cma-es-deep``. ``intrinsic_dim``, ``sigma`` and ``bound`` are of each layer's z."""

    alpha: float = setting(0.2, "size of the first steps: so many times the spread of the layer's hidden states")
    layers: str = setting("all", "the layers that get a prompt: 'all', or some, as '0,4-7'; 0 is the embeddings'")
    population: int = setting(20, "candidates of a generation, which is a layer's turn; 0 is 4 + 3 ln d")
    rounds: int | None = setting(None, "turns of each layer (default: as many as the budget pays, one at least)")
    covariance: str = setting("full", "of each layer: 'full', 'separable' (a diagonal), or 'limited-memory'")
    incumbent: str = setting(
        "measured",
        "what stands in the other layers: of the best prompt 'measured', BBTv2's 'best-ever' of each layer, the 'mean'",
    )
    dev: str = setting("mean", "scored on dev with the best on train: every layer's 'mean'; or 'none'")


class DeepCMAESSearcher(LayeredSearcher, GenerationSearcher):
    """BBTv2: a CMA-ES for each layer; they take turns, bottom-up, one generation each, all other layers standing still.

    What stands in the other layers is the best prompt that was measured, whole: a prompt's loss does not go stale, so
    no two losses are compared that were measured with other prompts in the other layers. BBTv2 puts together what was
    the best of each layer at any time, whatever stood in the others then (``incumbent=best-ever``).

    A round is a turn of every layer. There are as many as the budget pays, so that each layer gets the same share.
    """

    name = "cma-es-deep"
    kind = "soft"
    barrier = True
    Settings = DeepCMAESSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings
        check_choice("covariance", s.covariance, COVARIANCES)
        check_choice("incumbent", s.incumbent, INCUMBENTS)
        check_choice("dev", s.dev, DEV)
        if s.rounds is not None and s.rounds < 1:
            raise InputError(f"setting rounds={s.rounds}: must be 1 or more")
        self.population = population_of(s.population, max(1, s.intrinsic_dim))
        self.rounds = s.rounds
        self._plan(self.budget)
        self._blank()

    @property
    def generation(self) -> int:
        return self.population

    def extend(self, budget: int) -> None:
        super().extend(budget)
        self._plan(budget)

    def _plan(self, budget: int | None) -> None:
        """As many whole rounds as the budget pays; one at least, which the budget may cut short."""
        if self.settings.rounds is None and budget is not None:
            self.rounds = max(1, budget // (self.population * len(self.layers)))

    def stop(self) -> dict[str, Any]:
        """The number of rounds, when every layer has had its turns."""
        return {"rounds": self.rounds} if self._over and not self.open else {}

    def metrics(self) -> dict[str, Any]:
        sigmas = [run.strategy.sigma for run in self.runs.values()]
        return {
            "round": self.learned // len(self.layers),
            "layer": self.layers[self.learned % len(self.layers)],
            "layers": len(self.layers),
            "improved": self.improved,
            "restarts": self.restarts,
            "sigma": float(np.mean(sigmas)) if sigmas else self.settings.sigma,
        }

    def nominations(self) -> list[Candidate]:
        """The mean of every layer's distribution, all together."""
        if self.settings.dev == "none" or not self.learned:
            return []
        z = self.z.copy()
        for layer, run in self.runs.items():
            z[self.outline.of_layer(layer)] = run.favorite
        return [self.space.prompt(z)]

    @property
    def _over(self) -> bool:
        return self.rounds is not None and self.drawn >= self.rounds * len(self.layers)

    def _blank(self) -> None:
        self.open, self.history = [], []
        self.runs: dict[int, CMARun] = {}  # by layer, from its first turn on
        self.rngs: dict[int, np.random.Generator] = {}
        self.z: FloatArray = np.zeros(self.outline.numbers)  # what stands in all layers
        self.best_loss = math.inf  # of the best prompt measured
        self.bests: dict[int, float] = {}  # by layer, the least loss of any of its turns
        self.drawn = self.learned = 0  # turns
        self.improved = self.restarts = 0

    def _begin(self, layer: int) -> None:
        """A run of CMA-ES for a layer, from what stands there."""
        s = self.settings
        if layer not in self.rngs:
            sequence = np.random.SeedSequence(self.seed, spawn_key=(layer,))
            self.rngs[layer] = np.random.Generator(np.random.PCG64(sequence))
        start = self.z[self.outline.of_layer(layer)]
        self.runs[layer] = CMARun(
            start if s.bound is None else start.clip(-s.bound, s.bound), s.sigma, population=self.population,
            bound=s.bound, covariance=s.covariance, rng=self.rngs[layer],
        )  # fmt: skip

    def _draw(self) -> None:
        """Have the CMA-ES of the layer whose turn it is draw a generation."""
        layer = self.layers[self.drawn % len(self.layers)]
        if layer not in self.runs:
            self._begin(layer)
        points, candidates = self.runs[layer].ask(), []
        for point in points:
            z = self.z.copy()
            z[self.outline.of_layer(layer)] = point
            candidates.append(self.space.prompt(z))
        self.open.append(Generation(points, candidates, layer))
        self.drawn += 1
        self.history.append(("draw", None))

    def _found(self, candidate: Candidate, loss: float) -> None:
        """A better prompt is what the other layers begin with."""
        z = self.space.z(candidate) if loss < self.best_loss else None
        if z is not None:
            self._take(z, loss)

    def _again(self, event: str, what: Any) -> None:
        self._take(np.frombuffer(what[0]), what[1])

    def _take(self, z: FloatArray, loss: float) -> None:
        """Go on from a prompt that was measured elsewhere; layers that had no turn yet begin there."""
        self.history.append(("take", (z.tobytes(), loss)))
        self.z, self.best_loss = z.copy(), loss

    def _learn(self, turn: Generation, losses: list[float]) -> None:
        self._close(turn, losses)
        run, at = self.runs[turn.of], self.outline.of_layer(turn.of)
        stopped = run.tell(turn.points, losses)
        self.learned += 1
        best = int(np.argmin(ranked(losses)))
        if math.isfinite(losses[best]):
            self._stand(turn, best, losses[best])
        if self.settings.incumbent == "mean":
            self.z[at] = run.favorite
        if stopped:  # its distribution has shrunk to a point or is not one any more: a new one, around what stands
            self.restarts += 1
            self._begin(turn.of)

    def _stand(self, turn: Generation, best: int, loss: float) -> None:
        """What is to stand in the layers after a turn whose best was ``best``."""
        at, z = self.outline.of_layer(turn.of), turn.candidates[best].vector.astype(np.float64)
        better = loss < self.best_loss
        self.best_loss = min(loss, self.best_loss)
        self.improved += better
        if self.settings.incumbent == "measured":
            if better:
                self.z = z
        elif loss < self.bests.get(turn.of, math.inf):
            self.bests[turn.of] = loss
            self.z[at] = z[at]
