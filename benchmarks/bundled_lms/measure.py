"""Measures the bundled language models on the bundled task, without rayprompt: plain transformers.

    python benchmarks/bundled_lms/measure.py       # writes results.json beside this file, and the cards

The prompts are searched on the 64 train rows (cross-entropy), chosen on the 64 dev rows and reported on the
test rows, whose sentence patterns neither the language model nor the search has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from cards import write_card
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

BUNDLED = Path(__file__).resolve().parents[2] / "rayprompt" / "bundled"
MANUAL = "it was"
LABELS = ("terrible", "great")
LENGTH, RANDOM_PROMPTS, SWEEPS, CANDIDATES = 5, 200, 2, 32


@dataclass
class Rows:
    """One split: token ids of the texts, grouped by length so that no padding is needed, and labels."""

    groups: list[tuple[Tensor, Tensor]]
    count: int


class Judge:
    """A frozen language model and the two label words."""

    def __init__(self, folder: Path):
        self.masked = folder.name.endswith("masked")
        kind = AutoModelForMaskedLM if self.masked else AutoModelForCausalLM
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.head = self.model.cls if self.masked else self.model.lm_head
        space = "" if self.masked else " "
        ids = [self.tokenizer.encode(space + word, add_special_tokens=False) for word in LABELS]
        assert all(len(i) == 1 for i in ids), "a label word is not one token"
        self.labels = torch.tensor([i[0] for i in ids])
        self.pool = self._whole_words()

    def _whole_words(self) -> list[int]:
        """Ids of the tokens that are whole words, without the label words."""
        pool = []
        for token, i in sorted(self.tokenizer.get_vocab().items()):
            word = token if self.masked else token[1:] if token.startswith("Ġ") else ""
            if word.isascii() and word.isalpha() and len(word) > 1 and word not in LABELS:
                pool.append(i)
        return pool

    def ids(self, text: str) -> list[int]:
        """Token ids of a text or, with a leading space, of a prompt."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt as it stands within the template."""
        return self.ids(f" {prompt}" if prompt else "")

    def words(self, prompt: list[int]) -> str:
        """A prompt as text."""
        return str(self.tokenizer.decode(prompt)).strip()

    def rows(self, file: Path) -> Rows:
        """Reads a split."""
        lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
        by_length: dict[int, list[tuple[list[int], int]]] = {}
        for text, label in lines:
            ids = self.ids(text)
            by_length.setdefault(len(ids), []).append((ids, int(label)))
        groups = [
            (torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]))
            for _, rows in sorted(by_length.items())
        ]
        return Rows(groups, len(lines))

    @torch.inference_mode()
    def score(self, prompts: list[list[int]], rows: Rows) -> list[tuple[float, float]]:
        """(accuracy, cross-entropy) of prompts of one length; the decision is between the two label words."""
        right, loss = torch.zeros(len(prompts)), torch.zeros(len(prompts))
        block = torch.tensor(prompts, dtype=torch.long)
        for texts, labels in rows.groups:
            ids, at = self._join(texts, block)
            hidden = self.model.base_model(input_ids=ids)[0][:, at]  # the head at one place only, for speed
            logits = self.head(hidden)[:, self.labels]
            wanted = labels.repeat(len(prompts))
            losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            loss += losses.view(len(prompts), -1).sum(1)
            right += (logits.argmax(1) == wanted).view(len(prompts), -1).sum(1)
        return list(zip((right / rows.count).tolist(), (loss / rows.count).tolist(), strict=True))

    def _join(self, texts: Tensor, prompts: Tensor) -> tuple[Tensor, int]:
        """Every prompt after every text, prompt by prompt, and the position whose logits decide."""
        parts = [texts.repeat(len(prompts), 1), prompts.repeat_interleave(len(texts), 0)]
        if not self.masked:
            return torch.cat(parts, 1), -1
        t = self.tokenizer
        dot = t.convert_tokens_to_ids(".")
        ends = [[t.cls_token_id], [t.mask_token_id, dot, t.sep_token_id]]
        head, tail = (torch.tensor([e]).expand(len(parts[0]), -1) for e in ends)
        return torch.cat([head, *parts, tail], 1), -3

    def accuracy(self, prompt: str | list[int], rows: Rows) -> float:
        """Accuracy of one prompt."""
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        return round(self.score([ids], rows)[0][0], 4)


