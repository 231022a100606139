"""What is wrong with demonstrations: counted, and refused where it would make a result false."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.errors import InputError, unknown
from rayprompt.reward.demonstrations import SIGNALS, Demonstrations, mask_numbers, plain
from rayprompt.scores import BoolArray

FEW = 50  # labels: a prompt with fewer may well be always right or always wrong
FEW_LEAKS = 0.01  # of test queries: templates are short, and two queries may have the same by chance
REFUSED = ("leak-query", "leak-template", "constant")


@dataclass(frozen=True)
class Finding:
    """Something found.

    Attributes:
        name: of its kind.
        count: how many.
        message: one line.
        refused: whether it makes results false unless it is allowed by name.
    """

    name: str
    count: int
    message: str
    refused: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it is printed with ``--json``."""
        return {"name": self.name, "count": self.count, "message": self.message, "refused": self.refused}


def check(demonstrations: Demonstrations, train: str = "train") -> list[Finding]:
    """All that is found, what is refused first; ``train`` is the split that is learned from."""
    found = [
        *leaks(demonstrations, train),
        *_constant(demonstrations),
        *_repeats(demonstrations),
        *_gaps(demonstrations),
        *_signals(demonstrations),
    ]
    return sorted(found, key=lambda finding: not finding.refused)


def refuse(findings: Collection[Finding], allow: Collection[str] = ()) -> None:
    """Raise for the first finding that makes results false and is not among the names in ``allow``.

    Raises:
        InputError: there is one, or ``allow`` holds a name that is none.
    """
    for name in allow:
        if name not in REFUSED:
            raise unknown("finding", name, REFUSED, "--allow")
    wrong = [finding for finding in findings if finding.refused and finding.name not in allow]
    if wrong:
        more = f" (and {len(wrong) - 1} more: rayprompt recommend check)" if len(wrong) > 1 else ""
        raise InputError(f"{wrong[0].message}; --allow {wrong[0].name} to go on all the same{more}")


def leaks(demonstrations: Demonstrations, train: str = "train") -> list[Finding]:
    """Queries of the other splits that stand in train: with the same text, or with other numbers in it.

    Each split of each data set is looked at alone: a small one that leaks does not hide in a large one that does not.
    """
    d = demonstrations
    exact = [{plain(q)} for q in d.queries]
    alike = [
        {mask_numbers(q), key} for q, key in zip(d.queries, zip(d.datasets, d.templates, strict=True), strict=True)
    ]
    found = []
    for name, what, keys in (
        ("leak-query", "the same text", exact),
        ("leak-template", "the same text but for its numbers", alike),
    ):
        known: set[Any] = set().union(*(keys[q] for q in d.query[d.split == train].tolist()))
        for split, of, here in _parts(d):
            if split == train:
                continue
            queries = d.query[here].tolist()
            count = sum(not known.isdisjoint(keys[q]) for q in queries)
            share = count / len(queries)
            if count:
                message = f"{count} of {len(queries)} {split} queries{of} ({share:.1%}) stand in {train} with {what}"
                found.append(Finding(name, count, message, refused=name == "leak-query" or share > FEW_LEAKS))
    return found


def _parts(d: Demonstrations) -> list[tuple[str, str, BoolArray]]:
    """Each split of each data set: its name, words that say which data set where there are several, its instances."""
    datasets = np.array([d.datasets[q] for q in d.query.tolist()])
    several = len(set(datasets.tolist())) > 1
    return [
        (split, f" of {dataset}" if several else "", (d.split == split) & (datasets == dataset))
        for dataset, split in sorted(set(zip(datasets.tolist(), d.split.tolist(), strict=True)))
    ]


def _constant(d: Demonstrations) -> list[Finding]:
    """Prompts with many labels that are all the same in a split, and splits where all labels are."""
    columns = []
    for split, of, here in _parts(d):
        values = d.correct[here]
        labels = values[~np.isnan(values)]
        if labels.min() == labels.max():
            columns.append(f"all {len(labels)} labels of {split}{of} are {int(labels[0])}")
            continue
        for p, prompt in enumerate(d.prompt_ids):
            labels = values[:, p][~np.isnan(values[:, p])]
            if len(labels) >= FEW and labels.min() == labels.max():
                columns.append(f"prompt {prompt} in {split}{of}: all {len(labels)} are {int(labels[0])}")
    if not columns:
        return []
    text = "; ".join(columns[:4]) + ("; ..." if len(columns) > 4 else "")
    return [Finding("constant", len(columns), f"labels that never change: {text}", refused=True)]


def _repeats(d: Demonstrations) -> list[Finding]:
    rows = 0
    for split in set(d.split.tolist()):
        chosen = d.split == split
        for p in range(len(d.prompts)):
            query = d.query[chosen & d.known[:, p]]
            rows += len(query) - len(np.unique(query))
    if not rows:
        return []
    return [Finding("repeats", rows, f"{rows} of {d.rows} rows repeat a (query, prompt): they are taken as samples")]


def _gaps(d: Demonstrations) -> list[Finding]:
    missing, cells = 0, 0
    for split in set(d.split.tolist()):
        known = d.known[d.split == split]
        known = known[:, known.any(axis=0)]
        missing += int((~known).sum())
        cells += known.size
    if not missing:
        return []
    return [Finding("gaps", missing, f"{missing} of {cells} (query, prompt) have no label in a split that uses both")]


def _signals(d: Demonstrations) -> list[Finding]:
    found = []
    for name in SIGNALS:
        values = getattr(d, name)
        if values is None:
            continue
        values = values[~np.isnan(values)]
        if len(values) >= FEW:
            share = float(np.unique(values, return_counts=True)[1].max() / len(values))
            if share >= 0.99:
                found.append(
                    Finding(
                        "flat-signal", 1, f"{name} is the same in {share:.1%} of rows: it cannot tell prompts apart"
                    )
                )
    return found
