"""Text style transfer: which models judge what an LM wrote, and how its samples become a reward. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rayprompt.candidate import digest
from rayprompt.errors import InputError, unknown
from rayprompt.scores import FloatArray

# Runs models on texts: (what, its arguments, columns of N texts) -> (N, k) numbers; see rayprompt.lm.judges.Judges.
Run = Callable[[str, tuple[Any, ...], Sequence[Sequence[str]]], FloatArray]

# BERTScore's layer of an encoder, and the F1 of unrelated English sentences there (its published baseline).
KNOWN = {"roberta-large": (17, 0.83122575)}
MODELS = ("classifier", "encoder", "test_classifier", "fluency", "perplexity")


@dataclass(frozen=True)
class StyleModels:
    """The models of a style transfer task, each by bundled name, folder or name on the hub.

    Attributes:
        classifier: of styles: a sequence classifier.
        target: its label of the style that is wanted: a name, or its number.
        encoder: content is what BERTScore's F1 between text and output is with this encoder's token vectors.
        layer: of the encoder, whose states those are; None is the last, or the one that is known to be good.
        baseline: the F1 of unrelated texts, which becomes 0; 1 stays 1. None is what is known of the encoder, else 0.
        test_classifier: another one for reports; None is ``classifier``.
        fluency: a classifier for reports, and ``fluency_label`` its label of well-formed texts.
        perplexity: a causal LM for reports.
        weights: digest of classifier's and encoder's weights, where they have been read.
    """

    classifier: str
    target: str
    encoder: str
    layer: int | None = None
    baseline: float | None = None
    test_classifier: str | None = None
    fluency: str | None = None
    fluency_label: str = "0"
    perplexity: str | None = None
    weights: str = ""

    @classmethod
    def of(cls, given: Any, where: str, folder: Path | None = None) -> StyleModels:
        """From the key ``style`` of a task file; folders in it are looked for beside that file first.

        Raises:
            InputError: it is not what this needs.
        """
        known = [f.name for f in fields(cls) if f.name != "weights"]
        if not isinstance(given, Mapping):
            raise InputError(f"{where}: style must map {', '.join(known[:3])}, as {{classifier: DIR, target: 1, ...}}")
        for key in given:
            if key not in known:
                raise unknown("key", key, known, f"{where}, style")
        missing = [key for key in known[:3] if given.get(key) is None]
        if missing:
            raise InputError(f"{where}: style lacks {' and '.join(missing)}; it needs {', '.join(known[:3])}")
        read: dict[str, Any] = {key: str(value) for key, value in given.items() if value is not None}
        for key in MODELS:
            if key in read and folder is not None and (folder / read[key]).is_dir():
                read[key] = str((folder / read[key]).resolve())
        if "layer" in read:
            read["layer"] = _number(read["layer"], int, 0, 1000, f"{where}: style: layer")
        if "baseline" in read:
            read["baseline"] = _number(read["baseline"], float, 0, 0.999, f"{where}: style: baseline")
        return cls(**read)

    @cached_property
    def scale(self) -> tuple[int | None, float]:
        """Layer and baseline as they are used."""
        known = KNOWN.get(self.encoder.rpartition("/")[2])
        layer = known[0] if self.layer is None and known else self.layer
        fits = known is not None and layer == known[0]
        return layer, known[1] if self.baseline is None and known and fits else self.baseline or 0.0

    @property
    def reward(self) -> tuple[Any, ...]:
        """What a reward is made by: the arguments of :meth:`rayprompt.lm.judges.Judges.reward`."""
        return self.classifier, self.target, self.encoder, *self.scale

    @property
    def id(self) -> str:
        """Digest of what decides a reward."""
        names = [self.weights] if self.weights else [self.classifier, self.encoder]
        return digest([*names, self.target, *self.scale])[:16]

    def read_as(self, weights: str, target: str) -> StyleModels:
        """The same when its weights were read: their digest, and the target's number."""
        return replace(self, weights=weights, target=target)

    def to_json(self) -> dict[str, Any]:
        """For study.yaml: what is set."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def _number(text: str, kind: type, least: float, most: float, where: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not least <= value <= most:
        raise InputError(f"{where}={text}: must be a number from {least:g} to {most:g}")
    return value
