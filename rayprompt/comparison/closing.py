"""The end of a comparison on one LM: dev decides everything for all runs and baselines, then test is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt, candidate_from_json, digest
from rayprompt.comparison.baselines import GRADIENT, IN_CONTEXT, BaselinePrompt, gradient_tuned, in_context
from rayprompt.comparison.curves import grid_of
from rayprompt.comparison.outcome import COMPARISON_SCHEMA, BaselineOutcome, RunOutcome
from rayprompt.comparison.plan import Run, Stratum
from rayprompt.comparison.tables import EVALUATIONS, POINTS, SCORE, SECONDS, step_curve
from rayprompt.errors import InputError, ScoringError, unknown
from rayprompt.racing import race_of
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.settings import make_settings
from rayprompt.searcher.soft import SoftSettings
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.study.closing import TOP, Choice, Closer, baseline_prompts
from rayprompt.study.manifest import write_manifest
from rayprompt.study.progress import Progress
from rayprompt.study.statistics import Estimate
from rayprompt.study.tensorboard import write_final
from rayprompt.study.trace import Trace
from rayprompt.written import CLOSED

if TYPE_CHECKING:
    from rayprompt.comparison.job import Job

BASELINES = (IN_CONTEXT, GRADIENT)
GRADIENT_LENGTH = 10  # of gradient-tuned soft prompts, where no searcher of the comparison makes soft ones


@dataclass(frozen=True)
class Ended:
    """A run that has come to its end: its last report, and its curve."""

    run: Run
    report: Mapping[str, Any]
    trace: Trace


@dataclass(frozen=True)
class Made:
    """A baseline that was made on train, and its dev. ``closer`` measures it: of in-context examples their own."""

    stratum: Stratum
    closer: Closer
    baseline: BaselinePrompt
    dev: Estimate


@dataclass(frozen=True)
class Closed:
    """All that was measured on one LM; ``failed``: run -> why it could not be."""

    runs: list[RunOutcome]
    baselines: list[BaselineOutcome]
    failed: dict[str, str]


def check_baselines(names: Sequence[str]) -> None:
    """Raise ``InputError`` for a baseline that there is not."""
    for name in names:
        if name not in BASELINES:
            raise unknown("baseline", name, BASELINES)


def close_all(
    job: Job, model: str, pool: ScoringPool, store: ScoreStore, report: Ledger, content: dict[str, Any]
) -> Closed:
    """Close all runs on one LM: winners, the three best, incumbents and baselines on dev; then test, once for all."""
    strata = [stratum for stratum in job.problems if stratum[2] == model]
    job.listener(Progress("report", f"{model}: scoring finalists and baselines on dev, then what was chosen on test"))
    closers = {}
    for stratum in strata:
        search = safe_name(f"{job.id}-report-{digest(list(stratum))[:12]}")
        closers[stratum] = Closer(job.problems[stratum], pool, report, store=store, search=search)
    every = [Ended(run, *found) for run in job.runs if run.stratum[2] == model and (found := job.ended(run))]
    ended = [e for e in every if e.trace.rows and e.report["finalists"]]
    failed = {e.run.name: f"it ended ({e.report['end']}) without a candidate that has scores" for e in every}
    choices = {e.run.name: _choose(closers[e.run.stratum], e, job.options["objective"]) for e in ended}
    dev_curves = _dev_curves(closers, ended)
    made = [m for stratum, closer in closers.items() for m in _make_baselines(job, stratum, closer)]

    if model not in content["test_opened"]:
        content["test_opened"].append(model)
    content[CLOSED] = None  # from here on its files are written anew
    write_manifest(job.study, content, COMPARISON_SCHEMA)
    return Closed(
        [_outcome(closers[e.run.stratum], e, choices[e.run.name], dev_curves[e.run.name]) for e in ended],
        _measured(closers, made),
        {name: why for name, why in failed.items() if name not in choices},
    )


def write_final_curves(study: Path, outcomes: Sequence[RunOutcome]) -> None:
    """What the runs came to, for TensorBoard."""
    for outcome in outcomes:
        write_final(study / outcome.name, outcome.evaluations, _scalars(outcome), _text(outcome))


def finish_runs(job: Job, outcomes: Sequence[RunOutcome]) -> None:
    """The same for W&B and MLflow."""
    for outcome in outcomes:
        search = safe_name(f"{job.id}_{outcome.name}")
        job.trackers.finish(search, outcome.evaluations, _scalars(outcome), _text(outcome), job.listener)


def _choose(closer: Closer, ended: Ended, objective: str | None) -> Choice:
    return closer.choose(
        [candidate_from_json(f["candidate"]) for f in ended.report["finalists"]],
        ended.report["finalists"],
        nominations=[candidate_from_json(form) for form in ended.report["nominations"]],
        objective=objective or str(ended.report["objective"]),
        tops=TOP,
        alone=ended.report.get("nominates_alone", False),
    )


def _dev_curves(closers: Mapping[Stratum, Closer], ended: Sequence[Ended]) -> dict[str, list[tuple[float, ...]]]:
    """Run -> rows (evaluations, own seconds, dev metric of the best by objective) on the grid of the tables.

    The incumbents of all runs of a problem are scored in one request. They decide nothing.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for task in {stratum[0] for stratum in closers}:
        ours = [e for e in ended if e.run.stratum[0] == task]
        curves = [step_curve([(row[EVALUATIONS], row[SCORE]) for row in e.trace.rows]) for e in ours]
        grid = grid_of(curves, POINTS) if curves else np.empty(0)
        for stratum, closer in closers.items():
            runs = [e for e in ours if e.run.stratum == stratum]
            incumbents = {e.run.name: [_incumbent(e.trace, x) for x in grid] for e in runs}
            distinct = list({c.key: c for row in incumbents.values() for c in row}.values())
            if not distinct:
                continue
            dev = closer.scorer("dev")
            values = dict(
                zip([c.key for c in distinct], (dev.estimate(s).value for s in dev.scores(distinct)), strict=True)
            )
            for e in runs:
                seconds = step_curve([(row[EVALUATIONS], row[SECONDS]) for row in e.trace.rows]).at(grid)
                row = zip(grid.tolist(), seconds.tolist(), incumbents[e.run.name], strict=True)
                found[e.run.name] = [(x, s, values[c.key]) for x, s, c in row]
    return found


