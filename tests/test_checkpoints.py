"""Checkpoints that lack something, or bring code: nothing is random, nothing is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import CAUSAL, SEQ2SEQ, make, write_tokenizer
from loads import passes_for
from safetensors.torch import load_file, save_file
from test_architectures import one_tokenizer, plain, task_of  # noqa: F401

from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.embed import encoder
from rayprompt.lm.judges import Judges
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.settings import LMSettings, from_file
from rayprompt.lm.source import BUNDLED, describe_model, load_tokenizer
from rayprompt.searcher.problem import Problem

CODE = "raise SystemExit('code of the checkpoint was run')\n"


def edit(folder: Path, **changes: Any) -> None:
    """Other settings in a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(folder: Path, *names: str) -> None:
    """A checkpoint without some of its tensors."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def score(folder: Path, cls: str) -> float:
    """The greatest distance between the scores of a checkpoint and those of transformers alone."""
    problem = Problem(task_of((1, 4, 12)), str(folder))
    scorer = LMScorer(problem.lm)
    request = Request.of_all(problem.part("train"), [problem.prompt("it was").token_ids or ()])
    found, _ = score_request(scorer, passes_for(scorer, problem), request)
    return float(np.abs(found - plain(cls, problem, request)).max())


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    make("ElectraForPreTraining", {}, tmp_path)
    with pytest.raises(ScoringError, match=r"its files hold no generator_\S+ .*of a ElectraForMaskedLM.* random"):
        LMScorer(describe_model(str(tmp_path))[0])


def test_an_untied_output_layer_that_is_missing_is_refused(tmp_path: Path) -> None:
    make("LlamaForCausalLM", {"tie_word_embeddings": False}, tmp_path)
    without(tmp_path, "lm_head.weight")
    with pytest.raises(ScoringError, match=r"its files hold no lm_head\.weight of a LlamaForCausalLM"):
        LMScorer(describe_model(str(tmp_path))[0])


def test_a_tied_output_layer_need_not_be_there(tmp_path: Path, one_tokenizer: None) -> None:  # noqa: F811
    make("LlamaForCausalLM", {"tie_word_embeddings": True}, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert score(tmp_path, "LlamaForCausalLM") < 1e-4


def test_a_missing_layer_and_another_shape_are_refused(tmp_path: Path) -> None:
    make("LlamaForCausalLM", {}, tmp_path)
    edit(tmp_path, num_hidden_layers=3, layer_types=None)
    with pytest.raises(ScoringError, match=r"its files hold no model\.layers\.2\..* and 6 more"):
        LMScorer(describe_model(str(tmp_path))[0])
    edit(tmp_path, num_hidden_layers=2, intermediate_size=48)
    with pytest.raises(
        ScoringError, match=r"down_proj.weight with shape \(32, 64\), and its config.json .* \(32, 48\)"
    ):
        LMScorer(describe_model(str(tmp_path))[0])


def test_judges_and_encoders_have_no_random_head(tmp_path: Path) -> None:
    make("BertForMaskedLM", {}, tmp_path)
    edit(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(ScoringError, match=r"its files hold no .*classifier\.bias"):
        Judges("cpu").probabilities(str(tmp_path), ["a film"])
    assert encoder(str(tmp_path))(["a film", "a good film"]).shape == (2, 32)  # the pooler that it lacks is not read
    without(tmp_path, "bert.encoder.layer.1.output.dense.weight")
    with pytest.raises(InputError, match=r"encoder .*: its files hold no encoder\.layer\.1\.output\.dense\.weight"):
        encoder(str(tmp_path) + "/")(["a film"])


def test_vectors_of_an_encoder_whose_padding_counts_are_those_of_each_text_alone(tmp_path: Path) -> None:
    make("FNetForMaskedLM", {}, tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = load_tokenizer(str(tmp_path))
    texts = ["a film", "a film so good that nobody should miss it"]
    for text, found in zip(texts, encoder(str(tmp_path))(texts), strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state
        assert np.abs(states[0].mean(dim=0).numpy() - found).max() < 1e-4


def test_padding_beyond_the_vocabulary(tmp_path: Path, one_tokenizer: None) -> None:  # noqa: F811
    model = make("LlamaForCausalLM", {}, tmp_path)
    size = model.config.vocab_size
    edit(tmp_path, pad_token_id=size)
    problem = Problem(task_of((1, 4, 12)), str(tmp_path))
    request = Request.of_all(problem.part("train"), [problem.prompt("it was").token_ids or ()])
    scorer = LMScorer(problem.lm)
    found, _ = score_request(scorer, passes_for(scorer, problem, packed=False), request)
    for pair, row in enumerate(found):
        ids, read, _ = request.part.row(int(request.example[pair]), request.prompts[0])
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)[None]).logits[0, read, problem.label_ids]
        assert np.abs(logits.log_softmax(-1).numpy() - row).max() < 1e-4
    make("BertForMaskedLM", {}, tmp_path / "bert")
    edit(tmp_path / "bert", pad_token_id=size)
    with pytest.raises(InputError, match=f"pad_token_id {size} is not in its vocabulary of {size} tokens"):
        describe_model(str(tmp_path / "bert"))


def test_a_decoder_that_cannot_begin_is_refused(tmp_path: Path, one_tokenizer: None) -> None:  # noqa: F811
    cls, changes, _ = SEQ2SEQ["bart"]
    make(cls, changes, tmp_path)
    edit(tmp_path, decoder_start_token_id=None)
    with pytest.raises((InputError, ScoringError), match="no decoder_start_token_id"):
        score(tmp_path, cls)


def multimodal(folder: Path) -> Any:
    """A tiny Gemma 3 that reads texts and images."""
    cls, changes, _ = CAUSAL["gemma3"]
    text = make(cls, changes, folder / "text").config
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or name.endswith("bias"):
                weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def test_a_multimodal_lm_is_given_text(tmp_path: Path, one_tokenizer: None) -> None:  # noqa: F811
    multimodal(tmp_path)
    assert score(tmp_path, "Gemma3ForConditionalGeneration") < 1e-4


def test_a_config_without_an_lm_is_refused_in_a_line(tmp_path: Path) -> None:
    make("BertForMaskedLM", {}, tmp_path)
    edit(tmp_path, architectures=["BertModel"])
    with pytest.raises(InputError, match="BertModel is neither a masked nor a causal LM"):
        describe_model(str(tmp_path))
    vit = transformers.ViTConfig(num_hidden_layers=1)
    (tmp_path / "config.json").write_text(json.dumps({**vit.to_dict(), "architectures": ["ViTForMaskedLM"]}))
    with pytest.raises(InputError, match=r"a ViTConfig has no vocab_size: it is not the config of an LM of text"):
        describe_model(str(tmp_path))


@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_code_of_a_checkpoint_is_not_run(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(question: str = "") -> str:
        raise AssertionError(f"the user was asked: {question}")

    monkeypatch.setattr("builtins.input", ask)
    make("LlamaForCausalLM", {}, tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    if where == "config":
        edit(tmp_path, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
        with pytest.raises(InputError, match=r"'own' needs Python code .* --lm trust_remote_code=true"):
            describe_model(str(tmp_path))
        with pytest.raises(SystemExit):
            describe_model(str(tmp_path), LMSettings.of({"trust_remote_code": "true"}))
        return
    path = tmp_path / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.T", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    try:
        load_tokenizer(str(tmp_path))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_of_the_hub_is_code_that_is_not_run(key: str, tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "tiny-masked", tmp_path / "lm")
    edit(tmp_path / "lm", **{key: "somebody/kernel"})
    with pytest.raises(InputError, match="kernel of the hub, 'somebody/kernel', which is code that is not run"):
        describe_model(str(tmp_path / "lm"), None, ["a"])


def test_trust_comes_from_the_command_line_alone() -> None:
    assert not LMSettings().trust_remote_code
    assert LMSettings.of({"trust_remote_code": "true"}).changed() == {"trust_remote_code": True}
    with pytest.raises(InputError, match="trust_remote_code: is taken from the command line only"):
        from_file({"trust_remote_code": True})
    with pytest.raises(InputError, match="trust_remote_code=yes: must be true or false"):
        LMSettings.of({"trust_remote_code": "yes"})


def weights(header: bytes, size: int | None = None) -> bytes:
    """A file of tensors that states ``size`` bytes of header."""
    return (len(header) if size is None else size).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        *(
            ("model.safetensors", content, "model.safetensors is not a safetensors file")
            for content in (
                *(b"", b"abc", weights(b"{}", 1 << 63), weights(b"[1]"), weights(b"null"), weights(b'{"a": []}')),
                *(weights(b'{"a": {"shape": 3}}'), weights(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}")),
                *(weights(b'{"a": {"shape": [' + b"9" * 5000 + b"]}}"), weights(b'{"a": 1, "a": 2}'), weights(b"\xff")),
            )
        ),
        ("config.json", b"[]", "must hold a JSON object, not list"),
        ("config.json", b"[" * 100_000, "nested too deeply"),
        ("config.json", b'{"vocab_size": ' + b"9" * 5000 + b"}", "digits"),
        ("config.json", b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_files_of_a_checkpoint_that_cannot_be_read_are_named(
    file: str, content: bytes, line: str, tmp_path: Path
) -> None:
    make("BertForMaskedLM", {}, tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=line):
        describe_model(str(tmp_path))
