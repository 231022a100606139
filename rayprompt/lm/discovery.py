"""What a service can do, found out feature by feature: servers that speak one API differ in all that is optional.

A feature that the service refuses, or that gets 5xx all the time while a plain request is answered, is one that it does
not have. Label scores from an echo are held against the likeliest next tokens, which are another way to the same
numbers, on texts of several kinds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from rayprompt.decoding import Decoding
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.endpoint import PREFIX, Endpoint, api_key, parse
from rayprompt.lm.replies import asked_too_many, choices_of, next_tokens
from rayprompt.lm.service import HARMLESS, UNANSWERED, Client, NoAnswer, Question, Reply
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.words import alike
from rayprompt.unanswered import Reason

TRIES = 3  # of a request here
MOST_TOP = 20
STOP = "\n\n\n"
LONG = "The film begins slowly and takes its time with every one of its people, but it never loses its way. " * 4
PROBES = ("It is", LONG + "It is", "Où es-tu, 東京? Ça va 🎬. It is", "  It was", "It is good. It is")
LIMITS = ("max_tokens", "max_completion_tokens")
NEAR = 0.3  # nats between two ways to one log-probability; low precision differs by less, a wrong token by more


def discover(name: str, settings: LMSettings, words: Sequence[str] = ()) -> Endpoint:
    """The endpoint of that name, asked what it can do.

    Args:
        name: ``endpoint:URL#NAME``.
        settings: how the LM is run.
        words: the label words that are to be scored; without them nothing is asked about labels.

    Raises:
        InputError: the name is no endpoint's, nothing answers there, the key or the LM's name is refused, or the
            service cannot score the words in the way that the settings say.
    """
    endpoint = replace(parse(name), chat=settings.chat is not None)
    client = Client(endpoint, replace(settings, tries=min(TRIES, settings.tries), rate=None), api_key(endpoint.url))

    async def work() -> Endpoint:
        try:
            return await _discover(client, settings.labels if words else "", words, settings)
        finally:
            await client.close()

    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own, as in a notebook
        try:
            return thread.submit(asyncio.run, work()).result()
        except ScoringError as error:
            raise InputError(f"model {PREFIX}{endpoint.url}#{endpoint.model}: {error}") from None


async def _discover(client: Client, labels: str, words: Sequence[str], settings: LMSettings) -> Endpoint:
    client.patient = True
    client.endpoint = await _plain(client, settings)
    client.patient = False
    if labels in ("", "text"):
        return replace(client.endpoint, labels=labels)
    top, reason = await _top(client)
    client.endpoint = replace(client.endpoint, top=top)
    if labels != "top":
        reason = "chat has no echo"
        if not client.endpoint.chat:
            try:
                return replace(await _echo(client), labels="echo")
            except _Cannot as cannot:
                reason = str(cannot)
    if labels in ("auto", "top") and top:
        shared = await _shared(client, words)
        if not shared:
            return replace(client.endpoint, labels="top")
        reason = f"the label words {shared} may begin with the same token, so the next token does not tell them apart"
    if labels != "auto":
        raise ScoringError(f"--lm labels={labels}: it does not give them: {reason}")
    return replace(client.endpoint, labels="text", fallback=reason)


class _Cannot(Exception):
    """The service does not have a feature; ``refused``: it gave no reply that could be read one way or the other."""

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


async def _try(client: Client, ask: Callable[[], Coroutine[Any, Any, Reply]]) -> Reply:
    """The reply to a request that asks for a feature.

    Raises:
        _Cannot: the service does not have it.
        ScoringError: it does not answer at all any more.
    """
    try:
        reply = await ask()
    except NoAnswer as none:
        if none.reason == Reason.FAILED and none.doubtful:
            await client.ask(HARMLESS)  # raises where nothing is answered
        raise _Cannot(str(none), none.reason == Reason.REFUSED or none.doubtful) from None
    if reply.reason in (*UNANSWERED, Reason.NAN):
        raise _Cannot(reply.why, reply.reason == Reason.REFUSED)
    return reply


async def _plain(client: Client, settings: LMSettings) -> Endpoint:
    """What the service calls the limit of new tokens, and whether it takes stop texts."""
    first = ""
    # Some LMs take no temperature but their own.
    for temperature in dict.fromkeys((0.0, settings.temperature or 0.0)):
        for stop in (True, False):
            for limit in LIMITS:
                client.endpoint = replace(client.endpoint, limit=limit, stop=stop)
                decoding = Decoding(max_tokens=1, temperature=temperature, stop=(STOP,) if stop else ())
                try:
                    reply = await client.complete(replace(HARMLESS, decoding=decoding))
                except NoAnswer as none:
                    first = first or str(none)
                    refused = none.reason == Reason.REFUSED
                    if (none.doubtful and refused) or not (refused or (stop and none.heard)):
                        raise ScoringError(first) from None
                    if not refused:
                        break  # perhaps stop texts are what it fails on
                    continue
                if reply.reason not in UNANSWERED:
                    return client.endpoint
                first = first or reply.why
    raise ScoringError(f"it refuses a request of one token: {first}")


async def _top(client: Client) -> tuple[int, str]:
    """How many of the likeliest next tokens it gives, at most 20, and why not more."""
    question = replace(HARMLESS, words=("good", "bad"))

    def ask(count: int) -> Callable[[], Coroutine[Any, Any, Reply]]:
        def read(content: dict[str, Any]) -> Reply:
            return Reply(tokens=len(next_tokens(choices_of(content)[0])))

        return lambda: client.post(client.top_body(question, count), read)

    waiting, reason = [MOST_TOP], ""
    while waiting:
        count = waiting.pop(0)
        try:
            await _try(client, ask(count))
            return count, reason
        except _Cannot as cannot:
            reason = reason or str(cannot)
            if count == MOST_TOP:
                waiting = [1] if "no answer in" in reason else list(asked_too_many(reason, count))
    return 0, reason


async def _echo(client: Client) -> Endpoint:
    """How it echoes a text with log-probabilities.

    Raises:
        _Cannot: it does not, or what it gives is not what the likeliest next tokens say.
    """
    words = ("good", "very bad")
    found: Endpoint | None = None
    for least in (1, 0):  # 0 is cheaper, but may mean as many as there is room for
        client.endpoint = replace(client.endpoint, least=least, together=False)
        try:
            one = await _try(client, lambda: client.echo(replace(HARMLESS, words=words)))
        except _Cannot:
            if found is None and least == 0:
                raise
            continue
        if least == 0 and one.written > 0:
            continue
        found = client.endpoint
    assert found is not None
    client.endpoint = replace(found, together=True)
    try:
        both = await _try(client, lambda: client.echo(replace(HARMLESS, words=words)))
        client.endpoint = found = client.endpoint if _near(one, both) else found
    except _Cannot:
        client.endpoint = found
    await _verify(client)
    return client.endpoint


def _near(one: Reply, other: Reply) -> bool:
    assert one.log_probs is not None
    assert other.log_probs is not None
    return bool(abs(one.log_probs - other.log_probs).max() <= NEAR)


async def _verify(client: Client) -> None:
    """Hold the log-probabilities of an echo against those of the likeliest next tokens, where there are any.

    Raises:
        _Cannot: they differ.
    """
    for text in PROBES if client.endpoint.top else ():
        try:
            likeliest = await _likeliest(client, text)
            wrong = []
            for token, value in likeliest[:3]:  # behind a text a token may be part of another one
                echo = await _try(client, lambda t=text, w=token: client.echo_of(t, [w[1:]]))  # type: ignore[misc]
                assert echo.log_probs is not None
                echoed = float(echo.log_probs[0])
                if abs(echoed - value) <= NEAR:
                    break
                wrong.append(f"{token!r} is {echoed:.3f} in its echo and {value:.3f} as a next token")
            else:
                if wrong:
                    raise _Cannot(f"its echo cannot be believed: the log-probability of {wrong[0]}")
        except _Cannot as cannot:
            if not cannot.refused or text == PROBES[0]:  # a long text may be more than it takes
                raise


async def _likeliest(client: Client, text: str) -> list[tuple[str, float]]:
    """The likeliest next tokens that are words with a space before them."""
    found: list[tuple[str, float]] = []

    def read(content: dict[str, Any]) -> Reply:
        found[:] = next_tokens(choices_of(content)[0])
        return Reply()

    await _try(client, lambda: client.post(client.top_body(Question(text), client.endpoint.top), read))
    return [(token, value) for token, value in found if token[:1] == " " and token[1:].isalpha()]


async def _shared(client: Client, words: Sequence[str]) -> str:
    """Label words that may begin with the same token, for a message; empty where the next token tells them apart.

    Words of one token each are told apart; how many tokens a word has is the difference of two counts of the service.
    """
    pairs = alike(words)
    sizes: dict[str, int] = {}
    if pairs:
        base = await _tokens(client, HARMLESS.text)
        for word in dict.fromkeys(word for pair in pairs for word in pair):
            sizes[word] = await _tokens(client, f"{HARMLESS.text} {word}") - base if base else 0
    rest = [pair for pair in pairs if any(sizes[word] != 1 for word in pair)]
    return ", ".join(f"{one!r} and {other!r}" for one, other in rest[:3]) + (" and others" if len(rest) > 3 else "")


async def _tokens(client: Client, text: str) -> int:
    """How many tokens the service counts in a text; 0 where it does not say."""
    reply = await _try(client, lambda: client.complete(replace(HARMLESS, text=text)))
    return reply.tokens - reply.written
