"""Templates: how an example and a prompt become the LM's input. Plain text work; tokens come in rayprompt.lm."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rayprompt.errors import InputError, did_you_mean

PieceKind = Literal["literal", "field", "prompt", "mask", "raw"]  # raw: as it is, special tokens and all


@dataclass(frozen=True)
class Piece:
    """A part of a template. ``space`` is the whitespace before it, which belongs to it when it is tokenised."""

    kind: PieceKind
    text: str
    space: str


@dataclass(frozen=True)
class Template:
    """A parsed template such as ``"{text} {prompt} {mask} ."``.

    Whitespace in front of a piece belongs to that piece, as byte-level and SentencePiece tokenizers have it. Spaces at
    the end belong to the word that follows; ``end`` is the whitespace there if it has a line break.

    Of a chat, whose messages stand between the raw pieces: ``trims`` says for each message whether whitespace at its
    beginning and at its end is dropped, and ``bare`` has the raw pieces' texts around an empty prompt, if they differ.
    """

    source: str
    pieces: tuple[Piece, ...]
    end: str = ""
    trims: tuple[tuple[bool, bool], ...] = ()
    bare: tuple[str, ...] = ()

    @classmethod
    def parse(cls, source: str, fields: Sequence[str], where: str) -> Template:
        """Parse ``source``; ``fields`` are the names of the example's fields, ``where`` is for error messages.

        Raises:
            InputError: an unknown or missing placeholder, or one that may stand only once stands twice.
        """
        if not isinstance(source, str):
            raise InputError(f"{where}: a template is a string, not {source!r}")
        try:
            parts = list(string.Formatter().parse(source))
        except ValueError as error:
            raise InputError(f"{where}: {source!r}: {error} (write {{{{ for a brace)") from None
        pieces: list[Piece] = []
        space = ""
        for literal, name, spec, conversion in parts:
            body = literal.rstrip()
            if body:
                lead = body[: len(body) - len(body.lstrip())]
                pieces.append(Piece("literal", body.lstrip(), space + lead))
                space = ""
            space += literal[len(body) :]
            if name is None:
                continue
            if spec or conversion:
                raise InputError(f"{where}: {source!r}: a placeholder is a plain name, as in {{{name}}}")
            pieces.append(Piece(_kind_of(name, fields, source, where), name, space))
            space = ""
        end = space[: space.rfind("\n") + 1]
        template = cls(source, tuple(pieces), end)
        _require_once(template, "prompt", where)
        if not any(p.kind == "field" for p in pieces):
            raise InputError(f"{where}: {source!r} shows nothing of the example; add {{{fields[0]}}}")
        return template

    @property
    def is_chat(self) -> bool:
        """Whether it stands in a chat template, which says by itself how an input begins."""
        return self.pieces[0].kind == "raw"

    def begins(self, i: int) -> bool:
        """Whether a piece begins a text, and so has no space before it."""
        return i == 0 or self.pieces[i - 1].kind == "raw"

    @property
    def has_mask(self) -> bool:
        """Whether there is a ``{mask}``."""
        return any(p.kind == "mask" for p in self.pieces)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields it shows, in order."""
        return tuple(p.text for p in self.pieces if p.kind == "field")

    def parts(self, fields: Mapping[str, str], prompt: str, mask: str = "") -> list[tuple[str, str]]:
        """For each piece the space before it and its text; both are empty for a piece without text.

        Nothing stands in front of the first text, or behind a chat's own marks.
        """
        found = []
        begins = True  # nothing has come yet that a space could stand behind
        bare = iter(() if prompt else self.bare)
        for piece in self.pieces:
            text = {"literal": piece.text, "raw": piece.text, "prompt": prompt, "mask": mask}.get(piece.kind, "")
            text = fields[piece.text] if piece.kind == "field" else text
            text = next(bare, text) if piece.kind == "raw" else text
            if begins and not self.is_chat:
                text = text.lstrip()
            found.append(("" if begins or not text else piece.space, text))
            if text:
                begins = piece.kind == "raw"
        return self._trimmed(found)

    def _trimmed(self, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Without the whitespace that the chat template drops around each message."""
        raw = [i for i, piece in enumerate(self.pieces) if piece.kind == "raw"]
        for (start, end), (left, right) in zip(pairwise(raw), self.trims, strict=False):
            for i in range(start + 1, end) if left else ():
                found[i] = ("", "".join(found[i]).lstrip())
                if found[i][1]:
                    break
            for i in range(end - 1, start, -1) if right else ():
                space, text = found[i]
                found[i] = (space, text.rstrip()) if text.strip() else ("", "")
                if found[i][1]:
                    break
        return found

    def changes(self, texts: Iterable[str]) -> bool:
        """Whether the chat template drops something of some texts, or what stands around an empty prompt."""
        return bool(self.bare) or (any(map(any, self.trims)) and any(text != text.strip() for text in texts))

    def render(self, fields: Mapping[str, str], prompt: str, mask: str = "") -> str:
        """The whole input as one string, as a person would write it (an empty prompt takes its space with it)."""
        return "".join(space + text for space, text in self.parts(fields, prompt, mask)) + self.end


def _kind_of(name: str, fields: Sequence[str], source: str, where: str) -> PieceKind:
    if name == "prompt":
        return "prompt"
    if name == "mask":
        return "mask"
    if name in fields:
        return "field"
    known = [*fields, "prompt", "mask"]
    raise InputError(
        f"{where}: {source!r} has {{{name}}}{did_you_mean(name, known)}; known: " + ", ".join(f"{{{k}}}" for k in known)
    )


def _require_once(template: Template, kind: PieceKind, where: str) -> None:
    count = sum(p.kind == kind for p in template.pieces)
    if count != 1:
        found = "no" if count == 0 else f"{count} times"
        raise InputError(f"{where}: {template.source!r} has {found} {{{kind}}}; it needs exactly one")
