"""Which examples a prompt gets right: the scores of a few prompts, read from the store without the rest of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayprompt.errors import RayPromptError
from rayprompt.report.board import by_dev
from rayprompt.report.model import Prompt, Source, Stratum, Study
from rayprompt.scores import FloatArray, IntArray
from rayprompt.store.store import ScoreStore
from rayprompt.task import PARTS, Example, Task, load_task

MOST_PROMPTS = 16  # of a stratum


@dataclass(frozen=True)
class Entry:
    """A prompt that others are held against; ``roles`` say what it is, as ``best of nevergrad, seed 0``."""

    prompt: Prompt
    roles: tuple[str, ...]
    opened: bool  # test was opened for it

    @property
    def label(self) -> str:
        """Text and roles."""
        return f"{self.prompt.shown} ({', '.join(self.roles)})"


@dataclass(frozen=True)
class Part:
    """One part of a task, with P prompts on E examples.

    Attributes:
        values: (P, E) the task metric of each pair, the mean over samples; NaN = not scored.
        texts, gold: of the examples; the digest where the task is not to be had.
        completions: (prompt, example) -> what the LM wrote, where it writes.
    """

    values: FloatArray
    texts: tuple[str, ...]
    gold: tuple[str, ...]
    completions: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @property
    def binary(self) -> bool:
        """Whether every pair is right or wrong."""
        return bool(np.isin(self.values[np.isfinite(self.values)], (0.0, 1.0)).all())

    def wins(self) -> IntArray:
        """(P, P) on how many examples the row's prompt is better than the column's, among those that both have."""
        values = self.values
        return np.array([(row[None] > values).sum(axis=1) for row in values], dtype=np.int64).reshape(2 * [len(values)])


@dataclass(frozen=True)
class Matrix:
    """The prompts of one stratum and what they get right, by part; ``left_out`` is how many prompts are not shown."""

    stratum: Stratum
    entries: tuple[Entry, ...]
    parts: Mapping[str, Part]
    left_out: int = 0


def matrices(studies: Sequence[Study], tasks: Sequence[Task], remarks: list[str]) -> list[tuple[str, Matrix]]:
    """Of each study, named, and stratum; ``tasks``: those that are in memory already."""
    found = []
    for study in studies:
        for stratum, source in study.sources.items():
            try:
                matrix = _matrix(study, stratum, source, tasks, remarks)
            except RayPromptError as error:
                remarks.append(f"{study.name}: no scores of single examples ({error})")
                continue
            if matrix is not None:
                found.append((study.name, matrix))
    return found


def _matrix(study: Study, stratum: Stratum, source: Source, tasks: Sequence[Task], remarks: list[str]) -> Matrix | None:
    store = ScoreStore(source.store)
    every = _entries(study, stratum, _texts(store, source.report))
    entries = every[:MOST_PROMPTS]
    contexts = _contexts(store, source)
    if not entries or not contexts:
        return None
    task = _task(source, stratum[1], tasks, study.name, remarks)
    parts = {}
    for part in PARTS:
        keys = [e.prompt.key if part != "test" or e.opened else "" for e in entries]
        if any(keys):
            writes = bool(source.judge)
            rows = _read(store, source, part, stratum[1], contexts, {key for key in keys if key}, writes)
            examples = task.examples(part, stratum[1]) if task is not None else None
            made = _part(rows, keys, examples, task)
            if made is not None:
                parts[part] = made
    damaged = [f"{study.name}: {file} is left out: {why}" for file, why in sorted(store.broken.items())]
    remarks += [line for line in damaged if line not in remarks]
    return Matrix(stratum, tuple(entries), parts, len(every) - len(entries)) if parts else None


def _entries(study: Study, stratum: Stratum, keys: Mapping[str, str]) -> list[Entry]:
    """The best winner of each searcher, the baselines, the other winners, then the other finalists; all by dev."""
    found: dict[str, Entry] = {}

    def add(prompt: Prompt | None, role: str, opened: bool) -> None:
        if prompt is None or not prompt.key:
            return
        if prompt.key in found:
            was = found[prompt.key]
            found[prompt.key] = Entry(was.prompt, (*was.roles, role), was.opened or opened)
        else:
            found[prompt.key] = Entry(prompt, (role,), opened)

    runs = [run for run in study.runs if run.stratum == stratum]
    several = len({run.searcher for run in runs}) > 1 or len(runs) > 1
    ended = [run for run in by_dev(runs) if run.winner is not None]
    first = {run.searcher: run for run in reversed(ended)}
    for run in ended:
        if run is first[run.searcher]:
            add(run.winner, f"best of {run.searcher}, seed {run.seed}" if several else "best", True)
    for baseline in study.baselines:
        if baseline.stratum == stratum and baseline.prompt is not None:
            prompt = baseline.prompt
            key = prompt.key or keys.get(prompt.text or "", "")
            add(Prompt(key, prompt.text), f"{baseline.name} prompt", True)
    for run in ended:
        if run is not first[run.searcher]:
            add(run.winner, f"best of {run.searcher}, seed {run.seed}", True)
    for run in ended:
        if run.winner is not None and run.winner.near is not None:
            key = keys.get(run.winner.near, "")
            add(Prompt(key, run.winner.near), f"{run.searcher}, seed {run.seed}, as text", True)
    others = [(run, finalist) for run in runs for finalist in run.finalists]
    unknown = float("-inf")
    others.sort(key=lambda pair: (-_or(pair[1].dev, unknown), -_or(pair[1].train, unknown)))
    for run, finalist in others:
        if finalist.prompt.key not in found:
            add(finalist.prompt, f"finalist of {run.searcher}, seed {run.seed}" if several else "finalist", False)
    return list(found.values())


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _texts(store: ScoreStore, search: str) -> dict[str, str]:
    """Text -> key of the text prompts that a closing report scored."""
    found: dict[str, str] = {}
    for table in store.reduced("candidates", ["candidate", "text"], lambda table: table, search=search):
        for key, text in zip(table.column("candidate").to_pylist(), table.column("text").to_pylist(), strict=True):
            if text is not None:
                found.setdefault(text, key)
    return found


def _contexts(store: ScoreStore, source: Source) -> set[str]:
    """The contexts (as files name them) of a stratum: its report's; else its searches'; else those of its LM."""
    for searches in ((source.report,), source.searches):
        names = {shard.name.context for search in searches for shard in store.shards("scores", search=search)}
        if names:
            return names
    return {
        shard.name.context
        for shard in store.shards("scores")
        if f'"{source.model_digest}"' in shard.metadata.get("context", "")
    }


def _task(source: Source, split: str, tasks: Sequence[Task], study: str, remarks: list[str]) -> Task | None:
    """The task, if it is still the one that was scored; its texts are shown beside the scores."""
    for task in tasks:
        if task.digest == source.task_digest:
            return task
    if source.location is None:
        remarks.append(f"{study}: its task was made of Python objects: examples are shown by their digests")
        return None
    try:
        task = load_task(source.location, data=source.data, split=split)
        task = task.judged_as(source.judge, study)
    except (RayPromptError, OSError) as error:
        remarks.append(f"{study}: its task cannot be read ({error}): examples are shown by their digests")
        return None
    if task.digest != source.task_digest:
        remarks.append(f"{study}: its task has changed since: examples are shown by their digests")
        return None
    return task


def _read(
    store: ScoreStore,
    source: Source,
    part: str,
    split: str,
    contexts: Collection[str],
    keys: Collection[str],
    writes: bool,
) -> pa.Table:
    """The pairs of some prompts, a study's own before those of others."""
    wanted, shown = pa.array(sorted(keys), pa.string()), pa.array([split])
    names = ["candidate", "example", "sample", "value", *(["completion"] if writes else [])]

    def keep(table: pa.Table) -> pa.Table:
        table = table.filter(_is_in(table, "candidate", wanted))
        table = table.filter(_is_in(table, "split", shown))
        own = pc.index_in(table.column("search").cast(pa.string()), searches)
        plain = {name: table.column(name) for name in names}
        plain |= {name: plain[name].cast(pa.string()) for name in ("candidate", "example")}
        return pa.table({**plain, "rank": own.fill_null(len(searches))})

    searches = pa.array([source.report, *source.searches], pa.string())
    columns = [*names, "split", "search"]
    found = [
        table
        for context in sorted(contexts)
        for table in store.reduced("scores", columns, keep, part=part, context=context)
        if len(table)
    ]
    if not found:
        return pa.table({})
    whole = pa.concat_tables(found)
    return whole.take(pa.array(np.argsort(whole.column("rank").to_numpy(), kind="stable")))


