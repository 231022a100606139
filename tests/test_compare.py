"""`rayprompt compare`: equal budgets, one verdict, nothing lost."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PoolOf, in_this_process
from killing import Run
from ray import cloudpickle
from scipy import stats
from test_search import check

import rayprompt
from rayprompt import Candidate, Comparison, PromptSearcher, Scores
from rayprompt.cli.compare import as_csv, as_markdown, as_text
from rayprompt.cli.leaderboard import Leaderboard
from rayprompt.cli.main import app
from rayprompt.cli.main import run as run_command
from rayprompt.comparison.plan import entries_of
from rayprompt.errors import InputError, Interrupted
from rayprompt.study.progress import Progress

TRAIN, SEEDS = 32, 5
BUDGET = TRAIN * 18
# Of another run of the same comparison.
MAY_DIFFER = {"seconds", "own_seconds", "device_seconds", "lm_evaluations", "cache_hits", "study_dir", "store", "pools"}


WORDS = (  # one of them alone leaves tiny-masked at chance, on train and on test
    "about above abroad across acting actress add admired adored advert after afternoon again agreeable "
    "airport allegedly almost alone along although always ancient another answer any anyway apart app "
    "appreciated around arrived artwork assumed at aunt author awkward badly baker bakery balcony banana "
    "bank baskets beach bean bear bears behind bell beside between beyond bicycle biscuit black blankets "
    "blue book bore"
)


USELESS = WORDS.split()


class Stubborn(PromptSearcher):
    """Knows only words that are of no use: a searcher with a known handicap."""

    name = "stubborn"
    learns = False
    asked = 0

    def ask(self, n: int) -> list[Candidate]:
        start, self.asked = self.asked, self.asked + n
        return [self.problem.prompt(word) for word in USELESS[start : self.asked]]

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


@pytest.fixture(scope="module")
def shared_pools(pool_of: PoolOf) -> Iterator[None]:
    """Comparisons take the session's pools; the classes of this file travel to trials."""

    @contextmanager
    def kept(source: Any, cluster: Any, listener: Any = None, timings: Any = None) -> Iterator[Any]:
        yield pool_of(source, 1)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("rayprompt.comparison.compare.loaded", kept)
        monkey.setattr("rayprompt.comparison.transfer.loaded", kept)
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def reviews() -> rayprompt.Task:
    """The bundled task with a third of its test examples."""
    task = rayprompt.load_task("reviews")
    return dataclasses.replace(task, splits={"default": {**task.parts(), "test": task.examples("test")[:160]}})


@pytest.fixture(scope="module")
def fewer() -> rayprompt.Task:
    """The bundled task with fewer examples."""
    task = rayprompt.load_task("reviews")
    counts = {"train": TRAIN, "dev": 32, "test": 96}
    return dataclasses.replace(task, splits={"default": {part: task.examples(part)[:n] for part, n in counts.items()}})


