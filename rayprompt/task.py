"""Tasks: labelled examples and how they are shown to a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from rayprompt.answers import STYLE, Judge
from rayprompt.candidate import digest
from rayprompt.decoding import NAMES as DECODING
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError, did_you_mean, unknown
from rayprompt.scores import IntArray
from rayprompt.style import StyleModels
from rayprompt.tables import label_of, text_of, unseen
from rayprompt.task_data import find_column
from rayprompt.template import Template
from rayprompt.typed import shown

PARTS = ("train", "dev", "test")
FAMILIES = ("masked", "causal", "encoder-decoder")
KINDS = ("classification", "generation")
METRICS = {"classification": ("accuracy", "f1"), "generation": ("accuracy", "best_sample")}
BUNDLED = Path(__file__).parent / "bundled" / "tasks"


@dataclass(frozen=True)
class Example:
    """One example: its fields (name -> text) and the index of its label, or the ``answer`` to be generated."""

    fields: Mapping[str, str]
    label: int
    answer: str | None = None

    @property
    def text(self) -> tuple[str, ...]:
        """The texts of its fields, in the order of the fields' names."""
        return tuple(text for _, text in sorted(self.fields.items()))

    @cached_property
    def digest(self) -> str:
        """Digest of fields and label, or answer."""
        return digest([dict(self.fields), self.label if self.answer is None else self.answer])


