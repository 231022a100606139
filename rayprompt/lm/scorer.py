"""One LM on one device: token ids in, label log-probabilities out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import ScoringError
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.family import Family, load_family
from rayprompt.lm.soft import Injection, SoftBlock, SoftInput, SoftPrompts
from rayprompt.lm.source import LMSource, quiet
from rayprompt.scores import FloatArray, IntArray

if TYPE_CHECKING:
    import torch

CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Bucket:
    """Pairs of (prompt, example) whose inputs are padded to one length: forward passes of ``rows`` rows each.

    Attributes:
        part: key of the :class:`EncodedPart` that the examples are of.
        length, rows: the shape of every pass; rows of the last one beyond the pairs are dummies.
        prompts: token ids of the prompts that occur.
        prompt, example: (n,) what each pair is made of; the first ``rows`` pairs are the first pass.
        soft: for soft prompts, the row of each prompt in the request's :class:`SoftBlock`.
        front: positions in front of the input that a soft prompt takes.
    """

    part: str
    length: int
    rows: int
    prompts: tuple[tuple[int, ...], ...]
    prompt: IntArray
    example: IntArray
    soft: IntArray | None = None
    front: int = 0


class LMScorer:
    """A loaded LM. ``score`` may be called from several threads at once; each forward pass runs on one CPU thread.

    One thread a pass: the result cannot then depend on how many threads there are, and small batches lose nothing.
    """

    def __init__(self, source: LMSource, device: str = "cpu") -> None:
        import torch

        quiet()
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        family = load_family(source.family)
        model = family.load(str(source.path), self.dtype).to(self.device).requires_grad_(False)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        self.forward = LabelForward(model, family)
        self._soft: SoftPrompts | None = None
        self._lock = threading.Lock()

    @property
    def soft(self) -> SoftPrompts:
        """The LM's soft prompts.

        Raises:
            ScoringError: the LM takes none.
        """
        with self._lock:
            if self._soft is None:
                self._soft = SoftPrompts(SoftInput(self.forward.model), self.device)
        return self._soft

    def score(
        self, bucket: Bucket, part: EncodedPart, block: SoftBlock | None = None
    ) -> tuple[FloatArray, IntArray, int]:
        """(n, L) label log-probabilities (float32), (n,) tokens of each input (padding not counted), and breaks.

        A break is a pass that was cut in two for lack of memory: another shape, so last bits may differ.

        Raises:
            ScoringError: there is not memory enough for a single input.
        """
        import torch

        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # per calling thread: OpenMP keeps this setting for each thread apart
        n, rows, front = len(bucket.prompt), bucket.rows, bucket.front
        count = -n // rows * -rows
        ids, tokens, read, start = part.reserving(front).render(
            bucket.prompts, bucket.prompt, bucket.example, bucket.length - front, count
        )
        if front:
            dummies = np.full((count, front), part.pad_id, dtype=np.int64)
            ids, tokens, read, start = np.concatenate([dummies, ids], axis=1), tokens + front, read + front, start * 0
        mask = (np.arange(bucket.length) < tokens[:, None]).astype(np.int64)
        with torch.inference_mode():
            inputs = tuple(torch.from_numpy(array).to(self.device) for array in (ids, mask, read))
            if bucket.soft is not None and block is not None:
                prompt = torch.from_numpy(np.resize(bucket.prompt, count).astype(np.int64)).to(self.device)
                vectors = self.soft.vectors(block, bucket.soft)
                inputs = (*inputs, torch.from_numpy(start).to(self.device), prompt)
            else:
                vectors = None
            labels = torch.from_numpy(part.label_ids).to(self.device)
            passes = [
                self._forward(tuple(x[i : i + rows] for x in inputs), labels, min(rows, n - i), vectors, front)
                for i in range(0, n, rows)
            ]
            logits = torch.cat([logits for logits, _ in passes])
            log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return np.asarray(log_probs), tokens[:n].astype(np.int32), sum(breaks for _, breaks in passes)

    def _forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        real: int,
        vectors: torch.Tensor | None = None,
        front: int = 0,
    ) -> tuple[torch.Tensor, int]:
        """(real, L) logits of the label words for ids (B, T), mask (B, T) and positions (B,), and breaks.

        With ``vectors`` (prompts, n, width): also for the start of the prompt (B,) and which prompt it is (B,).
        """
        import torch

        ids, mask, read, *rest = inputs
        try:
            if vectors is None:
                return self.forward(ids, mask, read, labels)[:real], 0
            start, prompt = rest
            injection = Injection(vectors[prompt], start, replace=front > 0)
            return self.forward(ids, mask, read, labels, self.soft.site, injection, front)[:real], 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: there the error's traceback would hold on to what the pass has allocated.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        rows, length = ids.shape
        if rows == 1:
            raise ScoringError(f"out of memory on {self.device}: not even one input of {length} tokens fits")
        half = (rows + 1) // 2  # rows are powers of two, so this is a shape of the table too
        halves = [
            self._forward(tuple(x[i : i + half] for x in inputs), labels, min(half, real - i), vectors, front)
            for i in range(0, real, half)
        ]
        return torch.cat([logits for logits, _ in halves]), 1 + sum(breaks for _, breaks in halves)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: on a GPU it raises an error of its own, on a CPU only the message tells."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in CPU_OUT_OF_MEMORY)


class LabelForward:
    """A model's forward pass that computes the answer's position and the label words' logits only.

    The model's own forward runs; a hook on its body keeps only the hidden state of the position that is read, and
    its output embedding is replaced by one that multiplies by the label words' rows. So whatever a family does
    between body and output (a transform, a soft cap) is done by its own code, and none of it is copied here.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.model = model
        self.family = family
        self.local = threading.local()
        body = model.base_model
        if body is not model:
            body.register_forward_hook(self._keep_read_position)
        output = model.get_output_embeddings()
        # In some families it is a transform, and encoder-decoder LMs add a bias for the whole vocabulary behind it:
        # then all logits are computed and the label words' are taken.
        whole = model.config.is_encoder_decoder or output is None or output.weight.shape[0] < model.config.vocab_size
        if not whole:
            model.set_output_embeddings(_label_rows(output, self.local))

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        read: torch.Tensor,
        label_ids: torch.Tensor,
        site: SoftInput | None = None,
        injection: Injection | None = None,
        front: int = 0,
    ) -> torch.Tensor:
        """(B, L) logits of the label words for input ids (B, T), mask (B, T), positions (B,), label ids (L,).

        ``injection`` is put in at ``site``; the first ``front`` tokens are dummies for it, the text behind them has
        the positions that it would have without them, where positions are learned.
        """
        import torch

        further, read = self.family.decoder_inputs(self.model.config, ids, read, front)
        if front and site is not None and site.takes_positions and not self.model.config.is_encoder_decoder:
            further["position_ids"] = (torch.arange(ids.shape[1], device=ids.device) - front).clamp(min=0)[None]
        self.local.read, self.local.label_ids = read, label_ids
        if site is not None:
            site.put(injection)
        try:
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **further).logits
        finally:
            if site is not None:
                site.put(None)
        rows = torch.arange(len(ids), device=ids.device)
        at_read = logits[:, 0] if logits.shape[1] == 1 else logits[rows, read]
        return at_read if at_read.shape[-1] == len(label_ids) else at_read[:, label_ids]

    def _keep_read_position(self, module: Any, inputs: Any, output: Any) -> Any:
        import torch

        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        output.last_hidden_state = hidden[rows, self.local.read].unsqueeze(1)
        return output


def _label_rows(output: Any, local: threading.local) -> Any:
    """The output embedding ``output`` as a module that computes the rows ``local.label_ids`` only."""
    import torch

    class LabelRows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = output.weight
            self.bias = getattr(output, "bias", None)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            ids = local.label_ids
            bias = None if self.bias is None else self.bias[ids]
            return torch.nn.functional.linear(hidden, self.weight[ids], bias)

    return LabelRows()
