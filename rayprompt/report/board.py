"""What can be compared with what: runs of one task and LM side by side, a row for each searcher, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rayprompt.comparison.curves import Curve, Point, mean_curve
from rayprompt.comparison.significance import Interval, Ranking, compare_all, interval
from rayprompt.comparison.tables import EVALUATIONS, OBJECTIVE, SCORE, SECONDS, by_stratum, step_curve
from rayprompt.report.model import Baseline, Run, Stratum, Study
from rayprompt.study.statistics import Estimate

POINTS = 40  # of a curve
ENOUGH = 2  # runs of a searcher, to be held against another's


@dataclass(frozen=True)
class Row:
    """A searcher with its settings and budget.

    Attributes:
        runs: those that count: of a searcher whose settings Tune drew, of the configuration that stands for it.
        test, dev, train: means over the runs, or of one run the estimate itself; None where there is none yet.
        letters: searchers that share one cannot be told apart; empty where nothing was tested.
        table: its row in the comparison's own table, where that is all there is.
    """

    name: str
    runs: tuple[Run, ...]
    test: Interval | None
    dev: Interval | None
    train: Interval | None
    letters: str = ""
    table: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluations(self) -> float:
        """Mean over the runs."""
        return sum(run.evaluations for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class Series:
    """A line of a chart: ``points`` are means with intervals, over ``runs`` runs; ``index`` is that of its row."""

    name: str
    points: tuple[Point, ...]
    runs: int
    index: int = 0


@dataclass(frozen=True)
class Chart:
    """Lines over one x, on one grid; ``levels`` are constant: name -> height."""

    measure: str
    label: str
    x_label: str
    series: tuple[Series, ...]
    levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arena:
    """One task and LM, and all runs on them that can be compared.

    Attributes:
        title: task and LM; with the study's name where another arena has the same.
        digests: split -> digest of task and LM.
        rows: best first.
        remarks: what limits the comparison.
        table: the comparison's own, where the arena is one comparison's.
    """

    task: str
    model: str
    digests: Mapping[str, str]
    studies: tuple[Study, ...]
    runs: tuple[Run, ...]
    baselines: tuple[Baseline, ...]
    title: str = ""
    rows: tuple[Row, ...] = ()
    remarks: tuple[str, ...] = ()
    table: Mapping[str, Any] = field(default_factory=dict)
    ranking: Mapping[str, Any] | None = None

    @property
    def metric(self) -> str:
        """The task's."""
        found = [e.metric for run in self.runs for e in (run.test, run.train) if e is not None]
        return found[0] if found else "score"

    @property
    def best(self) -> Run | None:
        """The run whose winner is best on dev; test has no say. None where dev was opened for none."""
        return next((run for run in by_dev(self.runs) if run.dev is not None), None)

    def baseline(self, name: str, split: str) -> Baseline | None:
        """The first of that name on a split."""
        return next((b for b in self.baselines if b.name == name and b.split == split), None)


def by_dev(runs: Sequence[Run]) -> list[Run]:
    """The runs, best on dev first; of equal ones the best on train, by metric and by objective, then the earlier."""

    def merit(run: Run) -> tuple[float, ...]:
        values = (run.dev.value if run.dev else -math.inf, run.best_score, run.best_objective)
        return tuple(value if math.isfinite(value) else -math.inf for value in values)

    return sorted(runs, key=merit, reverse=True)


def arenas_of(studies: Sequence[Study]) -> tuple[list[Arena], list[str]]:
    """The arenas, and why some studies do not stand in one."""
    found: list[Arena] = []
    notes = []
    for study in studies:
        for task, model in dict.fromkeys((run.task, run.model) for run in study.runs):
            runs = tuple(run for run in study.runs if (run.task, run.model) == (task, model))
            baselines = tuple(b for b in study.baselines if (b.task, b.model) == (task, model))
            digests = {run.split: run.digest for run in runs}
            same = [i for i, a in enumerate(found) if (a.task, a.model) == (task, model)]
            fits = [i for i in same if all(found[i].digests.get(s, d) == d for s, d in digests.items())]
            if fits:
                was = found[fits[0]]
                found[fits[0]] = replace(
                    was, digests={**was.digests, **digests}, studies=(*was.studies, study), runs=was.runs + runs,
                    baselines=was.baselines + tuple(b for b in baselines if not _has(was, b)),
                )  # fmt: skip
                continue
            if same:
                notes.append(
                    f"{study.name} is not comparable with {found[same[0]].studies[0].name} on {task}, {model}: the "
                    "task's examples, template or label words, the LM or how it is run are others"
                )
            found.append(Arena(task, model, digests, (study,), runs, baselines))
    if len(found) > 1 and len(studies) > 1:
        pairs = dict.fromkeys(f"{a.task}, {a.model}" for a in found)
        if len(pairs) > 1:
            notes.append(f"figures of different tasks or LMs are not comparable: {'; '.join(pairs)}")
    titles = [(a.task, a.model) for a in found]
    return [_filled(a, titles.count((a.task, a.model)) > 1) for a in found], notes


