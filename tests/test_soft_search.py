"""Searches of soft prompts, end to end on real actors: files, decoding, proxies, warm starts, resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from test_resume import finish, plan_of
from test_search import check

import rayprompt
from rayprompt.candidate import SoftPrompt, TextPrompt
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.lm.vectors import vectors_digest, write_vectors
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.soft import recall_start
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop
from rayprompt.study.prepare import fits, fitting
from rayprompt.study.results import read_prompt_file
from searchers.cma_es import CMAESSearcher

pytestmark = pytest.mark.usefixtures("kept_pool", "trials_here")
SMALL = {"length": 5, "intrinsic_dim": 20, "alpha": 10.0}


@pytest.fixture(scope="module")
def found(
    kept_pool: None, trials_here: None, few: Problem, tmp_path_factory: pytest.TempPathFactory
) -> rayprompt.Result:
    out = tmp_path_factory.mktemp("soft") / "study"
    return rayprompt.search(
        few, searcher="cma-es", budget=16 * 100, settings={**SMALL, "dev": "all"}, out=out, scorers=1
    )


def test_result_and_files(found: rayprompt.Result, few: Problem, pool: ScoringPool) -> None:
    study = found.study_dir
    content = json.loads((study / "result.json").read_text())
    check(content)
    check(json.loads((study / "prompt.json").read_text()))
    assert rayprompt.read_result(study / "result.json").to_json() == content
    best = found.best_prompt
    assert isinstance(best, SoftPrompt)
    assert found.evaluations == 1600
    assert found.report_lm_evaluations == found.report_evaluations
    assert found.end == "budget"
    assert found.searcher_metrics["population"] == 20
    # Finalists, the best of the fifth generation and the mean: the mean is new, and so was scored on train.
    assert 6 <= len(found.finalists) <= 7
    assert all(f["n"] == 16 for f in found.finalists)
    assert found.dev.value == max(f["dev"] for f in found.finalists)
    tensors = load_file(study / "prompt.safetensors")
    assert tensors["prompt"].shape == (5, few.lm.width)
    assert tensors["token_ids"].tolist() == list(best.subspace.tokens)
    manifest = yaml.safe_load((study / "study.yaml").read_text())
    assert manifest["searcher"]["subspace"]["digest"] == best.subspace.digest
    # The decoded winner is a text prompt like any other.
    assert found.decoded is not None
    text = found.decoded.prompt
    assert len(text.token_ids or ()) == 5
    again = rayprompt.evaluate(text, few, on="test", pool=pool)
    assert again.estimate == found.decoded.test
    # So is what was exported.
    exported = read_prompt_file(study / "prompt.json").on(few)
    assert exported == best
    assert rayprompt.evaluate(exported, few, on="test", pool=pool).estimate == found.test


def test_a_study_is_the_p0_of_the_next(found: rayprompt.Result, few: Problem, pool: ScoringPool) -> None:
    """z = 0 gives the score of the study's winner; the candidate says which vectors it begins with."""
    searcher = CMAESSearcher(few, intrinsic_dim=20, p0=str(found.study_dir))
    assert searcher.space.subspace.length == 5
    zero = searcher.space.prompt(np.zeros(20))
    ours = rayprompt.score([zero, found.best_prompt], searcher.problem, pool=pool)
    log_probs = ours.dense("label_log_probs")
    assert np.abs(log_probs[0] - log_probs[1]).max() < 1e-5
    with pytest.raises(InputError, match="was found with placement=add"):
        CMAESSearcher(Problem("reviews", "tiny-masked"), p0=str(found.study_dir), placement="concat")
    with pytest.raises(InputError, match=r"its vectors are \(5, "):
        CMAESSearcher(Problem("reviews", "tiny-masked"), p0=str(found.study_dir), length=6)
    with pytest.raises(InputError, match="of tiny-masked, another LM than tiny-causal"):
        CMAESSearcher(Problem("reviews", "tiny-causal"), p0=str(found.study_dir))


def test_a_search_with_p0_from_a_study_resumes_without_it(
    found: rayprompt.Result, few: Problem, tmp_path: Path
) -> None:
    gone = tmp_path / "first"
    gone.mkdir()
    for name in ("prompt.json", "prompt.safetensors"):
        (gone / name).write_bytes((found.study_dir / name).read_bytes())
    settings = {"intrinsic_dim": 10, "p0": str(gone)}
    study = tmp_path / "second"
    first = rayprompt.search(few, searcher="random-soft", budget=16 * 20, settings=settings, out=study, scorers=1)
    (gone / "prompt.json").unlink()
    again = rayprompt.resume(study, budget=16 * 40, task=few.task, scorers=1)
    assert again.evaluations == 16 * 40
    assert first.best_prompt.subspace.p0 != "zeros"  # type: ignore[union-attr]


def test_a_soft_search_goes_on_where_its_record_ends(pool: ScoringPool, few: Problem, tmp_path: Path) -> None:
    def search() -> CMAESSearcher:
        return CMAESSearcher(few.for_search(), **SMALL)

    quiet = finish(SearchLoop(search(), pool, plan_of(tmp_path / "quiet", 16 * 110 + 5)))
    plan = plan_of(tmp_path / "s", 16 * 110 + 5, flush_seconds=1e9, snapshot_seconds=1e9)
    first = SearchLoop(search(), pool, plan)
    for i in range(4):
        first.step()
        if i == 2:
            first.writer.flush()
    second = SearchLoop(search(), pool, plan)
    assert second.generation == 3
    finish(second)
    assert second.replay_differs == 0
    names = ("finalists", "nominations", "best_objective", "evaluations", "searcher")
    assert [second.report()[n] for n in names] == [quiet.report()[n] for n in names]


