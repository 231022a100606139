"""How fast an LM scores prompts: the originals' way, ours in process, ours through the pool, and the floor.

    python benchmarks/scoring.py [--seconds 8] [--settings masked-mr,causal-mr] [--device cuda]

One run, the same LM, candidates, examples and device for
(a) the originals' way: a candidate a forward pass over all examples, its text tokenised with every example every
    time, logits of the whole vocabulary at every position, fp32, all cores in one pass;
(b) ours in process: ``LMScorer``, as many forward passes side by side as there are cores, a thread each;
(c) ours through the scoring pool: Ray, router and actor between us and the LM;
(d) the floor: bare torch forward passes of the LM's body over as many new tokens in full batches without padding: no
    tokeniser, no head, nothing shared to attend to.
(a), (b) and (c) must give the same scores within 1e-4 (fp32). Writes benchmarks/scoring.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import PackTable, ShapeTable
from rayprompt.scores import FloatArray
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.task import Task

OUT = Path(__file__).with_suffix(".json")
CANDIDATES, EXAMPLES = 20, 32
PASSES = 4  # of the floor, a lane
WORDS = {"mr": ["terrible", "great"], "agnews": ["world", "sports", "business", "technology"]}


@dataclass(frozen=True)
class Setting:
    """A row of the table: which data, which family, where the prompt stands, how long it is, what b/a should be."""

    data: str
    family: str
    template: str
    prompt_tokens: int
    aim: float


SETTINGS = {
    "masked-mr": Setting("mr", "masked", "{text} {prompt} {mask} .", 5, 3.5),
    "causal-mr": Setting("mr", "causal", "{text} {prompt}", 5, 8.0),
    "causal-agnews": Setting("agnews", "causal", "{text} {prompt}", 5, 12.0),
    "causal-before-mr": Setting("mr", "causal", "{prompt} {text}", 50, 3.0),
}


def problem_of(setting: Setting, data: Path, model: str) -> Problem:
    """The task: 16-shot train of the data, cut to 32 examples."""
    folder = data / setting.data
    rows = (folder / "16-13" / "train.tsv").read_text().splitlines()[1 : 1 + 2 * EXAMPLES]
    examples = [{"text": t, "label": int(label)} for t, label in (row.rsplit("\t", 1) for row in rows)]
    step = max(1, len(examples) // EXAMPLES)
    task = Task.from_examples(
        f"scoring-{setting.data}",
        template={setting.family: setting.template},
        label_words=dict(enumerate(WORDS[setting.data])),
        train=examples[::step][:EXAMPLES],
        dev=[{"text": "nothing", "label": 0}],
        test=[{"text": "nothing at all", "label": 0}],
    )
    return Problem(task, model)


@dataclass
class Work:
    """A problem with its candidates."""

    problem: Problem
    texts: list[str]
    request: Request

    @classmethod
    def of(cls, problem: Problem, tokens: int) -> Work:
        """Candidates of ``tokens`` random words that are a token each."""
        rng = np.random.default_rng(0)
        words = [word for word in problem.words if len(word.later) == 1 == len(word.first)]
        texts = [" ".join(words[i].text for i in rng.integers(len(words), size=tokens)) for _ in range(CANDIDATES)]
        ids = [problem.prompt(text).token_ids or () for text in texts]
        part = problem.part("train")
        pairs = np.repeat(np.arange(CANDIDATES), len(part)), np.tile(np.arange(len(part)), CANDIDATES)
        return cls(problem, texts, Request(part, ids, *pairs))


def originals(work: Work, device: str) -> Callable[[], FloatArray]:
    """(a): as RLPrompt's and Black-Box Tuning's loops do it."""
    problem = work.problem
    from rayprompt.lm.source import load_tokenizer

    tokenizer = load_tokenizer(problem.lm.name)
    masked = problem.template.has_mask
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval().to(device)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    examples = problem.task.examples("train", problem.split)

    def run() -> FloatArray:
        torch.set_num_threads(os.cpu_count() or 1)
        rows = []
        for text in work.texts:
            inputs = [problem.template.render(e.fields, text, tokenizer.mask_token or "") for e in examples]
            batch = tokenizer(inputs, return_tensors="pt", padding=True, return_token_type_ids=False).to(device)
            with torch.inference_mode():
                logits = model(**batch).logits
            if masked:
                at = (batch["input_ids"] == tokenizer.mask_token_id).int().argmax(1)
            else:
                at = batch["attention_mask"].sum(1) - 1
            chosen = logits[torch.arange(len(at)), at][:, list(problem.label_ids)]
            rows.append(torch.log_softmax(chosen.float(), -1).cpu().numpy())
        return np.concatenate(rows)

    return run


def in_process(work: Work, scorer: LMScorer, table: PackTable | ShapeTable, lanes: int) -> Callable[[], FloatArray]:
    """(b)."""
    threads = ThreadPoolExecutor(lanes)
    return lambda: score_request(scorer, table, work.request, threads=threads)[0]


def through_pool(work: Work, pool: ScoringPool) -> Callable[[], FloatArray]:
    """(c)."""
    request = work.request
    pool.add(request.part)
    return lambda: pool.score_pairs(request.part, request.prompts, request.prompt, request.example).label_log_probs


def floor(work: Work, scorer: LMScorer, lanes: int, length: int, batch: int) -> Callable[[], None]:
    """(d): the body alone, ``PASSES`` passes a lane of ``batch`` tokens in rows of ``length``."""
    body = scorer.forward.model.base_model
    ids = torch.randint(1, work.problem.lm.vocab_size, (max(1, batch // length), length), device=scorer.device)
    read = torch.zeros(len(ids), dtype=torch.int64, device=scorer.device)

    def one(_: int) -> None:
        torch.set_num_threads(1)
        scorer.forward.local.rows = scorer.forward.local.read = read
        with torch.inference_mode():
            body(input_ids=ids)

    threads = ThreadPoolExecutor(lanes)
    return lambda: list(threads.map(one, range(lanes * PASSES)))


def seconds_of(run: Callable[[], Any], least: float) -> float:
    """Seconds a call takes: the median over ``least`` seconds, behind two calls that warm up."""
    run(), run()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
