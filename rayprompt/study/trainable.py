"""``prompt_trainable``: what scores the batches of a ``PromptSearcher`` in anybody's ``ray.tune.Tuner``."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError, RayTaskError

from rayprompt.budget import Ledger
from rayprompt.candidate import candidates
from rayprompt.errors import InputError, RayPromptError, ScoringError
from rayprompt.objective import OBJECTIVES, get_objective
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.metrics import SearchMeter
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.step import score_generation
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.study.kept import shared_pool
from rayprompt.study.measure import evaluator_of, judging_of
from rayprompt.study.prepare import store_location

FLUSH_SECONDS = 1.0  # the most that a killed run loses of its store: Tune does not repeat trials that are done
NO_BUDGET = 2**62  # a Tuner counts trials
SLOTS = 2  # trials that run at a time: they only wait, and more of them stand in each other's way
MOST_DEATHS = 20  # of the desk, seen by one trial
PAUSE_SECONDS = 0.5


def prompt_trainable(
    problem: Problem,
    *,
    pool: ScoringPool | None = None,
    store: str | Path | None = None,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
) -> type[tune.Trainable]:
    """A trainable whose trial scores one batch of a :class:`PromptSearcher` on ``problem``'s train examples.

    A trial reports ``score`` (the searcher's objective of the batch's best candidate, always maximised),
    ``candidate_scores`` (of each), ``best_score`` and ``candidate_metrics`` (the task metric of that candidate, of
    each), ``best_prompt``, and as ``timesteps_total`` the evaluations so far. The LM is loaded here, before there are
    trials, and put away with the trainable or at the end of the process.

    Args:
        problem: task and LM.
        pool: scoring actors of your own (``ScoringPool.start``), which stay up; None starts some, or takes those of
            another trainable of this process with the same LM, whatever its options where you give none.
        store: a directory or URI that keeps every scored pair, and answers what it knows; None keeps them in memory.
        address, scorers, gpus_per_scorer: the Ray cluster and the scoring actors on it, as for ``search``.

    Raises:
        InputError: no cluster at the address, or it cannot hold the scorers.
        ScoringError: the LM did not load.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"prompt_trainable({problem!r}): give a Problem, as in prompt_trainable(Problem('reviews'))")
    give_back = None
    if pool is None:
        pool, give_back = shared_pool(problem.lm, address=address, scorers=scorers, gpus_per_scorer=gpus_per_scorer)
    where = None if store is None else store_location(store)
    if where is not None:
        ScoreStore(where).prepare()
    desk = Desk.open(problem, pool, where, f"tune_{uuid.uuid4().hex[:12]}", NO_BUDGET)
    trainable = desk.trainable()
    weakref.finalize(trainable, _put_away, desk, give_back)
    return trainable


