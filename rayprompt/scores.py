"""Scores: columns over evaluated pairs (candidate, example, sample). Plain data, NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayprompt.candidate import Candidate
from rayprompt.errors import InputError
from rayprompt.unanswered import Reason, tally

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]
ObjectArray = npt.NDArray[np.object_]


@dataclass(frozen=True)
class PairError:
    """An unanswered pair: it was asked (or skipped, see ``reason``), and there is no usable answer.

    It is not an unevaluated pair: every metric and objective counts it as not right.
    """

    candidate: int
    example: int
    message: str
    reason: Reason = Reason.FAILED
    sample: int = 0


@dataclass(frozen=True)
class Scores:
    """What the LM said about ``candidates`` (C) on ``examples`` (E): one row per answered pair (P).

    A pair without an answer has no row; it is in ``errors``. :meth:`dense`, :meth:`mean_value`, :meth:`counts` and
    every objective count it as not right: its value is 0, and its labels are equally likely.

    Attributes:
        candidates: the C candidates, in the order they were asked for.
        examples: (E,) positions of the examples in their split.
        candidate: (P,) index into ``candidates``.
        example: (P,) index into ``examples`` (the column of the dense view).
        sample: (P,) number of the sample of this pair; 0 where scoring is deterministic.
        value: (P,) the task metric of that pair: 1 right, 0 wrong. A label that is only as likely as another
            one is not right.
        label_log_probs: (P, L) log-softmax over the label words' logits, or None where the LM gives none.
        tokens: (P,) tokens of the LM's input, padding not counted.
        seconds: (P,) the pair's share of the time of its batch.
        completion: (P,) what the LM wrote, where it writes; else None.
        errors: the unanswered pairs (U).
        objective: (C,) the objective's values where the caller has only those, else None.
        evaluated: with ``objective``, (C,) which candidates were evaluated at all; None is all of them.
        samples: of each pair, where it is evaluated in full.
        estimate: of a generation that raced, (C,) what the objective of those that were dropped is estimated to be,
            -inf where they got no answer at all, and NaN for the others; None: there was no race.
        asked: (C, E) the pairs that were asked for; None is all of them.
    """

    candidates: tuple[Candidate, ...]
    examples: IntArray
    candidate: IntArray
    example: IntArray
    sample: IntArray
    value: FloatArray
    label_log_probs: FloatArray | None
    tokens: IntArray
    seconds: FloatArray
    completion: tuple[str, ...] | None = None
    errors: tuple[PairError, ...] = ()
    objective: FloatArray | None = None
    evaluated: BoolArray | None = None
    samples: int = 1
    estimate: FloatArray | None = None
    asked: BoolArray | None = None

    @classmethod
    def of_values(
        cls, candidates: Sequence[Candidate], objective: FloatArray, evaluated: BoolArray | None = None
    ) -> Scores:
        """Scores without pairs, from a caller that has one number (C,) per candidate: a user's own trainable."""
        none = np.empty(0, dtype=np.int32)
        return cls(
            candidates=tuple(candidates),
            examples=none,
            candidate=none,
            example=none,
            sample=none,
            value=np.empty(0),
            label_log_probs=None,
            tokens=none,
            seconds=np.empty(0),
            objective=np.asarray(objective, dtype=np.float64),
            evaluated=evaluated,
        )

    def __len__(self) -> int:
        return len(self.value)

    def dense(self, column: str = "value") -> FloatArray:
        """A column as (candidates, examples), the mean over samples; NaN = not evaluated.

        ``label_log_probs`` gives (candidates, examples, labels). An unanswered pair has the value 0 and the
        log-probability -log L for each of the L labels. ``tokens`` and ``seconds`` are means over the answered samples.

        Raises:
            InputError: there is no such column, or the LM gave no log-probabilities.
        """
        if column not in ("value", "label_log_probs", "tokens", "seconds"):
            raise InputError(f"no dense view of {column!r}; known: value, label_log_probs, tokens, seconds")
        data = getattr(self, column)
        if data is None:
            raise InputError("these scores have no label_log_probs: the LM gave none")
        shape = (len(self.candidates), len(self.examples))
        total = np.zeros(shape + data.shape[1:], dtype=np.float64)
        count = np.zeros(shape, dtype=np.int64)
        np.add.at(total, (self.candidate, self.example), data)
        np.add.at(count, (self.candidate, self.example), 1)
        if self.errors and column in ("value", "label_log_probs"):
            candidate, example, _, _ = self.unanswered
            np.add.at(total, (candidate, example), 0.0 if column == "value" else -np.log(data.shape[1]))
            np.add.at(count, (candidate, example), 1)
        count = count.reshape(shape + (1,) * (data.ndim - 1))
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), dtype=np.float64)

    def judged(self) -> FloatArray:
        """(C, E) as ``dense("value")``, but NaN where there is no answer: what a model of right answers may learn."""
        return replace(self, errors=()).dense("value")

    def complete(self) -> BoolArray:
        """(C,) whether all that was asked for was evaluated; an unanswered pair counts as evaluated."""
        if self.evaluated is not None:
            return self.evaluated
        shape = (len(self.candidates), len(self.examples))
        pairs = self.candidate * np.int64(shape[1]) + self.example
        done = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        np.add.at(done, self.unanswered[:2], 1)
        enough = done >= self.samples
        return np.asarray((enough if self.asked is None else enough | ~self.asked).all(axis=1))

    @property
    def dropped(self) -> BoolArray:
        """(C,) which candidates a race has dropped: their other examples are not to come."""
        none = np.zeros(len(self.candidates), dtype=bool)
        return none if self.estimate is None else np.asarray(~np.isnan(self.estimate))

    def settled(self) -> BoolArray:
        """(C,) whether all that is to come is there: every example was evaluated, or a race has dropped it."""
        return np.asarray(self.complete() | self.dropped)

    def mean_value(self) -> FloatArray:
        """(C,) the mean of ``value`` over the evaluated pairs, unanswered ones as 0; NaN where none was answered."""
        count = self.counts()
        total = np.bincount(self.candidate, weights=self.value, minlength=len(self.candidates))
        return np.asarray(np.where(self.answered(), total / np.maximum(count, 1), np.nan), dtype=np.float64)

    @cached_property
    def unanswered(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Candidate, example, sample and reason of the unanswered pairs, each (U,)."""
        rows = [(e.candidate, e.example, e.sample, int(e.reason)) for e in self.errors]
        candidate, example, sample, reason = np.array(rows, dtype=np.int64).reshape(-1, 4).T
        return candidate, example, sample, reason

    def counts(self) -> IntArray:
        """(C,) evaluated pairs, the unanswered ones included."""
        both = np.concatenate([np.asarray(self.candidate, dtype=np.int64), self.unanswered[0]])
        return np.bincount(both, minlength=len(self.candidates))

    def answered(self) -> BoolArray:
        """(C,) whether the LM answered a pair at all; a candidate without a single answer has failed."""
        return np.asarray(np.bincount(self.candidate, minlength=len(self.candidates)) > 0)

    def to_dict(self) -> dict[str, Any]:
        """One Python list per column (``pyarrow.table(scores.to_dict())`` and pandas take it as it is).

        A row per evaluated pair, unanswered ones included: those have the value 0, a ``reason`` (``refused``,
        ``failed``, ...; empty where the pair was answered), and None for what the LM did not give.
        """
        prompts = [c.to_json().get("text", "") for c in self.candidates]
        reasons = [Reason(r).label for r in self.unanswered[3].tolist()]
        candidate, example, sample = (
            np.concatenate([np.asarray(own, dtype=np.int64), missing])
            for own, missing in zip((self.candidate, self.example, self.sample), self.unanswered[:3], strict=True)
        )
        order = np.lexsort((sample, example, candidate)) if reasons else np.arange(len(self))

        def column(values: Sequence[Any], missing: Any = None) -> list[Any]:
            whole = [*values, *([missing] * len(reasons))]
            return [whole[i] for i in order.tolist()]

        columns: dict[str, Any] = {
            "candidate_key": [self.candidates[i].key for i in candidate[order]],
            "prompt": [prompts[i] for i in candidate[order]],
            "example": self.examples[example[order]].tolist(),
            "sample": sample[order].tolist(),
            "value": column(self.value.tolist(), 0.0),
            "tokens": column(self.tokens.tolist()),
            "seconds": column(self.seconds.tolist()),
            "reason": [([""] * len(self) + reasons)[i] for i in order.tolist()],
        }
        if self.label_log_probs is not None:
            columns["label_log_probs"] = column(self.label_log_probs.tolist())
        if self.completion is not None:
            columns["completion"] = column(self.completion)
        return columns


def tally_of(found: Sequence[Scores]) -> dict[str, Any]:
    """How many pairs of some scores on one part are unanswered, as :func:`rayprompt.unanswered.tally` has it."""
    answered = np.unique(np.concatenate([scores.example for scores in found]))
    rows = np.concatenate([np.stack(scores.unanswered) for scores in found], axis=1)
    counts = np.bincount(rows[3], minlength=len(Reason))
    nobody = np.setdiff1d(rows[1], answered).tolist()
    return tally(sum(int(scores.counts().sum()) for scores in found), counts.tolist(), nobody)


def right(label_log_probs: FloatArray, gold: IntArray) -> FloatArray:
    """(P,) 1 where the gold label (P,) is strictly the most likely of (P, L), else 0.

    Strictly: in bfloat16 labels often tie, and a tie is no answer (it must not depend on the labels' order).
    """
    rows = np.arange(len(gold))
    others = np.array(label_log_probs, dtype=np.float64)
    own = others[rows, gold].copy()
    others[rows, gold] = -np.inf
    return np.asarray(own > others.max(axis=1), dtype=np.float64)


def pair_errors(candidate: IntArray, example: IntArray, sample: IntArray, reason: IntArray) -> tuple[PairError, ...]:
    """The unanswered pairs of (U,) columns."""
    rows = zip(candidate.tolist(), example.tolist(), sample.tolist(), reason.tolist(), strict=True)
    return tuple(PairError(c, e, Reason(r).meaning, Reason(r), s) for c, e, s, r in rows)
