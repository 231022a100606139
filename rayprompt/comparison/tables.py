"""Tables of a comparison: means with intervals, ranks with tests, curves, costs, evaluations to a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import TYPE_CHECKING, Any

from rayprompt.comparison.curves import Curve, grid_of, mean_curve, reaching
from rayprompt.comparison.outcome import STOPPED, BaselineOutcome, RunOutcome
from rayprompt.comparison.significance import Interval, Ranking, Row, combined, compare_all, interval
from rayprompt.errors import InputError, unknown

if TYPE_CHECKING:
    from rayprompt.comparison.plan import Run as PlannedRun

ALPHA = 0.05
POINTS = 20  # of a curve's grid
EVALUATIONS, SECONDS, OBJECTIVE, SCORE = 0, 1, 2, 3  # columns of a run's curve
TARGETS = {"best_score": SCORE, "best_objective": OBJECTIVE}
Value = Callable[[RunOutcome], float]
Runs = dict[tuple[str, str, str], list[float]]


@dataclass(frozen=True)
class Prices:
    """What scoring costs, in any currency: ``per_hour`` of one scorer's device, ``per_million_tokens`` of LM input."""

    per_hour: float | None = None
    per_million_tokens: float | None = None

    def of(self, device_seconds: float, tokens: float) -> float | None:
        """The price of a search; None where no price is given."""
        if self.per_hour is None and self.per_million_tokens is None:
            return None
        return device_seconds / 3600 * (self.per_hour or 0.0) + tokens / 1e6 * (self.per_million_tokens or 0.0)


def tables_of(
    runs: Sequence[RunOutcome],
    baselines: Sequence[BaselineOutcome],
    *,
    budget: int,
    reference: str,
    target: tuple[str, float] | None = None,
    prices: Prices | None = None,
    alpha: float = ALPHA,
    failed: Sequence[PlannedRun] = (),
) -> tuple[dict[str, Any], ...]:
    """One table for each task and LM, and an overall one where there are several.

    Args:
        runs, baselines: what was measured.
        budget: of each run.
        reference: the searcher whose result is the target, where none is given.
        target: ``best_score`` or ``best_objective``, and the value to be reached.
        prices: of scoring.
        alpha: level of the tests, all pairs of a table together (Holm).
        failed: runs that have no outcome. They are in no mean, so the tables say how many there are.
    """
    pairs = list(dict.fromkeys((run.task, run.model) for run in runs))
    tables = []
    for task, model in pairs:
        mine = [run for run in runs if (run.task, run.model) == (task, model)]
        others = [b for b in baselines if (b.task, b.model) == (task, model)]
        table = _table(task, model, mine, others, budget, reference, target, prices or Prices(), alpha)
        lost = [run for run in failed if (run.stratum[0], run.stratum[2]) == (task, model)]
        tables.append(_with_failed(table, mine, lost))
    if len(pairs) > 1:
        mine = [r for task, model in pairs for r in chosen([r for r in runs if (r.task, r.model) == (task, model)])]
        overall = _with_failed(_overall(mine, baselines, pairs, alpha), mine, failed)
        tables += [overall] if overall["rows"] else []
    return tuple(tables)


def chosen(runs: Sequence[RunOutcome]) -> list[RunOutcome]:
    """The runs of one configuration of each searcher: the one with the best mean on dev.

    Of a searcher with several configurations that one stands for it, in the test, too. Configurations that were run
    to their end come first; of equal ones the earlier.
    """
    kept: list[RunOutcome] = []
    for group in dict.fromkeys(run.group for run in runs):
        ours = [run for run in runs if run.group == group]
        labels = list(dict.fromkeys(run.searcher for run in ours))
        most = max(_count(ours, label) for label in labels)

        def merit(label: str, ours: list[RunOutcome] = ours, most: int = most) -> tuple[bool, bool, float]:
            own = [run for run in ours if run.searcher == label]
            whole = all(run.end != STOPPED for run in own)
            return _count(ours, label) == most, whole, sum(run.dev.value for run in own) / len(own)

        best = max(labels, key=merit)
        kept += [run for run in ours if run.searcher == best]
    return kept


