"""Deep prompts on an LM: scores against plain forward passes with vectors put in by hand, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import ENCODER_DECODERS, FAMILIES, make_checkpoint
from loads import passes_for
from torch.nn import ModuleList

import rayprompt
from rayprompt.candidate import SoftPrompt, Subspace, candidate_from_json
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.deep import clipped_std, hidden_stds
from rayprompt.lm.loads import Request, loads_of, passes_of, score_request
from rayprompt.lm.projection import deep_digest, layer_matrix
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import load_tokenizer
from rayprompt.lm.write import Draft
from rayprompt.scores import FloatArray
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import make_settings
from rayprompt.searcher.soft import SoftSettings, SoftSpace

LAYERS = 4
NAMES = {"distilbert": "n_layers", "gpt2": "n_layer", "t5": "num_layers", "bart": "encoder_layers"}
ALL = FAMILIES | ENCODER_DECODERS
DIM, LENGTH = 6, 5
SETTINGS: dict[str, Any] = {
    "template": {"masked": "{text} {prompt} {mask} .", "causal": "{text} {prompt}"},
    "label_words": {0: "terrible", 1: "great"},
    "dev": [{"text": "another one", "label": 0}],
    "test": [{"text": "the other one", "label": 1}],
}
BEFORE = {"masked": "{prompt} {text} so {mask} !", "causal": "{prompt} {text} so"}


class Holder:
    """What make_settings reads."""

    name = "soft"
    Settings = SoftSettings


def problem_of(family: str, folder: Path, **task: Any) -> Problem:
    """A small task on a small random LM of four layers, with texts of many lengths."""
    changes = {NAMES.get(family, "num_hidden_layers"): LAYERS, "num_hidden_layers": LAYERS}
    location = make_checkpoint(family, folder, **changes)
    words = "a film so good that nobody should miss it , however long it may be".split()  # noqa: SIM905
    texts = [" ".join((words * 3)[: 1 + 6 * i]) for i in range(6)]
    task = {"train": [{"text": text, "label": i % 2} for i, text in enumerate(texts)], **task}
    with pytest.MonkeyPatch.context() as monkey:
        tokenizer = location if family == "t5" else "tiny-masked"
        monkey.setattr("rayprompt.searcher.problem.load_tokenizer", lambda _: load_tokenizer(tokenizer))
        problem = Problem(rayprompt.Task.from_examples("small", **{**SETTINGS, **task}), location)
        problem.encoder  # noqa: B018 (cached)
    return problem


def space_of(problem: Problem, layers: Sequence[int] = range(LAYERS), **settings: Any) -> SoftSpace:
    """A space whose scales are not measured but large enough to matter."""
    given = make_settings(Holder, {"intrinsic_dim": DIM, "length": LENGTH, "p0": "tokens:200", **settings})
    space = SoftSpace.of(problem, given, 0, tuple(layers)).subspace
    return SoftSpace(replace(space, scales=tuple(0.5 + 0.1 * layer for layer in layers), scale=0.5))


def prompts_of(space: SoftSpace, shared: int, count: int = 3) -> list[SoftPrompt]:
    """Prompts that are the same below layer ``shared``, and there and above differ."""
    rng = np.random.default_rng(shared)
    z = rng.standard_normal((count, space.subspace.numbers))
    for layer in space.subspace.layers:
        if layer < shared:
            z[:, space.subspace.of_layer(layer)] = z[0, space.subspace.of_layer(layer)]
    return [space.prompt(row) for row in z]


def scored(
    scorer: LMScorer, problem: Problem, prompts: list[SoftPrompt], *, packed: bool = True, by_example: bool = False
) -> FloatArray:
    """(C, E, L) log-probabilities."""
    part = problem.part("train")
    ids = [problem.token_ids(p) for p in prompts]
    request = Request.of_all(part, ids)
    order = np.argsort(request.example, kind="stable") if by_example else np.arange(len(request.prompt))
    request = replace(request, prompt=request.prompt[order], example=request.example[order])
    request = replace(request, soft=np.arange(len(prompts)), front=prompts[0].subspace.front)
    table = passes_for(scorer, problem, packed=packed)
    found, _ = score_request(scorer, table, request, block_of(prompts, problem.vectors))
    return found[np.argsort(order)].reshape(len(prompts), len(part), -1)


def whole_model(problem: Problem) -> Any:
    names = {"masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}
    auto = getattr(transformers, names.get(problem.family, "AutoModelForSeq2SeqLM"))
    return auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval()


def stack(model: Any) -> list[Any]:
    """The layers, by each family's own names."""
    names = {
        "bert": "bert.encoder.layer", "roberta": "roberta.encoder.layer", "electra": "electra.encoder.layer",
        "distilbert": "distilbert.transformer.layer", "albert": "albert.encoder.albert_layer_groups",
        "modernbert": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers",
        "t5": "encoder.block", "bart": "model.encoder.layers",
    }  # fmt: skip
    found = model.get_submodule(names.get(model.config.model_type, "model.layers"))
    assert isinstance(found, ModuleList)
    return list(found)


