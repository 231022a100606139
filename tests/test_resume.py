"""Budgets to the last pair, warm stores, neighbours, interruption, resume: the same bits, nothing charged twice."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import PoolOf, finish, plan_of, task_of
from ray import cloudpickle

import rayprompt
from rayprompt.candidate import Candidate
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError, Interrupted, ScoringError, StoreError
from rayprompt.scores import Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.files import Folder
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import STALLED_AFTER, SearchLoop
from rayprompt.study.prepare import study_dir
from rayprompt.study.snapshots import Snapshots, freeze
from rayprompt.study.trace import read_run
from rayprompt.study.trial import SearchTrial
from rayprompt.study.tuning import kept_lines, kept_rows
from searchers.nevergrad import NevergradSearcher
from searchers.random import RandomSearcher

Told = list[tuple[list[str], bytes, list[bool]]]

pytestmark = pytest.mark.usefixtures("kept_pool")


class Watched(RandomSearcher):
    """Random search that keeps what it was told: keys, bytes of the scores, and which rows were complete."""

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.told: Told = []

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        assert scores.label_log_probs is not None
        keys = [c.key for c in candidates]
        self.told.append((keys, scores.label_log_probs.tobytes(), scores.complete().tolist()))


@pytest.fixture(scope="module")
def small(problem: Problem) -> Problem:
    """The bundled task with 32 train examples, as few-shot tasks have."""
    task = problem.task
    splits = {"default": {**task.parts(), "train": task.examples("train")[:32]}}
    return Problem(dataclasses.replace(task, splits=splits), "tiny-masked")


def search_of(problem: Problem, **kwargs: Any) -> Watched:
    return Watched(problem.for_search(), **kwargs)


@pytest.mark.parametrize("budget", [1, 7, 31, 32, 33, 2000])
def test_a_budget_is_spent_to_the_last_pair_and_never_exceeded(
    pool: ScoringPool, small: Problem, tmp_path: Path, budget: int
) -> None:
    searcher = search_of(small)
    loop = finish(SearchLoop(searcher, pool, plan_of(tmp_path, budget)))
    assert loop.end == "budget"
    assert loop.ledger.evaluations == budget
    loop.close()
    assert len(ScoreStore(tmp_path).pairs()) == budget
    complete = [c for _, _, row in searcher.told for c in row]
    assert sum(complete) == budget // 32  # what was not evaluated was told as such
    assert len(complete) == -(-budget // (32 * 16)) * 16
    best = loop.finalists.best[0]
    assert best.n == (32 if budget >= 32 else budget)
    assert best.complete == (budget >= 32)
    assert loop.best_score == max(f.metric for f in loop.finalists.best if f.complete == best.complete)


def test_nevergrad_learns_nothing_from_what_was_not_evaluated(
    pool: ScoringPool, small: Problem, tmp_path: Path
) -> None:
    searcher = NevergradSearcher(small.for_search(), seed=0)
    finish(SearchLoop(searcher, pool, plan_of(tmp_path, 32 * 20 + 5))).close()
    assert sum(loss is not None for loss in searcher.losses.values()) == 20
    assert len(searcher.waiting) == 12


@pytest.mark.parametrize("searcher", ["random", "nevergrad"])
def test_the_command_line_takes_any_budget(
    ray_session: None, trial_here: None, tmp_path: Path, searcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "--budget", "7", "--searcher", searcher, "--scorers", "1", "--out", str(tmp_path / "s")]
    assert run(app, [*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["evaluations"] == 7
    assert content["train"]["n"] == 7
    assert content["dev"]["n"] == 64


@pytest.fixture(scope="module")
def alone(pool: ScoringPool, small: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    """What a search is told that runs alone, and the store of its scores."""
    folder = tmp_path_factory.mktemp("alone")
    searcher = search_of(small)
    finish(SearchLoop(searcher, pool, plan_of(folder / "alone", 32 * 40 + 9, store=folder / "cold"))).close()
    return searcher.told, folder / "cold"


@pytest.mark.parametrize("scorers", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_cold_and_warm_one_to_three_scorers_alone_and_in_company(
    alone: tuple[Told, Path], pool_of: PoolOf, small: Problem, tmp_path: Path, scorers: int
) -> None:
    """The searcher is told the same bytes, whatever runs beside it and whatever the store knows."""
    told, store = alone
    other = pool_of(small.lm, scorers)
    neighbour = threading.Thread(
        target=lambda: finish(
            SearchLoop(search_of(small, seed=5), other, plan_of(tmp_path / "neighbour", 32 * 40, "two"))
        )
    )
    neighbour.start()
    beside = search_of(small)
    cold = finish(SearchLoop(beside, other, plan_of(tmp_path / "beside", 32 * 40 + 9)))
    neighbour.join()
    warmed = search_of(small)
    warm = finish(SearchLoop(warmed, other, plan_of(tmp_path / "warm", 32 * 40 + 9, f"warm{scorers}", store)))
    assert told == beside.told == warmed.told
    assert warm.ledger.lm_evaluations == 0
    assert warm.ledger.evaluations == cold.ledger.evaluations == 32 * 40 + 9
    assert warm.ledger.cache_hits == 32 * 40 + 9
    assert {k: v for k, v in warm.report().items() if k.startswith("best")} == {
        k: v for k, v in cold.report().items() if k.startswith("best")
    }
    warm.close()
    assert len(ScoreStore(store).pairs()) == 32 * 40 + 9


@pytest.fixture(scope="module")
def undisturbed(pool: ScoringPool, small: Problem, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What a search with seed 2 is told."""
    quiet = search_of(small, seed=2)
    finish(SearchLoop(quiet, pool, plan_of(tmp_path_factory.mktemp("quiet"), 32 * 100 + 3)))
    return quiet.told


