"""``compare``: searchers at equal budgets on the same tasks, splits, LMs and seeds; one experiment, one verdict."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from rayprompt import defaults
from rayprompt.budget import Ledger
from rayprompt.comparison.closing import BASELINES, check_baselines, close_all
from rayprompt.comparison.outcome import COMPARISON_SCHEMA, RESULT_FILE, STOPPED, Comparison, read_comparison
from rayprompt.comparison.plan import SAMPLES, Entry, Run, Settings, Stratum, entries_of, parse_seeds, runs_of
from rayprompt.comparison.schedulers import scheduler_of
from rayprompt.comparison.tables import Prices, parse_target, tables_of
from rayprompt.comparison.trials import Searches, run_searches
from rayprompt.errors import InputError, Interrupted
from rayprompt.scoring.pool import TRIAL_CPUS, ScoringPool, plan_scorers
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import FLUSH_SECONDS
from rayprompt.study.lock import study_lock
from rayprompt.study.loop import SNAPSHOT_SECONDS, SearchPlan
from rayprompt.study.manifest import (
    class_path,
    how_to_go_on,
    make_directory,
    read_manifest,
    recorded_searcher,
    task_location,
    versions,
    write_manifest,
)
from rayprompt.study.prepare import HERE, check_room, store_location, study_dir
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.results import write_json
from rayprompt.study.session import Cluster, connected, loaded
from rayprompt.study.trace import FOLDER, Trace, read_run
from rayprompt.task import Task, load_task

SEEDS = 5
TaskLike = str | Path | Mapping[str, Any] | Task


@dataclass
class Job:
    """A comparison that is ready to run; ``record`` is its study.yaml as it was read, empty for a new one."""

    problems: dict[Stratum, Problem]
    entries: list[Entry]
    runs: list[Run]
    seeds: list[int]
    study: Path
    id: str
    store: str
    options: dict[str, Any]  # budget, finalists, objective...: as they stand in study.yaml
    cluster: Cluster
    listener: Listener
    started: float
    record: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # that came up on the way

    @property
    def models(self) -> list[str]:
        """The LMs' names, in their order."""
        return list(dict.fromkeys(stratum[2] for stratum in self.problems))

    @property
    def budget(self) -> int:
        """Evaluations of each run."""
        return int(self.options["budget"])

    @property
    def store_at(self) -> str:
        """Where the scores are."""
        return str(self.study) if self.store == HERE else self.store

    def plan(self, run: Run) -> SearchPlan:
        """What the search of a run is told."""
        search = safe_name(f"{self.id}_{run.name}")
        finalists, study = self.options["finalists"], str(self.study)
        return SearchPlan(search, self.budget, finalists, study, self.store_at, SNAPSHOT_SECONDS, FLUSH_SECONDS)

    def ended(self, run: Run) -> tuple[dict[str, Any], Trace] | None:
        """The last report of a run and its curve; None where it has not come to an end."""
        search = self.plan(run).search
        found = read_run(self.study, search)
        if found is None:
            return None
        if self.stop_mark(run).is_file():
            return {**found[0], "end": STOPPED}, found[1]
        return found if found[0]["end"] else None

    def stop_mark(self, run: Run) -> Path:
        """The file that says that the Tune scheduler stopped a run."""
        return self.study / FOLDER / f"{self.plan(run).search}.stopped"


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
    objective: str | None = None,
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
    address: str | None = None,
    scorers: int | None = None,
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
        data, out, store, finalists, allow_leaks, address, scorers, gpus_per_scorer, listener: as for
            :func:`rayprompt.search`; the store is shared by all runs, and changes nothing in any.

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
        "objective": objective,
        "baselines": list(baselines),
        "scheduler": dict(scheduler) if isinstance(scheduler, Mapping) else scheduler,
        "target": target,
        "price_per_hour": price_per_hour,
        "price_per_million_tokens": price_per_million_tokens,
        "allow_leaks": allow_leaks,
        "max_concurrent": max_concurrent,
    }
    problems = _problems(listed, names, splits, data, allow_leaks=allow_leaks)
    study = study_dir(out, f"compare-{'-'.join(dict.fromkeys(stratum[0] for stratum in problems))}")
    job = Job(
        problems, entries, runs_of(entries, list(problems), seeds), seeds, study,
        f"{safe_name(study.name)[:80]}-{secrets.token_hex(3)}", store_location(store), options,
        Cluster(address, scorers, gpus_per_scorer), listener, started,
    )  # fmt: skip
    _check(job)
    return _run(job)


