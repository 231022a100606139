"""RLPrompt's policy (Deng et al., 2022, arXiv 2205.12548, section 3): a frozen causal LM with a small trained MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from rayprompt.lm.backbone import Backbone, in_chunks
from rayprompt.lm.projection import Bounded
from rayprompt.scores import BoolArray, FloatArray, IntArray

PIECE = 2048  # columns of the head that are computed at a time on a CPU: their logits stay in its cache
STATES_BYTES = 256 * 1024**2  # of hidden states that are kept
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


@dataclass(frozen=True)
class Values:
    """What a policy says at U states.

    Attributes:
        q: (N,) logits of tokens that were taken; -inf where the fluency constraint forbids one.
        v, entropy: (U,) log-sum-exp of all logits, and entropy of the policy in nats.
        expected: (U, d) the mean embedding of the next token: the gradient of V, as that of Q is the token's own.
    """

    q: torch.Tensor
    v: torch.Tensor
    entropy: torch.Tensor
    expected: torch.Tensor


class Policy:
    """pi(token | source, tokens so far) = softmax(head(MLP(h))), h the frozen LM's hidden state, its head tied.

    No residual: what the LM itself would say next is not part of it. ``theta`` (P,) holds the MLP's parameters, and
    whoever trains it passes them in, so that the target network is the same function of other parameters.

    Args:
        trunk: the frozen LM.
        source: token ids that stand in front of every prompt; several: it is conditioned, and rows of prompts begin
            with a column that says which of them stands in front.
        actions: (A,) the token ids that a prompt may be made of; columns of logits are positions in it.
        bias: added to every logit.
        fluent: only tokens among the frozen LM's own likeliest so many may be taken; None = any.
        batch: the prompts that the LM reads at a time. Always so many: then the bits of one depend on nothing else.
    """

    def __init__(
        self,
        trunk: Backbone,
        source: IntArray | Sequence[IntArray],
        actions: IntArray,
        *,
        bias: float = 0.0,
        fluent: int | None = None,
        batch: int = 16,
    ) -> None:
        self.trunk = trunk
        self.conditioned = not isinstance(source, np.ndarray)
        self.sources: list[IntArray] = list(source) if self.conditioned else [np.asarray(source)]
        self.actions = actions
        rows = torch.from_numpy(actions).to(trunk.device)
        self.head = trunk.weight[rows]
        shift = torch.zeros(len(actions), device=trunk.device) if trunk.bias is None else trunk.bias[rows]
        self.shift = shift + bias
        self.own_shift = shift
        self.fluent = fluent
        self.batch = batch
        d = trunk.width
        self.shapes = ((UNITS, d), (UNITS,), (d, UNITS), (d,))
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        size = PIECE if trunk.device.type == "cpu" else len(actions)
        self.pieces = [slice(start, start + size) for start in range(0, len(actions), size)]
        self.states: Bounded[torch.Tensor] = Bounded(STATES_BYTES, lambda state: state.nbytes)

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

    def mlp(self, theta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(..., d) what the MLP makes of hidden states (..., d)."""
        w1, b1, w2, b2 = (
            part.view(shape) for part, shape in zip(torch.split(theta, self.sizes), self.shapes, strict=True)
        )
        return functional.linear(functional.linear(hidden, w1, b1).relu(), w2, b2)

    def logits(self, theta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(B, A) untruncated logits at hidden states (B, d); -inf where the fluency constraint forbids a token."""
        with torch.no_grad():
            logits = self._head(self.mlp(theta, hidden), self.shift)
            if self.fluent is not None:
                own = self._head(hidden, self.own_shift)
                logits.masked_fill_(own < self._least(own), float("-inf"))
        return logits

    def values(
        self,
        out: torch.Tensor,
        hidden: torch.Tensor,
        index: torch.Tensor,
        columns: torch.Tensor,
        *,
        gradient: bool = True,
    ) -> Values:
        """What the policy says at U states, a piece of the vocabulary at a time: all its logits never stand in memory.

        Args:
            out, hidden: (U, d) of the MLP, and what went into it.
            index, columns: (N,) the states where tokens were taken, and these.
            gradient: whether ``expected`` is wanted.
        """
        with torch.no_grad():
            own = None if self.fluent is None else self._head(hidden, self.own_shift, alone=True)
            least = None if own is None else self._least(own)
            q, most = out.new_empty(len(index)), out.new_full((len(out), 1), float("-inf"))
            mass, total = torch.zeros_like(most), torch.zeros_like(most)  # sums of exp and logit exp, over exp(most)
            expected = torch.zeros_like(out)
            for some in self.pieces:
                head = self.head[some]
                logits = torch.addmm(self.shift[some], out, head.t())
                if own is not None and least is not None:
                    logits.masked_fill_(own[:, some] < least, float("-inf"))
                here = (columns >= some.start) & (columns < some.stop)
                q[here] = logits[index[here], columns[here] - some.start]
                new = torch.maximum(most, logits.amax(-1, keepdim=True))
                base = new.masked_fill(new.isneginf(), 0.0)
                p = (logits - base).exp()
                fade, more = (most - base).exp(), p.sum(-1, keepdim=True)
                if least is not None:
                    logits.masked_fill_(logits.isneginf(), 0.0)
                total = fade * total + logits.mul_(p).sum(-1, keepdim=True)
                mass = fade * mass + more
                if gradient:
                    expected = torch.addmm(expected.mul_(fade), p, head)
                most = new
            v = most + mass.log()
            return Values(q, v[:, 0], (v - total / mass)[:, 0], expected / mass)

    def _head(self, out: torch.Tensor, shift: torch.Tensor, *, alone: bool = False) -> torch.Tensor:
        """(N, A) out (N, d) times the head: its pieces side by side, or ``alone`` on this thread."""
        logits = out.new_empty(len(out), len(self.head))

        def piece(i: int) -> None:
            some = self.pieces[i]
            torch.addmm(shift[some], out, self.head[some].t(), out=logits[:, some])

        if alone:
            for i in range(len(self.pieces)):
                piece(i)
        else:
            in_chunks(piece, len(self.pieces), out.device.type)
        return logits

    def _least(self, own: torch.Tensor) -> torch.Tensor:
        """(N, 1) what of the LM's own logits (N, A) a token must reach."""
        return own.topk(min(self.fluent or own.shape[-1], own.shape[-1]), dim=-1).values[..., -1:]

    @property
    def source(self) -> IntArray:
        """What stands in front of every prompt, unless it is conditioned."""
        return self.sources[0]

    def split(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """(B,) which source stands in front of each prompt, and (B, T) its columns."""
        if self.conditioned:
            return rows[:, 0], rows[:, 1:]
        return np.zeros(len(rows), dtype=np.int64), rows

    def write(
        self, theta: torch.Tensor, given: IntArray, sampling: Sampling, u: FloatArray, greedy: BoolArray
    ) -> IntArray:
        """(B, T) prompts, as columns of ``actions``: token by token, ids fed back, with a key/value cache.

        Args:
            theta: parameters.
            given: (B, T) columns that are fixed, -1 = to be written; behind the source's, where it is conditioned.
            sampling, u: how to draw, with uniform numbers (B, T) from [0, 1).
            greedy: (B,) where the likeliest token is taken instead.
        """
        taken = given.copy()
        source, columns = self.split(given)
        written, u = taken[:, given.shape[1] - columns.shape[1] :], u[:, given.shape[1] - columns.shape[1] :]
        for number, rows in self._of_sources(source):
            written[rows] = self._write(theta, columns[rows], sampling, u[rows], greedy[rows], number)
        return taken

    def _write(
        self,
        theta: torch.Tensor,
        given: IntArray,
        sampling: Sampling,
        u: FloatArray,
        greedy: BoolArray,
        source: int,
    ) -> IntArray:
        def choose(t: int, hidden: torch.Tensor) -> IntArray:
            logits = self.logits(theta, hidden if t else hidden[:1]).expand(len(hidden), -1)  # all begin alike
            drawn = sampling.draw(logits, u[:, t]).cpu().numpy()
            drawn[greedy] = logits[torch.from_numpy(greedy).to(logits.device)].argmax(-1).cpu().numpy()
            return np.where(given[:, t] >= 0, given[:, t], drawn)

        return self._read(given.shape[1], choose, source)

    def hidden(self, columns: IntArray) -> torch.Tensor:
        """(B, T, d) the frozen LM's states before each token of B prompts (B, T): for policy and target alike.

        It reads a prompt once: the states of those that were written or read before are kept.
        """
        source, own = self.split(columns)
        keys = [(number, *row) for number, row in zip(source.tolist(), own.tolist(), strict=True)]
        known = {key: state for key in keys if (state := self.states.find(key)) is not None}
        missing = np.array([key for key in dict.fromkeys(keys) if key not in known]).reshape(-1, own.shape[1] + 1)
        for number, rows in self._of_sources(missing[:, 0]):
            self._read(own.shape[1], partial(_given, missing[rows, 1:]), number, known)
        return torch.stack([known[key] for key in keys])

    def _of_sources(self, source: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Batches of rows behind the same source: its number, and their places among sources (B,)."""
        for number in dict.fromkeys(source.tolist()):
            members = np.flatnonzero(source == number)
            for rows in self._batches(len(members)):
                yield int(number), members[rows]

    def _batches(self, count: int) -> list[IntArray]:
        """(batch,) places 0 to count - 1, in batches of one size; what the last one lacks is its first again."""
        starts = range(0, count, self.batch)
        return [
            np.where(start + np.arange(self.batch) < count, start + np.arange(self.batch), start) for start in starts
        ]

    def _read(
        self,
        length: int,
        choose: Callable[[int, torch.Tensor], IntArray],
        source: int = 0,
        known: dict[tuple[int, ...], torch.Tensor] | None = None,
    ) -> IntArray:
        """(batch, length) columns, each chosen where the ones in front of it have led the LM; its states are kept."""
        hidden, cache = self.trunk.begin(self.sources[source].tolist(), self.batch)
        taken, states = [choose(0, hidden)], [hidden]
        for t in range(1, length):
            hidden, cache = self.trunk.step(self.actions[taken[-1]], cache)
            taken.append(choose(t, hidden))
            states.append(hidden)
        rows = np.stack(taken, axis=1)
        keys = ((source, *row) for row in rows.tolist())
        for key, state in zip(keys, torch.stack(states, dim=1), strict=True):
            self.states.put(key, state.clone())
            if known is not None:
                known[key] = state
        return rows


def _given(columns: IntArray, t: int, _: torch.Tensor) -> IntArray:
    return columns[:, t]


def repeated(columns: IntArray) -> FloatArray:
    """(B,) the share of tokens of each prompt (B, T) that stand in it already, further to the left."""
    seen: BoolArray = np.zeros(columns.shape, dtype=bool)
    for t in range(1, columns.shape[1]):
        seen[:, t] = (columns[:, :t] == columns[:, t : t + 1]).any(axis=1)
    return np.asarray(seen.mean(axis=1))
