"""A frozen causal LM as the trunk of something that is trained: its hidden states, and its own output layer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rayprompt import limits
from rayprompt.errors import InputError
from rayprompt.lm.family import load_family
from rayprompt.lm.source import LMSource, model_folder, quiet
from rayprompt.scores import IntArray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Backbone:
    """A causal LM without gradients, in fp32.

    Attributes:
        weight, bias: (V, d) and (V,) or None, of the output layer: a hidden state h has the logits weight h + bias.
        width: d, of the hidden states that enter it.
    """

    def __init__(self, location: str, family: str, device: str) -> None:
        import torch

        quiet()
        self.device = torch.device(device)
        try:
            model = load_family(family).load(str(model_folder(location)), torch.float32)
        except InputError as error:
            raise InputError(f"model {location}: {error}") from None
        output = model.get_output_embeddings()
        if not isinstance(output, torch.nn.Linear):
            raise InputError(f"model {location}: its output layer is {type(output).__name__}, not a linear one")
        model = model.to(self.device).requires_grad_(False)
        self.body = model.base_model
        self.weight: torch.Tensor = output.weight
        self.bias: torch.Tensor | None = output.bias
        self.width = int(output.weight.shape[1])
        self._begun: tuple[object, torch.Tensor | None, Any] = (None, None, None)

    def begin(self, prefix: Sequence[int], rows: int) -> tuple[torch.Tensor, Any]:
        """(rows, d) the hidden states behind ``prefix``, ``rows`` times the same, and the cache to go on with.

        Those of the last prefix are kept.
        """
        key, hidden, cache = self._begun
        if hidden is None or key != (tuple(prefix), rows):
            hidden, cache = self._run(np.tile(np.asarray(prefix, dtype=np.int64), (rows, 1)), None)
            self._begun = ((tuple(prefix), rows), hidden, cache)
        return hidden, copy.deepcopy(cache)  # going on changes it

    def step(self, ids: IntArray, cache: Any) -> tuple[torch.Tensor, Any]:
        """(B, d) the hidden states behind one more token (B,) each."""
        return self._run(ids[:, None], cache)

    def _run(self, ids: IntArray, cache: Any) -> tuple[torch.Tensor, Any]:
        import torch

        with torch.no_grad():
            inputs = torch.from_numpy(np.ascontiguousarray(ids)).to(self.device)
            out = self.body(input_ids=inputs, past_key_values=cache, use_cache=True)
            return out.last_hidden_state[:, -1], out.past_key_values


@lru_cache(maxsize=2)
def _loaded(location: str, family: str, digest: str, device: str) -> Backbone:
    return Backbone(location, family, device)


def load_backbone(source: LMSource, device: str) -> Backbone:
    """The backbone of an LM on a device; a process loads it once, since it stays as it is.

    Raises:
        InputError: its output layer is of another kind.
    """
    return _loaded(source.location, source.family, source.digest, device)


def in_chunks(work: Callable[[int], T], count: int, device: str) -> list[T]:
    """``work(i)`` for the ``count`` pieces of something, side by side on CPU threads; its results in their order.

    How the pieces are cut must not depend on how many threads there are: then no bit does. On a GPU they follow each
    other. ``work`` may not come here again.
    """
    workers = min(count, limits.cpus())
    if device != "cpu" or workers <= 1:
        return [work(i) for i in range(count)]
    numbers, found = itertools.count(), dict[int, T]()

    def some() -> None:
        while (i := next(numbers)) < count:
            found[i] = work(i)

    others = [_threads(workers - 1).submit(some) for _ in range(workers - 1)]
    try:
        some()  # this thread is one of them
    finally:
        wait(others)
    for other in others:
        other.result()
    return [found[i] for i in range(count)]


@lru_cache(maxsize=4)
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, initializer=_alone)


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Inside, torch computes on one CPU thread: last bits depend on how many there are. On a GPU nothing changes."""
    import torch

    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