def parse_target(text: str | float | None) -> tuple[str, float] | None:
    """``0.95`` (of best_score) or ``best_objective=-0.3``.

    Raises:
        InputError: no such measure, or not a number.
    """
    if text is None:
        return None
    name, _, value = str(text).rpartition("=")
    name = name or "best_score"
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    try:
        number = float(value)
        if math.isfinite(number):
            return name, number
        raise ValueError
    except ValueError:
        raise InputError(f"--target {text}: must be a number, or NAME=NUMBER with {' or '.join(TARGETS)}") from None


def _with_failed(table: dict[str, Any], runs: Sequence[RunOutcome], failed: Sequence[PlannedRun]) -> dict[str, Any]:
    """The table with the number of ``failed`` runs of each row; ``without_runs`` are searchers that have no other."""
    stands = {run.group: run.searcher for run in chosen(runs)}
    for row in table["rows"]:
        label = stands[row["searcher"]]
        row["failed"] = sum((run.entry.group, run.entry.label) == (row["searcher"], label) for run in failed)
    missing = dict.fromkeys(run.entry.group for run in failed if run.entry.group not in stands)
    table["without_runs"] = [
        {"searcher": group, "failed": sum(run.entry.group == group for run in failed)} for group in missing
    ]
    return table


def _count(runs: Sequence[RunOutcome], label: str) -> int:
    return sum(run.searcher == label for run in runs)


def _table(
    task: str,
    model: str,
    every: Sequence[RunOutcome],
    baselines: Sequence[BaselineOutcome],
    budget: int,
    reference: str,
    target: tuple[str, float] | None,
    prices: Prices,
    alpha: float,
) -> dict[str, Any]:
    runs = chosen(every)
    groups = _groups(runs)
    same_objective = len({run.objective for run in runs}) == 1
    places = _places(groups, ranked(groups, _test, alpha))
    measures: dict[str, Value] = {"dev": lambda run: run.dev.value, "score": lambda run: run.best_score}
    if same_objective:
        measures["objective"] = lambda run: run.best_objective
    reference = reference if reference in groups else next(iter(groups))
    aim = target or _aim(groups[reference], "best_objective" if same_objective else "best_score")
    starts = [float(run.curve[0][EVALUATIONS]) for run in runs]
    rows = []
    for name, place in places.items():
        ours = groups[name]
        row: dict[str, Any] = {
            **_place(ours, place),
            "configuration": _configuration(ours),
            "test": mean_of(ours, lambda run: run.test.value, share=True),
            "test_top3": mean_of(ours, lambda run: run.top_mean, share=True),
            "test_decoded": _decoded(ours),
            **{key: mean_of(ours, value, share=key != "objective") for key, value in measures.items()},
            "area_score": mean_of(ours, _area(SCORE, budget, max(starts)), share=True),
            "to_target": reaching([curve_of(run, TARGETS[aim[0]]) for run in ours], aim[1], budget),
            "cost": _cost(ours, [run for run in every if run.group == name], baselines, prices),
        }
        if same_objective:
            row["area_objective"] = mean_of(ours, _area(OBJECTIVE, budget, max(starts)))
        rows.append(row)
    return {
        "task": task,
        "model": model,
        "metric": runs[0].test.metric,
        "objective": runs[0].objective if same_objective else None,
        "splits": list(dict.fromkeys(run.split for run in runs)),
        "target": {"measure": aim[0], "value": aim[1], "from": "given" if target else reference},
        "rows": rows,
        "baselines": _baseline_rows(baselines, runs[0].objective if same_objective else None),
        "tests": {
            key: found.to_json()
            for key, value in {"test": _test, **measures}.items()
            if key != "dev" and (found := ranked(groups, value, alpha)) is not None
        },
        "configurations": _configurations(every, runs),
        "curves": _curves(groups, same_objective),
    }


