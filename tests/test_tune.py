"""The searchers in Ray Tune's own hands: hand-written Tuners, ``--tune-native``, kills and restores."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import task_of
from killing import await_end, descendants
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Repeater

import rayprompt
from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError, RestoreError, ScoringError
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.store.store import ScoreStore
from rayprompt.study.trainable import DeskActor
from searchers.random import RandomSearcher

HERE = Path(__file__).parent

pytestmark = pytest.mark.usefixtures("kept_pool")


@pytest.fixture(scope="module")
def tiny() -> Problem:
    return Problem(task_of(8), "tiny-masked")


@pytest.fixture(scope="module")
def trainable(pool: ScoringPool, tiny: Problem) -> type[tune.Trainable]:
    return rayprompt.prompt_trainable(tiny, pool=pool)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


def run_config(folder: Path, name: str = "run", **more: Any) -> tune.RunConfig:
    return tune.RunConfig(name=name, storage_path=str(folder), verbose=0, **more)


def in_order(results: Any) -> list[dict[str, Any]]:
    """The last reports of all trials, in the order of their batches."""
    return sorted((r.metrics for r in results), key=lambda m: m["config"]["batch"])


SOFT = {"length": 5, "alpha": 5.0, "population": 10}


@pytest.mark.parametrize(
    ("name", "settings", "count", "pieces"),
    [
        pytest.param("nevergrad", {}, 50, True, marks=pytest.mark.slow, id="nevergrad"),
        pytest.param("cma-es", SOFT, 15, True, marks=pytest.mark.slow, id="cma-es-pieces"),
        pytest.param("cma-es", SOFT, 15, False, id="cma-es"),
    ],
)
def test_three_ways_of_running_ask_for_the_same_and_end_the_same(
    name: str, settings: dict[str, Any], count: int, pieces: bool, pool: ScoringPool, tiny: Problem,
    trainable: type[tune.Trainable], tmp_path: Path,
) -> None:  # fmt: skip
    budget = 8 * count
    ways: dict[str, rayprompt.Result] = {}
    for way, more in (
        ("default", {}),
        ("native", {"tune_native": True}),
        *([("pieces", {"tune_native": True, "batch_size": 7})] if pieces else []),
    ):
        ways[way] = rayprompt.search(
            tiny, searcher=name, budget=budget, seed=3, settings=settings, out=tmp_path / way, **more
        )
    searcher = load_searcher(name)(tiny, seed=3, budget=count, **settings)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1),
        run_config=run_config(tmp_path, "hand"),
    )
    results = in_order(tuner.fit())

    asked = {way: asked_for(tmp_path / way) for way in ways}
    asked["hand"] = [c.key for m in results for c in rayprompt.candidates(m["config"])]
    asked["default"] = asked["default"][:count]  # a generation is asked for whole, and cut by the budget
    assert len(asked["hand"]) == count
    assert all(keys == asked["default"] for keys in asked.values())
    for result in ways.values():
        assert result.best_prompt == ways["default"].best_prompt
        assert (result.train, result.dev, result.test) == (
            ways["default"].train,
            ways["default"].dev,
            ways["default"].test,
        )
        assert result.finalists == ways["default"].finalists
        assert result.evaluations == budget
        assert result.end == "budget"
    best = max(results, key=lambda m: m["score"])
    assert best["score"] == max(f["objective"] for f in ways["default"].finalists)
    assert searcher.ended == "budget"


def asked_for(study: Path) -> list[str]:
    rows = ScoreStore(study).candidates().to_pylist()
    rows = [row for row in rows if row["generation"] > 0]
    return [row["candidate"] for row in sorted(rows, key=lambda row: (row["generation"], row["position"]))]


@pytest.mark.slow  # quick: a store is shared by studies, tests/test_resume.py
def test_an_interrupted_native_search_goes_on(pool: ScoringPool, tiny: Problem, tmp_path: Path) -> None:
    """Nothing of its Tune run is needed: all scores are in the store."""
    whole = rayprompt.search(tiny, budget=8 * 48, out=tmp_path / "whole", tune_native=True)
    rayprompt.search(tiny, budget=8 * 20, out=tmp_path / "part", tune_native=True)
    more = rayprompt.resume(tmp_path / "part", budget=8 * 48, task=tiny.task)
    assert more.best_prompt == whole.best_prompt
    assert more.evaluations == whole.evaluations
    assert more.lm_evaluations == whole.lm_evaluations  # nothing twice
    assert json.loads((tmp_path / "part" / "result.json").read_text())["test_opened"] == 2


class TooLong(RandomSearcher):
    """In its second generation it asks for a prompt that does not fit the LM."""

    def ask(self, n: int) -> list[rayprompt.Candidate]:
        found = super().ask(n)
        if len(self.asked) > n:
            found[3] = TextPrompt("long", (5,) * 600)
        return found


class Mute(RandomSearcher):
    def ask(self, n: int) -> list[rayprompt.Candidate]:
        if self.asked:
            raise ValueError("nothing comes to mind")
        return super().ask(n)


@pytest.mark.parametrize(
    ("searcher", "error", "message"),
    [(TooLong, InputError, "600 tokens"), (Mute, ScoringError, "the search failed: ValueError: nothing comes to mind")],
)
def test_a_native_search_that_fails_ends_at_once_with_its_reason(
    pool: ScoringPool, tiny: Problem, tmp_path: Path, searcher: Any, error: type[Exception], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=message) as failed:
        rayprompt.search(tiny, searcher=searcher, budget=8 * 64, out=tmp_path / "s", tune_native=True)
    assert "\n" not in str(failed.value)
    assert time.monotonic() - started < 60  # not fifty times


def test_a_bad_batch_does_not_spoil_those_scored_with_it(
    ray_session: None, trainable: type[tune.Trainable], tiny: Problem, tmp_path: Path
) -> None:
    searcher = TooLong(tiny, budget=64)
    results = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=4, reuse_actors=True),
        run_config=run_config(tmp_path),
    ).fit()
    bad = {r.config["batch"] for r in results if any(p.text == "long" for p in rayprompt.candidates(r.config))}
    assert len(results.errors) == len(bad) == 3
    assert sum(r.error is None for r in results) == 2  # 'long' counts once, so there is room for a fifth batch


def test_a_native_search_needs_a_candidates_budget(tiny: Problem, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="--budget 7: --tune-native needs that of one candidate at least .8 evaluations"
    ):
        rayprompt.search(tiny, budget=7, out=tmp_path / "x", tune_native=True)
    with pytest.raises(InputError, match="--batch-size 3: is for --tune-native"):
        rayprompt.search(tiny, budget=70, out=tmp_path / "x", batch_size=3)
    with pytest.raises(InputError, match="batch_size 0: must be 1 or more"):
        rayprompt.search(tiny, budget=70, out=tmp_path / "x", batch_size=0, tune_native=True)


@pytest.mark.parametrize(
    ("metric", "mode", "space", "limit"),
    [
        pytest.param("score", "max", {"constant": 1}, None, marks=pytest.mark.slow, id="score"),
        pytest.param("loss", "min", {"constant": 1}, 2, id="constants"),
        pytest.param("loss", "min", {}, None, id="no-param-space"),
    ],
)
def test_a_trainable_of_your_own(
    ray_session: None, tiny: Problem, tmp_path: Path, metric: str, mode: str, space: dict[str, Any], limit: int | None
) -> None:
    """Any function of the prompts will do; here the shortest text is best. Metric and mode come from the Tuner."""
    sign = 1 if mode == "min" else -1

    def shortest(config: dict[str, Any]) -> None:
        lengths = [len(prompt.text) for prompt in rayprompt.candidates(config)]
        tune.report({metric: sign * min(lengths), "candidate_scores": [sign * n for n in lengths]})

    searcher = load_searcher("nevergrad")(tiny, seed=0, budget=64, start="random", population=8)
    results = tune.Tuner(
        shortest,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher, metric=metric, mode=mode, num_samples=-1, reuse_actors=True,
            max_concurrent_trials=limit,
        ),
        run_config=run_config(tmp_path),
    ).fit()  # fmt: skip
    assert not results.errors
    assert len(results) == 8
    assert (searcher.metric, searcher.mode) == (metric, mode)
    first, *_, last = in_order(results)
    assert abs(last[metric]) < abs(first[metric])


def test_a_bare_number_and_only_a_mode(ray_session: None, tiny: Problem, tmp_path: Path) -> None:
    """As in Ray's own tests of searchers: ``tune.run(mode="max")`` of a function that returns its metric unnamed."""

    def longest(config: dict[str, Any]) -> None:
        (prompt,) = rayprompt.candidates(config)
        tune.report({"_metric": len(prompt.text)})

    told = []

    class Told(RandomSearcher):
        def tell(self, candidates: Any, scores: Any) -> None:
            told.extend(zip([len(c.text) for c in candidates], self.values(scores).tolist(), strict=True))

    tune.run(
        longest, search_alg=Told(tiny, budget=3, batch_size=1), mode="max", num_samples=-1, verbose=0,
        reuse_actors=True, storage_path=str(tmp_path), name="run",
    )  # fmt: skip
    known = [(length, value) for length, value in told if value == value]
    assert len(known) == 3
    assert all(length == value for length, value in known)


