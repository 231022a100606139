"""Settings of a searcher: a frozen dataclass, checked by name and type."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from rayprompt.errors import InputError, unknown
from rayprompt.foreign import Unreadable, parse_yaml
from rayprompt.typed import MOST, shown

MOST_SETTING = 1_000_000


@dataclass(frozen=True)
class NoSettings:
    """A searcher without settings of its own."""


def setting(default: Any, doc: str) -> Any:
    """A field of a searcher's ``Settings``: its default and one line that says what it is."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def make_settings(cls: type[Any], given: dict[str, Any]) -> Any:
    """``cls.Settings`` from given values, checked against names and types.

    Raises:
        InputError: an unknown setting, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls.Settings)
    known = [f.name for f in dataclasses.fields(cls.Settings)]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise unknown("setting", name, known or ["(none)"], f"searcher {cls.name}")
        values[name] = _from_text(value, hints[name]) if isinstance(value, str) else value
        if isinstance(value, list) and typing.get_origin(hints[name]) is tuple:  # YAML and JSON have no tuples
            values[name] = tuple(value)
        if not _fits(values[name], hints[name]):
            raise InputError(
                f"searcher {cls.name}: setting {name}={shown(value)} must be {_type_name(hints[name])}, "
                f"not {type(value).__name__}"
            )
    return cls.Settings(**values)


def check_sizes(name: str, settings: Any, longest: int) -> None:
    """Refuse settings that only fill the memory: prompts longer than any input of the LM, a billion candidates.

    Args:
        name: of the searcher.
        settings: of the searcher.
        longest: input of the LM, in tokens.

    Raises:
        InputError: one is too large.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        most = longest if field.name == "length" else MOST_SETTING
        if type(value) is int and value > most and "seed" not in field.name:
            why = "the longest input of this LM" if field.name == "length" else "the largest value of a setting"
            raise InputError(f"searcher {name}: setting {field.name}={value}: must be {most:,} or less, {why}")


def _from_text(text: str, hint: Any) -> Any:
    """A setting given as text (the command line has no other), read as YAML unless text is what is wanted."""
    if text in ("null", "~") and _fits(None, hint):
        return None
    if _fits(text, hint):
        return text
    try:
        value = parse_yaml(text)
    except Unreadable:
        return text
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):  # YAML takes 1e-3 for text
        value = float(text)
    return value if _fits(value, hint) else text


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST
    return hint is Any or isinstance(value, typing.get_origin(hint) or hint)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    return "null" if hint is type(None) else str(getattr(hint, "__name__", hint))
