"""Which searchers differ: exact permutation tests, Holm's correction, compact letters, intervals of a mean.

A searcher's runs are a mapping from a stratum, (task, split, model), to one value per seed. If two searchers are the
same, the runs of both in a stratum are exchangeable, whatever their distribution: skewed, discrete, unlike from split
to split. So the test that shuffles the two labels within every stratum needs no assumption, and it calls equal
searchers different in at most alpha of all comparisons (Fisher, 1935; Pitman, 1937; Good, 2005). Over all pairs of
searchers, Holm's correction keeps the chance of even one such false alarm at alpha.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, IntArray

# Any, not Hashable: a Mapping is invariant in its key, and a dict with tuples as keys must do.
Runs: TypeAlias = Mapping[Any, Sequence[float]]

MOST = 20_000  # arrangements that are enumerated; with more of them, as many are drawn
TIE = 1e-10  # two statistics nearer than this, relative to the largest value, are equal but for rounding


# Tests


def permutation_p_value(first: Runs, second: Runs, *, seed: int = 0, most: int = MOST) -> float:
    """Two-sided p-value that the two searchers are the same: their labels are shuffled within every stratum they share.

    The statistic is |mean over strata of (mean of first's runs - mean of second's)|. Exact where there are no more than
    ``most`` arrangements of the labels, else ``most`` are drawn and p is (b + 1) / (m + 1) (Phipson & Smyth, 2010).
    A value that is not finite is an InputError: what a failed run is worth is not for a test to say.
    """
    strata = [(_values(first, s), _values(second, s)) for s in common_strata(first, second)]
    scale = max(float(np.abs(values).max()) for pair in strata for values in pair)
    observed = sum(float(a.mean() - b.mean()) for a, b in strata)
    least = abs(observed) - TIE * scale * len(strata)
    if _arrangements(first, second) <= most:
        totals = np.zeros(1)
        for a, b in strata:
            totals = np.add.outer(totals, _all_differences(a, b)).ravel()
        return float(np.mean(np.abs(totals) >= least))
    rng = np.random.Generator(np.random.PCG64(seed))
    totals = np.sum([_drawn_differences(a, b, rng, most) for a, b in strata], axis=0)
    return (int((np.abs(totals) >= least).sum()) + 1) / (most + 1)


def smallest_p_value(first: Runs, second: Runs, *, most: int = MOST) -> float:
    """The least p-value that so many runs can give, whatever their values.

    The most extreme arrangement can be the only one: 1 / arrangements. But where both searchers have equally many runs
    in every stratum, exchanging all labels gives the same difference with the other sign: 2 / arrangements.
    """
    arrangements = _arrangements(first, second)
    if arrangements > most:
        return 1 / (most + 1)
    mirrored = all(len(first[s]) == len(second[s]) for s in common_strata(first, second))
    return (2 if mirrored else 1) / arrangements


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being so many (Holm, 1979), in the order given: step-down, monotone, at most 1."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def letters(names: Sequence[str], separated: Collection[frozenset[str]]) -> dict[str, str]:
    """The compact letter display of ``names``, best first: two share a letter if and only if they are not separated.

    Insert and absorb (Piepho, 2004): what remains are the largest groups in which no two are separated. The group of
    the best is "a"; after "z" come "aa", "ab", and then commas divide the letters of a name.
    """
    groups = {frozenset(range(len(names)))}
    for i, k in itertools.combinations(range(len(names)), 2):
        if frozenset((names[i], names[k])) in separated:
            both = {group for group in groups if {i, k} <= group}
            halves = {group - {one} for group in both for one in (i, k)}
            groups -= both
            # Only a half can lie within another group: the groups before this step did not.
            groups |= {half for half in halves if not any(half < other for other in groups | halves)}
    ordered = sorted(groups, key=sorted)
    divider = "," if len(ordered) > 26 else ""
    own = [[_letter(g) for g, group in enumerate(ordered) if i in group] for i in range(len(names))]
    return {name: divider.join(mine) for name, mine in zip(names, own, strict=True)}


# Intervals


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` runs with its 95 % interval; ``over`` says which spread it is made of: splits, seeds, or none.

    ``low`` and ``high`` are None where there is no spread to see. The standard error and its degrees of freedom are
    what ``combined`` needs; JSON does not keep them.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: str
    se: float | None = field(default=None, compare=False, repr=False)
    df: float | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The JSON form: mean, ci95 ([low, high] or null), n, over."""
        ci95 = None if self.low is None else [self.low, self.high]
        return {"mean": self.mean, "ci95": ci95, "n": self.n, "over": self.over}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Interval:
        """Read the JSON form back; what is read can be shown and compared, not ``combined``."""
        low, high = form["ci95"] or (None, None)
        return cls(float(form["mean"]), low, high, int(form["n"]), form["over"])


