"""Prompts for single inputs: the candidate, its scores by pairs, the policy that reads inputs, whole searches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import PoolOf, task_of
from test_rl import WORDS, blank, make

import rayprompt
from rayprompt.budget import Ledger
from rayprompt.candidate import ConditionedPrompt, TextPrompt, candidate_from_json
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.lm.encode import Encoder
from rayprompt.scores import Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.conditioned import score_candidates
from rayprompt.searcher.problem import Problem
from rayprompt.task import BUNDLED
from searchers.policy import Policy, Sampling
from searchers.policy_pass import Pass
from searchers.rl import z_of_inputs, z_within

pytestmark = pytest.mark.usefixtures("unlogged")


def conditioned(*pairs: tuple[str, str]) -> ConditionedPrompt:
    return ConditionedPrompt(tuple((example, TextPrompt(text)) for example, text in pairs))


# The candidate.


def test_the_json_form_holds_each_prompt_once_and_reads_back() -> None:
    prompt = conditioned(("a", "x"), ("b", "y"), ("c", "y"))
    form = prompt.to_json()
    assert [p["text"] for p in form["prompts"]] == ["y", "x"]
    assert form["inputs"] == {"a": 1, "b": 0, "c": 0}
    assert form["text"] == "y (and 1 other)"
    again = candidate_from_json(json.loads(json.dumps(form)))
    assert again == prompt
    assert again.key == prompt.key
    assert conditioned(("a", "x"), ("b", "y")).key != conditioned(("a", "y"), ("b", "x")).key
    for broken in ({"prompts": [], "inputs": {"a": 0}}, {"prompts": [{"text": "x"}], "inputs": []}):
        with pytest.raises(InputError, match="not a candidate"):
            candidate_from_json({"kind": "conditioned", **broken})


def test_diversity_tells_a_collapsed_policy() -> None:
    one = conditioned(*((str(i), "same") for i in range(500)))
    assert one.diversity() == {"inputs": 500, "prompts": 1, "most_frequent": 1.0, "entropy": 0.0}
    half = conditioned(*((str(i), "ab"[i % 2]) for i in range(500))).diversity()
    assert (half["prompts"], half["most_frequent"]) == (2, 0.5)
    assert half["entropy"] == pytest.approx(np.log(2))


# Scores over pairs.


@pytest.fixture(scope="module")
def scored(pool: ScoringPool, problem: Problem) -> Evaluator:
    return evaluator_of(pool, problem, 10_000)


def evaluator_of(pool: ScoringPool, problem: Problem, budget: int, **more: Any) -> Evaluator:
    return Evaluator(
        pool, problem.part("train"), problem.gold, Ledger(budget), examples=problem.digests("train"), **more
    )


def test_each_prompt_is_scored_on_its_inputs_alone(pool: ScoringPool, problem: Problem) -> None:
    names = problem.digests("train")
    evaluator = evaluator_of(pool, problem, 10_000)
    asked = [
        conditioned((names[0], "it was"), (names[3], "very good")),
        conditioned((names[3], "very good")),
        conditioned((names[1], "it was"), ("not of this part", "x")),
    ]
    scores = score_candidates(problem, evaluator, asked)
    assert list(zip(scores.candidate.tolist(), scores.example.tolist(), strict=True)) == [
        (0, 0),
        (0, 3),
        (1, 3),
        (2, 1),
    ]
    assert evaluator.ledger.evaluations == 3  # a pair that two candidates share is charged once
    assert scores.complete().all()
    assert scores.asked is not None
    assert scores.asked.sum() == 4
    whole = [problem.prompt("it was"), problem.prompt("very good")]
    slow = evaluator_of(pool, problem, 10_000).score(whole, [problem.token_ids(p) for p in whole])
    wanted = slow.dense("label_log_probs")[[0, 1, 1, 0], [0, 3, 3, 1]]
    assert scores.label_log_probs == pytest.approx(wanted, abs=1e-4)
    both = score_candidates(problem, evaluator, [asked[0], TextPrompt("it was")])  # beside one that is for all
    assert np.bincount(both.candidate).tolist() == [2, len(names)]
    assert evaluator.ledger.evaluations == 3 + len(names) - 2


def test_where_the_budget_ends_the_rest_is_not_evaluated(pool: ScoringPool, problem: Problem) -> None:
    names = problem.digests("train")
    evaluator = evaluator_of(pool, problem, 2)
    asked = [conditioned((name, "it was")) for name in names[:3]]
    scores = score_candidates(problem, evaluator, asked)
    assert scores.complete().tolist() == [True, True, False]
    assert evaluator.ledger.remaining == 0
    report = evaluator_of(pool, problem, 1, report=True)
    with pytest.raises(InputError, match="inputs have no prompt"):
        score_candidates(problem, report, asked[:1])


def test_samples_of_a_pair_stay_together(pool_of: PoolOf) -> None:
    rows = [{"text": f"the film was {i} good .", "answer": "great"} for i in range(9)]
    task = rayprompt.Task.from_examples(
        "g", template="{text} {prompt}", extractor="exact", train=rows[:3], dev=rows[3:6], test=rows[6:],
        samples=4, temperature=1.0, max_tokens=3,
    )  # fmt: skip
    problem = Problem(task, "tiny-causal")
    pool = pool_of(problem.lm, 1)
    evaluator = Evaluator(
        pool, problem.part("train"), problem.gold, Ledger(100), examples=problem.digests("train"),
        judging=None if problem.judge is None else _judging(problem),
    )  # fmt: skip
    names = problem.digests("train")
    scores = score_candidates(problem, evaluator, [conditioned((names[2], "it was")), conditioned((names[0], "so"))])
    assert scores.example.tolist() == [2] * 4 + [0] * 4
    assert scores.sample.tolist() == [0, 1, 2, 3] * 2
    assert evaluator.ledger.evaluations == 8
    assert scores.complete().all()


def _judging(problem: Problem) -> Any:
    from rayprompt.study.measure import judging_of

    return judging_of(problem, "train")


# Rewards.


def test_rewards_of_an_input_are_compared_over_its_prompts_and_groups() -> None:
    """RLPrompt's: of 4 prompts x 4 maxima of an input the mean and deviation, r = 100 z - 20."""
    rng = np.random.default_rng(0)
    maxima = rng.uniform(0, 100, size=(2, 4, 4))  # inputs, prompts, groups
    rewards = np.full((8, 2, 4), np.nan)
    for i in range(2):
        rewards[4 * i : 4 * i + 4, i] = maxima[i]
    slow = [(m.mean() - maxima[i].mean()) / (maxima[i].std() + 1e-4) for i in range(2) for m in maxima[i]]
    found = z_of_inputs(rewards)
    assert found == pytest.approx(slow)
    assert (100 * found - 20)[:4].mean() == pytest.approx(-20, abs=1e-6)
    assert z_of_inputs(np.full((3, 1, 2), 7.0)).tolist() == [0, 0, 0]  # all alike
    within = z_within(np.array([1.0, 10.0, 3.0, 30.0]), np.array([5, 2, 5, 2]))
    assert within == pytest.approx([-1, -1, 1, 1], abs=1e-3)


