"""What stays of a search besides its scores: how it got on, and the report it ended with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import ArrowException

from rayprompt.foreign import parse_json
from rayprompt.records import RunRecord
from rayprompt.store.checksum import open_json, seal_json
from rayprompt.store.files import Folder
from rayprompt.study.place import location_of
from rayprompt.typed import check

FOLDER = "runs"  # in a study: a JSON file for each search
RUN_SCHEMA = "rayprompt.run/1"


@dataclass
class Trace:
    """The curve of a search.

    Attributes:
        rows: (evaluations, seconds, best objective, best score) of each generation in which one of the bests grew, and
            of the last one. Seconds are the search's own: of its ask and tell, and the scorers' for its pairs.
        incumbents: (evaluations, JSON form) of each candidate that was the best by objective, from when it was.
    """

    rows: list[list[float]] = field(default_factory=list)
    incumbents: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def add(self, evaluations: int, seconds: float, objective: float, score: float, best: dict[str, Any]) -> None:
        """Take down where the search stands after a generation; ``best`` is its best candidate's JSON form."""
        if not (math.isfinite(objective) and math.isfinite(score)):
            return
        row = [evaluations, seconds, objective, score]
        # A row whose neighbours on both sides say the same is only the end of the curve for as long as it is its end.
        if len(self.rows) > 1 and self.rows[-1][2:] == self.rows[-2][2:] == row[2:]:
            self.rows.pop()
        self.rows.append(row)
        if not self.incumbents or self.incumbents[-1][1] != best:
            self.incumbents.append((evaluations, best))

    def state(self) -> dict[str, Any]:
        """Plain data, for snapshots and files."""
        return {"rows": [list(row) for row in self.rows], "incumbents": [list(pair) for pair in self.incumbents]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trace:
        """Read :meth:`state` back."""
        return cls([list(row) for row in state["rows"]], [(int(n), form) for n, form in state["incumbents"]])


def write_run(folder: Folder, search: str, report: dict[str, Any], trace: Trace) -> None:
    """Write what a search ended with; ``folder`` is the study's.

    Raises:
        StoreError: it cannot be written.
    """
    content = {"schema": RUN_SCHEMA, "report": report, "trace": trace.state()}
    runs = folder.child(FOLDER)
    runs.make()
    runs.write(f"{search}.json", seal_json(json.dumps(content)).encode())


def read_run(study: Path, search: str) -> tuple[dict[str, Any], Trace] | None:
    """The last report and the trace of a search; None where it has not come to a stop, or its file is damaged."""
    folder = Folder.at(location_of(study)).child(FOLDER)
    try:
        content = parse_json(open_json(folder.read(f"{search}.json")))
        check(content, RunRecord, f"{search}.json")
        return content["report"], Trace.from_state(content["trace"])
    except (ArrowException, OSError, ValueError, TypeError):
        return None
