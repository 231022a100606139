"""The public tasks: a small YAML file each, with everything but the examples (``bundled/public``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError, unknown
from rayprompt.foreign import read_yaml
from rayprompt.shots import SPLITS
from rayprompt.task import Task, make_task, read_label_words
from rayprompt.task_data import HUB, Reading, read_folder, read_hub

PUBLIC = Path(__file__).parent / "bundled" / "public"
DATA_VARIABLE = "RAYPROMPT_DATA"


def public_names() -> list[str]:
    """The names of the public tasks, without their variants."""
    return sorted(path.stem for path in PUBLIC.glob("*.yaml"))


def public_spec(name: str) -> dict[str, Any]:
    """What the YAML file of ``sst-2`` says, with the changes of a variant for ``sst-2@bbt``.

    Raises:
        InputError: the task has no such variant.
    """
    base, at, variant = name.partition("@")
    spec = read_yaml(PUBLIC / f"{base}.yaml")
    variants = spec.setdefault("variants", {})
    if at and not variants:
        raise InputError(f"unknown variant {variant!r} of task {base}; it has none")
    if at and variant not in variants:
        raise unknown("variant", variant, variants, f"task {base}")
    return {**spec, **variants.get(variant, {})}


def read_public(
    name: str, data: str | Path | None = None, split: str | None = None, changes: Mapping[str, Any] | None = None
) -> Task:
    """A public task with its examples; see :func:`rayprompt.load_task`. ``changes``: keys that are others here.

    Raises:
        InputError: no such variant, or its examples are not to be had or cannot be used.
    """
    spec = {**public_spec(name), **(changes or {})}
    where = f"task {name}"
    generates = spec.get("kind") == "generation"
    labels = () if generates else read_label_words(spec["label_words"], where)[0]
    listed = [f"{spec['shots']['per_class']}-{seed}" for seed in spec["shots"]["seeds"]] if "shots" in spec else SPLITS
    reading = Reading(
        columns=spec["columns"],
        labels=labels,
        aliases={str(alias): str(label) for alias, label in spec.get("labels", {}).items()},
        no_label=spec.get("no_label", ()),
        replace=spec.get("replace", {}),
    )
    source = _data(name, data)
    if isinstance(source, Path):
        where = f"{where}, data {source}"
        splits = read_folder(source, reading, where, split, listed)
    else:
        path = source or spec["hub"]["path"]
        splits = read_hub(spec["hub"], path, reading, where, split, _instead(name), listed)
        source = HUB + path
    columns = {column: column for column in spec["columns"]}
    return make_task(name, spec, columns, splits, where, data=str(source), empty_texts=not generates)


def _data(name: str, data: str | Path | None) -> Path | str | None:
    """The folder that holds the examples, or the name of a data set on the hub; None is the task's own.

    Raises:
        InputError: there is no such folder.
    """
    base = name.partition("@")[0]
    if data is None:
        root = os.environ.get(DATA_VARIABLE)
        if not root:
            return None
        if not Path(root).expanduser().is_dir():
            raise InputError(f"{DATA_VARIABLE}={root}: no such folder (it holds a folder for each task, as {base})")
        folder = Path(root).expanduser() / base
        return folder.resolve() if folder.is_dir() else None
    if str(data).startswith(HUB):
        return str(data).removeprefix(HUB)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise InputError(f"--data {data}: {found}; a folder is wanted with the tables train and test of {base}")
    if (folder / base).is_dir():
        raise InputError(f"--data {data}: it holds a folder {base}: give --data {Path(data) / base}")
    if not any(folder.iterdir()):
        raise InputError(f"--data {data}: the folder is empty; it must hold the tables train and test of {base}")
    return folder.resolve()


def _instead(name: str) -> str:
    """What to do where the hub does not give the examples."""
    root, base = os.environ.get(DATA_VARIABLE), name.partition("@")[0]
    lacks = f" ({DATA_VARIABLE}={root} holds no folder {base})" if root else ""
    return f"give the data as a folder: --data DIR{lacks}"