@pytest.mark.parametrize("snapshots", [1e9, 0.0])
@pytest.mark.parametrize("flushes", [0, 3])
def test_a_search_goes_on_where_its_record_ends(
    undisturbed: Told, pool: ScoringPool, small: Problem, tmp_path: Path, snapshots: float, flushes: int
) -> None:
    """Dropped without a word after five generations: as after a kill, with what was written by then."""
    plan = plan_of(tmp_path / "s", 32 * 100 + 3, snapshot_seconds=snapshots, flush_seconds=1e9)
    first = SearchLoop(search_of(small, seed=2), pool, plan)
    for i in range(5):
        first.step()
        if i < flushes:
            first.writer.flush()
    again = search_of(small, seed=2)
    second = SearchLoop(again, pool, plan)
    recorded = 5 if snapshots == 0.0 else flushes
    assert second.generation == recorded
    assert second.ledger.evaluations == 32 * 16 * recorded
    assert second.ledger.lm_evaluations == 32 * 16 * recorded
    finish(second).close()
    told = len(again.told)
    assert again.told == undisturbed[-told:]
    assert told == len(undisturbed) - (5 if snapshots == 0.0 else 0)
    assert second.ledger.lm_evaluations == second.ledger.evaluations == 32 * 100 + 3
    assert second.replay_differs == 0
    assert len(ScoreStore(tmp_path / "s").pairs()) == 32 * 100 + 3


def test_a_search_given_more_goes_on_as_if_it_had_had_it_from_the_start(
    pool: ScoringPool, small: Problem, tmp_path: Path
) -> None:
    quiet = search_of(small)
    finish(SearchLoop(quiet, pool, plan_of(tmp_path / "quiet", 32 * 50))).close()
    told: Told = []
    for budget in (5, 33, 32 * 16, 32 * 20 + 1, 32 * 50):
        grown = search_of(small)
        loop = finish(SearchLoop(grown, pool, plan_of(tmp_path / "grown", budget)))
        assert loop.ledger.evaluations == budget
        loop.close()
        assert len(ScoreStore(tmp_path / "grown").pairs()) == budget
        told = [t for t in told if all(t[2])] + grown.told
    assert told == quiet.told
    wanted, found = (
        [(g, [c.key for c in cs]) for g, cs in ScoreStore(tmp_path / name).asks("one")] for name in ("quiet", "grown")
    )
    assert found == wanted


