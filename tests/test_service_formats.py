"""A service of the tests in the formats that servers speak: right scores, or a clear refusal. No Ray, no scorers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from lm_server import SPEAKS, Server, Speaks

from rayprompt.decoding import Decoding
from rayprompt.errors import InputError
from rayprompt.lm.discovery import discover
from rayprompt.lm.endpoint import Endpoint, Secret
from rayprompt.lm.service import Client, Question, Reply
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.source import source_of_endpoint
from rayprompt.scoring.actor import ScorerInfo
from rayprompt.scoring.endpoint import EndpointPool
from rayprompt.unanswered import Reason

WORDS = ("terrible", "great")
TEXTS = (
    "a film so good it was",
    'It was, after all, "fine"\n it was',
    "  two spaces. it was",
    "Où es-tu, 東京? 🎬 it was",
    "dull " * 40 + "it was",
)
ECHO = [name for name, speaks in SPEAKS.items() if speaks.echo and speaks.cap]
TOP = ["llama.cpp", "openai", "one", "no-stop"]


def ask(endpoint: Endpoint, questions: Sequence[Question], **settings: Any) -> list[Reply]:
    async def work() -> list[Reply]:
        client = Client(endpoint, LMSettings.of({"tries": 2, "timeout": 5, **settings}), Secret(None))
        try:
            return [await client.ask(question) for question in questions]
        finally:
            await client.close()

    return asyncio.run(work())


def found(server: Server, words: Sequence[str] = WORDS, **settings: Any) -> Endpoint:
    return discover(server.model, LMSettings.of({"tries": 2, "timeout": 5, **settings}), words)


def local(server: Server, text: str, words: Sequence[str] = WORDS) -> Any:
    """By one plain forward pass in fp32 for each word: log-softmax over the words' sums."""
    sums = []
    for word in words:
        whole = server.tokenizer(f"{text} {word}")["input_ids"]
        begin = len(server.tokenizer(text)["input_ids"])
        with torch.inference_mode():
            log_probs = server.lm(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(float(log_probs[i - 1, whole[i]]) for i in range(begin, len(whole))))
    return torch.tensor(sums).log_softmax(0).numpy()


@pytest.mark.parametrize("name", ECHO)
def test_an_echo_gives_the_scores_of_a_plain_forward_pass(server: Server, name: str) -> None:
    server.speaks = SPEAKS[name]
    endpoint = found(server)
    assert endpoint.labels == "echo"
    assert endpoint.least == (1 if SPEAKS[name].zero else 0)
    assert endpoint.together == SPEAKS[name].together
    for words in (WORDS, ("very terrible", "great fun")):
        replies = ask(endpoint, [Question(text, words) for text in TEXTS])
        for text, reply in zip(TEXTS, replies, strict=True):
            assert reply.log_probs is not None, reply.why
            assert np.abs(reply.log_probs - local(server, text, words)).max() < 1e-3


