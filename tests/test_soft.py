"""Soft prompts: projections, and scores against plain forward passes that build the input by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import ENCODER_DECODERS, FAMILIES, make_checkpoint
from conftest import task_of
from loads import passes_for
from safetensors.numpy import save_file

from rayprompt.candidate import SoftPrompt, Subspace, TextPrompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.projection import Bounded, projection_digest, projection_matrix
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import load_tokenizer
from rayprompt.lm.vectors import vectors_digest, write_vectors
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import make_settings
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from searchers.cma_es import CMAESSearcher

SMALL = {"intrinsic_dim": 12, "length": 5}


class Holder:
    """What make_settings reads."""

    name = "soft"
    Settings = SoftSettings


def space_of(problem: Problem, seed: int = 0, **settings: Any) -> SoftSpace:
    return SoftSpace.of(problem, make_settings(Holder, {**SMALL, **settings}), seed)


def score(scorer: LMScorer, problem: Problem, prompts: list[SoftPrompt], count: int) -> FloatArray:
    """(C, E, L) log-probabilities through LMScorer, all pairs in one batch of one length."""
    space = prompts[0].subspace
    part = problem.part("train")
    front = space.length if space.mode == "concat" else 0
    prompt, example = np.repeat(np.arange(len(prompts)), count), np.tile(np.arange(count), len(prompts))
    ids = tuple(problem.token_ids(p) for p in prompts)
    bucket = Bucket(part.key, 48, 8, ids, prompt, example, np.arange(len(prompts)), front)
    log_probs, tokens, _ = scorer.score(bucket, part, block_of(prompts, problem.vectors))
    if scorer.packed is not None:  # the same in passes without padding
        request = replace(Request.of_all(part, ids, count), soft=np.arange(len(prompts)), front=front)
        packed, _ = score_request(scorer, passes_for(scorer, problem), request, block_of(prompts, problem.vectors))
        assert np.abs(packed - log_probs).max() < 1e-4
    assert (tokens == np.tile(part.base_lengths[int(front > 0)][:count] + space.length, len(prompts))).all()
    return np.asarray(log_probs).reshape(len(prompts), count, -1)


# The projection.


@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_first_steps_are_alpha_times_as_large_as_the_embeddings_whatever_sigma_is(
    sigma: float, alpha: float, problem: Problem
) -> None:
    space = space_of(problem, intrinsic_dim=500, length=50, sigma=sigma, alpha=alpha).subspace
    z = np.random.default_rng(0).normal(0, sigma, (200, 500)).astype(np.float32)
    weights = transformers.AutoModelForMaskedLM.from_pretrained(problem.lm.path).get_input_embeddings().weight
    expected = alpha * float(weights.detach().double().std(correction=0))
    assert (z @ projection_matrix(space)).std() == pytest.approx(expected, rel=0.01)


def test_the_published_projection_is_uniform_and_bounded(problem: Problem) -> None:
    space = space_of(problem, intrinsic_dim=100, length=50, projection="uniform").subspace
    matrix = projection_matrix(space)
    assert np.abs(matrix).max() <= 1 / 10
    assert np.abs(matrix).max() > 0.0999
    assert matrix.std() == pytest.approx(0.1 / 3**0.5, rel=0.01)
    assert abs(matrix.mean()) < 1e-3


def test_a_projection_is_that_of_philox_and_another_one_is_found_out(problem: Problem) -> None:
    space = space_of(problem, seed=3, intrinsic_dim=20).subspace
    drawn = np.random.Generator(np.random.Philox(3)).standard_normal((20, space.length * space.width), dtype=np.float32)
    assert np.array_equal(projection_matrix(space), drawn * np.float32(space.scale))
    assert space.digest == projection_digest(3, "normal", 20, space.length * space.width)
    assert space.digest != space_of(problem, seed=4, intrinsic_dim=20).subspace.digest
    with pytest.raises(ScoringError, match="draws another projection here than where the search began"):
        projection_matrix(replace(space, digest="0" * 32))


def test_a_cache_is_bounded_by_bytes() -> None:
    cache: Bounded[bytes] = Bounded(100, len)
    made = []

    def make(size: int) -> Callable[[], bytes]:
        return lambda: made.append(size) or bytes(size)  # type: ignore[func-returns-value]

    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, make(40))
    assert made == [40, 40, 40, 40]  # c takes the place of b, then b that of c
    assert cache.bytes == 80
    assert len(cache.get("large", make(400))) == 400
    assert list(cache.entries) == ["large"]


# Scores.

ALL_FAMILIES = FAMILIES | ENCODER_DECODERS


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def family_problem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(request.param, tmp_path_factory.mktemp(request.param))


def problem_of(family: str, folder_of: Path) -> Problem:
    """A small task on a small random LM of a family, or on a bundled LM."""
    if family not in ALL_FAMILIES:
        return Problem(task_of(train=6), family)
    folder = make_checkpoint(family, folder_of)
    with pytest.MonkeyPatch.context() as monkey:
        # By the model's type some families would get a tokenizer class of their own.
        location = folder if family == "t5" else "tiny-masked"
        monkey.setattr("rayprompt.searcher.problem.load_tokenizer", lambda _: load_tokenizer(location))
        problem = Problem(task_of(train=6), folder)
        problem.encoder  # noqa: B018 (cached)
    return problem


def whole_model(problem: Problem) -> Any:
    names = {"masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}
    auto = getattr(transformers, names.get(problem.family, "AutoModelForSeq2SeqLM"))
    return auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval()


def plain(problem: Problem, model: Any, ids: list[int], read: int, **inputs: Any) -> FloatArray:
    """(L,) log-probabilities of one input alone, by the model's own forward pass."""
    kind = model.config.model_type
    if kind == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, ids[read]]])
        read = 1
    given = inputs or {"input_ids": torch.tensor([ids])}
    if kind == "t5" and "inputs_embeds" not in given:
        given["input_ids"] = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(**given).logits[0, read]
    return np.asarray(torch.log_softmax(logits[problem.label_ids].double(), -1).numpy())


