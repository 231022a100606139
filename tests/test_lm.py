"""Scores against one plain transformers forward pass per (candidate, example)."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, make_checkpoint
from conftest import task_of
from loads import passes_for

from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.encode import EncodedPart, Encoder, Segment
from rayprompt.lm.labels import Labels
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.lm.shapes import ShapeTable
from rayprompt.lm.source import BUNDLED, describe_model, load_tokenizer
from rayprompt.searcher.problem import Problem
from rayprompt.task import Task, load_task

PROMPTS = ["", "it was", "overall , this one was", "the whole thing , in short , felt to me rather"]


def plain_log_probs(problem: Problem, prompts: list[str], part: str, count: int) -> np.ndarray:
    """(C, E, L): each pair alone through the model's own forward, the input made from one string."""
    tokenizer = load_tokenizer(problem.lm.name)
    masked = problem.template.has_mask
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    rows = []
    for prompt in prompts:
        for example in problem.task.examples(part, problem.split)[:count]:
            text = problem.template.render(example.fields, prompt, tokenizer.mask_token or "")
            inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            with torch.inference_mode():
                logits = model(**inputs).logits[0]
            ids = inputs["input_ids"][0]
            at = int((ids == tokenizer.mask_token_id).nonzero()) if masked else len(ids) - 1
            rows.append(torch.log_softmax(logits[at][problem.label_ids].double(), -1).numpy())
    return np.array(rows).reshape(len(prompts), count, -1)


def our_log_probs(problem: Problem, prompts: list[str], part: str, count: int, alone: bool, packed: bool) -> np.ndarray:
    """The same through LMScorer, in passes of many pairs, or each pair asked for on its own."""
    scorer = LMScorer(problem.lm)
    encoded = problem.part(part)
    request = Request.of_all(encoded, [problem.prompt(p).token_ids or () for p in prompts], count)
    lengths = encoded.lengths(request.sizes[request.prompt], request.example)
    result = np.full((len(lengths), len(problem.label_ids)), np.nan)
    for pairs in np.arange(len(lengths)).reshape(-1, 1) if alone else [np.arange(len(lengths))]:
        some = replace(request, prompt=request.prompt[pairs], example=request.example[pairs])
        result[pairs], tokens = score_request(scorer, passes_for(scorer, problem, packed), some)
        assert tokens.tolist() == lengths[pairs].tolist()
    return result.reshape(len(prompts), count, -1)


def check_equal(problem: Problem, count: int) -> None:
    plain = plain_log_probs(problem, PROMPTS, "test", count)
    for packed in (True, False):
        for alone in (True, False):
            ours = our_log_probs(problem, PROMPTS, "test", count, alone, packed)
            assert np.abs(ours - plain).max() < 1e-4


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_bundled_lms_score_as_a_plain_forward_pass(model: str) -> None:
    check_equal(Problem("reviews", model), 40)


@pytest.mark.slow  # quick: the bundled LMs
def test_minilm_scores_as_a_plain_forward_pass(mr_folder: Path, minilm: str) -> None:
    check_equal(Problem(mr_folder, minilm), 4)


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_pieces_give_the_ids_of_the_whole_string(model: str) -> None:
    problem = Problem("reviews", model)
    check_ids(problem, "test")


def test_pieces_give_the_ids_of_the_whole_string_on_real_text(mr_folder: Path, minilm: str) -> None:
    check_ids(Problem(mr_folder, minilm), "test")


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_a_template_that_begins_with_the_prompt(model: str) -> None:
    template = {"masked": "{prompt} {text} so {mask} !", "causal": "{prompt} {text} so"}
    problem = Problem(task_of(train=6, template=template), model)
    check_ids(problem, "test")
    check_equal(problem, 6)


def check_ids(problem: Problem, part: str) -> None:
    tokenizer = load_tokenizer(problem.lm.name)
    encoded = problem.part(part)
    examples = problem.task.examples(part, problem.split)
    for prompt in PROMPTS[:3]:
        ids = problem.prompt(prompt).token_ids or ()
        texts = [problem.template.render(e.fields, prompt, tokenizer.mask_token or "") for e in examples]
        for i, whole in enumerate(tokenizer(texts)["input_ids"]):
            row, read, _ = encoded.row(i, ids)
            assert row.tolist() == whole
            assert row[read] == tokenizer.mask_token_id if problem.template.has_mask else read == len(row) - 1


