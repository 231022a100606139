"""LMs behind a service: OpenAI-compatible completions and chat, spoken over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from rayprompt.candidate import digest
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.characters import messages_of
from rayprompt.lm.family import Causal
from rayprompt.lm.settings import LMSettings
from rayprompt.scores import FloatArray

PREFIX = "endpoint:"
KEY_VARIABLE, OPENAI_VARIABLE = "RAYPROMPT_API_KEY", "OPENAI_API_KEY"
MOST_CHARACTERS = 1 << 20
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 60.0
TOP = {"completions": 5, "chat": 20}  # alternatives that servers give at most
STOPS = 4  # that servers take at most
LABEL_TOKENS = 8  # of an answer that is to name a label
REPLY_BYTES = 300  # of a server's reply in a message
SECRETS = ("key", "token", "secret", "password", "signature", "sig", "auth")


@dataclass(frozen=True)
class Endpoint:
    """Where an LM is spoken to, and what was found out about it.

    Attributes:
        url: of the API, as ``https://host/v1``.
        model: its name there.
        chat: messages instead of one text.
        labels: how label words are scored: ``echo`` (the log-probabilities of an input that ends with the word),
            ``top`` (the likeliest next tokens), or ``text`` (the LM writes, and names one).
        limit: what the service calls the limit of new tokens.
    """

    url: str
    model: str
    chat: bool = False
    labels: str = "text"
    limit: str = "max_tokens"

    @property
    def api(self) -> str:
        """The API's name."""
        return "chat" if self.chat else "completions"

    @property
    def path(self) -> str:
        """Where requests go."""
        base, _, query = self.url.partition("?")
        return f"{base.rstrip('/')}/{'chat/completions' if self.chat else 'completions'}" + (query and f"?{query}")

    def to_json(self) -> dict[str, Any]:
        """What decides a score."""
        return {"api": self.api, "labels": self.labels}


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
            f"model {_redacted(name)}: holds a key, which would stand in files and logs; give it in the environment "
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


@dataclass(frozen=True)
class Question:
    """What a service is asked about a pair: a text to be completed, or how likely each of some ``words`` comes next."""

    text: str
    words: tuple[str, ...] = ()
    decoding: Decoding = Decoding()
    sample: int = 0


@dataclass(frozen=True)
class Reply:
    """What it answered: log-probabilities (L,) or a completion; neither where it refused, ``reason`` says why."""

    log_probs: FloatArray | None = None
    completion: str | None = None
    tokens: int = 0
    written: int = 0
    seconds: float = 0.0
    reason: str = ""
    tries: int = 1


class Refused(Exception):
    """The service will not answer this request, however often it is asked."""