def test_a_metric_that_conflicts_is_refused(ray_session: None, tiny: Problem, tmp_path: Path) -> None:
    """Whether Tune passes it on (param_space) or not."""
    line = "searcher random has {0}, the Tuner {1}: give it to the Tuner only"
    expected = {
        "metric": (line.format("metric='score'", "metric='loss'"), {"metric": "score"}),
        "mode": (line.format("mode='max'", "mode='min'"), {"mode": "max"}),
    }
    for text, given in expected.values():
        with pytest.raises(InputError) as direct:
            RandomSearcher(tiny, **given).set_search_properties("loss", "min", {"constant": 1})
        assert str(direct.value) == text
    tuner = tune.Tuner(
        lambda config: None,
        tune_config=tune.TuneConfig(search_alg=RandomSearcher(tiny, mode="max"), metric="loss", mode="min"),
        run_config=run_config(tmp_path),
    )
    with pytest.raises(InputError, match="mode='max', the Tuner mode='min'"):
        tuner.fit()
    for wrong in ({"metric": ["a", "b"]}, {"mode": "maximum"}):
        with pytest.raises(InputError, match="must be one metric's name, and 'max' or 'min'"):
            RandomSearcher(tiny, **wrong)


def test_a_repeated_searcher_learns_with_single_candidates(tiny: Problem) -> None:
    """A Repeater tells one mean; of a batch of several candidates that is refused."""
    searcher = load_searcher("nevergrad")(
        tiny, seed=0, start="random", population=8, batch_size=1, metric="loss", mode="min"
    )
    repeater, means = Repeater(searcher, repeat=2), []
    for trial in range(8 * 8 * 2):
        config = repeater.suggest(str(trial))
        length = len(rayprompt.candidates(config)[0].text)
        repeater.on_trial_complete(str(trial), {"loss": length + (trial % 2 - 0.5), "training_iteration": 1})
        means.append(length)
    assert sum(means[-16:]) < 0.7 * sum(means[:16])
    with pytest.raises(InputError, match="one mean for all 8 candidates of a trial.*batch_size=1"):
        Repeater(load_searcher("nevergrad")(tiny, population=8), repeat=2).suggest("0")


