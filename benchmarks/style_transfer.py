"""Text style transfer, end to end, on Shakespeare with small models that are trained here; and how fast it samples.

    python benchmarks/style_transfer.py                # train the models, search over 3 seeds, measure: under an hour
    python benchmarks/style_transfer.py --out DIR      # keep models, tasks and outputs there; what is there stays
    python benchmarks/style_transfer.py --only speed   # or train, search: a part of it

Needs the shared data (RAYPROMPT_SHARED, or ../shared): style-transfer/shakespeare, 100 pairs of lines for train, 100
for dev, 1,462 for test. Modern lines are to become Shakespeare's. Trained here, on train and dev alone:

- style classifiers: one on dev for the reward (searches are on lines of train), another on train for the report;
- the generator, a causal LM that sees `words "a line" "` and goes on with that line in older words, with the line as it
  is, or with something that is always the same. Which, the words decide: some make older words likelier, each a little,
  and some of them for lines that ask or for lines that do not, so that a prompt for each input is worth more than one;
- for the report, a classifier of well-formed lines against shuffled ones, and an LM for perplexity.

They are tiny: what the metrics say of them says nothing of real models. Written to style_transfer.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

END, PAD, CLS, SEP, UNKNOWN = "<end>", "<pad>", "<cls>", "<sep>", "<unk>"
OLDER = {
    "you": "thou", "your": "thy", "yours": "thine", "are": "art", "has": "hath", "does": "doth", "have": "hast",
    "do": "dost", "will": "wilt", "before": "ere", "it's": "'tis", "i'm": "i am", "don't": "do not", "can't": "cannot",
    "yes": "ay", "no": "nay", "please": "prithee", "why": "wherefore", "there": "thither", "here": "hither",
    "man": "sirrah", "father": "sire", "well": "marry", "you're": "thou art", "can": "canst", "was": "wast",
    "look": "mark", "think": "methinks", "often": "oft", "between": "betwixt", "nothing": "naught", "go": "hie",
}  # fmt: skip
SHARPNESS, NEEDED = 4.0, 1.0  # P(older words) = sigmoid(SHARPNESS (sum of the words' weights - NEEDED))
COPIES, IDLE = 0.1, 4  # without older words: the share of copies; lines that stand for all others
KINDS = ("asks", "says")
MOST = 12  # words of a line the generator is trained on
TASK = """\
name: shakespeare
kind: generation
template: '{{prompt}} "{{text}}" "'
extractor: lower-sentence
scorer: style
style: {{classifier: {models}/style, target: old, encoder: {models}/style, layer: 1, baseline: {baseline},
  test_classifier: {models}/style-test, fluency: {models}/fluency, fluency_label: line, perplexity: {models}/plain}}
