"""Style transfer: cutting and length rules, rewards against fixtures, the models that judge, reports, whole runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import make_checkpoint, write_checkpoint
from conftest import PoolOf

import rayprompt
from rayprompt.answers import Judge, first_sentence, get_extractor
from rayprompt.candidate import TextPrompt
from rayprompt.cli.main import app, run
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.judges import Judges, check_style, labels_of
from rayprompt.lm.source import load_tokenizer
from rayprompt.lm.write import draw, draw_top
from rayprompt.objective import group_maxima, maxima_of_groups, pair_values
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.problem import Problem
from rayprompt.study.style import Output, best_rows, geometric, joint, measured
from rayprompt.style import StyleModels

pytestmark = pytest.mark.usefixtures("unlogged")

TEMPLATE = '{prompt} "{text}" "'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A classifier of two styles, an encoder and an LM: small, random, with tiny-masked's tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer("tiny-masked")
    labels = {"id2label": {0: "old", 1: "modern"}, "label2id": {"old": 0, "modern": 1}}
    found = {"classifier": folder / "classifier", "encoder": folder / "encoder", "lm": folder / "lm"}
    write_checkpoint(transformers.BertForSequenceClassification, tokenizer, labels, found["classifier"])
    make_checkpoint("bert", found["encoder"])
    make_checkpoint("gpt2", found["lm"])
    return {name: str(path) for name, path in found.items()}


def style_task(models: dict[str, str], count: int = 3, **changes: Any) -> rayprompt.Task:
    rows = [{"text": f"the film was number {i} good .", "answer": f"the film was number {i} good ."} for i in range(60)]
    given: dict[str, Any] = {
        "template": TEMPLATE, "extractor": "lower-sentence", "scorer": "style", "max_tokens": 8, "temperature": 1.0,
        "samples": 4, "top_k": 10, "length_control": True, "stop": ['"'],
        "style": {"classifier": models["classifier"], "target": "modern", "encoder": models["encoder"]}, **changes,
    }  # fmt: skip
    return rayprompt.Task.from_examples(
        "style", train=rows[:count], dev=rows[count : 2 * count], test=rows[2 * count : 3 * count], **given
    )


# What is left of a completion.


@pytest.mark.parametrize(
    ("written", "cut"),
    [
        ('Well met, sir." he said', "Well met, sir."),
        ("Go! Now. Please?", "Go!"),
        ("who goes there? me", "who goes there?"),
        ("  no end at all ", "no end at all"),
        ('no end" then. more', "no end"),
        ('"', ""),
        ("", ""),
        ("...", "."),
    ],
)
def test_a_completion_is_cut_at_the_quote_and_the_first_sentence_end(written: str, cut: str) -> None:
    assert first_sentence(written) == cut
    assert get_extractor("sentence").find(written) == (cut or None)
    assert get_extractor("lower-sentence").find(written) == (cut.lower() or None)


def test_the_text_to_be_kept_is_not_cut() -> None:
    assert get_extractor("sentence").gold("Hark!  Who\tgoes?") == "Hark! Who goes?"
    assert get_extractor("lower-sentence").gold("Hark! Who goes?") == "hark! who goes?"


@pytest.mark.parametrize(("tokens", "limit"), [(1, 11), (10, 20), (20, 30), (21, 31), (30, 45), (31, 46), (100, 60)])
def test_length_control_is_that_of_the_original(tokens: int, limit: int) -> None:
    control = Decoding(max_tokens=60, length_control=True)
    assert control.limit(tokens) == min(60, int(max(1.5 * tokens, tokens + 10))) == limit
    assert Decoding(max_tokens=60).limit(tokens) == 60


def test_what_is_not_used_does_not_change_the_key_of_a_score() -> None:
    assert set(Decoding(temperature=1.0).content) == {"max_tokens", "temperature", "top_p", "stop", "seed"}
    assert set(Decoding().content) == {"max_tokens", "temperature", "stop"}
    assert Decoding(top_k=3, temperature=1.0).content["top_k"] == 3
    assert Decoding(length_control=True).content["length_control"] is True


def test_top_k_draws_from_the_likeliest_by_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(1, 50))).float()
    decoding = Decoding(temperature=0.7, top_k=5)
    u = rng.random(20_000)
    drawn = draw_top(logits.expand(len(u), -1), u, decoding)
    top = logits[0].topk(5)
    wanted = np.zeros(50)
    wanted[top.indices.numpy()] = (top.values.double() / 0.7).softmax(0).numpy()
    assert np.bincount(drawn, minlength=50) / len(u) == pytest.approx(wanted, abs=0.012)
    plain = Decoding(temperature=0.7)
    assert (
        draw_top(logits.expand(9, -1), u[:9], plain).tolist()
        == draw(logits.expand(9, -1).numpy(), u[:9], plain).tolist()
    )


# Rewards.


def scores_of_values(values: Any) -> Scores:
    """Scores of values (C, E, S)."""
    values = np.asarray(values, dtype=np.float64)
    candidate, example, sample = (x.reshape(-1) for x in np.indices(values.shape))
    none = np.zeros(values.size, dtype=np.int32)
    prompts = tuple(TextPrompt(str(i)) for i in range(len(values)))
    return Scores(
        prompts, np.arange(values.shape[1]), candidate, example, sample, values.reshape(-1), None, none, none,
        samples=values.shape[2],
    )  # fmt: skip


def test_a_reward_is_the_mean_of_the_maxima_of_four_groups() -> None:
    values = np.zeros((1, 1, 128))
    values[0, 0, [3, 40, 64, 127]] = [0.5, 0.7, 0.2, 0.9]
    values[0, 0, 5] = 0.4  # in the first group, and not its best
    scores, gold = scores_of_values(values), np.zeros(1, dtype=int)
    assert maxima_of_groups(scores)[0, 0] == pytest.approx([50, 70, 20, 90])
    assert group_maxima(scores, gold)[0] == pytest.approx(57.5)


def test_the_order_within_a_group_makes_no_difference_and_the_groups_do() -> None:
    rng = np.random.default_rng(0)
    values, gold = rng.random((2, 3, 128)), np.zeros(3, dtype=int)
    within = rng.permuted(values.reshape(2, 3, 4, 32), axis=3).reshape(2, 3, 128)
    across = rng.permuted(values, axis=2)
    reward = group_maxima(scores_of_values(values), gold)
    slow = [np.mean([max(row[k * 32 : k * 32 + 32]) for row in one for k in range(4)]) * 100 for one in values]
    assert reward == pytest.approx(slow)
    assert group_maxima(scores_of_values(within), gold) == pytest.approx(reward)
    assert group_maxima(scores_of_values(across), gold) != pytest.approx(reward, abs=1e-6)
    assert pair_values("group_maxima", scores_of_values(values), gold) is not None
    assert maxima_of_groups(scores_of_values(values[:, :, :2])).shape == (2, 3, 2)  # fewer samples than groups


def test_content_and_style_count_alike_and_what_is_empty_is_worth_nothing() -> None:
    asked: list[list[str]] = []

    def stub(what: str, given: tuple[Any, ...], columns: Sequence[Sequence[str]]) -> FloatArray:
        assert (what, given[:3]) == ("reward", ("c", "1", "e"))
        asked.append([*columns[0]])
        return np.array([[len(text) / 10, 0.25] for text in columns[0]])

    judge = Judge.of("sentence", "style", StyleModels("c", "1", "e"))
    values = judge.values(['Fine." x', None, '"', "Oh. no"], ["a", "b", "c", "d"], stub)
    assert asked == [["Fine.", "Oh."]]
    assert values[[0, 2, 3]] == pytest.approx([(0.5 + 0.25) / 2, 0.0, (0.3 + 0.25) / 2])
    assert np.isnan(values[1])
    with pytest.raises(ScoringError, match="nothing that runs its models"):
        judge.values(["x"], ["y"])


# The models.


def test_content_is_bertscore(models: dict[str, str]) -> None:
    """Against its formula, worked out text by text with transformers alone."""
    texts = ["the film was good .", "good", "the film was good .", "bad plot , no end ."]
    sources = ["the film was good .", "the film was bad .", "a story .", "the film was good ."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["encoder"])
    model = transformers.AutoModel.from_pretrained(models["encoder"]).eval()

    def states(text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**ids, output_hidden_states=True).hidden_states[1][0, 1:-1]
        return hidden / hidden.norm(dim=-1, keepdim=True)

    slow = []
    for text, source in zip(texts, sources, strict=True):
        similar = states(text) @ states(source).T
        p, r = similar.max(1).values.mean(), similar.max(0).values.mean()
        slow.append(float(2 * p * r / (p + r)))
    judges = Judges("cpu")
    found = judges.run("content", (models["encoder"], 1, 0.0), [texts, sources])[:, 0]
    assert found == pytest.approx(slow, abs=1e-5)
    assert found[0] == pytest.approx(1.0, abs=1e-5)
    again = judges.run("content", (models["encoder"], 1, 0.5), [texts[1:2], sources[1:2]])  # alone, sources kept
    assert again[0, 0] == max(0.0, (found[1] - 0.5) / 0.5)


def test_style_is_the_probability_of_the_label(models: dict[str, str]) -> None:
    texts = ["the film was good .", "good", "bad plot , no end . " * 6]
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["classifier"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(models["classifier"]).eval()
    with torch.inference_mode():
        slow = [float(model(**tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0, 1]) for t in texts]
    judges = Judges("cpu")
    for target in ("modern", "1"):
        given = (models["classifier"], target, models["encoder"], None, 0.0)
        found = judges.run("reward", given, [texts, texts])
        assert found[:, 1] == pytest.approx(slow, abs=1e-5)
        assert found[:, 0] == pytest.approx(1.0, abs=1e-5)
    whole = judges.run("probabilities", (models["classifier"],), [texts])
    alone = np.concatenate([judges.run("probabilities", (models["classifier"],), [[t]]) for t in texts])
    assert (whole == alone).all()  # bit for bit, whatever is judged beside it


def test_perplexity_is_that_of_a_plain_pass(models: dict[str, str]) -> None:
    texts = ["the film was good .", "bad plot , no end ."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["lm"])
    model = transformers.AutoModelForCausalLM.from_pretrained(models["lm"]).eval()
    slow = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            slow.append(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
    found = Judges("cpu").run("surprise", (models["lm"],), [texts])
    assert found[:, 0] == pytest.approx(slow, rel=1e-4)


def test_models_that_do_not_do_are_refused_in_one_line(models: dict[str, str]) -> None:
    fine = {"classifier": models["classifier"], "target": "modern", "encoder": models["encoder"]}
    assert check_style(StyleModels(**fine)).target == "1"
    assert labels_of(models["classifier"]) == ["old", "modern"]
    for changes, said in (
        ({"target": "future"}, "has no label 'future'; it has old, modern"),
        ({"classifier": models["encoder"]}, "is no sequence classifier (a BertForMaskedLM"),
        ({"encoder": "no/such-thing/here"}, "no such model folder"),
        ({"layer": 9}, "has 2 layers"),
        ({"fluency": models["classifier"], "fluency_label": "line"}, "has no label 'line'"),
    ):
        with pytest.raises(InputError) as error:
            check_style(StyleModels(**{**fine, **changes}))  # type: ignore[arg-type]
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"style": None}, "scorer style needs models"),
        ({"style": {"classifier": "x", "target": 1}}, "style lacks encoder"),
        ({"style": {"classifier": "x", "target": 1, "encoder": "y", "layers": 2}}, "unknown key 'layers'"),
        ({"style": {"classifier": "x", "target": 1, "encoder": "y", "baseline": 1}}, "baseline=1: must be a number"),
        ({"scorer": "match"}, "style is for scorer: style"),
        ({"metric": "f1"}, "unknown metric 'f1'"),
    ],
)
def test_tasks_that_say_it_wrongly_are_refused(changes: dict[str, Any], said: str, models: dict[str, str]) -> None:
    with pytest.raises(InputError) as error:
        style_task(models, **changes)
    assert said in str(error.value)


def test_the_judges_name_changes_with_what_decides_a_reward(models: dict[str, str]) -> None:
    first = Problem(style_task(models), "tiny-causal")
    assert first.judge is not None
    assert first.judge.id.startswith("lower-sentence/1 style/1:")
    other = Problem(style_task(models, style={**_given(models), "target": "old"}), "tiny-causal")
    report = Problem(style_task(models, style={**_given(models), "perplexity": models["lm"]}), "tiny-causal")
    assert other.judge is not None
    assert report.judge is not None
    assert other.judge.id != first.judge.id == report.judge.id
    assert StyleModels("c", "1", "FacebookAI/roberta-large").scale == (17, 0.83122575)
    assert StyleModels("c", "1", "roberta-large", layer=3).scale == (3, 0.0)
    with pytest.raises(InputError, match="not known to us|an LM that is loaded here|length_control"):
        Problem(style_task(models, length_control="maybe"), "tiny-causal")


def _given(models: dict[str, str]) -> dict[str, Any]:
    return {"classifier": models["classifier"], "target": "modern", "encoder": models["encoder"]}


# Choosing and measuring.


def test_the_best_sample_is_chosen_and_of_equals_the_first() -> None:
    example, sample = np.array([1, 0, 0, 0, 1]), np.array([0, 2, 1, 0, 1])
    assert best_rows(example, sample, np.array([0.1, 0.9, 0.9, 0.2, 0.3]), 3) == [2, 4, None]
    assert best_rows(example, sample, np.array([np.nan, 0.9, 0.1, 0.2, np.nan]), 2) == [1, None]


def test_j_is_the_mean_of_products_and_gm_the_geometric_mean_of_means() -> None:
    content, style, fluency = np.array([0.5, 1.0, 0.2]), np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0])
    assert joint([content, style, fluency]) == pytest.approx(100 * (0.5 + 0.0 + 0.2) / 3)
    assert geometric([57.3, 96.5, 85.3]) == pytest.approx(77.9, abs=0.1)  # a row of RLPrompt's table
    assert geometric([50.0, 0.0]) == 0.0


def test_metrics_of_chosen_outputs_with_stub_models(models: dict[str, str]) -> None:
    probability = {"a b": [0.2, 0.8], "c": [0.9, 0.1], "a": [0.4, 0.6]}

    def stub(what: str, given: tuple[Any, ...], columns: Sequence[Sequence[str]]) -> FloatArray:
        if what == "surprise":
            return np.array([[2.0, 1.0], [3.0, 2.0], [1.0, 1.0]])[: len(columns[0])]
        return np.array([probability[text] for text in columns[0]])

    chosen = [
        Output("A B", "a b", 60.0, 80.0, 70.0, "a b"),
        Output("c d", "c", 40.0, 10.0, 25.0, "x y z w"),
        Output("e", "", 0.0, 0.0, 0.0, "e"),
        Output("a", "a", 90.0, 60.0, 75.0, "a"),
    ]
    named = StyleModels(
        models["classifier"], "1", models["encoder"], fluency=models["classifier"], fluency_label="old", perplexity="p"
    )
    import sacrebleu

    report = measured(named, chosen, stub, sacrebleu)
    assert report.content == pytest.approx((60 + 40 + 90) / 4)
    assert report.style == 50.0  # two of four; what is empty is wrong
    assert report.fluency == 25.0
    assert report.joint == 0.0  # none has both here
    assert report.perplexity == pytest.approx(np.exp(6 / 4))
    assert (report.empty, report.copies) == (1, 50.0)
    slow = [sacrebleu.sentence_bleu(o.output, [o.reference or ""]).score for o in chosen]
    assert report.bleu == pytest.approx(np.mean(slow))
    assert "J 0.0" in str(report)


def test_without_sacrebleu_there_is_one_clear_line(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rayprompt.study import style

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"pip install 'rayprompt\[style\]'"):
        style._sacrebleu()


# Whole runs.


def test_duplicates_are_judged_once_and_sources_are_kept(
    pool_of: PoolOf, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(Problem("reviews", "tiny-causal").lm, 1)
    asked: list[int] = []
    whole = type(pool)._judge

    def counted(self: Any, what: str, given: Any, columns: list[list[str]]) -> FloatArray:
        asked.append(len(columns[0]))
        return whole(self, what, given, columns)

    monkeypatch.setattr(type(pool), "_judge", counted)
    judge = Problem(style_task(models), "tiny-causal").judge
    assert judge is not None
    written, gold = ["Good film. x", "good film.", "bad film.", "good film."], ["the film", "the film", "it", "it"]
    first = judge.values(written, gold, pool.judge)
    assert asked == [3]
    assert first[0] == first[1]
    assert (judge.values(written, gold, pool.judge) == first).all()
    assert asked == [3]  # known
    assert judge.values(written, gold, Judges("cpu").run) == pytest.approx(first, abs=1e-6)


@pytest.mark.usefixtures("kept_pool", "trial_here")
def test_a_search_and_the_report_of_its_winner(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, start in (("train", 0), ("dev", 3), ("test", 6)):
        rows = [f"the film was number {i} good .\tgood film number {i} ." for i in range(start, start + 3)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\treference", *rows]) + "\n")
    style = {**_given(models), "fluency": models["classifier"], "perplexity": models["lm"]}
    spec = {
        "name": "to-modern", "kind": "generation", "template": TEMPLATE, "extractor": "sentence", "scorer": "style",
        "style": style, "samples": 4, "temperature": 1, "top_k": 10, "length_control": True, "max_tokens": 8,
        "stop": ['"'], "columns": {"text": "text", "answer": "text", "reference": "reference"},
        "splits": {part: f"{part}.tsv" for part in ("train", "dev", "test")},
    }  # fmt: skip
    import yaml

    (tmp_path / "task.yaml").write_text(yaml.safe_dump(spec))
    study = tmp_path / "study"
    found = rayprompt.search(tmp_path, model="tiny-causal", searcher="random", budget=12 * 6, out=study)
    assert found.train.metric == found.test.metric == "best_sample"
    assert found.evaluations == 72
    record = yaml.safe_load((study / "study.yaml").read_text())
    assert record["searcher"]["objective"] == "group_maxima"
    assert record["task"]["judge"]["style"]["target"] == "1"
    again = rayprompt.search(tmp_path, model="tiny-causal", searcher="random", budget=12 * 6, out=tmp_path / "again")
    assert (again.best_prompt, again.test, again.finalists) == (found.best_prompt, found.test, found.finalists)

    lines, full = tmp_path / "out.txt", tmp_path / "out.jsonl"
    given = [str(tmp_path), "--prompt-file", str(study / "prompt.json"), "--store", str(study)]
    assert run(app, ["evaluate", *given, "--outputs", str(lines), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["style"]["bleu"] is not None
    assert said["style"]["perplexity"] > 1
    assert len(lines.read_text().splitlines()) == 3  # one for each test input
    assert run(app, ["evaluate", *given, "--outputs", str(full)]) == 0
    rows = [json.loads(line) for line in full.read_text().splitlines()]
    assert [row["reference"] for row in rows] == [f"good film number {i} ." for i in (6, 7, 8)]
    assert np.mean([row["reward"] for row in rows]) / 100 == pytest.approx(found.test.value, abs=1e-6)
    assert said["test"]["value"] == found.test.value
    assert run(app, ["evaluate", "reviews", "--prompt", "x", "--outputs", str(lines)]) == 2
    assert "is for tasks with scorer: style" in capsys.readouterr().err
