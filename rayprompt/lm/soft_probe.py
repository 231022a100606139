"""Whether soft prompts have the same scores when inputs share a pass: asked of an LM when the first one comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayprompt.candidate import Subspace
from rayprompt.errors import ScoringError
from rayprompt.lm.packed import Pack
from rayprompt.lm.probe import TOLERANCE, random_inputs
from rayprompt.lm.soft import SoftBlock, SoftPrompts

if TYPE_CHECKING:
    import torch

    from rayprompt.lm.scorer import LMScorer

LENGTH, DIM, TOKENS = 2, 4, 64


def check_soft(scorer: LMScorer, soft: SoftPrompts) -> None:
    """Raise ``ScoringError`` where soft prompts of different inputs change each other's scores."""
    import torch

    forward, source = scorer.forward, scorer.source
    causal = not forward.family.reads_mask
    part, prompts = random_inputs(
        np.random.default_rng(2), causal, source.vocab_size, (), source.max_length, forward.pad_id, None
    )
    prompts = tuple((prompt * LENGTH)[:LENGTH] for prompt in prompts)
    with torch.inference_mode():
        states = soft.site.embeddings(torch.tensor([prompts[0]], device=scorer.device))
        for mode in ("add", "concat"):
            space = Subspace(0, float(states.float().std()), LENGTH, mode=mode, dim=DIM, width=int(states.shape[2]))
            z = np.random.default_rng(3).normal(size=(len(prompts), DIM)).astype(np.float32)
            if not _alike(scorer, soft, SoftBlock(f"probe {mode}", space, z), part, prompts):
                raise ScoringError(
                    f"{type(forward.model).__name__}: soft prompts ({mode}) have other scores when inputs share a "
                    "pass, so it takes none"
                )
    for cache in (soft.matrices, soft.bases, soft.products):
        cache.clear()  # the probe's own


def _alike(
    scorer: LMScorer, soft: SoftPrompts, block: SoftBlock, part: object, prompts: tuple[tuple[int, ...], ...]
) -> bool:
    """Whether inputs have the scores of each alone in padded rows, and end to end where they can be given so."""
    import torch

    from rayprompt.lm.encode import EncodedPart
    from rayprompt.lm.scorer import Bucket

    assert isinstance(part, EncodedPart)
    front, n = block.subspace.front, np.arange(len(part))
    texts = prompts if not front else ((),) * len(prompts)
    vectors = soft.vectors(block, n)

    def rows(some: np.ndarray) -> torch.Tensor:
        bucket = Bucket(part.key, 0, len(some), texts, some, some, n, front)
        return scorer.logits(bucket, part, vectors)[0].float()

    alone = torch.cat([rows(n[[i]]) for i in n])
    found = [rows(n)]
    if scorer.packed is not None:
        reuse = "none" if not scorer.packed.causal else "prompt" if front else "text"
        pack = Pack(part.key, TOKENS, np.array([len(n)]), reuse, False, texts, n, n, n, front)  # type: ignore[arg-type]
        found.append(scorer.logits(pack, part, vectors)[0].float())
    allowed = TOLERANCE[str(scorer.dtype).removeprefix("torch.")] * float(alone.std())
    return all(float((one - alone).abs().max()) <= allowed for one in found)
