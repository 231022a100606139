"""CPUs and memory under control groups, in fake trees: what Docker, Kubernetes, Slurm and systemd write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayprompt import limits

HOST_CPUS = len(os.sched_getaffinity(0))
HOST_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 1024**3


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system with a ``/proc/self/cgroup`` and files under ``/sys/fs/cgroup``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000"}, 1, id="v2-namespace-rounds-down"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000"}, 1, id="v2-at-least-one"),
        pytest.param("0::/\n", {"cpu.max": "max 100000"}, 64, id="v2-unlimited"),
        pytest.param(
            "0::/kubepods/pod1/box\n", {"kubepods/cpu.max": "800000 100000", "kubepods/pod1/box/cpu.max": "max 100000"},
            8, id="v2-ancestor",
        ),
        pytest.param("0::/docker/abc\n", {"cpu.max": "300000 100000"}, 3, id="v2-path-of-the-host"),
        pytest.param(
            "5:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4, id="v1"
        ),
        pytest.param(
            "5:cpu,cpuacct:/slurm/job1\n0::/\n",
            {
                "cpu,cpuacct/slurm/job1/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/slurm/job1/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2, id="v1-nested-and-hybrid",
        ),
        pytest.param("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64, id="v1-none"),
        pytest.param("", {}, 64, id="no-groups"),
        pytest.param("nonsense\n0::/\n", {"cpu.max": "odd"}, 64, id="odd"),
    ],
)  # fmt: skip
def test_cpus(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert limits.cpus(tree(tmp_path, groups, files)) == expected


def test_the_affinity_mask_counts_beside_the_quota(tmp_path: Path) -> None:
    assert limits.cpus(tree(tmp_path, "0::/\n", {"cpu.max": "100000000 100000"})) == HOST_CPUS


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("0::/\n", {"memory.max": str(GIB)}, GIB, id="v2"),
        pytest.param("0::/\n", {"memory.max": "max"}, HOST_MEMORY, id="v2-unlimited"),
        pytest.param(
            "0::/a/b\n", {"a/memory.max": str(GIB // 2), "a/b/memory.max": str(GIB)}, GIB // 2, id="v2-ancestor"
        ),
        pytest.param("4:memory:/\n", {"memory/memory.limit_in_bytes": str(GIB)}, GIB, id="v1"),
        pytest.param(
            "4:memory:/box\n",
            {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/box/memory.limit_in_bytes": str(GIB)},
            GIB, id="v1-nested",
        ),
        pytest.param("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, HOST_MEMORY, id="v1-none"),
        pytest.param("", {}, HOST_MEMORY, id="no-groups"),
    ],
)  # fmt: skip
def test_memory(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert limits.memory(tree(tmp_path, groups, files)) == expected


def test_an_lm_is_held_against_the_memory_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from rayprompt.errors import ScoringError
    from rayprompt.lm.memory import check_memory
    from rayprompt.lm.source import describe_model

    source, _ = describe_model("tiny-masked")
    for size, fits in ((1 << 20, False), (GIB, True)):
        root = tree(tmp_path / str(size), "0::/\n", {"memory.max": str(size)})
        monkeypatch.setattr(limits, "ROOT", root)
        if fits:
            assert check_memory(source, torch.device("cpu"), torch.float32) == size
        else:
            with pytest.raises(ScoringError, match="cpu has 1 ?MB|cpu has"):
                check_memory(source, torch.device("cpu"), torch.float32)