manual_prompt: the
max_tokens: 40
length_control: true
temperature: 1
top_k: 10
samples: {samples}
stop: ['"']
columns: {{text: text, answer: text, reference: reference}}
splits: {{train: train.tsv, dev: dev.tsv, test: test.tsv}}
"""


def pairs(part: str) -> list[tuple[str, str]]:
    """(modern, old) lines of a part of the data, lower case, without quotation marks."""
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    file = shared / "data" / "style-transfer" / "shakespeare" / f"{part}.tsv"
    if not file.is_file():
        raise SystemExit(f"needs {file} (RAYPROMPT_SHARED)")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    old, modern = ([plain(row["text"]) for row in rows if row["label"] == label] for label in ("0", "1"))
    return list(zip(modern, old, strict=True))


def plain(text: str) -> str:
    """A line as the models know it: lower case, no quotation marks, one space between words."""
    return " ".join(text.lower().replace('"', " ").split())


def older(line: str) -> str:
    """A line in older words, by the table."""
    return " ".join(re.sub(r"[a-z']+", lambda m: OLDER.get(m[0], m[0]), word) for word in line.split())


def kind(line: str) -> str:
    """Whether a line asks or says something."""
    return KINDS[not line.rstrip().endswith("?")]


def control_words(lines: list[str], count: int = 20) -> dict[str, dict[str, float]]:
    """What words in front of a line do to the chance of older words, by the kind of the line."""
    counts = Counter(w for line in lines for w in re.findall(r"[a-z]{3,}", line))
    known = [w for w, _ in counts.most_common(count)]
    rng = random.Random("weights")
    rng.shuffle(known)
    weights: dict[str, dict[str, float]] = {}
    for i, word in enumerate(known):
        own, other = rng.uniform(0.4, 0.6), rng.uniform(-0.4, -0.2)
        if i % 5 == 0:
            weights[word] = {"asks": own, "says": other}
        elif i % 5 == 1:
            weights[word] = {"asks": other, "says": own}
        elif i % 5 == 2:
            weights[word] = dict.fromkeys(KINDS, rng.uniform(0.2, 0.3))
        else:
            weights[word] = dict.fromkeys(KINDS, rng.uniform(-0.5, -0.2))
    return weights


# Tokenizers and training.


def tokenizer(lines: list[str], size: int, folder: Path, *, classifies: bool) -> Tokenizer:
    """Byte-level BPE, trained on lines and saved; a classifier's puts a line between two special tokens."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = [PAD, END, CLS, SEP]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([f" {line}" for line in lines] + ['"'], trainer)
    named: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    named |= {"clean_up_tokenization_spaces": False, "pad_token": PAD}
    if classifies:
        ends = [(CLS, made.token_to_id(CLS)), (SEP, made.token_to_id(SEP))]
        made.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=ends)
        named |= {"cls_token": CLS, "sep_token": SEP}
    else:
        named |= {"eos_token": END}
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n")
    return made


def train(model: Any, batch: Any, steps: int, rate: float, name: str) -> None:
    """Train a model on the loss that ``batch(model)`` gives, and leave it ready to be saved."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.1)
    started = time.time()
    for step in range(steps):
        loss = batch(model)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249 or step + 1 == steps:
            print(f"{name}: step {step + 1}/{steps} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)
    model.eval()


def classifier(folder: Path, rows: list[tuple[str, int]], labels: list[str], lines: list[str], steps: int) -> None:
    """A small BERT that tells lines apart, trained from nothing; words are left out at random as it learns."""
    words = tokenizer(lines, 700, folder, classifies=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, num_labels=len(labels), hidden_dropout_prob=0.4,
        pad_token_id=0, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    rng = random.Random(str(folder.name))

    def batch(model: Any) -> Any:
        some = [rng.choice(rows) for _ in range(32)]
        texts = [" ".join(w for w in text.split() if rng.random() > 0.3) or text for text, _ in some]
        ids = [words.encode(text).ids for text in texts]
        return model(**padded(ids), labels=torch.tensor([label for _, label in some])).loss

    model = BertForSequenceClassification(config).train()
    train(model, batch, steps, 2e-3, folder.name)
    model.save_pretrained(folder)


def padded(rows: list[list[int]]) -> dict[str, Any]:
    """Ids and mask of a batch."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def causal(words: Tokenizer, width: int = 96, layers: int = 3) -> LlamaForCausalLM:
    """A small causal LM, untrained."""
    torch.manual_seed(0)
    end = words.token_to_id(END)
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=2 * width, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=end, eos_token_id=end, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def generator(folder: Path, lines: list[str], steps: int, batch_size: int = 48) -> None:
    """The LM that rewrites a line, or does not, as the words in front of it say."""
    weights = control_words(lines)
    words = tokenizer([*lines, *map(older, lines)], 900, folder, classifies=False)
    model, rng, end = causal(words), random.Random("documents"), words.token_to_id(END)
    known = list(weights)
    good = {k: [w for w in known if weights[w][k] > 0] for k in KINDS}
    idle = [modern for modern, _ in pairs("train") if 3 <= len(modern.split()) <= 6][:IDLE]

    def line() -> str:
        """A line of the data, or pieces of several: copying must be learned, not these lines."""
        if rng.random() < 0.3:
            return rng.choice(lines)
        pieces = []
        while sum(map(len, pieces)) < rng.randint(2, 10):
            own = rng.choice(lines).rstrip(".!?").split()
            start = rng.randrange(len(own))
            pieces.append(own[start : start + rng.randint(1, 3)])
        own = [w for piece in pieces for w in piece]
        if rng.random() < 0.5:
            rng.shuffle(own)
        return " ".join(own) + rng.choice("..??!")

    def document() -> tuple[str, str]:
        """What is read, and how it goes on."""
        source = " ".join(line().split()[:MOST])
        share = math.sqrt(rng.random())  # of words that help: as many documents with older words as without
        prompt = [rng.choice(good[kind(source)] if rng.random() < share else known) for _ in range(rng.randint(0, 5))]
        chance = 1 / (1 + math.exp(-SHARPNESS * (sum(weights[w][kind(source)] for w in prompt) - NEEDED)))
        other = source if rng.random() < COPIES else rng.choice(idle)
        target = older(source) if rng.random() < chance else other
        return " ".join([*prompt, f'"{source}" "']), f'{target}"'

    def batch(model: Any) -> Any:
        some = [tuple(words.encode(part).ids for part in document()) for _ in range(batch_size)]
        rows = [before + behind + [end] for before, behind in some]
        given = padded(rows)
        wanted = given["input_ids"].clone()
        for i, (before, behind) in enumerate(some):
            wanted[i, : len(before)] = -100
            wanted[i, len(before) + len(behind) + 1 :] = -100
        logits = model(**given).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)

    train(model.train(), batch, steps, 3e-3, folder.name)
    model.save_pretrained(folder)
    (folder / "words.txt").write_text("\n".join(searched(weights, words)) + "\n")


