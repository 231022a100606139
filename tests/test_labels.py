"""Label words of several tokens: sums of log-probabilities, against a plain forward pass for every word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from checkpoints import ENCODER_DECODERS, FAMILIES, make_checkpoint
from loads import passes_for

import rayprompt
from rayprompt.errors import InputError
from rayprompt.lm.labels import Labels
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.source import load_tokenizer
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.task import Task

WORDS = ["very good", "very bad", "good", "very very bad film", "not so good"]
TEXTS = ["a film", "a film so good that nobody should miss it", "bad", "it may be long , but it is not dull at all"]
TEMPLATES = {
    "behind": "{text} {prompt}",
    "before": "{prompt} {text} is",
    "between": "so {text} {prompt} : {text} is",
}
CAUSAL = [name for name, (cls, _) in FAMILIES.items() if cls.endswith(("CausalLM", "LMHeadModel"))]


def problem_of(model: str, template: str, words: list[str] = WORDS) -> Problem:
    examples = [{"text": text, "label": i % len(words)} for i, text in enumerate(TEXTS)]
    kinds = dict.fromkeys(("causal", "encoder-decoder"), template)
    kinds["encoder-decoder"] += " {mask} ."
    task = Task.from_examples(
        "words",
        template=kinds,
        label_words=dict(enumerate(words)),
        train=examples,
        dev=[{"text": "x", "label": 0}],
        test=[{"text": "y", "label": 0}],
    )
    return Problem(task, model)


def plain_causal(problem: Problem, request: Request) -> FloatArray:
    """(P, L): a forward pass over input and word for every pair and word, its tokens' log-probabilities added up."""
    model = transformers.AutoModelForCausalLM.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    result = np.zeros((len(request.prompt), len(WORDS)))
    for i, (prompt, example) in enumerate(zip(request.prompt, request.example, strict=True)):
        row, _, _ = request.part.row(int(example), request.prompts[prompt])
        for j, word in enumerate(problem.labels.words):
            ids = torch.tensor([[*row.tolist(), *word]])
            with torch.inference_mode():
                log_probs = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
            result[i, j] = sum(float(log_probs[len(row) - 1 + k, token]) for k, token in enumerate(word))
    return result - np.logaddexp.reduce(result, axis=1, keepdims=True)


def plain_seq2seq(problem: Problem, request: Request, family: str) -> FloatArray:
    """The same for T5, which writes the sentinel and the word, and BART, which writes the text with the word in it."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    start = model.config.decoder_start_token_id
    result = np.zeros((len(request.prompt), len(WORDS)))
    for i, (prompt, example) in enumerate(zip(request.prompt, request.example, strict=True)):
        row, read, _ = request.part.row(int(example), request.prompts[prompt])
        for j, word in enumerate(problem.labels.words):
            before = [start, int(row[read])] if family == "t5" else [start, *row[:read].tolist()]
            with torch.inference_mode():
                logits = model(
                    input_ids=torch.from_numpy(row)[None], decoder_input_ids=torch.tensor([[*before, *word]])
                ).logits[0]
            log_probs = torch.log_softmax(logits.double(), -1)
            result[i, j] = sum(float(log_probs[len(before) - 1 + k, token]) for k, token in enumerate(word))
    return result - np.logaddexp.reduce(result, axis=1, keepdims=True)


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda location: load_tokenizer("tiny-masked"))


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("place", TEMPLATES)
def test_causal_lms_add_up_the_log_probabilities_of_a_words_tokens(
    place: str, causal: str, one_tokenizer: None
) -> None:
    problem = problem_of(causal, TEMPLATES[place])
    scorer = LMScorer(problem.lm)
    assert [len(word) for word in problem.labels.words] == [2, 2, 1, 4, 3]
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in ("", "it was so")])
    expected = plain_causal(problem, request)
    for packed in (True, False):
        for _ in range(2):
            found, tokens = score_request(scorer, passes_for(scorer, problem, packed), request)
            assert np.abs(found - expected).max() < 1e-4
    inputs = request.part.lengths(request.sizes[request.prompt], request.example)
    assert (tokens == inputs + len(problem.labels.nodes)).all()
    alone = replace(request, prompt=request.prompt[-1:], example=request.example[-1:])
    for packed in (True, False):
        passes = passes_for(scorer, problem, packed)
        one, _ = score_request(scorer, passes, alone)
        assert one.tobytes() == score_request(scorer, passes, request)[0][-1:].tobytes()


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_encoder_decoder_lms_do_so_too(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(family, tmp_path)
    tokenizer = load_tokenizer("tiny-masked")
    if family == "t5":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda location: tokenizer)
    problem = problem_of(model, TEMPLATES["behind"])
    scorer = LMScorer(problem.lm)
    request = Request.of_all(problem.part("train"), [problem.prompt(p).token_ids or () for p in ("", "it was so")])
    found, _ = score_request(scorer, passes_for(scorer, problem), request)
    assert np.abs(found - plain_seq2seq(problem, request, family)).max() < 1e-4


def test_shared_first_tokens_are_computed_once() -> None:
    labels = Labels(((1, 2), (1, 3), (4,), (1, 1, 3, 5), (6, 7, 2)))
    assert labels.nodes == ((1,), (6,), (1, 1), (6, 7), (1, 1, 3))
    assert labels.paths == ((6, 7), (1, 1, 3))
    assert labels.tokens.tolist() == [1, 6, 1, 7, 3]
    assert labels.depths.tolist() == [1, 1, 2, 2, 3]
    assert labels.depth == 3
    assert labels.behind.sum() == 5 + 1 + 1 + 2
    assert [labels.place(node) for node in labels.nodes] == [(1, 1), (0, 1), (1, 2), (0, 2), (1, 3)]


def test_words_of_one_token_are_what_they_were() -> None:
    problem = Problem("reviews", "tiny-causal")
    assert problem.labels.single
    assert problem.labels.nodes == ()
    assert problem.label_ids == [word[0] for word in problem.labels.words]


def test_two_words_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="two label words of .* are the same tokens in tiny-causal"):
        problem_of("tiny-causal", TEMPLATES["behind"], ["very good", "Very good"])
    with pytest.raises(InputError, match="is [0-9] tokens in tiny-masked .* it must be one token"):
        Problem(
            Task.from_examples(
                "masked",
                template={"masked": "{text} {prompt} {mask}"},
                label_words={0: "very good", 1: "bad"},
                train=[{"text": "a", "label": 0}],
                dev=[{"text": "b", "label": 0}],
                test=[{"text": "c", "label": 0}],
            ),
            "tiny-masked",
        )


@pytest.mark.slow  # quick: their scores are those of a forward pass, above
@pytest.mark.usefixtures("ray_session")
def test_a_search_with_words_of_several_tokens(tmp_path: Path) -> None:
    problem = problem_of("tiny-causal", TEMPLATES["behind"])
    result = rayprompt.search(problem.task, model="tiny-causal", searcher="random", budget=40, out=tmp_path / "study")
    assert result.evaluations == 40
    shown = yaml.safe_load((tmp_path / "study" / "study.yaml").read_text())["model"]["label_ids"]
    assert shown == [list(word) for word in problem.labels.words]
