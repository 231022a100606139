"""The rest of a report: all prompts, the examples they win and lose, settings, and how to do it again."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from rayprompt.lm.settings import LMSettings
from rayprompt.report.board import Arena, by_dev
from rayprompt.report.examples import Matrix, Part
from rayprompt.report.markup import Markup, join, printable, tag
from rayprompt.report.model import Run, Study
from rayprompt.report.sections import Cell, bracket, count, figures, prompt_text, table
from rayprompt.study.place import is_uri, location_of
from rayprompt.study.statistics import sign_test

MOST_RUNS = 200  # rows of winners
MOST_FINALISTS = 200
MOST_SETTINGS = 160
MOST_BYTES = 1_100_000  # of scores and texts of examples, all together
TEXT, COMPLETION = 400, 240  # characters of one
LISTED = 10  # examples that are written out without a script
SHARES = {"test": 0.5, "dev": 0.25, "train": 0.25}
Listed = dict[str, Any]


# Prompts


def prompts(arena: Arena) -> Markup:
    """The winner of every run, and its finalists."""
    splits = len({run.split for run in arena.runs}) > 1
    studies = len(arena.studies) > 1
    order = by_dev(arena.runs)
    head: list[str | tuple[str, str]] = [
        "prompt",
        "searcher",
        "seed",
        *(["study"] if studies else []),
        *(["split"] if splits else []),
        ("dev", "decides"),
        f"test {arena.metric}",
        "95 %",
        ("train", "what was searched on flatters"),
        "evaluations",
        "ended by",
    ]
    rows = [_run_row(run, studies, splits) for run in order[:MOST_RUNS]]
    winners = table(f"The winner of each run: {arena.title}", head, [rows], sorted_by=4 + splits + studies - 1)
    every = [(run, f) for run in order for f in run.finalists]
    shown: list[list[Cell]] = [
        [prompt_text(f.prompt), run.searcher, (str(run.seed), run.seed), figures(f.train), figures(f.dev)]
        for run, f in every[:MOST_FINALISTS]
    ]
    names = ["prompt", "searcher", "seed", "train", "dev"]
    finalists = table(f"Finalists, the best on train of each run: {arena.title}", names, [shown])
    left = [_left(len(order), MOST_RUNS, "runs"), _left(len(every), MOST_FINALISTS, "finalists")]
    summary = tag("summary", f"All finalists ({len(every)})")
    return join([winners, tag("details", summary, finalists) if every else None, left])


def _run_row(run: Run, studies: bool, splits: bool) -> list[Cell]:
    prompt = run.winner or (run.finalists[0].prompt if run.finalists else None)
    train = run.train.value if run.train else run.best_score
    return [
        prompt_text(prompt) if prompt is not None else tag("span", "none yet", class_="quiet"),
        tag("bdi", run.searcher),
        (str(run.seed), run.seed),
        *([run.study] if studies else []),
        *([run.split] if splits else []),
        figures(run.dev.value if run.dev else None),
        figures(run.test.value if run.test else None),
        (bracket(run.test.ci95), run.test.ci95[0]) if run.test else ("", None),
        figures(train),
        count(run.evaluations),
        run.state,
    ]


def _left(number: int, most: int, what: str) -> Markup | None:
    if number <= most:
        return None
    return tag("p", f"{most} of {number} {what} are shown; all are in the study's JSON.", class_="quiet")


# Examples


def examples(named: Sequence[tuple[str, Matrix]], of: int, level: str) -> tuple[Markup, list[Listed]]:
    """The section, readable without the script, and what the script needs to hold any two prompts against each other.

    ``of``: how many matrices there are on the page, each has its share of the room; ``level`` of their headings.
    """
    data = [_listed(study, matrix, MOST_BYTES // of) for study, matrix in named]
    blocks = [_block(study, matrix, level) for study, matrix in named]
    return join(blocks), data


def _block(study: str, matrix: Matrix, level: str) -> Markup:
    """One stratum: the two that say most, the best and the manual prompt, are written out."""
    part = "test" if "test" in matrix.parts else next(iter(matrix.parts))
    first, second = _pair(matrix, part)
    caps = []
    if matrix.left_out:
        caps.append(f"{len(matrix.entries)} prompts are here, the best on dev; {matrix.left_out} more are in the store")
    title = f"{', '.join(matrix.stratum)} ({study})"
    shown = tag("div", _against(matrix, part, first, second), class_="pair", aria_live="polite")
    note = tag("p", "; ".join([*caps, "test was opened for winners and baselines alone"]) + ".", class_="quiet")
    about = {"data_first": first, "data_second": second, "data_part": part}
    return tag("div", tag(level, title), note, shown, class_="compare", **about)


def _pair(matrix: Matrix, part: str) -> tuple[int, int]:
    """The best, and the manual prompt or what comes next, of those that have scores."""
    known = [i for i, row in enumerate(matrix.parts[part].values) if np.isfinite(row).any()]
    manual = [i for i in known if "manual prompt" in matrix.entries[i].roles]
    first = known[0]
    others = [i for i in (*manual, *known) if i != first]
    return first, others[0] if others else first


def _against(matrix: Matrix, part: str, first: int, second: int) -> Markup:
    """Two prompts: counts, and the examples that one wins."""
    here = matrix.parts[part]
    counts = tallies(here, first, second)
    names = [matrix.entries[i].label for i in (first, second)]
    lead = tag(
        "p",
        tag("strong", names[0]),
        " against ",
        tag("strong", names[1]),
        f" on {part}: better on {counts['wins']}, worse on {counts['losses']}, alike on {counts['alike']} of "
        f"{counts['n']} examples; p = {sign_test(counts['wins'], counts['losses']):.2g} "
        f"({'exact McNemar on right answers' if here.binary else 'sign test'}).",
    )
    a, b = here.values[first], here.values[second]
    lists = []
    for better, worse, name in ((a, b, names[0]), (b, a, names[1])):
        at = np.flatnonzero(better > worse)
        items = [tag("li", _example(here, int(i), first, second)) for i in at[:LISTED]]
        more = f", the first {LISTED}" if len(at) > LISTED else ""
        lists.append(tag("div", tag("p", tag("strong", name), f" wins {len(at)}{more}:"), tag("ol", items)))
    return join([lead, tag("div", lists, class_="columns")])


def _example(part: Part, at: int, first: int, second: int) -> Markup:
    wrote = [part.completions.get((i, at)) for i in (first, second)]
    said = [
        tag("span", f"{name} wrote: ", tag("span", _clipped(text, COMPLETION), class_="text"), class_="wrote")
        for name, text in zip(("first", "second"), wrote, strict=True)
        if text is not None
    ]
    gold = tag("span", part.gold[at], class_="gold") if part.gold[at] else None
    return join([tag("span", _clipped(part.texts[at], TEXT), class_="text"), " ", gold, said])


def tallies(part: Part, first: int, second: int) -> dict[str, int]:
    """On how many examples the first is better, worse and alike, of those that both have."""
    a, b = part.values[first], part.values[second]
    n = int((np.isfinite(a) & np.isfinite(b)).sum())
    wins, losses = int((a > b).sum()), int((a < b).sum())
    return {"wins": wins, "losses": losses, "alike": n - wins - losses, "n": n}


def _listed(study: str, matrix: Matrix, room: int) -> Listed:
    """What the script gets: all counts, and of the examples as many as there is room for, those that divide first."""
    parts = {name: _listed_part(part, int(room * SHARES[name])) for name, part in matrix.parts.items()}
    labels = [printable(entry.label) for entry in matrix.entries]
    return {"study": study, "name": ", ".join(matrix.stratum), "prompts": labels, "parts": parts}


def _listed_part(part: Part, room: int) -> Listed:
    wins = part.wins()
    known = np.isfinite(part.values)
    both = known.astype(int) @ known.T.astype(int)
    spread = np.nan_to_num(np.nanmax(np.where(known, part.values, -1), axis=0)) - np.nanmin(
        np.where(known, part.values, 2), axis=0
    )
    chosen, rows = [], []
    for at in np.argsort(-spread, kind="stable").tolist():
        row: Listed = {"t": _clipped(part.texts[at], TEXT), "g": _clipped(part.gold[at], COMPLETION)}
        wrote = {
            p: _clipped(part.completions[p, at], COMPLETION) for p in range(len(wins)) if (p, at) in part.completions
        }
        if wrote:
            row["c"] = wrote
        room -= len(json.dumps(row, ensure_ascii=True)) + 2 * len(wins)
        if room < 0:
            break
        chosen.append(at)
        rows.append(row)
    order = sorted(range(len(chosen)), key=lambda i: chosen[i])  # as they stand in the task
    picked = [chosen[i] for i in order]
    return {
        "binary": part.binary,
        "n": int(part.values.shape[1]),
        "scored": known.any(axis=1).tolist(),
        "wins": wins.tolist(),
        "both": both.tolist(),
        "p": [
            [float(f"{sign_test(int(wins[i, j]), int(wins[j, i])):.2g}") for j in range(i)] for i in range(len(wins))
        ],
        "examples": [rows[i] for i in order],
        "values": [_coded(row[picked], part.binary) for row in part.values],
    }


def _coded(values: Any, binary: bool) -> str | list[float | None]:
    """A prompt's values on the examples that are listed: a character each where they are right or wrong."""
    if binary:
        return "".join("-" if not math.isfinite(v) else "1" if v > 0.5 else "0" for v in values)
    return [round(float(v), 3) if math.isfinite(v) else None for v in values]


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# Settings, and how to do it again