@dataclass(frozen=True)
class Task:
    """Labelled examples and how they are shown to an LM. Frozen; ``digest`` covers everything that is scored.

    Attributes:
        name, version, kind: ``kind`` is ``classification`` (the LM is asked which label word fits) or ``generation``
            (it writes on, and the answer is found in what it writes).
        templates: LM family (``masked``, ``causal``, ``encoder-decoder``) -> template.
        labels: the labels as they stand in the data, as strings; an example's label is an index into them. None where
            the answer is generated; there every label is 0.
        label_words: the verbalizer: the word that stands for each label, in the order of ``labels``.
        metric: ``accuracy`` or ``f1``. Of generation the mean value of the pairs, or of the best sample of each.
        extractor, scorer: of generation, what finds the answer in a completion and what compares it with the gold one,
            see :class:`rayprompt.answers.Judge`.
        style: of the scorer ``style``, the models that judge, see :class:`rayprompt.style.StyleModels`.
        decoding: of generation, how the LM writes, as the task has it: keys of :class:`rayprompt.decoding.Decoding`.
        manual_prompt: the prompt a person would write, one of the baselines; None where there is none.
        splits: split name -> part (``train``, ``dev``, ``test``) -> examples.
        source: where it came from, for messages.
        data: where a public task's examples came from: a folder, or ``hf://datasets/NAME``; empty for other tasks.
        inline: the mapping that it was made of, with absolute paths; None for other tasks.
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
    extractor: str = ""
    scorer: str = "match"
    style: StyleModels | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    data: str = field(default="", compare=False)
    inline: Mapping[str, Any] | None = field(default=None, compare=False)

    @cached_property
    def digest(self) -> str:
        """Digest of the content: templates, verbalizer or extractor, metric and all examples."""
        examples = {s: {p: [e.digest for e in rows] for p, rows in parts.items()} for s, parts in self.splits.items()}
        templates = {family: t.source for family, t in self.templates.items()}
        content = [self.kind, templates, self.labels, self.label_words, self.metric, examples]
        if self.generates:
            content += [self.judge.id, dict(self.decoding)]
        return digest(content)

    @property
    def generates(self) -> bool:
        """Whether the LM writes the answer."""
        return self.kind == "generation"

    @cached_property
    def judge(self) -> Judge:
        """What judges completions."""
        return Judge.of(self.extractor, self.scorer, self.style if self.scorer == STYLE else None)

    def judged_by(self, extractor: str | None, scorer: str | None) -> Task:
        """The same task with another extractor or scorer.

        Raises:
            InputError: there is none of the name, or the task has label words.
        """
        if extractor is None and scorer is None:
            return self
        if not self.generates:
            given = f"--extractor {extractor}" if extractor is not None else f"--answer-scorer {scorer}"
            raise InputError(f"{given}: is for generation tasks; {self.name} has label words")
        judge = Judge.of(extractor or self.extractor, scorer or self.scorer, self.style)
        task = replace(self, extractor=judge.extractor.name, scorer=judge.scorer)
        _check_answers(task)
        return task

    def judged_as(self, record: Mapping[str, Any] | None, where: str) -> Task:
        """The same task as a study's file says that it was judged; a function is not taken from a file.

        Raises:
            InputError: it names one.
        """
        if not record or not self.generates:
            return self
        Judge.of(str(record.get("extractor")), str(record.get("scorer")), self.style, code=False, where=where)
        return self.judged_by(str(record.get("extractor")), str(record.get("scorer")))

    def answers(self, part: str, split: str | None = None) -> list[str]:
        """The gold answer of each example of a part, as the extractor would find it."""
        find = self.judge.extractor.gold
        return [find(e.answer or "") or "" for e in self.examples(part, split)]

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
        """The template for an LM family; an encoder-decoder LM takes the masked one where it has none of its own.

        Raises:
            InputError: the task has none for this family.
        """
        if family == "encoder-decoder" and family not in self.templates:
            family = "masked" if "masked" in self.templates else family
        if family not in self.templates:
            raise InputError(
                f"task {self.name} has no template for {family} LMs (it has {', '.join(self.templates)}); "
                f"add 'template: {{{family}: ...}}' to {self.source or 'the task'}"
            )
        return self.templates[family]

    @cached_property
    def shown_fields(self) -> tuple[str, ...]:
        """The fields that a template shows; any other, as an id, only tells examples apart."""
        return tuple(sorted({name for template in self.templates.values() for name in template.fields}))

    def text_of(self, example: Example) -> tuple[str, ...]:
        """What the LM sees of an example, in one way of writing it (NFC): equal texts are one text."""
        return tuple(normalize("NFC", example.fields[name]) for name in self.shown_fields)

    def leaks(self) -> dict[str, dict[tuple[str, str], int]]:
        """Split name -> (part, part) -> number of texts that stand in both; an empty text is none."""
        found: dict[str, dict[tuple[str, str], int]] = {}
        for split, parts in self.splits.items():
            texts = {part: set(filter(any, map(self.text_of, parts[part]))) for part in PARTS if part in parts}
            for first, second in combinations(texts, 2):
                both = len(texts[first] & texts[second])
                if both:
                    found.setdefault(split, {})[(first, second)] = both
        return found

    @classmethod
    def from_folder(cls, folder: str | Path, split: str | None = None) -> Task:
        """Read ``task.yaml`` and the tables it names. ``split``: one that may have to be drawn (``shots``).

        Raises:
            InputError: a file is missing or broken, a key is unknown, a label has no word...: one line that says
                what was given, what is right, and where.
        """
        from rayprompt.task_yaml import read_task

        return read_task(Path(folder), split)

    @classmethod
    def from_examples(
        cls,
        name: str,
        *,
        template: str | Mapping[str, str],
        label_words: Mapping[Any, str] | None = None,
        extractor: str | None = None,
        scorer: str = "match",
        style: Mapping[str, Any] | None = None,
        train: Sequence[Mapping[str, Any]],
        dev: Sequence[Mapping[str, Any]],
        test: Sequence[Mapping[str, Any]],
        manual_prompt: str | None = None,
        metric: str = "accuracy",
        version: str = "1",
        **decoding: Any,
    ) -> Task:
        """A task from Python objects: every example is a mapping with ``label`` and the template's fields.

        With an ``extractor`` (and perhaps a ``scorer`` and keys of :class:`Decoding`, as ``max_tokens=32``) in place
        of ``label_words`` it is a generation task, and every example has an ``answer``.

        Raises:
            InputError: as for :meth:`from_folder`.
        """
        tables = {"train": train, "dev": dev, "test": test}
        for part, rows in tables.items():
            if not rows:
                raise InputError(f"task {name}: {part} has no examples")
        target = "label" if extractor is None else "answer"
        columns = {key: key for key in train[0] if key != target} | {target: target}
        spec = {
            "template": template,
            "label_words": label_words,
            "manual_prompt": manual_prompt,
            "metric": metric,
            "version": version,
        }
        if extractor is not None:
            spec |= {"kind": "generation", "extractor": extractor, "scorer": scorer, "style": style}
        unknown_keys = [key for key in decoding if key not in DECODING]
        if unknown_keys or (decoding and extractor is None):
            raise InputError(f"task {name}: unknown argument {(unknown_keys or list(decoding))[0]!r}")
        return make_task(name, spec | decoding, columns, {"default": tables}, f"task {name}", code=True)


def make_task(
    name: str,
    spec: Mapping[str, Any],
    columns: Mapping[str, str | Sequence[str]],
    tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    where: str,
    *,
    data: str = "",
    empty_texts: bool = False,
    code: bool = False,
) -> Task:
    """Check and freeze a task: ``spec`` holds the settings, ``tables`` split -> part -> rows. See ``Task``.

    ``empty_texts``: accept examples without text, which published data has. ``code``: the extractor and the scorer may
    be functions of the user's; those that a file names may not.
    """
    kind = check_kind(spec, columns, where)
    for key in ("name", "version", "description", "manual_prompt", "scorer"):
        _check_text(spec.get(key), f"{where}: {key}")
    generates = kind == "generation"
    labels, label_words = ((), ()) if generates else read_label_words(spec.get("label_words"), where)
    metric = spec.get("metric", "best_sample" if spec.get("scorer") == STYLE else "accuracy")
    if metric not in METRICS[kind]:
        raise unknown("metric", metric, METRICS[kind], where)
    judge, decoding = _judging(spec, where, code) if generates else (None, {})
    fields = [column for column in columns if column not in ("label", "answer")]
    templates = _templates(spec.get("template"), fields, where, generates)
    shown = {name for template in templates.values() for name in template.fields}
    made: dict[int, tuple[Example, ...]] = {}  # splits may share a test table: it becomes examples once
    for parts in tables.values():
        for part, rows in parts.items():
            if id(rows) not in made:
                made[id(rows)] = _examples(rows, columns, fields, labels, f"{where}, {part}", empty_texts, shown)
    splits = {split: {part: made[id(rows)] for part, rows in parts.items()} for split, parts in tables.items()}
    manual = spec.get("manual_prompt")
    task = Task(
        name=name,
        templates=templates,
        labels=labels,
        label_words=label_words,
        splits=splits,
        manual_prompt=None if manual is None else str(manual),
        metric=metric,
        kind=kind,
        version=str(spec.get("version", 1)),
        description=str(spec.get("description", "")),
        extractor=judge.extractor.name if judge else "",
        scorer=judge.scorer if judge else "match",
        style=judge.style if judge else None,
        decoding=decoding,
        source=where,
        data=data,
    )
    if generates:
        _check_answers(task)
    return task


def _check_text(value: Any, what: str) -> None:
    """Raise ``InputError`` for a list, a mapping, true or false: their Python form would be taken for a text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise InputError(f"{what} must be text, not {shown(value)}")


