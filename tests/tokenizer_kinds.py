"""Tokenizers of the kinds in use, built as transformers builds them and trained on a little text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

CORPUS = (
    """
The film was good. How many? "It's great," she said: 'so good'. I don't know... 12 apples cost $3,400.50!
Q: What is 2+2?\nA: The answer is 4.\n\nLet's think step by step. Topic: News: Category: Yes No [INST] answer
这部电影很好看。情感是正面的。今天天气不错\uff0c我们去公园吧\uff01 映画はとても良かったです。
الفيلم كان جيدا جدا. هل أعجبك؟ ภาพยนตร์เรื่องนี้ดีมาก คุณชอบไหม 영화가 정말 좋았어요. Фильм был очень хороший.
👍🏽 👨‍👩‍👧 😀 naïve café coöperate İyi kötü. a film so good that it was terrible; the news above is about sports
"""
    * 3
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = pre_tokenizers.ByteLevel.alphabet()
LINES = [*CORPUS.split("\n"), CORPUS]


def _around(begin: str | None, end: str | None, backend: Tokenizer) -> None:
    single = " ".join(filter(None, (begin, "$A", end)))
    special = [(t, backend.token_to_id(t)) for t in (begin, end) if t]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=single + " $B", special_tokens=special)


def _fast(backend: Tokenizer, **special: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _bytes(
    split: Any, normalizer: Any = None, special: tuple[str, ...] = ("<|endoftext|>",), size: int = 700
) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        LINES,
        trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=BYTES, show_progress=False),
    )
    return backend


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2() -> Any:
    return _fast(_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False)), eos_token="<|endoftext|>")


def roberta() -> Any:
    backend = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), special=("<s>", "<pad>", "</s>", "<unk>"))
    _around("<s>", "</s>", backend)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return _fast(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token=mask)


def llama3() -> Any:
    backend = _bytes(
        _split(LLAMA3), special=("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
    )
    _around("<|begin_of_text|>", None, backend)
    return _fast(backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def qwen() -> Any:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return _fast(_bytes(_split(QWEN), normalizers.NFC(), special), eos_token="<|im_end|>")


def phi() -> Any:
    backend = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 6)] + [AddedToken("\t\t")])
    return _fast(backend, eos_token="<|endoftext|>")


def modernbert() -> Any:
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]")
    backend = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(), special)
    backend.add_tokens([AddedToken(" " * n) for n in range(2, 6)])
    _around("[CLS]", "[SEP]", backend)
    mask = AddedToken("[MASK]", lstrip=True, special=True)
    return _fast(backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token=mask)


def bert() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    _around("[CLS]", "[SEP]", backend)
    names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
    return _fast(backend, **{f"{k}_token": v for k, v in names.items()})


def _sentencepiece_bpe(begin: str, more: tuple[str, ...] = ()) -> Tokenizer:
    """BPE with byte fallback; SentencePiece learns no merge across a space."""
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", begin, "</s>", *more]
    backend.train_from_iterator(
        CORPUS.split(), trainers.BpeTrainer(vocab_size=900, special_tokens=special + fallback, show_progress=False)
    )
    state = backend.model.__getstate__()
    import json

    model = json.loads(state)
    plain = Tokenizer(
        models.BPE(
            model["vocab"], [tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    plain.add_special_tokens(special)
    return plain


def llama2() -> Any:
    backend = _sentencepiece_bpe("<s>")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _around("<s>", None, backend)
    return _fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def mistral() -> Any:
    backend = _sentencepiece_bpe("<s>", ("[INST]", "[/INST]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    _around("<s>", None, backend)
    return _fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> Any:
    backend = _sentencepiece_bpe("<bos>", ("<start_of_turn>", "<end_of_turn>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _around("<bos>", None, backend)
    return _fast(backend, bos_token="<bos>", eos_token="</s>", unk_token="<unk>")


def _unigram(split: Any, special: tuple[str, ...], normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    backend.normalizer = normalizer or normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    backend.pre_tokenizer = split
    backend.train_from_iterator(
        CORPUS.split("\n"),
        trainers.UnigramTrainer(vocab_size=420, special_tokens=list(special), unk_token="<unk>", show_progress=False),
    )
    return backend


def xlmr() -> Any:
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend = _unigram(split, ("<s>", "<pad>", "</s>", "<unk>"))
    _around("<s>", "</s>", backend)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return _fast(backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token=mask)


def t5() -> Any:
    backend = _unigram(pre_tokenizers.Metaspace(), ("<pad>", "</s>", "<unk>", "<extra_id_0>"))
    _around(None, "</s>", backend)
    return _fast(backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<extra_id_0>")


def deberta() -> Any:
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), spaces])
    backend = _unigram(pre_tokenizers.Metaspace(), ("[PAD]", "[CLS]", "[SEP]", "<unk>", "[MASK]"), normalizer)
    _around("[CLS]", "[SEP]", backend)
    return _fast(
        backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="<unk>", mask_token="[MASK]"
    )


def byt5() -> Any:
    return ByT5Tokenizer(mask_token="<extra_id_0>")


CAUSAL: tuple[Callable[[], Any], ...] = (gpt2, llama2, llama3, qwen, gemma, mistral, phi)
MASKED: tuple[Callable[[], Any], ...] = (bert, roberta, xlmr, t5, deberta, modernbert, byt5)
