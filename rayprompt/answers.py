"""What an LM wrote, judged: an extractor finds the answer in a completion, a scorer compares it with the gold one.

Both are named by a text, as ``last-number``, ``regex:PATTERN`` or ``choice:yes,no``; a function of one's own by where
it is imported from, ``module:function``, in code or on the command line, never in a task file. Every one has a version:
values under two versions of a rule are never taken for each other.
"""

from __future__ import annotations

import importlib
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from rayprompt.errors import InputError, ScoringError, unknown
from rayprompt.numerals import last_number, last_plain_number, number_of
from rayprompt.scores import FloatArray
from rayprompt.scripts import ONE_WAY, composed, fold, is_word, unspaced
from rayprompt.style import Run, StyleModels

Extract = Callable[[str], "str | None"]
Score = Callable[["str | None", str], float]

EDGES = (
    string.whitespace
    + "\"'`*_()[]{}<>.,;:!?\u201c\u201d\u2018\u2019\u00ab\u00bb\u00bf\u00a1\u2026"
    + "\u200b\u060c\u061b\u061f\u06d4\u0964\u0e2f\u1362"
    + "".join(map(chr, (0x3001, 0x3002, *range(0x3008, 0x3012), 0xFF08, 0xFF09, 0xFF0C, 0xFF0E, 0xFF1A, 0xFF1B)))
    + "\uff01\uff1f"
)
ARTICLES = re.compile(r"\b(a|an|the)\b")
SENTENCE_END = re.compile(r"[.!?]")


def normal(text: str) -> str:
    """A text up to case, whitespace, and punctuation around it; what is part of a number or a name stays (-5, C#)."""
    plain = " ".join(composed(text).translate(ONE_WAY).split())
    inner = plain.strip(EDGES)
    point = plain[: plain.find(inner)].endswith(".") and inner[:1].isdigit()
    return ("." if point else "") + fold(inner)[0]


def first_sentence(text: str) -> str:
    """A text up to the first quotation mark, and of that the first sentence with its end, as RLPrompt cuts outputs."""
    text = text.partition('"')[0].strip()
    end = SENTENCE_END.search(text)
    return text[: end.end()].strip() if end else text


