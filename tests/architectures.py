"""Architectures of transformers, tiny and random, with what their configs need to be so small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from rayprompt.lm.source import BUNDLED, load_tokenizer

WINDOW = 24
LAYERS = ["sliding_attention", "full_attention"]
SENTINEL = "<extra_id_0>"
ROPE = {"rope_theta": 10000.0}
ENCODER_DECODER: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "num_hidden_layers": None,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "hidden_size": None,
    "num_attention_heads": None,
}  # fmt: skip
T5: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
XLNET: dict[str, Any] = {
    "d_model": 32, "n_layer": 2, "n_head": 2, "d_head": 16, "d_inner": 64, "hidden_size": None, "head_dim": None,
    "num_hidden_layers": None, "num_attention_heads": None, "max_position_embeddings": None,
}  # fmt: skip
# By name: the class, changes of the config, and how its inputs are laid out. None for a value leaves it out,
# an empty layout may be any.
CAUSAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "apertus": ("ApertusForCausalLM", {}, "packed"),
    "arcee": ("ArceeForCausalLM", {}, "packed"),
    "biogpt": ("BioGptForCausalLM", {}, "packed"),
    "bitnet": ("BitNetForCausalLM", {}, "packed"),
    "bloom": ("BloomForCausalLM", {"sliding_window": None}, "padded"),
    "camembert-decoder": ("CamembertForCausalLM", {"is_decoder": True}, "packed"),
    "codegen": ("CodeGenForCausalLM", {"n_head": 4, "rotary_dim": 4, "num_attention_heads": 4}, "padded"),
    "cohere": ("CohereForCausalLM", {}, "packed"),
    "cohere2": ("Cohere2ForCausalLM", {"layer_types": LAYERS}, "packed"),
    "cpmant": ("CpmAntForCausalLM", {}, "single"),
    "ctrl": ("CTRLLMHeadModel", {}, "packed"),
    "cwm": ("CwmForCausalLM", {"layer_types": LAYERS}, "packed"),
    "diffllama": ("DiffLlamaForCausalLM", {}, "packed"),
    "doge": ("DogeForCausalLM", {}, "padded"),
    "ernie4-5": ("Ernie4_5ForCausalLM", {}, "packed"),
    "exaone4": ("Exaone4ForCausalLM", {"layer_types": LAYERS}, "packed"),
    "falcon": ("FalconForCausalLM", {"head_dim": None}, "padded"),
    "falcon-alibi": ("FalconForCausalLM", {"head_dim": None, "alibi": True}, "padded"),
    "falcon-mamba": ("FalconMambaForCausalLM", {}, "padded"),
    "flex-olmo": ("FlexOlmoForCausalLM", {}, "single"),
    "gemma": ("GemmaForCausalLM", {}, "packed"),
    "gemma2": ("Gemma2ForCausalLM", {"layer_types": LAYERS}, "packed"),
    "gemma3": ("Gemma3ForCausalLM", {"layer_types": LAYERS}, "packed"),
    "glm": ("GlmForCausalLM", {}, "packed"),
    "glm4": ("Glm4ForCausalLM", {}, "packed"),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", {}, "packed"),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 16, "num_hidden_layers": None},
        "padded",
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", {}, "packed"),
    "gpt-oss": ("GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}, "single"),
    "gpt2": ("GPT2LMHeadModel", {}, "packed"),
    "gptj": ("GPTJForCausalLM", {"rotary_dim": 8}, "padded"),
    "granite": ("GraniteForCausalLM", {}, "packed"),
    "granite-moe": ("GraniteMoeForCausalLM", {}, "single"),
    "helium": ("HeliumForCausalLM", {}, "packed"),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", {}, "packed"),
    "jamba": ("JambaForCausalLM", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}, "single"),
    "jetmoe": ("JetMoeForCausalLM", {}, "single"),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}, "padded"),
    "llama": ("LlamaForCausalLM", {}, "packed"),
    "llama-dynamic": (
        "LlamaForCausalLM",
        {"max_position_embeddings": 32, "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
        "packed",
    ),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}, "packed"),
    "llama-yarn": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                **ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
        "packed",
    ),
    "llama3": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                **ROPE, "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            }
        },
        "packed",
    ),
    "llama4": ("Llama4ForCausalLM", {"attention_chunk_size": 16, "num_local_experts": 2}, "single"),
    "mamba": ("MambaForCausalLM", {}, "padded"),
    "mamba2": ("Mamba2ForCausalLM", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16}, "padded"),
    "minimax": ("MiniMaxForCausalLM", {"num_local_experts": 2, "block_size": 16}, "single"),
    "ministral": ("MinistralForCausalLM", {"layer_types": LAYERS}, "packed"),
    "mistral": ("MistralForCausalLM", {}, "packed"),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}, "single"),
    "modernbert-decoder": ("ModernBertDecoderForCausalLM", {"local_attention": 16}, "packed"),
    "mpt": ("MptForCausalLM", {}, "padded"),
    "nanochat": ("NanoChatForCausalLM", {}, "packed"),
    "nemotron": ("NemotronForCausalLM", {}, "packed"),
    "olmo": ("OlmoForCausalLM", {}, "packed"),
    "olmo2": ("Olmo2ForCausalLM", {}, "packed"),
    "olmo3": ("Olmo3ForCausalLM", {"layer_types": LAYERS}, "packed"),
    "olmo-hybrid": ("OlmoHybridForCausalLM", {}, "padded"),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}, "single"),
    "openai-gpt": ("OpenAIGPTLMHeadModel", {}, "padded"),
    "opt": ("OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "packed"),
    "persimmon": ("PersimmonForCausalLM", {}, "packed"),
    "phi": ("PhiForCausalLM", {}, "packed"),
    "phi3": ("Phi3ForCausalLM", {}, "packed"),
    "phi3-longrope": (
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                **ROPE, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0 + i for i in range(8)],
                "original_max_position_embeddings": 32,
            },
        },
        "packed",
    ),
    "qwen2": ("Qwen2ForCausalLM", {}, "packed"),
    "qwen3": ("Qwen3ForCausalLM", {}, "packed"),
    "qwen3-5": ("Qwen3_5ForCausalLM", {"layer_types": ["linear_attention", "full_attention"]}, "padded"),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        {"block_types": ["recurrent", "attention"], "attention_window_size": 16, "lru_width": 32},
        "padded",
    ),
    "roberta-decoder": ("RobertaForCausalLM", {"is_decoder": True}, "packed"),
    "rwkv": ("RwkvForCausalLM", {}, "padded"),
    "seed-oss": ("SeedOssForCausalLM", {}, "packed"),
    "smollm3": ("SmolLM3ForCausalLM", {}, "packed"),
    "stablelm": ("StableLmForCausalLM", {}, "packed"),
    "starcoder2": ("Starcoder2ForCausalLM", {}, "packed"),
    "vaultgemma": ("VaultGemmaForCausalLM", {}, "packed"),
    "xglm": ("XGLMForCausalLM", {}, "padded"),
    "xlnet": ("XLNetLMHeadModel", XLNET, "padded"),
}  # fmt: skip
MASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "albert": ("AlbertForMaskedLM", {}, "packed"),
    "bert": ("BertForMaskedLM", {}, "packed"),
    "big-bird": ("BigBirdForMaskedLM", {"block_size": 8, "num_random_blocks": 1}, "padded"),
    "camembert": ("CamembertForMaskedLM", {}, "packed"),
    "convbert": ("ConvBertForMaskedLM", {}, "single"),
    "data2vec": ("Data2VecTextForMaskedLM", {}, "packed"),
    "deberta": ("DebertaForMaskedLM", {}, "padded"),
    "deberta-v2": ("DebertaV2ForMaskedLM", {}, "padded"),
    "distilbert": ("DistilBertForMaskedLM", {}, "packed"),
    "electra": ("ElectraForMaskedLM", {}, "packed"),
    "ernie": ("ErnieForMaskedLM", {}, "packed"),
    "esm": (
        "EsmForMaskedLM",
        {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4},
        "padded",
    ),
    "eurobert": ("EuroBertForMaskedLM", {}, "packed"),
    "flaubert": ("FlaubertWithLMHeadModel", {}, "padded"),
    "fnet": ("FNetForMaskedLM", {}, "single"),
    "funnel": (
        "FunnelForMaskedLM",
        {"block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "num_hidden_layers": None},
        "single",
    ),
    "gte": ("GteForMaskedLM", {}, "packed"),
    "ibert": ("IBertForMaskedLM", {}, "padded"),
    "layoutlm": ("LayoutLMForMaskedLM", {}, "packed"),
    "longformer": ("LongformerForMaskedLM", {"attention_window": [8, 8]}, "padded"),
    "megatron-bert": ("MegatronBertForMaskedLM", {}, "padded"),
    "mobilebert": (
        "MobileBertForMaskedLM",
        {"hidden_size": 128, "embedding_size": 128, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        "",
    ),
    "modernbert": ("ModernBertForMaskedLM", {"local_attention": 16, "global_attn_every_n_layers": 2}, "packed"),
    "mpnet": ("MPNetForMaskedLM", {}, "padded"),
    "nomic-bert": ("NomicBertForMaskedLM", {}, "packed"),
    "nystromformer": ("NystromformerForMaskedLM", {"num_landmarks": 8, "segment_means_seq_len": 8}, "single"),
    "rembert": ("RemBertForMaskedLM", {"input_embedding_size": 16, "output_embedding_size": 16}, "padded"),
    "roberta": ("RobertaForMaskedLM", {}, "packed"),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", {}, "packed"),
    "roformer": ("RoFormerForMaskedLM", {}, "padded"),
    "squeezebert": ("SqueezeBertForMaskedLM", {"embedding_size": 32}, "padded"),
    "tapas": ("TapasForMaskedLM", {}, "padded"),
    "xlm": ("XLMWithLMHeadModel", {}, "padded"),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {}, "packed"),
    "xlm-roberta-xl": ("XLMRobertaXLForMaskedLM", {}, "packed"),
    "yoso": ("YosoForMaskedLM", {}, "single"),
}
SEQ2SEQ: dict[str, tuple[str, dict[str, Any], str]] = {
    "bart": ("BartForConditionalGeneration", ENCODER_DECODER, "padded"),
    "longt5-local": ("LongT5ForConditionalGeneration", {**T5, "local_radius": 8}, "padded"),
    "mbart": ("MBartForConditionalGeneration", {**ENCODER_DECODER, "decoder_start_token_id": None}, "padded"),
    "mt5": ("MT5ForConditionalGeneration", T5, "padded"),
    "mvp": ("MvpForConditionalGeneration", ENCODER_DECODER, "padded"),
    "plbart": ("PLBartForConditionalGeneration", ENCODER_DECODER, "padded"),
    "t5": ("T5ForConditionalGeneration", T5, "padded"),
    "umt5": ("UMT5ForConditionalGeneration", T5, "padded"),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "reformer": (
        "ReformerForMaskedLM",
        {
            "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attn_layers": ["lsh", "local"],
            "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16, "num_buckets": 4, "is_decoder": False,
            "feed_forward_size": 64, "num_hidden_layers": None, "max_position_embeddings": 128,
        },
        "another score each time",
    ),
    "xmod": ("XmodForMaskedLM", {}, "a forward pass of XmodForMaskedLM fails"),
}  # fmt: skip


def make(cls: str, changes: dict[str, Any], folder: Path) -> Any:
    """A checkpoint of a class with tiny-masked's tokenizer, and T5's sentinel in it; gives the model."""
    tokenizer = load_tokenizer("tiny-masked")
    settings = {
        "vocab_size": len(tokenizer) + 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 130,
        "sliding_window": WINDOW, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": tokenizer.sep_token_id, **changes,
    }  # fmt: skip
    model_class = getattr(transformers, cls)
    settings = {name: value for name, value in settings.items() if value is not None or name not in changes}
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or name.endswith("bias"):  # with random norms nothing would depend on the input
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """tiny-masked's tokenizer, for any type of model."""
    form = json.loads((BUNDLED / "tiny-masked" / "tokenizer.json").read_text())
    number = max([*form["model"]["vocab"].values(), *(token["id"] for token in form["added_tokens"])]) + 1
    sentinel = {"id": number, "content": SENTINEL, "special": True}
    form["added_tokens"].append(
        {**sentinel, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    )
    (folder / "tokenizer.json").write_text(json.dumps(form))
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("mask", "pad", "unk", "cls", "sep")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


__all__ = ["CAUSAL", "MASKED", "REFUSED", "SEQ2SEQ", "make", "shutil", "write_tokenizer"]
