"""Soft prompts on a loaded LM: from z to vectors, and the vectors into the model's input."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.candidate import ZEROS, SoftPrompt, Subspace, digest
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.projection import ROWS_A_DRAW, Bounded, check_deep, layer_rows, projection_matrix
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

ROWS = 32  # of a product: always so many, so that a prompt's bits do not depend on its neighbours' number
MATRIX_BYTES = 512 * 1024**2  # of projections that are kept
VECTOR_BYTES = 256 * 1024**2  # of prompts that are kept
DRAWERS = 8  # threads that draw rows of A
VOCABULARY_ROWS = 1024  # of the vocabulary, looked at at a time


@dataclass(frozen=True)
class SoftBlock:
    """Soft prompts of one subspace: what travels to a scorer once a request.

    Attributes:
        key: names the block.
        subspace: of all of them.
        z: (S, dim) float32; of deep prompts (S, layers x dim).
        p0: (length, width) float32, or None for zeros.
    """

    key: str
    subspace: Subspace
    z: FloatArray
    p0: FloatArray | None = None

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.z.nbytes + (0 if self.p0 is None else self.p0.nbytes)

    @cached_property
    def shared(self) -> int:
        """The first layer in which the prompts differ: what stands below is the same for all. 0: nothing is shared."""
        space = self.subspace
        for layer in space.layers if len(self.z) > 1 else ():
            z = self.z[:, space.of_layer(layer)]
            if (z != z[0]).any():
                return layer
        return 0

    def below(self, layer: int) -> str:
        """Digest of all that decides the hidden states which enter a layer, where the prompts share it."""
        count = sum(lower < layer for lower in self.subspace.layers)
        z = self.z[0, : count * self.subspace.dim]
        return hashlib.sha256(z.astype("<f4").tobytes() + self.subspace.key.encode()).hexdigest()[:32]

    def copy(self) -> SoftBlock:
        """The same in memory of its own."""
        return replace(self, z=self.z.copy(), p0=None if self.p0 is None else self.p0.copy())


def block_of(prompts: Sequence[SoftPrompt], p0: Mapping[str, FloatArray]) -> SoftBlock:
    """Soft prompts of one subspace as they travel to a scorer.

    Raises:
        InputError: their initial vectors are not known here.
    """
    space = prompts[0].subspace
    if space.p0 != ZEROS and space.p0 not in p0:
        raise InputError(f"a soft prompt begins with vectors {space.p0!r}, which are not at hand: give p0=FILE")
    z = np.stack([prompt.vector for prompt in prompts])
    key = digest([space.key, [prompt.key for prompt in prompts]])
    return SoftBlock(key, space, z, None if space.p0 == ZEROS else p0[space.p0])


@dataclass(frozen=True)
class SoftVectors:
    """Vectors of S prompts, on the LM's device.

    Attributes:
        block: they are of.
        layers: layer -> (U, length, width) those that differ there, and (S,) which of them each prompt has.
    """

    block: SoftBlock
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]

    def of(self, prompt: torch.Tensor) -> Callable[[int], torch.Tensor | None]:
        """For prompts (B,): what gives their vectors (B, length, width) in a layer; None where they have none."""

        def vectors(layer: int) -> torch.Tensor | None:
            if layer not in self.layers:
                return None
            different, which = self.layers[layer]
            return different[which[prompt]]

        return vectors


@dataclass(frozen=True)
class Injection:
    """What is put into the model: vectors (B, n, width) of a layer at ``row`` (B or 1, 1) and ``at`` (B, n).

    ``replace``: instead of the embeddings there; else added to them. In layers above layer 0 they are always added.
    """

    vectors: Callable[[int], torch.Tensor | None]
    row: torch.Tensor
    at: torch.Tensor
    replace: bool

    @classmethod
    def from_start(
        cls, vectors: Callable[[int], torch.Tensor | None], length: int, start: torch.Tensor, *, replace: bool
    ) -> Injection:
        """Vectors (B, length, width) into the B rows of an input, from position ``start`` (B,) of each on."""
        import torch

        places = torch.arange(length, device=start.device)
        row = torch.arange(len(start), device=start.device)[:, None]
        return cls(vectors, row, start[:, None] + places, replace)

    def repeated(self, count: int) -> Injection:
        """The same where every row of the input stands ``count`` times, one behind the other."""
        import torch

        def vectors(layer: int) -> torch.Tensor | None:
            found = self.vectors(layer)
            return None if found is None else found.repeat_interleave(count, 0)

        row = torch.arange(len(self.row) * count, device=self.row.device)[:, None]
        return Injection(vectors, row, self.at.repeat_interleave(count, 0), self.replace)

    def put(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, width) that enter a layer, with a layer's vectors in them."""
        vectors = self.vectors(layer)
        if vectors is None:
            return hidden
        if vectors.shape[2] != hidden.shape[2]:
            raise ScoringError(f"a soft prompt of width {vectors.shape[2]} in an LM of width {hidden.shape[2]}")
        vectors = vectors.to(hidden.dtype)
        hidden = hidden.clone()
        replace = self.replace and layer == 0
        hidden[self.row, self.at] = vectors if replace else hidden[self.row, self.at] + vectors
        return hidden


