"""RLPrompt's policy (Deng et al., 2022, arXiv 2205.12548, section 3): a frozen causal LM with a small trained MLP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from rayprompt.lm.backbone import Backbone, in_chunks
from rayprompt.scores import BoolArray, FloatArray, IntArray

CHUNK = 8  # prompts that are computed at a time, side by side with others on a CPU
UNITS = 2048  # of the hidden layer
GAIN = 1e-4  # of the Xavier-uniform weights at the start; biases begin at minus this: nearly uniform over all tokens


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: from the ``top_k`` likeliest, or the likeliest that make up ``top_p``; at a temperature."""

    top_k: int | None = 256
    top_p: float = 1.0
    temperature: float = 1.0

    def draw(self, logits: torch.Tensor, u: FloatArray) -> torch.Tensor:
        """(B,) columns drawn from logits (B, V), with uniform numbers (B,) from [0, 1)."""
        count = min(self.top_k or logits.shape[-1], logits.shape[-1])
        top = logits.topk(count, dim=-1)  # sorted
        scaled = (top.values.double() / self.temperature).masked_fill(top.values.isneginf(), float("-inf"))
        p = scaled.softmax(-1)
        before = p.cumsum(-1) - p
        p = torch.where(before < self.top_p, p, 0.0)  # the first is always kept
        mass = p.cumsum(-1)
        target = torch.from_numpy(u).to(logits.device)[:, None] * mass[:, -1:]
        place = (mass <= target).sum(-1, keepdim=True)
        last = (p > 0).sum(-1, keepdim=True) - 1
        return top.indices.gather(-1, torch.minimum(place, last))[:, 0]


class Policy:
    """pi(token | source, tokens so far) = softmax(head(MLP(h))), h the frozen LM's hidden state, its head tied.

    No residual: what the LM itself would say next is not part of it. ``theta`` (P,) holds the MLP's parameters, and
    whoever trains it passes them in, so that the target network is the same function of other parameters.

    Args:
        trunk: the frozen LM.
        source: token ids that stand in front of every prompt.
        actions: (A,) the token ids that a prompt may be made of; columns of logits are positions in it.
        bias: added to every logit.
        fluent: only tokens among the frozen LM's own likeliest so many may be taken; None = any.
    """

    def __init__(
        self, trunk: Backbone, source: IntArray, actions: IntArray, *, bias: float = 0.0, fluent: int | None = None
    ) -> None:
        self.trunk = trunk
        self.source = source
        self.actions = actions
        rows = torch.from_numpy(actions).to(trunk.device)
        self.head = trunk.weight[rows]
        shift = torch.zeros(len(actions), device=trunk.device) if trunk.bias is None else trunk.bias[rows]
        self.shift = shift + bias
        self.own_shift = shift
        self.fluent = fluent
        d = trunk.width
        self.shapes = ((UNITS, d), (UNITS,), (d, UNITS), (d,))
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]

    @property
    def parameters(self) -> int:
        """P: trained numbers."""
        return sum(self.sizes)

    def start(self, rng: np.random.Generator) -> torch.Tensor:
        """(P,) fresh parameters: Xavier-uniform weights of gain 1e-4, biases -1e-4."""
        parts = []
        for shape in self.shapes:
            if len(shape) == 2:
                most = GAIN * (6 / (shape[0] + shape[1])) ** 0.5
                parts.append(rng.uniform(-most, most, size=shape).reshape(-1))
            else:
                parts.append(np.full(shape, -GAIN))
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(self.trunk.device)

    def logits(self, theta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., A) untruncated logits at hidden states (..., d); -inf where the fluency constraint forbids a token."""
        w1, b1, w2, b2 = (
            part.view(shape) for part, shape in zip(torch.split(theta, self.sizes), self.shapes, strict=True)
        )
        out = functional.linear(functional.linear(hidden, w1, b1).relu(), w2, b2)
        logits = functional.linear(out, self.head, self.shift)
        if self.fluent is not None:
            own = functional.linear(hidden, self.head, self.own_shift)
            least = own.topk(min(self.fluent, own.shape[-1]), dim=-1).values[..., -1:]
            logits = logits.masked_fill(own < least, float("-inf"))
        return logits

    def write(
        self, theta: torch.Tensor, given: IntArray, sampling: Sampling, u: FloatArray, greedy: BoolArray
    ) -> IntArray:
        """(B, T) prompts, as columns of ``actions``: token by token, ids fed back, with a key/value cache.

        Args:
            theta: parameters.
            given: (B, T) columns that are fixed, -1 = to be written.
            sampling, u: how to draw, with uniform numbers (B, T) from [0, 1).
            greedy: (B,) where the likeliest token is taken instead.
        """
        starts = range(0, len(given), CHUNK)

        def piece(i: int) -> IntArray:
            some = slice(starts[i], starts[i] + CHUNK)
            return self._write(theta, given[some], sampling, u[some], greedy[some])

        return np.concatenate(in_chunks(piece, len(starts), self.trunk.device.type))

    def _write(
        self, theta: torch.Tensor, given: IntArray, sampling: Sampling, u: FloatArray, greedy: BoolArray
    ) -> IntArray:
        taken = np.empty_like(given)
        length = given.shape[1]
        hidden, cache = self.trunk.begin(self.source.tolist(), len(given))
        for t in range(length):
            with torch.no_grad():
                logits = self.logits(theta, hidden)
            drawn = sampling.draw(logits, u[:, t]).cpu().numpy()
            likeliest = logits.argmax(-1).cpu().numpy()
            taken[:, t] = np.where(given[:, t] >= 0, given[:, t], np.where(greedy, likeliest, drawn))
            if t + 1 < length:
                hidden, cache = self.trunk.step(self.actions[taken[:, t]], cache)
        return taken

    def hidden(self, columns: IntArray) -> torch.Tensor:
        """(B, T, d) the frozen LM's states before each token of B prompts (B, T): one pass, for policy and target."""
        return self.trunk.hidden(self.source.tolist(), self.actions[columns])


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """(...,) the entropy of softmax(logits) (..., A), in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(-1)


def repeated(columns: IntArray) -> FloatArray:
    """(B,) the share of tokens of each prompt (B, T) that stand in it already, further to the left."""
    seen: BoolArray = np.zeros(columns.shape, dtype=bool)
    for t in range(1, columns.shape[1]):
        seen[:, t] = (columns[:, :t] == columns[:, t : t + 1]).any(axis=1)
    return np.asarray(seen.mean(axis=1))
