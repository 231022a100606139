"""One LM on one device: token ids in, label log-probabilities out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.attention import as_loaded
from rayprompt.lm.deep import Course, Layers
from rayprompt.lm.embed import mean_states
from rayprompt.lm.encode import EncodedPart, sizes_of
from rayprompt.lm.family import Family, load_family
from rayprompt.lm.forward import LabelForward, forget, is_out_of_memory
from rayprompt.lm.labels import Labels
from rayprompt.lm.memory import check_memory, dtype_of, room_for_tokens
from rayprompt.lm.packed import STATE_BYTES, Pack, PackedForward
from rayprompt.lm.probe import probe, probe_writing
from rayprompt.lm.projection import Bounded
from rayprompt.lm.soft import Captured, Injection, SoftBlock, SoftInput, SoftPrompts, SoftVectors
from rayprompt.lm.soft_probe import check_soft
from rayprompt.lm.source import LMSource, load_tokenizer, quiet
from rayprompt.lm.write import Draft, Writer
from rayprompt.pairs import Answers
from rayprompt.scores import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bucket:
    """Pairs of (prompt, example) whose inputs are padded to one length: forward passes of ``rows`` rows each.

    Attributes:
        part: key of the :class:`EncodedPart` that the examples are of.
        length, rows: the shape of every pass; rows of the last one beyond the pairs are dummies. 0 is the length of
            the longest input.
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


def _mask_id(source: LMSource, family: Family, config: Any) -> int | None:
    found = getattr(config, "mask_token_id", None)
    if found is None:
        with suppress(InputError):  # whoever needs the tokenizer says so
            found = family.mask_id(load_tokenizer(source.location, **source.trust))
    return found if isinstance(found, int) and 0 <= found < source.vocab_size else None


def _some(load: Bucket | Pack, members: IntArray) -> Bucket | Pack:
    """A load with some of its pairs, given in order; passes stay the passes that they are."""
    changes: dict[str, Any] = {"prompt": load.prompt[members], "example": load.example[members]}
    if isinstance(load, Pack):
        ends = np.searchsorted(members, load.ends)
        changes["ends"] = ends[np.diff(ends, prepend=0) > 0]
    return replace(load, **changes)


