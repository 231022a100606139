"""What a comparison gives: its runs, its baselines, and the tables made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError
from rayprompt.records import OutcomeRecord
from rayprompt.study.place import is_uri
from rayprompt.study.results import read_outcome
from rayprompt.study.statistics import Estimate

COMPARE_SCHEMA = "rayprompt.compare/1"  # of the outcome
COMPARISON_SCHEMA = "rayprompt.comparison/1"  # of study.yaml
RESULT_FILE = "comparison.json"
STOPPED = "scheduler"  # how a run ended that the Tune scheduler stopped


@dataclass(frozen=True)
class RunIdentity:
    """Which search it is.

    Attributes:
        name: of the trial.
        searcher: its label in the comparison; ``group`` is the searcher it was drawn from, where Tune drew settings.
        settings: those that were given, or all as they were resolved.
        task, split, model, seed: what it ran on.
    """

    name: str
    searcher: str
    group: str
    settings: Mapping[str, Any]
    objective: str
    task: str
    split: str
    model: str
    seed: int

    @property
    def stratum(self) -> tuple[str, str, str]:
        """Task, split, model."""
        return self.task, self.split, self.model


@dataclass(frozen=True)
class RunOutcome(RunIdentity):
    """One search of a comparison.

    Attributes:
        end: why it ended; ``scheduler`` where a Tune scheduler stopped it.
        prompt: the winner on dev, in JSON form, with its key.
        train, dev, test: the winner's task metric.
        top: test of the best on dev (three, where there are so many), the winner first.
        finalists: the best on train, with their train and dev metric, in JSON form.
        decoded: for a soft winner, the text nearest to it, its dev and test.
        p_value_manual: paired test of the task metric against the manual prompt on test.
        best_objective, best_score: the best on train, of the search.
        evaluations, candidates: that the search asked for; ``tokens`` and ``device_seconds`` (of one scorer) are what
            those pairs cost, whoever had them scored.
        lm_evaluations, cache_hits: what was really run, and what the store knew.
        own_seconds: ask, tell and the scorers' work; ``seconds`` is the wall's time, others beside it included.
        tokens_per_use: tokens of the LM's input with the winner, mean over test.
        curve: rows (evaluations, own seconds, best objective, best score).
        dev_curve: rows (evaluations, own seconds, dev metric of the best by objective).
        race: where candidates raced, its error rate, how many were dropped, and the evaluations which that has spared.
        unanswered: part -> how many pairs are unanswered, and why (:func:`rayprompt.unanswered.tally`).
    """

    end: str
    prompt: Mapping[str, Any]
    train: Estimate
    dev: Estimate
    test: Estimate
    top: tuple[Estimate, ...]
    decoded: Mapping[str, Any] | None
    finalists: tuple[Mapping[str, Any], ...]
    p_value_manual: float | None
    best_objective: float
    best_score: float
    evaluations: int
    candidates: int
    tokens: int
    device_seconds: float
    lm_evaluations: int
    cache_hits: int
    own_seconds: float
    seconds: float
    tokens_per_use: float
    curve: tuple[tuple[float, ...], ...]
    dev_curve: tuple[tuple[float, ...], ...]
    race: Mapping[str, Any] | None = None
    unanswered: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def top_mean(self) -> float:
        """The papers' protocol: the mean test metric of the three best on dev."""
        return sum(e.value for e in self.top) / len(self.top)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        content = asdict(self)
        for name in ("train", "dev", "test"):
            content[name] = getattr(self, name).to_json()
        rows = {name: [list(row) for row in getattr(self, name)] for name in ("curve", "dev_curve")}
        return {**content, **rows, "top": [e.to_json() for e in self.top], "finalists": list(content["finalists"])}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> RunOutcome:
        """Read the JSON form back."""
        estimates = {name: Estimate.from_json(form[name]) for name in ("train", "dev", "test")}
        rows = {name: tuple(tuple(row) for row in form[name]) for name in ("curve", "dev_curve")}
        top = tuple(Estimate.from_json(e) for e in form["top"])
        return cls(
            **{
                **{f.name: form[f.name] for f in fields(cls) if f.name not in ("race", "unanswered")},
                "race": form.get("race"),
                "unanswered": form.get("unanswered", {}),
                **estimates,
                **rows,
                "top": top,
                "finalists": tuple(form["finalists"]),
            }
        )


