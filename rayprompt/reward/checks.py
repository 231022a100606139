"""What is wrong with demonstrations: counted, and refused where it would make a result false."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.errors import InputError, unknown
from rayprompt.reward.demonstrations import SIGNALS, Demonstrations, mask_numbers

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


def check(demonstrations: Demonstrations) -> list[Finding]:
    """All that is found, what is refused first."""
    found = [
        *leaks(demonstrations),
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


def leaks(demonstrations: Demonstrations, train: str = "train", test: str = "test") -> list[Finding]:
    """Test queries that stand in train: with the same text, or with other numbers in it."""
    d = demonstrations
    parts = [d.query[d.split == split] for split in (train, test)]
    if not all(len(part) for part in parts):
        return []
    exact = [{" ".join(q.split()).lower()} for q in d.queries]
    alike = [{mask_numbers(q), f"uid {uid}"} for q, uid in zip(d.queries, d.templates, strict=True)]
    found = []
    for name, what, keys in (
        ("leak-query", "the same text", exact),
        ("leak-template", "the same text but for its numbers", alike),
    ):
        known = set().union(*(keys[q] for q in parts[0].tolist()))
        count = sum(not known.isdisjoint(keys[q]) for q in parts[1].tolist())
        if count:
            share = count / len(parts[1])
            message = f"{count} of {len(parts[1])} {test} queries ({share:.1%}) stand in {train} with {what}"
            found.append(Finding(name, count, message, refused=name == "leak-query" or share > FEW_LEAKS))
    return found


def _constant(d: Demonstrations) -> list[Finding]:
    columns = []
    for split in sorted(set(d.split.tolist())):
        values = d.correct[d.split == split]
        for p, prompt in enumerate(d.prompt_ids):
            labels = values[:, p][~np.isnan(values[:, p])]
            if len(labels) >= FEW and labels.min() == labels.max():
                columns.append(f"prompt {prompt} in {split}: all {len(labels)} are {int(labels[0])}")
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
