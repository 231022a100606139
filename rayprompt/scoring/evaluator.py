"""Evaluator: scores candidates on one part of a task, keeps every pair, and charges the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.lm.encode import EncodedPart
from rayprompt.pairs import PairTable
from rayprompt.scores import BoolArray, FloatArray, IntArray, PairError, Scores, right
from rayprompt.scoring.pool import NO_VECTORS, ScoringPool
from rayprompt.store.writer import ShardWriter


class Evaluator:
    """The door from candidates to scores, for one search and one part (train for a searcher).

    The first score of a pair stands: a pair that is known, from this search or from a store, costs no forward pass.
    A pair that this search has not asked for before is charged, known or not, so that a full store changes nothing.

    Args:
        pool: what runs the LM.
        part: the examples.
        gold: (E,) their labels.
        ledger: what is charged.
        examples: (E,) digests of the examples; None takes each for another one. Examples that are the same have the
            same pairs, which are scored and charged once.
        writer: where new pairs are stored; None keeps them in memory alone.
        search: who asks; searches share the pool fairly.
        report: count as report, without a limit.
        p0: initial vectors of soft prompts, by digest.
    """

    def __init__(
        self,
        pool: ScoringPool,
        part: EncodedPart,
        gold: IntArray,
        ledger: Ledger,
        *,
        examples: Sequence[str] | None = None,
        writer: ShardWriter | None = None,
        search: str = "search",
        report: bool = False,
        p0: Mapping[str, FloatArray] = NO_VECTORS,
    ) -> None:
        self.pool = pool
        self.p0 = p0
        self.part = part
        self.gold = gold
        self.ledger = ledger
        self.writer = writer
        self.search = search
        self.report = report
        self.longest_prompt = 0
        self.candidates = 0  # of which a pair was asked for
        digests = list(examples) if examples is not None else [str(i) for i in range(len(part))]
        self.table = PairTable(list(dict.fromkeys(digests)), len(part.labels))
        self.column = np.array([self.table.columns[d] for d in digests], dtype=np.int64)  # (E,) of each example
        self.position = np.unique(self.column, return_index=True)[1]  # and back
        pool.add(part)

    @property
    def size(self) -> int:
        """Evaluations of one candidate: the distinct examples of the part."""
        return len(self.table.examples)

    def restore_asked(self, state: dict[str, Any]) -> None:
        """Take these pairs (``PairTable.asked_state``), and no others, as asked for by this search."""
        self.table.restore_asked(state)
        self.candidates = len(state["whole"]) + len(state["part"])

    def score(self, candidates: Sequence[Candidate], token_ids: Sequence[tuple[int, ...]]) -> Scores:
        """Scores of ``candidates`` (C), whose tokens are ``token_ids``, on the examples of the part.

        New pairs are charged in the candidates' order; where the budget ends in between, the rest is not evaluated:
        it has no rows, and ``Scores.complete`` says so.

        Raises:
            ScoringError: the LM or the pool failed.
            StoreError: pairs could not be written.
        """
        self.longest_prompt = max([self.longest_prompt, *(len(ids) for ids in token_ids)])
        rows = self.table.index(candidate.key for candidate in candidates)
        used, first = np.unique(rows, return_index=True)
        order = np.argsort(first)
        used, first = used[order], first[order]
        new = self._charge(used)
        wanted = self.table.asked[rows]
        # Not only what is new: the file with the score of a pair that was asked for before may have been lost.
        run = self.table.asked[used] & ~self.table.known[used]
        self.ledger.cache_hits += int(wanted.sum()) - int(run.sum())
        if run.any():
            self._run([candidates[i] for i in first], [token_ids[i] for i in first], used, run)
        if not self.report:
            self.ledger.asked_tokens += int(self.table.tokens[used][new].sum())
            self.ledger.asked_seconds += float(self.table.seconds[used][new].sum(dtype=np.float64))
        return self._collect(candidates, rows)

    def known(self, candidates: Sequence[Candidate]) -> Scores:
        """What was asked for so far of ``candidates`` (C); nothing is scored or charged."""
        return self._collect(candidates, self.table.index(candidate.key for candidate in candidates))

    def _charge(self, rows: IntArray) -> BoolArray:
        """Charge what is new of distinct rows (C,), as far as the budget goes, and mark it as asked for: (C, E)."""
        asked = self.table.asked[rows]
        new = ~asked
        if self.report:
            self.ledger.report_evaluations += int(new.sum())
        else:
            count = np.cumsum(new.reshape(-1)).reshape(new.shape)
            new &= count <= self.ledger.remaining
            self.ledger.charge(int(new.sum()))
        self.candidates += int((new.any(axis=1) & ~asked.any(axis=1)).sum())
        self.table.asked[rows] |= new
        return new

    def _run(
        self, candidates: list[Candidate], token_ids: list[tuple[int, ...]], rows: IntArray, run: BoolArray
    ) -> None:
        """Have the LM score the marked pairs (C, E) of distinct candidates, keep and store them."""
        candidate, column = np.nonzero(run)
        soft = [c if isinstance(c, SoftPrompt) else None for c in candidates]
        result = self.pool.score_pairs(
            self.part, token_ids, candidate, self.position[column], search=self.search, soft=soft, p0=self.p0
        )
        self.table.fill(rows[candidate], column, result.label_log_probs, result.tokens, result.seconds)
        if self.writer is not None:
            value = right(result.label_log_probs, self.gold[self.position[column]])
            value[np.isnan(result.label_log_probs).any(axis=1)] = np.nan  # an error is not a wrong answer
            keys = [c.key for c in candidates]
            self.writer.add(keys, candidate, column, value, result.label_log_probs, result.tokens, result.seconds)
        self.ledger.tokens += int(result.tokens.sum())
        self.ledger.seconds += float(result.seconds.sum())
        self.ledger.lm_evaluations += result.lm_evaluations
        self.ledger.shape_breaks += result.breaks

    def _collect(self, candidates: Sequence[Candidate], rows: IntArray) -> Scores:
        table, columns = self.table, self.column
        candidate, example = np.nonzero(table.asked[rows][:, columns])
        row, column = rows[candidate], columns[example]
        log_probs = table.log_probs[row, column]
        broken = np.isnan(log_probs).any(axis=1)  # the LM overflowed: an error, not an answer and not a gap
        keep = ~broken
        errors = np.flatnonzero(broken)
        return Scores(
            candidates=tuple(candidates),
            examples=np.arange(len(columns)),
            candidate=candidate[keep],
            example=example[keep],
            sample=np.zeros(int(keep.sum()), dtype=np.int16),
            value=right(log_probs[keep], self.gold[example][keep]),
            label_log_probs=log_probs[keep],
            tokens=table.tokens[row, column][keep],
            seconds=table.seconds[row, column][keep],
            errors=tuple(PairError(int(candidate[i]), int(example[i]), "the LM gave NaN") for i in errors),
        )
