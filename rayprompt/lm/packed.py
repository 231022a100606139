"""Forward passes over inputs that lie end to end, and keys/values that are computed once for many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rayprompt.errors import ScoringError
from rayprompt.lm.attention import Group, Packing
from rayprompt.lm.deep import Course
from rayprompt.lm.encode import EncodedPart, sizes_of
from rayprompt.lm.forward import LabelForward, forget, is_out_of_memory
from rayprompt.lm.projection import Bounded
from rayprompt.lm.shapes import CELL, PREFIX_SHARE, Inputs, Reuse, bucket, fill, most_inputs
from rayprompt.lm.soft import Captured, Injection, SoftVectors
from rayprompt.scores import BoolArray, IntArray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
STATE_BYTES = 256 * 1024**2  # of hidden states that are kept, from one tuned layer to the next
States = tuple["torch.Tensor", ...]  # hidden states (tokens, width), and keys and values where they are wanted


class NoRoom(ScoringError):
    """What prompts share finds no memory."""


@dataclass(frozen=True)
class Prefixes:
    """Keys and values of what inputs stand behind, by group: (layers, 2, heads, p, width) from layer ``first`` on."""

    entries: Mapping[int, torch.Tensor]
    first: int = 0


@dataclass(frozen=True)
class Pack:
    """Pairs of (prompt, example) whose inputs lie end to end in forward passes of ``tokens`` tokens.

    Attributes:
        part: key of the :class:`EncodedPart` that the examples are of.
        tokens: the shape of every pass; what is left of it is filled up with dummies.
        ends: (k,) behind which pair each pass ends.
        reuse: what inputs share.
        keep: whether the keys and values of texts are kept for later calls.
        prompts: token ids of the prompts that occur.
        prompt, example: (n,) what each pair is made of.
        soft: for soft prompts, the row of each prompt in the request's block.
        front: positions in front of the input that a soft prompt takes.
    """

    part: str
    tokens: int
    ends: IntArray
    reuse: Reuse
    keep: bool
    prompts: tuple[tuple[int, ...], ...]
    prompt: IntArray
    example: IntArray
    soft: IntArray | None = None
    front: int = 0


@dataclass(frozen=True)
class Slots:
    """Where the inputs of a pass stand for attention: groups of one shape, in them cells that share a prefix.

    Attributes:
        members: per group, (slots,) the input in each; -1 = none.
        own, prefix: per group, the lengths that own and shared tokens are padded to.
        inverse: (T,) for each token, where it is among all slots' tokens end to end.
    """

    members: list[IntArray]
    own: list[int]
    prefix: list[int]
    inverse: IntArray


def lay_out(own: IntArray, prefix: IntArray, group: IntArray, tokens: int) -> Slots:
    """Give n inputs, with ``own`` (n,) tokens behind ``prefix`` (n,) shared ones, their slots in a pass.

    The slots of a cell hold inputs of one ``group`` (n,), those with the same prefix; the first is filled.
    """
    starts = own.cumsum() - own
    shape = (bucket(own) << 32) + bucket(prefix)
    slots = Slots([], [], [], np.zeros(tokens, dtype=np.int64))
    base = 0
    for code in np.unique(shape):
        members = np.flatnonzero(shape == code)
        length, behind = int(code >> 32), int(code & 0xFFFFFFFF)
        place, count = np.arange(len(members)), len(members)
        if behind:
            members = members[np.argsort(group[members], kind="stable")]
            new = np.diff(group[members], prepend=group[members[0]] - 1) != 0
            run = new.cumsum() - 1
            nth = place - np.flatnonzero(new)[run]  # of its run
            cells = -(-np.bincount(run) // CELL)
            place = ((cells.cumsum() - cells)[run] + nth // CELL) * CELL + nth % CELL
            count = int(cells.sum()) * CELL
        filled = np.full(count, -1, dtype=np.int64)
        filled[place] = members
        sizes = own[members]
        offsets = _offsets(sizes)
        slots.inverse[starts[members].repeat(sizes) + offsets] = (base + place * length).repeat(sizes) + offsets
        base += count * length
        slots.members.append(filled)
        slots.own.append(length)
        slots.prefix.append(behind)
    return slots


class _Work:
    """A pack with its inputs: ids end to end, what is shared, where soft prompts go.

    ``low``: the layer below which all prompts are the same, and at which passes begin; 0 where they go through all.
    """

    def __init__(self, pack: Pack, part: EncodedPart, soft: SoftVectors | None, low: int, pad_id: int) -> None:
        self.pad_id = pad_id
        self.pack, self.part, self.soft, self.low = pack, part, soft, low
        self.inputs = Inputs.of(part, sizes_of(pack.prompts), pack.prompt, pack.example, pack.reuse, pack.front)
        self.left = self.inputs.tokens.cumsum() - self.inputs.tokens

    @cached_property
    def ids(self) -> IntArray:
        """(N,) the tokens of all inputs, dummies in front of them where a soft prompt stands there."""
        pack, front, tail = self.pack, self.pack.front, self.part.labels.tokens
        ids = self.part.reserving(front).splice(pack.prompts, pack.prompt, pack.example)[0]
        if not front and not len(tail):
            return ids
        tokens = self.inputs.tokens
        result = np.full(int(tokens.sum()), self.pad_id, dtype=np.int64)
        at = _offsets(tokens)
        behind = tokens.repeat(tokens) - at <= len(tail)
        result[(at >= front) & ~behind] = ids
        result[behind] = np.tile(tail, len(tokens))
        return result

    def name(self, pair: int) -> tuple[Any, ...]:
        """What tells a pair's prefix from all others, and from the same one out of a pass of another shape."""
        pack = self.pack
        if pack.reuse == "text":
            return pack.part, pack.tokens, int(self.inputs.group[pair])
        row = int(pack.prompt[pair])
        soft = None if self.soft is None or pack.soft is None else (self.soft.block.key, int(pack.soft[row]))
        return pack.part, pack.tokens, pack.prompts[row], pack.front, soft, self.low

    def states_name(self, layer: int, example: int) -> tuple[Any, ...]:
        """What tells the hidden states that enter a layer; ``example`` -1 is what stands before all of them."""
        assert self.soft is not None
        return self.pack.part, self.pack.tokens, self.soft.block.below(layer), layer, example

    def injection(self, pairs: IntArray, begin: IntArray, own: IntArray, device: torch.device) -> Injection | None:
        """What is put in where, for a pass over ``own`` tokens of each pair from ``begin`` on."""
        import torch

        if self.soft is None:
            return None
        length = self.soft.block.subspace.length
        at = self.inputs.start[pairs] - begin
        inside = np.flatnonzero((at >= 0) & (at < own))
        if not len(inside):
            return None
        places = (own.cumsum() - own + at)[inside][:, None] + np.arange(length)
        vectors = self.soft.of(torch.from_numpy(self.pack.prompt[pairs[inside]].astype(np.int64)).to(device))
        row = torch.zeros((1, 1), dtype=torch.int64, device=device)
        return Injection(vectors, row, torch.from_numpy(places).to(device), replace=self.pack.front > 0)


