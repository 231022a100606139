"""What memory an LM takes on a scorer, and how many tokens of a forward pass find room beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayprompt import limits
from rayprompt.errors import ScoringError
from rayprompt.lm.family import load_family
from rayprompt.lm.settings import shown
from rayprompt.lm.shapes import TOKENS_A_PASS, DeviceClass
from rayprompt.lm.source import LMSource

if TYPE_CHECKING:
    import torch

STATES = 24  # numbers that a token of a pass takes at once, in hidden sizes: a block's intermediate states, twice over
LEAST_TOKENS = 64
SMALL = 5_000_000  # parameters; an LM with fewer is done with a pass before the interpreter has the next one ready
RESERVE = 0.05  # of the memory, for what is not counted: kernels, fragments


def dtype_of(setting: str, device: str) -> str:
    """The name of the dtype that ``auto`` is on a device."""
    return setting if setting != "auto" else "float32" if device == "cpu" else "bfloat16"


def cache_of(source: LMSource) -> int:
    """Bytes for keys and values; an LM that reads in both directions has none to share."""
    return 0 if load_family(source.family).reads_mask else source.settings.cache


def token_memory(source: LMSource, itemsize: int) -> int:
    """Bytes that a token of a forward pass takes while it is in it, about."""
    return STATES * source.hidden_size * itemsize


def room_for_tokens(source: LMSource, device: DeviceClass, itemsize: int, memory: int | None) -> int:
    """Tokens of a forward pass: what suits the device, or the largest power of two that finds room beside the LM."""
    most = TOKENS_A_PASS[device] * (2 if device == "cpu" and source.parameters < SMALL else 1)
    if memory is None:
        return most
    room = memory * (1 - RESERVE) - source.parameters * itemsize - cache_of(source)
    tokens = most
    while tokens > LEAST_TOKENS and tokens * token_memory(source, itemsize) > room:
        tokens //= 2
    return tokens


def check_memory(source: LMSource, device: torch.device, dtype: torch.dtype) -> int | None:
    """The bytes that the LM may take: ``--lm memory``, else what the device has.

    Raises:
        ScoringError: it needs more; says how much, and what for.
    """
    import torch

    has = _memory_of(device)
    limit = source.settings.memory
    if limit is not None and device.type == "cuda" and has:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / has), device)
    memory = has if limit is None else limit
    size = dtype.itemsize
    weights = source.parameters * size
    tokens = source.settings.tokens or LEAST_TOKENS
    a_pass = tokens * token_memory(source, size)
    cache = cache_of(source)
    needed = (weights + a_pass + cache) / (1 - RESERVE)
    if memory is not None and needed > memory:
        name = str(dtype).removeprefix("torch.")
        whose = f"{device.type} has" if limit is None else f"--lm memory={shown(limit)} allows"
        raise ScoringError(
            f"it needs {shown(needed)} ({shown(weights)} for {source.parameters:,} weights in {name}, "
            f"{shown(cache)} for keys and values (--lm cache), {shown(a_pass)} for a pass of {tokens} tokens), and "
            f"{whose} {shown(memory)}"
        )
    return memory


def _memory_of(device: torch.device) -> int | None:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return limits.memory()
