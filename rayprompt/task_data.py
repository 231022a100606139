"""Where the examples of a task come from: tables in a folder, or a data set of the Hugging Face hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError, did_you_mean
from rayprompt.shots import SPLITS, draw_splits, parse_shots
from rayprompt.tables import SUFFIXES, Row, label_of, read_rows, text_of

HUB = "hf://datasets/"
# A dev part goes by several names.
NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
Splits = dict[str, dict[str, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class Reading:
    """How the rows of a task's tables are read.

    Attributes:
        columns: field, ``label`` or ``answer`` -> the column's name, or several names: the first that a table has.
        labels: all labels, as strings; none where answers are generated.
        aliases: other names that labels have in the data -> the label.
        no_label: what stands for a label in rows that have none: they are left out.
        replace: text -> what stands for it, in all fields.
    """

    columns: Mapping[str, str | Sequence[str]]
    labels: Sequence[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    no_label: Sequence[str] = ()
    replace: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """The names of the fields."""
        return [name for name in self.columns if name not in ("label", "answer")]

    def rows(self, table: Sequence[Mapping[str, Any]], where: str) -> list[Row]:
        """The rows with the fields' texts (whitespace is one space) and ``label``; rows without a label are left out.

        Rows with an answer to be generated have ``answer``, and one label: they are of one class.

        Raises:
            InputError: a column is missing, or a label is not known.
        """
        found = {name: find_column(table[0], wanted, name, where) for name, wanted in self.columns.items()}
        rows = []
        for number, row in enumerate(table, start=1):
            if "answer" in found:
                here = f"{where}, example {number}"
                texts = {name: self._text(row, found[name], name, here) for name in self.fields}
                rows.append({**texts, "answer": text_of(row, found["answer"], "answer", here), "label": ""})
                continue
            value = label_of(row.get(found["label"]), (*self.labels, *self.aliases, *self.no_label))
            if value in self.no_label:
                continue
            if value is None:
                raise InputError(f"{where}, example {number}: no label (column {found['label']!r})")
            label = self.aliases.get(value, value)
            if label not in self.labels:
                raise InputError(
                    f"{where}, example {number}: label {label!r} has no label word{did_you_mean(label, self.labels)}; "
                    f"known: {', '.join([*self.labels, *self.aliases])}"
                )
            here = f"{where}, example {number}"
            texts = {name: self._text(row, found[name], name, here) for name in self.fields}
            rows.append({**texts, "label": label})
        if not rows:
            raise InputError(f"{where}: no row has a label")
        return rows

    def _text(self, row: Mapping[str, Any], column: str, name: str, where: str) -> str:
        text = text_of(row, column, name, where)
        for old, new in self.replace.items():
            text = text.replace(old, new)
        return " ".join(text.split())


def find_column(row: Mapping[str, Any], wanted: str | Sequence[str], name: str, where: str) -> str:
    """The column of ``name``: ``wanted``, or the first of several that are wanted, that ``row`` has.

    Raises:
        InputError: it has none of them.
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for column in names:
        if column in row:
            return column
    raise InputError(
        f"{where}: no column {' or '.join(map(repr, names))} for {name!r}; it has {', '.join(map(str, row))}"
    )


def drawn_splits(
    train: Sequence[Row],
    test: Sequence[Row],
    reading: Reading,
    where: str,
    *,
    split: str | None = None,
    listed: Sequence[str] = SPLITS,
) -> Splits:
    """The splits that are drawn from full data: those listed, or ``split`` alone where it is another ``K-SEED``.

    Raises:
        InputError: a class has too few texts.
    """
    present = {row["label"] for row in train}
    missing = [label for label in reading.labels if label not in present]
    if missing:
        raise InputError(f"{where}: no example of class {missing[0]!r} to draw from")
    names = [split] if split is not None and split not in listed and parse_shots(split) else listed
    return draw_splits(names, train, test, reading.fields, where)