def test_one_value_for_several_candidates_is_said_once(tiny: Problem, caplog: pytest.LogCaptureFixture) -> None:
    searcher = RandomSearcher(tiny)
    for trial in ("0", "1"):
        searcher.suggest(trial)
        searcher.on_trial_complete(trial, {"score": 0.5})
    (record,) = caplog.records
    assert "batch_size=1" in record.getMessage()


@pytest.mark.slow  # quick: the kit's check "pause"
def test_hyperband_for_bohb_pauses_trials(ray_session: None, tiny: Problem, tmp_path: Path) -> None:
    from ray.tune.schedulers import HyperBandForBOHB

    class Steps(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"score": float(len(rayprompt.candidates(self.config)[0].text) + self.iteration)}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            Path(checkpoint_dir, "nothing").touch()

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    searcher = load_searcher("nevergrad")(tiny, population=4, batch_size=1, budget=12)
    results = tune.Tuner(
        Steps,
        tune_config=tune.TuneConfig(
            search_alg=searcher, metric="score", mode="max", num_samples=-1, scheduler=HyperBandForBOHB(max_t=4)
        ),
        run_config=run_config(tmp_path, stop={"training_iteration": 4}),
    ).fit()
    assert len(results) == 12
    assert not results.errors
    assert not searcher._batches.failed  # those that were stopped while paused count with what they reported


