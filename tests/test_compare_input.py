"""`rayprompt compare` without a cluster: what is refused, what becomes of the options, what tables make of runs."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from scipy import stats

import rayprompt
from rayprompt import InputError
from rayprompt.cli.compare import as_csv, as_markdown, as_text
from rayprompt.cli.leaderboard import Leaderboard
from rayprompt.cli.main import app
from rayprompt.cli.main import run as run_command
from rayprompt.comparison.job import Job, problems_of
from rayprompt.comparison.outcome import Comparison, RunOutcome
from rayprompt.comparison.plan import Entry, entries_of, runs_of
from rayprompt.comparison.plan import Run as Planned
from rayprompt.comparison.schedulers import scheduler_of
from rayprompt.comparison.significance import permutation_p_value
from rayprompt.comparison.tables import Prices, tables_of
from rayprompt.records import RunReport
from rayprompt.store.files import Folder
from rayprompt.study.progress import Progress, silent
from rayprompt.study.session import Cluster
from rayprompt.study.statistics import Estimate
from rayprompt.study.trace import Trace, write_run


def test_tasks_and_splits_become_problems(mr_folder: Path) -> None:
    found = problems_of([mr_folder, "reviews"], ["tiny-masked"], None, None, allow_leaks=False)
    assert list(found) == [("mr", "16-13", "tiny-masked"), ("reviews", "default", "tiny-masked")]
    every = problems_of([mr_folder], ["tiny-masked", "tiny-causal"], "all", None, allow_leaks=False)
    assert [stratum[1:] for stratum in every] == [
        (split, model) for model in ("tiny-masked", "tiny-causal") for split in ("16-13", "16-21", "short")
    ]
    some = problems_of([mr_folder], ["tiny-masked"], ["16-21", "short"], None, allow_leaks=False)
    assert [stratum[1] for stratum in some] == ["16-21", "short"]


def accuracy(value: float) -> Estimate:
    return Estimate("accuracy", value, 100, (max(0.0, value - 0.1), min(1.0, value + 0.1)))


def outcome(searcher: str, split: str, seed: int, test: float, best: list[tuple[int, float]]) -> RunOutcome:
    """A run as it might have come out."""
    estimate = accuracy(test)
    curve = tuple((float(n), n / 1000, value, value) for n, value in best)
    return RunOutcome(
        name=f"{searcher}-{split}-{seed}", searcher=searcher, group=searcher, settings={}, objective="accuracy",
        task="t", split=split, model="m", seed=seed, end="budget", prompt={"kind": "text", "text": ""}, train=estimate,
        dev=estimate, test=estimate, top=(estimate,), decoded=None, finalists=(), p_value_manual=None,
        best_objective=best[-1][1], best_score=best[-1][1], evaluations=best[-1][0], candidates=1, tokens=1000,
        device_seconds=36.0, lm_evaluations=0, cache_hits=0, own_seconds=0.0, seconds=0.0, tokens_per_use=20.0,
        curve=curve,
        dev_curve=tuple((row[0], row[1], test) for row in curve),
    )  # fmt: skip


def test_evaluations_to_reach_what_the_reference_reaches() -> None:
    """A fast searcher and its reference, worked out by hand."""
    slow = [outcome("slow", "a", seed, 0.7, [(100, 0.5), (500, 0.6), (1000, 0.8)]) for seed in range(3)]
    fast = [outcome("fast", "a", seed, 0.8, [(100, 0.6), (100 * (seed + 2), 0.9)]) for seed in range(3)]
    (table,) = tables_of(
        [*slow, *fast], [], budget=1000, reference="slow", prices=Prices(per_hour=10, per_million_tokens=100)
    )
    assert table["target"] == {"measure": "best_objective", "value": 0.8, "from": "slow"}
    rows = {row["searcher"]: row for row in table["rows"]}
    assert rows["slow"]["to_target"] == {"reached": 3, "of": 3, "median": 1000}
    assert rows["fast"]["to_target"] == {"reached": 3, "of": 3, "median": 300}
    assert rows["fast"]["area_score"]["mean"] == pytest.approx(np.mean([0.9 - 0.3 * s / 900 for s in (100, 200, 300)]))
    assert rows["slow"]["cost"]["price"] == pytest.approx(0.1 + 0.1)


def test_half_of_an_even_number_of_runs() -> None:
    runs = [outcome("a", "x", seed, 0.5, [(10, 0.1), (100 * (seed + 1), 0.5 + seed / 10)]) for seed in range(2)]
    (table,) = tables_of(runs, [], budget=1000, reference="a")
    assert table["target"]["value"] == 0.6
    assert table["rows"][0]["to_target"] == {"reached": 1, "of": 2, "median": 200}


def test_a_searcher_without_runs_on_a_split_has_no_place() -> None:
    """It would be compared on the easy splits alone."""
    runs = [
        outcome("a", split, seed, value, [(10, value)]) for split, value in (("x", 0.5), ("y", 0.9)) for seed in (0, 1)
    ]
    runs += [outcome("b", "y", seed, 0.91, [(10, 0.8)]) for seed in (0, 1)]
    (table,) = tables_of(runs, [], budget=10, reference="gone")
    assert [(row["searcher"], row["rank"], row["letters"]) for row in table["rows"]] == [("a", 1, "a"), ("b", None, "")]
    assert table["tests"]["test"]["pairs"] == []
    assert table["target"]["from"] == "a"
    other = [outcome("b", "x", 0, 0.9, [(10, 0.8)]), outcome("a", "y", 0, 0.9, [(10, 0.8)])]
    (table,) = tables_of(other, [], budget=10, reference="a")
    assert {row["rank"] for row in table["rows"]} == {None}
    assert table["tests"] == {}


def test_runs_that_failed_are_told_beside_the_means() -> None:
    """Means over the runs that are left may flatter: the table says how many there are."""
    values = {0: 0.6, 1: 0.8, 2: 0.7, 4: 0.9}  # seed 3 failed
    runs = [outcome("a", "x", seed, value, [(10, value)]) for seed, value in values.items()]
    runs += [outcome("b", "x", seed, 0.5, [(10, 0.5)]) for seed in range(5)]
    entries = {name: Entry(name, name, "random") for name in "abc"}
    lost = [Planned("a-s3", entries["a"], ("t", "x", "m"), 3)]
    lost += [Planned(f"c-s{seed}", entries["c"], ("t", "x", "m"), seed) for seed in range(5)]
    (table,) = tables_of(runs, [], budget=10, reference="a", failed=lost)
    rows = {row["searcher"]: row for row in table["rows"]}
    assert (rows["a"]["runs"], rows["a"]["failed"]) == (4, 1)
    assert (rows["b"]["runs"], rows["b"]["failed"]) == (5, 0)
    assert rows["a"]["test"]["mean"] == pytest.approx(pd.Series(values).mean())
    assert table["without_runs"] == [{"searcher": "c", "failed": 5}]
    found = Comparison(
        runs=tuple(runs), baselines=(), tables=(table,), budget=10, seeds=(0, 1, 2, 3, 4), study_dir=Path("s"),
        store="s", seconds=1.0, report_evaluations=0, failed={run.name: "out of luck" for run in lost},
    )  # fmt: skip
    for text in (as_text(found), as_markdown(found)):
        assert "a (4 of 5 runs)" in text
        assert "c (0 of 5 runs)" in text
        assert "means over 9 of 15 runs" in text
    frame = pd.read_csv(io.StringIO(as_csv(found)))
    assert frame.set_index("name")[["runs", "failed"]].to_dict("index") == {
        "a": {"runs": 4, "failed": 1}, "b": {"runs": 5, "failed": 0}, "c": {"runs": 0, "failed": 5},
    }  # fmt: skip
    (alone,) = tables_of(runs[:4], [], budget=10, reference="a", failed=lost[:1])  # nobody has more runs than it
    assert "a (4 of 5 runs)" in as_text(dataclasses.replace(found, tables=(alone,)))


def test_the_cost_of_drawn_settings_is_that_of_all_configurations() -> None:
    runs = [
        dataclasses.replace(outcome(label, "x", seed, 0.5, [(100, 0.5)]), group="a", dev=dev)
        for seed in (0, 1)
        for label, dev in (("a#1", accuracy(0.6)), ("a#2", accuracy(0.7)))
    ]
    (table,) = tables_of(runs, [], budget=100, reference="a")
    (row,) = table["rows"]
    assert row["configuration"]["label"] == "a#2"
    assert (row["runs"], row["cost"]["evaluations"], row["cost"]["tokens"]) == (2, 200, 2000)


def test_a_stop_mark_counts_only_with_the_report_it_was_made_at(tmp_path: Path) -> None:
    """An older report, or a run that was taken up again, is not what the scheduler stopped."""
    (entry,) = entries_of(["random"], {})
    (run,) = runs_of([entry], [("t", "x", "m")], [0])
    options = {"budget": 100, "finalists": 1}
    job = Job({}, [entry], [run], [0], tmp_path, "id", ".", options, Cluster(), silent, 0.0)
    figures = [name for name in get_type_hints(RunReport) if name not in ("objective", "end")]
    report = {"objective": "accuracy", "end": "", **dict.fromkeys(figures, 0), "evaluations": 64}
    write_run(Folder.at(tmp_path), job.plan(run).search, report, Trace())
    assert job.ended(run) is None
    job.mark_stopped(run, 96)
    assert job.ended(run) is None
    write_run(Folder.at(tmp_path), job.plan(run).search, {**report, "evaluations": 96}, Trace())
    assert job.ended(run)[0] == {**report, "end": "scheduler", "evaluations": 96}
    write_run(Folder.at(tmp_path), job.plan(run).search, {**report, "end": "budget", "evaluations": 100}, Trace())
    assert job.ended(run)[0]["end"] == "budget"
    file = next((tmp_path / "runs").glob("*.json"))
    file.write_text(file.read_text()[:20])
    assert job.ended(run) is None


def test_what_is_given_on_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("tasks: [reviews]\nsearchers: [random]\nseeds: 2\nbudget: 64\nsettings: {random: {length: 3}}\n")
    told: list[dict[str, Any]] = []

    def instead(**options: Any) -> None:
        told.append(options)
        raise InputError("seen")

    monkeypatch.setattr("rayprompt.comparison.compare.compare", instead)
    assert run_command(app, ["compare", "--config", str(file), "--seeds", "4", "--set", "length=5"]) == 2
    assert (told[0]["seeds"], told[0]["budget"], told[0]["searchers"]) == (4, 64, ["random"])
    assert told[0]["settings"] == {"random": {}, "*": {"length": "5"}}
    assert run_command(app, ["compare", "--config", str(file), "--set", "random.length=4"]) == 2
    assert told[1]["settings"] == {"random": {"length": "4"}}
    assert told[1]["seeds"] == 2


COMMANDS = {
    "format": (["--format", "table"], "--format table: must be text, md, csv, json"),
    "seeds": (["--seeds", "many"], "--seeds many: must be a number of seeds"),
    "set": (["--set", "length"], "--set length: must be NAME.KEY=VALUE"),
    "set twice": (["--set", "length=3", "--set", "length=4"], "--set length: given twice"),
    "resume and more": (["--resume", "x", "--seeds", "3"], "--seeds beside --resume: a comparison goes on as it began"),
    "resume what": (["--resume", "nowhere"], "nowhere: no such directory"),
    "target": (["--target", "nan"], "--target nan: must be a number"),
    "scorers": (["--scorers", "0"], "--scorers 0: must be 1 or more"),
    "price": (["--price-per-hour", "inf"], "--price-per-hour inf: must be a number"),
}


@pytest.mark.parametrize(("given", "message"), COMMANDS.values(), ids=COMMANDS)
def test_wrong_options(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(app, ["compare", *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


FILES = {
    "key": ("task: reviews\n", "unknown key 'task'"),
    "models": ("models: [5]\n", "models is a list of text, not of 5"),
    "seeds": ("seeds: [a]\n", "seeds is a list of a whole number, not of 'a'"),
    "searcher": ("searchers: {a: 5}\n", "5 is neither a searcher's name nor its class"),
    "scheduler": ("scheduler: {name: [x]}\n", "unknown scheduler ['x']"),
    "choice": ("settings: {random: {length: {choice: []}}}\n", "choice([]) is not a range"),
    "settings": ("settings: {random: 3}\n", "settings maps a searcher's name to its settings"),
    "record": ("schema: rayprompt.comparison/1\n", "rayprompt compare --resume goes on with it"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_wrong_study_files(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(content)
    assert run_command(app, ["compare", "--config", "c.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_splits_are_the_unit_of_the_interval_where_there_are_three() -> None:
    """Seeds of one split go together: the interval is that of the split means."""
    runs = [
        outcome(name, split, seed, value + 0.1 * (name == "b") + 0.001 * seed, [(10, value)])
        for name in ("a", "b")
        for split, value in (("x", 0.5), ("y", 0.7), ("z", 0.6))
        for seed in range(3)
    ]
    (table,) = tables_of(runs, [], budget=10, reference="a")
    row = next(row for row in table["rows"] if row["searcher"] == "a")
    low, high = stats.ttest_1samp([0.501, 0.701, 0.601], 0).confidence_interval()
    assert row["test"]["over"] == "splits"
    assert row["test"]["ci95"] == pytest.approx([low, min(1.0, high)])
    assert table["tests"]["test"]["pairs"][0]["p"] == pytest.approx(2 / 20**3), "3 strata of 3 + 3 runs, fully apart"


ERRORS = {
    "no such searcher": ({"searchers": ["rando"]}, "unknown searcher 'rando' (did you mean 'random'?)"),
    "none": ({"searchers": []}, "--searchers: names none"),
    "twice": ({"searchers": ["random", "random"]}, "random stands there twice; give one another name, as mine=random"),
    "label": ({"searchers": ["a b=random"]}, "'a b' is not a name of letters"),
    "settings of nobody": ({"settings": {"cma": {}}}, "unknown searcher 'cma' in the settings"),
    "no such setting": ({"settings": {"random": {"lenght": 3}}}, "unknown setting 'lenght' in searcher random"),
    "nobody has it": ({"settings": {"*": {"alpha": 3}}}, "--set alpha=...: none of random, nevergrad has this setting"),
    "no range": ({"settings": {"random": {"length": {"between": [1, 2]}}}}, "a range is one of choice"),
    "a wrong range": ({"settings": {"random": {"length": {"uniform": [1]}}}}, "uniform([1]) is not a range"),
    "samples": (
        {"settings": {"random": {"length": {"randint": [1, 5]}}}, "samples": 0},
        "--samples 0: must be from 1 to 10,000",
    ),
    "seeds": ({"seeds": 0}, "seeds 0: must be a number of seeds"),
    "one seed twice": ({"seeds": [1, 1]}, "seeds [1, 1]: must be"),
    "budget": ({"budget": 0}, "budget 0: must be 1 or more"),
    "baseline": ({"baselines": ["manuel"]}, "unknown baseline 'manuel'"),
    "scheduler": ({"scheduler": "hyperband"}, "unknown scheduler 'hyperband'"),
    "option of a scheduler": ({"scheduler": {"name": "asha", "eta": 3}}, "scheduler asha: "),
    "target": ({"target": "loss=3"}, "unknown target 'loss'"),
    "target's value": ({"target": "best_score=high"}, "--target best_score=high: must be a number"),
    "price": ({"price_per_hour": -1.0}, "--price-per-hour -1.0: must be a number, 0 or more"),
    "not storable": ({"settings": {"random": {"phrases": object}}}, "must be a number, a text or a list of them"),
    "no class": ({"searchers": {"a": 5}}, "5 is neither a searcher's name nor its class"),
    "split": ({"splits": ["16-13"]}, "unknown split '16-13' in task reviews"),
    "model twice": (
        {"models": ["tiny-masked", "tiny-masked"]},
        "task reviews, split default, model tiny-masked: given",
    ),
    "no room": ({"searchers": ["cma-es"], "settings": {"cma-es": {"length": 200}}}, "128"),
    "concurrency": ({"max_concurrent": 0}, "--max-concurrent 0: must be 1 or more runs"),
}


@pytest.mark.parametrize(("given", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_said_before_anything_starts(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        rayprompt.compare(**{"out": tmp_path / "s", "address": "local:1", **given})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "s").exists()


def test_the_study_file_of_the_docs() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "compare.md").read_text(), re.S)
    content = yaml.safe_load(block)
    entries = entries_of(content["searchers"], content["settings"], samples=content["samples"])
    assert [entry.group for entry in entries] == ["random-soft", *["cma-es"] * 6]
    assert all(1 <= entry.settings["alpha"] <= 30 and entry.settings["length"] in (5, 10) for entry in entries[1:])
    assert scheduler_of(content["scheduler"], content["budget"]) is not None


def test_what_a_choice_among_configurations_does_to_the_tests() -> None:
    """docs/compare.md: of equal searchers, one with six configurations is found different in up to 8 of 100."""
    rng = np.random.Generator(np.random.PCG64(0))
    found, repetitions = 0, 1500
    for _ in range(repetitions):
        dev = rng.normal(size=(7, 5))
        test = 0.8 * dev + 0.6 * rng.normal(size=(7, 5))  # a run that is good on dev is good on test
        best = int(dev[:6].mean(axis=1).argmax())
        found += permutation_p_value({"x": test[best]}, {"x": test[6]}) <= 0.05
    assert 0.055 < found / repetitions < 0.095


def test_the_live_leaderboard() -> None:
    board = Leaderboard()
    about = {"phase": "search", "budget": 100, "runs": 5, "ended": 2}
    board(Progress(search="a-s0", searcher="a", evaluations=40, best_score=0.5, best_prompt="it was", **about))
    board(Progress(search="b-s0", searcher="b", evaluations=100, best_score=0.8, best_prompt="so", over=True, **about))
    board(Progress(search="a-s1", searcher="a", evaluations=20, best_score=0.7, best_prompt="truly", **about))
    head, first, second, state = board._table()
    assert head.split("  ")[0] == "searcher"
    assert first.split() == ["b", "0.800", "1", "of", "1", "begun", "100", "so"]
    assert second.split() == ["a", "0.600", "0", "of", "2", "begun", "60", "truly"]
    assert state.startswith("3 of 5 runs are over, 160 of 300 evaluations, ")