def interval(runs: Runs) -> Interval:
    """The mean of the strata's means, where the strata are splits of one task with one model.

    With 3 or more splits, Student's t over the split means: splits are drawn at random, and seeds within a split are
    correlated. Else, where a split has 2 or more seeds, the splits are fixed: Welch's interval (Welch, 1947) of what
    the seeds vary. Else two runs, one in each of 2 splits, are t over the two; one run has no interval.
    """
    cells = [_values(runs, s) for s in common_strata(runs)]
    return _interval([float(cell.mean()) for cell in cells], cells)


def paired_difference(first: Runs, second: Runs) -> Interval:
    """The mean over the splits that both have of first's mean less second's, as ``interval``; n is the runs of both."""
    pairs = [(_values(first, s), _values(second, s)) for s in common_strata(first, second)]
    return _interval([float(a.mean() - b.mean()) for a, b in pairs], [cell for pair in pairs for cell in pair])


def combined(intervals: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """The (weighted) mean over several pairs of a task and a model, which are fixed: their errors add up as Welch's.

    No interval where one of them has none. ``over`` is the least that all can say: "splits" only if all are.
    """
    if not intervals:
        raise InputError("no intervals to combine")
    shares = np.array(weights if weights is not None else [1.0] * len(intervals), dtype=float)
    shares = shares / shares.sum()
    mean = float(shares @ [i.mean for i in intervals])
    n = sum(i.n for i in intervals)
    if any(i.low is None for i in intervals):
        return Interval(mean, None, None, n, "none")
    parts = []
    for share, each in zip(shares, intervals, strict=True):
        if each.se is None or each.df is None:
            raise InputError("an interval read from JSON has no standard error: combine before writing")
        parts.append(((share * each.se) ** 2, each.df))
    over = "splits" if all(i.over == "splits" for i in intervals) else "seeds"
    return _student(mean, *_welch(parts), n, over)


# Rankings


@dataclass(frozen=True)
class Row:
    """One searcher of a ranking: mean and mean rank over the strata that all have; searchers not separated from it."""

    name: str
    mean: float
    rank: float
    letters: str
    indistinguishable_from: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return vars(self) | {"indistinguishable_from": list(self.indistinguishable_from)}


@dataclass(frozen=True)
class Pair:
    """Two searchers on the strata that both have: first less second, p-value, Holm's, and the least p possible."""

    first: str
    second: str
    difference: Interval
    p: float
    p_holm: float
    smallest_p: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return vars(self) | {"difference": self.difference.to_json()}


@dataclass(frozen=True)
class Ranking:
    """Searchers best first, and all their pairs; ``remark`` says that so few runs could separate no pair."""

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    alpha: float
    remark: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form: rows, pairs, alpha, remark."""
        rows, pairs = [row.to_json() for row in self.rows], [pair.to_json() for pair in self.pairs]
        return {"rows": rows, "pairs": pairs, "alpha": self.alpha, "remark": self.remark}


def mean_ranks(runs_by_name: Mapping[str, Runs], *, higher_is_better: bool = True) -> dict[str, float]:
    """The mean over the strata that all have of a searcher's rank by its mean over seeds: 1 is best, ties share."""
    sign = -1.0 if higher_is_better else 1.0
    strata = common_strata(*runs_by_name.values())
    means = sign * np.array([[_values(runs, s).mean() for s in strata] for runs in runs_by_name.values()])  # (N, S)
    apart = TIE * np.abs(means).max(axis=0)
    gaps = means[:, None] - means[None]  # (N, N, S)
    ranks = (gaps > apart).sum(axis=1) + ((np.abs(gaps) <= apart).sum(axis=1) + 1) / 2
    return dict(zip(runs_by_name, ranks.mean(axis=1).tolist(), strict=True))


def compare_all(runs_by_name: Mapping[str, Runs], *, alpha: float = 0.05, higher_is_better: bool = True) -> Ranking:
    """Rank searchers by their mean over the strata that all have, and test every pair on the strata that both have.

    Two searchers are separated if Holm's p-value over all pairs is at most ``alpha``. In the interval of a difference,
    strata (task, split, model) with equal task and model are its splits; strata of another form are splits of one task.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha!r}; it must lie between 0 and 1")
    ranks = mean_ranks(runs_by_name, higher_is_better=higher_is_better)
    strata = common_strata(*runs_by_name.values())
    means = {name: float(np.mean([_values(runs, s).mean() for s in strata])) for name, runs in runs_by_name.items()}
    names = sorted(means, key=lambda name: (-means[name] if higher_is_better else means[name], ranks[name]))
    pairs = _pairs({name: runs_by_name[name] for name in names}, alpha)
    separated = {frozenset((pair.first, pair.second)) for pair in pairs if _passes(pair.p_holm, alpha)}
    shown = letters(names, separated)
    rows = []
    for name in names:
        alike = tuple(other for other in names if other != name and frozenset((name, other)) not in separated)
        rows.append(Row(name, means[name], ranks[name], shown[name], alike))
    return Ranking(tuple(rows), pairs, alpha, _too_few(runs_by_name, pairs, alpha))


def common_strata(*runs: Runs) -> list[Hashable]:
    """The strata in which all have a run, in the first's order; an InputError where there is none."""
    found: list[Hashable] = [s for s in runs[0] if all(len(each.get(s, ())) > 0 for each in runs)] if runs else []
    if not found:
        raise InputError(
            f"{len(runs)} searchers have no stratum (task, split, model) in common" if len(runs) > 1 else "no runs"
        )
    return found


def _pairs(runs_by_name: Mapping[str, Runs], alpha: float) -> tuple[Pair, ...]:
    """Every two searchers, the earlier first."""
    both = list(itertools.combinations(runs_by_name, 2))
    # Draws enough that at Holm's first step, alpha / pairs, a p-value is still a count of ten and not of none.
    most = max(MOST, math.ceil(10 * len(both) / alpha))
    found = [(runs_by_name[a], runs_by_name[b]) for a, b in both]
    p_values = [permutation_p_value(a, b, most=most) for a, b in found]
    return tuple(
        Pair(first, second, _difference(a, b), p, p_holm, smallest_p_value(a, b, most=most))
        for (first, second), (a, b), p, p_holm in zip(both, found, p_values, holm(p_values), strict=True)
    )


def _difference(first: Runs, second: Runs) -> Interval:
    """The paired difference over several tasks and models; each weighs as its number of strata, as in the test."""
    groups: dict[Hashable, list[Hashable]] = {}
    for stratum in common_strata(first, second):
        whole = isinstance(stratum, tuple) and len(stratum) == 3
        groups.setdefault((stratum[0], stratum[2]) if whole else None, []).append(stratum)  # type: ignore[index]
    within = [paired_difference({s: first[s] for s in group}, second) for group in groups.values()]
    return combined(within, [len(group) for group in groups.values()])


def _too_few(runs_by_name: Mapping[str, Runs], pairs: Sequence[Pair], alpha: float) -> str | None:
    """What it would take, where even the clearest difference could not pass Holm's first step."""
    if not pairs or any(_passes(pair.smallest_p * len(pairs), alpha) for pair in pairs):
        return None
    shared = [common_strata(runs_by_name[pair.first], runs_by_name[pair.second]) for pair in pairs]
    strata = max(len(found) for found in shared)
    seeds = min(len(runs[s]) for runs in runs_by_name.values() for s in common_strata(*runs_by_name.values()))

    def enough(seeds: int, strata: int) -> bool:
        return _passes(2 * len(pairs) / math.comb(2 * seeds, seeds) ** strata, alpha)

    more_seeds = next(n for n in itertools.count(seeds) if enough(n, strata))
    more_strata = next(n for n in itertools.count(strata) if enough(seeds, n))
    least = min(pair.smallest_p for pair in pairs)
    return (
        f"so few runs can separate no two searchers at {alpha:g}: the least p-value of a pair is {least:.3g} and there "
        f"are {len(pairs)} pairs; {strata} strata (task, split, model) need {more_seeds} seeds or more splits "
        f"({more_strata} strata with {seeds} seeds)"
    )


# Arrangements of labels


def _arrangements(first: Runs, second: Runs) -> int:
    sizes = [(len(first[s]), len(second[s])) for s in common_strata(first, second)]
    return math.prod(math.comb(a + b, a) for a, b in sizes)


@cache
def _choices(n: int, k: int) -> IntArray:
    """(C(n, k), k) every choice of k of n."""
    return np.array(list(itertools.combinations(range(n), k)))


def _all_differences(a: FloatArray, b: FloatArray) -> FloatArray:
    """(C(n1 + n2, n1),) the difference of the means for every way to give out the labels."""
    pooled = np.concatenate([a, b])
    return _difference_of_means(pooled[_choices(len(pooled), len(a))].sum(axis=1), pooled, len(a))


def _drawn_differences(a: FloatArray, b: FloatArray, rng: np.random.Generator, draws: int) -> FloatArray:
    """(draws,) the difference of the means for labels given out at random."""
    if math.comb(len(a) + len(b), len(a)) <= draws:  # a place in the list of all costs less than a shuffle
        differences = _all_differences(a, b)
        return np.asarray(differences[rng.integers(len(differences), size=draws)])
    pooled = np.concatenate([a, b])
    shuffled = rng.permuted(np.tile(pooled, (draws, 1)), axis=1)
    return _difference_of_means(shuffled[:, : len(a)].sum(axis=1), pooled, len(a))


def _difference_of_means(sums: FloatArray, pooled: FloatArray, n1: int) -> FloatArray:
    return np.asarray(sums / n1 - (pooled.sum() - sums) / (len(pooled) - n1))


# Parts of intervals


def _interval(values: Sequence[float], cells: Sequence[FloatArray]) -> Interval:
    """The interval of the mean of ``values``, one per split, made of the runs in ``cells`` (see ``interval``)."""
    mean, n = float(np.mean(values)), sum(len(cell) for cell in cells)
    if len(values) < 3 and any(len(cell) > 1 for cell in cells):
        return _student(mean, *_welch(_variances(cells, 1 / len(values))), n, "seeds")
    if len(values) > 1:
        return _student(mean, float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values) - 1, n, "splits")
    return Interval(mean, None, None, n, "none")


