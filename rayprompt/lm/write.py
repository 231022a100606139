"""Writing: completions of many inputs at once, with keys and values cached, and what inputs share computed once.

The model's own forward runs, with transformers' own cache; rows are padded on the left. Samples of an input read its
keys and values where they stand: a step has the input's as one matrix for all of them, and each sample's own few. A
row's draws come from the row alone, and the shapes of all steps from fixed tables: what else is written beside it
changes nothing.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.decoding import Decoding
from rayprompt.errors import ScoringError
from rayprompt.lm.attention import NAME, Continued, continued
from rayprompt.lm.encode import EncodedPart, sizes_of
from rayprompt.lm.forward import LabelForward, forget, is_out_of_memory
from rayprompt.lm.shapes import LENGTHS, DeviceClass, Layout
from rayprompt.pairs import Answers
from rayprompt.scores import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    import torch

MOST_ROWS: dict[DeviceClass, int] = {"cpu": 128, "cuda": 256}
LOOK_EVERY = 4  # steps between two looks for a stop text that may be several tokens
STOP_TOKENS = 8  # tokens that are read again before a stop text's own length: a letter may be several tokens


@dataclass(frozen=True)
class Draft:
    """Pairs of (prompt, example, sample) to be completed, some a pass.

    Attributes:
        part: key of the :class:`EncodedPart` that the examples are of.
        shape: (shared, own, rows) of every pass: padded tokens of what all its rows begin with (0: nothing), padded
            tokens behind, and rows.
        ends: (k,) behind which pair each pass ends.
        prompts: token ids of the prompts that occur.
        prompt, example, sample: (n,) what each pair is made of.
    """

    part: str
    shape: tuple[int, int, int]
    ends: IntArray
    prompts: tuple[tuple[int, ...], ...]
    prompt: IntArray
    example: IntArray
    sample: IntArray


@dataclass(frozen=True)
class WriteTable:
    """Shapes of passes that write.

    Attributes:
        rows: the most of a pass.
        cache: bytes for keys and values, and ``token_bytes`` what they take for a token.
        window: tokens that the LM looks back at most in some layer; None is all.
    """

    rows: int
    cache: int
    token_bytes: float
    window: int | None = None

    @classmethod
    def of(cls, device: DeviceClass, cache: int, token_bytes: float, window: int | None = None) -> WriteTable:
        """The table of a device class."""
        return cls(MOST_ROWS[device], cache, token_bytes, window)

    def passes(
        self, part: EncodedPart, prompts: Sequence[tuple[int, ...]], prompt: IntArray, example: IntArray
    ) -> Iterator[tuple[tuple[int, int, int], IntArray]]:
        """Sort pairs into passes: (their shape, indices of their pairs); the samples of a pair stand together.

        Where the prompt stands before the text, a pass has one prompt, which is computed once.

        Raises:
            InputError: a prompt leaves no room even for an empty text.
        """
        new = part.decoding.max_tokens if part.decoding else 0
        own_prompt = sizes_of(prompts)[prompt]
        tokens = part.lengths(own_prompt, example)
        shared = np.zeros_like(tokens)
        if not part.text_first:
            _, _, start = part.places(own_prompt, example)
            shared = start + own_prompt
            shared[shared >= tokens] = 0  # there is nothing behind it to be read
            if self.window is not None:  # padding between what is shared and the rest would take up room in it
                shared[tokens + new > self.window] = 0
        front, behind = padded(shared), padded(tokens - shared)
        of = np.where(shared > 0, prompt, -1)
        order = np.lexsort((example, prompt, behind, of, front))
        keys = np.stack([front, of, behind])[:, order]
        bounds = np.flatnonzero((np.diff(keys, axis=1) != 0).any(axis=0)) + 1
        for members in np.split(order, bounds):
            if len(members):
                shape = (int(front[members[0]]), int(behind[members[0]]))
                rows = self.rows_of(sum(shape) + new, len(part) * part.samples)
                pair = prompt[members].astype(np.int64) * len(part) + example[members]
                for begin, end in _fill(pair, rows, max(1, rows // part.samples)):
                    yield (*shape, rows), members[begin:end]

    def rows_of(self, tokens: int, most: int) -> int:
        """Rows of a pass with so many tokens each; a part in which a prompt has ``most`` needs no more."""
        room = max(1, int(self.cache / max(1.0, tokens * self.token_bytes)))
        rows = min(self.rows, 1 << (room.bit_length() - 1))
        return min(rows, 1 << (most - 1).bit_length())

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        return {"rows": self.rows, "cache": self.cache, "token_bytes": self.token_bytes, "window": self.window}


def padded(lengths: IntArray) -> IntArray:
    """(n,) the lengths of the table that these (n,) are padded to; 0 stays 0."""
    table = np.array((0, *LENGTHS, *(8192 << i for i in range(12))))
    return np.asarray(table[np.searchsorted(table, lengths)])


def _fill(pair: IntArray, rows: int, pairs: int) -> Iterator[tuple[int, int]]:
    """Cut a run of rows into passes of ``rows`` rows and ``pairs`` distinct pairs at most."""
    number = np.concatenate([[0], np.cumsum(np.diff(pair) != 0)])
    start = 0
    while start < len(pair):
        end = min(start + rows, int(np.searchsorted(number, number[start] + pairs)))
        yield start, end
        start = end


class Writer:
    """Completes inputs with a causal LM.

    Args:
        forward: the LM.
        tokenizer: of the LM.
        layout: how the LM writes what it would write alone, step by step.
    """

    def __init__(self, forward: LabelForward, tokenizer: Any, layout: Layout) -> None:
        self.forward = forward
        self.tokenizer = tokenizer
        self.layout = layout
        self.known_stops: dict[tuple[str, ...], BoolArray] = {}
        self.positioned = "position_ids" in inspect.signature(forward.model.forward).parameters

    @cached_property
    def ends(self) -> IntArray:
        """The tokens that end a text."""
        generation = getattr(self.forward.model, "generation_config", None)
        given = getattr(generation, "eos_token_id", None)
        found = [*(given if isinstance(given, list) else [given]), self.tokenizer.eos_token_id]
        return np.array(sorted({int(i) for i in found if i is not None}), dtype=np.int64)

    def write(self, draft: Draft, part: EncodedPart) -> tuple[Answers, int]:
        """The completions of a draft's pairs, and breaks: passes that were cut in two for lack of memory.

        Raises:
            ScoringError: there is not memory enough for a single row.
        """
        import torch

        answers = Answers.empty(len(draft.prompt), 0)
        breaks = 0
        sizes = part.lengths(sizes_of(draft.prompts)[draft.prompt], draft.example)
        room = 0 if part.decoding is None else part.decoding.max_tokens
        far = sizes + room > (self.layout.reach or np.inf)
        alone = far | (self.layout.writes != "padded")
        with torch.inference_mode():
            for start, end in zip((0, *draft.ends[:-1]), draft.ends, strict=True):
                members = np.arange(start, end)
                if not alone[members].all():
                    breaks += self._pass(draft, part, members[~alone[members]], draft.shape, answers)
            for i in np.flatnonzero(alone):
                cached = self.layout.writes != "recomputed" and not far[i]
                self._pass(draft, part, np.array([i]), (0, int(sizes[i]), 1), answers, cached)
        return answers, breaks

    def _pass(
        self,
        draft: Draft,
        part: EncodedPart,
        members: IntArray,
        shape: tuple[int, int, int],
        answers: Answers,
        cached: bool = True,
    ) -> int:
        try:
            self._write(draft, part, members, shape, answers, cached)
            return 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        forget(self.forward.device)
        shared, own, rows = shape
        if rows == 1:
            raise ScoringError(
                f"out of memory on {self.forward.device}: not even one text of {shared + own} tokens fits"
            )
        half = (rows + 1) // 2
        breaks = 1
        for start in range(0, len(members), half):
            breaks += self._pass(draft, part, members[start : start + half], (shared, own, half), answers)
        return breaks

    def _write(
        self,
        draft: Draft,
        part: EncodedPart,
        members: IntArray,
        shape: tuple[int, int, int],
        answers: Answers,
        cached: bool,
    ) -> None:
        decoding = part.decoding
        assert decoding is not None
        shared, own, rows = shape
        prompt, example, sample = (x[members] for x in (draft.prompt, draft.example, draft.sample))
        flat, sizes, _, starts = part.splice(draft.prompts, prompt, example)
        inputs = np.split(flat, np.cumsum(sizes)[:-1])
        begin = int(starts[0]) + len(draft.prompts[prompt[0]]) if shared else 0
        first = np.concatenate([[True], (np.diff(prompt) != 0) | (np.diff(example) != 0)])
        slots = max(1, rows // part.samples)
        cell = rows // slots  # rows that go on from one input
        heads = [inputs[i] for i in np.flatnonzero(first)]
        slots = max(slots, len(heads))
        pair = np.cumsum(first) - 1
        row = pair * cell + np.arange(len(members)) - np.flatnonzero(first)[pair]
        logits, state = self.begin(heads, begin, (shared, own), slots, cell, decoding.max_tokens, cached)
        limits = np.zeros(slots * cell, dtype=np.int64)
        limits[row] = [decoding.limit(int(n)) for n in part.field_lengths[example]]
        draws = None
        if decoding.temperature > 0:
            draws = np.zeros((slots * cell, decoding.max_tokens))
            for i, ids, k in zip(row.tolist(), inputs, sample.tolist(), strict=True):
                draws[i] = uniforms(decoding.seed, ids, int(k), decoding.max_tokens)
        written = self._go_on(logits, state, decoding, limits, draws)
        texts = {tokens: self._text(tokens, decoding) for tokens in {written[i] for i in row.tolist()}}
        for i, at in enumerate(members.tolist()):  # samples are often the same
            text, count, ended = texts[written[row[i]]]
            answers.cut[at] = not ended and count >= limits[row[i]]  # type: ignore[index]
            answers.completion[at] = text  # type: ignore[index]
            answers.written[at] = count  # type: ignore[index]
            answers.tokens[at] = int(sizes[i]) + count

    def begin(
        self,
        heads: Sequence[IntArray],
        begin: int,
        shape: tuple[int, int],
        slots: int,
        cell: int,
        room: int,
        cached: bool = True,
    ) -> tuple[torch.Tensor, _State]:
        """(slots * cell, V) logits behind the inputs ``heads``, ``cell`` rows each, and the state to go on with.

        Args:
            heads: the inputs; slots beyond them are dummies.
            begin: tokens that all of them begin with.
            shape: padded tokens of what they share, and of what stands behind it.
            slots, cell: inputs of the pass, and rows that go on from each.
            room: tokens that may be written.
            cached: keys and values are kept; else every step is a plain forward pass, of one row.
        """
        logits, state = self._read(heads, begin, *shape, slots, room, cached)
        state.spread(np.arange(slots * cell) // cell, self._continues(state))
        return logits[state.index], state

    def step(self, state: _State, tokens: IntArray, position: IntArray) -> torch.Tensor:
        """(rows, V) logits behind one more token (rows,) each, at a position (rows,)."""
        return self._forward(state, tokens[:, None], np.ones((len(tokens), 1), dtype=bool), position[:, None])

    def _continues(self, state: _State) -> bool:
        """Whether rows can go on from inputs that several of them share, without copies of what stands there."""
        from rayprompt.lm.room import RoomyLayer

        if state.cache is None:
            return False
        known = self.forward.model.config._attn_implementation == NAME and self.positioned
        return known and all(type(layer) is RoomyLayer for layer in state.cache.layers)

    def _read(
        self, inputs: Sequence[IntArray], begin: int, shared: int, own: int, rows: int, room: int, cached: bool
    ) -> tuple[torch.Tensor, _State]:
        """(rows, V) logits behind each input, dummies at the end; of all inputs the first ``begin`` tokens are one.

        ``room``: tokens that may be written behind them.
        """
        from rayprompt.lm.room import roomy_cache

        state = _State(roomy_cache(self.forward.model.config, room) if cached else None, self.forward.device)
        pad = int(inputs[0][-1])
        if shared:
            self._step(state, _left([inputs[0][:begin]], 1, shared, pad), np.array([begin]))
            state.spread(np.zeros(rows, dtype=np.int64))
        rest = [ids[begin:] for ids in inputs]
        sizes = np.array([len(ids) for ids in rest] + [len(rest[0])] * (rows - len(rest)))
        return self._step(state, _left(rest, rows, own, pad), sizes), state

    def _step(self, state: _State, ids: IntArray, sizes: IntArray) -> torch.Tensor:
        """(B, V) logits behind the last of ids (B, T), of which the last ``sizes`` (B,) of each row count."""

        length = ids.shape[1]
        real = np.arange(length) >= length - sizes[:, None]
        before = np.zeros(len(ids), dtype=np.int64) if state.mask is None else state.mask.sum(1).cpu().numpy()
        positions = np.maximum(before[:, None] + np.cumsum(real, axis=1) - 1, 0)
        return self._forward(state, ids, real, positions)

    def _forward(self, state: _State, ids: IntArray, real: Any, positions: IntArray) -> torch.Tensor:
        import torch

        device = self.forward.device
        new = torch.from_numpy(np.ascontiguousarray(real)).to(device=device, dtype=torch.int64)
        state.mask = new if state.mask is None else torch.cat([state.mask, new], dim=1)
        if state.cache is None:
            own = torch.from_numpy(np.ascontiguousarray(ids)).to(device)
            state.ids = own if state.ids is None else torch.cat([state.ids, own], dim=1)
            masked = {"attention_mask": state.mask} if self.forward.takes_mask else {}
            return self.forward.behind_last({"input_ids": state.ids, **masked}).float()
        given: dict[str, Any] = {
            "input_ids": torch.from_numpy(np.ascontiguousarray(ids)).to(device),
            "past_key_values": state.cache,
            "use_cache": True,
        }
        if state.prefix is None:
            given["attention_mask"] = state.mask
        if self.positioned:
            first = self.forward.first_position or 0
            given["position_ids"] = torch.from_numpy(np.ascontiguousarray(positions)).to(device) + first
        step = None
        if state.prefix is not None and state.seen is not None:
            step = Continued(state.prefix, state.seen)
        with continued(step):
            return self.forward.behind_last(given).float()

    def _go_on(
        self, logits: torch.Tensor, state: _State, decoding: Decoding, limits: IntArray, draws: FloatArray | None
    ) -> list[tuple[int, ...]]:
        """The tokens of each row, (rows,) ``limits`` of them at most; those that have ended go on as dummies."""
        rows = len(logits)
        written = np.zeros((rows, decoding.max_tokens), dtype=np.int64)
        counts = np.zeros(rows, dtype=np.int64)
        going = limits > 0
        stopping = self._stopping(decoding.stop)
        looks = any(len(stop) > 1 or not stop.isascii() for stop in decoding.stop)
        position = state.mask.sum(1).cpu().numpy() if state.mask is not None else np.zeros(rows, dtype=np.int64)
        for step in range(decoding.max_tokens):
            if draws is None:
                tokens = logits.argmax(dim=-1).cpu().numpy()
            else:
                tokens = draw_top(logits, draws[:, step], decoding)
            written[going, step] = tokens[going]
            counts += going
            going &= ~stopping[tokens]
            going &= limits > step + 1
            if looks and (step + 1) % LOOK_EVERY == 0:
                for row in np.flatnonzero(going):
                    going[row] = not self._stops(written[row, : counts[row]].tolist(), decoding)
            if not going.any() or step + 1 == decoding.max_tokens:
                break
            logits = self.step(state, tokens, position)
            position = position + 1
        return [tuple(ids[:count].tolist()) for ids, count in zip(written, counts, strict=True)]

    def _stopping(self, stop: tuple[str, ...]) -> BoolArray:
        """(V,) whether nothing that is written behind a token counts: it ends the text, or a stop text is in it."""
        if stop not in self.known_stops:
            size = max(len(self.tokenizer), int(self.forward.model.config.get_text_config().vocab_size))
            found = np.zeros(size, dtype=bool)
            found[self.ends] = True
            if stop:
                texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))], skip_special_tokens=True)
                found[: len(texts)] |= [any(s in text for s in stop) for text in texts]
            self.known_stops[stop] = found
        return self.known_stops[stop]

    def _stops(self, ids: Sequence[int], decoding: Decoding) -> bool:
        tail = ids[-(max(map(len, decoding.stop)) + STOP_TOKENS + LOOK_EVERY) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in decoding.stop)

    def _text(self, ids: Sequence[int], decoding: Decoding) -> tuple[str, int, bool]:
        """The text of what was written, cut at a stop text, how many tokens it took, and whether it came to an end."""
        ends = [i for i, token in enumerate(ids) if token in self.ends]
        ids = ids[: ends[0] + 1] if ends else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        cut = decoding.cut(text)
        if len(cut) == len(text):
            return text, len(ids), bool(ends)
        count = len(ids)
        while count > 1 and len(decoding.cut(whole := self.tokenizer.decode(ids[: count - 1]))) < len(whole):
            count -= 1
        return cut, count, True


class _State:
    """Cache and attention mask of some rows; ``prefix`` is what was in the cache where rows share it."""

    def __init__(self, cache: Any, device: torch.device) -> None:
        self.cache = cache
        self.device = device
        self.mask: torch.Tensor | None = None
        self.index: torch.Tensor | None = None
        self.prefix: list[torch.Tensor] | None = None
        self.seen: torch.Tensor | None = None
        self.ids: torch.Tensor | None = None  # where there is no cache

    def spread(self, rows: IntArray, shared: bool = False) -> None:
        """Go on with these rows, of those that there are; ``shared``: as many of each, without a copy of them."""
        import torch

        self.index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).to(self.device)
        if self.mask is not None:
            self.mask = self.mask[self.index]
        if self.ids is not None:
            self.ids = self.ids[self.index]
        if self.cache is None:
            return
        if not shared or self.mask is None:
            self.cache.batch_select_indices(self.index)
            return
        self.prefix = [torch.stack([layer.keys, layer.values]) for layer in self.cache.layers]
        self.seen = (self.mask != 0)[:, None, None]
        for layer in self.cache.layers:
            layer.empty()


def _left(inputs: Sequence[IntArray], rows: int, length: int, pad: int) -> IntArray:
    """(rows, length) ids, padded on the left; rows beyond the inputs repeat the first."""
    ids = np.full((rows, length), pad, dtype=np.int64)
    for i in range(rows):
        row = inputs[i if i < len(inputs) else 0]
        ids[i, length - len(row) :] = row
    return ids


def uniforms(seed: int, ids: IntArray, sample: int, count: int) -> FloatArray:
    """(count,) numbers from 0 to 1 that belong to a sample of an input: the same wherever and beside whatever."""
    content = np.concatenate([[seed, sample], ids]).astype("<i8").tobytes()
    key = int.from_bytes(hashlib.sha256(content).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw_top(logits: torch.Tensor, uniform: FloatArray, decoding: Decoding) -> IntArray:
    """(B,) tokens drawn from logits (B, V), of the ``top_k`` likeliest where there is such a limit."""
    if decoding.top_k is None:
        return draw(logits.cpu().numpy(), uniform, decoding)
    top = logits.topk(min(decoding.top_k, logits.shape[1]), dim=1)
    place = draw(top.values.cpu().numpy(), uniform, decoding)
    return np.asarray(np.take_along_axis(top.indices.cpu().numpy(), place[:, None], axis=1)[:, 0])


def draw(logits: FloatArray, uniform: FloatArray, decoding: Decoding) -> IntArray:
    """(B,) tokens drawn from logits (B, V) by one number (B,) from 0 to 1 each."""
    scaled = logits.astype(np.float64) / decoding.temperature
    p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if decoding.top_p < 1:
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        ahead = np.cumsum(ranked, axis=1) - ranked  # what is likelier than each
        ranked[ahead >= decoding.top_p * ranked.sum(axis=1, keepdims=True)] = 0.0
        np.put_along_axis(p, order, ranked, axis=1)
    total = np.cumsum(p, axis=1)
    found = (total <= (uniform * total[:, -1])[:, None]).sum(axis=1)
    return np.asarray(np.minimum(found, logits.shape[1] - 1), dtype=np.int64)
