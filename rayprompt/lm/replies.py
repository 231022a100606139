"""What the replies of a service mean: completions, log-probabilities, errors, in the formats that servers give.

Everything here is a pure function of what came back. A reply comes from outside: a value of a wrong type, a number that
is none and nesting of any depth are errors of the reply, never of the program.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

from rayprompt.decoding import Decoding
from rayprompt.unanswered import Reason

SHOWN = 300  # characters of a reply in a message
LEAST = -9999.0  # log-probability: servers write it for minus infinity, which JSON does not have
MOST_TOKENS = 1 << 24  # of a reply; a larger number is none
WRONG = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)
CUTS = ("length", "max_", "token_limit", "context_window", "incomplete")  # parts of the reason that an answer is cut
FILTERS = (
    *(
        "content_filter",
        "content_filtered",
        "contentfilter",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
    ),
    *("refusal", "guardrail_intervened", "sensitive"),
)
FAILURES = (
    "error",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "timeout",
    "insufficient_system_resource",
    "overloaded",
)
TOOLS = ("tool_calls", "function_call", "tool_use")
REASONINGS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
THOUGHTS = ("think", "reason", "summary")  # in the types of parts of a message
# How LMs mark what they think before they answer. The opening mark may be part of the prompt, so it may be missing.
THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# Kinds of an error, by words in its code or type, where the status does not say it.
REFUSING = (
    "filter",
    "policy",
    "moderation",
    "invalid_request",
    "bad_request",
    "badrequest",
    "context_length",
    "unproc",
)
ENDING = ("invalid_api_key", "authentication", "unauthorized", "model_not_found", "modelnotfound", "deploymentnotfound")
TOKEN_ID = re.compile(r"token_id:\d+")
UNPAID = ("insufficient_quota", "billing", "payment")


@dataclass(frozen=True)
class Step:
    """One token of a reply.

    Attributes:
        text: of the token, as the service shows it; ``raw`` its bytes where the service tells them.
        value: its log-probability; None of a first token.
        top: the likeliest tokens at its place, (text, log-probability).
    """

    text: str
    raw: bytes | None
    value: float | None
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Written:
    """A completion, or why there is none.

    Attributes:
        text: what was written, without thinking; a cut text is kept for the record.
        reason: ANSWERED, or why the text is no answer.
        cut: whether the limit of new tokens ended it.
        why: in words.
    """

    text: str | None
    reason: Reason = Reason.ANSWERED
    cut: bool = False
    why: str = ""


def content_of_reply(raw: bytes) -> dict[str, Any]:
    """The JSON object of a reply.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        content = json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def error_in(content: Mapping[str, Any]) -> tuple[int, str] | None:
    """(status, code) of an error in a reply; None if there is none. 500: it does not say which."""
    choices = content.get("choices")
    error = content.get("error")
    if isinstance(error, Mapping) and not any(error.values()):
        error = None
    if not error and isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        error = choices[0].get("error")
    elif choices and not isinstance(error, Mapping | str):
        error = None
    elif not error and (content.get("object") == "error" or "detail" in content):
        error = content
    if not error:
        return None
    named = error if isinstance(error, Mapping) else {}
    status = next((_status(named.get(key)) for key in ("status", "code", "status_code") if _status(named.get(key))), 0)
    code = " ".join(str(named.get(key)) for key in ("code", "type") if isinstance(named.get(key), str)).lower()
    return status or status_of(code), code


def status_of(code: str) -> int:
    """The status that an error's code or type means; 500 where it does not say."""
    for names, status in ((UNPAID, 402), (ENDING, 404), (REFUSING, 400), (("rate_limit", "too_many"), 429)):
        if any(name in code for name in names):
            return status
    return 500


def _status(value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3 else value
    return number if isinstance(number, int) and 400 <= number < 600 else 0


def shown(raw: bytes, secret: str | None) -> str:
    """A reply in a message: its error where it has one, on one line of printable characters, without our key."""
    text = raw[: 1 << 16].decode("utf-8", "replace")
    try:
        content = json.loads(text)
        error = content.get("error") or content.get("detail") or content
        text = str(error.get("message") or error if isinstance(error, Mapping) else error)
    except WRONG:
        pass
    return line(text, secret)


def line(text: str, secret: str | None) -> str:
    """A text from outside in a message."""
    if secret:
        for form in {secret, quote(secret), quote(secret, safe="")}:
            text = text.replace(form, "***")
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:SHOWN]


