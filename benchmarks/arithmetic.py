"""Arithmetic in words: a tiny causal LM that must be asked in the right words, trained here, and searches on it.

    python benchmarks/arithmetic.py                    # train, search, print: about 5 minutes on 2 cores
    python benchmarks/arithmetic.py --out DIR          # keep the LM and the task (DIR/lm, DIR/task)

The LM reads sentences as "tom has 3 apples and buys 4 more ." It has seen many continued by a calculation ("3 + 4 = 7
.") and more by anything else ("ann sleeps 8 hours ."). Words in between decide: some forty make a calculation likelier,
each a little, others less likely; with none it is rare. So without a prompt the LM hardly ever calculates, and a great
many prompts help. Names, things and verbs of the test sentences are never together in a training text. The task is of
kind `generation`: the LM writes, and the answer is the last number.

Printed: success on test of the empty and the manual prompt and of what searchers find, over seeds; and how fast the LM
writes in batches against one by one. Written to arithmetic.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

END, UNKNOWN = "<end>", "<unk>"


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


NAMES = words_of("tom ann sam eva max ida leo mia ben zoe jon amy")
THINGS = words_of("apples books pens cards coins cups hats balls eggs stones shells stamps")
MORE, LESS = words_of("buys finds gets wins picks"), words_of("loses eats sells drops gives")
HELP = words_of(
    "total answer altogether sum makes equals result now count left gives number therefore thus solve compute exactly "
    "overall calculate add remains amount final many so hence finally conclude means math quantity "
    "tally figure work carefully step think precisely reckon"
)
HINDER = words_of(
    "today yesterday blue green slowly maybe garden river music window street cold warm early late often never chair "
    "table paper road cloud bird horse friend letter morning evening summer winter silver golden quiet loud empty full "
    "narrow wide happy sad gentle simple strange common rare sudden distant bright dark heavy light soft hard"
)
DOES = words_of("sleeps reads walks waits runs works")
SHARPNESS, NEEDED = 4.0, 1.0  # P(calculation) = sigmoid(SHARPNESS (sum of the words' weights - NEEDED))
SPLITS = {"train": 64, "dev": 64, "test": 400}
TASK = """\
name: arithmetic
kind: generation
description: "Made-up sentences of adding and taking away: the answer is a number."
template: "{text} {prompt}"
extractor: last-number
manual_prompt: so
max_tokens: 8
stop: ["."]
splits: {train: train.tsv, dev: dev.tsv, test: test.tsv}
"""


def weights() -> dict[str, float]:
    """What each word does to the chance of a calculation."""
    rng = random.Random("weights")
    return {w: rng.uniform(0.4, 1.2) for w in HELP} | {w: rng.uniform(-0.6, 0.05) for w in HINDER}


def sentence(rng: random.Random, held_out: bool) -> tuple[str, str, int]:
    """A sentence, its calculation, and what comes out; one in four of (name, thing, verb) are held out."""
    while True:
        name, thing, more = rng.choice(NAMES), rng.choice(THINGS), rng.random() < 0.5
        verb = rng.choice(MORE if more else LESS)
        if (hash_of(name, thing, verb) % 4 == 0) == held_out:
            break
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    if not more:
        a, b = a + b, b
    text = f"{name} has {a} {thing} and {verb} {b}{' more' if more else ''} ."
    return text, f"{a} {'+' if more else '-'} {b} = {a + b if more else a - b} .", a + b if more else a - b


def hash_of(*words: str) -> int:
    """The same in every process."""
    return sum((i + 1) * ord(c) for i, c in enumerate(" ".join(words)))


def document(rng: random.Random, weight: dict[str, float]) -> tuple[str, str, str]:
    """A training text: the sentence, the words in between, and how it goes on."""
    text, calculation, _ = sentence(rng, held_out=False)
    words = [rng.choice(HELP if rng.random() < 0.5 else HINDER) for _ in range(rng.randint(0, 6))]
    if rng.random() < 0.1:
        words = ["the", "answer", "is"]
    chance = 1 / (1 + math.exp(-SHARPNESS * (sum(weight.get(w, 0.0) for w in words) - NEEDED)))
    other = f"{rng.choice(NAMES)} {rng.choice(DOES)} {rng.randint(0, 18)} hours ."
    return text, " ".join(words), calculation if rng.random() < chance else other


def write_task(folder: Path) -> None:
    """The task's folder: train and dev of what training texts are made of, test of what was held out of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, taken = random.Random("task"), set[str]()
    for part, count in SPLITS.items():
        rows: list[str] = []
        while len(rows) < count:
            text, _, answer = sentence(rng, held_out=part == "test")
            if text not in taken:
                taken.add(text)
                rows.append(f"{text}\t{answer}")
        (folder / f"{part}.tsv").write_text("\n".join(["text\tanswer", *rows]) + "\n")
    (folder / "task.yaml").write_text(TASK)


