"""Warm starts: what an earlier study or a store knows, as the first candidates of a new search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt, candidate_from_json, parse_candidate
from rayprompt.errors import InputError
from rayprompt.lm.judges import judges_here
from rayprompt.pairs import Answers, PairTable
from rayprompt.scores import Scores, pair_errors, right
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.store.files import Folder
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore
from rayprompt.study.place import is_uri, opened
from rayprompt.study.results import read_prompt_file, read_result
from rayprompt.unanswered import TRIED, Reason

MOST_POINTS = 10  # taken from a store


def starting_points(searcher: PromptSearcher, location: str | Path) -> list[Candidate]:
    """The finalists of the finished study at ``location``, or the best on train of the store there, best first.

    Text prompts of another LM are tokenised anew. Of a soft study, a searcher of text takes the decoded winner.

    Raises:
        InputError: there is neither, or it holds nothing that this search can begin with.
    """
    study = location
    if is_uri(location) and "result.json" in Folder.at(location).names():
        study = opened(location)
    path = Path(study)
    if (path / "result.json").is_file():
        found = _finalists(searcher, path)
    elif is_uri(location) or (path / "store.json").is_file():
        found = _best_of_store(searcher, location)
    else:
        raise InputError(f"--warm-start {location}: neither a finished study (result.json) nor a store (store.json)")
    usable = [c for c in (_usable(searcher, candidate) for candidate in found) if c is not None]
    if not usable:
        hint = "; a soft search begins at a text with --set p0=STUDY" if searcher.kind == "soft" else ""
        raise InputError(
            f"--warm-start {location}: none of its {len(found)} prompts can be used here: {searcher.name} takes "
            f"{searcher.kind} prompts of its own search space{hint}"
        )
    return list(dict.fromkeys(usable))


def known_prompts(searcher: PromptSearcher, location: str | Path, most: int) -> list[Candidate]:
    """The prompts that a store, or a study's own, has on all of the train examples, best first; else its finalists.

    Raises:
        InputError: there is neither store nor finished study.
    """
    path = Path(location)
    if is_uri(location) or (path / "store.json").is_file():
        found = _best_of_store(searcher, location, most)
        if found:
            return found
    return starting_points(searcher, location)


def _finalists(searcher: PromptSearcher, study: Path) -> list[Candidate]:
    result = read_result(study / "result.json")
    had = _model_digest(study)
    same_lm = had is None or searcher.problem.lm.same(had)
    rows = sorted(result.finalists, key=lambda row: -float(row["objective"]))
    prompts: list[Candidate] = [candidate_from_json(row) for row in rows]
    if result.decoded is not None and searcher.kind == "text":
        prompts.append(result.decoded.prompt)
    return prompts if same_lm else [TextPrompt(p.text) for p in prompts if isinstance(p, TextPrompt)]


def _model_digest(study: Path) -> str | None:
    try:
        return read_prompt_file(study / "prompt.json").model_digest
    except InputError:
        return None


def _usable(searcher: PromptSearcher, candidate: Candidate) -> Candidate | None:
    """The candidate as this searcher's problem has it; None where it cannot be."""
    if candidate.kind != searcher.kind:
        return None
    if isinstance(candidate, SoftPrompt):
        space, outline = candidate.subspace, searcher.outline
        if outline is None or replace(space, scales=()) != replace(outline, scales=()):
            return None
        # Its scales are taken over: with other ones its prompts would be others, and measured anew they might differ.
        scales = searcher.problem.layer_scales.setdefault(outline.key, space.scales)
        return candidate if space.scales == scales else None
    if not isinstance(candidate, TextPrompt):  # prompts for single inputs are none for all
        return None
    return candidate if candidate.token_ids is not None else searcher.problem.prompt(candidate.text)


def _best_of_store(searcher: PromptSearcher, location: str | Path, most: int = MOST_POINTS) -> list[Candidate]:
    """The best by the searcher's objective, of those that the store has on all of its train examples."""
    best: dict[str, float] = {}
    candidates: dict[str, Candidate] = {}
    for candidate, scores in stored_scores(searcher.problem, location, searcher.kind):
        value = float(searcher.objective(scores)[0])
        if np.isfinite(value):
            candidates[candidate.key] = candidate
            best[candidate.key] = max(value, best.get(candidate.key, -np.inf))
    order = sorted(best, key=lambda key: -best[key])[:most]
    return [candidates[key] for key in order]


def stored_scores(problem: Problem, location: str | Path, kind: str) -> Iterator[tuple[Candidate, Scores]]:
    """Candidates of a kind that a store has on all train examples of ``problem``, each with its scores there.

    Scores of another LM, template, split or way of running the LM are left out.
    """
    store, examples = ScoreStore(location), problem.digests("train")
    forms = store.candidates()
    wanted = forms.filter(pc.equal(forms.column("kind"), kind))
    by_key = dict(zip(wanted.column("candidate").to_pylist(), wanted.column("form").to_pylist(), strict=True))
    for context, content in _contexts(store).items():
        if any(content.get(name) != value for name, value in problem.content.items()):
            continue
        part = problem.part("train")
        table = PairTable(list(dict.fromkeys(examples)), len(part.labels), part.samples)
        store.load(table, context, "train")
        first = np.array([table.columns[d] for d in examples])
        columns = (first[:, None] + np.arange(part.samples)).reshape(-1)
        known = table.known[: len(table)]
        whole = np.asarray((known | table.unanswerable(known, TRIED)).all(axis=1) & known.any(axis=1))
        for key in [k for k, row in table.rows.items() if k in by_key and whole[row]]:
            candidate = parse_candidate(by_key[key])
            row = np.full(len(columns), table.rows[key])
            answers = table.answers(row, columns)
            answers.reason[~table.known[row, columns]] = Reason.SKIPPED
            yield candidate, _scores(problem, answers)


def _contexts(store: ScoreStore) -> dict[str, dict[str, Any]]:
    """Digest -> content of the contexts in a store."""
    found = {}
    for shard in store.shards("scores", part="train"):
        content = shard.context
        found[Context(content).key] = content
    return found


def _scores(problem: Problem, answers: Answers) -> Scores:
    """One candidate's scores on all train examples; samples of an example stand together."""
    samples = problem.part("train").samples
    place = np.flatnonzero(answers.reason == Reason.ANSWERED)
    missing = np.flatnonzero(answers.reason)
    none = np.zeros(len(answers), dtype=np.int32)
    some, example = answers.take(place), place // samples
    if problem.judge is None:
        value, log_probs = right(some.label_log_probs, problem.gold[example]), some.label_log_probs
    else:
        gold = problem.answers("train")
        assert some.completion is not None
        value = problem.judge.values(some.completion.tolist(), [gold[i] for i in example], judges_here().run)
        log_probs = None
    return Scores(
        candidates=(TextPrompt(""),),
        examples=np.arange(len(problem.gold)),
        candidate=none[place],
        example=example,
        sample=place % samples,
        value=value,
        label_log_probs=log_probs,
        tokens=none[place],
        seconds=none[place].astype(np.float32),
        errors=pair_errors(none[missing], missing // samples, missing % samples, answers.reason[missing]),
        samples=samples,
    )
