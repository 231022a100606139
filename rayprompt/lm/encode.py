"""From text to token ids: the examples of a task are tokenized once; prompts are spliced in by their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.candidate import digest
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError
from rayprompt.lm.characters import CharacterTokenizer
from rayprompt.lm.cuts import Cuts, plain
from rayprompt.lm.family import Family
from rayprompt.lm.labels import Labels, Word
from rayprompt.lm.whole import Part, WholeTexts
from rayprompt.scores import BoolArray, IntArray
from rayprompt.template import Template

if TYPE_CHECKING:
    from rayprompt.lm.joined import Joiner

ANCHOR = "a"
DERIVED = ("flat", "starts", "text_first", "field_lengths", "_reserving", "joiner", "joined")  # not pickled


@dataclass(frozen=True)
class Segment:
    """Token ids of a piece of one example; only ``field`` segments may be cut."""

    ids: IntArray
    field: bool


@dataclass(frozen=True)
class FlatPart:
    """Examples end to end in one array. A form is an example's tokens before the prompt and one of its texts behind it.

    Attributes:
        ids: (T,) the tokens of all forms.
        forms: (4, F) where each form starts in ``ids``, its tokens before the prompt, its tokens behind it, and where
            the answer is read if the prompt has no tokens. Form e is of example e; where the empty prompt makes a
            difference, form E + e is example e with it.
    """

    ids: IntArray
    forms: IntArray

    @classmethod
    def of(
        cls, forms: Sequence[tuple[tuple[Segment, ...], tuple[Segment, ...]]], read: tuple[str, int] | None
    ) -> FlatPart:
        """Lay forms, the segments before and behind the prompt, end to end; ``read`` as in :class:`EncodedPart`."""
        columns = []
        start = 0
        for before, after in forms:
            sizes = [len(s.ids) for s in (*before, *after)]
            at = sum(sizes) - 1
            if read is not None:
                at = sum(sizes[: read[1] + (len(before) if read[0] == "after" else 0)])
            columns.append((start, sum(sizes[: len(before)]), sum(sizes[len(before) :]), at))
            start += sum(sizes)
        ids = [s.ids for form in forms for side in form for s in side]
        return cls(np.concatenate(ids).astype(np.int64), np.array(columns, dtype=np.int64).T.copy())


@dataclass(frozen=True)
class EncodedPart:
    """The examples of one part of a task, tokenised for one LM. What scoring actors hold; nothing here is text.

    Attributes:
        key: digest of everything below.
        before, after: per example, the segments in front of the prompt and behind it.
        after_empty: the segments behind an empty prompt, where they differ from ``after``: without a prompt, the
            first piece of a template has no space before it either. None where it makes no difference.
        read: where the answer is read: ``("before" | "after", segment index)`` of the mask, or None = the last token.
        labels: the label words; none where the LM writes.
        pad_id: the id of padding.
        max_length: the longest input, in tokens, without what is written behind it.
        decoding: how the LM writes; None where it is only read.
        joiner: tokenizes whole strings, where a prompt's text and its neighbors may share a token. Not pickled:
            scoring actors get what it finds, see :mod:`rayprompt.lm.joined`.
    """

    key: str
    before: tuple[tuple[Segment, ...], ...]
    after: tuple[tuple[Segment, ...], ...]
    after_empty: tuple[tuple[Segment, ...], ...] | None
    read: tuple[str, int] | None
    labels: Labels
    pad_id: int
    max_length: int
    decoding: Decoding | None = None
    joiner: Joiner | None = field(default=None, compare=False, repr=False)

    @property
    def samples(self) -> int:
        """Answers of each pair."""
        return 1 if self.decoding is None else self.decoding.samples

    def __len__(self) -> int:
        return len(self.before)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in DERIVED}

    def reserving(self, tokens: int) -> EncodedPart:
        """The same examples with ``tokens`` fewer for text: a soft prompt takes their place."""
        if tokens == 0:
            return self
        if tokens not in self._reserving:
            self._reserving[tokens] = replace(self, max_length=self.max_length - tokens)
        return self._reserving[tokens]

    @cached_property
    def _reserving(self) -> dict[int, EncodedPart]:
        return {}

    @cached_property
    def base_lengths(self) -> IntArray:
        """(2, E) tokens of each example without the prompt's, before any cut: behind some prompt, and the empty one."""
        return np.stack([self._sizes(self.after), self._sizes(self.after_empty or self.after)])

    def _sizes(self, after: tuple[tuple[Segment, ...], ...]) -> IntArray:
        sizes = [sum(len(s.ids) for s in (*b, *a)) for b, a in zip(self.before, after, strict=True)]
        return np.array(sizes, dtype=np.int64)

    @cached_property
    def fixed_lengths(self) -> IntArray:
        """(E,) tokens of each example that may never be cut: everything but its fields."""
        rows = zip(self.before, self.after, strict=True)
        return np.array([sum(len(s.ids) for s in (*b, *a) if not s.field) for b, a in rows], dtype=np.int64)

    @cached_property
    def field_lengths(self) -> IntArray:
        """(E,) tokens of the fields of each example, before any cut."""
        rows = zip(self.before, self.after, strict=True)
        return np.array([sum(len(s.ids) for s in (*b, *a) if s.field) for b, a in rows], dtype=np.int64)

    def lengths(self, prompt_lengths: IntArray, examples: IntArray) -> IntArray:
        """(P,) tokens of each input: example ``examples[i]`` with a prompt of ``prompt_lengths[i]`` tokens.

        Raises:
            InputError: a prompt leaves no room even for an empty text.
        """
        least = self.fixed_lengths[examples] + prompt_lengths
        if len(least) and least.max() > self.max_length:
            longest = int(prompt_lengths[least.argmax()])
            raise InputError(f"a prompt of {longest} tokens does not fit: the LM takes {self.max_length} tokens in all")
        return np.asarray(
            np.minimum(
                self.base_lengths[(prompt_lengths == 0).astype(int), examples] + prompt_lengths, self.max_length
            ),
            dtype=np.int64,
        )

    def truncated(self, prompt_length: int) -> int:
        """How many examples lose text to make room for a prompt of this many tokens."""
        return int((self.base_lengths[int(prompt_length == 0)] + prompt_length > self.max_length).sum())

    def row(self, example: int, prompt: Sequence[int]) -> tuple[IntArray, int, int]:
        """The input's token ids, the position at which the answer is read, and that at which the prompt begins.

        ``prompt`` with the type :class:`TextIds`, or an empty one, is a text: the ids are those of the whole string.
        """
        whole = self.joiner.whole(self, example, prompt) if self.joiner is not None else None
        return self.spliced(example, prompt) if whole is None else whole

    def spliced(self, example: int, prompt: Sequence[int]) -> tuple[IntArray, int, int]:
        """As :meth:`row`, with exactly the ids of ``prompt`` between those of its neighbors."""
        empty = len(prompt) == 0
        after_all = self.after_empty if empty and self.after_empty is not None else self.after
        before, after = self.before[example], after_all[example]
        excess = int(self.base_lengths[int(empty), example]) + len(prompt) - self.max_length
        if excess > 0:
            before, after = cut(before, after, excess)
        left = [s.ids for s in before]
        right = [s.ids for s in after]
        ids = np.concatenate([*left, np.asarray(prompt, dtype=np.int64), *right])
        start = sum(len(x) for x in left)
        if self.read is None:
            return ids, len(ids) - 1, start
        side, index = self.read
        if side == "before":
            return ids, sum(len(x) for x in left[:index]), start
        return ids, start + len(prompt) + sum(len(x) for x in right[:index]), start

    @cached_property
    def flat(self) -> FlatPart:
        """The examples as :meth:`render` reads them; not pickled."""
        behind = self.after if self.after_empty is None else self.after + self.after_empty
        return FlatPart.of([(self.before[i % len(self)], after) for i, after in enumerate(behind)], self.read)

    def render(
        self, prompts: Sequence[tuple[int, ...]], prompt: IntArray, example: IntArray, length: int, count: int
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """What :meth:`row` gives for n pairs, of ``prompts[prompt[i]]`` and ``example[i]`` each, as one batch.

        Rows beyond the pairs repeat the last one.

        Returns:
            (count, length) ids, padded at the end; (count,) tokens without the padding; (count,) where to read;
            (count,) where the prompt begins.
        """
        n = len(prompt)
        flat, tokens, read, start = self.splice(prompts, prompt, example)
        longest = int(tokens.max())
        if longest > length:
            raise ValueError(f"an input of {longest} tokens in a batch of length {length}")
        ids = np.full((n, length), self.pad_id, dtype=np.int64)
        ids[np.arange(length) < tokens[:, None]] = flat
        if n == count:
            return ids, tokens, read, start
        rows = np.minimum(np.arange(count), n - 1)
        return ids[rows], tokens[rows], read[rows], start[rows]

    def splice(
        self, prompts: Sequence[tuple[int, ...]], prompt: IntArray, example: IntArray
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """What :meth:`row` gives for n pairs, of ``prompts[prompt[i]]`` and ``example[i]`` each, end to end.

        Returns:
            (N,) ids of all inputs; (n,) tokens of each; (n,) where it is read; (n,) where its prompt begins.
        """
        sizes = sizes_of(prompts)
        own = sizes[prompt]
        tokens, read, start = self.places(own, example)
        ends = tokens.cumsum()
        left = ends - tokens
        first, before, after, _ = self._forms(own, example)
        cut = np.flatnonzero(before + own + after != tokens)  # left to spliced(), which has the rule
        before[cut] = own[cut] = after[cut] = 0
        middle = left + before
        sources = np.concatenate(((sizes.cumsum() - sizes)[prompt], first, first + before))
        targets = np.concatenate((middle, left, middle + own))
        source, target = _runs(np.concatenate((own, before, after)), sources, targets)
        spliced = int(own.sum())
        prompt_ids = np.fromiter(chain.from_iterable(prompts), np.int64)
        ids = np.empty(int(ends[-1]), dtype=np.int64)
        ids[target] = np.concatenate((prompt_ids.take(source[:spliced]), self.flat.ids.take(source[spliced:])))
        for i in cut:
            ids[left[i] : ends[i]] = self.spliced(int(example[i]), prompts[prompt[i]])[0]
        return ids, tokens, read, start

    def places(self, sizes: IntArray, example: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """For n pairs of an example and a prompt of ``sizes[i]`` tokens: (n,) tokens, where to read, prompt's start."""
        _, before, after, read = self._forms(sizes, example)
        tokens = before + sizes + after
        if self.read is None or self.read[0] == "after":
            read = read + sizes
        for i in np.flatnonzero(tokens > self.max_length):
            _, read[i], before[i] = self.spliced(int(example[i]), (self.pad_id,) * int(sizes[i]))
            tokens[i] = self.max_length
        return tokens, read, before

    def _forms(self, sizes: IntArray, example: IntArray) -> IntArray:
        """(4, n) of ``FlatPart.forms``: those of the examples, with prompts of ``sizes`` tokens."""
        form = example if self.after_empty is None else example + len(self) * (sizes == 0)
        return self.flat.forms.take(form, axis=1)

    @cached_property
    def starts(self) -> IntArray:
        """(E,) tokens before the prompt, before any cut."""
        return self.flat.forms[1, : len(self)]

    @cached_property
    def text_first(self) -> bool:
        """Whether a field comes before the prompt."""
        return any(segment.field for segment in self.before[0]) if len(self) else False


def usual(prompt: str, special: re.Pattern[str] | None) -> bool:
    """Whether a prompt's text begins and ends like a word, and names no ``special`` token: see ``Encoder.edges``."""
    return not prompt or (plain(prompt[0]) and plain(prompt[-1]) and not (special and special.search(prompt)))


def _runs(widths: IntArray, *starts: IntArray) -> list[IntArray]:
    """For each of ``starts`` (R,) the indices ``start[i], ..., start[i] + widths[i] - 1`` of all runs i end to end."""
    ends = widths.cumsum()
    begins = ends - widths
    steps = np.arange(ends[-1])
    return [steps + (start - begins).repeat(widths) for start in starts]


def sizes_of(prompts: Sequence[tuple[int, ...]]) -> IntArray:
    """(n,) the tokens of each prompt."""
    return np.fromiter(map(len, prompts), np.int64, len(prompts))


def cut(
    before: tuple[Segment, ...], after: tuple[Segment, ...], excess: int
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Drop ``excess`` tokens from the ends of the fields, always from the one that is longest at the moment."""
    segments = [*before, *after]
    keep = [len(s.ids) for s in segments]
    fields = [i for i, s in enumerate(segments) if s.field]
    if len(fields) == 1:
        keep[fields[0]] -= excess
        excess = 0
    for _ in range(excess):
        longest = max(fields, key=lambda i: keep[i])
        keep[longest] -= 1
    short = [Segment(s.ids[:n], s.field) for s, n in zip(segments, keep, strict=True)]
    return tuple(short[: len(before)]), tuple(short[len(before) :])


class Encoder:
    """Tokenizes a task's examples for one LM, so that prompts can be spliced in by their ids.

    An input is three strings: the text before the prompt, the prompt, and the text after it. Their ids, concatenated,
    are those of the whole string where the tokenizer always cuts around the prompt (:mod:`rayprompt.lm.cuts`).
    Elsewhere the whole string is tokenized for each pair (:mod:`rayprompt.lm.joined`).
    """

    def __init__(
        self, tokenizer: Any, model: str, max_length: int, family: Family | None = None, vocab_size: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.model = model
        self.max_length = max_length
        self.mask_id = tokenizer.mask_token_id if family is None else family.mask_id(tokenizer)
        self.answers_next = family is not None and family.answers_next
        self.several_tokens = family is not None and family.several_tokens
        self.texts = WholeTexts(tokenizer)
        self.cuts = Cuts(tokenizer)
        self._anchor = len(self._plain([ANCHOR])[0])
        whole = tokenizer(ANCHOR)["input_ids"]
        inner = self._plain([ANCHOR])[0]
        starts = [i for i in range(len(whole)) if inner and whole[i : i + len(inner)] == inner]
        if not starts:
            raise InputError(f"model {model}: its tokenizer cannot be used (it gives no tokens for {ANCHOR!r})")
        start = starts[0]
        self.prefix: list[int] = whole[:start]
        self.suffix: list[int] = whole[start + len(inner) :]

    @cached_property
    def mask(self) -> str:
        """The text of the mask token; empty where there is none."""
        return "" if self.mask_id is None else str(self.tokenizer.convert_ids_to_tokens([self.mask_id])[0])

    def ids(self, texts: Sequence[str], space: str) -> list[IntArray]:
        """Token ids of each text behind ``space`` (no special tokens)."""
        if not space:
            return [np.array(ids, dtype=np.int64) for ids in self._plain(texts)]
        rows = self._plain([ANCHOR + space + text if text else ANCHOR for text in texts])
        return [np.array(row[self._anchor :], dtype=np.int64) for row in rows]

    def plain_ids(self, vocab_size: int) -> list[int]:
        """The token ids that may stand in a text: neither special nor reserved ones."""
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        names = self.tokenizer.convert_ids_to_tokens(list(range(min(len(self.tokenizer), vocab_size))))
        return [i for i, name in enumerate(names) if i not in special and not name.startswith("[unused")]

    def whole_words(self, vocab_size: int, letters: Set[str]) -> list[tuple[int, str]]:
        """The vocabulary's whole words, as (id, text) in the order of their ids.

        A word is a token of two letters or more, all of them among ``letters`` (as lower case), that its own text,
        behind a space, gives back.
        """
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in range(min(len(self.tokenizer), vocab_size)) if i not in special]
        texts = [text.strip() for text in self.tokenizer.batch_decode([[i] for i in ids])]
        chosen = [
            (i, t) for i, t in zip(ids, texts, strict=True) if len(t) > 1 and t.isalpha() and letters >= set(t.lower())
        ]
        again = self.ids([t for _, t in chosen], " ")
        return [(i, t) for (i, t), row in zip(chosen, again, strict=True) if row.tolist() == [i]]

    def label_word(self, word: str, space: str, where: str) -> Word:
        """The tokens that ``word`` is, behind ``space``; one only in an LM that reads a mask.

        A space is the word's own; the line break at the end of a template is not.

        Raises:
            InputError: it is several tokens there, or not in the vocabulary.
        """
        ids = (self._behind(ANCHOR + space, [word]) if "\n" in space else self.ids([word], space))[0].tolist()
        shown = space + word
        if len(ids) != 1 and not self.several_tokens:
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            raise InputError(
                f"{where}: label word {shown!r} is {len(ids)} tokens in {self.model} ({tokens}); it must be one token"
            )
        if not ids or self.tokenizer.unk_token_id in ids:
            raise InputError(f"{where}: label word {shown!r} is not in the vocabulary of {self.model}")
        return tuple(int(i) for i in ids)

    def part(
        self,
        template: Template,
        examples: Sequence[Any],
        label_words: Sequence[str],
        *,
        reads_mask: bool,
        where: str,
        decoding: Decoding | None = None,
    ) -> EncodedPart:
        """Tokenise the examples of a part (objects with ``fields``) for ``template``. ``decoding``: the LM writes.

        Raises:
            InputError: a label word is not one token, the LM lacks a mask token, or it has no room to write.
        """
        if self.mask_id is None and template.has_mask:
            raise InputError(f"model {self.model} has no mask token")
        at = [p.kind for p in template.pieces].index("prompt")
        head, tail = (np.array(ids, dtype=np.int64) for ids in self.around(template, reads_mask=reads_mask))
        rows = [template.parts(example.fields, ANCHOR, self.mask) for example in examples]
        apart = not template.is_chat and self.like_pieces(template, examples)  # the marks of a chat are special
        left = self._segments([self._side(template, row, 0, at) for row in rows], [], apart)
        anchor = [(ANCHOR, True)]
        right = self._segments([self._side(template, row, at + 1) for row in rows], anchor, apart)
        before = tuple((Segment(head, field=False), *row) for row in left)
        after = tuple((*row, Segment(tail, field=False)) for row in right)
        after_empty = None
        if template.begins(at) and len(template.pieces) > at + 1:
            rows = [template.parts(example.fields, "", self.mask) for example in examples]
            lead = [(template.pieces[at - 1].text, True)] if at else []
            first = self._segments([self._side(template, row, at + 1) for row in rows], lead, apart)
            after_empty = tuple((*row, Segment(tail, field=False)) for row in first)
        self._check_vocabulary([*before, *after, *(after_empty or ())])
        labels = self.labels(template, label_words, reads_mask=reads_mask, where=where)
        read = self._read(template, at) if reads_mask else None
        side, index = read or ("none", 0)
        for row in {"before": before, "after": after}.get(side, ()):
            found = np.concatenate([segment.ids for segment in row[index:]])
            if not len(found) or found[0] != self.mask_id:
                tokens = self.tokenizer.convert_ids_to_tokens(found[:6].tolist())
                raise InputError(
                    f"{where}: the tokenizer of {self.model} does not read {self.mask} there as the mask "
                    f"({tokens}): put spaces around {{mask}} in the template"
                )
        pad = self.tokenizer.pad_token_id
        if pad is not None and self.vocab_size is not None and not 0 <= pad < self.vocab_size:
            pad = None  # it has no embedding; padding is masked, whatever its id
        listed = {id(s): s.ids.tolist() for side in (*before, *after) for s in side}  # many share one
        content = [[listed[id(s)] for s in (*b, *a)] for b, a in zip(before, after, strict=True)]
        written = [] if decoding is None else [decoding.to_json()]
        key = digest([self.model, content, at, read, labels.words, self.max_length, *written])
        room = self.max_length - labels.depth - (0 if decoding is None else decoding.max_tokens)
        if room < 1:
            raise InputError(
                f"{where}: {self.model} takes {self.max_length} tokens in all, and {self.max_length - room} are to be "
                "written: give less with --lm max_tokens=N"
            )
        return EncodedPart(
            key, before, after, after_empty, read, labels, 0 if pad is None else int(pad), room, decoding
        )

    def labels(self, template: Template, words: Sequence[str], *, reads_mask: bool, where: str) -> Labels:
        """The tokens of each label word: with a leading space where the mask has one, and always as next tokens.

        Raises:
            InputError: a label word cannot be scored, or two are the same.
        """
        mask = [p.space for p in template.pieces if p.kind == "mask"]
        space = mask[0] if reads_mask and not self.answers_next else "" if template.is_chat else " "
        space = template.end if template.end and not reads_mask and not template.is_chat else space
        found = tuple(self.label_word(word, space, where) for word in words)
        if len(set(found)) < len(found):
            alike = "token" if all(len(word) == 1 for word in found) else "tokens"
            raise InputError(f"{where}: two label words of {list(words)} are the same {alike} in {self.model}")
        return Labels(found)

    def _check_vocabulary(self, sides: Sequence[tuple[Segment, ...]]) -> None:
        """Raise ``InputError`` where the tokenizer gives ids that the LM has no embedding for."""
        segments = {id(s): s.ids for side in sides for s in side if len(s.ids)}
        most = int(np.concatenate(list(segments.values())).max()) if segments else 0
        if self.vocab_size is not None and most >= self.vocab_size:
            (token,) = self.tokenizer.convert_ids_to_tokens([most])
            raise InputError(
                f"model {self.model}: its tokenizer gives id {most} ({token!r}); the LM has {self.vocab_size} tokens"
            )

    def around(self, template: Template, *, reads_mask: bool) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts around a text: none around a chat, none behind a text to go on.

        A template that itself begins with the token of the beginning does not get a second one.
        """
        prefix = [] if template.is_chat else list(self.prefix)
        first = template.pieces[0]
        begin = getattr(self.tokenizer, "bos_token", None)
        if prefix and begin and first.kind == "literal" and first.text.startswith(str(begin)):
            prefix = [i for i in prefix if i != self.tokenizer.bos_token_id]
        return prefix, list(self.suffix) if reads_mask else []

    def string(self, template: Template, fields: Mapping[str, str], prompt: str) -> list[Part]:
        """The whole input of an example and a prompt's text, in parts; special tokens around it are left out."""
        row = template.parts(fields, prompt, self.mask)
        return [part for part, _ in self._side(template, row, 0, len(row))] + [(template.end, True)]

    def edges(self, template: Template, examples: Sequence[Any]) -> BoolArray:
        """(E,) at which examples ids may be spliced in: the tokenizer is sure to cut around any usual prompt there."""
        at = [p.kind for p in template.pieces].index("prompt")
        found = np.zeros(len(examples), dtype=bool)
        for i, example in enumerate(examples):
            if any(self.texts.has_special(text) for text in example.fields.values()):
                continue
            row = template.parts(example.fields, ANCHOR, self.mask)
            before = "".join(space + text for space, text in row[:at])
            behind = "".join(space + text for space, text in row[at + 1 :]) + template.end
            found[i] = self._cuts_behind(template, at, before, row[at][0]) and self._cuts_before(behind)
        return found

    def like_pieces(self, template: Template, examples: Sequence[Any]) -> bool:
        """Whether every piece, tokenized apart with the space before it, has the ids that it has in the whole string.

        Scores of earlier versions, which did that, then stay what they are.
        """
        pieces = template.pieces
        if isinstance(self.tokenizer, CharacterTokenizer):
            return not template.end
        spaced = all(piece.space == " " for piece in pieces[1:] if piece.kind != "mask")
        literals = [piece.text for piece in pieces if piece.kind == "literal"]
        if template.is_chat or template.end or not spaced or not self.cuts.between("", " "):
            return False
        if template.has_mask and not self.cuts.sections_alike:
            return False
        if any(self.texts.has_special(text) or not plain(text[0]) or not plain(text[-1]) for text in literals):
            return False
        texts = (example.fields[name] for example in examples for name in template.fields)
        return all(text and plain(text[0]) and plain(text[-1]) for text in texts)

    def _cuts_behind(self, template: Template, at: int, before: str, space: str) -> bool:
        if not before:
            return at == 0  # else the first piece that has a text is the prompt, without the space before it
        special = self.texts.special is not None and any(before.endswith(text) for text in self.texts.strips)
        if special and not self.cuts.sections_alike:
            return False
        if template.begins(at):
            text = before.rstrip()
            return plain(text[-1:] or " ") and self.cuts.between(before[len(text) :], "")
        return plain(before[-1]) and self.cuts.between("", space)

    def _cuts_before(self, behind: str) -> bool:
        text = behind.lstrip()
        space = behind[: len(behind) - len(text)]
        if not behind or (not space and any(text.startswith(special) for special in self.texts.strips)):
            return True
        return plain(text[:1] or "a") and self.cuts.between("", space)

    def prompt_ids(self, template: Template, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of prompts at their place, if neighbors that a prompt could share a token with are left out."""
        at = [p.kind for p in template.pieces].index("prompt")
        if not template.begins(at) and template.pieces[at].space:
            return self.ids(texts, template.pieces[at].space)
        if at == 0:
            return self.ids(texts, "")
        return self._behind(template.pieces[at - 1].text if template.begins(at) else ANCHOR, texts)

    def _behind(self, lead: str, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of each text right behind ``lead``; those of the text alone where the two share a token."""
        (known,) = self.texts.ids([[(lead, True)]])
        rows = self.texts.ids([[(lead, True), (text, False)] for text in texts])
        alone = self._plain(texts)
        found = [row[len(known) :] if row[: len(known)] == known else own for row, own in zip(rows, alone, strict=True)]
        return [np.array(ids, dtype=np.int64) for ids in found]

    def _side(
        self, template: Template, row: Sequence[tuple[str, str]], start: int, end: int | None = None
    ) -> list[tuple[Part, bool]]:
        """The texts on one side of the prompt, and whether each is a field. The space before a mask is its own text."""
        found: list[tuple[Part, bool]] = []
        for piece, (space, text) in list(zip(template.pieces, row, strict=True))[start:end]:
            if piece.kind == "mask":
                found += [((space, True), False), ((text, True), False)]
            else:
                own = piece.kind not in ("field", "prompt")
                found.append(((space + text, own), piece.kind == "field"))
        return found if end is not None else [*found, ((template.end, True), False)]

    def _segments(
        self, sides: Sequence[Sequence[tuple[Part, bool]]], lead: list[Part], apart: bool
    ) -> list[tuple[Segment, ...]]:
        """The segments of one side of each example, as they are behind ``lead`` (which is left out).

        ``apart``: whether pieces can be tokenized apart (:meth:`like_pieces`), each text once, which is faster.
        """
        if apart:
            pieces = {piece for side in sides for piece in side}
            by_piece = self._ids_of_pieces({part for part, _ in pieces})
            segments = {(part, is_field): Segment(by_piece[part], is_field) for part, is_field in pieces}
            return [tuple(segments[piece] for piece in side) for side in sides]
        rows = [tuple(lead) + tuple(part for part, _ in side) for side in sides]
        distinct = list(dict.fromkeys(rows))
        known = dict(zip(distinct, self.texts.parts(distinct), strict=True))
        if lead:
            (alone,) = self.texts.ids([lead])
            bare = [row for row in distinct if any(text for text, _ in row[1:]) and known[row][0] != alone]
            for row, ids in zip(bare, self.texts.parts([row[1:] for row in bare]), strict=True):
                known[row] = [[], *ids]  # the two share a token: the ids of the text alone
        found = []
        for row, side in zip(rows, sides, strict=True):
            ids = known[row][len(lead) :]
            found.append(
                tuple(
                    Segment(np.array(x, dtype=np.int64), is_field) for x, (_, is_field) in zip(ids, side, strict=True)
                )
            )
        return found

    def _ids_of_pieces(self, parts: Set[Part]) -> dict[Part, IntArray]:
        """The ids of each piece: behind a word where it begins with a space, else at the start of a text."""
        found: dict[Part, IntArray] = {}
        mask = (self.mask, True)
        if self.mask and mask in parts:
            before = (" ", True)
            lead, *rest = (ANCHOR, True), *({before} & parts), mask
            (ids,) = self.texts.parts([[lead, *rest]])
            found = {part: np.array(x, dtype=np.int64) for part, x in zip(rest, ids[1:], strict=True)}
        texts = [part for part in parts if part not in found]
        for space in ("", " "):
            own = [part for part in texts if part[0].startswith(" ") == bool(space)]
            found |= zip(own, self.ids([text.removeprefix(space) for text, _ in own], space), strict=True)
        return found

    def _read(self, template: Template, prompt_at: int) -> tuple[str, int]:
        """Where the mask's segment is: those of the pieces before it, and the one of the space before it."""
        mask = [p.kind for p in template.pieces].index("mask")
        return ("before", mask + 2) if mask < prompt_at else ("after", mask - prompt_at)

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, truncation=False
        )["input_ids"]
        return rows
