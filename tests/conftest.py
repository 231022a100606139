"""One Ray runtime, and one pool for each LM and number of scorers, for the whole test session."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two test processes and their Rays share few cores: a thread each, and Ray's workers, of niceness 15, do not starve.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import shifting
from lm_server import CAUSAL, Server, serving
from ray import cloudpickle

import rayprompt
from rayprompt.comparison.trials import ComparedSearch, Searches
from rayprompt.lm.source import LMSource
from rayprompt.reward.demonstrations import Demonstrations, read_demonstrations
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop, SearchPlan
from rayprompt.study.progress import ProgressCallback
from rayprompt.study.trackers import Trackers
from rayprompt.study.trial import FAILED, SearchTrial
from rayprompt.study.tuning import parameters_of, trial_error

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    if shifting.is_due():
        config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
        shifting.begin_again()


def shared_folder() -> Path | None:
    """Real data and a real LM for tests: RAYPROMPT_SHARED, or ../shared; None where neither is there."""
    folder = Path(os.environ.get("RAYPROMPT_SHARED", REPOSITORY.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared data (RAYPROMPT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def minilm(shared: Path) -> str:
    return str(shared / "models" / "minilm-reviews")


@pytest.fixture(scope="session")
def mr_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task folder for the MR data of the shared folder, splits by name."""
    folder = tmp_path_factory.mktemp("mr")
    data = shared / "data" / "few-shot" / "mr"
    lines = (data / "test.tsv").read_text().splitlines(keepends=True)
    (folder / "test.tsv").write_text("".join(lines[:101]))
    named = {"16-13": (13, data / "test.tsv"), "16-21": (21, data / "test.tsv"), "short": (13, "test.tsv")}
    splits = "\n".join(
        f"  {name}: {{train: {data}/16-{n}/train.tsv, dev: {data}/16-{n}/dev.tsv, test: {test}}}"
        for name, (n, test) in named.items()
    )
    (folder / "task.yaml").write_text(
        "name: mr\nkind: classification\n"
        'template: {masked: "{text} {prompt} {mask} .", causal: "{text} {prompt}"}\n'
        "label_words: {0: terrible, 1: great}\nmanual_prompt: It was\n"
        "columns: {text: [sentence, text], label: label}\n"
        f"splits:\n{splits}\n"
    )
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # More CPUs than there are: tests hold several pools at a time.
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=200 * 1024**2,
        log_to_driver=False, logging_level="ERROR", _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def problem() -> Problem:
    return Problem("reviews", "tiny-masked")


@pytest.fixture(scope="module")
def view(problem: Problem) -> Problem:
    """What a searcher sees of it."""
    return problem.for_search()


@pytest.fixture(scope="session")
def few(problem: Problem) -> Problem:
    """The bundled task with few examples."""
    parts = {name: rows[:16] for name, rows in problem.task.parts().items()}
    return Problem(dataclasses.replace(problem.task, splits={"default": parts}), "tiny-masked")


def plan_of(folder: Path, budget: int, name: str = "one", store: Path | None = None, **more: Any) -> SearchPlan:
    """A search of its own in a folder."""
    ScoreStore(store or folder).prepare()
    return SearchPlan(name, budget, 5, str(folder), str(store or folder), **more)


def finish(loop: SearchLoop, steps: int = 10**6) -> SearchLoop:
    """Run a search to its end, or for so many generations."""
    for _ in range(steps):
        if loop.end is not None:
            break
        loop.step()
    return loop


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Without what libraries log of the odd things that tests do to them."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


PoolOf = Callable[[LMSource, int], ScoringPool]


@pytest.fixture(scope="session")
def pool_of(ray_session: None) -> Iterator[PoolOf]:
    """The session's pool of an LM on so many scorers, started by the first test that asks for it."""
    pools: dict[tuple[str, int], ScoringPool] = {}

    def get(lm: LMSource, scorers: int) -> ScoringPool:
        if (lm.digest, scorers) not in pools:
            with pytest.MonkeyPatch.context() as monkey:
                # Next to none of the CPUs, so that tests can start other pools beside it.
                monkey.setattr("rayprompt.scoring.cluster.CPU_SHARE", 0.02)
                pools[lm.digest, scorers] = ScoringPool.start(lm, scorers=scorers)
        return pools[lm.digest, scorers]

    yield get
    for pool in pools.values():
        pool.shutdown()


@pytest.fixture(scope="session")
def pool(pool_of: PoolOf, problem: Problem) -> ScoringPool:
    """One scorer of tiny-masked, kept for the session."""
    return pool_of(problem.lm, 1)