def _overall(
    runs: Sequence[RunOutcome],
    baselines: Sequence[BaselineOutcome],
    pairs: Sequence[tuple[str, str]],
    alpha: float,
) -> dict[str, Any]:
    """Means over tasks and LMs, all of the same weight, and one test over all splits of them."""
    groups = _groups(runs)
    wanted = {run.stratum for run in runs}
    groups = {name: ours for name, ours in groups.items() if {run.stratum for run in ours} == wanted}
    ranking = ranked(groups, _test, alpha)
    measures: dict[str, Value] = {
        "test": _test,
        "test_top3": lambda run: run.top_mean,
        "dev": lambda run: run.dev.value,
        "score": lambda run: run.best_score,
    }

    def over(ours: Sequence[Any], value: Callable[[Any], float]) -> dict[str, Any]:
        parts = [[run for run in ours if (run.task, run.model) == pair] for pair in pairs]
        return _cut(combined([interval(by_stratum(part, value)) for part in parts]).to_json())

    rows = [
        {**_place(groups[name], place), **{key: over(groups[name], value) for key, value in measures.items()}}
        for name, place in _places(groups, ranking).items()
    ]
    return {
        "task": None,
        "model": None,
        "pairs": [list(pair) for pair in pairs],
        "splits_of_pairs": [len({s for s in wanted if (s[0], s[2]) == pair}) for pair in pairs],
        "metric": ", ".join(dict.fromkeys(run.test.metric for run in runs)),
        "rows": sorted(rows, key=lambda row: -row["test"]["mean"]),
        "baselines": [
            {
                "name": name,
                "white_box": any(b.white_box for b in baselines if b.name == name),
                "test": over([b for b in baselines if b.name == name], _test),
            }
            for name in dict.fromkeys(b.name for b in baselines)
            if {b.stratum for b in baselines if b.name == name} == wanted
        ],
        "tests": {} if ranking is None else {"test": ranking.to_json()},
    }


def _test(run: Any) -> float:
    return float(run.test.value)


def _groups(runs: Sequence[RunOutcome]) -> dict[str, list[RunOutcome]]:
    return {group: [run for run in runs if run.group == group] for group in dict.fromkeys(run.group for run in runs)}


def _places(groups: Mapping[str, Sequence[RunOutcome]], ranking: Ranking | None) -> dict[str, Row | None]:
    """Searchers and their places, best first; behind them those that lack a split or more, and so have none."""
    places: dict[str, Row | None] = {} if ranking is None else {row.name: row for row in ranking.rows}
    return places | {name: None for name in groups if name not in places}


def _place(runs: Sequence[RunOutcome], place: Row | None) -> dict[str, Any]:
    """Where a searcher stands; without a place where runs of it have failed on a whole split."""
    return {
        "searcher": runs[0].group,
        "runs": len(runs),
        "stopped": sum(run.end == STOPPED for run in runs),
        "rank": None if place is None else place.rank,
        "letters": "" if place is None else place.letters,
        "indistinguishable_from": [] if place is None else list(place.indistinguishable_from),
    }


def ranked(groups: Mapping[str, Sequence[RunOutcome]], value: Value, alpha: float) -> Ranking | None:
    """Searchers with runs on every split ranked by a value, every pair tested; None where no searcher has them all."""
    wanted = {run.stratum for ours in groups.values() for run in ours}
    whole = {name: ours for name, ours in groups.items() if {run.stratum for run in ours} == wanted}
    return compare_all({name: by_stratum(ours, value) for name, ours in whole.items()}, alpha=alpha) if whole else None


def by_stratum(runs: Sequence[Any], value: Callable[[Any], float]) -> Runs:
    """(task, split, model) -> a value of each run there, in the order of the runs."""
    found: Runs = {}
    for run in runs:
        found.setdefault(run.stratum, []).append(value(run))
    return found


