"""What searchers of soft prompts share: their settings, and the random subspace that these describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayprompt.candidate import ZEROS, Candidate, SoftPrompt, Subspace, TextPrompt, candidate_from_json
from rayprompt.errors import InputError, unknown
from rayprompt.foreign import read_json
from rayprompt.lm.projection import deep_digest, entry_scale, projection_digest
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import embedding_std
from rayprompt.lm.vectors import read_vectors, vectors_digest
from rayprompt.records import PromptRecord
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import setting
from rayprompt.typed import check
from rayprompt.written import check_written

if TYPE_CHECKING:
    from rayprompt.scoring.pool import ScoringPool

PLACEMENTS, PROJECTIONS = ("add", "concat"), ("normal", "uniform")
DEFAULT_LENGTH = 50
FIRST_TOKEN = 1000  # Black-Box Tuning begins with the vocabulary's tokens 1000 to 1049
TOKENS, TEXT = "tokens", "text:"
MOST = 1e6  # of a number of z


@dataclass(frozen=True)
class SoftSettings:
    """Settings of every searcher of soft prompts: prompt = A z + p0, with z of ``intrinsic_dim`` numbers."""

    intrinsic_dim: int = setting(500, "numbers in z")
    length: int | None = setting(None, "prompt tokens (default: p0's where it has a length, else 50)")
    placement: str = setting("add", "'add' to p0's tokens at the prompt's place in the template, or 'concat' in front")
    projection: str = setting("normal", "the entries of A: 'normal' (as released) or 'uniform' (as published)")
    alpha: float = setting(1.0, "size of the first steps: std(A z) is so many times that of the word embeddings")
    sigma: float = setting(1.0, "standard deviation of the first z; without bounds A is divided by it, so use alpha")
    bound: float | None = setting(None, "z stays within -bound and bound (published: 5; released: null, none)")
    p0: str = setting("tokens", "'tokens', 'tokens:ID', 'zeros', 'text:...', a .safetensors file, or a study")
    projection_seed: int | None = setting(None, "seed of A (default: the search's seed)")


@dataclass(frozen=True)
class Start:
    """Where a soft prompt begins: ``tokens`` and vectors of that digest (``zeros``: none); ``length`` tokens."""

    tokens: tuple[int, ...]
    p0: str
    length: int


@dataclass(frozen=True)
class SoftSpace:
    """A subspace with what a searcher does in it."""

    subspace: Subspace

    @classmethod
    def of(cls, problem: Problem, settings: SoftSettings, seed: int, layers: tuple[int, ...] = (0,)) -> SoftSpace:
        """The subspace that settings describe; of a deep prompt without the scales, see :meth:`scaled`.

        Raises:
            InputError: a setting is out of range, p0 cannot be read or has another shape, or the prompt does not fit
                the LM beside the task's texts.
        """
        s = settings
        for name, value in (("placement", s.placement), ("projection", s.projection)):
            known = PLACEMENTS if name == "placement" else PROJECTIONS
            if value not in known:
                raise unknown(f"setting {name}", value, known)
        for name in ("intrinsic_dim", "alpha", "sigma", "length", "bound"):
            value = getattr(s, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"setting {name}={value}: must be greater than 0")
        if s.projection_seed is not None and s.projection_seed < 0:
            raise InputError(f"setting projection_seed={s.projection_seed}: must be 0 or more")
        key = (s.p0, s.length, s.placement)
        if key not in problem.starts:
            problem.starts[key] = read_start(problem, s.p0, s.length, s.placement)
        start: Start = problem.starts[key]
        front = start.length if s.placement == "concat" else 0
        for name in problem.own_parts:
            part = problem.part(name).reserving(front)
            count = len(part)
            part.lengths(np.full(count, 0 if front else start.length), np.arange(count))
        own_seed = seed if s.projection_seed is None else s.projection_seed
        width, deep = problem.lm.width, layers != (0,)
        std = embedding_std_of(problem) if s.projection == "normal" else 1.0
        space = Subspace(
            seed=own_seed,
            scale=_scale(s, std),
            length=start.length,
            layers=layers,
            p0=start.p0,
            mode=s.placement,
            projection=s.projection,
            tokens=start.tokens,
            dim=s.intrinsic_dim,
            width=width,
            hidden=problem.lm.hidden_size if deep else 0,
        )
        sizes = {layer: start.length * space.width_of(layer) for layer in layers}
        drawn = (own_seed, s.projection, s.intrinsic_dim, *(sizes.items() if deep else sizes.values()))
        if drawn not in problem.projections:
            arguments = (own_seed, s.projection, s.intrinsic_dim)
            problem.projections[drawn] = (
                deep_digest(*arguments, sizes) if deep else projection_digest(*arguments, sizes[0])
            )
        return cls(replace(space, digest=problem.projections[drawn]))

    def scaled(self, problem: Problem, settings: SoftSettings, pool: ScoringPool | None = None) -> SoftSpace:
        """A deep prompt's subspace with the scale of every layer, from what the LM's hidden states are like.

        Any other subspace is returned as it is.

        A of layer j has entries of standard deviation alpha std_j / (sqrt(d) sigma), std_j being that of the hidden
        states which enter the layer, clipped (BBTv2, arXiv 2205.11200, section 3.2; layer 0: the word embeddings).
        They are measured on the train examples with the initial prompt in them, by a scorer of ``pool``; without one
        the LM is loaded in this process. What was measured is kept with the problem.

        Raises:
            ScoringError: the LM's layers were not found, or it cannot be loaded.
        """
        space = self.subspace
        if not space.deep:
            return self
        if space.key not in problem.layer_scales:
            stds = dict.fromkeys(space.layers, 1.0)
            kept = pool.recorded_scales(space) if pool is not None and pool.source.replay else None
            if kept is not None:
                problem.layer_scales[space.key] = kept
                return SoftSpace(replace(space, scales=kept))
            above = [layer for layer in space.layers if layer > 0]
            if space.projection == "normal":
                blank = SoftPrompt((0.0,) * space.numbers, space)
                if pool is not None:
                    stds |= pool.hidden_stds(problem.part("train"), blank, above, problem.vectors)
                else:
                    stds |= _measured_here(problem, blank, above)
            scales = (space.scale if layer == 0 else _scale(settings, stds[layer]) for layer in space.layers)
            problem.layer_scales[space.key] = tuple(scales)
        return SoftSpace(replace(space, scales=problem.layer_scales[space.key]))

    def prompt(self, z: FloatArray | Sequence[float]) -> SoftPrompt:
        """The prompt of a z (dim,). What an optimizer that diverges proposes is kept finite."""
        finite = np.nan_to_num(np.asarray(z, dtype=np.float64)).clip(-MOST, MOST)
        return SoftPrompt(tuple(finite.astype(np.float32).tolist()), self.subspace)

    def z(self, candidate: Candidate) -> FloatArray | None:
        """(dim,) float64 the z of a candidate; None where it is not of this subspace."""
        if not isinstance(candidate, SoftPrompt) or candidate.subspace != self.subspace:
            return None
        return candidate.vector.astype(np.float64)


def _scale(settings: SoftSettings, std: float) -> float:
    """Of A's entries, where what a prompt is added to has that standard deviation."""
    s = settings
    return float(
        np.float32(entry_scale(s.projection, alpha=s.alpha, sigma=s.sigma, dim=s.intrinsic_dim, embedding_std=std))
    )