@pytest.fixture(scope="module")
def kept_pool(pool_of: PoolOf) -> Iterator[None]:
    """What this module searches with one scorer or two takes the session's pools and does not load the LM again."""
    from rayprompt.study import session as sessions

    @contextmanager
    def kept(source: Any, cluster: Any, listener: Any = None, timings: Any = None) -> Iterator[ScoringPool]:
        scorers = str(cluster.scorers or 1)  # the command's are text
        if not source.replay and scorers in ("1", "2") and cluster.address is None and ray.is_initialized():
            (timings if timings is not None else {}).update(ray_start=0.0, model_load=0.0, shutdown=0.0)
            yield pool_of(source, int(scorers))
        else:
            with sessions.session(source, cluster, listener, timings) as own:
                yield own

    with pytest.MonkeyPatch.context() as monkey:
        for module in ("search", "evaluate"):
            monkey.setattr(f"rayprompt.study.{module}.session", kept)
        yield


@contextmanager
def in_this_process() -> Iterator[None]:
    """Run searches, and those of comparisons, here, by the steps of the same trials, and not in trials of Tune's.

    For tests of something else: a trial's process takes seconds to start. Searches in Tune's hands are in
    tests/test_search.py, test_resume.py, test_tune.py, test_place.py, test_metrics.py and test_trackers.py,
    comparisons in tests/test_compare.py.
    """

    def stepped(cls: type[SearchTrial], name: str, config: dict[str, Any], job: bytes, tell: Any) -> dict[str, Any]:
        trial = cls.__new__(cls)
        trial.config, trial._trial_info = config, SimpleNamespace(trial_name=name)
        trial.setup(config, job)
        report: dict[str, Any] = {"done": False}
        while not report["done"]:
            report = trial.step()
            tell(0, [], None, {**report, "config": config})
        return report

    def search(searcher: Any, pool: Any, plan: SearchPlan, name: str, listener: Any, trackers: Any) -> dict[str, Any]:
        assert trackers == Trackers(), "these need Tune"
        pool.add(searcher.problem.part("train"))
        tell = ProgressCallback(listener, plan.budget).on_trial_result
        job = cloudpickle.dumps((searcher, pool, plan))  # as it travels
        last = stepped(SearchTrial, name, parameters_of(searcher, plan), job, tell)
        if last["end"] == FAILED:
            raise trial_error(last["error"])
        return last

    def compare(searches: Searches, runs: Any, study: Path, listener: Any, **more: Any) -> dict[str, str]:
        assert more.get("scheduler") is None, "it needs Tune"
        for run in runs:
            searches.pools[run.stratum[2]].add(searches.problem(run.stratum).part("train"))
        job = cloudpickle.dumps(searches)
        tell = ProgressCallback(listener, searches.plans[runs[0].name].budget, len(runs)).on_trial_result
        last = {run.name: stepped(ComparedSearch, run.name, run.config, job, tell) for run in runs}
        return {name: report["error"].splitlines()[-1] for name, report in last.items() if report["end"] == FAILED}

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("rayprompt.study.search.run_trial", search)
        monkey.setattr("rayprompt.comparison.compare.run_searches", compare)
        yield


@pytest.fixture(scope="module")
def trials_here() -> Iterator[None]:
    """All searches of this module, in its fixtures too, run in this process."""
    with in_this_process():
        yield


@pytest.fixture
def trial_here() -> Iterator[None]:
    """Those of one test."""
    with in_this_process():
        yield


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    """tiny-causal behind a service."""
    with serving(CAUSAL) as server:
        yield server


@pytest.fixture
def server(served: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """It, as new."""
    monkeypatch.delenv("RAYPROMPT_API_KEY", raising=False)
    served.begin()
    return served


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return tmp_path / "studies"


@pytest.fixture(scope="module")
def oirl(shared: Path) -> Path:
    """The published logs of Prompt-OIRL."""
    return shared / "data" / "prompt-oirl"


@pytest.fixture(scope="module")
def gsm8k(oirl: Path) -> Demonstrations:
    return read_demonstrations(oirl / "demonstrations.parquet", dataset="gsm8k", answers=oirl / "answers.parquet")


@pytest.fixture(scope="module")
def mawps(oirl: Path) -> Demonstrations:
    return read_demonstrations(oirl / "demonstrations.parquet", dataset="mawps")


def task_of(train: int = 4, **changes: object) -> rayprompt.Task:
    """A small task of Python objects."""
    rows = [
        {"text": f"the film was {'good' if i % 2 else 'bad'} , number {i} .", "label": i % 2} for i in range(train * 3)
    ]
    settings: dict[str, object] = {
        "template": {"masked": "{text} {prompt} {mask} .", "causal": "{text} {prompt}"},
        "label_words": {0: "terrible", 1: "great"},
        "manual_prompt": "it was",
        "train": rows[:train],
        "dev": rows[train : 2 * train],
        "test": rows[2 * train :],
        **changes,
    }
    return rayprompt.Task.from_examples("small", **settings)  # type: ignore[arg-type]
