"""A comparison before it runs: what was given, checked, and as it stands in study.yaml."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayprompt.budget import Ledger
from rayprompt.comparison.closing import check_baselines
from rayprompt.comparison.outcome import COMPARISON_SCHEMA, STOPPED
from rayprompt.comparison.plan import Entry, Run, Stratum, resources_of
from rayprompt.comparison.schedulers import scheduler_of
from rayprompt.comparison.tables import parse_target
from rayprompt.comparison.trials import Searches
from rayprompt.errors import InputError
from rayprompt.lm.endpoint import is_endpoint
from rayprompt.lm.settings import LMSettings
from rayprompt.scoring.cluster import plan_scorers
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import shared_name
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.race import check_objective, racing
from rayprompt.store.schema import TABLES, safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import FLUSH_SECONDS
from rayprompt.study.damage import name_damaged_tables
from rayprompt.study.loop import SNAPSHOT_SECONDS, SearchPlan
from rayprompt.study.manifest import class_path, deciding, make_directory, task_location, versions, write_manifest
from rayprompt.study.place import lease_of, location_of
from rayprompt.study.prepare import HERE, check_room
from rayprompt.study.progress import Listener, Progress
from rayprompt.study.session import Cluster
from rayprompt.study.trace import FOLDER, Trace, read_run
from rayprompt.study.trackers import Trackers
from rayprompt.study.whole import write_whole
from rayprompt.task import Task, load_task
from rayprompt.written import CLOSED

# Options that change no search: they may be others when a comparison is gone on with.
FREE = ("max_concurrent", "price_per_hour", "price_per_million_tokens", "target", "trackers", "allow_leaks")

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
    over_before: int = 0  # runs that had ended when this began

    @property
    def spare_gpu(self) -> float:
        """Share of a GPU that the scorers leave to a searcher's own work."""
        return resources_of(self.entries).get("GPU", 0.0)

    @property
    def trackers(self) -> Trackers:
        """Where the runs are shown besides."""
        return Trackers.of(self.options.get("trackers") or {})

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
        return location_of(self.study) if self.store == HERE else self.store

    def plan(self, run: Run) -> SearchPlan:
        """What the search of a run is told."""
        search = safe_name(f"{self.id}_{run.name}")
        finalists, study = self.options["finalists"], location_of(self.study)
        return SearchPlan(
            search, self.budget, finalists, study, self.store_at, SNAPSHOT_SECONDS, FLUSH_SECONDS, self.store == HERE,
            race=self.options.get("race"), here=str(self.study), lease=lease_of(self.study),
        )  # fmt: skip

    def ended(self, run: Run) -> tuple[dict[str, Any], Trace] | None:
        """The last report of a run and its curve; None where it has not come to an end."""
        found = read_run(self.study, self.plan(run).search)
        if found is None or found[0]["end"]:
            return found
        try:
            stopped_at = int(self._stop_mark(run).read_text())
        except (OSError, ValueError):
            return None
        return ({**found[0], "end": STOPPED}, found[1]) if found[0]["evaluations"] == stopped_at else None

    def mark_stopped(self, run: Run, evaluations: int) -> None:
        """Take down that the Tune scheduler has stopped a run there."""
        mark = self._stop_mark(run)
        make_directory(mark.parent)
        write_whole(mark, str(evaluations))

    def was_stopped(self, run: Run) -> bool:
        """Whether the Tune scheduler has stopped a run since it was begun or resumed."""
        return self._stop_mark(run).is_file()

    def forget_stop(self, run: Run) -> None:
        """A run that goes on is judged anew."""
        self._stop_mark(run).unlink(missing_ok=True)

    def _stop_mark(self, run: Run) -> Path:
        return self.study / FOLDER / f"{self.plan(run).search}.stopped"


