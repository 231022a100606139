"""How fast an LM scores prompts: the originals' way, ours in process, ours through the pool, and the floor.

    python benchmarks/scoring.py [--seconds 6] [--settings masked-mr,causal-mr,roberta-large,llama-1b]

One run, the same LM, candidates, examples and device for
(a) the originals' way: a candidate a forward pass over all examples, its text tokenised with every example every
    time, logits of the whole vocabulary at every position, fp32, all cores in one pass;
(b) ours in process: ``LMScorer``, as many forward passes side by side as there are cores, a thread each;
(c) ours through the scoring pool: Ray, router and actor between us and the LM;
(d) the floor: bare torch forward passes of the LM's body over as many new tokens in full batches without padding: no
    tokeniser, no head, nothing shared to attend to.
(a), (b) and (c) must give the same scores within 1e-4 (in fp32). Writes a row for each device and LM into
benchmarks/scoring.json. Needs the shared data (RAYPROMPT_SHARED, or ../shared). Causal LMs are random, with the shared
LM's tokenizer; the settings ``roberta-large`` and ``llama-1b`` are random LMs of those sizes, in bf16 on a GPU, and say
what share of the device's measured matrix rate they reach.

The settings ``deep-mr`` and ``deep-large`` are a turn of BBTv2: 20 prompts that differ in the middle layer alone. There
(a) computes all layers for each of them, as deepbbt.py does, and (b) those from the middle on; both in process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from rayprompt.candidate import SoftPrompt
from rayprompt.lm.loads import Request, loads_of, passes_of, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import Inputs, PackTable, ShapeTable, table_of
from rayprompt.lm.soft import SoftBlock, block_of
from rayprompt.scores import FloatArray
from rayprompt.scoring.cluster import connect, plan_scorers
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.task import Task
from searchers.cma_es_deep import DeepCMAESSearcher

OUT = Path(__file__).with_suffix(".json")
CANDIDATES, EXAMPLES = 64, 32
TURN = 20  # candidates of a layer's turn
ORIGINALS = 8  # candidates that (a) scores: one after the other, so that its time is proportional to their number
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
    size: str = ""  # a random LM of that size, where it is not the shared one
    deep: bool = False  # prompts in every layer, the middle one being tuned


SPECIAL = {"bos_token_id": 101, "eos_token_id": 102}
SETTINGS = {
    "masked-mr": Setting("mr", "masked", "{text} {prompt} {mask} .", 5, 3.5),
    "causal-mr": Setting("mr", "causal", "{text} {prompt}", 5, 8.0),
    "causal-agnews": Setting("agnews", "causal", "{text} {prompt}", 5, 12.0),
    "causal-before-mr": Setting("mr", "causal", "{prompt} {text}", 50, 3.0),
    "deep-mr": Setting("mr", "masked", "{prompt} . {text} It was {mask} .", 50, 1.5, deep=True),
    "deep-large": Setting("mr", "masked", "{prompt} . {text} It was {mask} .", 50, 1.5, "roberta-large", deep=True),
    "roberta-large": Setting("mr", "masked", "{text} {prompt} {mask} .", 5, 20.0, "roberta-large"),
    "llama-1b": Setting("mr", "causal", "{text} {prompt}", 5, 20.0, "llama-1b"),
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-6x384": (
        "GPT2LMHeadModel",
        {"vocab_size": 30522, "n_embd": 384, "n_layer": 6, "n_head": 12, "n_positions": 512, **SPECIAL},
    ),
    "roberta-large": (
        "RobertaForMaskedLM",
        {
            "vocab_size": 50265, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 0,
            **SPECIAL,
        },
    ),
    "llama-1b": (
        "LlamaForCausalLM",
        {
            "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "tie_word_embeddings": True, **SPECIAL,
        },
    ),
}  # fmt: skip


def problem_of(setting: Setting, data: Path, model: str, count: int = EXAMPLES) -> Problem:
    """The task: so many examples of the 16-shot train of the data."""
    folder = data / setting.data
    rows = (folder / "16-13" / "train.tsv").read_text().splitlines()[1 : 1 + 2 * EXAMPLES]
    examples = [{"text": t, "label": int(label)} for t, label in (row.rsplit("\t", 1) for row in rows)]
    step = max(1, len(examples) // EXAMPLES)
    task = Task.from_examples(
        f"scoring-{setting.data}",
        template={setting.family: setting.template},
        label_words=dict(enumerate(WORDS[setting.data])),
        train=examples[::step][:count],
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
    def of(cls, problem: Problem, tokens: int, candidates: int = CANDIDATES) -> Work:
        """Candidates of ``tokens`` random words that are a token each."""
        rng = np.random.default_rng(0)
        words = [word for word in problem.words if len(word.later) == 1 == len(word.first)]
        texts = [" ".join(words[i].text for i in rng.integers(len(words), size=tokens)) for _ in range(candidates)]
        ids = [problem.prompt(text).token_ids or () for text in texts]
        part = problem.part("train")
        return cls(problem, texts, Request.of_all(part, ids))


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
        for text in work.texts[:ORIGINALS]:
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


def seconds_of(runs: dict[str, Callable[[], Any]], least: float) -> dict[str, float]:
    """Seconds a call of each takes: the median, all in turn, so that what slows the machine slows them all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warms up, and fills what is kept
    started = time.perf_counter()
    while time.perf_counter() - started < least * len(runs) or len(times["a"]) < 3:
        for name, run in runs.items():
            clock = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - clock)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def random_lm(folder: Path, size: str, tokenizer: Path) -> str:
    """A random LM of a size, with the tokenizer of ``tokenizer``, which puts nothing around a causal LM's input."""
    cls, settings = SIZES[size]
    config = getattr(transformers, cls).config_class(**settings)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = getattr(transformers, cls)(config)
    model.to(torch.bfloat16 if torch.cuda.is_available() else torch.float32).save_pretrained(folder)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    if "Masked" not in cls:
        content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}))
    return str(folder)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: what the device does at best."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        for _ in range(4):
            torch.mm(a, b)

    return 4 * 2 * size**3 / seconds_of({"a": product}, 1.0)["a"]


