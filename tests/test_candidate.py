from __future__ import annotations

import copy
import hashlib
import json
import pickle

import numpy as np
import pytest

from rayprompt.budget import BudgetExceeded, Ledger
from rayprompt.candidate import CandidateForms, SoftPrompt, Subspace, TextPrompt, candidate_from_json, candidates
from rayprompt.errors import InputError
from rayprompt.scores import Scores

CANDIDATES = [
    TextPrompt("It was"),
    TextPrompt("It was", (1, 2)),
    TextPrompt(""),
    TextPrompt("", ()),
    SoftPrompt((0.5, -1.0), Subspace(seed=3, scale=0.1, length=5)),
]


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_json_form_and_pickle_give_the_same_candidate(candidate: TextPrompt | SoftPrompt) -> None:
    for again in (candidate_from_json(candidate.to_json()), pickle.loads(pickle.dumps(candidate))):
        assert again == candidate
        assert again.key == candidate.key
        assert hash(again) == hash(candidate)


def test_keys_say_what_is_scored() -> None:
    assert TextPrompt("a b", (1, 2)).key == TextPrompt("a  b", (1, 2)).key
    assert TextPrompt("a b", (1, 2)).key != TextPrompt("a b", (2, 1)).key
    assert len({c.key for c in CANDIDATES}) == len(CANDIDATES)
    # Stable for ever: stores and exported prompts carry it.
    assert TextPrompt("It was", (1, 2)).key == hashlib.sha256(b'["ids",[1,2]]').hexdigest()[:32]
    assert TextPrompt("It was").key == "3714df300b50d1e59c62774809599658"


@pytest.mark.parametrize("form", [{}, {"kind": "text"}, {"kind": "text", "text": 3}, {"kind": "x"}, {"kind": "soft"}])
def test_what_is_no_candidate_is_refused(form: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a candidate"):
        candidate_from_json(form)


def test_ledger_never_exceeds_its_budget() -> None:
    ledger = Ledger(10)
    ledger.charge(7)
    with pytest.raises(BudgetExceeded):
        ledger.charge(4)
    assert ledger.evaluations == 7
    ledger.charge(3)
    assert ledger.remaining == 0
    with pytest.raises(InputError, match="must be 1 or more"):
        Ledger(0)


def test_scores_of_values_have_no_pairs() -> None:
    scores = Scores.of_values(CANDIDATES[:2], np.array([1.0, np.nan]))
    assert len(scores) == 0
    assert np.isnan(scores.mean_value()).all()
    with pytest.raises(InputError, match="no label_log_probs"):
        scores.dense("label_log_probs")
    with pytest.raises(InputError, match="no dense view"):
        scores.dense("nope")


def test_a_trials_config_holds_candidates_as_one_text_that_prints_as_their_number() -> None:
    batch = [TextPrompt('say "kind": \\ é', (1, 2)), TextPrompt("so")]
    forms = CandidateForms.of(batch)
    assert str(forms) == f"{forms}" == repr(forms) == "2 candidates"
    plain = json.loads(json.dumps({"candidates": forms, "batch": 0}))
    for config in (
        {"candidates": forms},
        plain,
        copy.deepcopy({"candidates": forms}),
        {"candidates": json.loads(forms)},
    ):
        assert candidates(config) == batch
    assert candidates(pickle.loads(pickle.dumps({"candidates": forms}))) == batch


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"lr": 1, "beta": 2},
            "no 'candidates' in the trial's config .it has: beta, lr.; its searcher must",
        ),
        ({}, "it has: nothing"),
        ({"candidates": "[{"}, "'candidates' is not JSON"),
        ({"candidates": [{"kind": "picture"}]}, "not a candidate: kind 'picture'"),
    ],
)
def test_a_config_without_candidates_is_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        candidates(config)
