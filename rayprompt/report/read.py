"""Study directories, finished or not, as the plain data of :mod:`rayprompt.report.model`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayprompt.candidate import TextPrompt, digest
from rayprompt.comparison.outcome import COMPARE_SCHEMA, RESULT_FILE, STOPPED
from rayprompt.errors import InputError
from rayprompt.foreign import is_dir, is_file
from rayprompt.racing import race_line
from rayprompt.records import OutcomeRecord, ResultRecord, check_record
from rayprompt.report.model import EMPTY, Baseline, Finalist, Prompt, Run, Source, Stratum, Study
from rayprompt.report.rebuilt import rebuilt
from rayprompt.store.schema import safe_name
from rayprompt.study.place import location_of, opened
from rayprompt.study.results import SEARCH_SCHEMA, go_on, read_checked
from rayprompt.study.statistics import Estimate
from rayprompt.study.trace import FOLDER, read_run
from rayprompt.typed import shown as short
from rayprompt.unanswered import shown
from rayprompt.written import CLOSED, read_record

MANIFEST = "study.yaml"
COMMANDS = {"rayprompt.study": "search", "rayprompt.comparison": "compare"}
COSTS = (
    *("candidates", "lm_evaluations", "cache_hits", "tokens", "device_seconds", "own_seconds", "seconds"),
    "tokens_per_use",
)


def read_study(location: str | Path) -> Study:
    """A study's directory, as far as the study has come.

    Raises:
        InputError: it is not one, or its files are of another version.
    """
    path = opened(location, whole=True)
    if not is_dir(path):
        raise InputError(f"STUDY {location}: no such directory; a study's is wanted (rayprompt search --out DIR)")
    file = path / MANIFEST
    if not is_file(file):
        raise InputError(f"STUDY {location}: not a study that has begun (it holds no {MANIFEST})")
    record = read_record(file)
    record.pop(CLOSED, None)  # tells nothing of the search; the page itself is one of the closing steps
    schema = str(record.get("schema"))
    command = COMMANDS.get(schema.partition("/")[0])
    if command is None:
        raise InputError(f"{file}: schema {short(schema)}; a study has one of {', '.join(COMMANDS)}")
    check_record(record, str(file))
    try:
        return (_search if command == "search" else _comparison)(path, record)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: its files are not those of a study of this version ({error!r})") from None


# A search


def _search(path: Path, record: Mapping[str, Any]) -> Study:
    about = record["searcher"]
    task, model = record["task"], record.get("target") or record["model"]
    search = safe_name(f"{record['id']}_{about['name']}-s{about['seed']}")
    stratum = (task["name"], task["split"], model["name"])
    source = Source(
        location=task["location"],
        data=task.get("data"),
        task_digest=task["digest"],
        judge=task.get("judge"),
        model_digest=model["digest"],
        store=_store(path, record),
        report=safe_name(f"{record['id']}_report"),
        searches=(search,),
    )
    run = Run(
        study=path.name,
        name=f"{about['name']}-s{about['seed']}",
        searcher=about["name"],
        group=about["name"],
        settings=about["settings"],
        objective=about["objective"],
        task=stratum[0],
        split=stratum[1],
        model=stratum[2],
        digest=digest([task["digest"], model["digest"], model.get("settings")]),
        seed=about["seed"],
        budget=int(record["budget"]),
        search=search,
    )
    run = _progress(path, run, source.store, record.get("task", {}).get("examples", {}).get("train"))
    remarks = [f"{parts}: {n} texts stand in both" for parts, n in record.get("leaks", {}).items()]
    file = path / "result.json"
    if not file.is_file():
        remarks.append(f"not finished: {go_on('search', path)}")
        return Study(path, "search", False, record, (run,), (), {stratum: source}, remarks=tuple(remarks))
    result = read_checked(file, SEARCH_SCHEMA, ResultRecord)
    if result["budget"] != run.budget:
        remarks.append(
            f"its result is of {result['budget']:,} evaluations; it was given {run.budget:,} and has not come to that "
            f"end: {go_on('search', path)}"
        )
    if result["test_opened"] > 1:
        remarks.append(f"test was opened {result['test_opened']} times, with a growing budget")
    if line := shown(result.get("unanswered") or {}):
        remarks.append(line)
    if result.get("race"):
        remarks.append(f"candidates raced: {race_line([result['race']])}")
    if result.get("proxy_model"):
        remarks.append(f"searched on {result['proxy_model']}, decoded to text; dev and test are of {result['model']}")
    return Study(
        path, "search", True, record, (_closed(run, result),), tuple(_search_baselines(run, result)),
        {stratum: source}, remarks=tuple(remarks), seconds=result["seconds"],
        report_evaluations=result["report_evaluations"],
    )  # fmt: skip


def _closed(run: Run, result: Mapping[str, Any]) -> Run:
    """A run with what its study's result says."""
    decoded = result.get("decoded")
    winner = Prompt.of(result["best_prompt"], decoded and decoded["text"])
    test = Estimate.from_json(result["test"])
    costs = {name: result[name] for name in ("lm_evaluations", "cache_hits", "tokens", "seconds")}
    scores = [f["train"] for f in result["finalists"] if f["train"] is not None]
    return replace(
        run,
        end=result["end"],
        winner=winner,
        train=Estimate.from_json(result["train"]),
        dev=Estimate.from_json(result["dev"]),
        test=test,
        top=tuple(Estimate.from_json(e) for e in result.get("top", [])),
        decoded=None if decoded is None else Estimate.from_json(decoded),
        p_manual=result["p_value_manual"],
        p_test=result.get("p_test", ""),
        finalists=_finalists(result["finalists"], winner, test),
        best_score=run.best_score if math.isfinite(run.best_score) else max(scores, default=math.nan),
        evaluations=result["evaluations"],
        costs={**run.costs, **costs},
    )