def _is_in(table: pa.Table, name: str, wanted: pa.Array) -> pa.Array:
    """(rows,) whether a dictionary column has one of some values; looks each value up once, not each row's."""
    kept = [
        pc.is_in(chunk.dictionary, wanted).take(chunk.indices).fill_null(False) for chunk in table.column(name).chunks
    ]
    return pa.chunked_array(kept, pa.bool_())


def _part(rows: pa.Table, keys: Sequence[str], examples: Sequence[Example] | None, task: Task | None) -> Part | None:
    if not len(rows):
        return None
    digests = rows.column("example").to_pylist()
    order = list(dict.fromkeys(digests)) if examples is None else [e.digest for e in examples]
    column = {name: i for i, name in enumerate(dict.fromkeys(order))}
    row = {key: i for i, key in enumerate(keys) if key}
    total = np.zeros((len(keys), len(column)))
    count = np.zeros((len(keys), len(column)), dtype=np.int64)
    completions: dict[tuple[int, int], str] = {}
    written = rows.column("completion").to_pylist() if "completion" in rows.column_names else [None] * len(rows)
    seen = set()
    cells = zip(rows.column("candidate").to_pylist(), digests, rows.column("sample").to_pylist(), strict=True)
    for cell, value, text in zip(cells, rows.column("value").to_pylist(), written, strict=True):
        key, example, _ = cell
        if cell in seen or example not in column:
            continue
        seen.add(cell)
        at = row[key], column[example]
        total[at] += 0.0 if value != value or value is None else value  # without an answer: not right
        count[at] += 1
        if text is not None:
            completions.setdefault(at, text)
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    # An example that stands twice in its part counts twice, as in the metric.
    places = [column[name] for name in order]
    spread = {
        (p, e): completions[p, at] for e, at in enumerate(places) for p in range(len(keys)) if (p, at) in completions
    }
    if examples is None or task is None:
        texts = tuple(f"example {name[:12]}" for name in order)
        return Part(values[:, places], texts, ("",) * len(order), spread)
    texts = tuple(" / ".join(text for text in e.fields.values() if text) for e in examples)
    gold = tuple((e.answer or "") if task.generates else task.label_words[e.label] for e in examples)
    return Part(values[:, places], texts, gold, spread)
