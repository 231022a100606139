"""SearchLoop: one search, from its first ask to its end, and from any point at which it died.

What a search was asked for and what came of it stands in the store; a snapshot of the searcher is taken about once a
minute. A search that dies goes on from the snapshot: it goes once more through the recorded asks since, which the
store answers, and stands where the record ends. What no file holds yet is scored again, to the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, candidate_from_json
from rayprompt.objective import OBJECTIVES
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.race import Racer
from rayprompt.searcher.step import Heat, Step, ask_score_tell
from rayprompt.store.checksum import open_json, seal_json
from rayprompt.store.files import Folder
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import FLUSH_SECONDS
from rayprompt.study.measure import evaluator_of
from rayprompt.study.place import check_held
from rayprompt.study.snapshots import Snapshots, freeze
from rayprompt.study.trace import Trace, write_run

STALLED_AFTER = 20  # asks in a row without a new pair
SNAPSHOT_SECONDS = 60.0


@dataclass(frozen=True)
class SearchPlan:
    """What a search is told besides its searcher: who it is, its limits, its files and how often it writes."""

    search: str
    budget: int
    finalists: int
    study: str
    store: str
    snapshot_seconds: float = SNAPSHOT_SECONDS
    flush_seconds: float = FLUSH_SECONDS
    alone: bool = False  # knows only what it has scored itself: in a store of many searches its memory stays its own
    here: str = ""  # the driver's directory of the study, where that lies elsewhere
    race: float | None = None  # candidates race, with this error rate
    lease: str = ""  # of a study that has one: the id of the process that works on it

    @property
    def directory(self) -> Path:
        """Where the driver has the study's files."""
        return Path(self.here or self.study)

    def check_held(self) -> None:
        """See that the study has not been taken over, before something is written.

        Raises:
            LeaseLost: it has.
        """
        check_held(self.study, self.lease)


@dataclass(frozen=True)
class Finalist:
    """One of the best candidates on train: its objective and its task metric there, on ``n`` examples.

    ``complete``: those were all examples. Only a search whose budget does not pay one candidate has others.
    """

    candidate: Candidate
    objective: float
    metric: float
    n: int
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "candidate": self.candidate.to_json()}

    @classmethod
    def from_json(cls, form: dict[str, Any]) -> Finalist:
        return cls(**{**form, "candidate": candidate_from_json(form["candidate"])})


