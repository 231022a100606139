"""Black-Box Tuning (Sun et al., 2022, arXiv 2201.03514): CMA-ES over a random subspace of soft prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from searchers.cma_run import COVARIANCES, CMARun, check_choice, population_of, ranked
from searchers.generations import Generation, GenerationSearcher

RESTARTS = ("none", "ipop", "bipop")
DEV = ("none", "mean", "generations", "all")
POPULATION_FACTOR = 2  # of a restart with a larger population


@dataclass(frozen=True)
class CMAESSettings(SoftSettings):
    """Settings of ``cma-es``. The defaults are Black-Box Tuning as released; as published: bound 5, uniform."""

    population: int = setting(20, "candidates of a generation; 0 is CMA-ES's own 4 + 3 ln d")
    covariance: str = setting("full", "'full', 'separable' (a diagonal), or 'limited-memory' (VkD-CMA, for large d)")
    restarts: str = setting("ipop", "when CMA-ES stops: 'none' ends the search, 'ipop' and 'bipop' begin anew")
    dev: str = setting("mean", "scored on dev with the best on train: 'mean' of the distribution, 'generations' bests")
    dev_every: int = setting(5, "with dev=generations: of every so many generations the best")


class CMAESSearcher(GenerationSearcher):
    """Black-Box Tuning: pycma's CMA-ES over z, where the soft prompt is A z + p0.

    A candidate that it did not ask for it looks at in its next generation.
    """

    name = "cma-es"
    kind = "soft"
    barrier = True
    Settings = CMAESSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings
        for name, value, known in (
            ("covariance", s.covariance, COVARIANCES),
            ("restarts", s.restarts, RESTARTS),
            ("dev", s.dev, DEV),
        ):
            check_choice(name, value, known)
        if s.dev_every < 1:
            raise InputError(f"setting dev_every={s.dev_every}: must be 1 or more")
        self.first_population = population_of(s.population, max(1, s.intrinsic_dim))
        self.space = SoftSpace.of(self.problem, s, self.seed)
        self._blank()

    @property
    def generation(self) -> int:
        return int(self.strategy.popsize)

    def stop(self) -> dict[str, Any]:
        """pycma's stop tests, where nothing begins anew."""
        return dict(self.reasons)

    def metrics(self) -> dict[str, Any]:
        return {
            "sigma": float(self.strategy.sigma),
            "population": self.generation,
            "restarts": len(self.stops),
            "stops": "; ".join(self.stops),
        }

    def nominations(self) -> list[Candidate]:
        """The mean of the distribution, and the best of every so many generations, as the setting ``dev`` says."""
        bests: list[Candidate] = list(self.bests) if self.settings.dev in ("generations", "all") else []
        mean = self.settings.dev in ("mean", "all") and self.mean is not None
        return [*bests, *([self.mean] if mean and self.mean is not None else [])]

    def _blank(self) -> None:
        self.rng = np.random.Generator(np.random.PCG64(self.seed))
        self.open, self.history = [], []
        self.known: set[str] = set()  # keys of what was learned from in this run of CMA-ES
        self.bests: list[SoftPrompt] = []
        self.mean: SoftPrompt | None = None  # of the last distribution that was learned
        self.learned = 0  # generations
        self.reasons: dict[str, Any] = {}
        self.stops: list[str] = []  # why runs of CMA-ES ended
        self.runs: list[tuple[str, int]] = []  # of those that ended: small or large, and its evaluations
        self.run = ("small", self.first_population, math.inf)  # kind, population, most generations
        self._begin(np.zeros(self.settings.intrinsic_dim), self.settings.sigma, self.first_population)

    def _begin(self, start: FloatArray, sigma: float, population: int) -> None:
        """A new run of CMA-ES."""
        s = self.settings
        self.cma = CMARun(start, sigma, population=population, bound=s.bound, covariance=s.covariance, rng=self.rng)

    @property
    def strategy(self) -> Any:
        """pycma's own object."""
        return self.cma.strategy

    def _draw(self) -> None:
        """Have CMA-ES draw a generation."""
        points = self.cma.ask()
        self.open.append(Generation(points, [self.space.prompt(x) for x in points], len(self.stops)))
        self.history.append(("draw", None))

    def _found(self, candidate: Candidate, loss: float) -> None:
        """CMA-ES looks at it in its next generation, once."""
        z = None if candidate.key in self.known else self.space.z(candidate)
        if z is not None:
            self.known.add(candidate.key)
            self._inject(z)

    def _again(self, event: str, what: Any) -> None:
        self._inject(np.frombuffer(what))

    def _inject(self, z: FloatArray) -> None:
        """Have a point that CMA-ES did not draw in its next generation, as it is."""
        self.history.append(("inject", z.tobytes()))
        self.cma.inject(z)

    def _learn(self, generation: Generation, losses: list[float]) -> None:
        self._close(generation, losses)
        if generation.of != len(self.stops):
            return  # of a run of CMA-ES that has ended
        stopped = self.cma.tell(generation.points, losses)
        self.learned += 1
        self.mean = self.space.prompt(self.cma.favorite)
        self.known = {c.key for c in generation.candidates}
        if any(map(math.isfinite, losses)) and self.learned % self.settings.dev_every == 0:
            self.bests.append(generation.candidates[int(np.argmin(ranked(losses)))])
        if stopped or self.cma.generations >= self.run[2]:
            self._end(stopped or {"maxiter": self.cma.generations})

    def _end(self, reasons: dict[str, Any]) -> None:
        """A run of CMA-ES has ended: begin the next one as pycma's ``fmin`` would, or end the search."""
        self.stops.append(", ".join(f"{name}={value}" for name, value in reasons.items()))
        if self.settings.restarts == "none":
            self.reasons = reasons
            return
        self.runs.append((self.run[0], self.cma.generations * self.generation))
        small, large = (sum(n for kind, n in self.runs if kind == k) for k in ("small", "large"))
        restarts_large = sum(kind == "large" for kind, _ in self.runs)
        factor = POPULATION_FACTOR ** (restarts_large + 1)
        sigma = self.settings.sigma
        if self.settings.restarts == "bipop" and len(self.runs) > 1 and small < large:
            sigma *= 0.01 ** self.rng.random()
            last = POPULATION_FACTOR**restarts_large
            population = int(self.first_population * last ** (self.rng.random() ** 2))
            self.run = ("small", population, max(1.0, 0.5 * large / population))
        else:
            population = self.first_population * factor
            self.run = ("large", population, math.inf)
        start = self.settings.sigma * self.rng.standard_normal(self.settings.intrinsic_dim)
        bound = self.settings.bound
        self._begin(start if bound is None else start.clip(-bound, bound), sigma, population)