def _has(arena: Arena, baseline: Baseline) -> bool:
    """Whether the same prompt stands there already: it was measured by several studies."""
    return any((b.name, b.stratum, b.test) == (baseline.name, baseline.stratum, baseline.test) for b in arena.baselines)


def _filled(arena: Arena, ambiguous: bool) -> Arena:
    """The arena with its rows."""
    title = f"{arena.task}, {arena.model}" + (f" ({arena.studies[0].name})" if ambiguous else "")
    alone = arena.studies[0] if len(arena.studies) == 1 else None
    tables = () if alone is None else alone.tables
    table = next((t for t in tables if (t["task"], t["model"]) == (arena.task, arena.model)), None)
    if table is not None:
        rows = [_of_table(form, arena.runs) for form in table["rows"]]
        return replace(arena, title=title, rows=tuple(rows), table=table, ranking=table["tests"].get("test"))
    rows, remarks = _pooled(arena)
    ranking = _ranked(rows)
    if ranking is not None:
        letters = {row.name: row.letters for row in ranking.rows}
        rows = [replace(row, letters=letters.get(row.name, "")) for row in rows]
    form = None if ranking is None else ranking.to_json()
    return replace(arena, title=title, rows=tuple(rows), remarks=tuple(remarks), ranking=form)


def _of_table(form: Mapping[str, Any], runs: Sequence[Run]) -> Row:
    """A row of a comparison's own table."""
    label = (form.get("configuration") or {}).get("label")
    ours = tuple(
        run
        for run in runs
        if run.group == form["searcher"] and label in (None, run.searcher) and run.winner is not None
    )
    test, dev, train = (Interval.from_json(form[name]) for name in ("test", "dev", "score"))
    if len(ours) == 1:
        test, dev = (found or mean for found, mean in ((of_one(ours[0].test), test), (of_one(ours[0].dev), dev)))
    return Row(form["searcher"], ours, test, dev, train, letters=form["letters"], table=form)


def _pooled(arena: Arena) -> tuple[list[Row], list[str]]:
    """Rows over several studies, or over one that has no table: runs that differ in their seeds alone are one's."""
    remarks = []
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in arena.runs:
        key = (run.searcher, run.budget, json.dumps(dict(run.settings), sort_keys=True, default=str), run.objective)
        ours = groups.setdefault(key, [])
        twin = next((r for r in ours if (r.split, r.seed) == (run.split, run.seed)), None)
        if twin is None:
            ours.append(run)
        else:
            remarks.append(
                f"{run.study}/{run.name} is the same search as {twin.study}/{twin.name} (searcher, settings, budget, "
                "seed): it counts once"
            )
    labels = [key[0] for key in groups]
    rows = []
    for key, ours in groups.items():
        label = key[0]
        if labels.count(label) > 1:
            budgets = {k[1] for k in groups if k[0] == label}
            named = ", ".join(dict.fromkeys(run.study for run in ours))
            label += f" ({key[1]:,} evaluations)" if len(budgets) == labels.count(label) else f" ({named})"
        whole = [run for run in ours if run.dev is not None]
        if 0 < len(whole) < len(ours):
            remarks.append(
                f"{label}: dev and test are means over {len(whole)} of {len(ours)} runs; the others have none"
            )
        rows.append(
            Row(
                label,
                tuple(ours),
                _mean(whole, lambda run: run.test),
                _mean(whole, lambda run: run.dev),
                _mean_value([run for run in ours if math.isfinite(run.best_score)], lambda run: run.best_score),
            )
        )
    if len({run.budget for run in arena.runs}) > 1:
        remarks.append("the budgets are not equal: the curves compare the searchers at equal evaluations")
    if len({run.split for run in arena.runs}) > 1 and len(arena.studies) > 1:
        splits = {row.name: {run.split for run in row.runs} for row in rows}
        if len({frozenset(s) for s in splits.values()}) > 1:
            remarks.append("the searchers were not run on the same splits: their means are over different ones")
    unknown = float("-inf")
    rows.sort(key=lambda row: (-(row.test.mean if row.test else unknown), -(row.train.mean if row.train else unknown)))
    return rows, remarks


def _ranked(rows: Sequence[Row]) -> Ranking | None:
    """Tests of every pair, where every searcher has runs enough on the same splits, with the same budget."""
    if len(rows) < 2 or any(row.test is None for row in rows) or len({run.budget for r in rows for run in r.runs}) > 1:
        return None
    values = {row.name: by_stratum(row.runs, lambda run: run.test.value) for row in rows if _whole(row)}
    if len(values) < len(rows) or len({frozenset(v) for v in values.values()}) > 1:
        return None
    if min(len(seeds) for strata in values.values() for seeds in strata.values()) < ENOUGH:
        return None
    return compare_all(values)


