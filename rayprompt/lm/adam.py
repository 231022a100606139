"""Adam for one tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) for one tensor; without weight decay it is Adam.

    Torch's own brings a compiler into the process with it: seconds and memory that an LM's process can do without.
    """

    def __init__(self, learning_rate: float, weight_decay: float = 0.0) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.t = 0
        self.m: torch.Tensor | None = None
        self.v: torch.Tensor | None = None

    def step(self, theta: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """What the parameters become with their gradient."""
        import torch

        self.t += 1
        if self.m is None or self.v is None:
            self.m, self.v = torch.zeros_like(theta), torch.zeros_like(theta)
        self.m.lerp_(g, 1 - BETA1)
        self.v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        root = (self.v / (1 - BETA2**self.t)).sqrt_().add_(EPSILON)
        decayed = theta * (1 - self.learning_rate * self.weight_decay)
        return decayed.sub_((self.m / root).mul_(self.learning_rate / (1 - BETA1**self.t)))

    def state_dict(self) -> dict[str, Any]:
        """Arrays and numbers."""
        moments = [None if x is None else np.array(x.cpu().numpy()) for x in (self.m, self.v)]
        return {"t": self.t, "m": moments[0], "v": moments[1]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state of :meth:`state_dict`."""
        import torch

        self.t = state["t"]
        self.m, self.v = (None if x is None else torch.tensor(x, device=device) for x in (state["m"], state["v"]))