def climb(judge: Judge, train: Rows, pool: list[int], rng: random.Random) -> tuple[list[int], list[float]]:
    """Coordinate-wise search: at each place in turn, the best of some random tokens if it lowers the loss."""
    prompt = rng.sample(pool, LENGTH)
    best = judge.score([prompt], train)[0][1]
    trace = [best]
    for _ in range(SWEEPS):
        for place in range(LENGTH):
            tried = [[*prompt[:place], token, *prompt[place + 1 :]] for token in rng.sample(pool, CANDIDATES)]
            losses = [s[1] for s in judge.score(tried, train)]
            if min(losses) < best:
                best = min(losses)
                prompt = tried[losses.index(best)]
        trace.append(best)
    return prompt, trace


def search(judge: Judge, splits: dict[str, Rows], climbs: int, rng: random.Random) -> list[dict[str, Any]]:
    """Climbs one after another, each without the tokens that the prompts before it use."""
    used: set[int] = set()
    found = []
    for _ in range(climbs):
        prompt, trace = climb(judge, splits["train"], [t for t in judge.pool if t not in used], rng)
        used |= set(prompt)
        scores = {name: judge.accuracy(prompt, rows) for name, rows in splits.items()}
        found.append({"prompt": judge.words(prompt), **scores, "loss by sweep": [round(x, 3) for x in trace]})
        print("  climb:", json.dumps(found[-1]), flush=True)
    return found


def quantiles(values: list[float]) -> dict[str, float]:
    """Minimum, 10th percentile, median, 90th percentile, maximum."""
    v = sorted(values)
    places = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: round(v[round(q * (len(v) - 1))], 4) for name, q in places.items()}


def measure(folder: Path, task: Path, climbs: int, seed: int) -> dict[str, Any]:
    """All numbers of one model."""
    start, rng = time.time(), random.Random(seed)
    judge = Judge(folder)
    splits = {name: judge.rows(task / f"{name}.tsv") for name in ("train", "dev", "test")}
    test = splits["test"]
    spread = [judge.accuracy(rng.sample(judge.pool, LENGTH), test) for _ in range(RANDOM_PROMPTS)]
    out: dict[str, Any] = {
        "parameters": judge.model.num_parameters(),
        "vocabulary": len(judge.tokenizer),
        "whole words": len(judge.pool),
        "test rows": test.count,
        "empty": judge.accuracy("", test),
        "manual": judge.accuracy(MANUAL, test),
        "random prompts": quantiles(spread),
    }
    print(json.dumps(out), flush=True)
    found = search(judge, splits, climbs, rng)
    best = max(found, key=lambda f: (f["dev"], f["train"], -f["loss by sweep"][-1]))
    out["best"] = {k: best[k] for k in ("prompt", "train", "dev", "test")}
    near = [f for f in found if f["test"] >= best["test"] - 0.03]
    out["different prompts within 3 points"] = [{"prompt": f["prompt"], "test": f["test"]} for f in near]
    out["climbs"] = found
    out["ms for 64 rows"] = speed(judge, splits["train"])
    out["bytes"] = sum(f.stat().st_size for f in folder.iterdir() if f.name != "README.md")
    out["seconds measuring"] = round(time.time() - start)
    return out


def speed(judge: Judge, rows: Rows) -> float:
    """Milliseconds to score one prompt on the 64 train rows, on this machine's threads."""
    prompt = [judge.pool[:LENGTH]]
    judge.score(prompt, rows)
    start = time.time()
    for _ in range(10):
        judge.score(prompt, rows)
    return round((time.time() - start) * 100, 1)


def main() -> None:
    """Command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--bundled", type=Path, default=BUNDLED, help="folder with tasks/ and models/")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--only", choices=("masked", "causal"))
    parser.add_argument("--climbs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for name in ("masked", "causal"):
        folder = args.bundled / "models" / f"tiny-{name}"
        if args.only in (None, name):
            print(folder.name, flush=True)
            results[folder.name] = measure(folder, args.bundled / "tasks" / "reviews", args.climbs, args.seed)
            args.results.write_text(json.dumps(results, indent=2) + "\n")
            write_card(folder, results[folder.name])
            short = {k: v for k, v in results[folder.name].items() if k != "climbs"}
            print(json.dumps(short, indent=2), flush=True)


if __name__ == "__main__":
    main()
