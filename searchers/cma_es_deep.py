"""Deep Black-Box Tuning, BBTv2 (Sun et al., 2022, arXiv 2205.11200): CMA-ES over a soft prompt in every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.layered import LayeredSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.soft import SoftSettings
from searchers.cma_run import COVARIANCES, CMARun, check_choice, population_of, ranked

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


@dataclass(eq=False)
class Turn:
    """A generation of one layer: points x (C, d), the candidates they make, and the losses (C,) that are known."""

    layer: int
    points: list[FloatArray]
    candidates: list[SoftPrompt]
    handed_out: int = 0
    losses: dict[int, float] = field(default_factory=dict)


class DeepCMAESSearcher(LayeredSearcher):
    """BBTv2: a CMA-ES for each layer; they take turns, bottom-up, one generation each, all other layers standing still.

    What stands in the other layers is the best prompt that was measured, whole: a prompt's loss does not go stale, so
    no two losses are compared that were measured with other prompts in the other layers. BBTv2 puts together what was
    the best of each layer at any time, whatever stood in the others then (``incumbent=best-ever``).

    A round is a turn of every layer. There are as many as the budget pays, so that each layer gets the same share.
    Its state is the losses that it was told: seeded, CMA-ES draws the same points again.
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

    def ask(self, n: int) -> list[Candidate]:
        """What is left of the turn that is out, else the next layer's; at most ``n``, none when the rounds are over."""
        if not self.open or self.open[-1].handed_out == len(self.open[-1].candidates):
            if self._over:
                return []
            self._draw()
        turn = self.open[-1]
        batch: list[Candidate] = list(turn.candidates[turn.handed_out : turn.handed_out + n])
        turn.handed_out += len(batch)
        return batch

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """A layer's CMA-ES learns from whole generations. A better prompt that it did not ask for, it begins with.

        A candidate that failed counts as worse than the worst of its generation. One that was not evaluated to the
        end, because the budget ended, teaches nothing.
        """
        places: dict[str, list[tuple[Turn, int]]] = {}
        for turn in self.open:
            for i, c in enumerate(turn.candidates):
                if i not in turn.losses:
                    places.setdefault(c.key, []).append((turn, i))
        for candidate, value, complete in zip(candidates, self.values(scores), scores.complete(), strict=True):
            if not complete:
                continue
            if candidate.key in places:
                for turn, index in places.pop(candidate.key):
                    turn.losses[index] = -float(value) if np.isfinite(value) else math.inf
            elif np.isfinite(value) and -float(value) < self.best_loss:
                z = self.space.z(candidate)
                if z is not None:
                    self._take(z, -float(value))
        for turn in [t for t in self.open if len(t.losses) == len(t.candidates)]:
            self._learn(turn, [turn.losses[i] for i in range(len(turn.candidates))])

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

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [tuple(event) for event in self.history],
            "open": [(turn.handed_out, dict(turn.losses)) for turn in self.open],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blank()
        for event, what in state["history"]:
            if event == "draw":
                self._draw()
            elif event == "take":
                self._take(np.frombuffer(what[0]), what[1])
            else:
                self._learn(self.open[what[0]], list(what[1]))
        for turn, (handed_out, losses) in zip(self.open, state["open"], strict=True):
            turn.handed_out, turn.losses = handed_out, dict(losses)

    @property
    def _over(self) -> bool:
        return self.rounds is not None and self.drawn >= self.rounds * len(self.layers)

    def _blank(self) -> None:
        self.open: list[Turn] = []
        self.history: list[tuple[str, Any]] = []
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
        self.open.append(Turn(layer, points, candidates))
        self.drawn += 1
        self.history.append(("draw", None))

    def _take(self, z: FloatArray, loss: float) -> None:
        """Go on from a prompt that was measured elsewhere; layers that had no turn yet begin there."""
        self.history.append(("take", (z.tobytes(), loss)))
        self.z, self.best_loss = z.copy(), loss

    def _learn(self, turn: Turn, losses: list[float]) -> None:
        number = self.open.index(turn)
        self.history.append(("learn", (number, tuple(losses))))
        del self.open[number]
        run, at = self.runs[turn.layer], self.outline.of_layer(turn.layer)
        stopped = run.tell(turn.points, losses)
        self.learned += 1
        best = int(np.argmin(ranked(losses)))
        if math.isfinite(losses[best]):
            self._stand(turn, best, losses[best])
        if self.settings.incumbent == "mean":
            self.z[at] = run.favorite
        if stopped:  # its distribution has shrunk to a point or is not one any more: a new one, around what stands
            self.restarts += 1
            self._begin(turn.layer)

    def _stand(self, turn: Turn, best: int, loss: float) -> None:
        """What is to stand in the layers after a turn whose best was ``best``."""
        at, z = self.outline.of_layer(turn.layer), turn.candidates[best].vector.astype(np.float64)
        better = loss < self.best_loss
        self.best_loss = min(loss, self.best_loss)
        self.improved += better
        if self.settings.incumbent == "measured":
            if better:
                self.z = z
        elif loss < self.bests.get(turn.layer, math.inf):
            self.bests[turn.layer] = loss
            self.z[at] = z[at]
