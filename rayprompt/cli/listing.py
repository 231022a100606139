"""``rayprompt list``: what comes with the package or is registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rayprompt.searcher.registry import load_searcher, searcher_paths
from rayprompt.task import load_task, task_names


def tasks() -> list[dict[str, Any]]:
    """The built-in tasks."""
    rows = []
    for name in task_names():
        task = load_task(name)
        parts = {part: len(rows) for part, rows in task.parts().items()}
        sizes = ", ".join(f"{n} {part}" for part, n in parts.items())
        rows.append(
            {
                "name": name,
                "description": f"{task.description} ({sizes}; {', '.join(task.label_words)})",
                "kind": task.kind,
                "splits": list(task.splits),
                "examples": parts,
                "label_words": list(task.label_words),
                "manual_prompt": task.manual_prompt,
            }
        )
    return rows


def searchers() -> list[dict[str, Any]]:
    """The registered searchers with their settings."""
    rows = []
    for name, path in searcher_paths().items():
        cls = load_searcher(name)
        settings = [
            {"name": f.name, "default": f.default, "doc": f.metadata.get("doc", "")}
            for f in dataclasses.fields(cls.Settings)
        ]
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        rows.append({"name": name, "description": summary, "kind": cls.kind, "class": path, "settings": settings})
    return rows


def models() -> list[dict[str, Any]]:
    """The bundled LMs."""
    from rayprompt.lm.source import describe_model, model_names

    rows = []
    for name in model_names():
        source, family = describe_model(name)
        text = (
            f"bundled {family.template} LM, {source.layers} layers x {source.hidden_size}, {source.vocab_size} tokens"
        )
        rows.append({"name": name, "description": text, "family": family.template, "digest": source.digest})
    return rows


LISTINGS: dict[str, Callable[[], list[dict[str, Any]]]] = {"tasks": tasks, "searchers": searchers, "models": models}