@pytest.fixture(scope="module", params=FAMILIES)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def test_every_family_scores_as_its_own_forward_pass(random_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the model's type some families would get a tokenizer class of their own.
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda location: load_tokenizer("tiny-masked"))
    problem = Problem(task_of(train=6), random_model)
    scorer = LMScorer(problem.lm)
    encoded = problem.part("train")
    ids = problem.prompt("it was").token_ids or ()
    auto = transformers.AutoModelForMaskedLM if problem.template.has_mask else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(random_model, dtype=torch.float32).eval()
    batch = Bucket(encoded.key, 32, 8, ((), ids), np.array([0, 1] * 3), np.arange(6))
    ours, _, _ = scorer.score(batch, encoded)
    for i in range(6):
        row, read, _ = encoded.row(i, ids if i % 2 else ())
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(row)[None]).logits[0, read]
        expected = torch.log_softmax(logits[problem.label_ids], -1).numpy()
        assert np.abs(ours[i] - expected).max() < 1e-4


def test_only_the_label_words_rows_are_computed() -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    sizes = []
    scorer.forward.model.get_output_embeddings().register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape)))
    encoded = problem.part("train")
    scorer.score(Bucket(encoded.key, 32, 4, ((),), np.zeros(3, int), np.arange(3)), encoded)
    assert sizes == [(4, 1, 2)]


def test_bits_depend_on_the_shape_alone() -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    encoded = problem.part("train")
    ids = (problem.prompt("it was").token_ids or (),)
    one = scorer.score(Bucket(encoded.key, 32, 16, ids, np.zeros(1, int), np.array([5])), encoded)[0]
    many = scorer.score(Bucket(encoded.key, 32, 16, ids, np.zeros(9, int), np.arange(9)), encoded)[0]
    assert one[0].tobytes() == many[5].tobytes()


def random_part(rng: np.random.Generator, read: tuple[str, int] | None, has_empty: bool) -> EncodedPart:
    """Ragged examples of random ids: three segments on each side of the prompt, the middle ones fields."""

    def segment(most: int, field: bool) -> Segment:
        return Segment(rng.integers(1, 1000, rng.integers(0, most + 1)), field)

    def side(most: int) -> tuple[Segment, ...]:
        return (segment(2, False), segment(most, True), Segment(rng.integers(1, 1000, 1), False))

    count = int(rng.integers(1, 30))
    most_before, most_after = rng.choice([0, 12, 30], 2)  # all before, all behind, or on both sides
    before = tuple(side(most_before) for _ in range(count))
    after = tuple(side(most_after) for _ in range(count))
    after_empty = tuple((segment(2, False), *row[1:]) for row in after) if has_empty else None
    pad, longest = int(rng.integers(0, 2)), int(rng.integers(24, 80))
    return EncodedPart("key", before, after, after_empty, read, Labels(((1,), (2,))), pad, longest)


@pytest.mark.parametrize("has_empty", [False, True])
@pytest.mark.parametrize("read", [None, ("before", 0), ("before", 2), ("after", 0), ("after", 2)])
def test_a_rendered_batch_is_its_rows(read: tuple[str, int] | None, has_empty: bool) -> None:
    rng = np.random.default_rng(0)
    seen = {"cut": 0, "whole": 0, "dummy": 0, "empty": 0}
    for _ in range(150):
        part = random_part(rng, read, has_empty)
        lengths = rng.choice([0, 1, 5, 12], rng.integers(1, 5))
        prompts = tuple(tuple(rng.integers(1, 1000, n).tolist()) for n in lengths)
        n = int(rng.integers(1, 17))
        prompt, example = rng.integers(0, len(prompts), n), rng.integers(0, len(part), n)
        tokens = part.lengths(lengths[prompt], example)
        count, length = n + int(rng.integers(0, 4)), int(tokens.max() + rng.integers(0, 9))
        ids, sizes, reads, starts = part.render(prompts, prompt, example, length, count)
        assert ids.dtype == np.int64
        assert (ids.shape, sizes.shape, reads.shape) == ((count, length), (count,), (count,))
        for i in range(count):
            pair = min(i, n - 1)
            row, position, start = part.row(int(example[pair]), prompts[prompt[pair]])
            assert ids[i].tolist() == row.tolist() + [part.pad_id] * (length - len(row))
            assert (sizes[i], reads[i], starts[i]) == (len(row), position, start)
        whole = part.base_lengths[(lengths[prompt] == 0).astype(int), example] + lengths[prompt]
        seen["cut"] += int((whole > part.max_length).sum())
        seen["whole"] += int((whole <= part.max_length).sum())
        seen["dummy"] += count - n
        seen["empty"] += int((lengths[prompt] == 0).sum())
    assert min(seen.values()) > 50


