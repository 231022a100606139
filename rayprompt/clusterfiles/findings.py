"""Findings: what is wrong in a cluster file, on which line, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_OFF = re.compile(r"#\s*check: off ([a-z -]+)")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong. ``rule`` is its short name, ``message`` says what is there and what is right."""

    line: int
    rule: str
    message: str


@dataclass
class Findings:
    """The findings of one file. A rule is off on a line that ends with ``# check: off RULE``."""

    text: str
    found: list[Finding] = field(default_factory=list)

    def add(self, line: int, rule: str, message: str) -> None:
        """Note a finding, unless the line says that the rule is off there."""
        lines = self.text.splitlines()
        off = _OFF.search(lines[line - 1]) if 0 < line <= len(lines) else None
        finding = Finding(line, rule, " ".join(message.split()))
        if not (off and rule in off[1].split()) and finding not in self.found:
            self.found.append(finding)

    def ordered(self) -> Sequence[Finding]:
        """By line."""
        return sorted(self.found)
