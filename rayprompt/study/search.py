"""``search``: one Tune experiment, a trial per search; dev picks among the finalists, test is opened once."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from rayprompt import defaults
from rayprompt.budget import Ledger
from rayprompt.candidate import candidate_from_json
from rayprompt.errors import InputError, Interrupted, RayPromptError, ScoringError
from rayprompt.objective import get_objective
from rayprompt.scoring.pool import TRIAL_CPUS, ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.study.closing import close
from rayprompt.study.manifest import write_manifest
from rayprompt.study.progress import Listener, Progress, ProgressCallback, silent
from rayprompt.study.results import Result, export_prompt, write_json
from rayprompt.study.session import Cluster, session
from rayprompt.study.trial import SearchTrial
from rayprompt.task import Task


def search(
    task: str | Path | Task | Problem = defaults.TASK,
    *,
    model: str | Path | None = None,
    searcher: str | type[PromptSearcher] = defaults.SEARCHER,
    budget: int = defaults.BUDGET,
    seed: int = 0,
    split: str | None = None,
    objective: str | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    finalists: int = defaults.FINALISTS,
    allow_leaks: bool = False,
    address: str | None = None,
    scorers: int | None = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Result:
    """Search for the prompt with which a frozen LM solves a task best.

    Args:
        task: a built-in name, a folder with a task.yaml, a :class:`Task`, or a :class:`Problem` (task and model).
        model: a bundled name, a local folder, or a name on the Hugging Face hub; None is ``tiny-masked``.
        searcher: a registered searcher's name (``rayprompt list searchers``), or a class of your own.
        budget: the most (candidate, train example) pairs the search may ask for.
        seed: same seed, same device class, same settings: the same run, bit for bit, on any number of scorers.
        split: of the task; None is its first.
        objective: what the searcher maximises; None is its default.
        settings: the searcher's own settings.
        out: the study's directory; None makes one under ``rayprompt-studies/``.
        finalists: how many of the best on train are scored on dev.
        allow_leaks: accept a task whose train and test share texts.
        address, scorers, gpus_per_scorer: the Ray cluster and the scoring actors on it.
        listener: told of the progress.

    Raises:
        InputError: something given cannot be used; nothing has been started.
        ScoringError: the LM did not load or could not score.
        Interrupted: SIGINT during the search.
    """
    timings: dict[str, float] = {}
    started = time.perf_counter()
    problem = bind(task, model, split, allow_leaks=allow_leaks)
    agent = make_searcher(problem, searcher, budget, seed, objective, settings or {})
    if finalists < 1:
        raise InputError(f"finalists {finalists}: must be 1 or more")
    study = study_dir(out, f"{problem.task.name}-{agent.name}-s{seed}")
    check_room(problem)
    timings["prepare"] = time.perf_counter() - started
    listener(Progress("start", _summary(problem, agent, budget)))
    with session(problem.lm, Cluster(address, scorers, gpus_per_scorer), listener, timings) as pool:
        study.mkdir(parents=True, exist_ok=True)
        write_manifest(study, problem, agent, pool, budget=budget, finalists=finalists)
        begun = time.perf_counter()
        last = _run_trial(agent, pool, budget, finalists, study, listener)
        timings["search"] = time.perf_counter() - begun
        timings["trial_start"] = timings["search"] - last["loop_seconds"]
        for name in ("ask", "score", "tell"):
            timings[name] = last[f"{name}_seconds"]
        listener(Progress("report", "scoring the finalists on dev, then the winner and the baselines on test"))
        begun = time.perf_counter()
        closing_ledger = Ledger(budget=1)  # the report is counted apart and has no limit
        finals = [candidate_from_json(f["candidate"]) for f in last["finalists"]]
        closing = close(problem, pool, finals, last["finalists"], closing_ledger)
        timings["report"] = time.perf_counter() - begun
    ledger = last["ledger"]
    result = Result(
        **closing.fields(),
        evaluations=ledger["evaluations"],
        lm_evaluations=ledger["lm_evaluations"],
        cache_hits=ledger["cache_hits"],
        tokens=ledger["tokens"],
        shape_breaks=ledger["shape_breaks"] + closing_ledger.shape_breaks,
        seconds=time.perf_counter() - started,
        evaluations_per_second=ledger["evaluations"] / max(last["loop_seconds"], 1e-9),
        end=last["end"],
        study_dir=study,
        task=problem.task.name,
        split=problem.split,
        model=problem.lm.name,
        searcher=agent.name,
        seed=agent.seed,
        budget=budget,
        leaks={f"{a}/{b}": n for (a, b), n in problem.leaks.items()},
        timings=timings,
    )
    write_json(study / "result.json", result.to_json())
    estimates = {"train": result.train, "dev": result.dev, "test": result.test}
    write_json(study / "prompt.json", export_prompt(problem, result.best_prompt, estimates))
    return result


def _summary(problem: Problem, searcher: PromptSearcher, budget: int) -> str:
    parts = problem.task.parts(problem.split)
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in parts.items())
    return (
        f"task {problem.task.name} ({sizes}), model {problem.lm.name}, searcher {searcher.name}, "
        f"objective {searcher.objective_name}, budget {budget:,}, seed {searcher.seed}"
    )


def bind(
    task: str | Path | Task | Problem, model: str | Path | None, split: str | None, *, allow_leaks: bool
) -> Problem:
    """The problem that ``task``, ``model`` and ``split`` name; a ``Problem`` has its model and split already.

    Raises:
        InputError: a problem and a model or split beside it, or what :class:`Problem` refuses.
    """
    if not isinstance(task, Problem):
        return Problem(task, defaults.MODEL if model is None else model, split=split, allow_leaks=allow_leaks)
    if model is not None or split is not None:
        raise InputError(
            f"{task} has its model and split; give model={model!r}, split={split!r} to Problem(...) instead"
        )
    return task


def check_room(problem: Problem) -> None:
    """The manual prompt is scored after the search: that it fits must be known before.

    Raises:
        InputError: it does not fit the LM beside some text.
    """
    manual = problem.prompt(problem.task.manual_prompt or "")
    size = len(manual.token_ids or ())
    for name in problem.task.parts(problem.split):
        part = problem.part(name)
        part.lengths(np.full(len(part), size), np.arange(len(part)))


def make_searcher(
    problem: Problem,
    searcher: str | type[PromptSearcher],
    budget: int,
    seed: int,
    objective: str | None,
    settings: Mapping[str, Any],
) -> PromptSearcher:
    """The searcher of that name or class, blank, on what it may see of ``problem``: the train examples.

    Raises:
        InputError: unknown name, setting or objective, or a budget that pays for nothing.
    """
    cost = len(problem.task.examples("train", problem.split))
    if budget < cost:
        raise InputError(
            f"budget {budget}: must be {cost} or more evaluations; "
            f"one candidate costs {cost}, one for each train example of {problem.task.name}"
        )
    if objective is not None:
        get_objective(objective)
    cls = load_searcher(searcher) if isinstance(searcher, str) else searcher
    if cls.kind != "text":
        raise InputError(f"searcher {cls.name} makes {cls.kind} prompts, which this version cannot score")
    taken = {"objective", "seed", "budget", "metric", "mode"} & set(settings)
    if taken:
        raise InputError(f"--set {min(taken)}=...: not a setting of the searcher; use --{min(taken)}")
    return cls(problem.for_search(), objective=objective, seed=seed, budget=budget // cost, **settings)


def study_dir(out: str | Path | None, name: str) -> Path:
    """The directory of a new study; one that exists must be empty. It is not made yet.

    Raises:
        InputError: it exists and holds something, or cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    safe = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    path = Path(out) if out is not None else Path("rayprompt-studies") / f"{safe}-{stamp}"
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--out {path}: exists already and is not empty; give a new directory")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out {path}: cannot be made ({parent} is not a directory that can be written to)")
    return path.resolve()


