"""Scores against one plain transformers forward pass per (candidate, example)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import task_of

from rayprompt.errors import InputError
from rayprompt.lm.encode import Encoder
from rayprompt.lm.scorer import LMScorer, MicroBatch
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


def our_log_probs(problem: Problem, prompts: list[str], part: str, count: int, alone: bool) -> np.ndarray:
    """The same through LMScorer, in the batches of the shape table, or each pair in a batch of its own."""
    scorer = LMScorer(problem.lm)
    encoded = problem.part(part)
    ids = [problem.prompt(p).token_ids or () for p in prompts]
    prompt = np.repeat(np.arange(len(ids)), count)
    example = np.tile(np.arange(count), len(ids))
    lengths = encoded.lengths(np.array([len(i) for i in ids])[prompt], example)
    result = np.full((len(prompt), len(problem.label_ids)), np.nan)
    for length, rows, members in ShapeTable.of("cpu", problem.lm.max_length).batches(lengths):
        for group in members.reshape(-1, 1) if alone else [members]:
            batch = MicroBatch(encoded.key, length, 1 if alone else rows, tuple(ids), prompt[group], example[group])
            log_probs, tokens, _ = scorer.score(batch, encoded)
            assert tokens.tolist() == lengths[group].tolist()
            result[group] = log_probs
    return result.reshape(len(prompts), count, -1)


def check_equal(problem: Problem, count: int) -> None:
    plain = plain_log_probs(problem, PROMPTS, "test", count)
    for alone in (True, False):
        ours = our_log_probs(problem, PROMPTS, "test", count, alone)
        assert np.abs(ours - plain).max() < 1e-4


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
def test_bundled_lms_score_as_a_plain_forward_pass(model: str) -> None:
    check_equal(Problem("reviews", model), 40)


def test_minilm_scores_as_a_plain_forward_pass(mr_folder: Path, minilm: str) -> None:
    check_equal(Problem(mr_folder, minilm), 25)


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
            row, read = encoded.row(i, ids)
            assert row.tolist() == whole
            assert row[read] == tokenizer.mask_token_id if problem.template.has_mask else read == len(row) - 1


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {}),
    "roberta": ("RobertaForMaskedLM", {"max_position_embeddings": 130}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
    "electra": ("ElectraForMaskedLM", {"embedding_size": 16}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 16}),
    "modernbert": ("ModernBertForMaskedLM", {"global_attn_every_n_layers": 1}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2ForCausalLM", {"num_key_value_heads": 1, "head_dim": 16}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a family with small random weights and tiny-masked's tokenizer."""
    cls, extra = FAMILIES[request.param]
    tokenizer = load_tokenizer("tiny-masked")
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id, **extra,
    }  # fmt: skip
    torch.manual_seed(0)
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    shutil.copy(BUNDLED / "tiny-masked" / "tokenizer.json", folder)
    return str(folder)


def test_every_family_scores_as_its_own_forward_pass(random_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the model's type some families would get a tokenizer class of their own.
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda location: load_tokenizer("tiny-masked"))
    problem = Problem(task_of(train=6), random_model)
    scorer = LMScorer(problem.lm)
    encoded = problem.part("train")
    ids = problem.prompt("it was").token_ids or ()
    auto = transformers.AutoModelForMaskedLM if problem.template.has_mask else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(random_model, dtype=torch.float32).eval()
    batch = MicroBatch(encoded.key, 32, 8, ((), ids), np.array([0, 1] * 3), np.arange(6))
    ours, _, _ = scorer.score(batch, encoded)
    for i in range(6):
        row, read = encoded.row(i, ids if i % 2 else ())
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
    scorer.score(MicroBatch(encoded.key, 32, 4, ((),), np.zeros(3, int), np.arange(3)), encoded)
    assert sizes == [(4, 1, 2)]


def test_bits_depend_on_the_shape_alone() -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    encoded = problem.part("train")
    ids = (problem.prompt("it was").token_ids or (),)
    one = scorer.score(MicroBatch(encoded.key, 32, 16, ids, np.zeros(1, int), np.array([5])), encoded)[0]
    many = scorer.score(MicroBatch(encoded.key, 32, 16, ids, np.zeros(9, int), np.arange(9)), encoded)[0]
    assert one[0].tobytes() == many[5].tobytes()


def test_text_is_truncated_never_the_prompt_or_the_mask() -> None:
    long = {"text": " ".join(["good"] * 300), "label": 1}
    problem = Problem(task_of(train=2, dev=[long, {"text": "short", "label": 0}]), "tiny-masked")
    encoded = problem.part("dev")
    prompt = problem.prompt("overall it was").token_ids or ()
    row, read = encoded.row(0, prompt)
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
    row, read = problem.part("dev").row(0, ())
    tokenizer = load_tokenizer("tiny-masked")
    assert (row == tokenizer.mask_token_id).sum() == 1
    assert row[read] == tokenizer.mask_token_id
    assert (row == tokenizer.sep_token_id).sum() == 1


def test_label_words() -> None:
    tokenizer = load_tokenizer("tiny-causal")
    encoder = Encoder(tokenizer, "tiny-causal", 128)
    assert tokenizer.convert_ids_to_tokens([encoder.label_id("great", " ", "here")]) == ["Ġgreat"]
    with pytest.raises(InputError, match=r"here: label word ' zyxwv' is \d+ tokens in tiny-causal .*must be one token"):
        encoder.label_id("zyxwv", " ", "here")
    with pytest.raises(InputError, match="two tokens|is [0-9]+ tokens"):
        Problem(task_of(label_words={0: "terrible", 1: "not great"}), "tiny-masked")


def test_shape_table() -> None:
    table = ShapeTable.of("cpu", 100)
    assert table.lengths[-1] == 100
    lengths = np.array([5, 8, 9, 100, 100, 3])
    seen = np.concatenate([members for _, _, members in table.batches(lengths)])
    assert sorted(seen.tolist()) == list(range(6))
    for length, rows, members in table.batches(lengths):
        assert len(members) <= rows
        assert all(lengths[m] <= length for m in members)
    assert all(n * r <= 16384 or r == 1 for n, r in zip(*vars(ShapeTable.of("cuda", 4096)).values(), strict=True))


def test_bad_models_get_one_clear_line(tmp_path: Path) -> None:
    cases = {"no config": ({}, "holds no config.json"), "no weights": ({"config.json": "{}"}, "holds no .*safetensors")}
    t5 = json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_layers": 1})
    tokenizer = (BUNDLED / "tiny-masked" / "tokenizer.json").read_text()
    files = {"config.json": t5, "model.safetensors": "", "tokenizer.json": tokenizer}
    cases["no tokenizer"] = ({"config.json": t5, "model.safetensors": ""}, "holds no tokenizer")
    cases["t5"] = (files, "neither a masked nor a causal LM")
    cases["broken config"] = ({**files, "config.json": "{"}, "its config.json cannot be used")
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
