"""Soft prompts on a loaded LM: from z to vectors, and the vectors into the model's input."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.candidate import Subspace
from rayprompt.errors import ScoringError
from rayprompt.lm.projection import Bounded, projection_matrix
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

ROWS = 32  # of a product: always so many, so that a prompt's bits do not depend on its neighbours' number
MATRIX_BYTES = 512 * 1024**2  # of projections that are kept
VECTOR_BYTES = 256 * 1024**2  # of prompts that are kept
VOCABULARY_ROWS = 1024  # of the vocabulary, looked at at a time


@dataclass(frozen=True)
class SoftBlock:
    """Soft prompts of one subspace: what travels to a scorer once a request.

    Attributes:
        key: names the block.
        subspace: of all of them.
        z: (S, dim) float32.
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

    def copy(self) -> SoftBlock:
        """The same in memory of its own."""
        return replace(self, z=self.z.copy(), p0=None if self.p0 is None else self.p0.copy())


@dataclass(frozen=True)
class Injection:
    """What is put into the model's input: vectors (B, n, width) at ``row`` (B or 1, 1) and ``at`` (B, n) of it.

    ``replace``: instead of the embeddings there; else added to them.
    """

    vectors: torch.Tensor
    row: torch.Tensor
    at: torch.Tensor
    replace: bool

    @classmethod
    def from_start(cls, vectors: torch.Tensor, start: torch.Tensor, *, replace: bool) -> Injection:
        """Vectors (B, n, width) into the B rows of an input, from position ``start`` (B,) of each on."""
        import torch

        places = torch.arange(vectors.shape[1], device=start.device)
        row = torch.arange(len(start), device=start.device)[:, None]
        return cls(vectors, row, start[:, None] + places, replace)


class _Captured(Exception):
    """Carries embeddings out of a forward pass that need not go on."""


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
            _first_layer(body, model.config).register_forward_pre_hook(self._before_layer, with_kwargs=True)

    def put(self, injection: Injection | None) -> None:
        """What this thread's next forward passes get; None for nothing."""
        self.local.injection = injection

    def embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T, width) the embedding layer's output for token ids (B, T), positions included."""
        import torch

        self.local.injection, self.local.capture = None, True
        try:
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self._decoder_inputs(ids))
        except _Captured as captured:
            output: torch.Tensor = captured.args[0]
            return output
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
            raise _Captured(hidden)
        injection: Injection | None = getattr(self.local, "injection", None)
        if injection is None:
            return hidden
        vectors = injection.vectors.to(hidden.dtype)
        if vectors.shape[2] != hidden.shape[2]:
            raise ScoringError(f"a soft prompt of width {vectors.shape[2]} in an LM of width {hidden.shape[2]}")
        row, at = injection.row, injection.at
        hidden = hidden.clone()
        hidden[row, at] = vectors if injection.replace else hidden[row, at] + vectors
        return hidden


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

    def vectors(self, block: SoftBlock, rows: IntArray) -> torch.Tensor:
        """(n, length, width) A z + p0 of some rows (n,) of a block; with ``concat`` initial tokens count as p0."""
        import torch

        pieces = [self._product(block, int(i)) for i in np.unique(rows // ROWS)]
        index = np.searchsorted(np.unique(rows // ROWS), rows // ROWS) * ROWS + rows % ROWS
        return torch.cat(pieces)[torch.from_numpy(index).to(self.device)]

    def nearest(self, block: SoftBlock, row: int, allowed: IntArray, *, other: bool = False) -> IntArray:
        """(length,) of the token ids ``allowed`` (V,) the one whose embedding is nearest at each place of a prompt.

        Distances are Euclidean, between what the embedding layer gives for a token alone and the prompt's vectors;
        with ``add`` those are added to what it gives for the initial tokens. ``other``: the initial token of a place
        does not count there; a short A z leaves it the nearest, whatever its direction.
        """
        import torch

        space = block.subspace
        with torch.inference_mode():
            wanted = self.vectors(block, np.array([row]))[0]
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


def _first_layer(body: Any, config: Any) -> Any:
    """The first of a body's transformer layers."""
    from torch.nn import ModuleList

    count = int(config.num_hidden_layers)
    for module in body.modules():
        if isinstance(module, ModuleList) and len(module) == count:
            return module[0]
    raise ScoringError(f"{type(body).__name__}: its layers were not found, so it takes no soft prompts")
