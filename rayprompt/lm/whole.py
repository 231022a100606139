"""Whole strings to token ids, and which of the ids belong to which part of the string."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

Part = tuple[str, bool]  # a text, and whether special tokens in it are special: those of the template are
Row = Sequence[Part]


class WholeTexts:
    """Tokenizes strings that are made of parts, without the special tokens that a tokenizer adds by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        named = set(getattr(tokenizer, "all_special_tokens", ()))  # ByT5 adds those as usual tokens
        found = [token for token in added if token.special or str(token) in named]
        self.strips = {str(token): (token.lstrip, token.rstrip) for token in found}
        texts = getattr(tokenizer, "special_texts", tuple(self.strips))
        ordered = sorted((re.escape(text) for text in texts if text), key=len, reverse=True)
        self.special = re.compile("|".join(ordered)) if ordered else None

    def has_special(self, text: str) -> bool:
        """Whether a text contains the text of a special token."""
        return self.special is not None and self.special.search(text) is not None

    def ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids of each row's string."""
        mixed = [any(not own and self.has_special(text) for text, own in row) for row in rows]
        texts = ["".join(text for text, _ in row) for row, odd in zip(rows, mixed, strict=True) if not odd]
        found = iter(self._ids(texts, plain=False))
        return [self._mixed(row) if odd else next(found) for row, odd in zip(rows, mixed, strict=True)]

    def parts(self, rows: Sequence[Row]) -> list[list[list[int]]]:
        """The token ids of each row's string, part by part; end to end they are :meth:`ids`.

        A token out of characters of two parts belongs to the template's own part.
        """
        several = [i for i, row in enumerate(rows) if sum(bool(text) for text, _ in row) > 1]
        single = sorted(set(range(len(rows))) - set(several))
        found: list[list[list[int]]] = [[[] for _ in row] for row in rows]
        for i, ids in zip(single, self.ids([rows[i] for i in single]), strict=True):
            at = next((k for k, (text, _) in enumerate(rows[i]) if text), None)
            if at is not None:
                found[i][at] = ids
        fast = [i for i in several if self._has_offsets and not any(not o and self.has_special(t) for t, o in rows[i])]
        if fast:
            texts = ["".join(text for text, _ in rows[i]) for i in fast]
            coded = self.tokenizer(texts, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
            for i, ids, offsets in zip(fast, coded["input_ids"], coded["offset_mapping"], strict=True):
                found[i] = _by_offsets(rows[i], ids, np.asarray(offsets, dtype=np.int64).reshape(-1, 2))
        for i in sorted(set(several) - set(fast)):
            found[i] = self._by_beginnings(rows[i])
        return found

    @property
    def _has_offsets(self) -> bool:
        return bool(getattr(self.tokenizer, "is_fast", False))

    def _by_beginnings(self, row: Row) -> list[list[int]]:
        """Parts by the number of tokens of each beginning of the row, where there are no offsets."""
        (whole,) = self.ids([row])
        ends = [len(ids) for ids in self.ids([row[: k + 1] for k in range(len(row))])]
        ends[-1] = len(whole)
        at = np.minimum(np.maximum.accumulate([0, *ends]), len(whole))
        return [whole[a:b] for a, b in pairwise(at)]

    def _ids(self, texts: Sequence[str], plain: bool) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=plain, truncation=False
        )["input_ids"]
        return rows

    def _mixed(self, row: Row) -> list[int]:
        """A row in which a text names a special token, as plain text: only the template's own tokens are special."""
        pieces = list(self._pieces(row))
        if self._has_offsets:
            backend, marks = self._marked
            text = "".join(marks[text] if own else text for text, own in pieces)
            known = {
                backend.token_to_id(mark): self.tokenizer.convert_tokens_to_ids(text) for text, mark in marks.items()
            }
            return [known.get(i, i) for i in backend.encode(text, add_special_tokens=False).ids]
        return self._sections([(special, "".join(t for t, _ in same)) for special, same in groupby(pieces, _second)])

    @cached_property
    def _marked(self) -> tuple[Any, dict[str, str]]:
        """A copy of the tokenizer to which special tokens are plain text, and the mark that is each of them there.

        A tokenizer may treat a text behind a special token in another way than a text that begins.
        """
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        marks: dict[str, str] = {}
        for token in list(self.tokenizer.added_tokens_decoder.values()):
            if str(token) in self.strips:
                mark = marks[str(token)] = f"\U0010fffd{len(marks)}\U0010fffd"
                added = AddedToken(
                    mark, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False
                )
                backend.add_tokens([added])
        return backend, marks

    def _sections(self, pieces: Sequence[tuple[bool, str]]) -> list[int]:
        """The ids of special tokens and of the texts between them, each tokenized apart."""
        ids: list[int] = []
        for i, (special, text) in enumerate(pieces):
            if not special and i + 1 < len(pieces) and self.strips.get(pieces[i + 1][1], (False, False))[0]:
                text = text.rstrip()
            if not special and i and self.strips.get(pieces[i - 1][1], (False, False))[1]:
                text = text.lstrip()
            ids += self._ids([text], plain=not special)[0]
        return ids

    def _pieces(self, row: Row) -> Iterator[tuple[str, bool]]:
        """Texts, and whether each is a special token of the template."""
        for text, own in row:
            if not own or self.special is None:
                yield text, False
                continue
            at = 0
            for match in self.special.finditer(text):
                yield text[at : match.start()], False
                yield match[0], True
                at = match.end()
            yield text[at:], False


def _second(pair: tuple[str, bool]) -> bool:
    return pair[1]


def _by_offsets(row: Row, ids: Sequence[int], offsets: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[int]]:
    ends = np.cumsum([len(text) for text, _ in row])
    first = np.searchsorted(ends, offsets[:, 0], side="right")
    last = np.searchsorted(ends, np.maximum(offsets[:, 1] - 1, offsets[:, 0]), side="right")
    own = np.array([own and bool(text.strip()) for text, own in row] + [False])
    part = np.minimum(np.where((first != last) & own[np.minimum(first, len(row))], first, last), len(row) - 1)
    part = np.maximum.accumulate(part) if len(part) else part
    bounds = np.searchsorted(part, np.arange(len(row) + 1))
    return [list(ids[a:b]) for a, b in pairwise(bounds)]