def test_text_found_on_a_proxy_is_measured_on_the_model(few: Problem, tmp_path: Path) -> None:
    study = tmp_path / "study"
    found = rayprompt.search(
        few.task, model="tiny-causal", proxy_model="tiny-masked", searcher="random-soft", budget=16 * 20,
        settings=SMALL, out=study, scorers=1,
    )  # fmt: skip
    check(json.loads((study / "result.json").read_text()))
    assert (found.model, found.proxy_model) == ("tiny-causal", "tiny-masked")
    assert isinstance(found.best_prompt, TextPrompt)
    target = Problem(few.task, "tiny-causal")
    assert found.best_prompt == target.prompt(found.best_prompt.text)
    assert found.evaluations == 16 * 20
    kinds = ScoreStore(study).candidates().to_pylist()
    assert {row["kind"] for row in kinds if row["origin"] == "search"} == {"soft"}
    # A finished study is not run again; its record names both LMs.
    assert rayprompt.resume(study, task=few.task).to_json() == found.to_json()
    record = yaml.safe_load((study / "study.yaml").read_text())
    assert (record["model"]["name"], record["target"]["name"]) == ("tiny-masked", "tiny-causal")
    alone = rayprompt.evaluate(found.best_prompt.text, target, on="test")
    assert alone.estimate == found.test


def test_a_text_that_is_too_long_for_another_lm_is_cut(few: Problem) -> None:
    long = " ".join(["wonderful"] * 300)
    prompt = fitting(few, long)
    assert fits(few, prompt)
    assert 10 < len(prompt.text.split()) < 130
    assert long.startswith(prompt.text)
    assert fitting(few, "it was") == few.prompt("it was")


def test_the_vectors_a_study_began_with_are_checked(problem: Problem, tmp_path: Path) -> None:
    vectors = np.zeros((5, problem.lm.width), dtype=np.float32)
    space = dataclasses.replace(CMAESSearcher(problem, **SMALL).space.subspace, p0=vectors_digest(vectors + 1))
    write_vectors(tmp_path / "p0.safetensors", vectors, ())
    with pytest.raises(InputError, match="not the vectors that the study began with"):
        recall_start(problem, "x", 5, "add", space, tmp_path / "p0.safetensors")


@pytest.mark.slow  # quick: what is taken from a store and a study, tests/test_generation.py and tests/test_resume.py
def test_warm_starts(found: rayprompt.Result, few: Problem, tmp_path: Path) -> None:
    """From a text study, its store, and a soft study: the first candidates are theirs, and the result is no worse."""
    text = rayprompt.search(few, budget=16 * 60, seed=1, out=tmp_path / "text", scorers=1)

    def first_asks(study: Path) -> list[str]:
        rows = ScoreStore(study).candidates().to_pylist()
        return [r["candidate"] for r in rows if r["generation"] == 1]

    best = sorted(text.finalists, key=lambda f: -f["objective"])
    for name, location in (("study", text.study_dir), ("store", tmp_path / "copy")):
        if name == "store":  # a study that has died: files of its store only
            location.mkdir()
            for part in ("scores", "candidates", "store.json"):
                (text.study_dir / part).rename(location / part)
        again = rayprompt.search(
            few, searcher="random", budget=16 * 30, seed=2, warm_start=location, out=tmp_path / name, scorers=1
        )
        keys = first_asks(tmp_path / name)
        assert keys[:3] == [f["key"] for f in best[:3]]
        assert again.evaluations == 16 * 30
        assert max(f["objective"] for f in again.finalists) >= best[0]["objective"]
    soft = rayprompt.search(
        few, searcher="cma-es", budget=16 * 45, seed=9, settings={**SMALL, "projection_seed": 0},
        warm_start=found.study_dir, out=tmp_path / "soft", scorers=1,
    )  # fmt: skip
    known = [f["key"] for f in sorted(found.finalists, key=lambda f: -f["objective"])]
    assert first_asks(tmp_path / "soft") == known
    assert max(f["objective"] for f in soft.finalists) >= max(f["objective"] for f in found.finalists)
    assert rayprompt.resume(tmp_path / "soft", task=few.task).to_json() == soft.to_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--warm-start", "EMPTY"], "neither a finished study .result.json. nor a store"),
        (
            ["--warm-start", "SOFT", "--searcher", "cma-es"],
            "none of its [67] prompts can be used here: cma-es takes soft",
        ),
        (["--proxy-model", "tiny-maskd"], "unknown model 'tiny-maskd' .did you mean 'tiny-masked'"),
        (
            ["--searcher", "cma-es", "--set", "length=500"],
            "length=500: must be 128 or less",
        ),
        (["--searcher", "cma-es", "--set", "sigma=0"], "setting sigma=0.*: must be greater than 0"),
        (["--searcher", "cma-es", "--set", "mode=add"], "use --mode|not a setting"),
    ],
)
def test_bad_input_gets_one_line(
    options: list[str], message: str, found: rayprompt.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places: dict[str, Any] = {"EMPTY": tmp_path, "SOFT": found.study_dir}
    given = [str(places.get(o, o)) for o in options]
    assert run(app, ["search", *given, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    import re

    assert re.search(message, lines[-1]), lines
    assert not (tmp_path / "out").exists()
