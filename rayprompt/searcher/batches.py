"""Batches: the generations of a searcher, handed to Tune's trials in pieces and told when they are whole again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate, candidate_from_json
from rayprompt.scores import FloatArray

MOST_FAILED = 1000  # failed batches that are remembered, in case somebody runs them again


@dataclass
class Generation:
    """What was asked for at once: C candidates, their values (C,) so far, and which batches are still out.

    The budget may end within it: then only the first ``handed_out`` candidates are ever evaluated.
    """

    candidates: tuple[Candidate, ...]
    values: FloatArray
    rows: dict[int, slice]  # number of an unfinished batch -> its rows
    handed_out: int

    @property
    def whole(self) -> bool:
        return not self.rows


class Batches:
    """Numbers the batches of all generations, knows which trial has which, and puts values together again.

    Args:
        size: candidates of a batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.next = 0  # number of the next batch
        self.seen: set[str] = set()  # keys of the candidates handed out or waiting, in all
        self.generations: deque[Generation] = deque()  # asked for and not told, in their order
        self.waiting: deque[int] = deque()  # batches that no trial has
        self.live: dict[str, int] = {}  # trial -> its batch
        self.failed: dict[int, tuple[Candidate, ...]] = {}

    def add(self, candidates: Sequence[Candidate], at_most: int | None = None) -> None:
        """Cut a generation into batches. What is beyond ``at_most`` new candidates is not handed out."""
        count = self._within(candidates, at_most)
        self.seen.update(c.key for c in candidates[:count])
        rows = {}
        for start in range(0, count, self.size):
            rows[self.next] = slice(start, min(start + self.size, count))
            self.waiting.append(self.next)
            self.next += 1
        self.generations.append(Generation(tuple(candidates), np.full(len(candidates), np.nan), rows, count))

    @property
    def candidates(self) -> int:
        """Distinct candidates handed out or waiting, in all."""
        return len(self.seen)

    def _within(self, candidates: Sequence[Candidate], at_most: int | None) -> int:
        """How many of the first candidates hold no more than ``at_most`` that were not handed out before."""
        new: set[str] = set()
        for count, candidate in enumerate(candidates):
            if candidate.key not in self.seen:
                new.add(candidate.key)
            if at_most is not None and len(new) > at_most:
                return count
        return len(candidates)

    def hand_out(self, trial_id: str) -> tuple[int, tuple[Candidate, ...]]:
        """The next batch that no trial has, for this trial: its number and its candidates."""
        number = self.waiting.popleft()
        self.live[trial_id] = number
        return number, self.of(number)

    def of(self, number: int) -> tuple[Candidate, ...]:
        """The candidates of an unfinished or failed batch; none where it is neither."""
        generation = self._generation(number)
        return self.failed.get(number, ()) if generation is None else generation.candidates[generation.rows[number]]

    def finish(self, number: int, values: FloatArray) -> bool:
        """Take the values of a batch; False where it is finished already, or was never asked for."""
        generation = self._generation(number)
        if generation is None:
            return False
        candidates = generation.candidates[generation.rows[number]]
        generation.values[generation.rows.pop(number)] = values
        if number in self.waiting:
            self.waiting.remove(number)
        if np.isnan(values).all():
            self.failed[number] = candidates
            if len(self.failed) > MOST_FAILED:
                del self.failed[next(iter(self.failed))]
        return True

    def hand_out_again(self, numbers: Sequence[int]) -> None:
        """Give unfinished batches, whose trials are lost, to other trials, before all others."""
        self.live = {trial: number for trial, number in self.live.items() if number not in numbers}
        self.waiting.extendleft(n for n in sorted(numbers, reverse=True) if n not in self.waiting)

    @property
    def out(self) -> set[int]:
        """Numbers of the unfinished batches that are not waiting."""
        return {n for g in self.generations for n in g.rows}.difference(self.waiting)

    def state_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "next": self.next,
            "seen": sorted(self.seen),
            "generations": [
                {
                    "candidates": [c.to_json() for c in g.candidates],
                    "values": g.values.tolist(),
                    "rows": {n: (r.start, r.stop) for n, r in g.rows.items()},
                    "handed_out": g.handed_out,
                }
                for g in self.generations
            ],
            "waiting": list(self.waiting),
            "live": dict(self.live),
            "failed": {n: [c.to_json() for c in batch] for n, batch in self.failed.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size, self.next, self.seen = state["size"], state["next"], set(state["seen"])
        self.generations = deque(
            Generation(
                tuple(map(candidate_from_json, g["candidates"])),
                np.array(g["values"], dtype=np.float64),
                {n: slice(*ends) for n, ends in g["rows"].items()},
                g["handed_out"],
            )
            for g in state["generations"]
        )
        self.waiting = deque(state["waiting"])
        self.live = dict(state["live"])
        self.failed = {n: tuple(map(candidate_from_json, batch)) for n, batch in state["failed"].items()}

    def _generation(self, number: int) -> Generation | None:
        return next((g for g in self.generations if number in g.rows), None)
