"""Prompt tuning: a soft prompt found with the LM's gradients (Lester et al., 2021, arXiv 2104.08691).

What a search without gradients is measured against, for it sees more of the LM than any of them does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.adam import AdamW
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.forward import is_out_of_memory
from rayprompt.lm.rows import input_lengths, rows_of
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.soft import Injection, SoftBlock
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

MOST_ROWS = 64  # of a pass
MOST_TOKENS = {"cpu": 1024, "cuda": 8192}  # of a pass: what it keeps for its gradient must find room


@dataclass(frozen=True)
class TuningPlan:
    """How vectors are tuned.

    Attributes:
        steps: of AdamW, each over all examples.
        learning_rate: in units of the embeddings' standard deviation where the prompt is put in: behind a norm they
            are far longer than the word embeddings, and so one value does for both kinds of LM.
        checkpoints: how many states are given back, evenly spaced, the last one behind the last step.
        noise: standard deviation of what a seed adds to the start, in the same unit.
        weight_decay: of AdamW.

    Raises:
        InputError: a value is out of range.
    """

    steps: int = 60
    learning_rate: float = 0.1
    checkpoints: int = 5
    noise: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 1 <= self.checkpoints <= self.steps:
            raise InputError(
                f"tuning: {self.steps} steps and {self.checkpoints} checkpoints: both must be 1 or more, and every "
                "checkpoint needs a step"
            )
        for name in ("learning_rate", "noise", "weight_decay"):
            value, least = getattr(self, name), name == "learning_rate"
            if not 0 <= value < math.inf or (least and value == 0):
                raise InputError(f"tuning: {name}={value}: must be {'greater than 0' if least else '0 or more'}")

    @property
    def at(self) -> tuple[int, ...]:
        """(checkpoints,) the numbers of steps after which a state is kept."""
        return tuple(self.steps * (i + 1) // self.checkpoints for i in range(self.checkpoints))


@dataclass(frozen=True)
class TunedState:
    """Vectors (length, width) float32 after ``step`` steps, and their mean cross-entropy on the examples, in nats."""

    step: int
    vectors: FloatArray
    loss: float


@dataclass(frozen=True)
class Tuned:
    """What a tuning gives back, and what it cost.

    Attributes:
        start_loss: of the start with its noise.
        states: the checkpoints, in order.
        passes: examples that went through the LM, forward or backward: each way counts as one.
        seconds: from the first pass to the last.
    """

    start_loss: float
    states: tuple[TunedState, ...]
    passes: int
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """Some examples on the LM's device: ids (B, T), mask (B, T), where to read, where the prompt is, gold (B,)."""

    ids: torch.Tensor
    mask: torch.Tensor
    read: torch.Tensor
    start: torch.Tensor
    gold: torch.Tensor

    def halves(self) -> tuple[_Batch, _Batch]:
        """The two halves of it."""
        half = (len(self.ids) + 1) // 2
        columns = (self.ids, self.mask, self.read, self.start, self.gold)
        return _Batch(*(x[:half] for x in columns)), _Batch(*(x[half:] for x in columns))


