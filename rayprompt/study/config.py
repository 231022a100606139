"""Study files: what ``rayprompt search`` is to do, in YAML or JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayprompt.answers import WITH_ARGUMENT
from rayprompt.errors import InputError, unknown
from rayprompt.foreign import read_json, read_yaml
from rayprompt.lm.endpoint import check_named
from rayprompt.store.files import refuse_credentials
from rayprompt.task import is_built_in, task_names
from rayprompt.task_yaml import KEYS as TASK_KEYS
from rayprompt.task_yaml import check_changes, with_tables_from
from rayprompt.typed import shown

# Every option of `search` but those that are of one run: --resume, --json.
KEYS: dict[str, tuple[type, ...]] = {
    "task": (str, dict),
    "data": (str,),
    "split": (str,),
    "model": (str,),
    "proxy_model": (str,),
    "searcher": (str,),
    "settings": (dict,),
    "objective": (str,),
    "extractor": (str,),
    "answer_scorer": (str,),
    "budget": (int,),
    "seed": (int,),
    "finalists": (int,),
    "warm_start": (str,),
    "allow_leaks": (bool,),
    "tune_native": (bool,),
    "batch_size": (int,),
    "race": (bool,),
    "race_error": (int, float),
    "out": (str,),
    "store": (str,),
    "lm": (dict,),
    "wandb": (str,),
    "mlflow": (str,),
    "start_or_resume": (bool,),
    "other_machine": (bool,),
    "scorers": (int, str),
    "gpus_per_scorer": (int, float),
    "address": (str,),
}
# Every option of `compare` but those that are of one run.
COMPARISON_KEYS: dict[str, tuple[type, ...]] = {
    "tasks": (str, dict, list),
    "searchers": (list, dict),
    "settings": (dict,),
    "samples": (int,),
    "models": (str, list),
    "splits": (str, list),
    "seeds": (int, list),
    "budget": (int,),
    "objective": (str,),
    "baselines": (list,),
    "scheduler": (str, dict),
    "target": (str, int, float),
    "price_per_hour": (int, float),
    "price_per_million_tokens": (int, float),
    "data": (str,),
    "out": (str,),
    "store": (str,),
    "finalists": (int,),
    "allow_leaks": (bool,),
    "max_concurrent": (int,),
    "race": (bool,),
    "race_error": (int, float),
    "lm": (dict,),
    "wandb": (str,),
    "mlflow": (str,),
    "start_or_resume": (bool,),
    "other_machine": (bool,),
    "scorers": (int, str),
    "gpus_per_scorer": (int, float),
    "address": (str,),
}
ITEMS: dict[str, tuple[type, ...]] = {
    "tasks": (str, dict),
    "searchers": (str,),
    "models": (str,),
    "splits": (str,),
    "seeds": (int,),
    "baselines": (str,),
}
REMARKS: dict[str, tuple[type, ...]] = {"description": (str,), "expected": (dict,)}
TYPE_NAMES = {
    str: "text",
    dict: "a mapping",
    list: "a list",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
MODELS = ("model", "proxy_model")
LOCATIONS = ("data", "out", "store", "warm_start")


@dataclass(frozen=True)
class StudyFile:
    """What a study file says: arguments of :func:`rayprompt.search`, and remarks for people."""

    arguments: dict[str, Any]
    description: str = ""
    expected: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: str | Path, *, allow_code: bool = False) -> dict[str, Any]:
    """The keyword arguments for :func:`rayprompt.search` that a study file holds.

    ``allow_code``: it may name functions to be imported and called, ``module:function``.

    ``rayprompt.search(**rayprompt.read_config("search.yaml"))`` is ``rayprompt search --config search.yaml``.

    Raises:
        InputError: the file is missing or broken, a key is unknown, a value is of the wrong type, it names a function,
            or it alone would decide to which host an API key goes.
    """
    arguments = read_study_file(path, allow_code=allow_code).arguments
    check_named((arguments.get(name) for name in MODELS), str(path))
    return arguments


def read_study_file(path: str | Path, *, allow_code: bool = False) -> StudyFile:
    """A study file, YAML or (``.json``) JSON. Paths in it are relative to its folder; here they come back absolute.

    Raises:
        InputError: as :func:`read_config`.
    """
    path = Path(path)
    given = _checked(path, KEYS | REMARKS)
    if not allow_code:
        _refuse_code(path, given)
    folder = path.absolute().parent
    arguments = {key: _resolved(key, given[key], folder, path) for key in KEYS if key in given}
    return StudyFile(arguments, " ".join(given.get("description", "").split()), given.get("expected", {}))


def read_comparison_file(path: str | Path, *, allow_code: bool = False) -> StudyFile:
    """A study file of ``rayprompt compare``: its arguments are those of :func:`rayprompt.compare`.

    Raises:
        InputError: as :func:`read_config`.
    """
    path = Path(path)
    given = _checked(path, COMPARISON_KEYS | REMARKS)
    if not allow_code:
        _refuse_code(path, given)
    folder = path.absolute().parent
    arguments = {key: given[key] for key in COMPARISON_KEYS if key in given}
    _check_items(path, arguments)
    for key, resolve in (("tasks", _task), ("models", _model)):
        if key in given:
            listed = given[key] if isinstance(given[key], list) else [given[key]]
            arguments[key] = [resolve(item, folder, *([path] if key == "tasks" else [])) for item in listed]
    for key in (*LOCATIONS, "mlflow"):
        if key in arguments:
            arguments[key] = _resolved(key, arguments[key], folder, path)
    for label, own in arguments.get("settings", {}).items():
        if not isinstance(own, dict):
            raise InputError(f"{path}: settings maps a searcher's name to its settings, not {label!r} to {own!r}")
        arguments["settings"][label] = {str(k): _setting(str(k), v, folder) for k, v in own.items()}
    return StudyFile(arguments, " ".join(given.get("description", "").split()), given.get("expected", {}))


def _refuse_code(path: Path, given: Mapping[str, Any]) -> None:
    """A file from elsewhere must not choose what is imported and called.

    Raises:
        InputError: it names a function.
    """
    for where, name in _models_in(given.get("settings"), "settings"):
        if ":" in name:
            raise InputError(
                f"{path}: {where} {shown(name)} is a class, which is code that a file may not name; give it with "
                "--set, or add --allow-code if you trust the file"
            )
    kinds = {name.partition(":")[0] for name in WITH_ARGUMENT}
    for key in ("objective", "extractor", "answer_scorer"):
        kind, colon, _ = str(given.get(key, "")).partition(":")
        if colon and not (key == "extractor" and kind in kinds):
            option = key.replace("_", "-")
            raise InputError(
                f"{path}: {key} {shown(given[key])} is a function, which is code that a file may not "
                f"name; give it with --{option}, or add --allow-code if you trust the file"
            )


def _models_in(settings: Any, where: str) -> Iterator[tuple[str, str]]:
    """Each setting ``reward_model`` that is a text, also of an inner searcher; and where it is."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if key == "reward_model":
            listed = value.values() if isinstance(value, dict) else [value]
            texts = [t for item in listed for t in (item if isinstance(item, list) else [item])]
            yield from ((f"{where}.{key}", text) for text in texts if isinstance(text, str))
        else:
            yield from _models_in(value, f"{where}.{key}")


