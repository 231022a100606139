"""A reward model of one hidden layer, in torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rayprompt.lm.adam import AdamW
from rayprompt.reward.boosted import Dense
from rayprompt.reward.model import within
from rayprompt.scores import FloatArray

BATCH = 512


@dataclass(frozen=True)
class MLPSettings:
    """Of the network.

    Attributes:
        units: of the hidden layer.
        epochs, learning_rate, weight_decay: of AdamW, in batches of 512.
    """

    units: int = within(64, 1, 100_000)
    epochs: int = within(10, 1, 100_000)
    learning_rate: float = within(1e-3, 1e-9, 10)
    weight_decay: float = within(1e-2, 0, 10)


class MLP(Dense):
    """A ReLU layer on the standardised dense form of query and prompt, trained with cross-entropy."""

    name = "mlp"
    Settings = MLPSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.theta = torch.zeros(0)
        self.mean: FloatArray = np.zeros(0)
        self.std: FloatArray = np.ones(0)

    def _learn(self, rows: FloatArray, y: FloatArray, seed: int) -> None:
        s, rng = self.settings, np.random.default_rng(seed)
        self.mean, self.std = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0) + 1e-6
        x, target = self._standard(rows), torch.from_numpy(y.astype(np.float32))
        bound = 1 / x.shape[1] ** 0.5
        theta = torch.from_numpy(rng.uniform(-bound, bound, size=self._size(x.shape[1])).astype(np.float32))
        adam = AdamW(s.learning_rate, s.weight_decay)
        for _ in range(s.epochs):
            order = rng.permutation(len(y))
            for start in range(0, len(y), BATCH):
                some = torch.from_numpy(order[start : start + BATCH])
                leaf = theta.requires_grad_(True)
                loss = functional.binary_cross_entropy_with_logits(self._logits(leaf, x[some]), target[some])
                (gradient,) = torch.autograd.grad(loss, leaf)
                theta = adam.step(theta.detach(), gradient)
        self.theta = theta.detach()

    def _probability(self, rows: FloatArray) -> FloatArray:
        with torch.no_grad():
            return np.asarray(torch.sigmoid(self._logits(self.theta, self._standard(rows))).double().numpy())

    def _standard(self, rows: FloatArray) -> torch.Tensor:
        """Columns that are not known (an unseen prompt's number) stand at their mean."""
        scaled = np.nan_to_num((rows - self.mean) / self.std, nan=0.0)
        return torch.from_numpy(np.clip(scaled, -6, 6).astype(np.float32))

    def _size(self, width: int) -> int:
        return int(self.settings.units) * (width + 2) + 1

    def _logits(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        units, width = self.settings.units, x.shape[1]
        w1, b1, w2, b2 = torch.split(theta, [units * width, units, units, 1])
        return functional.linear(x, w1.view(units, width), b1).relu() @ w2 + b2

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        np.savez(folder / "mlp.npz", theta=self.theta.numpy(), mean=self.mean, std=self.std)

    def _load(self, folder: Path) -> None:
        super()._load(folder)
        with np.load(folder / "mlp.npz", allow_pickle=False) as arrays:
            self.theta = torch.from_numpy(arrays["theta"])
            self.mean, self.std = arrays["mean"], arrays["std"]