class Tuner:
    """The cross-entropy of soft prompts on the examples of a part, and its gradient; the LM itself stays as it is.

    Args:
        scorer: the LM. Others may score with it at the same time.
        part, gold: the examples, and (E,) their label indices.
        block: its first prompt is the start.
    """

    def __init__(self, scorer: LMScorer, part: EncodedPart, gold: IntArray, block: SoftBlock) -> None:
        import torch

        if scorer.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # per calling thread, as LMScorer.score does
        self.scorer = scorer
        self.space = block.subspace
        # Through NumPy: what was made under inference_mode, by whoever scored this prompt before, takes no gradient.
        self.start: FloatArray = scorer.soft.embedded(block, np.zeros(1, dtype=np.int64))[0].cpu().numpy()
        self.labels = part.labels
        self.batches = list(self._batches(part, gold))
        self.count = len(gold)

    def _batches(self, part: EncodedPart, gold: IntArray) -> Iterator[_Batch]:
        """The examples with the prompt's tokens in them, sorted by length."""
        import torch

        device = self.scorer.device
        order = np.argsort(-input_lengths(part, self.space), kind="stable")
        most = self.scorer.rows(MOST_ROWS)
        for some, rows in rows_of(part, self.space, order, device, rows=most, tokens=MOST_TOKENS[device.type]):
            gold_of = torch.from_numpy(gold[some]).to(device)
            yield _Batch(rows.ids, rows.mask, rows.read, rows.start, gold_of)

    def unit(self) -> float:
        """The standard deviation of the longest examples' embeddings where the prompt is put in, positions included."""
        import torch

        batch = self.batches[0]
        with torch.no_grad():
            found = self.scorer.soft.site.embeddings(batch.ids[:, self.space.front :]).float()
            return float(found[batch.mask[:, self.space.front :] > 0].std())

    def loss(self, vectors: torch.Tensor) -> float:
        """The mean cross-entropy with ``vectors`` (length, width), in nats."""
        import torch

        with torch.no_grad():
            return sum(float(self._loss(vectors, batch)) for batch in self.batches)

    def gradient(self, vectors: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The same, and its gradient (length, width)."""
        import torch

        loss, gradient = 0.0, torch.zeros_like(vectors)
        todo = self.batches[::-1]
        while todo:
            batch = todo.pop()
            found = self._gradient(vectors, batch)
            if found is None:
                todo += batch.halves()[::-1]
                continue
            loss, gradient = loss + float(found[0]), gradient + found[1]
        return loss, gradient

    def _gradient(self, vectors: torch.Tensor, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A batch's share of loss and gradient; None where there is not memory enough for it."""
        import torch

        try:
            with torch.enable_grad():
                leaf = vectors.detach().requires_grad_()
                loss = self._loss(leaf, batch)
                (gradient,) = torch.autograd.grad(loss, leaf)
            return loss.detach(), gradient
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if vectors.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch.ids) == 1:
            raise ScoringError(f"out of memory on {vectors.device}: not even one input's gradient finds room")
        return None

    def _loss(self, vectors: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """A batch's share of the mean."""
        import torch

        front = self.space.front
        wide = vectors.expand(len(batch.ids), -1, -1)
        injection = Injection.from_start(
            lambda layer: wide if layer == 0 else None, len(vectors), batch.start, replace=front > 0
        )
        logits = self.scorer.forward(batch.ids, batch.mask, batch.read, self.labels, injection, front)
        total: torch.Tensor = torch.nn.functional.cross_entropy(logits.float(), batch.gold, reduction="sum")
        return total / self.count


def tune(
    scorer: LMScorer,
    part: EncodedPart,
    gold: IntArray,
    block: SoftBlock,
    plan: TuningPlan,
    *,
    seed: int = 0,
    gate: AbstractContextManager[object] | None = None,
) -> Tuned:
    """Tune the vectors of a soft prompt on examples: full batches, AdamW in float32, all else frozen.

    On a CPU the same arguments give the same bits.

    Args:
        scorer: the LM; others may score with it at the same time.
        part, gold: the examples, and (E,) their label indices.
        block: its first prompt is where it begins, but for the noise.
        plan: how.
        seed: of the noise.
        gate: entered for every step, so that others get their turn in between.

    Raises:
        InputError: the prompt does not fit the LM beside some example.
        ScoringError: there is not memory enough for a single input, or the loss is no longer a number.
    """
    import torch

    gate = nullcontext() if gate is None else gate
    started = time.perf_counter()
    states: list[TunedState] = []
    with torch.inference_mode(False), torch.no_grad():
        with gate:
            tuner = Tuner(scorer, part, gold, block)
            unit = tuner.unit()
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(tuner.start.shape, dtype=np.float32)
        vectors = torch.from_numpy(tuner.start + np.float32(plan.noise * unit) * noise).to(scorer.device)
        adam = AdamW(plan.learning_rate * unit, plan.weight_decay)
        for step in range(plan.steps):
            with gate:
                loss, gradient = tuner.gradient(vectors)
            if step == 0 or step in plan.at:
                states.append(_state(step, vectors, loss))
            vectors = adam.step(vectors, gradient)
        with gate:
            states.append(_state(plan.steps, vectors, tuner.loss(vectors)))
    passes = (2 * plan.steps + 1) * tuner.count
    return Tuned(states[0].loss, tuple(states[1:]), passes, time.perf_counter() - started)


def _state(step: int, vectors: torch.Tensor, loss: float) -> TunedState:
    if not math.isfinite(loss):
        raise ScoringError(f"tuning: the loss is {loss} after {step} steps; take a smaller learning_rate")
    return TunedState(step, vectors.cpu().numpy().copy(), loss)
