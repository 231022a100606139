"""Problem: a task bound to an LM. What a searcher is built from."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt import defaults
from rayprompt.answers import Judge, choice_of
from rayprompt.candidate import Candidate, ConditionedPrompt, SoftPrompt, Subspace, TextIds, TextPrompt
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError
from rayprompt.lm.chat import in_chat, today_in
from rayprompt.lm.encode import EncodedPart, Encoder, usual
from rayprompt.lm.endpoint import LABEL_TOKENS
from rayprompt.lm.family import load_family
from rayprompt.lm.joined import Joiner
from rayprompt.lm.judges import check_style
from rayprompt.lm.labels import Labels
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.source import describe_model, load_tokenizer, word_vectors
from rayprompt.scores import FloatArray, IntArray
from rayprompt.task import Task, load_task
from rayprompt.template import Template

KNOWN_IDS = 100
ENCODING = 2  # whole strings are tokenized
CHANGED = 3  # and what a chat template drops is dropped
VECTOR_DIMS = 32  # of token vectors
WORD = re.compile(r"[^\W\d_]{2,}")
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


class LabelWarning(UserWarning):
    """Label words that cannot all be answers."""


@dataclass(frozen=True)
class Option:
    """A word or phrase that may stand in a prompt: its token ids as the prompt's first part and as a later one."""

    text: str
    first: tuple[int, ...]
    later: tuple[int, ...]