def by_hand(problem: Problem, model: Any, example: int, prompt: SoftPrompt, *, vocabulary: bool = False) -> FloatArray:
    """(L,) one pair by the model's own forward pass: hooks of its layers add the vectors at the prompt's positions."""
    space = prompt.subspace
    front, kind = space.front, model.config.model_type
    part = problem.part("train")
    ids, read, start = part.row(example, () if front else space.tokens)
    vectors = {
        layer: torch.from_numpy(prompt.vector[space.of_layer(layer)] @ layer_matrix(space, layer)).view(LENGTH, -1)
        for layer in space.layers
    }
    whole = [part.pad_id] * front + ids.tolist()
    start = 0 if front else start
    calls: list[int] = []

    def embedded(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not calls:
            output = output.clone()
            if front:
                output[:, :LENGTH] = 0
            if 0 in vectors:
                output[:, start : start + LENGTH] += vectors[0]
            calls.append(-1)
        return output

    def layer(module: Any, inputs: Any, keywords: Any) -> Any:
        number = len(calls) - 1
        calls.append(number)
        hidden = (inputs[0] if inputs else keywords["hidden_states"]).clone()
        if number > 0 and number in vectors:
            hidden[:, start : start + LENGTH] += vectors[number]
        return ((hidden, *inputs[1:]), keywords) if inputs else (inputs, {**keywords, "hidden_states": hidden})

    from test_soft import embedding_site

    hooks = [embedding_site(model).register_forward_hook(embedded)]
    hooks += [module.register_forward_pre_hook(layer, with_kwargs=True) for module in stack(model)]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([whole]), "attention_mask": torch.ones(1, len(whole)).long()}
    if front and kind in ("bert", "distilbert", "electra", "albert", "gpt2"):  # the text has its own positions
        inputs["position_ids"] = torch.tensor([[0] * front + list(range(len(ids)))])
    if front and kind == "roberta":
        inputs["position_ids"] = torch.tensor([[0] * front + list(range(1, len(ids) + 1))])
    at = read + front
    if kind == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, whole[at]]])
        at = 1
    if kind == "bart":
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *ids.tolist()[:-1]]])
        at = read
    try:
        with torch.inference_mode():
            logits = model(**inputs).logits[0, at]
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == LAYERS + 1
    chosen = logits if vocabulary else logits[problem.label_ids]
    return np.asarray(torch.log_softmax(chosen.double(), -1).numpy())


