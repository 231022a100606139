"""Curves against sums on a fine grid and counts by hand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from rayprompt.comparison.curves import Curve, grid_of, mean_curve, reaching
from rayprompt.comparison.significance import interval
from rayprompt.errors import InputError


def curve(x: list[float], y: list[float]) -> Curve:
    return Curve(np.array(x), np.array(y))


def random_curves(n: int, seed: int = 0) -> list[Curve]:
    rng = np.random.Generator(np.random.PCG64(seed))
    found = []
    for _ in range(n):
        x = np.sort(rng.choice(np.arange(1, 100), size=int(rng.integers(1, 12)), replace=False))
        found.append(Curve(x, np.maximum.accumulate(rng.random(len(x)))))
    return found


def test_a_step_holds_from_its_x_on() -> None:
    found = curve([2, 5], [0.4, 0.9]).at([0, 1.999, 2, 4.999, 5, 100])
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.4, 0.4, 0.9, 0.9])


def test_a_best_so_far_stays_monotone() -> None:
    for each in random_curves(20):
        values = each.at(np.linspace(0, 120, 500))
        assert (np.diff(values[~np.isnan(values)]) >= 0).all()
        assert values[-1] == each.y[-1]


def test_area_equals_a_fine_riemann_sum() -> None:
    for each in random_curves(30):
        for start, until in ((0, 120), (30, 60), (30.5, 31.25), (0, 99)):
            begin = max(start, each.x[0])
            if until <= begin:
                continue
            fine = np.linspace(begin, until, 20_001)
            middle = (fine[1:] + fine[:-1]) / 2
            assert each.area(until, start) == pytest.approx(each.at(middle).mean(), abs=1e-3)


def test_area_by_hand() -> None:
    each = curve([2, 5], [0.4, 0.9])
    assert each.area(10) == pytest.approx((3 * 0.4 + 5 * 0.9) / 8)
    assert each.area(10, start=4) == pytest.approx((1 * 0.4 + 5 * 0.9) / 6)
    assert each.area(4) == pytest.approx(0.4)
    assert each.area(2) == 0.4
    assert math.isnan(each.area(1))
    assert each.area(8, start=8) == 0.9


def test_first_reaching() -> None:
    each = curve([2, 5, 7], [0.4, 0.9, 0.9])
    assert each.first_reaching(0.1) == 2
    assert each.first_reaching(0.9) == 5
    assert each.first_reaching(0.91) is None


def test_what_is_no_curve_is_an_error() -> None:
    for x, y in (([1, 1], [0, 0]), ([2, 1], [0, 0]), ([1], [0, 0]), ([], []), ([1], [math.nan]), ([math.inf], [0])):
        with pytest.raises(InputError):
            curve(x, y)
    with pytest.raises(InputError, match="no curves"):
        grid_of([])


def test_the_grid_begins_where_all_have_a_value() -> None:
    found = grid_of([curve([1, 50], [0, 1]), curve([10, 20], [0, 1])], points=5)
    np.testing.assert_allclose(found, [10, 20, 30, 40, 50])
    assert grid_of([curve([3], [1])]).tolist() == [3]


def test_mean_curve_is_the_interval_at_every_point() -> None:
    curves = random_curves(6, seed=2)
    by_split = {("t", 0, "lm"): curves[:2], ("t", 1, "lm"): curves[2:4], ("t", 2, "lm"): curves[4:], ("t", 3, "lm"): []}
    grid = grid_of(curves, points=7)
    found = mean_curve(by_split, grid)
    assert [point.x for point in found] == grid.tolist()
    for point in found:
        runs = {s: [float(c.at(point.x)) for c in each] for s, each in by_split.items() if each}
        assert point.value == interval(runs)
        assert point.value.over == "splits"
    assert all(a.value.mean <= b.value.mean for a, b in itertools.pairwise(found))
    form = json.loads(json.dumps(found[0].to_json()))
    assert list(form) == ["x", "mean", "ci95", "n", "over"]
    # Before the latest first x one run has no value: no mean over the others.
    assert [point.x for point in mean_curve(by_split, [grid[0] - 0.5, grid[0]])] == [grid[0]]


def test_reaching_counts_the_censored_as_beyond_the_budget() -> None:
    runs = [curve([1, at], [0.0, 1.0]) for at in (10, 20, 40)]
    never = curve([1], [0.0])
    assert reaching(runs, 0.5, 100) == {"reached": 3, "of": 3, "median": 20.0}
    assert reaching([*runs, never], 0.5, 100) == {"reached": 3, "of": 4, "median": 20.0}
    assert reaching([*runs, never, never], 0.5, 100) == {"reached": 3, "of": 5, "median": 40.0}
    assert reaching([*runs, never], 0.5, 20) == {"reached": 2, "of": 4, "median": 20.0}
    assert reaching([*runs, never], 0.5, 19) == {"reached": 1, "of": 4, "median": None}
    assert reaching([], 0.5, 19) == {"reached": 0, "of": 0, "median": None}