def row_of(name: str, setting: Setting, model: str, data: Path, seconds: float) -> dict[str, Any]:
    """Measure one setting."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = setting.size and device == "cpu"  # such LMs want a GPU: here it is seen to run
    problem = problem_of(setting, data, model, 8 if small else EXAMPLES)
    work = Work.of(problem, setting.prompt_tokens, 2 if small else CANDIDATES)
    candidates, originals_scored = len(work.texts), min(ORIGINALS, len(work.texts))
    lanes = plan_scorers({"CPU": float(os.cpu_count() or 1)}, None, 0.0).lanes if device == "cpu" else 1
    scorer = LMScorer(work.problem.lm, device)
    table = table_of(device, scorer.token_bytes, work.problem.lm.max_length, scorer.tokens)
    pool = ScoringPool.start(work.problem.lm, gpus_per_scorer=None if device == "cuda" else 0.0)
    request = work.request
    inputs = Inputs.of(request.part, request.sizes, request.prompt, request.example, table.reuse(request.part))
    own = int(inputs.own.sum())
    length = max(4, round(float(inputs.own.mean())))
    batch = table.tokens[0]
    runs = {
        "a": originals(work, device),
        "b": in_process(work, scorer, table, lanes),
        "c": through_pool(work, pool),
        "d": floor(work, scorer, lanes, length, batch),
    }
    scores = {way: runs[way]() for way in "abc"}
    count = originals_scored * len(request.part)
    worst = max(float(np.abs(scores[way][:count] - scores["a"]).max()) for way in "bc")
    took = seconds_of(runs, seconds)
    pool.shutdown()
    took["a"] *= candidates / originals_scored
    took["d"] *= own / (lanes * PASSES * max(1, batch // length) * length)
    pairs = len(request.prompt)
    row = {
        "setting": name,
        "lm": f"{type(scorer.forward.model).__name__} {work.problem.lm.layers} x {work.problem.lm.hidden_size}",
        "device": device_name(device),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "candidates": candidates,
        "examples": len(request.part),
        "tokens_an_input": round(float(inputs.tokens.mean()), 1),
        "new_tokens_an_input": round(own / pairs, 1),
        "largest_difference": worst,
        **{f"candidates_per_second_{way}": round(candidates / took[way], 2) for way in took},
        **{f"evaluations_per_second_{way}": round(pairs / took[way]) for way in took},
        "tokens_per_second_a": round(int(inputs.tokens.sum()) / took["a"]),
        **{f"new_tokens_per_second_{way}": round(own / took[way]) for way in "bcd"},
        "b/a": round(took["a"] / took["b"], 2),
        "c/b": round(took["b"] / took["c"], 3),
        "b/d": round(took["d"] / took["b"], 3),
        "aim_b/a": setting.aim,
    }
    if setting.size:
        body = sum(p.numel() for p in scorer.forward.model.base_model.parameters() if p.ndim == 2)
        body -= scorer.forward.model.get_input_embeddings().weight.numel()
        rate = matrix_rate(scorer.device, scorer.dtype)
        row |= {"matrix_rate": f"{rate:.3g}", "of_matrix_rate": round(2 * body * own / took["b"] / rate, 3)}
    return row


def deep_row_of(name: str, setting: Setting, model: str, data: Path, seconds: float) -> dict[str, Any]:
    """A turn of the middle layer: what enters it known from the turn before up to the layer below, as in a search."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = bool(setting.size) and device == "cpu"
    problem = problem_of(setting, data, model, 8 if small else EXAMPLES)
    scorer = LMScorer(problem.lm, device)
    lanes = plan_scorers({"CPU": float(os.cpu_count() or 1)}, None, 0.0).lanes if device == "cpu" else 1
    table = table_of(device, scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    searcher = DeepCMAESSearcher(problem, length=setting.prompt_tokens, intrinsic_dim=500, projection="uniform")
    space, middle = searcher.space, problem.lm.layers // 2
    rng, part = np.random.default_rng(0), problem.part("train")
    base = 0.1 * rng.standard_normal(space.subspace.numbers)
    candidates = 4 if small else TURN

    def turn(layer: int) -> list[SoftPrompt]:
        z = np.tile(base, (candidates, 1))
        z[:, space.subspace.of_layer(layer)] = 0.1 * rng.standard_normal((candidates, 500))
        return [space.prompt(row) for row in z]

    prompts = turn(middle)
    request = Request.of_all(part, [problem.token_ids(prompt) for prompt in prompts])
    order = np.argsort(request.example, kind="stable")
    request = replace(request, prompt=request.prompt[order], example=request.example[order], soft=np.arange(candidates))
    passes = passes_of(table, request)
    size = max(1, min(8, -(-len(passes) // lanes)))
    orders = [passes[i : i + size] for i in range(0, len(passes), size)]
    threads = ThreadPoolExecutor(lanes)
    assert scorer.packed is not None
    states = scorer.packed.states

    def run(block: SoftBlock, *, jumps: bool) -> FloatArray:
        scorer.layers.jumps = jumps
        for entry in [entry for entry in states.entries if entry[3] == middle]:
            states.bytes -= states.size(states.entries.pop(entry))
        found = np.empty((len(request.prompt), len(part.labels)), dtype=np.float32)

        def score(some: Any) -> None:
            members = np.concatenate([rows for _, rows in some])
            pieces = [scorer.score(load, part, block)[0] for load in loads_of(table, request, some)]
            found[members] = np.concatenate(pieces)

        list(threads.map(score, orders))
        return found

    block, below = block_of(prompts, {}), block_of(turn(middle - 1), {})
    scorer.layers  # noqa: B018 (found once)
    run(below, jumps=True)  # the turn before
    ours, plain = run(block, jumps=True), run(block, jumps=False)
    took = seconds_of({"a": lambda: run(block, jumps=False), "b": lambda: run(block, jumps=True)}, seconds)
    pairs = len(request.prompt)
    return {
        "setting": name,
        "lm": f"{type(scorer.forward.model).__name__} {problem.lm.layers} x {problem.lm.hidden_size}",
        "device": device_name(device),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "candidates": candidates,
        "examples": len(part),
        "tuned_layer": middle,
        "largest_difference": float(np.abs(ours - plain).max()),
        "evaluations_per_second_a": round(pairs / took["a"], 1),
        "evaluations_per_second_b": round(pairs / took["b"], 1),
        "b/a": round(took["a"] / took["b"], 2),
        "ideal_b/a": round(problem.lm.layers / (problem.lm.layers - middle), 2),
        "aim_b/a": setting.aim,
    }


def device_name(device: str) -> str:
    """What a row says of the machine."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores ({platform.machine()})"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each way, a setting")
    parser.add_argument("--settings", default=",".join(name for name, s in SETTINGS.items() if not s.size))
    args = parser.parse_args()
    shared = Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, minilm = shared / "data" / "few-shot", shared / "models" / "minilm-reviews"
    if not data.is_dir() or not minilm.is_dir():
        raise SystemExit(f"needs {data} and {minilm}: set RAYPROMPT_SHARED")
    rows = json.loads(OUT.read_text()) if OUT.exists() else []
    connect("local")
    for name in args.settings.split(","):
        setting = SETTINGS[name]
        with tempfile.TemporaryDirectory() as folder:
            size = setting.size or ("gpt2-6x384" if setting.family == "causal" else "")
            model = random_lm(Path(folder), size, minilm) if size else str(minilm)
            row = (deep_row_of if setting.deep else row_of)(name, setting, model, data, args.seconds)
        print(json.dumps(row, indent=1), flush=True)
        key = ("setting", "lm", "device")
        rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
        OUT.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        rest = " ".join(f"{name} {row[name]:6}" for name in ("c/b", "b/d", "ideal_b/a") if name in row)
        print(f"{row['setting']:18} {row['device']:24} b/a {row['b/a']:6} {rest}")


if __name__ == "__main__":
    main()
