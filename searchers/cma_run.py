"""One run of CMA-ES, by pycma: what the searchers that use it share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayprompt.errors import InputError, unknown
from rayprompt.scores import FloatArray
from rayprompt.searcher.undisturbed import undisturbed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no matplotlib
    import cma
    from cma.restricted_gaussian_sampler import GaussVkDSampler

COVARIANCES = ("full", "separable", "limited-memory")


def population_of(setting: int, dim: int) -> int:
    """Candidates of a generation; 0 is CMA-ES's own 4 + 3 ln d.

    Raises:
        InputError: there are not two at least.
    """
    if setting == 1 or setting < 0:
        raise InputError(f"setting population={setting}: must be 2 or more, or 0")
    return setting or 4 + int(3 * math.log(dim))


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """See that a setting is one of those that there are.

    Raises:
        InputError: it is not.
    """
    if value not in known:
        raise unknown(f"setting {name}", value, known)


class CMARun:
    """A run of CMA-ES. It draws from a generator of ours: pycma would reseed NumPy's global one.

    Args:
        start: (d,) the first mean.
        sigma: the first standard deviation.
        population: candidates of a generation.
        bound: points stay within -bound and bound; None is no bound.
        covariance: one of ``COVARIANCES``.
        rng: what it draws from.

    Attributes:
        generations: that it has learned from.
    """

    def __init__(
        self,
        start: FloatArray,
        sigma: float,
        *,
        population: int,
        bound: float | None,
        covariance: str,
        rng: np.random.Generator,
    ) -> None:
        def randn(*shape: int) -> FloatArray:
            return rng.standard_normal(shape)

        options: dict[str, Any] = {
            "popsize": population,
            "bounds": [None, None] if bound is None else [-bound, bound],
            "randn": randn,
            "seed": math.nan,
            "verbose": -9,
            "signals_filename": None,  # a file of that name in the working directory would change the run
            "CMA_diagonal": covariance == "separable",
        }
        if covariance == "limited-memory":
            options = GaussVkDSampler.extend_cma_options({**options, "CMA_sampler_options": {"randn": randn}})
        self.bound = bound
        self.generations = 0
        with undisturbed():
            self.strategy = cma.CMAEvolutionStrategy(start, sigma, options)

    @property
    def favorite(self) -> FloatArray:
        """(d,) the mean of the distribution."""
        return np.asarray(self.strategy.result.xfavorite, dtype=np.float64)

    def ask(self) -> list[FloatArray]:
        """A generation of points (d,)."""
        with undisturbed():
            return [np.asarray(x) for x in self.strategy.ask()]

    def inject(self, point: FloatArray) -> None:
        """Have a point that it did not draw in its next generation, as it is."""
        if self.bound is not None:  # pycma wants it as it is before the bounds bend it
            inside = point.clip(-self.bound, self.bound)
            point = self.strategy.gp.geno(inside, from_bounds=self.strategy.boundary_handler.inverse)
        self.strategy.inject([point], force=True)

    def tell(self, points: Sequence[FloatArray], losses: Sequence[float]) -> dict[str, Any]:
        """Learn from a generation; a loss that is not a number counts as worse than the worst. Reasons to stop."""
        told = ranked(losses)
        with undisturbed():
            self.strategy.tell(list(points), told)
            stopped = dict(self.strategy.stop())
        self.generations += 1
        return stopped


def ranked(losses: Sequence[float]) -> list[float]:
    """Losses, those that are not finite put behind the worst."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    worst = max(finite, default=0.0) + 1.0
    return [loss if math.isfinite(loss) else worst for loss in losses]
