"""Starting Ray and joining a cluster: each failure is one line that says what helps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring import starting

HEAD = """
import ray, sys
context = ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 1024**2)
print("HEAD", context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
JOIN = "import sys; from rayprompt.scoring.cluster import connect; connect(sys.argv[1]); print('joined')"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/t/ray/x"), "no space is left in /t/ray; free some, or set"),
        (PermissionError(errno.EACCES, "Permission denied", "/t/ray"), "it cannot write /t/ray (Permission denied); "),
        (OSError(errno.EROFS, "Read-only file system", "/t/ray"), "it cannot write /t/ray (Read-only file system); "),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /t/..."), "/t/ray is too long a path for its sockets"),
        (
            Exception("The current node timed out during startup. This could happen because some of the raylet failed"),
            "it was not ready in 30 s; the machine may be too busy: try again, or see why (its logs are in /t/ray/sess",
        ),
        (ValueError("Port 6379 is already in use."), "Port 6379 is already in use.; another program has the port (its"),
        (RuntimeError("Something\n\nnew   happened"), "Something new happened (its logs are in /t/ray/session_latest/"),
    ],
)
def test_why_ray_does_not_start(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/t")
    found = starting.why_not_started(error)
    assert found.startswith(line)
    assert "\n" not in found


def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "LEAST_BYTES", 2**80)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ScoringError, match="no space is left in .*/ray; free some, or set RAY_TMPDIR"):
        starting.start_here()


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    """A session directory that nobody can make; Ray itself ends in a traceback."""
    code = "from rayprompt.cli.main import main; main(['search', '--out', 'study', '--budget', '64'])"
    environment = {**os.environ, "RAY_TMPDIR": "/proc/nowhere"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "rayprompt: Ray does not start on this machine: it cannot write /proc/nowhere"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("writable", [True, False])
def test_a_token_where_there_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    """Ray writes a token to the home directory of who starts it."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path) if writable else "/proc/nowhere")
    starting._provide_token()
    given = os.environ.pop("RAY_AUTH_TOKEN", None)
    assert (given is None) == writable
    assert writable or len(given or "") == 64


class Guarded(grpc.GenericRpcHandler):
    """Refuses every call without the token, as Ray's GCS does."""

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            if dict(context.invocation_metadata()).get("authorization") != "Bearer secret":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def guarded() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Guarded(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_cluster_that_wants_a_token_is_named_at_once(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_token", lambda address: None)
    with pytest.raises(InputError, match=f"--address {guarded}: the Ray cluster there asks for a token: set RAY_"):
        starting.join_cluster(guarded)
    monkeypatch.setattr(starting, "_token", lambda address: "other")
    with pytest.raises(InputError, match="refuses the token of this process: set RAY_AUTH_MODE=token, and give"):
        starting.join_cluster(guarded)
    monkeypatch.setattr(starting, "_token", lambda address: "secret")
    starting.check_address(guarded)


@pytest.mark.parametrize("address", ["here", "host:", ":1", "host:²", "host:99999999", "127.0.0.1:1", "ray://h:1"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError, match=f"^--address {address}: "):
        starting.join_cluster(address)


@pytest.mark.slow  # quick: a server that wants a token, above
def test_token_authentication_of_a_real_cluster() -> None:
    mode = {**os.environ, "RAY_AUTH_MODE": "token"}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        mode.pop(name, None)
    none = {name: value for name, value in mode.items() if name != "RAY_AUTH_MODE"}
    right, wrong = ({**mode, "RAY_AUTH_TOKEN": letter * 32} for letter in "ab")
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD], env=right, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert head.stdout is not None
        address = next(line for line in head.stdout if line.startswith("HEAD")).split()[1]
        for environment, expected in ((none, "asks for a token"), (wrong, "refuses the token"), (right, "joined")):
            done = subprocess.run(
                [sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True, timeout=120
            )
            assert expected in done.stdout + done.stderr
    finally:
        head.communicate("", timeout=60)
