"""Significance against scipy, plain enumeration, a bootstrap, and simulations whose truth is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from rayprompt.comparison import significance
from rayprompt.comparison.significance import (
    Interval,
    Runs,
    combined,
    compare_all,
    holm,
    interval,
    letters,
    mean_ranks,
    paired_difference,
    permutation_p_value,
    smallest_p_value,
)
from rayprompt.errors import InputError

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def strata(values: np.ndarray) -> Runs:
    """The runs of one task and one model from (splits, seeds)."""
    return {("task", f"split-{i}", "lm"): row.tolist() for i, row in enumerate(values)}


def enumerated(first: Runs, second: Runs) -> float:
    """The p-value by the definition, in whole numbers where the values are: no rounding, no numpy."""
    shared = [s for s in first if s in second]

    def labelled(stratum: object) -> list[float]:
        pooled, n1 = [*first[stratum], *second[stratum]], len(first[stratum])
        found = []
        for chosen in itertools.combinations(range(len(pooled)), n1):
            rest = [v for i, v in enumerate(pooled) if i not in chosen]
            found.append(sum(pooled[i] for i in chosen) / n1 - sum(rest) / len(rest))
        return found

    totals = [abs(sum(parts)) for parts in itertools.product(*map(labelled, shared))]
    return sum(total >= totals[0] - 1e-9 for total in totals) / len(totals)


# The permutation test


@pytest.mark.parametrize(("n1", "n2"), [(3, 3), (4, 4), (2, 5), (6, 3)])
def test_one_stratum_equals_scipy(n1: int, n2: int) -> None:
    from scipy.stats import permutation_test

    rng = generator(n1 * 10 + n2)
    a, b = rng.normal(0.5, 1, n1), rng.normal(0, 1, n2)
    # scipy's own two-sided p doubles the smaller tail; the statistic |difference| has one tail.
    found = permutation_test(
        (a, b), lambda x, y, axis: np.abs(x.mean(axis) - y.mean(axis)), vectorized=True, n_resamples=np.inf,
        alternative="greater",
    )  # fmt: skip
    p = permutation_p_value({"s": a.tolist()}, {"s": b.tolist()})
    assert p == pytest.approx(found.pvalue, abs=1e-12)
    assert 0 < p < 1


@pytest.mark.parametrize("kind", ["normal", "accuracy", "unbalanced"])
def test_several_strata_equal_plain_enumeration(kind: str) -> None:
    rng = generator(7)
    for _ in range(6):
        first, second = {}, {}
        for s in range(3):
            n1, n2 = (int(rng.integers(1, 4)), int(rng.integers(1, 4))) if kind == "unbalanced" else (3, 3)
            values = rng.normal(size=n1 + n2)
            if kind == "accuracy":  # many ties, and sums that differ by rounding only
                values = rng.integers(12, 16, size=n1 + n2) / 30
            first[s], second[s] = values[:n1].tolist(), values[n1:].tolist()
        first["only the first has it"] = [9.0]
        assert permutation_p_value(first, second) == pytest.approx(enumerated(first, second), abs=1e-12)
        assert permutation_p_value(second, first) == pytest.approx(permutation_p_value(first, second), abs=1e-12)


def test_monte_carlo_agrees_with_enumeration_and_is_deterministic() -> None:
    rng = generator(3)
    values = rng.normal(size=(2, 3, 3))
    values[0] += 0.7
    first, second = strata(values[0]), strata(values[1])
    exact = permutation_p_value(first, second)
    # 8,000 arrangements: at 7,999 a place in each stratum's list of 20 is drawn.
    listed = permutation_p_value(first, second, most=7_999)
    assert listed == permutation_p_value(first, second, most=7_999)
    assert listed != permutation_p_value(first, second, most=7_999, seed=1)
    assert listed == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 7_999))


@pytest.mark.parametrize(("n1", "n2"), [(4, 7), (6, 5)])
def test_shuffled_labels_agree_with_enumeration(n1: int, n2: int) -> None:
    values = 10 + generator(n1).normal(size=n1 + n2)
    first, second = {"s": (values[:n1] + 0.4).tolist()}, {"s": values[n1:].tolist()}
    exact = permutation_p_value(first, second)
    assert 0.02 < exact < 0.98
    # 199 draws are fewer than the choices of n1 labels, so that labels are shuffled.
    shuffled = [permutation_p_value(first, second, most=199, seed=seed) for seed in range(100)]
    # (b + 1) / (m + 1) is high by (1 - p) / (m + 1) on average
    error = math.sqrt(exact * (1 - exact) / (199 * 100))
    assert np.mean(shuffled) == pytest.approx((199 * exact + 1) / 200, abs=4 * error)
    assert min(shuffled) >= 1 / 200


def test_many_runs_are_shuffled() -> None:
    rng = generator(4)
    first = strata(rng.normal(0.0, 1, (2, 20)))
    assert permutation_p_value(first, strata(rng.normal(2.0, 1, (2, 20)))) == 1 / 20_001
    assert permutation_p_value(first, strata(rng.normal(0.0, 1, (2, 20)))) > 0.05


def test_identical_runs_are_not_different() -> None:
    same = {"s": [0.1, 0.2, 0.3], "t": [0.7, 0.7, 0.7]}
    assert permutation_p_value(same, same) == 1.0
    assert permutation_p_value(same, {"s": [0.3, 0.1, 0.2], "t": [0.7] * 3}, most=10) == 1.0
    assert permutation_p_value({"s": [0.0]}, {"s": [0.0]}) == 1.0


def test_smallest_p_value_is_that_of_complete_separation() -> None:
    cases = [[(3, 3)], [(1, 1)], [(2, 2), (2, 2)], [(1, 2)], [(3, 2)], [(2, 2), (1, 2)], [(1, 3), (3, 1)], [(1, 1)] * 4]
    for sizes in cases:
        # Far apart and skewed: the few of the smaller side lie furthest from the mean of all.
        rng = generator(len(sizes))
        first, second = {}, {}
        for s, (n1, n2) in enumerate(sizes):
            sign = 1 if n1 <= n2 else -1
            far, near = (100 + rng.normal(size=min(n1, n2)), rng.normal(size=max(n1, n2)))
            first[s], second[s] = (far, near) if n1 <= n2 else (sign * near, sign * far)
        least = smallest_p_value(first, second)
        assert least == pytest.approx(enumerated(first, second)), sizes
        arrangements = math.prod(math.comb(a + b, a) for a, b in sizes)
        assert least == (2 if all(a == b for a, b in sizes) else 1) / arrangements
        # and nothing gives less
        for _ in range(20):
            drawn = [{s: rng.normal(size=size[side]) for s, size in enumerate(sizes)} for side in (0, 1)]
            assert permutation_p_value(*drawn) >= least - 1e-12
    assert smallest_p_value({"s": [0.0] * 20}, {"s": [1.0] * 20}) == 1 / 20_001


def test_what_is_no_number_or_not_shared_is_an_error() -> None:
    with pytest.raises(InputError, match="2 searchers have no stratum .* in common"):
        permutation_p_value({"s": [1.0]}, {"t": [1.0], "s": []})
    for call in (permutation_p_value, paired_difference):
        with pytest.raises(InputError, match="stratum 's' has the value nan"):
            call({"s": [1.0, math.nan]}, {"s": [1.0]})
    with pytest.raises(InputError, match="value inf"):
        interval({"s": [math.inf]})
    with pytest.raises(InputError, match="no runs"):
        interval({"s": []})
    with pytest.raises(InputError, match="alpha is 5"):
        compare_all({"a": {"s": [1.0]}}, alpha=5)
    with pytest.raises(InputError):
        compare_all({})


# Simulations with a known truth: values (repetitions, splits, seeds) of one searcher, given the splits' own level


def skewed(rng: np.random.Generator, splits: int, seeds: int) -> np.ndarray:
    return 1 - rng.exponential(0.2, (splits, seeds)) ** 2


def discrete(rng: np.random.Generator, splits: int, seeds: int) -> np.ndarray:
    return rng.binomial(32, 0.85, (splits, seeds)) / 32


def heavy(rng: np.random.Generator, splits: int, seeds: int) -> np.ndarray:
    return rng.standard_t(2, (splits, seeds))


def by_split(rng: np.random.Generator, splits: int, seeds: int) -> np.ndarray:
    """Level and spread are the split's, and the same for every searcher."""
    shared = generator(11)
    level, spread = shared.uniform(0.3, 0.9, (splits, 1)), shared.exponential(0.3, (splits, 1))
    return np.clip(level + spread * rng.normal(size=(splits, seeds)), 0, 1)


