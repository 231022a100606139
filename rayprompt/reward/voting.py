"""Ask several prompts and vote: how many, decided for each query by what its answers so far are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import Ridge

from rayprompt.errors import InputError
from rayprompt.numerals import canonical
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.folds import folds
from rayprompt.reward.selection import mean_se, means_of
from rayprompt.scores import BoolArray, FloatArray, IntArray

Canonical = Callable[[Any], "str | None"]
FLOOR = 1e-3  # least weight of a vote: an answer is better than none
SCHEMA = "rayprompt.cost-aware/1"
SHRINK = (math.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)  # of unequal weights, most first
TINY = 1e-2  # bounds weights where votes are always right
FOLDS = 5
PENALTY = 10.0  # of the regression
ROUNDS = 6


def answers_of(data: Demonstrations, same: Canonical = canonical) -> IntArray:
    """(I, P) numbers of the answers of each instance, equal where they are the same; -1 where there is none.

    Raises:
        InputError: the demonstrations have no answers.
    """
    if data.answer is None:
        raise InputError("voting needs a column 'answer' in the demonstrations (--answers FILE joins one to them)")
    found = np.full(data.correct.shape, -1)
    for i, row in enumerate(data.answer.tolist()):
        found[i] = _numbered(row, same)
    return found


def _numbered(row: Sequence[Any], same: Canonical) -> IntArray:
    known: dict[str, int] = {}
    texts = [same(value) for value in row]
    return np.array([-1 if text is None else known.setdefault(text, len(known)) for text in texts], dtype=np.int64)


def right_answers(data: Demonstrations, answers: IntArray, same: Canonical = canonical) -> IntArray:
    """(I,) the number of the right answer of each instance, by its ``gold`` or else by its labels; -2 where none is."""
    found = np.full(len(data), -2)
    for i, query in enumerate(data.query.tolist()):
        gold = None if data.gold is None else same(data.gold[query])
        if gold is not None and data.answer is not None:
            hits = [p for p, value in enumerate(data.answer[i].tolist()) if same(value) == gold]
        else:
            hits = np.flatnonzero((data.correct[i] == 1) & (answers[i] >= 0)).tolist()
        if hits:
            found[i] = answers[i, hits[0]]
    return found


@dataclass(frozen=True)
class Tally:
    """Votes after each call, of I instances over K calls.

    Attributes:
        leader: (I, K) the answer with most votes after that call, -1 where there is none; of equals that of the prompt
            that was asked first.
        top, second, distinct: (I, K) its share of all weight, that of the next, and the number of answers so far.
    """

    leader: IntArray
    top: FloatArray
    second: FloatArray
    distinct: IntArray


def tally(answers: IntArray, weights: FloatArray) -> Tally:
    """Votes with weights (K,), call after call, over answers (I, K) in the order in which they are asked."""
    count, calls = answers.shape
    sums = np.zeros((count, max(1, int(answers.max()) + 1)))
    first = np.full(sums.shape, calls)
    leader, top = np.full(answers.shape, -1), np.zeros(answers.shape)
    second, distinct = np.zeros(answers.shape), np.zeros(answers.shape, dtype=np.int64)
    everyone = np.arange(count)
    for k in range(calls):
        voted = answers[:, k] >= 0
        at = (everyone[voted], answers[voted, k])
        sums[at] += weights[k]
        first[at] = np.minimum(first[at], k)
        best = np.lexsort((first, -sums.round(9)), axis=1)[:, :2]
        total = np.maximum(sums.sum(axis=1), 1e-12)
        ranked = np.take_along_axis(sums, best, axis=1)
        leader[:, k] = np.where(ranked[:, 0] > 0, best[:, 0], -1)
        top[:, k] = ranked[:, 0] / total
        second[:, k] = ranked[:, 1] / total if ranked.shape[1] > 1 else 0.0
        distinct[:, k] = (sums > 0).sum(axis=1)
    return Tally(leader, top, second, distinct)


def success_of(data: Demonstrations, known: FloatArray | None = None) -> FloatArray:
    """(P,) the success of each prompt: what is known of it, or else its mean over the labels of ``data``."""
    means = means_of(data.correct)
    return means if known is None else np.where(np.isnan(known), means, known)


def best_first(success: FloatArray) -> IntArray:
    """(P,) places of the prompts in the order in which they are asked; of equals the earlier."""
    return np.argsort(-success, kind="stable")


def vote_weights(data: Demonstrations, answers: IntArray, right: IntArray) -> FloatArray:
    """(P,) weights of votes, of mean 1: what a vote of each prompt says for an answer beside the votes of the others.

    A softmax over the answers to a query, of the summed weights of those who gave them, should be high at the right
    one. Weights are shrunk towards equal ones, the plain majority, as far as this costs no more than one standard error
    of the likelihood of train queries that they were not learned from: unequal ones have to earn it.
    """
    groups, count = data.groups("template"), answers.shape[1]
    judged = np.flatnonzero(right >= 0)  # the others cannot be right
    parts = min(FOLDS, len(np.unique(groups[judged])))
    if parts < 2 or count < 2:
        return np.ones(count)
    fold = folds(data.of(instances=judged), parts)
    given, right, groups = answers[judged], right[judged], groups[judged]
    votes = (given[:, None, :] == np.arange(given.max() + 1)[None, :, None]).astype(np.float64)
    said = np.zeros((len(SHRINK), len(judged)))
    for i, shrink in enumerate(SHRINK):
        for k in range(parts):
            weights = _fitted(votes[fold != k], right[fold != k], shrink)
            said[i, fold == k] = _log_softmax(votes[fold == k], weights)[np.arange((fold == k).sum()), right[fold == k]]
    loss = [mean_se(said[said.mean(axis=1).argmax()] - row, groups) for row in said]
    chosen = next(shrink for shrink, (mean, se) in zip(SHRINK, loss, strict=True) if not mean > se)
    weights = np.maximum(_fitted(votes, right, chosen), FLOOR)
    return np.asarray(weights / weights.mean())


def _fitted(votes: FloatArray, right: IntArray, shrink: float) -> FloatArray:
    """(P,) weights of most likelihood of the right answers (I,) by votes (I, C, P), less shrink x their variation."""
    if math.isinf(shrink):  # what remains is how much any vote says
        return np.full(votes.shape[2], _fitted(votes.sum(axis=2, keepdims=True), right, 0.0)[0])
    hit = votes[np.arange(len(right)), right]

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        says, apart = _log_softmax(votes, weights), weights - weights.mean()
        expected = np.einsum("ic,icp->ip", np.exp(says), votes)
        value = shrink * (apart**2).sum() + TINY * (weights**2).sum() - says[np.arange(len(right)), right].sum()
        return float(value), (expected - hit).sum(axis=0) + 2 * shrink * apart + 2 * TINY * weights

    return np.asarray(minimize(loss, np.zeros(votes.shape[2]), jac=True, method="L-BFGS-B").x)


def _log_softmax(votes: FloatArray, weights: FloatArray) -> FloatArray:
    """(I, C) what votes (I, C, P) say for each answer that anyone gave; of the others nearly minus infinity."""
    says = np.where(votes.any(axis=2), votes @ weights, -1e9)
    return np.asarray(says - logsumexp(says, axis=1, keepdims=True))


class CostAware:
    """Prompts are asked one after another, best first, until another answer is not worth its price.

    Whether to go on after call k is decided by what going on has brought on train in such a state of the vote: the
    difference, which is nearly always 0, between being right in the end and being right now, less the price of the
    calls, regressed on the state of the vote and on what the reward model says. What "in the end" is depends on the
    decisions that follow: they begin with asking all, and are improved in rounds (fitted policy iteration; as Longstaff
    and Schwartz, 2001, but on differences, which vary much less than the values themselves).

    Args:
        price: of a call, in successes. Below 0 more is asked than pays, which shows what the calls left would bring.

    Attributes:
        prompts: (K,) their texts; order: (K,) their places as they are asked; weights: (K,) of their votes.
        gain: (21,) the regression: coefficients of the state, and the constant.
    """

    def __init__(self, price: float) -> None:
        if not math.isfinite(price):
            raise InputError(f"price {price}: must be a number of successes a call")
        self.price = price
        self.order: IntArray = np.zeros(0, dtype=np.int64)
        self.weights: FloatArray = np.zeros(0)
        self.gain: FloatArray = np.zeros(1)
        self.prompts: tuple[str, ...] = ()

    def fit(
        self,
        data: Demonstrations,
        p: FloatArray,
        success: FloatArray | None = None,
        weights: FloatArray | None = None,
    ) -> CostAware:
        """Learn from demonstrations with answers, and a reward model's probabilities (I, P) for them.

        Prompts are asked in the order of their success here, or of ``success`` (P,) where that is known better, from
        labels that have no answers; NaN where it is not. ``weights`` (P,): :func:`vote_weights` of the same data, where
        a rule for another price has them.
        """
        answers = answers_of(data)
        right = right_answers(data, answers)
        self.prompts = data.prompts
        self.order = best_first(success_of(data, success))
        self.weights = (vote_weights(data, answers, right) if weights is None else weights)[self.order]
        votes = tally(answers[:, self.order], self.weights)
        hit = (votes.leader == right[:, None]).astype(np.float64)
        calls = len(self.order)
        if calls == 1:
            return self
        states = np.stack([self.state(votes, p[:, self.order], k) for k in range(calls - 1)], axis=1)
        asked = np.full((len(data), calls - 1), calls)  # where one who goes on after call k stops
        everyone = np.arange(len(data))
        for _ in range(ROUNDS):
            ends = np.take_along_axis(hit, asked - 1, axis=1)
            gained = ends - hit[:, :-1] - self.price * (asked - 1 - np.arange(calls - 1))
            ridge = Ridge(PENALTY).fit(states.reshape(-1, states.shape[2]), gained.reshape(-1))
            self.gain = np.append(ridge.coef_, ridge.intercept_)
            goes_on = self.goes_on(states)
            stop = np.full(len(data), calls)
            for k in reversed(range(calls - 1)):
                asked[:, k] = stop
                stop = np.where(goes_on[everyone, k], stop, k + 1)
        return self

    def goes_on(self, states: FloatArray) -> BoolArray:
        """Whether another answer is worth its price in states (..., 20)."""
        return np.asarray(states @ self.gain[:-1] + self.gain[-1] > 0)

    def following(self, answers: Sequence[Any], p: FloatArray, same: Canonical = canonical) -> int | None:
        """The place of the prompt to be asked next, or None: the vote is over. What is asked, the LM is asked for.

        Args:
            answers: those so far, in the order in which prompts were asked; None where nothing was extracted.
            p: (K,) the reward model's probabilities for this query.
            same: the form in which two answers are compared.
        """
        asked = len(answers)
        if asked == len(self.order):
            return None
        if asked:
            votes = tally(_numbered(answers, same)[None], self.weights[:asked])
            if not self.goes_on(self.state(votes, p[None, self.order], asked - 1))[0]:
                return None
        return int(self.order[asked])

    def leader(self, answers: Sequence[Any], same: Canonical = canonical) -> Any:
        """The answer that leads, as it was first given; None where there is none."""
        numbers = _numbered(answers, same)
        if not len(numbers):
            return None
        first = tally(numbers[None], self.weights[: len(numbers)]).leader[0, -1]
        return None if first < 0 else answers[int(np.flatnonzero(numbers == first)[0])]

    def to_json(self) -> dict[str, Any]:
        """All that it has learned."""
        return {
            "schema": SCHEMA,
            "price": self.price,
            "prompts": list(self.prompts),
            "order": self.order.tolist(),
            "weights": self.weights.tolist(),
            "gain": self.gain.tolist(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CostAware:
        """Read :meth:`to_json` back.

        Raises:
            InputError: it is something else.
        """
        if content.get("schema") != SCHEMA:
            raise InputError(f"schema {content.get('schema')!r}; a cost-aware rule has {SCHEMA!r}")
        rule = cls(float(content["price"]))
        rule.prompts = tuple(content["prompts"])
        rule.order, rule.weights, rule.gain = (np.array(content[name]) for name in ("order", "weights", "gain"))
        return rule

    def state(self, votes: Tally, p: FloatArray, k: int) -> FloatArray:
        """(I, 20) what the decision after call k sees: the vote, what could still turn it, and the model's opinion."""
        top, second = votes.top[:, k], votes.second[:, k]
        mean = np.clip(p.mean(axis=1), 1e-3, 1 - 1e-3)
        left = self.weights[k + 1 :].sum() / self.weights[: k + 1].sum()
        turns = np.minimum(1.0, left / np.maximum(top - second, 1e-3))
        own = np.column_stack(
            [
                np.ones(len(top)),
                top,
                second,
                top**2,
                turns,
                turns * (top - second),
                votes.distinct[:, k] / (k + 1),
                np.log(mean / (1 - mean)),
                mean * top,
                p[:, min(k + 1, p.shape[1] - 1)],
            ]
        )
        return np.hstack([own, own * (k + 1) / len(self.weights)])

    def decide(self, data: Demonstrations, p: FloatArray) -> tuple[FloatArray, IntArray]:
        """(I,) whether the answer was right, and (I,) how many prompts were asked."""
        answers = answers_of(data)
        right = right_answers(data, answers)
        votes = tally(answers[:, self.order], self.weights)
        asked = np.full(len(data), len(self.order))
        open_: BoolArray = np.ones(len(data), dtype=bool)
        for k in range(len(self.order) - 1):
            stops = open_ & ~self.goes_on(self.state(votes, p[:, self.order], k))
            asked[stops] = k + 1
            open_ &= ~stops
        leader = votes.leader[np.arange(len(data)), asked - 1]
        return (leader == right).astype(np.float64), asked


def vote(data: Demonstrations, prompts: Sequence[int]) -> FloatArray:
    """(I,) whether the answer that most of the prompts gave was right; of equals that of the earlier prompt."""
    answers = answers_of(data)
    leader = tally(answers[:, list(prompts)], np.ones(len(prompts))).leader[:, -1]
    return np.asarray(leader == right_answers(data, answers), dtype=np.float64)