def test_added_to_z_zero_it_is_the_plain_text_of_its_tokens(family_problem: Problem) -> None:
    problem, model = family_problem, whole_model(family_problem)
    space = space_of(problem, p0="text:it was rather so", length=None)
    assert space.subspace.tokens == problem.prompt("it was rather so").token_ids
    ours = score(LMScorer(problem.lm), problem, [space.prompt(np.zeros(12))], 6)[0]
    for i in range(6):
        row, read, _ = problem.part("train").row(i, space.subspace.tokens)
        assert np.abs(ours[i] - plain(problem, model, row.tolist(), read)).max() < 1e-4


def embedding_site(model: Any) -> Any:
    """Where each family's embeddings are whole, by its own names: a module whose output or first input it is."""
    body = {
        "bert": lambda m: m.bert.embeddings, "roberta": lambda m: m.roberta.embeddings,
        "distilbert": lambda m: m.distilbert.embeddings, "electra": lambda m: m.electra.embeddings,
        "albert": lambda m: m.albert.embeddings, "modernbert": lambda m: m.model.embeddings.norm,
        "gpt2": lambda m: m.transformer.drop, "gpt_neox": lambda m: m.gpt_neox.emb_dropout,
        "llama": lambda m: m.model.embed_tokens, "gemma2": lambda m: m.model.embed_tokens,
        "mistral": lambda m: m.model.embed_tokens, "qwen2": lambda m: m.model.embed_tokens,
        "t5": lambda m: m.encoder.dropout, "bart": lambda m: m.model.encoder.layernorm_embedding,
    }  # fmt: skip
    return body[model.config.model_type](model)