class Problem:
    """A task (one split) bound to an LM.

    Building one reads the LM's config and tokenizer, not its weights. A pickled problem leaves the tokenizer behind
    and loads it again when it is needed.

    Attributes:
        task, split: the task and the name of its split.
        lm: the LM (:class:`rayprompt.lm.source.LMSource`).
        family: of the LM: masked, causal or encoder-decoder.
        template: the task's template for it.
        labels: tokens of the label words, in the order of ``task.labels``.
        judge, decoding: where the LM writes, what its completions are judged by, and how it writes; else None.
        lm.settings: how the LM is run (the argument ``lm``, e.g. ``{"dtype": "bf16"}``; see :class:`LMSettings`).
        vectors: initial vectors (length, width) of soft prompts, by digest.

    Raises:
        InputError: the task, split or model is not known, does not fit the other, or the task leaks.
    """

    def __init__(
        self,
        task: str | Path | Mapping[str, Any] | Task = defaults.TASK,
        model: str | Path = defaults.MODEL,
        *,
        split: str | None = None,
        data: str | Path | None = None,
        allow_leaks: bool = False,
        lm: Mapping[str, Any] | LMSettings | None = None,
        extractor: str | None = None,
        answer_scorer: str | None = None,
    ) -> None:
        settings = LMSettings.of(lm)
        self.task = load_task(task, data=data, split=split).judged_by(extractor, answer_scorer)
        self.split = self.task.default_split if split is None else split
        self.task.parts(self.split)
        self.leaks = self.task.leaks().get(self.split, {})
        leaked = self.leaks.get(("train", "test"), 0)
        if leaked and not allow_leaks:
            raise InputError(
                f"task {self.task.name}, split {self.split}: {leaked} texts of train stand in test too; "
                "remove them, or allow it with --allow-leaks (allow_leaks=True)"
            )
        words = () if self.task.generates else self.task.label_words
        self.lm, family = describe_model(str(model), settings, words)
        settings = self.lm.settings  # those of the study, where one is replayed
        self.template: Template = self.task.template(family.template)
        self.family = family.template
        self._reads_mask = family.reads_mask
        self._for_search = False
        self._parts: dict[str, EncodedPart] = {}
        # What was tokenised on the driver travels with the problem, so that trials need no tokenizer for it.
        self._known_ids: dict[str, tuple[int, ...]] = {}
        self._known_options: tuple[tuple[str, ...], tuple[Option, ...]] = ((), ())
        # The same for soft prompts: trials need neither the LM's files nor those that the settings name.
        self.vectors: dict[str, FloatArray] = {}
        self.starts: dict[tuple[Any, ...], Any] = {}
        self.projections: dict[tuple[Any, ...], str] = {}
        self.embedding_std: dict[str, float] = {}
        self.layer_scales: dict[str, tuple[float, ...]] = {}
        # What searchers have made of the LM's files or of an earlier study, by what it is.
        self.known: dict[str, Any] = {}
        if (chat := settings.chat) is not None:
            if family.template != "causal":
                raise InputError(f"--lm chat={chat}: {self.lm.name} is no causal LM, and has no chat template")
            tokenizer = self.encoder.tokenizer
            if settings.chat_date is None and (today := today_in(tokenizer)) is not None:
                settings = replace(settings, chat_date=today)
                self.lm = replace(self.lm, settings=settings)
            self.template = in_chat(self.template, tokenizer, chat, self.lm.name, settings.chat_date)
        # At which examples a usual prompt's ids can be spliced in, see rayprompt.lm.joined.
        self._edges = {
            name: self.encoder.edges(self.template, examples) for name, examples in self.task.parts(self.split).items()
        }
        self._splices = all(edges.all() for edges in self._edges.values())
        self._special = self.encoder.texts.special
        # Which rule the ids follow; None where the former one, of pieces tokenized apart, gives the same.
        alike = self._splices and all(
            self.encoder.like_pieces(self.template, e) for e in self.task.parts(self.split).values()
        )
        texts = (e.fields[f] for es in self.task.parts(self.split).values() for e in es for f in self.template.fields)
        self.encoding = None if alike else CHANGED if self.template.changes(texts) else ENCODING
        self.judge, self.decoding = self._writing(settings)
        self._words = () if self.judge is not None else self.task.label_words
        self.labels: Labels = self.encoder.labels(
            self.template, self._words, reads_mask=self._reads_mask, where=self._where
        )

        for line in self.remarks:
            warnings.warn_explicit(line, LabelWarning, self._where, 0, module="task")

    @property
    def remarks(self) -> list[str]:
        """A line for each label word that can never win: its tokens begin with all of another one's.

        Its log-probability is the other's and a further term, so it is never greater. The end of an answer is not
        scored instead: what ends one (a line break, a full stop, a special token) differs from LM to LM and from
        template to template, and each choice gives other scores.
        """
        words = list(zip(self._words, self.labels.words, strict=True))
        return [
            f"{self._where}: label word {longer!r} can never win on {self.lm.name}: its tokens begin with those of "
            f"{word!r}; take words of which none begins another"
            for longer, all_of in words
            for word, ids in words
            if len(ids) < len(all_of) and all_of[: len(ids)] == ids
        ]

    def _writing(self, settings: LMSettings) -> tuple[Judge | None, Decoding | None]:
        """Judge and decoding where the LM writes."""
        if self.lm.endpoint is not None and not self.task.generates:
            return self._naming_labels(settings)
        if not self.task.generates:
            given = settings.decoding
            if given:
                name, value = next(iter(given.items()))
                raise InputError(f"--lm {name}={value}: {self.task.name} has label words, and nothing is written")
            return None, None
        decoding = Decoding.of({**self.task.decoding, **settings.decoding}, "--lm ")
        if settings.chat is not None and settings.stop is None:
            # A blank line ends what a plain LM writes; in a chat it stands between the paragraphs of an answer.
            decoding = replace(decoding, stop=tuple(stop for stop in decoding.stop if stop.strip()))
        if decoding.length_control and self.lm.endpoint is not None:
            raise InputError(f"--lm length_control=true: the tokens of a text are not known to us in {self.lm.name}")
        judge = self.task.judge
        return judge if judge.style is None else replace(judge, style=check_style(judge.style)), decoding

    def _naming_labels(self, settings: LMSettings) -> tuple[Judge | None, Decoding | None]:
        """Of label words behind a service that gives no log-probabilities: the LM writes, and names one."""
        if self.lm.endpoint is None or self.lm.endpoint.labels != "text":
            return None, None
        if self.task.metric != "accuracy":
            raise InputError(
                f"task {self.task.name}: its metric {self.task.metric} needs label log-probabilities, which "
                f"{self.lm.name} does not give; set metric: accuracy"
            )
        decoding = Decoding.of({"max_tokens": LABEL_TOKENS, **settings.decoding}, "--lm ")
        return Judge(choice_of(self.task.label_words)), decoding

    @property
    def gives_log_probs(self) -> bool:
        """Whether scores have the label words' log-probabilities: not where the LM writes."""
        return self.judge is None

    @property
    def default_objective(self) -> str:
        """What is maximised unless said otherwise where there are no log-probabilities."""
        return "accuracy" if self.judge is None or self.judge.style is None else "group_maxima"

    @property
    def takes_soft(self) -> bool:
        """Whether soft prompts can be scored."""
        return not self.soft_reason

    @property
    def soft_reason(self) -> str:
        """Why soft prompts cannot be scored; empty where they can."""
        if self.lm.endpoint is not None:
            return f"{self.lm.name} takes text only: search on an LM that is loaded here, with --proxy-model NAME"
        if self.task.generates:
            return (
                f"in task {self.task.name} the LM writes, which it does behind text prompts only: take nevergrad or rl"
            )
        return ""

    def answers(self, part: str) -> list[str]:
        """(E,) the gold answers of a part, where the LM writes."""
        if self.task.generates:
            return self.task.answers(part, self.split)
        words = self.task.label_words
        return [words[example.label] for example in self.task.examples(part, self.split)]

    @property
    def label_ids(self) -> list[int] | list[list[int]]:
        """The token id of each label word; where one is several tokens, the list of each."""
        words = self.labels.words
        return [word[0] for word in words] if self.labels.single else [list(word) for word in words]

    @property
    def _where(self) -> str:
        return self.task.source or f"task {self.task.name}"

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer, as templates need it."""
        family = load_family(self.lm.family)
        lm = self.lm
        return Encoder(load_tokenizer(lm.location, **lm.trust), lm.name, lm.max_length, family, lm.vocab_size)

    @property
    def gold(self) -> IntArray:
        """(E,) label indices of the train examples."""
        return self.task.gold("train", self.split)

    def part(self, name: str) -> EncodedPart:
        """The examples of ``train``, ``dev`` or ``test``, tokenised (once)."""
        examples = self.task.examples(name, self.split)
        if name not in self._parts:
            self._parts[name] = self.encoder.part(
                self.template,
                examples,
                self._words,
                reads_mask=self._reads_mask,
                where=self._where,
                decoding=self.decoding,
            )
        if self._parts[name].joiner is None:  # it is left out of pickles
            about = (self.template, examples, self._edges[name], self._special)
            joiner = Joiner(lambda: self.encoder, *about, reads_mask=self._reads_mask)
            self._parts[name] = replace(self._parts[name], joiner=joiner)
        return self._parts[name]

    @property
    def own_parts(self) -> tuple[str, ...]:
        """The names of the parts that it holds: what a searcher is given holds train only."""
        return tuple(self.task.parts(self.split))

    def digests(self, part: str) -> list[str]:
        """(E,) the digest of each example of a part."""
        return [example.digest for example in self.task.examples(part, self.split)]

    @property
    def content(self) -> dict[str, Any]:
        """What decides a score on the side of task and LM, besides the candidate and the example."""
        return {
            "lm": self.lm.digest,
            "family": self.lm.family,
            "template": self.template.source,
            "label_ids": self.label_ids,
            "max_length": self.lm.max_length,
            "decoding": None if self.decoding is None else self.decoding.content,
            **(
                {}
                if self.lm.endpoint is None
                else {"endpoint": self.lm.endpoint.to_json(labels=not self.task.generates)}
            ),
            **({} if self.encoding is None else {"encoding": self.encoding}),
        }

    def prompt(self, text: str) -> TextPrompt:
        """A text prompt with the token ids that the LM's tokenizer gives at the prompt's place."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[TextPrompt]:
        """:meth:`prompt` of each text, tokenized together."""
        clean = [" ".join(text.split()) for text in texts]
        return [TextPrompt(text, ids) for text, ids in zip(clean, self._ids(clean), strict=True)]

    def token_ids(self, candidate: Candidate) -> tuple[int, ...]:
        """The token ids that stand for a candidate in the LM's input.

        Those of a soft prompt are the ones that it is added to; none where it is put in front. Of a conditioned one
        they are those of its longest prompt.

        Raises:
            InputError: a soft prompt of another LM, or ids outside the vocabulary.
        """
        if isinstance(candidate, SoftPrompt):
            space = candidate.subspace
            self._check_space(space, len(candidate.z))
            return self._in_vocabulary(space.tokens) if space.mode == "add" else ()
        if isinstance(candidate, ConditionedPrompt):
            return max((self.token_ids(prompt) for prompt in candidate.different), key=len, default=())
        if candidate.token_ids is None:
            return self._ids([candidate.text])[0]
        ids = self._in_vocabulary(candidate.token_ids)
        if isinstance(ids, TextIds) or (self._splices and usual(candidate.text, self._special)):
            return ids
        return TextIds(ids, candidate.text) if self._ids([candidate.text])[0] == ids else ids

    def _check_space(self, space: Subspace, numbers: int) -> None:
        lm, layers = self.lm, space.layers
        if (space.width, space.numbers) != (lm.width, numbers) or not layers:
            raise InputError(
                f"a soft prompt of width {space.width} (z: {numbers}, subspace: {space.numbers}, layers: "
                f"{list(layers)}) cannot be used on {lm.name}, whose embeddings are {lm.width} wide"
            )
        if not space.deep:
            return
        if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= lm.layers:
            raise InputError(f"a deep prompt of layers {list(layers)}: {lm.name} has layers 0 to {lm.layers - 1}")
        if space.hidden != lm.hidden_size or len(space.scales) not in (0, len(layers)):
            raise InputError(
                f"a deep prompt of width {space.hidden}, with {len(space.scales)} scales for {len(layers)} layers, "
                f"cannot be used on {lm.name}, whose hidden states are {lm.hidden_size} wide"
            )

    def _in_vocabulary(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [i for i in ids if not 0 <= i < self.lm.vocab_size]
        if wrong:
            raise InputError(
                f"token id {wrong[0]} is not in the vocabulary of {self.lm.name} (0 to {self.lm.vocab_size - 1})"
            )
        return ids

    def decoded(self, ids: Sequence[int]) -> TextPrompt:
        """The text prompt of some token ids."""
        text = " ".join(self.encoder.tokenizer.decode(list(ids)).split())
        return TextPrompt(text, tuple(int(i) for i in ids))

    @property
    def vocabulary(self) -> IntArray:
        """(V,) the token ids that may stand in a text: neither special nor reserved ones."""
        return np.array(self.encoder.plain_ids(self.lm.vocab_size), dtype=np.int64)

    def round_trips(self, prompt: TextPrompt | ConditionedPrompt) -> bool:
        """Whether the prompt's text, tokenised again, gives its token ids: then the text alone says it all."""
        if isinstance(prompt, ConditionedPrompt):
            return all(self.round_trips(own) for own in prompt.different)
        return prompt.token_ids is None or self._ids([prompt.text])[0] == prompt.token_ids

    def options(self, texts: Sequence[str]) -> tuple[Option, ...]:
        """Words or phrases as parts of a prompt."""
        if tuple(texts) == self._known_options[0]:
            return self._known_options[1]
        later = self.encoder.ids(texts, " ")
        first = later if self._prompt_space == " " else self.encoder.ids(texts, self._prompt_space)
        options = tuple(
            Option(t, tuple(f.tolist()), tuple(n.tolist())) for t, f, n in zip(texts, first, later, strict=True)
        )
        self._known_options = (tuple(texts), options)
        return options

    @property
    def letters(self) -> frozenset[str]:
        """a to z and the letters of the task's train texts: what words of a prompt in its script are made of."""
        return LETTERS | {
            c for e in self.task.examples("train", self.split) for t in e.fields.values() for c in t.lower()
        }

    @cached_property
    def words(self) -> tuple[Option, ...]:
        """The vocabulary's whole words, most frequent first where the vocabulary is sorted so.

        See :meth:`rayprompt.lm.encode.Encoder.whole_words`; in the script of the task.
        """
        if self.lm.endpoint is not None:
            return self.options(self._words_of_texts())
        return self.options([text for _, text in self.encoder.whole_words(self.lm.vocab_size, self.letters)])

    def _words_of_texts(self) -> list[str]:
        """Words for an LM whose vocabulary is not known: those of ``--lm words=MODEL``, else of prompt and texts."""
        model = self.lm.settings.words
        if model is not None:
            source, family = describe_model(model)
            encoder = Encoder(load_tokenizer(source.location, **source.trust), model, source.max_length, family)
            return [text for _, text in encoder.whole_words(source.vocab_size, self.letters)]
        texts = [t for e in self.task.examples("train", self.split) for t in e.fields.values()]
        counts = Counter(w for text in texts for w in re.findall(WORD, text.lower()))
        manual = re.findall(WORD, (self.task.manual_prompt or "").lower())
        return list(dict.fromkeys([*manual, *(word for word, _ in counts.most_common())]))

    def token_vectors(self) -> FloatArray:
        """(V, 32) float16 a vector for each token id, near for tokens that are used alike: of the LM's word embeddings.

        Of an LM behind a service, whose tokens are characters, there are none: (0, 32). Read once, and kept with the
        problem, so that trials need not have the LM's files.
        """
        if "token vectors" not in self.known:
            found = None if self.lm.endpoint is not None else word_vectors(self.lm.location, VECTOR_DIMS)
            kept = np.zeros((0 if found is None else len(found), VECTOR_DIMS), dtype=np.float16)
            if found is not None:  # embeddings may be narrower than that
                kept[:, : found.shape[1]] = found
            self.known["token vectors"] = kept
        vectors: FloatArray = self.known["token vectors"]
        return vectors

    def for_search(self) -> Problem:
        """A copy that holds the train examples only: what a searcher may see. Its vocabulary is worked out already."""
        if self._for_search:
            return self
        copy = Problem.__new__(Problem)
        copy.__dict__.update(self.__dict__)
        copy._for_search = True
        copy.words = self.words
        copy.part("train")
        copy._parts = {"train": copy._parts["train"]}
        copy.leaks = {}
        copy._known_ids = dict(self._known_ids)
        copy._known_options = ((), ())
        copy.task = replace(self.task, splits={self.split: {"train": self.task.examples("train", self.split)}})
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "encoder"}

    def __repr__(self) -> str:
        return f"Problem({self.task.name!r}, split={self.split!r}, model={self.lm.name!r})"

    @property
    def _prompt_space(self) -> str:
        pieces = self.template.pieces
        at = [p.kind for p in pieces].index("prompt")
        return "" if self.template.begins(at) else pieces[at].space

    def _ids(self, texts: Sequence[str]) -> list[TextIds]:
        known: dict[str, tuple[int, ...]] = {
            "": (),
            **{text: self._known_ids[text] for text in texts if text in self._known_ids},
        }
        new = list(dict.fromkeys(text for text in texts if text not in known))
        for text, row in zip(new, self.encoder.prompt_ids(self.template, new) if new else (), strict=True):
            known[text] = tuple(row.tolist())
            if len(self._known_ids) < KNOWN_IDS:
                self._known_ids[text] = known[text]
        return [TextIds(known[text], text) for text in texts]
