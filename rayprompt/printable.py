"""Text from files and services as it may be shown: no control characters, no text that runs backwards, no secrets."""

from __future__ import annotations

import os
import re

# Control characters but tab and newline (ESC, BEL, the 8-bit CSI...), what turns the direction of text around, what is
# not seen at all, other ends of lines, tags, and halves of surrogate pairs. The two joiners are part of scripts.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_SECRETS = (
    # name:password@ of a URL (host:port/...@ is none), and a token alone before the @ of http
    (re.compile(r"(?i)([a-z][a-z0-9+.-]*:/{1,2})(?![^/\s:@]*:\d{1,5}/)[^\s\"'/@:?#]*:[^\s\"'@]*@"), r"\1***@"),
    (re.compile(r"(?i)(https?:/{1,2})[^\s\"'/@:?#]+@"), r"\1***@"),
    # what signs a URL, or opens it
    (
        re.compile(
            r"(?i)([?&;][\w.-]*(?:signature|credential|token|secret|passw(?:or)?d|key|sig|auth)(?:[_-]?id)?=)[^\s&;\"'#]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)(\bauthorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\",]+"), r"\1***"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{16,}"), r"\1***"),
    (re.compile(r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,})"), "***"),
)
_SECRET_NAME = re.compile(r"(?i)(?:key|token|secret|password|passwd|key_id)$")
LONGEST = 2000  # characters of a line
SHORTEST = 6  # of a value in the environment that is taken for a secret


def printable(text: object) -> str:
    r"""A text as a terminal or a log may get it: what cannot be seen as ``\x1b`` or ``\u202e``, secrets as ``***``."""
    return _UNSHOWN.sub(_escaped, redacted(str(text)))


def one_line(text: object) -> str:
    """The same in one line, cut in its middle where it is very long."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"


def flat(text: object) -> str:
    """The same with its spaces as they are: a row of a table."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def printable_json(text: str) -> str:
    """JSON as a terminal may get it; it says the same, but for secrets."""
    return _UNSHOWN.sub(lambda found: "".join(rf"\u{unit:04x}" for unit in _units(found[0])), redacted(text))


def redacted(text: str) -> str:
    """A text without the secrets that can be told: parts of URLs, keys of known forms, keys in the environment."""
    for secret in _in_environment():
        text = text.replace(secret, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _in_environment() -> list[str]:
    """The longest first: one may be a part of another."""
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}" if code < 0x10000 else rf"\U{code:08x}"


def _units(character: str) -> list[int]:
    """UTF-16, as JSON escapes it."""
    code = ord(character)
    return [code] if code < 0x10000 else [0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF)]
