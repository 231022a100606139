"""Scripts: where words begin and end in a text. Only some scripts put spaces between words."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import lru_cache

# First and last code points of the scripts that are written without spaces between words.
UNSPACED = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF)),
    *((0x1B00, 0x1B7F), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302F), (0x3031, 0x312F), (0x31A0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA980, 0xA9DF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    *((0xAA80, 0xAADF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B2FF), (0x20000, 0x3FFFF)),
)
HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc]")
MINUS = "-\u2212\u2010\u2011"
THOUSANDS = re.compile(r"\d{3}(?!\d)")
NUMBER_GOES_ON = re.compile(r"\d(?:\.\d|,\d{3}(?!\d))")
INVISIBLE = dict.fromkeys(
    (
        0x00AD,
        0x200E,
        0x200F,
        0x2060,
        0x20E3,
        0xFEFF,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xFE00, 0xFE10),
    )
)
BETWEEN = "_\u200c"  # markup, and the sign that keeps two letters of a word apart
# Superscripts, subscripts and fractions: 10² is not 102, and 5½ is not 51/2.
RAISED = re.compile("([\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2122\u2150-\u215f\u2189]+)")
ONE_WAY = str.maketrans({**dict.fromkeys("\u2018\u2019\u02bc", "'"), **dict.fromkeys("\u2010\u2011", "-")})
_STARTS = [first for first, _ in UNSPACED]


def unspaced(character: str) -> bool:
    """Whether a character's script has no spaces between words, as Han, Kana, Thai, Lao, Khmer and Myanmar."""
    at = bisect_right(_STARTS, ord(character)) - 1
    return at >= 0 and ord(character) <= UNSPACED[at][1]


def _mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character in "\u200c\u200d"


def _joins(left: str, right: str) -> bool:
    """Whether two neighboring characters are of one word."""
    if _mark(right):
        return True  # of the letter before it
    if not (left.isalnum() or left == "_" or _mark(left)) or not (right.isalnum() or right == "_"):
        return False
    if left.isdecimal() and right.isdecimal():
        return True
    return not (unspaced(left) or unspaced(right))


def is_word(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` is a word of its own: no neighbor goes on with it in its script.

    Where there are no spaces a word may stand next to any other. A Korean word may have particles behind it.
    Underscores around a word are markup; digits are no part of a longer number.
    """
    if start and (_goes_on(text, start) or _number_before(text, start)):
        return False
    if end == len(text) or not (_goes_on(text, end) or NUMBER_GOES_ON.match(text, end - 1)):
        return True
    return bool(HANGUL.match(text[end - 1]) and HANGUL.match(text[end]))


def _goes_on(text: str, at: int) -> bool:
    """Whether the characters on both sides of a place are of one word, over what is ``BETWEEN`` them."""
    left, right = at - 1, at
    while left >= 0 and text[left] in BETWEEN:
        left -= 1
    while right < len(text) and text[right] in BETWEEN:
        right += 1
    return left >= 0 and right < len(text) and _joins(text[left], text[right])


def _number_before(text: str, at: int) -> bool:
    """Whether digits at a place go on with a number, or have a sign: 1.5, 1,500, .5, -5."""
    if not text[at].isdecimal():
        return False
    mark, before = text[at - 1], text[at - 2 : at - 1] if at > 1 else ""
    if before.isdecimal():
        return mark == "." or (mark == "," and bool(THOUSANDS.match(text, at)))
    if mark == ".":
        return not before or before.isspace()
    return mark in MINUS and not (before in (*MINUS, ")", "]", "_") or (before.isalpha() and not unspaced(before)))


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    return character.casefold().replace("i\u0307", "i").replace("\u0131", "i").translate(ONE_WAY)


def fold(text: str) -> tuple[str, list[int]]:
    """A text without differences of case, and for each of its characters the index in ``text``.

    Apostrophes and hyphens are those of ASCII. A letter may become several: ß is ss. Both Turkish letters i, with a
    dot and without, become i.
    """
    out: list[str] = []
    at: list[int] = []
    for i, character in enumerate(text):
        folded = _folded(character)
        out.append(folded)
        at += [i] * len(folded)
    return "".join(out), at


def visible(text: str) -> str:
    """A text without soft hyphens, marks of direction, and what says how an emoji looks."""
    return text if text.isascii() else text.translate(INVISIBLE)


def composed(text: str) -> str:
    """A text in one way of writing it: composed characters, and full-width ones as usual ones (NFKC).

    Superscripts, subscripts and fractions stay, for their digits are not of the number before them.
    """
    if text.isascii():
        return text
    parts = RAISED.split(visible(text))
    return "".join(part if i % 2 else unicodedata.normalize("NFKC", part) for i, part in enumerate(parts))