def _measured_here(problem: Problem, prompt: SoftPrompt, layers: Sequence[int]) -> dict[int, float]:
    from rayprompt.lm.deep import hidden_stds
    from rayprompt.lm.scorer import LMScorer

    return hidden_stds(LMScorer(problem.lm), problem.part("train"), block_of([prompt], problem.vectors), layers)


def embedding_std_of(problem: Problem) -> float:
    """The standard deviation of the LM's word embeddings; read once, and kept with the problem."""
    known = problem.embedding_std
    if "std" not in known:
        known["std"] = embedding_std(problem.lm.location)
    return known["std"]


def recall_start(problem: Problem, p0: str, length: int | None, placement: str, space: Subspace, file: Path) -> None:
    """Begin as a study did: what its setting ``p0`` named may be gone; ``file`` holds a copy of the vectors."""
    if space.p0 != ZEROS:
        vectors = read_vectors(file)[0]
        if vectors_digest(vectors) != space.p0:
            raise InputError(f"{file}: not the vectors that the study began with")
        problem.vectors[space.p0] = vectors
    problem.starts[p0, length, placement] = Start(space.tokens, space.p0, space.length)
    if space.deep:  # measured again on another machine, they would have other last bits
        problem.layer_scales[replace(space, scales=()).key] = space.scales


