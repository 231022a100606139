"""The sections of a report on one task and LM: what was found, the leaderboard, the curves, the cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rayprompt.comparison.significance import Interval
from rayprompt.report.board import Arena, Row, charts_of, of_examples
from rayprompt.report.charts import figure, number, short, whisker
from rayprompt.report.markup import Markup, join, tag
from rayprompt.report.model import Baseline, Prompt, Run

Cell = Any  # text, markup, or (shown, value to sort by)
COSTS = {
    "evaluations": "evaluations",
    "lm_evaluations": "LM evaluations",
    "tokens": "tokens",
    "device_seconds": "device s",
    "own_seconds": "own s",
    "seconds": "wall s",
    "tokens_per_use": "tokens a use",
}


def table(
    caption: str,
    head: Sequence[str | tuple[str, str]],
    bodies: Iterable[Iterable[Sequence[Cell]]],
    *,
    sorted_by: int | None = None,
    class_: str | None = None,
) -> Markup:
    """A table that the script makes sortable, in a container that scrolls on its own.

    ``head`` has names, or names with what they mean. A cell is text, or what is shown with the value it sorts by.
    The first cell of a row names it. Each of ``bodies`` is sorted by itself; the first comes sorted by column
    ``sorted_by``, highest first.
    """
    names = [(name, None) if isinstance(name, str) else name for name in head]
    cells = [
        tag("th", name, scope="col", title=title, aria_sort="descending" if i == sorted_by else None)
        for i, (name, title) in enumerate(names)
    ]
    parts = [tag("tbody", [tag("tr", _cells(row)) for row in body]) for body in bodies]
    whole = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", cells)), parts, class_=f"sortable {class_ or ''}"
    )
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cells(row: Sequence[Cell]) -> Iterable[Markup]:
    for i, cell in enumerate(row):
        shown, value = cell if isinstance(cell, tuple) else (cell, None)
        numeric = isinstance(value, int | float)
        known = value if not numeric or math.isfinite(value) else None
        kind = "n" if numeric or (value is None and isinstance(cell, tuple)) else None
        if i == 0:
            yield tag("th", shown, scope="row", data_v=known)
        else:
            yield tag("td", shown, class_=kind, data_v=f"{known:.8g}" if numeric and known is not None else known)


def figures(value: float | None, digits: int = 3) -> tuple[str, float | None]:
    """A number as a cell."""
    return ("", None) if value is None or not math.isfinite(value) else (number(value, digits), value)


def count(value: float | None) -> tuple[str, float | None]:
    """A count as a cell."""
    return ("", None) if value is None or not math.isfinite(value) else (f"{value:,.0f}", value)


def bracket(ci95: Sequence[float | None] | None) -> str:
    """An interval, [low, high]; empty where there is none."""
    if ci95 is None or ci95[0] is None or ci95[1] is None:
        return ""
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]"


def prompt_text(prompt: Prompt) -> Markup:
    """A prompt, and of a soft one what can be said of it."""
    if prompt.text is None:
        about = f"soft prompt, {prompt.length} tokens, ‖z‖ {prompt.norm:.3g}"
        near = (
            tag("span", "nearest words: ", tag("q", prompt.near, class_="text"), class_="near") if prompt.near else None
        )
        return tag("span", tag("span", about, class_="soft"), " ", tag("code", prompt.key[:8]), near)
    if not prompt.text:
        return tag("span", "(empty prompt)", class_="quiet")
    return tag("span", prompt.text, class_="text")


# What was found


def found(arena: Arena) -> Markup:
    """The first screen: the best prompt, its test, and what it is better than."""
    best = arena.best
    if best is None or best.winner is None or best.test is None:
        return _so_far(arena)
    manual, empty = (arena.baseline(name, best.split) for name in ("manual", "empty"))
    test = best.test
    gains = []
    for name, baseline in (("manual", manual), ("empty", empty)):
        if baseline is not None:
            gain = test.value - baseline.test.value
            p = f", p\u00a0=\u00a0{best.p_manual:.2g}" if name == "manual" and best.p_manual is not None else ""
            p += f" ({best.p_test})" if p and best.p_test else ""
            gains.append(tag("li", tag("strong", f"{gain:+.3f}"), f" against the {name} prompt{p}"))
    several = len(arena.runs) > 1
    where = f", split {best.split}" if len({run.split for run in arena.runs}) > 1 else ""
    by = f"found by {best.searcher}, seed {best.seed}{where}" + ("; the best on dev of all runs" if several else "")
    if manual is not None and test.value <= manual.test.value:
        gains.append(
            tag("li", "Nothing better than the manual prompt was found: more train and dev examples may help.")
        )
    left = tag(
        "div",
        tag("p", "Best prompt, picked on dev", class_="kicker"),
        tag("blockquote", prompt_text(best.winner)),
        tag("p", by, class_="quiet"),
        class_="what",
    )
    right = tag(
        "div",
        tag("p", f"Test {test.metric}", class_="kicker"),
        tag("p", f"{test.value:.3f}", class_="big"),
        tag("p", f"95 % interval {bracket(test.ci95)}, {test.n:,} examples", class_="quiet"),
        tag("ul", gains, class_="gains"),
        class_="how",
    )
    return tag("div", left, right, _forest(arena, best), class_="found")


def _forest(arena: Arena, best: Run) -> Markup:
    """The best prompt and the baselines of its split, one under the other."""
    lines: list[tuple[str, Interval, str]] = []
    if best.test is not None:
        lines.append(("best prompt", of_examples(best.test), "best"))
    if best.decoded is not None:
        lines.append(("the same as text", of_examples(best.decoded), ""))
    for name in dict.fromkeys(b.name for b in arena.baselines):
        ours = [b for b in arena.baselines if (b.name, b.split) == (name, best.split)]
        if ours:
            label = f"{name}{', white box' if ours[0].white_box else ' prompt'}"
            lines.append((label + ("" if len(ours) == 1 else f", mean of {len(ours)}"), _mean_of(ours), ""))
    edges = [edge for _, e, _ in lines for edge in (e.mean, e.low, e.high) if edge is not None]
    rows = [
        tag(
            "li",
            tag("span", name, class_="who"),
            whisker(e, min(edges), max(edges), None),
            tag("span", f"{e.mean:.3f} ", tag("span", bracket((e.low, e.high)), class_="quiet"), class_="value"),
            class_=kind or None,
        )
        for name, e, kind in lines
    ]
    return tag("ul", rows, class_="forest", aria_label="Test, with 95 % intervals of the examples")


def _mean_of(baselines: Sequence[Baseline]) -> Interval:
    """One prompt has the interval of its examples; the mean of several has none here."""
    if len(baselines) == 1:
        return of_examples(baselines[0].test)
    return Interval(sum(b.test.value for b in baselines) / len(baselines), None, None, len(baselines), "none")


def _so_far(arena: Arena) -> Markup:
    """Of what has not come to dev and test yet."""
    running = [run for run in arena.runs if math.isfinite(run.best_score)]
    best = max(running, key=lambda run: run.best_score, default=None)
    spent, whole = sum(run.evaluations for run in arena.runs), sum(run.budget for run in arena.runs)
    facts: list[Markup | None] = [
        tag("p", "Not finished", class_="kicker"),
        tag("p", f"{spent:,} of {whole:,} evaluations; dev and test have not been opened.", class_="lead"),
    ]
    if best is not None:
        prompt = best.finalists[0].prompt if best.finalists else None
        quoted = None if prompt is None else tag("blockquote", prompt_text(prompt))
        score = f"{best.best_score:.3f} {arena.metric} on train so far: what was searched on flatters."
        facts += [quoted, tag("p", f"{score} By {best.searcher}, seed {best.seed}.", class_="quiet")]
    return tag("div", tag("div", facts, class_="what"), class_="found unfinished")


# Leaderboard


def leaderboard(arena: Arena) -> Markup:
    """A row for each searcher, the baselines below, and what the tests say."""
    shown = [row for row in arena.rows if row.test is not None]
    edges = [e for row in shown if row.test for e in (row.test.mean, row.test.low, row.test.high) if e is not None]
    for baseline in map(_mean_of, ([b for b in arena.baselines if b.name == name] for name in _names(arena))):
        edges += [e for e in (baseline.mean, baseline.low, baseline.high) if e is not None]
    low, high = min(edges, default=0.0), max(edges, default=1.0)
    manual = [b.test.value for b in arena.baselines if b.name == "manual"]
    level = sum(manual) / len(manual) if manual else None
    extra = any(row.table for row in arena.rows)
    head: list[str | tuple[str, str]] = [
        "searcher",
        (f"test {arena.metric}", "of the prompts that dev picked, mean over the runs"),
        ("95 %", "interval of the mean; of one run that of the test examples"),
        ("", "the interval; the line is the manual prompt"),
        *([("letters", "searchers that share a letter cannot be told apart")] if _lettered(arena) else []),
        ("dev", "of the prompts that dev picked"),
        ("train", f"best {arena.metric} on train: what was searched on flatters"),
        *([("3 best", "test of the three best on dev, as papers give it")] if extra else []),
        *([("area", "mean height of the curve of the objective")] if extra else []),
        *([("to target", "evaluations until the target is reached (runs that reach it)")] if extra else []),
        "runs",
        "evaluations",
    ]
    searchers = [_row(row, arena, extra, (low, high, level)) for row in arena.rows]
    others = [_baseline_row(name, arena, len(head), (low, high, level)) for name in _names(arena)]
    if not shown:  # dev and test are closed: what was searched on comes next to the name
        at = [i for i, cell in enumerate(head) if i not in (1, 2, 3) and cell[0] != "dev"]
        head, searchers = [head[i] for i in at], [[row[i] for i in at] for row in searchers]
    board = table(f"Leaderboard: {arena.title}", head, [searchers, others], sorted_by=1, class_="board")
    return join([board, tag("ul", [tag("li", line) for line in _verdicts(arena)], class_="remarks")])


def _lettered(arena: Arena) -> bool:
    return any(row.letters for row in arena.rows)


def _names(arena: Arena) -> list[str]:
    return list(dict.fromkeys(b.name for b in arena.baselines))


def _row(row: Row, arena: Arena, extra: bool, scale: tuple[float, float, float | None]) -> list[Cell]:
    test = row.test
    drawn = "" if test is None else whisker(test, *scale)
    form: Mapping[str, Any] = row.table
    more: list[Cell] = []
    if extra:
        area = form.get("area_objective") or form.get("area_score") or {}
        reached = form.get("to_target") or {}
        median = reached.get("median")
        shown = f"{'-' if median is None else f'{median:,.0f}'} ({reached.get('reached', 0)}/{reached.get('of', 0)})"
        more = [figures((form.get("test_top3") or {}).get("mean")), figures(area.get("mean")), (shown, median)]
    ended = sum(bool(run.winner) for run in row.runs)
    runs = f"{len(row.runs)}" if ended == len(row.runs) else f"{ended} of {len(row.runs)} closed"
    return [
        tag("bdi", row.name),
        figures(None if test is None else test.mean),
        ("", None) if test is None else (bracket((test.low, test.high)), test.low),
        drawn,
        *([row.letters] if _lettered(arena) else []),
        figures(row.dev.mean if row.dev else None),
        figures(row.train.mean if row.train else None),
        *more,
        (runs, float(ended)),
        count(row.evaluations),
    ]


def _baseline_row(name: str, arena: Arena, width: int, scale: tuple[float, float, float | None]) -> list[Cell]:
    ours = [b for b in arena.baselines if b.name == name]
    dev = sum(b.dev.value for b in ours) / len(ours)
    value = _mean_of(ours)
    label = f"{name} ({'white box, ' if ours[0].white_box else ''}baseline)"
    cells: list[Cell] = [
        tag("span", label, class_="quiet"),
        figures(value.mean),
        (bracket((value.low, value.high)), value.low),
        whisker(value, *scale),
        *([""] if _lettered(arena) else []),
        figures(dev),
    ]
    return [*cells, *[("", None)] * (width - len(cells))]


def _verdicts(arena: Arena) -> list[str]:
    """What follows from the table, and what does not."""
    lines = list(arena.remarks)
    ranking = arena.ranking
    if ranking is not None and ranking["pairs"]:
        apart = [p for p in ranking["pairs"] if p["p_holm"] <= ranking["alpha"]]
        for pair in apart[:12]:
            size = f"{pair['difference']['mean']:+.3f} {bracket(pair['difference']['ci95'])}".strip()
            lines.append(
                f"{pair['first']} is better than {pair['second']} on test: {size}, p = {pair['p_holm']:.2g} (Holm)"
            )
        if len(apart) > 12:
            lines.append(f"and {len(apart) - 12} more pairs differ: they are in comparison.json")
        if len(apart) < len(ranking["pairs"]):
            lines.append("searchers that share a letter cannot be told apart (permutation tests, Holm, 5 %)")
    elif len([row for row in arena.rows if row.test is not None]) > 1:
        lines.append("nothing was tested: it takes two seeds of each searcher, on the same splits, at equal budgets")
    target = arena.table.get("target")
    if target:
        whose = "as given" if target["from"] == "given" else f"what half of {target['from']}'s runs reach"
        lines.append(f"to target: evaluations until {target['measure']} {target['value']:.4g} ({whose}), median")
    for row in arena.rows:
        chosen = row.table.get("configuration") if row.table else None
        if chosen:
            settings = ", ".join(f"{k}={v}" for k, v in chosen["settings"].items())
            lines.append(f"{row.name}: {chosen['label']} ({settings}), the best on dev of its configurations")
    return lines


def overall(form: Mapping[str, Any]) -> Markup:
    """A comparison's table over several tasks and LMs."""
    head = ["searcher", f"test {form['metric']}", "95 %", "letters", "rank", "3 best", "dev", "train"]
    rows: list[list[Cell]] = []
    for row in form["rows"]:
        means = [figures(row[name]["mean"]) for name in ("test_top3", "dev", "score")]
        ci95 = row["test"]["ci95"]
        shown = (bracket(ci95), ci95[0] if ci95 else None)
        rows.append(
            [row["searcher"], figures(row["test"]["mean"]), shown, row["letters"], figures(row["rank"], 2), *means]
        )
    others = [[b["name"], figures(b["test"]["mean"]), bracket(b["test"]["ci95"]), *[""] * 5] for b in form["baselines"]]
    return table("All tasks and LMs, of equal weight", head, [rows, others], sorted_by=1)


