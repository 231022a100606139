"""What is in a task: counts, lengths, and texts that stand where they should not (``rayprompt list task``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rayprompt.task import PARTS, Example, Task


def describe_task(task: Task, split: str | None = None) -> dict[str, Any]:
    """The task's settings and, per split, its parts and what is odd in them; ``split`` restricts it to one.

    Raises:
        InputError: no such split.
    """
    names = task.splits if split is None else [split]
    seen: dict[int, dict[str, Any]] = {}  # parts that splits share, as test, are counted once
    return {
        "name": task.name,
        "description": task.description,
        "data": task.data or None,
        "kind": task.kind,
        "extractor": task.extractor or None,
        "metric": task.metric,
        "templates": {family: template.source for family, template in task.templates.items()},
        "label_words": dict(zip(task.labels, task.label_words, strict=True)),
        "manual_prompt": task.manual_prompt,
        "splits": [_describe_split(task, name, task.parts(name), seen) for name in names],
    }


def _describe_split(
    task: Task, name: str, parts: Mapping[str, Sequence[Example]], seen: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    for rows in parts.values():
        if id(rows) not in seen:
            seen[id(rows)] = _describe_part(task, rows)
    leaks = task.leaks().get(name, {})
    return {
        "name": name,
        "parts": {part: seen[id(parts[part])] for part in PARTS},
        "shared": {f"{a}/{b}": leaks.get((a, b), 0) for a, b in combinations(PARTS, 2)},
        "warnings": warnings(task, parts, leaks),
    }


def _describe_part(task: Task, rows: Sequence[Example]) -> dict[str, Any]:
    counts = Counter(example.label for example in rows)
    return {
        "examples": len(rows),
        "classes": {label: counts[i] for i, label in enumerate(task.labels)},
        "words": lengths([sum(len(text.split()) for text in example.text) for example in rows]),
        "repeated": repeated(task, rows),
        "empty": sum(not any(task.text_of(example)) for example in rows),
    }


def lengths(values: Sequence[int]) -> dict[str, Any]:
    """Mean and maximum."""
    return {"mean": round(sum(values) / len(values), 1), "max": int(max(values))}


def repeated(task: Task, rows: Sequence[Example]) -> int:
    """How many texts stand more than once."""
    return sum(n > 1 for text, n in Counter(map(task.text_of, rows)).items() if any(text))


def warnings(task: Task, parts: Mapping[str, Sequence[Example]], leaks: Mapping[tuple[str, str], int]) -> list[str]:
    """A line for everything that makes a result on this split worth less."""
    lines = []
    for (first, second), shared in leaks.items():
        copied = shared == len(set(filter(any, map(task.text_of, parts[second]))))
        lines.append(
            (f"{second} is a copy of {first}" if copied else f"{first} and {second} share {_texts(shared)}")
            + {
                ("train", "dev"): ": dev cannot tell which prompts have only learned train",
                ("train", "test"): ": a search refuses this split, unless --allow-leaks",
                ("dev", "test"): ": the winner is chosen on what it is tested on",
            }[first, second]
        )
    for part in PARTS:
        rows = parts[part]
        empty = sum(not any(task.text_of(example)) for example in rows)
        missing = [label for i, label in enumerate(task.labels) if all(example.label != i for example in rows)]
        if repeated(task, rows):
            lines.append(f"{part}: {_texts(repeated(task, rows))} that stand more than once")
        if empty:
            lines.append(f"{part}: {_texts(empty)} without a word")
        if missing:
            lines.append(f"{part}: no example of class {', '.join(missing)}")
    return lines


def _texts(n: int) -> str:
    return f"{n} text" if n == 1 else f"{n} texts"
