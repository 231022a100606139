"""Shapes of forward passes: fixed tables, so that a score does not depend on chance.

A forward pass gives other last bits in another shape. So the shape of a pass follows from the pair alone (its own
length, and that of what it shares), and a pass that is not full is filled up with dummies. Where inputs lie end to end
only the number of tokens in all is the shape of the linear layers; which others are in the pass changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayprompt.candidate import digest
from rayprompt.lm.encode import EncodedPart
from rayprompt.scores import IntArray

DeviceClass = Literal["cpu", "cuda"]
Reuse = Literal["none", "text", "prompt"]
LENGTHS = (*range(8, 129, 8), *range(144, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), 1536, 2048, 3072, 4096)
TOKENS_A_PASS: dict[DeviceClass, int] = {"cpu": 512, "cuda": 16384}
MOST_ROWS: dict[DeviceClass, int] = {"cpu": 16, "cuda": 512}
PREFIX_SHARE = 4  # a pass that computes prefixes alone has this share of the tokens of others
TEXT_SHARE = 2  # a pass over what stands behind cached texts, a few tokens an input, has this share of the tokens
LONG = 16  # own tokens from which on a fused kernel is faster, though the prefix is copied for it
CELL = 4  # inputs that meet the prefix they share in one product
PACKED_LENGTHS = (*range(1, 9), *range(10, 17, 2), *(n for n in LENGTHS if n > 16), *(8192 << i for i in range(12)))
READS: dict[Reuse, int] = {"none": 8, "text": 2, "prompt": 8}  # tokens of a pass for one input that is read


@dataclass(frozen=True)
class Layout:
    """How an LM can be given its inputs, each with the score of a plain forward pass of it alone.

    Attributes:
        kind: ``packed``: end to end. ``padded``: rows padded to one length. ``single``: one row a pass, not padded.
        token_bytes: of the keys and values of a token that inputs share; None where they are not packed.
        reach: inputs of more tokens than that, those of label words included, are given one a pass; None is none.
        reason: why inputs cannot share a pass, for people; empty where they can.
        writes: ``padded``: rows padded on the left, with a cache; ``single``: one row a pass; ``recomputed``: without
            a cache.
    """

    kind: Literal["packed", "padded", "single"]
    token_bytes: float | None = None
    reach: int | None = None
    reason: str = ""
    writes: Literal["padded", "single", "recomputed"] = "padded"

    def to_json(self) -> dict[str, Any]:
        """For study.yaml: nothing where all inputs can share passes."""
        found = {"one_a_pass": self.reason, "one_a_pass_beyond": self.reach, "written": self.writes}
        return {name: value for name, value in found.items() if value and value != "padded"}

    def notes(self, name: str, longest: int, *, writes: bool) -> list[str]:
        """Lines for people on what the LM ``name`` cannot do together.

        Args:
            name: of the LM.
            longest: tokens of the longest text.
            writes: the LM is asked to write.
        """
        if writes:
            if self.writes == "padded":
                return []
            how = "one a pass" + (", without a cache" if self.writes == "recomputed" else "")
            return [f"{name}: texts are written {how}, since writing them together changes them: this is slower"]
        if self.kind == "single":
            return [f"{name}: inputs are scored one a pass, since {self.reason}: this is slower"]
        if self.reach is not None and longest > self.reach:
            return [f"{name}: inputs of more than {self.reach} tokens are scored one a pass: this is slower"]
        return []


@dataclass(frozen=True)
class Inputs:
    """What n inputs are laid out by; one that shares its first tokens with others need not compute them.

    Attributes:
        tokens: (n,) of each, all in all; the last ones are the nodes of the label words, where there are any.
        read, start: (n,) where it is read and where its prompt begins.
        split: (n,) how many of its tokens stand in a prefix; it is read behind them.
        prefix: (n,) tokens of that prefix, at least ``split``; 0 = it has none.
        group: (n,) inputs with the same number share their prefix.
    """

    tokens: IntArray
    read: IntArray
    start: IntArray
    split: IntArray
    prefix: IntArray
    group: IntArray

    @property
    def own(self) -> IntArray:
        """(n,) tokens of each that are computed for it alone."""
        return self.tokens - self.split

    @classmethod
    def of(
        cls, part: EncodedPart, sizes: IntArray, prompt: IntArray, example: IntArray, reuse: Reuse, front: int = 0
    ) -> Inputs:
        """Of n pairs: ``example[i]`` of ``part`` with prompt ``prompt[i]``, which has ``sizes[prompt[i]]`` tokens.

        ``reuse``: what all inputs with one example, or with one prompt, share. ``front``: positions that a soft prompt
        takes in front of everything.
        """
        own = sizes[prompt]
        tokens, read, start = part.reserving(front).places(own, example)
        tokens, read, start = tokens + front, read + front, start + front
        if reuse == "text":
            prefix, group = start, example * np.int64(part.max_length + 1) + start  # a cut text is another one
        elif reuse == "prompt":
            prefix, group = np.full(len(own), front) if part.text_first else start + own, prompt.astype(np.int64)
        else:
            prefix, group = np.zeros(len(own), dtype=np.int64), np.zeros(len(own), dtype=np.int64)
        split = np.minimum(prefix, read)
        tokens = tokens + len(part.labels.nodes)
        return cls(tokens, read, np.zeros_like(start) if front else start, split, prefix * (split > 0), group)


def most_inputs(tokens: int, reuse: Reuse, nodes: int) -> int:
    """How many inputs a pass holds at most: what is read has a fixed shape too, small where it is a vocabulary wide."""
    return max(1, tokens // (max(READS.values()) if nodes else READS[reuse]))


def fill(own: IntArray, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut inputs in a row, ``own`` (n,) tokens each, into passes of ``tokens`` tokens and ``most`` inputs at most."""
    ends = own.cumsum()
    start, done = 0, 0
    while start < len(own):
        end = min(int(np.searchsorted(ends, done + tokens, side="right")), start + most)
        yield start, end
        start, done = end, int(ends[end - 1])


