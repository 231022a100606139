"""Ask several prompts and vote: how many, decided for each query by what its answers so far are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from rayprompt.errors import InputError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.logs import canonical
from rayprompt.scores import BoolArray, FloatArray, IntArray

Canonical = Callable[[Any], "str | None"]
FLOOR = 1e-3  # least weight of a vote: an answer is better than none
PENALTY = 1.0


def answers_of(data: Demonstrations, same: Canonical = canonical) -> IntArray:
    """(I, P) numbers of the answers of each instance, equal where they are the same; -1 where there is none.

    Raises:
        InputError: the demonstrations have no answers.
    """
    if data.answer is None:
        raise InputError("voting needs a column 'answer' in the demonstrations (--answers FILE joins one to them)")
    found = np.full(data.correct.shape, -1)
    for i, row in enumerate(data.answer.tolist()):
        known: dict[str, int] = {}
        for p, value in enumerate(row):
            text = same(value)
            if text is not None:
                found[i, p] = known.setdefault(text, len(known))
    return found


def right_answers(data: Demonstrations, answers: IntArray, same: Canonical = canonical) -> IntArray:
    """(I,) the number of the right answer of each instance, by ``gold`` or else by the labels; -2 where none is."""
    found = np.full(len(data), -2)
    for i in range(len(data)):
        if data.gold is not None and data.answer is not None:
            gold = same(data.gold[int(data.query[i])])
            hits = [p for p, value in enumerate(data.answer[i].tolist()) if same(value) == gold and gold is not None]
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


def vote_weights(success: FloatArray, answers: IntArray, right: IntArray) -> FloatArray:
    """(K,) log-odds of prompts with that success (K,) against a wrong answer; wrong ones agree as often as they did."""
    wrong = np.where(answers == right[:, None], -1, answers)
    pairs = agree = 0
    for row in wrong:
        row = row[row >= 0]
        pairs += len(row) * (len(row) - 1) // 2
        counts = np.bincount(row) if len(row) else np.zeros(1, dtype=np.int64)
        agree += int((counts * (counts - 1) // 2).sum())
    ways = max(2.0, pairs / max(agree, 1))  # as many wrong answers as if each was as likely
    p = np.clip(success, 1e-3, 1 - 1e-3)
    return np.asarray(np.maximum(np.log(p * (ways - 1) / (1 - p)), FLOOR))


class CostAware:
    """Prompts are asked one after another, best first, until another answer is not worth its price.

    What stopping is worth is the probability that the leading answer is right; what going on is worth, the mean of what
    came of it on train less the price, both regressed on the state of the vote: optimal stopping by least squares
    (Longstaff and Schwartz, 2001), call by call from the last.

    Args:
        price: of a call, in successes.

    Attributes:
        order: (K,) the prompts as they are asked; weights: (K,) of their votes.
    """

    def __init__(self, price: float) -> None:
        if price < 0:
            raise InputError(f"price {price}: must be 0 or more successes a call")
        self.price = price
        self.order: IntArray = np.zeros(0, dtype=np.int64)
        self.weights: FloatArray = np.zeros(0)
        self.stop: list[Any] = []
        self.go_on: list[Any] = []

    def fit(self, data: Demonstrations, p: FloatArray) -> CostAware:
        """Learn from demonstrations with answers, and a reward model's probabilities (I, P) for them."""
        answers = answers_of(data)
        right = right_answers(data, answers)
        success = np.nanmean(data.correct, axis=0)
        self.order = np.argsort(-success, kind="stable")
        self.weights = vote_weights(success, answers, right)[self.order]
        votes = tally(answers[:, self.order], self.weights)
        hit = (votes.leader == right[:, None]).astype(np.float64)
        calls = len(self.order)
        states = [self.state(votes, p[:, self.order], k) for k in range(calls)]
        value = np.zeros(len(data))
        self.stop, self.go_on = [None] * calls, [None] * calls
        for k in reversed(range(calls)):
            self.stop[k] = _probability(states[k], hit[:, k])
            worth = _predict(self.stop[k], states[k])
            if k == calls - 1:
                value = hit[:, k]
                continue
            self.go_on[k] = Ridge(PENALTY).fit(states[k], value - self.price)
            stops = worth >= self.go_on[k].predict(states[k])
            value = np.where(stops, hit[:, k], value - self.price)
        return self

    @staticmethod
    def state(votes: Tally, p: FloatArray, k: int) -> FloatArray:
        """(I, 7) what the decision after call k sees: the vote, and the reward model's mean and next probability."""
        top, second = votes.top[:, k], votes.second[:, k]
        mean = p.mean(axis=1)
        following = p[:, min(k + 1, p.shape[1] - 1)]
        logit = np.log(np.clip(mean, 1e-3, 1 - 1e-3) / np.clip(1 - mean, 1e-3, 1))
        return np.column_stack([top, second, top - second, top**2, votes.distinct[:, k] / (k + 1), logit, following])

    def decide(self, data: Demonstrations, p: FloatArray) -> tuple[FloatArray, IntArray]:
        """(I,) whether the answer was right, and (I,) how many prompts were asked."""
        answers = answers_of(data)
        right = right_answers(data, answers)
        votes = tally(answers[:, self.order], self.weights)
        asked = np.full(len(data), len(self.order))
        open_: BoolArray = np.ones(len(data), dtype=bool)
        for k in range(len(self.order) - 1):
            state = self.state(votes, p[:, self.order], k)
            stops = open_ & (_predict(self.stop[k], state) >= self.go_on[k].predict(state))
            asked[stops] = k + 1
            open_ &= ~stops
        leader = votes.leader[np.arange(len(data)), asked - 1]
        return (leader == right).astype(np.float64), asked


def vote(data: Demonstrations, prompts: Sequence[int]) -> FloatArray:
    """(I,) whether the answer that most of the prompts gave was right; of equals that of the earlier prompt."""
    answers = answers_of(data)
    leader = tally(answers[:, list(prompts)], np.ones(len(prompts))).leader[:, -1]
    return np.asarray(leader == right_answers(data, answers), dtype=np.float64)


def _probability(x: FloatArray, y: FloatArray) -> Any:
    if y.min() == y.max():
        return float(y[0])
    return LogisticRegression(C=PENALTY, max_iter=500).fit(x, y)


def _predict(model: Any, x: FloatArray) -> FloatArray:
    """(I,) probabilities."""
    if isinstance(model, float):
        return np.full(len(x), model)
    return np.asarray(model.predict_proba(x)[:, 1])
