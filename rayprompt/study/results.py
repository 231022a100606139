"""What a search, an evaluation and an exported prompt look like, in Python and as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from rayprompt.candidate import ZEROS, Candidate, ConditionedPrompt, SoftPrompt, TextPrompt, candidate_from_json
from rayprompt.errors import InputError
from rayprompt.foreign import read_json
from rayprompt.lm.vectors import P0, read_vectors, vectors_digest
from rayprompt.records import PromptRecord, ResultRecord
from rayprompt.searcher.problem import Problem
from rayprompt.study.place import is_uri, location_of
from rayprompt.study.statistics import Estimate
from rayprompt.study.whole import write_whole
from rayprompt.typed import check, shown
from rayprompt.written import check_written

SEARCH_SCHEMA = "rayprompt.search/1"
EVALUATE_SCHEMA = "rayprompt.evaluate/1"
SCORE_SCHEMA = "rayprompt.score/1"
PROMPT_SCHEMA = "rayprompt.prompt/1"
T = TypeVar("T")
RESULT_FILE, PROMPT_FILE = "result.json", "prompt.json"
VECTORS_FILE = "prompt.safetensors"  # of a soft prompt, beside prompt.json


@dataclass(frozen=True)
class Baseline:
    """A prompt that nobody searched for, measured beside the winner."""

    prompt: TextPrompt
    dev: Estimate
    test: Estimate

    def to_json(self) -> dict[str, Any]:
        ids = {} if self.prompt.token_ids is None else {"token_ids": list(self.prompt.token_ids)}
        return {**self.test.to_json(), "text": self.prompt.text, **ids, "dev": self.dev.to_json()}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Baseline:
        """Read the JSON form back."""
        ids = None if form.get("token_ids") is None else tuple(form["token_ids"])
        return cls(TextPrompt(form["text"], ids), Estimate.from_json(form["dev"]), Estimate.from_json(form))


@dataclass(frozen=True)
class Result:
    """The outcome of a search. ``to_json`` is what ``--json`` prints and ``result.json`` holds.

    Attributes:
        best_prompt: the winner: the finalist with the best dev metric.
        train, dev, test: its task metric; test was opened once, after dev had fixed the winner.
        baselines: name (``empty``, ``manual``) -> what they reach.
        p_value: of a paired test of the task metric (``p_test``: exact McNemar for right and wrong; by permutation for
            F1 and graded values) of winner against the manual prompt on test; None where there is no manual prompt.
        finalists: the best on train, each with its train and dev metric.
        evaluations: distinct (candidate, example) pairs the search asked for.
        shape_breaks: batches that had to be cut smaller than the shape table says, for lack of memory: from the first
            one on, last bits may differ from another run's.
        lm_evaluations: pairs the LM ran for the search, again after a loss included; 0 where a store knew all.
        report_evaluations, report_lm_evaluations: the same two of the closing report.
        lm_seconds: the scorers' time for the search.
        written: tokens that the LM wrote for the search, part of ``tokens``.
        cut: completions that the limit of new tokens ended, of search and report.
        cost: money that search and report cost, at the LM's prices; None where it has none.
        replay_differs: generations that a resumed search asked for in another way than on record; 0 unless versions
            of libraries have changed, or a searcher is not deterministic.
        test_opened: how many budgets this study has had when test was opened: once, unless it was given more.
        end: why the search ended: ``budget``, ``exhausted``, ``stalled``, or the searcher's own reason.
        truncated: part -> how many of its texts lost words to fit the LM with the winner.
        timings: seconds by phase.
        decoded: for a soft winner, the text whose tokens are nearest to it, and what that reaches by itself.
        proxy_model: the LM that was searched on, where that was not ``model``.
        searcher_metrics: what the searcher says of itself, such as why CMA-ES began anew.
        race: where candidates raced, its error rate, how many were dropped, and the evaluations which that has spared.
        unanswered: part -> how many pairs there were, how many of them are unanswered, by reason, and the positions of
            the examples on which no prompt got an answer (:func:`rayprompt.unanswered.tally`). On train of the whole
            search, on dev and test of the prompts that were measured.
        machines: the machine classes that the search's scores are from (docs/design.md), the latest last.
        same_bits: whether scores have the same bits wherever data lies in memory; None where no LM was loaded.
        top: where the searcher alone nominates for dev, as papers do: test of the three best on dev, winner first.
    """

    best_prompt: Candidate
    train: Estimate
    dev: Estimate
    test: Estimate
    baselines: Mapping[str, Baseline]
    p_value: float | None
    finalists: tuple[dict[str, Any], ...]
    evaluations: int
    lm_evaluations: int
    report_evaluations: int
    report_lm_evaluations: int
    cache_hits: int
    tokens: int
    lm_seconds: float
    shape_breaks: int
    replay_differs: int
    test_opened: int
    seconds: float
    evaluations_per_second: float
    end: str
    study_dir: Path | str
    store: str
    task: str
    split: str
    model: str
    searcher: str
    seed: int
    budget: int
    round_trips: bool
    truncated: Mapping[str, int] = field(default_factory=dict)
    leaks: Mapping[str, int] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    decoded: Baseline | None = None
    proxy_model: str | None = None
    searcher_metrics: Mapping[str, Any] = field(default_factory=dict)
    top: tuple[Estimate, ...] = ()
    p_test: str = "exact McNemar"
    written: int = 0
    cut: int = 0
    cost: float | None = None
    race: Mapping[str, Any] | None = None
    unanswered: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    machines: tuple[str, ...] = ()
    same_bits: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form, schema ``rayprompt.search/1``."""
        prompt = {**self.best_prompt.to_json(), "key": self.best_prompt.key, "round_trips": self.round_trips}
        if isinstance(self.best_prompt, ConditionedPrompt):
            prompt["diversity"] = self.best_prompt.diversity()
        if isinstance(self.best_prompt, SoftPrompt):
            prompt["file"] = VECTORS_FILE  # in study_dir
        counts = (
            *("evaluations", "lm_evaluations", "report_evaluations", "report_lm_evaluations", "cache_hits", "tokens"),
            *("written", "cut", "cost", "lm_seconds", "shape_breaks", "replay_differs", "test_opened"),
        )
        about = ("task", "split", "model", "searcher", "seed", "budget", "end")
        return {
            "schema": SEARCH_SCHEMA,
            "best_prompt": prompt,
            **{part: getattr(self, part).to_json() for part in ("train", "dev", "test")},
            "baselines": {name: baseline.to_json() for name, baseline in self.baselines.items()},
            "p_value_manual": self.p_value,
            "p_test": self.p_test,
            "decoded": None if self.decoded is None else self.decoded.to_json(),
            "finalists": list(self.finalists),
            **{name: getattr(self, name) for name in counts},
            "seconds": self.seconds,
            "evaluations_per_second": self.evaluations_per_second,
            **{name: getattr(self, name) for name in about},
            "proxy_model": self.proxy_model,
            "searcher_metrics": dict(self.searcher_metrics),
            "race": None if self.race is None else dict(self.race),
            "top": [estimate.to_json() for estimate in self.top],
            "machines": list(self.machines),
            "same_bits": self.same_bits,
            "truncated": dict(self.truncated),
            "unanswered": {part: dict(found) for part, found in self.unanswered.items()},
            "leaks": dict(self.leaks),
            "timings": dict(self.timings),
            "study_dir": str(self.study_dir),
            "store": self.store,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Result:
        """Read the JSON form back."""
        given = {name: form[name] for name in (f.name for f in fields(cls)) if name in form}
        return cls(
            **{
                **given,
                "best_prompt": candidate_from_json(form["best_prompt"]),
                "round_trips": form["best_prompt"]["round_trips"],
                "p_value": form["p_value_manual"],
                "baselines": {name: Baseline.from_json(b) for name, b in form["baselines"].items()},
                "decoded": None if form.get("decoded") is None else Baseline.from_json(form["decoded"]),
                "finalists": tuple(form["finalists"]),
                "machines": tuple(form.get("machines", [])),
                "top": tuple(Estimate.from_json(e) for e in form.get("top", [])),
                "study_dir": form["study_dir"] if is_uri(form["study_dir"]) else Path(form["study_dir"]),
                **{part: Estimate.from_json(form[part]) for part in ("train", "dev", "test")},
            }
        )


def export_prompt(problem: Problem, prompt: Candidate, scores: Mapping[str, Estimate]) -> dict[str, Any]:
    """The JSON form of an exported prompt, schema ``rayprompt.prompt/1``: all that is needed to use it elsewhere."""
    settings = problem.lm.settings.without(("trust_remote_code",)).changed()
    return {
        "schema": PROMPT_SCHEMA,
        "prompt": {
            **prompt.to_json(),
            "key": prompt.key,
            **({"file": VECTORS_FILE} if isinstance(prompt, SoftPrompt) else {}),
        },
        "round_trips": not isinstance(prompt, SoftPrompt) and problem.round_trips(prompt),
        "task": {"name": problem.task.name, "split": problem.split, "digest": problem.task.digest},
        "template": problem.template.source,
        "label_words": dict(zip(problem.task.labels, problem.task.label_words, strict=True)),
        **({"judge": problem.task.judge.to_json()} if problem.task.generates else {}),
        "model": {
            "name": problem.lm.name,
            "digest": problem.lm.digest,
            **({"settings": settings} if settings else {}),
        },
        "scores": {part: estimate.to_json() for part, estimate in scores.items()},
    }


@dataclass(frozen=True)
class PromptFile:
    """An exported prompt, read back: the candidate, the LM and task it was found on (None: not said), how LMs ran."""

    prompt: Candidate
    source: Path
    split: str | None = None
    model: str | None = None
    model_digest: str | None = None
    task_digest: str | None = None
    round_trips: bool = True
    lm: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)

    def on(self, problem: Problem) -> Candidate:
        """The candidate as it can be used on ``problem``: token ids belong to one vocabulary, text to any.

        Raises:
            InputError: it was found on another LM and its text does not say it all, or it has no text.
        """
        if isinstance(self.prompt, SoftPrompt):
            return self._soft_on(problem, self.prompt)
        if self.model_digest is None or problem.lm.same(self.model_digest):
            return self.prompt
        if isinstance(self.prompt, ConditionedPrompt):
            texts = problem.prompts([prompt.text for _, prompt in self.prompt.prompts])
            return ConditionedPrompt(tuple(zip((example for example, _ in self.prompt.prompts), texts, strict=True)))
        if not self.round_trips:
            raise InputError(
                f"{self.source}: this prompt is token ids of {self.model} that its text does not give back; "
                f"it cannot be used on {problem.lm.name}"
            )
        return problem.prompt(self.prompt.text)

    def _soft_on(self, problem: Problem, prompt: SoftPrompt) -> Candidate:
        if self.model_digest is not None and not problem.lm.same(self.model_digest):
            raise InputError(
                f"{self.source}: a soft prompt of {self.model} cannot be used on {problem.lm.name}, another LM"
            )
        if prompt.subspace.p0 != ZEROS:
            vectors = read_vectors(self.source.parent / VECTORS_FILE, P0)[0]
            if vectors_digest(vectors) != prompt.subspace.p0:
                raise InputError(f"{self.source.parent / VECTORS_FILE}: not the initial vectors of {self.source}")
            problem.vectors[prompt.subspace.p0] = vectors
        return prompt