def resume_comparison(
    study: str | Path,
    *,
    tasks: Sequence[Task] = (),
    searchers: Mapping[str, type[PromptSearcher]] | None = None,
    address: str | None = None,
    scorers: int | None = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Comparison:
    """Go on with a comparison that was interrupted or has died: runs that have ended stand, the others go on.

    Args:
        study: its directory. Snapshots in it are pickles: resume only what you trust.
        tasks: those that were made of Python objects.
        searchers: label -> class, of those that cannot be imported by name.
        address, scorers, gpus_per_scorer, listener: as for :func:`compare`.

    Raises:
        InputError: not a comparison, or what it was begun with has changed since.
        ScoringError, StoreError, Interrupted: as for :func:`compare`.
    """
    started = time.perf_counter()
    path = Path(study).expanduser().resolve()
    record = read_manifest(path, COMPARISON_SCHEMA)
    if (path / RESULT_FILE).is_file():
        return read_comparison(path)
    given = {task.name: task for task in tasks}
    problems: dict[Stratum, Problem] = {}
    for was in record["tasks"]:
        if was["location"] is None and was["name"] not in given:
            raise InputError(f"{path}: its task {was['name']!r} is made of Python objects; give it: tasks=[...]")
        source = given.get(was["name"], was["location"])
        data = was["data"] if was["name"] not in given else None
        models = [model["location"] for model in record["models"]]
        problems |= _problems([source], models, was["splits"], data, allow_leaks=record["allow_leaks"])
    for problem, (task, _, model) in zip(problems.values(), problems, strict=True):
        for kind, name, digest in (("task", task, problem.task.digest), ("model", model, problem.lm.digest)):
            if digest not in [was["digest"] for was in record[f"{kind}s"] if was["name"] == name]:
                raise InputError(f"{path}: {kind} {name} is another one than when the comparison began")
    entries = []
    for was in record["entries"]:
        cls = (searchers or {}).get(was["group"]) or recorded_searcher(was["class"], path)
        entries.append(Entry(was["label"], was["group"], cls, was["settings"]))
    job = Job(
        problems, entries, runs_of(entries, list(problems), record["seeds"]), record["seeds"], path, record["id"],
        record["store"], {name: record[name] for name in record["options"]},
        Cluster(address, scorers, gpus_per_scorer), listener, started, record,
    )  # fmt: skip
    _check(job)
    return _run(job)


def _problems(
    tasks: Sequence[TaskLike],
    models: Sequence[str | Path],
    splits: str | Sequence[str] | None,
    data: str | Path | None,
    *,
    allow_leaks: bool,
) -> dict[Stratum, Problem]:
    """(task, split, model) -> problem, models outermost: runs on one LM stand together."""
    if not tasks or not models:
        raise InputError("compare needs a task and a model at least")
    found: dict[Stratum, Problem] = {}
    wanted = [splits] if isinstance(splits, str) else list(splits or [])
    read: list[tuple[Task, str]] = []
    for given in tasks:
        task = load_task(given, data=data, split=wanted[0] if len(wanted) == 1 and wanted != ["all"] else None)
        names = list(task.splits) if wanted == ["all"] else wanted or [task.default_split]
        # A split that is not in the task's list may be one that has to be drawn.
        read += [(task if n in task.splits else load_task(given, data=data, split=n), n) for n in names]
    for model in models:
        for task, split in read:
            problem = Problem(task, model, split=split, allow_leaks=allow_leaks)
            stratum = (problem.task.name, problem.split, problem.lm.name)
            if stratum in found:
                raise InputError(f"task {stratum[0]}, split {stratum[1]}, model {stratum[2]}: given twice")
            found[stratum] = problem
    return found


def _check(job: Job) -> None:
    """All that can be wrong with what was given is said before anything is started.

    Raises:
        InputError: an option is not one, a searcher does not take its settings, or a prompt leaves no room for texts.
    """
    options = job.options
    Ledger(job.budget)  # refuses what is no budget
    if options["finalists"] < 1:
        raise InputError(f"finalists {options['finalists']}: must be 1 or more")
    if options["max_concurrent"] is not None and options["max_concurrent"] < 1:
        raise InputError(f"--max-concurrent {options['max_concurrent']}: must be 1 or more runs")
    for name in ("price_per_hour", "price_per_million_tokens"):
        if options[name] is not None and not options[name] >= 0:
            raise InputError(f"--{name.replace('_', '-')} {options[name]}: must be 0 or more")
    check_baselines(options["baselines"])
    scheduler_of(options["scheduler"], job.budget)
    parse_target(options["target"])
    searches = _searches(job, {})
    for run in job.runs:
        check_room(job.problems[run.stratum], searches.searcher(run.name).subspace)


def _searches(job: Job, pools: Mapping[str, ScoringPool]) -> Searches:
    """What the trials on these pools need."""
    runs = {run.name: run for run in job.runs if run.stratum[2] in pools or not pools}
    views = {stratum: job.problems[stratum].for_search() for stratum in {run.stratum for run in runs.values()}}
    plans = {name: job.plan(run) for name, run in runs.items()}
    return Searches(views, dict(pools), plans, runs, job.options["objective"])


def _run(job: Job) -> Comparison:
    """Start what is needed, run all searches, close them, and write the verdict."""
    store = ScoreStore(job.store_at)
    if job.record or job.store != HERE:
        store.prepare()
    job.listener(Progress("start", _summary(job)))
    outcomes: list[Any] = []
    baselines: list[Any] = []
    failed: dict[str, str] = {}
    loads: dict[str, Any] = {}
    report = Ledger(budget=1)
    with how_to_go_on(job.study, "compare"), ExitStack() as until_written, connected(job.cluster, job.listener):
        make_directory(job.study)
        until_written.enter_context(study_lock(job.study))
        content = _begin(job, store)
        for models in _together(job):
            with _pools(job, models) as pools:
                for name, pool in pools.items():
                    loads[name] = _same_device(job, content, name, pool)
                failed |= _search(job, pools)
                for name, pool in pools.items():
                    closed = close_all(job, name, pool, store, report, content)
                    outcomes += closed[0]
                    baselines += closed[1]
        result = _verdict(job, outcomes, baselines, failed, loads, report)
        write_json(job.study / RESULT_FILE, result.to_json())
    return result


def _begin(job: Job, store: ScoreStore) -> dict[str, Any]:
    """Write study.yaml, and see that the store can be written."""
    tasks: dict[str, dict[str, Any]] = {}
    models: dict[str, dict[str, Any]] = {}
    for (task, split, model), problem in job.problems.items():
        about: dict[str, Any] = {
            "name": task,
            "location": task_location(problem.task),
            "data": problem.task.data or None,
            "digest": problem.task.digest,
            "splits": [],
        }
        known = tasks.setdefault(task, about)["splits"]
        known += [split] if split not in known else []
        models[model] = {"name": model, "location": problem.lm.location, "digest": problem.lm.digest}
    content: dict[str, Any] = {
        "id": job.id,
        "store": job.store,
        "seeds": job.seeds,
        "options": sorted(job.options),
        **job.options,
        "tasks": list(tasks.values()),
        "models": list(models.values()),
        "entries": [
            {"label": e.label, "group": e.group, "class": class_path(e.cls), "settings": dict(e.settings)}
            for e in job.entries
        ],
        "pools": {},
        "test_opened": [],
        "versions": versions(),
    }
    if job.record:
        content = job.record
        now = versions()
        for name, was in content["versions"].items():
            if now.get(name) != was and name != "rayprompt":
                message = (
                    f"note: {name} was {was} when the comparison began and is {now.get(name)} now: last bits may differ"
                )
                job.listener(Progress("start", message))
    write_manifest(job.study, content, COMPARISON_SCHEMA)
    store.prepare()
    return content


def _together(job: Job) -> list[list[str]]:
    """LMs whose pools stand side by side: all of them where the cluster has room, else one at a time."""
    resources = ray.cluster_resources()
    plan = plan_scorers(resources, job.cluster.scorers, job.cluster.gpus_per_scorer)
    number = len(job.models)
    cpus = number * plan.count * plan.cpus + TRIAL_CPUS
    gpus = number * plan.count * plan.gpus
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
    """Take down what a pool is; a resumed comparison goes on with the same device class and batch shapes.

    Raises:
        InputError: they are others.
    """
    was = content["pools"].setdefault(model, pool.content)
    if was != pool.content:
        raise InputError(
            f"{job.study}: the scorers of {model} were {was} when the comparison began, {pool.content} now"
        )
    write_manifest(job.study, content, COMPARISON_SCHEMA)
    return {"scorers": len(pool.infos), **pool.content}


def _search(job: Job, pools: Mapping[str, ScoringPool]) -> dict[str, str]:
    """Run the searches on these pools that have not ended yet; gives what failed.

    Raises:
        Interrupted: SIGINT came first; the searches' files are written.
    """
    runs = [run for run in job.runs if run.stratum[2] in pools]
    waiting = [run for run in runs if job.ended(run) is None]
    if not waiting:
        return {}
    by_name = {run.name: run for run in runs}
    searches = _searches(job, pools)
    failed = run_searches(
        searches, waiting, job.study, job.listener,
        scheduler=scheduler_of(job.options["scheduler"], job.budget),
        stopped=lambda name: _mark(job.stop_mark(by_name[name])),
        most_at_a_time=job.options["max_concurrent"],
    )  # fmt: skip
    for run in waiting:
        if job.stop_mark(run).is_file() and job.ended(run) is None:
            searches.loop(run.name).close()  # its process was gone before it had written its files
    left = [run.name for run in waiting if run.name not in failed and job.ended(run) is None]
    if left:
        raise Interrupted(
            f"interrupted: {len(job.runs) - len(left)} of {len(job.runs)} runs have ended; dev and test of "
            f"{', '.join(pools)} were not opened"
        )
    return failed


def _mark(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def _verdict(
    job: Job,
    outcomes: Sequence[Any],
    baselines: Sequence[Any],
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
            outcomes, baselines, budget=job.budget, reference=job.entries[0].group, target=target, prices=prices
        )
    remarks = list(dict.fromkeys(job.remarks))
    stopped = sum(run.end == STOPPED for run in outcomes)
    if stopped:
        remarks.append(
            f"{stopped} runs were stopped early by the scheduler: their budgets are not equal to the others'"
        )
    for table in tables:
        remark = table["tests"]["test"]["remark"]
        if remark and remark not in remarks:
            remarks.append(remark)
        if table["task"] is not None and table["objective"] is None:
            remarks.append(f"{table['task']}: the searchers maximise different objectives, which are not compared")
    for (task, split, _), problem in job.problems.items():
        for (first, second), count in problem.leaks.items():
            line = f"warning: task {task}, split {split}: {count} texts stand in both {first} and {second}"
            remarks += [line] if line not in remarks else []
    return Comparison(
        runs=tuple(outcomes),
        baselines=tuple(baselines),
        tables=tables,
        budget=job.budget,
        seeds=tuple(job.seeds),
        study_dir=job.study,
        store=job.store_at,
        seconds=time.perf_counter() - job.started,
        report_evaluations=report.report_evaluations,
        failed=dict(failed),
        remarks=tuple(remarks),
        pools=dict(loads),
    )


def _summary(job: Job) -> str:
    ended = sum(job.ended(run) is not None for run in job.runs) if job.record else 0
    done = f", {ended} of them ended already" if ended else ""
    tasks = list(dict.fromkeys(f"{task}/{split}" for task, split, _ in job.problems))
    return (
        f"{len(job.runs)} runs{done}: {', '.join(e.label for e in job.entries)} on {', '.join(tasks)}, "
        f"{', '.join(job.models)}, {len(job.seeds)} seeds, budget {job.budget:,} each"
    )
