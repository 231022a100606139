"""Pairs whose input is not the prompt's ids between those of its neighbors: their whole string is tokenized.

A tokenizer may make one token out of the end of a text and the beginning of a prompt. Such a pair has ids of its own.
It travels to scorers as a part without texts, :func:`without_texts`, whose "prompts" are whole inputs (up to the mask,
or from it on). All other pairs are spliced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from rayprompt.candidate import TextIds, digest
from rayprompt.lm.encode import EncodedPart, Encoder, Segment, usual
from rayprompt.scores import BoolArray, IntArray
from rayprompt.template import Template

Group = tuple[IntArray, EncodedPart, Sequence[tuple[int, ...]], IntArray, IntArray]
NOTHING = np.zeros(0, dtype=np.int64)


class Joiner:
    """Finds the pairs of one part that cannot be spliced.

    Args:
        encoder: gives the encoder; it is not asked for where every prompt can be spliced.
        template, examples: of the part.
        edges: (E,) as :meth:`Encoder.edges` gives them.
        special: finds the texts of special tokens.
        reads_mask: whether the LM reads a mask.
    """

    def __init__(
        self,
        encoder: Callable[[], Encoder],
        template: Template,
        examples: Sequence[Any],
        edges: BoolArray,
        special: re.Pattern[str] | None,
        *,
        reads_mask: bool,
    ) -> None:
        self._encoder = encoder
        self.template = template
        self.examples = examples
        self.edges = edges
        self.special = special
        self.reads_mask = reads_mask

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer, loaded when it is first needed."""
        return self._encoder()

    def text_of(self, prompt: Sequence[int]) -> str | None:
        """The text that a prompt's ids stand for; None for ids that are spliced in as they are."""
        if isinstance(prompt, TextIds):
            return prompt.text
        return None if len(prompt) else ""

    def unsure(self, text: str, examples: IntArray) -> BoolArray:
        """(n,) whether the whole string must be tokenized to know a pair's ids."""
        at = [p.kind for p in self.template.pieces].index("prompt")
        if not usual(text, self.special) or (not text and at and self.template.begins(at)):
            return np.ones(len(examples), dtype=bool)
        return np.asarray(~self.edges[examples])

    def ids(self, text: str, examples: IntArray) -> list[IntArray]:
        """The ids of the whole inputs of a prompt's text on some examples."""
        head, tail = self.encoder.around(self.template, reads_mask=self.reads_mask)
        rows = [self.encoder.string(self.template, self.examples[int(e)].fields, text) for e in examples]
        return [np.array([*head, *ids, *tail], dtype=np.int64) for ids in self.encoder.texts.ids(rows)]

    def different(self, part: EncodedPart, prompt: Sequence[int], examples: IntArray) -> dict[int, IntArray]:
        """Example -> the input's ids, of those that are not what splicing gives. A text that is cut is spliced."""
        text = self.text_of(prompt)
        if text is None:
            return {}
        unsure = examples[self.unsure(text, examples)]
        found = {}
        for example, ids in zip(unsure.tolist(), self.ids(text, unsure) if len(unsure) else (), strict=True):
            if len(ids) > part.max_length or np.array_equal(ids, part.spliced(example, prompt)[0]):
                continue
            if part.read is None or self._mask_at(part, example, ids) is not None:
                found[example] = ids
        return found

    def whole(self, part: EncodedPart, example: int, prompt: Sequence[int]) -> tuple[IntArray, int, int] | None:
        """As :meth:`EncodedPart.row` gives it; None where the prompt is spliced."""
        ids = self.different(part, prompt, np.array([example])).get(example)
        if ids is None:
            return None
        at = self._mask_at(part, example, ids) if part.read is not None else len(ids) - 1
        assert at is not None
        return ids, at, min(len(ids), int(part.starts[example]))

    def _mask_at(self, part: EncodedPart, example: int, ids: IntArray) -> int | None:
        """Where the mask is, if all on the side of it that has no prompt is as it is in every other input."""
        found = np.flatnonzero(ids == self.encoder.mask_id)
        if len(found) != 1 or part.read is None:
            return None
        at = int(found[0])
        fixed = _beyond_mask(part, example)
        own = ids[at + 1 :] if part.read[0] == "after" else ids[:at]
        return at if np.array_equal(own, fixed) else None

    def own_part(self, part: EncodedPart) -> tuple[EncodedPart, Callable[[int, IntArray], IntArray]]:
        """:func:`without_texts` of a part, and what cuts an example's ids to what is its prompt there."""
        bare = without_texts(part, self.encoder.mask_id)

        def prompt_of(example: int, ids: IntArray) -> IntArray:
            at = self._mask_at(part, example, ids)
            if at is None or part.read is None:
                return ids
            return ids[:at] if part.read[0] == "after" else ids[at + 1 :]

        return bare, prompt_of


