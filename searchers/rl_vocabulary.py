"""What the policy of ``rl`` may write: its tokens, prompts as rows of their numbers, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.lm.encode import Encoder
from rayprompt.scores import BoolArray, IntArray
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.tables import read_lines

MOST_GIVEN = 1000  # prompts taken from a store
Row = tuple[int, ...]


class Vocabulary:
    """The tokens of the policy's LM that a prompt may be made of. A row is a prompt as places among them.

    Args:
        problem: where prompts are used.
        encoder, size: tokenizer and vocabulary size of the policy's LM.
        wanted: ``all`` tokens that may stand in a text, whole ``words``, or these.
        ids: the task's LM is given the token ids; else the text.

    Raises:
        InputError: they are not tokens, too few, or other tokens to the task's LM.
    """

    def __init__(self, problem: Problem, encoder: Encoder, size: int, wanted: str | list[str], *, ids: bool) -> None:
        self.problem = problem
        self.encoder = encoder
        self.splices = ids
        self.tokens: IntArray = np.array(self._tokens(size, wanted), dtype=np.int64)
        if len(self.tokens) < 2:
            raise InputError(f"setting tokens={wanted!r}: {len(self.tokens)} tokens of {encoder.model}; 2 at least")
        self.place = {int(token): i for i, token in enumerate(self.tokens)}
        if ids and encoder.tokenizer.get_vocab() != problem.encoder.tokenizer.get_vocab():
            raise InputError(
                f"setting ids=True: {problem.lm.name} has another vocabulary than the policy's {encoder.model}; leave "
                "it out, or take a policy_model with the same tokenizer"
            )

    def _tokens(self, size: int, wanted: str | list[str]) -> list[int]:
        if wanted == "all":
            return self.encoder.plain_ids(size)
        if wanted == "words":
            return [i for i, _ in self.encoder.whole_words(size, self.problem.letters)]
        found = dict(zip(wanted, (ids.tolist() for ids in self.encoder.ids(list(wanted), " ")), strict=True))
        for word, ids in found.items():
            if len(ids) != 1:
                raise InputError(
                    f"setting tokens: {word!r} is {len(ids)} tokens in {self.encoder.model}; each must be one"
                )
        return list(dict.fromkeys(ids[0] for ids in found.values()))

    def ids(self, row: Row) -> list[int]:
        """The token ids of a row."""
        return [int(i) for i in self.tokens[list(row)]]

    def text(self, row: Row) -> str:
        """The text of a row."""
        return " ".join(self.encoder.tokenizer.decode(self.ids(row)).split())

    def prompts(self, rows: Sequence[Row]) -> list[TextPrompt]:
        """The prompts that rows are to the task's LM."""
        texts = [self.text(row) for row in rows]
        if self.splices:
            return [TextPrompt(text, tuple(self.ids(row))) for text, row in zip(texts, rows, strict=True)]
        return self.problem.prompts(texts)

    def round_trips(self, rows: Sequence[Row]) -> BoolArray:
        """(B,) whether a row's text, as the policy's tokenizer reads it behind other text, is the same tokens."""
        read = self.encoder.ids([self.text(row) for row in rows], " ")
        return np.array([ids.tolist() == self.ids(row) for ids, row in zip(read, rows, strict=True)], dtype=bool)

    def row(self, text: str, length: int) -> Row | None:
        """The row of a text; None where the policy cannot write it."""
        row = tuple(self.place.get(i, -1) for i in self.encoder.ids([text], " ")[0].tolist())
        return row if len(row) == length and -1 not in row else None

    def beginnings(self, texts: Sequence[str], length: int) -> IntArray:
        """(G, length) rows that begin as the texts do: longer ones are cut, behind shorter ones stands -1.

        Tokens that the policy does not write are left out, and texts of which then nothing is left.
        """
        rows = []
        for ids in self.encoder.ids(list(texts), " "):
            row = [self.place[i] for i in ids.tolist() if i in self.place][:length]
            if row:
                rows.append([*row, *[-1] * (length - len(row))])
        return np.array(rows, dtype=np.int64).reshape(len(rows), length)


def read_given(searcher: PromptSearcher, given: str | list[str] | None) -> list[str]:
    """The prompts that the setting of this name stands for: themselves, the lines of a file, those of a study or store.

    Raises:
        InputError: it cannot be read.
    """
    from rayprompt.study.warm import known_prompts

    if not isinstance(given, str):
        return list(given or [])
    if "://" not in given and not Path(given).is_dir():
        return read_lines(Path(given), "given")
    return [c.text for c in known_prompts(searcher, given, MOST_GIVEN) if isinstance(c, TextPrompt)]