def test_points_to_evaluate_and_a_trial_that_fails(ray_session: None, tiny: Problem, tmp_path: Path) -> None:
    def fail_on_great(config: dict[str, Any]) -> None:
        prompts = rayprompt.candidates(config)
        if any("great" in prompt.text for prompt in prompts):
            raise RuntimeError("no")
        tune.report({"score": 1.0})

    searcher = load_searcher("random")(
        tiny, budget=6, batch_size=2, points_to_evaluate=["it was great", TextPrompt("overall"), "in short"]
    )
    results = tune.Tuner(
        fail_on_great,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
        run_config=run_config(tmp_path),
    ).fit()
    batches = {r.config["batch"]: [p.text for p in rayprompt.candidates(r.config)] for r in results}
    assert batches[0] == ["it was great", "overall"]
    assert batches[1] == ["in short"]
    assert len(results.errors) == 1
    assert len(results) == 4
    assert sum(len(batch) for batch in batches.values()) == 6


def test_names_stay_short_and_configs_small(trainable: type[tune.Trainable], tiny: Problem, tmp_path: Path) -> None:
    """And the data frame, of the one logger that is left, has all trials."""
    searcher = load_searcher("random")(tiny, budget=32)
    results = tune.Tuner(
        trainable, tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1),
        run_config=run_config(tmp_path, callbacks=[JsonLoggerCallback()]),
    ).fit()  # fmt: skip
    frame = results.get_dataframe()
    assert sorted(frame["score"]) == sorted(r.metrics["score"] for r in results)
    assert len(frame) == 2
    for m in in_order(results):
        assert len(m["experiment_tag"]) < 100
        assert set(m["config"]) == {"candidates", "batch", "objective"}
        assert {"score", "best_score", "candidate_scores", "candidate_metrics", "timesteps_total"} <= set(m)


@pytest.mark.slow  # quick: desks and pools of other trainables, above
def test_the_pool_of_a_trainable_is_put_away_with_it(ray_session: None, tiny: Problem) -> None:
    import gc

    from ray.util import list_named_actors

    before = set(list_named_actors())
    mine = rayprompt.prompt_trainable(tiny, scorers=1)
    assert len(set(list_named_actors()) - before) == 2  # scorer and desk
    second = rayprompt.prompt_trainable(tiny, scorers=1)  # as in a notebook: its LM is loaded already
    assert len(set(list_named_actors()) - before) == 3
    del mine
    gc.collect()
    assert any(name.startswith("scorer") for name in set(list_named_actors()) - before)
    del second
    gc.collect()
    deadline = time.monotonic() + 20
    while set(list_named_actors()) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(list_named_actors()) - before


def test_a_restore_that_does_not_happen_stops_the_run(
    trainable: type[tune.Trainable], tiny: Problem, tmp_path: Path
) -> None:
    """Tune itself logs a line and starts the whole experiment anew."""
    searcher = load_searcher("random")(tiny, budget=48)
    config = tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True)
    tune.Tuner(trainable, tune_config=config, run_config=run_config(tmp_path)).fit()
    for file in (tmp_path / "run").glob("experiment_state-*.json"):
        file.write_text(file.read_text()[:-100])
    with pytest.raises(RestoreError, match="Tune could not restore this run and would start it from the beginning"):
        tune.Tuner.restore(str(tmp_path / "run"), trainable=trainable).fit()