def bucket(lengths: IntArray) -> IntArray:
    """(n,) the lengths of the table that these (n,) are padded to; 0 stays 0."""
    table = np.array((0, *PACKED_LENGTHS))
    return np.asarray(table[np.searchsorted(table, lengths)])


@dataclass(frozen=True)
class PackTable:
    """Passes in which inputs lie end to end.

    Attributes:
        tokens: increasing numbers of tokens of a pass; an input stands in the smallest one that holds it.
        causal: the LM reads from left to right, so that what stands before is the same for all that stands behind.
    """

    tokens: tuple[int, ...]
    causal: bool

    @classmethod
    def of(cls, tokens: int, max_length: int, *, causal: bool) -> PackTable:
        """The table for an LM that takes ``max_length`` tokens, with passes of ``tokens`` tokens where that will do."""
        sizes = [max(1, tokens // TEXT_SHARE), tokens] if causal else [tokens]
        while sizes[-1] < max_length:
            sizes.append(2 * sizes[-1])
        return cls(tuple(sizes), causal)

    def reuse(self, part: EncodedPart, front: int = 0) -> Reuse:
        """What the inputs of a part share: in a causal LM, what stands before all that differs."""
        if not self.causal:
            return "none"
        return "text" if part.text_first and not front else "prompt"

    def size_of(self, own: IntArray, reuse: Reuse) -> IntArray:
        """(n,) tokens of the pass that an input with so many of its own stands in."""
        table = np.array(self.tokens if reuse == "text" or not self.causal else self.tokens[1:])
        return np.asarray(table[np.searchsorted(table, own)])

    def passes(self, inputs: Inputs, reuse: Reuse, nodes: int = 0) -> Iterator[tuple[int, IntArray]]:
        """Sort inputs into passes: (tokens of the pass, indices of its inputs); label words have ``nodes`` nodes.

        Those whose attention has one shape, and those that share a prefix, come together.
        """
        own = inputs.own
        size = self.size_of(own, reuse)
        order = np.lexsort((inputs.group, bucket(inputs.prefix), bucket(own), size))
        for members in np.split(order, np.flatnonzero(np.diff(size[order])) + 1):
            if not len(members):
                continue
            tokens = int(size[members[0]])
            for start, end in fill(own[members], tokens, most_inputs(tokens, reuse, nodes)):
                yield tokens, members[start:end]

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        reads = {name: READS[name] for name in (("text", "prompt") if self.causal else ("none",))}
        return {
            "layout": "packed", "tokens": list(self.tokens), "tokens_a_read": reads, "cell": CELL, "fused_from": LONG,
            "prefix_share": PREFIX_SHARE, "attention_lengths": digest(PACKED_LENGTHS),
        }  # fmt: skip


def table_of(
    device: DeviceClass, token_bytes: float | None, max_length: int, tokens: int | None = None
) -> PackTable | ShapeTable:
    """The passes for an LM that takes ``max_length`` tokens: packed where it can be, else padded rows.

    ``token_bytes`` is ``LMScorer.token_bytes``; ``tokens`` of a pass, None is what suits the device.
    """
    tokens = tokens or TOKENS_A_PASS[device]
    if token_bytes is None:
        return ShapeTable.of(device, max_length, tokens)
    return PackTable.of(tokens, max_length, causal=token_bytes > 0)


@dataclass(frozen=True)
class ShapeTable:
    """Passes of padded rows: a row of ``length`` tokens or fewer goes into a pass of ``rows`` rows.

    Attributes:
        lengths: increasing padded lengths, the last one the LM's longest input.
        rows: rows of a pass at each length.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, device: DeviceClass, max_length: int, tokens: int | None = None) -> ShapeTable:
        """The table of a device class for an LM that takes ``max_length`` tokens; ``tokens`` of a pass."""
        lengths = (*(n for n in LENGTHS if n < max_length), max_length)
        budget, most = tokens or TOKENS_A_PASS[device], MOST_ROWS[device]
        rows = tuple(max(1, min(most, 2 ** int(np.log2(max(1, budget // n))))) for n in lengths)
        return cls(lengths, rows)

    def passes(self, lengths: IntArray) -> Iterator[tuple[tuple[int, int], IntArray]]:
        """Sort rows of the given lengths (P,) into passes: ((padded length, rows), indices of its rows)."""
        bucket = np.searchsorted(np.array(self.lengths), lengths)
        order = np.argsort(bucket, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1):
            if len(members):
                length, rows = self.lengths[bucket[members[0]]], self.rows[bucket[members[0]]]
                for start in range(0, len(members), rows):
                    yield (length, rows), members[start : start + rows]

    def to_json(self) -> list[dict[str, Any]]:
        """For study.yaml."""
        return [{"length": n, "rows": r} for n, r in zip(self.lengths, self.rows, strict=True)]