def settings(study: Study) -> Markup:
    """What study.yaml says, as a table."""
    rows = list(_flat(study.record))
    cells: list[list[Cell]] = [[name, _clipped(value, 300)] for name, value in rows[:MOST_SETTINGS]]
    listed = table(f"study.yaml of {study.name}", ["setting", "value"], [cells], class_="settings")
    versions = ", ".join(f"{name} {version}" for name, version in (study.record.get("versions") or {}).items())
    more = _left(len(rows), MOST_SETTINGS, "settings")
    return join([
        tag("p", f"Versions: {versions}.", class_="quiet") if versions else None,
        tag("details", tag("summary", f"Settings of {study.name}"), listed, more),
    ])  # fmt: skip


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of study.yaml, by dotted names. What runs resolved to is left out: it repeats the entries."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if name or key not in ("resolved", "options", "points"):
                yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{i}]")
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def again(study: Study) -> Markup:
    """The commands that do it again, replay it and look into it."""
    command = _search_command(study) if study.kind == "search" else _compare_command(study)
    place = location_of(study.path)
    path = shlex.quote(place)
    lines = [
        *([] if command is None else ["# the same again, bit for bit on one device class", command]),
        *([] if study.finished else ["# go on with it", f"rayprompt {study.kind} --resume {path}"]),
        "# this page",
        f"rayprompt report {path}",
        *([] if is_uri(place) else ["# the curves in TensorBoard", f"tensorboard --logdir {path}"]),
    ]
    return tag("pre", tag("code", "\n".join(lines)), tabindex=0)