def _whole(row: Row) -> bool:
    return all(run.test is not None for run in row.runs)


def of_one(estimate: Estimate | None) -> Interval | None:
    """The interval of one measured prompt is that of its examples."""
    return None if estimate is None else of_examples(estimate)


def of_examples(estimate: Estimate) -> Interval:
    """A measured prompt with the interval of its examples."""
    low, high = estimate.ci95
    return Interval(estimate.value, low, high, estimate.n, "examples")


def _mean(runs: Sequence[Run], of: Callable[[Run], Any]) -> Interval | None:
    runs = [run for run in runs if of(run) is not None]
    if len(runs) == 1:
        return of_one(of(runs[0]))
    return _mean_value(runs, lambda run: float(of(run).value))


def _mean_value(runs: Sequence[Run], value: Callable[[Run], float]) -> Interval | None:
    """The mean over runs of a share, with the interval of splits or seeds, cut at 0 and 1."""
    if not runs:
        return None
    found = interval(by_stratum(runs, value))
    if found.low is None or found.high is None:
        return found
    return Interval(found.mean, max(0.0, found.low), min(1.0, found.high), found.n, found.over)


# Curves


def charts_of(arena: Arena) -> list[Chart]:
    """Best objective and best score on train, and dev, over evaluations; and the score over the searches' seconds."""
    evaluations = "evaluations: distinct pairs of candidate and train example"
    objectives = {run.objective for row in arena.rows for run in row.runs}
    charts = []
    if len(objectives) == 1 and arena.metric not in objectives:
        name = next(iter(objectives))
        charts.append(
            Chart(
                "objective",
                f"best {name} on train",
                evaluations,
                _series(arena, _column(OBJECTIVE, EVALUATIONS), share=False),
            )
        )
    charts.append(
        Chart("score", f"best {arena.metric} on train", evaluations, _series(arena, _column(SCORE, EVALUATIONS)))
    )
    levels = {name: value for name in ("manual", "empty") if (value := _level(arena, name)) is not None}
    charts.append(
        Chart("dev", f"dev {arena.metric} of the best by objective", evaluations, _series(arena, _dev), levels)
    )
    seconds = "seconds of the search alone: asking, telling, and one scorer's work"
    charts.append(Chart("seconds", f"best {arena.metric} on train", seconds, _series(arena, _column(SCORE, SECONDS))))
    return [chart for chart in charts if chart.series]


def _level(arena: Arena, name: str) -> float | None:
    """The dev of a baseline, mean over the splits."""
    values = [b.dev.value for b in arena.baselines if b.name == name]
    return sum(values) / len(values) if values else None


def _column(column: int, x: int) -> Callable[[Run], list[tuple[float, float]]]:
    return lambda run: [(row[x], row[column]) for row in run.curve]


def _dev(run: Run) -> list[tuple[float, float]]:
    return [(row[EVALUATIONS], row[2]) for row in run.dev_curve]


def _series(
    arena: Arena, points: Callable[[Run], list[tuple[float, float]]], *, share: bool = True
) -> tuple[Series, ...]:
    """A line for each row whose runs have a curve, all on one grid. It ends where the last of its runs did; of runs
    that have not ended, where the first of them stands.

    ``share``: intervals of values from 0 to 1 are cut there.
    """
    curves: dict[str, dict[Stratum, list[Curve]]] = {}
    ends: dict[str, dict[bool, list[float]]] = {}
    for row in arena.rows:
        for run in row.runs:
            known = [(x, y) for x, y in points(run) if math.isfinite(x) and math.isfinite(y)]
            if not known:
                continue
            curve = step_curve(known)
            curves.setdefault(row.name, {}).setdefault(run.stratum, []).append(curve)
            ends.setdefault(row.name, {}).setdefault(bool(run.end), []).append(float(curve.x[-1]))
    every = [curve for strata in curves.values() for listed in strata.values() for curve in listed]
    if not every:
        return ()
    last = {name: min(at[False]) if False in at else max(at[True]) for name, at in ends.items()}
    grid = np.unique(np.concatenate([curve.x for curve in every]))
    if len(grid) > POINTS:
        grid = np.union1d(np.linspace(grid[0], grid[-1], POINTS), list(last.values()))
    places = {row.name: i for i, row in enumerate(arena.rows)}
    found = []
    for name, strata in curves.items():
        means = [point for point in mean_curve(strata, grid) if point.x <= last[name]]
        if means:
            runs = sum(map(len, strata.values()))
            found.append(Series(name, tuple(map(_cut, means)) if share else tuple(means), runs, places[name]))
    return tuple(found)


def _cut(point: Point) -> Point:
    low, high = point.value.low, point.value.high
    if low is None or high is None:
        return point
    return Point(point.x, replace(point.value, low=max(0.0, low), high=min(1.0, high)))
