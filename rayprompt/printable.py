"""Text from files and services as it may be shown: no control characters, no text that runs backwards, no secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

# Control characters but tab and newline (ESC, BEL, the 8-bit CSI...), what turns the direction of text around, what is
# not seen at all, other ends of lines, tags, and halves of surrogate pairs. The two joiners are part of scripts.
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_NAME = (
    r"(?<![a-zA-Z])(?:(?:api|access|auth|secret|account|private|subscription|refresh|session|client|id)[-_ ]?"
    r"(?:access[-_])?(?:key|token|secret)(?:[-_]id)?|passw(?:or)?d|signature)"
)
_VALUE = r"[^\s\"'&,;\\]{6,}"
# Every repetition has a limit: the time to look through a text must grow with its length only.
_SECRETS = (
    # name:password@ of a URL (host:port/...@ is none), also percent-encoded, and a token alone before the @
    (
        re.compile(
            r"(?i)(?<=[a-z0-9])(:/{1,2})(?![^/\s:@]{0,255}:\d{1,5}/)[^\s\"'/@:?#]{0,400}?(?::|%3A)[^\s\"'@]{0,600}"
            r"(?:@|%40)"
        ),
        r"\1***@",
    ),
    (re.compile(r"(?i)(%3A%2F%2F)(?:(?!%2F)[^\s\"'@]){1,400}?%40"), r"\1***%40"),
    (re.compile(r"(?i)(\b(?:https?|s3[an]?|gc?s):/{1,2})[^\s\"'/@:?#]{1,400}?(?:@|%40)"), r"\1***@"),
    # what signs a URL, or opens it
    (
        re.compile(
            r"(?i)((?:[?&;#]|%3F|%26)(?:[\w.-]{0,40}(?:signature|credential|token|secret|passw(?:or)?d|key|sig|auth)"
            r"(?:[_-]?id)?|code|pwd)(?:=|%3D))[^\s&;\"'#\\]+"
        ),
        r"\1***",
    ),
    (
        re.compile(
            r"(?i)(\bauthorization\\?['\"]?\s{0,4}[:=]\s{0,4}\\?['\"]?)"
            r"(?:(?:bearer|basic|token|[a-z][\w-]{1,30}(?=\s+\S*\d))(?:\s{1,4}|%20))?[^\s'\",\\]+"
        ),
        r"\1***",
    ),
    # password=..., "client_secret": "...", api-key: ...; behind plain words a colon may end a phrase
    (re.compile(rf"(?i)({_NAME}(?:\\?['\"]?\s{{0,4}}=|\\?['\"]\s{{0,4}}:)\s{{0,4}}\\?['\"]?){_VALUE}"), r"\1***"),
    (re.compile(rf"(?i)({_NAME}:\s{{0,4}}(?=\S{{0,200}}\d)){_VALUE}"), r"\1***"),
    (re.compile(rf"(?i)(\b(?:x-)?api[-_]key:\s{{0,4}}){_VALUE}"), r"\1***"),
    (re.compile(r"(?i)(\bbearer(?:[\s:]{1,4}|%20))[\w.~+/=-]{16,}"), r"\1***"),
    (re.compile(r"(?i)(\bbasic\s{1,4})(?=[\w+/-]*[\d=])[\w+/-]{8,}={0,2}"), r"\1***"),
    (
        re.compile(
            r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}"
            r"|(?:gsk|r8)_\w{20,}|(?:nvapi|pplx|xai)-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,})"
        ),
        "***",
    ),
)
_SECRET_NAME = re.compile(r"(?i)(?:key|token|secret|password|passwd|key_id|connection_string)$")
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
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    found = {form for value in values if len(value) >= SHORTEST for form in (value, quote(value, safe=""))}
    return sorted(found, key=len, reverse=True)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}" if code < 0x10000 else rf"\U{code:08x}"


def _units(character: str) -> list[int]:
    """UTF-16, as JSON escapes it."""
    code = ord(character)
    return [code] if code < 0x10000 else [0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF)]
