"""Starting Ray on this machine, or joining a cluster; whatever goes wrong becomes one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from rayprompt import limits
from rayprompt.errors import InputError, ScoringError
from rayprompt.typed import whole

STORE_BYTES = 200 * 1024**2
LEAST_BYTES = 32 * 1024**2  # for the files of a session
ANSWER_SECONDS = 5.0
NO_SPACE = "no space is left in {}; free some, or set RAY_TMPDIR to a directory with room"
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "configure_logging": True}
AUTH_MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
HOW = (
    "set RAY_AUTH_MODE=token, and give the cluster's token in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH "
    "names, or in ~/.ray/auth_token (ray get-auth-token prints it on the head node)"
)


def start_here() -> None:
    """Start Ray on this machine, on the CPUs that this process may use.

    Raises:
        ScoringError: it does not start; the line says why and what helps.
    """
    _provide_token()
    _check_room(session_folder())
    try:
        ray.init(
            address="local",
            num_cpus=limits.cpus(),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            **QUIET,
        )
    except Exception as error:
        with contextlib.suppress(Exception):
            ray.shutdown()  # what has started of it
        raise ScoringError(f"Ray does not start on this machine: {why_not_started(error)}") from None
    logging.getLogger("ray").setLevel(logging.ERROR)


def why_not_started(error: BaseException) -> str:
    """One line for what Ray raised when it was to start: the cause, and what helps."""
    folder = session_folder()
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return NO_SPACE.format(folder)
    if "AF_UNIX" in text:
        return (
            f"{folder} is too long a path for its sockets (107 bytes at most); set RAY_TMPDIR to a shorter one, as /tmp"
        )
    if isinstance(error, OSError) and error.filename:
        reason = error.strerror or type(error).__name__
        return f"it cannot write {error.filename} ({reason}); set RAY_TMPDIR to a directory that can be written"
    logs = f"its logs are in {folder}/session_latest/logs"
    if "timed out" in text or isinstance(error, TimeoutError):
        return f"it was not ready in 30 s; the machine may be too busy: try again, or see why ({logs})"
    if "in use" in text:
        return f"{text[:160]}; another program has the port ({logs})"
    return f"{text[:200] or type(error).__name__} ({logs})"


def _check_room(folder: Path) -> None:
    """Say at once that a disk is full: Ray finds out by a time limit.

    Raises:
        ScoringError: it is.
    """
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    with contextlib.suppress(OSError):
        if there is None or not os.access(there, os.W_OK):
            return  # Ray says why it cannot write there
        usage = shutil.disk_usage(there)
        if usage.total > 0 and usage.free < LEAST_BYTES:
            raise ScoringError(f"Ray does not start on this machine: {NO_SPACE.format(folder)}")


def session_folder() -> Path:
    """Where Ray keeps the files and sockets of its sessions."""
    own = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    given = os.environ.get("RAY_TMPDIR") or own
    return Path(given or ("/tmp" if os.name == "posix" else tempfile.gettempdir())) / "ray"


def _provide_token() -> None:
    """Give a Ray that is started here a token for this run, where it could not write one to the home directory."""
    if TOKEN in os.environ or os.environ.get(AUTH_MODE, "token").lower() != "token":
        return
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # read-only, or there is no home directory
        writable = False
    if not writable:
        os.environ[TOKEN] = secrets.token_hex(32)


def join_cluster(address: str) -> None:
    """Connect to the Ray cluster at ``host:port``, or ``auto``.

    Raises:
        InputError: there is none, or it refuses this process.
    """
    check_address(address)
    try:
        ray.init(address=address, **QUIET)
    except AuthenticationError:
        raise InputError(f"--address {address}: {AUTH_MODE}=token is set, and there is no token: {HOW}") from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--address {address}: no Ray cluster there ({reason[:160]})") from None
    logging.getLogger("ray").setLevel(logging.ERROR)


def check_address(address: str) -> None:
    """Ray itself tries an address for half a minute or more before it gives up, and does not say why."""
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address}: Ray Client is not supported; run it on the cluster, as with: ray job submit"
        )
    where = _address_of_this_machine() if address == "auto" else address
    if where is None:
        return
    host, _, given = where.rpartition(":")
    port = whole(given)
    if not host or not port or port > 65535:
        raise InputError(f"--address {address}: must be local, auto or host:port")
    try:
        socket.create_connection((host.strip("[]"), port), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError):  # ValueError: no name of a host
        raise InputError(f"--address {address}: no Ray cluster there (nothing answers)") from None
    _check_token(address, where)


def _address_of_this_machine() -> str | None:
    """The address that ``auto`` means; None where Ray is to find out."""
    with contextlib.suppress(Exception):  # no part of Ray's public interface
        from ray._private.utils import read_ray_address

        found = os.environ.get("RAY_ADDRESS") or read_ray_address()
        return found if isinstance(found, str) and ":" in found else None
    return None


def _check_token(address: str, where: str) -> None:
    """Ask the cluster for its id, as Ray does: one that wants a token refuses at once.

    Raises:
        InputError: it refuses; the line names what is to be set.
    """
    try:
        import grpc
    except ImportError:
        return
    token = _token(address)
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(where) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(
                b"", timeout=ANSWER_SECONDS, metadata=metadata
            )
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                return  # TLS, or another version of Ray: it says so itself
            what = "asks for a token" if token is None else "refuses the token of this process"
            raise InputError(f"--address {address}: the Ray cluster there {what}: {HOW}") from None


def _token(address: str) -> str | None:
    """The token that Ray would send; None where it sends none. With ``auto`` it takes one that it finds."""
    with contextlib.suppress(Exception):  # no part of Ray's public interface
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        loader = AuthenticationTokenLoader.instance()
        mode = os.environ.get(AUTH_MODE, "token" if address == "auto" else "").lower()
        if mode == "token" and loader.has_token(ignore_auth_mode=True):
            found = loader.get_raw_token(ignore_auth_mode=True)
            return found.decode() if isinstance(found, bytes) else str(found)
    return None
