"""The best value so far as a step function of what a run has spent: means over runs, areas, times to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rayprompt.comparison.significance import Interval, interval
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray


@dataclass(frozen=True, eq=False)
class Curve:
    """One run: ``y`` (n,) is the best so far from ``x`` (n,) on, which increases; before x[0] there is none (NaN).

    After x[-1] the last value stays: a run that stopped early does not get better.
    """

    x: FloatArray
    y: FloatArray

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, dtype=float), np.asarray(self.y, dtype=float)
        if x.ndim != 1 or x.shape != y.shape or not len(x):
            raise InputError(
                f"a curve has x of shape {x.shape} and y of shape {y.shape}; both must be (n,) with n >= 1"
            )
        if not (np.isfinite(x).all() and (np.diff(x) > 0).all()):
            raise InputError("the x of a curve must be finite and increase at every step")
        if np.isnan(y).any():
            raise InputError("a curve has a y that is NaN: it must begin where there is a first value")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def at(self, grid: ArrayLike) -> FloatArray:
        """(G,) the values at ``grid``; NaN before x[0]."""
        index = np.searchsorted(self.x, np.asarray(grid, dtype=float), side="right") - 1
        return np.where(index >= 0, self.y[np.maximum(index, 0)], np.nan)

    def area(self, until: float, start: float = 0) -> float:
        """The mean height from ``start``, or from x[0] if that is later, to ``until``; NaN if there is no value yet.

        Runs are to be compared from one start, the latest x[0] among them: a curve is not charged for what it lacks.
        """
        begin = max(start, float(self.x[0]))
        if until <= begin:
            return float(self.at(until)) if until == begin else math.nan
        edges = np.concatenate([[begin], self.x[(self.x > begin) & (self.x < until)], [until]])
        return float(self.at(edges[:-1]) @ np.diff(edges)) / (until - begin)

    def first_reaching(self, target: float) -> float | None:
        """The first x with y >= target; None if there is none."""
        reached = self.y >= target
        return float(self.x[reached.argmax()]) if reached.any() else None


@dataclass(frozen=True)
class Point:
    """A mean over runs at ``x``."""

    x: float
    value: Interval

    def to_json(self) -> dict[str, Any]:
        """The JSON form: x, and that of the interval."""
        return {"x": self.x, **self.value.to_json()}


def grid_of(curves: Sequence[Curve], points: int = 20) -> FloatArray:
    """(points,) evenly from the latest first x, where all have a value, to the largest x; one point if these are one.

    A curve that ends before the largest x goes on with its last value.
    """
    if not curves:
        raise InputError("no curves to lay a grid over")
    begin, end = max(float(c.x[0]) for c in curves), max(float(c.x[-1]) for c in curves)
    return np.linspace(begin, end, points if end > begin else 1)


def mean_curve(curves_by_stratum: Mapping[Any, Sequence[Curve]], grid: ArrayLike) -> list[Point]:
    """The mean with its interval (``significance.interval``: splits of one task and model) at every point of a grid.

    Points at which a curve has no value yet are left out: every point is a mean over the same runs.
    """
    grid = np.asarray(grid, dtype=float)
    values = {s: np.array([c.at(grid) for c in curves]) for s, curves in curves_by_stratum.items() if curves}
    points = []
    for g, x in enumerate(grid.tolist()):
        here = {stratum: rows[:, g].tolist() for stratum, rows in values.items()}
        if not any(math.isnan(value) for row in here.values() for value in row):
            points.append(Point(x, interval(here)))
    return points


def reaching(curves: Sequence[Curve], target: float, budget: float) -> dict[str, Any]:
    """How many runs reach ``target`` within ``budget``, of how many, and the median x at which they do.

    A run that does not is censored: it counts as beyond the budget. ``median`` is when half of the runs, or the next
    more, have reached it; None if fewer ever do.
    """
    times = [c.first_reaching(target) for c in curves]
    inside = [t if t is not None and t <= budget else math.inf for t in times]
    median = sorted(inside)[(len(inside) - 1) // 2] if inside else math.inf
    reached = sum(math.isfinite(t) for t in inside)
    return {"reached": reached, "of": len(inside), "median": median if math.isfinite(median) else None}