class PackedForward:
    """The LM's forward pass over packed inputs.

    Args:
        forward: the LM.
        causal: it reads from left to right.
        cache_bytes: of keys and values that are kept for later calls.
    """

    def __init__(self, forward: LabelForward, causal: bool, cache_bytes: int) -> None:
        self.forward = forward
        self.causal = causal
        self.cache: Bounded[torch.Tensor] = Bounded(cache_bytes, lambda t: t.numel() * t.element_size())
        self.states: Bounded[States] = Bounded(STATE_BYTES, lambda s: sum(t.numel() * t.element_size() for t in s))

    def score(
        self, pack: Pack, part: EncodedPart, soft: SoftVectors | None = None
    ) -> tuple[torch.Tensor, IntArray, int]:
        """(n, L) logits of the label words, (n,) tokens of each input, and breaks: see ``LMScorer.score``."""

        layers = self.forward.layers
        low = 0 if soft is None or layers is None or not layers.jumps else soft.block.shared
        try:
            return self._score(_Work(pack, part, soft, low, self.forward.pad_id))
        except NoRoom:
            if not low:
                raise
        forget(self.forward.device)
        return self._score(
            _Work(pack, part, soft, 0, self.forward.pad_id)
        )  # all layers for each: its passes can be cut in two

    def _score(self, work: _Work) -> tuple[torch.Tensor, IntArray, int]:
        import torch

        pack, begun = work.pack, dict[int, "torch.Tensor"]()
        if not work.low:
            prefixes = self._prefixes(work)
        elif pack.reuse == "prompt" and work.inputs.prefix.any():
            hidden, prefixes = self._shared_prefix(work)
            begun = self._begun(work, prefixes)
            prefixes = self._prefixes(work, hidden)
        else:
            prefixes = self._prefixes(work)
            begun = self._begun(work, prefixes)
        passes = [
            self._pass(work, np.arange(start, end), pack.tokens, prefixes, begun)
            for start, end in zip((0, *pack.ends[:-1]), pack.ends, strict=True)
        ]
        return torch.cat([logits for logits, _ in passes]), work.inputs.tokens, sum(breaks for _, breaks in passes)

    def _prefixes(self, work: _Work, hidden: torch.Tensor | None = None) -> Prefixes:
        """Keys and values of every prefix that the inputs stand behind; ``hidden``: what enters layer ``low`` of each.

        Only texts, which no prompt changes, have those of all layers where a pass begins above the first one.
        """
        inputs = work.inputs
        behind = np.flatnonzero(inputs.prefix)
        _, first = np.unique(inputs.group[behind], return_index=True)
        names = {int(pair): work.name(int(pair)) for pair in behind[first]}
        entries = {pair: self.cache.find(name) for pair, name in names.items()}
        missing = np.array([pair for pair, entry in entries.items() if entry is None], dtype=np.int64)
        for pairs in _fitting(inputs.prefix[missing], missing, work.pack.tokens):
            course = None if hidden is None else partial(Course, work.low, hidden.repeat(len(pairs), 1))
            for pair, entry in zip(pairs.tolist(), self._compute(work, pairs, course)[0], strict=True):
                entries[pair] = entry
                if work.pack.keep:
                    self.cache.put(names[pair], entry)
        found = {int(inputs.group[pair]): entry for pair, entry in entries.items() if entry is not None}
        return Prefixes(found, 0 if hidden is None else work.low)

    def _shared_prefix(self, work: _Work) -> tuple[torch.Tensor, Prefixes]:
        """Where a prompt stands before all texts: what of it enters layer ``low``, and its keys and values below."""
        name = work.states_name(work.low, -1)
        found = self.states.find(name)
        if found is None:
            pair = np.flatnonzero(work.inputs.prefix)[:1]
            entries, hidden = self._compute(work, pair, partial(Course, stop=work.low))
            assert hidden is not None
            found = (hidden, entries[0])
            self.states.put(name, found)
        return found[0], Prefixes(dict.fromkeys(work.inputs.group.tolist(), found[1]))

    def _begun(self, work: _Work, prefixes: Prefixes) -> dict[int, torch.Tensor]:
        """By example: the hidden states (own, width) of its own tokens that enter layer ``low``."""
        import torch

        assert work.soft is not None
        inputs, block = work.inputs, work.soft.block
        examples, first = np.unique(work.pack.example, return_index=True)
        pair_of = dict(zip(examples.tolist(), first.tolist(), strict=True))
        found: dict[int, torch.Tensor] = {}
        missing: dict[int, list[int]] = {}  # by the layer from which they are computed
        below = [layer for layer in reversed(block.subspace.layers) if 0 < layer < work.low]
        known: dict[int, torch.Tensor] = {}
        for example in pair_of:
            kept = self.states.find(work.states_name(work.low, example))
            if kept is not None:
                found[example] = kept[0]
                continue
            start = 0
            for layer in below:
                lower = self.states.find(work.states_name(layer, example))
                if lower is not None:
                    start, known[example] = layer, lower[0]
                    break
            missing.setdefault(start, []).append(example)
        most = most_inputs(work.pack.tokens, work.pack.reuse, len(work.part.labels.nodes))
        for start, some in missing.items():
            pairs = np.array([pair_of[example] for example in some], dtype=np.int64)
            for i, j in fill(inputs.own[pairs], work.pack.tokens, most):
                begin = torch.cat([known[example] for example in some[i:j]]) if start else None
                hidden = self._with_room(
                    partial(self._states, work, pairs[i:j], prefixes, start, begin), int(inputs.own[pairs[i:j]].max())
                )
                sizes = inputs.own[pairs[i:j]].tolist()
                for example, states in zip(some[i:j], torch.split(hidden[: sum(sizes)], sizes), strict=True):
                    found[example] = states.clone()
                    self.states.put(work.states_name(work.low, example), (found[example],))
        return found

    def _states(
        self, work: _Work, pairs: IntArray, prefixes: Prefixes, start: int, lower: torch.Tensor | None
    ) -> torch.Tensor:
        """(T, width) what enters layer ``low`` of the own tokens of some pairs, in one pass from layer ``start`` on."""
        inputs, tokens = work.inputs, work.pack.tokens
        own = inputs.own[pairs]
        slots = lay_out(own, inputs.prefix[pairs], inputs.group[pairs], tokens)
        read = np.zeros((1 + len(work.part.labels.nodes), 1), dtype=np.int64)
        course = Course(start, None if lower is None else _padded(lower, tokens), work.low)
        try:
            self._run(work, pairs, inputs.split[pairs], own, slots, prefixes, read=read, course=course)
        except Captured as captured:
            return captured.states[0]
        raise ScoringError("the LM never came to the layer that is tuned")

    def _compute(
        self, work: _Work, pairs: IntArray, course: Callable[[], Course] | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Keys and values (layers, 2, heads, p, width) of the prefixes of some pairs, in one pass.

        Where its course stops on the way: of the layers below, and (tokens, width) what would enter the next one.
        """
        return self._with_room(partial(self._captured, work, pairs, course), int(work.inputs.prefix[pairs].max()))

    def _with_room(self, compute: Callable[[], T], tokens: int) -> T:
        """What ``compute`` gives; where it finds no memory, once more without what is kept for later."""
        try:
            return compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        self.cache.clear()  # what is kept for later can be had again
        self.states.clear()
        forget(self.forward.device)
        try:
            return compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        raise NoRoom(f"out of memory on {self.forward.device}: no room for what inputs share, of {tokens} tokens")

    def _captured(
        self, work: _Work, pairs: IntArray, course_of: Callable[[], Course] | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        import torch

        lengths = work.inputs.prefix[pairs]
        tokens = int(_prefix_tokens(lengths[:1], work.pack.tokens)[0])
        slots = lay_out(lengths, np.zeros_like(lengths), lengths, tokens)
        captured: list[list[torch.Tensor]] = [[] for _ in slots.members]
        read = np.zeros((1 + len(work.part.labels.nodes), 1), dtype=np.int64)
        course = None if course_of is None else course_of()
        if course is not None and course.states is not None:
            course.states = _padded(course.states, tokens)
        zeros, hidden = np.zeros_like(lengths), None
        try:
            self._run(
                work, pairs, zeros, lengths, slots, Prefixes({}), read=read, captured=captured, course=course
            )  # fmt: skip
        except Captured as stopped:
            hidden = stopped.states[0, : int(lengths.sum())].clone()
        result: list[Any] = [None] * len(pairs)
        for members, layers in zip(slots.members, captured, strict=True):
            for slot, i in enumerate(members.tolist()):
                result[i] = torch.stack([layer[:, slot] for layer in layers])
        return result, hidden

    def _pass(
        self, work: _Work, pairs: IntArray, tokens: int, prefixes: Prefixes, begun: Mapping[int, torch.Tensor]
    ) -> tuple[torch.Tensor, int]:
        """(n, L) logits of some pairs, and breaks: a pass that finds no memory is cut into passes of half the size.

        ``begun``: the states that it begins with where it begins above the first layer, by example.
        """
        import torch

        inputs, reuse = work.inputs, work.pack.reuse
        split, own = inputs.split[pairs], inputs.own[pairs]
        nodes = len(work.part.labels.nodes)
        read = np.zeros((1 + nodes, max(len(pairs), most_inputs(tokens, reuse, nodes))), dtype=np.int64)
        read[0, : len(pairs)] = own.cumsum() - own + inputs.read[pairs] - split
        read[1:, : len(pairs)] = own.cumsum() - nodes + np.arange(nodes)[:, None]
        slots = lay_out(own, inputs.prefix[pairs], inputs.group[pairs], tokens)
        course = None
        if begun:
            states = torch.cat([begun[example] for example in work.pack.example[pairs].tolist()])
            course = Course(work.low, _padded(states, tokens))
        try:
            return self._run(work, pairs, split, own, slots, prefixes, read=read, course=course)[: len(pairs)], 0
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: there the error's traceback would hold on to what the pass has allocated.
        self.states.clear()
        forget(self.forward.device)
        half = tokens // 2
        if own.max() > half:
            raise ScoringError(
                f"out of memory on {self.forward.device}: not even one input of {int(own.max())} tokens fits"
            )
        cuts = fill(own, half, most_inputs(half, reuse, nodes))
        parts = [self._pass(work, pairs[start:end], half, prefixes, begun) for start, end in cuts]
        return torch.cat([logits for logits, _ in parts]), 1 + sum(breaks for _, breaks in parts)

    def _run(
        self,
        work: _Work,
        pairs: IntArray,
        begin: IntArray,
        own: IntArray,
        slots: Slots,
        prefixes: Prefixes,
        *,
        read: IntArray,
        captured: list[list[torch.Tensor]] | None = None,
        course: Course | None = None,
    ) -> torch.Tensor:
        """One pass over ``own[i]`` tokens of each pair's input from ``begin[i]`` on; scores (R, L), see ``packed``."""
        import torch

        device = self.forward.device
        positions = np.zeros(len(slots.inverse), dtype=np.int64)
        ids = np.full(len(slots.inverse), self.forward.pad_id, dtype=np.int64)
        at = begin.repeat(own) + _offsets(own)
        ids[: len(at)] = work.ids[work.left[pairs].repeat(own) + at]
        positions[: len(at)] = self._positions(work, pairs, at, own)
        groups = [
            self._group(work, pairs, begin, own, *group, prefixes)
            for group in zip(slots.members, slots.own, slots.prefix, strict=True)
        ]
        packing = Packing(
            groups,
            torch.from_numpy(positions).to(device),
            torch.from_numpy(slots.inverse).to(device),
            captured,
            0 if course is None else course.first,
        )
        return self.forward.packed(
            torch.from_numpy(ids).to(device),
            packing,
            torch.from_numpy(read).to(device),
            work.part.labels,
            work.injection(pairs, begin, own, device),
            work.pack.front,
            course,
        )

    def _group(
        self,
        work: _Work,
        pairs: IntArray,
        begin: IntArray,
        own: IntArray,
        members: IntArray,
        length: int,
        behind: int,
        prefixes: Prefixes,
    ) -> Group:
        """Some inputs of a pass as attention takes them; empty slots repeat the first input."""
        import torch

        device = self.forward.device
        some = np.maximum(members, 0)
        places = np.arange(length)
        starts = (own.cumsum() - own)[some][:, None]
        index = torch.from_numpy(starts + np.minimum(places, own[some][:, None] - 1)).to(device)
        mask = self._mask(work, begin[some] + own[some] == work.inputs.tokens[pairs[some]], own[some], length)
        if not behind:
            return Group(index, mask)
        first = members[::CELL]
        entries = [prefixes.entries[int(group)] for group in work.inputs.group[pairs[first]]]
        before = torch.from_numpy(begin[some]).to(device)
        return Group(index, mask, torch.stack(entries, dim=2), before, prefixes.first)

    @staticmethod
    def _positions(work: _Work, pairs: IntArray, at: IntArray, own: IntArray) -> IntArray:
        """Of the tokens ``at``: their places, but those of the label words' nodes stand where their depth says."""
        labels = work.part.labels
        if labels.single:
            return at
        base = work.inputs.tokens[pairs].repeat(own) - len(labels.nodes)
        node = at - base
        return np.where(node >= 0, base - 1 + np.append(labels.depths, 0)[np.maximum(node, -1)], at)

    def _mask(self, work: _Work, whole: BoolArray, own: IntArray, length: int) -> torch.Tensor | None:
        """Which of ``own`` (n,) tokens, padded to ``length``, each sees: as :class:`Group` has it.

        ``whole`` (n,): an input's own tokens go to its end, where the nodes of the label words stand.
        """
        import torch

        labels, device = work.part.labels, self.forward.device
        places = np.arange(length)
        if not self.causal:
            return torch.from_numpy(places < own[:, None])[:, None, None].to(device)
        if labels.single or not whole.all():
            return None
        base = (own - len(labels.nodes))[:, None]
        node = places - base  # (n, length)
        inside = (node >= 0) & (node < len(labels.nodes))
        seen = (places <= places[:, None]) & (places < base[:, :, None])
        of, to = np.where(inside, node, 0)[:, :, None], np.where(inside, node, 0)[:, None]
        seen |= labels.behind[of, to] & inside[:, :, None] & inside[:, None]
        return torch.from_numpy(seen)[:, None].to(device)


def _offsets(sizes: IntArray) -> IntArray:
    """0, ..., size - 1 for each of ``sizes`` (n,), end to end."""
    result: IntArray = np.arange(int(sizes.sum())) - (sizes.cumsum() - sizes).repeat(sizes)
    return result


def _padded(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """(1, tokens, width) states (n, width) as they enter a pass; dummies are zeros."""
    padded = states.new_zeros((1, tokens, states.shape[1]))
    padded[0, : len(states)] = states
    return padded


def _prefix_tokens(lengths: IntArray, tokens: int) -> IntArray:
    """(n,) the tokens of the pass that computes a prefix of so many."""
    least = max(1, tokens // PREFIX_SHARE)
    return np.asarray(least << np.maximum(0, np.ceil(np.log2(np.maximum(lengths, 1) / least))).astype(np.int64))


def _fitting(lengths: IntArray, pairs: IntArray, tokens: int) -> Iterator[IntArray]:
    """Cut pairs, whose prefixes have ``lengths`` (n,), into passes that compute prefixes alone."""
    size = _prefix_tokens(lengths, tokens)
    order = np.argsort(bucket(lengths), kind="stable")
    for room in np.unique(size):
        same = order[size[order] == room]
        for start, end in fill(lengths[same], int(room), len(same)):
            yield pairs[same[start:end]]