def _search_baselines(run: Run, result: Mapping[str, Any]) -> Iterator[Baseline]:
    for name, form in result["baselines"].items():
        ids = form.get("token_ids")
        key = TextPrompt(form["text"], None if ids is None else tuple(ids)).key
        dev, test = Estimate.from_json(form["dev"]), Estimate.from_json(form)
        yield Baseline(name, *run.stratum, run.digest, dev, test, Prompt(key, form["text"]))


# A comparison


def _comparison(path: Path, record: Mapping[str, Any]) -> Study:
    tasks = {task["name"]: task for task in record["tasks"]}
    models = {model["name"]: model for model in record["models"]}
    file = path / RESULT_FILE
    outcome = read_checked(file, COMPARE_SCHEMA, OutcomeRecord) if file.is_file() else None
    sources: dict[Stratum, Source] = {}
    runs = []
    measured = {form["name"]: form for form in (outcome or {"runs": []})["runs"]}
    for name, entry, stratum, seed in _planned(record):
        task, split, model = stratum
        about, lm = tasks[task], models[model]
        search = safe_name(f"{record['id']}_{name}")
        source = sources.get(stratum) or Source(
            location=about["location"],
            data=about.get("data"),
            task_digest=about["splits"][split],
            judge=about.get("judge"),
            model_digest=lm["digest"],
            store=_store(path, record),
            report=safe_name(f"{record['id']}-report-{digest(list(stratum))[:12]}"),
        )
        sources[stratum] = replace(source, searches=(*source.searches, search))
        resolved = record.get("resolved", {}).get(name, {})
        run = Run(
            study=path.name,
            name=name,
            searcher=entry["label"],
            group=entry["group"],
            settings=resolved.get("settings") or entry["settings"],
            objective=str(resolved.get("objective") or record.get("objective") or ""),
            task=task,
            split=split,
            model=model,
            digest=digest([source.task_digest, lm["digest"], lm.get("settings")]),
            seed=seed,
            budget=int(record["budget"]),
            search=search,
        )
        runs.append(_measured(run, measured[name]) if name in measured else _progress(path, run, source.store, None))
    if outcome is None:
        ended = sum(bool(run.end) for run in runs)
        remark = f"not finished: {ended} of {len(runs)} runs have ended; {go_on('compare', path)}"
        return Study(path, "compare", False, record, tuple(runs), (), sources, remarks=(remark,))
    failed = [f"{name} failed: {why}" for name, why in outcome["failed"].items()]
    digests = {run.stratum: run.digest for run in runs}
    return Study(
        path, "compare", True, record, tuple(runs),
        tuple(_comparison_baseline(form, digests) for form in outcome["baselines"]), sources,
        tables=tuple(outcome["tables"]), remarks=(*failed, *outcome["remarks"]), seconds=outcome["seconds"],
        report_evaluations=outcome["report_evaluations"],
    )  # fmt: skip


