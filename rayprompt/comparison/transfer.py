"""``transfer``: prompts that were found on one LM, measured on others; dev picks on each, then its test is opened."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayprompt.budget import Ledger
from rayprompt.candidate import TextPrompt
from rayprompt.comparison.significance import holm
from rayprompt.comparison.sources import Source, sources_of
from rayprompt.errors import InputError
from rayprompt.lm.endpoint import check_named
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers
from rayprompt.searcher.problem import Problem
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.study.closing import Choice, Closer
from rayprompt.study.prepare import check_room, fitting
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.results import Baseline
from rayprompt.study.session import Cluster, connected, loaded
from rayprompt.study.statistics import Estimate, paired_test
from rayprompt.task import Task, load_task

TRANSFER_SCHEMA = "rayprompt.transfer/1"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Carried:
    """A finalist as it stands on a target.

    Attributes:
        prompt: with the target's token ids.
        exact: the very token ids that were found; else the text, tokenised anew.
        round_trips: its text gives the ids that were found. Where it does not, a text that was tokenised anew is not
            what was found.
        shortened: its last words were left out, for it was too long for the target.
    """

    prompt: TextPrompt
    exact: bool
    round_trips: bool
    shortened: bool


@dataclass(frozen=True)
class Measured:
    """A finalist of a source on a target: ``finalist`` is its position there; ``truncated`` counts test texts."""

    finalist: int
    carried: Carried
    dev: Estimate
    test: Estimate
    truncated: int

    def to_json(self) -> dict[str, Any]:
        prompt = self.carried.prompt
        return {
            "finalist": self.finalist,
            **prompt.to_json(),
            "key": prompt.key,
            "exact": self.carried.exact,
            "round_trips": self.carried.round_trips,
            "shortened": self.carried.shortened,
            "truncated": self.truncated,
            "dev": self.dev.to_json(),
            "test": self.test.to_json(),
        }


@dataclass(frozen=True)
class Cell:
    """A source on a target.

    Attributes:
        source, target: their names.
        picked: the finalist that the target's dev picked.
        winner: the source's own winner: what transfers without any data on the target.
        dev: the metric of every finalist on the target's dev.
        p_value: paired test of the metric, of ``picked`` against the target's manual prompt on test; None without one.
        p_holm: with Holm's correction for all cells.
        better: than the manual prompt, at 5 % of ``p_holm``.
    """

    source: str
    target: str
    picked: Measured
    winner: Measured
    dev: tuple[float, ...]
    p_value: float | None
    p_holm: float | None = None
    better: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "target": self.target,
            "picked": self.picked.to_json(),
            "winner": self.winner.to_json(),
            "dev": list(self.dev),
            "p_value": self.p_value,
            "p_holm": self.p_holm,
            "better": self.better,
        }


@dataclass(frozen=True)
class Target:
    """An LM that prompts are used on: a column of the table, with what the empty and the manual prompt reach there."""

    name: str
    digest: str
    baselines: Mapping[str, Baseline]

    def to_json(self) -> dict[str, Any]:
        baselines = {name: baseline.to_json() for name, baseline in self.baselines.items()}
        return {"name": self.name, "digest": self.digest, "baselines": baselines}


@dataclass(frozen=True)
class Transfer:
    """How what was found on some LMs does on others. ``to_json`` is what ``--json`` prints.

    Attributes:
        sources: the searches, in the order given.
        targets: their LMs, and behind them those that were named.
        cells: all sources on the first target, then on the second...
        evaluations, lm_evaluations: distinct pairs that were asked for, and those that the LMs ran.
        leaks: texts of the task that stand in two of its parts.
    """

    task: str
    split: str
    metric: str
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    cells: tuple[Cell, ...]
    evaluations: int
    lm_evaluations: int
    seconds: float
    store: str | None = None
    leaks: Mapping[str, int] = field(default_factory=dict)

    def cell(self, source: str, target: str) -> Cell:
        """The cell of a source's and a target's name."""
        return next(c for c in self.cells if (c.source, c.target) == (source, target))

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema ``rayprompt.transfer/1``."""
        return {
            "schema": TRANSFER_SCHEMA,
            "task": self.task,
            "split": self.split,
            "metric": self.metric,
            "sources": [source.to_json() for source in self.sources],
            "targets": [target.to_json() for target in self.targets],
            "cells": [cell.to_json() for cell in self.cells],
            "evaluations": self.evaluations,
            "lm_evaluations": self.lm_evaluations,
            "seconds": self.seconds,
            "store": self.store,
            "leaks": dict(self.leaks),
        }


