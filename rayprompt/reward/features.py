"""What a reward model sees of a text: TF-IDF and counts, or vectors from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from rayprompt.errors import InputError, did_you_mean
from rayprompt.foreign import parse_json, read_json, read_text
from rayprompt.scores import FloatArray
from rayprompt.typed import check

NUMBER = re.compile(r"\d[\d,]*\.?\d*")
TOKENS = r"(?u)\b\w+\b|[$%?]"
WEIGHT = 0.3  # of a count, in standard deviations, beside words of weight 0 to 1
MOST = 4.0  # standard deviations of a count
PROBES = 8  # texts whose vectors are kept with a model
MADE = ("lm:", "encoder:")  # origins that are a program, not a file
WORDS = {
    "each": r"\b(each|every|per)\b",
    "compares": r"\b(more|less|fewer|than|times|twice|double)\b",
    "fractions": r"/|\b(half|third|quarter|fourth|fifth|percent)\b",
}


class Features(Protocol):
    """Texts -> rows of numbers. ``prepare`` may work ahead for all texts to come; ``fit`` sees train texts alone."""

    name: str

    def prepare(self, texts: Sequence[str]) -> None: ...

    def fit(self, texts: Sequence[str]) -> Features: ...

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix: ...

    def save(self, folder: Path) -> None: ...


class TextFeatures:
    """TF-IDF of words and pairs of words; 12 counts (lengths, numbers, some words), logarithmic and standardised."""

    name = "text"

    def __init__(self, min_df: int = 3) -> None:
        self.min_df = min_df
        self.vectorizer: TfidfVectorizer | None = None  # where there is no word: counts alone
        self.mean: FloatArray = np.zeros(0)
        self.std: FloatArray = np.ones(0)

    @staticmethod
    def _vectorizer(**more: Any) -> TfidfVectorizer:
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS, **more)

    def prepare(self, texts: Sequence[str]) -> None:
        """Nothing."""

    def fit(self, texts: Sequence[str]) -> TextFeatures:
        """Learn vocabulary and scales."""
        self.vectorizer = None
        for least in (min(self.min_df, max(1, len(texts) // 20)), 1):
            try:
                self.vectorizer = self._vectorizer(min_df=least).fit(texts)
                break
            except ValueError:  # no word occurs as often as that, or there is none at all
                continue
        raw = np.log1p(counts(texts))
        self.mean, self.std = raw.mean(axis=0), raw.std(axis=0) + 1e-9
        return self

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(N, F) rows."""
        scaled = np.clip((np.log1p(counts(texts)) - self.mean) / self.std, -MOST, MOST) * WEIGHT
        words = [] if self.vectorizer is None else [self.vectorizer.transform(texts)]
        return sparse.hstack([*words, sparse.csr_matrix(scaled)], format="csr")

    def save(self, folder: Path) -> None:
        """Write ``words.json`` and ``text.npz``."""
        known = {} if self.vectorizer is None else self.vectorizer.vocabulary_
        idf = np.zeros(0) if self.vectorizer is None else self.vectorizer.idf_
        words = sorted(known, key=known.__getitem__)
        (folder / "words.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
        np.savez(folder / "text.npz", idf=idf, mean=self.mean, std=self.std)

    @classmethod
    def load(cls, folder: Path) -> TextFeatures:
        """Read what :meth:`save` wrote."""
        words = parse_json(read_text(folder / "words.json", "JSON"))
        check(words, list[str], str(folder / "words.json"))
        found = cls()
        with np.load(folder / "text.npz", allow_pickle=False) as arrays:
            if words:
                found.vectorizer = cls._vectorizer(vocabulary={word: i for i, word in enumerate(words)})
                found.vectorizer.idf_ = arrays["idf"]
            found.mean, found.std = arrays["mean"], arrays["std"]
        return found


class Vectors:
    """Given vectors, or those that a function makes of texts: an LM's, an encoder's. Of one width, scaled to length 1.

    Args:
        known: text -> vector.
        embed: (texts) -> (N, d), for texts that are not known; None where there is nothing else.
        origin: where they are from. A model that has learned on those of an LM or an encoder takes no others'.
    """

    name = "vectors"

    def __init__(
        self,
        known: Mapping[str, FloatArray] | None = None,
        embed: Callable[[Sequence[str]], FloatArray] | None = None,
        origin: str = "vectors",
    ) -> None:
        self.known = dict(known or {})
        self.embed = embed
        self.origin = origin
        widths = {np.shape(v) for v in self.known.values()}
        if len(widths) > 1:
            raise InputError(f"{origin}: vectors of different widths: {', '.join(str(w[-1]) for w in sorted(widths))}")
        self.width: int | None = widths.pop()[0] if widths else None
        self.probes: dict[str, list[float]] = {}  # a few of what was learned on

    def prepare(self, texts: Sequence[str]) -> None:
        """Make the vectors of all these texts at once."""
        self._vectors(texts)

    def fit(self, texts: Sequence[str]) -> Vectors:
        """Nothing is learned; the first texts tell the width, and are kept to know the vectors again."""
        some = list(texts[:PROBES])
        self.probes = dict(zip(some, self._vectors(some).tolist(), strict=True))
        return self

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """(N, d) rows.

        Raises:
            InputError: a text has no vector, or one of another width.
        """
        return sparse.csr_matrix(self._vectors(texts))

    def _vectors(self, texts: Sequence[str]) -> FloatArray:
        missing = list(dict.fromkeys(text for text in texts if text not in self.known))
        if missing:
            if self.embed is None:
                raise InputError(f"{self.origin}: no vector for {missing[0][:60]!r} ({len(missing)} texts have none)")
            made = np.asarray(self.embed(missing))
            self.width = self.width or made.shape[1]
            if made.shape != (len(missing), self.width):
                raise InputError(
                    f"{self.origin}: gave vectors of shape {made.shape} for {len(missing)} texts; they must be "
                    f"{self.width} wide, as those this model has learned from"
                )
            self.known.update(zip(missing, made, strict=True))
        rows = np.array([self.known[text] for text in texts], dtype=np.float64).reshape(len(texts), -1)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))

    def save(self, folder: Path) -> None:
        """Write what they are known by: vectors are given anew."""
        content = {"width": self.width, "origin": self.origin, "probes": self.probes}
        (folder / "vectors.json").write_text(json.dumps(content), encoding="utf-8")

    def check(self, folder: Path) -> None:
        """See that they are those that the model in ``folder`` has learned on, as far as can be told.

        Raises:
            InputError: they are of another width, LM or encoder, or a text has another vector than it had then.
        """
        saved = read_json(folder / "vectors.json")
        if self.width not in (None, saved["width"]):
            raise InputError(
                f"{folder}: learned on vectors {saved['width']} wide; those given are {self.width} wide ({self.origin})"
            )
        if saved["origin"] != self.origin and any(o.startswith(MADE) for o in (saved["origin"], self.origin)):
            raise InputError(f"{folder}: learned on vectors of {saved['origin']}; those given are of {self.origin}")
        for text in (text for text in saved["probes"] if text in self.known):
            if not np.allclose(self._vectors([text])[0], saved["probes"][text], rtol=0, atol=1e-4):
                raise InputError(
                    f"{folder}: learned on other vectors than those of {self.origin}: {text[:60]!r} had another"
                )
        self.width = saved["width"]


