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
    """

    template: ClassVar[str]
    auto_class: ClassVar[str]
    reads_mask: ClassVar[bool]

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

    def matches(self, config: Any) -> bool:
        return any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in config.architectures or ())


class Causal(Family):
    """Causal LMs (GPT-2, Llama, ...): the label words are scored as the next token."""

    template = "causal"
    auto_class = "AutoModelForCausalLM"
    reads_mask = False

    def matches(self, config: Any) -> bool:
        names = config.architectures or ()
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) and "Bert" not in name for name in names)


def family_of(config: Any, name: str) -> Family:
    """The family of a transformers config; ``name`` is the LM's, for the error.

    Raises:
        InputError: no family matches.
    """
    families: list[Family] = [
        *(point.load()() for point in entry_points(group="rayprompt.families")),
        Masked(),
        Causal(),
    ]
    for family in families:
        if family.matches(config):
            return family
    kinds = ", ".join(config.architectures or ["no architecture in its config"])
    raise InputError(f"model {name}: {kinds} is neither a masked nor a causal LM, and others are not supported yet")


def load_family(path: str) -> Family:
    """The family with import path ``module:Class``."""
    module, _, name = path.partition(":")
    family: Family = getattr(import_module(module), name)()
    return family
