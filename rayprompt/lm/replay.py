"""LMs that are not run: what a finished study has stored of theirs answers in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError, unknown
from rayprompt.written import read_record

PREFIX = "replay:"
STUDY_FILE = "study.yaml"


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


def recorded(name: str) -> Recorded:
    """The LM that ``replay:STUDY`` names; ``#MODEL`` says which, where a comparison was of several.

    Raises:
        InputError: there is no such study, or it has no such LM.
    """
    import yaml

    path, mark, model = name.removeprefix(PREFIX).rpartition("#")
    if not mark:
        path, model = model, ""
    study = Path(path).expanduser()
    file = study / STUDY_FILE
    if not file.is_file():
        raise InputError(f"model {name}: {study} is not the directory of a study (it holds no {STUDY_FILE})")
    try:
        content = yaml.safe_load(read_record(file))
        models = {m["name"]: m for m in (content.get("models") or [content["model"]])}
        if model and model not in models:
            raise unknown("model", model, models, str(study))
        if len(models) > 1 and not model:
            raise InputError(
                f"model {name}: the study is of {', '.join(models)}; say which, as {name}#{next(iter(models))}"
            )
        found = models[model or next(iter(models))]
        location = str(found["location"])
        if is_replay(location):  # a replay of a replay is one of the study itself
            return recorded(location)
        pools = content.get("pools") or {}
        return Recorded(
            study.resolve(),
            str(study.resolve() if content["store"] == "." else content["store"]),
            location,
            str(found["digest"]),
            dict(found.get("settings") or {}),
            found.get("endpoint"),
            dict(pools.get(found["name"]) or content.get("pool") or {}),
        )
    except InputError:
        raise
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:120]
        raise InputError(f"model {name}: {file} cannot be read ({reason})") from None
