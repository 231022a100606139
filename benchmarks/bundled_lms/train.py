"""Makes the bundled task and trains the two bundled language models.

    python benchmarks/bundled_lms/train.py          # everything, in place: about 15 minutes on 2 cores
    python benchmarks/bundled_lms/train.py --out try --steps 1000 --only masked

On one machine with the same libraries, the same seed and number of threads give the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import sentences
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

BUNDLED = Path(__file__).resolve().parents[2] / "rayprompt" / "bundled"
LENGTH = 128
SPLITS = {"train": ("P1", 64), "dev": ("P1", 64), "test": ("P2", 480)}
TASK_YAML = """\
name: reviews
version: 1
kind: classification
description: Short made-up review sentences; is the verdict great or terrible?
template: {masked: "{text} {prompt} {mask} .", causal: "{text} {prompt}"}
label_words: {0: terrible, 1: great}
manual_prompt: it was
metric: accuracy
columns: {text: text, label: label}
splits: {train: train.tsv, dev: dev.tsv, test: test.tsv}
"""
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STAGES = (0.1, 0.15, 0.75)  # shares of the steps: short lessons, lessons, documents
END = "<|endoftext|>"
SHAPE = {"width": 128, "layers": 4, "heads": 4, "inner": 384}


@dataclass(frozen=True)
class Encoded:
    """Token ids of the training texts, and where in each the verdict stands (-1: nowhere)."""

    ids: list[np.ndarray]
    verdict: np.ndarray


def write_task(folder: Path, seed: int) -> None:
    """The task's rows: train and dev from patterns P1, test from P2."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, taken = random.Random(f"task:{seed}"), set[str]()
    for split, (patterns, count) in SPLITS.items():
        rows = sentences.task_rows(rng, patterns, count, taken)
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="ascii")
    (folder / "task.yaml").write_text(TASK_YAML, encoding="ascii")


def check_unseen(folder: Path, documents: list[sentences.Document]) -> None:
    """No row of the task may stand in a training text."""
    rows = [line.split("\t")[0] for file in folder.glob("*.tsv") for line in file.read_text().splitlines()[1:]]
    seen = {document.text.split(" .")[0] for document in documents}
    assert rows, "no task rows"
    assert not seen & {row.removesuffix(" .") for row in rows}, "a task row is in the training texts"


def masked_tokenizer() -> Tokenizer:
    """WordPiece over all words of the world; other words fall apart into letters."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [*BERT_SPECIALS, *letters, *(f"##{c}" for c in letters if c.isalnum()), *sentences.vocabulary()]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, vocab[t]) for t in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(BERT_SPECIALS)
    return tokenizer


def causal_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE as in GPT-2, after lower-casing; every word of the world is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    words = [f" {word}" for word in sentences.vocabulary() for _ in range(20)]
    tokenizer.train_from_iterator([*words, *texts], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, masked: bool) -> None:
    """Writes the two files that AutoTokenizer needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"model_max_length": LENGTH, "clean_up_tokenization_spaces": False}
    if masked:
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        config |= dict(zip(names, BERT_SPECIALS, strict=True))
    else:
        # not GPT2Tokenizer: that class builds its own pipeline, without the lower-casing of tokenizer.json
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
        config |= {"unk_token": END, "pad_token": END, "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: Tokenizer, documents: list[sentences.Document], masked: bool, seed: int) -> Encoded:
    """Encodes the texts. A causal text is followed, and sometimes preceded, by the end-of-text token."""
    rng, ids, verdicts = random.Random(f"encode:{seed}"), [], []
    end = tokenizer.token_to_id("[SEP]" if masked else END)
    encodings = tokenizer.encode_batch([d.text for d in documents])
    for encoding, document in zip(encodings, documents, strict=True):
        tokens = encoding.ids
        # the verdict is the last word but for the full stop (and the [SEP])
        verdict = len(tokens) - (3 if masked else 2) if document.verdict >= 0 else -1
        if not masked:
            tokens = [*tokens, end]
            if rng.random() < 0.3:
                tokens, verdict = [end, *tokens], verdict + (verdict >= 0)
        ids.append(np.array(tokens, dtype=np.int64))
        verdicts.append(verdict)
    return Encoded(ids, np.array(verdicts))


def batches(data: Encoded, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Padded ids (0), attention mask and verdict positions; texts of like length share a batch."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(x) for x in data.ids])
    done = 0
    while done < steps:
        order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")
        groups = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        for g in rng.permutation(len(groups))[: steps - done]:
            rows = groups[g]
            ids = np.zeros((size, lengths[rows].max()), dtype=np.int64)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : lengths[row]] = data.ids[row]
                mask[i, : lengths[row]] = 1
            yield torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(data.verdict[rows])
            done += 1


def masked_loss(model: BertForMaskedLM, ids: Tensor, mask: Tensor, verdict: Tensor) -> Tensor:
    """Masked-word loss: 10 % of the words, and most of the verdicts, which count four times as much."""
    specials = len(BERT_SPECIALS)
    chosen = (torch.rand(ids.shape) < 0.10) & (ids >= specials)
    rows = torch.nonzero((verdict >= 0) & (torch.rand(len(verdict)) < 0.9)).squeeze(1)
    weight = torch.ones(ids.shape)
    chosen[rows, verdict[rows]] = True
    weight[rows, verdict[rows]] = 4.0
    draw = torch.rand(ids.shape)
    is_verdict = weight > 1
    replaced = torch.where(chosen & ((draw < 0.8) | is_verdict), BERT_SPECIALS.index("[MASK]"), ids)
    stray = torch.randint(specials, model.config.vocab_size, ids.shape)
    replaced = torch.where(chosen & (draw > 0.9) & ~is_verdict, stray, replaced)
    hidden = model.bert(input_ids=replaced, attention_mask=mask)[0]
    losses = torch.nn.functional.cross_entropy(model.cls(hidden[chosen]), ids[chosen], reduction="none")
    return (losses * weight[chosen]).sum() / weight[chosen].sum()


def causal_loss(model: GPT2LMHeadModel, ids: Tensor, mask: Tensor, verdict: Tensor) -> Tensor:
    """Next-word loss on the verdicts and, for speed, on 40 % of the other words."""
    hidden = model.transformer(input_ids=ids, attention_mask=mask)[0][:, :-1]
    weight = mask[:, 1:] * (torch.rand(ids[:, 1:].shape) < 0.4).float()
    rows = torch.nonzero(verdict >= 0).squeeze(1)
    weight[rows, verdict[rows] - 1] = 3.0
    kept = weight > 0
    logits = model.lm_head(hidden[kept])
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][kept], reduction="none")
    return (losses * weight[kept]).sum() / weight[kept].sum()