@dataclass(frozen=True)
class Extractor:
    """Finds the answer in a completion.

    Attributes:
        name: what it is called by, arguments included.
        version: of the rule; it changes with what the rule finds.
        find: completion -> the answer; None where there is none.
        gold: the gold answer as ``find`` would give it; None where it is none of that kind.
    """

    name: str
    version: int
    find: Extract
    gold: Extract

    @property
    def takes_first(self) -> bool:
        """Whether nothing that is written behind an answer can change it."""
        return self.name.partition(":")[0] == "choice"

    @property
    def id(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"


def _first_line(text: str) -> str | None:
    return next((line for line in map(normal, text.splitlines()) if line), None)


def _whole(text: str) -> str | None:
    return normal(text) or None


def _sentence(text: str) -> str | None:
    return first_sentence(text) or None


def _lower_sentence(text: str) -> str | None:
    return first_sentence(text).lower() or None


def _as_it_is(text: str) -> str | None:
    return " ".join(text.split()) or None


def _lower(text: str) -> str | None:
    return " ".join(text.split()).lower() or None


PLAIN: dict[str, tuple[int, Extract, Extract]] = {
    "last-number": (3, last_number, last_number),
    "last-plain-number": (1, last_plain_number, last_plain_number),
    "exact": (3, _whole, _whole),
    "first-line": (3, _first_line, _whole),
    "sentence": (1, _sentence, _as_it_is),
    "lower-sentence": (1, _lower_sentence, _lower),
}
WITH_ARGUMENT = ("regex:PATTERN", "choice:A,B", "last-choice:A,B")
OWN = "module:function"


def extractor_names() -> list[str]:
    """How extractors are named."""
    return [*PLAIN, *WITH_ARGUMENT, OWN]


@lru_cache(maxsize=64)
def get_extractor(name: str, *, code: bool = True, where: str = "") -> Extractor:
    """The extractor of that name. ``code``: whether it may be a function of the user's, ``module:function``.

    Raises:
        InputError: there is none; ``where`` it was asked for.
    """
    place = f"{where}: " if where else ""
    if name in PLAIN:
        version, find, gold = PLAIN[name]
        return Extractor(name, version, find, gold)
    kind, colon, argument = name.partition(":")
    if kind == "regex" and colon:
        return _regex(name, argument, place)
    if kind in ("choice", "last-choice") and colon:
        return _choice(name, argument, place, last=kind == "last-choice")
    if not colon:
        raise unknown("extractor", name, extractor_names(), where)
    found: Any = _imported("extractor", name, place, code)
    return Extractor(name, 0, found, lambda text: text.strip() or None)


def _regex(name: str, pattern: str, place: str) -> Extractor:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{place}extractor {name}: {error} in the pattern") from None
    except (RecursionError, OverflowError):
        raise InputError(f"{place}extractor {name[:60]}...: the pattern is nested too deeply or too large") from None

    def find(text: str) -> str | None:
        found = list(compiled.finditer(text))
        if not found:
            return None
        groups = [group for group in found[-1].groups() if group is not None]
        return normal(groups[0] if groups else found[-1][0]) or None

    return Extractor(name, 2, find, _whole)


def _choice(name: str, argument: str, place: str, *, last: bool) -> Extractor:
    choices = [choice.strip() for choice in argument.split(",")]
    if len(choices) < 2 or not all(choices) or len(_by_form(choices)) < len(choices):
        raise InputError(f"{place}extractor {name}: needs two or more choices, as choice:yes,no")
    return choice_of(choices, name, last=last)


def choice_of(choices: Sequence[str], name: str = "", *, last: bool = False) -> Extractor:
    """Finds the choice that a text names first (or ``last``), as a whole word; single letters by their case."""
    known = _by_form(choices)
    longest = sorted(known, key=len, reverse=True)

    def find(text: str) -> str | None:
        plain = " ".join(composed(text).split())
        folded, at = fold(plain)
        at.append(len(plain))
        spans = [span for form in longest for span in _places(plain, folded, at, form)]
        end, found = 0, []
        for start, stop, form in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start >= end:
                found.append(known[form])
                end = stop
        return (found[-1] if last else found[0]) if found else None

    def gold(text: str) -> str | None:
        return known.get(_form(text.strip()))

    return Extractor(name or "choice:" + ",".join(choices), 3, find, gold)


def _form(choice: str) -> str:
    """What a choice is looked for as: a single letter with its case, all else without."""
    plain = " ".join(composed(choice).split())
    return plain if len(plain) == 1 else fold(plain)[0]


def _by_form(choices: Sequence[str]) -> dict[str, str]:
    return {_form(choice): choice for choice in choices}


def _places(plain: str, folded: str, at: Sequence[int], form: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, form) of each place where a choice is a word of its own; ``at``: from ``folded`` to ``plain``."""
    single = len(form) == 1
    text = plain if single else folded
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        first, last = (start, end) if single else (at[start], at[end - 1] + 1)
        whole = single or ((not start or at[start - 1] != first) and at[end] != last - 1)  # no half of a letter
        if whole and is_word(plain, first, last):
            yield first, last, form
        start = text.find(form, start + 1)


def _imported(what: str, name: str, place: str, code: bool) -> Callable[..., object]:
    if not code:
        raise InputError(
            f"{place}{what} {name!r} is a function: it comes from code or the command line (--{what} {name}), "
            "never from a file"
        )
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # what a module of the user's raises is not ours to know
        raise InputError(f"{place}{what} {name}: cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise InputError(f"{place}{what} {name}: is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def match(answer: str | None, gold: str) -> float:
    """1 where the answer is the gold one; numbers are compared as numbers."""
    return float(answer is not None and (answer == gold or number_of(answer) == number_of(gold) is not None))


def contains(answer: str | None, gold: str) -> float:
    """1 where the gold answer stands in the answer, as whole words and up to case."""
    if answer is None:
        return 0.0
    text, word = (" ".join(fold(composed(t))[0].split()) for t in (answer, gold))
    starts = [i for i in range(len(text) - len(word) + 1) if text.startswith(word, i)]
    return float(any(is_word(text, i, i + len(word)) for i in starts) if word else True)


def token_f1(answer: str | None, gold: str) -> float:
    """F1 of the words that both share, articles and punctuation left out (SQuAD, Rajpurkar et al., 2016)."""
    given, wanted = (_words(text or "") for text in (answer, gold))
    same = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    return 2 * same / (len(given) + len(wanted))


SCORERS: dict[str, tuple[int, Score]] = {"match": (3, match), "contains": (3, contains), "f1": (3, token_f1)}
STYLE = "style"  # by models, see rayprompt.style


def _words(text: str) -> list[str]:
    """Words; in scripts without spaces between words, characters."""
    plain = "".join(
        c for c in composed(text).casefold() if unicodedata.category(c)[0] != "P" and c not in string.punctuation
    )
    apart = "".join(f" {c} " if unspaced(c) and not unicodedata.combining(c) else c for c in plain)
    return ARTICLES.sub(" ", apart).split()


@dataclass(frozen=True)
class Judge:
    """An extractor and a scorer: completions -> values. Two with one ``id`` judge alike.

    Attributes:
        extractor, scorer: by name; a scorer is ``match``, ``contains``, ``f1``, ``style``, or a function
            (answer, gold) -> value.
        style: the models of the scorer ``style``, for which the gold answer is the text whose content is to be kept.
    """

    extractor: Extractor
    scorer: str = "match"
    style: StyleModels | None = None

    @classmethod
    def of(
        cls,
        extractor: str,
        scorer: str = "match",
        style: StyleModels | None = None,
        *,
        code: bool = True,
        where: str = "",
    ) -> Judge:
        """By names.

        Raises:
            InputError: there is none of a name, it is a function and ``code`` is False, or ``style`` lacks its models.
        """
        found = get_extractor(extractor, code=code, where=where)
        if scorer == STYLE:
            if style is None:
                raise InputError(
                    f"{where + ': ' if where else ''}scorer style needs models: the task's key style, as "
                    "{classifier: DIR, target: 1, encoder: roberta-large}"
                )
            return cls(found, scorer, style)
        if ":" in scorer:
            _imported("answer-scorer", scorer, f"{where}: " if where else "", code)
        elif scorer not in SCORERS:
            raise unknown("answer scorer", scorer, [*SCORERS, STYLE, OWN], where)
        return cls(found, scorer)

    @property
    def id(self) -> str:
        """Names and versions of both, and what stands for the models."""
        if self.style is not None:
            return f"{self.extractor.id} {STYLE}/1:{self.style.id}"
        version = SCORERS[self.scorer][0] if self.scorer in SCORERS else 0
        return f"{self.extractor.id} {self.scorer}/{version}"

    def to_json(self) -> dict[str, Any]:
        """For study.yaml and exported prompts."""
        form = {"extractor": self.extractor.name, "scorer": self.scorer, "version": self.id}
        return form if self.style is None else {**form, "style": self.style.to_json()}

    @cached_property
    def _score(self) -> Callable[..., object]:
        return SCORERS[self.scorer][1] if self.scorer in SCORERS else _imported("answer-scorer", self.scorer, "", True)

    def answer(self, completion: str) -> str | None:
        """The answer in a completion.

        Raises:
            ScoringError: a function of the user's raised, or gave something else than a text or None.
        """
        try:
            found = self.extractor.find(completion)
        except Exception as error:  # it is the user's
            raise self._broken(completion, f"raised {type(error).__name__}: {error}") from None
        if found is not None and not isinstance(found, str):
            raise self._broken(completion, f"gave {type(found).__name__}, not a text or None")
        return found

    def values(self, completions: Sequence[str | None], gold: Sequence[str], run: Run | None = None) -> FloatArray:
        """(P,) the value of each completion, given its gold answer; NaN where there is no completion.

        Args:
            completions, gold: (P,) what was written, and the gold answers.
            run: what runs models, where the scorer has some.

        Raises:
            ScoringError: a function of the user's raised, or gave something else than a number; a model failed.
        """
        if self.style is not None:
            return np.asarray(self.rewards(completions, gold, run).mean(axis=1))
        values = np.full(len(completions), np.nan)
        for i, (completion, wanted) in enumerate(zip(completions, gold, strict=True)):
            if completion is None:
                continue
            answer = self.answer(completion)
            try:
                values[i] = float(self._score(answer, wanted))  # type: ignore[arg-type]
            except Exception as error:  # it is the user's
                raise ScoringError(f"answer scorer {self.scorer} on {answer!r}: {error}") from None
            if not math.isfinite(values[i]):
                raise ScoringError(f"answer scorer {self.scorer} on {answer!r}: gave {values[i]}, not a number")
        return values

    def rewards(self, completions: Sequence[str | None], gold: Sequence[str], run: Run | None) -> FloatArray:
        """(P, 2) content and style of each completion, from 0 to 1; 0 where nothing is left of one, NaN without one.

        Args:
            completions, gold: (P,) what was written, and the texts whose content is to be kept.
            run: what runs the models.
        """
        if self.style is None or run is None:
            raise ScoringError(f"answer scorer {self.scorer}: there is nothing that runs its models")
        found = np.full((len(completions), 2), np.nan)
        texts = [None if text is None else self.answer(text) or "" for text in completions]
        found[[i for i, text in enumerate(texts) if text == ""]] = 0.0
        rows = [i for i, text in enumerate(texts) if text]
        if rows:
            columns = [[str(texts[i]) for i in rows], [gold[i] for i in rows]]
            found[rows] = run("reward", self.style.reward, columns)
        return found

    def _broken(self, completion: str, what: str) -> ScoringError:
        return ScoringError(f"extractor {self.extractor.name} on {completion[:60]!r}: {what}")
