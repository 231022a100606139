"""study.yaml: everything a study resolved, so that it can be resumed, and run again."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError, Interrupted, RayPromptError, StoreError
from rayprompt.foreign import is_dir, is_file
from rayprompt.lm.settings import LMSettings
from rayprompt.records import check_record
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.store.checksum import seal_yaml
from rayprompt.study.place import carry, location_of
from rayprompt.study.results import go_on
from rayprompt.study.whole import write_whole
from rayprompt.task import BUNDLED, Task
from rayprompt.typed import shown
from rayprompt.written import CLOSED, STUDY_FILE, checksums_of, read_record

SCHEMA = "rayprompt.study/4"
FILE = STUDY_FILE
SAME = {
    "task": ("digest", "split", "template", "judge"),
    "model": ("digest", "label_ids", "max_length", "family", "endpoint", "encoding"),
    "searcher": ("class", "objective", "seed", "settings", "subspace", "content"),
}
UNDECIDING = ("tokens", "cache", "memory", "in_flight", "rate", "timeout", "tries", "price_in", "price_out")
PACKAGES = ("rayprompt", "ray", "torch", "transformers", "tokenizers", "numpy", "nevergrad", "cma", "pyarrow")


def describe(problem: Problem, searcher: PromptSearcher, pool: ScoringPool) -> dict[str, Any]:
    """What is scored, by what, on what, with which versions: the part of study.yaml that no resume may change."""
    return {
        **describe_search(problem, searcher),
        "leaks": {f"{a}/{b}": n for (a, b), n in problem.leaks.items()},
        "pool": {
            "scorers": len(pool.infos),
            "device_class": pool.device_class,
            "earlier_classes": list(pool.earlier),
            "same_bits": pool.same_bits if pool.loaded else None,
            "dtype": pool.infos[0].dtype,
            "lanes": pool.infos[0].lanes,
            "tokens": pool.tokens,
            "shapes": pool.table_for(problem.part("train")).to_json(),
            **({"layout": layout} if (layout := pool.infos[0].layout.to_json()) else {}),
            "reuse": pool.reuse({part: problem.part(part) for part in problem.own_parts}, searcher.subspace),
        },
        "versions": versions(),
    }


def describe_search(problem: Problem, searcher: PromptSearcher) -> dict[str, Any]:
    """The same without what only scorers know."""
    endpoint = problem.lm.endpoint
    return {
        "task": {
            "name": problem.task.name,
            "location": task_location(problem.task),
            "data": problem.task.data or None,
            "version": problem.task.version,
            "split": problem.split,
            "digest": problem.task.digest,
            "template": problem.template.source,
            "label_words": dict(zip(problem.task.labels, problem.task.label_words, strict=True)),
            "judge": problem.judge.to_json() if problem.judge is not None and problem.task.generates else None,
            "examples": {part: len(rows) for part, rows in problem.task.parts(problem.split).items()},
        },
        "model": {
            "name": problem.lm.name,
            "location": problem.lm.location,
            "digest": problem.lm.digest,
            "family": problem.lm.family,
            "label_ids": list(problem.label_ids),
            "max_length": problem.lm.max_length,
            "settings": problem.lm.settings.to_json(),
            "endpoint": None if endpoint is None else endpoint.to_json(),
            "service": None if endpoint is None else endpoint.features(),
            "encoding": problem.encoding,
        },
        "searcher": {
            "name": searcher.name,
            "class": class_path(type(searcher)),
            "objective": searcher.objective_name,
            "seed": searcher.seed,
            "planned_candidates": searcher.budget,
            "settings": _plain(searcher._settings_dict()),
            "subspace": None if searcher.subspace is None else _plain(searcher.subspace.form),
            "content": _plain(searcher.content),
        },
    }


def versions() -> dict[str, str]:
    """The versions of what decides the bits of a run."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def task_location(task: Task) -> str | dict[str, Any] | None:
    """What loads a task again: a built-in name, the absolute path of its folder, or the mapping that it was given as.

    A public task is loaded by its name and its ``data``. None for Python objects.
    """
    if task.inline is not None:
        return dict(task.inline)
    if task.data:
        return task.name
    path = Path(task.source)
    if not task.source or not path.is_file():
        return None
    return task.name if path.parent.parent == BUNDLED else str(path.parent.resolve())


def write_manifest(study: Path, content: Mapping[str, Any], schema: str = SCHEMA) -> None:
    """Write study.yaml, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    import yaml

    text = yaml.safe_dump({"schema": schema, **content}, sort_keys=False, allow_unicode=True)
    write_whole(study / FILE, seal_yaml(text))
    carry(study)


def close_manifest(
    study: Path, content: dict[str, Any], budget: int, files: Iterable[str], schema: str = SCHEMA
) -> None:
    """Write in study.yaml that all closing steps are done, and the checksums of their ``files``.

    Of a study on object storage the files are there before study.yaml says so.

    Raises:
        StoreError: something cannot be written.
    """
    carry(study)
    content[CLOSED] = {"budget": budget, "files": checksums_of(study, files)}
    write_manifest(study, content, schema)


def check_not_begun(study: Path) -> None:
    """See, once the lock of a new study is held, that no other process had it before.

    Raises:
        InputError: there is a study by now.
    """
    if (study / FILE).exists():
        raise InputError(
            f"--out {location_of(study)}: another process has begun a study there in the meantime; give a new "
            "directory, or go on with it: --resume, or --start-or-resume"
        )


def kind_of(study: Path) -> str:
    """The schema that a study's study.yaml names; empty where it cannot be read."""
    try:
        return str(read_record(study / FILE).get("schema", ""))
    except InputError:
        return ""