def address(location: str, secret: str | None) -> str:
    """A URL from outside in a message: without its query and user, which may hold keys."""
    try:
        parts = urlsplit(location)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "elsewhere"
    return line(f"{parts.scheme}://{host}{parts.path}" if host else parts.path, secret) or "elsewhere"


def used(content: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens in all, and those that were written; 0 for a number that is none."""
    usage = content.get("usage")
    if not isinstance(usage, Mapping):
        return 0, 0
    read, written = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    return read + written, written


def _count(value: Any) -> int:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return int(value) if fine else 0


def choices_of(content: Mapping[str, Any], count: int = 1) -> list[Mapping[str, Any]]:
    """The choices of a reply in the order of the prompts.

    Raises:
        ValueError: there are not ``count`` of them.
    """
    found = content["choices"]
    if not isinstance(found, list) or len(found) < count:
        raise ValueError(f"{len(found)} choices, not {count}")
    order = sorted(found, key=lambda choice: int(choice.get("index") or 0))
    if count == 1:
        return order[:1]
    if len(order) > count:
        raise ValueError(f"{len(order)} choices, not {count}")
    if len({int(choice.get("index") or 0) for choice in order}) < count:
        raise ValueError("choices with the same index")
    if int(order[-1].get("index") or 0) - int(order[0].get("index") or 0) >= count:
        raise ValueError("choices of other prompts")
    return order


# Completions.


def written_in(choice: Mapping[str, Any], decoding: Decoding) -> Written:
    """The completion of a choice. Thinking is no part of it; of a cut one the text is kept."""
    if (none := broken_off(choice)) is not None:
        return none
    message, finish = _message(choice), _finish(choice)
    text, thought, refused = _text_of(message["content"] if message is not choice else choice["text"])
    if refused:
        return Written(None, Reason.REFUSED, why="it refuses to answer (refusal)")
    thought = thought or any(message.get(name) for name in REASONINGS)
    cut = any(part in finish for part in CUTS)
    if finish in TOOLS and not (text or "").strip():
        return Written(None, Reason.FAILED, why=f"no text ({finish})")
    if text is None:
        if cut or (thought and not message.get("tool_calls")):
            return Written(None, Reason.CUT, cut=True, why=f"no text ({finish})")
        return Written(None, Reason.FAILED, why=f"no text ({finish})")
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character is none
    answer, thinks = without_thinking(whole)
    ended = decoding.cut(answer)
    cut = thinks or (cut and len(ended) == len(answer))
    if not ended.strip() and (cut or thought):
        return Written(ended or None, Reason.CUT, cut=True, why="it was still thinking" if thinks or thought else "cut")
    return Written(ended, Reason.CUT if cut else Reason.ANSWERED, cut=cut, why="cut at its limit" if cut else "")


def broken_off(choice: Mapping[str, Any]) -> Written | None:
    """Why a choice holds no answer, where the service says so beside it; None where it does not."""
    finish = _finish(choice)
    if finish in FILTERS or _message(choice).get("refusal"):
        return Written(None, Reason.REFUSED, why=f"it refuses to answer ({finish or 'refusal'})")
    if finish in FAILURES:
        return Written(None, Reason.FAILED, why=f"it broke off ({finish})")
    return None


def _message(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    message = choice.get("message")
    return message if isinstance(message, Mapping) else choice


def _finish(choice: Mapping[str, Any]) -> str:
    """Why the LM stopped, in lower case with underscores."""
    found = choice.get("finish_reason")
    found = found.get("type") if isinstance(found, Mapping) else found
    return str(found or "").lower().replace("-", "_")


def _text_of(content: Any) -> tuple[str | None, bool, bool]:
    """The text of a message's content, which may be a list of parts; whether there is thinking; whether it refuses."""
    if content is None or isinstance(content, str):
        return content, False, False
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    thought = refused = False
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = str(part.get("type") or "text")
        thinks = any(word in kind for word in THOUGHTS)
        thought = thought or thinks
        refused = refused or "refus" in kind
        if kind.endswith("text") and not thinks:
            inner = part["text"]
            text = inner["value"] if isinstance(inner, Mapping) else inner
            if not isinstance(text, str | None):
                raise TypeError(f"a text that is a {type(text).__name__}")
            texts += [] if text is None else [text]
    return ("".join(texts) if texts else None), thought, refused


@cache
def _thinking() -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    return [(re.compile(re.escape(a), re.I), re.compile(re.escape(b), re.I)) for a, b in THINKING]


def without_thinking(text: str) -> tuple[str, bool]:
    """The text behind an LM's thinking, and whether there is thinking that has not ended.

    An opening mark counts at the beginning of a text and behind other thinking; elsewhere the answer mentions it.
    """
    begin = len(text) - len(text.lstrip())
    if any(opening.match(text, begin) and not closing.search(text) for opening, closing in _thinking()):
        return "", True
    for opening, closing in _thinking():
        ends = [mark.end() for mark in closing.finditer(text)]
        if ends:
            text = text[ends[-1] :].lstrip()
        if ends and (begun := opening.search(text)) is not None:  # it has begun once more, and not ended
            return text[: begun.start()].rstrip(), True
    return text, False


# Log-probabilities.


def steps_of(choice: Mapping[str, Any]) -> list[Step]:
    """The tokens of a choice with their log-probabilities, as completions or chat have them.

    Raises:
        KeyError, TypeError, ValueError: it has none.
    """
    found = choice["logprobs"]
    if isinstance(found.get("content"), list):  # of chat; some servers give it for completions, too
        return [
            Step(_shown_token(e), _raw(e), _log_prob(e.get("logprob")), _likeliest(e.get("top_logprobs")))
            for e in found["content"]
        ]
    tokens = found.get("tokens")
    tops = found.get("top_logprobs") or [None] * len(tokens or ())
    if tokens is None:
        return [Step("", None, None, _likeliest(top)) for top in tops]
    values = found.get("token_logprobs") or [None] * len(tokens)
    rows = zip(tokens, values, tops, strict=True)
    return [Step(str(token), None, _log_prob(value), _likeliest(top)) for token, value, top in rows]


def _likeliest(top: Any) -> tuple[tuple[str, float], ...]:
    if not top:
        return ()
    pairs = list(top.items()) if isinstance(top, Mapping) else [(_shown_token(e), e["logprob"]) for e in top]
    found = [(str(token), _log_prob(value)) for token, value in pairs]
    return tuple((token, value) for token, value in found if value is not None)


def _raw(entry: Mapping[str, Any]) -> bytes | None:
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) and given else None


