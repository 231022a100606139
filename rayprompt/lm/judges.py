"""Models that judge what an LM wrote: sequence classifiers, token vectors of an encoder, the surprise of another LM.

A text's numbers depend on itself alone: passes have one number of rows, and lengths that follow from the row's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from rayprompt.candidate import digest
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.checkpoint import UNUSED, load_checked
from rayprompt.lm.embed import padding_is_inert
from rayprompt.lm.projection import Bounded
from rayprompt.lm.source import load_tokenizer, model_digest, model_folder, quiet, read_config
from rayprompt.scores import FloatArray, IntArray
from rayprompt.style import StyleModels

ROWS, STEP = 16, 16  # of a pass: rows, and what their length is a multiple of
SOURCE_BYTES = 256 * 1024**2  # of the token vectors of source texts that are kept
SUFFIX = "ForSequenceClassification"


def check_style(models: StyleModels) -> StyleModels:
    """The same with its target as a number and the digest of its weights.

    Raises:
        InputError: there is no such model, it is no classifier, or it has no such label.
    """
    labels = labels_of(models.classifier)
    target = label_number(models.classifier, models.target, labels)
    if models.test_classifier is not None:
        label_number(models.test_classifier, models.target, labels_of(models.test_classifier))
    if models.fluency is not None:
        label_number(models.fluency, models.fluency_label, labels_of(models.fluency))
    config = read_config(models.encoder)
    layer = models.scale[0]
    if layer is not None and layer > config.num_hidden_layers:
        raise InputError(f"style: layer={layer}: encoder {models.encoder} has {config.num_hidden_layers} layers")
    if models.perplexity is not None:
        read_config(models.perplexity)
    weights = digest([model_digest(name) for name in (models.classifier, models.encoder)])
    return models.read_as(weights, str(target))


def labels_of(name: str) -> list[str]:
    """The labels of a sequence classifier, in order.

    Raises:
        InputError: it is none.
    """
    config = read_config(name)
    if not any(str(kind).endswith(SUFFIX) for kind in config.architectures or ()):
        kinds = ", ".join(config.architectures or ()) or "not said"
        raise InputError(f"classifier {name}: is no sequence classifier (a {kinds}; a ...{SUFFIX} is wanted)")
    if config.num_labels < 2:
        raise InputError(f"classifier {name}: has {config.num_labels} label; it needs two or more")
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def label_number(name: str, label: str, labels: Sequence[str]) -> int:
    """The number of a label that is given by its name or number.

    Raises:
        InputError: the classifier ``name`` has no such label.
    """
    if label in labels:
        return list(labels).index(label)
    if label.isdigit() and int(label) < len(labels):
        return int(label)
    raise InputError(f"classifier {name}: has no label {label!r}; it has {', '.join(labels)} (0 to {len(labels) - 1})")


class Judges:
    """Models on one device, each loaded when it is first asked.

    ``run(what, given, columns)`` calls the method ``what`` with ``given`` and columns of N texts; it gives (N, k).
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._models: dict[tuple[str, str], _Model] = {}
        self._loading = Lock()
        self._sources: Bounded[Any] = Bounded(SOURCE_BYTES, lambda states: states.nbytes)

    def run(self, what: str, given: tuple[Any, ...], columns: Sequence[Sequence[str]]) -> FloatArray:
        """See the class.

        Raises:
            ScoringError: a model cannot be loaded.
        """
        import torch

        if self.device == "cpu" and torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            found: FloatArray = getattr(self, what)(*given, *columns)
        return found

    def reward(
        self,
        classifier: str,
        target: str,
        encoder: str,
        layer: int | None,
        baseline: float,
        texts: Sequence[str],
        sources: Sequence[str],
    ) -> FloatArray:
        """(N, 2) content and style of texts, each from 0 to 1: :meth:`content`, and the target label's probability."""
        config = self._model(classifier, "AutoModelForSequenceClassification").body.config
        label = label_number(classifier, target, [str(config.id2label[i]) for i in range(config.num_labels)])
        style = self.probabilities(classifier, texts)[:, label]
        return np.stack([self.content(encoder, layer, baseline, texts, sources)[:, 0], style], axis=1)

    def probabilities(self, classifier: str, texts: Sequence[str]) -> FloatArray:
        """(N, L) probability of each label of a classifier."""
        model = self._model(classifier, "AutoModelForSequenceClassification")

        def classify(ids: Any, mask: Any) -> FloatArray:
            logits = model.body(input_ids=ids, attention_mask=mask).logits
            return np.asarray(logits.double().softmax(dim=-1).cpu().numpy())

        return model.each(texts, classify)

    def content(
        self, encoder: str, layer: int | None, baseline: float, texts: Sequence[str], sources: Sequence[str]
    ) -> FloatArray:
        """(N, 1) how much of the sources' content texts keep, from 0 to 1: the F1 of BERTScore (arXiv 1904.09675).

        Every token is matched to the other text's most similar one, by the cosine of their states in ``layer``; special
        tokens are left out. ``baseline`` becomes 0, and what is less as well.
        """
        import torch

        model = self._model(encoder, "AutoModel")
        own = model.ids(list(dict.fromkeys([*texts, *sources])))
        f1 = np.zeros((len(texts), 1))

        def states(some: Sequence[str]) -> list[Any]:
            """The normalised states (n, d) of each text's tokens."""
            found: dict[int, Any] = {}
            for members, ids, mask in passes([own[text][0] for text in some], model):
                out = model.body(input_ids=ids, attention_mask=mask, output_hidden_states=True)
                hidden = out.hidden_states[-1 if layer is None else layer].float()
                hidden = torch.nn.functional.normalize(hidden, dim=-1)
                for row, i in enumerate(members):
                    found[i] = hidden[row][torch.from_numpy(own[some[i]][1]).to(hidden.device)].clone()
            return [found[i] for i in range(len(some))]

        wanted = list(dict.fromkeys(sources))
        kept = {s: x for s in wanted if (x := self._sources.find((encoder, layer, s))) is not None}
        new = [s for s in wanted if s not in kept]
        for source, state in zip(new, states(new), strict=True):
            kept[source] = state
            self._sources.put((encoder, layer, source), state)
        distinct = list(dict.fromkeys(texts))
        by_text = dict(zip(distinct, states(distinct), strict=True))
        for i, (text, source) in enumerate(zip(texts, sources, strict=True)):
            a, b = by_text[text], kept[source]
            if len(a) and len(b):
                similar = a @ b.T
                precision, recall = float(similar.amax(dim=1).mean()), float(similar.amax(dim=0).mean())
                f1[i] = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
        return np.maximum((f1 - baseline) / (1 - baseline), 0.0)

    def surprise(self, lm: str, texts: Sequence[str]) -> FloatArray:
        """(N, 2) the negative log-likelihood (nats) of each text's tokens behind the first, and how many they are."""
        model = self._model(lm, "AutoModelForCausalLM")

        def surprise(ids: Any, mask: Any) -> FloatArray:
            logits = model.body(input_ids=ids, attention_mask=mask).logits[:, :-1].double().log_softmax(dim=-1)
            own = -logits.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
            return np.stack([own.sum(dim=1).cpu().numpy(), mask[:, 1:].sum(dim=1).cpu().numpy()], axis=1)

        return model.each(texts, surprise)

    def _model(self, name: str, kind: str) -> _Model:
        with self._loading:
            if (name, kind) not in self._models:
                self._models[name, kind] = _Model(name, kind, self.device)
            return self._models[name, kind]


