"""``rayprompt compare``: searchers side by side, as a leaderboard."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayprompt import defaults
from rayprompt.cli.options import (
    AddressOption,
    AllowCodeOption,
    FinalistsOption,
    GpusOption,
    JsonOption,
    LeaksOption,
    LMOption,
    MLflowOption,
    ObjectiveOption,
    OtherMachineOption,
    OutOption,
    RaceErrorOption,
    RaceOption,
    ScorersOption,
    StartOrResumeOption,
    StoreOption,
    WandbOption,
    is_given,
    parse_settings,
)
from rayprompt.cli.say import note, say, say_json
from rayprompt.errors import InputError, did_you_mean
from rayprompt.foreign import Unreadable, parse_yaml
from rayprompt.racing import ERROR
from rayprompt.typed import whole

if TYPE_CHECKING:
    from rayprompt.comparison.outcome import Comparison

SEEDS, SAMPLES = 5, 8
SEARCHERS = "random,nevergrad"
COLUMNS = (
    *("task", "model", "kind", "name", "runs", "rank", "letters", "indistinguishable_from"),
    *("test", "test_low", "test_high", "test_top3", "dev", "score", "objective", "area_score"),
    *("evaluations", "tokens", "device_seconds", "price", "tokens_per_use", "failed"),
)
RESUME = {"resume", "other_machine", "scorers", "gpus_per_scorer", "address", "json_", "format_"}


def compare(
    context: typer.Context,
    tasks: Annotated[
        str, typer.Argument(metavar="[TASK,...]", help="Built-in tasks, or folders with a task.yaml.")
    ] = defaults.TASK,
    searchers: Annotated[
        str, typer.Option(metavar="A,B", help="Prompt optimizers; LABEL=NAME gives one another name.")
    ] = SEARCHERS,
    seeds: Annotated[str, typer.Option(metavar="N", help="So many, from 0 on; or a list, as 3,5,7.")] = str(SEEDS),
    budget: Annotated[int, typer.Option(help="Evaluations of each run.")] = defaults.BUDGET,
    splits: Annotated[str | None, typer.Option(help="Of the tasks: a list, or all; the first unless said.")] = None,
    model: Annotated[str, typer.Option(metavar="A,B", help="LMs; each has scorers that its runs share.")] = (
        defaults.MODEL
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[NAME.]KEY=VALUE", help="A searcher's setting; without NAME of all that have it."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A study file: these options, in YAML or JSON; those given here win.")
    ] = None,
    allow_code: AllowCodeOption = False,
    objective: ObjectiveOption = None,
    baselines: Annotated[
        str, typer.Option(help="Beside the empty and the manual prompt: in-context, gradient; or none.")
    ] = "in-context,gradient",
    scheduler: Annotated[str | None, typer.Option(help="asha or median: stops weak runs by best_score.")] = None,
    samples: Annotated[int, typer.Option(help="Configurations of a searcher whose settings hold ranges.")] = SAMPLES,
    target: Annotated[
        str | None, typer.Option(help="How soon is it reached? 0.95 (best_score), or best_objective=-0.3.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of a scorer's device.")] = None,
    price_per_million_tokens: Annotated[float | None, typer.Option(help="Of the LM's input.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The folder of a public task's examples; of several, the one with theirs.")
    ] = None,
    out: OutOption = None,
    store: StoreOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Go on with this comparison. Its snapshots are pickles.")
    ] = None,
    finalists: FinalistsOption = defaults.FINALISTS,
    allow_leaks: LeaksOption = False,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Runs side by side; as many as there is room for unless said.")
    ] = None,
    race: RaceOption = False,
    race_error: RaceErrorOption = ERROR,
    lm: LMOption = None,
    wandb: WandbOption = None,
    mlflow: MLflowOption = None,
    start_or_resume: StartOrResumeOption = False,
    other_machine: OtherMachineOption = False,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    address: AddressOption = None,
    format_: Annotated[str, typer.Option("--format", help="text, md, csv or json.")] = "text",
    json_: JsonOption = False,
) -> None:
    """Compare searchers at equal budgets: curves, intervals, and tests that say which cannot be told apart."""
    if format_ not in FORMATS:
        raise InputError(f"--format {format_}{did_you_mean(format_, FORMATS)}: must be {', '.join(FORMATS)}")
    given = {name for name in context.params if is_given(context, name)}
    if resume is not None and given - RESUME:
        name = min(given - RESUME).strip("_").replace("_", "-")
        raise InputError(
            f"{'TASK' if name == 'tasks' else '--' + name} beside --resume: a comparison goes on as it began"
        )
    options = {
        "tasks": _names(tasks),
        "searchers": _names(searchers),
        "seeds": _seeds(seeds),
        "budget": budget,
        "splits": None if splits is None else _names(splits),
        "models": _names(model),
        "objective": objective,
        "baselines": [] if baselines == "none" else _names(baselines),
        "scheduler": scheduler,
        "samples": samples,
        "target": target,
        "price_per_hour": price_per_hour,
        "price_per_million_tokens": price_per_million_tokens,
        "data": data,
        "out": out,
        "store": store,
        "finalists": finalists,
        "allow_leaks": allow_leaks,
        "max_concurrent": max_concurrent,
        "race": race,
        "race_error": race_error,
        "lm": parse_settings(lm or [], "--lm"),
        "wandb": wandb,
        "mlflow": mlflow,
        "start_or_resume": start_or_resume,
        "other_machine": other_machine,
        "address": address,
        "scorers": scorers,
        "gpus_per_scorer": gpus_per_scorer,
    }
    found = _run(options, given, config, set_ or [], resume, allow_code=allow_code)
    say(FORMATS[format_](found), to_stderr=json_)
    if json_:
        say_json(found.to_json())
    if found.failed:
        raise typer.Exit(1)


def _run(
    options: dict[str, Any],
    given: set[str],
    config: Path | None,
    pairs: Sequence[str],
    resume: str | None,
    *,
    allow_code: bool,
) -> Comparison:
    """Merge the study file into the options, and run or resume."""
    from rayprompt.cli.leaderboard import Leaderboard
    from rayprompt.comparison.compare import compare as run
    from rayprompt.comparison.compare import resume_comparison
    from rayprompt.lm.endpoint import check_named
    from rayprompt.study.config import read_comparison_file

    settings: dict[str, dict[str, Any]] = {}
    if config is not None:
        file = read_comparison_file(config, allow_code=allow_code)
        if file.description:
            note(file.description)
        settings = {label: dict(own) for label, own in file.arguments.pop("settings", {}).items()}
        names = {"models": "model"}
        from rayprompt.lm.settings import from_file

        options["lm"] = {**from_file(file.arguments.pop("lm", None)), **options["lm"]}
        options |= {k: v for k, v in file.arguments.items() if names.get(k, k) not in given}
        if "model" not in given:
            listed = options["models"]
            check_named([listed] if isinstance(listed, str) else listed, str(config))
    seen: set[tuple[str, str]] = set()
    for label, key, value in map(_setting, pairs):
        if (label, key) in seen:
            raise InputError(f"--set {key if label == '*' else f'{label}.{key}'}: given twice")
        seen.add((label, key))
        for own in settings.values() if label == "*" else ():
            own.pop(key, None)  # the file's: what is given here wins
        settings.setdefault(label, {})[key] = value
    with Leaderboard() as board:
        if resume is not None:
            cluster = {name: options[name] for name in ("other_machine", "address", "scorers", "gpus_per_scorer")}
            return resume_comparison(resume, **cluster, listener=board)
        return run(**options, settings=settings, listener=board)


def as_text(found: Comparison) -> str:
    """The leaderboards, and what is to be said of them."""
    from rayprompt.cli.display import columns

    lines: list[str] = []
    for table in found.tables:
        lines += [_title(table, found), *columns(_cells(table)), *_below(table)]
        lines += [*columns(_configurations(table)), ""] if table.get("configurations") else [""]
    return "\n".join([*lines, *_remarks(found)])


def as_markdown(found: Comparison) -> str:
    """The same in Markdown."""
    lines: list[str] = []
    for table in found.tables:
        head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in _cells(table)]
        lines += [f"**{_title(table, found)}**", "", head, "|" + "---|" * len(_cells(table)[0]), *body, ""]
        lines += [f"{line}  " for line in _below(table)] + [""]
    return "\n".join([*lines, *(f"- {line}" for line in _remarks(found))])


def as_csv(found: Comparison) -> str:
    """A line for each searcher and baseline of each table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in found.tables:
        where = [table["task"] or "all", table["model"] or "all"]
        for row in table["rows"]:
            cost = row.get("cost", {})
            about = ["searcher", row["searcher"], row["runs"], row["rank"], row["letters"]]
            alike = " ".join(row["indistinguishable_from"])
            means = [_mean(row.get(name)) for name in ("test_top3", "dev", "score", "objective", "area_score")]
            costs = [cost.get(name) for name in ("evaluations", "tokens", "device_seconds", "price", "tokens_per_use")]
            writer.writerow([*where, *about, alike, *_three(row["test"]), *means, *costs, row.get("failed", 0)])
        for row in table.get("without_runs", []):
            writer.writerow([*where, "searcher", row["searcher"], 0, *[None] * (len(COLUMNS) - 6), row["failed"]])
        for row in table["baselines"]:
            kind = "white box" if row["white_box"] else "baseline"
            per_use = row.get("tokens_per_use")
            dev = _mean(row.get("dev"))
            test = [*_three(row["test"]), None, dev, *[None] * 7]
            writer.writerow([*where, kind, row["name"], row.get("runs"), *[None] * 3, *test, per_use])
    return out.getvalue().rstrip("\n")