def _beyond_mask(part: EncodedPart, example: int) -> IntArray:
    """The ids on the side of the mask that has no prompt."""
    assert part.read is not None
    side, index = part.read
    row = part.after[example][index + 1 :] if side == "after" else part.before[example][:index]
    return np.concatenate([NOTHING, *(segment.ids for segment in row)])


def without_texts(part: EncodedPart, mask_id: int | None) -> EncodedPart:
    """The part for inputs that are given whole: around them are only the mask and what is beyond it."""
    nothing = (Segment(NOTHING, field=True),)
    sides: list[tuple[tuple[Segment, ...], tuple[Segment, ...]]] = [(nothing, nothing)] * len(part)
    read = part.read
    if part.read is not None:
        mask = Segment(np.array([mask_id], dtype=np.int64), field=False)
        fixed = [Segment(_beyond_mask(part, e), field=False) for e in range(len(part))]
        if part.read[0] == "after":
            sides, read = [(nothing, (mask, rest)) for rest in fixed], ("after", 0)
        else:
            sides, read = [((*nothing, rest, mask), nothing) for rest in fixed], ("before", 2)
    before, after = (tuple(side[k] for side in sides) for k in (0, 1))
    key = digest(["whole", part.key])
    return replace(part, key=key, before=before, after=after, after_empty=None, read=read, joiner=None)


def by_form(
    part: EncodedPart,
    prompts: Sequence[tuple[int, ...]],
    prompt: IntArray,
    example: IntArray,
    soft: Sequence[Any] | None = None,
) -> list[Group]:
    """P pairs as (their rows, part, prompts, prompt, example): those that are spliced, and those with ids of their own.

    Where ``soft`` (len(prompts),) has a soft prompt, ids are spliced in as they are.
    """
    everything: list[Group] = [(np.arange(len(prompt)), part, prompts, prompt, example)]
    joiner = part.joiner
    if joiner is None or not len(prompt):
        return everything
    texts = [i for i, p in enumerate(prompts) if not (soft and soft[i]) and joiner.text_of(p) is not None]
    unsure = [i for i in texts if joiner.unsure(joiner.text_of(prompts[i]) or "", np.arange(len(part))).any()]
    if not unsure:
        return everything
    rows: list[int] = []
    own: dict[tuple[int, ...], int] = {}
    numbers: list[int] = []
    bare, prompt_of = joiner.own_part(part)
    for i in unsure:
        here = np.flatnonzero(prompt == i)
        found = joiner.different(part, prompts[i], np.unique(example[here]))
        for row in here.tolist():
            ids = found.get(int(example[row]))
            if ids is not None:
                rows.append(row)
                numbers.append(own.setdefault(tuple(prompt_of(int(example[row]), ids).tolist()), len(own)))
    if not rows:
        return everything
    mine = np.array(rows, dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(prompt)), mine)
    groups: list[Group] = [(mine, bare, list(own), np.array(numbers, dtype=np.int64), example[mine])]
    return groups if not len(rest) else [(rest, part, prompts, prompt[rest], example[rest]), *groups]
