"""The suite with the memory of torch's tensors at other addresses: ``RAYPROMPT_TEST_SHIFT=4 pytest`` (bytes)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SHIFT = "RAYPROMPT_TEST_SHIFT"
SOURCE = Path(__file__).with_name("shift.c")


def build(folder: Path) -> Path | None:
    """The library that shifts allocations in processes it is preloaded into; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "libshift.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def preloaded(library: Path, shift: int) -> dict[str, str]:
    """The environment of a process whose allocations are shifted by so many bytes."""
    before = os.environ.get("LD_PRELOAD")
    return {**os.environ, SHIFT: str(shift), "LD_PRELOAD": f"{library}:{before}" if before else str(library)}


def is_due() -> bool:
    """Whether ``RAYPROMPT_TEST_SHIFT`` asks for shifts that this process does not have yet."""
    return int(os.environ.get(SHIFT) or 0) > 0 and "libshift.so" not in os.environ.get("LD_PRELOAD", "")


def begin_again() -> None:
    """Start this pytest once more, with shifted allocations."""
    library = build(Path(tempfile.mkdtemp(prefix="rayprompt-shift-")))
    if library is None:
        raise SystemExit(f"{SHIFT}: needs Linux and a C compiler")
    shift = int(os.environ[SHIFT])
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]], preloaded(library, shift))
