"""YAML whose values know the line they stand on, and can be changed in place: comments stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rayprompt.foreign import BROKEN, Unreadable, check_events, check_nodes

Place = tuple[str | int, ...]


class BadYAML(ValueError):
    """The text is no YAML, a key stands twice, or is no string."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Document:
    """One YAML document: plain data, and of each place in it (keys and indices from the top) line and span."""

    data: Any
    lines: Mapping[Place, int]
    spans: Mapping[Place, tuple[int, int]] = field(repr=False)

    def line(self, *place: str | int) -> int:
        """The line of a place; of what is not there, that of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines[place]

    def get(self, *place: str | int) -> Any:
        """The value at a place, None where there is none."""
        value = self.data
        for step in place:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def read_documents(text: str) -> list[Document]:
    """All documents of a text.

    Raises:
        BadYAML: no YAML; a key twice in one mapping (YAML would silently take the last); a key that is no string.
    """
    documents = []
    try:
        check_events(text)
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            assert node is not None, "check_node saw one"
            check_nodes(node)
            lines: dict[Place, int] = {}
            spans: dict[Place, tuple[int, int]] = {}
            for place, key, value in _walk((), node, node):
                lines[place] = key.start_mark.line + 1
                spans[place] = (value.start_mark.index, value.end_mark.index)
            documents.append(Document(loader.construct_document(node), lines, spans))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYAML(mark.line + 1 if mark else 1, f"no YAML: {error.problem or error.context}") from None
    except Unreadable as error:
        raise BadYAML(error.line or 1, str(error)) from None
    except (yaml.YAMLError, *BROKEN) as error:
        if isinstance(error, BadYAML):
            raise
        raise BadYAML(1, f"no YAML: {error}") from None
    return documents


def _walk(place: Place, key: yaml.Node, value: yaml.Node) -> Iterator[tuple[Place, yaml.Node, yaml.Node]]:
    """Every place below a node, with the node of its key (of a list's item: the item) and of its value."""
    yield place, key, value
    if isinstance(value, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, inner in value.value:
            line = name.start_mark.line + 1
            if name.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise BadYAML(line, f"the key {name.value!r} is no string to YAML; put it in quotes")
            if name.value in seen and name.value != "<<":
                raise BadYAML(
                    line, f"{name.value!r} stands twice: on line {seen[name.value]}, too; YAML takes the last"
                )
            seen[name.value] = line
            yield from _walk((*place, name.value), name, inner)
    elif isinstance(value, yaml.SequenceNode):
        for i, inner in enumerate(value.value):
            yield from _walk((*place, i), inner, inner)


def replace_values(text: str, documents: list[Document], values: Mapping[Place, str], document: int = 0) -> str:
    """The text with other values at these places; everything else stays as it is, comments included."""
    edits = sorted((documents[document].spans[place], value) for place, value in values.items())
    for (start, end), value in reversed(edits):
        text = text[:start] + value + text[end:]
    return text