def test_a_part_is_pickled_without_what_render_keeps() -> None:
    problem = Problem(task_of(train=6), "tiny-masked")
    part = problem.part("train")
    size = len(pickle.dumps(part))
    arguments = ((5, 6),), np.zeros(6, int), np.arange(6), 32, 8
    rendered = part.render(*arguments)
    assert len(pickle.dumps(part)) == size
    copy = pickle.loads(pickle.dumps(part))
    assert copy.key == part.key
    assert all(np.array_equal(a, b) for a, b in zip(rendered, copy.render(*arguments), strict=True))


def test_an_input_longer_than_its_batch_is_refused() -> None:
    part = Problem(task_of(train=2), "tiny-masked").part("train")
    with pytest.raises(ValueError, match="an input of 12 tokens in a batch of length 8"):
        part.render(((),), np.zeros(2, int), np.arange(2), 8, 2)


class ShortOfMemory:
    """A forward pass that has memory for batches of ``most`` rows."""

    layers = None  # nobody has asked for deep prompts

    def __init__(self, forward: Any, most: int, error: Exception) -> None:
        self.forward, self.most, self.error = forward, most, error
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        if len(ids) > self.most:
            raise self.error
        result: torch.Tensor = self.forward(ids, *others)
        return result


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: Error code 12"),
    RuntimeError("alloc_cpu.cpp: not enough memory: you tried to allocate 8 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "linux", "windows"])
@pytest.mark.parametrize(("most", "breaks"), [(16, 0), (8, 1), (2, 6), (1, 12)])
def test_out_of_memory_takes_the_next_smaller_shape(error: Exception, most: int, breaks: int) -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    encoded = problem.part("train")
    ids = ((), problem.prompt("it was").token_ids or ())
    prompt, example = np.arange(11) % 2, np.arange(11)
    alone = [Bucket(encoded.key, 32, 1, ids, prompt[[i]], example[[i]]) for i in range(11)]
    expected = np.concatenate([scorer.score(b, encoded)[0] for b in alone])
    whole = Bucket(encoded.key, 32, 16, ids, prompt, example)
    sizes = scorer.score(whole, encoded)[1]
    scorer.forward = short = ShortOfMemory(scorer.forward, most, error)  # type: ignore[assignment]
    log_probs, tokens, broken = scorer.score(whole, encoded)
    assert broken == breaks
    assert np.abs(log_probs - expected).max() < 1e-5
    assert most > 1 or log_probs.tobytes() == expected.tobytes()
    assert tokens.dtype == np.int32
    assert tokens.tolist() == sizes.tolist()
    assert {rows for rows, _ in short.shapes} == {16 >> i for i in range(5) if 16 >> i >= most}
    assert {length for _, length in short.shapes} == {32}


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "linux", "windows"])
def test_no_memory_for_a_single_input_is_said(error: Exception) -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    scorer.forward = ShortOfMemory(scorer.forward, 0, error)  # type: ignore[assignment]
    encoded = problem.part("train")
    batch = Bucket(encoded.key, 32, 4, ((),), np.zeros(3, int), np.arange(3))
    with pytest.raises(ScoringError, match="^out of memory on cpu: not even one input of 32 tokens fits$"):
        scorer.score(batch, encoded)


def test_other_errors_of_a_forward_pass_are_passed_on() -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    scorer.forward = short = ShortOfMemory(scorer.forward, 0, RuntimeError("shapes differ"))  # type: ignore[assignment]
    encoded = problem.part("train")
    with pytest.raises(RuntimeError, match="shapes differ"):
        scorer.score(Bucket(encoded.key, 32, 4, ((),), np.zeros(3, int), np.arange(3)), encoded)
    assert short.shapes == [(4, 32)]


def test_text_is_truncated_never_the_prompt_or_the_mask() -> None:
    long = {"text": " ".join(["good"] * 300), "label": 1}
    problem = Problem(task_of(train=2, dev=[long, {"text": "short", "label": 0}]), "tiny-masked")
    encoded = problem.part("dev")
    prompt = problem.prompt("overall it was").token_ids or ()
    row, read, _ = encoded.row(0, prompt)
    assert len(row) == problem.lm.max_length == 128
    text = load_tokenizer("tiny-masked").convert_ids_to_tokens(row.tolist())
    assert text[-6:] == ["overall", "it", "was", "[MASK]", ".", "[SEP]"]
    assert text[read] == "[MASK]"
    assert text[:2] == ["[CLS]", "good"]
    assert encoded.truncated(len(prompt)) == 1
    with pytest.raises(InputError, match="a prompt of 200 tokens does not fit: the LM takes 128"):
        encoded.lengths(np.array([200]), np.array([1]))


