"""Hosts on one machine: a network, a process table and an ssh server each; for what crosses a network.

Needs root, iproute2, util-linux and openssh-server. All that is made is taken away again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

NETWORK, USER = "10.77.0", "root"
TOOLS = ("ip", "mount", "ssh", "ssh-keygen", "sshd", "rsync", "unshare")
CONFIG = """\
Port 22
ListenAddress 0.0.0.0
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
MaxStartups 100
"""


@dataclass(frozen=True)
class Hosts:
    """Their addresses, whom to log in as, and with which key; ``home`` is that user's on all of them."""

    addresses: tuple[str, ...]
    user: str
    key: Path
    home: Path

    def run(self, address: str, command: str, timeout: float = 60, *, check: bool = True) -> str:
        """What a command prints on a host, in a login shell."""
        words = ["ssh", *OPTIONS, "-i", str(self.key), f"{self.user}@{address}", f"bash --login -c {quote(command)}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
        said = done.stdout + done.stderr
        if check and done.returncode:
            raise RuntimeError(f"{address}: {command}: exit {done.returncode}\n{said}")
        return said


OPTIONS = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "hosts of one's own need Linux and root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    return f"no {', '.join(lacking)}" if lacking else ""


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    """Hosts that see each other and this machine; keys, logs and the users' home are in ``folder``."""
    with ExitStack() as stack:
        home = folder / "home"
        home.mkdir()
        # Root, as here, for the same Python; but with a home of its own on the hosts, and no process but theirs.
        (folder / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:101:65534::/run/sshd:/bin/false\n")
        (folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        bin_ = Path(sys.executable).parent
        (home / ".bash_profile").write_text(f"export PATH={bin_}:$PATH\n")
        (home / ".bashrc").write_text(f"export PATH={bin_}:$PATH\n")
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        (folder / "sshd_config").write_text(CONFIG.format(folder=folder))
        Path("/run/sshd").mkdir(exist_ok=True)
        bridge = "rayhosts"
        _run("ip", "link", "add", bridge, "type", "bridge")
        stack.callback(_quietly, "ip", "link", "del", bridge)
        _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        addresses = tuple(f"{NETWORK}.{i + 1}" for i in range(count))
        for i, address in enumerate(addresses):
            _host(stack, folder, bridge, f"rayhost{i}", address)
        made = Hosts(addresses, USER, folder / "key", home)
        for address in addresses:
            _answers(made, address)
        yield made


def _host(stack: ExitStack, folder: Path, bridge: str, name: str, address: str) -> None:
    """A network namespace on the bridge, and in it an ssh server with a process table of its own."""
    _run("ip", "netns", "add", name)
    stack.callback(_quietly, "ip", "netns", "del", name)
    _run("ip", "link", "add", f"{name}-a", "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", f"{name}-a", "master", bridge, "up")
    inside = ("ip", "netns", "exec", name)
    _run(*inside, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run(*inside, "ip", "link", "set", device, "up")
    # It leads nowhere; but Ray asks the way to the internet to learn the host's own address.
    _run(*inside, "ip", "route", "add", "default", "via", f"{NETWORK}.254")
    server = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") or "sshd"
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    script = "".join(f"mount --bind {folder}/{file} /etc/{file}; " for file in ("passwd", "shadow"))
    script += f"exec {server} -D -e -f {folder}/sshd_config"
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen([*inside, *alone, "sh", "-ec", script], stdout=log, stderr=log)
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _answers(made: Hosts, address: str) -> None:
    until = time.monotonic() + 20
    while True:
        with contextlib.suppress(subprocess.SubprocessError, RuntimeError):
            made.run(address, "true", timeout=5)
            return
        if time.monotonic() > until:
            raise RuntimeError(f"{address} does not answer to ssh")
        time.sleep(0.2)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=_env())


def _quietly(*command: str) -> None:
    subprocess.run(command, check=False, capture_output=True, env=_env())


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def without(text: str, keys: Sequence[str]) -> str:
    """A YAML file's text without some of its top-level keys and what is under them."""
    kept, skipping = [], False
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "#", "\n", "-"):
            skipping = line.partition(":")[0] in keys
        if not skipping:
            kept.append(line)
    return "".join(kept)
