"""Evaluator: scores candidates on one part of a task, keeps every pair, and charges the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.answers import Judge
from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import ScoringError
from rayprompt.lm.encode import EncodedPart
from rayprompt.pairs import Answers, PairTable
from rayprompt.scores import BoolArray, FloatArray, IntArray, Scores, pair_errors, right
from rayprompt.scoring.pool import NO_VECTORS, ScoringPool
from rayprompt.scoring.replay import ReplayPool
from rayprompt.store.writer import ShardWriter
from rayprompt.unanswered import TRIED, Reason, tally


@dataclass(frozen=True)
class Judging:
    """How completions are judged, and the E gold answers."""

    judge: Judge
    gold: Sequence[str]


class Evaluator:
    """The door from candidates to scores, for one search and one part (train for a searcher).

    The first score of a pair stands: a pair that is known, from this search or from a store, costs no forward pass.
    A pair that this search has not asked for before is charged, known or not, so that a full store changes nothing.

    An example is unanswerable if three candidates or more were asked on it and none got an answer. Later calls neither
    ask nor charge its pairs: they count as unanswered, with the reason SKIPPED. That is decided at the beginning of
    :meth:`score`, from the pairs of this search alone, so a resumed search decides the same.

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
        judging: what completions are worth, where the LM writes.
        skips: whether unanswerable examples are skipped. False where the order of the calls depends on timing.

    Attributes:
        skipped: (E S,) bool, the columns of the table that are not asked any more.
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
        judging: Judging | None = None,
        skips: bool = True,
    ) -> None:
        self.pool = pool
        self.judging = judging
        self.p0 = p0
        self.part = part
        self.gold = gold
        self.ledger = ledger
        self.writer = writer
        self.search = search
        self.report = report
        self.longest_prompt = 0
        self.candidates = 0  # of which a pair was asked for
        self.pairs = 0  # that were asked for
        digests = list(examples) if examples is not None else [str(i) for i in range(len(part))]
        self.digests = digests
        self.samples = part.samples
        self.table = PairTable(list(dict.fromkeys(digests)), len(part.labels), self.samples)
        first = np.array([self.table.columns[d] for d in digests], dtype=np.int64)
        self.column = (first[:, None] + np.arange(self.samples)).reshape(-1)  # (E S,) of each example and sample
        self.position = np.unique(first, return_index=True)[1].repeat(self.samples)  # and back to the example
        self.skips = skips
        self.skipped = np.zeros(self.table.width, dtype=bool)
        pool.add(part)

    @property
    def size(self) -> int:
        """Evaluations of one candidate: the distinct examples of the part, and the samples of each."""
        return self.table.width

    def restore_asked(self, state: dict[str, Any]) -> None:
        """Take these pairs (``PairTable.asked_state``), and no others, as asked for by this search."""
        self.table.restore_asked(state)
        self.candidates = len(state["whole"]) + len(state["part"])
        self.pairs = int(self.table.asked.sum())

    def score(
        self,
        candidates: Sequence[Candidate],
        token_ids: Sequence[tuple[int, ...]],
        distinct: IntArray | None = None,
        pairs: BoolArray | None = None,
    ) -> Scores:
        """Scores of ``candidates`` (C), whose tokens are ``token_ids``, on the examples of the part.

        ``pairs`` (C, E) says on which examples; None is all.

        New pairs are charged in the candidates' order; where the budget ends in between, the rest is not evaluated:
        it has no rows, and ``Scores.complete`` says so. ``distinct``: only these of the distinct examples
        (:meth:`weights`) are asked for now; what was asked for before stands in the scores as well.

        Raises:
            ScoringError: the LM or the pool failed.
            StoreError: pairs could not be written.
        """
        if distinct is None:
            self.skip_unanswerable()
        self.longest_prompt = max([self.longest_prompt, *(len(ids) for ids in token_ids)])
        rows = self.table.index(candidate.key for candidate in candidates)
        used, first = np.unique(rows, return_index=True)
        order = np.argsort(first)
        used, first = used[order], first[order]
        now = np.ones(self.table.width, dtype=bool)
        if distinct is not None:
            now[:] = False
            now.reshape(-1, self.samples)[distinct] = True
        here = now if pairs is None else self._columns(pairs)
        now = (now if pairs is None else self._columns(pairs, rows, used)) & ~self.skipped
        new = self._charge(used, now)
        wanted = self.table.asked[rows] & here
        # Not only what is new: the file with the score of a pair that was asked for before may have been lost.
        run = self.table.asked[used] & ~self.table.known[used]
        self.ledger.cache_hits += int(wanted.sum()) - int((run & now).sum())
        if run.any():
            self._run([candidates[i] for i in first], [token_ids[i] for i in first], used, run)
        if not self.report:
            self.ledger.asked_tokens += int(self.table.tokens[used][new].sum())
            if self.table.writes:
                self.ledger.asked_written += int(self.table.written[used][new].sum())
            self.ledger.asked_seconds += float(self.table.seconds[used][new].sum(dtype=np.float64))
        return self._collect(candidates, rows, pairs)

    def skip_unanswerable(self) -> None:
        """From here on do not ask the examples that are unanswerable by now."""
        if self.skips:
            self.skipped = self._unanswerable()

    def _unanswerable(self) -> BoolArray:
        return self.table.unanswerable(self.table.asked[: len(self.table)], TRIED)

    def unanswered(self) -> dict[str, Any]:
        """How many pairs were asked for or skipped and how many of them are unanswered, as :func:`tally` has it."""
        table, used = self.table, len(self.table)
        asked = table.asked[:used]
        columns = np.flatnonzero(table.unanswered)
        reason = np.where(asked[:, columns], table.reason[:used][:, columns], Reason.ANSWERED)
        counts = np.bincount(reason.reshape(-1), minlength=len(Reason))
        unanswerable = self._unanswerable()
        if self.skips and unanswerable.any():
            counts[Reason.SKIPPED] = int((~asked[asked.any(axis=1)][:, unanswerable]).sum())
        pairs = self.pairs + int(counts[Reason.SKIPPED])
        return tally(pairs, counts.tolist(), np.sort(self.position[unanswerable])[:: self.samples].tolist())

    def known(self, candidates: Sequence[Candidate]) -> Scores:
        """What was asked for so far of ``candidates`` (C); nothing is scored or charged."""
        return self._collect(candidates, self.table.index(candidate.key for candidate in candidates))

    def recall(self, candidates: Sequence[Candidate], token_ids: Sequence[tuple[int, ...]]) -> Scores:
        """What was asked for so far of ``candidates`` (C); nothing is charged, only a lost score is scored again."""
        return self.score(candidates, token_ids, np.empty(0, dtype=np.int64))

    def asked(self, candidates: Sequence[Candidate]) -> int:
        """How many pairs of different candidates were asked for so far."""
        return int(self.table.asked[self.table.index(candidate.key for candidate in candidates)].sum())

    def new(self, candidates: Sequence[Candidate]) -> IntArray:
        """Where the candidates of which nothing was asked for yet stand in the list, each once."""
        rows = self.table.index(candidate.key for candidate in candidates)
        _, first = np.unique(rows, return_index=True)
        return np.asarray([i for i in np.sort(first) if not self.table.asked[rows[i]].any()], dtype=np.int64)

    def weights(self) -> tuple[IntArray, IntArray]:
        """(D,) how often each distinct example stands in the part, and where it does so first."""
        first, count = np.unique(self.column[:: self.samples] // self.samples, return_counts=True)
        assert (first == np.arange(len(first))).all()
        return count, self.position[:: self.samples]

    def _columns(self, pairs: BoolArray, rows: IntArray | None = None, used: IntArray | None = None) -> BoolArray:
        """Pairs (C, E) as columns of the table (C, E S); of distinct rows, where several candidates may have one."""
        found = np.zeros((len(pairs), self.table.width), dtype=bool)
        for place, column in enumerate(self.column):  # examples that are the same have the same column
            found[:, column] |= pairs[:, place // self.samples]
        if rows is None or used is None:
            return found
        where = {row: i for i, row in enumerate(used.tolist())}
        whole = np.zeros((len(used), self.table.width), dtype=bool)
        np.logical_or.at(whole, [where[row] for row in rows.tolist()], found)
        return whole

    def _charge(self, rows: IntArray, now: BoolArray) -> BoolArray:
        """Charge what is new ``now`` (E S,) of distinct rows (C,), as far as the budget goes, and mark it: (C, E S).

        ``now`` may be (C, E S), too.
        """
        asked = self.table.asked[rows]
        new = ~asked & now
        if self.report:
            self.ledger.report_evaluations += int(new.sum())
        else:
            count = np.cumsum(new.reshape(-1)).reshape(new.shape)
            new &= count <= self.ledger.remaining
            self.ledger.charge(int(new.sum()))
        self.pairs += int(new.sum())
        self.candidates += int((new.any(axis=1) & ~asked.any(axis=1)).sum())
        self.table.asked[rows] |= new
        return new

    def _run(
        self, candidates: list[Candidate], token_ids: list[tuple[int, ...]], rows: IntArray, run: BoolArray
    ) -> None:
        """Have the LM score the marked pairs (C, E S) of distinct candidates, keep and store them as they come."""
        candidate, column = np.nonzero(run)
        if isinstance(self.pool, ReplayPool):
            keys, texts = ([c.key for c in candidates], [c.to_json().get("text", "(soft)") for c in candidates])
            raise self.pool.missing(
                [keys[i] for i in candidate.tolist()],
                [texts[i] for i in candidate.tolist()],
                [self.table.examples[i // self.samples] for i in column.tolist()],
                "report" if self.report else "train",
            )
        soft = [c if isinstance(c, SoftPrompt) else None for c in candidates]
        keys = [c.key for c in candidates]
        asked = self.pool.answers(
            self.part,
            token_ids,
            candidate,
            self.position[column],
            column % self.samples,
            search=self.search,
            soft=soft,
            p0=self.p0,
        )
        try:
            for some, answers, cost in asked:
                self._take(keys, rows, candidate[some], column[some], answers)
                self.ledger.lm_evaluations += cost.lm_evaluations
                self.ledger.shape_breaks += cost.breaks
        finally:
            if self.writer is not None and not self.pool.deterministic:
                self.writer.flush()  # asked again, it might answer otherwise: what is told stands in a file

    def _take(self, keys: list[str], rows: IntArray, candidate: IntArray, column: IntArray, answers: Answers) -> None:
        """Keep and store the answers to some pairs."""
        self._end_cuts(answers)
        answers.settle()
        self.table.fill(rows[candidate], column, answers)
        if self.writer is not None:
            self.writer.add(keys, candidate, column, self._values(answers, self.position[column]), answers)
            if not self.pool.deterministic:
                self.writer.tick()
        self.ledger.tokens += int(answers.tokens.sum())
        self.ledger.written += 0 if answers.written is None else int(answers.written.sum())
        self.ledger.seconds += float(answers.seconds.sum())

    def _end_cuts(self, answers: Answers) -> None:
        """Decide which answers of a service are answers although they were cut, in place, and count what was cut.

        A chat LM ends by itself: what it wrote before it was cut is no answer, unless an answer is there that nothing
        behind it can change. Other LMs write on and on: what they wrote is judged, if there is an answer in it.
        """
        if answers.cut is None or answers.completion is None:
            return
        self.ledger.cut += int(answers.cut.sum())
        judge = None if self.judging is None else self.judging.judge
        if judge is None or (self.pool.chats and not judge.extractor.takes_first):
            return
        for i in np.flatnonzero(answers.reason == Reason.CUT):
            text = answers.completion[i]
            if text is not None and judge.answer(text) is not None:
                answers.reason[i] = Reason.ANSWERED

    def _values(self, answers: Answers, example: IntArray) -> FloatArray:
        """(P,) what answers are worth; NaN = unanswered, which is not a wrong answer."""
        if answers.completion is None:
            value = right(answers.label_log_probs, self.gold[example])
            value[answers.reason != Reason.ANSWERED] = np.nan
            return value
        value = np.full(len(answers), np.nan)
        there = np.flatnonzero(answers.reason == Reason.ANSWERED)
        value[there] = self._judged(answers.completion[there].tolist(), example[there])
        return value

    def _judged(self, completions: Sequence[str | None], example: IntArray) -> FloatArray:
        if self.judging is None:
            raise ScoringError("the LM writes, and nothing is said of how that is judged")
        gold = self.judging.gold
        return self.judging.judge.values(completions, [gold[int(i)] for i in example], self.pool.judge)

    def _judge(self, row: IntArray, column: IntArray) -> FloatArray:
        """(P,) the values of answered completions, each judged once."""
        table = self.table
        value = table.value[row, column]
        new = np.flatnonzero(np.isnan(value))
        if len(new):
            value[new] = self._judged(table.completion[row[new], column[new]].tolist(), self.position[column[new]])
            table.value[row[new], column[new]] = value[new]
        return np.asarray(value, dtype=np.float64)

    def _collect(self, candidates: Sequence[Candidate], rows: IntArray, pairs: BoolArray | None = None) -> Scores:
        table, columns = self.table, self.column
        asked = table.asked[rows][:, columns]
        there = asked | self.skipped[columns]
        candidate, place = np.nonzero(there if pairs is None else there & pairs.repeat(self.samples, axis=1))
        row, column = rows[candidate], columns[place]
        example, sample = place // self.samples, place % self.samples
        reason = np.where(asked[candidate, place], table.reason[row, column], Reason.SKIPPED)
        missing, keep = np.flatnonzero(reason), np.flatnonzero(reason == Reason.ANSWERED)
        errors = pair_errors(candidate[missing], example[missing], sample[missing], reason[missing])
        answers = table.answers(row[keep], column[keep])
        if table.writes:
            value = self._judge(row[keep], column[keep])
        else:
            value = right(answers.label_log_probs, self.gold[example[keep]])
        return Scores(
            candidates=tuple(candidates),
            examples=np.arange(len(self.gold)),
            candidate=candidate[keep],
            example=example[keep],
            sample=sample[keep].astype(np.int16),
            value=value,
            label_log_probs=None if table.writes else answers.label_log_probs,
            tokens=answers.tokens,
            seconds=answers.seconds,
            completion=None if answers.completion is None else tuple(answers.completion.tolist()),
            errors=errors,
            samples=self.samples,
            asked=pairs,
        )
