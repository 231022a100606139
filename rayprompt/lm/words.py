"""Label words in what a service says of tokens, whose vocabulary and tokenizer are not known here.

Where a word stands in an echoed text is read off the texts of its tokens: servers count offsets from different places,
with and without the token that begins a text. Token texts differ, too: a token may be shown as it is in the vocabulary
(``Ġgood``, ``▁good``, ``<0xE6>``), a character of several tokens as U+FFFD or as nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np

from rayprompt.answers import EDGES
from rayprompt.lm.replies import Step
from rayprompt.scores import FloatArray
from rayprompt.scripts import composed
from rayprompt.scripts import fold as folded_text

MARKS = 4  # tokens at most that stand before a text: the one that begins it, a language, a task
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})")
LOST = re.compile("\ufffd+")
SAME = 1e-6
AROUND = "\u0120\u2581\u010a \n\t"


def echoed(steps: Sequence[Step], text: str, word: str, written: Sequence[int] = (0,)) -> float:
    """The log-probability of ``word`` behind ``text``, from the tokens of an echo of both; they may be over the edge.

    Args:
        steps: the tokens of the echo.
        text: without the word, and ``word`` with the space before it.
        written: how many tokens behind the text the LM may have written, the likeliest number first.

    Raises:
        ValueError: the tokens are not those of the text, or there is no telling which are the word's.
    """
    for count in written:
        if count <= len(steps) and (found := _plain(steps[: len(steps) - count], text, word)) is not None:
            return found
    for fold in (False, True):  # the tokenizer may know lower case only
        ways = _aligned(steps, text, word, fold)
        for count in written:
            if count in ways:
                return ways[count]
    raise ValueError(f"the tokens are not those of the text: {[step.text for step in steps[-4:]]}")


def _plain(steps: Sequence[Step], text: str, word: str) -> float | None:
    """The same where the tokens' texts, joined, are the text, but for marks before it; None where they are not."""
    texts = [step.text for step in steps]
    joined = "".join(texts)
    if not word or not joined.endswith(text + word):
        return None
    left, at, total = len(word), len(steps), 0.0
    while at > 0 and (left > 0 or not texts[at - 1]):
        at -= 1
        left -= len(texts[at])
        total += _value(steps[at], at)
    before = len(joined) - len(text) - len(word)
    for mark in texts[:MARKS]:
        if before <= 0:
            break
        before -= len(mark)
    return total if before == 0 else None


def _value(step: Step, at: int) -> float:
    if step.value is None and (at > 0 or step.text):  # a mark without a text may begin the echo
        raise ValueError(f"no log-probability of token {step.text!r}")
    return step.value or 0.0


def _aligned(steps: Sequence[Step], text: str, word: str, fold: bool) -> dict[int, float]:
    """Tokens laid along the bytes of the text in every way that they may be read.

    Returns:
        the word's log-probability, by how many tokens are left behind it; only where all ways give the same.
    """
    whole = text + word
    target = (whole.lower() if fold else whole).encode("utf-8", "replace")
    start = len((text.lower() if fold else text).encode("utf-8", "replace"))
    # Where the text may have been read up to, and at which token the word began on that way.
    ways: set[tuple[int, int]] = {(0, -1)}
    found: dict[int, float] = {}
    for at, step in enumerate(steps):
        new: set[tuple[int, int]] = set()
        for place, first in ways:
            for end in _ends(step, target, place, at, fold):
                part = place >= start and _is_silent(step) and _non_ascii_follows(target, place)
                mine = end > start if end > place else part
                new.add((end, at if first < 0 and mine else first))
        ways = new
        firsts = {first for place, first in ways if place == len(target) and first >= 0}
        sums = [sum(_value(steps[i], i) for i in range(first, at + 1)) for first in firsts]
        if sums and max(sums) - min(sums) <= SAME:
            found[len(steps) - 1 - at] = sums[0]
        if not ways:
            break
    return found


def _is_silent(step: Step) -> bool:
    """Whether a token's text is left out or lost, as that of a part of a character may be."""
    return not step.text or LOST.search(step.text) is not None


def _non_ascii_follows(target: bytes, place: int) -> bool:
    """Whether a token without a text may be part of the character at a place, or behind the space there."""
    return any(byte >= 0x80 for byte in target[place : place + 2].lstrip(b" ")[:1])


def _ends(step: Step, target: bytes, place: int, at: int, fold: bool) -> set[int]:
    """The places up to which a text may have been read behind a token, of one that was read up to ``place``."""
    found: set[int] = set()
    if place == 0 and at < MARKS:
        found.add(0)  # a mark
    if not step.text:  # part of a character, or nothing at all
        found.add(place)
        found |= {place + n for n in range(1, 5) if _beyond_ascii(target, place, n)}
    places = [place, place + 1] if target[place : place + 1] == b" " else [place]
    for begin in places:  # some servers leave out the space of a token
        for form in _forms(step, place == 0, fold):
            if isinstance(form, bytes):
                if form and target.startswith(form, begin):
                    found.add(begin + len(form))
                if form and min(form) >= 0x80 and target.endswith(form, 0, place):
                    found.add(place)  # the character of the token before, of which this is another part
            else:
                found |= _around_lost(form, target, begin)
    return found


