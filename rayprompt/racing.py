"""Racing: a sequential paired test that drops candidates which cannot be among the best, and how sure that is.

A candidate could be one of the best only if its values on all E examples sum up to the *bar*, the last finalist's sum.
It is scored on examples drawn without replacement, and its differences to a *reference* row, whose values sum up to
the bar as well, are looked at as they come. If the candidate does reach the bar, the next difference x is at least
m = -S / r on average, S being the sum of the differences so far and r the number of examples left; and it is at most u,
for a value has a greatest possible one. A gambler who bets against the candidate at those odds,

    W <- W (1 + b (m - x) / (u - m)),    W = 1 at the start, b < 1,

then has a fortune W that is never negative and does not grow on average (a non-negative supermartingale), so it ever
reaches 1 / error with a probability of at most ``error`` (Ville, 1939), whatever the values, the looks and their number
are. Where it does, the candidate is dropped. Betting against a mean of values drawn without replacement is due to
Waudby-Smith and Ramdas (2020, arXiv 2006.04347); bets of a fixed share of the greatest possible one to Kaplan and Wald,
as in the audits of elections (Stark, 2020, arXiv 1911.10035). Nothing is assumed of the values but their greatest one.

The order of the examples must be drawn anew for each generation, and by nothing that has been seen: then what is known
from earlier generations, the bar included, says nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.scores import BoolArray, FloatArray, IntArray

ERROR = 0.05
BET = 0.95  # of the greatest bet, which one perfect value would lose for ever
HARD = 8  # of the examples that the reference does worst on, at most so many (and a quarter of all) come first
STEP = 8  # an eighth more examples from look to look
PATTERN = 0.5  # of what examples are easy and hard for the finalists
MOST = {"accuracy": 1.0, "cross_entropy": 0.0, "hinge": 0.0, "gap": 200.0}  # the greatest value of a pair


class Race:
    """C candidates against one bar on E examples. The caller has them scored up to a look, and enters what came.

    Attributes:
        order: (E,) in which the examples are to be scored: first those with the most room above the reference, all
            together, which says nothing by itself but makes the bets on the rest greater; then at random.
        looks: how many examples are scored before each look; the last is E.
        dropped: (C,) which candidates are out.
        sums: (C,) of the differences seen.
    """

    def __init__(self, candidates: int, reference: FloatArray, room: FloatArray, error: float, random: Any) -> None:
        """``reference``: (E,) values that sum up to the bar; ``room``: (E,) from there to the greatest ones;
        ``random``: a NumPy generator."""
        size = len(reference)
        self.reference = reference
        self.hard = min(size // 4, HARD)
        first = np.argsort(-room, kind="stable")[: self.hard]
        rest = random.permutation(np.setdiff1d(np.arange(size), first))
        self.order: IntArray = np.concatenate([first, rest]).astype(np.int64)
        self.looks = looks_of(size, self.hard)
        left = room[self.order][::-1]
        self.most_next = np.maximum.accumulate(left)[::-1]  # (E,) of a difference from here on
        self.most_left = np.append(np.cumsum(left)[::-1], 0.0)  # (E + 1,) of their sum
        self.least_log = math.log(1 / error)
        self.close = 1e-9 * max(1.0, float(np.abs(reference).sum()))  # sums of floats that are equal in truth
        self.sums: FloatArray = np.zeros(candidates)
        self.log_wealth: FloatArray = np.zeros(candidates)
        self.dropped: BoolArray = np.zeros(candidates, dtype=bool)

    def enter(self, which: IntArray, start: int, values: FloatArray) -> None:
        """Values (c, n) of the candidates ``which`` (c,) on the examples ``order[start : start + n]``."""
        size = len(self.order)
        for step, x in enumerate((values - self.reference[self.order[start : start + values.shape[1]]]).T, start=start):
            sums = self.sums[which]
            if step >= self.hard:
                mean = -sums / (size - step)
                room = self.most_next[step] - mean
                bet = room > self.close
                self.log_wealth[which[bet]] += np.log1p(BET * (mean[bet] - x[bet]) / room[bet])
            self.sums[which] = sums + x
            hopeless = self.sums[which] + self.most_left[step + 1] < -self.close  # with the best values from here on
            self.dropped[which] |= hopeless | (self.log_wealth[which] >= self.least_log)


def looks_of(size: int, hard: int) -> list[int]:
    """How many examples are scored before each look: the hard ones, an eighth more each time, all of them."""
    looks = [max(1, hard)]
    while looks[-1] < size:
        looks.append(min(size, looks[-1] + max(1, looks[-1] // STEP)))
    return looks


def reference_row(rows: FloatArray, weights: FloatArray | IntArray) -> FloatArray:
    """(E,) from the values (K, E) of the finalists, best first: some way from the bar to what is common to them.

    ``weights`` (E,): how often an example counts; it is in the values already.

    Any row of that sum will do. What several good candidates have in common tells more of the next one than any one of
    them: differences from it vary less. But where it is low there is room above, which makes the bets smaller: half of
    it, or less, serves best.
    """
    mean, share = rows.mean(axis=0), weights / weights.sum()
    return np.asarray(rows[-1].sum() * share + PATTERN * (mean - mean.sum() * share))


def race_of(error: float, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a race has done, from a search's report: its error rate, candidates, those dropped, evaluations spared."""
    counts = {name: report[f"race_{name}"] for name in ("dropped", "spared")}
    return {"error": error, "candidates": report["candidates"], **counts, "evaluations": report["evaluations"]}


def race_line(races: Sequence[Mapping[str, Any]]) -> str:
    """What races (:func:`race_of`) have done, for people."""
    candidates, dropped, spared, evaluations = (
        sum(int(race[name]) for race in races) for name in ("candidates", "dropped", "spared", "evaluations")
    )
    return (
        f"{dropped:,} of {candidates:,} candidates were dropped on the way: {spared:,} evaluations spared, "
        f"{spared / max(1, spared + evaluations):.0%} of what full scores take (at most {races[0]['error']:.0%} of "
        "candidates as good as the last finalist are lost)"
    )


def error_of(race: bool, error: float) -> float | None:
    """The error rate of a search that is to race, else None.

    Raises:
        InputError: the rate is none, or one is given and no race.
    """
    if not 0 < error < 1:
        raise InputError(f"race error {error}: must be a probability between 0 and 1, as 0.05")
    if not race and error != ERROR:
        raise InputError(f"--race-error {error}: is for --race, which was not given")
    return float(error) if race else None