class Captured(Exception):
    """Carries hidden states out of a forward pass that need not go on."""

    @property
    def states(self) -> torch.Tensor:
        """(B, T, width)."""
        found: torch.Tensor = self.args[0]
        return found


class SoftInput:
    """Where a model takes soft prompts: behind its whole embedding layer, before its first transformer layer.

    That is the output of the model's ``embeddings`` where it has such a module (BERT and its kin), else the input of
    its first layer (GPT-2, Llama, T5, BART); in an encoder-decoder LM, of its encoder. The model's own code runs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.local = threading.local()
        body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        embeddings = getattr(body, "embeddings", None)
        if embeddings is not None:
            embeddings.register_forward_hook(lambda module, inputs, output: self._put(output))
        else:
            first = transformer_layers(body, model.config)[0]
            first.register_forward_pre_hook(self._before_layer, with_kwargs=True)

    def put(self, injection: Injection | None) -> None:
        """What this thread's next forward passes get; None for nothing."""
        self.local.injection = injection

    def embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T, width) the embedding layer's output for token ids (B, T), positions included."""
        import torch

        self.local.injection, self.local.capture = None, True
        try:
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self._decoder_inputs(ids))
        except Captured as captured:
            return captured.states
        finally:
            self.local.capture = False
        raise ScoringError("the LM never came to where a soft prompt is put")

    def _decoder_inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"decoder_input_ids": ids[:, :1]} if self.model.config.is_encoder_decoder else {}

    def _before_layer(self, module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if inputs:
            return (self._put(inputs[0]), *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": self._put(keywords["hidden_states"])}

    def _put(self, hidden: torch.Tensor) -> torch.Tensor:
        if getattr(self.local, "capture", False):
            raise Captured(hidden)
        injection: Injection | None = getattr(self.local, "injection", None)
        return hidden if injection is None else injection.put(0, hidden)


class SoftPrompts:
    """Makes vectors of z: one matrix product for up to 32 prompts, on the LM's device, in float32.

    Matrices and vectors are kept within bounds of memory; what was dropped is drawn again, to the same bits.
    """

    def __init__(self, site: SoftInput, device: torch.device) -> None:
        self.site = site
        self.device = device
        size = _bytes_of
        self.matrices: Bounded[torch.Tensor] = Bounded(MATRIX_BYTES, size)
        self.bases: Bounded[torch.Tensor] = Bounded(VECTOR_BYTES, size)
        self.products: Bounded[torch.Tensor] = Bounded(VECTOR_BYTES, size)
        self.checked: set[str] = set()  # keys of subspaces of deep prompts
        self.lock = threading.Lock()

    def vectors(self, block: SoftBlock, rows: IntArray) -> SoftVectors:
        """A z + p0 of some rows (n,) of a block; with ``concat`` initial tokens count as p0."""
        import torch

        space = block.subspace
        if space.deep:
            return SoftVectors(block, self._deep(block, rows))
        vectors = self.embedded(block, rows)
        return SoftVectors(block, {0: (vectors, torch.arange(len(rows), device=self.device))})

    def embedded(self, block: SoftBlock, rows: IntArray) -> torch.Tensor:
        """(n, length, width) what is put in where the embeddings are whole."""
        import torch

        if block.subspace.deep:
            vectors, which = self._deep(block, rows, only=0).get(0, (None, None))
            if vectors is None or which is None:
                return self._base(block).expand(len(rows), -1, -1)
            return vectors[which]
        pieces = [self._product(block, int(i)) for i in np.unique(rows // ROWS)]
        index = np.searchsorted(np.unique(rows // ROWS), rows // ROWS) * ROWS + rows % ROWS
        return torch.cat(pieces)[torch.from_numpy(index).to(self.device)]

    def _deep(
        self, block: SoftBlock, rows: IntArray, only: int | None = None
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """For each layer (or ``only`` one) the vectors that differ, and which of them each row has."""
        import torch

        space, found = block.subspace, {}
        for layer in dict.fromkeys((0, *space.layers)):
            if only is not None and layer != only:
                continue
            if layer in space.layers:
                z, which = np.unique(block.z[rows, space.of_layer(layer)], axis=0, return_inverse=True)
            else:  # layer 0 holds the initial vectors, tuned or not
                z, which = np.zeros((1, space.dim), dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
            if z.any() or (layer == 0 and (block.p0 is not None or space.front)):
                index = torch.from_numpy(np.asarray(which, dtype=np.int64).reshape(-1)).to(self.device)
                found[layer] = (self._layer_vectors(block, layer, z), index)
        return found

    def _layer_vectors(self, block: SoftBlock, layer: int, z: FloatArray) -> torch.Tensor:
        """(U, length, width) the vectors of z (U, dim) in a layer. Those that are not known are worked out together."""
        import torch

        space = block.subspace
        names = [(space.key, layer, row.tobytes()) for row in z]
        with self.lock:  # whoever comes while they are worked out finds them done
            known = {name: self.products.find(name) for name in names}
            missing = [i for i, name in enumerate(names) if known[name] is None]
            if missing and space.key not in self.checked:
                check_deep(space)
                self.checked.add(space.key)
            for start in range(0, len(missing), ROWS):
                some = missing[start : start + ROWS]
                for i, vectors in zip(some, self._multiply_layer(block, layer, z[some]), strict=False):
                    known[names[i]] = vectors.clone()
                    self.products.put(names[i], vectors.clone())
        return torch.stack([vectors for name in names if (vectors := known[name]) is not None])

    def _multiply_layer(self, block: SoftBlock, layer: int, z: FloatArray) -> torch.Tensor:
        """(ROWS, length, width) the vectors of at most ROWS z (u, dim) in a layer: a few rows of A at a time."""
        import torch

        space = block.subspace
        size = space.length * space.width_of(layer)
        padded = np.zeros((ROWS, space.dim), dtype=np.float32)
        padded[: len(z)] = z
        left = torch.from_numpy(padded).to(self.device)
        product = torch.zeros((ROWS, size), device=self.device)

        def rows(number: int) -> FloatArray:
            return layer_rows(space.seed, space.projection, space.dim, size, layer, number)

        numbers = range(-(-space.dim // ROWS_A_DRAW))
        # On a GPU's machine threads draw ahead; where scorers compute on the CPU, its threads are theirs.
        threads = ThreadPoolExecutor(DRAWERS) if self.device.type == "cuda" else None
        with threads or nullcontext():
            for number, drawn in enumerate((map if threads is None else threads.map)(rows, numbers)):
                some = left[:, number * ROWS_A_DRAW : number * ROWS_A_DRAW + len(drawn)]
                product.addmm_(some, torch.from_numpy(drawn).to(self.device))
        product = (product * space.scale_of(layer)).view(ROWS, space.length, -1)
        return product + self._base(block) if layer == 0 else product

    def nearest(self, block: SoftBlock, row: int, allowed: IntArray, *, other: bool = False) -> IntArray:
        """(length,) of the token ids ``allowed`` (V,) the one whose embedding is nearest at each place of a prompt.

        Distances are Euclidean, between what the embedding layer gives for a token alone and the prompt's vectors;
        with ``add`` those are added to what it gives for the initial tokens. ``other``: the initial token of a place
        does not count there; a short A z leaves it the nearest, whatever its direction.
        """
        import torch

        space = block.subspace
        with torch.inference_mode():
            wanted = self.embedded(block, np.array([row]))[0]
            if space.mode == "add":
                wanted = wanted + self._alone(np.array(space.tokens))
            best = torch.full((space.length,), torch.inf, device=self.device)
            found = torch.zeros(space.length, dtype=torch.int64, device=self.device)
            for start in range(0, len(allowed), VOCABULARY_ROWS):
                ids = allowed[start : start + VOCABULARY_ROWS]
                distances = torch.cdist(wanted, self._alone(ids))
                if other and space.tokens:
                    same = torch.tensor(space.tokens)[:, None] == torch.from_numpy(ids)
                    distances = distances.masked_fill(same.to(self.device), torch.inf)
                distance, index = distances.min(dim=1)
                nearer = distance < best
                best = torch.where(nearer, distance, best)
                found = torch.where(nearer, torch.from_numpy(ids).to(self.device)[index], found)
        return np.asarray(found.cpu().numpy())

    def _alone(self, ids: IntArray) -> torch.Tensor:
        """(n, width) the embedding layer's output for each token as an input of its own."""
        import torch

        return self.site.embeddings(torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self.device)[:, None])[
            :, 0
        ].float()

    def _product(self, block: SoftBlock, number: int) -> torch.Tensor:
        return self.products.get((block.key, number), lambda: self._multiply(block, number))

    def _multiply(self, block: SoftBlock, number: int) -> torch.Tensor:
        """(ROWS, length, width) the vectors of rows ``number * ROWS`` and on; rows beyond the block are p0."""
        import torch

        space = block.subspace
        z = np.zeros((ROWS, space.dim), dtype=np.float32)
        given = block.z[number * ROWS : (number + 1) * ROWS]
        z[: len(given)] = given
        matrix = self.matrices.get(
            space.key, lambda: torch.from_numpy(projection_matrix(space)).to(self.device, torch.float32)
        )
        base = self.bases.get(space.key, lambda: self._base(block))
        product = torch.from_numpy(z).to(self.device) @ matrix
        return product.view(ROWS, space.length, space.width) + base

    def _base(self, block: SoftBlock) -> torch.Tensor:
        """(length, width) what A z is added to, besides embeddings that stand in the input."""
        import torch

        space = block.subspace
        base = torch.zeros((space.length, space.width), device=self.device)
        if block.p0 is not None:
            base = base + torch.from_numpy(block.p0).to(self.device, torch.float32)
        if space.mode == "concat" and space.tokens:
            ids = torch.tensor([space.tokens], device=self.device)
            base = base + self.site.embeddings(ids)[0].float()
        return base


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def transformer_layers(body: Any, config: Any) -> list[Any]:
    """A body's transformer layers; where they have their weights together, the groups that they are run by."""
    from torch.nn import ModuleList

    counts = [int(config.num_hidden_layers), int(getattr(config, "num_hidden_groups", 0) or 0)]
    for count in counts:
        for module in body.modules():
            if isinstance(module, ModuleList) and len(module) == count:
                return list(module)
    raise ScoringError(f"{type(body).__name__}: its layers were not found, so it takes no soft prompts")
