"""A recommender against what needs no model: its probabilities, its choices, and what more calls would buy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.evaluation import Quality, by_kind
from rayprompt.reward.folds import folds
from rayprompt.reward.model import RewardModel
from rayprompt.reward.recommender import Recommender
from rayprompt.reward.selection import Outcome, best_on_train, mean_se, means_of, references, taken
from rayprompt.reward.voting import CostAware, vote
from rayprompt.scores import FloatArray, IntArray

PRICES = (0.0, 0.002, 0.004, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)  # of a call, in successes
FOLDS = 5


@dataclass(frozen=True)
class Point:
    """Success at a mean number of LM calls a query; ``price`` is None where the number is fixed."""

    calls: float
    success: float
    se: float
    price: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Numbers by name."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Assessment:
    """What came out.

    Attributes:
        model, llm, n: whose, and over how many instances.
        quality: of the probabilities, by whether prompts and queries were seen.
        outcomes: of the rules.
        votes: the simple majority of the k prompts that are best on train, for each k; ``frontier`` the cost-aware rule
            at several prices. Both only where there are answers.
        weights: of the guard, one for each fold.
        calls: of the LM, by all of this: none.
    """

    model: str
    llm: str
    n: int
    quality: dict[str, Quality]
    outcomes: list[Outcome]
    votes: list[Point] = field(default_factory=list)
    frontier: list[Point] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As it is printed with ``--json``."""
        return {
            "model": self.model,
            "llm": self.llm,
            "n": self.n,
            "quality": {name: q.to_json() for name, q in self.quality.items()},
            "outcomes": [o.to_json() for o in self.outcomes],
            "votes": [p.to_json() for p in self.votes],
            "frontier": [p.to_json() for p in self.frontier],
            "guard_weights": self.weights,
        }


@dataclass
class Chosen:
    """What was predicted and chosen for I instances under P prompts."""

    p: FloatArray
    base: IntArray
    rules: dict[str, IntArray]

    @classmethod
    def blank(cls, shape: tuple[int, int]) -> Chosen:
        return cls(np.full(shape, np.nan), np.zeros(shape[0], dtype=np.int64), {})

    def fill(self, at: IntArray, recommender: Recommender, train: Demonstrations, test: Demonstrations) -> None:
        """The instances ``at`` are those of ``test``: each may choose among the prompts that it has labels of."""
        p = recommender.predict(test.texts, test.prompts)
        self.p[at] = p
        self.base[at] = best_on_train(train, test)
        seen = np.array([text in set(recommender.prompts) for text in test.prompts])
        both = bool(seen.any() and not seen.all())
        rules = {
            "guarded": ("guarded", test.known),
            "best of n": ("best-of-n", test.known),
            **({"best of learned": ("best-of-n", test.known & seen), "switch": ("switch", test.known)} if both else {}),
        }
        for name, (rule, allowed) in rules.items():
            chosen = recommender.choose(p, test.prompts, rule, allowed)[0]
            self.rules.setdefault(name, np.zeros(len(self.p), dtype=np.int64))[at] = chosen


def assess(recommender: Recommender, train: Demonstrations, test: Demonstrations) -> Assessment:
    """A recommender that was fitted on ``train``, on ``test``."""
    found = Chosen.blank(test.correct.shape)
    found.fill(np.arange(len(test)), recommender, train, test)
    return _assessment(
        recommender.model.name, test, found, set(recommender.prompts), set(train.queries), [recommender.guard.weight]
    )


def assess_folds(
    data: Demonstrations,
    make: Callable[[], RewardModel],
    *,
    count: int = FOLDS,
    by: str = "template",
    seed: int = 0,
) -> Assessment:
    """Recommenders fitted on all folds but one, on that one. Their own cross-validation stays within the others."""
    fold = folds(data, count, by=by, seed=seed)
    found, weights = Chosen.blank(data.correct.shape), []
    for k in range(count):
        train, at = data.of(instances=fold != k), np.flatnonzero(fold == k)
        recommender = Recommender.fit(train, make, by=by, seed=seed)
        found.fill(at, recommender, train, data.of(instances=at))
        weights.append(recommender.guard.weight)
    return _assessment(make().name, data, found, set(data.prompts), set(), weights, fold)


def _assessment(
    model: str,
    test: Demonstrations,
    found: Chosen,
    prompts: set[str],
    queries: set[str],
    weights: list[float],
    fold: IntArray | None = None,
) -> Assessment:
    rules = {name: (taken(test.correct, chosen), 1.0) for name, chosen in found.rules.items()}
    outcomes = references(test, found.base, rules)
    votes: list[Point] = []
    frontier: list[Point] = []
    if test.answer is not None:
        votes, frontier = frontiers(test, found.p, folds(test, FOLDS) if fold is None else fold)
    return Assessment(
        model, test.llm, len(test), by_kind(found.p, test, prompts, queries), outcomes, votes, frontier, weights
    )


def frontiers(
    data: Demonstrations, p: FloatArray, fold: IntArray, prices: Sequence[float] = PRICES
) -> tuple[list[Point], list[Point]]:
    """Success over calls: of a majority of the k best prompts, and of the cost-aware rule; each learned on other folds.

    Args:
        data: with answers; p: (I, P) probabilities of models that have not seen these queries.
        fold: (I,) folds of the instances.
        prices: of a call.
    """
    groups, count = data.groups("template"), len(data.prompts)
    simple = np.zeros((len(data), count))
    right = {price: np.zeros(len(data)) for price in prices}
    asked = {price: np.zeros(len(data)) for price in prices}
    for k in np.unique(fold).tolist():
        train, at = data.of(instances=fold != k), np.flatnonzero(fold == k)
        test = data.of(instances=at)
        order = np.argsort(-means_of(train.correct), kind="stable")
        for calls in range(1, count + 1):
            simple[at, calls - 1] = vote(test, order[:calls].tolist())
        for price in prices:
            rule = CostAware(price).fit(train, p[fold != k])
            right[price][at], asked[price][at] = rule.decide(test, p[at])
    votes = [Point(k + 1.0, *mean_se(simple[:, k], groups)) for k in range(count)]
    frontier = [Point(float(asked[price].mean()), *mean_se(right[price], groups), price) for price in prices]
    return votes, sorted(frontier, key=lambda point: point.calls)