class Client:
    """Speaks to one service. Of one event loop; ``close`` ends it. ``patient``: what cannot be read is asked for again.

    Attributes:
        tried, failed: requests that were sent, and those of them that have to be sent again.
    """

    def __init__(self, endpoint: Endpoint, settings: LMSettings, key: Secret, *, patient: bool = True) -> None:
        self.patient = patient
        self.endpoint = endpoint
        self.settings = settings
        self.key = key
        self.tried = self.failed = 0
        self.dead: str | None = None  # why there is no point in asking any more
        self.jitter = random.Random(time.time_ns())
        self._session: Any = None
        self._resume_at = 0.0  # the service has asked for a pause until then
        self._next_at = 0.0  # when the rate limit allows the next request

    async def ask(self, question: Question) -> Reply:
        """Ask until there is an answer.

        Raises:
            ScoringError: the key, the address or the LM's name is refused, or there was no answer in all tries.
        """
        started = time.perf_counter()
        try:
            if not question.words:
                reply = await self._post(self._body(question), lambda content: self._completion(content, question))
            elif self.endpoint.labels == "echo":
                reply = await self._echo(question)
            else:
                reply = await self._post(self._top_body(question), lambda content: self._top(content, question.words))
        except Refused as refusal:
            reply = Reply(reason=str(refusal))
        return replace(reply, seconds=time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # Requests.

    def _body(self, question: Question) -> dict[str, Any]:
        decoding = question.decoding
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            self.endpoint.limit: decoding.max_tokens,
            "temperature": decoding.temperature,
        }
        if decoding.temperature > 0:
            body |= {"top_p": decoding.top_p, "seed": int(digest([decoding.seed, question.sample])[:7], 16)}
            if decoding.top_k is not None:
                body["top_k"] = decoding.top_k  # not OpenAI's, but of most servers
        if decoding.stop:
            body["stop"] = list(decoding.stop[:STOPS])
        return body | self._input(question.text)

    def _input(self, text: str) -> dict[str, Any]:
        messages = messages_of(text)
        if not self.endpoint.chat:
            return {"prompt": text}
        return {"messages": messages or [{"role": "user", "content": text}]}

    def _top_body(self, question: Question) -> dict[str, Any]:
        body = self._body(replace(question, decoding=Decoding(max_tokens=1)))
        if self.endpoint.chat:
            return body | {"logprobs": True, "top_logprobs": TOP["chat"]}
        return body | {"logprobs": TOP["completions"]}

    async def _echo(self, question: Question) -> Reply:
        texts = [f"{question.text} {word}" for word in question.words]
        body = {"model": self.endpoint.model, "max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": True}

        def read(content: dict[str, Any]) -> Reply:
            choices = sorted(content["choices"], key=lambda choice: int(choice.get("index", 0)))
            scores = [
                echoed(choice["logprobs"], len(question.text), len(text))
                for choice, text in zip(choices, texts, strict=True)
            ]
            return Reply(log_probs=normalised(scores), tokens=_used(content)[0])

        return await self._post(body | {"prompt": texts}, read)

    # Answers.

    def _completion(self, content: dict[str, Any], question: Question) -> Reply:
        choice = content["choices"][0]
        text = choice["message"]["content"] if self.endpoint.chat else choice["text"]
        tokens, written = _used(content)
        if text is None:
            why = f"no text ({choice.get('finish_reason')})"
            return Reply(tokens=tokens, written=written, reason=why)
        whole = str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character is none
        return Reply(completion=question.decoding.cut(whole), tokens=tokens, written=written)

    def _top(self, content: dict[str, Any], words: Sequence[str]) -> Reply:
        found = content["choices"][0]["logprobs"]
        if self.endpoint.chat:
            likeliest = {e["token"]: float(e["logprob"]) for e in found["content"][0]["top_logprobs"]}
        else:
            likeliest = {token: float(value) for token, value in found["top_logprobs"][0].items()}
        tokens, written = _used(content)
        return Reply(log_probs=of_words(likeliest, words), tokens=tokens, written=written)

    # The wire.

    async def _post(self, body: dict[str, Any], read: Callable[[dict[str, Any]], Reply]) -> Reply:
        """The answer to a request, sent again while there is hope."""
        last = ""
        for attempt in range(self.settings.tries):
            if attempt:
                await asyncio.sleep(self._pause(attempt))
            await self._turn()
            if self.dead is not None:
                raise ScoringError(self.dead)
            self.tried += 1
            try:
                return replace(self._read(await self._send(body), read), tries=attempt + 1)
            except _Again as again:
                self.failed += 1
                last = again.reason
                if again.after is not None:
                    self._resume_at = max(self._resume_at, time.monotonic() + min(again.after, MOST_PAUSE_SECONDS))
            except ScoringError as error:
                self.dead = str(error)
                raise
        self.dead = f"{self.endpoint.url}: no answer in {self.settings.tries} tries (--lm tries): {last}"
        raise ScoringError(self.dead)

    def _pause(self, attempt: int) -> float:
        """Exponential, with full jitter."""
        return self.jitter.uniform(0, min(MOST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0**attempt))

    async def _turn(self) -> None:
        """Wait for what the service has asked for, and for the rate limit."""
        if self.settings.rate is not None:
            at = max(time.monotonic(), self._next_at)
            self._next_at = at + 1.0 / self.settings.rate
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        while (wait := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _read(self, raw: bytes, read: Callable[[dict[str, Any]], Reply]) -> Reply:
        """A reply of status 200, which may be cut, or none of an LM's, all the same."""
        try:
            content = json.loads(raw)
            if not isinstance(content, dict):
                raise TypeError("not an object")
        except (ValueError, TypeError) as error:
            raise _Again(f"the reply is no JSON ({error}): {_shown(raw, self.key)}") from None
        try:
            return read(content)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            reason = f"the reply lacks what was asked for ({type(error).__name__} {error}): {_shown(raw, self.key)}"
            if self.patient:
                raise _Again(reason) from None
            raise Refused(reason) from None

    async def _send(self, body: dict[str, Any]) -> bytes:
        import aiohttp

        if self._session is None:
            headers = {} if self.key.value is None else {"Authorization": f"Bearer {self.key.value}"}
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
                connector=aiohttp.TCPConnector(limit=0),
            )
        try:
            async with self._session.post(self.endpoint.path, json=body, allow_redirects=False) as response:
                raw: bytes = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            raise _Again(f"nothing came within {self.settings.timeout:g} s (--lm timeout)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(f"{type(error).__name__}: {error}".strip(": ")) from None
        if status in (408, 409, 425, 429) or status >= 500:
            pause = _seconds(headers.get("Retry-After"))
            if status == 429 and pause is None:
                pause = self._pause(3)  # for all: the next one would get the same answer
            raise _Again(f"{status} {_shown(raw, self.key)}", pause)
        if status == 402:
            raise ScoringError(f"{self.endpoint.url}: it wants to be paid ({status} {_shown(raw, self.key)})")
        if status in (401, 403):
            raise ScoringError(
                f"{self.endpoint.url}: the key is refused ({status} {_shown(raw, self.key)}); set {KEY_VARIABLE}"
            )
        if 300 <= status < 400:
            where = headers.get("Location", "elsewhere")[:REPLY_BYTES]
            raise ScoringError(f"{self.endpoint.path}: it sends us on ({status}), to {where}: give that URL")
        if status in (404, 405):
            raise ScoringError(
                f"{self.endpoint.path}: there is no such API or no LM {self.endpoint.model!r} ({status} "
                f"{_shown(raw, self.key)})"
            )
        if status != 200:
            raise Refused(f"{status} {_shown(raw, self.key)}")
        return raw


class _Again(Exception):
    """A request that may go well if it is sent again, ``after`` so many seconds where the service says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # a date: the pauses of ours will do


def _shown(raw: bytes, key: Secret) -> str:
    """A server's reply in a message: its error where it has one, on one line, without our key."""
    text = raw.decode("utf-8", "replace")
    try:
        content = json.loads(text)
        error = content.get("error", content.get("detail", content))
        text = str(error.get("message", error) if isinstance(error, Mapping) else error)
    except (ValueError, AttributeError):
        pass
    if key.value:
        text = text.replace(key.value, "***")
    return " ".join(text.split())[:REPLY_BYTES]


def _used(content: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens in all, and those that were written."""
    usage = content.get("usage") or {}
    read, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    return read + written, written


def echoed(log_probs: Mapping[str, Any], start: int, end: int) -> float:
    """The log-probability of the characters ``start`` to ``end`` of an echoed text: of the tokens they are in.

    Raises:
        ValueError: the tokens do not cover them: the text was not echoed.
    """
    total, reached = 0.0, start
    rows = zip(log_probs["tokens"], log_probs["token_logprobs"], log_probs["text_offset"], strict=True)
    for token, value, offset in rows:
        if offset + max(1, len(token)) > start and offset < end:
            if offset > reached:
                raise ValueError(f"no token for character {reached}")
            total += float(value if value is not None else 0.0)
            reached = offset + len(token)
    if reached < end:
        raise ValueError(f"no token for character {reached}")
    return total


def of_words(likeliest: Mapping[str, float], words: Sequence[str]) -> FloatArray:
    """(L,) log-probabilities of words, from those of the likeliest next tokens.

    A token speaks for the word that it is, or that alone begins with it. A word without a token is at most as likely
    as the least of them, and that it gets; where all are without, none is likelier, and that is no answer.
    """
    least = np.exp(min(likeliest.values(), default=0.0))
    p = np.zeros(len(words))
    for token, value in likeliest.items():
        text = token.strip("Ġ▁ \n")
        hits = [i for i, word in enumerate(words) if word == text] or [
            i for i, word in enumerate(words) if text and word.startswith(text)
        ]
        if len(hits) == 1:
            p[hits[0]] += np.exp(value)
    return normalised(np.log(np.where(p > 0, p, least)).tolist())


def normalised(scores: Sequence[float]) -> FloatArray:
    """(L,) float32, their log-softmax."""
    values = np.asarray(scores, dtype=np.float64)
    peak = values.max()
    return np.asarray(values - (peak + np.log(np.exp(values - peak).sum())), dtype=np.float32)


def discover(name: str, settings: LMSettings) -> Endpoint:
    """The endpoint of that name, asked what it can do.

    Raises:
        InputError: the name is no endpoint's, nothing answers there, or the key or the LM's name is refused.
    """
    endpoint = replace(parse(name), chat=settings.chat is not None)
    key = api_key(endpoint.url)

    def run() -> Endpoint:
        return asyncio.run(_discover(endpoint, settings, key))

    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own, as in a notebook
        try:
            return thread.submit(run).result()
        except ScoringError as error:
            raise InputError(f"model {PREFIX}{endpoint.url}#{endpoint.model}: {error}") from None


async def _discover(endpoint: Endpoint, settings: LMSettings, key: Secret) -> Endpoint:
    quick = replace(settings, tries=min(3, settings.tries), rate=None)
    question = Question("It is", ("good", "bad"), Decoding(max_tokens=1))
    wanted = [settings.labels] if settings.labels != "auto" else ["top"] if endpoint.chat else ["echo", "top"]
    reason = ""
    for labels in (w for w in wanted if w != "text"):
        found = replace(endpoint, labels=labels)
        client = Client(found, quick, key, patient=False)
        try:
            reply = await client.ask(question)
        finally:
            await client.close()
        if reply.log_probs is not None and np.isfinite(reply.log_probs).all():
            return found
        reason = reply.reason or "what it gives is not finite"
    if settings.labels not in ("auto", "text"):
        raise ScoringError(f"--lm labels={settings.labels}: it does not give them: {reason}")
    for limit in ("max_tokens", "max_completion_tokens"):
        found = replace(endpoint, limit=limit)
        client = Client(found, quick, key)
        try:
            reply = await client.ask(replace(question, words=()))
        finally:
            await client.close()
        if reply.completion is not None:
            return found
        if "max_completion_tokens" not in reply.reason:
            break
    raise ScoringError(f"it refuses a request of one token: {reply.reason}")


def content_of(endpoint: Endpoint) -> str:
    """What stands for the LM in the key of a score: no file of it can be digested."""
    return digest([endpoint.url, endpoint.model])
