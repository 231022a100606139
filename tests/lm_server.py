"""A small server over a bundled LM that speaks OpenAI-compatible completions and chat, and can be told to fail.

Plain and slow on purpose: one forward pass a request, and no code of rayprompt's in the server.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayprompt.lm.source import BUNDLED
from rayprompt.task import Task, load_task

CAUSAL = BUNDLED / "tiny-causal"
PROMPTS = ["", "it was", "so very"]
QUICK = {"timeout": 1, "tries": 12, "in_flight": 8}  # as faults want it
FAULTS = ("429", "500", "503", "timeout", "cut", "malformed", "empty")


@dataclass(frozen=True)
class Speaks:
    """A server's way to speak the API.

    Attributes:
        echo: whether it echoes with log-probabilities; where it does not, ``refuses`` says how.
        cap: likeliest tokens at most; 0: it refuses any. None: it leaves out log-probabilities without a word.
        refuses: the status for what it cannot do.
        together: whether a request may have several prompts.
        zero: what ``max_tokens: 0`` gives: none, or as many tokens as there is room for (here 40).
        tokens: how tokens are shown: ``slices`` of the text, ``decoded`` one by one (parts of characters as U+FFFD),
            ``raw`` as in the vocabulary, ``late`` (a character stands with its last token).
        offset: of the first token; ``begin``: a token that begins a text and is shown, with an offset of its own.
        content: log-probabilities in the way of chat, also of completions.
        limit: the only name of the limit of new tokens that it takes; empty is both.
        stop: whether it takes stop texts.
        parts: content as a list of parts.
        thinks: how it shows thinking: ``tags``, ``field``, or ``late`` (a closing tag alone).
    """

    echo: bool = True
    cap: int | None = 20
    refuses: int = 400
    together: bool = True
    zero: int = 0
    tokens: str = "slices"
    offset: int = 0
    begin: str = ""
    content: bool = False
    limit: str = ""
    stop: bool = True
    parts: bool = False
    thinks: str = ""


OWN = Speaks()
SPEAKS = {
    "vllm": Speaks(begin="<|begin_of_text|>", tokens="late"),
    "vllm-no-begin": Speaks(tokens="decoded"),
    "sglang": Speaks(begin="<s>", offset=-1, tokens="decoded"),
    "llama-cpp-python": Speaks(cap=0, refuses=500, echo=False, together=False, zero=40),
    "llama-cpp-python-logits": Speaks(cap=20, refuses=500, together=False, zero=40, offset=1),
    "raw-tokens": Speaks(tokens="raw", begin="<s>"),
    "echo-content": Speaks(tokens="decoded", content=True),
    "llama.cpp": Speaks(echo=False, content=True, tokens="decoded"),
    "tgi": Speaks(echo=False, cap=None),
    "openai": Speaks(echo=False, cap=5),
    "one": Speaks(echo=False, cap=1),
    "no-stop": Speaks(limit="max_completion_tokens", stop=False, echo=False, cap=5),
    "azure": Speaks(cap=5, limit="max_completion_tokens"),
    "parts": Speaks(parts=True),
    "thinks": Speaks(thinks="tags", cap=0),
    "reasons": Speaks(thinks="field", parts=True, cap=0),
    "thinks-late": Speaks(thinks="late", cap=0),
}


@dataclass
class Server:
    """What the server does, and what it has seen.

    Attributes:
        speaks: the format.
        log_probs: whether it gives log-probabilities: ``echo``, ``top``, or none.
        key: the key that it wants; None takes all.
        faults: the share of requests that fail, one after the other in the ways of ``FAULTS``.
        latency: seconds that an answer takes.
        refuse: texts with this in them are refused for good (400).
        reply, after: after so many good answers, all that is given.
        seen: (path, body) of every request that was answered.
        counts: requests by outcome.
    """

    folder: Path
    speaks: Speaks = OWN
    log_probs: str = "echo"
    key: str | None = None
    faults: float = 0.0
    latency: float = 0.0
    refuse: str = ""
    port: int = 0
    reply: Callable[[dict[str, Any]], web.Response] | None = None
    after: int = 0
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    at_once: int = 0
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def begin(self) -> None:
        """As new: no faults, nothing seen."""
        self.speaks = OWN
        self.log_probs, self.key, self.faults, self.latency, self.refuse = "echo", None, 0.0, 0.0, ""
        self.seen, self.most_at_once, self.reply, self.after = [], 0, None, 0
        self.counts.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def model(self) -> str:
        return f"endpoint:{self.url}#tiny"

    def load(self) -> None:
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.lm = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._handle(request)
        finally:
            self.at_once -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            self.counts["401"] += 1
            return web.json_response({"error": {"message": "wrong key: " + str(request.headers)}}, status=401)
        body = await request.json()
        if body["model"] != "tiny":
            return web.json_response({"error": {"message": f"no model {body['model']}"}}, status=404)
        if self.reply is not None and self.counts["200"] >= self.after:
            self.counts["odd"] += 1
            return self.reply(body)
        if self.refuse and self.refuse in json.dumps(body, ensure_ascii=False):
            self.counts["400"] += 1
            return web.json_response({"error": {"message": "the filter says no"}}, status=400)
        if self.latency:
            await asyncio.sleep(self.latency)
        fault = ""
        if self.random.random() < self.faults:
            fault = FAULTS[sum(self.counts[name] for name in FAULTS) % len(FAULTS)]
            self.counts[fault] += 1
        if fault in ("429", "500", "503"):
            headers = {"Retry-After": "0.01"} if fault == "429" else {}
            return web.json_response({"error": {"message": "later"}}, status=int(fault), headers=headers)
        if fault == "timeout":
            await asyncio.sleep(1.5)
        chat = request.path.endswith("chat/completions")
        if (wrong := self.wrong(body, chat)) is not None:
            self.counts[str(self.speaks.refuses)] += 1
            return web.json_response({"error": {"message": wrong}}, status=self.speaks.refuses)
        unknown = body.get("echo") and self.log_probs != "echo"
        if unknown or (body.get("logprobs") and not self.log_probs):
            return web.json_response({"error": {"message": "unknown option"}}, status=422 if chat else 400)
        key = json.dumps([request.path, body, repr(self.speaks)], sort_keys=True)
        if key not in self.known:
            work = self.chat if chat else self.completions
            try:
                self.known[key] = await asyncio.get_running_loop().run_in_executor(None, work, body)
            except IndexError:  # beyond the LM's positions
                return web.json_response({"error": {"message": "maximum context length"}}, status=400)
        text = json.dumps(self.known[key])
        if fault == "malformed":
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        if fault == "empty":
            return web.json_response({"choices": []})
        if fault == "cut":
            response = web.StreamResponse(headers={"Content-Length": str(len(text))})
            await response.prepare(request)
            await response.write(text[:20].encode())
            assert request.transport is not None
            request.transport.close()
            return response
        self.counts["200"] += 1
        self.seen.append((request.path, body))
        return web.Response(text=text, content_type="application/json")

    def wrong(self, body: dict[str, Any], chat: bool) -> str | None:
        """What it does not take."""
        speaks = self.speaks
        count = body.get("top_logprobs") or body.get("logprobs") or 0
        other = {"max_tokens", "max_completion_tokens"} - {speaks.limit}
        if speaks.limit and other & set(body):
            return f"Unsupported parameter: use {speaks.limit} instead"
        if not speaks.stop and "stop" in body:
            return "Unsupported parameter: 'stop'"
        if isinstance(body.get("prompt"), list) and not speaks.together:
            return "prompt must be a string"
        if count and speaks.cap is not None and count > speaks.cap:
            return f"logprobs must be less than or equal to {speaks.cap}" if speaks.cap else "logits were not kept"
        if body.get("echo") and not speaks.echo and speaks.cap is not None:
            return "echo is not supported"
        return None

    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        choices, read, written = [], 0, 0
        for index, prompt in enumerate(prompts):
            echo = body.get("echo") and self.speaks.echo
            choice, n, m = self.echo(prompt, self.limit(body)) if echo else self.write(prompt, body)
            if body.get("logprobs") and self.speaks.cap is None:
                choice["logprobs"] = None
            choices.append({"index": index, **choice})
            read, written = read + n, written + m
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {"id": "x", "object": "text_completion", "choices": choices[::-1], "usage": usage}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = " ".join(message["content"] for message in body["messages"])
        choice, n, m = self.write(text, body)
        message: dict[str, Any] = {"role": "assistant", "content": choice["text"]}
        if self.speaks.thinks == "tags":
            message["content"] = f"<think>\nterrible? great?\n</think>\n\n{choice['text']}"
        elif self.speaks.thinks == "late":
            message["content"] = f"terrible? great?\n</think>\n\n{choice['text']}"
        elif self.speaks.thinks == "field":
            message["reasoning_content"] = "terrible? great?"
        if self.speaks.parts:
            message["content"] = [{"type": "text", "text": message["content"]}]
        chosen: dict[str, Any] = {"index": 0, "message": message, "finish_reason": choice["finish_reason"]}
        if body.get("logprobs") and self.speaks.cap is not None:
            top = choice["logprobs"]["top_logprobs"][0]
            rows = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top.items()]
            chosen["logprobs"] = {"content": [{**rows[0], "top_logprobs": rows}], "refusal": None}
        return {"choices": [chosen], "usage": {"prompt_tokens": n, "completion_tokens": m}}

    def limit(self, body: dict[str, Any]) -> int:
        given = body.get("max_tokens", body.get("max_completion_tokens", 16))
        return int(given) or self.speaks.zero

    def echo(self, text: str, new: int) -> tuple[dict[str, Any], int, int]:
        """A text with the log-probability of each of its tokens, and ``new`` more; special ones are not shown."""
        given = self.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        ids, offsets = given["input_ids"][0], given["offset_mapping"][0].tolist()
        with torch.inference_mode():
            log_probs = self.lm(ids[None]).logits[0].float().log_softmax(-1)
            out = self.lm.generate(ids[None], max_new_tokens=new, do_sample=False)[0, len(ids) :] if new else ids[:0]
        tokens, values, starts = [], [], []
        if self.speaks.begin:
            tokens, values, starts = [self.speaks.begin], [None], [0]
        at = len(self.speaks.begin) + self.speaks.offset
        late = ""
        for i, (start, end) in enumerate(offsets):
            if end > start or not i:
                token = text[start:end]
                if self.speaks.tokens == "raw":
                    token = self.tokenizer.convert_ids_to_tokens(int(ids[i]))
                elif self.speaks.tokens == "decoded":
                    token = self.tokenizer.decode([int(ids[i])])
                elif self.speaks.tokens == "late":
                    following = offsets[i + 1] if i + 1 < len(offsets) else (len(text), len(text))
                    parted = end > following[0]
                    token, late = ("", token) if parted else (late if late and end == start else token, "")
                tokens.append(token)
                starts.append(start + at if self.speaks.offset >= 0 else -1)
                values.append((-1.5 if self.speaks.begin else None) if i == 0 else float(log_probs[i - 1, ids[i]]))
        for token in out.tolist():
            tokens.append(self.tokenizer.decode([token]))
            values.append(-0.5)
            starts.append(len(text) + at)
        found: dict[str, Any] = {"tokens": tokens, "token_logprobs": values, "text_offset": starts}
        if self.speaks.content:
            rows = zip(tokens, values, strict=True)
            found = {"content": [{"token": t, "logprob": v, "bytes": None, "top_logprobs": []} for t, v in rows]}
        whole = text + self.tokenizer.decode(out)
        finish = "length" if len(out) == new else "stop"
        return {"text": whole, "logprobs": found, "finish_reason": finish}, len(ids), len(out)

    def write(self, text: str, body: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        special = self.tokenizer("")["input_ids"]
        if special and ids[0, -1] == special[-1] and len(special) > 1:
            ids = ids[:, :-1]
        sample = {"do_sample": False}
        if body.get("temperature"):
            torch.manual_seed(body.get("seed", 0))
            sample = {
                "do_sample": True,
                "temperature": body["temperature"],
                "top_p": body.get("top_p", 1.0),
                "top_k": 0,
            }
        limit = self.limit(body)
        with torch.inference_mode():
            out = self.lm.generate(ids, max_new_tokens=limit, **sample)[0, ids.shape[1] :] if limit else ids[0, :0]
            top = self.lm(ids).logits[0, -1].float().log_softmax(-1).topk(20)
        written = self.tokenizer.decode(out, skip_special_tokens=True)
        finish = "length" if len(out) == limit and self.tokenizer.eos_token_id not in out[-1:] else "stop"
        for stop in body.get("stop", []):
            if stop in written:
                written, finish = written.split(stop)[0], "stop"
        count = body.get("top_logprobs") or body.get("logprobs") or 0
        likeliest = {
            self.tokenizer.decode([int(i)]): float(p)
            for i, p in list(zip(top.indices, top.values, strict=True))[: int(count)]
        }
        found: dict[str, Any] = {"top_logprobs": [likeliest]}
        if self.speaks.content and "messages" not in body:
            rows = [{"token": t, "logprob": p, "id": 0} for t, p in likeliest.items()]
            found = {"content": [{**rows[0], "top_logprobs": rows}] if rows else []}
        return {"text": written, "logprobs": found, "finish_reason": finish}, ids.shape[1], len(out)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Server]:
    """A server in a thread of its own, on a port of its own."""
    server = Server(folder, **options)
    server.load()
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/completions", server.handle)
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    started = threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        loop.run_until_complete(site.start())
        server.port = runner.addresses[0][1]
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def small(**changes: Any) -> Task:
    """The bundled reviews with few examples: every pair is a request."""
    reviews = load_task("reviews")
    parts = {
        part: [{**e.fields, "label": reviews.labels[e.label]} for e in reviews.examples(part)[:count]]
        for part, count in (("train", 32), ("dev", 24), ("test", 48))
    }
    words = dict(zip(reviews.labels, reviews.label_words, strict=True))
    return Task.from_examples(
        "small", template="{text} {prompt}", label_words=words, manual_prompt="it was", **parts, **changes
    )
