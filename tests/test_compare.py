"""`rayprompt compare`: equal budgets, one verdict, nothing lost."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PoolOf
from killing import Run
from ray import cloudpickle
from scipy import stats
from test_search import check

import rayprompt
from rayprompt import Candidate, Comparison, InputError, PromptSearcher, Scores
from rayprompt.cli.compare import as_csv, as_markdown, as_text
from rayprompt.comparison.outcome import RunOutcome
from rayprompt.comparison.tables import Prices, tables_of
from rayprompt.study.statistics import Estimate

BUDGET, SEEDS = 64 * 20, 5
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
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def verdict(shared_pools: None, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Random search twice under different names, and one with a handicap."""
    return rayprompt.compare(
        searchers={"random": "random", "again": "random", "stubborn": Stubborn},
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
    verdict: Comparison, shared_pools: None, kept_pool: None, tmp_path: Path
) -> None:
    assert {run.evaluations for run in verdict.runs} == {BUDGET}
    (run,) = (run for run in verdict.runs if run.searcher == "random" and run.seed == 3)
    alone = rayprompt.search(searcher="random", seed=3, budget=BUDGET, settings={"length": 3}, out=tmp_path / "s")
    assert run.prompt["text"] == alone.best_prompt.to_json()["text"]
    assert (run.train, run.dev, run.test) == (alone.train, alone.dev, alone.test)
    assert run.p_value_manual == alone.p_value
    best = sorted(alone.finalists, key=lambda f: -f["dev"])[:3]
    assert {len(run.top), run.top[0].value == run.test.value} == {len(best), True}
    # What its pairs cost is its own, though it shares the store with the same search under another name.
    (same,) = (r for r in verdict.runs if r.searcher == "again" and r.seed == 3)
    assert same.tokens == run.tokens == alone.tokens
    assert same.lm_evaluations + run.lm_evaluations <= 2 * BUDGET


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


def test_dev_score_of_the_incumbent_is_what_evaluate_says(verdict: Comparison, pool_of: PoolOf) -> None:
    run = next(run for run in verdict.runs if run.searcher == "random")
    trace = json.loads(next(verdict.study_dir.glob(f"runs/*{run.name}.json")).read_text())["trace"]
    for evaluations, _, dev in (run.dev_curve[0], run.dev_curve[-1]):
        form = [form for at, form in trace["incumbents"] if at <= evaluations][-1]
        prompt = rayprompt.candidate_from_json(form)
        problem = rayprompt.Problem()
        found = rayprompt.evaluate(prompt, problem, on="dev", pool=pool_of(problem.lm, 1))
        assert found.estimate.value == dev


