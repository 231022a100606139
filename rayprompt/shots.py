"""The k-shot sampler: a few examples per class for train and as many for dev, drawn from a full data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Any
from unicodedata import normalize

from rayprompt.errors import InputError

Text = str | tuple[str, ...]
Key = tuple[str, ...]  # a text, or the texts of a pair, with single spaces
Row = Mapping[str, Any]
SPLITS = ("16-13", "16-21", "16-42", "16-87", "16-100")  # RLPrompt's: 16 per class, five seeds


def few_shot(
    texts: Sequence[Text],
    labels: Sequence[Hashable],
    per_class: int = 16,
    seed: int = 13,
    *,
    avoid: Iterable[Text] = (),
) -> tuple[list[int], list[int]]:
    """Draw train and dev: of each class the first ``per_class`` rows of a seeded shuffle, and the next ``per_class``.

    The shuffle is by SHA-256 of seed and text, so the draw depends on the texts alone: not on the order of the rows,
    the machine, or a library's generator. Texts are compared up to whitespace and composition (NFC). One that stands
    several times is drawn at most once; one that is empty, stands under two labels, or is to be avoided (it is a test
    text) is never drawn.

    Args:
        texts: the text of each row, or a tuple of texts (of a pair task).
        labels: the label of each row.
        per_class, seed: how many of each class for train, and again for dev; another seed is another draw.
        avoid: texts that may not be drawn.

    Returns:
        The row numbers of train and of dev, class by class.

    Raises:
        InputError: a class has fewer than 2 x ``per_class`` texts that may be drawn.
    """
    if len(texts) != len(labels):
        raise InputError(f"few_shot: {len(texts)} texts and {len(labels)} labels; every text needs a label")
    return _draw(_drawable(texts, labels, avoid), per_class, seed, "few_shot")


def _drawable(
    texts: Sequence[Text], labels: Sequence[Hashable], avoid: Iterable[Text]
) -> dict[Hashable, list[tuple[Key, int]]]:
    """Label -> the texts that may be drawn, each once, with their rows."""
    first: dict[Key, int] = {}
    never = {_composed(_key(text)) for text in avoid}
    keys = [_key(text) for text in texts]
    for i, key in enumerate(map(_composed, keys)):
        if labels[first.setdefault(key, i)] != labels[i]:
            never.add(key)
    classes: dict[Hashable, list[tuple[Key, int]]] = {label: [] for label in sorted(set(labels), key=_order)}
    for key, i in first.items():
        if key not in never and any(key):
            classes[labels[i]].append((keys[i], i))
    return classes


def _draw(
    classes: Mapping[Hashable, Sequence[tuple[Key, int]]], per_class: int, seed: int, where: str
) -> tuple[list[int], list[int]]:
    if per_class < 1:
        raise InputError(f"{where}: {per_class} examples per class: must be 1 or more")
    train, dev = [], []
    for label, texts in classes.items():
        if len(texts) < 2 * per_class:
            raise InputError(
                f"{where}: class {label!r} has {len(texts)} texts to draw from; {per_class} per class for train and "
                f"as many for dev need {2 * per_class} (a split 'K-SEED' with a K of {len(texts) // 2} or less fits)"
            )
        drawn = [i for _, i in nsmallest(2 * per_class, ((_rank(seed, key), i) for key, i in texts))]
        train += drawn[:per_class]
        dev += drawn[per_class:]
    return train, dev


def parse_shots(split: str) -> tuple[int, int] | None:
    """``"16-13"`` as (16 per class, seed 13); None for any other name."""
    found = re.fullmatch(r"([1-9][0-9]{0,17})-([0-9]{1,18})", split)
    return (int(found[1]), int(found[2])) if found else None


def draw_splits(
    names: Iterable[str],
    train: Sequence[Row],
    test: Sequence[Row],
    fields: Sequence[str],
    where: str,
) -> dict[str, dict[str, Sequence[Row]]]:
    """Split name (``K-SEED``) -> part -> rows, from rows with the columns ``fields`` and ``label``. Test stays whole.

    Raises:
        InputError: a class has too few texts.
    """
    labels = [str(row["label"]) for row in train]
    classes = _drawable([_text(row, fields) for row in train], labels, [_text(row, fields) for row in test])
    splits: dict[str, dict[str, Sequence[Row]]] = {}
    for name in names:
        per_class, seed = parse_shots(name) or (0, 0)
        drawn = _draw(classes, per_class, seed, f"{where}, split {name}")
        splits[name] = {part: [train[i] for i in rows] for part, rows in zip(("train", "dev"), drawn, strict=True)}
        splits[name]["test"] = test
    return splits


def _text(row: Row, fields: Sequence[str]) -> Key:
    return tuple(str(row[field]) for field in fields)


def _key(text: Text) -> Key:
    return tuple(" ".join(t.split()) for t in ((text,) if isinstance(text, str) else text))


def _composed(key: Key) -> Key:
    """The same texts in one way of writing them (NFC)."""
    return tuple(normalize("NFC", text) for text in key)


def _rank(seed: int, key: Key) -> bytes:
    return hashlib.sha256("\n".join((str(seed), *key)).encode("utf-8", "surrogatepass")).digest()


def _order(label: Hashable) -> tuple[int, str]:
    """Numbers as numbers: class 2 stands before class 10."""
    text = str(label)
    return (int(text) if text.isdecimal() and len(text) < 20 else -1, text)