@pytest.fixture(scope="module")
def verdict(shared_pools: None, fewer: rayprompt.Task, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Random search twice under different names, and one with a handicap."""
    with in_this_process():
        return rayprompt.compare(
            fewer, searchers={"random": "random", "again": "random", "stubborn": Stubborn},
            seeds=SEEDS, budget=BUDGET, settings={"*": {"length": 3}}, price_per_hour=3.6, max_concurrent=2,
            baselines=["in-context"], out=tmp_path_factory.mktemp("compare") / "study",
        )  # fmt: skip


def stable(content: Any) -> Any:
    """Without what another run of the same comparison may have otherwise."""
    if isinstance(content, dict):
        kept = {k: stable(v) for k, v in content.items() if k not in MAY_DIFFER}
        return {k: ([row[:1] + row[2:] for row in v] if k in ("curve", "dev_curve") else v) for k, v in kept.items()}
    return [stable(item) for item in content] if isinstance(content, list) else content


def test_the_verdict_is_kept_and_its_json_is_valid(verdict: Comparison) -> None:
    content = json.loads((verdict.study_dir / "comparison.json").read_text())
    assert content == json.loads(json.dumps(verdict.to_json()))
    check(content)
    assert rayprompt.read_comparison(verdict.study_dir).to_json() == verdict.to_json()
    assert rayprompt.resume_comparison(verdict.study_dir).to_json() == verdict.to_json()
    assert len(verdict.runs) == 3 * SEEDS
    assert not verdict.failed


def test_every_run_had_its_budget_and_is_the_search_of_that_seed(
    verdict: Comparison, fewer: rayprompt.Task, kept_pool: None, tmp_path: Path
) -> None:
    assert {run.evaluations for run in verdict.runs} == {BUDGET}
    (run,) = (run for run in verdict.runs if run.searcher == "random" and run.seed == 3)
    alone = rayprompt.search(
        fewer, searcher="random", seed=3, budget=BUDGET, settings={"length": 3}, out=tmp_path / "s"
    )
    assert run.prompt["text"] == alone.best_prompt.to_json()["text"]
    assert (run.train, run.dev, run.test) == (alone.train, alone.dev, alone.test)
    assert run.p_value_manual == alone.p_value
    # The three best on dev, each as `evaluate` has it on test.
    third = sorted((f["dev"] for f in alone.finalists), reverse=True)[2]
    best = [rayprompt.candidate_from_json(f) for f in alone.finalists if f["dev"] >= third]
    tests = [rayprompt.evaluate(prompt, fewer, "tiny-masked", store=tmp_path / "s").estimate for prompt in best]
    assert len(run.top) == 3
    assert run.top[0] == run.test
    assert all(estimate in tests for estimate in run.top)
    # What it costs is its own, whoever has scored the same pairs.
    (same,) = (r for r in verdict.runs if r.searcher == "again" and r.seed == 3)
    assert same.tokens == run.tokens == alone.tokens
    assert {r.lm_evaluations for r in verdict.runs} == {BUDGET}


def test_two_names_of_one_searcher_cannot_be_told_apart_and_the_handicapped_one_is_behind(verdict: Comparison) -> None:
    (table,) = verdict.tables
    rows = {row["searcher"]: row for row in table["rows"]}
    assert rows["random"]["indistinguishable_from"] == ["again"]
    assert rows["again"]["indistinguishable_from"] == ["random"]
    assert rows["stubborn"]["indistinguishable_from"] == []
    assert rows["random"]["letters"] == rows["again"]["letters"] == "a"
    assert rows["stubborn"]["letters"] == "b"
    assert rows["stubborn"]["rank"] == 3
    pairs = {frozenset((p["first"], p["second"])): p for p in table["tests"]["test"]["pairs"]}
    assert pairs[frozenset(("random", "again"))]["p"] == 1
    behind = pairs[frozenset(("random", "stubborn"))]
    random, stubborn = ([r.test.value for r in verdict.runs if r.searcher == n] for n in ("random", "stubborn"))
    test = stats.permutation_test(
        (random, stubborn), lambda a, b: np.mean(a) - np.mean(b), permutation_type="independent", n_resamples=np.inf
    )
    assert behind["p"] == pytest.approx(test.pvalue)
    assert behind["p_holm"] == pytest.approx(3 * test.pvalue)
    welch = stats.ttest_ind(random, stubborn, equal_var=False).confidence_interval()
    assert behind["difference"]["ci95"] == pytest.approx([welch.low, welch.high])


def test_the_table_says_what_the_runs_say(verdict: Comparison) -> None:
    (table,) = verdict.tables
    for row in table["rows"]:
        runs = [run for run in verdict.runs if run.searcher == row["searcher"]]
        values = [run.test.value for run in runs]
        assert row["test"]["mean"] == pytest.approx(np.mean(values))
        assert row["test_top3"]["mean"] == pytest.approx(np.mean([np.mean([e.value for e in r.top]) for r in runs]))
        if np.std(values):
            half = stats.t.ppf(0.975, SEEDS - 1) * np.std(values, ddof=1) / SEEDS**0.5
            expected = [max(0, np.mean(values) - half), min(1, np.mean(values) + half)]
            assert row["test"]["ci95"] == pytest.approx(expected)
        assert row["cost"]["evaluations"] == np.mean([run.evaluations for run in runs])
        assert row["cost"]["price"] == pytest.approx(row["cost"]["device_seconds"] / 1000)
        # The area by brute force: the step function on a fine grid.
        areas = []
        begin = max(run.curve[0][0] for run in verdict.runs)
        for run in runs:
            grid = np.linspace(begin, BUDGET, 20_001)
            steps = np.searchsorted([r[0] for r in run.curve], grid, side="right") - 1
            areas.append(np.mean([run.curve[i][2] for i in steps]))
        assert row["area_objective"]["mean"] == pytest.approx(np.mean(areas), abs=1e-3)
    empty, manual, shown = table["baselines"]
    assert (empty["name"], manual["name"], shown["name"]) == ("empty", "manual", "in-context")
    assert shown["runs"] == SEEDS


def test_curves_only_rise_and_end_where_the_searches_end(verdict: Comparison) -> None:
    for run in verdict.runs:
        rows = np.array(run.curve)
        assert (np.diff(rows[:, 0]) > 0).all()
        assert (np.diff(rows[:, 1:], axis=0) >= 0).all()
        assert tuple(rows[-1, [0, 2, 3]]) == (run.evaluations, run.best_objective, run.best_score)
    (table,) = verdict.tables
    for curves in table["curves"]["evaluations"].values():
        assert curves["best_score"][-1]["x"] == BUDGET
        assert len(curves["dev"]) == len(curves["best_objective"]) > 1
    ends = {row["searcher"]: row["objective"]["mean"] for row in table["rows"]}
    for name, curves in table["curves"]["evaluations"].items():
        assert curves["best_objective"][-1]["mean"] == pytest.approx(ends[name])


def test_dev_score_of_the_incumbent_is_what_evaluate_says(
    verdict: Comparison, fewer: rayprompt.Task, pool_of: PoolOf
) -> None:
    run = next(run for run in verdict.runs if run.searcher == "random")
    trace = json.loads(next(verdict.study_dir.glob(f"runs/*{run.name}.json")).read_text())["trace"]
    for evaluations, _, dev in (run.dev_curve[0], run.dev_curve[-1]):
        form = [form for at, form in trace["incumbents"] if at <= evaluations][-1]
        prompt = rayprompt.candidate_from_json(form)
        problem = rayprompt.Problem(fewer)
        found = rayprompt.evaluate(prompt, problem, on="dev", pool=pool_of(problem.lm, 1))
        assert found.estimate.value == dev


def test_tensorboard_finds_scalars_by_evaluations_prompts_and_hyperparameters(
    shared_pools: None, fewer: rayprompt.Task, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    found = rayprompt.compare(
        fewer, searchers=["random"], seeds=2, budget=BUDGET, settings={"*": {"length": 3}}, out=tmp_path / "study"
    )
    for run in found.runs:
        events = EventAccumulator(str(found.study_dir / run.name))
        events.Reload()
        tags = events.Tags()
        assert {"ray/tune/best_score", "ray/tune/best_objective", "final/test"} <= set(tags["scalars"])
        steps = [event.step for event in events.Scalars("ray/tune/best_score")]
        assert steps[-1] == run.evaluations
        assert set(steps) <= {TRAIN * n for n in range(1, 19)}
        (final,) = events.Scalars("final/test")
        assert (final.step, final.value) == (run.evaluations, pytest.approx(run.test.value))
        texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("best_prompt/text_summary")]
        assert texts
        assert all(text.startswith("`") for text in texts)
        (winner,) = events.Tensors("final/prompt/text_summary")
        assert winner.tensor_proto.string_val[0].decode() == f"`{run.prompt['text']}`"
        content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        about = {name: getattr(value, value.WhichOneof("kind")) for name, value in shown.items()}
        assert {k: about[k] for k in ("searcher", "task", "split", "model", "seed")} == {
            "searcher": run.searcher, "task": "reviews", "split": "default", "model": "tiny-masked", "seed": run.seed,
        }  # fmt: skip


def test_leaderboard_in_every_format(verdict: Comparison) -> None:
    text = as_text(verdict)
    first = text.splitlines()
    assert first[0] == "reviews, tiny-masked: split default, 5 seeds, 576 evaluations a run"
    assert [line.split()[0] for line in first[2:8]] == [
        "random",
        "again",
        "stubborn",
        "(empty)",
        "(manual)",
        "(in-context)",
    ]
    assert "random is better than stubborn on test: +0." in text
    assert "searchers that share a letter cannot be told apart" in text
    assert "random is better than stubborn on train, by cross_entropy" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(verdict))))
    assert [row["name"] for row in rows] == ["random", "again", "stubborn", "empty", "manual", "in-context"]
    assert float(rows[0]["test"]) == verdict.tables[0]["rows"][0]["test"]["mean"]
    lines = [line for line in as_markdown(verdict).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 6


@pytest.mark.slow  # quick: ranges in tests/test_compare_input.py, tuning in tests/test_baselines.py
def test_soft_searchers_ranges_and_the_gradients_ceiling(
    shared_pools: None, reviews: rayprompt.Task, tmp_path: Path
) -> None:
    """Settings drawn by Tune: dev alone says which configuration stands for the searcher."""
    found = rayprompt.compare(
        reviews, searchers=["cma-es", "random"], seeds=[4], budget=64 * 40, objective="cross_entropy", max_concurrent=2,
        settings={"cma-es": {"alpha": {"uniform": [1, 20]}, "length": {"grid_search": [3, 5]}, "intrinsic_dim": 20}},
        samples=1, baselines=["gradient"], target="0.6", out=tmp_path / "s",
    )  # fmt: skip
    check(found.to_json())
    (table,) = found.tables
    drawn = [run for run in found.runs if run.group == "cma-es"]
    assert [run.searcher for run in drawn] == ["cma-es#1", "cma-es#2"]
    assert [run.settings["length"] for run in drawn] == [3, 5]
    assert all(1 <= run.settings["alpha"] <= 20 for run in drawn)
    best = max(drawn, key=lambda run: run.dev.value)
    row = next(row for row in table["rows"] if row["searcher"] == "cma-es")
    assert (row["configuration"]["label"], row["test"]["mean"]) == (best.searcher, best.test.value)
    assert [c["stands_for_it"] for c in table["configurations"]].count(True) == 1
    assert all(run.decoded is not None for run in drawn)
    assert row["test"]["ci95"] is None, "one run has no spread"
    empty, _, tuned = table["baselines"]
    assert tuned["white_box"]
    assert tuned["test"]["mean"] > empty["test"]["mean"] + 0.1
    assert table["target"] == {"measure": "best_score", "value": 0.6, "from": "given"}
    ranges = {"cma-es": {"alpha": {"uniform": [1, 20]}, "length": {"grid_search": [3, 5]}, "intrinsic_dim": 20}}
    again = entries_of(["cma-es"], ranges, samples=1, seed=4)
    assert [entry.settings for entry in again] == [run.settings for run in drawn], "drawn by the first seed"


@pytest.mark.slow
def test_a_scheduler_stops_weak_runs_and_that_is_said(
    shared_pools: None, reviews: rayprompt.Task, tmp_path: Path
) -> None:
    found = rayprompt.compare(
        reviews, searchers={"random": "random", "stubborn": Stubborn}, seeds=2, budget=64 * 40, baselines=[],
        max_concurrent=2, out=tmp_path / "s",
        scheduler={"name": "median", "grace_period": 64 * 6, "min_samples_required": 2},
        listener=Leaderboard(),
    )  # fmt: skip
    stopped = [run for run in found.runs if run.end == "scheduler"]
    assert stopped, "of two pairs of runs the worse ones are stopped"
    assert all(run.evaluations < 64 * 40 for run in stopped)
    assert any("stopped early by the scheduler" in line for line in found.remarks)
    assert {row["searcher"]: row["stopped"] for row in found.tables[0]["rows"]} == {
        name: sum(run.searcher == name for run in stopped) for name in ("random", "stubborn")
    }
    assert "*" in as_text(found)


class Unlucky(Stubborn):
    """Fails with seed 1, as long as there is no file to say that it may work."""

    name = "unlucky"
    gate = Path()

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        if self.seed == 1 and not self.gate.exists():
            raise ValueError("out of luck")


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(
    shared_pools: None, fewer: rayprompt.Task, tmp_path: Path
) -> None:
    cls = type("Gated", (Unlucky,), {"gate": tmp_path / "gate", "__module__": __name__})
    options = {"seeds": 2, "budget": 64, "baselines": [], "max_concurrent": 1, "out": tmp_path / "s"}
    found = rayprompt.compare(fewer, searchers={"unlucky": cls}, **options)
    assert found.failed == {"unlucky-s1": "ValueError: out of luck"}
    assert [run.name for run in found.runs] == ["unlucky-s0"]
    assert as_text(found).count("failed: unlucky-s1: ValueError: out of luck") == 1
    (tmp_path / "gate").touch()
    again = rayprompt.resume_comparison(tmp_path / "s", tasks=[fewer], searchers={"unlucky": cls})
    assert not again.failed
    assert [run.name for run in again.runs] == ["unlucky-s0", "unlucky-s1"]
    assert again.runs[0].curve == found.runs[0].curve


def test_several_lms_in_one_comparison(shared_pools: None, trial_here: None, mr_folder: Path, tmp_path: Path) -> None:
    found = rayprompt.compare(
        mr_folder, ["random"], models=["tiny-masked", "tiny-causal"], splits="short", seeds=1, budget=32,
        baselines=[], max_concurrent=2, out=tmp_path / "s",
    )  # fmt: skip
    assert [(t["task"], t["model"]) for t in found.tables] == [
        ("mr", "tiny-masked"),
        ("mr", "tiny-causal"),
        (None, None),
    ]
    overall = found.tables[-1]["rows"][0]["test"]["mean"]
    assert overall == pytest.approx(np.mean([run.test.value for run in found.runs]))
    assert set(found.pools) == {"tiny-masked", "tiny-causal"}
    carried = rayprompt.transfer(found.study_dir, split="short", task="mr")
    assert [source.name for source in carried.sources] == [run.name for run in found.runs]
    for run in found.runs:
        assert carried.cell(run.name, run.model).winner.test == run.test


def test_a_comparison_that_died_in_its_closing_phase_and_was_moved(
    shared_pools: None, trial_here: None, problem: rayprompt.Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model given by a relative path, too: the directory of the resume is another one."""
    (tmp_path / "lm").symlink_to(problem.lm.location if Path(problem.lm.location).is_dir() else problem.lm.path)
    monkeypatch.chdir(tmp_path)
    found = rayprompt.compare(
        searchers=["random"], seeds=1, budget=128, models=["./lm"], baselines=["in-context"], out="s", max_concurrent=1
    )
    (tmp_path / "s" / "comparison.json").unlink()
    (tmp_path / "s").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    again = rayprompt.resume_comparison(tmp_path / "moved")
    assert again.study_dir == tmp_path / "moved"
    assert stable(again.to_json()) == stable(found.to_json())


def test_a_comparison_goes_on_on_another_machine_class_only_if_it_is_allowed(
    shared_pools: None,
    trial_here: None,
    pool_of: PoolOf,
    problem: rayprompt.Problem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, other, study = pool_of(problem.lm, 1), "cpu:intel-avx512:mkl-2024.2-avx512-strict", tmp_path / "s"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(here, "device_class", other)
        first = rayprompt.compare(searchers=["random"], seeds=1, budget=128, baselines=[], out=study, max_concurrent=1)
    (study / "comparison.json").unlink()
    with pytest.raises(InputError, match=f"are from machine class {other}, the scorers here are .*--other-machine"):
        rayprompt.resume_comparison(study)
    again = rayprompt.resume_comparison(study, other_machine=True)
    assert [run.test for run in again.runs] == [run.test for run in first.runs]
    assert f"scores from {other}, those from here on are from {here.device_class}" in "\n".join(again.remarks)


AS_QUIET: dict[str, Any] = {
    "searchers": ["nevergrad", "random"],
    "seeds": 2,
    "budget": 1280,
    "settings": {"*": {"length": 3}},
    "baselines": [],
    "max_concurrent": 2,
}


@pytest.fixture(scope="module")
def quiet(shared_pools: None, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One that is left alone."""
    with in_this_process():
        return rayprompt.compare(**AS_QUIET, out=tmp_path_factory.mktemp("quiet") / "study")


OPTIONS = ["--searchers", "nevergrad,random", "--seeds", "2", "--budget", "1280", "--set", "length=3"]
OPTIONS += ["--baselines", "none", "--max-concurrent", "2"]


def test_interrupted_and_resumed_it_gives_the_same_table(quiet: Comparison, tmp_path: Path) -> None:
    """Ctrl-C in the second run of nevergrad. The slow test beside it kills the command with SIGKILL, too."""
    reports, handler = 0, signal.getsignal(signal.SIGINT)

    def interrupt(progress: Progress) -> None:
        nonlocal reports
        reports += progress.phase == "search"
        if reports == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as interrupted:
        rayprompt.compare(**{**AS_QUIET, "max_concurrent": 1}, out=tmp_path / "study", listener=interrupt)
    line = str(interrupted.value)
    assert "of 4 runs have ended; dev and test of tiny-masked were not opened" in line
    assert line.endswith(f"to go on: rayprompt compare --resume {tmp_path / 'study'}")
    found = rayprompt.resume_comparison(tmp_path / "study")
    assert stable(found.to_json()) == stable(quiet.to_json())
    assert signal.getsignal(signal.SIGINT) is handler  # Tune leaves its own, which makes nothing of the next Ctrl-C


@pytest.mark.slow
def test_interrupted_killed_and_resumed_by_the_command(quiet: Comparison, tmp_path: Path) -> None:
    run = Run(tmp_path / "killed", OPTIONS, "compare")
    run.start()
    run.await_scores()
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    log = (tmp_path / "killed.1.log").read_text()
    assert f"to go on: rayprompt compare --resume {tmp_path / 'killed'}" in log
    run.start()
    run.await_scores()
    assert run.kill("driver")
    found = run.finish()
    check(found)
    assert stable(found) == stable(quiet.to_json())


def test_search_does_not_resume_a_comparison(verdict: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app, ["search", "--resume", str(verdict.study_dir)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.endswith("begun by rayprompt compare; rayprompt compare --resume goes on with it")