def check_kind(spec: Mapping[str, Any], columns: Mapping[str, Any], where: str) -> str:
    """The kind of a task; what it says of label words, extractor and columns must go with it.

    Raises:
        InputError: it does not, or the kind is not known.
    """
    kind = spec.get("kind", "classification")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, where)
    generates = kind == "generation"
    wrong = ("label_words",) if generates else ("extractor", "scorer", "style", *DECODING)
    for key in wrong:
        if spec.get(key) is not None:
            raise InputError(f"{where}: {key} is for kind: {KINDS[not generates]}, and this task's kind is {kind}")
    target, other = ("answer", "label") if generates else ("label", "answer")
    if target not in columns or (other == "label" and other in columns):
        raise InputError(
            f"{where}: columns must map {target!r} and the text's fields, as {{text: sentence, {target}: {target}}}"
        )
    return str(kind)


def _judging(spec: Mapping[str, Any], where: str, code: bool) -> tuple[Judge, dict[str, Any]]:
    """Judge and decoding of a generation task, checked. ``code``: extractor and scorer may be functions."""
    name = spec.get("extractor")
    if not isinstance(name, str):
        wrong = "missing" if name is None else f"{shown(name)}, not a name"
        raise InputError(f"{where}: extractor is {wrong}: what finds the answer in what the LM writes, as last-number")
    scorer, style = str(spec.get("scorer", "match")), None
    if spec.get("style") is not None:
        if scorer != STYLE:
            raise InputError(f"{where}: style is for scorer: style, and this task's scorer is {scorer}")
        beside = Path(where).parent if Path(where).is_file() else None
        style = StyleModels.of(spec["style"], where, beside)
    judge = Judge.of(name, scorer, style, code=code, where=where)
    decoding = Decoding.of({key: spec[key] for key in DECODING if key in spec}, f"{where}: ")
    given = {key: value for key, value in decoding.to_json().items() if spec.get(key) is not None}
    return judge, given


