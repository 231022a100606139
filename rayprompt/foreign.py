"""The one reader of JSON and YAML that somebody else may have written: limits of size, depth, aliases and numbers.

What comes back is plain data (dict, list, str, int, float, bool, None), at most ``MOST_DEPTH`` deep, without duplicate
keys, and every text in it can be written as UTF-8. Dates are text: no file of ours has dates.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from rayprompt.errors import InputError

MOST_BYTES = {"JSON": 256 << 20, "YAML": 32 << 20, "text": 4 << 30}
MOST_DEPTH = 100
MOST_DIGITS = 100
ALIASES, SPARE = 100, 10_000  # aliases may make 100 times as many values as there are, and a few thousand in any case

# What PyYAML raises of a value that is not of its tag.
BROKEN = (ValueError, OverflowError, TypeError, AttributeError, LookupError)

_SURROGATE = re.compile("[\ud800-\udfff]")
_SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|[0-9]{100}")  # in JSON text: an escaped surrogate, a long number


class Unreadable(ValueError):
    """A text that is not JSON or YAML, or is beyond the limits; ``line`` is None where it is not known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_text(path: Path, kind: str = "text") -> str:
    """The text of a UTF-8 file; ``kind`` decides how large it may be.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is too large.
    """
    try:
        return read_bytes(path, kind).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_bytes(path: Path, kind: str) -> bytes:
    """The content of a file; ``kind`` decides how large it may be.

    Raises:
        InputError: the file cannot be read, or is too large.
    """
    try:
        _check_regular(path)
        # Some files of /proc are regular and wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES[kind]:
                raise InputError(f"{path}: {size:,} bytes; at most {MOST_BYTES[kind]:,} bytes of {kind} are read")
            content: bytes | None = file.read()
        if content is None:
            raise InputError(f"{path}: cannot be read (it waits for somebody to write)")
        return content
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def check_file(path: Path, what: str = "") -> None:
    """Raise ``InputError`` unless there is a regular file; ``what`` it should be is for the message."""
    try:
        _check_regular(path)
    except (OSError, ValueError) as error:  # also a name that the file system does not take
        if isinstance(error, InputError):
            raise
        raise InputError(f"no such file: {path}{what}") from None


def _check_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # a pipe or a device may wait, or have no end
        raise InputError(f"{path}: is a {'directory' if stat.S_ISDIR(mode) else 'pipe, socket or device'}, not a file")


def is_file(path: Path) -> bool:
    """Whether a file is there; False also for a name that the file system does not take."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """The same of a directory."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: the file is missing, or holds something else; the message names file and line.
    """
    check_file(path)
    content = _parsed(parse_json, read_text(path, "JSON"), path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, not {_kind(content)}")
    return content


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, is not YAML, or holds no mapping; the message names file and line.
    """
    check_file(path)
    return yaml_of(read_text(path, "YAML"), path)


