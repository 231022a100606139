"""How an LM can be given its inputs: asked of the LM itself when it is loaded.

The model's own plain forward pass of one row is what counts. Whatever is quicker (inputs end to end, padded rows, keys
and values that are kept) is used where it gives the same scores, for inputs of lengths on both sides of everything in
the config that changes with the length; and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import ScoringError, last_line
from rayprompt.lm.encode import EncodedPart, Segment
from rayprompt.lm.forward import LabelForward
from rayprompt.lm.labels import Labels
from rayprompt.lm.packed import Pack, PackedForward
from rayprompt.lm.shapes import Layout
from rayprompt.scores import IntArray

if TYPE_CHECKING:
    import torch

SIZES = ((3, 2, 6), (9, 4, 1), (1, 4, 2), (5, 2, 4))  # tokens before the prompt, of it, and behind it
LABELS = 2
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of the logits' spread
LENGTH_NAMES = re.compile(r"window|local_attention|chunk|block_size|original_max_position|segment|lsh|buckets")
EXPERTS = re.compile(r"expert|moe", re.IGNORECASE)
SHARED = "inputs of a pass share the matrix products of its experts"
WRITTEN_BEHIND = (5, 11)  # tokens of inputs behind which is written
STEPS = 3  # of writing
BEYOND = 9  # tokens by which a row is longer than what is looked for
LONG = 96  # tokens of the longest row where nothing in the config names a length
WORK = {"cpu": 4e10, "cuda": 4e13}  # operations of the longest row, at most
MOST_TOKENS = 2048  # of the longest row: attention takes memory with its square
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError)


@dataclass(frozen=True)
class Question:
    """Rows that an LM is asked, and what its plain forward pass answers.

    Attributes:
        part, prompts: example i goes with prompt i.
        plain: (n, L) logits of the label words.
        allowed: the greatest difference from them that counts as none.
    """

    part: EncodedPart
    prompts: tuple[tuple[int, ...], ...]
    plain: torch.Tensor
    allowed: float

    def up_to(self, tokens: int) -> Question:
        """The same without rows of more tokens."""
        lengths = [len(self.part.row(i, prompt)[0]) for i, prompt in enumerate(self.prompts)]
        kept = [i for i, n in enumerate(lengths) if n <= tokens]
        before, after = (tuple(side[i] for i in kept) for side in (self.part.before, self.part.after))
        part = replace(self.part, before=before, after=after)
        return replace(self, part=part, prompts=tuple(self.prompts[i] for i in kept), plain=self.plain[kept])

    def same(self, found: torch.Tensor, rows: Sequence[int] | None = None, share: float = 1.0) -> bool:
        """Whether answers (n, L), or those of some rows, are those of the plain pass."""
        expected = self.plain if rows is None else self.plain[list(rows)]
        return bool((found.float() - expected).abs().max() <= self.allowed * share)


def probe(
    forward: LabelForward, causal: bool, vocab_size: int, max_length: int, parameters: int, mask_id: int | None = None
) -> Layout:
    """How the LM can be given its inputs; it is left as it should be used.

    Args:
        forward: the LM.
        causal: it reads from left to right.
        vocab_size, max_length, parameters: as :class:`rayprompt.lm.source.LMSource` has them.
        mask_id: the token at which the answer is read, if there is one.

    Raises:
        ScoringError: a plain forward pass fails, or gives other scores each time.
    """
    import torch

    switch = rope_switch(forward.model)
    turns = [n for n in lengths_named(forward.model.config.get_text_config()) if n < max_length]
    room = int(WORK.get(forward.device.type, 4e10) / (2 * max(1, parameters)))
    most = max(max(map(sum, SIZES)), min(max_length, room, MOST_TOKENS))
    reached = [n for n in turns if n + BEYOND <= most]
    reach = min((n for n in (switch, *(set(turns) - set(reached))) if n is not None), default=None)
    lengths = {min(most, n) for k in (LONG, *reached) for n in (k, k + BEYOND)} | {min(most, reach or most)}
    long = sorted(n for n in lengths if 3 < n <= (reach or most))
    with torch.inference_mode():
        part, prompts = random_inputs(
            np.random.default_rng(0), causal, vocab_size, long, max_length, forward.pad_id, mask_id
        )
        question = _asked(forward, part, prompts)
        reason = mixes_inputs(forward.model)
        if reason is None:
            for limit in dict.fromkeys((reach, *reversed(reached))):  # below a turn it may do what it cannot beyond
                asked = question if limit is None else question.up_to(limit)
                token_bytes = _packs(forward, causal, asked)
                if token_bytes is not None:
                    return Layout("packed", token_bytes, limit)
                if len(asked.part) > 2 and _pads(forward, asked):
                    return Layout("padded", None, limit)
    return Layout("single", reason=reason or "padding or neighbors change its scores")


def probe_writing(forward: LabelForward, layout: Layout, vocab_size: int, window: int | None) -> Layout:
    """The layout, with the way of writing that gives what plain forward passes over the whole text give.

    ``window``: tokens that it looks back in some layer; None is all.
    """
    import torch

    from rayprompt.lm.write import Writer

    rng = np.random.default_rng(1)
    rows = [
        rng.integers(vocab_size // 8, vocab_size, n) for n in (*WRITTEN_BEHIND, (window or 0) % MOST_TOKENS + BEYOND)
    ]
    if layout.reach is not None:
        rows = [row[: max(2, layout.reach - STEPS - 1)] for row in rows]
    rows = [np.concatenate([rows[0][:2], row[2:]]) for row in rows]  # all begin alike
    new = rng.integers(vocab_size // 8, vocab_size, (len(rows), STEPS))
    ways = {"padded": _written_together, "single": _written_alone}
    with torch.inference_mode():
        expected = torch.stack(
            [
                torch.cat(
                    [_last(forward, np.concatenate([row, more[:k]])) for row, more in zip(rows, new, strict=True)]
                )
                for k in range(STEPS + 1)
            ]
        )
        allowed = TOLERANCE[str(expected.dtype).removeprefix("torch.")] * float(expected.float().std())
        for name, way in ways.items():
            if name == "padded" and layout.kind == "single" and layout.reason == SHARED:
                continue
            try:
                found = list(way(Writer(forward, None, layout), rows, new, window))
            except FAILURES:
                continue
            if all(float((one - expected).abs().max()) <= allowed for one in found):
                return replace(layout, writes=name)  # type: ignore[arg-type]
    return replace(layout, writes="recomputed")


def _last(forward: LabelForward, ids: IntArray) -> torch.Tensor:
    """(1, V) logits behind some ids (T,): the model's own plain forward pass."""
    import torch

    return forward.reference(torch.from_numpy(ids)[None].to(forward.device), len(ids) - 1, None).float()