def read_folder(
    folder: Path, reading: Reading, where: str, split: str | None = None, listed: Sequence[str] = SPLITS
) -> Splits:
    """The splits of a data folder.

    It has sub-folders with a train and a dev table each (``16-13/train.tsv``...), and test there or at the top; or
    train, dev and test at the top; or train and test, from which few-shot splits are drawn.

    Raises:
        InputError: it is laid out otherwise, a table cannot be read, or a class has too few texts.
    """
    _no_arrow(folder, where)
    tables: dict[Path, list[Row]] = {}

    def rows(path: Path) -> list[Row]:
        if path not in tables:
            tables[path] = reading.rows(read_rows(path), str(path))
        return tables[path]

    top = _parts(folder)
    test = {part: path for part, path in top.items() if part == "test"}
    folders = sorted((path for path in folder.iterdir() if path.is_dir()), key=_by_number)
    stored = {path.name: test | found for path in folders if "train" in (found := _parts(path))}
    if not stored and "dev" in top:
        stored = {"default": top}
    draw = "train" in top and (not stored or (split not in stored and split is not None and parse_shots(split)))
    for parts in (top,) if draw else stored.values():
        missing = [part for part in NAMES if part not in parts and not (draw and part == "dev")]
        if missing:
            raise InputError(f"{where}: holds no {missing[0]} table ({_looked_for(missing[0])})")
    if draw:
        train, whole = rows(top["train"]), rows(top["test"])
        return drawn_splits(train, whole, reading, str(top["train"]), split=split, listed=listed)
    if not stored:
        raise InputError(
            f"{where}: holds no train table, neither at the top ({_looked_for('train')}) nor in sub-folders as "
            "16-13/train.tsv"
        )
    return {name: {part: rows(parts[part]) for part in NAMES} for name, parts in stored.items()}


def _parts(folder: Path) -> dict[str, Path]:
    """Part -> its table in the folder."""
    found: dict[str, Path] = {}
    for part, names in NAMES.items():
        paths = [folder / (name + suffix) for name in names for suffix in SUFFIXES]
        for path in (p for p in paths if p.is_file()):
            found.setdefault(part, path)
    return found


def _no_arrow(folder: Path, where: str) -> None:
    """Raise ``InputError`` for a folder that ``datasets`` wrote with save_to_disk: Arrow files, which are not read."""
    for name in ("dataset_dict.json", "dataset_info.json", "state.json"):
        if (folder / name).is_file() and not _parts(folder):
            raise InputError(
                f"{where}: {folder} was written by save_to_disk of the package 'datasets' (it holds {name}); write "
                "tables instead: for part, rows in data.items(): rows.to_parquet(f'DIR/{part}.parquet')"
            )


def _by_number(path: Path) -> tuple[tuple[int, int], str]:
    """16-13, 16-21, 16-100; other names after them."""
    return (parse_shots(path.name) or (10**9, 0), path.name)


def _looked_for(part: str) -> str:
    return f"{NAMES[part][0]}.tsv, .csv, .jsonl or .parquet"


def read_hub(
    source: Mapping[str, str],
    path: str,
    reading: Reading,
    where: str,
    split: str | None,
    instead: str,
    listed: Sequence[str] = SPLITS,
) -> Splits:
    """The few-shot splits of a data set of the Hugging Face hub, read with the package ``datasets``.

    Args:
        source: ``train`` and ``test``, the data set's splits for them, and its ``config`` where it has several.
        path: the data set's name, or a local copy of its repository.
        instead: what to do where it is not to be had, for the error message.

    Raises:
        InputError: the package is not installed, the data set is not to be had, or it has other columns.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{where}: its data are read with the package 'datasets', which is not installed: "
            f"pip install 'rayprompt[datasets]', or {instead}"
        ) from None
    _quiet()
    tables = {}
    for part in ("train", "test"):
        try:
            table = datasets.load_dataset(path, source.get("config"), split=source[part])
        except Exception as error:  # it raises many types, of its own and of several packages; all mean: not to be had
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{where}: the data set {path} is not to be had from the Hugging Face hub ({lines[0][:160]}); {instead}"
            ) from None
        here = f"{where}, {HUB}{path}, {source[part]}"
        has = dict.fromkeys(table.column_names)
        used = {find_column(has, wanted, name, here) for name, wanted in reading.columns.items()}
        tables[part] = reading.rows(table.select_columns(sorted(used)).to_list(), here)
    return drawn_splits(tables["train"], tables["test"], reading, where, split=split, listed=listed)


def _quiet() -> None:
    """The hub client's retries are not our output; its progress bars are, where a person watches."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