def new_model(tokenizer: Tokenizer, masked: bool) -> BertForMaskedLM | GPT2LMHeadModel:
    """An untrained model; dtype float32 in its config, so that the fp16 file is loaded as float32."""
    size = tokenizer.get_vocab_size()
    if masked:
        config = BertConfig(
            vocab_size=size, hidden_size=SHAPE["width"], num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"], intermediate_size=SHAPE["inner"],
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.08, pad_token_id=0,
        )  # fmt: skip
        model = BertForMaskedLM(config)
        for table in (model.bert.embeddings.position_embeddings, model.bert.embeddings.token_type_embeddings):
            table.weight.data *= 0.1  # large ones would drown the words at first
        return model
    end = tokenizer.token_to_id(END)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size, n_embd=SHAPE["width"], n_layer=SHAPE["layers"], n_head=SHAPE["heads"],
            n_inner=SHAPE["inner"], n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            initializer_range=0.04, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip


def train(model: BertForMaskedLM | GPT2LMHeadModel, stages: list[Encoded], args: argparse.Namespace) -> float:
    """Trains with AdamW and a one-cycle rate, stage by stage; returns the last running loss."""
    masked = isinstance(model, BertForMaskedLM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.steps + 3, pct_start=0.05)
    running, start = 0.0, time.time()
    model.train()
    counts = [round(args.steps * share) for share in STAGES]
    lessons = (batches(data, args.batch, count, args.seed) for data, count in zip(stages, counts, strict=True))
    for step, (ids, mask, verdict) in enumerate(chain.from_iterable(lessons)):
        loss = masked_loss(model, ids, mask, verdict) if masked else causal_loss(model, ids, mask, verdict)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 200 == 199:
            print(f"step {step + 1}/{args.steps} loss {running:.3f} {time.time() - start:.0f} s", flush=True)
    return running


def save_model(model: BertForMaskedLM | GPT2LMHeadModel, folder: Path) -> None:
    """Half-precision weights in the file, float32 once loaded."""
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_model(name: str, stages: list[list[sentences.Document]], args: argparse.Namespace) -> None:
    """Tokenizer and model of one kind, written to <out>/models/tiny-<name>."""
    start, masked, folder = time.time(), name == "masked", args.out / "models" / f"tiny-{name}"
    torch.manual_seed(args.seed)
    tokenizer = masked_tokenizer() if masked else causal_tokenizer([d.text for d in stages[-1][:1000]])
    save_tokenizer(tokenizer, folder, masked)
    encoded = [encode(tokenizer, texts, masked, args.seed) for texts in stages]
    model = new_model(tokenizer, masked)
    print(f"{name}: {tokenizer.get_vocab_size()} tokens, {model.num_parameters():,} parameters", flush=True)
    loss = train(model, encoded, args)
    save_model(model, folder)
    facts = {"seconds": round(time.time() - start), "steps": args.steps, "batch": args.batch}
    facts |= {"documents": sum(map(len, stages)), "seed": args.seed, "loss": round(loss, 4)}
    facts["threads"] = args.threads
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"{name}: done in {facts['seconds']} s", flush=True)


def main() -> None:
    """Command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder for tasks/ and models/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2800, help="training steps per model")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--documents", type=int, default=300_000, help="training texts made")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2, help="1 is faster where the cores are shared")
    parser.add_argument("--only", choices=("task", "masked", "causal"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    write_task(args.out / "tasks" / "reviews", args.seed)
    names = [n for n in ("masked", "causal") if args.only in (None, n)]
    if names:
        rng = random.Random(f"documents:{args.seed}")
        few = range(args.documents // 10)
        stages = [[sentences.lesson(rng, short) for _ in few] for short in (True, False)]
        stages.append([sentences.document(rng) for _ in range(args.documents)])
        check_unseen(args.out / "tasks" / "reviews", stages[-1] + stages[1])
        for name in names:
            make_model(name, stages, args)


if __name__ == "__main__":
    main()