def _incumbent(trace: Trace, evaluations: float) -> Candidate:
    """The best by objective when so many evaluations were spent."""
    forms = [form for at, form in trace.incumbents if at <= evaluations]
    return candidate_from_json(forms[-1])


def _make_baselines(job: Job, stratum: Stratum, closer: Closer) -> list[Made]:
    """In-context examples and gradient-tuned soft prompts, one of each for each seed, and their dev; test is closed."""
    makers = {GRADIENT: _gradient, IN_CONTEXT: _in_context}
    made: list[Made] = []
    for name in job.options["baselines"]:
        for seed in job.seeds:
            try:
                made.append(makers[name](job, stratum, closer, seed))
            except (InputError, ScoringError) as error:  # no room, no memory...: the comparison is none the worse
                job.remarks.append(f"{'/'.join(stratum)}: no baseline {name}: {error}")
                break
    return made


def _gradient(job: Job, stratum: Stratum, closer: Closer, seed: int) -> Made:
    if not closer.problem.takes_soft:
        raise InputError(closer.problem.soft_reason)
    job.listener(Progress("report", f"{'/'.join(stratum)}: tuning a soft prompt by gradient, seed {seed}"))
    tuned = gradient_tuned(closer, settings=_soft_settings(job), seed=seed)
    assert tuned.dev is not None
    return Made(stratum, closer, tuned, tuned.dev)


def _in_context(job: Job, stratum: Stratum, closer: Closer, seed: int) -> Made:
    shown = in_context(closer.problem, seed=seed)
    search = f"{closer.search}-{IN_CONTEXT}-{seed}"
    own = Closer(shown.problem, closer.pool, closer.ledger, store=closer.store, search=search)
    dev = own.scorer("dev")
    return Made(stratum, own, shown, dev.estimate(dev.scores([shown.prompt])[0]))


