"""The live display of a comparison: a line for each searcher, best first."""

from __future__ import annotations

import time

from rich.console import Group
from rich.text import Text

from rayprompt.cli.display import PLAIN_EVERY_SECONDS, Display, clock, columns
from rayprompt.printable import flat
from rayprompt.study.progress import Progress


class Leaderboard(Display):
    """A listener: a table in a terminal, plain lines every few seconds elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = (0.0, 0)  # the time of the first report, and the evaluations that were spent by then

    def __call__(self, progress: Progress) -> None:
        if progress.phase != "search":
            super().__call__(progress)
            return
        if not self.latest:
            self.begun = (time.monotonic(), progress.evaluations)
        self.latest[progress.search] = progress
        if self.live is not None:
            lines = map(flat, self._table())
            self.live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))
        elif time.monotonic() - self.last_plain >= PLAIN_EVERY_SECONDS:
            self.last_plain = time.monotonic()
            self.console.print(flat(self._plain(progress)), highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> list[str]:
        rows = [("searcher", "best on train", "runs over", "evaluations", "best prompt")]
        for label, runs in self._ranked():
            best = max(runs, key=lambda p: p.best_score)
            over = sum(p.over for p in runs)
            spent = sum(p.evaluations for p in runs)
            rows.append((label, f"{_mean(runs):.3f}", f"{over} of {len(runs)} begun", f"{spent:,}", best.best_prompt))
        return [*columns(rows), self._state()]

    def _plain(self, progress: Progress) -> str:
        board = ", ".join(f"{label} {_mean(runs):.3f}" for label, runs in self._ranked())
        return f"{self._state()}; best on train so far: {board}"

    def _state(self) -> str:
        """How far everything is."""
        latest = list(self.latest.values())
        whole = (latest[0].runs - latest[0].ended) * latest[0].budget
        spent = sum(p.evaluations for p in latest)
        rate = (spent - self.begun[1]) / max(1e-9, time.monotonic() - self.begun[0])
        eta = "" if rate <= 0 else f", ETA {clock((whole - spent) / rate)}"
        done = latest[0].ended + sum(p.over for p in latest)
        return f"{done} of {latest[0].runs} runs are over, {spent:,} of {whole:,} evaluations, {rate:,.0f}/s{eta}"

    def _ranked(self) -> list[tuple[str, list[Progress]]]:
        labels = dict.fromkeys(p.searcher for p in self.latest.values())
        groups = [(label, [p for p in self.latest.values() if p.searcher == label]) for label in labels]
        return sorted(groups, key=lambda group: -_mean(group[1]))


def _mean(runs: list[Progress]) -> float:
    return sum(p.best_score for p in runs) / len(runs)
