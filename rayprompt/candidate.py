"""Candidates: what a searcher proposes and the pool scores. Plain data: frozen, hashable, with a stable key."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rayprompt.errors import InputError
from rayprompt.foreign import Unreadable, parse_json
from rayprompt.typed import shown

ZEROS = "zeros"
MOST_TOKENS = 1 << 31
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON form of ``value``, the first 32 hex digits."""
    return hashlib.sha256(_CANONICAL(value).encode("utf-8")).hexdigest()[:32]


class TextIds(tuple[int, ...]):
    """The token ids of a prompt's text, which it has at its place; ``text`` is tokenized with what stands around it.

    They are equal to the plain tuple of the same ids. Where the tokenizer makes a token out of characters of the
    prompt and of its neighbors, the input has the ids of the whole string, and not these.
    """

    text: str | None

    def __new__(cls, ids: Iterable[int], text: str | None = None) -> TextIds:
        self = super().__new__(cls, ids)
        self.text = text
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TextIds, (tuple(self), self.text)


@dataclass(frozen=True)
class TextPrompt:
    """A discrete prompt.

    With ``token_ids`` exactly those ids of the task LM's vocabulary are spliced into the template. Without, or with
    those that the text has at its place, the input has the ids that the tokenizer gives for the whole string. Two
    prompts with the same ids have the same key, whatever their text.
    """

    text: str
    token_ids: tuple[int, ...] | None = None

    kind = "text"

    def __post_init__(self) -> None:
        if self.token_ids is not None and not isinstance(self.token_ids, TextIds):
            object.__setattr__(self, "token_ids", tuple(int(i) for i in self.token_ids))

    @cached_property
    def key(self) -> str:
        """Digest of what is scored: the ids where there are any, else the text."""
        return digest(["text", self.text] if self.token_ids is None else ["ids", list(self.token_ids)])

    def to_json(self) -> dict[str, Any]:
        """The JSON form; ``candidate_from_json`` reads it back."""
        form: dict[str, Any] = {"kind": self.kind, "text": self.text}
        if self.token_ids is not None:
            form["token_ids"] = list(self.token_ids)
        return form


@dataclass(frozen=True)
class Subspace:
    """The random subspace of a soft prompt (Black-Box Tuning, arXiv 2201.03514, section 3): prompt = A z + p0.

    A is (length x width, dim), drawn by NumPy's Philox generator, which gives the same numbers on every machine.

    Attributes:
        seed: of A.
        scale: the standard deviation of A's entries.
        length: prompt tokens.
        layers: the layers that get a prompt.
        p0: the initial vectors (length, width): ``zeros``, or the digest of those that the problem has.
        mode: ``add`` adds the prompt to the embeddings of ``tokens``, which stand at the prompt's place; ``concat``
            puts it in front of the whole input.
        projection: the entries of A are ``normal`` or ``uniform`` (mean 0).
        tokens: (length,) ids of the initial tokens; with ``concat`` their embeddings are a part of p0.
        dim: the intrinsic dimension, length of z; of a deep prompt, of each layer's.
        width: of the LM's embeddings.
        digest: of A, as it was drawn when the search began; empty = not known.
        hidden: of a deep prompt, the width of the LM's hidden states: of its vectors in every layer but layer 0.
        scales: of a deep prompt, (layers,) the standard deviation of each layer's A; ``scale`` is the first.

    A prompt of layer 0 is put in where the embeddings are whole. A deep prompt (BBTv2, arXiv 2205.11200) has a z and an
    A for each of its ``layers``; in layer j it is added to the hidden states that enter layer j, at its positions.
    """

    seed: int
    scale: float
    length: int
    layers: tuple[int, ...] = (0,)
    p0: str = ZEROS
    mode: str = "add"
    projection: str = "normal"
    tokens: tuple[int, ...] = ()
    dim: int = 0
    width: int = 0
    digest: str = ""
    hidden: int = 0
    scales: tuple[float, ...] = ()

    @cached_property
    def key(self) -> str:
        """Digest of all of it."""
        return digest(self.form)

    @property
    def deep(self) -> bool:
        """Whether other layers than layer 0 get a prompt."""
        return self.layers != (0,)

    @property
    def numbers(self) -> int:
        """Length of the z of a candidate, all layers together."""
        return self.dim * len(self.layers)

    def width_of(self, layer: int) -> int:
        """The width of a layer's vectors."""
        return self.hidden if layer else self.width

    def scale_of(self, layer: int) -> float:
        """The standard deviation of a layer's A."""
        return self.scales[self.layers.index(layer)] if self.scales else self.scale

    def of_layer(self, layer: int) -> slice:
        """Where a layer's numbers stand in z."""
        at = self.layers.index(layer) * self.dim
        return slice(at, at + self.dim)

    @property
    def front(self) -> int:
        """Positions that it takes in front of the input."""
        return self.length if self.mode == "concat" else 0

    @cached_property
    def form(self) -> dict[str, Any]:
        """The JSON form; what only deep prompts have is left out of others."""
        form = {**dataclasses.asdict(self), "layers": list(self.layers), "tokens": list(self.tokens)}
        if self.deep:
            return {**form, "scales": list(self.scales)}
        return {name: value for name, value in form.items() if name not in ("hidden", "scales")}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Subspace:
        """Read the JSON form back."""
        lists: dict[str, Any] = {n: tuple(int(i) for i in form[n]) for n in ("layers", "tokens") if n in form}
        if "scales" in form:
            lists["scales"] = tuple(float(x) for x in form["scales"])
        return cls(**{**form, **lists})


