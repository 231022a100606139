"""What a searcher believes of prompts that the LM has not scored: a reward model on what it has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.gaussian import MOST_PROMPTS, BlockRegression, GaussianProcess
from rayprompt.reward.model import RewardModel, settings_of
from rayprompt.reward.models import model_class
from rayprompt.scores import FloatArray, IntArray
from searchers.parts import Parts, Row

DRAWS = 12  # from a posterior, for its spread
ENSEMBLE = 4  # fits on two thirds of the prompts, where a model has no posterior
SHARE = 2 / 3


class Surrogate:
    """Predicts the mean value of prompts over the train queries.

    Args:
        queries: (Q,) their texts.
        name: of a reward model, or ``module:Class`` of one of your own.
        settings: its own.
        parts: how prompts are looked at by the Gaussian process, which knows their tokens; other models read texts.

    Attributes:
        fitted: how many scored prompts it has learned from.
    """

    def __init__(self, queries: Sequence[str], name: str, settings: Mapping[str, Any], parts: Parts) -> None:
        self.queries = tuple(text if text.strip() else "(empty)" for text in queries)
        self.name = name
        self.cls = reward_model(name)
        self.settings = settings_of(settings, self.cls)
        if self.cls is GaussianProcess and self.settings:
            raise InputError(f"setting model_settings={dict(settings)}: {name} has none here; it chooses its own")
        try:
            self.cls(**self.settings)  # a value out of range is said at once
        except TypeError as error:
            raise InputError(f"setting reward_model={name!r}: cannot be made ({error})") from None
        self.parts = parts
        self.process = BlockRegression() if self.cls is GaussianProcess else None
        self.tuned = 0  # prompts that the process had when its variances were chosen
        self.fitted = 0
        self.models: list[RewardModel] = []

    def fit(self, prompts: Sequence[TextPrompt], rows: Sequence[Row], values: FloatArray, right: FloatArray) -> None:
        """Learn from scored prompts.

        Args:
            prompts, rows: (n,) and their parts.
            values: (n,) of the objective, which the Gaussian process learns.
            right: (n, Q) pair by pair, whether the answer was right, which other models learn; NaN where it was not
                asked, all of a row where only the value is known.
        """
        self.fitted = len(prompts)
        if self.process is None:
            self._fit_models(prompts, values, right)
            return
        keep = np.arange(len(values))
        if len(keep) > MOST_PROMPTS:
            newest = keep[-MOST_PROMPTS // 2 :]
            best = np.argsort(-values[: -len(newest)], kind="stable")[: MOST_PROMPTS - len(newest)]
            keep = np.concatenate([np.sort(best), newest])
        if self.fitted >= 1.3 * self.tuned:
            self.process.variances, self.tuned = [], self.fitted
        low = np.quantile(values[keep], 0.02)  # a few prompts that break the LM would stretch the scale
        self.process.fit(self.parts.blocks([rows[i] for i in keep.tolist()]), np.maximum(values[keep], low))

    def judge(
        self, prompts: Sequence[TextPrompt], rows: Sequence[Row], choice: str, count: int, rng: np.random.Generator
    ) -> tuple[FloatArray, list[int]]:
        """(N,) the values that it expects of prompts, and the ``count`` that it would have scored, best first.

        ``choice``: ``thompson`` (each the best by a draw of its own), ``ucb`` (the mean and a standard deviation), or
        ``best`` (the mean).
        """
        if self.process is not None:
            blocks = self.parts.blocks(rows)
            mean = self.process.predict(blocks)
            draws = count if choice == "thompson" else DRAWS if choice == "ucb" else 0
            drawn = [self.process.predict(blocks, self.process.draw(rng)) for _ in range(draws)]
        else:
            texts = [prompt.text or "(empty)" for prompt in prompts]
            drawn = [model.predict(self.queries, texts).mean(axis=0) for model in self.models]
            mean = np.mean(drawn, axis=0)
        if choice == "thompson":
            return mean, by_draws(drawn, count)
        score = mean + np.std(drawn, axis=0) if choice == "ucb" else mean
        return mean, np.argsort(-score, kind="stable")[:count].tolist()

    def state_dict(self) -> dict[str, Any]:
        """How the process was tuned; what it has learned comes from the prompts again."""
        if self.process is None:
            return {}
        return {"variances": list(self.process.variances), "noise": self.process.noise, "tuned": self.tuned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be tuned as it was."""
        if self.process is not None:
            self.process.variances, self.process.noise = list(state["variances"]), state["noise"]
            self.tuned = state["tuned"]

    def _fit_models(self, prompts: Sequence[TextPrompt], values: FloatArray, right: FloatArray) -> None:
        """An ensemble: each on two thirds of the prompts, drawn anew."""
        rng = np.random.default_rng(self.fitted)
        known = ~np.isnan(right)
        if not known.any(axis=1).all() or not np.isin(right[known], (0.0, 1.0)).all():
            # Values alone, or shares: right is what is better than most prompts.
            right = np.repeat((values > np.median(values))[:, None].astype(np.float64), right.shape[1], axis=1)
        size = max(2, int(SHARE * len(prompts)))
        self.models = []
        for number in range(ENSEMBLE):
            some = np.sort(rng.permutation(len(prompts))[:size])
            data = demonstrations(self.queries, [prompts[i].text or "(empty)" for i in some.tolist()], right[some])
            self.models.append(self.cls(**self.settings).fit(data, seed=number))


def reward_model(name: str) -> type[RewardModel]:
    """A reward model of the package, or of one's own by where it is imported from.

    Raises:
        InputError: there is none.
    """
    if ":" not in name:
        return model_class(name)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # what a module of the user's raises is not ours to know
        raise InputError(
            f"setting reward_model={name!r}: cannot be imported ({type(error).__name__}: {error})"
        ) from None
    if not (isinstance(found, type) and issubclass(found, RewardModel)):
        raise InputError(f"setting reward_model={name!r}: is no subclass of rayprompt's RewardModel")
    return found


def by_draws(drawn: Sequence[FloatArray], count: int) -> list[int]:
    """``count`` places: in turn the best by each draw that is not taken yet."""
    orders = [np.argsort(-values, kind="stable") for values in drawn]
    at = [0] * len(orders)
    found: dict[int, None] = {}
    total = len(orders[0]) if orders else 0
    turn = 0
    while len(found) < min(count, total):
        k = turn % len(orders)
        while int(orders[k][at[k]]) in found:
            at[k] += 1
        found[int(orders[k][at[k]])] = None
        turn += 1
    return list(found)


def demonstrations(queries: Sequence[str], prompts: Sequence[str], right: FloatArray) -> Demonstrations:
    """(n, Q) labels of prompts as demonstrations; prompts of one text are one."""
    texts = list(dict.fromkeys(prompts))
    place: IntArray = np.array([texts.index(text) for text in prompts], dtype=np.int64)
    last = {int(p): i for i, p in enumerate(place)}
    correct = right[[last[p] for p in range(len(texts))]].T
    names = tuple(str(i) for i in range(len(queries)))
    return Demonstrations(
        llm="", queries=tuple(queries), datasets=("train",) * len(queries), uids=names, templates=names,
        prompts=tuple(texts), prompt_ids=tuple(str(i) for i in range(len(texts))), query=np.arange(len(queries)),
        split=np.array(["train"] * len(queries)), correct=np.asarray(correct, dtype=np.float64),
    )  # fmt: skip