# The policy.


def test_a_policy_that_reads_an_input_is_one_whose_source_it_is(view: Problem) -> None:
    searcher = make(view, tokens=WORDS, length=3, inputs=2, prompts=8)
    learning = blank(searcher)
    policy, theta = learning.policy, learning.theta
    theta = theta + torch.from_numpy(np.random.default_rng(0).normal(0, 0.05, len(theta)).astype(np.float32))
    inputs, rng = [0, 5, 5, 2, 0, 7, 2], np.random.default_rng(1)
    given = np.concatenate([np.array(inputs)[:, None], np.full((7, 3), -1)], axis=1)
    u, greedy = rng.random(given.shape), np.array([True, *[False] * 6])
    rows = policy.write(theta, given, Sampling(), u, greedy)
    assert rows[:, 0].tolist() == inputs
    read = Pass(policy, rows).read(theta)
    for i, source in enumerate(inputs):
        alone = Policy(policy.trunk, policy.sources[source], policy.actions, batch=1)
        one = alone.write(theta, given[i : i + 1, 1:], Sampling(), u[i : i + 1, 1:], greedy[i : i + 1])
        assert one[0].tolist() == rows[i, 1:].tolist()
        other = Pass(alone, one).read(theta)
        assert read.q[i].tolist() == pytest.approx(other.q[0].tolist(), abs=1e-4)
        assert read.v[i].tolist() == pytest.approx(other.v[0].tolist(), abs=1e-4)
    text = view.task.examples("train", view.split)[5].fields["text"]
    encoder: Encoder = searcher.vocabulary.encoder
    assert policy.sources[5].tolist() == encoder.ids([text], "")[0].tolist()


def test_what_it_writes_depends_on_the_input_after_training(view: Problem) -> None:
    """Inputs of one label want one word, those of the other another: one prompt for all could not do that."""
    searcher = make(view, tokens=WORDS, length=2, inputs=4, prompts=32, top_k=None)
    label = dict(zip(view.digests("train"), view.gold.tolist(), strict=True))
    wanted = {0: "bad", 1: "good"}

    def value(candidate: Any) -> float:
        ((example, prompt),) = candidate.prompts
        return float(prompt.text.split().count(wanted[label[example]]))

    first = searcher.write_for(view.task.examples("train", view.split)).diversity()
    for _ in range(60):
        asked = searcher.ask(searcher.generation)
        assert len({c.prompts[0][0] for c in asked}) == 4  # type: ignore[union-attr]
        searcher.tell(asked, Scores.of_values(asked, np.array([value(c) for c in asked])))
    written = searcher.write_for(view.task.examples("train", view.split))
    own = [prompt.text.split().count(wanted[label[example]]) for example, prompt in written.prompts]
    assert first["prompts"] <= 2
    assert written.diversity()["prompts"] >= 2
    assert np.mean(own) > 1.5  # of two
    assert searcher.metrics()["prompts_for_inputs"] >= 2