def slack(rate: float, n: int) -> float:
    """A rate that a count of n tops with a probability below 1 in 1,000."""
    from scipy.stats import binom

    return float(binom.ppf(0.999, n, rate)) / n


@pytest.mark.parametrize("draw", [skewed, discrete, heavy, by_split])
def test_two_equal_searchers_are_called_different_in_at_most_5_percent(draw: Draw) -> None:
    rng, n = generator(21), 2_000
    p = np.array([permutation_p_value(strata(draw(rng, 2, 4)), strata(draw(rng, 2, 4))) for _ in range(n)])
    assert (p <= 0.05).mean() <= slack(0.05, n)
    assert (p <= 0.25).mean() <= slack(0.25, n)
    assert (p <= 0.25).mean() > 0.12  # and the test is no mere refusal


@pytest.mark.parametrize("draw", [skewed, discrete, by_split])
def test_four_equal_searchers_are_told_apart_in_at_most_5_percent(draw: Draw) -> None:
    rng, n = generator(31), 600
    false_alarms = 0
    for _ in range(n):
        found = compare_all({name: strata(draw(rng, 3, 3)) for name in "wxyz"})
        assert found.remark is None
        false_alarms += any(row.letters != "a" for row in found.rows)
    assert false_alarms / n <= slack(0.05, n)