def test_broken_snapshots_and_a_hole_in_the_record(pool: ScoringPool, small: Problem, tmp_path: Path) -> None:
    quiet = search_of(small)
    finish(SearchLoop(quiet, pool, plan_of(tmp_path / "quiet", 32 * 70))).close()
    plan = plan_of(tmp_path / "s", 32 * 70, snapshot_seconds=0.0)
    first = SearchLoop(search_of(small), pool, plan)
    for _ in range(4):
        first.step()
        first.writer.flush()
    for path in (tmp_path / "s" / "snapshots").iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    (cut,) = [p for p in (tmp_path / "s" / "candidates").iterdir() if ".000002." in p.name]
    cut.write_bytes(cut.read_bytes()[:50])
    again = search_of(small)
    second = SearchLoop(again, pool, plan)
    assert second.generation == 1  # the second generation's asks are lost, its scores are not
    finish(second).close()
    assert again.told == quiet.told
    assert second.ledger.lm_evaluations == 32 * 70


def test_a_searcher_that_asks_otherwise_is_told_what_was_recorded(
    pool: ScoringPool, small: Problem, tmp_path: Path
) -> None:
    """As after a change of versions: the record stands, the budget is kept, and the report says how often."""
    plan = plan_of(tmp_path, 32 * 40)
    first = SearchLoop(search_of(small, seed=1), pool, plan)
    first.step()
    first.step()
    first.writer.flush()
    other = search_of(small, seed=2)
    second = SearchLoop(other, pool, plan)
    assert second.replay_differs == 2
    assert [keys for keys, _, _ in other.told] == [[c.key for c in cs] for _, cs in ScoreStore(tmp_path).asks("one")]
    finish(second).close()
    assert second.ledger.evaluations == second.ledger.lm_evaluations == 32 * 40


class Elitist(RandomSearcher):
    """Asks for its very first prompt again and again, beside new ones."""

    def ask(self, n: int) -> list[Candidate]:
        fresh = super().ask(n - 1)
        self.elite = getattr(self, "elite", None) or fresh[0]
        return [self.elite, *fresh]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "elite": self.elite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.elite = state["elite"]


def test_a_score_whose_file_was_lost_is_measured_again_and_not_made_up(
    pool: ScoringPool, small: Problem, tmp_path: Path
) -> None:
    quiet = finish(SearchLoop(Elitist(small.for_search()), pool, plan_of(tmp_path / "quiet", 32 * 60)))
    plan = plan_of(tmp_path / "s", 32 * 60, snapshot_seconds=0.0)
    first = SearchLoop(Elitist(small.for_search()), pool, plan)
    first.step()
    first.step()
    for path in (tmp_path / "s" / "scores").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    second = SearchLoop(Elitist(small.for_search()), pool, plan)
    assert second.generation == 2
    assert not second.evaluator.table.known.any()
    finish(second)
    assert second.best_objective == quiet.best_objective
    assert [f.to_json() for f in second.finalists.best] == [f.to_json() for f in quiet.finalists.best]
    assert second.ledger.evaluations == 32 * 60
    assert second.ledger.lm_evaluations > 32 * 60  # what was lost was paid for twice, and counted so


class Stuck(RandomSearcher):
    """Asks for the same prompt for ever."""

    def ask(self, n: int) -> list[Candidate]:
        return [self.problem.prompt("it was")] * n


