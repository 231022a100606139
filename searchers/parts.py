"""Prompts as rows of parts (words, phrases, tokens): how they are changed, and what they look like to a model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from rayprompt.candidate import TextPrompt
from rayprompt.reward.gaussian import Block
from rayprompt.scores import FloatArray, IntArray
from rayprompt.searcher.problem import VECTOR_DIMS, Option, Problem

Row = tuple[int, ...]
SPARE = 4096  # parts that may come to those given before two must share a column
PLACES = 6  # of a part in its prompt that are told apart; those behind count as the last
NEAR_PLACES, NEAR = 5, (128, 256)  # features that are alike for parts used alike: of the whole, of each place
NEAREST = 24  # parts that are near another one
OPERATIONS = ("replace", "near", "add", "delete", "swap", "join")
WEIGHTS = (0.3, 0.25, 0.1, 0.1, 0.1, 0.15)


class Parts:
    """The parts that prompts are made of, numbered; new ones come with the prompts that are looked at.

    Args:
        problem: whose tokens they are.
        options: words or phrases to begin with; changes are made with these.
    """

    def __init__(self, problem: Problem, options: Sequence[Option]) -> None:
        self.problem = problem
        self.options: list[Option] = []
        self.vectors: list[FloatArray] = []
        self._first: dict[tuple[int, ...], int] = {}
        self._later: dict[tuple[int, ...], int] = {}
        self._longest = 1  # tokens of a part
        self.raw: set[int] = set()  # of which the text alone does not give the token
        self._tokens = problem.token_vectors().astype(np.float32)
        for option in options:
            self._add(option)
        self.given = len(self.options)
        self.columns = self.given + SPARE
        self._near: dict[int, IntArray] = {}
        self._unit: FloatArray | None = None

    def row(self, prompt: TextPrompt) -> Row:
        """The parts of a prompt, the longest known ones first; what is not known becomes a part."""
        ids = prompt.token_ids if prompt.token_ids is not None else self.problem.prompt(prompt.text).token_ids or ()
        found = self._known(ids)
        if found is not None:
            return found
        words = prompt.text.split()
        if words and self.problem.prompt(" ".join(words)).token_ids == ids:
            for option in self.problem.options(words):
                self._add(option)
            found = self._known(ids)
            if found is not None:
                return found
        for token in ids:
            if (token,) not in self._later:
                text = self.problem.decoded((token,)).text or "?"
                self.raw.add(self._add(Option(text, (token,), (token,))))
        return self._known(ids, alone=True) or ()

    def prompt(self, row: Row) -> TextPrompt:
        """The prompt of some parts."""
        options = [self.options[i] for i in row]
        ids = tuple(t for n, option in enumerate(options) for t in (option.later if n else option.first))
        if self.raw.intersection(row):
            return self.problem.decoded(ids)
        return TextPrompt(" ".join(option.text for option in options), ids)

    def restore(self, options: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], raw: Sequence[int]) -> None:
        """Add the parts that came later, with their numbers."""
        for text, first, later in options:
            self._add(Option(text, tuple(first), tuple(later)))
        self.raw = set(raw)

    def near(self, part: int) -> IntArray:
        """Parts that are used like this one, of those that it began with."""
        if part not in self._near:
            if self._unit is None:
                some = np.stack(self.vectors[: self.given])
                self._unit = some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-9)
            order = np.argsort(-(self._unit @ self.vectors[part]), kind="stable")[: NEAREST + 1]
            self._near[part] = order[order != part][:NEAREST]
        return self._near[part]

    def blocks(self, rows: Sequence[Row]) -> list[Block]:
        """Features of N prompts: which parts, which part where, and smooth functions of the parts' vectors."""
        sizes = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((i for row in rows for i in row), np.int64, int(sizes.sum()))
        prompt = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(flat)) - (sizes.cumsum() - sizes).repeat(sizes)
        column = np.where(flat < self.columns, flat, flat % self.columns)
        weight = 1 / np.sqrt(np.maximum(sizes, 1)).repeat(sizes)
        bag = sparse.csr_matrix((weight, (prompt, column)), shape=(len(rows), self.columns))
        at = np.minimum(place, PLACES - 1) * self.columns + column
        where = sparse.csr_matrix((weight, (prompt, at)), shape=(len(rows), PLACES * self.columns))
        vectors = np.stack(self.vectors) if self.vectors else np.zeros((0, VECTOR_DIMS), dtype=np.float32)
        mean = bag_mean(vectors[flat], prompt, sizes, len(rows))
        each = np.zeros((len(rows), NEAR_PLACES, VECTOR_DIMS), dtype=np.float32)
        inside = place < NEAR_PLACES
        each[prompt[inside], place[inside]] = vectors[flat[inside]]
        smooth = [
            waves(mean, NEAR[0], 0.6, seed=1),
            waves(each.reshape(len(rows), -1), NEAR[1], 3.0, seed=2),
        ]
        return [bag, where, *smooth]

    def _known(self, ids: tuple[int, ...], *, alone: bool = False) -> Row | None:
        """Ids as known parts, the longest first; ``alone``: single tokens as later parts only."""
        longest = 1 if alone else self._longest
        found: list[int] = []
        at = 0
        while at < len(ids):
            index = self._later if found or alone else self._first
            for size in range(min(longest, len(ids) - at), 0, -1):
                part = index.get(ids[at : at + size])
                if part is not None:
                    found.append(part)
                    at += size
                    break
            else:
                return None
        return tuple(found)

    def _add(self, option: Option) -> int:
        if option.later in self._later:
            return self._later[option.later]
        number = len(self.options)
        self.options.append(option)
        self._later[option.later] = number
        self._first.setdefault(option.first, number)
        self._longest = max(self._longest, len(option.first), len(option.later))
        ids = np.array(option.later, dtype=np.int64)
        known = len(self._tokens) and len(ids)
        self.vectors.append(self._tokens[ids].mean(axis=0) if known else hashed(option.text))
        return number


