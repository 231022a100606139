"""The scoring actor: one LM on one device, fed with orders by the router."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rayprompt.lm.bits import machine_of, same_bits
from rayprompt.lm.deep import hidden_stds
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.judges import Judges
from rayprompt.lm.loads import Load, fill_of
from rayprompt.lm.projection import Bounded
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import Layout
from rayprompt.lm.soft import SoftBlock
from rayprompt.lm.source import LMSource
from rayprompt.lm.tuning import Tuned, TuningPlan, tune
from rayprompt.lm.write import Draft
from rayprompt.pairs import Answers
from rayprompt.scores import FloatArray, IntArray
from rayprompt.scoring.metrics import FillMeter

MOST_PARTS = 64  # of tasks, whose examples are kept
BLOCK_BYTES = 16 * 1024**2  # of soft prompts that are kept, as they travel


@dataclass(frozen=True)
class BatchResult:
    """Answers to an order, the n pairs of its loads; ``breaks``: passes that were cut in two for lack of memory.

    ``machine`` is the class of the machine that gave them: Ray may start a scorer again on another one.
    """

    answers: Answers
    breaks: int
    machine: str


@dataclass(frozen=True)
class ScorerInfo:
    """What a ready actor says of itself."""

    device: str
    dtype: str
    lanes: int
    node: str
    pid: int
    load_seconds: float
    gpus: tuple[int, ...]
    layout: Layout = Layout("padded")
    tokens: int = 512  # of a forward pass that finds room
    cache_bytes: float = 0.0  # of a token's keys and values while the LM writes
    window: int | None = None  # tokens that it looks back where it does not look back on all
    machine: str = ""  # its class, see lm/bits.py
    same_bits: bool = True  # whether it gave the same bits at other addresses


def cuda_is_available() -> bool:
    """Whether torch finds a GPU in this process."""
    import torch

    return torch.cuda.is_available()


class ScorerActor:
    """Holds an LM; made into a Ray actor by the pool. ``lanes`` orders run side by side, a thread each."""

    def __init__(self, source: LMSource, lanes: int, use_gpu: bool) -> None:
        started = time.perf_counter()
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        self.source = source
        # Ray's GPUs are logical: a test may declare some on a machine that has none.
        self.device = "cuda" if use_gpu and cuda_is_available() else "cpu"
        self.scorer = self.load()
        self.machine = machine_of(self.scorer.device, self.scorer.dtype)
        self.same_bits = same_bits(self.scorer)
        self.parts: OrderedDict[str, EncodedPart] = OrderedDict()
        self.done = 0  # loads, of all orders
        self.blocks: Bounded[SoftBlock] = Bounded(BLOCK_BYTES, lambda block: block.nbytes)
        self.judges = Judges(self.device)
        self.lanes = lanes
        self.meter = FillMeter(source.name, ray.get_runtime_context().get_actor_name() or "")
        self.gate = threading.BoundedSemaphore(lanes)
        self.load_seconds = time.perf_counter() - started

    def __repr__(self) -> str:
        # Ray asks for this after a failed constructor too: it may rest on the first assignments only.
        return f"Scorer({self.source.name}, {self.device})"

    def load(self) -> LMScorer:
        """What scores; the LM in this process."""
        return LMScorer(self.source, self.device)

    @ray.method(concurrency_group="health")
    def progress(self) -> int:
        """How many loads it has done: one whose process or device stands still says the same for ever, or nothing."""
        return self.done

    def ready(self) -> ScorerInfo:
        """Answers once the LM is loaded."""
        return ScorerInfo(
            device=self.device,
            dtype=str(self.scorer.dtype).removeprefix("torch."),
            lanes=self.lanes,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            load_seconds=self.load_seconds,
            gpus=tuple(int(i) for i in ray.get_gpu_ids()),
            layout=self.scorer.layout,
            tokens=self.scorer.tokens,
            cache_bytes=self.scorer.cache_bytes,
            window=self.scorer.window,
            machine=self.machine,
            same_bits=self.same_bits,
        )

    def score(self, order: bytes, part: list[Any] | None, soft: list[Any] | None = None) -> bytes | None:
        """Score an order, the pickled loads of one part, one after the other; gives a pickled :class:`BatchResult`.

        ``part`` holds the reference to the part's examples. It travels only where it is wanted: None is answered by
        None if the actor does not have them. ``soft`` holds the key of the soft prompts and the reference to them.
        """
        loads: list[Load] = pickle.loads(order)
        block = None if soft is None else self._block(soft)
        key = loads[0].part
        if part is None and key not in self.parts:
            return None
        own = self._part(key, part)
        result = Answers.empty(sum(len(load.prompt) for load in loads), len(own.labels))
        breaks, done = 0, 0
        with self.gate:  # one more call than there are lanes is let in, so that the next is at hand
            for load in loads:
                started = time.perf_counter()
                answers, broken = self._answer(load, own, block)
                answers.seconds[:] = (time.perf_counter() - started) / len(answers)
                self._look(load, own)
                self.done += 1
                result.put(np.arange(done, done + len(answers)), answers)
                done, breaks = done + len(answers), breaks + broken
        return pickle.dumps(BatchResult(result, breaks, self.machine), protocol=5)

    def _part(self, key: str, part: list[Any] | None) -> EncodedPart:
        """Examples by their key; those that were not asked for for long are forgotten."""
        found = self.parts.get(key)
        if found is None:
            assert part is not None
            found = ray.get(part[0])
        self.parts[key] = found
        self.parts.move_to_end(key)
        while len(self.parts) > MOST_PARTS:
            self.parts.popitem(last=False)
        return found

    def _look(self, load: Load, part: EncodedPart) -> None:
        self.meter.look(lambda: fill_of(load, part))

    def _answer(self, load: Load, part: EncodedPart, block: SoftBlock | None) -> tuple[Answers, int]:
        if isinstance(load, Draft):
            return self.scorer.write(load, part)
        log_probs, tokens, breaks = self.scorer.score(load, part, block)
        return Answers(log_probs, tokens, np.empty(len(tokens), dtype=np.float32)), breaks

    def nearest(self, block: SoftBlock, allowed: IntArray) -> list[IntArray]:
        """The (length,) tokens of ``allowed`` that are nearest to a soft prompt; and that without its initial ones."""
        with self.gate:
            return [self.scorer.soft.nearest(block, 0, allowed, other=other) for other in (False, True)]

    def vectors(self, block: SoftBlock) -> dict[int, FloatArray]:
        """(S, length, width) the vectors of some soft prompts, by layer."""
        with self.gate:
            found = self.scorer.soft.vectors(block, np.arange(len(block.z)))
            return {layer: different[which].cpu().numpy() for layer, (different, which) in found.layers.items()}

    def embed(self, rows: list[IntArray]) -> FloatArray:
        """(N, d) the mean of the LM's last hidden states of each row of token ids."""
        with self.gate:
            return self.scorer.embed(rows)

    def judge(self, what: str, given: tuple[Any, ...], columns: list[list[str]]) -> FloatArray:
        """(N, k) what models other than the LM say of N texts, see :class:`rayprompt.lm.judges.Judges`."""
        with self.gate:
            return self.judges.run(what, given, columns)

    def hidden_stds(self, part: list[Any], key: str, block: SoftBlock, layers: tuple[int, ...]) -> dict[int, float]:
        """The standard deviations of what enters layers, see :func:`rayprompt.lm.deep.hidden_stds`."""
        own = self._part(key, part)
        with self.gate:
            return hidden_stds(self.scorer, own, block, layers)

    def tune(self, part: list[Any], key: str, gold: IntArray, block: SoftBlock, plan: TuningPlan, seed: int) -> Tuned:
        """Tune a soft prompt on the examples of a part, which has that key; each step takes a lane, and no longer."""
        return tune(self.scorer, self._part(key, part), gold, block, plan, seed=seed, gate=self.gate)

    def _block(self, soft: list[Any]) -> SoftBlock:
        key, reference = soft
        return self.blocks.get(key, lambda: ray.get(reference).copy())  # what is not copied stays in the object store