@pytest.fixture(scope="module", params=ALL)
def family_problem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("mode", ["add", "concat"])
def test_every_family_scores_as_its_own_forward_pass_with_the_vectors_put_in_by_hand(
    mode: str, family_problem: Problem
) -> None:
    """With all layers, and with what lies below the first layer that differs computed once."""
    problem, model, scorer = family_problem, whole_model(family_problem), LMScorer(family_problem.lm)
    space = space_of(problem, placement=mode, p0="zeros")
    for shared in range(LAYERS):
        prompts = prompts_of(space, shared)
        assert block_of(prompts, {}).shared == shared
        ours = scored(scorer, problem, prompts)
        padded = scored(scorer, problem, prompts, packed=False)
        for c, prompt in enumerate(prompts):
            for i in range(6):
                expected = by_hand(problem, model, i, prompt)
                assert np.abs(ours[c, i] - expected).max() < 1e-4
                assert np.abs(padded[c, i] - expected).max() < 1e-4
        assert np.abs(ours[0] - ours[1]).max() > 5e-3  # the prompt matters
    assert scorer.layers.jumps


@pytest.mark.parametrize("mode", ["add", "concat"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gemma2"])
def test_where_the_prompt_stands_before_the_text(family: str, mode: str, tmp_path: Path) -> None:
    """In a causal LM its keys and values are then shared by all texts, but above the first layer that differs only."""
    problem = problem_of(family, tmp_path, template=BEFORE)
    model, scorer = whole_model(problem), LMScorer(problem.lm)
    space = space_of(problem, placement=mode, p0="zeros")
    for shared in (0, 2):
        prompts = prompts_of(space, shared)
        ours = scored(scorer, problem, prompts)
        for c, prompt in enumerate(prompts):
            for i in range(6):
                assert np.abs(ours[c, i] - by_hand(problem, model, i, prompt)).max() < 1e-4
        assert np.abs(ours[0] - ours[1]).max() > 5e-3


@pytest.mark.parametrize("template", [SETTINGS["template"], BEFORE], ids=["behind", "before"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_a_prompt_has_the_same_bits_whatever_is_shared_kept_or_asked_for_beside_it(
    family: str, template: dict[str, str], tmp_path: Path
) -> None:
    problem = problem_of(family, tmp_path, template=template)
    space = space_of(problem)
    prompts = prompts_of(space, 2, count=5)
    alone = LMScorer(problem.lm)
    expected = np.concatenate([scored(alone, problem, [prompt]) for prompt in prompts])
    scorer = LMScorer(problem.lm)
    others = [*prompts_of(space, 0, count=2), *prompts_of(space, 1, count=2)]
    for batch in (prompts, prompts[3:], prompts[::-1], [*prompts, others[0]], [*prompts[:2], *others], [prompts[4]]):
        for by_example in (False, True):
            found = scored(scorer, problem, batch, by_example=by_example)
            for prompt, row in zip(batch, found, strict=True):
                if prompt in prompts:
                    assert row.tobytes() == expected[prompts.index(prompt)].tobytes()
    assert scorer.packed is not None
    assert scorer.packed.states.bytes > 0
    scorer.packed.states.most = 0  # nothing finds room but the newest
    scorer.packed.states.clear()
    assert scored(scorer, problem, prompts).tobytes() == expected.tobytes()


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_layers_below_the_one_that_is_tuned_are_run_once_an_example(family: str, tmp_path: Path) -> None:
    problem = problem_of(family, tmp_path)
    scorer, space = LMScorer(problem.lm), space_of(problem)
    scored(scorer, problem, prompts_of(space, 0))
    runs = dict.fromkeys(range(LAYERS), 0)
    for number, layer in enumerate(stack(scorer.forward.model)):
        inner = next(m for m in layer.modules() if isinstance(m, torch.nn.LayerNorm))
        inner.register_forward_hook(lambda *_, number=number: runs.update({number: runs[number] + 1}))
    low = prompts_of(space, 2, count=40)
    # The next turn tunes the layer above, with one of the first turn's prompts in the layer below.
    high = [np.concatenate([low[0].vector[: 3 * DIM], p.vector[3 * DIM :]]) for p in prompts_of(space, 3, count=40)]
    turns = [low, [space.prompt(z) for z in high]]
    table, part = passes_for(scorer, problem), problem.part("train")
    for number, turn in enumerate((*turns, low)):
        request = Request.of_all(part, [problem.token_ids(p) for p in turn])
        request = replace(request, soft=np.arange(40))
        for load in loads_of(table, request, passes_of(table, request)):
            assert not isinstance(load, Draft)
            scorer.score(load, part, block_of(turn, {}))
        if number == 0:
            first, above = dict(runs), runs[3]
            assert first[0] == first[1]
            assert first[2] == above >= 4 * first[0]
    if scorer.packed is None:  # padded rows: from the bottom in every turn, but what is known is not computed again
        assert runs[0] == runs[1] == 2 * first[0]
    else:  # from where the turn below began; the third turn finds all that it needs
        assert runs[0] == runs[1] == first[0]
    assert runs[2] == 2 * above + first[0]
    assert runs[3] == 3 * above


def test_an_lm_that_cannot_begin_in_the_middle_goes_through_all_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of("bert", tmp_path)
    prompts = prompts_of(space_of(problem), 2)
    expected = scored(LMScorer(problem.lm), problem, prompts)
    monkeypatch.setattr("rayprompt.lm.deep.TOLERANCE", {"float32": -1.0})
    scorer = LMScorer(problem.lm)
    assert np.array_equal(scored(scorer, problem, prompts), expected)
    assert not scorer.layers.jumps
    assert np.array_equal(
        scored(scorer, problem, prompts, packed=False), scored(scorer, problem, prompts, packed=False)
    )


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 3), (2,)])
def test_a_subset_of_layers_is_all_layers_with_zeros_in_the_others(layers: tuple[int, ...], tmp_path: Path) -> None:
    problem = problem_of("roberta", tmp_path)
    model, scorer, space = whole_model(problem), LMScorer(problem.lm), space_of(problem, layers)
    for prompt in prompts_of(space, 0):
        ours = scored(scorer, problem, [prompt])[0]
        assert all(np.abs(ours[i] - by_hand(problem, model, i, prompt)).max() < 1e-4 for i in range(6))
    zero = space.prompt(np.zeros(space.subspace.numbers))
    text = problem.token_ids(zero)
    plain, _ = score_request(scorer, passes_for(scorer, problem), Request.of_all(problem.part("train"), [text]))
    assert np.array_equal(scored(scorer, problem, [zero])[0], plain)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("mode", ["add", "concat"])
def test_label_words_of_several_tokens(mode: str, deep: bool, tmp_path: Path) -> None:
    """The sums of log-probabilities of a plain forward pass for each word, with the prompt put in."""
    words = {0: "terrible so", 1: "great film it"}
    problem = problem_of("gpt2", tmp_path, label_words=words)
    single = problem_of("gpt2", tmp_path / "again")
    assert not problem.labels.single
    space = space_of(problem, range(LAYERS) if deep else (0,), placement=mode, p0="zeros")
    prompts = prompts_of(space, 0)
    scorer = LMScorer(problem.lm)
    packed, padded = (scored(scorer, problem, prompts, packed=packed) for packed in (True, False))
    assert np.abs(packed - padded).max() < 1e-4
    assert np.abs(packed[0] - packed[1]).max() > 5e-3
    if deep:  # a word's later tokens stand in the text
        for c, prompt in enumerate(prompts):
            for i in range(6):
                sums = [word_by_hand(single, i, prompt, word) for word in problem.labels.words]
                expected = np.asarray(sums) - np.logaddexp.reduce(sums)
                assert np.abs(packed[c, i] - expected).max() < 1e-4


def word_by_hand(problem: Problem, example: int, prompt: SoftPrompt, word: Sequence[int]) -> float:
    """The sum of a word's log-probabilities behind an example, token by token."""
    model, total = whole_model(problem), 0.0
    for k in range(len(word)):
        part = problem.part("train")
        after = (*part.after[example], replace(part.before[example][0], ids=np.array(word[:k], dtype=np.int64)))
        longer = replace(part, after=(*part.after[:example], after, *part.after[example + 1 :]), after_empty=None)
        problem._parts["train"] = longer
        try:
            total += float(by_hand(problem, model, example, prompt, vocabulary=True)[word[k]])
        finally:
            problem._parts["train"] = part
    return total


# Scales and projections.


def test_the_clipped_standard_deviation_is_that_of_plain_numpy() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(5000), 40 * rng.standard_normal(60), [900.0, -700.0]])
    expected = values.copy()
    for _ in range(5):
        mean, std = sum(expected) / len(expected), math.sqrt(np.mean((expected - np.mean(expected)) ** 2))
        expected = np.array([min(max(x, mean - 3 * std), mean + 3 * std) for x in expected])
    assert clipped_std(values.astype(np.float64)) == pytest.approx(np.std(expected), rel=1e-12)
    assert 1.0 < clipped_std(values) < 1.5 < np.std(values)
    assert clipped_std(values, rounds=0) == pytest.approx(np.std(values))


