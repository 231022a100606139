"""Reads ``task.yaml`` and the tables it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayprompt.decoding import NAMES as DECODING
from rayprompt.errors import InputError, did_you_mean, unknown
from rayprompt.foreign import is_file, read_yaml
from rayprompt.shots import parse_shots
from rayprompt.style import MODELS
from rayprompt.tables import Row, read_rows
from rayprompt.task import PARTS, Task, check_kind, make_task, read_label_words, task_names
from rayprompt.task_data import Reading, Splits, drawn_splits
from rayprompt.typed import shown

KEYS = (
    "name",
    "version",
    "kind",
    "description",
    "template",
    "label_words",
    "manual_prompt",
    "metric",
    "columns",
    "splits",
    "shots",
    "extractor",
    "scorer",
    "style",
    *DECODING,
)
CHANGES = (
    *("version", "description", "template", "label_words", "manual_prompt", "metric", "columns"),
    *("extractor", "scorer", "style", *DECODING),
)


def read_task(folder: Path, split: str | None = None, changes: Mapping[str, Any] | None = None) -> Task:
    """The task in ``folder/task.yaml``; see :meth:`rayprompt.Task.from_folder`. ``changes``: keys that are others."""
    path = folder / "task.yaml"
    if not is_file(path):
        saved = (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()
        hint = ": a folder of save_to_disk; a task is a folder with task.yaml and tables (Parquet...)" if saved else ""
        raise InputError(f"{folder} holds no task.yaml{hint}")
    return _read(folder, {**read_yaml(path), **(changes or {})}, str(path), split)


def read_inline(spec: Mapping[str, Any], split: str | None = None) -> Task:
    """The task that a mapping says all about that a task.yaml does; see :func:`rayprompt.load_task`."""
    if "template" not in spec and "splits" not in spec:  # it was meant to change a built-in one
        raise unknown("task", spec["name"], task_names())
    return _read(Path(), spec, f"task {spec['name']}", split)


def check_changes(spec: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The keys beside ``name`` in a mapping that changes a built-in task.

    Raises:
        InputError: one that cannot be changed.
    """
    changes = {key: value for key, value in spec.items() if key != "name"}
    for key in changes:
        if key not in CHANGES:
            raise InputError(
                f"{where}task {spec['name']} is built in; of it {', '.join(CHANGES)} can be changed, not "
                f"{key!r}{did_you_mean(key, CHANGES)}; a task with tables of its own needs another name"
            )
    return changes


def with_tables_from(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a task.yaml in ``folder`` says, as it can be said anywhere: its tables with absolute paths."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: absolute(part) for key, part in value.items()}
        return str((folder / Path(value).expanduser()).absolute()) if isinstance(value, str) else value

    found = {**spec, "splits": absolute(spec["splits"])} if "splits" in spec else dict(spec)
    if isinstance(spec.get("style"), Mapping):
        style = spec["style"]
        beside = {key: folder / str(style[key]) for key in MODELS if isinstance(style.get(key), str)}
        found["style"] = {**style, **{key: str(path.absolute()) for key, path in beside.items() if path.is_dir()}}
    return found


def _read(folder: Path, spec: Mapping[str, Any], path: str, split: str | None) -> Task:
    for key in spec:
        if key not in KEYS:
            raise unknown("key", key, KEYS, path)
    target = "answer" if spec.get("kind") == "generation" else "label"
    columns = spec.get("columns", {"text": ["text", "sentence"], target: target})
    if not isinstance(columns, Mapping) or target not in columns or len(columns) < 2:
        raise InputError(
            f"{path}: columns must map {target!r} and the fields of the text, as {{text: sentence, {target}: {target}}}"
        )
    kind = check_kind(spec, columns, path)
    for field, wanted in columns.items():
        names = wanted if isinstance(wanted, list) else [wanted]
        if not names or not all(isinstance(n, str) for n in names):
            raise InputError(f"{path}: columns.{field} must be a column name or a list of names, not {wanted!r}")
    if "shots" in spec:
        labels = () if kind == "generation" else read_label_words(spec.get("label_words"), path)[0]
        splits = _drawn(folder, spec, Reading(columns, labels), path, split)
        return make_task(_name(spec, folder), spec, {name: name for name in columns}, splits, path)
    tables = {
        split: {part: _table(folder, file, f"{path}, splits.{part}") for part, file in files.items()}
        for split, files in _splits(spec.get("splits"), path).items()
    }
    return make_task(_name(spec, folder), spec, columns, tables, path)


def _name(spec: Mapping[str, Any], folder: Path) -> str:
    name = spec.get("name")
    return folder.resolve().name if name is None else str(name)


def _drawn(folder: Path, spec: Mapping[str, Any], reading: Reading, path: str, split: str | None) -> Splits:
    """The splits that ``shots: {per_class: 16, seeds: [13, 21]}`` draws from the tables train and test."""
    shots, files = spec["shots"], spec.get("splits")
    example = "{per_class: 16, seeds: [13, 21]}"
    if not isinstance(shots, Mapping) or set(shots) != {"per_class", "seeds"}:
        raise InputError(f"{path}: shots must be like {example}, not {shots!r}")
    seeds = shots["seeds"] if isinstance(shots["seeds"], list) else [shots["seeds"]]
    names = [f"{shots['per_class']}-{seed}" for seed in seeds]
    if not names or not all(map(parse_shots, names)):
        raise InputError(f"{path}: shots must be whole numbers, per_class 1 or more, as {example}; not {dict(shots)}")
    if not isinstance(files, Mapping) or set(files) != {"train", "test"}:
        raise InputError(f"{path}: with shots, splits is {{train: full.tsv, test: test.tsv}}: dev is drawn from train")
    rows = {p: reading.rows(_table(folder, f, f"{path}, splits.{p}"), str(folder / str(f))) for p, f in files.items()}
    return drawn_splits(rows["train"], rows["test"], reading, path, split=split, listed=names)


def _splits(given: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """``{train: f, dev: f, test: f}`` is one split named 'default'; else split name -> such a triple."""
    if not isinstance(given, Mapping) or not given:
        wrong = "is missing" if given is None else f"is {shown(given)}"
        raise InputError(
            f"{path}: splits {wrong}; it names the files, as {{train: train.tsv, dev: dev.tsv, test: test.tsv}}"
        )
    triples = given if all(isinstance(v, Mapping) for v in given.values()) else {"default": given}
    for name, files in triples.items():
        for part in files:
            if part not in PARTS:
                raise unknown("part", part, PARTS, f"{path}, splits")
        missing = [part for part in PARTS if part not in files]
        if missing:
            which = "" if triples is not given else f".{name}"
            raise InputError(f"{path}: splits{which} lacks {' and '.join(missing)}; it needs train, dev and test")
    return {str(name): files for name, files in triples.items()}


def _table(folder: Path, file: Any, where: str) -> list[Row]:
    if not isinstance(file, str):
        raise InputError(f"{where}: a file name is wanted, not {file!r}")
    return read_rows(folder / file)
