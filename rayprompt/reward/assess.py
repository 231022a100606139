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
from rayprompt.reward.selection import Outcome, best_on_train, mean_se, references, taken
from rayprompt.reward.voting import CostAware, answers_of, best_first, right_answers, success_of, vote, vote_weights
from rayprompt.scores import FloatArray, IntArray

# Of a call, in successes: from paying for every call, so that all are made, to more than a success can be worth.
PRICES = (-1.0, -0.005, -0.003, -0.002, -0.001, 0.0, 0.002, 0.004, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 1.0)
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
class Compared:
    """The cost-aware rule against a majority at the same mean number of calls, instance by instance.

    Attributes:
        calls: of both; the rule's are those of the two nearest prices, between which it is drawn by lot.
        majority, cost_aware: success.
        gain, gain_se: of the rule over the majority, paired, and its standard error over groups of queries.
    """

    calls: int
    majority: float
    cost_aware: float
    gain: float
    gain_se: float

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
        votes: the simple majority of the k best prompts, for each k; ``frontier`` the cost-aware rule at several
            prices; ``compared`` the two at as many calls. Only where there are answers. Which prompts are best, for
            both, train labels say; of a prompt that has none the labels of the other folds of what is judged.
        weights: of the guard, one for each fold.
        note: why there are no votes although there are answers.
        calls: of the LM, by all of this: none.
    """

    model: str
    llm: str
    n: int
    quality: dict[str, Quality]
    outcomes: list[Outcome]
    votes: list[Point] = field(default_factory=list)
    frontier: list[Point] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    note: str = ""

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
            "compared": [c.to_json() for c in self.compared],
            "guard_weights": self.weights,
            "note": self.note,
        }


@dataclass
class Chosen:
    """What was predicted and chosen for I instances under P prompts; ``both``: there were seen and unseen ones."""

    p: FloatArray
    base: IntArray
    rules: dict[str, IntArray]
    both: bool = False

    @classmethod
    def blank(cls, shape: tuple[int, int]) -> Chosen:
        return cls(np.full(shape, np.nan), np.zeros(shape[0], dtype=np.int64), {})

    def fill(self, at: IntArray, recommender: Recommender, train: Demonstrations, test: Demonstrations) -> None:
        """The instances ``at`` are those of ``test``: each may choose among the prompts that it has labels of."""
        p = recommender.predict(test.texts, test.prompts)
        self.p[at] = p
        self.base[at] = best_on_train(train, test)
        seen = np.array([text in set(recommender.prompts) for text in test.prompts])
        self.both |= bool(seen.any() and not seen.all())
        rules = {
            "guarded": ("guarded", test.known),
            "best of n": ("best-of-n", test.known),
            "best of learned": ("best-of-n", test.known & seen),
            "switch": ("switch", test.known),
        }
        for name, (rule, allowed) in rules.items():
            chosen = recommender.choose(p, test.prompts, rule, allowed)[0]
            self.rules.setdefault(name, np.zeros(len(self.p), dtype=np.int64))[at] = chosen


@dataclass
class Votes:
    """Whether votes of I instances came out right, and how many prompts they asked; each learned on other instances.

    Attributes:
        prices: of a call, (R,).
        simple: (I, P) of the k + 1 best prompts.
        right, asked: (I, R) of the cost-aware rule.
    """

    prices: Sequence[float]
    simple: FloatArray
    right: FloatArray
    asked: FloatArray

    @classmethod
    def blank(cls, shape: tuple[int, int], prices: Sequence[float] = PRICES) -> Votes:
        return cls(prices, np.zeros(shape), *(np.zeros((shape[0], len(prices))) for _ in range(2)))

    def fill(
        self,
        at: IntArray,
        train: tuple[Demonstrations, FloatArray],
        test: tuple[Demonstrations, FloatArray],
        success: FloatArray | None = None,
    ) -> None:
        """The instances ``at`` are those of ``test``; both with probabilities (I, P) of models that had not seen them.

        No label of ``test`` may have had a part in those of ``train``. ``success`` (P,): see :meth:`CostAware.fit`.
        """
        order = best_first(success_of(train[0], success))
        for k in range(len(order)):
            self.simple[at, k] = vote(test[0], order[: k + 1].tolist())
        answers = answers_of(train[0])
        weights = vote_weights(train[0], answers, right_answers(train[0], answers))
        for r, price in enumerate(self.prices):
            rule = CostAware(price).fit(*train, success, weights)
            self.right[at, r], self.asked[at, r] = rule.decide(*test)

    def points(self, groups: IntArray) -> tuple[list[Point], list[Point]]:
        """Success over calls: of a majority, and of the cost-aware rule, fewest calls first."""
        simple = [Point(k + 1.0, *mean_se(self.simple[:, k], groups)) for k in range(self.simple.shape[1])]
        rule = [
            Point(float(self.asked[:, r].mean()), *mean_se(self.right[:, r], groups), price)
            for r, price in enumerate(self.prices)
        ]
        return simple, sorted(rule, key=lambda point: point.calls)

    def compared(self, groups: IntArray) -> list[Compared]:
        """The two at as many calls."""
        means = self.asked.mean(axis=0)
        order = np.argsort(means, kind="stable")
        found = []
        for k in range(self.simple.shape[1]):
            above = int(np.searchsorted(means[order], k + 1 - 1e-9))
            if above == len(order) or (above == 0 and means[order[0]] > k + 1 + 1e-9):
                continue
            more, less = order[above], order[max(above - 1, 0)]
            share = 1.0 if more == less else (k + 1 - means[less]) / (means[more] - means[less])
            right = share * self.right[:, more] + (1 - share) * self.right[:, less]
            gain = mean_se(right - self.simple[:, k], groups)
            found.append(Compared(k + 1, float(self.simple[:, k].mean()), float(right.mean()), *gain))
        return found


def assess(recommender: Recommender, train: Demonstrations, test: Demonstrations, *, seed: int = 0) -> Assessment:
    """A recommender that was fitted on ``train``, on ``test``.

    Votes are learned by folds within test, dealt by ``seed``, as train has no answers; with the prompts in the order of
    their success on train, where they have labels there.
    """
    found = Chosen.blank(test.correct.shape)
    found.fill(np.arange(len(test)), recommender, train, test)
    weights, prompts, queries = [recommender.guard.weight], set(recommender.prompts), set(train.queries)
    if test.answer is None:
        return _assessment(recommender.model.name, test, found, prompts, queries, weights)
    note = _no_votes(test, FOLDS)
    if note:
        return _assessment(recommender.model.name, test, found, prompts, queries, weights, note=note)
    columns = test.labelled()
    asked, p = test.of(prompts=columns), found.p[:, columns]
    known = dict(zip(train.prompts, np.where(train.known.any(axis=0), success_of(train), np.nan), strict=True))
    success = np.array([known.get(text, np.nan) for text in asked.prompts])
    votes, fold = Votes.blank(asked.correct.shape), folds(asked, FOLDS, seed=seed)
    for k in range(FOLDS):
        here, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        votes.fill(here, (asked.of(instances=others), p[others]), (asked.of(instances=here), p[here]), success)
    return _assessment(recommender.model.name, test, found, prompts, queries, weights, votes)


def assess_folds(
    data: Demonstrations,
    make: Callable[[], RewardModel],
    *,
    count: int = FOLDS,
    by: str = "template",
    seed: int = 0,
) -> Assessment:
    """Recommenders fitted on all folds but one, on that one. Their own cross-validation stays within the others.

    So does what votes are learned from: no label of the fold that is judged has a part in it.
    """
    fold = folds(data, count, by=by, seed=seed)
    found, weights = Chosen.blank(data.correct.shape), []
    note = "" if data.answer is None else _no_votes(data, count)
    votes = None if data.answer is None or note else Votes.blank(data.correct.shape)
    for k in range(count):
        train, at = data.of(instances=fold != k), np.flatnonzero(fold == k)
        test = data.of(instances=at)
        inner = min(FOLDS, len(np.unique(train.groups(by))))
        recommender, p = Recommender.cross_fit(train, make, count=inner, by=by, seed=seed)
        found.fill(at, recommender, train, test)
        weights.append(recommender.guard.weight)
        if votes is not None:
            votes.fill(at, (train, p), (test, found.p[at]))
    return _assessment(make().name, data, found, set(data.prompts), set(), weights, votes, note)


def _no_votes(data: Demonstrations, count: int) -> str:
    """Why nothing can be said of votes although there are answers; empty where it can."""
    if len(np.unique(data.groups("template"))) < count:
        return f"no votes: learning when to ask on takes {count} groups of queries (templates) or more"
    assert data.answer is not None
    for split in sorted(set(data.split.tolist())):
        if all(answer is None for answer in data.answer[data.split == split].ravel().tolist()):
            return f"no votes: {split} has no answers"
    return ""


def _assessment(
    model: str,
    test: Demonstrations,
    found: Chosen,
    prompts: set[str],
    queries: set[str],
    weights: list[float],
    votes: Votes | None = None,
    note: str = "",
) -> Assessment:
    if not found.both:  # these are best of n, then
        del found.rules["best of learned"], found.rules["switch"]
    rules = {name: (taken(test.correct, chosen), 1.0) for name, chosen in found.rules.items()}
    groups = test.groups("template")
    simple, frontier = ([], []) if votes is None else votes.points(groups)
    return Assessment(
        model=model,
        llm=test.llm,
        n=len(test),
        quality=by_kind(found.p, test, prompts, queries),
        outcomes=references(test, found.base, rules),
        votes=simple,
        frontier=frontier,
        compared=[] if votes is None else votes.compared(groups),
        weights=weights,
        note=note,
    )
