"""How an LM is run: what ``--lm KEY=VALUE`` sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from rayprompt.decoding import NAMES as DECODING
from rayprompt.decoding import READERS as DECODING_READERS
from rayprompt.errors import InputError, unknown
from rayprompt.typed import whole

DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
CHATS = ("user", "system")
SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(B|KB|MB|GB|TB)?", re.IGNORECASE)
UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
CACHE = 512_000_000
LABELS = ("auto", "echo", "top", "text")
LOCAL = frozenset({"dtype", "tokens", "cache", "memory", "chat_date", "trust_remote_code"})
REMOTE = frozenset({"in_flight", "rate", "timeout", "tries", "labels", "price_in", "price_out", "words"})


@dataclass(frozen=True)
class LMSettings:
    """How an LM is run. All but ``cache`` and ``memory`` can change the last bits of a score, ``chat`` all of it.

    Attributes:
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, bfloat16 on a GPU.
        tokens: of a forward pass; None is what suits the device and its memory.
        cache: bytes for keys and values that a scorer keeps, of texts with many prompts behind them, or of prompts.
        memory: bytes that a scorer may take; None is what its device has.
        chat: where the prompt stands in the LM's chat template: in the ``user`` message with all else, or in the
            ``system`` message; None is no chat template.
        chat_date: the date, ``2026-01-31``, that a chat template shows as today's; None: the day a study begins.
        max_tokens, temperature, top_p, top_k, length_control, samples, stop, seed: how it writes, where that is not as
            the task has it; see :class:`rayprompt.decoding.Decoding`. An empty ``stop`` is none at all.
        in_flight: of an LM behind a service, requests that are on their way at once.
        rate: requests a second at most; None is no limit.
        timeout: seconds to wait for an answer, and ``tries`` how often to ask for it.
        labels: how label words are scored there: ``echo``, ``top``, ``text``, or ``auto``, the first that it can.
        price_in, price_out: of a million tokens that it reads and writes, in any currency.
        words: the LM whose vocabulary prompts are made of there; None takes the words of the task's texts.
        trust_remote_code: run the Python code that comes with a checkpoint whose model type transformers does not know.
    """

    dtype: str = "auto"
    tokens: int | None = None
    cache: int = CACHE
    memory: int | None = None
    chat: str | None = None
    chat_date: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    length_control: bool | None = None
    samples: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    in_flight: int = 64
    rate: float | None = None
    timeout: float = 60.0
    tries: int = 8
    labels: str = "auto"
    price_in: float | None = None
    price_out: float | None = None
    words: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any] | LMSettings | None) -> LMSettings:
        """Settings by name, as ``{"dtype": "bf16", "cache": "2GB"}``.

        Raises:
            InputError: no such setting, or a value that is none of it.
        """
        if isinstance(given, LMSettings):
            return given
        read: dict[str, Any] = {}
        for name, value in (given or {}).items():
            if name not in READERS:
                raise unknown("LM setting", name, READERS)
            unset = value is None or (value == "none" and name not in ("dtype", "stop"))
            read[name] = None if unset else READERS[name](value)
        return cls(**{name: value for name, value in read.items() if value is not None or name != "cache"})

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def decoding(self) -> dict[str, Any]:
        """What it says of how the LM writes."""
        return {name: value for name in DECODING if (value := getattr(self, name)) is not None}

    def changed(self) -> dict[str, Any]:
        """What is not as it is unless said."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def check_for(self, name: str, *, endpoint: bool) -> None:
        """Raise ``InputError`` where something is set that is not for an LM behind a service, or only for one."""
        for key, value in self.changed().items():
            if key in (LOCAL if endpoint else REMOTE):
                whose = "an LM that is loaded here" if endpoint else "an LM behind a service, endpoint:URL#NAME"
                raise InputError(f"--lm {key}={value}: is for {whose}; {name} is not one")

    def fit_for(self, *, endpoint: bool) -> LMSettings:
        """The same without what says nothing of an LM that is, or is not, behind a service."""
        return self.without(LOCAL if endpoint else REMOTE)

    def without(self, names: Iterable[str]) -> LMSettings:
        """The same with some of it as it is unless said."""
        defaults: dict[str, Any] = {f.name: f.default for f in fields(self) if f.name in names}
        return replace(self, **defaults)

    def cost(self, tokens: int, written: int) -> float | None:
        """What so many tokens, ``written`` of them by the LM, cost; None without a price or tokens."""
        if (self.price_in is None and self.price_out is None) or not tokens:
            return None
        return ((tokens - written) * (self.price_in or 0.0) + written * (self.price_out or 0.0)) / 1e6

    def with_tokens(self, tokens: int | None) -> LMSettings:
        """The same with a forward pass of so many tokens: what a study was begun with."""
        return replace(self, tokens=tokens or self.tokens)


