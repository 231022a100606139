"""One Ray runtime and one pool per LM for the whole test session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import rayprompt
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

REPOSITORY = Path(__file__).resolve().parents[1]


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
    splits = "\n".join(
        f"  16-{n}: {{train: {data}/16-{n}/train.tsv, dev: {data}/16-{n}/dev.tsv, test: {data}/test.tsv}}"
        for n in (13, 21)
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
    import ray

    # More CPUs than there are: tests hold several pools at a time.
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, object_store_memory=200 * 1024**2,
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def problem() -> Problem:
    return Problem("reviews", "tiny-masked")


@pytest.fixture(scope="session")
def pool(ray_session: None, problem: Problem) -> Iterator[ScoringPool]:
    """One scorer of tiny-masked, kept for the session."""
    # A tenth of the CPUs, so that tests can start other pools beside it.
    monkey = pytest.MonkeyPatch()
    monkey.setattr("rayprompt.scoring.pool.CPU_SHARE", 0.1)
    pool = ScoringPool.start(problem.lm, scorers=1)
    monkey.undo()
    yield pool
    pool.shutdown()


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
