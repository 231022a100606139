"""Objectives against numeric fixtures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.objective import OBJECTIVES, get_objective, objective_name, pair_values
from rayprompt.scores import Scores, right
from rayprompt.searcher.problem import Problem


def scores_of(log_probs: list[list[list[float]]], gold: list[int]) -> Scores:
    """Scores with all pairs evaluated, from (candidates, examples, labels)."""
    dense = np.array(log_probs, dtype=np.float64)
    c, e, _ = dense.shape
    flat = dense.reshape(c * e, -1)
    none = np.zeros(c * e, dtype=np.int32)
    return Scores(
        candidates=tuple(TextPrompt(str(i)) for i in range(c)),
        examples=np.arange(e),
        candidate=np.repeat(np.arange(c), e),
        example=np.tile(np.arange(e), c),
        sample=none,
        value=right(flat, np.tile(gold, c)),
        label_log_probs=flat,
        tokens=none,
        seconds=none.astype(float),
    )


def log_softmax(logits: list[float]) -> list[float]:
    x = np.array(logits)
    return list(x - np.log(np.exp(x).sum()))


def test_gap_fixture_of_the_paper() -> None:
    # P=(.9,.1), label 0: gap .8, reward 160; P=(.6,.4), label 1: gap -.2, reward -36; mean 62
    scores = scores_of([[np.log([0.9, 0.1]).tolist(), np.log([0.6, 0.4]).tolist()]], [0, 1])
    assert OBJECTIVES["gap"](scores, np.array([0, 1]))[0] == pytest.approx(62.0, abs=1e-9)


def test_gap_masks_the_gold_label_by_index() -> None:
    # By equality both tied labels would vanish and the gap would be P(gold) - (-1).
    scores = scores_of([[np.log([0.4, 0.4, 0.2]).tolist()]], [0])
    assert OBJECTIVES["gap"](scores, np.array([0]))[0] == 0.0
    assert OBJECTIVES["accuracy"](scores, np.array([0]))[0] == 0.0


def test_hinge_fixture() -> None:
    # logits (1, .2, -.5), label 1, margin 2: (1 - .2 + 2) + (-.5 - .2 + 2) = 4.1; log-probabilities give the same
    for row in ([1.0, 0.2, -0.5], log_softmax([1.0, 0.2, -0.5])):
        scores = scores_of([[row]], [1])
        assert -OBJECTIVES["hinge"](scores, np.array([1]))[0] == pytest.approx(4.1, abs=1e-9)


def test_cross_entropy_is_the_mean_gold_log_probability() -> None:
    gold = np.array([1, 0])
    scores = scores_of([[log_softmax([0.3, 1.2]), log_softmax([2.0, -1.0])]], gold.tolist())
    expected = np.mean([log_softmax([0.3, 1.2])[1], log_softmax([2.0, -1.0])[0]])
    assert OBJECTIVES["cross_entropy"](scores, gold)[0] == pytest.approx(expected)


@pytest.mark.parametrize("labels", [2, 3])
def test_f1_equals_scikit_learn(labels: int) -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(labels)
    logits = rng.normal(size=(2, 40, labels))
    gold = rng.integers(labels, size=40)
    scores = scores_of([[log_softmax(row.tolist()) for row in rows] for rows in logits], gold.tolist())
    average = "binary" if labels == 2 else "macro"
    for i, value in enumerate(OBJECTIVES["f1"](scores, gold)):
        assert value == pytest.approx(f1_score(gold, logits[i].argmax(axis=1), average=average))


def test_bfloat16_ties_are_not_right() -> None:
    torch = pytest.importorskip("torch")
    logits = torch.tensor([[1.0001, 1.0], [2.0, 1.0]]).to(torch.bfloat16).float().numpy()
    assert right(logits, np.array([0, 0])).tolist() == [0.0, 1.0]
    assert right(logits, np.array([1, 1])).tolist() == [0.0, 0.0]


def test_partial_rows_are_averaged_over_what_is_there() -> None:
    full = scores_of([[np.log([0.9, 0.1]).tolist(), np.log([0.6, 0.4]).tolist()]], [0, 1])
    keep = slice(0, 1)
    part = Scores(
        (*full.candidates, TextPrompt("none")), full.examples, full.candidate[keep], full.example[keep],
        full.sample[keep], full.value[keep], full.label_log_probs[keep], full.tokens[keep], full.seconds[keep],
    )  # fmt: skip
    gold = np.array([0, 1])
    assert OBJECTIVES["gap"](part, gold)[0] == pytest.approx(160.0)
    for objective in OBJECTIVES.values():
        assert np.isnan(objective(part, gold)[1])
    dense = part.dense()
    assert dense[0, 0] == 1.0
    assert np.isnan(dense[0, 1])
    assert np.isnan(dense[1]).all()


def test_unknown_or_impossible_objectives_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
        get_objective("crossentropy")
    with pytest.raises(InputError, match="needs label log-probabilities"):
        get_objective("gap", log_probs=False)
    assert get_objective("accuracy", log_probs=False) is OBJECTIVES["accuracy"]


def test_a_function_of_ones_own_is_named_by_where_it_is_imported_from(problem: Problem) -> None:
    from own_objective import brevity, too_many

    from searchers.random import RandomSearcher

    assert objective_name(brevity) == "own_objective:brevity"
    assert get_objective("own_objective:brevity") is brevity
    scores = scores_of([[[-0.1, -3.0], [-0.1, -3.0]]], [0, 1])
    assert brevity(scores, np.array([0, 1]))[0] == pytest.approx(0.499)
    asked = (searcher := RandomSearcher(problem, objective=too_many)).ask(1)
    labels = np.log(np.full((1, len(problem.gold), 2), 0.5)).tolist()
    with pytest.raises(InputError, match=r"own_objective:too_many gave values of shape \(2,\) for 1 candidates"):
        searcher.objective(scores_of(labels, problem.gold.tolist()))
    assert asked
    for wrong, message in (
        ("no_module:f", "objective no_module:f: cannot be imported"),
        ("own_objective:none", "objective own_objective:none: cannot be imported"),
        ("own_objective:np", "is module, not a function"),
    ):
        with pytest.raises(InputError, match=message):
            get_objective(wrong)
    with pytest.raises(InputError, match="must be a name .* or a function at the top of a module or script"):
        objective_name(lambda scores, gold: scores.mean_value())


def test_what_an_objective_is_the_mean_of() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=(4, 5))
    gold = np.array([0, 1, 2, 1, 0])
    scores = scores_of(np.log(p).tolist(), gold.tolist())
    for name in ("accuracy", "cross_entropy", "hinge", "gap"):
        pairs = pair_values(name, scores, gold)
        assert pairs is not None
        assert pairs.mean(axis=1) == pytest.approx(OBJECTIVES[name](scores, gold))
    assert pair_values("f1", scores, gold) is None