@dataclass(frozen=True)
class BaselineOutcome:
    """What nobody's search found: the empty and the manual prompt, in-context examples, gradient-tuned soft prompts.

    ``seed`` is None where nothing is drawn. ``white_box``: made with the LM's gradients, which no searcher sees: a
    ceiling, not a competitor. ``passes`` are its forward and backward passes of one example, ``train_loss`` its mean
    cross-entropy on train in nats, where it was tuned.
    """

    name: str
    task: str
    split: str
    model: str
    seed: int | None
    dev: Estimate
    test: Estimate
    tokens_per_use: float
    text: str = ""
    white_box: bool = False
    passes: int = 0
    seconds: float = 0.0
    train_loss: float | None = None

    @property
    def stratum(self) -> tuple[str, str, str]:
        """Task, split, model."""
        return self.task, self.split, self.model

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**asdict(self), "dev": self.dev.to_json(), "test": self.test.to_json()}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> BaselineOutcome:
        """Read the JSON form back."""
        given = {f.name: form[f.name] for f in fields(cls)}
        return cls(**{**given, **{name: Estimate.from_json(form[name]) for name in ("dev", "test")}})


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison. ``to_json`` is what ``--json`` prints and ``comparison.json`` holds.

    Attributes:
        runs, baselines: all of them.
        tables: one for each task and LM, and an overall one where there are several; see docs/compare.md.
        failed: a run's name -> what it failed of.
        remarks: what a reader must know of the tables.
        budget: evaluations of each run.
        report_evaluations: pairs of the closing reports.
        study_dir, store: where everything lies.
        seconds: the wall's time.
        pools: LM -> its scorers: how many, dtype, device class, batch shapes.
    """

    runs: tuple[RunOutcome, ...]
    baselines: tuple[BaselineOutcome, ...]
    tables: tuple[Mapping[str, Any], ...]
    budget: int
    seeds: tuple[int, ...]
    study_dir: Path | str
    store: str
    seconds: float
    report_evaluations: int
    failed: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    pools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema ``rayprompt.compare/1``."""
        return {
            "schema": COMPARE_SCHEMA,
            "tables": [dict(table) for table in self.tables],
            "baselines": [b.to_json() for b in self.baselines],
            "runs": [run.to_json() for run in self.runs],
            "failed": dict(self.failed),
            "remarks": list(self.remarks),
            "budget": self.budget,
            "seeds": list(self.seeds),
            "report_evaluations": self.report_evaluations,
            "pools": {name: dict(pool) for name, pool in self.pools.items()},
            "seconds": self.seconds,
            "study_dir": str(self.study_dir),
            "store": self.store,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Comparison:
        """Read the JSON form back."""
        return cls(
            **{
                **{f.name: form[f.name] for f in fields(cls)},
                "runs": tuple(RunOutcome.from_json(run) for run in form["runs"]),
                "baselines": tuple(BaselineOutcome.from_json(b) for b in form["baselines"]),
                "tables": tuple(form["tables"]),
                "remarks": tuple(form["remarks"]),
                "seeds": tuple(form["seeds"]),
                "study_dir": form["study_dir"] if is_uri(form["study_dir"]) else Path(form["study_dir"]),
            }
        )


def read_comparison(study: str | Path) -> Comparison:
    """The outcome of a finished comparison, from its directory.

    Raises:
        InputError: there is none, or one of another version.
    """
    file = Path(study) / RESULT_FILE
    if not file.is_file():
        raise InputError(f"{study}: not the directory of a finished comparison (it holds no {RESULT_FILE})")
    return read_outcome(file, COMPARE_SCHEMA, OutcomeRecord, Comparison.from_json)
