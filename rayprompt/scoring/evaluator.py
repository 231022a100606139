"""Evaluator: scores candidates on one part of a task, keeps every pair, and charges the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import InputError
from rayprompt.lm.encode import EncodedPart
from rayprompt.scores import FloatArray, IntArray, PairError, Scores, right
from rayprompt.scoring.pool import ScoringPool


@dataclass
class _Row:
    """Everything known of one candidate on the part: NaN = not evaluated."""

    log_probs: FloatArray
    tokens: IntArray
    seconds: FloatArray


@dataclass
class Evaluator:
    """The door from candidates to scores, for one search and one part (train for a searcher).

    The first score of a pair stands: a pair that is asked for again is answered from memory and costs nothing.
    """

    pool: ScoringPool
    part: EncodedPart
    gold: IntArray
    ledger: Ledger
    search: str = "search"
    report: bool = False
    rows: dict[str, _Row] = field(default_factory=dict)
    longest_prompt: int = 0

    def affordable(self, n: int) -> int:
        """How many of ``n`` new candidates can be scored on the whole part within the budget."""
        return min(n, self.ledger.remaining // len(self.part))

    def score(self, candidates: Sequence[Candidate], token_ids: Sequence[tuple[int, ...]]) -> Scores:
        """Scores of ``candidates`` (C), whose tokens are ``token_ids``, on all examples of the part.

        Raises:
            BudgetExceeded: the new pairs would cross the budget.
            ScoringError: the LM or the pool failed.
        """
        new: dict[str, tuple[int, ...]] = {}
        for candidate, ids in zip(candidates, token_ids, strict=True):
            if isinstance(candidate, SoftPrompt):
                raise InputError("soft prompts cannot be scored by this version; give text prompts")
            if candidate.key not in self.rows:
                new[candidate.key] = ids
        self._charge(len(new), len(candidates))
        if new:
            self._run(new)
        return self._collect(candidates)

    def _charge(self, new: int, asked: int) -> None:
        size = len(self.part)
        if self.report:
            self.ledger.report_evaluations += new * size
        else:
            self.ledger.charge(new * size)
        self.ledger.cache_hits += (asked - new) * size

    def _run(self, new: dict[str, tuple[int, ...]]) -> None:
        size = len(self.part)
        prompts = list(new.values())
        prompt = np.repeat(np.arange(len(prompts)), size)
        example = np.tile(np.arange(size), len(prompts))
        result = self.pool.score_pairs(self.part, prompts, prompt, example, search=self.search)
        for i, key in enumerate(new):
            rows = slice(i * size, (i + 1) * size)
            self.rows[key] = _Row(result.label_log_probs[rows], result.tokens[rows], result.seconds[rows])
        self.ledger.tokens += int(result.tokens.sum())
        self.ledger.lm_evaluations += result.lm_evaluations
        self.ledger.shape_breaks += result.breaks
        self.longest_prompt = max([self.longest_prompt, *(len(ids) for ids in prompts)])

    def _collect(self, candidates: Sequence[Candidate]) -> Scores:
        size, count = len(self.part), len(candidates)
        rows = [self.rows[c.key] for c in candidates]
        log_probs = np.concatenate([r.log_probs for r in rows]) if rows else np.empty((0, len(self.part.label_ids)))
        tokens = np.concatenate([r.tokens for r in rows]) if rows else np.empty(0, dtype=np.int32)
        seconds = np.concatenate([r.seconds for r in rows]) if rows else np.empty(0, dtype=np.float32)
        candidate, example = np.repeat(np.arange(count), size), np.tile(np.arange(size), count)
        broken = np.isnan(log_probs).any(axis=1)  # the LM overflowed: an error, not an answer and not a gap
        keep = ~broken
        return Scores(
            candidates=tuple(candidates),
            examples=np.arange(size),
            candidate=candidate[keep],
            example=example[keep],
            sample=np.zeros(int(keep.sum()), dtype=np.int16),
            value=right(log_probs[keep], np.tile(self.gold, count)[keep]),
            label_log_probs=log_probs[keep],
            tokens=tokens[keep],
            seconds=seconds[keep],
            errors=tuple(
                PairError(int(candidate[i]), int(example[i]), "the LM gave NaN") for i in np.flatnonzero(broken)
            ),
        )
