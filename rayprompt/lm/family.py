"""LM families: which transformers class loads a checkpoint, and where its answer is read.

A family is a small class. Third parties add theirs through the entry point group ``rayprompt.families``; those are
asked first, so that one may take over an architecture from the built-in ones.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

from rayprompt.errors import InputError
from rayprompt.lm.checkpoint import CAUSAL, load_checked, read_config_of


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

    def decoder_inputs(
        self, config: Any, ids: Any, read: Any, front: int = 0, sizes: Any = None
    ) -> tuple[dict[str, Any], Any]:
        """For ids (B, T) that are read at ``read`` (B,): what the model gets besides, and where the answer is read.

        The first ``front`` ids stand for a soft prompt; of each row the first ``sizes`` (B,) ids are no padding.
        """
        return {}, read

    def writes(self, config: Any) -> bool:
        """Whether it can write completions: only where it reads from left to right and has no encoder."""
        return not self.reads_mask and not config.is_encoder_decoder

    @staticmethod
    def _start(config: Any) -> int:
        """The token that the decoder of an encoder-decoder LM begins with."""
        found = getattr(config, "decoder_start_token_id", None)
        if found is None and "t5" in config.model_type:
            found = config.pad_token_id  # as T5 was trained
        if found is None:
            raise InputError("its config.json has no decoder_start_token_id, so its decoder cannot begin")
        return int(found)

    def matches(self, config: Any) -> bool:
        """Whether a checkpoint with this transformers config belongs to the family."""
        raise NotImplementedError

    def load(self, path: str, dtype: Any, *, trusted: bool = False) -> Any:
        """The model, in evaluation mode, on the CPU; ``trusted``: Python code that comes with it may run.

        Raises:
            InputError: its files lack some of its tensors.
        """
        import transformers

        config = read_config_of(path, trusted=trusted)
        cls = getattr(transformers, self.auto_class)
        return load_checked(cls, path, config=config, dtype=dtype, trust_remote_code=trusted)


class Masked(Family):
    """Masked LMs (BERT, RoBERTa, ...): the label words are scored at the mask."""

    template = "masked"
    auto_class = "AutoModelForMaskedLM"
    reads_mask = True
    several_tokens = False  # there is one mask

    def matches(self, config: Any) -> bool:
        ends = ("ForMaskedLM", "ForPreTraining", "WithLMHeadModel")
        return any(name.endswith(ends) and name != "ReformerModelWithLMHead" for name in config.architectures or ())


class Causal(Family):
    """Causal LMs (GPT-2, Llama, ...): the label words are scored as the next token."""

    template = "causal"
    auto_class = "AutoModelForCausalLM"
    reads_mask = False
    answers_next = True

    def matches(self, config: Any) -> bool:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

        names = config.architectures or ()
        if config.get_text_config() is not config and KNOWN.get(config.model_type) in names:
            return True  # of several modalities, of which text alone is given
        decodes = bool(getattr(config, "is_decoder", False))
        return any(name.endswith(CAUSAL) and ("Bert" not in name or "Decoder" in name or decodes) for name in names)


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

    def decoder_inputs(
        self, config: Any, ids: Any, read: Any, front: int = 0, sizes: Any = None
    ) -> tuple[dict[str, Any], Any]:
        import torch

        sentinel = ids.gather(1, read[:, None])
        start = sentinel.new_full(sentinel.shape, self._start(config))
        return {"decoder_input_ids": torch.cat([start, sentinel], dim=1)}, torch.ones_like(read)


class Denoising(Family):
    """Encoder-decoder LMs that write the whole text again (BART and its kin): read where the mask stands."""

    template = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"
    reads_mask = True
    WRAPS = ("mbart", "plbart")  # their text begins with its last token, which says its language

    def matches(self, config: Any) -> bool:
        return bool(config.is_encoder_decoder) and ("bart" in config.model_type or config.model_type == "mvp")

    def decoder_inputs(
        self, config: Any, ids: Any, read: Any, front: int = 0, sizes: Any = None
    ) -> tuple[dict[str, Any], Any]:
        """The text shifted by one, as these LMs make it themselves; a soft prompt in front of it is not written."""
        import torch

        text = ids[:, front:]
        if config.model_type in self.WRAPS and sizes is not None:
            start = ids.gather(1, sizes[:, None] - 1)
        else:
            start = text.new_full((len(text), 1), self._start(config))
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