def bag_mean(vectors: FloatArray, prompt: IntArray, sizes: IntArray, count: int) -> FloatArray:
    """(N, d) the mean of the vectors of each prompt's parts."""
    total = np.zeros((count, VECTOR_DIMS), dtype=np.float32)
    np.add.at(total, prompt, vectors)
    return np.asarray(total / np.maximum(sizes, 1)[:, None])


def waves(x: FloatArray, count: int, width: float, *, seed: int) -> FloatArray:
    """(N, count) random Fourier features (Rahimi and Recht, 2007) of a Gaussian kernel of that width on x (N, d)."""
    rng = np.random.Generator(np.random.Philox(seed))
    frequencies = (rng.standard_normal((x.shape[1], count)) / width).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    return np.asarray(np.sqrt(np.float32(2 / count)) * np.cos(x @ frequencies + phases))


def hashed(text: str) -> FloatArray:
    """(d,) a vector of a text's character trigrams, for LMs whose embeddings cannot be had."""
    found = np.zeros(VECTOR_DIMS, dtype=np.float32)
    padded = f" {text.lower()} "
    for i in range(len(padded) - 2):
        code = zlib.crc32(padded[i : i + 3].encode())
        found[code % VECTOR_DIMS] += 1.0 if code & 1024 else -1.0
    return np.asarray(found / max(1e-9, float(np.linalg.norm(found))))


def edited(parts: Parts, row: Row, others: Sequence[Row], longest: int, rng: np.random.Generator) -> Row:
    """A prompt with one or two changes: a part or a phrase replaced, added, deleted, moved, or joined from another.

    Args:
        parts: what new parts are drawn from.
        row: the prompt.
        others: other good prompts, whose phrases it may get.
        longest: parts of a prompt, at most; one that is longer already does not grow.
        rng: what is drawn from.
    """
    changed = list(row)
    for _ in range(1 + int(rng.random() < 0.3)):
        operation = OPERATIONS[int(np.searchsorted(np.cumsum(WEIGHTS), rng.random() * 0.999999, side="right"))]
        changed = _change(parts, changed, operation, others, longest, rng)
    return tuple(changed[: max(longest, len(row))])


def _change(
    parts: Parts, row: list[int], operation: str, others: Sequence[Row], longest: int, rng: np.random.Generator
) -> list[int]:
    fresh = int(rng.integers(parts.given))
    if not row or (operation == "add" and len(row) < longest):
        at = int(rng.integers(len(row) + 1))
        return [*row[:at], fresh, *row[at:]]
    at = int(rng.integers(len(row)))
    end = min(len(row), at + 1 + int(rng.random() < 0.25))  # now and then a phrase of two
    if operation == "near":
        near = parts.near(row[at])
        return [*row[:at], int(near[rng.integers(len(near))]) if len(near) else fresh, *row[at + 1 :]]
    if operation == "delete" and len(row) > end - at:
        return [*row[:at], *row[end:]]
    if operation == "swap" and len(row) > 1:
        phrase, rest = row[at:end], [*row[:at], *row[end:]]
        to = int(rng.integers(len(rest) + 1))
        return [*rest[:to], *phrase, *rest[to:]]
    if operation == "join" and others:
        other = others[int(rng.integers(len(others)))]
        cut = int(rng.integers(len(other) + 1))
        return ([*row[:at], *other[cut:]] if rng.random() < 0.5 else [*other[:cut], *row[at:]]) or row
    return [*row[:at], fresh, *row[at + (end - at if len(row) > 2 else 1) :]]