def searched(weights: dict[str, dict[str, float]], words: Tokenizer) -> list[str]:
    """The words that prompts are searched among: those that hinder, and the two best for each kind."""
    known = [w for w in weights if single(words, w)]
    best = [w for k in KINDS for w in sorted(known, key=lambda w: -weights[w][k])[:2]]
    return [*dict.fromkeys(best), *(w for w in known if max(weights[w].values()) < 0)]


def single(words: Tokenizer, word: str) -> bool:
    """Whether a word behind a space is one token."""
    return len(words.encode(f" {word}").ids) == 1


def plain_lm(folder: Path, lines: list[str], steps: int) -> None:
    """An LM of lines, for perplexity."""
    words = tokenizer(lines, 500, folder, classifies=False)
    model, rng, end = causal(words, 64, 2), random.Random("lines"), words.token_to_id(END)

    def batch(model: Any) -> Any:
        given = padded([[end, *words.encode(rng.choice(lines)).ids, end] for _ in range(32)])
        wanted = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
        return model(**given, labels=wanted).loss

    train(model.train(), batch, steps, 2e-3, folder.name)
    model.save_pretrained(folder)


def shuffled(line: str, rng: random.Random) -> str:
    """A line with its words in another order."""
    own = line.split()
    rng.shuffle(own)
    return " ".join(own)


def train_all(folder: Path, steps: int) -> None:
    """Every model that is not there yet."""
    parts = {part: pairs(part) for part in ("train", "dev")}
    lines = [line for rows in parts.values() for pair in rows for line in pair]
    styles = {p: [(line, label) for m, o in rows for line, label in ((o, 0), (m, 1))] for p, rows in parts.items()}
    rng = random.Random("shuffled")
    wrong = [(shuffled(line, rng), 1) for line in lines for _ in range(3) if len(line.split()) > 2]
    jobs = {
        "generator": lambda where: generator(where, lines, steps),
        "style": lambda where: classifier(where, styles["dev"], ["old", "modern"], lines, 500),
        "style-test": lambda where: classifier(where, styles["train"], ["old", "modern"], lines, 500),
        "fluency": lambda where: classifier(
            where, [(line, 0) for line in lines] * 3 + wrong, ["line", "shuffled"], lines, 600
        ),
        "plain": lambda where: plain_lm(where, lines, 300),
    }
    for name, job in jobs.items():
        if not (folder / name / "model.safetensors").is_file():
            job(folder / name)


