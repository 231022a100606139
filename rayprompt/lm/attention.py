"""Attention over inputs that lie end to end: no padding in the linear layers, and keys/values that many inputs share.

A transformer computes nearly everything token by token; only attention has to know which tokens belong together. So
a forward pass gets T tokens of any number of inputs in one row, and this module, registered with transformers as an
attention implementation, takes the inputs apart for attention alone. The models' own code runs; none is copied.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from rayprompt.lm.shapes import LONG

if TYPE_CHECKING:
    import torch

NAME = "rayprompt_packed"
_local = threading.local()


@dataclass(frozen=True)
class Group:
    """Inputs of a pass whose attention has one shape: n of them, q own tokens each, behind p that some share.

    Attributes:
        own: (n, q) where in the pass the tokens of each input are; beyond an input's own, its last one again.
        mask: (n or 1, 1, 1 or q, q) which own tokens are seen; None: each sees itself and those before it.
        prefix: (layers, 2, m, heads, p, width) keys and values of what stands before each cell of n / m inputs.
        first: the layer that ``prefix`` begins with.
        before: (n,) how many tokens of its prefix an input sees.
    """

    own: torch.Tensor
    mask: torch.Tensor | None
    prefix: torch.Tensor | None = None
    before: torch.Tensor | None = None
    first: int = 0


@dataclass
class Packing:
    """How the T tokens of a pass are taken apart for attention.

    Attributes:
        groups: its inputs.
        positions: (T,) of each token in its input.
        inverse: (T,) for each token, where it is among the own tokens of all groups end to end.
        captured: where the keys and values of every group and layer are kept, (2, n, heads, q, width) each; or None.
        layer: the next one; not 0 where a pass begins above.
    """

    groups: list[Group]
    positions: torch.Tensor
    inverse: torch.Tensor
    captured: list[list[torch.Tensor]] | None = None
    layer: int = 0
    masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """This thread's forward passes inside have their tokens laid out as ``packing`` says."""
    _local.packing = packing
    try:
        yield
    finally:
        _local.packing = None


@dataclass
class Continued:
    """A step of writing: n rows, each with one new token, behind prefixes that n / m rows share.

    Attributes:
        prefix: for each layer the keys and values (2, m, heads, p, width) of what stands before each cell of rows.
        seen: (n, 1, 1, p) which of its prefix a row sees; of what was written behind it, it sees all.
        layer: the next one.
    """

    prefix: list[torch.Tensor]
    seen: torch.Tensor
    layer: int = 0
    mask: torch.Tensor | None = None

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, softcap: float | None
    ) -> torch.Tensor:
        """(n, H, 1, D) of q (n, H, 1, D) over the prefix and k, v (n, K, t, D)."""
        import torch

        layer, self.layer = self.layer, self.layer + 1
        if self.mask is None:
            own = torch.ones((*self.seen.shape[:3], k.shape[2]), dtype=torch.bool, device=q.device)
            self.mask = torch.cat([self.seen, own], dim=-1)
        return _behind_prefix(q, k, v, self.prefix[layer], self.mask, scale, softcap)


@contextmanager
def continued(step: Continued | None) -> Iterator[None]:
    """This thread's forward pass inside is a step of writing; None: it is what it is."""
    _local.continued = step
    try:
        yield
    finally:
        _local.continued = None


@contextmanager
def as_loaded(implementation: str) -> Iterator[None]:
    """This thread's forward passes inside are ordinary ones, with the attention that the LM was loaded with."""
    _local.usual = implementation
    try:
        yield
    finally:
        _local.usual = "sdpa"


