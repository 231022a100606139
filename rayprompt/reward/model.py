"""The interface of a reward model: query and prompt -> the probability that the LM's answer is right."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from rayprompt.errors import InputError, did_you_mean, unknown
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.features import Features, TextFeatures
from rayprompt.scores import FloatArray, IntArray

SCHEMA = "rayprompt.reward-model/1"
STRENGTH = 4.0  # labels that the mean of all prompts counts for in a prompt's prior


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
        known = set(self.Settings.__dataclass_fields__)
        for key in settings:
            if key not in known:
                raise InputError(
                    f"reward model {self.name}: no setting {key!r}{did_you_mean(key, known)}; it has "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
        self.settings = self.Settings(**settings)
        self.features: Features = features or TextFeatures()
        self.prompts: tuple[str, ...] = ()
        self.prior: FloatArray = np.zeros(0)
        self.llm = self.data = ""

    def fit(self, data: Demonstrations, *, seed: int = 0) -> RewardModel:
        """Learn from the prompts of ``data`` that have labels.

        Raises:
            InputError: there is no label.
        """
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

    def save(self, folder: Path) -> None:
        """Write the model to a directory: ``model.json`` and files beside it.

        Raises:
            InputError: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.features.save(folder)
            self._save(folder)
            np.savez(folder / "prior.npz", prior=self.prior)
            content = {
                "schema": SCHEMA,
                "model": self.name,
                "settings": asdict(self.settings),
                "features": self.features.name,
                "llm": self.llm,
                "data": self.data,
                "prompts": list(self.prompts),
            }
            (folder / "model.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def load_model(folder: Path, features: Features | None = None) -> RewardModel:
    """A model that was saved.

    Args:
        folder: the directory.
        features: where it was learned on vectors: those of the same origin.

    Raises:
        InputError: the directory holds no reward model, or one that needs vectors.
    """
    from rayprompt.reward.models import model_class
    from rayprompt.tables import read_json

    content = read_json(folder / "model.json")
    if content.get("schema") != SCHEMA:
        raise InputError(f"{folder / 'model.json'}: schema {content.get('schema')!r}; a reward model has {SCHEMA!r}")
    if content["features"] == "text":
        features = TextFeatures.load(folder)
    elif features is None:
        raise InputError(f"{folder}: learned on {content['features']}; give the vectors of new texts with --features")
    else:
        width = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))["width"]
        given = getattr(features, "width", None)
        if given is not None and given != width:
            raise InputError(f"{folder}: learned on vectors {width} wide; those given are {given} wide")
        if given is None and hasattr(features, "width"):
            features.width = width
    model = model_class(content["model"])(features, **content["settings"])
    model.llm, model.data, model.prompts = content["llm"], content["data"], tuple(content["prompts"])
    with np.load(folder / "prior.npz", allow_pickle=False) as arrays:
        model.prior = arrays["prior"]
    model._load(folder)
    return model


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
