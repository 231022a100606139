"""Vectors of texts: the mean of an LM's last hidden states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.lm.source import load_tokenizer, model_folder, quiet
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

ROWS, STEP = 16, 32  # of a pass: always so many rows, of a length that follows from the text's own


def token_ids(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[IntArray]:
    """The ids of each text with the tokenizer's own special tokens, cut to fit."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [np.array(row or [0], dtype=np.int64) for row in rows]


def mean_states(body: Callable[..., Any], rows: Sequence[IntArray], device: torch.device) -> FloatArray:
    """(N, d) the mean over its tokens of what ``body``, a model's forward, gives for each row of ids.

    A row's bits depend on itself alone: passes have one number of rows, and a length that follows from the row's.
    """
    import torch

    if device.type == "cpu" and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    found: list[FloatArray | None] = [None] * len(rows)
    lengths = [-(-len(row) // STEP) * STEP for row in rows]
    for length in sorted(set(lengths)):
        members = [i for i, other in enumerate(lengths) if other == length]
        for start in range(0, len(members), ROWS):
            some = members[start : start + ROWS]
            ids, mask = np.zeros((ROWS, length), dtype=np.int64), np.zeros((ROWS, length), dtype=np.int64)
            mask[:, 0] = 1
            for r, i in enumerate(some):
                ids[r, : len(rows[i])], mask[r, : len(rows[i])] = rows[i], 1
            given = [torch.from_numpy(x).to(device) for x in (ids, mask)]
            with torch.inference_mode():
                states = body(input_ids=given[0], attention_mask=given[1]).last_hidden_state.float()
                weight = given[1][..., None].float()
                means = ((states * weight).sum(dim=1) / weight.sum(dim=1)).cpu().numpy()
            for r, i in enumerate(some):
                found[i] = means[r]
    return np.array(found)


def encoder(name: str) -> Callable[[Sequence[str]], FloatArray]:
    """Texts -> (N, d), by any encoder that transformers can load, in this process: bundled, a folder, or of the hub.

    Raises:
        InputError: it cannot be loaded.
    """

    def embed(texts: Sequence[str]) -> FloatArray:
        import torch

        tokenizer, model = _loaded(name)
        most = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))
        body = model.get_encoder() if model.config.is_encoder_decoder else model
        return mean_states(body, token_ids(tokenizer, texts, most), torch.device("cpu"))

    return embed


@lru_cache(maxsize=1)
def _loaded(name: str) -> tuple[Any, Any]:
    import transformers

    quiet()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error says what its warnings do
    folder = model_folder(name)
    try:
        return load_tokenizer(name), transformers.AutoModel.from_pretrained(folder).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"encoder {name}: cannot be loaded ({str(error).splitlines()[0]})") from None