def read_vectors(path: Path, column: str = "vector") -> dict[str, FloatArray]:
    """Text -> vector, from a Parquet file with a column ``text`` and one of lists of numbers.

    Raises:
        InputError: it is something else, or its vectors have different widths.
    """
    from rayprompt.tables import read_rows

    rows = read_rows(path)
    vector = column if column in rows[0] else next((k for k, v in rows[0].items() if isinstance(v, list)), None)
    if vector is None or "text" not in rows[0]:
        raise InputError(
            f"{path}: needs columns 'text' and {column!r}{did_you_mean(column, rows[0])} (it has {', '.join(rows[0])})"
        )
    found: dict[str, FloatArray] = {}
    for number, row in enumerate(rows, start=1):
        if row[vector] is None:
            continue
        if not isinstance(row["text"], str):
            raise InputError(f"{path}, row {number}: text is {row['text']!r}; it must be a text")
        if not _is_vector(row[vector]):
            given = repr(row[vector])
            raise InputError(f"{path}, row {number}: {vector} is {given[:60]}; it must be a list of finite numbers")
        found[row["text"]] = np.asarray(row[vector], dtype=np.float64)
    if not found:
        raise InputError(f"{path}: {vector} is null in all rows")
    widths = sorted({len(v) for v in found.values()})
    if len(widths) != 1:
        raise InputError(
            f"{path}: vectors of {len(widths)} widths ({', '.join(map(str, widths))}); all must be as wide"
        )
    return found


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, (int, float)) and isfinite(x) for x in value)


def counts(texts: Sequence[str]) -> FloatArray:
    """(N, 12) words, characters, numbers, distinct numbers, longest number, largest number, numbers with a fraction,
    sentences, questions, and how often three kinds of words occur."""
    rows = np.zeros((len(texts), 9 + len(WORDS)))
    for i, text in enumerate(texts):
        numbers = NUMBER.findall(text)
        values = [float(n.replace(",", "").rstrip(".") or 0) for n in numbers]
        lower = text.lower()
        rows[i] = [
            len(text.split()),
            len(text),
            len(numbers),
            len(set(numbers)),
            max(map(len, numbers), default=0),
            np.log1p(min(max(values, default=0.0), 1e12)),
            sum(v != int(v) for v in values if v < 1e15),
            len(re.findall(r"[.!?]", text)),
            text.count("?"),
            *(len(re.findall(pattern, lower)) for pattern in WORDS.values()),
        ]
    return rows
