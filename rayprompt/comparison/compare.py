"""``compare``: searchers at equal budgets on the same tasks, splits, LMs and seeds; one experiment, one verdict."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from rayprompt import defaults
from rayprompt.budget import Ledger
from rayprompt.comparison.closing import BASELINES, close_all, finish_runs, write_final_curves
from rayprompt.comparison.job import (
    Job,
    TaskLike,
    begin,
    check,
    of_one_service,
    problems_of,
    searches_of,
    summary,
    taken_up,
)
from rayprompt.comparison.outcome import (
    COMPARISON_SCHEMA,
    RESULT_FILE,
    STOPPED,
    BaselineOutcome,
    Comparison,
    RunOutcome,
    read_comparison,
)
from rayprompt.comparison.plan import SAMPLES, Entry, Settings, Stratum, entries_of, parse_seeds, runs_of
from rayprompt.comparison.schedulers import scheduler_of
from rayprompt.comparison.tables import Prices, parse_target, tables_of
from rayprompt.comparison.trials import run_searches
from rayprompt.errors import InputError, Interrupted
from rayprompt.lm.endpoint import check_named
from rayprompt.lm.settings import LMSettings
from rayprompt.objective import Objective, objective_name
from rayprompt.racing import ERROR, error_of, race_line
from rayprompt.scoring.cluster import TRIAL_CPUS, plan_scorers
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers, shared_name
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.study.damage import is_whole
from rayprompt.study.ending import write_page
from rayprompt.study.lock import study_lock
from rayprompt.study.machines import admit, classes_of
from rayprompt.study.manifest import (
    check_not_begun,
    close_manifest,
    how_to_go_on,
    make_directory,
    read_manifest,
    recorded_searcher,
    write_manifest,
)
from rayprompt.study.place import has_begun, location_of, opened, place_of
from rayprompt.study.prepare import HERE, store_location, study_dir
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.results import write_json
from rayprompt.study.session import Cluster, connected, loaded
from rayprompt.study.trackers import Trackers
from rayprompt.task import Task
from rayprompt.unanswered import shown

SEEDS = 5


def compare(
    tasks: TaskLike | Sequence[TaskLike] = defaults.TASK,
    searchers: Sequence[str | type[PromptSearcher]] | Mapping[str, str | type[PromptSearcher]] = (
        "random",
        "nevergrad",
    ),
    *,
    models: str | Path | Sequence[str | Path] = defaults.MODEL,
    splits: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = SEEDS,
    budget: int = defaults.BUDGET,
    settings: Mapping[str, Settings] | None = None,
    samples: int = SAMPLES,
    objective: str | Objective | None = None,
    baselines: Sequence[str] = BASELINES,
    scheduler: str | Mapping[str, Any] | None = None,
    target: str | float | None = None,
    price_per_hour: float | None = None,
    price_per_million_tokens: float | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    finalists: int = defaults.FINALISTS,
    allow_leaks: bool = False,
    max_concurrent: int | None = None,
    race: bool = False,
    race_error: float = ERROR,
    lm: Mapping[str, Any] | None = None,
    wandb: str | None = None,
    mlflow: str | None = None,
    start_or_resume: bool = False,
    other_machine: bool = False,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Comparison:
    """Run every searcher on every task, split and LM with every seed, each with the same budget, and compare them.

    Args:
        tasks: one or several, as :func:`rayprompt.search` takes them.
        searchers: registered names, ``LABEL=NAME`` for one under another name, or classes; or label -> either.
        models: one LM or several. Each has a scoring pool that all its runs share; pools that do not fit on the
            cluster together come in turn.
        splits: of the tasks: a list, ``"all"``, or None for the first of each.
        seeds: so many, from 0 on; or a list.
        budget: of each run: the most (candidate, train example) pairs it may ask for.
        settings: label -> settings of that searcher; under ``*`` those of all that have them. Ranges, as
            ``tune.uniform(1, 20)`` or ``{"uniform": [1, 20]}``, are drawn by Tune; the configuration with the best
            mean on dev stands for the searcher.
        samples: configurations that are drawn of a searcher with random ranges.
        objective: what all maximise; None is each searcher's own.
        baselines: of ``in-context`` (examples in front of the input) and ``gradient`` (soft prompts tuned with the
            LM's gradients, a white-box ceiling); the empty and the manual prompt are always measured.
        scheduler: ``asha``, ``median``, or ``{"name": ..., ...}`` with its own options: stops weak runs by
            ``best_score``, each judged against those on the same task, split and LM.
        target: ``0.95`` (of ``best_score``) or ``"best_objective=-0.3"``: how soon do runs reach it? None is what the
            first searcher reaches in the end, in half of its runs.
        price_per_hour, price_per_million_tokens: of a scorer's device, or of the LM's input.
        max_concurrent: runs side by side; None is as many as the cluster has room for.
        race, race_error: as for :func:`rayprompt.search`; searchers that need full rows do not race.
        lm: how the LMs are run, all of them, as for :func:`rayprompt.search`.
        data, out, store, finalists, allow_leaks, wandb, mlflow, start_or_resume, other_machine, address, scorers,
            gpus_per_scorer, listener: as for :func:`rayprompt.search`; the store is shared by all runs, and changes
            nothing in any.

    Raises:
        InputError: something given cannot be used; nothing has been started.
        ScoringError: an LM did not load.
        StoreError: the study's files cannot be written.
        Interrupted: SIGINT. What was scored is kept, and :func:`resume_comparison` goes on.
    """
    started = time.perf_counter()
    listed: list[Any] = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
    names: list[Any] = list(models) if isinstance(models, (list, tuple)) else [models]
    seeds = parse_seeds(seeds)
    entries = entries_of(searchers, settings or {}, samples=samples, seed=seeds[0])
    options = {
        "budget": budget,
        "finalists": finalists,
        "objective": None if objective is None else objective_name(objective),
        "baselines": list(baselines),
        "scheduler": dict(scheduler) if isinstance(scheduler, Mapping) else scheduler,
        "target": target,
        "price_per_hour": price_per_hour,
        "price_per_million_tokens": price_per_million_tokens,
        "allow_leaks": allow_leaks,
        "max_concurrent": max_concurrent,
        "race": error_of(race, race_error),
        "trackers": Trackers(wandb, mlflow).to_json(),
    }
    problems = problems_of(listed, names, splits, data, allow_leaks=allow_leaks, lm=LMSettings.of(lm))
    if start_or_resume and out is None:
        raise InputError("--start-or-resume: needs --out, where the comparison is to be looked for")
    if other_machine and not start_or_resume:
        raise InputError("--other-machine: is for a study that goes on (--resume, --start-or-resume)")
    begun = start_or_resume and out is not None and has_begun(out)
    name = f"compare-{'-'.join(dict.fromkeys(stratum[0] for stratum in problems))}"
    study = opened(out) if begun and out is not None else study_dir(out, name)
    job = Job(
        problems, entries, runs_of(entries, list(problems), seeds), seeds, study,
        f"{safe_name(study.name)[:80]}-{secrets.token_hex(3)}", store_location(store), options,
        Cluster(address, scorers, gpus_per_scorer, other_machine=other_machine), listener, started,
    )  # fmt: skip
    check(job)
    if not begun:
        return _run(job)
    record = read_manifest(study, COMPARISON_SCHEMA)
    taken_up(job, record)  # refuses another comparison
    finished = _finished(study, record)
    if finished is not None:
        return finished
    with study_lock(study, listener):
        record = read_manifest(study, COMPARISON_SCHEMA)  # another process may have gone on with it in the meantime
        job = taken_up(job, record)
        return _finished(study, record, listener) or _run(job)


def _finished(study: Path, record: Mapping[str, Any], listener: Listener = silent) -> Comparison | None:
    """The outcome of a comparison that has come to its end, all of it, with no run that failed."""
    if not (study / RESULT_FILE).is_file() or not is_whole(study, record, int(record["budget"]), listener):
        return None
    finished = read_comparison(study)
    return None if finished.failed else replace(finished, study_dir=place_of(study))


def resume_comparison(
    study: str | Path,
    *,
    tasks: Sequence[Task] = (),
    searchers: Mapping[str, type[PromptSearcher]] | None = None,
    other_machine: bool = False,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Comparison:
    """Go on with a comparison that was interrupted or has died: runs that have ended stand, the others go on.

    Runs that failed are tried again. One that has come to its end gives its outcome.

    Args:
        study: its directory. Snapshots in it are pickles: resume only what you trust.
        tasks: those that were made of Python objects.
        searchers: label -> class, of those that cannot be imported by name.
        other_machine: as for :func:`rayprompt.resume`.
        address, scorers, gpus_per_scorer, listener: as for :func:`compare`.

    Raises:
        InputError: not a comparison, or what it was begun with has changed since.
        ScoringError, StoreError, Interrupted: as for :func:`compare`.
    """
    started = time.perf_counter()
    path = opened(study)
    finished = _finished(path, read_manifest(path, COMPARISON_SCHEMA))
    if finished is not None:
        return finished
    cluster = Cluster(address, scorers, gpus_per_scorer, other_machine=other_machine)
    with study_lock(path, listener):  # what is read, decided and written from here on is ours
        record = read_manifest(path, COMPARISON_SCHEMA)
        finished = _finished(path, record, listener)
        if finished is not None:
            return finished
        job = _recorded_job(path, record, tasks, searchers, cluster, listener, started)
        check(job)
        return _run(job)


def _recorded_job(
    path: Path,
    record: dict[str, Any],
    tasks: Sequence[Task],
    searchers: Mapping[str, type[PromptSearcher]] | None,
    cluster: Cluster,
    listener: Listener,
    started: float,
) -> Job:
    """The comparison that a study.yaml describes."""
    given = {task.name: task for task in tasks}
    problems: dict[Stratum, Problem] = {}
    settings = {
        model["location"]: LMSettings.of(model.get("settings")).with_tokens(
            record["pools"].get(model["name"], {}).get("tokens")
        )
        for model in record["models"]
    }
    for was in record["tasks"]:
        if was["location"] is None and was["name"] not in given:
            raise InputError(f"{path}: its task {was['name']!r} is made of Python objects; give it: tasks=[...]")
        source = given.get(was["name"], was["location"])
        data = was["data"] if was["name"] not in given else None
        models = {model["location"]: model["name"] for model in record["models"]}
        leaks, splits_of = record["allow_leaks"], list(was["splits"])
        check_named(models, f"{path}/study.yaml")
        problems |= problems_of([source], list(models), splits_of, data, allow_leaks=leaks, names=models, lm=settings)
    problems = of_one_service({stratum: problems[stratum] for stratum in _as_recorded(record)})
    digests = {model["name"]: model["digest"] for model in record["models"]}
    splits = {(was["name"], split): digest for was in record["tasks"] for split, digest in was["splits"].items()}
    for (task, split, model), problem in problems.items():
        if problem.task.digest != splits[task, split]:
            raise InputError(f"{path}: task {task}, split {split} is another one than when the comparison began")
        problem.lm = problem.lm.as_recorded(digests[model])
        if problem.lm.digest != digests[model]:
            raise InputError(f"{path}: model {model} is another one than when the comparison began")
    entries = []
    for was in record["entries"]:
        cls = (searchers or {}).get(was["group"]) or recorded_searcher(was["class"], path)
        entries.append(Entry(was["label"], was["group"], cls, was["settings"]))
    return Job(
        problems, entries, runs_of(entries, list(problems), record["seeds"]), record["seeds"], path, record["id"],
        record["store"], {name: record[name] for name in record["options"]}, cluster, listener, started, record,
    )  # fmt: skip


def _as_recorded(record: Mapping[str, Any]) -> list[Stratum]:
    """The strata in the order in which the comparison began."""
    pairs = [(was["name"], split) for was in record["tasks"] for split in was["splits"]]
    return [(task, split, model["name"]) for model in record["models"] for task, split in pairs]


def _run(job: Job) -> Comparison:
    """Start what is needed, run all searches, close them, and write the verdict."""
    store = ScoreStore(job.store_at)
    if job.record or job.store != HERE:
        store.prepare()
    job.listener(Progress("start", summary(job)))
    outcomes: list[RunOutcome] = []
    baselines: list[BaselineOutcome] = []
    failed: dict[str, str] = {}
    loads: dict[str, Any] = {}
    report = Ledger(budget=1)
    with how_to_go_on(job.study, "compare"), ExitStack() as until_written, connected(job.cluster, job.listener):
        groups = _together(job)
        if not job.record:
            make_directory(job.study)
            until_written.enter_context(study_lock(job.study, job.listener))
            check_not_begun(job.study)
        store.before_write = job.plan(job.runs[0]).check_held
        content = begin(job, store)
        job.over_before = sum(job.ended(run) is not None for run in job.runs)
        for models in groups:
            with _pools(job, models) as pools:
                for name, pool in pools.items():
                    loads[name] = _same_device(job, content, name, pool)
                failed |= _search(job, pools)
                for name, pool in pools.items():
                    closed = close_all(job, name, pool, store, report, content)
                    outcomes += closed.runs
                    baselines += closed.baselines
                    failed |= closed.failed
        result = _verdict(job, outcomes, baselines, failed, loads, report)
        write_final_curves(job.study, outcomes)
        write_json(job.study / RESULT_FILE, result.to_json())
        write_page(job.study, [problem.task for problem in job.problems.values()], job.listener)
        finish_runs(job, outcomes)
        close_manifest(job.study, content, job.budget, (RESULT_FILE,), COMPARISON_SCHEMA)
    return result


def _together(job: Job) -> list[list[str]]:
    """LMs whose pools stand side by side: all of them where the cluster has room, else one at a time."""
    if shared_name(job.cluster.scorers) is not None:
        return [job.models]
    resources = ray.cluster_resources()
    plan = plan_scorers(resources, job.cluster.scorers, job.cluster.gpus_per_scorer, job.cluster.spare_gpu)
    number = len(job.models)
    cpus = number * plan.count * plan.cpus + TRIAL_CPUS
    gpus = number * plan.count * plan.gpus + (job.cluster.spare_gpu if plan.gpus else 0.0)
    if cpus <= resources.get("CPU", 1.0) and gpus <= resources.get("GPU", 0.0):
        return [job.models]
    return [[model] for model in job.models]


@contextmanager
def _pools(job: Job, models: Sequence[str]) -> Iterator[dict[str, ScoringPool]]:
    """A pool for each of the LMs."""
    sources = {stratum[2]: problem.lm for stratum, problem in job.problems.items()}
    with ExitStack() as stack:
        yield {name: stack.enter_context(loaded(sources[name], job.cluster, job.listener)) for name in models}


def _same_device(job: Job, content: dict[str, Any], model: str, pool: ScoringPool) -> dict[str, Any]:
    """Take down what a pool is; a resumed comparison goes on with the same dtype and batch shapes.

    Raises:
        InputError: they are others; or it is of another machine class, and that is not allowed.
    """
    now = {**pool.content(), "tokens": pool.tokens}
    was = content["pools"].get(model, now)
    if any(was.get(name) != value for name, value in now.items() if name != "device_class"):
        raise InputError(f"{job.study}: the scorers of {model} were {was} when the comparison began, {now} now")
    where = f"the comparison in {location_of(job.study)}, model {model},"
    differs = admit(pool, classes_of(was), where, allowed=job.cluster.other_machine)
    content["pools"][model] = {**now, "earlier_classes": list(pool.earlier), "same_bits": pool.same_bits}
    job.remarks += [differs] if differs else []
    for (task, split, name), problem in job.problems.items():
        lines = pool.notes({"train": problem.part("train")}) if name == model else []
        job.remarks += [f"task {task}, split {split}: {line}" for line in lines]
    write_manifest(job.study, content, COMPARISON_SCHEMA)
    return {"scorers": len(pool.infos), **content["pools"][model]}


def _search(job: Job, pools: Mapping[str, ScoringPool]) -> dict[str, str]:
    """Run the searches on these pools that have not ended yet; gives what failed.

    Raises:
        Interrupted: SIGINT came first; the searches' files are written.
    """
    runs = [run for run in job.runs if run.stratum[2] in pools]
    waiting = [run for run in runs if job.ended(run) is None]
    if not waiting:
        return {}
    for run in waiting:
        job.forget_stop(run)
    by_name = {run.name: run for run in runs}
    searches = searches_of(job, pools)
    failed = run_searches(
        searches, waiting, job.study, job.listener,
        scheduler=scheduler_of(job.options["scheduler"], job.budget),
        total=len(job.runs), ended=job.over_before,
        stopped=lambda name, evaluations: job.mark_stopped(by_name[name], evaluations),
        most_at_a_time=job.options["max_concurrent"],
        trackers=job.trackers,
    )  # fmt: skip
    for run in waiting:
        if job.was_stopped(run) and job.ended(run) is None:
            searches.loop(run.name).close()  # its process was gone before it had written its files
    left = [run.name for run in waiting if run.name not in failed and job.ended(run) is None]
    if left:
        raise Interrupted(
            f"interrupted: {len(job.runs) - len(left)} of {len(job.runs)} runs have ended; dev and test of "
            f"{', '.join(pools)} were not opened"
        )
    return failed


def _verdict(
    job: Job,
    outcomes: Sequence[RunOutcome],
    baselines: Sequence[BaselineOutcome],
    failed: Mapping[str, str],
    loads: Mapping[str, Any],
    report: Ledger,
) -> Comparison:
    """The tables, and what a reader must know of them."""
    prices = Prices(job.options["price_per_hour"], job.options["price_per_million_tokens"])
    target = parse_target(job.options["target"])
    tables: tuple[dict[str, Any], ...] = ()
    if outcomes:
        tables = tables_of(
            outcomes,
            baselines,
            budget=job.budget,
            reference=job.entries[0].group,
            target=target,
            prices=prices,
            failed=[run for run in job.runs if run.name in failed],
        )
    return Comparison(
        runs=tuple(outcomes),
        baselines=tuple(baselines),
        tables=tables,
        budget=job.budget,
        seeds=tuple(job.seeds),
        study_dir=place_of(job.study),
        store=job.store_at,
        seconds=time.perf_counter() - job.started,
        report_evaluations=report.report_evaluations,
        failed=dict(failed),
        remarks=tuple(_remarks(job, outcomes, tables)),
        pools=dict(loads),
    )


def _remarks(job: Job, outcomes: Sequence[RunOutcome], tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know: unequal budgets, selection, too few runs, leaks."""
    remarks = list(job.remarks)
    stopped = sum(run.end == STOPPED for run in outcomes)
    if stopped:
        remarks.append(
            f"{stopped} runs were stopped early by the scheduler: their budgets are not equal to the others'"
        )
    sizes = {stratum: len(set(problem.digests("train"))) for stratum, problem in job.problems.items()}
    early: dict[str, list[int]] = {}
    for run in outcomes:
        if run.end not in (STOPPED, "budget") and run.evaluations < job.budget - sizes[run.stratum]:
            early.setdefault(f"{run.searcher} ended of itself ({run.end})", []).append(run.evaluations)
    for what, spent in early.items():
        remarks.append(f"{what} in {len(spent)} runs, after {min(spent):,} evaluations at the least")
    for label in dict.fromkeys(run.searcher for run in outcomes if run.race is not None):
        races = [run.race for run in outcomes if run.searcher == label and run.race is not None]
        remarks.append(f"{label} raced: {race_line(races)}")
    for group in dict.fromkeys(entry.group for entry in job.entries):
        number = sum(entry.group == group for entry in job.entries)
        if number > 1:
            remarks.append(
                f"{group} is the best on dev of {number} configurations, which had {number} times the budget of a "
                "searcher with fixed settings; in the tests it has the advantage of that choice"
            )
    for run in outcomes:
        if line := shown(run.unanswered):
            remarks.append(f"{run.name}: {line}")
    for table in tables:
        remarks += [table["tests"]["test"]["remark"]] if table["tests"] and table["tests"]["test"]["remark"] else []
        if table["task"] is not None and table["objective"] is None:
            remarks.append(f"{table['task']}: the searchers maximise different objectives, which are not compared")
        if table["task"] is None and len(set(table["splits_of_pairs"])) > 1:
            remarks.append("all pairs of task and model: the means weigh pairs equally, the tests every split")
    for (task, split, _), problem in job.problems.items():
        for (first, second), count in problem.leaks.items():
            remarks.append(f"warning: task {task}, split {split}: {count} texts stand in both {first} and {second}")
    return list(dict.fromkeys(remarks))
