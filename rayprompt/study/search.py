"""``search`` and ``resume``: one Tune experiment, a trial per search; dev picks the winner, test is opened once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rayprompt import defaults
from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt, Subspace, TextPrompt, candidate_from_json
from rayprompt.errors import InputError
from rayprompt.lm.endpoint import check_named, is_endpoint
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.vectors import write_vectors
from rayprompt.objective import Objective
from rayprompt.racing import ERROR, error_of, race_of
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.race import Racer
from rayprompt.searcher.soft import recall_start
from rayprompt.store.files import Folder
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import FLUSH_SECONDS
from rayprompt.study.closing import TOP, Closer, Closing, decode
from rayprompt.study.damage import is_whole, name_damage
from rayprompt.study.ending import write_page
from rayprompt.study.lock import study_lock
from rayprompt.study.loop import SNAPSHOT_SECONDS, SearchPlan
from rayprompt.study.machines import admit, classes_of
from rayprompt.study.manifest import (
    check_not_begun,
    check_same_search,
    check_unchanged,
    close_manifest,
    describe,
    describe_search,
    how_to_go_on,
    make_directory,
    read_manifest,
    recorded_searcher,
    write_manifest,
)
from rayprompt.study.measure import context_of
from rayprompt.study.native import run_native
from rayprompt.study.place import P0_FILE, has_begun, lease_of, location_of, opened, place_of
from rayprompt.study.prepare import (
    HERE,
    bind,
    check_native,
    check_room,
    fitting,
    make_searcher,
    planned,
    store_location,
    study_dir,
)
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.results import (
    PROMPT_FILE,
    RESULT_FILE,
    VECTORS_FILE,
    Result,
    export_prompt,
    read_result,
    write_json,
)
from rayprompt.study.session import Cluster, session
from rayprompt.study.snapshots import Snapshots
from rayprompt.study.trackers import NO_TRACKERS, Trackers
from rayprompt.study.tuning import run_trial
from rayprompt.study.warm import starting_points
from rayprompt.task import Example, Task
from rayprompt.written import CLOSED


@dataclass
class _Job:
    """A search that is ready to run. ``record`` is study.yaml as it was read, empty for a new study."""

    problem: Problem
    searcher: PromptSearcher
    study: Path
    budget: int
    finalists: int
    store: str
    cluster: Cluster
    listener: Listener
    id: str
    started: float
    allow_leaks: bool = False
    native: dict[str, Any] | None = None  # a Tune trial per batch: {"batch_size": ...}
    points: list[Candidate] = field(default_factory=list)  # that the search begins with
    race: float | None = None  # the error rate of the race, where candidates do race
    target: Problem | None = None  # where the LM that is searched on is a proxy: the problem on the LM that counts
    record: dict[str, Any] = field(default_factory=dict)
    trackers: Trackers = NO_TRACKERS

    @property
    def trial(self) -> str:
        """The name of the trial."""
        return f"{self.searcher.name}-s{self.searcher.seed}"

    @property
    def plan(self) -> SearchPlan:
        at = location_of(self.study)
        store = at if self.store == HERE else self.store
        search = safe_name(f"{self.id}_{self.trial}")
        times = (SNAPSHOT_SECONDS, FLUSH_SECONDS)
        return SearchPlan(
            search, self.budget, self.finalists, at, store, *times, race=self.race, here=str(self.study),
            lease=lease_of(self.study),
        )  # fmt: skip


def search(
    task: str | Path | Mapping[str, Any] | Task | Problem = defaults.TASK,
    *,
    model: str | Path | None = None,
    searcher: str | type[PromptSearcher] = defaults.SEARCHER,
    budget: int = defaults.BUDGET,
    seed: int = 0,
    split: str | None = None,
    data: str | Path | None = None,
    objective: str | Objective | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    finalists: int = defaults.FINALISTS,
    allow_leaks: bool = False,
    tune_native: bool = False,
    batch_size: int | None = None,
    race: bool = False,
    race_error: float = ERROR,
    proxy_model: str | Path | None = None,
    warm_start: str | Path | None = None,
    lm: Mapping[str, Any] | None = None,
    extractor: str | None = None,
    answer_scorer: str | None = None,
    wandb: str | None = None,
    mlflow: str | None = None,
    start_or_resume: bool = False,
    other_machine: bool = False,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Result:
    """Search for the prompt with which a frozen LM solves a task best.

    Args:
        task: a built-in name, a folder with a task.yaml, a :class:`Task`, or a :class:`Problem` (task and model). A
            mapping changes a built-in task or is a whole one, see :func:`rayprompt.load_task`.
        model: a bundled name, a local folder, or a name on the Hugging Face hub; None is ``tiny-masked``.
        searcher: a registered searcher's name (``rayprompt list searchers``), or a class of your own.
        budget: the most (candidate, train example) pairs the search may ask for.
        seed: same seed, same device class, same settings: the same run, bit for bit, on any number of scorers.
        split: of the task; None is its first.
        data: where a public task's examples are: a folder; None is RAYPROMPT_DATA, else the Hugging Face hub.
        objective: what the searcher maximises: a name, ``module:function``, or such a function; None is its default.
        settings: the searcher's own settings.
        out: the study's directory, or URI, as ``s3://bucket/folder``; None makes one under ``rayprompt-studies/``.
        store: a directory (or URI) where scores are kept and looked up, shared with other studies; None is the
            study's own.
        finalists: how many of the best on train are scored on dev.
        allow_leaks: accept a task whose train and test share texts.
        tune_native: make each batch of candidates a Tune trial, instead of the whole search one: slower, the same
            candidates, the same result. Candidates are scored whole.
        batch_size: candidates of such a trial; None is the searcher's generation.
        race: score candidates on blocks of examples, and stop with those that cannot be a finalist any more.
        race_error: the probability at which a candidate as good as the last finalist may be lost by that.
        proxy_model: search on this LM instead; what was found there is decoded to text, and dev and test are scored
            on ``model``. The budget counts evaluations of the proxy.
        warm_start: a finished study's directory, whose finalists are scored first, or a store, whose best are.
        lm: how the LM is run, as ``{"dtype": "bf16", "cache": "2GB"}``: see ``rayprompt.lm.settings.LMSettings``.
        extractor, answer_scorer: of a generation task, what finds the answer in a completion and what compares it with
            the gold one, where that is not as the task has it: see :class:`rayprompt.answers.Judge`.
        wandb: a project of Weights & Biases that gets the search as a run; the key is in WANDB_API_KEY.
        mlflow: an experiment of MLflow that does, a tracking URI or folder, or ``URI#EXPERIMENT``.
        start_or_resume: where a study has begun in ``out``, go on with it: what a job that may be killed and submitted
            again runs. It must be the same search; its budget may be larger.
        other_machine: with it, a study may go on with scorers of another machine class, see :func:`resume`.
        address, scorers, gpus_per_scorer: the Ray cluster and the scoring actors on it.
        listener: told of the progress.

    Raises:
        InputError: something given cannot be used; nothing has been started.
        ScoringError: the LM did not load or could not score.
        StoreError: the study's files cannot be written.
        Interrupted: SIGINT. What was scored is kept, and :func:`resume` goes on.
    """
    started = time.perf_counter()
    problem = bind(
        task, model, split, data, allow_leaks=allow_leaks, lm=lm, extractor=extractor, answer_scorer=answer_scorer
    )
    if batch_size is not None and not tune_native:
        raise InputError(f"--batch-size {batch_size}: is for --tune-native; a search in one trial has no batches")
    target = None
    if proxy_model is not None:
        here, there = problem.lm.settings, is_endpoint(str(proxy_model))
        if there != (problem.lm.endpoint is not None):  # they have little in common
            here = here.fit_for(endpoint=there).without({"chat"})
        target, problem = problem, _on_proxy(problem, proxy_model, allow_leaks, here)
    parts = (problem, searcher, planned(problem, budget), seed, objective, settings or {}, batch_size)
    agent = make_searcher(*parts)
    points = [] if warm_start is None else starting_points(agent, warm_start)
    if points:
        agent = make_searcher(*parts, points)
    Ledger(budget)  # refuses what is no budget
    if agent.conditioned and (tune_native or proxy_model is not None):
        given = "--tune-native" if tune_native else f"--proxy-model {proxy_model}"
        raise InputError(
            f"{given}: prompts for single inputs are searched for in one trial, on the LM that they are for"
        )
    if tune_native:
        check_native(problem, budget)
    if finalists < 1:
        raise InputError(f"finalists {finalists}: must be 1 or more")
    error = error_of(race, race_error)
    if error is not None:
        if tune_native:
            raise InputError("--race with --tune-native: there candidates are scored whole; leave one of them out")
        Racer(agent, error)  # refuses what cannot race
    if start_or_resume and out is None:
        raise InputError("--start-or-resume: needs --out, where the study is to be looked for")
    if other_machine and not start_or_resume:
        raise InputError("--other-machine: is for a study that goes on (--resume, --start-or-resume)")
    begun = start_or_resume and out is not None and has_begun(out)
    study = opened(out) if begun and out is not None else study_dir(out, f"{problem.task.name}-{agent.name}-s{seed}")
    check_room(problem, agent.outline)
    if target is not None:
        check_room(target)
    trackers = Trackers(wandb, mlflow)
    trackers.check()
    job = _Job(
        problem, agent, study, budget, finalists, store_location(store),
        Cluster(address, scorers, gpus_per_scorer, other_machine=other_machine),
        listener, f"{safe_name(study.name)[:80]}-{secrets.token_hex(3)}", started, allow_leaks,
        {"batch_size": batch_size} if tune_native else None, points, error, target, trackers=trackers,
    )  # fmt: skip
    return _taken_up(job) if begun else _run(job)


def resume(
    study: str | Path,
    *,
    budget: int | None = None,
    task: Task | None = None,
    searcher: type[PromptSearcher] | None = None,
    other_machine: bool = False,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Result:
    """Go on with a study that was interrupted or has died, or give a finished one a larger budget.

    Nothing that was scored is scored again, and the result is the one that the undisturbed search would have had.

    Args:
        study: its directory. Snapshots in it are pickles: resume only what you trust.
        budget: a larger budget; None is the study's own. A finished study whose budget stays gives its result.
        task: for a study of a task made of Python objects, that task.
        searcher: for a study of a searcher that cannot be imported by name, its class.
        other_machine: go on where the scorers' machine class (``device_class`` in study.yaml) is another one than the
            study's. Its scores stay as they are, new ones have other last bits; study.yaml and the result name both.
        address, scorers, gpus_per_scorer, listener: as for :func:`search`.

    Raises:
        InputError: not a study, or what it was begun with has changed since.
        ScoringError, StoreError, Interrupted: as for :func:`search`.
    """
    started = time.perf_counter()
    path = opened(study)
    finished = _finished(path, read_manifest(path), budget)
    if finished is not None:
        return finished
    cluster = Cluster(address, scorers, gpus_per_scorer, other_machine=other_machine)
    with study_lock(path, listener):  # what is read, decided and written from here on is ours
        record = read_manifest(path)
        finished = _finished(path, record, budget, listener)
        if finished is not None:
            return finished
        return _run(_recorded_job(path, record, budget, task, searcher, cluster, listener, started))


def _recorded_job(
    path: Path,
    record: dict[str, Any],
    budget: int | None,
    task: Task | None,
    searcher: type[PromptSearcher] | None,
    cluster: Cluster,
    listener: Listener,
    started: float,
) -> _Job:
    """The search that a study.yaml describes, with a larger budget where one is given."""
    spent = int(record["budget"])
    names = [(record[part] or {}).get("location") for part in ("model", "target")]
    check_named(names, f"{location_of(path)}/study.yaml")
    problem = _recorded_problem(record, path, task)
    agent = make_searcher(
        problem,
        searcher or recorded_searcher(str(record["searcher"]["class"]), path),
        record["searcher"]["planned_candidates"],
        record["searcher"]["seed"],
        record["searcher"]["objective"],
        record["searcher"]["settings"],
        (record["tune_native"] or {}).get("batch_size"),
        points := [candidate_from_json(form) for form in record["points"]],
    )
    if planned(problem, budget or spent) > record["searcher"]["planned_candidates"]:
        agent.extend(planned(problem, budget or spent))  # it was given more, now or before it was interrupted
    target = None
    if record["target"]:
        given = LMSettings.of(record["target"].get("settings"))  # not the passes that suit the LM searched on
        target = _on_proxy(problem, record["target"]["location"], record["allow_leaks"], given)
        target.lm = replace(target.lm, name=record["target"]["name"])
    check_room(problem, agent.outline)
    trackers = Trackers.of(record.get("trackers") or {})
    trackers.check()
    return _Job(
        problem, agent, path, budget or spent, record["finalists"], record["store"], cluster, listener, record["id"],
        started, record["allow_leaks"], record["tune_native"], points, record.get("race"), target, record, trackers,
    )  # fmt: skip


def _taken_up(job: _Job) -> Result:
    """Go on with the study in the job's directory, which must be of the same search.

    Raises:
        InputError: it is of another one, or had a larger budget.
    """
    record = read_manifest(job.study)
    _check_same(job, record)
    finished = _finished(job.study, record, job.budget)
    if finished is not None:
        return finished
    with study_lock(job.study, job.listener):
        record = read_manifest(job.study)  # another process may have gone on with it in the meantime
        _check_same(job, record)
        finished = _finished(job.study, record, job.budget, job.listener)
        if finished is not None:
            return finished
        agent, planned_then = job.searcher, record["searcher"]["planned_candidates"]
        points = [candidate_from_json(form) for form in record["points"]]
        batch = (job.native or {}).get("batch_size")
        again = make_searcher(
            job.problem, type(agent), planned_then, agent.seed, agent.objective_name, agent._settings_dict(), batch,
            points,
        )  # fmt: skip
        if planned(job.problem, job.budget) > planned_then:
            again.extend(planned(job.problem, job.budget))
        return _run(replace(job, searcher=again, id=record["id"], points=points, record=record, store=record["store"]))


def _check_same(job: _Job, record: dict[str, Any]) -> None:
    """See that a study.yaml is of the search that is given.

    Raises:
        InputError: it is of another one.
    """
    job.problem.lm = job.problem.lm.as_recorded(record["model"]["digest"])
    if job.target is not None and record["target"]:
        job.target.lm = job.target.lm.as_recorded(record["target"].get("digest"))
    for name, before, now in (
        ("--finalists", record["finalists"], job.finalists),
        ("--tune-native", record["tune_native"], job.native),
        ("--race", record.get("race"), job.race),
        ("--proxy-model", (record["target"] or {}).get("digest"), job.target and job.target.lm.digest),
    ):
        if before != now:
            raise InputError(f"{name}: the study in {location_of(job.study)} began with {before}; {now} is another one")
    tokens = record.get("pool", {}).get("tokens")
    job.problem.lm = replace(job.problem.lm, settings=job.problem.lm.settings.with_tokens(tokens))
    check_same_search(record, {**describe_search(job.problem, job.searcher), "target": _target(job)}, job.study)
    if job.store not in (HERE, record["store"]):
        raise InputError(f"--store {job.store}: the study in {location_of(job.study)} began with {record['store']}")


def _finished(study: Path, record: Mapping[str, Any], budget: int | None, listener: Listener = silent) -> Result | None:
    """The result of a study that has come to its end, all of it; None where something is left to do.

    Args:
        study, record: the study, and its study.yaml.
        budget: that it is given; None is its own.
        listener: told of files that are damaged, and are written again.

    Raises:
        InputError: it had a larger budget.
    """
    spent = int(record["budget"])
    budget = spent if budget is None else budget
    if budget < spent:
        raise InputError(
            f"--budget {budget}: the study in {location_of(study)} has {spent}; a resumed study's budget can only grow"
        )
    if not (study / RESULT_FILE).is_file() or not is_whole(study, record, budget, listener):
        return None
    # A study that was given more and has not come to its end still has the result of the smaller budget.
    finished = read_result(study / RESULT_FILE)
    return finished if finished.budget == budget else None


def _run(job: _Job) -> Result:
    """Start what is needed, search, close, and write the result; tells how to go on if that fails on the way."""
    timings: dict[str, float] = {"prepare": time.perf_counter() - job.started}
    new = not job.record
    store = ScoreStore(job.plan.store)
    if not new or job.store != HERE:
        store.prepare()
    job.listener(Progress("start", _summary(job)))
    with how_to_go_on(job.study), ExitStack() as until_written:
        # In its own trial the searcher's work may want a share of a GPU; on the driver it takes what is there.
        wanted = {} if job.native is not None else job.searcher.resources(job.searcher._settings_dict())
        cluster = replace(job.cluster, spare_gpu=wanted.get("GPU", 0.0))
        with session(job.problem.lm, cluster, job.listener, timings) as pool:
            if new:
                make_directory(job.study)
                until_written.enter_context(study_lock(job.study, job.listener))
                check_not_begun(job.study)
            job.searcher.prepare(pool)
            store.before_write = job.plan.check_held
            content = _begin(job, pool, store)
            begun = time.perf_counter()
            run = run_trial if job.native is None else run_native
            last = run(job.searcher, pool, job.plan, job.trial, job.listener, job.trackers)
            timings["search"] = time.perf_counter() - begun
            timings["trial_start"] = timings["search"] - last["loop_seconds"]
            for name in ("ask", "score", "tell"):
                timings[name] = last[f"{name}_seconds"]
            if job.target is None:
                closing, report = _close(job, job.problem, pool, store, last, content, timings)
            else:
                texts = _decoded(job, pool, last)
        if job.target is not None:
            last = {**last, "finalists": [], "nominations": [text.to_json() for text in texts]}
            with session(job.target.lm, job.cluster, job.listener) as pool:
                closing, report = _close(job, job.target, pool, store, last, content, timings)
        result = _result(job, last, closing, report, content, timings)
        _write_end(job, result, content)
    return result


def _write_end(job: _Job, result: Result, content: dict[str, Any]) -> None:
    """Write what a study ends with. Each step can be done again: study.yaml says last that all of them are done."""
    estimates = {"train": result.train, "dev": result.dev, "test": result.test}
    write_json(job.study / PROMPT_FILE, export_prompt(job.target or job.problem, result.best_prompt, estimates))
    write_json(job.study / RESULT_FILE, result.to_json())
    write_page(job.study, [problem.task for problem in (job.target, job.problem) if problem], job.listener)
    found = {"dev": result.dev.value, "test": result.test.value}
    text = result.best_prompt.text if isinstance(result.best_prompt, TextPrompt) else result.best_prompt.key
    job.trackers.finish(job.plan.search, result.evaluations, found, text, job.listener)
    close_manifest(job.study, content, job.budget, (PROMPT_FILE, RESULT_FILE, VECTORS_FILE))


def _begin(job: _Job, pool: ScoringPool, store: ScoreStore) -> dict[str, Any]:
    """Write study.yaml of a new study, check that of an old one, and name the files that cannot be read."""
    now = describe(job.problem, job.searcher, pool)
    content: dict[str, Any] = {
        "id": job.id,
        "budget": job.budget,
        "finalists": job.finalists,
        "store": job.store,
        "allow_leaks": job.allow_leaks,
        "tune_native": job.native,
        "points": [point.to_json() for point in job.points],
        "race": job.race,
        "target": _target(job),
        "trackers": job.trackers.to_json(),
        "test_opened": [],
        CLOSED: None,
        **now,
    }
    if job.record:
        remarks = check_unchanged(job.record, now, job.study)
        where, was = f"the study in {location_of(job.study)}", classes_of(job.record["pool"])
        differs = admit(pool, was, where, allowed=job.cluster.other_machine)
        now["pool"]["earlier_classes"] = list(pool.earlier)
        for remark in [*remarks, *([differs] if differs else [])]:
            job.listener(Progress("start", f"note: {remark}"))
        content = {CLOSED: None, **job.record, "budget": job.budget, "pool": now["pool"]}
        for part in ("task", "model"):  # they may lie elsewhere by now
            content[part] = {**job.record[part], "location": now[part]["location"]}
        if job.target is not None and job.target.lm.digest != job.record["target"]["digest"]:
            raise InputError(f"{job.study}: model {job.target.lm.name} is another one than when the study began")
    for line in pool.notes({"train": job.problem.part("train")}):
        job.listener(Progress("start", f"note: {line}"))
    _keep_start(job)
    write_manifest(job.study, content)
    store.prepare()
    context = None if job.store == HERE else context_of(job.problem, pool).key
    name_damage(store, job.plan, job.listener, job.id, context)
    return content


def _close(
    job: _Job,
    problem: Problem,
    pool: ScoringPool,
    store: ScoreStore,
    last: dict[str, Any],
    content: dict[str, Any],
    timings: dict[str, float],
) -> tuple[Closing, Ledger]:
    """Dev, then test; and what that cost."""
    job.listener(Progress("report", "scoring the finalists on dev, then the winner and the baselines on test"))
    begun = time.perf_counter()
    report = Ledger(budget=1)  # the report is counted apart and has no limit
    finals = [candidate_from_json(f["candidate"]) for f in last["finalists"]]
    closer = Closer(problem, pool, report, store=store, search=safe_name(f"{job.id}_report"))
    choice = closer.choose(
        finals,
        last["finalists"],
        nominations=_nominations(job, problem, last),
        objective=job.searcher.objective_name,
        tops=TOP if job.searcher.nominates_alone else 1,
        alone=job.searcher.nominates_alone,
    )
    if job.budget not in content["test_opened"]:
        content["test_opened"].append(job.budget)
    content[CLOSED] = None  # from here on its files are written anew
    write_manifest(job.study, content)
    closing = closer.measure(choice)
    best = closing.best_prompt
    if isinstance(best, SoftPrompt) and pool.replays is None:  # vectors are made by the LM
        space = best.subspace
        zeros = {i: np.zeros((space.length, space.width_of(i)), dtype=np.float32) for i in (0, *space.layers)}
        layers = {**zeros, **pool.vectors(best, problem.vectors)}
        embedded, p0 = layers.pop(0), problem.vectors.get(space.p0)
        write_vectors(job.study / VECTORS_FILE, embedded, space.tokens, p0, layers)
    timings["report"] = time.perf_counter() - begun
    return closing, report


def _result(
    job: _Job,
    last: dict[str, Any],
    closing: Closing,
    report: Ledger,
    content: Mapping[str, Any],
    timings: dict[str, float],
) -> Result:
    """The study's result, from the trial's last report and the closing report."""
    problem = job.target or job.problem
    costs = (
        job.problem.lm.settings.cost(last["tokens"], last["written"]),
        problem.lm.settings.cost(report.tokens, report.written),
    )
    same = ("evaluations", "lm_evaluations", "cache_hits", "tokens", "written", "lm_seconds", "replay_differs", "end")
    found = closing.fields()
    if last.get("unanswered"):
        found["unanswered"] = {"train": last["unanswered"], **closing.unanswered}
    return Result(
        **found,
        **{name: last[name] for name in same},
        evaluations_per_second=last["evaluations_per_second"],
        report_lm_evaluations=report.lm_evaluations,
        shape_breaks=last["shape_breaks"] + report.shape_breaks,
        cut=last.get("cut", 0) + report.cut,
        test_opened=len(content["test_opened"]),
        seconds=time.perf_counter() - job.started,
        study_dir=place_of(job.study),
        store=job.plan.store,
        task=problem.task.name,
        split=problem.split,
        model=problem.lm.name,
        searcher=job.searcher.name,
        seed=job.searcher.seed,
        budget=job.budget,
        leaks={f"{a}/{b}": n for (a, b), n in problem.leaks.items()},
        timings=timings,
        proxy_model=None if job.target is None else job.problem.lm.name,
        searcher_metrics=last["searcher"],
        race=None if job.race is None else race_of(job.race, last),
        machines=tuple(classes_of(content["pool"])),
        same_bits=content["pool"]["same_bits"],
        cost=None if costs == (None, None) else sum(cost or 0.0 for cost in costs),
    )


def _nominations(job: _Job, problem: Problem, last: dict[str, Any]) -> list[Candidate]:
    """What the searcher wants to have scored on dev. Prompts for single inputs are written for those of every part."""
    if not job.searcher.conditioned:
        return [candidate_from_json(form) for form in last["nominations"]]
    state = Snapshots(Folder.at(job.plan.study).child("snapshots"), job.plan.search).newest()
    assert state is not None  # a search that has ended has left one
    examples = [e for rows in problem.task.parts(problem.split).values() for e in rows]
    job.listener(Progress("report", f"writing prompts for {len(examples)} inputs"))
    share = job.searcher.resources(job.searcher._settings_dict()).get("GPU", 0.0)
    if not share or not ray.cluster_resources().get("GPU"):
        return [_write_for(job.searcher, state["searcher"], examples)]
    # What was trained on a GPU goes on there: the share that the trial had is free again.
    written: Any = ray.remote(_write_for).options(num_cpus=0, num_gpus=share)
    return [ray.get(written.remote(job.searcher, state["searcher"], examples))]


def _write_for(searcher: PromptSearcher, state: dict[str, Any], examples: list[Example]) -> Candidate:
    searcher._set_state(state)
    return searcher.write_for(examples)


def _decoded(job: _Job, pool: ScoringPool, last: dict[str, Any]) -> list[TextPrompt]:
    """The best prompts on the proxy as texts of the LM that counts, each once, best first."""
    assert job.target is not None
    job.listener(Progress("report", f"decoding the best prompts on {job.problem.lm.name} to text"))
    best = [candidate_from_json(f["candidate"]) for f in last["finalists"]]
    best += [candidate_from_json(form) for form in last["nominations"]]
    texts = [text for prompt in best for text in decode(job.problem, pool, prompt)]
    return list(dict.fromkeys(fitting(job.target, text.text) for text in texts))


def _target(job: _Job) -> dict[str, Any] | None:
    """The LM that counts, where another one is searched on, as it stands in study.yaml."""
    lm = None if job.target is None else job.target.lm
    if lm is None:
        return None
    return {"name": lm.name, "location": lm.location, "digest": lm.digest, "settings": lm.settings.to_json()}


def _on_proxy(problem: Problem, model: str | Path, allow_leaks: bool, settings: LMSettings) -> Problem:
    """The same task and split on another LM."""
    return Problem(problem.task, model, split=problem.split, allow_leaks=allow_leaks, lm=settings)


def _keep_start(job: _Job) -> None:
    """A copy of the vectors that soft prompts begin with: a resume must not depend on a file that may be gone."""
    space = job.searcher.subspace
    if space is not None and space.p0 in job.problem.vectors and not (job.study / P0_FILE).is_file():
        write_vectors(job.study / P0_FILE, job.problem.vectors[space.p0], space.tokens)


def _recorded_problem(record: Mapping[str, Any], study: Path, task: Task | None) -> Problem:
    """The task and LM that a study was begun with."""
    was = record["task"]
    if task is None and not was["location"]:
        raise InputError(
            f"{location_of(study)}: its task {was['name']!r} is made of Python objects; give it: resume(..., task=...)"
        )
    data = was.get("data") if task is None else None
    settings = LMSettings.of(record["model"].get("settings")).with_tokens(record.get("pool", {}).get("tokens"))
    leaks, judge = record["allow_leaks"], was.get("judge") or {}
    problem = bind(
        task or was["location"],
        record["model"]["location"],
        was["split"],
        data,
        allow_leaks=leaks,
        lm=settings,
        extractor=judge.get("extractor"),
        answer_scorer=judge.get("scorer"),
    )
    problem.lm = replace(problem.lm, name=record["model"]["name"])
    form = record["searcher"]["subspace"]
    if form:
        settings, space = record["searcher"]["settings"], Subspace.from_json(form)
        recall_start(problem, settings["p0"], settings["length"], settings["placement"], space, study / P0_FILE)
    return problem


def _summary(job: _Job) -> str:
    problem, searcher, budget = job.problem, job.searcher, job.budget
    parts = problem.task.parts(problem.split)
    race = "" if job.race is None else f", racing (error {job.race:g})"
    sizes = ", ".join(f"{len(rows)} {part}" for part, rows in parts.items())
    return (
        f"task {problem.task.name} ({sizes}), model {problem.lm.name}, searcher {searcher.name}, "
        f"objective {searcher.objective_name}, budget {budget:,}, seed {searcher.seed}{race}"
    )