def _written_together(
    writer: Any, rows: Sequence[IntArray], new: IntArray, window: int | None
) -> Iterator[torch.Tensor]:
    """(steps, n, V) logits of rows padded on the left: with nothing shared, and with what all begin with."""
    longest = max(map(len, rows)) + 3
    for begin, shared in ((0, 0), (2, 4)):
        if begin and window is not None and longest + STEPS + shared > window:
            continue
        logits, state = writer.begin(rows, begin, (shared, longest), len(rows), 2, STEPS)
        yield _stepped(writer, logits, state, np.array([len(row) for row in rows]).repeat(2), new.repeat(2, axis=0))[
            :, ::2
        ]


def _written_alone(writer: Any, rows: Sequence[IntArray], new: IntArray, window: int | None) -> Iterator[torch.Tensor]:
    """(steps, n, V) logits of rows that are written one by one."""
    import torch

    found = []
    for row, more in zip(rows, new, strict=True):
        logits, state = writer.begin([row], 0, (0, len(row)), 1, 1, STEPS)
        found.append(_stepped(writer, logits, state, np.array([len(row)]), more[None]))
    yield torch.cat(found, dim=1)


def _stepped(writer: Any, logits: torch.Tensor, state: Any, sizes: IntArray, new: IntArray) -> torch.Tensor:
    import torch

    found = [logits.float()]
    for k in range(STEPS):
        found.append(writer.step(state, new[:, k], sizes + k))
    return torch.stack(found)