def as_json(found: Comparison) -> str:
    """The JSON form, to be read."""
    return json.dumps(found.to_json(), indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[Any], str]] = {"text": as_text, "md": as_markdown, "csv": as_csv, "json": as_json}


def _title(table: Mapping[str, Any], found: Comparison) -> str:
    if table["task"] is None:
        return f"all {len(table['pairs'])} pairs of task and model, of equal weight"
    splits = table["splits"]
    shown = f"split {splits[0]}" if len(splits) == 1 else f"{len(splits)} splits"
    model = table["model"]
    where = f"{table['task']}, {Path(model).name if os.path.isabs(model) else model}"
    return f"{where}: {shown}, {len(found.seeds)} seeds, {found.budget:,} evaluations a run"


def _cells(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Searchers, best first, and the baselines below them."""
    whole = table["task"] is not None
    metric = table["metric"]
    head = ["", f"test {metric}", "95 %", "", "rank", "3 best", "dev", "train"]
    if whole:
        head += [table["objective"] or "", "area", "to target", "device s", "tokens"]
    rows = [tuple(head)]
    for row in table["rows"]:
        label = row["searcher"] + ("*" if row["stopped"] else "")
        planned = max(row["runs"] + row.get("failed", 0), *(row["runs"] for row in table["rows"]))
        label += f" ({row['runs']} of {planned} runs)" if row["runs"] < planned else ""
        rank = "" if row["rank"] is None else f"{row['rank']:.2f}"
        cells = [label, *_shown(row["test"]), row["letters"], rank]
        cells += [_number(row["test_top3"]), _number(row["dev"]), _number(row["score"])]
        if whole:
            cells += [_number(row.get("objective")), _number(row.get("area_objective") or row["area_score"])]
            cells += [_reached(row["to_target"]), f"{row['cost']['device_seconds']:.1f}", _short(row["cost"]["tokens"])]
        rows.append(tuple(cells))
    for row in table.get("without_runs", []):
        label = f"{row['searcher']} (0 of {row['failed']} runs)"
        rows.append((label, "failed", *[""] * (len(head) - 2)))
    for row in table["baselines"]:
        cells = [f"({row['name']}{', white box' if row['white_box'] else ''})", *_shown(row["test"]), "", ""]
        cells += ["", _number(row.get("dev")), "", _number(row.get("objective"))]
        rows.append(tuple((cells + [""] * len(head))[: len(head)]))
    return rows


def _below(table: Mapping[str, Any]) -> list[str]:
    """What the table's columns are, and what follows from them."""
    tests = table["tests"].get("test", {"pairs": [], "alpha": 0.05})
    apart = [p for p in tests["pairs"] if p["p_holm"] <= tests["alpha"]]
    lines = []
    ran = sum(row["runs"] for row in table["rows"])
    failed = sum(row.get("failed", 0) for row in [*table["rows"], *table.get("without_runs", [])])
    if failed:
        lines.append(f"means over {ran} of {ran + failed} runs: those that failed have no value and are left out")
    for pair in apart:
        low, high = pair["difference"]["ci95"] or (float("nan"), float("nan"))
        size = f"{pair['difference']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(
            f"{pair['first']} is better than {pair['second']} on test: {size}, p = {pair['p_holm']:.2g} (Holm)"
        )
    better: dict[str, list[str]] = {}
    for pair in table["tests"].get("objective", {"pairs": []})["pairs"]:
        if pair["p_holm"] <= tests["alpha"]:
            better.setdefault(pair["first"], []).append(pair["second"])
    for first, seconds in better.items():
        lines.append(f"{first} is better than {', '.join(seconds)} on train, by {table['objective']} (Holm, 5 %)")
    if len(apart) < len(tests["pairs"]):
        lines.append("searchers that share a letter cannot be told apart (permutation tests, Holm, 5 %)")
    if table["task"] is None:
        return lines
    target = table["target"]
    goal = f"{target['measure']} {target['value']:.4g}"
    lines.append(f"to target: evaluations until {goal} ({_whose(target['from'])}), median (runs that reach it)")
    for row in table["rows"]:
        if row.get("configuration"):
            chosen = row["configuration"]
            settings = ", ".join(f"{k}={v}" for k, v in chosen["settings"].items())
            lines.append(f"{row['searcher']}: {chosen['label']} ({settings}), the best on dev of its configurations")
        price = row["cost"]["price"]
        uses = {name: n for name, n in row["cost"]["break_even"].items() if n is not None}
        money = "" if price is None else f"{price:.4g} a run"
        even = ", ".join(f"{n:,.0f} uses against {name}" for name, n in uses.items())
        if price is not None or uses:
            parts = [part for part in (money, even and f"repaid in tokens after {even}") if part]
            lines.append(f"{row['searcher']}: {'; '.join(parts)}")
    return lines


