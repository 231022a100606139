"""The right to work on a study where files have no locks: a small file, which its owner writes anew every few seconds.

It is taken by one write that only one of several processes can do: on a local filesystem by a link, on S3 by a
conditional put (with boto3). Elsewhere it is written, and read back after longer than a write takes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from rayprompt.errors import InputError, LeaseLost, StoreError
from rayprompt.foreign import parse_json
from rayprompt.store.files import Folder, reason

LEASE = ".lease.json"  # in a study: who is at work on it
BEAT_SECONDS = 10.0
DEAD_AFTER = 3.0  # beats
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # of filesystems that have none
PUT_SECONDS = 2.0  # the least that is waited for the writes of others, where a write has no condition
CONFLICT = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class LeaseFile(Protocol):
    """The file of a lease. A tag says what it holds.

    A write gives the new tag, or None where something else is there than was to be replaced.
    """

    def read(self) -> tuple[bytes | None, str]:
        """Content and tag; None where there is no file."""
        ...

    def create(self, content: bytes) -> str | None:
        """Write the file where there is none."""
        ...

    def take(self, content: bytes, tag: str) -> str | None:
        """Write it over the file of an owner that shows no sign of life."""
        ...

    def renew(self, content: bytes, tag: str) -> str | None:
        """Write it over one's own."""
        ...