def yaml_of(text: str, path: Path) -> dict[str, Any]:
    """The mapping in the text of a YAML file.

    Raises:
        InputError: as :func:`read_yaml`.
    """
    content = _parsed(parse_yaml, text, path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold 'key: value' lines, not {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__


def _parsed(parse: Callable[[str], Any], text: str, path: Path) -> Any:
    try:
        return parse(text)
    except Unreadable as error:
        line = "" if error.line is None else f", line {error.line}"
        raise InputError(f"{path}{line}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Unreadable: it is not JSON, or beyond the limits.
    """
    try:
        plain = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(plain, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON ({error.msg})", error.lineno) from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise Unreadable(_too_deep()) from None
    except ValueError as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(_too_long()) from None  # int() takes 4,300 digits at most
    if plain.count("[") + plain.count("{") > MOST_DEPTH or _SUSPECT.search(plain):
        _check(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of one document.

    Raises:
        Unreadable: it is not YAML, or beyond the limits.
    """
    check_events(text)
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            check_nodes(node)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _not_yaml(error, text) from None
    except BROKEN as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"not YAML ({error})") from None
    _check(value)
    return value


def check_events(text: str) -> None:
    """Refuse YAML that is nested too deeply for any reader: this looks at it without recursion.

    Raises:
        Unreadable: it is, or it is not YAML.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MOST_DEPTH:
                    raise Unreadable(_too_deep(), event.start_mark.line + 1 if event.start_mark else None)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError as error:
        raise _not_yaml(error, text) from None


def check_nodes(root: yaml.Node) -> None:
    """Refuse a document whose aliases make it too large, too deep, or a part of itself.

    Raises:
        Unreadable: they do.
    """
    known: dict[int, tuple[int, int]] = {}  # id of a node -> the values in it, every alias written out, and its depth
    entered: set[int] = set()
    todo = [root]
    while todo:
        node = todo[-1]
        if id(node) in known:
            todo.pop()
            continue
        children = _children(node)
        line = node.start_mark.line + 1
        if id(node) not in entered:
            entered.add(id(node))
            missing = [child for child in children if id(child) not in known]
            if any(id(child) in entered for child in missing):
                raise Unreadable("not YAML that can be read: it contains itself", line)
            if missing:
                todo += missing
                continue
        inside = [known[id(child)] for child in children]
        size, depth = 1 + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0)
        if depth > MOST_DEPTH + 1:
            raise Unreadable(_too_deep(), line)
        known[id(node)] = size, depth
        if size > ALIASES * len(known) + SPARE:
            raise Unreadable(f"its aliases stand for more than {size - 1:,} values", line)
        todo.pop()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, without dates; it refuses a key that is there twice and a value that is not of its tag."""

    # A date need not exist (2026-02-30), and '=' alone has a tag that nothing constructs.
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":timestamp", ":value"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> Any:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise Unreadable(f"the key {_short(key.value)} is there twice", key.start_mark.line + 1)
                seen.add((key.tag, key.value))
        found = super().construct_mapping(node, deep)
        if len(found) < len(seen):  # 1 and 1.0, 1 and true
            raise Unreadable("two keys of a mapping are equal", node.start_mark.line + 1)
        return found

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except BROKEN as error:
            if isinstance(error, Unreadable):
                raise
            line = node.start_mark.line + 1
            if node.tag.endswith(":int") and len(str(node.value)) > MOST_DIGITS:
                raise Unreadable(_too_long(), line) from None
            what = f"{_short(node.value)} " if isinstance(node, yaml.ScalarNode) else ""
            raise Unreadable(f"not YAML ({what}cannot be read as {node.tag.rpartition(':')[2]})", line) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Unreadable(f"the key {_short(next(k for k in keys if keys.count(k) > 1))} is there twice")
    return found


def _check(value: Any) -> None:
    """Refuse what is nested too deeply, holds halves of surrogate pairs or endless numbers, or is no plain data."""
    for part in _parts(value):
        if isinstance(part, str):
            if _SURROGATE.search(part):
                raise Unreadable(f"{_short(part)} holds half of a surrogate pair, which is not text")
        elif isinstance(part, int) and part.bit_length() > 3.33 * MOST_DIGITS:
            raise Unreadable(_too_long())
        elif part is not None and not isinstance(part, int | float):
            raise Unreadable(f"holds {type(part).__name__}; only text, numbers, true, false, null, lists and mappings")


def _parts(value: Any) -> Iterator[Any]:
    """All keys and single values of nested data.

    Raises:
        Unreadable: it is nested too deeply.
    """
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                yield from part
                below += part.values()
            elif isinstance(part, list):
                below += part
            else:
                yield part
        if not below:
            return
        level = below
    raise Unreadable(_too_deep())


def _not_yaml(error: yaml.YAMLError, text: str) -> Unreadable:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    lines = max(1, text.count("\n") + (not text.endswith("\n")))
    return Unreadable(f"not YAML ({reason})", min(mark.line + 1, lines) if mark else None)


def _too_deep() -> str:
    return f"nested too deeply; at most {MOST_DEPTH} levels are read"


def _too_long() -> str:
    return f"a number of more than {MOST_DIGITS} digits"


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:57]) + "..."