@cache
def register() -> str:
    """Make the implementation known to transformers, once a process; gives its name."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def _mask(*arguments: Any, **keywords: Any) -> Any:
    """Packed inputs bring their own masks; others get those of the attention that the LM was loaded with."""
    if getattr(_local, "packing", None) is not None or getattr(_local, "continued", None) is not None:
        return None
    from transformers.masking_utils import eager_mask, sdpa_mask

    return (eager_mask if getattr(_local, "usual", "sdpa") == "eager" else sdpa_mask)(*arguments, **keywords)


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **keywords: Any
) -> tuple[torch.Tensor, Any]:
    """What transformers calls in every layer: query (B, H, T, D), key and value (B, K, T, D) give (B, T, H, D)."""
    import torch

    packing: Packing | None = getattr(_local, "packing", None)
    step: Continued | None = getattr(_local, "continued", None)
    if step is not None:
        scale = keywords.get("scaling") or query.shape[-1] ** -0.5
        return step.attend(query, key, value, scale, keywords.get("softcap")).transpose(1, 2), None
    if packing is None:
        output: tuple[torch.Tensor, Any] = _usual(module)(module, query, key, value, mask, **keywords)
        return output
    layer, packing.layer = packing.layer, packing.layer + 1
    outputs = []
    for number, group in enumerate(packing.groups):
        n, length = group.own.shape
        index = group.own.reshape(-1)
        q, k, v = (
            x[0].transpose(0, 1).index_select(0, index).view(n, length, *x.shape[1::2]).transpose(1, 2)
            for x in (query, key, value)
        )  # (n, heads, q, width)
        if packing.captured is not None:
            packing.captured[number].append(torch.stack([k, v]))
        seen = _seen(packing, number, keywords.get("sliding_window"))
        scale = keywords.get("scaling") or q.shape[-1] ** -0.5
        if group.prefix is not None:
            output_of = _behind_prefix(q, k, v, group.prefix[layer - group.first], seen, scale, keywords.get("softcap"))
        elif keywords.get("softcap") is not None:
            output_of = _plain(q, k, v, seen, scale, keywords["softcap"])
        else:
            output_of = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
            )
        outputs.append(output_of.transpose(1, 2).reshape(n * length, *query.shape[1::2]))
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return together.index_select(0, packing.inverse)[None], None


def _usual(module: Any) -> Any:
    if getattr(_local, "usual", "sdpa") == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward


def _seen(packing: Packing, number: int, window: int | None) -> torch.Tensor | None:
    """(n or 1, 1, 1 or q, p + q) which tokens each of a group's tokens sees; None: itself and those before, p = 0.

    In layers with a sliding window a token sees those fewer than ``window`` positions away.
    """
    import torch

    group = packing.groups[number]
    q = group.own.shape[1]
    p = 0 if group.prefix is None else group.prefix.shape[4]
    if window is not None and p + q <= window:
        window = None
    if (number, window) in packing.masks:
        return packing.masks[number, window]
    mask = group.mask
    device = group.own.device
    if mask is None and (p or window is not None):
        mask = torch.ones((q, q), dtype=torch.bool, device=device).tril()[None, None]
    if window is not None and mask is not None:
        at = packing.positions[group.own]
        mask = mask & ((at[:, :, None] - at[:, None]).abs() < window)[:, None]
    if p and mask is not None and group.before is not None:
        places = torch.arange(p, device=device)
        before = (places < group.before[:, None])[:, None, None]  # (n, 1, 1, p)
        if window is not None:
            before = before & (packing.positions[group.own][:, None, :, None] - places < window)
        shape = (len(group.own), 1, q)
        mask = torch.cat([before.expand(*shape, p), mask.expand(*shape, q)], dim=-1)
    packing.masks[number, window] = mask
    return mask


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None, scale: float, softcap: float
) -> torch.Tensor:
    """Attention with capped logits, which torch's own does not know."""
    import torch

    rep = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    logits = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if seen is None:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
    return weights @ v


def _behind_prefix(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of q (n, H, q, D) to own k, v (n, K, t, D) behind a prefix (2, m, K, p, D) that n / m inputs share.

    Inputs of a few tokens: those of a cell meet their prefix in one matrix product, as if they were one input with
    more tokens; the prefix is read once for all of them and copied for none. An input's place in its cell changes no
    bit: the products have the same shape for all, and every row of them adds up in the same order.
    """
    import torch

    n, heads, length, width = q.shape
    m, kv, p = prefix.shape[1:4]
    cell, rep, own = n // m, heads // kv, k.shape[2]
    if length >= LONG and softcap is None:
        k = torch.cat([prefix[0].repeat_interleave(cell, 0), k], dim=2)
        v = torch.cat([prefix[1].repeat_interleave(cell, 0), v], dim=2)
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=rep > 1
        )
    q = (q * scale).contiguous()
    by_cell = q.view(m, cell, kv, rep * length, width).transpose(1, 2).reshape(m * kv, cell * rep * length, width)
    to_prefix = by_cell @ prefix[0].reshape(m * kv, p, width).transpose(1, 2)
    to_prefix = to_prefix.view(m, kv, cell, rep * length, p).transpose(1, 2).reshape(n, heads, length, p)
    to_own = q.reshape(n * kv, rep * length, width) @ k.reshape(n * kv, own, width).transpose(1, 2)
    logits = torch.cat([to_prefix, to_own.view(n, heads, length, own)], dim=-1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    assert seen is not None
    weights = logits.masked_fill_(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(v.dtype)
    of_prefix = weights[..., :p].reshape(m, cell, kv, rep * length, p).transpose(1, 2)
    from_prefix = of_prefix.reshape(m * kv, cell * rep * length, p) @ prefix[1].reshape(m * kv, p, width)
    from_prefix = from_prefix.view(m, kv, cell, rep * length, width).transpose(1, 2).reshape(n, heads, length, width)
    from_own = weights[..., p:].reshape(n * kv, rep * length, own) @ v.reshape(n * kv, own, width)
    return from_prefix + from_own.view(n, heads, length, width)
