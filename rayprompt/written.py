"""What a study has written is what is read back: study.yaml holds a checksum of itself and of the files of its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rayprompt.errors import DamagedError, InputError
from rayprompt.foreign import read_bytes, yaml_of
from rayprompt.store.checksum import ChecksumError, open_yaml, sha256_of

STUDY_FILE = "study.yaml"
CLOSED = "closed"  # in study.yaml: the budget whose closing steps are all done, and the checksums of their files


def read_record(path: Path) -> dict[str, Any]:
    """The content of a study.yaml.

    Raises:
        InputError: it cannot be read, or holds something else than a mapping.
        DamagedError: it is not what was written.
    """
    try:
        return yaml_of(open_yaml(read_bytes(path, "YAML")), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except ChecksumError:
        raise DamagedError(
            f"{path}: damaged, or edited by hand: it does not match its checksum. If you edited it, delete its last "
            "line (# sha256: ...); if not, restore it from a copy"
        ) from None


def checksums_of(study: Path, names: Iterable[str]) -> dict[str, str]:
    """The checksums of those of a study's files that are there, for study.yaml."""
    return {name: sha256_of((study / name).read_bytes()) for name in names if (study / name).is_file()}


def is_closed(record: Mapping[str, Any], budget: int) -> bool:
    """Whether all closing steps for a budget are done, as far as study.yaml says; an older one does not say."""
    closed = record.get(CLOSED, {"budget": budget})
    return closed is not None and int(closed["budget"]) == budget


def check_written(path: Path) -> None:
    """See that a file of a study's end, as result.json, is what the study.yaml beside it says that was written.

    Raises:
        DamagedError: it is not.
    """
    record = path.parent / STUDY_FILE
    if not record.is_file() or not path.is_file():
        return
    try:
        wanted = read_record(record)[CLOSED]["files"][path.name]
    except (KeyError, TypeError):  # not closed, or of an earlier version
        return
    if sha256_of(path.read_bytes()) != wanted:
        raise DamagedError(
            f"{path}: damaged, or edited by hand: it does not match the checksum in {STUDY_FILE}. Resume the study, "
            "which writes it again"
        )
