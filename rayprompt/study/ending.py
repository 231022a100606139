"""What is written when a study has come to its end, beside its result."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from rayprompt.study.place import location_of
from rayprompt.study.progress import Listener, Progress
from rayprompt.task import Task

# The report reads studies and comparisons, and so stands above both: it is found by its name, as searchers are.
REPORT = "rayprompt.report.page"


def write_page(study: Path, tasks: Iterable[Task], listener: Listener) -> None:
    """Write report.html of a study; where that goes wrong a line says so: the result stands in its own file."""
    try:
        import_module(REPORT).write_report([study], tasks=list(tasks))
    except Exception as error:  # whatever it is: it must not take the result with it
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        listener(
            Progress(
                "report", f"warning: {location_of(study)}/report.html was not written ({reason}); the result is whole"
            )
        )
