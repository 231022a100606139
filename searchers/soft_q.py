"""Soft Q-learning for text (Guo et al., 2021, arXiv 2106.07704), as RLPrompt trains its policy with it.

Temperature 1, no discount, and a reward behind the last token only. For a prompt of T tokens: Q_t is the logit of the
token that stands there, V_t the log-sum-exp of all logits, A_t = Q_t - V_t its advantage, which is log pi. A bar marks
what the target network says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayprompt.lm.adam import AdamW
from rayprompt.scores import FloatArray, IntArray
from searchers.policy import Policy
from searchers.policy_pass import Pass
from searchers.rl_settings import RLPromptSettings


@dataclass(frozen=True)
class Path:
    """What a network says of B prompts of T tokens: Q and V, each (B, T)."""

    q: torch.Tensor
    v: torch.Tensor

    def detached(self) -> Path:
        """The same without a gradient."""
        return Path(self.q.detach(), self.v.detach())

    def of(self, prompts: torch.Tensor) -> Path:
        """Those of some prompts (B,)."""
        return Path(self.q[prompts], self.v[prompts])

    @property
    def advantage(self) -> torch.Tensor:
        """A (B, T): the log-probability of each token."""
        return self.q - self.v


def v0(f: Path, g: Path, r: torch.Tensor) -> torch.Tensor:
    """Values: (V_t - Vbar_t)^2."""
    return (f.v - g.v).square()


def v1(f: Path, g: Path, r: torch.Tensor) -> torch.Tensor:
    """Temporal differences: (Q_t - Vbar_{t+1})^2, at the end (Q_T - r)^2."""
    return (f.q - _next(g, r)).square()


def v2(f: Path, g: Path, r: torch.Tensor) -> torch.Tensor:
    """Path consistency over one step: (A_t - (Vbar_{t+1} - Vbar_t))^2, at the end (A_T - (r - Vbar_T))^2."""
    return (f.advantage - (_next(g, r) - g.v)).square()


def v3(f: Path, g: Path, r: torch.Tensor) -> torch.Tensor:
    """Path consistency over all that is left: (sum_{l >= t} A_l - (r - Vbar_t))^2."""
    ahead = f.advantage.flip(-1).cumsum(-1).flip(-1)
    return (ahead - (r[:, None] - g.v)).square()


def _next(g: Path, r: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.v[:, 1:], r[:, None]], dim=1)


TERMS: dict[str, Callable[[Path, Path, torch.Tensor], torch.Tensor]] = {"v0": v0, "v1": v1, "v2": v2, "v3": v3}


def loss(name: str, f: Path, g: Path, r: torch.Tensor, coefficient: float | None = None) -> torch.Tensor:
    """The loss of B prompts with rewards r (B,): of ``f``, the policy, against ``g``, the target network.

    Summed over tokens, averaged over prompts and over the terms of ``name``. With a coefficient c each term is
    c loss(f, g) + (1 - c) loss(g, f): the reversed term moves the policy's values towards what the target takes.
    """
    total = r.new_zeros(())
    terms = name.split("+")
    for term in terms:
        value = TERMS[term](f, g, r)
        if coefficient is not None:
            value = coefficient * value + (1 - coefficient) * TERMS[term](g, f, r)
        total = total + value.sum(-1).mean()
    return total / len(terms)


class SoftQLearning:
    """Policy and target network, and the steps that train the one after the other.

    Args:
        policy: the network, a function of its parameters.
        settings: loss, learning rate, clipping, and how the target network follows.
        theta: (P,) the parameters to begin with, of both.
    """

    def __init__(self, policy: Policy, settings: RLPromptSettings, theta: torch.Tensor) -> None:
        self.policy = policy
        self.settings = settings
        self.theta = theta
        self.bar = theta.clone()  # the target network's
        self.adam = AdamW(float(settings.learning_rate or 0.0))
        self.updates = 0

    def update(self, rows: IntArray, reward: FloatArray, count: int) -> dict[str, float]:
        """A gradient step on prompts (B, T) with shaped rewards (B,); the first ``count`` are the policy's own.

        Gives the loss, the norm of the gradient before it was clipped, and the entropy of the policy on its own.
        """
        self.move_target()
        r = torch.from_numpy(reward.astype(np.float32)).to(self.theta.device)
        prompts = Pass(self.policy, rows)  # the frozen LM reads them once, for policy and target
        read = prompts.read(self.theta, gradient=True)
        f = Path(read.q.requires_grad_(True), read.v.requires_grad_(True))
        g = f.detached()
        if self.bar is not self.theta:
            other = prompts.read(self.bar)
            g = Path(other.q, other.v)
        allowed = read.q.detach().isfinite().all(dim=1)
        if not allowed.all():  # given ones that the fluency constraint forbids
            f, g, r = f.of(allowed), g.of(allowed), r[allowed]
        if not len(r):
            return {"loss": 0.0, "gradient_norm": 0.0, "entropy": float(read.entropy[:count].mean())}
        value = loss(str(self.settings.loss), f, g, r, self.settings.coefficient)
        gradient = read.back(*torch.autograd.grad(value, (read.q, read.v)))
        norm = float(gradient.norm())
        self.updates += 1
        self.theta = self.adam.step(self.theta, gradient.mul_(min(1.0, self.settings.clip / (norm + 1e-6))))
        entropy = float(read.entropy[:count].mean())
        return {"loss": float(value.detach()), "gradient_norm": norm, "entropy": entropy}

    def move_target(self) -> None:
        """Polyak: bar <- (1 - rate) bar + rate theta; or a copy every so many updates."""
        rate, every = float(self.settings.target_rate or 0.0), self.settings.target_every
        if self.settings.target == "polyak":
            self.bar = (1 - rate) * self.bar + rate * self.theta
        elif self.updates % every == 0:
            self.bar = self.theta  # an update makes a new one

    def restart(self, theta: FloatArray) -> None:
        """Go on from other parameters, with an optimizer and a target network that begin anew."""
        self.theta = torch.tensor(theta, device=self.theta.device)
        self.bar = self.theta.clone()
        self.adam = AdamW(self.adam.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Arrays and numbers."""
        theta, bar = (x.cpu().numpy().copy() for x in (self.theta, self.bar))
        return {"theta": theta, "bar": bar, "adam": self.adam.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        device = self.theta.device
        self.theta, self.bar = (torch.tensor(state[name], device=device) for name in ("theta", "bar"))
        self.adam.load_state_dict(state["adam"], device)
        self.updates = state["updates"]