@dataclass(frozen=True)
class SoftPrompt:
    """A continuous prompt: ``z``, float32 values, in a :class:`Subspace`; of a deep one layer by layer, end to end."""

    z: tuple[float, ...]
    subspace: Subspace

    kind = "soft"

    def __post_init__(self) -> None:
        object.__setattr__(self, "z", tuple(np.asarray(self.z, dtype=np.float32).tolist()))

    @cached_property
    def vector(self) -> npt.NDArray[np.float32]:
        """``z`` as an array."""
        return np.array(self.z, dtype=np.float32)

    @cached_property
    def key(self) -> str:
        """Digest of ``z`` and the subspace."""
        content = self.vector.astype("<f4").tobytes() + self.subspace.key.encode()
        return hashlib.sha256(content).hexdigest()[:32]

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, ``z`` as base64 of little-endian float32; ``candidate_from_json`` reads it back."""
        text = base64.b64encode(self.vector.astype("<f4").tobytes()).decode("ascii")
        return {"kind": self.kind, "z": text, "subspace": self.subspace.form}


@dataclass(frozen=True)
class ConditionedPrompt:
    """A prompt for each of some inputs: what a policy that reads the input writes. It is scored on these inputs alone.

    Attributes:
        prompts: (digest of an example, the prompt for it).
    """

    prompts: tuple[tuple[str, TextPrompt], ...]

    kind = "conditioned"

    @cached_property
    def key(self) -> str:
        """Digest of the inputs and their prompts."""
        return digest(["conditioned", [[example, prompt.key] for example, prompt in self.prompts]])

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def of(self) -> dict[str, TextPrompt]:
        """Digest of an example -> its prompt."""
        return dict(self.prompts)

    @cached_property
    def different(self) -> tuple[TextPrompt, ...]:
        """The prompts, each once, the most frequent first."""
        counts = Counter(prompt for _, prompt in self.prompts)
        return tuple(prompt for prompt, _ in counts.most_common())

    @property
    def text(self) -> str:
        """For people: the most frequent prompt, and how many others there are."""
        first, *others = [prompt.text for prompt in self.different] or [""]
        return f"{first} (and {len(others)} other{'s' if len(others) > 1 else ''})" if others else first

    def diversity(self) -> dict[str, float]:
        """How much prompts differ from input to input.

        ``inputs`` and ``prompts`` count; ``most_frequent`` is the share of inputs with the same prompt; ``entropy`` is
        that of the prompts, in nats: its exponential is how many of equal frequency would differ as much.
        """
        count = len(self.prompts)
        shares = [n / count for n in Counter(prompt for _, prompt in self.prompts).values()]
        return {
            "inputs": count,
            "prompts": len(shares),
            "most_frequent": max(shares, default=0.0),
            "entropy": 0.0 - sum(p * math.log(p) for p in shares),
        }

    def to_json(self) -> dict[str, Any]:
        """The JSON form: each prompt once, and which one every input has; ``candidate_from_json`` reads it back."""
        number = {prompt: i for i, prompt in enumerate(self.different)}
        return {
            "kind": self.kind,
            "text": self.text,
            "prompts": [prompt.to_json() for prompt in self.different],
            "inputs": {example: number[prompt] for example, prompt in self.prompts},
        }


Candidate: TypeAlias = TextPrompt | SoftPrompt | ConditionedPrompt


def candidate_from_json(form: Mapping[str, Any]) -> Candidate:
    """Read a candidate from its JSON form.

    Raises:
        InputError: ``form`` is not the JSON form of a candidate.
    """
    try:
        if form["kind"] == "text":
            ids = form.get("token_ids")
            if not isinstance(form["text"], str):
                raise TypeError("text must be a string")
            return TextPrompt(form["text"], None if ids is None else tuple(map(_token, ids)))
        if form["kind"] == "soft":
            z = form["z"]
            numbers = np.frombuffer(base64.b64decode(z, validate=True), dtype="<f4") if isinstance(z, str) else z
            return SoftPrompt(tuple(float(x) for x in numbers), Subspace.from_json(form["subspace"]))
        if form["kind"] == "conditioned":
            prompts = [candidate_from_json(prompt) for prompt in form["prompts"]]
            chosen = [(str(example), prompts[int(i)]) for example, i in form["inputs"].items()]
            return ConditionedPrompt(tuple((example, p) for example, p in chosen if isinstance(p, TextPrompt)))
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"not a candidate: {error.args[0]} is missing in {shown(form, 80)}") from None
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(f"not a candidate: {shown(form, 80)} ({error})") from None
    raise InputError(f"not a candidate: kind {shown(form['kind'])}; known: text, soft, conditioned")


def parse_candidate(text: str) -> Candidate:
    """Read a candidate from the text of its JSON form.

    Raises:
        InputError: it is not one.
    """
    try:
        form = parse_json(text)
    except Unreadable as error:
        raise InputError(f"not a candidate: {error}") from None
    if not isinstance(form, dict):
        raise InputError(f"not a candidate: {shown(form)}")
    return candidate_from_json(form)


def _token(number: Any) -> int:
    if type(number) is not int or not 0 <= number < MOST_TOKENS:
        raise TypeError(f"{shown(number)} is not the id of a token")
    return number


class CandidateForms(str):
    """JSON forms of candidates as one JSON text, which prints as their number.

    Ray Tune copies a trial's config many times, writes it to several files, and makes names of its values.
    """

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> CandidateForms:
        return cls(json.dumps([c.to_json() for c in candidates], ensure_ascii=False, separators=(",", ":")))

    def __str__(self) -> str:
        count = self.count('"kind":')
        return f"{count} candidates"

    __repr__ = __str__


def candidates(config: Mapping[str, Any]) -> list[Candidate]:
    """The candidates of a Tune trial's ``config``, for a trainable of your own.

    ``config["candidates"]`` has their JSON forms, as one JSON text or as a list.

    Raises:
        InputError: the config was not made by a :class:`PromptSearcher`.
    """
    if "candidates" not in config:
        given = ", ".join(sorted(map(str, config))) or "nothing"
        raise InputError(f"no 'candidates' in the trial's config (it has: {given}); its searcher must be rayprompt's")
    forms = config["candidates"]
    if isinstance(forms, str):
        try:
            forms = parse_json(forms)
        except Unreadable as error:
            raise InputError(f"the trial's config: 'candidates' is not JSON ({error})") from None
    return [candidate_from_json(form) for form in forms]