def read_prompt_file(path: Path) -> PromptFile:
    """Read an exported prompt, or the bare JSON form of a candidate.

    Raises:
        InputError: the file is missing or is neither, or is not what its study wrote.
    """
    check_written(path)
    content = read_json(path)
    if "schema" not in content:
        return PromptFile(_candidate(content, path), path)
    if content["schema"] != PROMPT_SCHEMA:
        raise InputError(f"{path}: schema {shown(content['schema'])}; this version reads {PROMPT_SCHEMA!r}")
    check(content, PromptRecord, str(path))
    model, task = content["model"], content["task"]
    return PromptFile(
        _candidate(content["prompt"], path),
        path,
        split=task.get("split"),
        model=model.get("name"),
        model_digest=model.get("digest"),
        task_digest=task.get("digest"),
        round_trips=content.get("round_trips") is not False,
        lm=model.get("settings") or {},
        judge=content.get("judge") or {},
    )


def _candidate(form: Mapping[str, Any], path: Path) -> Candidate:
    try:
        return candidate_from_json(form)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_result(path: Path) -> Result:
    """A study's result.json, read back.

    Raises:
        InputError: it is not one, or of another version.
    """
    return read_outcome(path, SEARCH_SCHEMA, ResultRecord, Result.from_json)


def read_outcome(path: Path, schema: str, record: type, make: Callable[[Mapping[str, Any]], T]) -> T:
    """What a JSON file of a schema holds; ``record``: its keys and types.

    Raises:
        InputError: it holds something else, is of another version, or is not what the study wrote.
    """
    content = read_checked(path, schema, record)
    try:
        return make(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({shown(error)})") from None


def read_checked(path: Path, schema: str, record: type) -> dict[str, Any]:
    """The object in a JSON file of a schema; ``record``: its keys and types.

    Raises:
        InputError: it holds something else, is of another version, or is not what the study wrote.
    """
    check_written(path)
    content = read_json(path)
    if content.get("schema") != schema:
        raise InputError(f"{path}: schema {shown(content.get('schema'))}; this version reads {schema!r}")
    check(content, record, str(path))
    return content


def go_on(command: str, study: Path) -> str:
    """How a study is taken up again, for people."""
    return f"to go on: rayprompt {command} --resume {shlex.quote(location_of(study))}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