@pytest.mark.parametrize("mode", ["add", "concat"])
def test_every_family_scores_as_its_own_forward_pass_with_the_prompt_put_in_by_hand(
    mode: str, family_problem: Problem
) -> None:
    problem, model = family_problem, whole_model(family_problem)
    space = space_of(problem, placement=mode, p0="zeros", alpha=3.0)
    assert space.subspace.width == embedding_width(problem, model)
    rng = np.random.default_rng(1)
    prompts = [space.prompt(rng.standard_normal(12)) for _ in range(3)]
    ours = score(LMScorer(problem.lm), problem, prompts, 6)
    matrix = projection_matrix(space.subspace).astype(np.float64)
    for c, prompt in enumerate(prompts):
        vectors = torch.from_numpy((prompt.vector.astype(np.float64) @ matrix).reshape(5, -1)).float()
        for i in range(6):
            expected = by_hand(problem, model, i, space.subspace, vectors)
            assert np.abs(ours[c, i] - expected).max() < 1e-4
    assert np.abs(ours[0] - ours[1]).max() > 5e-3  # the prompt matters


def embedding_width(problem: Problem, model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def by_hand(problem: Problem, model: Any, example: int, space: Subspace, vectors: torch.Tensor) -> FloatArray:
    """One pair: the vectors are added or put in front where the model's own code has made its embeddings."""
    ids, read, start = problem.part("train").row(example, space.tokens if space.mode == "add" else ())
    seen = []

    def put(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if seen:  # a T5 encoder uses its dropout once more behind its last layer; Bart's decoder has one of its own
            return output
        seen.append(output.shape)
        output = output.clone()
        if space.mode == "add":
            output[:, start : start + 5] += vectors
        else:
            output[:, :5] = vectors
        return output

    hook = embedding_site(model).register_forward_hook(put)
    try:
        if space.mode == "add":
            return plain(problem, model, ids.tolist(), read)
        front = [problem.part("train").pad_id] * 5
        whole, kind = [*front, *ids.tolist()], model.config.model_type
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([whole]),
            "attention_mask": torch.ones(1, len(whole), dtype=torch.int64),
        }
        if kind in ("bert", "distilbert", "electra", "albert", "gpt2"):  # the text has its own positions
            inputs["position_ids"] = torch.tensor([[0] * 5 + list(range(len(ids)))])
        if kind == "bart":  # the decoder writes the text alone
            start = torch.tensor([[model.config.decoder_start_token_id]])
            inputs["decoder_input_ids"] = torch.cat([start, torch.tensor(ids)[None, :-1]], dim=1)
            return plain(problem, model, whole, read, **inputs)
        if kind == "roberta":  # the padding index is 0 here, so positions begin with 1
            inputs["position_ids"] = torch.tensor([[0] * 5 + list(range(1, len(ids) + 1))])
        return plain(problem, model, whole, read + 5, **inputs)
    finally:
        hook.remove()


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama", "t5", "bart", "tiny-masked", "tiny-causal"])
def test_loss_falls(family: str, tmp_path: Path) -> None:
    problem = problem_of(family, tmp_path)
    searcher = CMAESSearcher(problem, intrinsic_dim=12, length=5, alpha=3.0, population=10)
    scorer = LMScorer(problem.lm)
    means, best = [], []
    for _ in range(30):
        prompts = searcher.ask(10)
        log_probs = score(scorer, problem, prompts, 6)  # type: ignore[arg-type]
        values = log_probs[:, np.arange(6), problem.gold].mean(axis=1)
        searcher.tell(prompts, Scores.of_values(prompts, values))
        means.append(-float(values.mean()))
        best.append(-float(values.max()))
    assert np.mean(means[-3:]) < np.mean(means[:3])
    assert min(best) < best[0]


# p0.


def test_initial_vectors_from_a_file(problem: Problem, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    width = problem.lm.width
    vectors = rng.normal(0, 0.1, (5, width)).astype(np.float32)
    write_vectors(tmp_path / "p0.safetensors", vectors, ())
    scorer = LMScorer(problem.lm)
    for placement in ("add", "concat"):
        space = space_of(problem, p0=str(tmp_path / "p0.safetensors"), length=None, placement=placement)
        assert (space.subspace.length, space.subspace.p0) == (5, vectors_digest(vectors))
        assert np.array_equal(problem.vectors[space.subspace.p0], vectors)
        # A z that is zero gives p0; the vectors of another z, written as p0, give that z's score.
        prompt = space.prompt(rng.standard_normal(12))
        block = block_of([space.prompt(np.zeros(12)), prompt], problem.vectors)
        zero, moved = scorer.soft.embedded(block, np.arange(2)).numpy()
        assert np.array_equal(zero, vectors)
        write_vectors(tmp_path / f"{placement}.safetensors", moved, space.subspace.tokens)
        again = space_of(problem, p0=str(tmp_path / f"{placement}.safetensors"), length=None, placement=placement)
        ours = score(scorer, problem, [prompt], 6)
        assert np.abs(ours - score(scorer, problem, [again.prompt(np.zeros(12))], 6)).max() < 1e-6


def test_tokens_in_front_are_the_embeddings_of_those_tokens(problem: Problem) -> None:
    """With BERT's own code: what its embedding layer gives for the tokens stands in front of the text's."""
    space = space_of(problem, p0="text:it was rather so", length=None, placement="concat")
    model = transformers.AutoModelForMaskedLM.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    ours = score(LMScorer(problem.lm), problem, [space.prompt(np.zeros(12))], 6)[0]
    for i in range(6):
        ids, read, _ = problem.part("train").row(i, ())
        with torch.inference_mode():
            front = model.bert.embeddings(torch.tensor([space.subspace.tokens]))
            whole = torch.cat([front, model.bert.embeddings(torch.tensor(ids)[None])], dim=1)
            logits = model.cls(model.bert.encoder(whole)[0])[0, read + space.subspace.length]
        assert np.abs(ours[i] - torch.log_softmax(logits[problem.label_ids], -1).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"p0": "tokns"},
            "p0='tokns': must be tokens, tokens:ID, zeros, text:..., a .safetensors file or the directory",
        ),
        ({"p0": "tokens:999999"}, "5 tokens from 999999 on; the vocabulary has"),
        ({"p0": "text:"}, "the text has no tokens"),
        ({"p0": "none.safetensors"}, "no such file: none.safetensors"),
        ({"p0": "SHAPE", "length": 7}, r"its vectors are \(5, WIDTH\); for tiny-masked it needs \(7, WIDTH\)"),
        ({"p0": "WIDE"}, r"its vectors are \(5, 3\); for tiny-masked it needs \(5, WIDTH\)"),
        ({"p0": "FLAT"}, r"needs a tensor 'prompt' of shape \(length, width\); it has prompt \(5,\)"),
        ({"p0": "FEW"}, "2 token_ids for 5 vectors; there must be one each"),
        ({"p0": "REAL"}, r"'token_ids' must be \(length,\) whole numbers, not \(5,\) torch.float32"),
        ({"p0": "FAR"}, "token id 999999 is not in the vocabulary of tiny-masked"),
        ({"p0": "BROKEN"}, "broken.safetensors: not a safetensors file"),
        ({"p0": "FOLDER"}, "not the directory of a finished study .it holds no prompt.json"),
        ({"length": 200}, "a prompt of 200 tokens does not fit: the LM takes 128 tokens in all"),
        ({"length": 200, "placement": "concat"}, "does not fit"),
        ({"placement": "infix"}, "unknown setting placement 'infix'"),
        ({"projection": "norml"}, "did you mean 'normal'"),
        ({"intrinsic_dim": 0}, "intrinsic_dim=0: must be greater than 0"),
        ({"alpha": -1.0}, "alpha=-1.0: must be greater than 0"),
        ({"alpha": float("inf")}, "alpha=inf: must be greater than 0"),
        ({"projection_seed": -1}, "projection_seed=-1: must be 0 or more"),
        ({"bound": 0.0}, "bound=0.0: must be greater than 0"),
    ],
)
def test_bad_settings_get_one_clear_line(
    settings: dict[str, Any], message: str, problem: Problem, tmp_path: Path
) -> None:
    files = {"SHAPE": (5, problem.lm.width), "WIDE": (5, 3), "FLAT": (5,)}
    for name, shape in files.items():
        save_file({"prompt": np.zeros(shape, dtype=np.float32)}, tmp_path / f"{name.lower()}.safetensors")
    ids = {"FEW": np.arange(2), "REAL": np.zeros(5, dtype=np.float32), "FAR": np.full(5, 999999)}
    for name, tokens in ids.items():
        vectors = np.zeros((5, problem.lm.width), dtype=np.float32)
        save_file({"prompt": vectors, "token_ids": tokens}, tmp_path / f"{name.lower()}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    given = settings.get("p0", "")
    if given.isupper():
        path = tmp_path if given == "FOLDER" else tmp_path / f"{given.lower()}.safetensors"
        settings = {**settings, "p0": str(path)}
    with pytest.raises(InputError, match=message.replace("WIDTH", str(problem.lm.width))) as caught:
        space_of(Problem("reviews", "tiny-masked"), **settings)
    assert "\n" not in str(caught.value)


def test_a_soft_prompt_of_another_lm_is_refused(problem: Problem) -> None:
    other = replace(space_of(problem).subspace, width=7)
    with pytest.raises(InputError, match="a soft prompt of width 7 .* cannot be used on tiny-masked"):
        problem.token_ids(SoftPrompt((0.0,) * 12, other))
    with pytest.raises(InputError, match="begins with vectors 'nope', which are not at hand"):
        block_of([SoftPrompt((0.0,) * 12, replace(other, p0="nope"))], {})


# The pool.


@pytest.mark.parametrize("placement", ["add", "concat"])
def test_bits_do_not_depend_on_neighbours_cuts_or_order(placement: str, problem: Problem, pool: ScoringPool) -> None:
    space = space_of(problem, placement=placement, alpha=5.0)
    rng = np.random.default_rng(0)
    prompts = [space.prompt(rng.standard_normal(12)) for _ in range(45)]
    text = problem.prompt("it was")
    part = problem.part("train")
    pool.add(part)

    def ask(chosen: Sequence[SoftPrompt | TextPrompt]) -> FloatArray:
        prompt, example = np.repeat(np.arange(len(chosen)), 16), np.tile(np.arange(16), len(chosen))
        soft = [c if isinstance(c, SoftPrompt) else None for c in chosen]
        result = pool.score_pairs(part, [problem.token_ids(c) for c in chosen], prompt, example, soft=soft)
        return result.label_log_probs.reshape(len(chosen), 16, -1)

    together = ask([*prompts, text])
    assert ask([prompts[40]])[0].tobytes() == together[40].tobytes()
    assert ask([text, *prompts[::-1]])[5].tobytes() == together[40].tobytes()
    assert ask([text])[0].tobytes() == together[45].tobytes()
    scorer = LMScorer(problem.lm)
    alone = score(scorer, problem, prompts[:3], 16)
    assert np.abs(alone - together[:3]).max() < 1e-5


def test_what_is_nearest_to_a_tokens_own_embedding_is_that_token(problem: Problem, pool: ScoringPool) -> None:
    """With concat and p0 = the embeddings of words, z = 0 decodes to those words; and p0 as vectors as well."""
    words = problem.prompt("film great terrible the it").token_ids or ()
    allowed = problem.vocabulary
    space = space_of(problem, p0="tokens:1000").subspace
    nearest, other = pool.nearest(SoftPrompt((0.0,) * 12, space), allowed)
    assert nearest == space.tokens
    assert all(a != b for a, b in zip(other, space.tokens, strict=True))
    # The embedding layer's output for each word alone, as a vector to be found again.
    model = transformers.AutoModelForMaskedLM.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        vectors = model.bert.embeddings(torch.tensor(words)[:, None])[:, 0].numpy()
    p0 = {vectors_digest(vectors): vectors}
    moved = replace(space, mode="concat", tokens=(), p0=vectors_digest(vectors))
    assert pool.nearest(SoftPrompt((0.0,) * 12, moved), allowed, p0) == [tuple(words)]
    assert np.array_equal(pool.vectors(SoftPrompt((0.0,) * 12, moved), p0)[0], vectors)
