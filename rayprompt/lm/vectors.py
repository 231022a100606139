"""Vectors of soft prompts as safetensors files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from rayprompt.errors import InputError, StoreError
from rayprompt.scores import FloatArray

VECTORS, TOKENS, P0, LAYER = "prompt", "token_ids", "p0", "layer."
NOTHING: Mapping[int, FloatArray] = MappingProxyType({})


def read_vectors(path: Path, name: str = VECTORS) -> tuple[FloatArray, tuple[int, ...] | None]:
    """(length, width) float32 vectors, and the (length,) tokens they are added to where the file has them.

    They are the file's tensor ``prompt`` (or ``name``), or its only one.

    Raises:
        InputError: the file is missing, is not safetensors, or has no such tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"no such file: {path} (a .safetensors file with vectors of a soft prompt)")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None
    if name == VECTORS and any(key.startswith(LAYER) for key in tensors):
        raise InputError(f"{path}: holds a deep prompt, of several layers; vectors of one layer are wanted")
    tokens = tensors.pop(TOKENS, None)
    if tokens is not None and (tokens.ndim != 1 or tokens.is_floating_point()):
        raise InputError(
            f"{path}: {TOKENS!r} must be (length,) whole numbers, not {tuple(tokens.shape)} {tokens.dtype}"
        )
    tensor = tensors.get(name, next(iter(tensors.values())) if len(tensors) == 1 else None)
    if tensor is None or tensor.ndim != 2:
        found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise InputError(f"{path}: needs a tensor {name!r} of shape (length, width); it has {found or 'none'}")
    if tokens is not None and len(tokens) != len(tensor):
        raise InputError(f"{path}: {len(tokens)} {TOKENS} for {len(tensor)} vectors; there must be one each")
    return tensor.float().numpy(), None if tokens is None else tuple(int(i) for i in tokens)


def write_vectors(
    path: Path,
    vectors: FloatArray,
    tokens: Sequence[int],
    p0: FloatArray | None = None,
    layers: Mapping[int, FloatArray] = NOTHING,
) -> None:
    """Write, whole or not at all, what :func:`read_vectors` reads, and the initial vectors where there are any.

    ``layers``: of a deep prompt, what is added in layer j, as the tensor ``layer.j``.

    Raises:
        StoreError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    content = {VECTORS: np.ascontiguousarray(vectors, dtype=np.float32)}
    if tokens:
        content[TOKENS] = np.array(tokens, dtype=np.int64)
    if p0 is not None:
        content[P0] = np.ascontiguousarray(p0, dtype=np.float32)
    content |= {f"{LAYER}{i}": np.ascontiguousarray(v, dtype=np.float32) for i, v in layers.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(content, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error})") from None


def vectors_digest(vectors: FloatArray) -> str:
    """SHA-256 of shape and float32 content, the first 32 hex digits."""
    content = np.ascontiguousarray(vectors, dtype="<f4")
    return hashlib.sha256(repr(content.shape).encode() + content.tobytes()).hexdigest()[:32]
