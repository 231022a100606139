"""What a search is made of: its problem, its searcher, its directory; all checked before anything is started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt import defaults
from rayprompt.candidate import Candidate, Subspace, TextPrompt
from rayprompt.errors import InputError
from rayprompt.lm.settings import LMSettings
from rayprompt.objective import Objective, get_objective, objective_name
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.store.files import refuse_credentials
from rayprompt.study.lock import LOCK
from rayprompt.study.place import P0_FILE, is_uri, new_place
from rayprompt.task import Task

HERE = "."  # a store that is the study's own directory, wherever that is moved to


def bind(
    task: str | Path | Mapping[str, Any] | Task | Problem,
    model: str | Path | None,
    split: str | None,
    data: str | Path | None = None,
    *,
    allow_leaks: bool,
    lm: Mapping[str, Any] | LMSettings | None = None,
    extractor: str | None = None,
    answer_scorer: str | None = None,
) -> Problem:
    """The problem that ``task``, ``model``, ``split`` and ``data`` name; a ``Problem`` has all of them already.

    Raises:
        InputError: a problem and a model, split or data beside it, or what :class:`Problem` refuses.
    """
    if not isinstance(task, Problem):
        return Problem(
            task,
            defaults.MODEL if model is None else model,
            split=split,
            data=data,
            allow_leaks=allow_leaks,
            lm=lm,
            extractor=extractor,
            answer_scorer=answer_scorer,
        )
    given = {"model": model, "split": split, "data": data, "lm": lm or None}
    given |= {"extractor": extractor, "answer_scorer": answer_scorer}
    if any(value is not None for value in given.values()):
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        raise InputError(f"{task} has its model and split, and its data; give {shown} to Problem(...) instead")
    return task


def check_room(problem: Problem, space: Subspace | None = None) -> None:
    """The manual prompt, and soft ones of ``space``, are scored on dev and test: that they fit must be known before.

    Raises:
        InputError: they do not fit the LM beside some text.
    """
    sizes = [(0, len(problem.prompt(problem.task.manual_prompt or "").token_ids or ()))]
    if space is not None:
        sizes.append((space.front, space.length - space.front))
    for name in problem.task.parts(problem.split):
        for front, size in sizes:
            part = problem.part(name).reserving(front)
            part.lengths(np.full(len(part), size), np.arange(len(part)))


def fits(problem: Problem, prompt: TextPrompt) -> bool:
    """Whether a prompt leaves room for a text in every part of the task."""
    count = len(prompt.token_ids or ())
    parts = [problem.part(name) for name in problem.task.parts(problem.split)]
    return all(int(part.fixed_lengths.max()) + count <= part.max_length for part in parts)


def fitting(problem: Problem, text: str) -> TextPrompt:
    """A text as a prompt of another LM, without its last words where it is too long there to leave room for a text."""
    words = text.split()
    while True:
        prompt = problem.prompt(" ".join(words))
        if fits(problem, prompt) or not words:
            return prompt
        words = words[: len(words) * 3 // 4]


def planned(problem: Problem, budget: int) -> int:
    """Candidates that a budget pays for."""
    return max(1, budget // len(set(problem.digests("train"))))


def check_native(problem: Problem, budget: int) -> None:
    """With a Tune trial per batch, candidates are scored whole.

    Raises:
        InputError: the budget does not pay one.
    """
    size = len(set(problem.digests("train")))
    if budget < size:
        raise InputError(f"--budget {budget}: --tune-native needs that of one candidate at least ({size} evaluations)")


def make_searcher(
    problem: Problem,
    searcher: str | type[PromptSearcher],
    candidates: int | None,
    seed: int,
    objective: str | Objective | None,
    settings: Mapping[str, Any],
    batch_size: int | None = None,
    points: Sequence[Candidate] = (),
) -> PromptSearcher:
    """The searcher of that name or class, blank, on what it may see of ``problem``: the train examples.

    ``candidates``: how many it may expect to have scored; ``points``: with which it is to begin.

    Raises:
        InputError: unknown name, setting or objective.
    """
    if objective is not None:
        get_objective(objective_name(objective))
    cls = load_searcher(searcher) if isinstance(searcher, str) else searcher
    taken = {"objective", "seed", "budget", "metric", "mode", "batch_size", "points_to_evaluate"} & set(settings)
    if taken:
        raise InputError(f"--set {min(taken)}=...: not a setting of the searcher; use --{min(taken).replace('_', '-')}")
    ours: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    if points:
        ours["points_to_evaluate"] = list(points)
    return cls(problem.for_search(), objective=objective, seed=seed, budget=candidates, **ours, **settings)


def study_dir(out: str | Path | None, name: str) -> Path:
    """The directory of a new study; one that exists must be empty. It is not made yet; but what stands for a URI is.

    Raises:
        InputError: it exists and holds something, or cannot be made.
    """
    if out is not None and is_uri(out):
        return new_place(str(out))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    path = Path(out).expanduser() if out is not None else Path("rayprompt-studies") / f"{safe}-{stamp}"
    # One that died before it began has left its lock, half a study.yaml, and the vectors it was to begin with, at most.
    leftovers = (LOCK, ".study.yaml", P0_FILE, f".{P0_FILE}")
    if path.exists() and (not path.is_dir() or any(not p.name.startswith(leftovers) for p in path.iterdir())):
        raise InputError(f"--out {path}: exists already and is not empty; give a new directory")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out {path}: cannot be made ({parent} is not a directory that can be written to)")
    return path.resolve()


def store_location(store: str | Path | None) -> str:
    """A shared store as it stands in study.yaml: a URI, or an absolute path."""
    if store is None:
        return HERE
    refuse_credentials(str(store))
    return str(store) if "://" in str(store) else str(Path(store).expanduser().resolve())
