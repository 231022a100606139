"""Inputs that lie end to end, and shared keys/values: the scores of one plain forward pass, the same bits for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, make_checkpoint, write_checkpoint
from loads import passes_for

from rayprompt.errors import ScoringError
from rayprompt.lm.loads import Request, loads_of, passes_of, score_request
from rayprompt.lm.packed import Pack, lay_out
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.shapes import CELL, Inputs, PackTable, bucket
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import load_tokenizer
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import make_settings
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from rayprompt.task import Task

PROMPTS = ["", "it was", "overall , this one was", "the whole thing , in short , felt to me rather", "so"]
PLACES = {
    "behind": {"masked": "{text} {prompt} {mask} .", "causal": "{text} {prompt}"},
    "before": {"masked": "{prompt} {text} so {mask} !", "causal": "{prompt} {text} so"},
    "between": {"masked": "so {text} {prompt} {text} {mask}", "causal": "so {text} {prompt} : {text} is"},
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    # By the model's type some families would get a tokenizer class of their own.
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda location: load_tokenizer("tiny-masked"))


def plain(problem: Problem, request: Request) -> FloatArray:
    """(P, L) from a plain forward pass for every pair, its input made by ``EncodedPart.row``."""
    masked = problem.template.has_mask
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    lm = auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    rows = []
    for prompt, example in zip(request.prompt, request.example, strict=True):
        ids, read, _ = request.part.row(int(example), request.prompts[prompt])
        with torch.inference_mode():
            logits = lm(input_ids=torch.from_numpy(ids)[None]).logits[0, read]
        rows.append(torch.log_softmax(logits[problem.label_ids].double(), -1).numpy())
    return np.array(rows)


def task_with(texts: Sequence[str], place: str = "behind") -> Task:
    """A task with these texts."""
    return Task.from_examples(
        "texts",
        template=PLACES[place],
        label_words={0: "terrible", 1: "great"},
        train=[{"text": text, "label": i % 2} for i, text in enumerate(texts)],
        dev=[{"text": "another", "label": 0}],
        test=[{"text": "other", "label": 0}],
    )


def ragged() -> list[str]:
    """Texts of 1 to 40 words."""
    words = "a film so good that nobody should miss it , however long it may be".split()  # noqa: SIM905
    return [" ".join((words * 3)[: 1 + 7 * i]) for i in range(6)]


@pytest.mark.parametrize("place", PLACES)
def test_every_family_and_layout_scores_as_a_plain_forward_pass(place: str, model: str, one_tokenizer: None) -> None:
    problem = Problem(task_with(ragged(), place), model)
    scorer = LMScorer(problem.lm)
    assert scorer.packed is not None
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in PROMPTS])
    expected = plain(problem, request)
    for tokens in (64, 512):
        for _ in range(2):  # the second time with what the first has kept
            found, _ = score_request(scorer, passes_for(scorer, problem, tokens=tokens), request)
            assert np.abs(found - expected).max() < 1e-4
        for pair in (0, 7, len(found) - 1):  # alone: the same bits
            one = replace(request, prompt=request.prompt[[pair]], example=request.example[[pair]])
            alone, _ = score_request(scorer, passes_for(scorer, problem, tokens=tokens), one)
            assert alone.tobytes() == found[[pair]].tobytes()
    causal = not problem.template.has_mask
    assert bool(scorer.packed.cache.entries) == causal


@pytest.mark.parametrize("mode", ["add", "concat"])
@pytest.mark.parametrize("place", PLACES)
def test_soft_prompts_packed_are_soft_prompts_in_padded_rows(
    place: str, mode: str, model: str, one_tokenizer: None
) -> None:
    """tests/test_soft.py compares the padded rows with vectors that are put in by hand."""
    problem = Problem(task_with(ragged(), place), model)
    scorer = LMScorer(problem.lm)
    settings = {"intrinsic_dim": 8, "length": 5, "alpha": 20.0, "placement": mode}
    space = SoftSpace.of(problem, make_settings(Holder, settings), 0)
    rng = np.random.default_rng(0)
    prompts = [space.prompt(z) for z in rng.normal(size=(3, 8))]
    block = block_of(prompts, problem.vectors)
    request = Request.of_all(problem.part("train"), [problem.token_ids(p) for p in prompts])
    request = replace(request, soft=np.arange(3), front=prompts[0].subspace.front)
    expected, _ = score_request(scorer, passes_for(scorer, problem, packed=False), request, block)
    assert np.abs(expected[:6] - expected[6:12]).max() > 1e-2
    for _ in range(2):
        found, _ = score_request(scorer, passes_for(scorer, problem), request, block)
        assert np.abs(found - expected).max() < 1e-4


class Holder:
    """What make_settings reads."""

    name = "soft"
    Settings = SoftSettings


def random_request(problem: Problem, rng: np.random.Generator, prompts: int, pairs: int) -> Request:
    """Pairs of random prompts of 0 to 9 tokens, and of one much longer than the others, in a random order."""
    ids = [tuple(rng.integers(200, 900, size=n).tolist()) for n in (*rng.integers(0, 10, prompts), 60)]
    part = problem.part("train")
    return Request(part, ids, rng.integers(0, len(ids), pairs), rng.integers(0, len(part), pairs))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_a_pair_has_the_same_bits_whatever_else_is_asked_for(model: str, place: str) -> None:
    problem = Problem(task_with(ragged(), place), model)
    table = passes_for(LMScorer(problem.lm), problem)
    rng = np.random.default_rng(0)
    seen: dict[tuple[Any, ...], bytes] = {}
    repeated = 0
    for pairs in (1, 3, 40, 400):
        scorer = LMScorer(problem.lm)  # nothing kept
        for _ in range(2):
            request = random_request(problem, np.random.default_rng(int(rng.integers(3))), 12, pairs)
            order = rng.permutation(pairs)
            request = replace(request, prompt=request.prompt[order], example=request.example[order])
            found, _ = score_request(scorer, table, request)
            for prompt, example, bits in zip(request.prompt, request.example, found, strict=True):
                key = (request.prompts[prompt], int(example))
                repeated += key in seen
                assert seen.setdefault(key, bits.tobytes()) == bits.tobytes()
    assert repeated > 100


def test_long_texts_are_cut_alike_and_stand_in_a_longer_pass() -> None:
    words = " ".join(["good", "film"] * 80)
    texts = [words[: 5 * (3 + 20 * i)] for i in range(6)]
    for model, place in (("tiny-masked", "behind"), ("tiny-causal", "behind"), ("tiny-causal", "before")):
        problem = Problem(task_with(texts, place), model)
        scorer = LMScorer(problem.lm)
        request = random_request(problem, np.random.default_rng(0), 5, 40)
        assert request.part.truncated(60)
        found, tokens = score_request(scorer, passes_for(scorer, problem, tokens=32), request)
        expected, sizes = score_request(scorer, passes_for(scorer, problem, packed=False), request)
        assert np.abs(found - expected).max() < 1e-4
        assert tokens.tolist() == sizes.tolist()


def test_what_stands_behind_a_text_does_not_compute_it_again() -> None:
    """Counted in tokens that go through the LM, those of fillers included."""
    problem = Problem("reviews", "tiny-causal")
    scorer = LMScorer(problem.lm)
    part = problem.part("train")
    prompts = [problem.prompt(p).token_ids or () for p in ("it was so", "all in all", "this one is", "and it was")]
    request = Request.of_all(part, prompts)
    sizes: list[int] = []
    scorer.forward.model.base_model.register_forward_pre_hook(
        lambda module, args, keywords: sizes.append((args[0] if args else keywords["input_ids"]).numel()),
        with_kwargs=True,
    )
    table = passes_for(scorer, problem, tokens=64)
    score_request(scorer, table, request)
    first = sum(sizes)
    own = int(sum(len(p) for p in prompts)) * len(part)
    whole = int(part.base_lengths[0].sum()) * len(prompts) + own
    sizes.clear()
    score_request(scorer, table, request)
    assert own <= sum(sizes) < 1.3 * own
    assert sum(sizes) < whole / 3
    assert first < sum(sizes) + 2.5 * part.starts.sum()  # once, each text


def test_keys_and_values_take_no_more_memory_than_allowed() -> None:
    problem = Problem("reviews", "tiny-causal")
    part = problem.part("train")
    prompts = [problem.prompt(p).token_ids or () for p in ("it was so", "all in all")]
    request = Request.of_all(part, prompts)
    free = LMScorer(problem.lm)
    expected, _ = score_request(free, passes_for(free, problem), request)
    assert free.packed is not None
    assert free.packed.cache.bytes == pytest.approx(int(bucket(part.starts).sum()) * (free.token_bytes or 0))
    little = LMScorer(replace(problem.lm, settings=LMSettings(cache=free.packed.cache.bytes // 3)))
    for keep in (True, False):
        found, _ = score_request(little, passes_for(little, problem), replace(request, keep=keep))
        assert found.tobytes() == expected.tobytes()
        assert little.packed is not None
        assert 0 < little.packed.cache.bytes <= free.packed.cache.bytes // 3
    never = LMScorer(problem.lm)
    score_request(never, passes_for(never, problem), replace(request, keep=False))
    assert never.packed is not None
    assert never.packed.cache.bytes == 0


class ShortOfMemory:
    """A packed forward pass that has memory for ``most`` tokens."""

    def __init__(self, packed: Any, most: int) -> None:
        self.packed, self.most = packed, most
        self.sizes: list[int] = []

    def __call__(self, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        self.sizes.append(len(ids))
        if len(ids) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = self.packed(ids, *others)
        return result


@pytest.mark.parametrize(("most", "breaks"), [(256, 0), (128, 2), (64, 7)])
def test_out_of_memory_halves_a_pass(most: int, breaks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    request = Request.of_all(problem.part("train"), [problem.prompt("it was").token_ids or ()], 28)
    table = PackTable.of(256, 128, causal=False)
    expected, _ = score_request(scorer, table, request)
    short = ShortOfMemory(scorer.forward.packed, most)
    monkeypatch.setattr(scorer.forward, "packed", short)
    broken = 0
    for shape, members in passes_of(table, request):
        (load,) = loads_of(table, request, [(shape, members)])
        found, _, count = scorer.score(load, request.part)
        broken += count
        assert np.abs(found - expected[members]).max() < 1e-5
    assert broken == breaks
    assert set(short.sizes) == {256 >> i for i in range(9) if 256 >> i >= most}
    short.most = 8
    with pytest.raises(ScoringError, match="out of memory on cpu: not even one input of [0-9]+ tokens fits"):
        scorer.score(load, request.part)


def test_a_prefix_that_finds_no_memory_is_tried_again_without_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("reviews", "tiny-causal")
    scorer = LMScorer(problem.lm)
    assert scorer.packed is not None
    part, table = problem.part("train"), passes_for(scorer, problem)
    request = Request.of_all(part, [problem.prompt("it was").token_ids or ()])
    expected, _ = score_request(scorer, table, request)
    kept = scorer.packed.cache
    whole = scorer.forward.packed

    def short(*arguments: Any) -> torch.Tensor:
        if kept.entries or scorer.packed is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = whole(*arguments)
        return result

    monkeypatch.setattr(scorer.forward, "packed", short)
    other = Request.of_all(problem.part("dev"), [problem.prompt("it was").token_ids or ()], 2)
    score_request(scorer, table, replace(other, keep=False))
    assert not kept.entries
    monkeypatch.setattr(scorer.forward, "packed", ShortOfMemory(whole, 0))
    with pytest.raises(ScoringError, match="out of memory on cpu: no room for what inputs share, of [0-9]+ tokens"):
        score_request(scorer, table, request)
    monkeypatch.setattr(scorer.forward, "packed", whole)
    assert score_request(scorer, table, request)[0].tobytes() == expected.tobytes()


def test_a_prefix_has_the_same_bits_for_short_and_long_inputs_behind_it() -> None:
    """Those stand in passes of different sizes, and so do the prefixes that they bring with them."""
    problem = Problem("reviews", "tiny-causal")
    table = PackTable.of(32, 128, causal=True)
    part = problem.part("train")
    short, long = problem.prompt("it was").token_ids or (), (300,) * 40
    seen = []
    for prompts in ([short, long], [long, short], [short], [long]):
        scorer = LMScorer(problem.lm)
        found = {p: score_request(scorer, table, Request.of_all(part, [p], 8))[0].tobytes() for p in prompts}
        seen.append(found)
    assert seen[0] == seen[1] == {**seen[2], **seen[3]}


def test_slots_hold_every_input_once_and_cells_one_prefix() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 40))
        own, group = rng.integers(1, 20, n), rng.integers(0, 5, n)
        lengths = rng.integers(0, 30, 5)
        prefix = lengths[group]
        tokens = int(own.sum() + rng.integers(0, 50))
        slots = lay_out(own, prefix, group, tokens)
        assert sorted(np.concatenate(slots.members)[np.concatenate(slots.members) >= 0].tolist()) == list(range(n))
        starts, base = own.cumsum() - own, 0
        for members, length, behind in zip(slots.members, slots.own, slots.prefix, strict=True):
            for slot, i in enumerate(members.tolist()):
                if i < 0:
                    assert behind
                    assert slot % CELL
                    continue
                assert (bucket(own[[i]])[0], bucket(prefix[[i]])[0]) == (length, behind)
                if behind:
                    assert group[members[slot - slot % CELL]] == group[i]
                places = slots.inverse[starts[i] : starts[i] + own[i]]
                assert places.tolist() == list(range(base + slot * length, base + slot * length + int(own[i])))
            base += len(members) * length


@pytest.mark.parametrize("causal", [False, True])
def test_passes_are_never_too_full_and_hold_every_input_once(causal: bool) -> None:
    rng = np.random.default_rng(0)
    problem = Problem("reviews", "tiny-causal" if causal else "tiny-masked")
    table = PackTable.of(64, 128, causal=causal)
    request = random_request(problem, rng, 20, 700)
    reuse = table.reuse(request.part)
    inputs = Inputs.of(request.part, request.sizes, request.prompt, request.example, reuse)
    passes = passes_of(table, request)
    assert sorted(np.concatenate([members for _, members in passes]).tolist()) == list(range(700))
    for (tokens,), members in passes:
        assert inputs.own[members].sum() <= tokens
        assert tokens in table.tokens
        assert (table.size_of(inputs.own[members], reuse) == tokens).all()
    full = [inputs.own[members].sum() / shape[0] for shape, members in passes if shape[0] == table.tokens[0]]
    assert np.median(full) > 0.8


def test_a_layer_with_a_window_sees_no_farther(one_tokenizer: None, tmp_path: Path) -> None:
    texts = [" ".join(["good", "film", "bad"] * n) for n in (2, 5, 14)]
    for family, settings in {
        "mistral": {"sliding_window": 12},
        "gemma2": {"sliding_window": 12},
        "modernbert": {"local_attention": 12, "global_attn_every_n_layers": 2},
    }.items():
        model = make_checkpoint(family, tmp_path / family, **settings)
        for place in PLACES:
            problem = Problem(task_with(texts, place), model)
            scorer = LMScorer(problem.lm)
            assert scorer.packed is not None
            request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in PROMPTS])
            found, _ = score_request(scorer, passes_for(scorer, problem), request)
            assert np.abs(found - plain(problem, request)).max() < 1e-4


HEADS = {"num_key_value_heads": 1, "head_dim": 16}
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "Gemma3ForCausalLM": ({**HEADS, "sliding_window": 16}, True),
    "Qwen3ForCausalLM": (HEADS, True),
    "PhiForCausalLM": ({}, True),
    "OPTForCausalLM": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    "GraniteForCausalLM": ({}, True),
    "Olmo2ForCausalLM": ({}, True),
    "CohereForCausalLM": ({}, True),
    "XLMRobertaForMaskedLM": ({"max_position_embeddings": 130}, True),
    "CamembertForMaskedLM": ({"max_position_embeddings": 130}, True),
    "FalconForCausalLM": ({}, False),
    "StableLmForCausalLM": ({"num_key_value_heads": 2}, True),
    "GPTJForCausalLM": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}, False),
    "MptForCausalLM": ({"d_model": 32, "n_layers": 2, "n_heads": 2}, False),
    "BloomForCausalLM": ({"n_layer": 2, "n_head": 2}, False),
    "XGLMForCausalLM": ({"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64}, False),
    "MambaForCausalLM": ({}, False),
    "MPNetForMaskedLM": ({"max_position_embeddings": 130}, False),
    "DebertaV2ForMaskedLM": ({}, False),
}


@pytest.mark.parametrize("cls", OTHERS)
def test_other_lms_are_packed_where_they_can_be(cls: str, tmp_path: Path, one_tokenizer: None) -> None:
    """BLOOM's positions (ALiBi), for one, follow from the attention mask alone: it is padded."""
    settings, packed = OTHERS[cls]
    model = write_checkpoint(getattr(transformers, cls), load_tokenizer("tiny-masked"), settings, tmp_path)
    problem = Problem(task_with(ragged()), model)
    scorer = LMScorer(problem.lm)
    assert (scorer.packed is not None) == packed
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in PROMPTS])
    found, _ = score_request(scorer, passes_for(scorer, problem), request)
    assert np.abs(found - plain(problem, request)).max() < 1e-4


def test_a_load_names_its_passes() -> None:
    problem = Problem("reviews", "tiny-causal")
    table = PackTable.of(64, 128, causal=True)
    request = Request.of_all(problem.part("train"), [(5, 6), (7,)])
    passes = passes_of(table, request)
    loads = loads_of(table, request, passes)
    assert all(isinstance(load, Pack) for load in loads)
    assert sum(len(load.ends) for load in loads if isinstance(load, Pack)) == len(passes)
    assert np.concatenate([load.example for load in loads]).tolist() == [
        int(request.example[i]) for _, members in passes for i in members
    ]