def _search_command(study: Study) -> str | None:
    """None for a task of Python objects."""
    record = study.record
    about, task = record["searcher"], record["task"]
    if not isinstance(task["location"], str):
        return None
    target = record.get("target")
    parts = ["rayprompt search", shlex.quote(task["location"])]
    parts += _option("--data", task.get("data")) + _option("--split", task["split"])
    parts += _option("--model", (target or record["model"])["location"])
    parts += _option("--proxy-model", record["model"]["location"] if target else None)
    parts += _option("--searcher", _registered(about["class"]) or about["name"])
    parts += _option("--objective", about["objective"])
    parts += [f"--budget {record['budget']}", f"--seed {about['seed']}", f"--finalists {record['finalists']}"]
    parts += [_set(name, value) for name, value in about["settings"].items() if value is not None]
    parts += _lm((target or record["model"]).get("settings"))
    parts += ["--allow-leaks"] if record.get("allow_leaks") else []
    parts += _race(record)
    return " \\\n  ".join(parts)


def _compare_command(study: Study) -> str | None:
    record = study.record
    tasks = [task["location"] for task in record["tasks"]]
    if not all(isinstance(location, str) for location in tasks):
        return None
    named: dict[str, str] = {}
    for entry in record["entries"]:
        name = _registered(entry["class"])
        if name is None:
            return None
        named[entry["group"]] = name
    several = len(named) < len(record["entries"])  # settings that Tune drew: they stand in a study file
    if several:
        return None
    searchers = ",".join(group if group == name else f"{group}={name}" for group, name in named.items())
    parts = ["rayprompt compare", shlex.quote(",".join(tasks)), *_option("--searchers", searchers)]
    parts += _option("--splits", ",".join(record["tasks"][0]["splits"]))
    parts += _option("--model", ",".join(model["location"] for model in record["models"]))
    parts += _option("--seeds", ",".join(map(str, record["seeds"])) + ("," if len(record["seeds"]) == 1 else ""))
    parts += [f"--budget {record['budget']}", f"--finalists {record['finalists']}"]
    parts += _option("--baselines", ",".join(record["baselines"]) or "none")
    for option in ("objective", "scheduler", "target", "price_per_hour", "price_per_million_tokens"):
        value = record.get(option)
        parts += _option(f"--{option.replace('_', '-')}", value) if not isinstance(value, Mapping) else []
    parts += _lm(record["models"][0].get("settings")) + _race(record)
    parts += [
        _set(f"{entry['group']}.{name}", value)
        for entry in record["entries"]
        for name, value in entry["settings"].items()
        if value is not None
    ]
    return " \\\n  ".join(parts)


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [f"{name} {shlex.quote(str(value))}"]


def _race(record: Mapping[str, Any]) -> list[str]:
    return ["--race", f"--race-error {record['race']:g}"] if record.get("race") else []


def _lm(form: Mapping[str, Any] | None) -> list[str]:
    """How the LM was run, where that was not the usual way."""
    changed = LMSettings.of(form).changed()
    return [f"--lm {shlex.quote(f'{k}={v}')}" for k, v in changed.items() if isinstance(v, str | int | float)]


def _set(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--set {shlex.quote(f'{name}={text}')}"


def _registered(path: str) -> str | None:
    """The name under which a class is registered; None where it is not."""
    return next((p.name for p in entry_points(group="rayprompt.searchers") if p.value == path), None)
