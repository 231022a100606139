"""An LM whose forward pass costs nothing: two numbers from the first token ids. For measuring everything around it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from rayprompt.lm.family import Masked


class FreeLM(torch.nn.Module):
    """Logits (B, T, 2) as good as random: scored as if they were those of two label words."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def base_model(self) -> FreeLM:
        return self

    def get_output_embeddings(self) -> None:
        return None

    def set_attn_implementation(self, name: str) -> None:
        """Takes packed inputs: what a token gives depends on the one before it alone."""
        self.config._attn_implementation = name

    def forward(self, input_ids: torch.Tensor, **others: torch.Tensor) -> Any:
        before = torch.nn.functional.pad(input_ids, (1, 0))[:, :-1]
        return SimpleNamespace(logits=torch.stack([before % 97, before % 89], dim=-1).float())


class Free(Masked):
    """Stands in for the family of a masked LM."""

    def load(self, path: str, dtype: Any) -> FreeLM:
        from transformers import AutoConfig

        return FreeLM(AutoConfig.from_pretrained(path))
