"""Made-up demonstrations."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayprompt.reward.demonstrations import Demonstrations


def rows(**columns: Any) -> dict[str, list[Any]]:
    """Columns of demonstrations with defaults for what is not given."""
    count = len(columns["correct"])
    base: dict[str, list[Any]] = {
        "llm": ["lm"] * count,
        "dataset": ["d"] * count,
        "split": ["train"] * count,
        "query_uid": [str(i) for i in range(count)],
        "query": [f"query {i}?" for i in range(count)],
        "prompt_id": ["a"] * count,
        "prompt": ["p"] * count,
    }
    base.update(columns)
    if "query_uid" in columns and "query" not in columns:
        base["query"] = [f"query {uid}?" for uid in columns["query_uid"]]
    if "prompt_id" in columns and "prompt" not in columns:
        base["prompt"] = [f"prompt {i}" for i in columns["prompt_id"]]
    return base


def world(queries: int = 300, seed: int = 0, truth: float = 2.0) -> Demonstrations:
    """Two kinds of queries; prompt a is better on apples, b on pears, c is bad; words tell the kinds."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {name: [] for name in ("query_uid", "query", "prompt_id", "correct", "template_uid")}
    kinds = rng.integers(2, size=queries)
    fillers = ["red", "ripe", "old", "sweet", "big", "new"]
    for i, kind in enumerate(kinds.tolist()):
        fruit = ("apples", "pears")[kind]
        query = f"how many {rng.choice(fillers)} {fruit} are {rng.choice(fillers)} in basket {i}"
        for prompt, effect in (("a", truth * (0.5 - kind)), ("b", truth * (kind - 0.5)), ("c", -1.5)):
            found["query_uid"].append(str(i))
            found["query"].append(query)
            found["template_uid"].append(str(i))
            found["prompt_id"].append(prompt)
            found["correct"].append(int(rng.random() < 1 / (1 + np.exp(-effect))))
    return Demonstrations.from_columns(rows(**found))
