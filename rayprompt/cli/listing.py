"""``rayprompt list``: what comes with the package or is registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rayprompt.cli.say import say
from rayprompt.errors import InputError
from rayprompt.public import public_names, public_spec
from rayprompt.searcher.registry import load_searcher, searcher_paths
from rayprompt.task import Task, bundled_names, load_task
from rayprompt.task_report import describe_task, lengths


def tasks() -> list[dict[str, Any]]:
    """The built-in tasks; the public ones without their examples."""
    rows = []
    for name in bundled_names():
        task = load_task(name)
        parts = {part: len(rows) for part, rows in task.parts().items()}
        sizes = ", ".join(f"{n} {part}" for part, n in parts.items())
        rows.append(
            {
                "name": name,
                "description": f"{task.description} ({sizes}; {', '.join(task.label_words) or task.extractor})",
                "kind": task.kind,
                "splits": list(task.splits),
                "examples": parts,
                "label_words": list(task.label_words),
                "manual_prompt": task.manual_prompt,
            }
        )
    for name in public_names():
        spec = public_spec(name)
        variants = [f"{name}@{variant}" for variant in spec["variants"]]
        rows.append(
            {
                "name": name,
                "description": f"{spec['description']} (public; {', '.join([spec['hub']['path'], *variants])})",
                "kind": spec.get("kind", "classification"),
                "variants": variants,
                "hub": spec["hub"]["path"],
                "label_words": list(spec.get("label_words", {}).values()),
                "manual_prompt": spec["manual_prompt"],
            }
        )
    return rows


def task(name: str, split: str | None, data: str | None, model: str | None) -> dict[str, Any]:
    """What is in a task; with ``model`` also its length in tokens.

    Raises:
        InputError: the task, its data or the model cannot be used.
    """
    loaded = load_task(name, data=data, split=split)
    content = describe_task(loaded, split)
    if model is not None:
        _add_tokens(content, loaded, model)
    return content


def _add_tokens(content: dict[str, Any], loaded: Task, model: str) -> None:
    """Tokens of the whole input with the manual prompt (or the empty one), and how many inputs are cut to fit."""
    from rayprompt.searcher.problem import Problem

    seen: dict[int, dict[str, Any]] = {}  # splits may share a part
    for row in content["splits"]:
        problem = Problem(loaded, model, split=row["name"], allow_leaks=True)
        size = len(problem.prompt(loaded.manual_prompt or "").token_ids or ())
        content["model"] = problem.lm.name
        for part, examples in loaded.parts(row["name"]).items():
            if id(examples) not in seen:
                encoded = problem.part(part)
                counts = (encoded.base_lengths[int(size == 0)] + size).tolist()
                seen[id(examples)] = {"tokens": lengths(counts), "truncated": encoded.truncated(size)}
            row["parts"][part] = {**row["parts"][part], **seen[id(examples)]}


def show_task(content: dict[str, Any]) -> None:
    """The description, for people."""
    words = ", ".join(f"{label} {word}" for label, word in content["label_words"].items())
    words = words or f"generation; {content['extractor']}"
    say(f"{content['name']}: {content['description'] or 'no description'} ({content['metric']}; {words})")
    for family, template in content["templates"].items():
        say(f"{family} template: {template}")
    say(f"manual prompt: {content['manual_prompt']!r}" + (f"; data: {content['data']}" if content["data"] else ""))
    for row in content["splits"]:
        say(f"split {row['name']}")
        for part, facts in row["parts"].items():
            say(f"  {part:<5} {_shown(facts)}")
        say("  shared texts: " + ", ".join(f"{parts} {n}" for parts, n in row["shared"].items()))
        for line in row["warnings"]:
            say(f"  warning: {line}")


def _shown(facts: dict[str, Any]) -> str:
    classes = facts["classes"]
    each = set(classes.values())
    counts = f"{min(each)} per class" if len(each) == 1 else ", ".join(f"{n} of {c}" for c, n in classes.items())
    words = facts["words"]
    words = facts["words"]
    shown = f" ({counts})" if counts else ""
    text = f"{facts['examples']:>6,} examples{shown}, words: mean {words['mean']}, max {words['max']}"
    if "tokens" in facts:
        tokens = facts["tokens"]
        text += f", tokens: mean {tokens['mean']}, max {tokens['max']}, {facts['truncated']} truncated"
    return text


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


def reward_models() -> list[dict[str, Any]]:
    """The reward models of ``rayprompt recommend`` with their settings."""
    from rayprompt.reward.models import WHERE, model_class

    rows: list[dict[str, Any]] = []
    for name in WHERE:
        try:
            cls = model_class(name)
        except InputError as error:  # an extra that is not installed
            rows.append({"name": name, "description": str(error), "settings": []})
            continue
        settings = [{"name": f.name, "default": f.default, "doc": ""} for f in dataclasses.fields(cls.Settings)]
        rows.append({"name": name, "description": (cls.__doc__ or "").split("\n")[0], "settings": settings})
    return rows


LISTINGS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tasks": tasks,
    "searchers": searchers,
    "models": models,
    "reward-models": reward_models,
}