@pytest.mark.parametrize("mode", ["add", "concat"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "electra"])
def test_scales_are_those_of_the_hidden_states_behind_the_initial_prompt(
    family: str, mode: str, tmp_path: Path
) -> None:
    problem = problem_of(family, tmp_path)
    settings = make_settings(
        Holder, {"intrinsic_dim": 20, "length": LENGTH, "alpha": 0.5, "sigma": 2.0, "placement": mode, "p0": "zeros"}
    )
    outline = SoftSpace.of(problem, settings, 0, tuple(range(LAYERS)))
    assert outline.subspace.scales == ()
    space = outline.scaled(problem, settings).subspace
    model, states = whole_model(problem), []
    for i in range(6):
        ids, _, _ = problem.part("train").row(i, space.tokens)
        if mode == "add":
            states.append(model(input_ids=torch.tensor(ids)[None], output_hidden_states=True).hidden_states)
    found = hidden_stds(LMScorer(problem.lm), problem.part("train"), block_of([blank(outline)], {}), (1, 2, 3))
    for layer in range(1, LAYERS):
        if mode == "add":
            together = np.concatenate([s[layer][0].detach().numpy() for s in states])
            assert found[layer] == pytest.approx(clipped_std(together), rel=1e-4)
        expected = 0.5 * found[layer] / (math.sqrt(20) * 2.0)
        assert space.scales[layer] == pytest.approx(expected, rel=1e-6)
    assert space.scales[0] == space.scale == SoftSpace.of(problem, settings, 0).subspace.scale
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2.0, (100, 20)).astype(np.float32)
    for layer in range(1, LAYERS):  # the first steps are alpha times as large as the hidden states
        assert (z @ layer_matrix(space, layer)).std() == pytest.approx(0.5 * found[layer], rel=0.1)