def _shown_token(entry: Mapping[str, Any]) -> str:
    raw = _raw(entry)
    return str(entry.get("token", "")) if raw is None else raw.decode("utf-8", "replace")


def _log_prob(value: Any) -> float | None:
    """A log-probability; NaN stays, and minus infinity is ``LEAST``.

    Raises:
        ValueError: it is above 0.
    """
    if value is None:
        return None
    number = float(value)
    if number > 1e-3:
        raise ValueError(f"{number} is no log-probability")
    return number if math.isnan(number) else min(0.0, max(number, LEAST))


def next_tokens(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The likeliest first tokens of a completion.

    Raises:
        ValueError: there are none.
    """
    steps = steps_of(choice)
    if not steps or not steps[0].top:
        raise ValueError("no log-probabilities of the next token")
    if all(TOKEN_ID.fullmatch(token) for token, _ in steps[0].top):
        raise ValueError("tokens are shown by their ids, which do not tell their texts")
    return steps[0].top


def asked_too_many(why: str, asked: int) -> Sequence[int]:
    """How many likeliest tokens to ask for instead of ``asked``: what the service says, then fewer and fewer."""
    digits = "".join(c if c.isascii() and c.isdigit() else " " for c in why).split()
    said = sorted({int(d) for d in digits if len(d) < 4 and 0 < int(d) < asked}, reverse=True)
    return [*said, *(n for n in (10, 5, 3, 2, 1) if n < asked and n not in said)]