def test_of_several_fields_the_longest_is_cut() -> None:
    rows = [{"one": " ".join(["good"] * 100), "two": " ".join(["bad"] * 60), "label": i} for i in (0, 1)]
    task = Task.from_examples(
        "pairs", template="{one} ? {prompt} {mask} , {two}", label_words={0: "terrible", 1: "great"},
        train=rows, dev=rows, test=rows,
    )  # fmt: skip
    problem = Problem(task, "tiny-masked", allow_leaks=True)
    tokens = load_tokenizer("tiny-masked").convert_ids_to_tokens(problem.part("train").row(0, ())[0].tolist())
    assert len(tokens) == 128
    assert tokens.count("bad") == 60
    assert tokens.count("good") == 128 - 60 - 5  # [CLS] ? [MASK] , [SEP]


def test_special_tokens_in_the_text_are_plain_text() -> None:
    rows = [{"text": "the [MASK] was [SEP] good", "label": i} for i in (0, 1)]
    problem = Problem(task_of(train=2, dev=rows), "tiny-masked")
    row, read, _ = problem.part("dev").row(0, ())
    tokenizer = load_tokenizer("tiny-masked")
    assert (row == tokenizer.mask_token_id).sum() == 1
    assert row[read] == tokenizer.mask_token_id
    assert (row == tokenizer.sep_token_id).sum() == 1


def test_label_words() -> None:
    tokenizer = load_tokenizer("tiny-causal")
    encoder = Encoder(tokenizer, "tiny-causal", 128)
    assert tokenizer.convert_ids_to_tokens(list(encoder.label_word("great", " ", "here"))) == ["Ġgreat"]
    with pytest.raises(InputError, match=r"here: label word ' zyxwv' is \d+ tokens in tiny-causal .*must be one token"):
        encoder.label_word("zyxwv", " ", "here")
    with pytest.raises(InputError, match="two tokens|is [0-9]+ tokens"):
        Problem(task_of(label_words={0: "terrible", 1: "not great"}), "tiny-masked")


def test_shape_table() -> None:
    table = ShapeTable.of("cpu", 100)
    assert table.lengths[-1] == 100
    lengths = np.array([5, 8, 9, 100, 100, 3])
    seen = np.concatenate([members for _, members in table.passes(lengths)])
    assert sorted(seen.tolist()) == list(range(6))
    for (length, rows), members in table.passes(lengths):
        assert len(members) <= rows
        assert all(lengths[m] <= length for m in members)
    assert all(n * r <= 16384 or r == 1 for n, r in zip(*vars(ShapeTable.of("cuda", 4096)).values(), strict=True))


def test_bad_models_get_one_clear_line(tmp_path: Path) -> None:
    cases = {"no config": ({}, "holds no config.json"), "no weights": ({"config.json": "{}"}, "holds no .*safetensors")}
    t5 = json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_layers": 1})
    tokenizer = (BUNDLED / "tiny-masked" / "tokenizer.json").read_text()
    files = {"config.json": t5, "model.safetensors": "", "tokenizer.json": tokenizer}
    cases["no tokenizer"] = ({"config.json": t5, "model.safetensors": ""}, "holds no tokenizer")
    vision = json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"], "vocab_size": 1})
    cases["vision"] = ({**files, "config.json": vision}, "neither a masked nor a causal LM")
    cases["broken config"] = ({**files, "config.json": "{"}, "config.json, line 1: not JSON")
    cases["unknown type"] = ({**files, "config.json": '{"model_type": "nope"}'}, "its config.json cannot be used")
    for name, (content, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, text in content.items():
            (folder / file).write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            describe_model(str(folder))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such model folder"):
        describe_model("./nope")
    with pytest.raises(InputError, match="unknown model 'tiny-maskd' .did you mean 'tiny-masked'"):
        describe_model("tiny-maskd")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        describe_model(str(tmp_path / "file"))


def test_words_round_trip() -> None:
    problem = Problem(load_task("reviews"), "tiny-masked")
    words = [w.text for w in problem.words]
    assert len(set(words)) == len(words) > 500
    text = " ".join(words[:40])
    prompt = problem.prompt(text)
    assert prompt.token_ids == tuple(i for w in problem.words[:40] for i in w.later)
    assert problem.round_trips(prompt)