def from_file(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """LM settings that a file states.

    Raises:
        InputError: it would let the code of a checkpoint run, which only the command line may.
    """
    if given and "trust_remote_code" in given:
        raise InputError("lm: trust_remote_code: is taken from the command line only: --lm trust_remote_code=true")
    return dict(given or {})


def _dtype(value: Any) -> str:
    name = DTYPES.get(str(value), str(value))
    if name not in DTYPES.values():
        raise InputError(f"--lm dtype={value}: must be auto, fp32, bf16 or fp16")
    return name


def _tokens(value: Any) -> int:
    tokens = whole(str(value))
    if tokens is None or not 8 <= tokens <= 1 << 20:
        raise InputError(f"--lm tokens={value}: must be a number of tokens, from 8 to {1 << 20}")
    return tokens


def _bytes(name: str, least: int) -> Any:
    def read(value: Any) -> int:
        found = SIZE.fullmatch(str(value).strip())
        size = int(float(found[1]) * UNITS[(found[2] or "B").upper()]) if found else -1
        if size < least:
            raise InputError(f"--lm {name}={value}: must be a size in bytes, as 500MB or 2GB")
        return size

    return read


def _chat(value: Any) -> str:
    if value not in CHATS:
        raise InputError(f"--lm chat={value}: must be {' or '.join(CHATS)}: where the prompt stands")
    return str(value)


def _date(value: Any) -> str:
    try:
        return datetime.strptime(str(value), "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise InputError(f"--lm chat_date={value}: must be a date, as 2026-01-31") from None


def _labels(value: Any) -> str:
    if value not in LABELS:
        raise InputError(f"--lm labels={value}: must be {', '.join(LABELS)}: how label words are scored")
    return str(value)


def _number(name: str, least: float, most: float, *, whole: bool = False) -> Any:
    def read(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if isinstance(value, bool) or not least <= number <= most or (whole and number != int(number)):
            kind = "whole number" if whole else "number"
            raise InputError(f"--lm {name}={value}: must be a {kind} from {least:g} to {most:g}")
        return int(number) if whole else number

    return read


def _written(name: str) -> Any:
    return lambda value: DECODING_READERS[name](value, f"--lm {name}={value}")


def _trust(value: Any) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise InputError(f"--lm trust_remote_code={value}: must be true or false")
    return str(value).lower() == "true"


def _stop(value: Any) -> tuple[str, ...]:
    """Stop texts; ``none`` is none at all, also where the task has some."""
    if value == "none" or (isinstance(value, list | tuple) and not value):
        return ()
    return tuple(_written("stop")(value))


def _words(value: Any) -> str:
    if str(value).startswith("endpoint:"):
        raise InputError(f"--lm words={value}: must be an LM whose files can be read, not one behind a service")
    return str(value)


READERS = {
    "dtype": _dtype,
    "tokens": _tokens,
    "cache": _bytes("cache", 0),
    "memory": _bytes("memory", 1),
    "chat": _chat,
    "chat_date": _date,
    "in_flight": _number("in_flight", 1, 4096, whole=True),
    "rate": _number("rate", 1e-3, 1e6),
    "timeout": _number("timeout", 1e-2, 86400),
    "tries": _number("tries", 1, 1000, whole=True),
    "labels": _labels,
    "price_in": _number("price_in", 0, 1e9),
    "price_out": _number("price_out", 0, 1e9),
    "words": _words,
    "trust_remote_code": _trust,
    **{name: _written(name) for name in DECODING},
    "stop": _stop,
}


def shown(size: float) -> str:
    """A number of bytes for people."""
    unit = next((u for u in ("TB", "GB", "MB", "KB") if size >= UNITS[u]), "B")
    return f"{size / UNITS[unit]:.3g} {unit}"
