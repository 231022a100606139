"""Reward models of boosted trees, on a dense form of query and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import TextFeatures, counts
from rayprompt.reward.model import RewardModel, within
from rayprompt.scores import FloatArray, IntArray

COMPONENTS = 64  # of a query's features
BLOCK = 200_000  # rows that are predicted at a time


@dataclass(frozen=True)
class BoostedSettings:
    """Of boosted trees.

    Attributes:
        trees, rate: their number, and how much of each counts.
        leaves, depth: the most leaves of a tree, and its depth (-1 = any).
        least: rows in a leaf; never more than one in twenty of all. XGBoost counts them by the variance of their
            labels: it asks for as much as so many rows have on average.
    """

    trees: int = within(200, 1, 100_000)
    rate: float = within(0.05, 1e-6, 1)
    leaves: int = within(31, 2, 100_000)
    depth: int = within(-1, -1, 1000)
    least: int = within(50, 1)

    def rows_in_leaf(self, rows: int) -> int:
        """The least, of so many rows."""
        return min(self.least, max(1, rows // 20))


class Dense(RewardModel):
    """Rows for models that want few columns: the query's features in 64 components and its counts; the prompt's number,
    counts of it, and its prior."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.components: FloatArray = np.zeros((0, 0))  # (d, F)

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        if x.shape[1] > COMPONENTS:
            count = min(COMPONENTS, x.shape[0] - 1, x.shape[1] - 1)
            svd = TruncatedSVD(max(1, count), random_state=int(rng.integers(2**31)))
            self.components = svd.fit(x).components_
        else:
            self.components = np.eye(x.shape[1])
        instance, prompt = np.nonzero(data.known)
        rows = self._rows(x)[data.query[instance]]
        of_prompt = self._of_prompts(np.arange(len(self.prompts)), self.prompts)[prompt]
        self._learn(np.hstack([rows, of_prompt]), data.correct[instance, prompt], int(rng.integers(2**31)))

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        rows, of_prompt = self._rows(x), self._of_prompts(which, prompts)
        found = np.empty((len(rows), len(which)))
        size = max(1, BLOCK // len(which))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            both = np.hstack([np.repeat(some, len(which), axis=0), np.tile(of_prompt, (len(some), 1))])
            found[start : start + size] = self._probability(both).reshape(len(some), len(which))
        return found

    def _rows(self, x: sparse.csr_matrix) -> FloatArray:
        dense = np.asarray(x @ self.components.T)
        if not isinstance(self.features, TextFeatures):
            return dense
        return np.hstack([dense, x[:, -counts([]).shape[1] :].toarray()])

    def _of_prompts(self, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        prior = np.where(which >= 0, self.prior[which], np.nan)
        return np.column_stack([np.where(which >= 0, which, np.nan), np.log1p(counts(prompts)), prior])

    def _learn(self, rows: FloatArray, y: FloatArray, seed: int) -> None:
        raise NotImplementedError

    def _probability(self, rows: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        np.savez(folder / "components.npz", components=self.components)

    def _load(self, folder: Path) -> None:
        with np.load(folder / "components.npz", allow_pickle=False) as arrays:
            self.components = arrays["components"]


class LightGBM(Dense):
    """Gradient-boosted trees (Ke et al., 2017) by LightGBM."""

    name = "lightgbm"
    Settings = BoostedSettings

    def _learn(self, rows: FloatArray, y: FloatArray, seed: int) -> None:
        import lightgbm

        s = self.settings
        options = {
            "objective": "binary", "learning_rate": s.rate, "num_leaves": s.leaves, "max_depth": s.depth,
            "min_data_in_leaf": s.rows_in_leaf(len(y)), "seed": seed, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "verbosity": -1, "feature_pre_filter": False,
        }  # fmt: skip
        self.booster = lightgbm.train(options, lightgbm.Dataset(rows, y), num_boost_round=s.trees)

    def _probability(self, rows: FloatArray) -> FloatArray:
        return np.asarray(self.booster.predict(rows))

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        self.booster.save_model(str(folder / "trees.txt"))

    def _load(self, folder: Path) -> None:
        import lightgbm

        super()._load(folder)
        self.booster = lightgbm.Booster(model_file=str(folder / "trees.txt"))


class XGBoost(Dense):
    """Gradient-boosted trees (Chen and Guestrin, 2016) by XGBoost: what Prompt-OIRL learned with."""

    name = "xgboost"
    Settings = BoostedSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import xgboost

        super().__init__(*args, **kwargs)
        self.library = xgboost

    def _learn(self, rows: FloatArray, y: FloatArray, seed: int) -> None:
        s = self.settings
        options = {
            "objective": "binary:logistic", "eta": s.rate, "max_leaves": s.leaves, "max_depth": max(0, s.depth),
            "min_child_weight": s.rows_in_leaf(len(y)) * float(y.var()), "seed": seed, "nthread": 1, "verbosity": 0,
            "tree_method": "hist", "grow_policy": "lossguide",
        }  # fmt: skip
        self.booster = self.library.train(options, self.library.DMatrix(rows, y), num_boost_round=s.trees)

    def _probability(self, rows: FloatArray) -> FloatArray:
        return np.asarray(self.booster.predict(self.library.DMatrix(rows)))

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        self.booster.save_model(str(folder / "trees.json"))

    def _load(self, folder: Path) -> None:
        super()._load(folder)
        self.booster = self.library.Booster(model_file=str(folder / "trees.json"))
