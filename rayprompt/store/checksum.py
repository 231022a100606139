"""Checksums: of bytes, and inside text files, where they stay readable and the file stays what it was."""

from __future__ import annotations

import hashlib
import re
from typing import Any

YAML_END = "# sha256: {}\n"  # the last line of a YAML file
JSON_END = ', "sha256": "{}"}}'  # the last field of a JSON object in one line
HEX = re.compile(rb"[0-9a-f]{64}")


class ChecksumError(ValueError):
    """A file's content is not what its checksum says."""


def sha256_of(content: Any) -> str:
    """The SHA-256 of bytes, or of a buffer, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def seal_yaml(text: str) -> str:
    """YAML with a last line that holds the checksum of those above."""
    return text + YAML_END.format(sha256_of(text.encode()))


def seal_json(text: str) -> str:
    """A JSON object in one line with a last field that holds the checksum of the object without it."""
    return text[:-1] + JSON_END.format(sha256_of(text.encode()))


def open_yaml(content: bytes) -> str:
    """The text of a YAML file, checked; one without a checksum, of an earlier version, as it is.

    Raises:
        ChecksumError: it does not match its checksum.
        UnicodeDecodeError: it is not UTF-8.
    """
    return _opened(content, YAML_END, b"").decode()


def open_json(content: bytes) -> str:
    """The same for a JSON object."""
    return _opened(content, JSON_END, b"}").decode()


def _opened(content: bytes, template: str, rest: bytes) -> bytes:
    end = len(template.format("0" * 64))
    found = HEX.search(content[-end:])
    if found is not None and content[-end:] == template.format(found[0].decode()).encode():
        body = content[:-end] + rest
        if sha256_of(body).encode() == found[0]:
            return body
    elif found is None and b"sha256" not in content[-end - 8 :]:
        return content
    raise ChecksumError("it does not match its checksum")