def problems_of(
    tasks: Sequence[TaskLike],
    models: Sequence[str | Path],
    splits: str | Sequence[str] | None,
    data: str | Path | None,
    *,
    allow_leaks: bool,
    names: Mapping[str, str] | None = None,
    lm: Mapping[str, LMSettings] | LMSettings | None = None,
) -> dict[Stratum, Problem]:
    """(task, split, model) -> problem, models outermost: runs on one LM stand together.

    ``names``: what the LM at a location is to be called, of a comparison that is resumed; ``lm``: how LMs are run, or
    for each location how that one is.
    """
    if not tasks or not models:
        raise InputError("compare needs a task and a model at least")
    found: dict[Stratum, Problem] = {}
    wanted = [splits] if isinstance(splits, str) else list(splits or [])
    read: list[tuple[Task, str]] = []
    for given in tasks:
        folder = _data_of(given, data) if len(tasks) > 1 else data
        task = load_task(given, data=folder, split=wanted[0] if len(wanted) == 1 and wanted != ["all"] else None)
        listed = list(task.splits) if wanted == ["all"] else wanted or [task.default_split]
        # A split that is not in the task's list may be one that has to be drawn.
        read += [(task if n in task.splits else load_task(given, data=folder, split=n), n) for n in listed]
    mixed = len({is_endpoint(str(model)) for model in models}) > 1
    for model in models:
        for task, split in read:
            settings = lm.get(str(model)) if isinstance(lm, Mapping) else lm
            if mixed and settings is not None:  # to each what is for it
                settings = settings.fit_for(endpoint=is_endpoint(str(model)))
            problem = Problem(task, model, split=split, allow_leaks=allow_leaks, lm=settings)
            problem.lm = replace(problem.lm, name=(names or {}).get(str(model), problem.lm.name))
            stratum = (problem.task.name, problem.split, problem.lm.name)
            if stratum in found:
                raise InputError(f"task {stratum[0]}, split {stratum[1]}, model {stratum[2]}: given twice")
            found[stratum] = problem
    return of_one_service(found)


def of_one_service(problems: dict[Stratum, Problem]) -> dict[Stratum, Problem]:
    """Problems on an LM behind a service share what was found out for label words: they share its pool, too."""
    labelled = {p.lm.name: p.lm.endpoint for p in problems.values() if p.lm.endpoint and p.lm.endpoint.labels}
    for problem in problems.values():
        problem.lm = replace(problem.lm, endpoint=labelled.get(problem.lm.name, problem.lm.endpoint))
    return problems


def _data_of(task: TaskLike, data: str | Path | None) -> str | Path | None:
    """Of several tasks each has its examples in a folder of its name."""
    if data is None or not isinstance(task, str):
        return data
    own = Path(data).expanduser() / task.partition("@")[0]
    return own if own.is_dir() else data


def check(job: Job) -> None:
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
        price = options[name]
        if price is not None and not (isinstance(price, int | float) and 0 <= price < math.inf):
            raise InputError(f"--{name.replace('_', '-')} {price}: must be a number, 0 or more")
    everything = {"GPU": 1e6, "CPU": 1e6}  # what the cluster has is not known yet
    if shared_name(job.cluster.scorers) is None:
        plan_scorers(everything, job.cluster.scorers, job.cluster.gpus_per_scorer)
    job.cluster = replace(job.cluster, spare_gpu=job.spare_gpu)
    check_baselines(options["baselines"])
    job.trackers.check()
    scheduler_of(options["scheduler"], job.budget)
    parse_target(options["target"])
    searches = searches_of(job, {})
    full: dict[str, bool] = {}
    for run in job.runs:
        searcher = searches.searcher(run.name)
        check_room(job.problems[run.stratum], searcher.outline)
        full[run.entry.label] = not searcher.partial_rows
        if options.get("race") is not None and searcher.partial_rows:
            check_objective(searcher)
    if options.get("race") is not None and any(full.values()):
        names = ", ".join(label for label, needs in full.items() if needs)
        if all(full.values()):
            raise InputError(f"--race: {names}: need every candidate's score on all examples; {racing()}")
        job.remarks.append(
            f"{names}: scored in full, for they need every candidate's score on all examples; others race"
        )


def searches_of(job: Job, pools: Mapping[str, ScoringPool]) -> Searches:
    """What the trials on these pools need."""
    runs = {run.name: run for run in job.runs if run.stratum[2] in pools or not pools}
    views = {stratum: job.problems[stratum].for_search() for stratum in {run.stratum for run in runs.values()}}
    plans = {name: job.plan(run) for name, run in runs.items()}
    return Searches(views, dict(pools), plans, runs, job.options["objective"])


def begin(job: Job, store: ScoreStore) -> dict[str, Any]:
    """Write study.yaml, and see that the store can be written."""
    tasks: dict[str, dict[str, Any]] = {}
    models: dict[str, dict[str, Any]] = {}
    for (task, split, model), problem in job.problems.items():
        about: dict[str, Any] = {
            "name": task,
            "location": task_location(problem.task),
            "data": problem.task.data or None,
            "splits": {},
        }
        tasks.setdefault(task, about)["splits"][split] = problem.task.digest
        about = {"name": model, "location": problem.lm.location, "digest": problem.lm.digest}
        if problem.lm.endpoint is not None:
            about |= {"endpoint": problem.lm.endpoint.to_json(), "service": problem.lm.endpoint.features()}
        models[model] = {**about, "settings": problem.lm.settings.to_json()}
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
        "resolved": _resolved(job),
        "pools": {},
        "test_opened": [],
        CLOSED: None,
        "versions": versions(),
    }
    if job.record:
        _check_unchanged(job, content)
        places = {kind: {was["name"]: was["location"] for was in content[kind]} for kind in ("tasks", "models")}
        content = {CLOSED: None, **job.record}
        for kind, here in places.items():  # they may lie elsewhere by now
            content[kind] = [{**was, "location": here[was["name"]]} for was in job.record[kind]]
    write_manifest(job.study, content, COMPARISON_SCHEMA)
    store.prepare()
    for kind in TABLES if job.store == HERE else ():
        name_damaged_tables(store, kind, job.listener, job.id)
    return content


