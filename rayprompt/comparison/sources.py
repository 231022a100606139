"""Where a transfer begins: what finished searches and comparisons have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayprompt.candidate import ConditionedPrompt, TextPrompt, candidate_from_json
from rayprompt.comparison.outcome import COMPARISON_SCHEMA, RESULT_FILE, read_comparison
from rayprompt.errors import InputError
from rayprompt.lm.settings import LMSettings
from rayprompt.study.manifest import FILE, kind_of, read_manifest
from rayprompt.study.place import opened
from rayprompt.study.results import Baseline, read_result
from rayprompt.study.statistics import Estimate


@dataclass(frozen=True)
class Source:
    """What a finished search found: a row of the table.

    Attributes:
        name, path: what it is called, and the directory it came from; of a comparison the run, and the comparison's.
        model, model_location, model_digest: the LM that its figures are of; with a proxy the one that counted.
        settings: how that LM was run.
        task, task_location, task_digest, data, split: of the task; the location is None for Python objects.
        judge: of a generation task, what completions were judged by.
        finalists: as text prompts with the token ids they had, best on train first; of a soft winner the one text that
            was measured with it.
        winner: the position of the one that dev picked on its own LM.
        as_text: it is a search of soft prompts, and its winner stands here as text.
        test: what the study measured of that winner.
    """

    name: str
    path: Path
    model: str
    model_location: str
    model_digest: str
    settings: LMSettings
    task: str
    task_location: str | Mapping[str, Any] | None
    task_digest: str
    judge: Mapping[str, Any] | None
    data: str | None
    split: str
    finalists: tuple[TextPrompt, ...]
    winner: int
    as_text: bool
    test: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "study_dir": str(self.path),
            "model": self.model,
            "model_digest": self.model_digest,
            "as_text": self.as_text,
            "finalists": [{**prompt.to_json(), "key": prompt.key} for prompt in self.finalists],
            "winner": self.winner,
            "test": self.test.to_json(),
        }


def sources_of(location: str | Path) -> list[Source]:
    """The finished search in a directory; of a comparison all its runs.

    Raises:
        InputError: it is not a study's, or the study has not come to its end.
    """
    path = opened(location)
    if not path.is_dir():
        raise InputError(f"STUDY {location}: no such directory; a study's is wanted (rayprompt search --out DIR)")
    if not (path / FILE).is_file():
        raise InputError(f"STUDY {location}: not a study (it holds no {FILE})")
    compared = kind_of(path) == COMPARISON_SCHEMA
    record = read_manifest(path, COMPARISON_SCHEMA) if compared else read_manifest(path)
    file, command = (RESULT_FILE, "compare") if compared else ("result.json", "search")
    if not (path / file).is_file():
        raise InputError(
            f"STUDY {location}: not finished (it holds no {file}); to go on: rayprompt {command} --resume {location}"
        )
    return _of_comparison(path, record) if compared else [_of_search(path, record)]


def _of_search(path: Path, record: Mapping[str, Any]) -> Source:
    result = read_result(path / "result.json")
    finalists, winner = _found(result.finalists, result.best_prompt.key, result.decoded)
    test = result.test if result.decoded is None else result.decoded.test
    model = record["target"] or {**record["model"], "tokens": record["pool"].get("tokens")}
    split = record["task"]["split"]
    return _source(path.name, path, model, record["task"], split, finalists, winner, result.decoded is not None, test)


def _of_comparison(path: Path, record: Mapping[str, Any]) -> list[Source]:
    sources = []
    for run in read_comparison(path).runs:
        decoded = None if run.decoded is None else Baseline.from_json(run.decoded)
        finalists, winner = _found(run.finalists, run.prompt["key"], decoded)
        about = next((a for a in record["tasks"] if a["name"] == run.task and run.split in a["splits"]), None)
        found = next((about for about in record["models"] if about["name"] == run.model), None)
        if about is None or found is None:
            wrong = f"{run.task}, split {run.split}, on {run.model}"
            raise InputError(f"{path / RESULT_FILE}: run {run.name} is of {wrong}, which {FILE} does not name")
        task = {**about, "digest": about["splits"][run.split]}
        model = {**found, "tokens": record["pools"].get(run.model, {}).get("tokens")}
        test = run.test if decoded is None else decoded.test
        sources.append(_source(run.name, path, model, task, run.split, finalists, winner, decoded is not None, test))
    return sources


def _source(
    name: str,
    path: Path,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    split: str,
    finalists: tuple[TextPrompt, ...],
    winner: int,
    as_text: bool,
    test: Estimate,
) -> Source:
    return Source(
        name=name,
        path=path,
        model=model["name"],
        model_location=model["location"],
        model_digest=model["digest"],
        settings=LMSettings.of(model.get("settings")).without(("trust_remote_code",)).with_tokens(model.get("tokens")),
        task=task["name"],
        task_location=task["location"],
        task_digest=task["digest"],
        judge=task.get("judge"),
        data=task.get("data"),
        split=split,
        finalists=finalists,
        winner=winner,
        as_text=as_text,
        test=test,
    )


def _found(
    finalists: Sequence[Mapping[str, Any]], best: str, decoded: Baseline | None
) -> tuple[tuple[TextPrompt, ...], int]:
    """The finalists as text prompts, and the position of the winner; of a soft winner the text that was measured."""
    if decoded is not None:
        return (decoded.prompt,), 0
    prompts = [candidate_from_json(dict(form)) for form in finalists]
    texts = tuple(prompt for prompt in prompts if isinstance(prompt, TextPrompt))
    if any(isinstance(prompt, ConditionedPrompt) and prompt.key == best for prompt in prompts):
        raise InputError("its prompts were written for the inputs of its task, one by one: there is none to transfer")
    return texts, [prompt.key for prompt in texts].index(best)
