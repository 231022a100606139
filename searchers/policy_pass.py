"""Prompts through the policy and back: each distinct beginning of theirs once, in pieces side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from rayprompt.lm.backbone import in_chunks
from rayprompt.scores import IntArray
from searchers.policy import Policy, Values

LEAST, MOST = 32, 128  # states of a piece; which are cut in two where there are fewer


@dataclass(frozen=True)
class Piece:
    """Some states, and the tokens that were taken there.

    Attributes:
        states: places among the distinct states.
        tokens: (n,) places of the tokens among all B T.
        index, columns: (n,) places of their states in the piece, and the tokens as columns of the logits.
    """

    states: slice
    tokens: torch.Tensor
    index: torch.Tensor
    columns: torch.Tensor


class Pass:
    """Prompts (B, T), as columns of a policy's actions. What it says of them depends on its parameters alone.

    Those of a conditioned policy have a column more in front: their sources.
    """

    def __init__(self, policy: Policy, given: IntArray) -> None:
        self.policy = policy
        source, rows = policy.split(given)
        self.shape = rows.shape
        first, index = beginnings(rows, source)
        device = policy.trunk.device
        self.index = torch.from_numpy(index).to(device)
        self.hidden = policy.hidden(given).flatten(0, 1)[torch.from_numpy(first).to(device)]
        size = min(MOST, max(LEAST, -(-len(first) // 2)))
        self.pieces = []
        for start in range(0, len(first), size):
            tokens = np.flatnonzero((index >= start) & (index < start + size))
            parts = (tokens, index[tokens] - start, rows.reshape(-1)[tokens])
            self.pieces.append(Piece(slice(start, start + size), *(torch.from_numpy(x).to(device) for x in parts)))

    def read(self, theta: torch.Tensor, *, gradient: bool = False) -> Read:
        """What the policy with parameters ``theta`` says; with ``gradient`` ready to go back."""

        def look(i: int) -> tuple[torch.Tensor, torch.Tensor, Values]:
            piece, leaf = self.pieces[i], theta.detach().requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                out = self.policy.mlp(leaf, self.hidden[piece.states])
            states = self.hidden[piece.states]
            values = self.policy.values(out.detach(), states, piece.index, piece.columns, gradient=gradient)
            return leaf, out, values

        return Read(self, in_chunks(look, len(self.pieces), theta.device.type))


class Read:
    """What a policy says of the prompts of a pass.

    Attributes:
        q, v, entropy: (B, T) logit of each token, log-sum-exp of all logits there, and the entropy there.
    """

    def __init__(self, of: Pass, found: list[tuple[torch.Tensor, torch.Tensor, Values]]) -> None:
        self.of = of
        self.found = found
        self.q = found[0][1].new_empty(of.shape)
        for piece, (_, _, values) in zip(of.pieces, found, strict=True):
            self.q.view(-1)[piece.tokens] = values.q
        self.v, self.entropy = (
            torch.cat([getattr(values, name) for _, _, values in found])[of.index].view(of.shape)
            for name in ("v", "entropy")
        )

    def back(self, by_q: torch.Tensor, by_v: torch.Tensor) -> torch.Tensor:
        """(P,) the gradient of a loss in theta, from its gradients (B, T) in Q and V."""

        def gradient(i: int) -> torch.Tensor:
            piece, (leaf, out, values) = self.of.pieces[i], self.found[i]
            here = functional.one_hot(piece.index, len(out)).to(out.dtype).t()
            q, v = (by.view(-1)[piece.tokens, None] for by in (by_q, by_v))
            by_out = here @ (q * self.of.policy.head[piece.columns]) + (here @ v) * values.expected
            return torch.autograd.grad(out, leaf, by_out)[0]

        parts = in_chunks(gradient, len(self.of.pieces), by_q.device.type)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total


def beginnings(rows: IntArray, source: IntArray) -> tuple[IntArray, IntArray]:
    """(U,) where the distinct beginnings of prompts (B, T) occur first, and (B T,) which of them each token follows.

    ``source`` (B,) is what stands in front of each.
    """
    known: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    index: list[int] = []
    for number, row in zip(source.tolist(), rows.tolist(), strict=True):
        for t in range(len(row)):
            key = (number, *row[:t])
            if key not in known:
                known[key] = len(first)
                first.append(len(index))
            index.append(known[key])
    return np.array(first), np.array(index)