def _soft_settings(job: Job) -> SoftSettings:
    """The length and the beginning of the first searcher of soft prompts."""
    for entry in job.entries:
        if entry.cls.kind == "soft":
            given = make_settings(entry.cls, dict(entry.settings))
            names = SoftSettings.__dataclass_fields__
            return SoftSettings(**{name: getattr(given, name) for name in names})
    return SoftSettings(length=GRADIENT_LENGTH)


def _outcome(closer: Closer, ended: Ended, choice: Choice, dev_curve: Sequence[tuple[float, ...]]) -> RunOutcome:
    """Measure a run's winner on test."""
    run, report = ended.run, ended.report
    closing = closer.measure(choice)
    best = closing.best_prompt
    decoded = closing.decoded
    task, split, model = run.stratum
    return RunOutcome(
        name=run.name,
        searcher=run.entry.label,
        group=run.entry.group,
        settings=dict(run.entry.settings),
        objective=report["objective"],
        task=task,
        split=split,
        model=model,
        seed=run.seed,
        end=report["end"],
        prompt={**best.to_json(), "key": best.key, "round_trips": closing.round_trips},
        train=closing.train,
        dev=closing.dev,
        test=closing.test,
        top=closing.top,
        decoded=None if decoded is None else decoded.to_json(),
        finalists=closing.finalists,
        p_value_manual=closing.p_value,
        best_objective=report["best_objective"],
        best_score=report["best_score"],
        evaluations=report["evaluations"],
        candidates=report["candidates"],
        tokens=report["asked_tokens"],
        device_seconds=report["device_seconds"],
        lm_evaluations=report["lm_evaluations"],
        cache_hits=report["cache_hits"],
        own_seconds=report["own_seconds"],
        seconds=report["loop_seconds"],
        tokens_per_use=_tokens_per_use(closer, best),
        curve=tuple(tuple(row) for row in ended.trace.rows),
        dev_curve=tuple(dev_curve),
        race=race_of(report["race_error"], report) if report.get("race_error") else None,
        unanswered={"train": report["unanswered"], **closing.unanswered} if report.get("unanswered") else {},
    )


def _measured(closers: Mapping[Stratum, Closer], made: Sequence[Made]) -> list[BaselineOutcome]:
    """The baselines on test."""
    outcomes = []
    for stratum, closer in closers.items():
        dev = closer.scorer("dev")
        for name, prompt in baseline_prompts(closer.problem).items():
            known = dev.estimate(dev.scores([prompt])[0])
            outcomes.append(_baseline(stratum, closer, name, prompt, known, text=prompt.text))
        for own in (m for m in made if m.stratum == stratum):
            names = ("seed", "white_box", "passes", "seconds", "text", "train_loss")
            about = {name: getattr(own.baseline, name) for name in names}
            outcomes.append(_baseline(stratum, own.closer, own.baseline.name, own.baseline.prompt, own.dev, **about))
    return outcomes


def _baseline(
    stratum: Stratum, closer: Closer, name: str, prompt: Candidate, dev: Estimate, **about: Any
) -> BaselineOutcome:
    task, split, model = stratum
    test = closer.scorer("test")
    measured = test.estimate(test.scores([prompt])[0])
    per_use = _tokens_per_use(closer, prompt)
    return BaselineOutcome(name, task, split, model, about.pop("seed", None), dev, measured, per_use, **about)


def _tokens_per_use(closer: Closer, prompt: Candidate) -> float:
    """Tokens of the LM's input with a prompt that was measured on test, mean over the answered examples; 0 if none."""
    tokens = closer.scorer("test").evaluator.known([prompt]).tokens
    return float(tokens.mean()) if len(tokens) else 0.0


def _scalars(outcome: RunOutcome) -> dict[str, float]:
    return {"dev": outcome.dev.value, "test": outcome.test.value, "test_top3": outcome.top_mean}


def _text(outcome: RunOutcome) -> str:
    """The winner as TensorBoard shows it."""
    prompt = candidate_from_json(dict(outcome.prompt))
    if not isinstance(prompt, SoftPrompt):
        return f"`{prompt.text}`"
    near = "" if outcome.decoded is None else f"; nearest text: `{outcome.decoded['text']}`"
    return f"soft prompt of {prompt.subspace.length} tokens, {prompt.key}{near}"