class Desk:
    """The driver's end of a desk: an actor that scores the batches of all trials of one run."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self.actor = actor

    @classmethod
    def open(
        cls,
        problem: Problem,
        pool: ScoringPool,
        store: str | None,
        search: str,
        budget: int,
        names: Mapping[str, str] | None = None,
        before_write: Callable[[], None] | None = None,
    ) -> Desk:
        """Start the actor. ``search`` names it in the store; ``budget`` is a hard limit on evaluations.

        ``names``: what its metrics are called by: study, run and searcher. ``before_write`` may refuse to have
        anything written, with an error.
        """
        view = problem.for_search()
        pool.add(view.part("train"))
        name = f"desk-{uuid.uuid4().hex[:12]}"
        actor: Any = (
            ray.remote(DeskActor)
            .options(name=name, num_cpus=0, max_restarts=-1, max_concurrency=1000, scheduling_strategy="DEFAULT")
            .remote(cloudpickle.dumps((view, pool, store, safe_name(search), budget, dict(names or {}), before_write)))
        )
        _answer(actor.counts.remote())
        return cls(name, actor)

    def trainable(self, *, report_errors: bool = False) -> type[tune.Trainable]:
        """A trainable whose trials come to this desk, and raise, or report, what is wrong with a batch."""
        members = {"desk_name": self.name, "report_errors": report_errors, "__module__": __name__}
        return type("PromptTrial", (PromptTrial,), members)

    def report(self) -> dict[str, Any]:
        """Counts of the ledger, and candidates."""
        return dict(_answer(self.actor.counts.remote()))

    def close(self) -> None:
        """Write what is not written yet, and end the actor.

        Raises:
            StoreError: that cannot be done.
        """
        try:
            _answer(self.actor.close.remote())
        finally:
            ray.kill(self.actor)


class DeskActor:
    """One evaluator, ledger and writer for all trials of a run; requests that wait together are scored together."""

    def __init__(self, content: bytes) -> None:
        problem, pool, store, search, budget, names, before_write = pickle.loads(content)
        self.problem: Problem = problem
        self.ledger = Ledger(budget)
        self.metric = OBJECTIVES[problem.task.metric]
        if store is None:
            self.evaluator = Evaluator(
                pool,
                problem.part("train"),
                problem.gold,
                self.ledger,
                examples=problem.digests("train"),
                search=search,
                p0=problem.vectors,
                judging=judging_of(problem, "train"),
                skips=False,  # which batch comes first must not decide
            )
        else:
            kept = ScoreStore(store)
            kept.before_write = before_write or kept.before_write
            self.evaluator, spent, _ = evaluator_of(
                problem, pool, "train", self.ledger, store=kept, search=search, skips=False
            )
            for name, value in vars(spent).items():
                setattr(self.ledger, name, value)
        if self.evaluator.writer is not None:
            self.evaluator.writer.flush_seconds = FLUSH_SECONDS
        self.thread = ThreadPoolExecutor(1)
        if store is not None:
            self.thread.submit(self._take_up, ScoreStore(store), search).result()
        self.waiting: list[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = []
        self.at_work: asyncio.Task[None] | None = None
        self.best_score = self.best_objective = float("-inf")
        names = {"study": store or "", "run": search, "searcher": "", **names}
        self.meter = SearchMeter(**names, task=problem.task.name, model=problem.lm.name, counted=self._report())

    async def score(self, config: dict[str, Any]) -> dict[str, Any]:
        """The result of a trial with this config."""
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.waiting.append((config, done))
        if self.at_work is None:
            self.at_work = asyncio.create_task(self._work())
        return await done

    async def counts(self) -> dict[str, Any]:
        """The ledger, and the candidates."""
        return {**self._counts(), "unanswered": self.evaluator.unanswered()}

    async def flush(self) -> None:
        """Write what is not written yet."""
        await self._in_turn(self._write)

    async def close(self) -> None:
        """Write everything, and make few files of many."""
        self.meter.update(self._report(), now=True)
        if self.evaluator.writer is not None:
            await self._in_turn(self.evaluator.writer.close)

    def _counts(self) -> dict[str, Any]:
        return {**asdict(self.ledger), "candidates": self.evaluator.candidates}

    def _report(self) -> dict[str, Any]:
        best = {"best_score": self.best_score, "best_objective": self.best_objective}
        return {**self._counts(), **best, "lm_seconds": self.ledger.seconds}

    async def _in_turn(self, work: Callable[[], Any]) -> None:
        """Do some work in the one thread that scores and writes."""
        await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def _write(self) -> None:
        self.meter.update(self._report(), now=True)
        if self.evaluator.writer is not None and self.evaluator.writer.buffer.rows:
            self.evaluator.writer.flush()

    async def _work(self) -> None:
        try:
            while self.waiting:
                requests, self.waiting = self.waiting, []
                try:
                    await self._answer(requests)
                except Exception:  # whose fault is it?
                    for request in requests:
                        try:
                            await self._answer([request])
                        except Exception as error:
                            if not request[1].done():
                                request[1].set_exception(error)
        finally:
            self.at_work = None  # whatever happened, the next trial starts the work again

    async def _answer(self, requests: list[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]]) -> None:
        requests = [request for request in requests if not request[1].done()]  # a cancelled trial takes no answer
        if not requests:
            return
        configs = [config for config, _ in requests]
        results = await asyncio.get_running_loop().run_in_executor(self.thread, self._score, configs)
        for (_, done), result in zip(requests, results, strict=True):
            if not done.done():
                done.set_result(result)

    def _take_up(self, store: ScoreStore, search: str) -> None:
        """Go on where an actor that died, or a run that was interrupted, has stopped."""
        for _, asked in store.asks(search):
            score_generation(self.problem, self.evaluator, asked)

    def _score(self, configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        batches = [candidates(config) for config in configs]
        scores = score_generation(self.problem, self.evaluator, [candidate for batch in batches for candidate in batch])
        writer = self.evaluator.writer
        if writer is not None:
            for config, batch in zip(configs, batches, strict=True):
                writer.add_asks(config["batch"] + 1, batch)
            writer.tick()
        if len(batches) == 1:
            results = [self._result(scores, configs[0])]
        else:
            results = [self._result(self.evaluator.known(b), c) for b, c in zip(batches, configs, strict=True)]
        self.best_score = max(self.best_score, *(result["best_score"] for result in results))
        self.best_objective = max(self.best_objective, *(result["score"] for result in results))
        self.meter.update(self._report())
        return results

    def _result(self, scores: Scores, config: dict[str, Any]) -> dict[str, Any]:
        values = _of_complete(scores, get_objective(config["objective"])(scores, self.problem.gold))
        metrics = _of_complete(scores, self.metric(scores, self.problem.gold))
        best = int(np.nanargmax(values)) if not np.isnan(values).all() else 0
        return {
            "score": float(values[best]),
            "best_score": float(metrics[best]),
            "best_prompt": scores.candidates[best].to_json().get("text", ""),
            "candidate_scores": values.tolist(),
            "candidate_metrics": metrics.tolist(),
            "timesteps_total": self.ledger.evaluations,
            "evaluations": self.ledger.evaluations,
        }


class PromptTrial(tune.Trainable):
    """A batch of candidates: its one step has them scored. Made by :func:`prompt_trainable`."""

    desk_name = ""
    report_errors = False
    desk: Any = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Half of the driver's node, which is no CPU of it: the LM runs elsewhere.

        Two trials run at a time, on any cluster; those that Tune has staged beside them take over their processes.
        """
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 1 / SLOTS}])

    def step(self) -> dict[str, Any]:
        for _ in range(MOST_DEATHS):
            try:
                self.desk = self.desk or ray.get_actor(self.desk_name)
                return {**_answer(self.desk.score.remote(self.config)), "done": True}
            except RayActorError:  # Ray starts it again
                time.sleep(PAUSE_SECONDS)
            except RayPromptError as error:
                if not self.report_errors:
                    raise
                return {"score": float("nan"), "error": f"{type(error).__name__}: {error}", "done": True}
        raise ScoringError("the actor that scores the batches of this run is lost")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Trials follow each other in one process."""
        return True

    def cleanup(self) -> None:
        """The process ends, and perhaps the run: what is scored is written."""
        if self.desk is not None:
            with contextlib.suppress(Exception):  # the desk says it to the next trial, or at its end
                ray.get(self.desk.flush.remote())

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """There is nothing to save: a trial is scored as a whole."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """There is nothing to load."""


def _of_complete(scores: Scores, values: FloatArray) -> FloatArray:
    """(C,) values; NaN for what was not evaluated to the end, or got no answer at all."""
    return np.where(scores.complete() & scores.answered(), values, np.nan)


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, RayPromptError):
            kind: Sequence[type[Exception]] = [k for k in type(cause).__mro__ if k.__module__ == "rayprompt.errors"]
            raise kind[0](str(cause).strip().splitlines()[-1].partition(": ")[2]) from None
        raise


def _put_away(desk: Desk, give_back: Callable[[], None] | None) -> None:
    """End the actors of a trainable that nobody holds any more."""
    if ray.is_initialized():
        with contextlib.suppress(Exception):
            desk.close()
    if give_back is not None:
        give_back()
