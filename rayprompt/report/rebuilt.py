"""How a search got on, from its pairs in the store alone: for one that left no file of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayprompt.errors import RayPromptError
from rayprompt.foreign import parse_json
from rayprompt.report.model import Finalist, Prompt, Run
from rayprompt.store.store import ScoreStore
from rayprompt.unanswered import TRIED

BEST = 5


def rebuilt(run: Run, location: str, examples: int | None) -> Run:
    """The run with its curve and its best on train, as far as the store has them.

    Args:
        location: of the store.
        examples: of train; None is as many as its best known candidate has.
    """
    try:
        store = ScoreStore(location)
        skipped = _unanswerable(store, run.search)
        sums = _sums(store, run.search, skipped)
        if not sums:
            return run
        asked = _asked(store, run.search) or dict.fromkeys(sums, 0)
    except RayPromptError:  # the store is elsewhere by now: the run is shown without a curve
        return run
    # Candidates differ in whether they were asked on examples that nobody answers, and in nothing else.
    whole = max(count for count, _, _ in sums.values()) if examples is None else examples - len(skipped)
    rows: list[tuple[float, ...]] = []
    spent, best = 0, float("nan")
    generations: dict[int, list[str]] = {}
    for key, generation in asked.items():
        generations.setdefault(generation, []).append(key)
    for _, keys in sorted(generations.items()):
        for key in keys:
            count, total, more = sums.get(key, (0, 0.0, 0))
            spent += count + more
            if count >= max(1, whole) and not total / (count + len(skipped)) <= best:
                best = total / (count + len(skipped))
        if rows and rows[-1][3] == best and len(rows) > 1 and rows[-2][3] == best:
            rows.pop()
        if best == best:
            rows.append((float(spent), float("nan"), float("nan"), best))
    means = {key: total / (count + len(skipped)) for key, (count, total, _) in sums.items() if count >= max(1, whole)}
    keys = sorted(means, key=lambda key: -means[key])[:BEST]
    forms = _forms(store, run.search, keys)
    finalists = tuple(Finalist(Prompt.of(forms[key]), means[key], None) for key in keys if key in forms)
    return replace(run, evaluations=spent, best_score=best, curve=tuple(rows), finalists=finalists)


def _unanswerable(store: ScoreStore, search: str) -> set[str]:
    """The examples that the search asked three candidates or more on without an answer: it skips them."""

    def reduce(table: pa.Table) -> pa.Table:
        table = table.filter(pc.equal(table.column("sample"), 0))
        found = {"example": table.column("example").cast(pa.string()), "answered": pc.is_finite(table.column("value"))}
        return pa.table(found).group_by("example").aggregate([("answered", "count"), ("answered", "sum")])

    columns = ["example", "sample", "value"]
    pieces = store.reduced("scores", columns, reduce, search=search, part="train")
    if not pieces:
        return set()
    sums = pa.concat_tables(pieces).group_by("example")
    whole = sums.aggregate([("answered_count", "sum"), ("answered_sum", "sum")]).to_pydict()
    rows = zip(whole["example"], whole["answered_count_sum"], whole["answered_sum_sum"], strict=True)
    return {example for example, asked, answered in rows if asked >= TRIED and not answered}


def _sums(store: ScoreStore, search: str, skipped: set[str]) -> dict[str, tuple[int, float, int]]:
    """Candidate -> its pairs, the sum of their values (unanswered: 0), and its pairs on ``skipped`` examples."""

    def reduce(table: pa.Table) -> pa.Table:
        names = table.column("candidate")
        values = pc.if_else(pc.is_finite(table.column("value")), table.column("value"), 0.0)
        more = pc.is_in(table.column("example").cast(pa.string()), pa.array(sorted(skipped), pa.string()))
        pieces = pa.table({"candidate": names, "value": values, "more": more}).unify_dictionaries().combine_chunks()
        codes = pieces.column("candidate").chunk(0) if len(pieces) else pa.array([], pa.string()).dictionary_encode()
        table = pa.table({"code": codes.indices, "value": pieces.column("value"), "more": pieces.column("more")})
        grouped = table.group_by("code", use_threads=False)
        sums = grouped.aggregate([("value", "count"), ("value", "sum"), ("more", "sum")])
        return sums.append_column("candidate", codes.dictionary.take(sums.column("code")))

    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    others: Counter[str] = Counter()
    names = ("candidate", "value_count", "value_sum", "more_sum")
    for piece in store.reduced("scores", ["candidate", "example", "value"], reduce, search=search, part="train"):
        for key, count, total, more in zip(*(piece.column(name).to_pylist() for name in names), strict=True):
            counts[key] += count - (more or 0)
            totals[key] += total
            others[key] += more or 0
    return {key: (count, totals[key], others[key]) for key, count in counts.items()}


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
        key: parse_json(form)
        for piece in pieces
        for key, form in zip(piece.column("candidate").to_pylist(), piece.column("form").to_pylist(), strict=True)
    }