def read_start(problem: Problem, p0: str, length: int | None, mode: str) -> Start:
    """Where the setting ``p0`` says that soft prompts begin; vectors are kept with the problem.

    Raises:
        InputError: it says nothing that is known, cannot be read, or has another shape than ``length`` says.
    """
    vocabulary = problem.lm.vocab_size
    count = length or DEFAULT_LENGTH
    if p0 == ZEROS and mode == "concat":
        return Start((), ZEROS, count)
    if p0 in (ZEROS, TOKENS):  # what is added needs tokens to be added to
        return Start(_tokens_from(min(FIRST_TOKEN, max(0, vocabulary - count)), count, vocabulary, p0), ZEROS, count)
    if p0.startswith(TOKENS + ":") and p0.removeprefix(TOKENS + ":").isdecimal():
        return Start(_tokens_from(int(p0.removeprefix(TOKENS + ":")), count, vocabulary, p0), ZEROS, count)
    if p0.startswith(TEXT):
        return _from_ids(problem.prompt(p0.removeprefix(TEXT)).token_ids or (), length, p0)
    path = Path(p0).expanduser()
    if path.is_dir():
        return _from_study(problem, path, length, mode, p0)
    if path.suffix == ".safetensors":
        return _from_file(problem, path, length, mode, p0)
    raise InputError(
        f"setting p0={p0!r}: must be tokens, tokens:ID, zeros, text:..., a .safetensors file or the directory of a "
        "finished study, and there is no such file or directory"
    )


def _tokens_from(first: int, count: int, vocabulary: int, p0: str) -> tuple[int, ...]:
    if first + count > vocabulary:
        raise InputError(f"setting p0={p0!r}: {count} tokens from {first} on; the vocabulary has {vocabulary}")
    return tuple(range(first, first + count))


def _from_ids(ids: Sequence[int], length: int | None, p0: str) -> Start:
    """The tokens of a text, again and again until they are ``length``."""
    if not ids:
        raise InputError(f"setting p0={p0!r}: the text has no tokens")
    count = length or len(ids)
    return Start(tuple(int(ids[i % len(ids)]) for i in range(count)), ZEROS, count)


def _from_file(problem: Problem, path: Path, length: int | None, mode: str, p0: str) -> Start:
    vectors, tokens = read_vectors(path)
    width = problem.lm.width
    if vectors.shape[1] != width or len(vectors) != (length or len(vectors)):
        wanted = f"({length or 'length'}, {width})"
        raise InputError(f"setting p0={p0!r}: its vectors are {vectors.shape}; for {problem.lm.name} it needs {wanted}")
    if mode == "add" and tokens is None:
        first = min(FIRST_TOKEN, max(0, problem.lm.vocab_size - len(vectors)))
        tokens = _tokens_from(first, len(vectors), problem.lm.vocab_size, p0)
    wrong = [i for i in tokens or () if not 0 <= i < problem.lm.vocab_size]
    if wrong:
        raise InputError(f"setting p0={p0!r}: token id {wrong[0]} is not in the vocabulary of {problem.lm.name}")
    key = vectors_digest(vectors)
    problem.vectors[key] = vectors
    return Start(tokens or () if mode == "add" else (), key, len(vectors))


def _from_study(problem: Problem, study: Path, length: int | None, mode: str, p0: str) -> Start:
    """The winner of an earlier study: its text, or its vectors."""
    file = study / "prompt.json"
    if not file.is_file():
        raise InputError(f"setting p0={p0!r}: not the directory of a finished study (it holds no prompt.json)")
    check_written(file)
    content = read_json(file)
    check(content, PromptRecord, str(file))
    prompt, lm = candidate_from_json(content["prompt"]), content["model"]
    same_lm = problem.lm.same(lm.get("digest"))
    if isinstance(prompt, TextPrompt):
        ids = prompt.token_ids if same_lm else None
        return _from_ids(ids or problem.prompt(prompt.text).token_ids or (), length, p0)
    if not isinstance(prompt, SoftPrompt):
        raise InputError(f"setting p0={p0!r}: its prompts were written for single inputs: there is none to begin with")
    if not same_lm:
        raise InputError(
            f"setting p0={p0!r}: its soft prompt is of {lm.get('name')}, another LM than {problem.lm.name}"
        )
    if prompt.subspace.deep:
        raise InputError(f"setting p0={p0!r}: its prompt is a deep one, of several layers; p0 is of layer 0 alone")
    if prompt.subspace.mode != mode:
        raise InputError(f"setting p0={p0!r}: its soft prompt was found with placement={prompt.subspace.mode}")
    check_written(study / "prompt.safetensors")
    return _from_file(problem, study / "prompt.safetensors", length, mode, p0)
