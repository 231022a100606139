"""Ray's cluster launcher for real: ``ray up``, ``ray submit``, ``ray down`` over ssh, on hosts of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import NETWORK, Hosts, hosts, missing, without

from rayprompt.cli.main import app, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
PATIENCE = 300.0  # seconds
SEARCH = ("search", "--searcher", "random", "--seed", "3", "--budget", "6400", "--scorers", "1")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where another user may read and write: a folder that all hosts share."""
    made = Path("/var/tmp") / f"rayprompt-hosts-{os.getpid()}"
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Hosts]:
    with hosts(2, folder) as made:
        yield made


def ray(*words: str, home: Path, timeout: float = 240) -> str:
    """What a ray command prints, here, on the user's own machine."""
    own = {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment = {**os.environ, **own}
    program = str(Path(sys.executable).with_name("ray"))
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, f"ray {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_from_nothing_to_a_search_over_ssh_and_down_again(
    two: Hosts, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The on-premises file as ``clusters init`` writes it, but without Docker, which the hosts do not have."""
    head, worker = two.addresses
    studies = two.home / "studies"
    file = folder / "mine.yaml"
    asked = ("--head", head, "--workers", worker, "--user", two.user, "--studies", "/mnt/shared/studies")
    assert (
        run(
            app,
            [
                "clusters",
                "init",
                "local",
                "--image",
                "example.org/rayprompt:0.1.0-ray2.60.0",
                *asked,
                "--out",
                str(file),
            ],
        )
        == 0
    )
    text = without(file.read_text(), ["docker"]).replace("~/.ssh/id_ed25519", str(two.key))
    text = text.replace("ray start --address=$RAY_HEAD_IP:6379", "ray start --address=$RAY_HEAD_IP:6379 --num-cpus=2")
    file.write_text(text)
    script = folder / "search.py"
    script.write_text("from rayprompt.cli.main import main\nmain()\n")
    capfd.readouterr()
    ray("up", "--yes", "--no-config-cache", str(file), home=tmp_path)
    try:
        until = time.monotonic() + PATIENCE
        while True:  # the head starts the worker, over ssh as well
            state = two.run(head, "ray status", check=False)
            if "2.0 CPU" in state:
                break
            assert time.monotonic() < until, state
            time.sleep(2)
        words = (*SEARCH, "--address", "auto", "--out", str(studies / "one"), "--json")
        said = ray("submit", str(file), str(script), *words, home=tmp_path)
        found = json.loads(next(line for line in said.splitlines() if line.startswith('{"schema"')))
        assert (studies / "one" / "report.html").is_file()
    finally:
        down = ray("down", "--yes", str(file), home=tmp_path)
    assert "No nodes remaining" in down
    assert "raylet" not in two.run(head, "ps aux")
    until = time.monotonic() + PATIENCE
    while "raylet" in two.run(worker, "ps aux"):  # which Ray ends itself, a minute after its head has gone
        assert time.monotonic() < until
        time.sleep(2)
    assert run(app, [*SEARCH, "--out", str(tmp_path / "here"), "--json"]) == 0
    here = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["best_prompt"] == here["best_prompt"]
    assert found["test"] == here["test"]


def test_a_job_that_is_killed_and_submitted_again_goes_on(two: Hosts, folder: Path, tmp_path: Path) -> None:
    """``ray job submit`` from a laptop to a head's job server; the checkout travels with it, not installed there."""
    (head, _), studies = two.addresses, two.home / "studies"
    start = f"ray start --head --node-ip-address={head} --port=6380 --num-cpus=2 --dashboard-host=0.0.0.0"
    two.run(head, f"RAY_USAGE_STATS_ENABLED=0 {start} --temp-dir={two.home}/ray", timeout=120)
    try:
        server = f"http://{NETWORK}.1:8265"
        checkout = folder / "checkout"
        root = Path(__file__).parents[1]
        for name in ("rayprompt", "searchers"):
            shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(root / "pyproject.toml", checkout)
        search = (*SEARCH[:6], "60000", *SEARCH[7:], "--address", "auto", "--start-or-resume")
        job = ("job", "submit", "--address", server, "--working-dir", str(checkout))
        command = ("--", "python", "-m", "rayprompt", *search, "--out", str(studies / "job"))
        ray(*job, "--no-wait", "--submission-id", "first", *command, home=tmp_path)
        until = time.monotonic() + PATIENCE
        while not list((studies / "job" / "scores").glob("*.parquet")):
            assert time.monotonic() < until, ray("job", "logs", "--address", server, "first", home=tmp_path)
            time.sleep(0.5)
        ray("job", "stop", "--address", server, "first", home=tmp_path)
        assert not (studies / "job" / "result.json").exists()
        said = ray(*job, "--submission-id", "second", *command, home=tmp_path)
        assert "succeeded" in said
        result = json.loads((studies / "job" / "result.json").read_text())
        assert result["evaluations"] == 60000
        alone = tmp_path / "alone"
        assert run(app, [*search[:-3], "--out", str(alone)]) == 0
        assert result["best_prompt"] == json.loads((alone / "result.json").read_text())["best_prompt"]
    finally:
        two.run(head, "ray stop --force", timeout=60)