def transfer(
    studies: str | Path | Sequence[str | Path],
    models: Sequence[str | Path] = (),
    *,
    split: str | None = None,
    task: Task | str | None = None,
    data: str | Path | None = None,
    store: str | Path | None = None,
    lm: Mapping[str, Any] | None = None,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    listener: Listener = silent,
) -> Transfer:
    """Measure what searches found on one LM on others, and on their own.

    On each LM the finalists of each search are scored on dev, which picks one; when all picks are fixed, test is opened
    for them, for the searches' own winners and for the baselines.

    Args:
        studies: the directory of a finished search, or several of one task and split; of a comparison all its runs.
        models: the LMs to go to; those that were searched on are among them anyway.
        split: only what was found on this one, of comparisons over several.
        task: for studies of a task made of Python objects, that task; or the name of one, of comparisons over several.
        data: where a public task's examples are now, if elsewhere than when it was searched on.
        store: a directory (or URI) where scores are kept and looked up.
        lm: how the LMs are run, as for :func:`rayprompt.search`; those that were searched on as they were, unless said.
        address, scorers, gpus_per_scorer: as for :func:`rayprompt.search`; one LM is loaded after the other.
        listener: told of the progress.

    Raises:
        InputError: something given cannot be used; nothing has been started.
        ScoringError: an LM did not load or could not score.
        StoreError: the store cannot be written.
    """
    started = time.perf_counter()
    paths = [studies] if isinstance(studies, str | Path) else list(studies)
    found = [source for path in paths for source in sources_of(path)]
    name = task if isinstance(task, str) else None
    sources = _named([s for s in found if split in (None, s.split) and name in (None, s.task)])
    problems = _targets(sources, _task_of(sources, None if isinstance(task, str) else task, data), models, lm or {})
    rows = [_carry(sources, problem, problems) for problem in problems]
    known = None
    if store is not None:
        known = ScoreStore(store)
        known.prepare()
    ledger = Ledger(budget=1)  # all of it is report, which has no limit
    search = safe_name(f"transfer-{secrets.token_hex(3)}")
    cluster = Cluster(address, scorers, gpus_per_scorer)
    targets, cells = [], []
    listener(Progress("start", _summary(sources, problems)))
    with connected(cluster, listener):
        for problem, carried in zip(problems, rows, strict=True):
            with loaded(problem.lm, cluster, listener) as pool:
                listener(Progress("report", f"scoring on dev of {problem.lm.name}, then what it picks on test"))
                target, column = _measure(sources, carried, problem, pool, ledger, known, search)
            targets.append(target)
            cells += column
    return Transfer(
        task=problems[0].task.name,
        split=problems[0].split,
        metric=problems[0].task.metric,
        sources=tuple(sources),
        targets=tuple(targets),
        cells=tuple(_judged(cells, targets)),
        evaluations=ledger.report_evaluations,
        lm_evaluations=ledger.lm_evaluations,
        seconds=time.perf_counter() - started,
        store=None if known is None else known.folder.shown,
        leaks={f"{a}/{b}": n for (a, b), n in problems[0].leaks.items()},
    )