def test_a_large_handicap_is_found_and_a_small_one_more_often_with_more_seeds() -> None:
    rng = generator(41)

    def power(handicap: float, seeds: int) -> float:
        p = [
            permutation_p_value(strata(by_split(rng, 3, seeds)), strata(by_split(rng, 3, seeds) - handicap), most=2_000)
            for _ in range(60)
        ]
        return float(np.mean(np.array(p) <= 0.05))

    assert power(1.0, 3) > 0.95
    assert power(0.0, 3) < 0.2
    assert power(0.25, 3) < power(0.25, 10)
    assert power(0.25, 10) > 0.6


# Holm


def test_holm_by_hand() -> None:
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which may not fall below 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = generator(5)
    for _ in range(100):
        p = rng.beta(0.3, 2, size=int(rng.integers(1, 9)))
        adjusted = np.array(holm(p.tolist()))
        for alpha in (0.01, 0.05, 0.2):
            rejected = set()
            for step, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (len(p) - step):
                    break
                rejected.add(int(i))
            assert rejected == set(np.flatnonzero(adjusted <= alpha).tolist())
        assert (adjusted >= p).all()
        assert (adjusted <= 1).all()


# Letters


def test_letters_by_hand() -> None:
    assert letters(["x", "y", "z"], []) == {"x": "a", "y": "a", "z": "a"}
    assert letters(["x", "y", "z"], [frozenset("xz")]) == {"x": "a", "y": "ab", "z": "b"}
    all_pairs = [frozenset(pair) for pair in itertools.combinations("xyz", 2)]
    assert letters(["y", "x", "z"], all_pairs) == {"y": "a", "x": "b", "z": "c"}


def test_two_share_a_letter_if_and_only_if_they_are_not_separated() -> None:
    rng = generator(6)
    for _ in range(200):
        names = [f"n{i}" for i in range(int(rng.integers(1, 9)))]
        pairs = [frozenset(pair) for pair in itertools.combinations(names, 2)]
        separated = {pair for pair in pairs if rng.random() < rng.choice([0.2, 0.5, 0.8])}
        shown = letters(names, separated)
        assert "a" in shown[names[0]]
        assert all(shown.values())
        for pair in pairs:
            one, other = pair
            assert bool(set(shown[one]) & set(shown[other])) == (pair not in separated)
        groups = [{name for name in names if letter in shown[name]} for letter in set("".join(shown.values()))]
        assert not any(one < other for one in groups for other in groups)  # no letter says what another does
        used = sorted(set("".join(shown.values())))
        assert used == [chr(ord("a") + i) for i in range(len(used))]


