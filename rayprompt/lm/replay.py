"""LMs that are not run: what a finished study has stored of theirs answers in their place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rayprompt.errors import InputError, unknown
from rayprompt.foreign import is_file
from rayprompt.typed import check
from rayprompt.written import read_record

PREFIX = "replay:"
STUDY_FILE = "study.yaml"


class ReplayedLM(TypedDict):
    """What a replay needs to know of an LM."""

    name: str
    location: str
    digest: str
    settings: NotRequired[dict[str, Any] | None]
    endpoint: NotRequired[dict[str, Any] | None]


class Replayed(TypedDict):
    """The part of study.yaml that a replay reads; of a comparison ``models`` and ``pools``."""

    store: str
    model: NotRequired[ReplayedLM | None]
    models: NotRequired[list[ReplayedLM] | None]
    pool: NotRequired[dict[str, Any] | None]
    pools: NotRequired[dict[str, dict[str, Any]] | None]


@dataclass(frozen=True)
class Recorded:
    """An LM of a study, as its study.yaml has it.

    Attributes:
        study: the directory.
        store: where its scores are.
        location, digest: of the LM.
        settings: how it was run.
        endpoint: of an LM behind a service, what was found out about it; None of another one.
        pool: what is said of the scorers.
    """

    study: Path
    store: str
    location: str
    digest: str
    settings: dict[str, Any]
    endpoint: dict[str, Any] | None
    pool: dict[str, Any]


def is_replay(name: str) -> bool:
    """Whether a model's name is ``replay:STUDY`` or ``replay:STUDY#MODEL``."""
    return name.startswith(PREFIX)


def recorded(name: str, on_the_way: tuple[Path, ...] = ()) -> Recorded:
    """The LM that ``replay:STUDY`` names; ``#MODEL`` says which, where a comparison was of several.

    Args:
        name: of the model.
        on_the_way: studies whose LM was a replay, which led here.

    Raises:
        InputError: there is no such study, it has no such LM, or it replays itself.
    """
    path, mark, model = name.removeprefix(PREFIX).rpartition("#")
    if not mark:
        path, model = model, ""
    study = Path(path).expanduser()
    file = study / STUDY_FILE
    if not is_file(file):
        raise InputError(f"model {name}: {study} is not the directory of a study (it holds no {STUDY_FILE})")
    study = study.resolve()
    if study in on_the_way:
        raise InputError(f"model {name}: {file} replays itself; there is no LM at the end of its replays")
    content = read_record(file)
    check(content, Replayed, str(file))
    models = {m["name"]: m for m in (content.get("models") or [content.get("model")]) if m}
    if not models:
        raise InputError(f"{file}: model is missing; it must be a mapping")
    if model and model not in models:
        raise unknown("model", model, models, str(study))
    if len(models) > 1 and not model:
        raise InputError(
            f"model {name}: the study is of {', '.join(models)}; say which, as {name}#{next(iter(models))}"
        )
    found = models[model or next(iter(models))]
    if is_replay(found["location"]):  # a replay of a replay is one of the study itself
        return recorded(found["location"], (*on_the_way, study))
    pools = content.get("pools") or {}
    return Recorded(
        study,
        str(study if content["store"] == "." else content["store"]),
        found["location"],
        found["digest"],
        dict(found.get("settings") or {}),
        found.get("endpoint"),
        dict(pools.get(found["name"]) or content.get("pool") or {}),
    )