def mean_of(runs: Sequence[Any], value: Callable[[Any], float], *, share: bool = False) -> dict[str, Any]:
    """The mean over splits and seeds of one task and LM, with its interval, in JSON form.

    ``share``: of a value from 0 to 1; Student's interval of few runs may reach beyond, and is cut there.
    """
    return _cut(interval(by_stratum(runs, value)).to_json()) if share else interval(by_stratum(runs, value)).to_json()


def _cut(form: dict[str, Any]) -> dict[str, Any]:
    ci95 = form["ci95"]
    return form if ci95 is None else {**form, "ci95": [max(0.0, ci95[0]), min(1.0, ci95[1])]}


def curve_of(run: RunOutcome, column: int, x: int = EVALUATIONS) -> Curve:
    """A column of a run's curve against evaluations or seconds."""
    return step_curve([(row[x], row[column]) for row in run.curve])


def dev_curve_of(run: RunOutcome, x: int = EVALUATIONS) -> Curve:
    """The dev metric of a run's best by objective."""
    return step_curve([(row[x], row[2]) for row in run.dev_curve])


def step_curve(points: Sequence[tuple[float, float]]) -> Curve:
    """Points whose x grows; of several at one x the last."""
    last: dict[float, float] = {}
    for x, y in points:
        last[max(x, max(last, default=x))] = y
    return Curve(list(last), list(last.values()))  # type: ignore[arg-type]  # made arrays there


def _aim(runs: Sequence[RunOutcome], measure: str) -> tuple[str, float]:
    """What the reference reaches in the end, in half of its runs or more."""
    return measure, median_high(getattr(run, measure) for run in runs)


def _area(column: int, budget: int, start: float) -> Value:
    return lambda run: curve_of(run, column).area(budget, start)


def _configuration(ours: Sequence[RunOutcome]) -> dict[str, Any] | None:
    """Which of several configurations stands for a searcher, and its settings."""
    if ours[0].searcher == ours[0].group:
        return None
    return {"label": ours[0].searcher, "settings": dict(ours[0].settings)}


def _configurations(every: Sequence[RunOutcome], mine: Sequence[RunOutcome]) -> list[dict[str, Any]]:
    """All configurations of the searchers that have several, the best on dev first."""
    rows = []
    for label in dict.fromkeys(run.searcher for run in every if run.searcher != run.group):
        ours = [run for run in every if run.searcher == label]
        rows.append(
            {
                "searcher": ours[0].group,
                "label": label,
                "settings": dict(ours[0].settings),
                "runs": len(ours),
                "stopped": sum(run.end == STOPPED for run in ours),
                "evaluations": sum(run.evaluations for run in ours),
                "dev": mean_of(ours, lambda run: run.dev.value, share=True),
                "score": mean_of(ours, lambda run: run.best_score, share=True),
                "stands_for_it": any(run.searcher == label for run in mine),
            }
        )
    return sorted(rows, key=lambda row: (row["searcher"], -row["dev"]["mean"]))


def _decoded(runs: Sequence[RunOutcome]) -> dict[str, Any] | None:
    return mean_of(runs, _decoded_test, share=True) if all(run.decoded is not None for run in runs) else None


def _decoded_test(run: RunOutcome) -> float:
    assert run.decoded is not None
    return float(run.decoded["value"])