def test_a_search_that_asks_for_nothing_new_ends_as_stalled(pool: ScoringPool, small: Problem, tmp_path: Path) -> None:
    loop = finish(SearchLoop(Stuck(small.for_search()), pool, plan_of(tmp_path, 10**6)))
    assert loop.end == "stalled"
    assert loop.ledger.evaluations == loop.ledger.lm_evaluations == 32
    assert loop.ledger.cache_hits == 32 * (16 * (STALLED_AFTER + 1) - 1)
    loop.close()
    again = finish(SearchLoop(Stuck(small.for_search()), pool, plan_of(tmp_path, 10**7)))
    assert (again.end, again.generation) == ("stalled", STALLED_AFTER + 1)


def test_snapshots_keep_the_last_two(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for generation in (1, 2, 3):
        Snapshots(folder, "s").write(generation, freeze({"generation": generation}))
        Snapshots(folder, "other").write(9, freeze({"generation": 9}))
    assert Snapshots(folder, "s").newest() == {"generation": 3}
    assert len(folder.names()) == 4
    assert Snapshots(folder, "nobody").newest() is None


def test_tunes_tables_are_kept_up_to_the_record() -> None:
    lines = [json.dumps({"training_iteration": i, "x": i * i}) + "\n" for i in (1, 2, 3)]
    assert kept_lines("".join(lines) + '{"training_it', 2) == "".join(lines[:2])
    table = "training_iteration,x\n1,a\n2,b\n3,c\n"
    assert kept_rows(table, 2) == "training_iteration,x\n1,a\n2,b\n"


@pytest.fixture(scope="module")
def study(kept_pool: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished study of 640 evaluations."""
    path = tmp_path_factory.mktemp("study") / "s"
    rayprompt.search(budget=640, searcher="random", seed=1, scorers=1, out=path)
    return path


def test_a_finished_study_gives_its_result(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (study / "result.json").read_text()
    assert rayprompt.resume(study).to_json() == json.loads(before)
    assert run(app, ["search", "--resume", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(before)
    assert rayprompt.read_result(study / "result.json").test_opened == 1


def test_more_budget_opens_test_again_and_says_so(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["search", "--resume", str(study), "--budget", "1000", "--scorers", "1", "--json"]) == 0
    out = capsys.readouterr()
    content = json.loads(out.out.splitlines()[-1])
    assert (content["evaluations"], content["budget"], content["test_opened"]) == (1000, 1000, 2)
    assert content["lm_evaluations"] == 1000
    assert "test was opened 2 times" in out.err
    assert yaml.safe_load((study / "study.yaml").read_text())["test_opened"] == [640, 1000]
    rows = [json.loads(line) for line in (study / "random-s1" / "result.json").read_text().splitlines()]
    assert [r["training_iteration"] for r in rows] == [1]  # 640 evaluations are less than a generation
    with pytest.raises(InputError, match="--budget 640: the study in .* has 1000; a resumed study's budget can only"):
        rayprompt.resume(study, budget=640)


def test_a_larger_budget_that_is_interrupted_is_not_taken_for_finished(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    shutil.copytree(study, path)
    before = rayprompt.read_result(path / "result.json")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rayprompt.study.search.run_trial", stop)
        with pytest.raises(Interrupted, match="interrupted; to go on: rayprompt search --resume"):
            rayprompt.resume(path, budget=1500, scorers=1)
    more = rayprompt.resume(path, scorers=1)
    assert before.evaluations < more.evaluations == more.budget == 1500
    again = rayprompt.resume(path)
    assert again.to_json() == more.to_json()


def test_what_a_study_began_with_must_not_change(study: Path, tmp_path: Path) -> None:
    record = yaml.safe_load((study / "study.yaml").read_text())
    for part, name, value, message in (
        ("task", "digest", "0", "task digest was '0' when the study began"),
        ("searcher", "class", "nowhere:Nobody", "its searcher nowhere:Nobody cannot be imported here"),
        ("model", "location", "./gone", "no such model folder"),
        ("task", "location", None, "is made of Python objects; give it: resume"),
        ("pool", "dtype", "bfloat16", "pool dtype was 'bfloat16' when the study began and is 'float32' now"),
    ):
        changed = json.loads(json.dumps(record))
        changed[part][name] = value
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "study.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(InputError, match=re.escape(message)):
            rayprompt.resume(tmp_path / part, scorers=1)
    (tmp_path / "study.yaml").write_text("schema: rayprompt.study/99\n")
    with pytest.raises(InputError, match="schema 'rayprompt.study/99'; this version resumes 'rayprompt.study/4'"):
        rayprompt.resume(tmp_path)


def test_a_study_of_python_objects_is_resumed_with_them(ray_session: None, trial_here: None, tmp_path: Path) -> None:
    task = task_of(train=6)
    result = rayprompt.search(task, searcher="random", budget=60, scorers=1, out=tmp_path / "s")
    with pytest.raises(InputError, match=r"give it: resume\(..., task=...\)"):
        rayprompt.resume(tmp_path / "s", budget=61)
    more = rayprompt.resume(tmp_path / "s", budget=90, task=task, scorers=1)
    assert (result.evaluations, more.evaluations, more.lm_evaluations) == (60, 90, 90)


def test_a_study_that_died_before_it_began_can_be_started_again(tmp_path: Path) -> None:
    for name in (".lock", ".study.yaml.4711"):
        (tmp_path / name).write_text("")
    assert study_dir(tmp_path, "name") == tmp_path
    (tmp_path / "study.yaml").write_text("")
    with pytest.raises(InputError, match="exists already and is not empty"):
        study_dir(tmp_path, "name")


def test_another_process_at_work_is_named(study: Path) -> None:
    import fcntl

    with (study / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 4711")
        file.flush()
        with pytest.raises(InputError, match=r"another process is at work on this study \(process 4711\)"):
            rayprompt.resume(study, budget=5000, scorers=1)


def test_a_store_is_shared_by_studies_and_commands(
    ray_session: None, trial_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        rayprompt.search(budget=700, seed=4, scorers=1, out=tmp_path / name, store=tmp_path / "store")
        for name in ("cold", "warm")
    ]
    assert [(r.lm_evaluations, r.report_lm_evaluations > 0) for r in results] == [(700, True), (0, False)]
    assert results[0].best_prompt == results[1].best_prompt
    assert results[0].test == results[1].test
    assert not (tmp_path / "cold" / "scores").exists()
    assert run(app, ["store", "info", str(tmp_path / "store"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert info["pairs"]["train"] == 700
    assert run(app, ["store", "compact", str(tmp_path / "store"), "--json"]) == 0


def test_a_store_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be read .Not a directory"):
        rayprompt.search(budget=64, store=tmp_path / "file", out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_full_disk_ends_the_search_with_a_line_and_it_can_go_on(
    pool: ScoringPool, small: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, 32 * 60, flush_seconds=0.0)
    loop = SearchLoop(search_of(small), pool, plan)
    loop.step()
    with monkeypatch.context() as full:
        full.setattr(Folder, "write", no_space)
        with pytest.raises(StoreError, match="cannot be written"):
            finish(loop).close()
    again = search_of(small)
    second = finish(SearchLoop(again, pool, plan))
    second.close()
    assert second.ledger.evaluations == len(ScoreStore(tmp_path).pairs()) == 32 * 60


def no_space(self: Folder, name: str, content: Any) -> None:
    raise StoreError(f"{self.shown}/{name}: cannot be written (No space left on device)")


class Failing(RandomSearcher):
    """Fails in its third generation."""

    asks = 0

    def ask(self, n: int) -> list[Candidate]:
        self.asks += 1
        if self.asks == 3:
            raise ValueError("nothing comes to mind")
        return super().ask(n)


def test_a_searcher_that_trials_cannot_import_is_named_at_once(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="the search failed: ModuleNotFoundError: No module named 'test_resume'"):
        rayprompt.search(searcher=Failing, budget=64, scorers=1, out=tmp_path / "s")


def test_a_searcher_that_raises_ends_the_run_at_once_and_the_scores_stay(ray_session: None, tmp_path: Path) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        with pytest.raises(ScoringError) as failed:
            rayprompt.search(searcher=Failing, budget=6400, scorers=1, out=tmp_path / "s")
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    message = str(failed.value)
    assert message.startswith("the search failed: ValueError: nothing comes to mind; to go on: rayprompt search")
    assert "\n" not in message
    assert len(ScoreStore(tmp_path / "s").pairs()) == 2 * 16 * 64


def test_a_scorer_that_cannot_load_again_ends_the_run_with_its_reason(
    ray_session: None, small: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its LM's files vanish, then it is killed: Ray starts it anew, and its constructor fails."""
    monkeypatch.setattr("rayprompt.scoring.keeper.MOST_START_DEATHS", 0)
    folder = tmp_path / "lm"
    shutil.copytree(small.lm.path, folder)
    local = dataclasses.replace(small.lm, name="gone", location=str(folder))
    pool = ScoringPool.start(local, scorers=1)
    try:
        part = small.part("train")
        pool.add(part)
        prompts, pairs = [(5,)], np.zeros(32, int)
        pool.score_pairs(part, prompts, pairs, np.arange(32))
        shutil.rmtree(folder)
        os.kill(pool.infos[0].pid, signal.SIGKILL)
        with pytest.raises(ScoringError, match="every scorer is lost: .*"):
            pool.score_pairs(part, prompts, pairs, np.arange(32))
    finally:
        pool.shutdown()


def test_ctrl_c_saves_and_the_command_it_prints_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "with space"

    def interrupt() -> None:
        while not list((study / "scores").glob("*.parquet")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    arguments = ["search", "--budget", "100000000", "--searcher", "random", "--scorers", "1", "--out", str(study)]
    assert run(app, arguments) == 130
    rest = capsys.readouterr().err
    last = rest.splitlines()[-1]
    assert re.match(r"rayprompt: interrupted after \d+ of 100000000 evaluations; best so far on train: '", last)
    assert last.endswith(f"to go on: rayprompt search --resume '{study}'")
    assert "Traceback" not in rest
    stored = len(ScoreStore(study).pairs())
    assert stored % (16 * 64) == 0
    assert stored >= int(re.findall(r"after (\d+) of", last)[0]) > 0
    # The same study with a budget that is nearly reached, so that the test ends.
    record = yaml.safe_load((study / "study.yaml").read_text())
    (study / "study.yaml").write_text(yaml.safe_dump({**record, "budget": stored + 100}))
    words = shlex.split(re.findall("to go on: rayprompt (search .*)", last)[0])
    assert run(app, [*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["evaluations"] == content["lm_evaluations"] == stored + 100
    curve = [json.loads(line) for line in (study / "random-s0" / "result.json").read_text().splitlines()]
    assert [row["training_iteration"] for row in curve] == list(range(1, len(curve) + 1))
    assert curve[-1]["evaluations"] == stored + 100


def test_a_process_that_was_only_made_ready_leaves_the_files_of_the_one_that_searched(
    pool: ScoringPool, small: Problem, tmp_path: Path
) -> None:
    """Tune may set a trial up on a kept process and then run it on another: the first is cleaned up after the last."""
    plan = plan_of(tmp_path, 16 * 20)
    ended = finish(SearchLoop(search_of(small), pool, plan))
    ended.close()
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    idle = SearchTrial.__new__(SearchTrial)
    idle.loop = SearchLoop(search_of(small), pool, plan)
    idle.cleanup()
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    found = read_run(tmp_path, plan.search)
    assert found is not None
    assert found[0]["end"] == "budget"
