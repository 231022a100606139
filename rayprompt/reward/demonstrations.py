"""Demonstrations: what an LM got right with which prompt; a Parquet file of rows (query, prompt) -> correct."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from rayprompt.candidate import digest
from rayprompt.errors import InputError, did_you_mean
from rayprompt.foreign import is_file
from rayprompt.reward.rows import (
    Places,
    TextArray,
    first_of,
    identified,
    instances_of,
    labels_of,
    refuse_nulls,
    signal_of,
)
from rayprompt.scores import BoolArray, FloatArray, IntArray
from rayprompt.tables import read_parquet

SCHEMA = "rayprompt.demonstrations/1"
REQUIRED = ("llm", "dataset", "split", "query_uid", "query", "prompt_id", "prompt", "correct")
SIGNALS = ("confidence", "critic")
OPTIONAL = ("template_uid", *SIGNALS, "answer", "gold")
NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True)
class Demonstrations:
    """What one LM got right: I instances of Q queries, under P prompts.

    A query that was answered several times under one prompt has as many instances: repeated rows are samples.

    Attributes:
        llm: its name.
        queries, datasets, uids, templates: (Q,) texts, where they are from, their ids, and the ids of their templates:
            queries that differ in numbers alone have the same.
        prompts, prompt_ids: (P,) texts and ids.
        query, split: (I,) index into the queries, and the part (train, test...) that an instance belongs to.
        correct: (I, P) 1 right, 0 wrong, NaN where it was not asked.
        confidence, critic: (I, P) or None: the LM's own confidence, and its verdict on its answer; NaN where there is
            none.
        answer: (I, P) or None: what was extracted from the LM's text; None where there is nothing.
        gold: (Q,) or None: the right answers; None where one is not known.
    """

    llm: str
    queries: tuple[str, ...]
    datasets: tuple[str, ...]
    uids: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: tuple[str, ...]
    prompt_ids: tuple[str, ...]
    query: IntArray
    split: TextArray
    correct: FloatArray
    confidence: FloatArray | None = None
    critic: FloatArray | None = None
    answer: npt.NDArray[np.object_] | None = None
    gold: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.query)

    @property
    def known(self) -> BoolArray:
        """(I, P) where there is a label."""
        return ~np.isnan(self.correct)

    @property
    def rows(self) -> int:
        """The number of labels."""
        return int(self.known.sum())

    @property
    def parts(self) -> set[tuple[str, str]]:
        """The (data set, split) that there are instances of."""
        return set(zip((self.datasets[q] for q in self.query.tolist()), self.split.tolist(), strict=True))

    @property
    def texts(self) -> list[str]:
        """(I,) the query of each instance."""
        return [self.queries[i] for i in self.query.tolist()]

    @cached_property
    def digest(self) -> str:
        """Of all that a model can learn from: queries, prompts, labels."""
        labels = [
            [self.uids[q], row.tolist()]
            for q, row in zip(self.query.tolist(), np.nan_to_num(self.correct, nan=-1), strict=True)
        ]
        return digest({"llm": self.llm, "queries": self.queries, "prompts": self.prompts, "labels": labels})

    def groups(self, by: str) -> IntArray:
        """(I,) numbers of the groups that must not be torn apart: by ``query`` text or ``template``.

        One template are queries with the same id of a template, with the same text, or with the same but for numbers.
        """
        if by not in ("query", "template"):
            raise InputError(f"groups by {by!r}; they are by query or by template")
        numbers: dict[Any, int] = {}
        pairs: list[tuple[int, int]] = []  # of a query and a key that it has
        for q, text in enumerate(self.queries):
            keys: list[Any] = [plain(text)]
            if by == "template":
                keys += [mask_numbers(text), (self.datasets[q], self.templates[q])]
            pairs += [(q, numbers.setdefault(key, len(numbers))) for key in keys]
        at, key = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        size = len(self.queries) + len(numbers)
        edges = csr_matrix((np.ones(len(at)), (at, key + len(self.queries))), shape=(size, size))
        return np.asarray(connected_components(edges, directed=False)[1][self.query], dtype=np.int64)

    def of(
        self, *, split: str | None = None, instances: Any = None, prompts: Sequence[int] | None = None
    ) -> Demonstrations:
        """Those of a split, of some instances (a mask or places), under some prompts; queries that are left over go."""
        keep = np.arange(len(self)) if instances is None else np.arange(len(self))[instances]
        if split is not None:
            keep = keep[self.split[keep] == split]
            if not len(keep):
                raise InputError(
                    f"no demonstrations of split {split!r}; there are {', '.join(sorted(set(self.split)))}"
                )
        columns = np.arange(len(self.prompts)) if prompts is None else np.asarray(prompts)
        keep = keep[self.known[np.ix_(keep, columns)].any(axis=1)]
        used, query = np.unique(self.query[keep], return_inverse=True)
        at = np.ix_(keep, columns)
        texts: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in used.tolist())
            for name in ("queries", "datasets", "uids", "templates", "gold")
            if getattr(self, name) is not None
        }
        dense: dict[str, Any] = {name: getattr(self, name) for name in (*SIGNALS, "answer")}
        dense = {name: None if values is None else values[at] for name, values in dense.items()}
        return replace(
            self,
            **texts,
            prompts=tuple(self.prompts[i] for i in columns.tolist()),
            prompt_ids=tuple(self.prompt_ids[i] for i in columns.tolist()),
            query=query,
            split=self.split[keep],
            correct=self.correct[at],
            **dense,
        )

    def joined(self, other: Demonstrations) -> Demonstrations:
        """These and others of the same LM; of a split of a data set that both have, the others' alone.

        Raises:
            InputError: an id has one text here and another there.
        """
        taken = other.parts
        mine = zip((self.datasets[q] for q in self.query.tolist()), self.split.tolist(), strict=True)
        keep = np.array([key not in taken for key in mine], dtype=bool)
        if not keep.any():
            return other
        tables = [part.to_table() for part in (self.of(instances=keep), other)]
        both = pa.concat_tables(tables, promote_options="default")
        return Demonstrations.from_columns({name: both.column(name).to_pylist() for name in both.column_names})

    def labelled(self) -> list[int]:
        """The prompts that have labels."""
        return [int(i) for i in np.flatnonzero(self.known.any(axis=0))]

    def to_table(self) -> pa.Table:
        """A row for each label."""
        instance, prompt = np.nonzero(self.known)
        query = self.query[instance].tolist()
        columns: dict[str, Any] = {
            "llm": [self.llm] * len(query),
            "dataset": [self.datasets[q] for q in query],
            "split": self.split[instance].tolist(),
            "query_uid": [self.uids[q] for q in query],
            "template_uid": [self.templates[q] for q in query],
            "query": [self.queries[q] for q in query],
            "prompt_id": [self.prompt_ids[p] for p in prompt.tolist()],
            "prompt": [self.prompts[p] for p in prompt.tolist()],
            "correct": self.correct[instance, prompt].astype(np.int8),
        }
        for name in (*SIGNALS, "answer"):
            values = getattr(self, name)
            if values is not None:
                columns[name] = [None if v != v else v for v in values[instance, prompt].tolist()]
        if self.gold is not None:
            columns["gold"] = [self.gold[q] for q in query]
        table = pa.table(columns)
        for i, name in enumerate(table.column_names):
            if pa.types.is_string(table.schema.field(name).type):
                table = table.set_column(i, name, table.column(name).dictionary_encode())
        return table.replace_schema_metadata({"schema": SCHEMA})

    def write(self, path: Path) -> None:
        """Write them as Parquet.

        Raises:
            InputError: the file cannot be written.
        """
        write_table(self.to_table(), path)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Sequence[Any]],
        where: str = "demonstrations",
        numbers: Sequence[int] | None = None,
    ) -> Demonstrations:
        """From rows (query, prompt) -> correct, as columns of one length; docs/reward.md has their meaning.

        ``template_uid`` is made of the query with its numbers masked, where there is none. Messages call rows by their
        ``numbers``, from 1 on unless given.

        Raises:
            InputError: a column is missing, or a value cannot be used; the message names the row.
        """
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            near = did_you_mean(missing[0], columns)
            raise InputError(f"{where}: no column {missing[0]!r}{near}; needed are {', '.join(REQUIRED)}")
        place_of = Places(where, range(1, len(columns["llm"]) + 1) if numbers is None else numbers)
        refuse_nulls(columns, place_of)
        llms = sorted(set(map(str, columns["llm"])))
        if len(llms) != 1:
            raise InputError(f"{where}: demonstrations of {len(llms)} LMs ({', '.join(llms)}); choose one with --llm")
        correct = labels_of(columns["correct"], place_of)
        queries = identified(columns, ("dataset", "query_uid"), "query", place_of)
        prompts = identified(columns, ("prompt_id",), "prompt", place_of)
        split = np.array([str(s) for s in columns["split"]])
        place, query = instances_of(split, queries.of, prompts.of)
        shape = (len(query), len(prompts.texts))
        at = (place, prompts.of)

        def dense(name: str) -> FloatArray | None:
            if name not in columns:
                return None
            values = np.full(shape, np.nan, dtype=np.float32)
            values[at] = signal_of(name, columns[name], place_of)
            return values

        full = np.full(shape, np.nan, dtype=np.float32)
        full[at] = correct
        answer: npt.NDArray[np.object_] | None = None
        if "answer" in columns:
            answer = np.full(shape, None, dtype=object)
            answer[at] = list(columns["answer"])
        splits = np.empty(len(query), dtype=split.dtype)
        splits[place] = split
        texts = queries.texts
        given = first_of(columns["template_uid"], queries) if "template_uid" in columns else [None] * len(texts)
        templates = [mask_numbers(text) if uid is None else uid for text, uid in zip(texts, given, strict=True)]
        gold = first_of(columns["gold"], queries) if "gold" in columns else []
        return cls(
            llm=llms[0],
            queries=tuple(texts),
            datasets=tuple(key[0] for key in queries.keys),
            uids=tuple(key[1] for key in queries.keys),
            templates=tuple(templates),
            prompts=tuple(prompts.texts),
            prompt_ids=tuple(key[0] for key in prompts.keys),
            query=query,
            split=splits,
            correct=full,
            confidence=dense("confidence"),
            critic=dense("critic"),
            answer=answer,
            gold=tuple(gold) if any(value is not None for value in gold) else None,
        )


def read_demonstrations(
    path: str | Path, *, llm: str | None = None, dataset: str | None = None, answers: str | Path | None = None
) -> Demonstrations:
    """Demonstrations from a Parquet file; of one LM, and of one data set or all.

    Args:
        path: the file.
        llm, dataset: which, where it holds several.
        answers: a Parquet file with llm, dataset, split, query_uid, prompt_id and ``answer`` (and ``gold``), to be
            joined to it.

    Raises:
        InputError: a file cannot be read, or is something else.
    """
    columns = _read(Path(path))
    numbers = list(range(1, len(next(iter(columns.values()), [])) + 1))
    refuse_nulls(columns, Places(str(path), numbers))
    for name, wanted in (("llm", llm), ("dataset", dataset)):
        if wanted is not None and name in columns:
            keep = [i for i, value in enumerate(columns[name]) if str(value) == wanted]
            if not keep:
                known = sorted({str(value) for value in columns[name]})
                raise InputError(
                    f"{path}: no {name} {wanted!r}{did_you_mean(wanted, known)}; it has {', '.join(known)}"
                )
            columns = {key: [values[i] for i in keep] for key, values in columns.items()}
            numbers = [numbers[i] for i in keep]
    if answers is not None:
        _join_answers(columns, _read(Path(answers)), str(answers))
    return Demonstrations.from_columns(columns, str(path), numbers)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}") if path.is_file() or not path.exists() else path
    try:
        pq.write_table(table, part, compression="zstd")
        if part != path:
            part.replace(path)
    except OSError as error:
        if part != path:
            part.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def plain(text: str) -> str:
    """A text in lower case, its spaces single."""
    return " ".join(text.lower().split())


def mask_numbers(text: str) -> str:
    """The template of a query: lower case, every number a #."""
    return plain(NUMBER.sub("#", text))


