"""A Gaussian process over prompts: what a prompt that nobody has tried may be worth, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import TextFeatures
from rayprompt.reward.model import RewardModel, within
from rayprompt.scores import FloatArray, IntArray

Block: TypeAlias = "sparse.csr_matrix | FloatArray"
PromptFeatures: TypeAlias = Callable[[Sequence[str]], "list[Block]"]
VARIANCES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)  # of a block, in units of the values' variance
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)
SWEEPS = 2  # of the search for variances, block by block
MOST_TUNED = 300  # prompts on which the variances are chosen
MOST_PROMPTS = 1200  # that it learns from: the best and the newest
EDGE = 1e-3  # of probabilities


class BlockRegression:
    """Bayesian linear regression on blocks of features, each with a prior variance of its own for its weights.

    The same as a Gaussian process whose kernel is the sum of the blocks' products (Rasmussen and Williams, 2006, 2.1
    and 2.2); variances and noise are those of the largest marginal likelihood (5.8) on a grid. A draw from the
    posterior is a weight vector (Matheron's rule), so that any number of prompts is judged by one product.

    Attributes:
        variances: of each block; noise: of a value, both in units of the values' variance.
        weights: of each block, the posterior mean.
    """

    def __init__(self, variances: Sequence[float] = (), noise: float = 0.1) -> None:
        self.variances = list(variances)
        self.noise = noise
        self.mean, self.scale = 0.0, 1.0
        self.weights: list[FloatArray] = []
        self._blocks: list[Block] = []
        self._y: FloatArray = np.zeros(0)
        self._spread: FloatArray = np.ones(0)
        self._factor: tuple[FloatArray, bool] | None = None

    def fit(self, blocks: Sequence[Block], y: FloatArray, spread: FloatArray | None = None) -> BlockRegression:
        """Learn values y (n,) of prompts with features ``blocks``, (n, D) each.

        ``spread`` (n,): how much noisier than the least noisy ones values are; None is all alike.
        """
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        self._blocks, self._y = list(blocks), (y - self.mean) / self.scale
        self._spread = np.ones(len(y)) if spread is None else spread
        if len(self.variances) != len(blocks):
            self.tune()
        gram = sum(v * _product(b, b) for v, b in zip(self.variances, self._blocks, strict=True) if v)
        kernel = gram + np.diag(self.noise * self._spread)
        self._factor = cho_factor(kernel, lower=True)
        self.weights = self._back(cho_solve(self._factor, self._y))
        return self

    def tune(self) -> None:
        """Choose variances and noise, anew."""
        n = len(self._y)
        some = np.arange(n) if n <= MOST_TUNED else np.linspace(0, n - 1, MOST_TUNED).astype(np.int64)
        grams = [_product(b[some], b[some]) for b in self._blocks]
        y, spread = self._y[some], self._spread[some]
        variances, noise = [0.3] * len(grams), 0.1

        def likelihood(variances: Sequence[float], noise: float) -> float:
            kernel = sum((v * g for v, g in zip(variances, grams, strict=True)), np.diag(noise * spread))
            factor = np.linalg.cholesky(kernel + 1e-9 * np.eye(len(y)))
            left = np.linalg.solve(factor, y)
            return float(-0.5 * left @ left - np.log(np.diag(factor)).sum())

        for _ in range(SWEEPS):
            for k in range(len(grams)):
                tried = {v: likelihood([*variances[:k], v, *variances[k + 1 :]], noise) for v in VARIANCES}
                variances[k] = max(tried, key=lambda v: tried[v])
            noise = max(NOISES, key=lambda s: likelihood(variances, s))
        self.variances, self.noise = variances, noise

    def predict(self, blocks: Sequence[Block], weights: Sequence[FloatArray] | None = None) -> FloatArray:
        """(N,) values of prompts with such features: the posterior mean, or what a draw's weights say."""
        used = self.weights if weights is None else weights
        total = sum(b @ w for b, w in zip(blocks, used, strict=True))
        return np.asarray(self.mean + self.scale * np.asarray(total), dtype=np.float64)

    def draw(self, rng: np.random.Generator) -> list[FloatArray]:
        """Weights drawn from the posterior, for :meth:`predict`."""
        prior = [
            np.sqrt(v) * rng.standard_normal(b.shape[1]) if v else np.zeros(b.shape[1])
            for v, b in zip(self.variances, self._blocks, strict=True)
        ]
        value = sum(b @ w for b, w in zip(self._blocks, prior, strict=True))
        noise = np.sqrt(self.noise * self._spread) * rng.standard_normal(len(self._y))
        assert self._factor is not None
        correction = self._back(cho_solve(self._factor, self._y - value - noise))
        return [w + c for w, c in zip(prior, correction, strict=True)]

    def _back(self, dual: FloatArray) -> list[FloatArray]:
        """Weights of every block, from those of the prompts (n,)."""
        return [np.asarray(v * (b.T @ dual)) for v, b in zip(self.variances, self._blocks, strict=True)]


def _product(a: Block, b: Block) -> FloatArray:
    """(n, m) the products of rows."""
    found = a @ b.T
    return np.asarray(found.toarray() if isinstance(found, sparse.csr_matrix) else found)


@dataclass(frozen=True)
class GaussianProcessSettings:
    """Of a Gaussian process.

    Attributes:
        strength: prompts' labels that count for a full one: a prompt with fewer is noisier.
    """

    strength: float = within(8.0, 1, 10_000)


class GaussianProcess(RewardModel):
    """A Gaussian process over prompts, by their words, and a linear model of how hard a query is, added to it.

    Its probabilities are for any prompt, seen or unseen; no query prefers any. What prompts have in common is said by
    ``prompt_features``: rows of texts. A caller that knows more of its prompts than their text sets its own.
    """

    name = "gaussian-process"
    Settings = GaussianProcessSettings

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.words = TextFeatures(min_df=1)
        self.prompt_features: PromptFeatures | None = None
        self.regression = BlockRegression()
        self.query: FloatArray = np.zeros(0)

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        values, known = data.correct, data.known
        hard = np.nanmean(values, axis=1) - np.nanmean(values)  # of each instance
        own = np.where(known, values - hard[:, None], 0.0).sum(axis=0) / known.sum(axis=0)
        self.words.fit(self.prompts)
        spread = np.maximum(1.0, self.settings.strength / known.sum(axis=0))
        self.regression.fit(self._blocks(self.prompts), own, spread)
        rows = x[data.query]
        self.query = _ridge(rows, hard)

    def _blocks(self, prompts: Sequence[str]) -> list[Block]:
        if self.prompt_features is not None:
            return self.prompt_features(prompts)
        rows = self.words.transform(prompts)
        return [rows[:, :-12], np.asarray(rows[:, -12:].toarray())]

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        of_prompt = self.regression.predict(self._blocks(prompts))
        return np.asarray(np.clip(of_prompt[None] + np.asarray(x @ self.query)[:, None], EDGE, 1 - EDGE))

    def _save(self, folder: Path) -> None:
        (folder / "prompts").mkdir(exist_ok=True)
        self.words.save(folder / "prompts")
        blocks = {f"block{i}": w for i, w in enumerate(self.regression.weights)}
        moments = np.array([self.regression.mean, self.regression.scale])
        arrays = {"query": self.query, "moments": moments, **blocks}
        np.savez(folder / "weights.npz", **arrays)  # type: ignore[arg-type]

    def _load(self, folder: Path) -> None:
        self.words = TextFeatures.load(folder / "prompts")
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            self.query = arrays["query"]
            self.regression.mean, self.regression.scale = (float(v) for v in arrays["moments"])
            count = sum(name.startswith("block") for name in arrays)
            self.regression.weights = [arrays[f"block{i}"] for i in range(count)]


def _ridge(x: sparse.csr_matrix, y: FloatArray) -> FloatArray:
    """(F,) weights of a ridge regression, its penalty one row's worth."""
    from sklearn.linear_model import Ridge

    if not y.any():
        return np.zeros(x.shape[1])
    return np.asarray(Ridge(alpha=1.0, fit_intercept=False, solver="lsqr").fit(x, y).coef_)