# The task, and searches on it.


def write_task(folder: Path, models: Path, samples: int, lines: dict[str, int | None]) -> Path:
    """A task folder: modern lines, whose content is to be kept, and the old ones as references; how many ``lines``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        rows = [(m, o) for m, o in pairs(part) if m]
        if part == "train":
            rows = by_turns([row for row in rows if len(row[0].split()) <= MOST and older(row[0]) != row[0]])
        rows = rows[: lines.get(part)]
        text = "\n".join(["text\treference", *(f"{m}\t{o}" for m, o in rows)]) + "\n"
        (folder / f"{part}.tsv").write_text(text)
    baseline = unrelated(models)
    (folder / "task.yaml").write_text(TASK.format(models=models.resolve(), samples=samples, baseline=baseline))
    return folder


def by_turns(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Lines that ask and lines that do not, by turns, as long as there are both; the others behind."""
    asks, says = ([row for row in rows if kind(row[0]) == k] for k in KINDS)
    count = min(len(asks), len(says))
    return [row for two in zip(asks, says, strict=False) for row in two] + asks[count:] + says[count:]


def unrelated(models: Path) -> float:
    """BERTScore's baseline: the F1 of lines that have nothing to do with each other, of train."""
    from rayprompt.lm.judges import Judges

    lines = [modern for modern, _ in pairs("train")]
    found = Judges("cpu").run("content", (str(models / "style"), 1, 0.0), [lines, lines[1:] + lines[:1]])
    return round(float(found.mean()), 3)


def search(key: dict[str, Any], task: Path, models: Path, out: Path) -> dict[str, Any]:
    """One search with rl, what its rewards did, and what the winner does to every test line."""
    import rayprompt
    from rayprompt import Problem, ScoringPool

    started = time.perf_counter()
    settings = {**SETTINGS[key["policy"]], "policy_model": str(models / "generator")}
    settings["tokens"] = (models / "generator" / "words.txt").read_text().split()
    budget = key["steps"] * settings["prompts"] * key["samples"]
    budget *= 1 if "inputs" in settings else LINES["all inputs"]
    generator = str(models / "generator")
    result = rayprompt.search(
        task, model=generator, searcher="rl", seed=key["seed"], settings=settings, budget=budget, lm=NARROW,
        allow_leaks=True, out=out,
    )  # fmt: skip
    reports = [json.loads(line) for line in next(out.glob("*/result.json")).read_text().splitlines()]
    rewards = [r["searcher"]["reward"] for r in reports if r["training_iteration"] > 0]
    problem = Problem(task, generator, allow_leaks=True, lm=NARROW)
    row: dict[str, Any] = {
        "prompt": result.best_prompt.text,  # type: ignore[union-attr]
        "diversity": result.to_json()["best_prompt"].get("diversity"),
        "rise": rise(rewards),
        "rewards": [round(float(np.mean(some)), 2) for some in np.array_split(rewards, 20)],
        "test": result.test.to_json(),
        "baselines": {name: b.test.to_json() for name, b in result.baselines.items()},
        "metrics": {},
        "evaluations": result.evaluations,
        "evaluations_per_second": round(result.evaluations_per_second, 1),
    }
    pool = ScoringPool.start(problem.lm, scorers=os.cpu_count())
    for name, prompt in {
        "found": result.best_prompt,
        "empty": problem.prompt(""),
        "manual": problem.prompt("the"),
    }.items():
        report = rayprompt.evaluate(prompt, problem, on="test", store=out, pool=pool).style
        assert report is not None
        row["metrics"][name] = {k: None if v is None else round(v, 2) for k, v in report.to_json().items()}
        report.write(out / f"outputs-{name}.txt")
        row["output_lines"] = len((out / f"outputs-{name}.txt").read_text().splitlines())
        print(f"  {name}: {report}", flush=True)
    pool.shutdown()
    return {**row, "seconds": round(time.perf_counter() - started)}