def test_letters_after_z() -> None:
    names = [f"n{i:02}" for i in range(30)]
    shown = letters(names, {frozenset(pair) for pair in itertools.combinations(names, 2)})
    assert [shown[name] for name in (names[0], names[25], names[26], names[29])] == ["a", "z", "aa", "ad"]
    shared = letters(names, {frozenset(pair) for pair in itertools.combinations(names[:29], 2)})
    assert shared["n29"].split(",")[-3:] == ["aa", "ab", "ac"]  # like no searcher's "aaabac"


# Intervals


def bounds(found: Interval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_three_splits_are_students_t_over_split_means() -> None:
    from scipy.stats import ttest_1samp

    values = generator(1).normal(size=(5, 4))
    found = interval(strata(values))
    expected = ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert bounds(found) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.n, found.over) == (pytest.approx(values.mean()), 20, "splits")


def test_one_split_is_students_t_over_seeds() -> None:
    from scipy.stats import ttest_1samp

    values = generator(2).normal(size=(1, 6))
    expected = ttest_1samp(values[0], 0).confidence_interval(0.95)
    found = interval(strata(values))
    assert bounds(found) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.over) == (6, "seeds")


def test_two_splits_are_welchs_over_seeds() -> None:
    from scipy.stats import ttest_ind

    rng = generator(3)
    a, b = rng.normal(1, 0.2, 4), rng.normal(2, 1, 7)
    # The mean of two splits is half of a - (-b).
    expected = ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    found = interval({"s": a.tolist(), "t": b.tolist()})
    assert bounds(found) == pytest.approx((expected.low / 2, expected.high / 2))
    assert (found.n, found.over) == (11, "seeds")


def test_few_runs() -> None:
    from scipy.stats import ttest_1samp, ttest_ind

    expected = ttest_1samp([0.4, 0.8], 0).confidence_interval(0.95)
    found = interval({"s": [0.4], "t": [0.8]})
    assert bounds(found) == pytest.approx((expected.low, expected.high))
    assert found.over == "splits"
    assert interval({"s": [0.4]}) == Interval(0.4, None, None, 1, "none")
    assert bounds(interval({"s": [0.4, 0.4]})) == (0.4, 0.4)
    # A cell of one run borrows the other's variance: what Student's pooled t does with one value against three.
    expected = ttest_ind([1.0, 2.0, 4.0], [7.0], equal_var=True).confidence_interval(0.95)
    assert bounds(paired_difference({"s": [1.0, 2.0, 4.0]}, {"s": [7.0]})) == pytest.approx(
        (expected.low, expected.high)
    )


def test_paired_differences_equal_scipy() -> None:
    from scipy.stats import ttest_ind, ttest_rel

    rng = generator(4)
    a, b = rng.normal(1, 0.2, 5), rng.normal(2, 1, 4)
    welch = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = paired_difference({"s": a.tolist()}, {"s": b.tolist(), "only the second has it": [5.0]})
    assert bounds(found) == pytest.approx((welch.low, welch.high))
    assert (found.n, found.over) == (9, "seeds")
    many, other = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    paired = ttest_rel(many.mean(axis=1), other.mean(axis=1)).confidence_interval(0.95)
    found = paired_difference(strata(many), strata(other))
    assert bounds(found) == pytest.approx((paired.low, paired.high))
    assert (found.n, found.over) == (20, "splits")