def _named(sources: list[Source]) -> list[Source]:
    """With names that tell them apart.

    Raises:
        InputError: none, or one twice.
    """
    if not sources:
        raise InputError("transfer of what? give the directory of one or more finished searches")
    twice = [path for path, count in Counter((s.path, s.name) for s in sources).items() if count > 1]
    if twice:
        raise InputError(f"STUDY {twice[0][0]}: given twice")
    names = Counter(source.name for source in sources)
    return [s if names[s.name] == 1 else replace(s, name=_long_name(s)) for s in sources]


def _long_name(source: Source) -> str:
    """Of a search its directory, of a comparison's run the two."""
    return str(source.path if source.path.name == source.name else source.path / source.name)


def _task_of(sources: Sequence[Source], given: Task | None, data: str | Path | None) -> Task:
    """The one task of all sources, as it was searched on.

    Raises:
        InputError: they have several, it has changed since, or is not at hand.
    """
    first = sources[0]
    for other in sources[1:]:
        if (other.task_digest, other.split) != (first.task_digest, first.split):
            raise InputError(
                f"STUDY {other.path}: task {other.task}, split {other.split} is another one than task {first.task}, "
                f"split {first.split} of {first.path}; a transfer is within one task and split"
            )
    if given is None:
        location = next((s.task_location for s in sources if s.task_location), None)
        if location is None:
            raise InputError(
                f"STUDY {first.path}: its task {first.task!r} is made of Python objects; give it: "
                "rayprompt.transfer(..., task=...)"
            )
        task = load_task(location, data=first.data if data is None else data, split=first.split)
    else:
        task = load_task(given, data=data)
    if given is None:
        task = task.judged_as(first.judge, f"STUDY {first.path}")
    if task.digest != first.task_digest:
        raise InputError(
            f"STUDY {first.path}: task {first.task} was {first.task_digest} when it was searched on and is "
            f"{task.digest} now; its figures and new ones could not be compared"
        )
    return task


def _targets(
    sources: Sequence[Source], task: Task, models: Sequence[str | Path], lm: Mapping[str, Any]
) -> list[Problem]:
    """The task on the LM of each source, run as it was but for ``lm``, then on the models given; each LM once.

    Raises:
        InputError: a model is given twice, is not known, does not fit the task, or is not what it was.
    """
    found: dict[str, Problem] = {}
    for source in sources:
        if source.model_digest in found:
            continue
        check_named([source.model_location], f"STUDY {source.path}", given=models)
        problem = _on(task, source.model_location, source.split, {**source.settings.to_json(), **lm})
        problem.lm = replace(problem.lm.as_recorded(source.model_digest), name=source.model)
        if problem.lm.digest != source.model_digest:
            raise InputError(f"STUDY {source.path}: model {source.model} is another one than when it was searched on")
        found[source.model_digest] = problem
    given: dict[str, str] = {}
    for model in map(str, models):
        if model in given.values():
            raise InputError(f"--models {model}: given twice")
        problem = _on(task, model, sources[0].split, lm)
        problem.lm = next((lm for lm in map(problem.lm.as_recorded, found) if lm.digest in found), problem.lm)
        if problem.lm.digest in given:
            raise InputError(f"--models {model}: the same LM as {given[problem.lm.digest]}; give it once")
        given[problem.lm.digest] = model
        found.setdefault(problem.lm.digest, problem)
    if not given and len(found) == 1:
        raise InputError(f"--models: name the LMs to go to; all that was found was found on {sources[0].model}")
    names = Counter(problem.lm.name for problem in found.values())
    for problem in found.values():
        if names[problem.lm.name] > 1:
            problem.lm = replace(problem.lm, name=f"{problem.lm.name} ({problem.lm.digest[:8]})")
    return list(found.values())


def _on(task: Task, model: str, split: str, lm: Mapping[str, Any]) -> Problem:
    problem = Problem(task, model, split=split, allow_leaks=True, lm=lm)
    try:
        check_room(problem)
    except InputError as error:
        raise InputError(f"model {model}: {error}") from None
    return problem


