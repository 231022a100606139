"""Client: requests to one LM behind a service, sent again while there is hope."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from rayprompt.candidate import digest
from rayprompt.decoding import Decoding
from rayprompt.errors import ScoringError
from rayprompt.lm.characters import messages_of
from rayprompt.lm.endpoint import KEY_VARIABLE, Endpoint, Secret
from rayprompt.lm.replies import (
    LEAST,
    UNPAID,
    WRONG,
    address,
    broken_off,
    choices_of,
    content_of_reply,
    error_in,
    line,
    next_tokens,
    shown,
    steps_of,
    used,
    written_in,
)
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.words import echoed, normalised, of_words
from rayprompt.scores import FloatArray
from rayprompt.unanswered import Reason

PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 60.0
STOPS = 4  # that servers take at most
MOST_BYTES, MOST_ERROR_BYTES = 1 << 26, 1 << 16  # of a reply, after decompression
CHUNK = 1 << 16
UNANSWERED = (Reason.REFUSED, Reason.FAILED)  # what may be true of all questions


@dataclass(frozen=True)
class Question:
    """What a service is asked about a pair: a text to be completed, or how likely each of some ``words`` comes next."""

    text: str
    words: tuple[str, ...] = ()
    decoding: Decoding = Decoding()
    sample: int = 0


HARMLESS = Question("It is", decoding=Decoding(max_tokens=1))


@dataclass(frozen=True)
class Reply:
    """What it answered.

    Attributes:
        log_probs: (L,) of the words.
        completion: what it wrote; of a cut answer it may be kept although it is no answer.
        tokens, written: in all, and those that the LM wrote.
        reason: ANSWERED, or why there is no answer; ``why`` says it in words.
        cut: whether the limit of new tokens ended the completion.
        tries: requests, those that were sent again included.
    """

    log_probs: FloatArray | None = None
    completion: str | None = None
    tokens: int = 0
    written: int = 0
    seconds: float = 0.0
    reason: Reason = Reason.ANSWERED
    why: str = ""
    cut: bool = False
    tries: int = 1


class NoAnswer(Exception):
    """A request that stays without an answer.

    Attributes:
        reason: REFUSED or FAILED.
        doubtful: perhaps all requests do, and only a harmless one tells.
        heard: whether the service sent a status at least.
        tries, at: requests, and when the last of them was sent.
    """

    heard = True

    def __init__(self, why: str, reason: Reason = Reason.REFUSED, *, doubtful: bool = False, tries: int = 1) -> None:
        super().__init__(why)
        self.reason = reason
        self.doubtful = doubtful
        self.tries = tries
        self.at = time.monotonic()


class Client:
    """Speaks to one service. Of one event loop; ``close`` ends it. ``patient``: what cannot be read is asked for again.

    Attributes:
        tried, failed: requests that were sent, and those of them that have to be sent again.
        dead: why there is no point in asking any more.
    """

    def __init__(self, endpoint: Endpoint, settings: LMSettings, key: Secret, *, patient: bool = True) -> None:
        self.patient = patient
        self.endpoint = endpoint
        self.settings = settings
        self.key = key
        self.tried = self.failed = 0
        self.dead: str | None = None
        self.jitter = random.Random(time.time_ns())
        self._session: Any = None
        self._resume_at = 0.0  # the service has asked for a pause until then
        self._next_at = 0.0  # when the rate limit allows the next request
        self._last_answer = 0.0
        self._checking = asyncio.Lock()

    async def ask(self, question: Question) -> Reply:
        """Ask until there is an answer, or none is to be had for this question.

        Raises:
            ScoringError: the key, the address or the LM's name is refused, or a harmless question stays without an
                answer, too.
        """
        started = time.perf_counter()
        try:
            reply = await self._answer(question)
        except NoAnswer as none:
            if none.doubtful:
                await self._check(none)
            reply = Reply(reason=none.reason, why=str(none), tries=none.tries)
        return replace(reply, seconds=time.perf_counter() - started)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _check(self, failure: NoAnswer) -> None:
        """See whether the service answers at all where a request stays without an answer.

        Raises:
            ScoringError: it does not.
        """
        async with self._checking:
            if self.dead is None and self._last_answer < failure.at:
                try:
                    decoding = replace(HARMLESS.decoding, temperature=self.settings.temperature or 0.0)
                    harmless = await self._answer(replace(HARMLESS, decoding=decoding))
                    if harmless.reason in UNANSWERED:
                        self.dead = f"{self.endpoint.url}: refuses every request: {harmless.why}"
                except NoAnswer as none:
                    same = none.doubtful or none.reason == Reason.FAILED
                    self.dead = str(failure) if same else f"{self.endpoint.url}: refuses every request: {none}"
            if self.dead is not None:
                raise ScoringError(self.dead)

    # Requests.

    async def _answer(self, question: Question) -> Reply:
        if not question.words:
            return await self.complete(question)
        if self.endpoint.labels == "echo":
            return await self.echo(question)
        return await self.top(question)

    async def complete(self, question: Question) -> Reply:
        """What the LM writes."""

        def read(content: dict[str, Any]) -> Reply:
            choice = choices_of(content)[0]
            found = written_in(choice, question.decoding)
            tokens, written = used(content)
            return Reply(None, found.text, tokens, written, reason=found.reason, why=found.why, cut=found.cut)

        return await self.post(self.body(question), read)

    async def top(self, question: Question) -> Reply:
        """How likely the words are by the likeliest next tokens."""

        def read(content: dict[str, Any]) -> Reply:
            choice = choices_of(content)[0]
            tokens, written = used(content)
            try:
                likeliest = next_tokens(choice)
            except WRONG:
                return _said(choice, tokens, written)
            if any(math.isnan(value) for _, value in likeliest):
                return Reply(None, None, tokens, written, reason=Reason.NAN, why="a log-probability is NaN")
            found = of_words(likeliest, question.words)
            if found is None:
                why = "none of the likeliest tokens is a label word's"
                return Reply(None, None, tokens, written, reason=Reason.UNSEEN, why=why)
            return Reply(found, None, tokens, written)

        return await self.post(self.top_body(question, self.endpoint.top), read)

    async def echo(self, question: Question) -> Reply:
        """How likely each of the words is behind the text, by an echo of both."""
        groups = [question.words] if self.endpoint.together else [(word,) for word in question.words]
        replies = [await self.echo_of(question.text, group) for group in groups]
        if (none := next((reply for reply in replies if reply.reason), None)) is not None:
            return none
        scores = [float(score) for reply in replies for score in reply.log_probs]  # type: ignore[union-attr]
        tokens, written = sum(reply.tokens for reply in replies), sum(reply.written for reply in replies)
        reply = Reply(None, None, tokens, written, tries=1 + sum(reply.tries - 1 for reply in replies))
        if any(math.isnan(score) for score in scores) or max(scores) <= LEAST:
            return replace(reply, reason=Reason.NAN, why="a log-probability is NaN, or all are minus infinity")
        return replace(reply, log_probs=normalised(scores))

    async def echo_of(self, text: str, words: Sequence[str], space: str = " ") -> Reply:
        """The log-probabilities of words behind a text, not normalised, by one request."""
        prompts = [f"{text}{space}{word}" for word in words]
        body = {
            "model": self.endpoint.model,
            self.endpoint.limit: self.endpoint.least,
            **{"temperature": 0, "logprobs": 1, "echo": True},
            "prompt": prompts if len(prompts) > 1 else prompts[0],
        }

        def read(content: dict[str, Any]) -> Reply:
            scores = []
            for choice, word in zip(choices_of(content, len(words)), words, strict=True):
                if choice.get("logprobs") is None:
                    return _said(choice, *used(content))
                cut = str(choice.get("finish_reason")) == "length"
                written = ((1, 0, 2) if cut else (0, 1, 2)) if self.endpoint.least else (0, 1)
                scores.append(echoed(steps_of(choice), text, space + word, written))
            return Reply(_column(scores), None, *used(content))

        return await self.post(body, read)

    def body(self, question: Question) -> dict[str, Any]:
        """The request for a completion."""
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
        if decoding.stop and self.endpoint.stop:
            body["stop"] = list(decoding.stop[:STOPS])
        if not self.endpoint.chat:
            return body | {"prompt": question.text}
        return body | {"messages": messages_of(question.text) or [{"role": "user", "content": question.text}]}

    def top_body(self, question: Question, count: int) -> dict[str, Any]:
        """The request for the ``count`` likeliest next tokens."""
        body = self.body(replace(question, decoding=Decoding(max_tokens=1)))
        return body | ({"logprobs": True, "top_logprobs": count} if self.endpoint.chat else {"logprobs": count})

    # The wire.

    async def post(self, body: dict[str, Any], read: Callable[[dict[str, Any]], Reply]) -> Reply:
        """What ``read`` makes of the answer to a request, which is sent again while there is hope.

        Raises:
            NoAnswer: there is none.
            ScoringError: there is none for any request.
        """
        last: _Again | None = None
        at = 0.0
        for attempt in range(self.settings.tries):
            if attempt:
                await asyncio.sleep(self._pause(attempt))
            await self._turn()
            if self.dead is not None:
                raise ScoringError(self.dead)
            self.tried += 1
            at = time.monotonic()
            try:
                reply = replace(self._read(await self._send(body), read), tries=attempt + 1)
                self._last_answer = time.monotonic()
                return reply
            except _Again as again:
                self.failed += 1
                last = again
                if again.after is not None:
                    self._resume_at = max(self._resume_at, time.monotonic() + min(again.after, MOST_PAUSE_SECONDS))
            except NoAnswer as none:
                none.tries, none.at = attempt + 1, at
                raise
            except ScoringError as error:
                self.dead = str(error)
                raise
        why = f"{self.endpoint.url}: no answer in {self.settings.tries} tries (--lm tries): {last}"
        failure = NoAnswer(why, Reason.FAILED, doubtful=True, tries=self.settings.tries)
        failure.at, failure.heard = at, last is not None and last.heard
        raise failure

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
        """A reply of status 200, which may be cut, an error, or none of an LM's, all the same."""
        try:
            content = content_of_reply(raw)
        except (ValueError, TypeError) as error:
            raise _Again(f"the reply is no JSON ({error}): {shown(raw, self.key.value)}") from None
        try:
            found = error_in(content)
            if found is None:
                return read(content)
        except WRONG as wrong:
            reason = f"the reply lacks what was asked for ({type(wrong).__name__} {wrong}): "
            reason = line(reason, self.key.value) + " " + shown(raw, self.key.value)
            if self.patient:
                raise _Again(reason) from None
            raise NoAnswer(reason, Reason.FAILED) from None
        self._fail(*found, raw, None)

    async def _send(self, body: dict[str, Any]) -> bytes:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers(),
                timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
                connector=aiohttp.TCPConnector(limit=0),
            )
        try:
            async with self._session.post(self.endpoint.path, json=body, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                fine = 200 <= status < 300
                raw = await _limited(response.content.read, MOST_BYTES if fine else MOST_ERROR_BYTES)
        except TimeoutError:
            raise _Again(f"no answer came within {self.settings.timeout:g} s (--lm timeout)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(line(f"{type(error).__name__}: {error}".strip(": "), self.key.value)) from None
        if fine and len(raw) > MOST_BYTES:
            raise NoAnswer(f"a reply of more than {MOST_BYTES >> 20} MB", Reason.FAILED, doubtful=True)
        if 300 <= status < 400:
            where = address(headers.get("Location", ""), self.key.value)
            raise ScoringError(
                f"{self.endpoint.path}: redirects ({status}) to {where}, which is not followed: give that URL"
            )
        if not fine:
            self._fail(status, "", raw, headers.get("Retry-After"))
        return raw

    def _headers(self) -> dict[str, str]:
        if self.key.value is None:
            return {}
        headers = {"Authorization": f"Bearer {self.key.value}"}
        if (urlsplit(self.endpoint.url).hostname or "").endswith(".azure.com"):
            headers["api-key"] = self.key.value  # what Azure's deployments ask for
        return headers

    def _fail(self, status: int, code: str, raw: bytes, retry_after: str | None) -> NoReturn:
        """Raise what a status that is no answer means; ``code`` is the error's own, where the status stands in it."""
        said = f"{status} {shown(raw, self.key.value)}"
        text = code or raw[:MOST_ERROR_BYTES].decode("utf-8", "replace").lower()
        if status == 402 or (status == 429 and any(word in text for word in UNPAID[:1])):
            raise ScoringError(f"{self.endpoint.url}: the account has no credit left ({said})")
        if status == 401:
            raise ScoringError(f"{self.endpoint.url}: the key is refused ({said}); set {KEY_VARIABLE}")
        if status == 403:  # of some services this is a filter's answer to one input
            why = f"{self.endpoint.url}: the key is refused ({said}); set {KEY_VARIABLE}"
            raise NoAnswer(why, doubtful=True)
        if status in (404, 405) or (status == 400 and "model_not_found" in text):
            why = f"{self.endpoint.path}: there is no such API or no LM {self.endpoint.model!r} ({said})"
            raise NoAnswer(why, doubtful=True)
        if status in (408, 409, 425, 429) or status >= 500:
            pause = _seconds(retry_after)
            if status == 429 and pause is None:
                pause = self._pause(3)  # for all: the next one would get the same answer
            again = _Again(said, pause)
            again.heard = True
            raise again
        raise NoAnswer(said)


def _said(choice: Mapping[str, Any], tokens: int, written: int) -> Reply:
    """Why a choice has no log-probabilities, where the service says so.

    Raises:
        ValueError: it does not.
    """
    none = broken_off(choice)
    if none is None:
        raise ValueError("no log-probabilities")
    return Reply(None, None, tokens, written, reason=none.reason, why=none.why)


class _Again(Exception):
    """A request that may go well if it is sent again, ``after`` so many seconds where the service says so."""

    heard = False  # whether the service sent a status that says so

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


async def _limited(read: Callable[[int], Awaitable[bytes]], most: int) -> bytes:
    """All that comes, decompressed, or the first ``most`` bytes and a few more."""
    pieces: list[bytes] = []
    size = 0
    while size <= most and (piece := await read(CHUNK)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _seconds(header: str | None) -> float | None:
    try:
        seconds = None if header is None else float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(header)).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None  # the pauses of ours will do
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _column(scores: Sequence[float]) -> FloatArray:
    import numpy as np

    return np.array(scores, dtype=np.float64)
