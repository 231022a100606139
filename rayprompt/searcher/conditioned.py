"""Scores of prompts that differ from input to input: each is scored on the inputs that it was written for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rayprompt.candidate import Candidate, ConditionedPrompt
from rayprompt.errors import InputError
from rayprompt.scores import BoolArray, IntArray, PairError, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.searcher.problem import Problem


def score_candidates(
    problem: Problem, evaluator: Evaluator, candidates: Sequence[Candidate], given: BoolArray | None = None
) -> Scores:
    """Scores of ``candidates`` (C) on the evaluator's part, as far as the budget goes; ``given`` (C, E) says of which.

    Conditioned ones are scored where they have a prompt. Pairs are those of the prompts: two candidates with the same
    prompt for an input share them, and they are charged once.

    Raises:
        InputError: a report on inputs for which a conditioned one has no prompt.
    """
    if not any(isinstance(c, ConditionedPrompt) for c in candidates):
        return evaluator.score(candidates, [problem.token_ids(c) for c in candidates], pairs=given)
    prompts: dict[Candidate, int] = {}
    number = np.full((len(candidates), len(evaluator.digests)), -1, dtype=np.int64)  # of the prompt of each pair
    for i, candidate in enumerate(candidates):
        for e, example in enumerate(evaluator.digests):
            prompt = candidate.of.get(example) if isinstance(candidate, ConditionedPrompt) else candidate
            if prompt is not None:
                number[i, e] = prompts.setdefault(prompt, len(prompts))
    missing = np.argwhere(number < 0 if given is None else (number < 0) & given)
    if given is not None:
        number[~given] = -1
    if evaluator.report and len(missing):
        raise InputError(
            f"{len(missing)} inputs have no prompt (the first is example {int(missing[0][1]) + 1}): this prompt was "
            "written for the inputs of another task or split"
        )
    pairs = np.zeros((len(prompts), number.shape[1]), dtype=bool)
    asked, place = np.nonzero(number >= 0)
    pairs[number[asked, place], place] = True
    scores = evaluator.score(list(prompts), [problem.token_ids(p) for p in prompts], pairs=pairs)
    return of_candidates(scores, candidates, number)


def of_candidates(scores: Scores, candidates: Sequence[Candidate], number: IntArray) -> Scores:
    """Scores of prompts as those of candidates (C), of which pair (c, e) has the prompt ``number[c, e]``; -1 = none."""
    examples = number.shape[1]
    candidate, example = np.nonzero(number >= 0)
    pair = number[candidate, example] * examples + example
    have = scores.candidate.astype(np.int64) * examples + scores.example
    order = np.argsort(have, kind="stable")  # samples stay in their order
    first, last = (np.searchsorted(have[order], pair, side=side) for side in ("left", "right"))
    counts = last - first
    rows = order[np.arange(counts.sum()) - (np.cumsum(counts) - counts - first).repeat(counts)]
    failed: dict[tuple[int, int], list[PairError]] = {}
    for error in scores.errors:
        failed.setdefault((error.candidate, error.example), []).append(error)
    errors = [
        replace(error, candidate=int(c))
        for (prompt, e), found in failed.items()
        for c in np.flatnonzero(number[:, e] == prompt)
        for error in found
    ]
    log_probs, completion = scores.label_log_probs, scores.completion
    return replace(
        scores,
        candidates=tuple(candidates),
        candidate=candidate.repeat(counts),
        example=example.repeat(counts),
        sample=scores.sample[rows],
        value=scores.value[rows],
        label_log_probs=None if log_probs is None else log_probs[rows],
        tokens=scores.tokens[rows],
        seconds=scores.seconds[rows],
        completion=None if completion is None else tuple(completion[i] for i in rows.tolist()),
        errors=tuple(errors),
        asked=number >= 0,
    )
