"""The live display of a comparison: a line for each searcher, best first."""

from __future__ import annotations

import time

from rich.console import Group
from rich.text import Text

from rayprompt.cli.display import PLAIN_EVERY_SECONDS, Display, columns
from rayprompt.study.progress import Progress


class Leaderboard(Display):
    """A listener: a table in a terminal, plain lines every few seconds elsewhere."""

    def __call__(self, progress: Progress) -> None:
        if progress.phase != "search":
            super().__call__(progress)
            return
        self.latest[progress.search] = progress
        if self.live is not None:
            self.live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in self._table())))
        elif time.monotonic() - self.last_plain >= PLAIN_EVERY_SECONDS:
            self.last_plain = time.monotonic()
            self.console.print(self._plain(progress), highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> list[str]:
        rows = [("searcher", "best on train", "runs", "evaluations", "best prompt")]
        for label, runs in self._ranked():
            best = max(runs, key=lambda p: p.best_score)
            over = sum(p.over for p in runs)
            spent = sum(p.evaluations for p in runs)
            rows.append((label, f"{_mean(runs):.3f}", f"{over} of {len(runs)} over", f"{spent:,}", best.best_prompt))
        every = next(iter(self.latest.values()))
        done = sum(p.over for p in self.latest.values())
        return [*columns(rows), f"{done} of {every.runs} runs are over"]

    def _plain(self, progress: Progress) -> str:
        done = sum(p.over for p in self.latest.values())
        board = ", ".join(f"{label} {_mean(runs):.3f}" for label, runs in self._ranked())
        return f"{done} of {progress.runs} runs are over; best on train so far, mean over seeds: {board}"

    def _ranked(self) -> list[tuple[str, list[Progress]]]:
        labels = dict.fromkeys(p.searcher for p in self.latest.values())
        groups = [(label, [p for p in self.latest.values() if p.searcher == label]) for label in labels]
        return sorted(groups, key=lambda group: -_mean(group[1]))


def _mean(runs: list[Progress]) -> float:
    return sum(p.best_score for p in runs) / len(runs)