class AnyFile:
    """On any filesystem of pyarrow: what was written is read back after longer than a write takes.

    Two processes that start within one write, where one write takes longer than that, both own it until the next beat.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def read(self) -> tuple[bytes | None, str]:
        try:
            content = self.folder.read(LEASE)
        except FileNotFoundError:
            return None, ""
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.folder.shown}/{LEASE}: cannot be read ({reason(error)})") from None
        return content, content.hex()

    def create(self, content: bytes) -> str | None:
        self.folder.make()
        started = time.monotonic()
        self.folder.write(LEASE, content, again=True)
        time.sleep(max(PUT_SECONDS, 4 * (time.monotonic() - started)))
        return content.hex() if self.read()[0] == content else None

    def take(self, content: bytes, tag: str) -> str | None:
        return self.create(content) if self.read()[1] == tag else None

    def renew(self, content: bytes, tag: str) -> str | None:
        if self.read()[1] != tag:
            return None
        self.folder.write(LEASE, content, again=True)
        return content.hex()


class LocalFile(AnyFile):
    """On a local filesystem, also one without locks: a link is made once only, and a file is renamed once only."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self.path = Path(folder.path, LEASE)

    def _aside(self) -> Path:
        return self.path.with_name(f"{LEASE}.{secrets.token_hex(8)}")

    def create(self, content: bytes) -> str | None:
        self.folder.make()
        part = self._aside()
        try:
            part.write_bytes(content)
            try:
                os.link(part, self.path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                with self.path.open("xb") as file:
                    file.write(content)
            return content.hex()
        except FileExistsError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({reason(error)})") from None
        finally:
            part.unlink(missing_ok=True)

    def take(self, content: bytes, tag: str) -> str | None:
        found = self._aside()
        try:
            self.path.rename(found)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({reason(error)})") from None
        if found.read_bytes().hex() != tag:  # its owner lives, or another one was quicker: it gets it back
            with contextlib.suppress(OSError):
                os.link(found, self.path)
            found.unlink(missing_ok=True)
            return None
        found.unlink(missing_ok=True)
        return self.create(content)

    def renew(self, content: bytes, tag: str) -> str | None:
        try:
            # Where it is renamed from here on, what is written goes with it, and not over the new owner's.
            with self.path.open("r+b") as file:
                if file.read().hex() != tag:
                    return None
                file.seek(0)
                file.write(content)
                file.truncate()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({reason(error)})") from None
        return content.hex()


class S3File:
    """On S3: puts that fail where another object stands there than was read (compare and swap)."""

    def __init__(self, folder: Folder) -> None:
        import boto3
        from botocore.config import Config

        parts = urlsplit(folder.uri)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        endpoint = query.get("endpoint_override")
        self.shown = f"{folder.shown}/{LEASE}"
        self.bucket, _, key = folder.path.partition("/")
        self.key = f"{key}/{LEASE}".lstrip("/")
        self.client = boto3.client(
            "s3",
            endpoint_url=f"{query.get('scheme', 'https')}://{endpoint}" if endpoint else None,
            region_name=query.get("region") or folder.filesystem.region or None,
            config=Config(s3={"addressing_style": "path"} if endpoint else {}),
        )

    def read(self) -> tuple[bytes | None, str]:
        found = self._call("cannot be read", ("NoSuchKey", "404"), "get_object")
        return (None, "") if found is None else (found["Body"].read(), str(found["ETag"]))

    def create(self, content: bytes) -> str | None:
        return self._put(content, IfNoneMatch="*")

    def take(self, content: bytes, tag: str) -> str | None:
        return self._put(content, IfMatch=tag)

    renew = take

    def keeps_conditions(self) -> bool:
        """Whether the service, which has the file, refuses to make it a second time: some know no conditions."""
        content, _ = self.read()
        return content is not None and self.create(content + b" ") is None

    def _put(self, content: bytes, **condition: str) -> str | None:
        done = self._call("cannot be written", (*CONFLICT, "NoSuchKey"), "put_object", Body=content, **condition)
        if done is not None:
            return str(done["ETag"])
        found, tag = self.read()  # a put whose answer was lost is sent again, and finds itself
        return tag if found == content else None

    def _call(self, what: str, expected: tuple[str, ...], name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self.client, name)(Bucket=self.bucket, Key=self.key, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in expected:
                return None
            raise StoreError(f"{self.shown}: {what} ({code})") from None
        except (BotoCoreError, OSError) as error:
            raise StoreError(f"{self.shown}: {what} ({reason(error)})") from None


def lease_file(folder: Folder) -> LeaseFile:
    """The file of the lease of a study in ``folder``, written as well as its filesystem can."""
    kind = folder.filesystem.type_name
    if kind == "local":
        return LocalFile(folder)
    if kind == "s3" and find_spec("boto3") is not None:
        return S3File(folder)
    return AnyFile(folder)


class Lease:
    """The right to work on a study, where files have no locks.

    A process that finds another's waits whether it is written again. If not, its owner has died, and the lease is
    taken over; no clocks are compared.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.owner = {"host": _host(), "process": os.getpid(), "id": secrets.token_hex(8)}
        self.file = lease_file(folder)
        self.beat = 0
        self.tag = ""
        self.lost = False
        self.renewing = threading.Lock()

    @property
    def owner_id(self) -> str:
        """Names the owner: no two have the same."""
        return str(self.owner["id"])

    def take(self, said: Callable[[str], None], seconds: float = BEAT_SECONDS) -> None:
        """Take it, if need be after some seconds.

        Raises:
            InputError: another process is at work.
            StoreError: the study cannot be read or written to.
        """
        content, tag = self.file.read()
        found = _form(content)
        if found is not None and not _is_dead(found):
            said(f"{self.folder.shown}: begun by {_who(found)}; waiting {DEAD_AFTER * seconds:.0f} s for a sign of it")
            until = time.monotonic() + DEAD_AFTER * seconds
            while time.monotonic() < until:
                time.sleep(min(1.0, seconds / 4))
                content, later = self.file.read()
                if content is None:
                    found = None
                    break
                if later != tag:
                    raise self._at_work(_form(content))
        mine = self._next()
        taken = self.file.create(mine) if found is None else self.file.take(mine, tag)
        if taken is None:
            raise self._at_work(_form(self.file.read()[0]))
        self.tag = taken
        if isinstance(self.file, S3File) and not self.file.keeps_conditions():
            self.file = AnyFile(self.folder)
            self.tag = self.file.create(mine) or ""
            if not self.tag:
                raise self._at_work(_form(self.file.read()[0]))

    def renew(self) -> None:
        """Show that its owner lives.

        Raises:
            LeaseLost: another process has taken the study over.
            StoreError: the lease cannot be read or written.
        """
        with self.renewing:
            for _ in range(0 if self.lost else 2):
                tag = self.file.renew(self._next(), self.tag)
                if tag is not None:
                    self.tag = tag
                    return
                content, tag = self.file.read()
                if not self._is_ours(_form(content)):
                    break
                self.tag = tag  # an earlier renewal was written, and its answer lost
            self.lost = True  # for good: whoever has lost it once has no claim to what stands there now
            raise lost_to(self.folder, _form(self.file.read()[0]))

    def give_back(self) -> None:
        """Whoever comes next need not wait."""
        if self._is_ours(_form(self.file.read()[0])):
            self.folder.remove(LEASE)

    def _is_ours(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("id") == self.owner["id"]

    def _next(self) -> bytes:
        self.beat += 1
        return json.dumps({**self.owner, "beat": self.beat}).encode()

    def _at_work(self, found: dict[str, Any] | None) -> InputError:
        return InputError(f"{self.folder.shown}: another process is at work on this study ({_who(found or {})})")


def check_lease(folder: Folder, owner: str) -> None:
    """See that a study's lease is still that of an owner, named by its id: before something is written for it.

    Raises:
        LeaseLost: it is another's, or gone.
        StoreError: it cannot be read.
    """
    found = _form(AnyFile(folder).read()[0])
    if found is None or found.get("id", owner) != owner:
        raise lost_to(folder, found)


def lost_to(folder: Folder, found: dict[str, Any] | None) -> LeaseLost:
    """The error of an owner that finds another's lease, or none."""
    who = "another process" if found is None else _who(found)
    return LeaseLost(f"{folder.shown}: {who} has taken this study over; nothing more is written")


def _form(content: bytes | None) -> dict[str, Any] | None:
    """A lease; None where there is none, and empty where it is just being written."""
    if content is None:
        return None
    try:
        form = parse_json(content)
    except ValueError:
        return {}
    return form if isinstance(form, dict) else {}


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease.get('process')} on {str(lease.get('host')).partition(' ')[0]}"


def _host() -> str:
    """This machine and table of processes: containers may have the name of their host, and processes of their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether a lease's owner was a process of this machine that is gone."""
    if lease.get("host") != _host():
        return False
    try:
        os.kill(int(lease["process"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return True
    except PermissionError:
        return False
    return False