def read_manifest(study: Path, schema: str = SCHEMA) -> dict[str, Any]:
    """The content of a study's study.yaml.

    Raises:
        InputError: the directory is not a study's, its study.yaml is of another version, or it lacks something.
    """
    path = study / FILE
    if not is_dir(study):
        raise InputError(f"--resume {location_of(study)}: no such directory")
    if not is_file(path):
        raise InputError(f"--resume {location_of(study)}: not a study that has begun (it holds no {FILE})")
    content = read_record(path)
    found = content.get("schema")
    kind, other = str(found).partition("/")[0], {"rayprompt.study": "search", "rayprompt.comparison": "compare"}
    if kind in other and kind != schema.partition("/")[0]:
        begun = f"rayprompt {other[kind]}"
        raise InputError(f"{location_of(study)}: begun by {begun}; {begun} --resume goes on with it")
    if found != schema:
        raise InputError(f"{path}: schema {shown(found)}; this version resumes {schema!r}")
    check_record(content, str(path))
    return content


def make_directory(study: Path) -> None:
    """Make a study's directory.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        study.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{location_of(study)}: cannot be made ({error.strerror})") from None


@contextmanager
def how_to_go_on(study: Path, command: str = "search") -> Iterator[None]:
    """Adds to what ends a study on its way how it can be taken up again."""
    try:
        yield
    except (RayPromptError, KeyboardInterrupt) as error:
        if not (study / FILE).is_file() or isinstance(error, InputError):
            raise
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {go_on(command, study)}") from None
        raise type(error)(f"{error}; {go_on(command, study)}") from None


def class_path(searcher: type[PromptSearcher]) -> str:
    """Where a searcher's class is imported from, as study.yaml has it."""
    return f"{searcher.__module__}:{searcher.__qualname__}"


def recorded_searcher(path: str, study: Path) -> type[PromptSearcher]:
    """The class that :func:`class_path` named.

    Raises:
        InputError: it cannot be imported here.
    """
    module, _, name = path.partition(":")
    try:
        cls: type[PromptSearcher] = getattr(import_module(module), name)
        if not (isinstance(cls, type) and issubclass(cls, PromptSearcher)):
            raise ImportError("another thing")
    except Exception:  # what a module of the user's raises is not ours to know
        raise InputError(
            f"{location_of(study)}: its searcher {path} cannot be imported here; give the class: "
            "resume(..., searcher=...)"
        ) from None
    return cls


def check_unchanged(was: Mapping[str, Any], now: Mapping[str, Any], study: Path) -> list[str]:
    """Compare what a study resolved when it began with what it would resolve now; gives remarks on versions.

    Raises:
        InputError: task, LM, searcher, dtype or batch shapes are others: it would be another search.
    """
    _check_parts(was, now, study, SAME | {"pool": ("dtype", "shapes")})
    versions = was.get("versions", {})
    return [
        f"{name} was {versions.get(name)} when the study began and is {here} now: last bits may differ"
        for name, here in now["versions"].items()
        if versions.get(name) != here and name != "rayprompt"
    ]


def check_same_search(was: Mapping[str, Any], now: Mapping[str, Any], study: Path) -> None:
    """Compare what was given now with what a study began with, as far as no scorers are needed for it.

    Raises:
        InputError: it is another search.
    """
    measured = ("subspace", "content")  # once there are scorers
    parts = {part: tuple(name for name in names if name not in measured) for part, names in SAME.items()}
    _check_parts(was, now, study, parts)
    for before, here in ((was["model"], now["model"]), (was.get("target"), now.get("target"))):
        if before and here:
            given, had = (deciding(LMSettings.of(form.get("settings")).to_json()) for form in (here, before))
            if given != had:
                raise InputError(
                    f"{location_of(study)}: --lm was {had} when the study began and is {given} now; it must be the same"
                )


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of an LM that decide a score: not its speed, its room, or its price."""
    return {name: value for name, value in settings.items() if name not in UNDECIDING}


def _check_parts(
    was: Mapping[str, Any], now: Mapping[str, Any], study: Path, parts: Mapping[str, tuple[str, ...]]
) -> None:
    for part, names in parts.items():
        for name in names:
            if name in ("content", "judge", "endpoint") and name not in was[part]:  # an older study, that had none
                continue
            if name == "encoding":
                _check_encoding(was[part].get(name), now[part].get(name), study)
                continue
            if _plain(was[part][name]) != _plain(now[part][name]):
                raise InputError(
                    f"{location_of(study)}: {part} {name} was {shown(was[part][name])} when the study began and is "
                    f"{shown(now[part][name])} now; a resumed search must go on with the same"
                )


def _check_encoding(was: int | None, now: int | None, study: Path) -> None:
    if was != now:
        raise InputError(
            f"{location_of(study)}: begun by a version that gave other token ids for this template (it tokenized its "
            "pieces one by one, or kept what the chat template drops): begin a new study"
        )


def _plain(value: Any) -> Any:
    """As YAML gives it back: a tuple is a list there."""
    return json.loads(json.dumps(value))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
