"""study.yaml: everything a study resolved, so that it can be run again."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem

PACKAGES = ("rayprompt", "ray", "torch", "transformers", "tokenizers", "numpy", "nevergrad", "cma")


def write_manifest(
    study: Path, problem: Problem, searcher: PromptSearcher, pool: ScoringPool, *, budget: int, finalists: int
) -> None:
    """Write ``study.yaml``: task, model, searcher, budget, seeds, batch shapes, versions."""
    import yaml

    content: dict[str, Any] = {
        "schema": "rayprompt.study/1",
        "task": {
            "name": problem.task.name,
            "source": problem.task.source,
            "version": problem.task.version,
            "split": problem.split,
            "digest": problem.task.digest,
            "template": problem.template.source,
            "label_words": dict(zip(problem.task.labels, problem.task.label_words, strict=True)),
            "examples": {part: len(rows) for part, rows in problem.task.parts(problem.split).items()},
        },
        "model": {
            "name": problem.lm.name,
            "location": problem.lm.location,
            "digest": problem.lm.digest,
            "family": problem.lm.family,
            "label_ids": list(problem.label_ids),
            "max_length": problem.lm.max_length,
        },
        "searcher": {
            "name": searcher.name,
            "class": f"{type(searcher).__module__}:{type(searcher).__qualname__}",
            "objective": searcher.objective_name,
            "seed": searcher.seed,
            "settings": searcher._settings_dict(),
        },
        "leaks": {f"{a}/{b}": n for (a, b), n in problem.leaks.items()},
        "budget": budget,
        "finalists": finalists,
        "pool": {
            "scorers": len(pool.infos),
            "device_class": pool.device_class,
            "dtype": pool.infos[0].dtype,
            "lanes": pool.infos[0].lanes,
            "shapes": pool.shapes.to_json(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    (study / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
