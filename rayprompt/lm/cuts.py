"""Where a tokenizer always cuts a text, whatever the text is on both sides.

Token ids of two pieces, put end to end, are the ids of the whole string only if the tokenizer never makes a token out
of characters of both. Whether it does is a matter of its pre-tokenizer and, without one, of its vocabulary. What cannot
be shown here is taken as not sure: then whole strings are tokenized.
"""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from typing import Any

# One character of each kind that the pre-tokenizers in use tell apart.
KINDS = "aZéß中かア한\u0430я\u0627ภ1٣.,'\"-(]?!_$€+😀「。ｱʰⅣ²…"
CONTRACTIONS = ("'s", "'T", "'re", "don't")
LOCAL = {
    *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "BertNormalizer", "Replace", "Prepend"),
    *("Precompiled", "Sequence", "ByteLevel", "Strip"),
}
BYTE_CUTS = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer", "CharacterTokenizer")


def plain(character: str) -> bool:
    """Whether a character belongs to no neighbor: a letter, digit, mark of punctuation or symbol of its own.

    SentencePiece's sign for a space is a space to its tokenizers.
    """
    return character != "\u2581" and unicodedata.category(character)[0] in "LNPS"


class Cuts:
    """Asks one tokenizer of transformers where it cuts; each answer is worked out once."""

    def __init__(self, tokenizer: Any) -> None:
        self.name = type(tokenizer).__name__
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.added = [str(t) for t in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        self._known: dict[tuple[str, str], bool] = {}

    def between(self, left: str, right: str) -> bool:
        """Whether it always cuts between a plain character and whitespace ``left``, and ``right`` and another one.

        ``between("", " ")`` is the cut in front of a word and its space.
        """
        if (left, right) not in self._known:
            self._known[left, right] = self._between(left, right)
        return self._known[left, right]

    @property
    def sections_alike(self) -> bool:
        """Whether a text behind a special token has the ids that it has elsewhere: nothing is put in front of it."""
        if self.name in BYTE_CUTS:
            return True
        if self.backend is None:
            return False
        parts = [part for part in (self.backend.normalizer, self.backend.pre_tokenizer) if part is not None]
        return not any("Prepend" in str(_state(part)) or "Metaspace" in str(_state(part)) for part in parts)

    def _between(self, left: str, right: str) -> bool:
        if self.name in BYTE_CUTS:
            return True
        if self.backend is None or any(_spans(token, left, right) for token in self.added):
            return False
        normalizer = self.backend.normalizer
        if normalizer is not None and not _types(normalizer) <= LOCAL:
            return False
        return self._pre_tokenizer_cuts(left, right) or self._vocabulary_cuts(left, right)

    def _pre_tokenizer_cuts(self, left: str, right: str) -> bool:
        """Whether no pre-token reaches over the place, in texts with every kind on both sides of every other one."""
        splitter = self.backend.pre_tokenizer
        if splitter is None:
            return False
        for shift, start in enumerate((*KINDS, *CONTRACTIONS)):
            before = KINDS[shift % len(KINDS) :] + KINDS
            text, places = "", []
            for word in (*KINDS, *(a + b for a, b in zip(before, KINDS, strict=False)), *CONTRACTIONS):
                text += word + left
                places.append(len(text))
                text += right + start + " "
            normal, at = self._normal(text, places)
            if at is None:
                return False
            spans = [span for _, span in splitter.pre_tokenize_str(normal)]
            inside = {i for begin, end in spans for i in range(begin + 1, end)}
            if not inside.isdisjoint(at):
                return False
        return True

    def _normal(self, text: str, places: list[int]) -> tuple[str, list[int] | None]:
        """The text as the pre-tokenizer gets it, and where the places are in it; None where that cannot be told."""
        normalizer = self.backend.normalizer
        if normalizer is None:
            return text, places
        pieces = [text[a:b] for a, b in zip((0, *places), (*places, len(text)), strict=True)]
        normal, at, whole = "", [], normalizer.normalize_str(text)
        for i, piece in enumerate(pieces):
            own = normalizer.normalize_str(piece)
            for lead in ("▁", " "):  # a normalizer prepends it to the whole text, so to the first piece only
                if i and not whole.startswith(own, len(normal)) and own.startswith(lead):
                    own = own.removeprefix(lead)
            if not whole.startswith(own, len(normal)):
                return whole, None
            normal += own
            at.append(len(normal))
        return whole, at[:-1] if normal == whole else None

    def _vocabulary_cuts(self, left: str, right: str) -> bool:
        """Whether no token of the vocabulary could reach over the place, where the pre-tokenizer leaves texts whole."""
        model = type(self.backend.model).__name__
        if model not in ("BPE", "Unigram") or not _whole(self.backend.pre_tokenizer):
            return False
        edge = left[-1:] or right[:1]
        vocabulary = self.backend.get_vocab(with_added_tokens=False)
        known = {" ": ("▁", " ", "Ġ"), "\n": ("\n", "Ċ", "<0x0A>")}.get(edge, ())
        if not edge or not any(form in vocabulary for form in known):
            return False  # two unknown characters may become one unknown token
        table = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})
        return not any(_spans(token.translate(table), left, right) for token in vocabulary)


def _spans(token: str, left: str, right: str) -> bool:
    """Whether a token has the place between ``left`` and ``right`` in it."""
    for a, b in pairwise(token):
        before = a == left[-1] if left else not a.isspace()
        behind = b == right[0] if right else not b.isspace()
        if before and behind:
            return True
    return False


def _state(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.__getstate__())
    return found


def _types(part: Any) -> set[str]:
    """The types of a normalizer and of those in it."""
    state = _state(part)
    return {str(state["type"])} | {str(one["type"]) for one in state.get("normalizers", ())}


def _whole(splitter: Any) -> bool:
    """Whether a pre-tokenizer leaves a text in one piece, or cuts only in front of or behind single spaces."""
    if splitter is None:
        return True
    state = _state(splitter)
    steps = state.get("pretokenizers", [state])
    return all(
        step["type"] == "Metaspace"
        or (step["type"] == "ByteLevel" and not step.get("use_regex", True))
        or (step["type"] == "Split" and step.get("pattern") == {"String": " "})
        for step in steps
    )
