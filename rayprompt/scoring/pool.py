"""ScoringPool: the actors and the only door to the LM."""

from __future__ import annotations

import contextlib
import pickle
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from rayprompt.candidate import SoftPrompt, Subspace, digest
from rayprompt.errors import InputError, ScoringError, last_line
from rayprompt.lm.embed import token_ids
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.joined import by_form
from rayprompt.lm.judges import judges_here
from rayprompt.lm.loads import Request
from rayprompt.lm.settings import shown
from rayprompt.lm.shapes import DeviceClass, PackTable, ShapeTable, bucket, table_of
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import LMSource, load_tokenizer
from rayprompt.lm.tuning import Tuned, TuningPlan
from rayprompt.lm.write import WriteTable
from rayprompt.pairs import Answers
from rayprompt.scores import FloatArray, IntArray
from rayprompt.scoring.actor import BatchResult, ScorerActor, ScorerInfo
from rayprompt.scoring.cluster import await_room, largest_machine, most_resources, plan_scorers
from rayprompt.scoring.keeper import (
    MOST_START_DEATHS,
    NAMESPACE,
    RESTART_PAUSE_SECONDS,
    START_TIMEOUT_SECONDS,
    Keeper,
    KeeperPlan,
    KeeperThread,
)
from rayprompt.scoring.orders import Order, cut_orders
from rayprompt.scoring.router import Answer
from rayprompt.scoring.size import Scorers, shared_name

MOST_ROUTER_DEATHS = 20
ROUTER_PAUSE_SECONDS = 0.1
EMBED_ROWS = 256  # texts that a scorer embeds or judges at a time
MOST_JUDGED = 1 << 20  # texts whose judgements are remembered


NO_VECTORS: Mapping[str, FloatArray] = MappingProxyType({})


@dataclass(frozen=True)
class Cost:
    """What answers took besides tokens and seconds.

    ``lm_evaluations`` counts the pairs the LM ran, again after a loss; ``breaks`` the batches cut for lack of memory.
    """

    lm_evaluations: int = 0
    breaks: int = 0


@dataclass
class PairResult(Answers):
    """Answers to P pairs, in the order asked, and their cost."""

    lm_evaluations: int = 0
    breaks: int = 0


class Keeping(Protocol):
    """What goes on beside the driver for a pool."""

    def close(self) -> None:
        """It ends."""


