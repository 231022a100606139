"""Any process may die at any moment: the result is that of a quiet run; no pair is lost, doubled or charged twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from killing import KINDS, run_with_kills, same

import rayprompt
from rayprompt.store.store import ScoreStore

BUDGET = 64 * 150 + 17  # the last candidate is cut
SHORT = 64 * 60 + 17
Pairs = dict[tuple[str, str], bytes]


SEARCHERS: list[tuple[str, dict[str, float]]] = [
    ("nevergrad", {}),
    ("random", {}),
    ("cma-es", {"length": 5, "intrinsic_dim": 20, "alpha": 10.0, "population": 5}),
]


def options(seed: int, budget: int) -> list[str]:
    name, settings = SEARCHERS[seed % 3]
    given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["--budget", str(budget), "--seed", str(seed), "--searcher", name, *given]


def stored(study: Path) -> Pairs:
    """All train pairs and the bytes of their scores, from every row of every file: one that is doubled is found."""
    store = ScoreStore(study)
    # The closing report of a soft search scores the mean and the decoded winner on train; those are counted apart.
    shards = [s for s in store.shards("scores", part="train") if not s.name.search.endswith("report")]
    tables = [pq.read_table(study / "scores" / str(s.name)) for s in shards]
    rows = pa.concat_tables(tables)
    log_probs = rows.column("label_log_probs").combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    keys = zip(rows.column("candidate").to_pylist(), rows.column("example").to_pylist(), strict=True)
    pairs = {key: row.tobytes() for key, row in zip(keys, log_probs, strict=True)}
    assert len(pairs) == len(rows), "a pair is stored twice"
    return pairs


def asks(study: Path, content: dict[str, Any]) -> list[tuple[int, list[str]]]:
    (search,) = {s.name.search for s in ScoreStore(study).shards("candidates", part="search")}
    return [(g, [c.key for c in candidates]) for g, candidates in ScoreStore(study).asks(search)]


def compare(quiet: Path, killed: Path, content: dict[str, Any], starts: int) -> None:
    wanted = json.loads((quiet / "result.json").read_text())
    assert same(content) == same(wanted)
    assert content["replay_differs"] == 0
    pairs = stored(killed)
    assert len(pairs) == content["evaluations"] == content["budget"]
    assert pairs == stored(quiet)
    assert asks(killed, content) == asks(quiet, wanted)
    assert content["lm_evaluations"] >= content["budget"]
    (curve,) = killed.glob("*/result.json")
    numbers = [json.loads(line)["training_iteration"] for line in curve.read_text().splitlines()]
    # Tune copies its logs to the study every ten seconds or so: with the driver dies what it had not copied.
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == len(asks(killed, content))
    if starts == 1:
        assert numbers == list(range(1, numbers[-1] + 1))


@pytest.fixture
def quiet(kept_pool: None, tmp_path: Path) -> Callable[[int, int], Path]:
    """The study of an undisturbed run of a seed."""

    def run(seed: int, budget: int) -> Path:
        study = tmp_path / f"quiet{seed}"
        if not study.exists():
            name, settings = SEARCHERS[seed % 3]
            rayprompt.search(budget=budget, seed=seed, searcher=name, settings=settings, scorers=1, out=study)
        return study

    return run


@pytest.mark.parametrize(
    "kinds",
    [
        # Quick: dead scorers and routers are in test_pool.py, killed drivers and resumes in test_resume.py.
        pytest.param(["trial"], id="trial", marks=pytest.mark.slow),
        pytest.param(["trial", "scorer", "router", "driver"], id="each", marks=pytest.mark.slow),
    ],
)
def test_one_kill_of_each(quiet: Callable[[int, int], Path], tmp_path: Path, kinds: list[str]) -> None:
    content, run = run_with_kills(tmp_path / "s", options(2, SHORT), kinds)
    assert run.killed == {kind: int(kind in kinds) for kind in KINDS}
    compare(quiet(2, SHORT), tmp_path / "s", content, run.starts)


@pytest.mark.slow
def test_a_hundred_random_kills(quiet: Callable[[int, int], Path], tmp_path: Path) -> None:
    rng = random.Random(0)
    total = dict.fromkeys(KINDS, 0)
    runs = 0
    while sum(total.values()) < 100:
        seed = runs % 6
        kinds = [rng.choice(KINDS) for _ in range(12)]
        study = tmp_path / f"run{runs}"
        content, run = run_with_kills(study, options(seed, BUDGET), kinds, seed=runs)
        compare(quiet(seed, BUDGET), study, content, run.starts)
        for kind in KINDS:
            total[kind] += run.killed[kind]
        runs += 1
        print(f"run {runs}: {run.killed}, {run.starts} starts, {content['lm_evaluations']} LM evaluations: equal")
    print(f"{sum(total.values())} kills in {runs} runs: {total}")
    assert min(total.values()) >= 10