def _read(path: Path) -> dict[str, list[Any]]:
    if not is_file(path):
        raise InputError(f"no such file: {path} (demonstrations are a Parquet file; see rayprompt recommend collect)")
    table = read_parquet(path)
    wanted = [name for name in table.column_names if name in (*REQUIRED, *OPTIONAL)]
    try:
        return {name: table.column(name).to_pylist() for name in wanted}
    except (KeyError, ValueError, OverflowError) as error:  # a column twice, text that is not UTF-8
        raise InputError(f"{path}: its columns cannot be read ({str(error)[:160]})") from None


def _join_answers(columns: dict[str, list[Any]], other: dict[str, list[Any]], where: str) -> None:
    """Put answers (and ``gold``) beside the labels: those of the k-th sample of a (query, prompt) to the k-th."""
    keys = ("llm", "dataset", "split", "query_uid", "prompt_id")
    for name in (*keys, "answer"):
        if name not in other:
            raise InputError(f"{where}: no column {name!r}; answers need {', '.join(keys)} and answer")
    if any(name not in columns for name in keys):
        return  # and from_columns says which
    answers: dict[tuple[str, ...], list[int]] = {}
    labels: dict[tuple[str, ...], list[int]] = {}
    for rows, table in ((answers, other), (labels, columns)):
        for i, key in enumerate(zip(*(map(str, table[name]) for name in keys), strict=True)):
            rows.setdefault(key, []).append(i)
    pairs = []
    for key, mine in labels.items():
        theirs = answers.get(key, [])
        if theirs and len(theirs) != len(mine):
            about = ", ".join(f"{name} {value}" for name, value in zip(keys[2:], key[2:], strict=True))
            raise InputError(f"{where}: {len(theirs)} answers to {len(mine)} labels of {about}; each needs its own")
        pairs += list(zip(mine, theirs, strict=False))
    if not pairs:
        raise InputError(f"{where}: no answer belongs to any of the demonstrations (by {', '.join(keys)})")
    for name in ("answer", "gold"):
        if name in other:
            values = list(columns.get(name, [None] * len(columns["llm"])))
            for row, i in pairs:
                values[row] = other[name][i]
            columns[name] = values