def blank(space: SoftSpace) -> SoftPrompt:
    return SoftPrompt((0.0,) * space.subspace.numbers, space.subspace)


def test_measuring_fewer_tokens_at_a_time_or_fewer_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of("bert", tmp_path)
    space = SoftSpace.of(problem, make_settings(Holder, {"intrinsic_dim": 4, "length": LENGTH}), 0, (0, 1, 2, 3))
    part, block, scorer = problem.part("train"), block_of([blank(space)], {}), LMScorer(problem.lm)
    expected = hidden_stds(scorer, part, block, (1, 3))
    monkeypatch.setattr("rayprompt.lm.deep.MEASURED_ROWS", 1)
    assert hidden_stds(scorer, part, block, (1, 3)) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("rayprompt.lm.deep.MEASURED_TOKENS", 40)
    assert hidden_stds(scorer, part, block, (1, 3)) != pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("rayprompt.lm.deep.MEASURED_TOKENS", 1)  # one example at least
    assert len(hidden_stds(scorer, part, block, (1, 3))) == 2


def test_every_layer_has_a_matrix_of_its_own_and_none_is_kept(tmp_path: Path) -> None:
    problem = problem_of("electra", tmp_path)  # embeddings 16 wide, hidden states 32
    space = space_of(problem, intrinsic_dim=40)
    matrices = [layer_matrix(space.subspace, layer) for layer in range(LAYERS)]
    assert [m.shape for m in matrices] == [(40, LENGTH * 16), *[(40, LENGTH * 32)] * 3]
    for layer, matrix in enumerate(matrices):
        assert matrix.std() == pytest.approx(0.5 + 0.1 * layer, rel=0.05)
    for one, other in ((1, 2), (2, 3), (1, 3)):
        assert abs(np.corrcoef(matrices[one].ravel(), matrices[other].ravel())[0, 1]) < 0.1
    scorer = LMScorer(problem.lm)
    prompts = prompts_of(space, 0)
    block = block_of(prompts, {})
    vectors = scorer.soft.vectors(block, np.arange(3))
    for layer, matrix in enumerate(matrices):
        different, which = vectors.layers[layer]
        expected = np.stack([p.vector[space.subspace.of_layer(layer)] @ matrix for p in prompts])
        assert np.abs(different[which].numpy().reshape(3, -1) - expected).max() < 1e-4
    assert scorer.soft.matrices.bytes == 0
    alone = scorer.soft.vectors(block_of(prompts[1:2], {}), np.zeros(1, dtype=np.int64))
    scorer.soft.products.clear()
    again = scorer.soft.vectors(block_of(prompts[::-1], {}), np.arange(3))
    for layer in range(LAYERS):
        bits = [found.layers[layer][0][found.layers[layer][1]].numpy() for found in (vectors, alone, again)]
        assert bits[0][1].tobytes() == bits[1][0].tobytes() == bits[2][1].tobytes()