def _forms(step: Step, begins: bool, fold: bool) -> Iterator[bytes | str]:
    """The bytes that a token may stand for; a text where some of them were lost."""
    if step.raw is not None:
        yield step.raw.lower() if fold else step.raw
        return
    text = step.text.lower() if fold else step.text
    yield text if LOST.search(text) else text.encode("utf-8", "replace")
    if "\u2581" in text:
        yield text.replace("\u2581", " ").encode("utf-8", "replace")
    if begins and text[:1] in (" ", "\u2581"):  # SentencePiece puts a space before a text
        yield text[1:].replace("\u2581", " ").encode("utf-8", "replace")
    if (byte := BYTE.fullmatch(text)) is not None:
        yield bytes([int(byte[1], 16)])
    if text.startswith("bytes:"):
        escaped = text.removeprefix("bytes:").encode("utf-8", "replace")
        yield ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), escaped)
    if not text.isascii() and all(c in byte_letters() for c in step.text):
        raw = bytes(byte_letters()[c] for c in step.text)
        yield raw.lower() if fold else raw


def _around_lost(text: str, target: bytes, place: int) -> set[int]:
    """The places behind a text in which U+FFFD stands for bytes that are part of a character."""
    places = {place}
    begin = 0
    for lost in (*LOST.finditer(text), None):
        plain = text[begin : lost.start() if lost else len(text)].encode("utf-8", "replace")
        places = {p + len(plain) for p in places if target.startswith(plain, p)}
        if lost:
            begin = lost.end()
            sizes = range(len(lost[0]), 3 * len(lost[0]) + 1)
            places = {p + n for p in places for n in sizes if _beyond_ascii(target, p, n)}
    return places


def _beyond_ascii(target: bytes, place: int, count: int) -> bool:
    piece = target[place : place + count]
    return len(piece) == count and all(byte >= 0x80 for byte in piece)


@cache
def byte_letters() -> Mapping[str, int]:
    """The letters by which byte-level vocabularies, GPT-2's and later ones, write bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {**{chr(b): b for b in kept}, **{chr(256 + i): b for i, b in enumerate(others)}}


# The likeliest next tokens.


def of_words(likeliest: Sequence[tuple[str, float]], words: Sequence[str]) -> FloatArray | None:
    """(L,) log-probabilities of words, from those of the likeliest next tokens; None where no word is among them.

    A token speaks for the word that it is, or for the one word that begins with it, if that is not a token itself. Case
    and spaces around it do not matter, unless words differ in case alone. An LM writes one next token, so the ways to
    write a word exclude each other: the word's probability is the sum of theirs. A word without a token is at most as
    likely as the least likely token, and than what the others leave; that it gets, and less than any word with a token.
    """
    p = np.zeros(len(words))
    parts = [(token, value, _named(token, words)) for token, value in likeliest]
    for _, value, hits in parts:
        p[hits] += np.exp(value)
    whole, vague = p > 0, 0.0
    for token, value, hits in parts:
        begun = [] if hits else [i for i in _begun(token, words) if not whole[i]]
        if len(begun) == 1:
            p[begun] += np.exp(value)
        elif begun:
            vague += np.exp(value)
    seen = p > 0
    if not seen.any() or vague > p.sum():
        return None
    least = min(np.exp(min(value for _, value in likeliest)), max(0.0, 1.0 - p.sum()), 0.999 * p[seen].min())
    return normalised(np.log(np.maximum(np.where(seen, p, least), 1e-300)).tolist())


def _named(token: str, words: Sequence[str]) -> list[int]:
    """The word that a token is: one at most, unless several differ in case alone. Punctuation around it may be left."""
    for text in _readings(token):
        same = [i for i, word in enumerate(words) if word == text]
        folded = same or [i for i, word in enumerate(words) if _folded(word) == _folded(text)]
        if folded:
            return folded if len(folded) == 1 else []
    return []


def _begun(token: str, words: Sequence[str]) -> list[int]:
    """The words that begin with a token; a short one may as well be a word of its own, as "a" is."""
    for text in _readings(token):
        enough = [i for i, word in enumerate(words) if len(text) >= min(3, (len(word) + 1) // 2)]
        same = [i for i in enough if words[i].startswith(text)]
        if found := same or [i for i in enough if _folded(words[i]).startswith(_folded(text))]:
            return found
    return []


def _readings(token: str) -> list[str]:
    """The texts that a token may be: as it is, by its bytes, without punctuation around it."""
    whole = token.strip(AROUND)
    found = [whole]
    if not token.isascii() or token.startswith("bytes:"):
        forms = _forms(Step(token, None, None, ()), begins=False, fold=False)
        found += [form.decode("utf-8", "ignore").strip(AROUND) for form in forms if isinstance(form, bytes)]
    return [text for text in dict.fromkeys([*found, whole.strip(EDGES)]) if text]


def _folded(text: str) -> str:
    return folded_text(composed(text))[0]


def normalised(scores: Sequence[float]) -> FloatArray:
    """(L,) float32, their log-softmax."""
    values = np.asarray(scores, dtype=np.float64)
    peak = values.max()
    return np.asarray(values - (peak + np.log(np.exp(values - peak).sum())), dtype=np.float32)


def alike(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of words that tokenizers may begin with the same token, so that the next token does not tell them apart.

    One begins the other, or they share a piece that ends at a digit or at the edge of a word: ``card_arrival`` and
    ``card_linking``, ``10`` and ``12``, ``very good`` and ``very bad``.
    """
    found = []
    for i, one in enumerate(words):
        for other in words[i + 1 :]:
            a, b = _folded(one), _folded(other)
            size = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            shared = a[:size]
            edge = any(not c.isalpha() for c in shared)
            if a != b and shared and (edge or size == min(len(a), len(b))):
                found.append((one, other))
    return found