def rise(rewards: list[float]) -> dict[str, Any]:
    """Mean reward of the last tenth of the steps minus that of the first tenth, with Welch's 95 % interval."""
    from scipy.stats import ttest_ind

    count = max(2, len(rewards) // 10)
    first, last = rewards[:count], rewards[-count:]
    interval = ttest_ind(last, first, equal_var=False).confidence_interval(0.95)
    numbers = {"first": float(np.mean(first)), "last": float(np.mean(last)), "steps": len(rewards)}
    return {
        **{name: round(value, 2) for name, value in numbers.items()},
        "difference": round(float(np.mean(last) - np.mean(first)), 2),
        "ci95": [round(float(interval.low), 2), round(float(interval.high), 2)],
    }


# Speed.


def speed(models: Path, folder: Path, rounds: int = 9, count: int = 8) -> dict[str, Any]:
    """Samples a second, written and rewarded: ours, and the original's way, on the same cores, in turns."""
    import ray

    from rayprompt import Problem, ScoringPool
    from rayprompt.budget import Ledger
    from rayprompt.scoring.evaluator import Evaluator
    from rayprompt.study.measure import judging_of

    problem = Problem(
        write_task(folder, models, 128, {"dev": 8, "test": 8}), str(models / "generator"), allow_leaks=True
    )
    words = (models / "generator" / "words.txt").read_text().split()
    lines = problem.answers("train")
    times: dict[str, list[float]] = {"ours": [], "original": [], "original, no end token": []}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pool = ScoringPool.start(problem.lm, scorers=os.cpu_count())
    original = Original(models)
    rng = random.Random(0)
    for turn in range(rounds + 1):
        prompts = [problem.prompt(" ".join(rng.choice(words) for _ in range(5))) for _ in range(4)]
        places = rng.sample(range(len(lines)), count // 4)
        evaluator = Evaluator(
            pool, problem.part("train"), problem.gold, Ledger(10**6), examples=problem.digests("train"),
            judging=judging_of(problem, "train"),
        )  # fmt: skip
        wanted = np.zeros((4, len(lines)), dtype=bool)
        wanted[:, places] = True
        pool.judged.clear()
        started = time.perf_counter()
        scores = evaluator.score(prompts, [problem.token_ids(p) for p in prompts], pairs=wanted)
        took = {"ours": (time.perf_counter() - started) / len(scores)}
        for name, end in (("original", True), ("original, no end token", False)):
            started, samples = time.perf_counter(), 0
            for prompt in prompts:
                for place in places:
                    samples += original.samples(prompt.text, lines[place], end)
            took[name] = (time.perf_counter() - started) / samples
        if turn:  # the first warms up
            for name, seconds in took.items():
                times[name].append(seconds)
            print({name: round(1 / seconds) for name, seconds in took.items()}, flush=True)
    pool.shutdown()
    ray.shutdown()
    rates = {name: round(1 / float(np.median(seconds)), 1) for name, seconds in times.items()}
    # Of each turn, as the machine's own speed changes.
    ratios = {
        name: round(float(np.median(np.array(seconds) / times["ours"])), 2)
        for name, seconds in times.items()
        if name != "ours"
    }
    return {"samples_per_second": rates, "ratios": ratios, "cores": os.cpu_count(), "pairs": count, "samples": 128}


class Original:
    """RLPrompt's way: for one pair at a time one call of generate, which goes on to the most new tokens; all samples
    through the classifier in batches of 32, and the distinct ones through the encoder, as BERTScore does."""

    def __init__(self, models: Path) -> None:
        import transformers

        auto = transformers.AutoTokenizer.from_pretrained
        self.words, self.own = auto(models / "generator"), auto(models / "style")
        self.lm = LlamaForCausalLM.from_pretrained(models / "generator").eval()
        self.style = BertForSequenceClassification.from_pretrained(models / "style").eval()

    def samples(self, prompt: str, line: str, ends: bool) -> int:
        """Write and reward 128 samples of a pair; gives how many."""
        from rayprompt.answers import first_sentence

        torch.set_num_threads(os.cpu_count() or 1)
        n = len(self.words(line)["input_ids"])
        ids = self.words(f'{prompt} "{line}" "', return_tensors="pt")
        how: dict[str, Any] = {} if ends else {"eos_token_id": None}
        with torch.inference_mode():
            if not ends:
                self.lm.generation_config.eos_token_id = None
            else:
                self.lm.generation_config.eos_token_id = self.words.eos_token_id
            out = self.lm.generate(
                **ids, max_new_tokens=min(40, int(max(1.5 * n, n + 10))), do_sample=True, top_k=10, temperature=1.0,
                num_return_sequences=128, pad_token_id=0, **how,
            )  # fmt: skip
            written = self.words.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            texts = [first_sentence(text).lower() for text in written]
            for start in range(0, len(texts), 32):
                some = self.own(texts[start : start + 32], return_tensors="pt", padding=True, truncation=True)
                self.style(**{k: v for k, v in some.items() if k != "token_type_ids"}).logits.softmax(-1)
            distinct = sorted({*texts, line}, key=len)
            states: dict[str, Any] = {}
            for start in range(0, len(distinct), 64):
                names = distinct[start : start + 64]
                some = self.own(names, return_tensors="pt", padding=True, truncation=True)
                given = {k: v for k, v in some.items() if k != "token_type_ids"}
                hidden = self.style.bert(**given, output_hidden_states=True).hidden_states[1]
                hidden = torch.nn.functional.normalize(hidden, dim=-1)
                for i, name in enumerate(names):
                    states[name] = hidden[i, : int(some["attention_mask"][i].sum())]
            for start in range(0, len(texts), 64):
                own = torch.nn.utils.rnn.pad_sequence([states[t] for t in texts[start : start + 64]], batch_first=True)
                similar = own @ states[line].T
                similar.amax(dim=2).mean(dim=1), similar.amax(dim=1).mean(dim=1)
        return len(texts)


SETTINGS: dict[str, dict[str, Any]] = {
    "each input": {"inputs": 8, "prompts": 32, "length": 4, "learning_rate": 1e-3, "fresh": False, "steps": 100},
    "all inputs": {"prompts": 8, "length": 4, "learning_rate": 5e-4, "fresh": False, "steps": 100},
}
SAMPLES, STEPS = 8, {"each input": 100, "all inputs": 100}
LINES = {"each input": 16, "all inputs": 8}  # of train: all of them are read in a step
DEV_LINES = 24
NARROW = {"cache": "2400000"}  # passes of about as many rows as a pair has samples


def main() -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where models, tasks and outputs go; what is there stays")
    parser.add_argument("--only", choices=["train", "search", "speed"])
    parser.add_argument("--policies", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-lines", type=int, help="the first so many lines of test; all unless said")
    parser.add_argument("--steps", type=int, default=4000, help="of training the generator")
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    train_all(out / "models", args.steps)
    content = json.loads(args.result.read_text()) if args.result.exists() else {"searches": []}
    if args.only in (None, "search"):
        import ray

        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for seed in args.seeds:
            for policy in args.policies:
                key = {"policy": policy, "seed": seed, "steps": STEPS[policy], "samples": SAMPLES}
                if any(all(row.get(k) == v for k, v in key.items()) for row in content["searches"]):
                    continue
                lines = {"train": LINES[policy], "dev": DEV_LINES, "test": args.test_lines}
                name = policy.replace(" ", "-")
                task = write_task(out / f"task-{name}", out / "models", SAMPLES, lines)
                print(key, flush=True)
                row = {**key, **search(key, task, out / "models", out / f"{name}-s{seed}")}
                content["searches"].append(row)
                print(f"  {row['rise']} {row['diversity']} {row['prompt']!r} {row['seconds']} s", flush=True)
                args.result.write_text(json.dumps(content, indent=1) + "\n")
        ray.shutdown()
    if args.only in (None, "speed"):
        content["speed"] = speed(out / "models", out / "task-speed")
        print(content["speed"])
        args.result.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
