"""Runs searches as processes of their own and kills parts of them; run as a script, it is such a search."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("scorer", "router", "trial", "driver")
TITLES = {"scorer": "ray::Scorer", "router": "ray::Router", "trial": "ray::ResourceTrainable"}
# What may differ between a run that was killed and one that was not.
MAY_DIFFER = {
    "lm_evaluations", "report_lm_evaluations", "tokens", "lm_seconds", "seconds", "evaluations_per_second",
    "cache_hits", "timings", "study_dir", "store",
}  # fmt: skip


def descendants(root: int) -> dict[int, str]:
    """Process id -> command line of everything that ``root`` has started."""
    parents, titles = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid = int(stat.parent.name)
            parents[pid] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            titles[pid] = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return {pid: titles[pid] for pid in found - {root}}
        found |= more


@dataclass
class Run:
    """One study, from its first start to its result, over any number of deaths."""

    study: Path
    options: list[str]
    command: str = "search"
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    starts: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the search, or go on with it if it has begun."""
        begun = (self.study / "study.yaml").is_file()
        what = ["--resume", str(self.study)] if begun else [*self.options, "--out", str(self.study)]
        command = [sys.executable, __file__, self.command, *what]
        self.starts += 1
        log = self.study.with_suffix(f".{self.starts}.log").open("w")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, text=True)

    def kill(self, kind: str, patience: float = 40.0) -> bool:
        """Kill the driver or one of its processes; False if there is none (any more)."""
        assert self.process is not None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            family = descendants(self.process.pid)
            found = [pid for pid, title in family.items() if kind == "driver" or title.startswith(TITLES[kind])]
            if kind == "driver":
                self.process.kill()
                self.process.wait()
                await_end(family)
                self.killed[kind] += 1
                self.start()
                return True
            if found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.Random(len(found)).choice(found), signal.SIGKILL)
                    self.killed[kind] += 1
                return True
            time.sleep(0.02)
        return False

    def await_scores(self, patience: float = 120.0) -> None:
        """Return when the search has written scores since this was called, or has ended."""
        assert self.process is not None
        written = set((self.study / "scores").glob("*"))
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.process.poll() is None:
            if set((self.study / "scores").glob("*.parquet")) - written:
                return
            time.sleep(0.1)

    def finish(self) -> dict[str, Any]:
        """Wait for the result."""
        assert self.process is not None
        code = self.process.wait(timeout=300)
        log = self.study.with_suffix(f".{self.starts}.log").read_text()
        assert code == 0, f"exit code {code} after {self.killed}, starts {self.starts}:\n{log[-3000:]}"
        file = {"search": "result.json", "compare": "comparison.json"}[self.command]
        content: dict[str, Any] = json.loads((self.study / file).read_text())
        return content


def await_end(family: dict[int, str]) -> None:
    """Ray's actors end with the driver that started them; its agents, and workers without work, some time later."""
    pids = [pid for pid, title in family.items() if title.startswith("ray::") and "Agent" not in title]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)


def run_with_kills(
    study: Path, options: list[str], kinds: list[str], seed: int | None = None
) -> tuple[dict[str, Any], Run]:
    """Run a search and kill one process after the other until it has ended.

    That is at seeded moments, or, without a seed, whenever it has written scores since the last kill.
    """
    rng = random.Random(seed)
    run = Run(study, options)
    run.start()
    for kind in kinds:
        assert run.process is not None
        if seed is None:
            run.await_scores()
        else:
            time.sleep(rng.uniform(0.0, 3.0))
        if not run.kill(kind) and run.process.poll() is not None:
            break
    return run.finish(), run


def same(content: dict[str, Any]) -> dict[str, Any]:
    """What must be the same with and without deaths."""
    return {name: value for name, value in content.items() if name not in MAY_DIFFER}


def places() -> dict[str, tuple[Any, str, int]]:
    """Points of a search on its way, in their order: the function whose how-many-th call comes there."""
    import rayprompt.study.manifest as manifest
    import rayprompt.study.search as studies
    from rayprompt.study.closing import Closer
    from rayprompt.study.trackers import Trackers

    return {
        "lock": (studies, "study_lock", 1),
        "read": (studies, "read_manifest", 2),
        "load": (studies, "session", 1),
        "begin": (studies, "write_manifest", 1),
        "choose": (Closer, "choose", 1),
        "open": (studies, "write_manifest", 2),
        "measure": (Closer, "measure", 1),
        "prompt": (studies, "write_json", 1),
        "result": (studies, "write_json", 2),
        "page": (studies, "write_page", 1),
        "trackers": (Trackers, "finish", 1),
        "close": (studies, "close_manifest", 1),
        "closed": (manifest, "write_manifest", 1),
    }


CLOSING = ("choose", "open", "measure", "prompt", "result", "page", "trackers", "close", "closed")


@contextlib.contextmanager
def at(point: str, act: Callable[[], object]) -> Iterator[None]:
    """Have something done when a search of this process comes to a point."""
    owner, name, number = places()[point]
    original, calls = getattr(owner, name), 0

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return original(*arguments, **keywords)

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        setattr(owner, name, original)


if __name__ == "__main__":
    import rayprompt.comparison.compare as comparisons
    import rayprompt.study.search as studies
    from rayprompt.cli.main import main

    # Often enough for a run of seconds to have several.
    studies.SNAPSHOT_SECONDS, studies.FLUSH_SECONDS = 1.0, 0.1
    comparisons.SNAPSHOT_SECONDS, comparisons.FLUSH_SECONDS = 1.0, 0.1
    point, number = os.environ.get("RAYPROMPT_TEST_POINT"), os.environ.get("RAYPROMPT_TEST_SIGNAL", "9")
    with at(point, lambda: os.kill(os.getpid(), int(number))) if point else contextlib.nullcontext():
        main()
