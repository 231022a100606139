"""``rayprompt transfer``: what was found on some LMs, on others, as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rayprompt.comparison.sources import Source
from rayprompt.comparison.transfer import Cell, Measured, Transfer
from rayprompt.errors import InputError, did_you_mean
from rayprompt.study.statistics import Estimate

COLUMNS = (
    *("source", "source_model", "target", "prompt", "text", "metric", "dev", "test", "low", "high", "n"),
    *("p_value", "p_holm", "better", "exact", "round_trips", "shortened", "truncated"),
)


def check_output(format_: str, out: Path | None) -> None:
    """Seen before anything is started.

    Raises:
        InputError: no such format, or the file cannot be written.
    """
    if format_ not in FORMATS:
        raise InputError(f"--format {format_}{did_you_mean(format_, FORMATS)}: must be {', '.join(FORMATS)}")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out {out}: must be a file in a directory that is there")


def as_text(found: Transfer) -> str:
    """The table, the prompts, and what is to be said of them."""
    from rayprompt.cli.display import columns

    return "\n".join([*columns(_rows(found)), *_legend(found), *_prompts(found), *_remarks(found), _cost(found)])


def as_markdown(found: Transfer) -> str:
    """The same in Markdown."""
    head, *body = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in _rows(found)]
    table = [head, "|" + "---|" * len(_rows(found)[0]), *body]
    lines = [*_legend(found), *_remarks(found), _cost(found)]
    prompts = [f"- {_escaped(line)}" for line in _prompts(found)]
    return "\n".join([*table, "", *(f"{_escaped(line)}  " for line in lines), "", *prompts])


def as_csv(found: Transfer) -> str:
    """A line for each prompt on each target: the two of every cell, and the baselines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    models = {source.name: source.model for source in found.sources}
    for target in found.targets:
        for name, baseline in target.baselines.items():
            numbers = _numbers(baseline.dev, baseline.test)
            writer.writerow(["", "", target.name, name, baseline.prompt.text, *numbers, *[""] * 7])
    for cell in found.cells:
        tests = [cell.p_value, cell.p_holm, cell.better]
        for kind, measured, tested in (("picked", cell.picked, tests), ("winner", cell.winner, [None] * 3)):
            carried = measured.carried
            flags = [carried.exact, carried.round_trips, carried.shortened, measured.truncated]
            row = [cell.source, models[cell.source], cell.target, kind, carried.prompt.text]
            writer.writerow([*row, *_numbers(measured.dev, measured.test), *tested, *flags])
    return out.getvalue().rstrip("\n")


def as_json(found: Transfer) -> str:
    """The JSON form, to be read."""
    return json.dumps(found.to_json(), indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[Transfer], str]] = {
    "text": as_text,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def _rows(found: Transfer) -> list[tuple[str, ...]]:
    """The table's cells: sources downwards, targets across, the baselines below."""
    table = [("found by", "found on", "picked on", *(f"on {_label(target.name)}" for target in found.targets))]
    for source in found.sources:
        cells = [found.cell(source.name, target.name) for target in found.targets]
        model = f"{_label(source.model)}{', as text' if source.as_text else ''}"
        if len(source.finalists) == 1:
            table.append((source.name, model, "", *(f"{_interval(c.picked.test)}{_mark(c)}" for c in cells)))
            continue
        table.append((source.name, model, "target's dev", *(f"{_interval(c.picked.test)}{_mark(c)}" for c in cells)))
        table.append(("", "", "source's dev", *(_interval(c.winner.test) for c in cells)))
    for name in found.targets[0].baselines:
        table.append((f"{name} prompt", "", "", *(_interval(t.baselines[name].test) for t in found.targets)))
    return table


def _label(model: str) -> str:
    """An LM's name in the table: of a folder its last part."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.ci95[0]:.3f}, {estimate.ci95[1]:.3f}]"


def _mark(cell: Cell) -> str:
    return "*" if cell.better is False else ""


def _legend(found: Transfer) -> list[str]:
    test = found.cells[0].picked.test
    lines = [f"test {found.metric} of {found.task} [95 % interval], n={test.n}; dev picked one of a search's finalists"]
    if any(cell.better is False for cell in found.cells):
        lines.append("* not better than that LM's manual prompt, at 5 %")
    if found.cells[0].p_holm is not None:
        how = "permutations" if found.metric == "f1" else "exact McNemar; permutations of graded values"
        lines.append(f"p: paired on test ({how}), Holm's for {len(found.cells)}")
    return lines


def _prompts(found: Transfer) -> Iterator[str]:
    """A line for each cell: what was picked, and what happened to it on the way."""
    for source in found.sources:
        for target in found.targets:
            cell = found.cell(source.name, target.name)
            picked, manual = cell.picked, target.baselines.get("manual")
            remarks = _on_the_way(picked)
            if manual is not None and cell.p_holm is not None:
                gain = picked.test.value - manual.test.value
                remarks.insert(0, f"against the manual prompt {gain:+.3f}, p = {cell.p_holm:.2g}")
            told = "; ".join([f"{picked.carried.prompt.text!r}, dev {picked.dev.value:.3f}", *remarks])
            yield f"{source.name} on {_label(target.name)}: {told}"


def _on_the_way(measured: Measured) -> list[str]:
    carried = measured.carried
    remarks = []
    if carried.shortened:
        remarks.append("shortened to fit")
    if not carried.round_trips and not carried.exact:
        remarks.append("its text does not give the tokens back that were found")
    if measured.truncated:
        remarks.append(f"{measured.truncated} test texts were truncated")
    return remarks


def _remarks(found: Transfer) -> list[str]:
    remarks = [line for source in found.sources for line in _of_source(source, found)]
    remarks += [f"warning: {count} texts stand in both parts of {parts}" for parts, count in found.leaks.items()]
    return remarks


def _of_source(source: Source, found: Transfer) -> Iterator[str]:
    if source.as_text:
        yield f"{source.name} is a search of soft prompts: here is the text whose tokens are nearest to its winner"
    own = next(t.name for t in found.targets if t.digest == source.model_digest)
    here = found.cell(source.name, own).winner.test
    if here != source.test:
        yield f"{source.name}: the study measured {source.test.value:.3f} on {_label(own)} (another machine?)"


def _cost(found: Transfer) -> str:
    return f"{found.evaluations:,} evaluations, {found.lm_evaluations:,} of them run now, {found.seconds:.0f} s in all"


def _numbers(dev: Estimate, test: Estimate) -> list[object]:
    return [test.metric, dev.value, test.value, *test.ci95, test.n]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
