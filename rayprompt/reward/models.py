"""The reward models that come with rayprompt, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from rayprompt.errors import InputError, unknown
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import TextFeatures
from rayprompt.reward.model import RewardModel, within
from rayprompt.scores import FloatArray, IntArray

WHERE = {
    "prior": "rayprompt.reward.models:Prior",
    "logistic": "rayprompt.reward.models:Logistic",
    "logistic-per-prompt": "rayprompt.reward.models:LogisticPerPrompt",
    "logistic-shared": "rayprompt.reward.models:LogisticShared",
    "neighbours": "rayprompt.reward.models:Neighbours",
    "gaussian-process": "rayprompt.reward.gaussian:GaussianProcess",
    "lightgbm": "rayprompt.reward.boosted:LightGBM",
    "xgboost": "rayprompt.reward.boosted:XGBoost",
    "mlp": "rayprompt.reward.mlp:MLP",
}


def model_class(name: str) -> type[RewardModel]:
    """The class of a reward model.

    Raises:
        InputError: there is none of this name, or what it needs is not installed.
    """
    if name not in WHERE:
        raise unknown("reward model", name, WHERE)
    if name == "xgboost" and find_spec(name) is None:
        raise InputError(f"reward model {name}: {name} is not installed (pip install 'rayprompt[{name}]')")
    module, _, attribute = WHERE[name].partition(":")
    found: type[RewardModel] = getattr(import_module(module), attribute)
    return found


FREE = 3.0  # scale of what tells prompts apart as such: hardly penalised


class Prior(RewardModel):
    """The success of each prompt on train, whatever the query; of an unseen one the mean of all."""

    name = "prior"

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        pass

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        row = np.where(which >= 0, self.prior[which], self.prior.mean())
        return np.tile(row, (x.shape[0], 1))


@dataclass(frozen=True)
class LogisticSettings:
    """Of logistic regression.

    Attributes:
        c: inverse strength of the squared penalty.
    """

    c: float = within(1.0, 1e-6, 1e6)


class LogisticPerPrompt(RewardModel):
    """A logistic regression on the query for each prompt; an unseen prompt gets the mean of their probabilities."""

    name = "logistic-per-prompt"
    Settings = LogisticSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights: FloatArray = np.zeros((0, 0))  # (P, F)
        self.bias: FloatArray = np.zeros(0)  # (P,)

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        self.weights, self.bias = np.zeros((len(self.prompts), x.shape[1])), np.zeros(len(self.prompts))
        for p in range(len(self.prompts)):
            rows = data.known[:, p]
            y = data.correct[rows, p]
            self.weights[p], self.bias[p] = regression(x[data.query[rows]], y, self.settings.c, float(self.prior[p]))

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        seen = sigmoid(x @ self.weights.T + self.bias)
        return np.where(which >= 0, seen[:, which], seen.mean(axis=1, keepdims=True))

    def _save(self, folder: Path) -> None:
        np.savez(folder / "weights.npz", weights=self.weights, bias=self.bias)

    def _load(self, folder: Path) -> None:
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            self.weights, self.bias = arrays["weights"], arrays["bias"]


@dataclass(frozen=True)
class LogisticSharedSettings(LogisticSettings):
    """Of logistic regression with shared weights.

    Attributes:
        own: scale of a prompt's own weights beside the shared ones: 0 is one query for all, large is a model each.
    """

    own: float = within(0.3, 0, 1000)


class LogisticShared(LogisticPerPrompt):
    """Weights of the query that all prompts share, and each prompt's own, which are penalised more.

    What makes a query hard is learned from all labels; what makes it hard for one prompt has to be shown by its own.
    """

    name = "logistic-shared"
    Settings = LogisticSharedSettings

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        s, count, width = self.settings, len(self.prompts), x.shape[1]
        rows = [x[data.query[data.known[:, p]]] for p in range(count)]
        y = np.concatenate([data.correct[data.known[:, p], p] for p in range(count)])
        which = np.repeat(np.arange(count), [r.shape[0] for r in rows])
        ones = sparse.csr_matrix((np.full(len(y), FREE), (np.arange(len(y)), which)), shape=(len(y), count))
        both = sparse.hstack([sparse.vstack(rows), s.own * sparse.block_diag(rows), ones], format="csr")
        weights, bias = regression(both, y, s.c, float(self.prior.mean()))
        own = weights[width : width * (count + 1)].reshape(count, width)
        self.weights, self.bias = weights[:width] + s.own * own, bias + FREE * weights[width * (count + 1) :]


class Logistic(LogisticPerPrompt):
    """One logistic regression on the query, the words of the prompt, and which prompt it is: no query prefers any."""

    name = "logistic"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.words = TextFeatures(min_df=1)

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        self.words.fit(self.prompts)
        instance, prompt = np.nonzero(data.known)
        z = sparse.hstack([self.words.transform(self.prompts), sparse.identity(len(self.prompts))], format="csr")
        rows = sparse.hstack([x[data.query[instance]], z[prompt]], format="csr")
        weights, bias = regression(rows, data.correct[instance, prompt], self.settings.c, float(self.prior.mean()))
        self.weights, self.bias = weights[None], np.array([bias])

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        own = self.weights[0][x.shape[1] :]
        z = self.words.transform(prompts)
        of_prompt = z @ own[: z.shape[1]] + np.where(which >= 0, own[z.shape[1] :][which], 0.0)
        return sigmoid((x @ self.weights[0][: x.shape[1]])[:, None] + of_prompt + self.bias)

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        (folder / "prompts").mkdir(exist_ok=True)
        self.words.save(folder / "prompts")

    def _load(self, folder: Path) -> None:
        super()._load(folder)
        self.words = TextFeatures.load(folder / "prompts")


@dataclass(frozen=True)
class NeighboursSettings:
    """Of nearest neighbours.

    Attributes:
        k: train queries whose labels are averaged.
        strength: labels that a prompt's prior counts for beside them.
    """

    k: int = within(100, 1)
    strength: float = within(5.0, 1e-3, 1e6)


class Neighbours(RewardModel):
    """The mean label of the nearest train queries (cosine) under a prompt; the mean of prompts where it is unseen."""

    name = "neighbours"
    Settings = NeighboursSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = sparse.csr_matrix((0, 0))
        self.right: FloatArray = np.zeros((0, 0))  # (Q, P) labels that were 1
        self.asked: FloatArray = np.zeros((0, 0))  # (Q, P) labels

    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        self.rows = normalised(x)
        shape = (x.shape[0], len(self.prompts))
        self.right, self.asked = np.zeros(shape), np.zeros(shape)
        np.add.at(self.right, data.query, np.nan_to_num(data.correct))
        np.add.at(self.asked, data.query, data.known)

    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        k = min(self.settings.k, self.rows.shape[0])
        seen = np.empty((x.shape[0], len(self.prompts)))
        near_rows = normalised(x)
        for start in range(0, x.shape[0], 512):
            near = (near_rows[start : start + 512] @ self.rows.T).toarray()
            top = np.argpartition(-near, k - 1, axis=1)[:, :k]
            right, asked = self.right[top].sum(axis=1), self.asked[top].sum(axis=1)
            s = self.settings.strength
            seen[start : start + 512] = (right + s * self.prior) / (asked + s)
        return np.where(which >= 0, seen[:, which], seen.mean(axis=1, keepdims=True))

    def _save(self, folder: Path) -> None:
        sparse.save_npz(folder / "rows.npz", self.rows)
        np.savez(folder / "labels.npz", right=self.right, asked=self.asked)

    def _load(self, folder: Path) -> None:
        self.rows = sparse.load_npz(folder / "rows.npz")
        with np.load(folder / "labels.npz", allow_pickle=False) as arrays:
            self.right, self.asked = arrays["right"], arrays["asked"]


def regression(x: sparse.csr_matrix, y: FloatArray, c: float, prior: float) -> tuple[FloatArray, float]:
    """Weights (F,) and bias of a logistic regression; the prior alone where all labels are the same."""
    if y.min() == y.max():
        prior = min(max(prior, 1e-3), 1 - 1e-3)  # of one label nothing is certain
        return np.zeros(x.shape[1]), float(np.log(prior / (1 - prior)))
    model = LogisticRegression(C=c, max_iter=1000).fit(x, y)
    return model.coef_[0], float(model.intercept_[0])


def sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z))."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -40, 40))))


def normalised(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of length 1."""
    length = np.sqrt(np.asarray(x.multiply(x).sum(axis=1)).reshape(-1))
    return sparse.diags(1 / np.maximum(length, 1e-12)) @ x