def test_combined_tasks_are_fixed() -> None:
    from scipy.stats import ttest_ind

    rng = generator(5)
    a, b = rng.normal(1, 0.2, 5), rng.normal(2, 1, 4)
    one, other = interval({"s": a.tolist()}), interval({"s": b.tolist()})
    expected = ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    both = combined([one, other])
    assert bounds(both) == pytest.approx((expected.low / 2, expected.high / 2))
    assert (both.n, both.over) == (9, "seeds")
    assert bounds(combined([one])) == pytest.approx(bounds(one))
    assert combined([one, other], [3, 1]).mean == pytest.approx((3 * a.mean() + b.mean()) / 4)
    assert combined([one, other], [1, 1]).low == both.low
    unknown = combined([one, interval({"s": [0.5]})])
    assert (unknown.mean, unknown.low, unknown.n, unknown.over) == (
        pytest.approx((a.mean() + 0.5) / 2),
        None,
        6,
        "none",
    )
    splits = interval(strata(rng.normal(size=(3, 2))))
    assert combined([splits, splits]).over == "splits"
    assert combined([splits, one]).over == "seeds"
    still = interval({"s": [0.4, 0.4]})
    assert bounds(combined([still, still])) == (0.4, 0.4)


def test_interval_json() -> None:
    for found in (interval({"s": [0.25, 0.5]}), interval({"s": [0.25]})):
        form = json.loads(json.dumps(found.to_json()))
        assert list(form) == ["mean", "ci95", "n", "over"]
        assert Interval.from_json(form) == found
    with pytest.raises(InputError, match="combine before writing"):
        combined([Interval.from_json(interval({"s": [0.25, 0.5]}).to_json())])
    with pytest.raises(InputError, match="no intervals"):
        combined([])


def test_many_seeds_agree_with_the_bootstrap() -> None:
    rng = generator(8)
    values = [1 - rng.exponential(0.1, 200), rng.binomial(32, 0.7, 300) / 32]
    means = sum(v[rng.integers(len(v), size=(4_000, len(v)))].mean(axis=1) for v in values) / 2
    low, high = np.percentile(means, [2.5, 97.5])
    found = interval({"s": values[0].tolist(), "t": values[1].tolist()})
    assert bounds(found) == pytest.approx((low, high), abs=0.1 * (high - low))
    differences = paired_difference({"s": values[0].tolist()}, {"s": values[1].tolist()})
    first, second = (v[rng.integers(len(v), size=(4_000, len(v)))].mean(axis=1) for v in values)
    low, high = np.percentile(first - second, [2.5, 97.5])
    assert bounds(differences) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_intervals_hold_the_truth_in_95_percent() -> None:
    rng, n = generator(9), 1_000
    # Splits differ more than seeds do: an interval over the 12 runs as if independent would miss it far more often.
    drawn = [rng.normal(0.5, 1, (4, 1)) + rng.normal(0, 0.3, (4, 3)) for _ in range(n)]
    found = [interval(strata(values)) for values in drawn]
    assert np.mean([bounds(f)[0] <= 0.5 <= bounds(f)[1] for f in found]) == pytest.approx(0.95, abs=0.025)
    fixed = [interval({"s": rng.normal(0, 1, 4).tolist(), "t": rng.normal(1, 0.2, 4).tolist()}) for _ in range(n)]
    assert np.mean([bounds(f)[0] <= 0.5 <= bounds(f)[1] for f in fixed]) == pytest.approx(0.95, abs=0.025)


# Rankings


def test_mean_ranks_by_hand() -> None:
    runs = {
        "x": {"s": [0.1, 0.2], "t": [0.9], "u": [1.0]},
        "y": {"s": [0.15, 0.15], "t": [0.5]},
        "z": {"s": [0.0, 0.1], "t": [0.7]},
    }
    # s: x and y tie at 1.5 (0.1 + 0.2 rounds unlike 0.15 + 0.15), z 3; t: x 1, z 2, y 3; u is not shared
    assert mean_ranks(runs) == {"x": 1.25, "y": 2.25, "z": 2.5}
    assert mean_ranks(runs, higher_is_better=False) == {"x": 2.75, "y": 1.75, "z": 1.5}


def test_mean_ranks_equal_scipy() -> None:
    from scipy.stats import rankdata

    values = generator(10).integers(0, 4, (6, 9)) / 7
    found = mean_ranks({str(i): {s: [v] for s, v in enumerate(row.tolist())} for i, row in enumerate(values)})
    assert list(found.values()) == pytest.approx(rankdata(-values, axis=0).mean(axis=1))


