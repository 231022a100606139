"""Replay: a finished study is a benchmark without an LM."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import task_of
from test_settings import chat_folder

import rayprompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

pytestmark = pytest.mark.usefixtures("kept_pool", "trials_here")
SEARCHERS: list[tuple[str, dict[str, Any]]] = [
    ("nevergrad", {}),
    ("reward-model", {"population": 8, "warmup": 16, "proposals": 60}),
    ("cma-es-deep", {"intrinsic_dim": 4, "length": 5, "population": 6}),
]


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem(task_of(8), "tiny-masked")


@pytest.fixture(scope="module")
def studies(
    small: Problem, kept_pool: None, trials_here: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, rayprompt.Result]:
    folder = tmp_path_factory.mktemp("recorded")
    return {
        name: rayprompt.search(
            small, searcher=name, settings=settings, budget=8 * 48, out=folder / name, seed=2, scorers=1
        )
        for name, settings in SEARCHERS
    }


def replay(small: Problem, study: Path | str, **more: Any) -> rayprompt.Result:
    return rayprompt.search(Problem(small.task, f"replay:{study}"), **{"budget": 8 * 48, "seed": 2, **more})


@pytest.mark.parametrize(("name", "settings"), SEARCHERS)
def test_the_recorded_searcher_and_seed_replay_without_a_miss(
    name: str, settings: dict[str, Any], small: Problem, studies: dict[str, rayprompt.Result], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("rayprompt.lm.scorer.LMScorer.__init__", lambda *a: pytest.fail("the LM was loaded"))
    was = studies[name]
    again = replay(small, was.study_dir, searcher=name, settings=settings, out=tmp_path / "again")
    assert again.lm_evaluations == 0
    assert (again.evaluations, again.end) == (was.evaluations, was.end)
    assert again.best_prompt == was.best_prompt
    assert (again.train, again.dev, again.test, again.p_value) == (was.train, was.dev, was.test, was.p_value)
    assert [f["key"] for f in again.finalists] == [f["key"] for f in was.finalists]
    assert {n: b.test for n, b in again.baselines.items()} == {n: b.test for n, b in was.baselines.items()}
    manifest = yaml.safe_load((tmp_path / "again" / "study.yaml").read_text())
    assert manifest["model"]["location"] == f"replay:{was.study_dir}"
    assert manifest["pool"]["shapes"] == {"layout": "replay", "study": str(was.study_dir)}
    twice = replay(small, tmp_path / "again", searcher=name, settings=settings, out=tmp_path / "twice")
    assert twice.best_prompt == was.best_prompt  # a replay of a replay is one of the study


def test_a_pair_that_was_not_recorded_is_an_error_with_its_key(
    small: Problem, studies: dict[str, rayprompt.Result], tmp_path: Path
) -> None:
    study = studies["nevergrad"].study_dir
    with pytest.raises(
        ScoringError, match=r"candidate [0-9a-f]{32} \('.*'\) was not scored there on example"
    ) as caught:
        replay(small, study, searcher="nevergrad", seed=5, out=tmp_path / "other")
    assert "\n" not in str(caught.value)


def test_a_searcher_of_a_pool_is_confined_to_what_was_recorded(
    small: Problem, studies: dict[str, rayprompt.Result], tmp_path: Path
) -> None:
    was = studies["nevergrad"]
    settings = {"prompts": str(was.study_dir), "inner": "none", "edits": 0.0, "population": 8, "warmup": 8}
    found = replay(
        small, was.study_dir, searcher="reward-model", settings=settings, budget=8 * 90, out=tmp_path / "confined"
    )
    assert found.lm_evaluations == 0
    assert found.end == "exhausted"
    assert found.train.value >= was.train.value


def test_a_study_in_a_chat_template_replays(tmp_path: Path) -> None:
    """The settings of the study's LM are taken up; there is nothing to give."""
    task, name, study = task_of(8), chat_folder(tmp_path / "lm"), tmp_path / "study"
    given: dict[str, Any] = {"searcher": "random", "budget": 64}
    first = rayprompt.search(Problem(task, name, lm={"chat": "user"}), out=study, **given)
    again = rayprompt.search(Problem(task, f"replay:{study}"), out=tmp_path / "again", **given)
    assert (again.best_prompt, again.test) == (first.best_prompt, first.test)


@pytest.mark.slow
def test_a_comparison_replays(small: Problem, tmp_path: Path) -> None:
    task = small.task
    arguments: dict[str, Any] = {
        "searchers": ["random", "nevergrad"], "seeds": [0, 1], "budget": 8 * 32, "baselines": [], "scorers": 1,
    }  # fmt: skip
    was = rayprompt.compare(task, models="tiny-masked", out=tmp_path / "was", **arguments)
    again = rayprompt.compare(task, models=f"replay:{tmp_path / 'was'}", out=tmp_path / "again", **arguments)
    assert len(again.runs) == 4
    for one, other in zip(was.runs, again.runs, strict=True):
        assert (one.searcher, one.seed, one.evaluations) == (other.searcher, other.seed, other.evaluations)
        assert (one.dev, one.test, one.prompt) == (other.dev, other.test, other.prompt)
        assert other.lm_evaluations == 0


def test_what_cannot_be_replayed_is_said_in_one_line(
    small: Problem, studies: dict[str, rayprompt.Result], tmp_path: Path, pool: ScoringPool
) -> None:
    study = studies["nevergrad"].study_dir
    with pytest.raises(InputError, match=r"is not the directory of a study \(it holds no study.yaml\)"):
        Problem(small.task, f"replay:{tmp_path}")
    with pytest.raises(InputError, match="unknown model 'roberta'.*known: tiny-masked"):
        Problem(small.task, f"replay:{study}#roberta")
    with pytest.raises(InputError, match="runs as it was recorded; leave --lm out"):
        Problem(small.task, f"replay:{study}", lm={"tokens": 256})
    other = dataclasses.replace(small.task, manual_prompt="so")
    other = task_of(8, template={"masked": "{prompt} {text} {mask} .", "causal": "{prompt} {text}"})
    with pytest.raises(InputError, match="has no scores of this task and template with that LM"):
        rayprompt.search(Problem(other, f"replay:{study}"), budget=80, out=tmp_path / "other")
    changed = tmp_path / "changed"
    changed.mkdir()
    manifest = yaml.safe_load((study / "study.yaml").read_text())
    manifest["model"]["digest"] = "0" * 32
    (changed / "study.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(InputError, match="tiny-masked is another LM than the study had"):
        Problem(small.task, f"replay:{changed}")
    (changed / "study.yaml").write_text("[1, 2")
    with pytest.raises(InputError, match="study.yaml, line 1: not YAML"):
        Problem(small.task, f"replay:{changed}")
    assert json.loads((study / "result.json").read_text())["searcher"] == "nevergrad"
