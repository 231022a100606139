"""A reward model with a rule: for each query the prompt to ask the LM with. It is saved, and works without the LM."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import LogisticRegression

from rayprompt.errors import InputError
from rayprompt.foreign import read_json
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import Features
from rayprompt.reward.folds import folds, held_out
from rayprompt.reward.model import RewardModel, load_model
from rayprompt.reward.models import sigmoid
from rayprompt.reward.selection import Guard, fit_guard, masked, switch
from rayprompt.scores import BoolArray, FloatArray, IntArray

SCHEMA = "rayprompt.recommender/1"
FILE = "recommender.json"
RULES = ("guarded", "best-of-n", "switch")


@dataclass(frozen=True)
class Recommendation:
    """For Q queries.

    Attributes:
        prompts: (P,) those that were to choose from.
        chosen, runner_up: (Q,) places among them, the runner-up -1 where there is one prompt.
        p: (Q,) the probability that the answer will be right, and ``margin`` (Q,) how far the rule's score is above
            the runner-up's.
    """

    queries: tuple[str, ...]
    prompts: tuple[str, ...]
    chosen: IntArray
    runner_up: IntArray
    p: FloatArray
    margin: FloatArray

    def rows(self) -> list[dict[str, Any]]:
        """A row for each query, as it is printed."""
        return [
            {
                "query": query,
                "prompt": self.prompts[c],
                "p": round(float(p), 6),
                "runner_up": self.prompts[r] if r >= 0 else None,
                "margin": round(float(m), 6),
            }
            for query, c, r, p, m in zip(
                self.queries, self.chosen.tolist(), self.runner_up.tolist(), self.p, self.margin, strict=True
            )
        ]

    def to_table(self) -> pa.Table:
        """The rows as a table."""
        return pa.Table.from_pylist(self.rows())


@dataclass(frozen=True)
class Recommender:
    """A fitted model and what its probabilities are worth.

    Attributes:
        model: fitted on all of train.
        guard: the weight of its opinion.
        scale, shift: of its log-odds, so that probabilities are frequencies (Platt, 1999), from queries it had not
            seen.
    """

    model: RewardModel
    guard: Guard
    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def fit(
        cls,
        train: Demonstrations,
        make: Callable[[], RewardModel],
        *,
        count: int = 5,
        by: str = "template",
        seed: int = 0,
    ) -> Recommender:
        """Fit the model, and its guard and calibration by cross-validation over groups of queries.

        Args:
            train: demonstrations; prompts without labels are left out.
            make: a new model.
            count, by: folds, and what they never tear apart: ``query`` texts or ``template``.
            seed: of folds and models.
        """
        return cls.cross_fit(train, make, count=count, by=by, seed=seed)[0]

    @classmethod
    def cross_fit(
        cls, train: Demonstrations, make: Callable[[], RewardModel], *, count: int = 5, by: str, seed: int
    ) -> tuple[Recommender, FloatArray]:
        """As :meth:`fit`, and (I, P) what the cross-validation said of train, calibrated.

        These are of models that have not seen the instance, and none has seen anything but train.
        """
        columns = train.labelled()
        labelled = train.of(prompts=columns)
        fold = folds(labelled, count, by=by, seed=seed)
        p = held_out(labelled, fold, make, seed=seed)
        scale, shift = platt(p, labelled.correct)
        calibrated = sigmoid(scale * logit(p) + shift)
        found = cls(make().fit(labelled, seed=seed), fit_guard(calibrated, labelled, fold), scale, shift)
        # A prompt without a label is one that the models have not seen: what they say of all is what they say of it.
        every = np.tile(calibrated.mean(axis=1, keepdims=True), (1, len(train.prompts)))
        every[:, columns] = calibrated
        return found, every

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those it has learned from."""
        return self.model.prompts

    def predict(self, queries: Sequence[str], prompts: Sequence[str] | None = None) -> FloatArray:
        """(Q, P) calibrated probabilities that the LM is right."""
        return sigmoid(self.scale * logit(self.model.predict(queries, prompts)) + self.shift)

    def choose(
        self, p: FloatArray, prompts: Sequence[str], rule: str = "guarded", allowed: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """(Q,) places of the chosen among the prompts (P,), and the scores (Q, P) that decided.

        With ``allowed`` (Q, P) of some prompts alone.

        Raises:
            InputError: no such rule, or one that has nothing to choose from.
        """
        if rule not in RULES:
            raise InputError(f"rule {rule!r}; it is one of {', '.join(RULES)}")
        place = {text: i for i, text in enumerate(self.prompts)}
        seen = np.array([i for i, text in enumerate(prompts) if text in place], dtype=np.int64)
        unseen = np.array([i for i, text in enumerate(prompts) if text not in place], dtype=np.int64)
        among = p if allowed is None else masked(p, allowed)
        if rule == "best-of-n":
            return among.argmax(axis=1), among
        if not len(seen):
            raise InputError(f"rule {rule}: none of the prompts was learned from; with such, use --rule best-of-n")
        if rule == "switch":
            return switch(among, seen, unseen), among
        own = [place[prompts[i]] for i in seen.tolist()]
        guard = replace(self.guard, prior=self.guard.prior[own], mean=self.guard.mean[own])
        scores = np.full(p.shape, -np.inf)
        scores[:, seen] = guard.scores(p[:, seen])
        scores = scores if allowed is None else masked(scores, allowed)
        return scores.argmax(axis=1), scores

    def recommend(
        self, queries: Sequence[str], prompts: Sequence[str] | None = None, *, rule: str = "guarded"
    ) -> Recommendation:
        """The prompt for each query, without asking the LM.

        Args:
            queries: texts.
            prompts: to choose from; those it has learned from unless given.
            rule: ``guarded`` (a prompt it has learned from; the model's opinion counts as much as it was worth on
                train), ``best-of-n`` (the highest probability), ``switch`` (best-of-n of the learned ones, of the
                others where that is below 0.5).

        Raises:
            InputError: a query has no text, or the rule does not fit the prompts.
        """
        prompts = self.prompts if prompts is None else tuple(prompts)
        if not prompts:
            raise InputError("no prompts to choose from")
        p = self.predict(queries, prompts)
        chosen, scores = self.choose(p, prompts, rule)
        everyone = np.arange(len(p))
        others = scores.copy()
        others[everyone, chosen] = -np.inf
        runner_up = np.where(np.isneginf(others).all(axis=1), -1, others.argmax(axis=1))
        margin = np.where(runner_up >= 0, scores[everyone, chosen] - others[everyone, runner_up], 0.0)
        return Recommendation(tuple(queries), tuple(prompts), chosen, runner_up, p[everyone, chosen], margin)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write it to a directory: JSON, NumPy arrays without pickles, and the libraries' own text formats.

        Raises:
            InputError: it cannot be written, or something is there; with ``force`` an earlier one is written over.
        """
        content = {
            "schema": SCHEMA,
            "guard": {
                "weight": self.guard.weight,
                "prior": self.guard.prior.tolist(),
                "mean": self.guard.mean.tolist(),
            },
            "calibration": {"scale": self.scale, "shift": self.shift},
        }
        self.model.save(Path(folder), force=force, more={FILE: json.dumps(content, indent=2)})

    @classmethod
    def load(cls, folder: str | Path, features: Features | None = None) -> Recommender:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the directory holds something else, or a part of one.
        """
        folder = Path(folder)
        if not (folder / FILE).is_file():
            raise InputError(f"{folder}: no recommender there ({FILE}); make one with rayprompt recommend fit")
        content = read_json(folder / FILE)
        if content.get("schema") != SCHEMA:
            raise InputError(f"{folder / FILE}: schema {content.get('schema')!r}; a recommender has {SCHEMA!r}")
        model = load_model(folder, features)
        try:
            weight, prior, mean = (np.array(content["guard"][name], float) for name in ("weight", "prior", "mean"))
            scale, shift = (float(content["calibration"][name]) for name in ("scale", "shift"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / FILE}: not a whole recommender ({error}); fit it anew") from None
        if FILE not in read_json(folder / "model.json")["files"]:
            raise InputError(f"{folder}: {FILE} was not saved with the model there; fit it anew")
        if not prior.shape == mean.shape == model.prior.shape:
            raise InputError(
                f"{folder / FILE}: a guard of {prior.size} prompts, but the model has {len(model.prompts)}; fit it anew"
            )
        return cls(model, Guard(float(weight), prior, mean), scale, shift)


def logit(p: FloatArray) -> FloatArray:
    """log(p / (1 - p)), of probabilities kept away from 0 and 1."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)))


def platt(p: FloatArray, correct: FloatArray) -> tuple[float, float]:
    """Scale and shift of log-odds that make probabilities (I, P) the likeliest for the labels."""
    known = ~np.isnan(correct)
    y = correct[known]
    if y.min() == y.max():
        return 1.0, 0.0
    model = LogisticRegression(C=1e6).fit(logit(p[known])[:, None], y)
    scale = float(model.coef_[0, 0])
    return (scale, float(model.intercept_[0])) if scale > 0 else (1.0, 0.0)