def lengths_named(config: Any) -> list[int]:
    """The lengths that a config names: windows, chunks, blocks, original numbers of positions; in order."""
    found: set[int] = set()

    def look(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(str(key), inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(name, inner)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1 and LENGTH_NAMES.search(name):
            found.add(value)

    look("", config.to_dict())
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird's attention is another one beyond
        found.add((5 + 2 * int(config.num_random_blocks)) * int(config.block_size))
    return sorted(found)


def rope_switch(model: Any) -> int | None:
    """Tokens beyond which rotary embeddings follow the longest input of a pass (LongRoPE, dynamic NTK)."""
    found: list[int] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in (kinds if isinstance(kinds, dict) else {"": kinds}).items():
            if kind == "longrope":
                given = module.config.rope_parameters
                found.append(int((given[layer] if layer else given)["original_max_position_embeddings"]))
            elif isinstance(kind, str) and "dynamic" in kind:
                found.append(int(module.original_max_seq_len))
    return min(found, default=None)


def mixes_inputs(model: Any) -> str | None:
    """Why no two inputs may share a pass, where the model says so; else None."""
    for name, module in model.named_modules():
        if EXPERTS.search(type(module).__name__) and "expert" in f"{name} {type(module).__name__}".lower():
            return SHARED
    return None


def _asked(forward: LabelForward, part: EncodedPart, prompts: tuple[tuple[int, ...], ...]) -> Question:
    """The plain scores of all rows. Where what computes less than a plain pass gives others, it is left out.

    Raises:
        ScoringError: see :func:`probe`.
    """
    import torch

    rows = [_row(forward, part, i, prompts[i]) for i in range(len(part))]
    try:
        plain = torch.cat([forward.reference(ids, read, part.labels) for ids, read in rows])
        again = torch.cat([forward.reference(ids, read, part.labels) for ids, read in reversed(rows)]).flip(0)
    except FAILURES as error:
        kind = type(forward.model).__name__
        raise ScoringError(
            f"a forward pass of {kind} fails ({type(error).__name__}: {last_line(error)[:160]})"
        ) from None
    spread = float(plain.float().std())
    tolerance = TOLERANCE[str(plain.dtype).removeprefix("torch.")]
    question = Question(part, prompts, plain.float(), tolerance * spread)
    if not np.isfinite(spread):
        raise ScoringError(f"{type(forward.model).__name__} gives no finite scores, even for random tokens")
    if not question.same(again):
        raise ScoringError(
            f"{type(forward.model).__name__} gives an input another score each time (its attention draws random "
            "numbers, or it remembers other inputs), so it cannot be used"
        )
    try:
        alone = torch.cat([_run(forward, [row], part.labels) for row in rows])
        trims = question.same(alone)
    except FAILURES:
        trims = False
    if not trims:
        forward.compute_whole()
    return question


def _pads(forward: LabelForward, question: Question) -> bool:
    """Whether rows of one pass, padded to one length, have the same scores as each row alone, for any neighbors."""
    rows = [_row(forward, question.part, i, prompt) for i, prompt in enumerate(question.prompts)]
    every = list(range(len(rows)))
    try:
        passes = (every, every[::-1], [every[0], every[-1], every[0]], every[1:3])
        return all(question.same(_run(forward, [rows[i] for i in p], question.part.labels), p) for p in passes)
    except FAILURES:
        return False


def _packs(forward: LabelForward, causal: bool, question: Question) -> float | None:
    """The bytes that a token's keys and values take where inputs can lie end to end (0: none are shared); else None.

    Not so where positions cannot be given (ALiBi, a T5 encoder), or where tokens are mixed in other ways than by
    attention. The LM is left as it should be used.
    """
    if not forward.pack():
        return None
    try:
        found = _token_bytes(forward, causal, question)
    except FAILURES:
        found = None
    if found is None:
        forward.unpack()
    return found


def _token_bytes(forward: LabelForward, causal: bool, question: Question) -> float | None:
    part, n = question.part, len(question.part)
    total = sum(len(part.row(i, prompt)[0]) for i, prompt in enumerate(question.prompts))
    tokens = 1 << (total - 1).bit_length()
    for reuse in ("none", "text", "prompt") if causal else ("none",):
        for order in (np.arange(n), np.arange(n)[::-1]):
            pack = Pack(part.key, tokens, np.array([n]), reuse, True, question.prompts, order, order)
            packed = PackedForward(forward, causal, 1 << 30)
            if not question.same(packed.score(pack, part)[0], order.tolist()):
                return None
        entries = packed.cache.entries.values()
    return sum(e.numel() * e.element_size() for e in entries) / max(1, sum(e.shape[-2] for e in entries))


def random_inputs(
    rng: np.random.Generator,
    causal: bool,
    vocab_size: int,
    long: Sequence[int],
    max_length: int,
    pad_id: int,
    mask_id: int | None,
) -> tuple[EncodedPart, tuple[tuple[int, ...], ...]]:
    """Examples of random tokens, and a prompt for each; the mask is where they are read."""

    def tokens(count: int) -> IntArray:
        ids = rng.integers(0, vocab_size, count)
        return np.where(ids == pad_id, (pad_id + 1) % vocab_size, ids)

    sizes = [size for size in (*SIZES, *((n - 3, 2, 1) for n in long)) if sum(size) <= max_length]
    sizes = sizes or [(1, 1, max(1, max_length - 2))]
    before = tuple((Segment(tokens(b), field=False),) for b, _, _ in sizes)
    behind = [tokens(a) for _, _, a in sizes]
    if mask_id is not None:
        for ids in behind:
            ids[0] = mask_id
    after = tuple((Segment(ids, field=False),) for ids in behind)
    prompts = tuple(tuple(tokens(p).tolist()) for _, p, _ in sizes)
    read = None if causal else ("after", 0)
    labels = Labels(tuple((int(i),) for i in tokens(LABELS)))
    return EncodedPart("probe", before, after, None, read, labels, pad_id, max_length), prompts


def _row(forward: LabelForward, part: EncodedPart, example: int, prompt: tuple[int, ...]) -> tuple[torch.Tensor, int]:
    """Ids (1, T), and where they are read."""
    import torch

    row, read, _ = part.row(example, prompt)
    return torch.from_numpy(row)[None].to(forward.device), read


def _run(forward: LabelForward, rows: Sequence[tuple[torch.Tensor, int]], labels: Labels) -> torch.Tensor:
    """(n, L) logits of rows that share a pass, padded to the longest."""
    import torch

    longest = max(ids.shape[1] for ids, _ in rows)
    padded = torch.cat([torch.nn.functional.pad(r, (0, longest - r.shape[1]), value=forward.pad_id) for r, _ in rows])
    sizes = torch.tensor([ids.shape[1] for ids, _ in rows], device=forward.device)
    mask = (torch.arange(longest, device=forward.device) < sizes[:, None]).long()
    return forward(padded, mask, torch.tensor([read for _, read in rows], device=forward.device), labels)
