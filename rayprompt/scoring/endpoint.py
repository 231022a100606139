"""The pool of an LM behind a service: one actor that has many requests on their way at once."""

from __future__ import annotations

import asyncio
import os
import pickle
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from rayprompt.candidate import SoftPrompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.endpoint import Secret, api_key
from rayprompt.lm.service import HARMLESS, UNANSWERED, Client, Question, Reply
from rayprompt.lm.source import LMSource
from rayprompt.pairs import Answers
from rayprompt.scores import FloatArray, IntArray
from rayprompt.scoring.actor import ScorerInfo
from rayprompt.scoring.metrics import PoolMeter
from rayprompt.scoring.pool import NO_VECTORS, Cost, answer_of
from rayprompt.scoring.unloaded import UnloadedPool

MOST_DEATHS = 20  # of the actor, in one request of ours
MOST_PAIRS = 16  # of an order: what has come is told of in such portions
REFUSED = 8  # in a row, after which the service is asked whether it answers at all


@dataclass(frozen=True)
class RemoteTable:
    """Stands for the batch shapes, which an LM behind a service has not."""

    api: str
    labels: str

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        return {"layout": "endpoint", "api": self.api, "labels": self.labels}


class EndpointActor:
    """Sends requests, so many at once, for searches in turn; made into an async Ray actor by the pool."""

    def __init__(self, source: LMSource, key: Secret) -> None:
        assert source.endpoint is not None
        self.client = Client(source.endpoint, source.settings, key)
        self.request = ""
        self.most = self.free = source.settings.in_flight
        self.waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.meter = PoolMeter(source.name, self._state)

    async def ready(self) -> int:
        """Answers with its process id."""
        return os.getpid()

    async def run(self, search: str, order: bytes, request: str = "") -> bytes:
        """Ask pickled questions of one ``request`` for ``search``; gives pickled replies.

        In place of a reply may stand why there is none: the service does not answer, or refuses us.
        """
        questions: list[Question] = pickle.loads(order)
        if request != self.request:  # somebody asks anew: perhaps the service is there again
            self.request, self.client.dead = request, None
        tasks = [asyncio.ensure_future(self._ask(search, question)) for question in questions]
        self.meter.wake()
        began = time.perf_counter()
        try:
            found = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        self.meter.took(time.perf_counter() - began)
        replies = [one if isinstance(one, Reply) else _why(one) for one in found]
        return pickle.dumps(replies, protocol=5)

    async def refuses(self) -> str:
        """Why the service refuses a harmless question; empty where it does not."""
        reply = await self.client.ask(HARMLESS)
        return reply.why if reply.reason in UNANSWERED else ""

    async def stats(self) -> dict[str, int]:
        """Requests that were sent, those that had to be sent again, and those that wait for their turn."""
        waiting = sum(len(queue) for queue in self.waiting.values())
        return {"tried": self.client.tried, "failed": self.client.failed, "waiting": waiting}

    def _state(self) -> dict[str, float]:
        return {
            "rayprompt_queue_depth": sum(len(queue) for queue in self.waiting.values()),
            "rayprompt_in_flight": self.most - self.free,
            "rayprompt_requests_again": self.client.failed,
        }

    async def _ask(self, search: str, question: Question) -> Reply:
        await self._take(search)
        try:
            return await self.client.ask(question)
        finally:
            self._give()

    async def _take(self, search: str) -> None:
        if self.free > 0 and not self.waiting:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(search, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give()  # it was given just now
            raise

    def _give(self) -> None:
        """Hand a place on to the search whose turn it is."""
        while self.waiting:
            search, queue = next(iter(self.waiting.items()))
            turn = queue.popleft()
            if queue:
                self.waiting.move_to_end(search)
            else:
                del self.waiting[search]
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class EndpointPool(UnloadedPool):
    """A pool whose LM is behind a service: it takes text only, and may answer otherwise next time."""

    deterministic = False

    def __init__(self, source: LMSource, actor: Any) -> None:
        assert source.endpoint is not None
        self.source = source
        self.router = actor
        node = ray.get_runtime_context().get_node_id()
        lanes = source.settings.in_flight
        self.infos = [ScorerInfo("endpoint", "endpoint", lanes, node, 0, 0.0, ())]
        self.parts = {}
        self.device_class = "endpoint"
        self.endpoint = source.endpoint
        self.chats = source.endpoint.chat
        self.shapes = RemoteTable(self.endpoint.api, self.endpoint.labels)  # type: ignore[assignment]

    @classmethod
    def connect(cls, source: LMSource) -> EndpointPool:
        """Start the actor; the key comes from this process's environment and goes to the actor alone."""
        assert source.endpoint is not None
        remote: Any = ray.remote(EndpointActor)
        actor = remote.options(
            num_cpus=0, max_restarts=-1, max_concurrency=10_000, scheduling_strategy="DEFAULT"
        ).remote(source, api_key(source.endpoint.url))
        ray.get(actor.ready.remote())
        return cls(source, actor)

    def notes(self, parts: Mapping[str, EncodedPart]) -> list[str]:
        """A line where the LM writes because the service gives no log-probabilities."""
        why = self.endpoint.fallback
        line = f"{self.source.name}: the LM writes, and the label word that it names counts (--lm labels=text): {why}"
        return [*super().notes(parts), *([line] if why else [])]

    def stats(self) -> dict[str, int]:
        """Requests that were sent, and those that had to be sent again."""
        return dict(answer_of(self.router.stats.remote()))

    def answers(
        self,
        part: EncodedPart,
        prompts: Sequence[tuple[int, ...]],
        prompt: IntArray,
        example: IntArray,
        sample: IntArray | None = None,
        *,
        search: str = "report",
        soft: Sequence[SoftPrompt | None] | None = None,
        p0: Mapping[str, FloatArray] = NO_VECTORS,
    ) -> Iterator[tuple[IntArray, Answers, Cost]]:
        """As :meth:`ScoringPool.answers`; they come as they arrive."""
        words = tuple("".join(map(chr, word)).strip() for word in part.labels.words)
        if words and not self.endpoint.labels:
            raise InputError(f"model {self.endpoint.model}: this pool was started for a task in which the LM writes")
        samples = np.zeros(len(prompt), dtype=np.int64) if sample is None else sample
        size = max(1, min(MOST_PAIRS, -(-len(prompt) // (2 * self.infos[0].lanes))))
        waiting: deque[IntArray] = deque(np.arange(i, min(i + size, len(prompt))) for i in range(0, len(prompt), size))
        most = 2 * -(-self.infos[0].lanes // size) + 2

        def ask(rows: IntArray) -> bytes:
            questions = self._questions(part, prompts, prompt[rows], example[rows], samples[rows], words)
            return pickle.dumps(questions, protocol=5)

        running: dict[Any, tuple[IntArray, bytes]] = {}
        try:
            yield from self._arriving(search, running, waiting, most, ask, len(words))
        finally:
            for reference in running:  # nobody waits for them any more
                ray.cancel(reference)

    def _arriving(
        self,
        search: str,
        running: dict[Any, tuple[IntArray, bytes]],
        waiting: deque[IntArray],
        most: int,
        ask: Callable[[IntArray], bytes],
        labels: int,
    ) -> Iterator[tuple[IntArray, Answers, Cost]]:
        """Answers as they arrive. Pairs without one are held back until it is seen that the service answers at all."""
        deaths = refused = 0
        request = uuid.uuid4().hex
        failed: str | None = None
        held: list[tuple[int, Reply]] = []
        while waiting or running:
            while waiting and len(running) < most:
                rows = waiting.popleft()
                order = ask(rows)
                running[self.router.run.remote(search, order, request)] = (rows, order)
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                rows, order = running.pop(reference)
                try:
                    replies = pickle.loads(answer_of(reference))
                except RayActorError:
                    deaths += 1
                    if deaths > MOST_DEATHS * most:
                        raise ScoringError("the actor that speaks to the service is lost") from None
                    self._await(self.router)  # until Ray has started it anew
                    running[self.router.run.remote(search, order, request)] = (rows, order)
                    continue
                failed = failed or next((reply for reply in replies if isinstance(reply, str)), None)
                came = [(int(row), r) for row, r in zip(rows, replies, strict=True) if isinstance(r, Reply)]
                refusals = [(row, reply) for row, reply in came if reply.reason in UNANSWERED]
                answered = [(row, reply) for row, reply in came if reply.reason not in UNANSWERED]
                if answered:
                    yield _found(answered, labels)
                held += refusals
                refused = 0 if answered else refused + len(refusals)
                if held and failed is None and (refused >= REFUSED or not (waiting or running)):
                    failed, refused = self._refuses(), 0
                    if failed is None:
                        yield _found(held, labels)
                        held.clear()
                if failed is not None:
                    waiting.clear()  # what is on its way is paid for: it is still told
        if failed is not None:
            raise ScoringError(failed)

    def _refuses(self) -> str | None:
        """What to say where a harmless question gets no answer either; else the pairs alone are to blame."""
        why = answer_of(self.router.refuses.remote())
        return f"{self.endpoint.url}: refuses every request: {why}" if why else None

    def _questions(
        self,
        part: EncodedPart,
        prompts: Sequence[tuple[int, ...]],
        prompt: IntArray,
        example: IntArray,
        sample: IntArray,
        words: tuple[str, ...],
    ) -> list[Question]:
        rows = (part.row(int(e), prompts[int(p)])[0] for p, e in zip(prompt, example, strict=True))
        texts = ["".join(map(chr, row.tolist())) for row in rows]
        if part.decoding is None:
            return [Question(text, words) for text in texts]
        decoding = part.decoding
        return [Question(text, (), decoding, int(k)) for text, k in zip(texts, sample, strict=True)]

    def no_lm(self) -> InputError:
        return InputError(f"model {self.source.name}: takes text only; what works with vectors needs an LM loaded here")


def _why(error: BaseException) -> str:
    if isinstance(error, ScoringError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _found(came: Sequence[tuple[int, Reply]], labels: int) -> tuple[IntArray, Answers, Cost]:
    """Rows, answers and cost of some replies."""
    answers = Answers.empty(len(came), labels)
    for i, (_, reply) in enumerate(came):
        answers.tokens[i], answers.seconds[i] = reply.tokens, reply.seconds
        answers.reason[i] = reply.reason
        if answers.completion is not None and answers.written is not None and answers.cut is not None:
            answers.completion[i], answers.written[i], answers.cut[i] = reply.completion, reply.written, reply.cut
        elif reply.log_probs is not None:
            answers.label_log_probs[i] = reply.log_probs
    return np.array([row for row, _ in came]), answers, Cost(sum(reply.tries for _, reply in came))