def _check_answers(task: Task) -> None:
    """Raise ``InputError`` where the extractor finds no answer in a gold one."""
    find = task.judge.extractor.gold
    for split, parts in task.splits.items():
        for part, rows in parts.items():
            for number, example in enumerate(rows, start=1):
                if find(example.answer or "") is None:
                    raise InputError(
                        f"{task.source}, {split}, {part}, example {number}: the answer {(example.answer or '')[:60]!r} "
                        f"is none that extractor {task.extractor} can find"
                    )


def read_label_words(words: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels and their words, from the mapping ``label_words``.

    Raises:
        InputError: it is no mapping of two or more labels, or words are missing or alike.
    """
    if not isinstance(words, Mapping) or len(words) < 2:
        raise InputError(f"{where}: label_words must map two or more labels to words, as {{0: terrible, 1: great}}")
    for value in (*words, *words.values()):
        if isinstance(value, bool):
            raise InputError(f'{where}: label_words: YAML reads a plain yes, no, on or off as {value}; write "Yes"')
        if value is None or isinstance(value, list | Mapping):
            raise InputError(f"{where}: label_words: a label and its word must be texts, not {shown(value)}")
    if len(set(map(str, words))) < len(words):
        raise InputError(f"{where}: label_words: two labels are the same text in {shown(list(words))}")
    label_words = tuple(str(word).strip() for word in words.values())
    if len(set(label_words)) < len(label_words) or not all(label_words):
        raise InputError(f"{where}: every label needs a word of its own, not {list(words.values())}")
    return tuple(str(label) for label in words), label_words


def _templates(given: Any, fields: Sequence[str], where: str, generates: bool) -> dict[str, Template]:
    """A mapping family -> template; a plain string is for masked LMs if it has a {mask}, else for causal ones."""
    if generates and (
        not isinstance(given, str | Mapping) or (isinstance(given, Mapping) and set(given) != {"causal"})
    ):
        raise InputError(f"{where}: template of a generation task is a string, or {{causal: ...}}: causal LMs write on")
    if isinstance(given, str):
        given = {"masked" if "{mask}" in given and not generates else "causal": given}
    if not isinstance(given, Mapping) or not given:
        wrong = "is missing; it is" if given is None else f"is {shown(given)}; it must be"
        raise InputError(f"{where}: template {wrong} a string or {{masked: ..., causal: ...}}")
    templates = {}
    for family, source in given.items():
        if family not in FAMILIES:
            raise unknown("LM family", family, FAMILIES, f"{where}, template")
        template = Template.parse(source, fields, f"{where}, template.{family}")
        masks = sum(piece.kind == "mask" for piece in template.pieces)
        if masks != (0 if family == "causal" else 1):
            right = "no {mask}" if family == "causal" else "exactly one {mask}"
            raise InputError(f"{where}, template.{family}: {source!r} has {masks} {{mask}}; it needs {right}")
        templates[family] = template
    return templates


def _examples(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str | Sequence[str]],
    fields: Sequence[str],
    labels: Sequence[str],
    where: str,
    empty_texts: bool,
    shown: Set[str],
) -> tuple[Example, ...]:
    """Rows -> examples; ``columns`` maps fields and ``label`` to a column, or to several: the first that is there.

    Fields that a template has ``shown`` must be texts in every row.
    """
    found = {name: find_column(rows[0], wanted, name, where) for name, wanted in columns.items()}
    examples = []
    for number, row in enumerate(rows, start=1):
        here = f"{where}, example {number}"
        texts = {
            name: " ".join(
                (text_of(row, found[name], name, here) if name in shown else unseen(row.get(found[name]))).split()
            )
            for name in fields
        }
        if "answer" in found:
            if not any(texts[name] for name in shown):
                raise InputError(f"{where}, example {number}: the text is empty")
            answer = text_of(row, found["answer"], "answer", here)
            examples.append(Example(texts, 0, answer.strip()))
            continue
        label = label_of(row.get(found["label"]), labels)
        if label is None:
            raise InputError(f"{where}, example {number}: no label (column {found['label']!r})")
        if label not in labels:
            raise InputError(
                f"{where}, example {number}: label {label!r} has no label word{did_you_mean(label, labels)}; "
                f"known: {', '.join(labels)}"
            )
        if not any(texts[name] for name in shown) and not empty_texts:
            raise InputError(f"{where}, example {number}: the text is empty")
        examples.append(Example(texts, labels.index(label)))
    return tuple(examples)


def load_task(
    name: str | Path | Mapping[str, Any] | Task, *, data: str | Path | None = None, split: str | None = None
) -> Task:
    """A task by built-in name (``reviews``, ``sst-2``, ``sst-2@bbt``) or folder; a ``Task`` is given back as it is.

    Args:
        name: the task. A mapping is a built-in task with some keys changed, as ``{"name": "sst-2@bbt",
            "manual_prompt": "It was"}``, or all that a task.yaml says.
        data: a public task's examples: a folder, or ``hf://datasets/NAME``. None is the folder of that name in the
            environment variable RAYPROMPT_DATA, else the task's own data set of the Hugging Face hub.
        split: a split that may have to be drawn from full data (``8-3`` is 8 examples per class, seed 3).

    Raises:
        InputError: no such task, or it cannot be read.
    """
    from rayprompt.public import public_names, read_public

    if isinstance(name, Mapping):
        return _from_mapping(name, data, split)
    if isinstance(name, str) and name.partition("@")[0] in public_names():
        return read_public(name, data, split)
    if data is not None:
        raise _no_data_for(load_task(name), data)  # a name with a typo is the greater trouble
    if isinstance(name, Task):
        return name
    if isinstance(name, str) and name in bundled_names():
        return Task.from_folder(BUNDLED / name)
    path = Path(name)
    if path.is_dir():
        return Task.from_folder(path, split)
    if path.name == "task.yaml" and path.is_file():
        return Task.from_folder(path.parent, split)
    if path.exists():
        raise InputError(f"{path} is a file; a task is a folder with a task.yaml, or one of {', '.join(task_names())}")
    if "/" in str(name):
        raise InputError(f"no such task folder: {name}")
    base, at, variant = str(name).partition("@")
    if at and base in bundled_names():
        raise InputError(f"unknown variant {variant!r} of task {base}; it has none")
    raise unknown("task", str(name), task_names())


def _from_mapping(spec: Mapping[str, Any], data: str | Path | None, split: str | None) -> Task:
    """A built-in task with some keys changed, or a task that a mapping says all about."""
    from rayprompt.public import public_names, read_public
    from rayprompt.task_yaml import check_changes, read_inline, read_task, with_tables_from

    name = spec.get("name")
    if not isinstance(name, str):
        raise InputError(f"a task given as a mapping needs a name, as {{name: sst-2@bbt, ...}}; not {name!r}")
    if not is_built_in(name):
        spec = with_tables_from(Path.cwd(), spec)
        task = read_inline(spec, split)
    else:
        changes = check_changes(spec)
        if name.partition("@")[0] in public_names():
            return replace(read_public(name, data, split, changes), inline=spec)
        task = read_task(BUNDLED / name, split, changes)
    if data is not None:
        raise _no_data_for(task, data)
    return replace(task, inline=spec)


def _no_data_for(task: Task, data: str | Path) -> InputError:
    from rayprompt.public import public_names

    return InputError(
        f"--data {data}: is for the public tasks ({', '.join(public_names())}); {task.name} has examples of its own"
    )


def is_built_in(name: str) -> bool:
    """Whether it is the name of a built-in task, or of a public one's variant (which there may not be)."""
    from rayprompt.public import public_names

    return name in bundled_names() or name.partition("@")[0] in public_names()


def bundled_names() -> list[str]:
    """The names of the tasks whose examples come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/task.yaml"))


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    from rayprompt.public import public_names

    return sorted([*bundled_names(), *public_names()])
