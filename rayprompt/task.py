"""Tasks: labelled examples and how they are shown to a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt.candidate import digest
from rayprompt.errors import InputError, did_you_mean, unknown
from rayprompt.scores import IntArray
from rayprompt.template import Template

PARTS = ("train", "dev", "test")
FAMILIES = ("masked", "causal")
METRICS = ("accuracy", "f1")
BUNDLED = Path(__file__).parent / "bundled" / "tasks"


@dataclass(frozen=True)
class Example:
    """One labelled example: its fields (name -> text) and the index of its label."""

    fields: Mapping[str, str]
    label: int

    @cached_property
    def digest(self) -> str:
        """Digest of fields and label."""
        return digest([dict(self.fields), self.label])


@dataclass(frozen=True)
class Task:
    """Labelled examples and how they are shown to an LM. Frozen; ``digest`` covers everything that is scored.

    Attributes:
        name, version, kind: ``kind`` is ``classification``.
        templates: LM family (``masked``, ``causal``) -> template.
        labels: the labels as they stand in the data, as strings; an example's label is an index into them.
        label_words: the verbalizer: the word that stands for each label, in the order of ``labels``.
        metric: ``accuracy`` or ``f1``.
        manual_prompt: the prompt a person would write, one of the baselines; None where there is none.
        splits: split name -> part (``train``, ``dev``, ``test``) -> examples.
        source: where it came from, for messages.
    """

    name: str
    templates: Mapping[str, Template]
    labels: tuple[str, ...]
    label_words: tuple[str, ...]
    splits: Mapping[str, Mapping[str, tuple[Example, ...]]]
    manual_prompt: str | None = None
    metric: str = "accuracy"
    kind: str = "classification"
    version: str = "1"
    description: str = ""
    source: str = field(default="", compare=False)

    @cached_property
    def digest(self) -> str:
        """Digest of the content: templates, verbalizer, metric and all examples."""
        examples = {s: {p: [e.digest for e in rows] for p, rows in parts.items()} for s, parts in self.splits.items()}
        templates = {family: t.source for family, t in self.templates.items()}
        return digest([self.kind, templates, self.labels, self.label_words, self.metric, examples])

    @property
    def default_split(self) -> str:
        """The first split."""
        return next(iter(self.splits))

    def parts(self, split: str | None = None) -> Mapping[str, tuple[Example, ...]]:
        """The parts (``train``, ``dev``, ``test``) of a split; None is the first split.

        Raises:
            InputError: no such split.
        """
        name = self.default_split if split is None else split
        if name not in self.splits:
            raise unknown("split", name, self.splits, f"task {self.name}")
        return self.splits[name]

    def examples(self, part: str, split: str | None = None) -> tuple[Example, ...]:
        """The examples of one part.

        Raises:
            InputError: the split has no such part.
        """
        parts = self.parts(split)
        if part not in parts:
            raise unknown("part", part, parts, f"task {self.name}, split {split or self.default_split}")
        return parts[part]

    def gold(self, part: str, split: str | None = None) -> IntArray:
        """(E,) the label index of each example of a part."""
        return np.array([e.label for e in self.examples(part, split)], dtype=np.int64)

    def template(self, family: str) -> Template:
        """The template for an LM family.

        Raises:
            InputError: the task has none for this family.
        """
        if family not in self.templates:
            raise InputError(
                f"task {self.name} has no template for {family} LMs (it has {', '.join(self.templates)}); "
                f"add 'template: {{{family}: ...}}' to {self.source or 'the task'}"
            )
        return self.templates[family]

    def leaks(self) -> dict[str, dict[tuple[str, str], int]]:
        """Split name -> (part, part) -> number of texts that stand in both."""
        found: dict[str, dict[tuple[str, str], int]] = {}
        for split, parts in self.splits.items():
            texts = {part: {tuple(sorted(e.fields.items())) for e in rows} for part, rows in parts.items()}
            names = list(texts)
            for i, first in enumerate(names):
                for second in names[i + 1 :]:
                    both = len(texts[first] & texts[second])
                    if both:
                        found.setdefault(split, {})[(first, second)] = both
        return found

    @classmethod
    def from_folder(cls, folder: str | Path) -> Task:
        """Read ``task.yaml`` and the tables it names.

        Raises:
            InputError: a file is missing or broken, a key is unknown, a label has no word...: one line that says
                what was given, what is right, and where.
        """
        from rayprompt.task_yaml import read_task

        return read_task(Path(folder))

    @classmethod
    def from_examples(
        cls,
        name: str,
        *,
        template: str | Mapping[str, str],
        label_words: Mapping[Any, str],
        train: Sequence[Mapping[str, Any]],
        dev: Sequence[Mapping[str, Any]],
        test: Sequence[Mapping[str, Any]],
        manual_prompt: str | None = None,
        metric: str = "accuracy",
        version: str = "1",
    ) -> Task:
        """A task from Python objects: every example is a mapping with ``label`` and the template's fields.

        Raises:
            InputError: as for :meth:`from_folder`.
        """
        tables = {"train": train, "dev": dev, "test": test}
        for part, rows in tables.items():
            if not rows:
                raise InputError(f"task {name}: {part} has no examples")
        columns = {key: key for key in train[0] if key != "label"} | {"label": "label"}
        spec = {
            "template": template,
            "label_words": label_words,
            "manual_prompt": manual_prompt,
            "metric": metric,
            "version": version,
        }
        return make_task(name, spec, columns, {"default": tables}, f"task {name}")


def make_task(
    name: str,
    spec: Mapping[str, Any],
    columns: Mapping[str, str | Sequence[str]],
    tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    where: str,
) -> Task:
    """Check and freeze a task: ``spec`` holds the settings, ``tables`` split -> part -> rows. See ``Task``."""
    words = spec.get("label_words")
    if not isinstance(words, Mapping) or len(words) < 2:
        raise InputError(f"{where}: label_words must map two or more labels to words, as {{0: terrible, 1: great}}")
    labels = tuple(str(label) for label in words)
    label_words = tuple(str(word).strip() for word in words.values())
    if len(set(label_words)) < len(label_words) or not all(label_words):
        raise InputError(f"{where}: every label needs a word of its own, not {list(words.values())}")
    metric = spec.get("metric", "accuracy")
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS, where)
    fields = [column for column in columns if column != "label"]
    splits = {
        split: {part: _examples(rows, columns, fields, labels, f"{where}, {part}") for part, rows in parts.items()}
        for split, parts in tables.items()
    }
    manual = spec.get("manual_prompt")
    return Task(
        name=name,
        templates=_templates(spec.get("template"), fields, where),
        labels=labels,
        label_words=label_words,
        splits=splits,
        manual_prompt=None if manual is None else str(manual),
        metric=metric,
        version=str(spec.get("version", 1)),
        description=str(spec.get("description", "")),
        source=where,
    )


def _templates(given: Any, fields: Sequence[str], where: str) -> dict[str, Template]:
    """A mapping family -> template; a plain string is for masked LMs if it has a {mask}, else for causal ones."""
    if isinstance(given, str):
        given = {"masked" if "{mask}" in given else "causal": given}
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"{where}: template is missing; it is a string or {{masked: ..., causal: ...}}")
    templates = {}
    for family, source in given.items():
        if family not in FAMILIES:
            raise unknown("LM family", family, FAMILIES, f"{where}, template")
        template = Template.parse(source, fields, f"{where}, template.{family}")
        masks = sum(piece.kind == "mask" for piece in template.pieces)
        if masks != (1 if family == "masked" else 0):
            right = "exactly one {mask}" if family == "masked" else "no {mask}"
            raise InputError(f"{where}, template.{family}: {source!r} has {masks} {{mask}}; it needs {right}")
        templates[family] = template
    return templates


def _examples(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str | Sequence[str]],
    fields: Sequence[str],
    labels: Sequence[str],
    where: str,
) -> tuple[Example, ...]:
    """Rows -> examples; ``columns`` maps fields and ``label`` to a column, or to several: the first that is there."""
    found = {name: _column(rows[0], wanted, name, where) for name, wanted in columns.items()}
    examples = []
    for number, row in enumerate(rows, start=1):
        label = str(row.get(found["label"]))
        if label not in labels:
            raise InputError(
                f"{where}, example {number}: label {label!r} has no label word{did_you_mean(label, labels)}; "
                f"known: {', '.join(labels)}"
            )
        texts = {name: " ".join(str(row.get(found[name]) or "").split()) for name in fields}
        if not any(texts.values()):
            raise InputError(f"{where}, example {number}: the text is empty")
        examples.append(Example(texts, labels.index(label)))
    return tuple(examples)


def _column(row: Mapping[str, Any], wanted: str | Sequence[str], name: str, where: str) -> str:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for column in names:
        if column in row:
            return column
    raise InputError(
        f"{where}: no column {' or '.join(map(repr, names))} for {name!r}; it has {', '.join(map(str, row))}"
    )


def load_task(name: str | Path | Task) -> Task:
    """A task by built-in name or folder; a ``Task`` is given back as it is.

    Raises:
        InputError: no such task, or it cannot be read.
    """
    if isinstance(name, Task):
        return name
    if isinstance(name, str) and name in task_names():
        return Task.from_folder(BUNDLED / name)
    path = Path(name)
    if path.is_dir():
        return Task.from_folder(path)
    if path.name == "task.yaml" and path.is_file():
        return Task.from_folder(path.parent)
    if path.exists():
        raise InputError(f"{path} is a file; a task is a folder with a task.yaml, or one of {', '.join(task_names())}")
    if "/" in str(name):
        raise InputError(f"no such task folder: {name}")
    raise unknown("task", str(name), task_names())


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/task.yaml"))
