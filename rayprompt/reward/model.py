"""The interface of a reward model: query and prompt -> the probability that the LM's answer is right."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from rayprompt.errors import InputError, did_you_mean, unknown
from rayprompt.foreign import read_json
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import Features, TextFeatures, Vectors
from rayprompt.scores import FloatArray, IntArray

SCHEMA = "rayprompt.reward-model/2"
FILE = "model.json"
STRENGTH = 4.0  # labels that the mean of all prompts counts for in a prompt's prior


def within(default: Any, least: float, most: float = math.inf) -> Any:
    """A setting with its default and range, both ends included."""
    return field(default=default, metadata={"within": (least, most)})


@dataclass(frozen=True)
class Settings:
    """Of a model that has none."""


class RewardModel(ABC):
    """Learned from demonstrations; a subclass fits and predicts on rows of features.

    Args:
        features: of queries; text features unless given.
        settings: those of the dataclass ``Settings``.

    Attributes:
        prompts: (P,) what it has seen labels of.
        prior: (P,) success of each prompt, shrunk a little towards the mean of all.
        data: digest of the demonstrations.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any]] = Settings

    def __init__(self, features: Features | None = None, **settings: Any) -> None:
        known = self.Settings.__dataclass_fields__
        for key, value in settings.items():
            if key not in known:
                raise InputError(
                    f"reward model {self.name}: no setting {key!r}{did_you_mean(key, known)}; it has "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
            least, most = known[key].metadata["within"]
            whole = isinstance(known[key].default, int)
            if not isinstance(value, int if whole else (int, float)) or not least <= value <= most:
                upto = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
                raise InputError(f"setting {key}={value}: must be {'a whole number, ' if whole else ''}{upto}")
        self.settings = self.Settings(**settings)
        self.features: Features = features or TextFeatures()
        self.prompts: tuple[str, ...] = ()
        self.prior: FloatArray = np.zeros(0)
        self.llm = self.data = ""

    def fit(self, data: Demonstrations, *, seed: int = 0) -> RewardModel:
        """Learn from the prompts of ``data`` that have labels.

        Raises:
            InputError: there is no label, or the seed is below 0.
        """
        check_seed(seed)
        if not data.rows:
            raise InputError("no labels to learn from")
        data = data.of(prompts=data.labelled())
        self.llm, self.data, self.prompts = data.llm, data.digest, data.prompts
        known = data.known
        mean = float(np.nanmean(data.correct))
        self.prior = (np.nansum(data.correct, axis=0) + STRENGTH * mean) / (known.sum(axis=0) + STRENGTH)
        x = self.features.fit(data.queries).transform(data.queries)
        self._fit(x, data, np.random.default_rng(seed))
        return self

    def predict(self, queries: Sequence[str], prompts: Sequence[str] | None = None) -> FloatArray:
        """(Q, P) probabilities, for prompts seen or unseen (those that it has seen, unless given).

        Raises:
            InputError: a query has no text.
        """
        for i, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise InputError(f"query {i + 1}: has no text")
        prompts = self.prompts if prompts is None else tuple(prompts)
        place = {text: i for i, text in enumerate(self.prompts)}
        which = np.array([place.get(text, -1) for text in prompts], dtype=np.int64)
        distinct = list(dict.fromkeys(queries))
        if not distinct or not len(which):
            return np.zeros((len(queries), len(which)))
        row = {text: i for i, text in enumerate(distinct)}
        found = self._predict(self.features.transform(distinct), which, prompts)
        return np.asarray(found[[row[text] for text in queries]])

    @abstractmethod
    def _fit(self, x: sparse.csr_matrix, data: Demonstrations, rng: np.random.Generator) -> None:
        """Learn, with features x (Q, F) of the queries of ``data``, all of whose prompts have labels."""

    @abstractmethod
    def _predict(self, x: sparse.csr_matrix, which: IntArray, prompts: Sequence[str]) -> FloatArray:
        """(Q, P) probabilities at features (Q, F), for prompts (P,): places among those seen, -1 = unseen."""

    def _save(self, folder: Path) -> None:  # noqa: B027 (a prior has nothing more)
        """Write what was learned: arrays, or the text format of a library. Never a pickle."""

    def _load(self, folder: Path) -> None:  # noqa: B027
        """Read what :meth:`_save` wrote."""

    def save(self, folder: Path, *, force: bool = False, more: Mapping[str, str] | None = None) -> None:
        """Write the model to a directory, whole or not at all: ``model.json``, and the files whose digests it holds.

        Args:
            folder: new or empty; with ``force`` an earlier model there is written over.
            more: name -> text of files that belong to it.

        Raises:
            InputError: it cannot be written, or something else is there.
        """
        check_target(folder, force=force)
        folder = folder.absolute()
        part, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
        try:
            part.mkdir(parents=True)
            self.features.save(part)
            self._save(part)
            np.savez(part / "prior.npz", prior=self.prior)
            for name, text in (more or {}).items():
                (part / name).write_text(text, encoding="utf-8")
            content = {
                "schema": SCHEMA,
                "model": self.name,
                "settings": asdict(self.settings),
                "features": self.features.name,
                "llm": self.llm,
                "data": self.data,
                "prompts": list(self.prompts),
                "files": {name: _sha256(part / name) for name in _files(part)},
            }
            (part / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)


def load_model(folder: Path, features: Features | None = None) -> RewardModel:
    """A model that was saved.

    Args:
        folder: the directory.
        features: where it was learned on vectors: those of the same origin.

    Raises:
        InputError: the directory holds no reward model, a part of one, or one that was learned on other features.
    """
    content = read_json(folder / FILE)
    if content.get("schema") != SCHEMA:
        raise InputError(
            f"{folder / FILE}: schema {content.get('schema')!r}; a reward model has {SCHEMA!r}: fit it anew"
        )
    try:
        return _loaded(folder, content, features)
    except InputError:
        raise
    except Exception as error:  # what is broken surfaces as many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{folder}: not a whole reward model ({reason[:100]}); fit it anew") from None


def _loaded(folder: Path, content: Mapping[str, Any], features: Features | None) -> RewardModel:
    from rayprompt.reward.models import model_class

    for name, digest in content["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} is missing; fit it anew")
        if _sha256(folder / name) != digest:
            raise InputError(
                f"{folder}: {name} is not the file that was saved with {FILE} (another digest); fit it anew"
            )
    if content["features"] == TextFeatures.name:
        if features is not None:
            raise InputError(f"{folder}: learned on texts, not on vectors; leave --features out")
        features = TextFeatures.load(folder)
    elif features is None:
        raise InputError(f"{folder}: learned on {content['features']}; give the vectors of new texts with --features")
    elif isinstance(features, Vectors):
        features.check(folder)
    model = model_class(content["model"])(features, **content["settings"])
    model.llm, model.data, model.prompts = content["llm"], content["data"], tuple(content["prompts"])
    with np.load(folder / "prior.npz", allow_pickle=False) as arrays:
        model.prior = arrays["prior"]
    if model.prior.shape != (len(model.prompts),):
        raise InputError(
            f"{folder}: priors of {len(model.prior)} prompts, but there are {len(model.prompts)}; fit it anew"
        )
    model._load(folder)
    return model


def check_target(folder: Path, *, force: bool = False) -> None:
    """See that a model can be saved there.

    Raises:
        InputError: something is there: an earlier model, and ``force`` is not given, or anything else.
    """
    if folder.resolve() == Path.cwd():
        raise InputError(f"{str(folder)!r} is the working directory; name a new one")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"{folder}: {'' if above == folder else f'{above} '}is a file; a model is a directory")
    names = [path.name for path in sorted(folder.iterdir())] if above == folder else []
    if names and not force:
        raise InputError(
            f"{folder}: is not empty (it holds {names[0]}); name a new directory, or --force to write over an earlier "
            f"recommender"
        )
    try:
        own = {*read_json(folder / FILE)["files"], FILE}
    except (InputError, KeyError, TypeError):
        own = set()
    others = [name for name in (_files(folder) if names else []) if name not in own]
    if others:
        raise InputError(f"{folder}: holds {others[0]}, which is no part of a recommender; name a new directory")


def _files(folder: Path) -> list[str]:
    """Names of all files in a directory, as seen from it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_seed(seed: int) -> None:
    """Raise ``InputError`` for a seed below 0."""
    if seed < 0:
        raise InputError(f"seed {seed}: must be 0 or more")


def settings_of(pairs: Mapping[str, Any], cls: type[RewardModel]) -> dict[str, Any]:
    """Settings of a model, as their types want them.

    Raises:
        InputError: one does not exist, or is of another type.
    """
    fields = cls.Settings.__dataclass_fields__
    found: dict[str, Any] = {}
    for key, value in pairs.items():
        if key not in fields:
            raise unknown("setting", key, fields, f"reward model {cls.name}")
        default = fields[key].default
        try:
            found[key] = type(default)(value)
        except (TypeError, ValueError):
            raise InputError(f"setting {key}={value!r}: must be {type(default).__name__}, as {default!r}") from None
    return found
