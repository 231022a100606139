"""LMs behind a service: their names, what was found out about them, and who may get a key."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from rayprompt.candidate import digest
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.family import Causal

PREFIX = "endpoint:"
KEY_VARIABLE, OPENAI_VARIABLE, HOST_VARIABLE = "RAYPROMPT_API_KEY", "OPENAI_API_KEY", "RAYPROMPT_API_KEY_HOST"
OPENAI = ("https", "api.openai.com", 443)
MOST_CHARACTERS = 1 << 20
LABEL_TOKENS = 8  # of an answer that is to name a label
SECRETS = ("key", "token", "secret", "password", "signature", "sig", "auth")
RULE = 2  # how replies are read; scores that were read by another rule are not the same
Origin = tuple[str, str, int]


@dataclass(frozen=True)
class Endpoint:
    """Where an LM is spoken to, and what was found out about it.

    Attributes:
        url: of the API, as ``https://host/v1``.
        model: its name there.
        chat: messages instead of one text.
        labels: how label words are scored: ``echo`` (the log-probabilities of an input that ends with the word),
            ``top`` (the likeliest next tokens), or ``text`` (the LM writes, and names one). Empty: not asked, for a
            task in which the LM writes.
        limit: what the service calls the limit of new tokens.
        stop: whether it takes stop texts. Where it does not, completions are cut here.
        top: the likeliest next tokens that it gives, at most 20; 0 is none.
        together: whether an echo request may have several prompts.
        least: new tokens that an echo request asks for: 0, or 1 where 0 means something else to the service.
        rule: how replies are read; scores of an older study may have been read otherwise.
        fallback: why the LM writes where log-probabilities were asked for; empty where it does not.
    """

    url: str
    model: str
    chat: bool = False
    labels: str = ""
    limit: str = "max_tokens"
    stop: bool = True
    top: int = 0
    together: bool = False
    least: int = 0
    rule: int = RULE
    fallback: str = field(default="", compare=False)

    @property
    def api(self) -> str:
        """The API's name."""
        return "chat" if self.chat else "completions"

    @property
    def path(self) -> str:
        """Where requests go."""
        base, _, query = self.url.partition("?")
        return f"{base.rstrip('/')}/{'chat/completions' if self.chat else 'completions'}" + (query and f"?{query}")

    def to_json(self, *, labels: bool = True) -> dict[str, Any]:
        """What decides a score; without ``labels`` what decides a completion."""
        if self.rule == 1:
            return {"api": self.api, "labels": self.labels}
        found: dict[str, Any] = {"api": self.api, "rule": self.rule}
        if labels and self.labels:
            found["labels"] = self.labels
            if self.labels == "top":
                found["top"] = self.top
        return found

    def features(self) -> dict[str, Any]:
        """What the service can do, for study.yaml: of label words only what was asked for them."""
        found: dict[str, Any] = {"limit": self.limit, "stop": self.stop}
        if self.labels:
            found["top_logprobs"] = self.top
        if self.labels == "echo":
            found |= {"list_of_prompts": self.together, "echo_max_tokens": self.least}
        return found


class Remote(Causal):
    """The family of LMs behind a service: they write on, and take text only."""

    def matches(self, config: Any) -> bool:
        return False

    def load(self, path: str, dtype: Any, *, trusted: bool = False) -> Any:
        raise ScoringError("an LM behind a service cannot be loaded here")


class Secret:
    """A key on its way to the actor that speaks to the service; printed and logged it says nothing."""

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Secret()"


def is_endpoint(name: str) -> bool:
    """Whether a model's name is ``endpoint:URL#NAME``."""
    return name.startswith(PREFIX)


def parse(name: str) -> Endpoint:
    """``endpoint:URL#NAME``.

    Raises:
        InputError: it is written otherwise, or holds a key.
    """
    url, mark, model = name.removeprefix(PREFIX).rpartition("#")
    try:
        parts = urlsplit(url)
        fine = bool(mark and model and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:  # a port that is none, half an address
        fine = False
    if not fine:
        raise InputError(
            f"model {_redacted(name)}: must be endpoint:URL#NAME, as endpoint:http://localhost:8000/v1#llama-3"
        )
    secret = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in SECRETS)]
    if parts.username or parts.password or secret:
        raise InputError(
            f"model {_redacted(name)}: holds a key, which would get into files and logs; give it in the environment "
            f"variable {KEY_VARIABLE}"
        )
    return Endpoint(url.rstrip("/"), model)


def _redacted(name: str) -> str:
    url, mark, model = name.removeprefix(PREFIX).rpartition("#")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return PREFIX + "..."
    if "@" in parts.netloc or parts.query:
        return f"{PREFIX}{parts.scheme}://{host}{port}{parts.path}{mark}{model}"
    return name


def api_key(url: str) -> Secret:
    """The key for a service: RAYPROMPT_API_KEY; where the service is OpenAI's own, OPENAI_API_KEY too.

    Raises:
        InputError: it cannot be sent.
    """
    found = os.environ.get(KEY_VARIABLE)
    host = urlsplit(url).hostname or ""
    if not found and (host == "api.openai.com" or host.endswith(".openai.azure.com")):
        found = os.environ.get(OPENAI_VARIABLE)
    found = (found or "").strip()
    if not all(" " < c < "\x7f" for c in found):
        raise InputError(f"the key in {KEY_VARIABLE} holds a character that no key has: a space, a line break")
    return Secret(found or None)


def check_named(names: Iterable[Any], where: str, given: Iterable[Any] = ()) -> None:
    """Check LMs that only a file names: a key goes only to hosts that the user has named.

    Args:
        names: LMs as the file names them; those that are loaded here are fine.
        where: the file.
        given: LMs that the user has named, on the command line or in code.

    Raises:
        InputError: there is a key in the environment, and the file would decide where it goes.
    """
    known = {_origin(parse(str(name)).url) for name in given if is_endpoint(str(name))}
    for name in (str(name) for name in names if is_endpoint(str(name))):
        url = parse(name).url
        origin = _origin(url)
        own = origin == OPENAI and not os.environ.get(KEY_VARIABLE)  # OPENAI_API_KEY names its host
        if origin in known or own or api_key(url).value is None or _allowed(origin):
            continue
        _, host, port = origin
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise InputError(
            f"{where}: names an LM on the host {place}, which gets your API key only if you name the host: set "
            f"{HOST_VARIABLE}={place} (or unset {KEY_VARIABLE})"
        )


def _origin(url: str) -> Origin:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def _allowed(origin: Origin) -> bool:
    """Whether the environment names a host: as ``host``, ``host:port`` or a URL, with commas between several."""
    for entry in os.environ.get(HOST_VARIABLE, "").split(","):
        entry = entry.strip()
        try:
            parts = urlsplit(entry if "://" in entry else f"//{entry}")
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:  # a port that is none: names no host
            continue
        if "://" in entry:
            found = bool(host) and _origin(entry) == origin
        else:
            found = bool(host) and host == origin[1] and port in (None, origin[2])
        if found:
            return True
    return False


def content_of(endpoint: Endpoint) -> str:
    """What stands for the LM in the key of a score: no file of it can be digested."""
    return digest([endpoint.url, endpoint.model])
