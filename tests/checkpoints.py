"""Checkpoints of many families of LMs, small and random."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from rayprompt.lm.source import BUNDLED, load_tokenizer

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {}),
    "roberta": ("RobertaForMaskedLM", {"max_position_embeddings": 130}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
    "electra": ("ElectraForMaskedLM", {"embedding_size": 16}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 16}),
    "modernbert": ("ModernBertForMaskedLM", {"global_attn_every_n_layers": 1}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", {"num_key_value_heads": 1, "head_dim": 16}),
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        },
    ),
}  # fmt: skip


def make_checkpoint(family: str, folder: Path, **changes: Any) -> str:
    """A family's checkpoint with tiny-masked's tokenizer, which gets T5's sentinel; ``changes`` of its config."""
    cls, extra = (FAMILIES | ENCODER_DECODERS)[family]
    tokenizer = load_tokenizer("tiny-masked")
    if family == "t5":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    write_checkpoint(getattr(transformers, cls), tokenizer, {**extra, **changes}, folder)
    if family == "t5":
        tokenizer.save_pretrained(folder)
    return str(folder)


def write_checkpoint(model_class: Any, tokenizer: Any, changes: dict[str, Any], folder: Path) -> str:
    """A random LM of a class with tiny-masked's tokenizer; ``changes`` of its config."""
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or name.endswith("bias"):  # with random norms nothing would depend on the input
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    shutil.copy(BUNDLED / "tiny-masked" / "tokenizer.json", folder)
    return str(folder)
