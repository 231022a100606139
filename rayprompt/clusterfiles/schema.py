"""What keys there are and what type their values have, where others silently leave out what they do not know.

A mapping knows its keys, a list has entries of one schema, a type is a value of that type, None is anything. A key that
ends in ``!`` must be there.
"""

from __future__ import annotations

from typing import Any

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.located import Document, Place
from rayprompt.errors import did_you_mean

TYPES = {str: "a string", int: "a whole number", bool: "true or false", dict: "a mapping", list: "a list"}


def anything(names: str) -> dict[str, Any]:
    """A schema of these keys, whatever their values are."""
    return dict.fromkeys(names.split())


def check_schema(file: Document, findings: Findings, place: Place, schema: Any) -> None:
    """A finding for every unknown key, missing key and wrong type at and below ``place``."""
    value = file.get(*place)
    name = ".".join(map(str, place)) or "the file"
    kind = schema if isinstance(schema, type) else type(schema)
    wrong = schema is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool)))
    if wrong:
        findings.add(file.line(*place), "type", f"{name}: {value!r} must be {TYPES[kind]}")
    elif isinstance(schema, list):
        if not value:
            findings.add(file.line(*place), "type", f"{name}: must have at least one entry")
        for i in range(len(value)):
            check_schema(file, findings, (*place, i), schema[0])
    elif isinstance(schema, dict):
        known = {key.rstrip("!"): inner for key, inner in schema.items()}
        hints = {key: did_you_mean(key, known) for key in value if key not in known}
        for key, hint in hints.items():
            findings.add(file.line(*place, key), "key", f"{key!r} is no key of {name}{hint}")
        for key in (key for key in value if key in known):
            check_schema(file, findings, (*place, key), known[key])
        for key in (key.rstrip("!") for key in schema if key.endswith("!")):
            if key not in value and not any(repr(key) in hint for hint in hints.values()):
                findings.add(file.line(*place), "key", f"{name}: {key} is missing")