def _configurations(table: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was drawn of searchers whose settings hold ranges; dev alone decides which stands for one."""
    names = list(dict.fromkeys(name for row in table["configurations"] for name in row["settings"]))
    rows = [("configuration", *names, "dev", "train", "evaluations", "")]
    for row in table["configurations"]:
        settings = [_short_value(row["settings"].get(name, "")) for name in names]
        chosen = "stands for it" if row["stands_for_it"] else f"{row['stopped']} stopped" if row["stopped"] else ""
        numbers = [_number(row["dev"]), _number(row["score"]), f"{row['evaluations']:,}"]
        rows.append((row["label"], *settings, *numbers, chosen))
    return rows


def _short_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _remarks(found: Comparison) -> Iterator[str]:
    for name, error in found.failed.items():
        yield f"failed: {name}: {error}"
    yield from found.remarks
    total = sum(run.evaluations for run in found.runs)
    yield (
        f"{len(found.runs)} runs, {total:,} evaluations, {found.seconds:.0f} s in all; study in {found.study_dir} "
        f"(tensorboard --logdir {found.study_dir})"
    )


def _whose(name: str) -> str:
    return "as given" if name == "given" else f"what half of {name}'s runs reach"


def _shown(value: Mapping[str, Any]) -> tuple[str, str]:
    low, high = value["ci95"] or (None, None)
    return f"{value['mean']:.3f}", "" if low is None else f"[{low:.3f}, {high:.3f}]"


def _number(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f}"


def _mean(value: Mapping[str, Any] | None) -> float | None:
    return None if value is None else value["mean"]


def _three(value: Mapping[str, Any]) -> list[float | None]:
    return [value["mean"], *(value["ci95"] or (None, None))]


def _reached(found: Mapping[str, Any]) -> str:
    when = f"{found['median']:,.0f}" if found["median"] is not None else "-"
    return f"{when} ({found['reached']}/{found['of']})"


def _short(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def _names(text: str) -> list[str]:
    """Parts between commas; a folder may have one in its name."""
    if os.path.exists(text):
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> int | list[int]:
    """A number, or a list.

    Raises:
        InputError: neither.
    """
    parts = _names(text)
    seeds = [seed for seed in map(whole, parts) if seed is not None]
    if not parts or len(seeds) < len(parts):
        raise InputError(f"--seeds {text}: must be a number of seeds, or a list of seeds, as 3,5,7")
    return seeds[0] if len(seeds) == 1 and "," not in text else seeds


def _setting(pair: str) -> tuple[str, str, Any]:
    """``NAME.key=value`` or ``key=value``: label (``*`` for all), key, value.

    Raises:
        InputError: no ``=``.
    """
    key, equals, text = pair.partition("=")
    label, dot, name = key.strip().rpartition(".")
    if not equals or not name:
        raise InputError(f"--set {pair}: must be NAME.KEY=VALUE, or KEY=VALUE for all that have it")
    value: Any = text
    if text.startswith("{"):  # a range
        try:
            value = parse_yaml(text)
        except Unreadable:
            raise InputError(f"--set {pair}: not a range, as {{uniform: [1, 20]}}") from None
    return label if dot else "*", name, value