def test_another_generator_is_found_out(tmp_path: Path) -> None:
    problem = problem_of("bert", tmp_path)
    space = space_of(problem).subspace
    sizes = dict.fromkeys(range(LAYERS), LENGTH * 32)
    assert space.digest == deep_digest(0, "normal", DIM, sizes)
    other = SoftSpace(replace(space, digest="0" * 32))
    with pytest.raises(ScoringError, match="draws another projection here than where the search began"):
        scored(LMScorer(problem.lm), problem, prompts_of(other, 0))


# Candidates.


def test_a_deep_prompt_is_read_back_and_keys_of_others_stay_what_they_were(tmp_path: Path) -> None:
    problem = problem_of("bert", tmp_path)
    (prompt, other) = prompts_of(space_of(problem), 3, count=2)
    again = candidate_from_json(prompt.to_json())
    assert (again, again.key) == (prompt, prompt.key)
    assert again.key != other.key
    assert replace(prompt.subspace, scales=(1.0,) * LAYERS).key != prompt.subspace.key
    shallow = Subspace(seed=3, scale=0.25, length=5, tokens=(7, 8, 9, 10, 11), dim=2, width=4, digest="ab")
    assert shallow.key == "cf36f65af5eef5fb90f14951da5a6db7"
    assert SoftPrompt((0.5, -1.0), shallow).key == "c3de6643f0c4606e74440da56935b33d"
    assert not {"scales", "hidden"} & set(shallow.form)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (0, 1, 2, 4)}, r"a deep prompt of layers \[0, 1, 2, 4\]: .* has layers 0 to 3"),
        ({"layers": (0, 2, 1, 3)}, r"layers \[0, 2, 1, 3\]"),
        ({"hidden": 7}, "a deep prompt of width 7, .* cannot be used on .*, whose hidden states are 32 wide"),
        ({"scales": (1.0, 2.0)}, "with 2 scales for 4 layers"),
        ({"layers": (0, 1)}, "z: 24, subspace: 12"),
    ],
)
def test_a_deep_prompt_that_does_not_fit_the_lm_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    problem = problem_of("bert", tmp_path)
    space = replace(space_of(problem).subspace, **changes)
    with pytest.raises(InputError, match=message) as caught:
        problem.token_ids(SoftPrompt((0.0,) * (LAYERS * DIM), space))
    assert "\n" not in str(caught.value)


def test_an_lm_whose_layers_are_not_found_is_refused(tmp_path: Path) -> None:
    problem = problem_of("bert", tmp_path)
    scorer = LMScorer(problem.lm)
    scorer.forward.model.config.num_hidden_layers = 7
    with pytest.raises(ScoringError, match="BertModel: its layers were not found, so it takes no soft prompts"):
        scored(scorer, problem, prompts_of(space_of(problem), 0))


