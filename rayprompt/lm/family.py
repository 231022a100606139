"""LM families: which transformers class loads a checkpoint, and where its answer is read.

A family is a small class. Third parties add theirs through the entry point group ``rayprompt.families``; those are
asked first, so that one may take over an architecture from the built-in ones.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

from rayprompt.errors import InputError


class Family:
    """How the LMs of a family are loaded and read.

    Attributes:
        template: the family's name in a task's ``template``.
        auto_class: the transformers class that loads it.
        reads_mask: True reads the ``{mask}``'s position, False the last token's.
        several_tokens: a label word may be several tokens.
        answers_next: the answer is written behind what is read, not in its place: a word of its own, with its space.
    """

    template: ClassVar[str]
    auto_class: ClassVar[str]
    reads_mask: ClassVar[bool]
    several_tokens: ClassVar[bool] = True
    answers_next: ClassVar[bool] = False

    def mask_id(self, tokenizer: Any) -> int | None:
        """The token that stands for ``{mask}``; None where the tokenizer has none."""
        found: int | None = tokenizer.mask_token_id
        return found

    def decoder_inputs(self, config: Any, ids: Any, read: Any, front: int = 0) -> tuple[dict[str, Any], Any]:
        """For ids (B, T) that are read at ``read`` (B,): what the model gets besides, and where the answer is read.

        The first ``front`` ids stand for a soft prompt.
        """
        return {}, read

    def matches(self, config: Any) -> bool:
        """Whether a checkpoint with this transformers config belongs to the family."""
        raise NotImplementedError

    def load(self, path: str, dtype: Any) -> Any:
        """The model, in evaluation mode, on the CPU."""
        import transformers

        cls = getattr(transformers, self.auto_class)
        return cls.from_pretrained(path, dtype=dtype, use_safetensors=True).eval()


class Masked(Family):
    """Masked LMs (BERT, RoBERTa, ...): the label words are scored at the mask."""

    template = "masked"
    auto_class = "AutoModelForMaskedLM"
    reads_mask = True
    several_tokens = False  # there is one mask

    def matches(self, config: Any) -> bool:
        return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or ())


class Causal(Family):
    """Causal LMs (GPT-2, Llama, ...): the label words are scored as the next token."""

    template = "causal"
    auto_class = "AutoModelForCausalLM"
    reads_mask = False
    answers_next = True

    def matches(self, config: Any) -> bool:
        names = config.architectures or ()
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) and "Bert" not in name for name in names)


class SpanFilling(Family):
    """Encoder-decoder LMs that fill spans (T5 and its kin): the mask is the first sentinel, ``<extra_id_0>``.

    The decoder is given its start and the sentinel; the label words are scored as what comes next.
    """

    template = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    reads_mask = True
    answers_next = True
    SENTINEL = "<extra_id_0>"

    def matches(self, config: Any) -> bool:
        return bool(config.is_encoder_decoder) and "t5" in config.model_type

    def mask_id(self, tokenizer: Any) -> int | None:
        if self.SENTINEL not in tokenizer.get_vocab():
            return None
        return int(tokenizer.convert_tokens_to_ids(self.SENTINEL))

    def decoder_inputs(self, config: Any, ids: Any, read: Any, front: int = 0) -> tuple[dict[str, Any], Any]:
        import torch

        sentinel = ids.gather(1, read[:, None])
        start = sentinel.new_full(sentinel.shape, config.decoder_start_token_id)
        return {"decoder_input_ids": torch.cat([start, sentinel], dim=1)}, torch.ones_like(read)


class Denoising(Family):
    """Encoder-decoder LMs that write the whole text again (BART and its kin): read where the mask stands."""

    template = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    reads_mask = True

    def matches(self, config: Any) -> bool:
        return bool(config.is_encoder_decoder) and "bart" in config.model_type

    def decoder_inputs(self, config: Any, ids: Any, read: Any, front: int = 0) -> tuple[dict[str, Any], Any]:
        """The text shifted by one, as these LMs make it themselves; a soft prompt in front of it is not written."""
        import torch

        text = ids[:, front:]
        start = text.new_full((len(text), 1), config.decoder_start_token_id)
        return {"decoder_input_ids": torch.cat([start, text[:, :-1]], dim=1)}, read - front


def family_of(config: Any, name: str) -> Family:
    """The family of a transformers config; ``name`` is the LM's, for the error.

    Raises:
        InputError: no family matches.
    """
    families: list[Family] = [
        *(point.load()() for point in entry_points(group="rayprompt.families")),
        SpanFilling(),
        Denoising(),
        Masked(),
        Causal(),
    ]
    for family in families:
        if family.matches(config):
            return family
    kinds = ", ".join(config.architectures or ["no architecture in its config"])
    raise InputError(
        f"model {name}: {kinds} is neither a masked nor a causal LM, nor one of T5's or BART's kin; others are not "
        "supported yet"
    )


def load_family(path: str) -> Family:
    """The family with import path ``module:Class``."""
    module, _, name = path.partition(":")
    family: Family = getattr(import_module(module), name)()
    return family
