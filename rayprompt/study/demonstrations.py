"""Demonstrations from what the pool has scored: prompts x examples, or the train pairs of a study's own store."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from rayprompt.errors import InputError
from rayprompt.lm.judges import judges_here
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.scores import Scores
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.manifest import FILE, read_manifest
from rayprompt.task import Example, Task, load_task


def from_scores(problem: Problem, scores: Scores, texts: Sequence[str], on: str) -> Demonstrations:
    """Of scores on one part of a problem's task: ``texts`` are the prompts of its candidates."""
    examples = problem.task.examples(on, problem.split)
    return Demonstrations.from_columns(
        _columns(
            problem.lm.name,
            problem.task.name,
            on,
            [examples[i] for i in scores.examples[scores.example].tolist()],
            [(scores.candidates[c].key, texts[c]) for c in scores.candidate.tolist()],
            scores.value.tolist(),
            problem.task,
            scores.completion,
        )
    )


def from_study(path: Path, tell: Callable[[str], None] = lambda line: None) -> Demonstrations:
    """Of all that a study's own store holds of its train examples; of text prompts.

    Unanswered pairs are left out: they are no wrong answers to learn from. ``tell`` gets a line with their number.

    Raises:
        InputError: it is no study of a search, its store is elsewhere, or its task is another one by now.
    """
    if not (path / FILE).is_file():
        raise InputError(f"{path}: not a study's directory (it holds no {FILE}), and not a file of demonstrations")
    record = read_manifest(path)
    about = record["task"]
    if about["location"] is None:
        raise InputError(f"{path}: its task was made of Python objects; demonstrations need the texts of a task file")
    task = load_task(about["location"], data=about.get("data"), split=about["split"])
    task = task.judged_as(about.get("judge"), str(path))
    if task.digest != about["digest"]:
        raise InputError(f"{path}: its task {about['name']} has changed since (another digest)")
    examples = {example.digest: example for example in task.examples("train", about["split"])}
    if not (path / "store.json").is_file():
        raise InputError(f"{path}: holds no store of its own (it ran with --store); its pairs are there")
    store = ScoreStore(path)
    known = store.candidates()
    known = known.filter(pc.equal(known.column("kind"), "text"))
    texts = dict(zip(known.column("candidate").to_pylist(), known.column("text").to_pylist(), strict=True))
    pairs = store.pairs(part="train", split=about["split"])
    keys, digests, values = (pairs.column(name).to_pylist() for name in ("candidate", "example", "value"))
    rows = zip(keys, digests, values, strict=True)
    ours = [(i, v) for i, (key, digest, v) in enumerate(rows) if key in texts and digest in examples]
    keep = [i for i, v in ours if not math.isnan(v)]
    if len(keep) < len(ours):
        tell(f"{path}: {len(ours) - len(keep):,} of {len(ours):,} pairs are unanswered and left out")
    if not keep:
        raise InputError(f"{path}: no scores of text prompts on train")
    written = pairs.column("completion").to_pylist() if task.generates else []
    if task.generates:  # by one judge, whichever wrote the values
        gold = [task.judge.extractor.gold(examples[digests[i]].answer or "") or "" for i in keep]
        judged = task.judge.values([written[i] for i in keep], gold, judges_here().run)
        values = dict(zip(keep, judged.tolist(), strict=True))
    return Demonstrations.from_columns(
        _columns(
            record["model"]["name"],
            about["name"],
            "train",
            [examples[digests[i]] for i in keep],
            [(keys[i], texts[keys[i]]) for i in keep],
            [values[i] for i in keep],
            task,
            [written[i] for i in keep] if task.generates else None,
        ),
        str(path),
    )


def _columns(
    llm: str,
    dataset: str,
    split: str,
    examples: list[Example],
    prompts: list[tuple[str, str]],
    values: list[float],
    task: Task,
    completions: Sequence[str | None] | None,
) -> dict[str, list[Any]]:
    written: dict[str, list[Any]] = {}
    if task.generates and completions is not None:
        judge = task.judge
        written["answer"] = [None if text is None else judge.answer(text) for text in completions]
        written["gold"] = [judge.extractor.gold(example.answer or "") for example in examples]
    return {
        **written,
        "llm": [llm] * len(values),
        "dataset": [dataset] * len(values),
        "split": [split] * len(values),
        "query_uid": [example.digest[:16] for example in examples],
        "query": ["\n".join(example.text) for example in examples],
        "prompt_id": [key[:16] for key, _ in prompts],
        "prompt": [text for _, text in prompts],
        "correct": [int(value >= 0.5) for value in values],
    }