def test_compare_all_by_hand() -> None:
    rng = generator(12)
    level = {"worst": 0.0, "best": 1.0, "good": 0.99}
    runs = {name: strata(mean + rng.normal(0, 0.05, (2, 4))) for name, mean in level.items()}
    found = compare_all(runs)
    assert [row.letters for row in found.rows] == ["a", "a", "b"]
    assert found.rows[2].name == "worst"
    assert found.rows[2].indistinguishable_from == ()
    assert found.rows[0].indistinguishable_from == (found.rows[1].name,)
    assert [row.mean for row in found.rows] == sorted((row.mean for row in found.rows), reverse=True)
    assert found.rows[2].rank == 3
    assert {(pair.first, pair.second) for pair in found.pairs} >= {("best", "worst"), ("good", "worst")}
    for pair in found.pairs:
        assert pair.p == permutation_p_value(runs[pair.first], runs[pair.second])
        assert pair.difference == paired_difference(runs[pair.first], runs[pair.second])
        assert pair.smallest_p == 2 / math.comb(8, 4) ** 2
    assert [pair.p_holm for pair in found.pairs] == holm([pair.p for pair in found.pairs])
    assert found.remark is None
    form = json.loads(json.dumps(found.to_json()))
    assert form["rows"][2]["indistinguishable_from"] == []
    assert form["pairs"][0]["difference"]["ci95"] is not None
    lower = compare_all(runs, higher_is_better=False)
    assert [row.name for row in lower.rows] == [row.name for row in found.rows][::-1]
    assert lower.rows[0].letters == "a"


def test_differences_over_tasks_are_the_statistic_of_the_test() -> None:
    rng = generator(13)
    first = {("t1", s, "lm"): rng.normal(size=3).tolist() for s in range(3)} | {("t2", 0, "lm"): [1.0, 2.0]}
    second = {stratum: rng.normal(size=2).tolist() for stratum in first}
    (pair,) = compare_all({"x": first, "y": second}).pairs
    gaps = [np.mean(first[s]) - np.mean(second[s]) for s in first]
    assert abs(pair.difference.mean) == pytest.approx(abs(np.mean(gaps)))
    assert pair.difference.over == "seeds"  # of t2 only the seeds' spread is seen
    assert pair.difference.n == 19


def test_the_remark_says_what_would_do() -> None:
    far = {name: {"s": [level, level + 0.1, level + 0.2]} for name, level in zip("wxyz", (0, 1, 2, 3), strict=True)}
    found = compare_all(far)
    assert {row.letters for row in found.rows} == {"a"}
    assert found.remark is not None
    # 6 pairs: C(6, 3) gives 2/20 x 6 = 0.6; C(10, 5) gives 2/252 x 6 = 0.048; 20 ** 2 gives 2/400 x 6 = 0.03
    assert "1 strata (task, split, model) need 5 seeds or more splits (2 strata with 3 seeds)" in found.remark
    for runs in (
        {name: {"s": [level + 0.1 * i for i in range(5)]} for name, level in zip("wxyz", range(4), strict=True)},
        {name: {"s": values["s"], "t": values["s"]} for name, values in far.items()},
    ):
        enough = compare_all(runs)
        assert enough.remark is None
        assert [row.letters for row in enough.rows] == ["a", "b", "c", "d"]
    assert compare_all({"x": {"s": [1.0]}}).remark is None
    one_each = compare_all({name: {s: [float(level)] for s in range(5)} for level, name in enumerate("xy")}).remark
    assert one_each is not None
    assert "6 strata with 1 seeds" in one_each


def test_a_ranking_of_many_is_not_held_back_by_monte_carlo() -> None:
    names = [f"n{i}" for i in range(3)]
    runs = {name: {s: [100.0 * i + k for k in range(3)] for s in range(6)} for i, name in enumerate(names)}
    found = compare_all(runs, alpha=1e-4)  # 3 pairs: 3 / 20,001 would be above alpha
    assert [row.letters for row in found.rows] == ["a", "b", "c"]
    assert significance.MOST == 20_000