def test_a_state_goes_on_to_the_same_bits(view: Problem) -> None:
    def step(searcher: Any) -> list[str]:
        asked = searcher.ask(searcher.generation)
        searcher.tell(asked, Scores.of_values(asked, np.array([len(c.prompts[0][1].text) for c in asked], dtype=float)))
        return [c.key for c in asked]

    settings = {"tokens": WORDS, "length": 2, "inputs": 3, "prompts": 6}
    first = make(view, **settings)
    for _ in range(3):
        step(first)
    second = make(view, **settings)
    second.load_state_dict(first.state_dict())
    assert [step(first) for _ in range(4)] == [step(second) for _ in range(4)]
    assert (first.learning.theta == second.learning.theta).all()  # type: ignore[union-attr]
    example = view.task.examples("train", view.split)[:2]
    assert first.write_for(example) == second.write_for(example)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"inputs": 3, "prompts": 8}, "prompts=8 must be a multiple of it"),
        ({"inputs": 8, "prompts": 8}, "2 or more for each"),
        ({"inputs": 2000, "prompts": 4000}, "train inputs"),
        ({"inputs": 0}, "must be from 1"),
    ],
)
def test_settings_that_do_not_go_together(view: Problem, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(view, **settings)


# Whole searches.


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_a_search_ends_with_a_prompt_for_every_input_and_resumes(tmp_path: Path) -> None:
    task = tmp_path / "task"  # reviews with few examples: it writes a prompt for each of them
    task.mkdir()
    for file, count in (("train", 16), ("dev", 16), ("test", 32)):
        lines = (BUNDLED / "reviews" / f"{file}.tsv").read_text().splitlines(keepends=True)
        (task / f"{file}.tsv").write_text("".join(lines[: count + 1]))
    shutil.copy(BUNDLED / "reviews" / "task.yaml", task)
    given: dict[str, Any] = {
        "model": "tiny-masked", "searcher": "rl", "seed": 3,
        "settings": {"inputs": 4, "prompts": 16, "length": 2, "tokens": WORDS},
    }  # fmt: skip
    whole = rayprompt.search(task, budget=192, out=tmp_path / "whole", **given)
    best = whole.best_prompt
    assert isinstance(best, ConditionedPrompt)
    problem = Problem(task, "tiny-masked")
    assert set(best.of) == {d for part in ("train", "dev", "test") for d in problem.digests(part)}
    assert whole.to_json()["best_prompt"]["diversity"]["inputs"] == len(best.of)
    part = rayprompt.search(task, budget=96, out=tmp_path / "part", **given)
    assert part.evaluations == 96
    more = rayprompt.resume(tmp_path / "part", budget=192)
    for name in ("best_prompt", "train", "dev", "test", "evaluations"):
        assert getattr(more, name) == getattr(whole, name), name
    found = rayprompt.evaluate(best, problem, store=tmp_path / "whole")
    assert found.estimate == whole.test
    assert yaml.safe_load((tmp_path / "whole" / "study.yaml").read_text())["searcher"]["settings"]["inputs"] == 4
    assert (
        run(app, ["evaluate", str(task), "--prompt-file", str(tmp_path / "whole" / "prompt.json"), "--on", "dev"]) == 0
    )


@pytest.mark.usefixtures("kept_pool")
def test_what_needs_one_prompt_for_all_refuses(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "tiny-masked", "searcher": "rl", "settings": {"inputs": 2}, "budget": 64}
    with pytest.raises(InputError, match="--tune-native: prompts for single inputs"):
        rayprompt.search("reviews", tune_native=True, out=tmp_path / "a", **given)
    with pytest.raises(InputError, match="--proxy-model tiny-causal"):
        rayprompt.search("reviews", proxy_model="tiny-causal", out=tmp_path / "b", **given)
    with pytest.raises(InputError, match="prompts for single inputs"):
        rayprompt.compare(
            "reviews", ["rl"], models="tiny-masked", settings={"rl": {"inputs": 2}}, budget=64, seeds=1,
            out=tmp_path / "c",
        )  # fmt: skip
    other = Problem(task_of(), "tiny-masked")
    with pytest.raises(InputError, match="inputs have no prompt"):
        rayprompt.evaluate(conditioned(("x", "it was")), other)
