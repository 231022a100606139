"""Mutated files and command lines: exit code 0, 1 or 2, one line, soon, and nothing that nobody expected."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest

import rayprompt

SEED = 2026


@pytest.fixture(scope="module")
def studies(ray_session: None, kept_pool: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A search and a comparison that have ended."""
    folder = tmp_path_factory.mktemp("fuzz")
    rayprompt.search("reviews", searcher="random", budget=128, scorers=1, out=folder / "study")
    rayprompt.compare(
        "reviews", searchers=["random"], seeds=1, budget=128, baselines=[], scorers=1, out=folder / "compared"
    )
    return folder / "study", folder / "compared"


def fuzz(begin: int, count: int, studies: tuple[Path, Path], folder: Path) -> str:
    """What is wrong. In a process without Ray: there what is right ends at an address where nothing answers."""
    command = [sys.executable, fuzzing.__file__, str(begin), str(count), *map(str, studies), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 * count)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_fifty_mutations(studies: tuple[Path, Path], tmp_path: Path) -> None:
    assert fuzz(SEED, 50, studies, tmp_path) == ""


@pytest.mark.slow
def test_five_hundred_mutations(studies: tuple[Path, Path], tmp_path: Path) -> None:
    assert fuzz(10 * SEED, 500, studies, tmp_path) == ""


def test_as_processes(tmp_path: Path) -> None:
    """Some as their users run them."""
    for number in range(3):
        rng = random.Random(number)
        path = fuzzing.task_yaml(tmp_path / str(number))
        fuzzing.mutate(path, rng)
        command = [sys.executable, "-m", "rayprompt", "list", "task", str(path.parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1, 2)
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") <= 1