class ScoringPool:
    """LM scoring actors with a router in front. Picklable: trials get a copy that talks to the same actors.

    One actor per GPU (``num_gpus=1``, or a share); without GPUs one actor with a share of the CPU's threads.
    """

    deterministic = True  # the same pair has the same answer whenever it is asked for
    chats = False  # whether the LM ends its answers by itself, so that one that was cut is none
    loaded = True  # by scorers of its own
    namespace: str | None = None  # where the names of its actors are known
    keeper: Keeping | None = None
    caller = ""  # before the names of its searches
    replays: str | None = None  # the store that answers where nothing is run
    earlier: tuple[str, ...] = ()  # other machine classes whose scores this study goes on with

    actor: type[ScorerActor] = ScorerActor

    def __init__(
        self,
        source: LMSource,
        router: Any,
        infos: list[ScorerInfo],
        *,
        namespace: str | None = None,
        keeper: Keeping | None = None,
    ) -> None:
        self.source = source
        self.router = router
        self.infos = infos  # of the scorers that were there at the start; others that join are like them
        self.parts: dict[str, Any] = {}
        self.namespace = namespace
        self.keeper = keeper
        self.device: DeviceClass = "cuda" if infos[0].device == "cuda" else "cpu"
        self.device_class = infos[0].machine
        self.shapes = self._table()
        self.pass_seconds: dict[bool, float] = {}  # of passes that read (True) and that write
        self.lanes = sum(info.lanes for info in infos)  # forward passes that run side by side, as last heard

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "keeper": None}

    @property
    def window(self) -> int:
        """Orders that are on their way at once."""
        return 4 * self.lanes

    @classmethod
    def start(
        cls,
        source: LMSource,
        *,
        scorers: Scorers = None,
        gpus_per_scorer: float | None = None,
        spare_gpu: float = 0.0,
    ) -> ScoringPool:
        """Start the actors on the connected Ray cluster and wait until as many as there must be have loaded the LM.

        They end with :meth:`shutdown`, or with this process.

        Args:
            source: the LM.
            scorers: how many actors: a number; ``MIN:MAX``, which starts with what there is, asks an autoscaler for
                more while there is more to do than they take, and lets go of those without work; ``auto`` or None is
                one per GPU, also of machines that join, or one where there is no GPU; ``pool:NAME`` takes those of a
                pool that is up.
            gpus_per_scorer: share of a GPU of each actor; None is 1 where the cluster has GPUs, else 0.
            spare_gpu: share of a GPU that they leave to the searches' own work, where the cluster has GPUs.

        Raises:
            InputError: the cluster cannot hold that many.
            ScoringError: an LM did not load.
        """
        if source.replay:
            from rayprompt.scoring.replay import ReplayPool

            return ReplayPool(source)
        if source.endpoint is not None:
            from rayprompt.scoring.endpoint import EndpointPool

            return EndpointPool.connect(source)
        shared = shared_name(scorers)
        if shared is not None:
            return cls._join(shared, source, gpus_per_scorer, spare_gpu)
        there, limit = ray.cluster_resources(), most_resources()
        plan = plan_scorers(there, scorers, gpus_per_scorer, spare_gpu, limit, largest_machine())
        await_room(plan)
        keeper = Keeper(KeeperPlan.of(source, plan, cls.actor))
        infos = keeper.start()
        return cls(source, keeper.router, infos, keeper=KeeperThread(keeper))

    @classmethod
    def _join(cls, name: str, source: LMSource, gpus_per_scorer: float | None, spare_gpu: float) -> ScoringPool:
        from rayprompt.scoring.shared import Touch, join

        if gpus_per_scorer is not None:
            raise InputError(
                f"--gpus-per-scorer {gpus_per_scorer:g}: pool {name} has its scorers already; leave it out"
            )
        found = join(name, source, spare_gpu)
        pool = cls(source, found.router, list(found.infos), namespace=NAMESPACE, keeper=Touch(found.router))
        pool.caller = f"{uuid.uuid4().hex[:8]}/"  # searches of several studies may have one name
        return pool

    @property
    def same_bits(self) -> bool:
        """Whether every scorer, when it loaded the LM, gave the same bits at other addresses and in another order."""
        return all(info.same_bits for info in self.infos)

    @property
    def unsteady(self) -> list[str]:
        """A line that says that the same bits are not promised; nothing where they are."""
        if self.same_bits:
            return []
        return [
            f"the same bits are not promised: on this machine ({self.device_class}) the last bits of a score of "
            f"{self.source.name} depend on where its data lies in memory"
        ]

    def content(self, part: EncodedPart | None = None) -> dict[str, Any]:
        """What decides the scores of a part, of one that is read unless said, on the side of the machine."""
        table = self.shapes if part is None else self.table_for(part)
        return {
            "dtype": self.infos[0].dtype,
            "device_class": self.device_class,
            "shapes": digest(table.to_json()),
            **({"layout": layout} if (layout := self.infos[0].layout.to_json()) else {}),
        }

    def _table(self) -> ShapeTable | PackTable:
        """The shapes of forward passes: inputs end to end where the LM can take them so, else padded rows."""
        return table_of(self.device, self.infos[0].layout.token_bytes, self.source.max_length, self.tokens)

    def table_for(self, part: EncodedPart) -> Any:
        """The shapes of forward passes for a part: those that read, or those that write."""
        if part.decoding is None:
            return self.shapes
        info = self.infos[0]
        window = min((i.window for i in self.infos if i.window is not None), default=None)
        return WriteTable.of(self.device, self.source.settings.cache, info.cache_bytes, window)

    @property
    def tokens(self) -> int:
        """Of a forward pass: what finds room on every scorer."""
        return min(info.tokens for info in self.infos)

    def prefix_bytes(self, part: EncodedPart) -> int:
        """What the keys and values of a part's texts take on a scorer, where many prompts stand behind a text."""
        if not isinstance(self.shapes, PackTable) or self.shapes.reuse(part) != "text":
            return 0
        return int(bucket(part.starts).sum() * (self.infos[0].layout.token_bytes or 0))

    def keeps(self, part: EncodedPart) -> bool:
        """Whether scorers keep the keys and values of a part's texts; else they compute them for every order."""
        return self.prefix_bytes(part) <= self.source.settings.cache

    def reuse(self, parts: Mapping[str, EncodedPart], space: Subspace | None = None) -> dict[str, Any]:
        """What is computed once and shared, for study.yaml: ``text`` = by all prompts behind one, ``prompt``, ``none``.

        Of every part the bytes that the keys and values of its texts take, and whether a scorer keeps them.
        """
        if not isinstance(self.shapes, PackTable):
            return {"shared": "none"}
        front = 0 if space is None else space.front
        shared = {name: self.shapes.reuse(part, front) for name, part in parts.items()}
        content: dict[str, Any] = {"shared": next(iter(shared.values())), "cache_bytes": self.source.settings.cache}
        if content["shared"] == "text":
            content["bytes_a_token"] = self.infos[0].layout.token_bytes
            content["texts"] = {
                name: {"bytes": self.prefix_bytes(part), "kept": self.keeps(part)} for name, part in parts.items()
            }
        return content

    def notes(self, parts: Mapping[str, EncodedPart]) -> list[str]:
        """Lines on what takes longer (inputs that share no passes, texts without room), and on bits not promised."""
        keep = shown(self.source.settings.cache)
        writes = any(part.decoding is not None for part in parts.values())
        longest = max((int(part.base_lengths.max()) for part in parts.values() if len(part)), default=0)
        slow = self.infos[0].layout.notes(self.source.name, longest, writes=writes)
        return [*slow, *self.unsteady] + [
            f"the keys and values of the {len(part):,} texts of {name} take {shown(self.prefix_bytes(part))}; scorers "
            f"of {self.source.name} keep {keep} (--lm cache): they are computed for every order"
            for name, part in parts.items()
            if not self.keeps(part)
        ]

    def add(self, part: EncodedPart) -> None:
        """Make a part's examples known to the actors (put into the object store once)."""
        if part.key not in self.parts:
            self.parts[part.key] = ray.put(part)

    def score_pairs(
        self, part: EncodedPart, prompts: Sequence[tuple[int, ...]], prompt: IntArray, example: IntArray, **how: Any
    ) -> PairResult:
        """Score P pairs and wait for all answers; arguments are those of :meth:`answers`."""
        result = PairResult(**vars(Answers.empty(len(prompt), len(part.labels))))
        for rows, some, cost in self.answers(part, prompts, prompt, example, **how):
            result.put(rows, some)
            result.lm_evaluations += cost.lm_evaluations
            result.breaks += cost.breaks
        return result

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
        """Answers to P pairs, ``prompts[prompt[i]]`` on example ``example[i]`` of ``part``: (their rows, them, cost).

        They come all at once, but where asking again would give others: there as they arrive.

        Args:
            part: examples known through :meth:`add`.
            prompts: token ids; of a soft prompt those that stand at its place.
            prompt, example, sample: (P,) the pairs; ``sample``, where the LM writes, says which of its answers.
            search: who asks; searches share the pool fairly.
            soft: for each prompt the soft prompt that it is, or None.
            p0: initial vectors of soft prompts, by digest.

        Raises:
            InputError: a prompt does not fit the LM.
            ScoringError: the LM raised, or the pool is lost.
        """
        for rows, own, given, numbers, examples in by_form(part, prompts, prompt, example, soft):
            self.add(own)
            some = None if sample is None else sample[rows]
            keep = own.decoding is None and self.keeps(own)
            orders = self._orders(
                Request(own, given, numbers, examples, keep=keep, sample=some), soft if own is part else None, p0
            )
            result = Answers.empty(len(rows), len(own.labels))
            evaluations = breaks = 0
            for order, answer, tries in self._run_orders(own, orders, search):
                result.put(order.rows, answer.answers)
                evaluations += len(order.rows) * tries
                breaks += answer.breaks
                self._learn(own, order, answer)
            if len(rows):
                yield rows, result, Cost(evaluations, breaks)

    def _run_orders(
        self, part: EncodedPart, orders: Sequence[Order], search: str
    ) -> Iterator[tuple[Order, BatchResult, int]]:
        """Have orders run; each with its result, and to how many scorers it was sent."""
        running: dict[Any, Order] = {}
        waiting = deque(orders)
        behind = sum(order.passes for order in orders)
        losses = 0
        while waiting or running:
            # Back-pressure: no more orders are on their way than the pool can have in its hands.
            while waiting and len(running) < self.window:
                order = waiting.popleft()
                reference = [self.parts[part.key]] if order.with_part else None
                behind = max(0, behind - order.passes)
                more = (order.content, reference, order.soft, order.passes, behind)
                running[self.router.run.remote(self.caller + search, *more)] = order
            done = list(running)
            if len(done) > 1:
                done, _ = ray.wait(done, num_returns=1)
            for ref in done:
                order = running.pop(ref)
                try:
                    answer, tries, self.lanes = _get(ref)
                except RayActorError:
                    # The router died. Ray starts it anew; what it had in its hands is asked for again.
                    losses += 1
                    if losses > self.window * MOST_ROUTER_DEATHS:
                        raise ScoringError("the router of the scoring pool is lost") from None
                    waiting.append(order)
                    time.sleep(ROUTER_PAUSE_SECONDS)
                    continue
                if answer is None:  # a scorer that is new, or was started again
                    waiting.appendleft(replace(order, with_part=True))
                    continue
                machine = self.infos[0].machine
                if answer.machine != machine:
                    raise ScoringError(
                        f"a scorer was started again on a machine of class {answer.machine}; the others are {machine}"
                    )
                yield order, answer, tries

    def nearest(
        self, prompt: SoftPrompt, allowed: IntArray, p0: Mapping[str, FloatArray] = NO_VECTORS
    ) -> list[tuple[int, ...]]:
        """The tokens of ``allowed`` (V,) whose embeddings are nearest to a soft prompt's vectors, in order.

        Then the same with the initial token of each place left out there; once where it makes no difference.
        """
        found = self._ask_scorer("nearest", block_of([prompt], p0), allowed)
        return list(dict.fromkeys(tuple(ids.tolist()) for ids in found))

    def vectors(self, prompt: SoftPrompt, p0: Mapping[str, FloatArray] = NO_VECTORS) -> dict[int, FloatArray]:
        """(length, width) the vectors A z + p0 of a soft prompt, by layer; a layer whose are zeros is left out."""
        found: dict[int, FloatArray] = self._ask_scorer("vectors", block_of([prompt], p0))
        return {layer: vectors[0] for layer, vectors in found.items()}

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(N, d) vectors of texts, by all scorers: the mean of the LM's last hidden states over the text's tokens.

        Raises:
            ScoringError: the LM raised, or the pool is lost.
        """
        rows = token_ids(load_tokenizer(self.source.location, **self.source.trust), texts, self.source.max_length)
        return self._shared_out("embed", (), [rows], [len(row) for row in rows])

    def judge(self, what: str, given: tuple[Any, ...], columns: Sequence[Sequence[str]]) -> FloatArray:
        """(N, k) what models other than the LM say of N texts, by all scorers; a text that stands twice is asked once.

        Args:
            what, given: the method of :class:`rayprompt.lm.judges.Judges` and its arguments.
            columns: texts, N in each.

        Raises:
            ScoringError: a model cannot be loaded or raised, or the pool is lost.
        """
        rows = list(zip(*columns, strict=True))
        known = self.judged.setdefault((what, given), {})
        new = list(dict.fromkeys(row for row in rows if row not in known))
        if len(known) + len(new) > MOST_JUDGED:
            known.clear()
            new = list(dict.fromkeys(rows))
        if new:
            texts = [list(column) for column in zip(*new, strict=True)]
            known.update(zip(new, self._judge(what, given, texts), strict=True))
        return np.array([known[row] for row in rows])

    @cached_property
    def judged(self) -> dict[Any, dict[tuple[str, ...], FloatArray]]:
        """What :meth:`judge` found, by what was asked and the texts."""
        return {}

    def _judge(self, what: str, given: tuple[Any, ...], columns: list[list[str]]) -> FloatArray:
        if not self.loaded:  # the LM is elsewhere, these models are not
            return judges_here().run(what, given, columns)
        return self._shared_out("judge", (what, given), columns, [len(text) for text in columns[0]], as_one=True)

    def _shared_out(
        self,
        method: str,
        before: tuple[Any, ...],
        columns: Sequence[Sequence[Any]],
        sizes: Sequence[int],
        *,
        as_one: bool = False,
    ) -> FloatArray:
        """(N, ...) what a method of scorers gives for N rows, by all; ``as_one``: it takes one list of columns."""
        order = sorted(range(len(sizes)), key=lambda i: sizes[i])
        cuts = [order[i : i + EMBED_ROWS] for i in range(0, len(order), EMBED_ROWS)]

        def of(cut: list[int]) -> list[Any]:
            some = [[column[i] for i in cut] for column in columns]
            return [*before, some] if as_one else [*before, *some]

        scorers = self.scorers()
        sent = [getattr(scorers[k % len(scorers)], method).remote(*of(cut)) for k, cut in enumerate(cuts)]
        found: dict[int, FloatArray] = {}
        for cut, reference in zip(cuts, sent, strict=True):
            try:
                values = ray.get(reference)
            except RayTaskError as error:
                raise ScoringError(f"the LM {self.source.name}: {last_line(error)}") from None
            except RayActorError:  # that scorer has died
                values = self._ask_scorer(method, *of(cut))
            found.update(zip(cut, values, strict=True))
        return np.array([found[i] for i in range(len(sizes))])

    def tune(
        self,
        part: EncodedPart,
        gold: IntArray,
        start: SoftPrompt,
        plan: TuningPlan,
        *,
        seed: int = 0,
        p0: Mapping[str, FloatArray] = NO_VECTORS,
    ) -> Tuned:
        """Tune a soft prompt with the LM's gradients, on one scorer: see :func:`rayprompt.lm.tuning.tune`.

        One that dies takes what it had done with it: the tuning begins anew, to the same bits on a CPU.

        Args:
            part, gold: the examples, and (E,) their label indices.
            start: where it begins.
            plan, seed: how, and the seed of the noise at the start.
            p0: initial vectors, by digest.

        Raises:
            InputError: the initial vectors are not at hand.
            ScoringError: the LM raised, the prompt does not fit it, or the pool is lost.
        """
        self.add(part)
        tuned: Tuned = self._ask_scorer(
            "tune", [self.parts[part.key]], part.key, gold, block_of([start], p0), plan, seed
        )
        return tuned

    def hidden_stds(
        self, part: EncodedPart, prompt: SoftPrompt, layers: Sequence[int], p0: Mapping[str, FloatArray] = NO_VECTORS
    ) -> dict[int, float]:
        """The standard deviation of the hidden states that enter each of ``layers``, with a soft prompt in the inputs.

        Raises:
            InputError: the initial vectors are not at hand.
            ScoringError: the LM raised, or the pool is lost.
        """
        self.add(part)
        found: dict[int, float] = self._ask_scorer(
            "hidden_stds", [self.parts[part.key]], part.key, block_of([prompt], p0), tuple(layers)
        )
        return found

    def recorded_scales(self, outline: Subspace) -> tuple[float, ...] | None:
        """Where a study is replayed, the scales of a deep prompt's subspace as it had them."""
        return None

    def scorers(self) -> list[Any]:
        """Handles of the scorers that take work now.

        Raises:
            ScoringError: there was none for long.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            with contextlib.suppress(RayActorError):  # the router died: Ray starts it anew
                found = []
                for name in ray.get(self.router.names.remote()):
                    with contextlib.suppress(ValueError):  # it has gone in the meantime
                        found.append(ray.get_actor(name, namespace=self.namespace))
                if found:
                    return found
            if time.monotonic() > deadline:
                raise ScoringError("the scoring actors are lost")
            time.sleep(RESTART_PAUSE_SECONDS)

    def _ask_scorer(self, method: str, *arguments: Any) -> Any:
        for attempt in range(MOST_START_DEATHS):
            found = self.scorers()
            scorer = found[attempt % len(found)]
            try:
                if attempt:
                    self._await(scorer)
                return ray.get(getattr(scorer, method).remote(*arguments))
            except RayTaskError as error:
                raise ScoringError(f"the LM {self.source.name}: {last_line(error)}") from None
            except RayActorError:
                time.sleep(RESTART_PAUSE_SECONDS)
        raise ScoringError("the scoring actors are lost")

    def _await(self, scorer: Any) -> None:
        """Wait until a scorer that may have died is there again: while Ray starts it anew, calls to it are refused."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                ray.get(scorer.ready.remote())
                return
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RESTART_PAUSE_SECONDS)

    def _orders(
        self,
        request: Request,
        soft: Sequence[SoftPrompt | None] | None,
        p0: Mapping[str, FloatArray],
    ) -> list[Order]:
        """Orders for all soft prompts, subspace by subspace, and for the text prompts."""
        lanes = self.lanes
        table = self.table_for(request.part)
        if soft is None or not any(soft) or request.part.decoding is not None:
            return cut_orders(table, lanes, self.pass_seconds.get(request.part.decoding is None), request)
        orders: list[Order] = []
        spaces = [None if s is None else s.subspace for s in soft]
        for space in dict.fromkeys(spaces):
            mine = np.array([s == space for s in spaces])
            members = np.flatnonzero(mine[request.prompt])
            some = replace(request, prompt=request.prompt[members], example=request.example[members])
            reference = None
            if space is not None:
                block = block_of([s for s in soft if s is not None and s.subspace == space], p0)
                reference = [block.key, ray.put(block)]
                if block.shared:  # what enters the first layer that differs is computed once an example
                    members = members[np.argsort(request.example[members], kind="stable")]
                    some = replace(request, prompt=request.prompt[members], example=request.example[members])
                some = replace(some, soft=np.where(mine, np.cumsum(mine) - 1, -1), front=space.front)
            found = cut_orders(table, lanes, self.pass_seconds.get(True), some, reference)
            orders += [replace(order, rows=members[order.rows]) for order in found]
        return orders

    def _learn(self, part: EncodedPart, order: Order, answer: BatchResult) -> None:
        """What a forward pass, or writing, takes, averaged over the last orders."""
        seconds, kind = float(answer.answers.seconds.sum()) / order.passes, part.decoding is None
        old = self.pass_seconds.get(kind)
        self.pass_seconds[kind] = max(1e-6, seconds if old is None else 0.8 * old + 0.2 * seconds)

    def shutdown(self) -> None:
        """Stop the actors; leave those of a pool that is shared."""
        if self.keeper is not None:
            self.keeper.close()
        elif self.namespace is None and self.router is not None:
            ray.kill(self.router)


def answer_of(ref: Any) -> Any:
    """What an actor answered.

    Raises:
        ScoringError: that is what it raised.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, ScoringError):
            raise ScoringError(str(cause.args[0] if cause.args else cause).splitlines()[-1]) from None
        raise


def _get(ref: Any) -> tuple[BatchResult | None, int, int]:
    answer: Answer = answer_of(ref)
    content, tries, lanes = answer
    return None if content is None else pickle.loads(content), tries, lanes
