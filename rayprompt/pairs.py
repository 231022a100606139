"""PairTable: what one search knows of the pairs of one part, candidates x examples, as dense arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.scores import BoolArray, FloatArray, IntArray, ObjectArray
from rayprompt.unanswered import Reason

FIRST_ROWS = 64
BLANK = {"completion": None, "value": np.nan}


@dataclass
class Answers:
    """What an LM gave for P pairs: of classification log-probabilities, else a completion.

    Attributes:
        label_log_probs: (P, L) float32 of the label words; L is 0 where the LM writes.
        tokens: (P,) int32 of the LM's input and output, padding not counted.
        seconds: (P,) float32, each pair's share of the time of its batch.
        completion: (P,) what the LM wrote, None where it failed; None as a whole where it is only read. A completion
            that was cut may keep its text here: ``reason`` says that it is no answer.
        written: (P,) int32, the tokens of the completions.
        reason: (P,) int8 of :class:`~rayprompt.unanswered.Reason`, 0 where the pair was answered. None reads it off the
            answers: NaN where a log-probability is NaN, FAILED where there is no completion.
        cut: (P,) bool, which completions the limit of new tokens ended; None where that is not known.
    """

    label_log_probs: FloatArray
    tokens: IntArray
    seconds: FloatArray
    completion: ObjectArray | None = None
    written: IntArray | None = None
    reason: IntArray = None  # type: ignore[assignment]
    cut: BoolArray | None = None

    def __post_init__(self) -> None:
        if self.reason is None:
            self.reason = np.zeros(len(self.tokens), dtype=np.int8)
            self.settle()

    @classmethod
    def empty(cls, pairs: int, labels: int) -> Answers:
        """Room for P pairs and L labels; L = 0: completions. The reason is ANSWERED until something else is entered."""
        return cls(
            np.full((pairs, labels), np.nan, dtype=np.float32),
            np.zeros(pairs, dtype=np.int32),
            np.zeros(pairs, dtype=np.float32),
            None if labels else np.full(pairs, None, dtype=object),
            None if labels else np.zeros(pairs, dtype=np.int32),
            np.zeros(pairs, dtype=np.int8),
            None if labels else np.zeros(pairs, dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def put(self, rows: IntArray, answers: Answers) -> None:
        """Enter the answers of some rows."""
        for name, column in vars(answers).items():
            if column is not None:
                getattr(self, name)[rows] = column

    def take(self, rows: IntArray) -> Answers:
        """Some rows."""
        return Answers(
            self.label_log_probs[rows],
            self.tokens[rows],
            self.seconds[rows],
            None if self.completion is None else self.completion[rows],
            None if self.written is None else self.written[rows],
            self.reason[rows],
            None if self.cut is None else self.cut[rows],
        )

    def settle(self) -> BoolArray:
        """Make reason and answers agree, in place; gives (P,) which pairs are unanswered.

        A pair with NaN log-probabilities or no completion gets a reason where it has none. Where there is a reason, the
        log-probabilities become NaN.
        """
        if self.completion is None:
            missing, why = np.isnan(self.label_log_probs).any(axis=1), Reason.NAN
        else:
            missing = np.array([text is None for text in self.completion.tolist()], dtype=bool)
            why = Reason.FAILED
        self.reason[missing & (self.reason == Reason.ANSWERED)] = why
        found: BoolArray = self.reason != Reason.ANSWERED
        if (found & ~missing).any() and self.completion is None:
            self.label_log_probs[found] = np.nan
        return found


class PairTable:
    """A row per candidate key, a column per example and sample; grows by doubling. E examples, S samples, L labels.

    Two facts of a pair are kept apart: it may be ``known`` (there is a score, from the LM or from a store), and it may
    be ``asked`` (this search asked for it, so it is charged). A row's numbers are valid where ``known``.

    Attributes:
        rows: candidate key -> row.
        samples: S; sample k of example e is column e S + k.
        log_probs: (capacity, E S, L) float32.
        tokens: (capacity, E S) int32.
        written, completion: (capacity, E S) tokens and text of what the LM wrote; None = it failed. Only where L is 0.
        value: (capacity, E S) float32, what that is worth; NaN = not judged yet. Only where L is 0.
        seconds: (capacity, E S) float32.
        reason: (capacity, E S) int8 of :class:`~rayprompt.unanswered.Reason`.
        unanswered: (E S,) bool, the columns with an unanswered pair of any row.
        known, asked: (capacity, E S) bool.
    """

    def __init__(self, examples: Sequence[str], labels: int, samples: int = 1) -> None:
        self.examples = list(examples)
        self.samples = samples
        self.columns = {digest: i * samples for i, digest in enumerate(self.examples)}
        if len(self.columns) < len(self.examples):
            raise InputError("an example stands twice in a pair table; give each digest once")
        self.rows: dict[str, int] = {}
        size = self.width = len(self.examples) * samples
        self.log_probs: FloatArray = np.empty((0, size, labels), dtype=np.float32)
        self.tokens: IntArray = np.empty((0, size), dtype=np.int32)
        self.seconds: FloatArray = np.empty((0, size), dtype=np.float32)
        self.reason: IntArray = np.empty((0, size), dtype=np.int8)
        self.unanswered = np.zeros(size, dtype=bool)
        self.known = np.zeros((0, size), dtype=bool)
        self.asked = np.zeros((0, size), dtype=bool)
        self.completion: ObjectArray = np.full((0, size), None, dtype=object)
        self.written: IntArray = np.empty((0, size), dtype=np.int32)
        self.value: FloatArray = np.empty((0, size), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def writes(self) -> bool:
        """Whether answers are completions."""
        return bool(self.log_probs.shape[2] == 0)

    def index(self, keys: Iterable[str]) -> IntArray:
        """The row of each key; keys that are new get one."""
        rows = self.rows
        found = np.fromiter((rows.setdefault(key, len(rows)) for key in keys), dtype=np.int64)
        if len(rows) > len(self.known):
            self._grow(len(rows))
        return found

    def fill(self, row: IntArray, column: IntArray, answers: Answers) -> IntArray:
        """Enter the answers to P pairs; where one is known already, or given twice, the first stands.

        Returns:
            the indices of the pairs that were entered.
        """
        flat = row * self.width + column
        new = np.flatnonzero(~self.known.reshape(-1)[flat])
        _, first = np.unique(flat[new], return_index=True)
        new = new[np.sort(first)]
        row, column = row[new], column[new]
        self.log_probs[row, column] = answers.label_log_probs[new]
        self.tokens[row, column] = answers.tokens[new]
        self.seconds[row, column] = answers.seconds[new]
        self.reason[row, column] = answers.reason[new]
        self.unanswered[column[answers.reason[new] != Reason.ANSWERED]] = True
        if self.writes and answers.completion is not None and answers.written is not None:
            self.completion[row, column] = answers.completion[new]
            self.written[row, column] = answers.written[new]
        self.known[row, column] = True
        return np.asarray(new)

    def answers(self, row: IntArray, column: IntArray) -> Answers:
        """What is known of P pairs."""
        completion, written = (self.completion[row, column], self.written[row, column]) if self.writes else (None, None)
        return Answers(
            self.log_probs[row, column],
            self.tokens[row, column],
            self.seconds[row, column],
            completion,
            written,
            self.reason[row, column],
        )

    def unanswerable(self, tried: BoolArray, least: int) -> BoolArray:
        """(E S,) the columns of examples on which ``least`` rows or more were ``tried`` (R, E S), and none answered.

        A row is tried on an example where a sample of it is. ``tried`` pairs that are not known count as answered.
        """
        found = np.zeros(len(self.examples), dtype=bool)
        some = np.flatnonzero(self.unanswered.reshape(-1, self.samples).any(axis=1))
        if len(some):
            used, shape = len(tried), (len(tried), len(some), self.samples)
            columns = (some[:, None] * self.samples + np.arange(self.samples)).reshape(-1)
            asked = tried[:, columns].reshape(shape)
            missing = (self.known[:used, columns] & (self.reason[:used, columns] != Reason.ANSWERED)).reshape(shape)
            found[some] = (asked.any(axis=2).sum(axis=0) >= least) & ~(asked & ~missing).any(axis=(0, 2))
        return found.repeat(self.samples)

    def asked_state(self) -> dict[str, Any]:
        """Which pairs were asked for, as plain data: keys of whole rows, and masks of the others."""
        used = len(self.rows)
        whole, some = self.asked[:used].all(axis=1), self.asked[:used].any(axis=1)
        keys = list(self.rows)
        return {
            "whole": [keys[i] for i in np.flatnonzero(whole)],
            "part": {keys[i]: np.packbits(self.asked[i]).tobytes() for i in np.flatnonzero(some & ~whole)},
        }

    def restore_asked(self, state: dict[str, Any]) -> None:
        """Mark what :meth:`asked_state` listed, and nothing else, as asked for."""
        self.asked[:] = False
        whole, part = self.index(state["whole"]), self.index(state["part"])  # before `asked` is looked at: it may grow
        self.asked[whole] = True
        for row, packed in zip(part, state["part"].values(), strict=True):
            bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=self.width)
            self.asked[row] = bits.astype(bool)

    def _grow(self, need: int) -> None:
        size = max(FIRST_ROWS, len(self.known))
        while size < need:
            size *= 2
        own = ("completion", "written", "value") if self.writes else ()
        for name in ("log_probs", "tokens", "seconds", "reason", "known", "asked", *own):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            if name in BLANK:
                new[:] = BLANK[name]
            new[: len(old)] = old
            setattr(self, name, new)