@pytest.mark.parametrize("name", TOP)
def test_the_likeliest_tokens_give_the_scores_of_a_plain_forward_pass_or_none(server: Server, name: str) -> None:
    server.speaks = SPEAKS[name]
    endpoint = found(server)
    assert (endpoint.labels, endpoint.top) == ("top", SPEAKS[name].cap)
    assert endpoint.stop == SPEAKS[name].stop
    seen = 0
    for text in TEXTS:
        (reply,) = ask(endpoint, [Question(text, WORDS)])
        ids = torch.tensor([server.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            top = server.lm(ids).logits[0, -1].log_softmax(-1).topk(endpoint.top)
        names = [server.tokenizer.decode([int(i)]).strip() for i in top.indices]
        both = [word for word in WORDS if word in names]
        if not both:
            assert (reply.reason, reply.log_probs) == (Reason.UNSEEN, None)
            continue
        seen += 1
        assert reply.log_probs is not None
        if len(both) == 2:
            assert np.abs(reply.log_probs - local(server, text)).max() < 1e-3
        else:  # the other one is less likely
            assert WORDS[int(reply.log_probs.argmax())] == both[0]
    assert seen


@pytest.mark.parametrize("name", ["llama-cpp-python", "tgi", "thinks", "reasons", "thinks-late"])
@pytest.mark.parametrize("chat", [None, "user"])
def test_without_log_probabilities_the_lm_writes(server: Server, name: str, chat: str | None) -> None:
    server.speaks = SPEAKS[name]
    endpoint = found(server, chat=chat)
    assert (endpoint.labels, endpoint.top) == ("text", 0)
    pool = object.__new__(EndpointPool)  # its actor is not needed
    pool.source, _ = source_of_endpoint(server.model, LMSettings(), endpoint)
    pool.endpoint, pool.infos = endpoint, [ScorerInfo("endpoint", "endpoint", 1, "", 0, 0.0, ())]
    (note,) = pool.notes({})
    assert note.endswith(f"(--lm labels=text): {endpoint.fallback}")
    assert endpoint.fallback
    (reply,) = ask(endpoint, [Question(TEXTS[0], decoding=Decoding(max_tokens=4, stop=(".",)))])
    ids = server.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    out = server.lm.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    plain = server.tokenizer.decode(out, skip_special_tokens=True).split(".")[0]
    assert (reply.completion or "").strip() == plain.strip()
    with pytest.raises(InputError, match="--lm labels=top: it does not give them: "):
        found(server, labels="top", chat=chat)


@pytest.mark.parametrize("name", ["vllm", "azure", "parts", "openai", "no-stop"])
def test_chat_gives_the_likeliest_tokens(server: Server, name: str) -> None:
    server.speaks = SPEAKS[name]
    endpoint = found(server, chat="user")
    assert (endpoint.labels, endpoint.top, endpoint.api) == ("top", SPEAKS[name].cap, "chat")
    assert endpoint.limit == (SPEAKS[name].limit or "max_tokens")


def test_a_generation_task_asks_nothing_about_labels(server: Server) -> None:
    server.speaks = SPEAKS["llama-cpp-python"]
    endpoint = found(server, words=())
    assert endpoint.labels == ""
    assert sum(server.counts.values()) == 1
    assert endpoint.features() == {"limit": "max_tokens", "stop": True}
    assert endpoint.to_json() == {"api": "completions", "rule": 2}


def test_an_echo_that_the_next_tokens_contradict_is_not_believed(server: Server) -> None:
    """A server whose log-probabilities stand one token too late."""

    def late(body: dict[str, Any]) -> web.Response:
        content = server.completions(body)
        for choice in content["choices"] if body.get("echo") else ():
            values = choice["logprobs"]["token_logprobs"]
            choice["logprobs"]["token_logprobs"] = [None, *values[:1], *values[1:-1]]
        return web.json_response(content)

    server.reply = late
    assert found(server).labels == "top"
    with pytest.raises(InputError, match="--lm labels=echo: it does not give them: its echo cannot be believed"):
        found(server, labels="echo")


def test_label_words_that_one_token_may_begin_are_refused_by_name(server: Server) -> None:
    server.speaks = SPEAKS["openai"]
    words = ("card_arrival", "card_linking", "great")
    with pytest.raises(InputError, match="labels=top: .* 'card_arrival' and 'card_linking' may begin with"):
        found(server, words, labels="top")
    assert found(server, words).labels == "text"
    assert found(server, ("great", "greater")).labels == "text"
    server.speaks = SPEAKS["vllm"]
    assert found(server, words).labels == "echo"


def test_5xx_for_everything_is_no_missing_feature(server: Server) -> None:
    server.reply = lambda body: web.json_response({"error": {"message": "starting"}}, status=503)
    with pytest.raises(InputError, match="no answer in 2 tries .--lm tries.: 503 starting"):
        found(server)
    server.reply, server.after = server.reply, server.counts["200"] + 1  # it dies behind the first answer
    with pytest.raises(InputError, match="no answer in 2 tries .--lm tries.: 503 starting"):
        found(server)


def test_lms_that_take_no_temperature_but_their_own(server: Server) -> None:
    def picky(body: dict[str, Any]) -> web.Response:
        if body["temperature"] != 1:
            return web.json_response({"error": {"message": "Unsupported value: 'temperature'"}}, status=400)
        return web.json_response(server.chat(body))

    server.reply = picky
    with pytest.raises(InputError, match="it refuses a request of one token: 400 Unsupported value: 'temperature'"):
        found(server, words=(), chat="user")
    assert found(server, words=(), chat="user", temperature=1).stop


def test_speaks_differ() -> None:
    assert len(set(SPEAKS.values())) == len(SPEAKS)
    assert Speaks() not in SPEAKS.values()
