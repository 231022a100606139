"""``rayprompt score``: a file of prompts x a task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError
from rayprompt.objective import OBJECTIVES
from rayprompt.reward.demonstrations import read_demonstrations
from rayprompt.scores import tally_of
from rayprompt.searcher.problem import Problem
from rayprompt.study.demonstrations import from_scores
from rayprompt.study.evaluate import score
from rayprompt.study.results import SCORE_SCHEMA
from rayprompt.study.session import Cluster
from rayprompt.tables import read_prompts


def number(value: float | None) -> float | None:
    """For JSON; None where a prompt got no answer at all, or its LM gives no such value."""
    return None if value is None or math.isnan(value) else float(value)


def score_file(
    problem: Problem,
    prompts: Path,
    out: Path | None,
    *,
    on: str,
    store: str | None,
    cluster: Cluster,
    demonstrations: Path | None = None,
) -> dict[str, Any]:
    """Score the prompts of a file, write the pairs to ``out`` (Parquet), and give the report of ``--json``.

    Raises:
        InputError: a file cannot be read or written, or anything that ``rayprompt.score`` refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = read_prompts(prompts)
    for option, file in (("--out", out), ("--demonstrations", demonstrations)):
        if file is not None and not file.parent.is_dir():
            raise InputError(f"{option} {file}: no such directory: {file.parent}")
    earlier = None
    if demonstrations is not None and demonstrations.is_file():  # seen to be readable before the LM is asked
        earlier = read_demonstrations(demonstrations)
        if earlier.llm != problem.lm.name:
            raise InputError(f"--demonstrations {demonstrations}: are of {earlier.llm}, not of {problem.lm.name}")
    scores = score(texts, problem, on=on, store=store, cluster=cluster)
    gold = problem.task.gold(on, problem.split)
    values = OBJECTIVES[problem.task.metric](scores, gold)
    read = scores.label_log_probs is not None
    likelihood = OBJECTIVES["cross_entropy"](scores, gold) if read else [None] * len(values)
    if demonstrations is not None:
        found = from_scores(problem, scores, texts, on)
        (found if earlier is None else earlier.joined(found)).write(demonstrations)
    if out is not None:
        examples = problem.task.examples(on, problem.split)
        columns = scores.to_dict()
        columns["example_digest"] = [examples[i].digest for i in columns["example"]]
        table = pa.table(columns).replace_schema_metadata(
            {
                "schema": SCORE_SCHEMA,
                "task": problem.task.digest,
                "model": problem.lm.digest,
                "split": problem.split,
                "part": on,
            }
        )
        try:
            pq.write_table(table, out)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    return {
        "schema": SCORE_SCHEMA,
        "task": problem.task.name,
        "split": problem.split,
        "on": on,
        "model": problem.lm.name,
        "metric": problem.task.metric,
        "prompts": [
            {"text": text, "key": c.key, "value": number(v), "cross_entropy": number(x)}
            for text, c, v, x in zip(texts, scores.candidates, values, likelihood, strict=True)
        ],
        "unanswered": tally_of([scores]),
        "truncated": problem.part(on).truncated(max(len(problem.token_ids(c)) for c in scores.candidates)),
        "evaluations": len({(c.key, e) for c in scores.candidates for e in range(len(gold))}) * scores.samples,
        "out": None if out is None else str(out),
    }