def _carry(sources: Sequence[Source], problem: Problem, problems: Sequence[Problem]) -> list[list[Carried]]:
    """The finalists of each source as prompts of ``problem``."""
    own = {p.lm.digest: p for p in problems}
    return [[_carried(prompt, own[source.model_digest], problem) for prompt in source.finalists] for source in sources]


def _carried(prompt: TextPrompt, own: Problem, problem: Problem) -> Carried:
    if own is problem:
        return Carried(prompt, True, problem.round_trips(prompt), False)
    there = fitting(problem, prompt.text)
    return Carried(there, False, own.round_trips(prompt), there.text != " ".join(prompt.text.split()))


def _measure(
    sources: Sequence[Source],
    carried: Sequence[Sequence[Carried]],
    problem: Problem,
    pool: ScoringPool,
    ledger: Ledger,
    store: ScoreStore | None,
    search: str,
) -> tuple[Target, list[Cell]]:
    """A column: dev picks for every source, and only then test is opened."""
    closer = Closer(problem, pool, ledger, store=store, search=search)
    choices = [closer.choose([c.prompt for c in row], [{}] * len(row)) for row in carried]
    baselines = choices[0].baselines

    rows = list(zip(sources, carried, choices, strict=True))
    wanted = [prompt for prompt, _ in baselines.values()]
    wanted += [row[i].prompt for source, row, choice in rows for i in (choice.winner, source.winner)]
    prompts = list(dict.fromkeys(wanted))
    test = closer.scorer("test")
    scores = dict(zip(prompts, test.scores(prompts), strict=True))
    estimates = {prompt: test.estimate(s) for prompt, s in scores.items()}
    part = problem.part("test")

    def measured(row: Sequence[Carried], choice: Choice, finalist: int) -> Measured:
        prompt = row[finalist].prompt
        truncated = part.truncated(len(problem.token_ids(prompt)))
        return Measured(finalist, row[finalist], choice.dev[finalist], estimates[prompt], truncated)

    def p_value(prompt: TextPrompt) -> float | None:
        if "manual" not in baselines:
            return None
        return paired_test(problem.task.metric, scores[prompt], scores[baselines["manual"][0]], test.gold)

    target = Target(
        problem.lm.name,
        problem.lm.digest,
        {name: Baseline(prompt, dev, estimates[prompt]) for name, (prompt, dev) in baselines.items()},
    )
    return target, [
        Cell(
            source=source.name,
            target=target.name,
            picked=measured(row, choice, choice.winner),
            winner=measured(row, choice, source.winner),
            dev=tuple(dev.value for dev in choice.dev),
            p_value=p_value(row[choice.winner].prompt),
        )
        for source, row, choice in rows
    ]


def _judged(cells: Sequence[Cell], targets: Sequence[Target]) -> list[Cell]:
    """With what the tests of all cells together say of each."""
    if any(cell.p_value is None for cell in cells):  # the task has no manual prompt
        return list(cells)
    manual = {target.name: target.baselines["manual"].test.value for target in targets}
    corrected = holm([cell.p_value for cell in cells if cell.p_value is not None])
    return [
        replace(cell, p_holm=p, better=p <= SIGNIFICANT and cell.picked.test.value > manual[cell.target])
        for cell, p in zip(cells, corrected, strict=True)
    ]


def _summary(sources: Sequence[Source], problems: Sequence[Problem]) -> str:
    task, split = problems[0].task, problems[0].split
    sizes = ", ".join(f"{len(task.examples(part, split))} {part}" for part in ("dev", "test"))
    names = ", ".join(problem.lm.name for problem in problems)
    searches = "1 search" if len(sources) == 1 else f"{len(sources)} searches"
    return f"task {task.name} ({sizes}), what {searches} found on {names}"
