"""A cache of keys and values with room for what will be written, so that no step copies what stands there."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """transformers' growing layer, whose tensors (B, heads, T, width) are the filled part of larger ones.

    Args:
        room: positions that are reserved beyond what stands there whenever the tensors are made anew.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.stores: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put in new keys and values; gives all that there are."""
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        assert self.keys is not None
        count = self.keys.shape[-2]
        if self.stores is None or self.stores[0].shape[-2] < count + new:
            self._store(self.keys, self.values, new + self.room)
        assert self.stores is not None
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[..., count : count + new, :] = states
        self.keys, self.values = (store[..., : count + new, :] for store in self.stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows; one may come several times."""
        if self.get_seq_length() > 0:
            self._store(self.keys, self.values, self.room, indices)

    def empty(self) -> None:
        """Begin anew, with nothing in it."""
        self.is_initialized, self.stores = False, None

    def _store(self, keys: Any, values: Any, room: int, rows: torch.Tensor | None = None) -> None:
        count, made = keys.shape[-2], []
        for old in (keys, values):
            number = len(old) if rows is None else len(rows)
            store = old.new_empty((number, old.shape[1], count + room, old.shape[3]))
            store[..., :count, :] = old if rows is None else old[rows]
            made.append(store)
        self.stores = (made[0], made[1])
        self.keys, self.values = (store[..., :count, :] for store in made)


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """transformers' cache for a model; of its layers those that grow without end have room for ``room`` more tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