def _cost(
    runs: Sequence[RunOutcome], every: Sequence[RunOutcome], baselines: Sequence[BaselineOutcome], prices: Prices
) -> dict[str, Any]:
    """Means over the runs; of a searcher with several configurations the sum of theirs, for all had to be run.

    ``break_even``: uses after which a search has paid for itself in tokens, against a baseline: the tokens of the
    search over those that each use saves. None where the baseline's prompt is not longer.
    """
    names = ("evaluations", "candidates", "lm_evaluations", "tokens", "device_seconds", "own_seconds", "seconds")
    cost: dict[str, Any] = {name: sum(getattr(run, name) for run in every) / len(runs) for name in names}
    per_use = sum(run.tokens_per_use for run in runs) / len(runs)
    breaks: dict[str, float | None] = {}
    for name in dict.fromkeys(b.name for b in baselines if not b.white_box):
        theirs = by_stratum([b for b in baselines if b.name == name], lambda b: b.tokens_per_use)
        saved = [
            sum(theirs[r.stratum]) / len(theirs[r.stratum]) - r.tokens_per_use for r in runs if r.stratum in theirs
        ]
        mean = sum(saved) / len(saved) if saved else 0.0
        breaks[name] = cost["tokens"] / mean if mean > 0 else None
    return {
        **cost,
        "price": prices.of(cost["device_seconds"], cost["tokens"]),
        "tokens_per_use": per_use,
        "break_even": breaks,
    }


def _baseline_rows(baselines: Sequence[BaselineOutcome], objective: str | None) -> list[dict[str, Any]]:
    """A row for each name; ``objective`` is that of the table, which tuning has a figure for if it is the same."""
    rows = []
    for name in dict.fromkeys(b.name for b in baselines):
        ours = [b for b in baselines if b.name == name]
        rows.append(
            {
                "name": name,
                "white_box": ours[0].white_box,
                "runs": len(ours),
                "test": _one_or_mean(ours, lambda b: b.test),
                "dev": _one_or_mean(ours, lambda b: b.dev),
                "objective": mean_of(ours, _minus_loss) if _tuned_on(ours, objective) else None,
                "tokens_per_use": sum(b.tokens_per_use for b in ours) / len(ours),
                "passes": sum(b.passes for b in ours) / len(ours),
                "seconds": sum(b.seconds for b in ours) / len(ours),
            }
        )
    return rows


def _tuned_on(baselines: Sequence[BaselineOutcome], objective: str | None) -> bool:
    return objective == "cross_entropy" and all(b.train_loss is not None for b in baselines)


def _minus_loss(baseline: BaselineOutcome) -> float:
    assert baseline.train_loss is not None
    return -baseline.train_loss


def _one_or_mean(baselines: Sequence[BaselineOutcome], estimate: Callable[[BaselineOutcome], Any]) -> dict[str, Any]:
    """A prompt that was measured once has the interval of its examples; several have that of splits or seeds."""
    if len(baselines) == 1:
        one = estimate(baselines[0])
        return {"mean": one.value, "ci95": list(one.ci95), "n": 1, "over": "examples"}
    return mean_of(baselines, lambda b: estimate(b).value, share=True)


def _curves(groups: Mapping[str, Sequence[RunOutcome]], same_objective: bool) -> dict[str, Any]:
    """Mean curves of every searcher on grids that all share: over evaluations, and over the searches' own seconds."""
    measures: dict[str, Callable[[RunOutcome, int], Curve]] = {"best_score": lambda run, x: curve_of(run, SCORE, x)}
    if same_objective:
        measures["best_objective"] = lambda run, x: curve_of(run, OBJECTIVE, x)
    measures["dev"] = dev_curve_of
    everyone = [run for ours in groups.values() for run in ours]
    found: dict[str, Any] = {}
    for axis, x in (("evaluations", EVALUATIONS), ("seconds", SECONDS)):
        grid = grid_of([curve_of(run, SCORE, x) for run in everyone], POINTS)
        found[axis] = {
            group: {
                name: [point.to_json() for point in mean_curve(_strata(ours, curve, x), grid)]
                for name, curve in measures.items()
            }
            for group, ours in groups.items()
        }
    return found


def _strata(
    runs: Sequence[RunOutcome], curve: Callable[[RunOutcome, int], Curve], x: int
) -> dict[tuple[str, str, str], list[Curve]]:
    found: dict[tuple[str, str, str], list[Curve]] = {}
    for run in runs:
        found.setdefault(run.stratum, []).append(curve(run, x))
    return found


__all__ = ["ALPHA", "Interval", "Prices", "chosen", "parse_target", "tables_of"]