def _variances(cells: Sequence[FloatArray], share: float) -> list[tuple[float, float]]:
    """What each cell of two or more runs adds to the variance of a mean, and its degrees of freedom.

    A cell of one run shows no variance: it borrows the pooled one of the others, to which each of them adds its part.
    """
    spread = [cell for cell in cells if len(cell) > 1]
    alone, freedom = len(cells) - len(spread), sum(len(cell) - 1 for cell in spread)
    parts = []
    for cell in spread:
        df = len(cell) - 1
        parts.append((share**2 * float(cell.var(ddof=1)) * (1 / len(cell) + alone * df / freedom), float(df)))
    return parts


def _welch(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum with these (variance, df) (Welch, 1947; Satterthwaite, 1946)."""
    parts = list(parts)
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / df for variance, df in parts)
    return math.sqrt(total), total**2 / below if below > 0 else math.inf


def _student(mean: float, se: float, df: float, n: int, over: str) -> Interval:
    """Student's 95 % interval; where nothing varies, it is the mean itself."""
    from scipy.special import stdtrit

    half = se * float(stdtrit(df, 0.975)) if se > 0 else 0.0
    return Interval(mean, mean - half, mean + half, n, over, se, df)


def _values(runs: Runs, stratum: Hashable) -> FloatArray:
    """(seeds,) the values of a stratum, which must be numbers."""
    values = np.asarray(runs[stratum], dtype=float)
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise InputError(f"a run of stratum {stratum!r} has the value {bad}: leave it out, or give it a finite value")
    return values


def _passes(p: float, alpha: float) -> bool:
    """p <= alpha, but for rounding: 3 times 1/60 is to pass 0.05."""
    return p <= alpha * (1 + 1e-12)


def _letter(index: int) -> str:
    """a to z, aa, ab, ..."""
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + chr(ord("a") + last)
