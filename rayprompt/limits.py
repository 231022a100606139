"""The CPUs and the memory that this process may use: the machine's, cut by affinity and by control groups.

Containers, Kubernetes and Slurm limit processes by control groups, version 1 or 2. A group's ancestors limit it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpus(root: Path | None = None) -> int:
    """CPUs: those of the affinity mask, or fewer where a quota allows fewer; at least 1, and rounded down as in Ray.

    Args:
        root: where ``proc`` and ``sys`` are; None is the system's.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    for quota in _cpu_quotas(root or ROOT):
        count = min(count, int(quota))
    return max(1, count)


def memory(root: Path | None = None) -> int | None:
    """Bytes of memory; None where the system does not say."""
    limits = [
        int(given)
        for given in _values(root or ROOT, "memory", "memory.limit_in_bytes", "memory.max")
        if given.isdigit()
    ]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder, version in _groups(root, "cpu"):
        if version == 1:
            quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        else:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # no limit: -1 in version 1, max in version 2
            yield int(quota) / int(period)


def _values(root: Path, controller: str, *names: str) -> Iterator[str]:
    """The contents of the file of version 1 or 2 (``names``) in this process's group and its ancestors."""
    for folder, version in _groups(root, controller):
        yield _read(folder / names[version - 1])


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's control group and its ancestors for a controller, with the version.

    In a container without a namespace of its own, ``/proc/self/cgroup`` has a path that only the host has: the mount
    is the container's group then.
    """
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0":
            tops, version = [mounts, mounts / "unified"], 2
        elif controller in names.split(","):
            tops, version = [mounts / controller, mounts / names], 1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in dict.fromkeys(tops):
            for depth in range(len(parts), -1, -1):
                folder = top.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder, version


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
