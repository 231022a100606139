"""Whether an LM gives the same scores for packed inputs: asked of the LM itself, once, when it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayprompt.lm.encode import EncodedPart, Segment
from rayprompt.lm.forward import LabelForward
from rayprompt.lm.labels import Labels
from rayprompt.lm.packed import Pack, PackedForward

if TYPE_CHECKING:
    import torch

SIZES = ((3, 2, 6), (9, 4, 1), (1, 4, 2), (5, 2, 4))  # tokens before the prompt, of it, and behind it
LABELS = 2
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of the logits' spread


def probe(forward: LabelForward, causal: bool, vocab_size: int) -> float | None:
    """Whether the LM can be given packed inputs; it is left as it should be used.

    An LM whose positions cannot be said (ALiBi, a T5 encoder), or that mixes tokens in other ways than attention,
    fails here, and is used with padded rows.

    Returns:
        The bytes that a token's keys and values take in the cache, 0 where none are shared; None if it cannot.
    """
    if not forward.pack():
        return None
    try:
        same = _token_bytes(forward, causal, vocab_size)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        same = None
    if same is None:
        forward.unpack()
    return same


def _token_bytes(forward: LabelForward, causal: bool, vocab_size: int) -> float | None:
    import torch

    rng = np.random.default_rng(0)
    part, prompts = _inputs(rng, causal, vocab_size)
    n = len(part)
    pairs = np.arange(n)
    ends = np.array([n])
    with torch.inference_mode():
        plain = torch.cat([_plain(forward, part, i, prompts[i]) for i in range(n)])
        spread = float(plain.float().std())
        for reuse in ("none", "text", "prompt") if causal else ("none",):
            pack = Pack(part.key, 64, ends, reuse, True, prompts, pairs, pairs)
            packed = PackedForward(forward, causal, 1 << 30)
            found = packed.score(pack, part)[0].float()
            worst = float((found - plain).abs().max())
            if not worst <= TOLERANCE[str(plain.dtype).removeprefix("torch.")] * spread:
                return None
            entries = packed.cache.entries.values()
    return sum(e.numel() * e.element_size() for e in entries) / max(1, sum(e.shape[-2] for e in entries))


def _inputs(rng: np.random.Generator, causal: bool, vocab_size: int) -> tuple[EncodedPart, tuple[tuple[int, ...], ...]]:
    """Examples of random tokens, and a prompt for each."""

    def tokens(count: int) -> np.ndarray:
        return rng.integers(vocab_size // 8, vocab_size, count)

    before = tuple((Segment(tokens(b), field=False),) for b, _, _ in SIZES)
    after = tuple((Segment(tokens(a), field=False),) for _, _, a in SIZES)
    prompts = tuple(tuple(tokens(p).tolist()) for _, p, _ in SIZES)
    read = None if causal else ("after", 0)
    labels = Labels(tuple((int(i),) for i in tokens(LABELS)))
    part = EncodedPart("probe", before, after, None, read, labels, 0, 64)
    return part, prompts


def _plain(forward: LabelForward, part: EncodedPart, example: int, prompt: tuple[int, ...]) -> torch.Tensor:
    import torch

    row, read, _ = part.row(example, prompt)
    ids = torch.from_numpy(row)[None].to(forward.device)
    return forward(ids, torch.ones_like(ids), torch.tensor([read], device=forward.device), part.labels)
