"""What stands in the files of a study: the types that readers rely on. Files may hold more."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from rayprompt.errors import InputError
from rayprompt.typed import check

Mapping = dict[str, Any]


class TaskRecord(TypedDict):
    """The task of a search."""

    name: str
    location: str | Mapping | None
    split: str
    digest: str
    data: NotRequired[str | None]
    template: NotRequired[str]
    judge: NotRequired[Mapping | None]
    examples: NotRequired[dict[str, int]]


class LMRecord(TypedDict):
    """An LM."""

    name: str
    location: str
    digest: str
    settings: NotRequired[Mapping | None]
    endpoint: NotRequired[Mapping | None]


class SearcherRecord(TypedDict):
    """The searcher of a search."""

    name: str
    objective: str
    seed: int
    planned_candidates: int
    settings: Mapping
    subspace: Mapping | None
    content: NotRequired[Any]


# `class` is a keyword of Python, and so no name of a field above.
SearcherClass = TypedDict("SearcherClass", {"class": str})


class SearcherPart(SearcherRecord, SearcherClass):
    """The searcher of a search, with where its class is imported from."""


class BatchRecord(TypedDict):
    """``tune_native`` of a search."""

    batch_size: NotRequired[int | None]


class TrackerRecord(TypedDict):
    """Where runs are shown besides."""

    wandb: NotRequired[str | None]
    mlflow: NotRequired[str | None]


class PoolRecord(TypedDict):
    """What is known of the scorers."""

    tokens: NotRequired[int | None]


class StudyRecord(TypedDict):
    """study.yaml of a search."""

    id: str
    budget: int
    finalists: int
    store: str
    allow_leaks: bool
    tune_native: BatchRecord | None
    points: list[Mapping]
    target: LMRecord | None
    task: TaskRecord
    model: LMRecord
    searcher: SearcherPart
    race: NotRequired[float | None]
    trackers: NotRequired[TrackerRecord | None]
    test_opened: NotRequired[list[int]]
    pool: NotRequired[PoolRecord]
    leaks: NotRequired[dict[str, int]]
    versions: NotRequired[dict[str, str]]


class ComparedTask(TypedDict):
    """A task of a comparison; ``splits`` are digests by name."""

    name: str
    location: str | Mapping | None
    data: str | None
    splits: dict[str, str]
    judge: NotRequired[Mapping | None]


class EntryRecord(TypedDict):
    """A searcher of a comparison."""

    label: str
    group: str
    settings: Mapping


class EntryPart(EntryRecord, SearcherClass):
    """A searcher of a comparison, with where its class is imported from."""


class ComparisonRecord(TypedDict):
    """study.yaml of a comparison."""

    id: str
    store: str
    seeds: list[int]
    options: list[str]
    budget: int
    finalists: int
    allow_leaks: bool
    objective: str | None
    baselines: list[str]
    tasks: list[ComparedTask]
    models: list[LMRecord]
    entries: list[EntryPart]
    resolved: dict[str, Mapping]
    pools: dict[str, PoolRecord]
    versions: dict[str, str]
    race: NotRequired[float | None]
    trackers: NotRequired[TrackerRecord | None]
    test_opened: NotRequired[list[Any]]


class EstimateRecord(TypedDict):
    """A metric that was measured."""

    metric: str
    value: float
    n: int
    ci95: list[float]


class TextRecord(EstimateRecord):
    """A baseline: its figures on test, its text, and its figures on dev."""

    text: str
    dev: EstimateRecord
    token_ids: NotRequired[list[int] | None]


class FinalistRecord(TypedDict):
    """One of the best on train; the keys of a candidate stand beside these."""

    kind: str
    objective: NotRequired[float | None]
    train: NotRequired[float | None]
    dev: NotRequired[float | None]


class BestRecord(TypedDict):
    """The winner; the keys of a candidate stand beside these."""

    kind: str
    key: str
    round_trips: bool
    text: NotRequired[str]


class RaceRecord(TypedDict):
    """What a race has spared."""

    error: float


class ResultRecord(TypedDict):
    """result.json of a search."""

    best_prompt: BestRecord
    train: EstimateRecord
    dev: EstimateRecord
    test: EstimateRecord
    baselines: dict[str, TextRecord]
    p_value_manual: float | None
    p_test: NotRequired[str]
    unanswered: NotRequired[dict[str, Mapping]]
    decoded: NotRequired[TextRecord | None]
    finalists: list[FinalistRecord]
    evaluations: int
    lm_evaluations: int
    report_evaluations: int
    report_lm_evaluations: int
    cache_hits: int
    tokens: int
    written: NotRequired[int]
    cost: NotRequired[float | None]
    lm_seconds: float
    shape_breaks: int
    replay_differs: int
    test_opened: int
    seconds: float
    evaluations_per_second: float
    task: str
    split: str
    model: str
    searcher: str
    seed: int
    budget: int
    end: str
    proxy_model: NotRequired[str | None]
    searcher_metrics: NotRequired[Mapping]
    race: NotRequired[Mapping | None]
    top: NotRequired[list[EstimateRecord]]
    truncated: NotRequired[dict[str, int]]
    leaks: NotRequired[dict[str, int]]
    timings: NotRequired[dict[str, float]]
    study_dir: str
    store: str


class ComparedRun(TypedDict):
    """A run in comparison.json."""

    name: str
    searcher: str
    group: str
    settings: Mapping
    objective: str
    task: str
    split: str
    model: str
    seed: int
    end: str
    prompt: BestRecord
    train: EstimateRecord
    dev: EstimateRecord
    test: EstimateRecord
    top: list[EstimateRecord]
    decoded: TextRecord | None
    finalists: list[FinalistRecord]
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
    curve: list[list[float]]
    dev_curve: list[list[float]]
    unanswered: NotRequired[dict[str, Mapping]]
    race: NotRequired[Mapping | None]


class ComparedBaseline(TypedDict):
    """A baseline in comparison.json."""

    name: str
    task: str
    split: str
    model: str
    seed: int | None
    dev: EstimateRecord
    test: EstimateRecord
    tokens_per_use: float
    text: str
    white_box: bool


class OutcomeRecord(TypedDict):
    """comparison.json."""

    runs: list[ComparedRun]
    baselines: list[ComparedBaseline]
    tables: list[Mapping]
    failed: dict[str, str]
    remarks: list[str]
    budget: int
    seeds: list[int]
    report_evaluations: int
    pools: dict[str, Mapping]
    seconds: float
    study_dir: str
    store: str


class PromptTask(TypedDict):
    """The task in prompt.json."""

    name: NotRequired[str]
    split: NotRequired[str | None]
    digest: NotRequired[str | None]


class PromptLM(TypedDict):
    """The LM in prompt.json."""

    name: NotRequired[str | None]
    digest: NotRequired[str | None]
    settings: NotRequired[Mapping | None]


class JudgeRecord(TypedDict):
    """What judges completions, in prompt.json."""

    extractor: str
    scorer: str


class PromptRecord(TypedDict):
    """prompt.json: an exported prompt."""

    prompt: Mapping
    task: PromptTask
    model: PromptLM
    round_trips: NotRequired[bool]
    judge: NotRequired[JudgeRecord | None]


class RunReport(TypedDict):
    """How a search got on, in runs/*.json."""

    objective: str
    end: str
    best_score: float
    best_objective: float
    evaluations: int
    candidates: int
    lm_evaluations: int
    cache_hits: int
    asked_tokens: int
    device_seconds: float
    own_seconds: float
    loop_seconds: float


class TraceRecord(TypedDict):
    """The curve of a search, in runs/*.json."""

    rows: list[list[float]]
    incumbents: list[list[Any]]


class RunRecord(TypedDict):
    """runs/*.json: the report that a search ended with, and its curve."""

    report: RunReport
    trace: TraceRecord


def check_record(content: Mapping, path: str) -> None:
    """See that a study.yaml holds what its readers rely on.

    Raises:
        InputError: something is missing or of another type.
    """
    compared = str(content.get("schema")).startswith("rayprompt.comparison/")
    check(content, ComparisonRecord if compared else StudyRecord, path)
    for name in content["options"] if compared else ():
        if name not in content:
            raise InputError(f"{path}: {name} is missing; options names it")