# Curves and cost


def curves(arena: Arena, id_: str) -> Markup:
    """What the best was after so many evaluations."""
    charts = [chart for chart in charts_of(arena) if chart.measure != "seconds"]
    if not charts:
        return tag("p", "No curves: nothing was scored yet, or the scores are not where the study left them.")
    drawn = [
        figure(chart, f"{id_}-{chart.measure}", share=chart.measure != "objective", unit="evaluations")
        for chart in charts
    ]
    single = all(series.runs == 1 for chart in charts for series in chart.series)
    hint = (
        "Evaluations are distinct pairs of a candidate and a train example. "
        + ("One run each, so no interval. " if single else "Bands are 95 % intervals of the mean over runs. ")
    )  # fmt: skip
    help_ = tag("span", "Point at a chart, or focus it and use the arrow keys, to read its values.", class_="js")
    return join([tag("p", hint, help_, class_="quiet"), tag("div", drawn, class_="charts")])


def cost(arena: Arena, id_: str) -> Markup:
    """What the runs took, on average, and the score over time."""
    columns = [name for name in COSTS if any(_cost(row, name) is not None for row in arena.rows)]
    priced = any((row.table.get("cost") or {}).get("price") is not None for row in arena.rows)
    head = ["searcher", *(COSTS[name] for name in columns), *(["price"] if priced else [])]
    rows: list[list[Cell]] = []
    lines = []
    for row in arena.rows:
        cells: list[Cell] = [tag("bdi", row.name)]
        for name in columns:
            value = _cost(row, name)
            cells.append(count(value) if value is None or value >= 100 else figures(value, 1))
        form = row.table.get("cost") or {}
        rows.append([*cells, *([figures(form.get("price"), 4)] if priced else [])])
        even = [
            f"{short(n)} uses against {name}" for name, n in (form.get("break_even") or {}).items() if n is not None
        ]
        if even:
            lines.append(f"{row.name}: repaid in tokens after {', '.join(even)}")
    seconds = [
        figure(chart, f"{id_}-seconds", share=True, unit="seconds")
        for chart in charts_of(arena)
        if chart.measure == "seconds"
    ]
    about = (
        "Means over the runs. Device seconds are those of one scorer for a run's own pairs, whoever had them scored "
        "first; own seconds are these and the searcher's work; wall seconds include what ran beside it."
    )
    return join([
        tag("p", about, class_="quiet"),
        table(f"Cost of a run: {arena.title}", head, [rows]),
        tag("ul", [tag("li", line) for line in lines], class_="remarks") if lines else None,
        tag("div", seconds, class_="charts") if seconds else None,
    ])  # fmt: skip


def _cost(row: Row, name: str) -> float | None:
    """Mean over the runs; of a searcher whose settings were drawn, that of its table: all configurations had to run."""
    known = (row.table.get("cost") or {}).get(name)
    if known is not None:
        return float(known)
    if name == "evaluations":
        return row.evaluations
    values = [run.costs[name] for run in row.runs if name in run.costs]
    return sum(values) / len(values) if values else None
