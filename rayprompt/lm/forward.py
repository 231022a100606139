"""A model's forward pass that computes the label words' logits where the answer is read, and nothing else."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from rayprompt.lm.attention import NAME, Packing, as_loaded, packed, register
from rayprompt.lm.family import Family
from rayprompt.lm.labels import Labels, Word

if TYPE_CHECKING:
    import torch

    from rayprompt.lm.deep import Course, Layers
    from rayprompt.lm.soft import Injection, SoftInput

CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: on a GPU it raises an error of its own, on a CPU only the message tells."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in CPU_OUT_OF_MEMORY)


def forget(device: torch.device) -> None:
    """Give the device's memory back that torch keeps for later."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


class LabelForward:
    """A model's forward pass that computes the answer's position and the label words' logits only.

    The model's own forward runs; a hook on its body keeps only the hidden state of the position that is read, and
    its output embedding is replaced by one that multiplies by the label words' rows. So whatever a family does
    between body and output (a transform, a soft cap) is done by its own code, and none of it is copied here.

    Attributes:
        site: where soft prompts are put in; None until somebody asks for them.
        layers: where deep prompts are put in; None until somebody asks for them.
    """

    def __init__(self, model: Any, family: Family, device: torch.device) -> None:
        self.model = model
        self.family = family
        self.device = device
        self.local = threading.local()
        self.site: SoftInput | None = None
        self.layers: Layers | None = None
        self.attention: str = model.config._attn_implementation
        self.first_position = first_position(model)
        self.takes_mask = accepts(model.forward, "attention_mask")
        self.states = own_states(model)
        size = int(model.config.get_text_config().vocab_size)
        pad = getattr(model.config.get_text_config(), "pad_token_id", None)
        self.pad_id = pad if isinstance(pad, int) and 0 <= pad < size else 0
        body = model.base_model
        self._hook = None if body is model else body.register_forward_hook(self._keep_read_position)
        output = self._output = model.get_output_embeddings()
        # In some families it is a transform, and encoder-decoder LMs add a bias for the whole vocabulary behind it:
        # then all logits are computed and the label words' are taken.
        weight = getattr(output, "weight", None)
        if not model.config.is_encoder_decoder and weight is not None and weight.shape[0] >= size:
            model.set_output_embeddings(_label_rows(output, self.local))

    def compute_whole(self) -> None:
        """From now on compute every position and the whole vocabulary, as the model does by itself."""
        if self._hook is not None:
            self._hook.remove()
        if self._output is not None and self.model.get_output_embeddings() is not self._output:
            self.model.set_output_embeddings(self._output)

    def reference(self, ids: torch.Tensor, read: int, labels: Labels | None) -> torch.Tensor:
        """(1, L) logits of label words of one token, or (1, V), for ids (1, T): the model's own plain forward pass."""
        import torch

        at = torch.tensor([read], device=ids.device)
        sizes = torch.tensor([ids.shape[1]], device=ids.device)
        further, at = self.family.decoder_inputs(self.model.config, ids, at, 0, sizes)
        inputs = {"input_ids": ids, **further}
        if self.takes_mask:
            inputs["attention_mask"] = torch.ones_like(ids)
        self.local.whole, self.local.label_ids = True, None
        try:
            with as_loaded(self.attention), self._injected(None), self.states:
                logits: torch.Tensor = self.model(**inputs).logits
        finally:
            self.local.whole = False
        at_read = logits[:, int(at)]
        return at_read if labels is None else at_read[:, labels.first(ids.device)]

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        read: torch.Tensor,
        labels: Labels,
        injection: Injection | None = None,
        front: int = 0,
        course: Course | None = None,
    ) -> torch.Tensor:
        """(B, L) scores of the label words for input ids (B, T), mask (B, T), read at positions (B,).

        ``injection`` is put in; the first ``front`` tokens are dummies for it, the text behind them has the positions
        that it would have without them, where positions are learned. ``course``: which layers it goes through.
        """
        import torch

        further, read = self.family.decoder_inputs(self.model.config, ids, read, front, mask.sum(dim=1))
        inputs = {"input_ids": ids, **({"attention_mask": mask} if self.takes_mask else {}), **further}
        rows = torch.arange(len(ids), device=ids.device)
        if injection is not None and not labels.single and not self.model.config.is_encoder_decoder:
            injection = injection.repeated(len(labels.paths))
        with as_loaded(self.attention), self._injected(injection, course):
            if labels.single:
                return self._run(self._placed(inputs, front), rows, read, labels.first(ids.device))
            return self._several(inputs, rows, read, labels, front)

    def packed(
        self,
        ids: torch.Tensor,
        packing: Packing,
        read: torch.Tensor,
        labels: Labels,
        injection: Injection | None = None,
        front: int = 0,
        course: Course | None = None,
    ) -> torch.Tensor:
        """(R, L) scores of the label words for packed ids (T,); only after :meth:`pack`.

        ``read`` (1 + M, R): where each of R inputs is read, and where each of the M nodes of the label words stands.
        """
        positions = packing.positions
        if self.first_position is not None:
            positions = (positions - front).clamp(min=0) + self.first_position
        inputs = {"input_ids": ids[None], "position_ids": positions[None]}
        flat = read.reshape(-1)
        with packed(packing), self._injected(injection, course):
            if labels.single:
                return self._run(inputs, flat * 0, flat, labels.first(ids.device))
            logits = self._run(inputs, flat * 0, flat, None).view(*read.shape, -1)
        return labels.sums(logits[0], lambda node: logits[1 + labels.nodes.index(node)])

    def behind_last(self, inputs: dict[str, Any]) -> torch.Tensor:
        """(B, V) logits of the whole vocabulary behind the last of the input ids (B, T), for a cache to go on with."""
        import torch

        ids = inputs["input_ids"]
        rows = torch.arange(len(ids), device=ids.device)
        with as_loaded(self.attention), self._injected(None):
            return self._run(inputs, rows, torch.full_like(rows, ids.shape[1] - 1), None)

    def _several(
        self, inputs: dict[str, Any], rows: torch.Tensor, read: torch.Tensor, labels: Labels, front: int
    ) -> torch.Tensor:
        """(B, L) scores of label words of several tokens: a row for every path of nodes behind every input."""
        import torch

        count, longest, device = len(labels.paths), labels.depth, read.device
        inputs = dict(inputs)
        if self.model.config.is_encoder_decoder:  # what is read is encoded once
            with self.states:
                encoded = self.model.get_encoder()(
                    input_ids=inputs.pop("input_ids"), attention_mask=inputs["attention_mask"]
                )
            encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(count, 0)
            inputs["encoder_outputs"] = encoded
            written = "decoder_input_ids"
        else:
            written = "input_ids"
        padding = torch.zeros((len(rows), longest), dtype=torch.int64, device=device)
        inputs[written] = torch.cat([inputs[written], padding + self.pad_id], dim=1)
        grows = written == "input_ids" and self.takes_mask
        if grows:
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], padding], dim=1)
        inputs = {k: v.repeat_interleave(count, 0) if torch.is_tensor(v) else v for k, v in inputs.items()}
        for i, path in enumerate(labels.paths):
            for depth, token in enumerate(path, start=1):
                inputs[written][rows * count + i, read + depth] = token
                if grows:
                    inputs["attention_mask"][rows * count + i, read + depth] = 1
        ends = read.repeat_interleave(count)
        at = (ends[:, None] + torch.arange(longest + 1, device=device)).reshape(-1)
        of = torch.arange(len(ends), device=device).repeat_interleave(longest + 1)
        logits = self._run(self._placed(inputs, front), of, at, None).view(len(rows), count, longest + 1, -1)

        def behind(node: Word) -> torch.Tensor:
            path, depth = labels.place(node)
            return logits[:, path, depth]

        return labels.sums(logits[:, 0, 0], behind)

    def _placed(self, inputs: dict[str, Any], front: int) -> dict[str, Any]:
        """Learned positions count from behind ``front`` on."""
        import torch

        if front and self.first_position == 0 and not self.model.config.is_encoder_decoder:
            ids = inputs["input_ids"]
            inputs["position_ids"] = (torch.arange(ids.shape[1], device=ids.device) - front).clamp(min=0)[None]
        return inputs

    def pack(self) -> bool:
        """Let the model take packed inputs; False where it cannot."""
        kinds = set(getattr(self.model.config, "layer_types", None) or ())
        known = not kinds - {"full_attention", "sliding_attention"}
        if self.model.config.is_encoder_decoder or not known or not hasattr(self.model, "set_attn_implementation"):
            return False
        self.model.set_attn_implementation(register())
        return bool(self.model.config._attn_implementation == NAME)

    def unpack(self) -> None:
        """Go back to what the model was loaded with."""
        self.model.set_attn_implementation(self.attention)

    @contextmanager
    def _injected(self, injection: Injection | None, course: Course | None = None) -> Iterator[None]:
        if self.site is not None:
            self.site.put(None if course is not None and course.first else injection)
        if self.layers is not None:
            self.layers.put(injection, course)
        try:
            yield
        finally:
            if self.site is not None:
                self.site.put(None)
            if self.layers is not None:
                self.layers.put(None, None)

    def _run(
        self, inputs: dict[str, Any], rows: torch.Tensor, read: torch.Tensor, label_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """(R, L) logits of the tokens ``label_ids`` (L,), None = all, at ``read`` (R,) of ``rows`` (R,)."""
        self.local.rows, self.local.read, self.local.label_ids = rows, read, label_ids
        with self.states:
            logits: torch.Tensor = self.model(**inputs).logits
        at_read = logits[:, 0] if logits.shape[1] == 1 else logits[rows, read]
        if label_ids is None or at_read.shape[-1] == len(label_ids):
            return at_read
        return at_read[:, label_ids]

    def _keep_read_position(self, module: Any, inputs: Any, output: Any) -> Any:
        if getattr(self.local, "whole", False):
            return output
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[self.local.rows, self.local.read].unsqueeze(1)
        return output


def accepts(function: Any, name: str) -> bool:
    """Whether a function takes an argument of that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def own_states(model: Any) -> AbstractContextManager[Any]:
    """What a forward pass of the model runs in, so that it does not depend on those before it or beside it.

    Rotary embeddings that follow the longest input (LongRoPE, dynamic NTK) and BigBird's kind of attention, which is
    another one for short inputs, are set by one pass and found by the next: here each pass finds them as loaded.
    """
    settings: list[Callable[[], None]] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds if isinstance(kinds, dict) else {"": kinds}
        for layer, kind in kinds.items():
            if kind == "longrope" or (isinstance(kind, str) and "dynamic" in kind):
                settings.append(partial(_forget_lengths, module, f"{layer}_" if layer else ""))
        kind = getattr(module, "attention_type", None)
        if kind is not None and hasattr(module, "set_attention_type"):
            settings.append(partial(module.set_attention_type, kind))
    return _Alone(tuple(settings)) if settings else nullcontext()


def _forget_lengths(module: Any, prefix: str) -> None:
    original = getattr(module, f"{prefix}original_inv_freq", None)
    if original is None:
        return
    device = getattr(module, f"{prefix}inv_freq").device
    module.register_buffer(f"{prefix}inv_freq", original.to(device, copy=True), persistent=False)
    for name in ("max_seq_len_cached", f"{prefix}max_seq_len_cached"):
        if hasattr(module, name):
            setattr(module, name, module.original_max_seq_len)


class _Alone(AbstractContextManager[None]):
    """One pass at a time, each begun with the same settings."""

    def __init__(self, settings: tuple[Callable[[], None], ...]) -> None:
        self.settings = settings
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()
        for setting in self.settings:
            setting()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def first_position(model: Any) -> int | None:
    """Where a model's table of learned positions begins; None where its positions are not learned.

    In RoBERTa and its kin they count what is not padding, from behind the padding's own place in the table.
    """
    from torch.nn import Embedding

    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    tables = [(name, module) for name, module in body.named_modules() if isinstance(module, Embedding)]
    starts = [m.padding_idx for name, m in tables if "position" in name or "wpe" in name]
    if not starts:
        return None
    padding = [start for start in starts if start is not None]
    return max(padding) + 1 if len(padding) == len(starts) else 0


def _label_rows(output: Any, local: threading.local) -> Any:
    """The output embedding ``output`` as a module that computes the rows ``local.label_ids`` only."""
    import torch

    class LabelRows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = output.weight
            self.bias = getattr(output, "bias", None)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            ids = slice(None) if local.label_ids is None else local.label_ids
            bias = None if self.bias is None else self.bias[ids]
            return torch.nn.functional.linear(hidden, self.weight[ids], bias)

    return LabelRows()
