"""Loading a transformers checkpoint: what the library reports is read, and nothing that the folder brings is run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayprompt.errors import InputError
from rayprompt.foreign import read_json

# Buffers that a model computes by itself; files of older versions hold some of them, those of newer ones do not.
COMPUTED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|final_logits_bias|embed_positions\.weights"
    r"|attn\.bias|attention\.bias|relative_position_index)$"
)
NAMED = 3  # tensors that a message names
UNUSED = ("pooler.", "encoder.pooler.")  # tensors of an encoder whose hidden states alone are read
CODE = "trust_remote_code"
CAUSAL = ("ForCausalLM", "LMHeadModel")  # ends of the names of architectures


def read_config_of(folder: str | Path, *, trusted: bool = False) -> Any:
    """The transformers config of a checkpoint.

    Args:
        folder: with config.json.
        trusted: the user lets Python code of the folder run (``--lm trust_remote_code=true``).

    Raises:
        InputError: its model type needs Python code that comes with it, it names a kernel of the hub, or its padding is
            not in its vocabulary.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = read_json(Path(folder) / "config.json")
    kind = stated.get("model_type")
    if not trusted and stated.get("auto_map") and kind not in CONFIG_MAPPING:
        raise InputError(
            f"its model type {str(kind)[:60]!r} needs Python code that comes with it (auto_map), and such code is not "
            "run; if you trust it, give --lm trust_remote_code=true"
        )
    config = AutoConfig.from_pretrained(folder, **{CODE: trusted})
    text = config.get_text_config()
    for key in ("_attn_implementation", "_experts_implementation"):
        kernel = getattr(text, key, None) or getattr(config, key, None)
        if not trusted and isinstance(kernel, str) and "/" in kernel:
            raise InputError(
                f"its config.json names a kernel of the hub, {kernel[:60]!r}, which is code that is not run"
            )
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(size, int) and not -size <= pad < size:
        if not any(str(name).endswith(CAUSAL) for name in config.architectures or ()):
            raise InputError(f"pad_token_id {pad} is not in its vocabulary of {size} tokens")
        text.pad_token_id = config.pad_token_id = None  # the tokenizer alone added it; padding is never read
    return config


def load_checked(auto_class: Any, folder: str | Path, *, unused: Iterable[str] = (), **keywords: Any) -> Any:
    """``auto_class.from_pretrained(folder)`` in evaluation mode, with every tensor read from the checkpoint's files.

    transformers fills a tensor that it does not find with random numbers, and only logs it.

    Args:
        auto_class: a class of transformers.
        folder: with config.json and safetensors files.
        unused: beginnings of the names of tensors that nobody reads here, such as a pooler.
        keywords: for ``from_pretrained``; no code of the folder is run unless ``trust_remote_code`` says so.

    Raises:
        InputError: the files hold no values, or values of another shape, for some tensors.
    """
    keywords = {CODE: False, "use_safetensors": True, **keywords}
    model, report = auto_class.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **keywords
    )
    skipped = tuple(unused)
    kind = type(model).__name__
    missing = sorted(
        name for name in report["missing_keys"] if not COMPUTED.search(name) and not name.startswith(skipped or "\0")
    )
    if missing:
        found = _named(sorted(report["unexpected_keys"]))
        also = f"; it has {found}, which is not used" if found else ""
        raise InputError(f"its files hold no {_named(missing)} of a {kind}, which would be random{also}")
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, stored, expected = wrong[0][:3]
        raise InputError(
            f"its files hold {name} with shape {tuple(stored)}, and its config.json makes it {tuple(expected)}"
        )
    failed = report.get("error_msgs") or report.get("conversion_errors")
    if failed:
        first = str(next(iter(failed.values())) if isinstance(failed, dict) else next(iter(failed)))
        raise InputError(f"its files do not fit a {kind} ({first.strip().splitlines()[0][:160]})")
    return model.eval()


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
