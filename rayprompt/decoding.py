"""Decoding: how an LM writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from rayprompt.errors import InputError
from rayprompt.typed import whole

LENGTH_FACTOR, LENGTH_EXTRA = 1.5, 10  # of length control, as RLPrompt has it
LATER = ("top_k", "length_control")


@dataclass(frozen=True)
class Decoding:
    """How a completion is written.

    Attributes:
        max_tokens: the most new tokens.
        temperature: 0 always takes the likeliest token; else logits are divided by it and a token is drawn.
        top_p: a token is drawn among the likeliest ones that make up this probability (nucleus sampling).
        top_k: a token is drawn among the likeliest so many; None is all.
        length_control: of a text of n tokens no more than max(1.5 n, n + 10) new ones, and no more than ``max_tokens``.
        samples: completions of each pair.
        stop: texts at the first of which a completion ends; they are not part of it.
        seed: of the draws. Sample k of a pair is the same in every run, whatever else is scored beside it.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    length_control: bool = False
    samples: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Decoding:
        """Checked, from the keys of a task file or of ``--lm``; what is None is left as it is.

        Raises:
            InputError: a value that is none of its key.
        """
        read: dict[str, Any] = {}
        for name, value in given.items():
            if value is not None:
                none = name == "stop" and value == ()  # said on purpose: not even the task's own
                read[name] = () if none else READERS[name](value, f"{where}{name}={value}")
        made = cls(**read)
        if made.samples > 1 and made.temperature == 0:
            raise InputError(
                f"{where}samples={made.samples}: with temperature 0 all samples are the same; give a temperature"
            )
        return made

    def to_json(self) -> dict[str, Any]:
        """For the key of a score, and study.yaml. How many samples there are changes none of them."""
        return {**asdict(self), "stop": list(self.stop)}

    @property
    def content(self) -> dict[str, Any]:
        """What decides a completion."""
        content = {name: value for name, value in self.to_json().items() if name != "samples"}
        if self.temperature == 0:
            content = {name: content[name] for name in ("max_tokens", "temperature", "stop", "length_control")}
        # What was not known to earlier versions is left out where it is not used: their scores stay what they are.
        return {name: value for name, value in content.items() if name not in LATER or value not in (None, False)}

    def limit(self, tokens: int) -> int:
        """The most new tokens for a text of so many tokens."""
        if not self.length_control:
            return self.max_tokens
        return min(self.max_tokens, max(int(LENGTH_FACTOR * tokens), tokens + LENGTH_EXTRA))

    def cut(self, text: str) -> str:
        """A text up to the first of the stop texts."""
        ends = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        return text[: min(ends)] if ends else text


def _whole(least: int, most: int) -> Any:
    def read(value: Any, where: str) -> int:
        number = whole(str(value))
        if isinstance(value, bool) or number is None or not least <= number <= most:
            raise InputError(f"{where}: must be a whole number from {least} to {most}")
        return number

    return read


def _real(least: float, most: float) -> Any:
    def read(value: Any, where: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if isinstance(value, bool) or not least <= number <= most:
            raise InputError(f"{where}: must be a number from {least:g} to {most:g}")
        return number

    return read


def _switch(value: Any, where: str) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise InputError(f"{where}: must be true or false")
    return found


def _stop(value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise InputError(f"{where}: must be a text or a list of texts, none of them empty")
    return tuple(text.replace("\\n", "\n") for text in texts)


READERS = {
    "max_tokens": _whole(1, 1 << 16),
    "temperature": _real(0, 100),
    "top_p": _real(1e-6, 1),
    "top_k": _whole(1, 1 << 20),
    "length_control": _switch,
    "samples": _whole(1, 1024),
    "stop": _stop,
    "seed": _whole(0, 2**32 - 1),
}
NAMES = tuple(f.name for f in fields(Decoding))
