"""Votes of several prompts, and the rule that decides how many are asked."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reward_data import rows, world

from rayprompt.errors import InputError
from rayprompt.numerals import canonical
from rayprompt.reward.assess import PRICES, assess, assess_folds
from rayprompt.reward.checks import check
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.folds import folds
from rayprompt.reward.models import model_class
from rayprompt.reward.recommender import Recommender
from rayprompt.reward.selection import mean_se, switch
from rayprompt.reward.voting import (
    CostAware,
    answers_of,
    best_first,
    right_answers,
    success_of,
    tally,
    vote,
    vote_weights,
)


def test_a_tally_is_a_count() -> None:
    rng = np.random.default_rng(0)
    answers, weights = rng.integers(-1, 4, size=(150, 7)), np.array([3.0, 1, 2, 1, 1, 2, 1])
    found = tally(answers, weights)
    for i in range(150):
        for k in range(7):
            votes: Counter[int] = Counter()
            for a, w in zip(answers[i, : k + 1].tolist(), weights, strict=False):
                if a >= 0:
                    votes[a] += w
            if not votes:
                assert found.leader[i, k] == -1
                continue
            most = max(votes.values())
            first = next(a for a in answers[i, : k + 1].tolist() if votes.get(a) == most)
            assert found.leader[i, k] == first
            assert found.top[i, k] == pytest.approx(most / sum(votes.values()))
            assert found.distinct[i, k] == len(votes)


def test_votes_of_the_published_answers(gsm8k: Demonstrations) -> None:
    """About .295 with the six training prompts and .33 with all; of equals the answer of the prompt asked first."""
    test = gsm8k.of(split="test")
    assert vote(test, range(6)).mean() == pytest.approx(0.295, abs=0.006)
    assert vote(test, range(16)).mean() == pytest.approx(0.332, abs=0.006)
    answers = answers_of(test)
    agree = (answers == right_answers(test, answers)[:, None]) == (test.correct == 1)
    assert agree.mean() > 0.995


def asked_of(success: list[float], seed: int, queries: int = 500, copies: int = 0) -> Demonstrations:
    """Prompts right about that often, on queries of unequal ease; of wrong answers there are eight.

    After them come copies of the first.
    """
    rng, often = np.random.default_rng(seed), np.array(success)
    ease, count = rng.normal(size=(queries, 1)), len(success)
    right = rng.random((queries, count)) < 1 / (1 + np.exp(-ease - np.log(often / (1 - often))))
    answer = np.where(right, 0, rng.integers(1, 9, size=(queries, count)))
    answer = np.hstack([answer, np.repeat(answer[:, :1], copies, axis=1)])
    uid, prompt = (grid.ravel() for grid in np.indices(answer.shape))
    table = rows(
        query_uid=uid.astype(str).tolist(),
        query=[f"what is {'x' * u}?" for u in uid.tolist()],  # each a template of its own
        prompt_id=prompt.astype(str).tolist(),
        correct=(answer.ravel() == 0).astype(int).tolist(),
        answer=answer.ravel().astype(str).tolist(),
        gold=["0"] * answer.size,
    )
    return Demonstrations.from_columns(table)


def test_votes_count_the_same_until_they_have_earned_more() -> None:
    """Equally good prompts vote as a plain majority does; of copies, and of bad prompts, the votes count less."""
    seeds, gains = range(8), []
    for seed in seeds:
        train, test = asked_of([0.3] * 8, seed), asked_of([0.3] * 8, 100 + seed)
        noise = np.random.default_rng(seed).uniform(0.05, 0.95, size=(len(train), 8))
        rule = CostAware(-1.0).fit(train, noise)
        right, asked = rule.decide(test, noise)
        assert asked.min() == 8
        gains.append(right - vote(test, rule.order.tolist()))
        if np.ptp(rule.weights) == 0:
            assert not gains[-1].any()
    assert sum(not gain.any() for gain in gains) >= len(seeds) / 2
    mean, se = mean_se(np.concatenate(gains), np.arange(500 * len(seeds)))
    assert mean >= -2 * se
    train, test = (asked_of([0.35, 0.35, 0.35, 0.35, 0.02, 0.02], seed, copies=3) for seed in (1, 2))
    answers = answers_of(train)
    weights = vote_weights(train, answers, right_answers(train, answers))
    assert weights.mean() == pytest.approx(1)
    assert max(weights[[0, 4, 5, 6, 7, 8]]) < min(weights[1:4])
    right, _ = CostAware(-1.0).fit(train, np.full((500, 9), 0.3)).decide(test, np.full((500, 9), 0.3))
    gain, gain_se = mean_se(right - vote(test, best_first(success_of(train)).tolist()), np.arange(500))
    assert gain > 2 * gain_se
    same = asked_of([0.3], 0, copies=2)
    answers = answers_of(same)
    assert np.ptp(vote_weights(same, answers, right_answers(same, answers))) == 0


def test_a_price_decides_how_many_are_asked(gsm8k: Demonstrations) -> None:
    test = gsm8k.of(split="test")
    p = np.tile(np.nanmean(test.correct, axis=0), (len(test), 1))
    half = np.arange(len(test)) % 2 == 0
    train, other = test.of(instances=half), test.of(instances=~half)
    calls = []
    for price in (0.0, 0.005, 0.02, 1.0):
        right, asked = CostAware(price).fit(train, p[half]).decide(other, p[~half])
        calls.append(float(asked.mean()))
        assert set(np.unique(right).tolist()) <= {0.0, 1.0}
        rule = CostAware.from_json(json.loads(json.dumps(CostAware(price).fit(train, p[half]).to_json())))
        for i in range(0, 60):  # asked call by call, it decides the same
            given: list[Any] = []
            while (place := rule.following(given, p[~half][i])) is not None:
                given.append(None if other.answer is None else other.answer[i, place])
            assert len(given) == asked[i]
            assert other.gold is not None
            assert (canonical(rule.leader(given)) == canonical(other.gold[other.query[i]])) == bool(right[i])
    assert calls == sorted(calls, reverse=True)
    assert calls[0] > 4
    assert calls[-1] == 1.0
    with pytest.raises(InputError, match="needs a column 'answer'"):
        CostAware(0.1).fit(world(50), np.zeros((50, 3)))
    with pytest.raises(InputError, match="price nan"):
        CostAware(float("nan"))
    rule = CostAware(-1.0).fit(train, p[half], np.linspace(1, 0, 16))  # who is paid for calls makes all of them
    assert rule.decide(other, p[~half])[1].min() == 16
    assert rule.order.tolist() == list(range(16))  # known success decides, not that in the data
    alone = test.of(prompts=[0])
    assert CostAware(0.0).fit(alone, p[:, :1]).decide(alone, p[:, :1])[1].max() == 1


def voted(queries: int = 120, **change: Any) -> Demonstrations:
    """The world with answers: 1 is right, of wrong ones there are three."""
    table = world(queries).to_table().to_pydict()
    rng = np.random.default_rng(1)
    table["answer"] = ["1" if c else str(rng.integers(2, 5)) for c in table["correct"]]
    return Demonstrations.from_columns({**table, "gold": ["1"] * len(table["answer"]), **change})


def test_no_label_of_a_fold_has_a_part_in_when_its_votes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = voted()
    other = replace(data, correct=np.where((folds(data, 5) == 0)[:, None], 1 - data.correct, data.correct))
    learn, rules = CostAware.fit, []

    def kept(self: CostAware, *given: Any) -> CostAware:
        rules.append(learn(self, *given).gain)
        return self

    monkeypatch.setattr(CostAware, "fit", kept)
    found = assess_folds(data, model_class("prior"))
    assess_folds(other, model_class("prior"))
    first, again = rules[: len(PRICES)], rules[5 * len(PRICES) : 6 * len(PRICES)]
    np.testing.assert_array_equal(first, again)  # of the fold whose labels changed
    assert not np.array_equal(rules[len(PRICES)], rules[6 * len(PRICES)])
    assert [c.calls for c in found.compared] == [1, 2, 3]
    assert found.compared[0].gain == 0  # one call is the best prompt, for both
    assert (found.frontier[0].calls, found.frontier[-1].calls) == (1.0, 3.0)
    assert found.compared[-1].cost_aware == pytest.approx(found.frontier[-1].success)


def test_votes_are_in_the_order_of_train_where_it_has_labels() -> None:
    """c is asked first: it is best on train, though worst on test; b has labels on test alone."""
    train = voted(100).of(prompts=[0, 2])
    train = replace(train, correct=np.tile([0.0, 1.0], (100, 1)), answer=None, gold=None)
    test = voted()
    found = assess(Recommender.fit(train, model_class("prior")), train, test)
    assert found.votes[0].success == pytest.approx(test.correct[:, 2].mean())
    few = assess(Recommender.fit(train, model_class("prior")), train, test.of(instances=range(3)))
    assert (few.votes, few.note[:8], few.outcomes[0].n) == ([], "no votes", 3)
    gone = replace(test, correct=np.where([True, True, False], test.correct, np.nan))  # c on train alone
    assert len(assess(Recommender.fit(train, model_class("prior")), train, gone).votes) == 2
    table = test.to_table().to_pydict()
    halves = {**table, "split": ["train" if int(u) < 60 else "test" for u in table["query_uid"]]}
    halves["answer"] = [a if s == "test" else None for a, s in zip(table["answer"], halves["split"], strict=True)]
    assert (
        assess_folds(Demonstrations.from_columns(halves), model_class("prior")).note == "no votes: train has no answers"
    )


def test_a_rule_takes_no_prompt_without_a_label() -> None:
    """Where no seen prompt reaches a half and the unseen one has no label, switch stays."""
    train, test = world(200), world(60, seed=3).to_table().to_pydict()
    keep = [i for i, (u, p) in enumerate(zip(test["query_uid"], test["prompt_id"], strict=True)) if p != "b" or u < "3"]
    sparse = Demonstrations.from_columns({name: [values[i] for i in keep] for name, values in test.items()})
    found = assess(Recommender.fit(train.of(prompts=[0, 2]), model_class("prior")), train.of(prompts=[0, 2]), sparse)
    assert {o.n for o in found.outcomes} == {60}
    p = np.array([[0.2, -np.inf], [0.2, 0.1], [0.7, 0.9], [-np.inf, 0.1]])
    assert switch(p, np.array([0]), np.array([1])).tolist() == [0, 1, 0, 1]


def test_json_of_findings_is_plain(mawps: Demonstrations) -> None:
    assert json.loads(json.dumps([finding.to_json() for finding in check(mawps)]))[0]["refused"] is True
