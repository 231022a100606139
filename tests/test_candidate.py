from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from rayprompt.budget import BudgetExceeded, Ledger
from rayprompt.candidate import SoftPrompt, Subspace, TextPrompt, candidate_from_json
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
    for copy in (candidate_from_json(candidate.to_json()), pickle.loads(pickle.dumps(candidate))):
        assert copy == candidate
        assert copy.key == candidate.key
        assert hash(copy) == hash(candidate)


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