def _run_trial(
    searcher: PromptSearcher, pool: ScoringPool, budget: int, finalists: int, study: Path, listener: Listener
) -> dict[str, Any]:
    """Run the search as a Tune trial and give its last report."""
    pool.add(searcher.problem.part("train"))
    trainable = tune.with_resources(
        tune.with_parameters(SearchTrial, searcher=searcher, pool=pool, budget=budget, finalists=finalists),
        tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS, **searcher.resources}]),
    )
    name = f"{searcher.name}-s{searcher.seed}"
    tuner = tune.Tuner(
        trainable,
        param_space={
            "searcher": searcher.name,
            "seed": searcher.seed,
            "task": searcher.problem.task.name,
            "model": searcher.problem.lm.name,
        },
        tune_config=tune.TuneConfig(
            metric="best_score",
            mode="max",
            trial_name_creator=lambda trial: name,
            trial_dirname_creator=lambda trial: name,
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(study.parent),
            verbose=0,
            callbacks=[ProgressCallback(listener, budget)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    with _quiet_tune():
        outcome = tuner.fit()[0]
    if outcome.error is not None:
        raise _trial_error(outcome.error)
    last: dict[str, Any] = outcome.metrics or {}
    if "end" not in last:
        done = f"{last.get('evaluations', 0)} of {budget} evaluations"
        best = (
            f"; best so far on train: {last['best_prompt']!r} ({last['best_score']:.3f})"
            if "best_prompt" in last
            else ""
        )
        raise Interrupted(f"interrupted after {done}{best}; dev and test were not opened; study in {study}")
    return last


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune's own tables and advice are not shown: the listener shows the progress, and the outcome is raised."""
    engine = os.environ.get("RAY_AIR_NEW_OUTPUT")
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output engine prints even when it is told to be silent
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if engine is None:
            del os.environ["RAY_AIR_NEW_OUTPUT"]
        else:
            os.environ["RAY_AIR_NEW_OUTPUT"] = engine


def _trial_error(error: Exception) -> RayPromptError:
    """What a trial died of, in one line."""
    cause = getattr(error, "cause", None) or error
    for kind in (InputError, ScoringError):
        found = re.search(rf"\b{kind.__name__}: (.*)", str(error))
        if isinstance(cause, kind) or found:
            return kind(found.group(1) if found else str(cause).splitlines()[0])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ScoringError(f"the search failed: {lines[-1] if lines else type(error).__name__}")
