"""Checks plain data against type hints: the schemas of files that are read back."""

from __future__ import annotations

import types
import typing
from functools import lru_cache
from typing import Any

from rayprompt.errors import InputError

NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
}
MOST = 1 << 63  # whole numbers of a file are below it: what counts has 64 bits


def check(value: Any, hint: Any, where: str, key: str = "") -> None:
    """Raise unless ``value`` is of the type that ``hint`` says.

    Args:
        value: plain data, as JSON and YAML give it.
        hint: str, int, float (also whole numbers), bool, None, Any, ``A | B``, ``list[A]``, ``dict[str, A]``, or a
            TypedDict, of which further keys are ignored.
        where: the file, for the message.
        key: the place in it, for the message.

    Raises:
        InputError: a key is missing, or a value is of another type.
    """
    if typing.is_typeddict(hint):
        _check_keys(value, hint, where, key)
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        _check_union(value, arguments, where, key)
    elif not _is_of(value, origin or hint):
        raise InputError(f"{where}: {_placed(key)} must be {name_of(hint)}, not {shown(value)}")
    elif origin is list:
        for i, item in enumerate(value):
            check(item, arguments[0], where, f"{key}[{i}]")
    elif origin is dict:
        for name, item in value.items():
            check(name, arguments[0], where, f"{key}, the key {shown(name)},")
            check(item, arguments[1], where, _below(key, name))


def _check_keys(value: Any, hint: Any, where: str, key: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_placed(key)} must be a mapping, not {shown(value)}")
    for name, own, required in _keys_of(hint):
        if name in value:
            check(value[name], own, where, _below(key, name))
        elif required:
            raise InputError(f"{where}: {_below(key, name)} is missing; it must be {name_of(own)}")


@lru_cache
def _keys_of(hint: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it must be there, of each key of a TypedDict."""
    hints = typing.get_type_hints(hint, include_extras=True)
    found = []
    for name, own in hints.items():
        optional = typing.get_origin(own) is typing.NotRequired
        found.append((name, typing.get_args(own)[0] if optional else own, not optional))
    return tuple(found)


def _check_union(value: Any, choices: tuple[Any, ...], where: str, key: str) -> None:
    """The error is that of the choice whose outermost type fits, if there is one."""
    fitting = [choice for choice in choices if _is_of(value, _outer(choice))]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(map(name_of, choices)))
        raise InputError(f"{where}: {_placed(key)} must be {wanted}, not {shown(value)}")
    for choice in fitting[:-1]:
        try:
            return check(value, choice, where, key)
        except InputError:
            continue
    check(value, fitting[-1], where, key)


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and (value != value or abs(value) < MOST)
    return isinstance(value, type(None) if kind is None else kind)


def _outer(hint: Any) -> Any:
    return dict if typing.is_typeddict(hint) else typing.get_origin(hint) or hint


def whole(text: str) -> int | None:
    """The number that a text of ASCII digits says; None for any other text, and for a number of more than 64 bits."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        return None
    number = int(text)
    return number if number < MOST else None


def name_of(hint: Any) -> str:
    """A type for people."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(name_of, typing.get_args(hint))))
    outer = _outer(hint)
    return NAMES.get(type(None) if outer is None else outer, str(getattr(outer, "__name__", outer)))


def shown(value: Any, most: int = 60) -> str:
    """A value for people, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _placed(key: str) -> str:
    return key or "the content"


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