def test_tensorboard_finds_scalars_by_evaluations_prompts_and_hyperparameters(verdict: Comparison) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    for run in verdict.runs:
        events = EventAccumulator(str(verdict.study_dir / run.name))
        events.Reload()
        tags = events.Tags()
        assert {"ray/tune/best_score", "ray/tune/best_objective", "final/test"} <= set(tags["scalars"])
        steps = [event.step for event in events.Scalars("ray/tune/best_score")]
        assert steps[-1] == run.evaluations
        assert set(steps) <= {64 * n for n in range(1, 21)}
        (final,) = events.Scalars("final/test")
        assert (final.step, final.value) == (run.evaluations, pytest.approx(run.test.value))
        texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("best_prompt/text_summary")]
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
    assert first[0] == "reviews, tiny-masked: split default, 5 seeds, 1,280 evaluations a run"
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
    rows = list(csv.DictReader(io.StringIO(as_csv(verdict))))
    assert [row["name"] for row in rows] == ["random", "again", "stubborn", "empty", "manual", "in-context"]
    assert float(rows[0]["test"]) == verdict.tables[0]["rows"][0]["test"]["mean"]
    lines = [line for line in as_markdown(verdict).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 6


def test_soft_searchers_ranges_and_the_gradients_ceiling(shared_pools: None, tmp_path: Path) -> None:
    """Settings drawn by Tune: dev alone says which configuration stands for the searcher."""
    found = rayprompt.compare(
        searchers=["cma-es", "random"], seeds=[4], budget=64 * 40, objective="cross_entropy", max_concurrent=2,
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
    again = rayprompt.compare(
        searchers=["cma-es"], seeds=[4], budget=64, samples=1, baselines=[], max_concurrent=2, out=tmp_path / "again",
        settings={"cma-es": {"alpha": {"uniform": [1, 20]}, "length": {"grid_search": [3, 5]}, "intrinsic_dim": 20}},
    )  # fmt: skip
    assert [run.settings for run in again.runs] == [run.settings for run in drawn], "drawn by the seed"


def test_a_scheduler_stops_weak_runs_and_that_is_said(shared_pools: None, tmp_path: Path) -> None:
    found = rayprompt.compare(
        searchers={"random": "random", "stubborn": Stubborn}, seeds=2, budget=64 * 50, baselines=[], max_concurrent=4,
        scheduler={"name": "median", "grace_period": 64 * 10, "min_samples_required": 2}, out=tmp_path / "s",
    )  # fmt: skip
    stopped = [run for run in found.runs if run.end == "scheduler"]
    assert stopped, "of two pairs of runs the worse ones are stopped"
    assert all(run.evaluations < 64 * 50 for run in stopped)
    assert any("stopped early by the scheduler" in line for line in found.remarks)
    assert {row["searcher"]: row["stopped"] for row in found.tables[0]["rows"]} == {
        name: sum(run.searcher == name for run in stopped) for name in ("random", "stubborn")
    }
    assert "*" in as_text(found)


def test_several_lms_and_splits_in_one_comparison(shared_pools: None, mr_folder: Path, tmp_path: Path) -> None:
    found = rayprompt.compare(
        ["reviews", mr_folder], ["random"], models=["tiny-masked", "tiny-causal"], splits=None, seeds=1, budget=64,
        baselines=[], max_concurrent=2, out=tmp_path / "s",
    )  # fmt: skip
    assert len(found.runs) == 4
    assert [(t["task"], t["model"]) for t in found.tables] == [
        ("reviews", "tiny-masked"), ("mr", "tiny-masked"), ("reviews", "tiny-causal"), ("mr", "tiny-causal"),
        (None, None),
    ]  # fmt: skip
    overall = found.tables[-1]["rows"][0]["test"]["mean"]
    assert overall == pytest.approx(np.mean([run.test.value for run in found.runs]))
    assert set(found.pools) == {"tiny-masked", "tiny-causal"}


def outcome(searcher: str, split: str, seed: int, test: float, best: list[tuple[int, float]]) -> RunOutcome:
    """A run as it might have come out."""
    estimate = Estimate("accuracy", test, 100, (max(0.0, test - 0.1), min(1.0, test + 0.1)))
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
    "samples": ({"settings": {"random": {"length": {"randint": [1, 5]}}}, "samples": 0}, "--samples 0: must be 1 or"),
    "seeds": ({"seeds": 0}, "seeds 0: must be a number of seeds"),
    "one seed twice": ({"seeds": [1, 1]}, "seeds [1, 1]: must be"),
    "budget": ({"budget": 0}, "budget 0: must be 1 or more"),
    "baseline": ({"baselines": ["manuel"]}, "unknown baseline 'manuel'"),
    "scheduler": ({"scheduler": "hyperband"}, "unknown scheduler 'hyperband'"),
    "option of a scheduler": ({"scheduler": {"name": "asha", "eta": 3}}, "scheduler asha: "),
    "target": ({"target": "loss=3"}, "unknown target 'loss'"),
    "target's value": ({"target": "best_score=high"}, "--target best_score=high: must be a number"),
    "price": ({"price_per_hour": -1.0}, "--price-per-hour -1.0: must be 0 or more"),
    "split": ({"splits": ["16-13"]}, "unknown split '16-13' in task reviews"),
    "model twice": (
        {"models": ["tiny-masked", "tiny-masked"]},
        "task reviews, split default, model tiny-masked: given",
    ),
    "no room": ({"searchers": ["cma-es"], "settings": {"cma-es": {"length": 200}}}, "takes 128 tokens"),
    "concurrency": ({"max_concurrent": 0}, "--max-concurrent 0: must be 1 or more runs"),
}


@pytest.mark.parametrize(("given", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_said_before_anything_starts(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        rayprompt.compare(**{"out": tmp_path / "s", "address": "local:1", **given})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "s").exists()


def test_killed_and_resumed_it_gives_the_same_table(tmp_path: Path) -> None:
    """The command itself: killed with SIGKILL, interrupted with Ctrl-C, resumed, against one that was left alone."""
    options = ["--searchers", "random,nevergrad", "--seeds", "2", "--budget", "3840", "--set", "length=3"]
    options += ["--baselines", "none"]
    quiet = Run(tmp_path / "quiet", options, "compare")
    quiet.start()
    expected = quiet.finish()
    check(expected)
    run = Run(tmp_path / "killed", options, "compare")
    run.start()
    run.await_scores()
    assert run.kill("driver")
    run.await_scores()
    assert run.kill("trial")
    run.await_scores()
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) in (130, 0)
    run.start()
    assert stable(run.finish()) == stable(expected)
    other = subprocess.run(
        [sys.executable, "-m", "rayprompt.cli.main", "search", "--resume", str(tmp_path / "killed")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert other.returncode == 2
    assert other.stderr.strip().endswith("begun by rayprompt compare; rayprompt compare --resume goes on with it")