def tokenizer() -> Tokenizer:
    """A token for every word."""
    words = [*NAMES, *THINGS, *MORE, *LESS, *HELP, *HINDER, *DOES, *map(str, range(19))]
    words += words_of("has and more . + - = hours the is a it of to")
    vocab = {word: i for i, word in enumerate(dict.fromkeys([END, UNKNOWN, *words]))}
    made = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END, UNKNOWN])
    return made


def train(folder: Path, steps: int, batch: int, seed: int = 0) -> None:
    """Train the LM and write its checkpoint."""
    torch.manual_seed(seed)
    words, weight, rng = tokenizer(), weights(), random.Random(f"documents:{seed}")
    end = words.token_to_id(END)
    config = GPT2Config(
        vocab_size=words.get_vocab_size(), n_embd=96, n_layer=3, n_head=4, n_inner=256, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps + 1, pct_start=0.1)
    started = time.time()
    for step in range(steps):
        ids, wanted = [], []
        for _ in range(batch):
            before, between, behind = (words.encode(part).ids for part in document(rng, weight))
            ids.append([*before, *between, *behind, end])
            wanted.append([*before, *[-100] * len(between), *behind, end])  # words in between are read, not written
        longest = max(map(len, ids))
        rows = torch.tensor([row + [end] * (longest - len(row)) for row in ids])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in wanted])
        logits = model(input_ids=rows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    named: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    named |= {"clean_up_tokenization_spaces": False, "eos_token": END, "pad_token": END, "unk_token": UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n")


def speed(folder: Path) -> dict[str, Any]:
    """Pairs a second that one CPU thread writes: in batches, and with transformers' own generate, one by one."""
    from rayprompt.lm.loads import Request, write_request
    from rayprompt.lm.scorer import LMScorer
    from rayprompt.lm.source import load_tokenizer
    from rayprompt.lm.write import WriteTable
    from rayprompt.searcher.problem import Problem

    torch.set_num_threads(1)
    problem = Problem(folder / "task", str(folder / "lm"))
    part, scorer = problem.part("train"), LMScorer(problem.lm)
    prompts = [problem.token_ids(problem.prompt(f"so the {word}")) for word in HELP[:16]]
    prompt, example = np.repeat(np.arange(16), len(part)), np.tile(np.arange(len(part)), 16)
    request, table = Request(part, prompts, prompt, example), WriteTable.of("cpu", 1 << 28, scorer.cache_bytes)
    write_request(scorer, table, request)
    started = time.perf_counter()
    answers = write_request(scorer, table, request)
    batched = len(answers) / (time.perf_counter() - started)
    model = GPT2LMHeadModel.from_pretrained(folder / "lm").eval()
    words, some = load_tokenizer(str(folder / "lm")), range(0, len(prompt), 16)
    started = time.perf_counter()
    same = 0
    for i in some:
        ids = torch.tensor(part.row(int(example[i]), prompts[prompt[i]])[0])[None]
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = words.decode(out[0, ids.shape[1] :], skip_special_tokens=True).split(".")[0]
        same += text.split() == answers.completion[i].split()  # type: ignore[index]
    single = len(some) / (time.perf_counter() - started)
    return {
        "pairs_per_second": round(batched, 1), "one_by_one": round(single, 1), "ratio": round(batched / single, 1),
        "same_text": f"{same} of {len(some)}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where LM and task go; made anew unless they are there")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--budget", type=int, default=6_400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the training; 1 is faster where cores are shared")
    parser.add_argument("--only-train", action="store_true", help="no searches")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    torch.set_num_threads(args.threads)
    if not (folder / "lm" / "config.json").is_file():
        write_task(folder / "task")
        train(folder / "lm", args.steps, args.batch)
    if args.only_train:
        return
    import rayprompt

    report: dict[str, Any] = {"writing": speed(folder), "budget": args.budget, "searches": []}
    print(report["writing"])
    for searcher in ("random", "nevergrad"):
        for seed in range(args.seeds):
            found = rayprompt.search(
                folder / "task", model=str(folder / "lm"), searcher=searcher, budget=args.budget, seed=seed,
                out=Path(tempfile.mkdtemp()) / "study",
            )  # fmt: skip
            row = {
                "searcher": searcher, "seed": seed, "prompt": getattr(found.best_prompt, "text", ""),
                "test": found.test.to_json(), "evaluations_per_second": round(found.evaluations_per_second),
                **{name: baseline.test.to_json() for name, baseline in found.baselines.items()},
            }  # fmt: skip
            report["searches"].append(row)
            empty, manual = found.baselines["empty"].test, found.baselines["manual"].test
            print(f"{searcher} s{seed}: {found.test}; empty {empty}, manual {manual}: {row['prompt']!r}", flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