def taken_up(job: Job, record: Mapping[str, Any]) -> Job:
    """A job that is given as a whole, as the one of which study.yaml holds the ``record``.

    Raises:
        InputError: it is another comparison.
    """
    where = f"the comparison in {location_of(job.study)} began with"
    for name in record["options"]:
        if name not in FREE and record[name] != _plain(job.options.get(name)):
            given = f"--{name.replace('_', '-')} {job.options.get(name)}"
            raise InputError(f"{given}: {where} {record[name]}; give a new --out")
    digests = {model["name"]: model["digest"] for model in record["models"]}
    splits = {(was["name"], split): digest for was in record["tasks"] for split, digest in was["splits"].items()}
    for (_, _, name), problem in job.problems.items():
        problem.lm = problem.lm.as_recorded(digests.get(name))
    for what, was, now in (
        ("--seeds", record["seeds"], job.seeds),
        (
            "--searchers",
            [[e["label"], e["class"], _plain(e["settings"])] for e in record["entries"]],
            [[e.label, class_path(e.cls), _plain(dict(e.settings))] for e in job.entries],
        ),
        ("--model", digests, {name: problem.lm.digest for (_, _, name), problem in job.problems.items()}),
        (
            "--lm",
            {model["name"]: deciding(LMSettings.of(model.get("settings")).to_json()) for model in record["models"]},
            {name: deciding(p.lm.settings.to_json()) for (_, _, name), p in job.problems.items()},
        ),
        ("TASK", splits, {(task, split): p.task.digest for (task, split, _), p in job.problems.items()}),
    ):
        if was != now:
            raise InputError(f"{what}: {where} {was}, not {now}; give a new --out")
    for (_, _, name), problem in job.problems.items():
        tokens = record["pools"].get(name, {}).get("tokens")
        problem.lm = replace(problem.lm, settings=problem.lm.settings.with_tokens(tokens))
    return replace(job, id=record["id"], store=record["store"], record=dict(record))


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    return json.loads(json.dumps(value))


def _resolved(job: Job) -> dict[str, Any]:
    """Run -> what its searcher makes of its settings: a default that has changed makes another searcher."""
    searches, found = searches_of(job, {}), {}
    for run in job.runs:
        searcher = searches.searcher(run.name)
        about = {"objective": searcher.objective_name, "settings": searcher._settings_dict()}
        subspace = None if searcher.outline is None else searcher.outline.key
        about |= {"content": searcher.content} if searcher.content else {}
        found[run.name] = json.loads(json.dumps({**about, "subspace": subspace}, default=str))
    return found


def _check_unchanged(job: Job, now: Mapping[str, Any]) -> None:
    """Say which versions are others than when the comparison began.

    Raises:
        InputError: a searcher is another one: what is left would be run by another than what is there.
    """
    for name, was in job.record["resolved"].items():
        if now["resolved"].get(name) != was:
            raise InputError(
                f"{job.study}: the searcher of run {name} was {was} when the comparison began and is "
                f"{now['resolved'].get(name)} now; a resumed comparison must go on with the same"
            )
    for name, was in job.record["versions"].items():
        here = now["versions"].get(name)
        if here != was:
            message = f"note: {name} was {was} when the comparison began and is {here} now: last bits may differ"
            job.listener(Progress("start", message))


def summary(job: Job) -> str:
    """One line that says what is compared."""
    ended = sum(job.ended(run) is not None for run in job.runs) if job.record else 0
    done = f", {ended} of them ended already" if ended else ""
    tasks = list(dict.fromkeys(f"{task}/{split}" for task, split, _ in job.problems))
    return (
        f"{len(job.runs)} runs{done}: {', '.join(e.label for e in job.entries)} on {', '.join(tasks)}, "
        f"{', '.join(job.models)}, {len(job.seeds)} seeds, budget {job.budget:,} each"
    )