class LMScorer:
    """A loaded LM. ``score`` may be called from several threads at once; each forward pass runs on one CPU thread.

    One thread a pass: the result cannot then depend on how many threads there are, and small batches lose nothing.

    Attributes:
        memory: bytes that it may take in all; None where nobody says.
        packed: takes inputs end to end; None where the LM does not give the same scores that way.
        tokens: of a forward pass: what the settings say, or what finds room.
        layout: how it can be given its inputs.
    """

    def __init__(self, source: LMSource, device: str = "cpu") -> None:
        import torch

        quiet()
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype_of(source.settings.dtype, self.device.type))
        self.memory = check_memory(source, self.device, self.dtype)
        family = load_family(source.family)
        try:
            model = family.load(str(source.path), self.dtype, **source.trust).to(self.device).requires_grad_(False)
        except InputError as error:
            raise ScoringError(f"model {source.name}: {error}") from None
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        self.forward = LabelForward(model, family, self.device)
        self.pad_id = self.forward.pad_id
        causal = not family.reads_mask
        self.packed: PackedForward | None = None
        mask_id = None if causal else _mask_id(source, family, model.config)
        self.layout = probe(self.forward, causal, source.vocab_size, source.max_length, source.parameters, mask_id)
        if family.writes(model.config):
            self.layout = probe_writing(self.forward, self.layout, source.vocab_size, self.window)
        if self.layout.kind == "packed":
            self.packed = PackedForward(self.forward, causal, source.settings.cache)
        self.tokens = self._tokens(source)
        self.source = source
        self._soft: SoftPrompts | None = None
        self._states: Bounded[torch.Tensor] = Bounded(STATE_BYTES, lambda t: t.numel() * t.element_size())
        self._writer: Writer | None = None
        self._lock = threading.Lock()

    @property
    def token_bytes(self) -> float | None:
        """Of the keys and values of a token that inputs share; None where inputs are not packed."""
        return self.layout.token_bytes

    def _tokens(self, source: LMSource) -> int:
        # On a CPU others need memory too, and a larger pass is no faster: what it has does not count, a limit does.
        cpu = self.device.type == "cpu"
        memory = source.settings.memory if cpu else self.memory
        return source.settings.tokens or room_for_tokens(source, "cpu" if cpu else "cuda", self.dtype.itemsize, memory)

    @property
    def soft(self) -> SoftPrompts:
        """The LM's soft prompts.

        Raises:
            ScoringError: the LM takes none.
        """
        with self._lock:
            if self._soft is None:
                self.forward.site = SoftInput(self.forward.model)
                soft = SoftPrompts(self.forward.site, self.device)
                if self.layout.kind != "single":
                    check_soft(self, soft)
                self._soft = soft
        return self._soft

    def rows(self, most: int) -> int:
        """Rows of a padded batch, ``most`` at most: one where rows cannot share a pass."""
        return 1 if self.layout.kind == "single" or self.layout.reach is not None else most

    @property
    def layers(self) -> Layers:
        """The LM's layers, for deep prompts.

        Raises:
            ScoringError: the LM takes none.
        """
        self.soft  # noqa: B018 (a hook of its own, which a first use makes)
        with self._lock:
            return self.forward.layers or Layers(self.forward, self.source.vocab_size)

    def score(
        self, load: Bucket | Pack, part: EncodedPart, block: SoftBlock | None = None
    ) -> tuple[FloatArray, IntArray, int]:
        """(n, L) label log-probabilities (float32), (n,) tokens of each input (padding not counted), and breaks.

        A break is a pass that was cut in two for lack of memory: another shape, so last bits may differ.

        Raises:
            ScoringError: there is not memory enough for a single input.
        """
        import torch

        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # per calling thread: OpenMP keeps this setting for each thread apart
        with torch.inference_mode():
            vectors = None
            if load.soft is not None and block is not None:
                if block.subspace.deep:
                    self.layers  # noqa: B018 (found on the first use)
                vectors = self.soft.vectors(block, load.soft)
            logits, tokens, breaks = self.logits(load, part, vectors)
            log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return np.asarray(log_probs), tokens.astype(np.int32), breaks

    def logits(
        self, load: Bucket | Pack, part: EncodedPart, vectors: SoftVectors | None
    ) -> tuple[torch.Tensor, IntArray, int]:
        """(n, L) logits, (n,) tokens and breaks: of inputs that can share passes, and of others one by one."""
        import torch

        alone = self._alone(load, part)
        if not alone.any():
            if isinstance(load, Bucket):
                return self._score_rows(load, part, vectors)
            if self.packed is None:
                raise ScoringError("this LM takes no packed inputs")
            return self.packed.score(load, part, vectors)
        found: list[tuple[IntArray, tuple[torch.Tensor, IntArray, int]]] = []
        together = np.flatnonzero(~alone)
        if len(together):
            found.append((together, self.logits(_some(load, together), part, vectors)))
        for i in np.flatnonzero(alone):
            row = Bucket(
                load.part, 0, 1, load.prompts, load.prompt[[i]], load.example[[i]], load.soft, load.front
            )  # fmt: skip
            found.append((np.array([i]), self._score_rows(row, part, vectors)))
        order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in found]))).to(self.device)
        logits = torch.cat([one[0].float() for _, one in found])[order]
        tokens = np.concatenate([one[1] for _, one in found])[order.cpu().numpy()]
        return logits, tokens, sum(one[2] for _, one in found)

    def _alone(self, load: Bucket | Pack, part: EncodedPart) -> BoolArray:
        """(n,) which inputs share no pass with others."""
        count = len(load.prompt)
        if self.layout.kind == "single" or self.layout.reach is None:
            return np.full(count, self.layout.kind == "single")
        sizes = sizes_of(load.prompts)[load.prompt]
        lengths = part.reserving(load.front).lengths(sizes, load.example) + load.front + part.labels.depth
        return np.asarray(lengths > self.layout.reach)

    @property
    def cache_bytes(self) -> float:
        """What the keys and values of a token take while the LM writes."""
        if self.token_bytes:
            return self.token_bytes
        return float(2 * self.source.layers * self.source.hidden_size * self.dtype.itemsize)

    @property
    def window(self) -> int | None:
        """How many tokens the LM looks back in layers that do not look back on all; None where there are none."""
        config = self.forward.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        return window if window and (kinds is None or "sliding_attention" in kinds) else None

    def write(self, draft: Draft, part: EncodedPart) -> tuple[Answers, int]:
        """Completions of a draft's pairs, and breaks, as in :meth:`score`.

        Raises:
            ScoringError: there is not memory enough for a single row.
        """
        import torch

        if self.device.type == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with self._lock:
            if self._writer is None:
                self._writer = Writer(
                    self.forward, load_tokenizer(self.source.location, **self.source.trust), self.layout
                )
        return self._writer.write(draft, part)

    def embed(self, rows: Sequence[IntArray]) -> FloatArray:
        """(N, d) the mean of the last hidden states of each row of token ids; the encoder's where there is one."""
        model = self.forward.model
        body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        padded = self.layout.kind != "single" and self.layout.reach is None
        with as_loaded(self.forward.attention), self.forward.states:
            # Past the hook, which keeps one position alone.
            return mean_states(body.forward, rows, self.device, padded=padded)

    def _score_rows(
        self, bucket: Bucket, part: EncodedPart, vectors: SoftVectors | None
    ) -> tuple[torch.Tensor, IntArray, int]:
        """(n, L) logits of padded rows, (n,) tokens of each, and breaks."""
        import torch

        n, rows, front, length = len(bucket.prompt), bucket.rows, bucket.front, bucket.length
        count = -n // rows * -rows
        sizes = sizes_of(bucket.prompts)[bucket.prompt]
        own = part.reserving(front).lengths(sizes, bucket.example)
        length = length or int(own.max()) + front
        if self.layout.reach is not None:  # what pads a row must not carry it beyond
            length = max(min(length, self.layout.reach - part.labels.depth), int(own.max()) + front)
        ids, tokens, read, start = part.reserving(front).render(
            bucket.prompts, bucket.prompt, bucket.example, length - front, count
        )
        if front:
            dummies = np.full((count, front), self.pad_id, dtype=np.int64)
            ids, tokens, read, start = np.concatenate([dummies, ids], axis=1), tokens + front, read + front, start * 0
        mask = (np.arange(length) < tokens[:, None]).astype(np.int64)
        ids = np.where(mask > 0, ids, self.pad_id)
        arrays = [ids, mask, read]
        if vectors is not None:
            arrays += [start, np.resize(bucket.prompt, count).astype(np.int64)]
        inputs = tuple(torch.from_numpy(array).to(self.device) for array in arrays)
        low = self._low(vectors, part.labels)
        begun = self._begun(bucket, inputs, part.labels, vectors, low) if low and vectors is not None else {}
        low = low if begun else 0
        example = np.resize(bucket.example, count).tolist()
        passes = []
        for i in range(0, n, rows):
            some = tuple(x[i : i + rows] for x in inputs)
            if begun:
                some = (*some, torch.stack([begun[k] for k in example[i : i + rows]]))
            passes.append(self._forward(some, part.labels, min(rows, n - i), vectors, front, low))
        tokens = tokens[:n] + len(part.labels.nodes)
        return torch.cat([logits for logits, _ in passes]), tokens, sum(breaks for _, breaks in passes)

    def _low(self, vectors: SoftVectors | None, labels: Labels) -> int:
        """The layer at which passes over padded rows begin: below it all prompts of the request are the same."""
        layers = self.forward.layers
        if vectors is None or layers is None or not layers.jumps or not labels.single:
            return 0
        return vectors.block.shared

    def _begun(
        self, bucket: Bucket, inputs: tuple[torch.Tensor, ...], labels: Labels, vectors: SoftVectors, low: int
    ) -> dict[int, torch.Tensor]:
        """By example: the hidden states (length, width) of its row that enter layer ``low``.

        Nothing where they find no memory: then every prompt goes through all layers, in passes that can be cut in two.
        """
        below, rows = vectors.block.below(low), bucket.rows
        examples, first = np.unique(bucket.example, return_index=True)
        names = {int(i): (bucket.part, bucket.length, rows, below, low, int(i)) for i in examples}
        found = {i: states for i, name in names.items() if (states := self._states.find(name)) is not None}
        missing = np.array([k for k, i in enumerate(examples.tolist()) if i not in found], dtype=np.int64)
        for at in range(0, len(missing), rows):
            some = missing[at : at + rows]
            members = np.resize(first[some], rows)  # rows beyond them repeat them
            ids, mask, read, start, prompt = (x[members] for x in inputs)
            injection = self._injection(vectors, prompt, start, bucket.front)
            try:
                self.forward(ids, mask, read, labels, injection, bucket.front, Course(stop=low))
            except Captured as captured:
                for k, states in zip(some.tolist(), captured.states, strict=False):
                    found[int(examples[k])] = states.clone()
                    self._states.put(names[int(examples[k])], found[int(examples[k])])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                found = {}
                break
        if not found:
            self._states.clear()
            forget(self.device)
        return found

    @staticmethod
    def _injection(vectors: SoftVectors, prompt: torch.Tensor, start: torch.Tensor, front: int) -> Injection:
        length = vectors.block.subspace.length
        return Injection.from_start(vectors.of(prompt), length, start, replace=front > 0)

    def _forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        labels: Labels,
        real: int,
        vectors: SoftVectors | None = None,
        front: int = 0,
        low: int = 0,
    ) -> tuple[torch.Tensor, int]:
        """(real, L) logits of the label words for ids (B, T), mask (B, T) and positions (B,), and breaks.

        With ``vectors``: also for the start of the prompt (B,) and which prompt it is (B,). With ``low``: also for
        what enters that layer (B, T, width).
        """
        import torch

        ids, mask, read, *rest = inputs
        try:
            if vectors is None:
                return self.forward(ids, mask, read, labels)[:real], 0
            start, prompt, *states = rest
            course = Course(low, states[0]) if low else None
            injection = self._injection(vectors, prompt, start, front)
            return self.forward(ids, mask, read, labels, injection, front, course)[:real], 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: there the error's traceback would hold on to what the pass has allocated.
        self._states.clear()
        forget(self.device)
        rows, length = ids.shape
        if rows == 1:
            raise ScoringError(f"out of memory on {self.device}: not even one input of {length} tokens fits")
        half = (rows + 1) // 2  # rows are powers of two, so this is a shape of the table too
        halves = [
            self._forward(tuple(x[i : i + half] for x in inputs), labels, min(half, real - i), vectors, front, low)
            for i in range(0, real, half)
        ]
        return torch.cat([logits for logits, _ in halves]), 1 + sum(breaks for _, breaks in halves)