def test_a_restore_without_the_searchers_state_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, trainable: type[tune.Trainable], tiny: Problem, tmp_path: Path
) -> None:
    """The trials are there; of the searcher Tune would make a new one, without a word."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")

    class Stop(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if len(trials) >= 4 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise RuntimeError("enough")

    searcher = load_searcher("random")(tiny, budget=160)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
        run_config=run_config(tmp_path, callbacks=[Stop()]),
    )
    with pytest.raises(Exception, match="enough"):
        tuner.fit()
    session = Path(ray._private.worker._global_node.get_session_dir_path())  # Tune keeps a copy there
    for folder in (tmp_path / "run", session / "artifacts"):
        for file in [*folder.rglob("search_gen_state-*"), *folder.rglob("searcher-state-*")]:
            file.unlink()
    with pytest.raises(RestoreError):
        tune.Tuner.restore(str(tmp_path / "run"), trainable=trainable).fit()


def test_a_searcher_that_was_pickled_may_start_a_run(
    trainable: type[tune.Trainable], tiny: Problem, tmp_path: Path
) -> None:
    import pickle

    searcher = pickle.loads(pickle.dumps(load_searcher("random")(tiny, budget=16)))
    results = tune.Tuner(
        trainable, tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1), run_config=run_config(tmp_path)
    ).fit()
    assert len(results) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kills"), [(400, 1), (2000, 5)])
def test_killed_and_restored_none_is_told_twice_and_none_lost(tmp_path: Path, count: int, kills: int) -> None:
    rng = random.Random(7)
    environment = {**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1", "PYTHONPATH": str(HERE)}
    folder = tmp_path / "study"
    folder.mkdir()
    batches = count // 16
    for number in range(kills + 1):
        process = start(folder, count, environment)
        if number == kills:
            break
        goal = batches * (number + 1) // (kills + 2)
        while process.poll() is None and trials(folder) < goal:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 1.0))
        assert process.poll() is None, log(folder)
        family = descendants(process.pid)
        process.kill()
        process.wait()
        await_end(family)
    assert process.wait(timeout=200) == 0, log(folder)
    end = json.loads((folder / "end.json").read_text())
    assert len(end["told"]) == count
    assert set(end["told"].values()) == {1}
    assert (end["failed"], end["errors"], end["ended"]) == (0, 0, "budget")
    store = ScoreStore(folder / "store")
    pairs = store.pairs(part="train").to_pandas()
    assert not pairs.duplicated(["candidate", "example"]).any()
    assert set(pairs["candidate"]) <= set(end["told"])
    assert len(pairs) >= (count - 400 * kills) * 8  # a kill takes a second of the store's pairs with it


def start(folder: Path, count: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    out = (folder / "log").open("ab")
    return subprocess.Popen(
        [sys.executable, str(HERE / "tuner_run.py"), str(folder), str(count), "16"], stdout=out, stderr=out,
        env=environment,
    )  # fmt: skip


def trials(folder: Path) -> int:
    run = folder / "run"
    return sum(path.is_dir() for path in run.iterdir()) if run.is_dir() else 0


def log(folder: Path) -> str:
    return (folder / "log").read_text()[-3000:]


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_trial_leaves_the_desk_at_work_for_the_others(fails: bool) -> None:
    """Its future takes neither a result nor an error; the trials after it get theirs."""
    desk = DeskActor.__new__(DeskActor)
    desk.thread, desk.waiting, desk.at_work = ThreadPoolExecutor(1), [], None

    def score(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.1)
        if fails and any(config["batch"] == 0 for config in configs):
            raise ScoringError("no")
        return [{"score": config["batch"]} for config in configs]

    desk._score = score  # type: ignore[method-assign]

    async def trials() -> list[Any]:
        cancelled, other = (asyncio.ensure_future(desk.score({"batch": n})) for n in range(2))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        return [await asyncio.wait_for(other, 10), await asyncio.wait_for(desk.score({"batch": 2}), 10)]

    assert asyncio.run(trials()) == [{"score": 1}, {"score": 2}]
    assert desk.at_work is None
