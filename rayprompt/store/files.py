"""Where a store's files lie: any filesystem of pyarrow. A file is written whole, once; never appended to or renamed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyarrow import ArrowException
from pyarrow import fs as pafs

from rayprompt.errors import InputError, StoreError

# In names of a URI's query.
SECRETS = ("key", "secret", "token", "passw", "pwd", "signature", "credential", "sig")


@dataclass(frozen=True)
class Folder:
    """A directory on a pyarrow filesystem. ``shown`` is how it is named to people, ``uri`` the URI that was given."""

    filesystem: Any
    path: str
    shown: str
    uri: str = ""

    @classmethod
    def at(cls, location: str | Path) -> Folder:
        """The directory at a local path, or at a URI such as ``s3://bucket/folder``.

        Raises:
            InputError: the URI cannot be used.
        """
        text = str(location)
        if "://" not in text:
            path = os.path.abspath(os.path.expanduser(text))
            return cls(pafs.LocalFileSystem(), path, path)
        refuse_credentials(text)
        shown = text.partition("?")[0]
        try:
            filesystem, path = pafs.FileSystem.from_uri(text)
        except (ArrowException, OSError, ValueError):  # the reason given may repeat the URI with its query
            raise InputError(f"{shown}: not a local path, nor a URI of a filesystem that pyarrow can use") from None
        return cls(filesystem, path.rstrip("/"), shown, text)

    def child(self, name: str) -> Folder:
        """A directory in this one."""
        return Folder(self.filesystem, f"{self.path}/{name}", f"{self.shown}/{name}")

    def exists(self) -> bool:
        """Whether it is there."""
        info = self.filesystem.get_file_info(self.path)
        return bool(info.type == pafs.FileType.Directory)

    def names(self) -> list[str]:
        """The files in it, sorted; none where it does not exist.

        Raises:
            StoreError: it cannot be listed.
        """
        return sorted(self.written())

    def written(self) -> dict[str, float]:
        """The files in it, and when they were written (seconds since 1970; 0 where the filesystem does not say).

        Raises:
            StoreError: it cannot be listed.
        """
        try:
            infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        except (ArrowException, OSError) as error:
            raise StoreError(f"{self.shown}: cannot be read ({reason(error)})") from None
        files = [info for info in infos if info.type == pafs.FileType.File]
        return {info.base_name: (info.mtime_ns or 0) / 1e9 for info in files}

    def make(self) -> None:
        """Create it.

        Raises:
            StoreError: it cannot be made.
        """
        try:
            self.filesystem.create_dir(self.path, recursive=True)
        except OSError as error:
            raise StoreError(f"{self.shown}: cannot be made ({reason(error)})") from None

    def write(self, name: str, content: Any, *, again: bool = False) -> None:
        """Write a whole new file; what could not be written in full is taken away again.

        ``again``: it may be there, and then stays as it was where the filesystem can do that.

        Raises:
            StoreError: it cannot be written.
        """
        path = f"{self.path}/{name}"
        try:
            with self.filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(content)
        except OSError as error:
            if not again:
                self.remove(name)
            raise StoreError(f"{self.shown}/{name}: cannot be written ({reason(error)})") from None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self.open(name) as stream:
            content: bytes = stream.read()
        return content

    def read_buffer(self, name: str) -> Any:
        """The content of a large file, without a copy."""
        with self.open(name) as stream:
            return stream.read_buffer()

    def rename(self, name: str, new: str) -> None:
        """Give a file another name.

        Raises:
            StoreError: it cannot be renamed.
        """
        try:
            self.filesystem.move(f"{self.path}/{name}", f"{self.path}/{new}")
        except (ArrowException, OSError) as error:
            raise StoreError(f"{self.shown}/{name}: cannot be renamed ({reason(error)})") from None

    def open(self, name: str) -> Any:
        """A file, opened for reading at any place in it."""
        path = Path(self.path, name)
        if isinstance(self.filesystem, pafs.LocalFileSystem) and path.exists() and not path.is_file():
            raise OSError(f"{path}: is a directory, pipe or device, not a file")  # a pipe may wait for ever
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already, or cannot be deleted, is left as it is."""
        try:
            self.filesystem.delete_file(f"{self.path}/{name}")
        except OSError:
            return

    def check_writable(self) -> None:
        """Create it and write a small file in it, which is deleted again.

        Raises:
            StoreError: that cannot be done.
        """
        self.make()
        probe = f".writable-{os.getpid()}"
        self.write(probe, b"rayprompt")
        self.remove(probe)


def refuse_credentials(location: str) -> None:
    """Raise ``InputError`` for a URI with a key in it, which would stand in files and logs. The key is not repeated."""
    scheme, mark, rest = location.partition("://")
    if not mark:
        return
    rest = unquote(rest)
    before, at, _ = rest.partition("?")[0].rpartition("@")
    container = scheme in ("abfs", "abfss") and ":" not in before  # abfs://CONTAINER@ACCOUNT...
    _, *settings = re.split("[?#&;]", rest)
    secret = any("@" in setting for setting in settings)  # endpoint_override=http://NAME:PASSWORD@HOST
    names = [setting.partition("=")[0].lower() for setting in settings if "=" in setting]
    secret |= any(word in name for name in names for word in SECRETS)
    if secret or (at and ("/" not in before or ":" in before) and not container):
        raise InputError(f"{scheme}://...: a URI with credentials is not taken; give them in the environment")


def reason(error: BaseException) -> str:
    """Why a filesystem refused, in a few words."""
    number = getattr(error, "errno", None)
    if number:
        return os.strerror(number)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