def _check_items(path: Path, arguments: Mapping[str, Any]) -> None:
    for key, kinds in ITEMS.items():
        listed = arguments.get(key)
        for item in listed if isinstance(listed, list) else ():
            if type(item) not in kinds:
                wanted = " or ".join(TYPE_NAMES[kind] for kind in kinds)
                raise InputError(f"{path}: {key} is a list of {wanted}, not of {shown(item)}")


def _checked(path: Path, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """What a file gives, by names and types."""
    content = read_json(path) if path.suffix == ".json" else read_yaml(path)
    for kind, command in (("rayprompt.study/", "search"), ("rayprompt.comparison/", "compare")):
        if str(content.get("schema", "")).startswith(kind):
            go_on = f"rayprompt {command} --resume goes on with it"
            raise InputError(f"{path}: the record of a study, not a study file; {go_on}")
    for key, value in content.items():
        if key not in types:
            raise unknown("key", key, types, str(path))
        if value is not None and type(value) not in types[key]:
            wanted = " or ".join(TYPE_NAMES[t] for t in types[key] if t is not int or float not in types[key])
            raise InputError(f"{path}: {key} must be {wanted}, not {shown(value)}{_advice(key, value)}")
    return {key: value for key, value in content.items() if value is not None}


def _advice(key: str, value: Any) -> str:
    return f' (in quotes: "{value}")' if KEYS.get(key) == (str,) and isinstance(value, int | float) else ""


def _resolved(key: str, value: Any, folder: Path, path: Path) -> Any:
    """A value as it means the same in any working directory."""
    if key == "task":
        return _task(value, folder, path)
    if key == "settings":
        return {str(name): _setting(str(name), setting, folder) for name, setting in value.items()}
    if key in LOCATIONS:
        refuse_credentials(value)
        return value if "://" in value else _from(folder, value)
    if key == "mlflow" and value.startswith((".", "~")):
        return _from(folder, value)
    if key in ("model", "proxy_model"):
        return _model(value, folder)
    return value


def _task(value: str | dict[str, Any], folder: Path, path: Path) -> str | dict[str, Any]:
    """A built-in task's name, a folder beside the file, or a mapping of which :func:`rayprompt.load_task` makes one."""
    if isinstance(value, dict):
        name = value.get("name")
        if isinstance(name, str) and is_built_in(name):
            check_changes(value, f"{path}: ")
            return value
        for key in value:
            if key not in TASK_KEYS:
                raise unknown("key", key, TASK_KEYS, f"{path}, task")
        return with_tables_from(folder, value)
    if is_built_in(value):
        return value
    local = _from(folder, value)
    if "/" not in value and not os.path.exists(local):
        raise unknown("task", value, task_names(), str(path))
    return local


def _setting(name: str, value: Any, folder: Path) -> Any:
    """The settings ``phrases`` and ``p0`` may name a file, ``p0`` also a study."""
    if isinstance(value, str):
        local = _from(folder, value)
        if name == "phrases" or (name == "p0" and (value.endswith(".safetensors") or os.path.exists(local))):
            return local
    return value


def _model(value: str, folder: Path) -> str:
    """A local folder is one that stands beside the file, or that is given as a path."""
    from rayprompt.lm.source import model_names

    local = _from(folder, value)
    return local if value.startswith((".", "~")) or (os.path.isdir(local) and value not in model_names()) else value


def _from(folder: Path, value: str) -> str:
    return os.path.abspath(folder / os.path.expanduser(value))
