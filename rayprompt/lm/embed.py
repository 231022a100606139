"""Vectors of texts: the mean of an LM's last hidden states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.lm.checkpoint import UNUSED, load_checked
from rayprompt.lm.source import load_tokenizer, model_folder, quiet
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

ROWS, STEP = 16, 32  # of a pass: always so many rows, of a length that follows from the text's own


def token_ids(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[IntArray]:
    """The ids of each text with the tokenizer's own special tokens, cut to fit."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [np.array(row or [0], dtype=np.int64) for row in rows]


def _mean_state(body: Callable[..., Any], row: IntArray, device: torch.device) -> FloatArray:
    """(d,) the mean over the tokens of one row that nothing is padded to."""
    import torch

    ids = torch.from_numpy(np.asarray(row, dtype=np.int64))[None].to(device)
    with torch.inference_mode():
        states = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return np.asarray(states[0].float().mean(dim=0).cpu().numpy())


def mean_states(
    body: Callable[..., Any], rows: Sequence[IntArray], device: torch.device, *, padded: bool = True
) -> FloatArray:
    """(N, d) the mean over its tokens of what ``body``, a model's forward, gives for each row of ids.

    A row's bits depend on itself alone: passes have one number of rows, and a length that follows from the row's.

    Args:
        body: a model's forward.
        rows: of ids.
        device: of the model.
        padded: rows may share passes; else each is given by itself.
    """
    import torch

    if device.type == "cpu" and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    found: list[FloatArray | None] = [None] * len(rows)
    if not padded:
        return np.array([_mean_state(body, row, device) for row in rows])
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


def padding_is_inert(body: Callable[..., Any], ids: torch.Tensor) -> bool:
    """Whether what ``body`` gives for two rows of ids (2, T) is what it gives for each alone, the first one shorter.

    The first output that is a tensor is compared: last hidden states, or logits.
    """
    import torch

    short = max(1, ids.shape[1] // 3)
    mask = torch.ones_like(ids)
    mask[0, short:] = 0

    def run(some: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        found = body(input_ids=some, attention_mask=seen)
        states: torch.Tensor = found["logits"] if "logits" in found else found[0]
        return states.float()

    together = run(ids * mask, mask)
    alone = (run(ids[:1, :short], mask[:1, :short]), run(ids[1:], mask[1:]))
    if together.ndim == 3:
        pairs = [(together[:1, :short], alone[0]), (together[1:], alone[1])]
    else:
        pairs = [(together[:1], alone[0]), (together[1:], alone[1])]
    spread = float(together.std())
    return all(float((a - b).abs().max()) <= 1e-4 * max(spread, 1e-3) for a, b in pairs)


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
        ids = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, (2, min(most, 24)))
        with torch.inference_mode():
            padded = padding_is_inert(body, torch.from_numpy(ids))
        return mean_states(body, token_ids(tokenizer, texts, most), torch.device("cpu"), padded=padded)

    return embed


@lru_cache(maxsize=1)
def _loaded(name: str) -> tuple[Any, Any]:
    import transformers

    quiet()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error says what its warnings do
    folder = model_folder(name)
    try:
        return load_tokenizer(name), load_checked(transformers.AutoModel, folder, unused=UNUSED)
    except InputError as error:
        raise InputError(f"encoder {name}: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"encoder {name}: cannot be loaded ({str(error).splitlines()[0]})") from None
