"""How a search got on, from its pairs in the store alone: for one that left no file of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayprompt.errors import RayPromptError
from rayprompt.report.model import Finalist, Prompt, Run
from rayprompt.store.store import ScoreStore

BEST = 5


def rebuilt(run: Run, location: str, examples: int | None) -> Run:
    """The run with its curve and its best on train, as far as the store has them.

    Args:
        location: of the store.
        examples: of train; None is as many as its best known candidate has.
    """
    try:
        store = ScoreStore(location)
        sums = _sums(store, run.search)
        if not sums:
            return run
        asked = _asked(store, run.search) or dict.fromkeys(sums, 0)
    except RayPromptError:  # the store is elsewhere by now: the run is shown without a curve
        return run
    whole = examples or max(count for count, _ in sums.values())
    rows: list[tuple[float, ...]] = []
    spent, best = 0, float("nan")
    generations: dict[int, list[str]] = {}
    for key, generation in asked.items():
        generations.setdefault(generation, []).append(key)
    for _, keys in sorted(generations.items()):
        for key in keys:
            count, total = sums.get(key, (0, 0.0))
            spent += count
            if count >= whole and not total / count <= best:
                best = total / count
        if rows and rows[-1][3] == best and len(rows) > 1 and rows[-2][3] == best:
            rows.pop()
        if best == best:
            rows.append((float(spent), float("nan"), float("nan"), best))
    means = {key: total / count for key, (count, total) in sums.items() if count >= whole}
    keys = sorted(means, key=lambda key: -means[key])[:BEST]
    forms = _forms(store, run.search, keys)
    finalists = tuple(Finalist(Prompt.of(forms[key]), means[key], None) for key in keys if key in forms)
    return replace(run, evaluations=spent, best_score=best, curve=tuple(rows), finalists=finalists)


def _sums(store: ScoreStore, search: str) -> dict[str, tuple[int, float]]:
    """Candidate -> its pairs, and the sum of their values; a pair without an answer counts as not right."""

    def reduce(table: pa.Table) -> pa.Table:
        names = table.column("candidate")
        values = pc.if_else(pc.is_finite(table.column("value")), table.column("value"), 0.0)
        pieces = pa.table({"candidate": names, "value": values}).unify_dictionaries().combine_chunks()
        codes = pieces.column("candidate").chunk(0) if len(pieces) else pa.array([], pa.string()).dictionary_encode()
        grouped = pa.table({"code": codes.indices, "value": pieces.column("value")}).group_by("code", use_threads=False)
        sums = grouped.aggregate([("value", "count"), ("value", "sum")])
        return sums.append_column("candidate", codes.dictionary.take(sums.column("code")))

    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for piece in store.reduced("scores", ["candidate", "value"], reduce, search=search, part="train"):
        rows = zip(*(piece.column(name).to_pylist() for name in ("candidate", "value_count", "value_sum")), strict=True)
        for key, count, total in rows:
            counts[key] += count
            totals[key] += total
    return {key: (count, totals[key]) for key, count in counts.items()}


def _asked(store: ScoreStore, search: str) -> dict[str, int]:
    """Candidate -> the generation in which it was asked for first, in order."""
    columns = ["candidate", "generation"]
    found: dict[str, int] = {}
    for piece in store.reduced("candidates", columns, lambda table: table, search=search):
        for key, generation in zip(*(piece.column(name).to_pylist() for name in columns), strict=True):
            found[key] = min(generation, found.get(key, generation))
    return found


def _forms(store: ScoreStore, search: str, keys: list[str]) -> Mapping[str, Mapping[str, Any]]:
    """The JSON forms of some candidates."""
    wanted = pa.array(keys, pa.string())

    def keep(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table.column("candidate"), wanted))

    pieces = store.reduced("candidates", ["candidate", "form"], keep, search=search)
    return {
        key: json.loads(form)
        for piece in pieces
        for key, form in zip(piece.column("candidate").to_pylist(), piece.column("form").to_pylist(), strict=True)
    }