class _Model:
    """A model with its tokenizer, in fp32."""

    def __init__(self, name: str, kind: str, device: str) -> None:
        import torch
        import transformers

        quiet()
        self.device = torch.device(device)
        self.tokenizer = load_tokenizer(name)
        try:
            model = load_checked(
                getattr(transformers, kind),
                model_folder(name),
                unused=UNUSED if kind == "AutoModel" else (),
                dtype=torch.float32,
            )
        except InputError as error:
            raise ScoringError(f"model {name}: {error}") from None
        except Exception as error:  # broken files surface as many types
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ScoringError(f"model {name}: cannot be loaded as {kind} ({reason[:160]})") from None
        body = model.get_encoder() if model.config.is_encoder_decoder and kind == "AutoModel" else model
        self.body = body.to(self.device).eval().requires_grad_(False)
        most = int(getattr(model.config, "max_position_embeddings", 0) or 512)
        offset = 2 if model.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        self.most = min(int(self.tokenizer.model_max_length), most - offset)
        rows = np.random.default_rng(0).integers(0, model.config.get_text_config().vocab_size, (2, 2 * STEP))
        with torch.inference_mode():
            self.pads = padding_is_inert(self.body, torch.from_numpy(rows[:, : self.most]).to(self.device))

    def ids(self, texts: Sequence[str]) -> dict[str, tuple[IntArray, IntArray]]:
        """Of each text the token ids, and the places of those that are no special tokens."""
        if not texts:
            return {}
        given = {"truncation": True, "max_length": self.most, "return_special_tokens_mask": True}
        read = self.tokenizer(list(texts), **given)
        rows = zip(read["input_ids"], read["special_tokens_mask"], strict=True)
        return {
            t: (np.array(i or [0]), np.flatnonzero(np.array(s) == 0)) for t, (i, s) in zip(texts, rows, strict=True)
        }

    def each(self, texts: Sequence[str], run: Callable[[Any, Any], FloatArray]) -> FloatArray:
        """(N, k) what ``run`` gives for the ids and masks (ROWS, T) of each text, every distinct one once."""
        own = self.ids(list(dict.fromkeys(texts)))
        names = list(own)
        found: dict[str, FloatArray] = {}
        for members, ids, mask in passes([own[name][0] for name in names], self):
            values = run(ids, mask)
            found.update((names[i], values[row]) for row, i in enumerate(members))
        return np.array([found[text] for text in texts])


def passes(rows: Sequence[IntArray], model: _Model) -> Iterator[tuple[list[int], Any, Any]]:
    """Rows of ids in passes of one number of rows: (which they are, ids, mask), dummies at the end.

    A model whose outputs change with padding or neighbors gets every row by itself.
    """
    import torch

    if not model.pads:
        for i, row in enumerate(rows):
            one = torch.from_numpy(np.asarray(row, dtype=np.int64))[None].to(model.device)
            yield [i], one, torch.ones_like(one)
        return
    lengths = [min(-(-len(row) // STEP) * STEP, model.most) for row in rows]
    pad = model.tokenizer.pad_token_id or 0
    for length in sorted(set(lengths)):
        members = [i for i, other in enumerate(lengths) if other == length]
        for start in range(0, len(members), ROWS):
            some = members[start : start + ROWS]
            ids, mask = np.full((ROWS, length), pad, dtype=np.int64), np.zeros((ROWS, length), dtype=np.int64)
            mask[:, 0] = 1
            for r, i in enumerate(some):
                ids[r, : len(rows[i])], mask[r, : len(rows[i])] = rows[i], 1
            yield some, torch.from_numpy(ids).to(model.device), torch.from_numpy(mask).to(model.device)


@lru_cache(maxsize=1)
def judges_here() -> Judges:
    """Models in this process, on its CPU: where there are no scoring actors."""
    return Judges("cpu")