# The pool.


def test_a_pool_scores_exports_and_measures_as_the_lm_alone(pool: ScoringPool) -> None:
    problem = Problem("reviews", "tiny-masked").for_search()
    settings = make_settings(Holder, {"intrinsic_dim": DIM, "length": LENGTH})
    outline = SoftSpace.of(problem, settings, 0, (0, 1, 2, 3))
    space = outline.scaled(problem, settings, pool)
    scales = space.subspace.scales
    problem.layer_scales.clear()
    assert outline.scaled(problem, settings).subspace.scales == scales
    scorer = LMScorer(problem.lm)
    for shared in (0, 2):
        prompts = prompts_of(space, shared, count=6)
        expected = scored(scorer, problem, prompts)
        part = problem.part("train")
        pool.add(part)
        request = Request.of_all(part, [problem.token_ids(p) for p in prompts])
        result = pool.score_pairs(part, request.prompts, request.prompt, request.example, soft=prompts)
        assert result.label_log_probs.reshape(expected.shape).tobytes() == expected.tobytes()
    vectors = pool.vectors(prompts[0])
    for layer in range(4):
        by_hand_of = prompts[0].vector[space.subspace.of_layer(layer)] @ layer_matrix(space.subspace, layer)
        assert np.abs(vectors[layer].reshape(-1) - by_hand_of).max() < 1e-4


def test_an_lm_whose_label_words_have_several_tokens_is_measured_too(tmp_path: Path) -> None:
    for family in ("gpt2", "t5"):
        one = problem_of(family, tmp_path / "one")
        several = problem_of(family, tmp_path / "several", label_words={0: "terrible so", 1: "great film it"})
        space = SoftSpace.of(one, make_settings(Holder, {"intrinsic_dim": 4, "length": LENGTH}), 0, (0, 1, 2, 3))
        found = [
            hidden_stds(LMScorer(p.lm), p.part("train"), block_of([blank(space)], {}), (1, 2, 3))
            for p in (one, several)
        ]
        assert found[0] == found[1]


# Threads and memory.


def test_an_lm_is_asked_once_and_a_failed_question_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of("bert", tmp_path)
    scorer, prompts = LMScorer(problem.lm), prompts_of(space_of(problem), 2)
    seen: list[bool] = []

    def probe(self: Any, forward: Any, vocab_size: int) -> bool:
        seen.append(forward.layers.jumps)  # what others read meanwhile
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("rayprompt.lm.deep.Layers._probe", probe)
        with pytest.raises(torch.OutOfMemoryError):
            scored(scorer, problem, prompts)
    assert seen == [False]
    assert scorer.forward.layers is None
    fresh = scored(LMScorer(problem.lm), problem, prompts)
    assert np.array_equal(scored(scorer, problem, prompts), fresh)
    assert scorer.layers.jumps


@pytest.mark.parametrize("template", [SETTINGS["template"], BEFORE], ids=["behind", "before"])
@pytest.mark.parametrize(("family", "packed"), [("bert", True), ("bert", False), ("bart", False), ("gpt2", True)])
def test_where_what_is_shared_finds_no_memory_every_prompt_goes_through_all_layers(
    family: str, packed: bool, template: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(family, tmp_path, template=template)
    scorer, prompts = LMScorer(problem.lm), prompts_of(space_of(problem), 2)
    expected = scored(scorer, problem, prompts, packed=packed)
    scorer = LMScorer(problem.lm)
    assert scorer.layers.jumps
    usual, refused = type(scorer.forward)._injected, []

    def injected(self: Any, injection: Any, course: Any = None) -> Any:
        if course is not None and course.stop is not None:
            refused.append(course.stop)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, injection, course)

    monkeypatch.setattr("rayprompt.lm.forward.LabelForward._injected", injected)
    assert scored(scorer, problem, prompts, packed=packed) == pytest.approx(expected, abs=1e-5)
    assert refused