class Finalists:
    """The ``size`` best candidates by objective, those evaluated in full before all others; of equals the earlier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.best: list[Finalist] = []

    def add(self, finalist: Finalist) -> None:
        if np.isnan(finalist.objective):
            return
        same = [f for f in self.best if f.candidate.key == finalist.candidate.key]
        if any(f.n >= finalist.n for f in same):
            return
        self.best = [f for f in self.best if f not in same] + [finalist]
        self.best.sort(key=lambda f: (not f.complete, -f.objective))  # stable
        del self.best[self.size :]


class SearchLoop:
    """Asks, scores and tells until the search ends; :meth:`step` is one generation.

    Args:
        searcher: in its first state.
        pool: what scores.
        plan: limits and places. Where its study has files of this search, the search goes on from them.
    """

    def __init__(self, searcher: PromptSearcher, pool: ScoringPool, plan: SearchPlan) -> None:
        problem = searcher.problem
        self.searcher = searcher
        self.plan = plan
        self.gold = problem.gold
        self.metric = OBJECTIVES[problem.task.metric]
        self.ledger = Ledger(plan.budget)
        self.finalists = Finalists(plan.finalists)
        self.best_score = self.best_objective = self.score = float("-inf")
        self.best_is_complete = False
        self.generation = 0
        self.stale = 0
        self.end: str | None = None
        self.replay_differs = 0
        self.trace = Trace()
        self.racer = None if plan.race is None else Racer(searcher, plan.race)
        self.seconds = {"ask": 0.0, "score": 0.0, "tell": 0.0}
        self.snapshot_at = time.perf_counter()
        self.before_cut: tuple[int, bytes] | None = None
        plan.check_held()
        store = ScoreStore(plan.store)
        store.before_write = plan.check_held
        self.snapshots = Snapshots(Folder.at(plan.study).child("snapshots"), plan.search)
        self.snapshots.folder.make()
        self._measure(pool)
        self.evaluator, spent, self.writer = evaluator_of(
            problem, pool, "train", self.ledger, store=store, search=plan.search, alone=plan.alone
        )
        self.writer.flush_seconds = plan.flush_seconds
        self._restore(self.snapshots.newest())
        self.ledger.lm_evaluations = max(self.ledger.lm_evaluations, spent.lm_evaluations)
        self.ledger.tokens = max(self.ledger.tokens, spent.tokens)
        self.ledger.written = max(self.ledger.written, spent.written)
        self.ledger.seconds = max(self.ledger.seconds, spent.seconds)
        before = dataclasses.replace(self.ledger)
        self._replay(store)
        self.taken_up = self._taken_up(before)
        self.resumed = self.generation > 0
        self.started, self.resumed_evaluations = time.perf_counter(), self.ledger.evaluations

    def _measure(self, pool: ScoringPool) -> None:
        """Let the searcher ask the LM what it must know; once, so that a search goes on with what it began with."""
        folder, name = self.snapshots.folder, f"{self.plan.search}.measured.json"
        if name in folder.names():
            with contextlib.suppress(ValueError):  # it is damaged: the LM says the same again
                measured = json.loads(open_json(folder.read(name)))
                self.searcher.recall(measured)
                return
        self.searcher.prepare(pool)
        if self.searcher.measured:
            folder.write(name, seal_json(json.dumps(self.searcher.measured)).encode())

    def step(self) -> None:
        """One generation; nothing if the search has ended, or to report where a resumed search stands."""
        self.end = self.end or self._end_before()
        resumed, self.resumed = self.resumed, False
        if self.end is None and not resumed:
            self._generation()
            self.writer.tick()

    def close(self) -> None:
        """Write what is not written yet, and a snapshot from which the search can go on.

        Raises:
            StoreError: that cannot be done.
        """
        self._snapshot()
        self.writer.close()
        self.plan.check_held()
        write_run(Folder.at(self.plan.study), self.plan.search, {**self.report(), **self._best_of_all()}, self.trace)

    def abandon(self) -> None:
        """Write the scores that are there; for a search that failed between ask and tell, whose state is lost.

        Its asks are left out: one of an earlier generation may be what could not be written.
        """
        self.writer.buffer.asks.clear()
        self.writer.flush()

    def report(self) -> dict[str, Any]:
        """Numbers for Tune: always the same names; ``timesteps_total`` = evaluations, ``end`` empty until it ends."""
        elapsed = time.perf_counter() - self.started
        best = self.finalists.best
        over = self.end is not None
        return {
            "score": self.score,
            "best_score": self.best_score,
            "best_objective": self.best_objective,
            "best_prompt": best[0].candidate.to_json().get("text", "") if best else "",
            "best_key": best[0].candidate.key if best else "",
            "training_iteration": self.generation,
            "timesteps_total": self.ledger.evaluations,
            "candidates": self.evaluator.candidates,
            "unanswered": self.evaluator.unanswered(),
            **{k: v for k, v in dataclasses.asdict(self.ledger).items() if k != "seconds"},
            "lm_seconds": self.ledger.seconds,
            "device_seconds": self.device_seconds,
            "own_seconds": self.own_seconds,
            "evaluations_per_second": (self.ledger.evaluations - self.resumed_evaluations) / max(elapsed, 1e-9),
            "loop_seconds": elapsed,
            **{f"{name}_seconds": value for name, value in self.seconds.items()},
            "replay_differs": self.replay_differs,
            "race_error": self.plan.race or 0.0,
            "race_dropped": 0 if self.racer is None else self.racer.dropped,
            "race_spared": 0 if self.racer is None else self.racer.spared,
            "end": self.end or "",
            "error": "",
            "objective": self.searcher.objective_name,
            "nominates_alone": self.searcher.nominates_alone,
            "searcher": self.searcher.metrics(),
            **(self._best_of_all() if over else {"finalists": [], "nominations": []}),
            "done": over,
        }

    @property
    def own_seconds(self) -> float:
        """The search's own time, whoever ran beside it: asking, telling, and a scorer's work on its pairs."""
        return self.device_seconds + self.seconds["ask"] + self.seconds["tell"]

    @property
    def device_seconds(self) -> float:
        """The time of one scorer, all of its lanes busy, that the pairs which were asked for took."""
        return self.ledger.asked_seconds / self.evaluator.pool.infos[0].lanes

    def _best_of_all(self) -> dict[str, Any]:
        """What the closing report begins with."""
        return {
            "finalists": [f.to_json() for f in self.finalists.best],
            "nominations": [c.to_json() for c in self.searcher.nominations()],
        }

    def _generation(self, recorded: Sequence[Candidate] | None = None) -> None:
        number = self.generation + 1
        count = max(self.searcher.generation, len(self.searcher._points))
        near = self.ledger.remaining < count * self.evaluator.size
        before = freeze(self._state()) if near else b""
        step = ask_score_tell(
            self.searcher,
            self.evaluator,
            recorded=recorded,
            record=None if recorded is not None else lambda candidates: self.writer.add_asks(number, candidates),
            heat=self._heat(number),
        )
        self.generation = number
        self.replay_differs += step.differs
        self._keep(step)
        if self.finalists.best:
            best = self.finalists.best[0].candidate.to_json()
            self.trace.add(self.ledger.evaluations, self.own_seconds, self.best_objective, self.best_score, best)
        self.stale = 0 if step.new_pairs else self.stale + 1
        if not step.scores.settled().all():
            # A search that gets a larger budget goes on from here, as if it had had it from the start.
            self.before_cut = (number - 1, before)
        if not step.candidates:
            self.end = "exhausted"
        self.end = self.end or self._end_before()
        if (
            time.perf_counter() - self.snapshot_at >= self.plan.snapshot_seconds
            and self.end is None
            and recorded is None
        ):
            self._snapshot()

    def _heat(self, number: int) -> Heat | None:
        """How a generation races: against the finalists, once there are as many as there may be."""
        if self.racer is None:
            return None
        best = [f.candidate for f in self.finalists.best if f.complete]
        return Heat(self.racer, best if len(best) == self.finalists.size else [], number)

    def _keep(self, step: Step) -> None:
        for name in self.seconds:
            self.seconds[name] += getattr(step, f"{name}_seconds")
        self.score = float("-inf")
        if not step.candidates:
            return
        scores, complete = step.scores, step.scores.complete()
        values = self.searcher.objective(scores)
        metrics = np.where(np.isnan(values), np.nan, self.metric(scores, self.gold))
        counts = scores.counts().tolist()
        rows = zip(step.candidates, values.tolist(), metrics.tolist(), counts, complete.tolist(), strict=True)
        dropped = scores.dropped
        for i, finalist in enumerate(Finalist(*row) for row in rows):
            if not dropped[i]:
                self._best(finalist)
                self.finalists.add(finalist)
        if dropped.any() and scores.estimate is not None:
            self.score = max(self.score, float(scores.estimate[dropped].max()))

    def _best(self, found: Finalist) -> None:
        """Best so far. A candidate evaluated in part counts only while there is none evaluated in full."""
        if np.isnan(found.objective) or (self.best_is_complete and not found.complete):
            return
        if found.complete and not self.best_is_complete:
            self.best_is_complete = True
            self.best_score = self.best_objective = self.score = float("-inf")
        self.score = max(self.score, found.objective)
        self.best_score = max(self.best_score, found.metric)
        self.best_objective = max(self.best_objective, found.objective)

    def _end_before(self) -> str | None:
        """Why there is no further generation, or None."""
        if self.ledger.remaining == 0:
            return "budget"
        reasons = self.searcher.stop()
        if reasons:
            return ", ".join(f"{k}={v}" for k, v in reasons.items())
        return "stalled" if self.stale >= STALLED_AFTER else None

    def _snapshot(self) -> None:
        """Write the state, once all that led to it is written."""
        self.plan.check_held()
        self.writer.flush()
        generation, payload = self.before_cut or (self.generation, freeze(self._state()))
        self.snapshots.write(generation, payload)
        self.snapshot_at = time.perf_counter()

    def _state(self) -> dict[str, Any]:
        return {
            "searcher": self.searcher._state(),
            "ledger": dataclasses.asdict(self.ledger),
            "asked": self.evaluator.table.asked_state(),
            "longest_prompt": self.evaluator.longest_prompt,
            "finalists": [f.to_json() for f in self.finalists.best],
            "best": (self.best_score, self.best_objective, self.best_is_complete),
            "generation": self.generation,
            "stale": self.stale,
            "seconds": dict(self.seconds),
            "replay_differs": self.replay_differs,
            "trace": self.trace.state(),
            "race": None if self.racer is None else (self.racer.dropped, self.racer.spared),
        }

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.searcher._set_state(state["searcher"])
        vars(self.ledger).update({**state["ledger"], "budget": self.plan.budget})
        self.evaluator.restore_asked(state["asked"])
        self.evaluator.longest_prompt = state["longest_prompt"]
        self.finalists.best = [Finalist.from_json(f) for f in state["finalists"]]
        self.best_score, self.best_objective, self.best_is_complete = state["best"]
        self.generation = state["generation"]
        self.stale = state["stale"]
        self.seconds = dict(state["seconds"])
        self.replay_differs = state["replay_differs"]
        self.trace = Trace.from_state(state.get("trace", Trace().state()))
        if self.racer is not None:
            self.racer.dropped, self.racer.spared = state["race"]

    def _taken_up(self, before: Ledger) -> dict[str, float]:
        """The counts of what was done before this process; ``before``: the ledger when the replay began.

        Of what it went through again, only what the LM had to run is new.
        """
        new = self.ledger.lm_evaluations - before.lm_evaluations
        return {
            "evaluations": max(before.evaluations, self.ledger.evaluations - new),
            "lm_evaluations": before.lm_evaluations,
            "cache_hits": self.ledger.cache_hits,
            "tokens": before.tokens,
            "lm_seconds": before.seconds,
            "candidates": self.evaluator.candidates - new // self.evaluator.size,
        }

    def _replay(self, store: ScoreStore) -> None:
        """Go through the recorded generations since the snapshot; scores come from the store."""
        for number, candidates in store.asks(self.plan.search, after=self.generation):
            self.end = self.end or self._end_before()
            if self.end is not None or number != self.generation + 1:
                return  # the record has a hole where a file was cut: what is behind it is asked for again
            self._generation(candidates)