def _planned(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Stratum, int]]:
    """Name, entry, stratum and seed of each run, as the comparison's plan has them: seeds outermost, LMs, tasks."""
    strata: list[Stratum] = [
        (task["name"], split, model["name"])
        for model in record["models"]
        for task in record["tasks"]
        for split in task["splits"]
    ]
    parts = [
        (entry, stratum, seed) for seed in record["seeds"] for stratum in strata for entry in record["entries"]
    ]  # fmt: skip
    # `resolved` has the runs' names, in the order in which they were planned.
    for name, (entry, stratum, seed) in zip(record["resolved"], parts, strict=True):
        yield name, entry, stratum, seed


def _measured(run: Run, form: Mapping[str, Any]) -> Run:
    """A run as the comparison's outcome has it."""
    decoded = form.get("decoded")
    winner = Prompt.of(form["prompt"], decoded and decoded["text"])
    test = Estimate.from_json(form["test"])
    return replace(
        run,
        objective=form["objective"],
        end=form["end"],
        winner=winner,
        train=Estimate.from_json(form["train"]),
        dev=Estimate.from_json(form["dev"]),
        test=test,
        top=tuple(Estimate.from_json(e) for e in form["top"]),
        decoded=None if decoded is None else Estimate.from_json(decoded),
        p_manual=form["p_value_manual"],
        finalists=_finalists(form["finalists"], winner, test),
        best_score=form["best_score"],
        best_objective=form["best_objective"],
        evaluations=form["evaluations"],
        curve=tuple(tuple(row) for row in form["curve"]),
        dev_curve=tuple(tuple(row) for row in form["dev_curve"]),
        costs={name: form[name] for name in COSTS},
    )


def _comparison_baseline(form: Mapping[str, Any], digests: Mapping[Stratum, str]) -> Baseline:
    stratum = (form["task"], form["split"], form["model"])
    # Its key is that of its token ids, which the outcome does not have; the store knows it by its text.
    plain = form["seed"] is None and not form["white_box"]
    prompt = Prompt(EMPTY if not form["text"] else "", form["text"]) if plain else None
    return Baseline(
        form["name"], *stratum, digests.get(stratum, ""), Estimate.from_json(form["dev"]),
        Estimate.from_json(form["test"]), prompt, form["white_box"], form["tokens_per_use"],
    )  # fmt: skip


# Both


def _progress(path: Path, run: Run, store: str, examples: int | None) -> Run:
    """A run with how it got on: from the file that it wrote when it came to a stop, else from its pairs."""
    found = read_run(path, run.search)
    if found is None:
        return rebuilt(run, store, examples)
    report, trace = found
    finalists = tuple(
        Finalist(Prompt.of(form["candidate"]), form["metric"], None) for form in report.get("finalists", [])
    )
    return replace(
        run,
        objective=report["objective"],
        end=report["end"] or _stopped(path, run, report["evaluations"]),
        best_score=report["best_score"],
        best_objective=report["best_objective"],
        evaluations=report["evaluations"],
        finalists=finalists,
        curve=tuple(tuple(row) for row in trace.rows),
        costs={
            "candidates": report["candidates"],
            "lm_evaluations": report["lm_evaluations"],
            "cache_hits": report["cache_hits"],
            "tokens": report["asked_tokens"],
            "device_seconds": report["device_seconds"],
            "own_seconds": report["own_seconds"],
            "seconds": report["loop_seconds"],
        },
    )


def _stopped(path: Path, run: Run, evaluations: int) -> str:
    """``scheduler`` where a Tune scheduler stopped it there; else it has not ended."""
    try:
        return STOPPED if int((path / FOLDER / f"{run.search}.stopped").read_text()) == evaluations else ""
    except (OSError, ValueError):
        return ""


def _finalists(forms: list[Mapping[str, Any]], winner: Prompt, test: Estimate) -> tuple[Finalist, ...]:
    found = []
    for form in forms:
        prompt = Prompt.of(form)
        own = prompt.key == winner.key
        found.append(Finalist(winner if own else prompt, form.get("train"), form.get("dev"), test if own else None))
    return tuple(found)


def _store(path: Path, record: Mapping[str, Any]) -> str:
    if record["store"] != ".":
        return str(record["store"])
    return str(path) if (path / "scores").is_dir() else location_of(path)  # a whole study may have been fetched
