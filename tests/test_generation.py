"""Generation: the LM writes, in batches as one by one, and searches work on what it has written."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints import FAMILIES, make_checkpoint
from conftest import REPOSITORY, PoolOf

import rayprompt
from rayprompt.answers import Judge
from rayprompt.cli.main import app, run
from rayprompt.decoding import Decoding
from rayprompt.errors import InputError
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.loads import Request, passes_of, write_request
from rayprompt.lm.room import RoomyLayer
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.source import load_tokenizer
from rayprompt.lm.write import Writer, WriteTable, draw, uniforms
from rayprompt.pairs import Answers
from rayprompt.public import public_names, public_spec
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter
from rayprompt.study.demonstrations import from_study
from rayprompt.study.statistics import bootstrap_mean, paired
from rayprompt.study.warm import known_prompts
from rayprompt.task import Task, load_task

CAUSAL = [name for name, (cls, _) in FAMILIES.items() if "MaskedLM" not in cls]
WORDS = ("", "it was", "overall it is a very", "so")
BEHIND, BEFORE = "{text} {prompt}", "{prompt} {text} it was"


def verdicts(template: str = BEHIND, **changes: Any) -> Task:
    """The bundled reviews as a generation task."""
    reviews = load_task("reviews")
    parts = {
        part: [{"text": e.fields["text"], "answer": reviews.label_words[e.label]} for e in reviews.examples(part)]
        for part in ("train", "dev", "test")
    }
    options = {"extractor": "choice:terrible,great", "manual_prompt": "it was", "max_tokens": 8, **changes}
    return Task.from_examples("verdicts", template=template, **parts, **options)


def request_of(problem: Problem, words: Sequence[str] = WORDS, examples: int | None = None) -> Request:
    """Every prompt on every example, every sample."""
    part = problem.part("train")
    count, samples = len(part) if examples is None else examples, part.samples
    pairs = [(p, e, k) for p in range(len(words)) for e in range(count) for k in range(samples)]
    prompt, example, sample = (np.array(column) for column in zip(*pairs, strict=True))
    return Request(part, [problem.token_ids(c) for c in problem.prompts(words)], prompt, example, sample=sample)


def table_of(scorer: LMScorer, rows: int | None = None) -> WriteTable:
    table = WriteTable.of("cpu", 1 << 28, scorer.cache_bytes, scorer.window)
    return table if rows is None else WriteTable(rows, table.cache, table.token_bytes, table.window)


def some_of(request: Request, rows: Sequence[int]) -> Request:
    at = np.asarray(rows)
    assert request.sample is not None
    return Request(request.part, request.prompts, request.prompt[at], request.example[at], sample=request.sample[at])


def plainly(problem: Problem, part: EncodedPart, example: int, prompt: Sequence[int]) -> tuple[str, float]:
    """transformers' own greedy generation of one input; and the least lead that a token had over the next."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(problem.lm.path)
    model = AutoModelForCausalLM.from_pretrained(problem.lm.path).eval()
    ids = torch.tensor(part.row(example, prompt)[0])[None]
    assert part.decoding is not None
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=part.decoding.max_tokens,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    top = torch.stack(out.logits).float().topk(2).values
    return tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True), float(
        (top[..., 0] - top[..., 1]).min()
    )


@pytest.fixture(scope="module")
def scorer() -> LMScorer:
    return LMScorer(Problem("reviews", "tiny-causal").lm)


@pytest.mark.parametrize("template", [BEHIND, BEFORE])
def test_a_batch_writes_what_transformers_writes_one_by_one(scorer: LMScorer, template: str) -> None:
    problem = Problem(verdicts(template), "tiny-causal")
    request = request_of(problem)
    answers = write_request(scorer, table_of(scorer), request)
    rng = np.random.default_rng(0)
    for i in rng.choice(len(answers), 12, replace=False):
        prompt, example = request.prompts[int(request.prompt[i])], int(request.example[i])
        text, lead = plainly(problem, request.part, example, prompt)
        assert lead > 1e-3
        assert answers.completion is not None
        assert answers.completion[i] == text
        assert answers.tokens[i] - answers.written[i] == len(request.part.row(example, prompt)[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in CAUSAL), ("mistral", {"sliding_window": 6}), ("gemma2", {"sliding_window": 6})],
)
@pytest.mark.parametrize("template", [BEHIND, BEFORE])
def test_every_causal_family_writes_alike(name: str, changes: dict[str, Any], template: str, tmp_path: Path) -> None:
    """Random weights, texts of different lengths, in one batch and by transformers."""
    folder = make_checkpoint(name, tmp_path, **changes)
    load_tokenizer("tiny-masked").save_pretrained(folder)  # else gemma2's class takes another one
    rows = [{"text": "good " * n, "answer": "x"} for n in (1, 4, 9, 2)]
    task = Task.from_examples(
        "t", template=template, extractor="exact", train=rows, dev=rows, test=rows, max_tokens=6
    )  # fmt: skip
    problem = Problem(task, folder, allow_leaks=True)
    own = LMScorer(problem.lm)
    request = request_of(problem, ("it was", "so"))
    answers = write_request(own, table_of(own), request)
    for i in range(len(answers)):
        prompt = request.prompts[int(request.prompt[i])]
        text, lead = plainly(problem, request.part, int(request.example[i]), prompt)
        if lead > 1e-4:  # of random weights two tokens may be as likely
            assert answers.completion[i] == text  # type: ignore[index]


@pytest.mark.parametrize("template", [BEHIND, BEFORE])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.95, "samples": 3}])
def test_what_is_written_depends_on_nothing_beside_it(
    scorer: LMScorer, template: str, sampling: dict[str, Any]
) -> None:
    problem = Problem(verdicts(template), "tiny-causal", lm=sampling)
    request = request_of(problem, examples=16)
    table = table_of(scorer)
    whole = write_request(scorer, table, request)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(whole))
    assert same(write_request(scorer, table, some_of(request, order)), whole.take(order))
    for i in rng.choice(len(whole), 6, replace=False):
        assert same(write_request(scorer, table, some_of(request, [int(i)])), whole.take(np.array([i])))


def same(first: Answers, second: Answers) -> bool:
    return all(np.array_equal(getattr(first, n), getattr(second, n)) for n in ("completion", "written", "tokens"))


def test_samples_differ_and_have_the_probabilities_they_should(scorer: LMScorer) -> None:
    problem = Problem(verdicts(max_tokens=1), "tiny-causal", lm={"temperature": "1", "samples": "400"})
    request = request_of(problem, ("it was",), examples=1)
    answers = write_request(scorer, table_of(scorer), request)
    ids = torch.tensor(request.part.row(0, request.prompts[0])[0])[None]
    with torch.inference_mode():
        logits = scorer.forward.behind_last({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    p = logits[0].softmax(-1).numpy()
    likeliest = int(p.argmax())
    token = problem.encoder.tokenizer.decode([likeliest])
    share = np.mean([text == token for text in answers.completion])  # type: ignore[union-attr]
    assert abs(share - p[likeliest]) < 4 * np.sqrt(p[likeliest] * (1 - p[likeliest]) / 400)
    other = Problem(verdicts(max_tokens=1), "tiny-causal", lm={"temperature": 1, "samples": 400, "seed": 1})
    again = write_request(scorer, table_of(scorer), request_of(other, ("it was",), examples=1))
    assert not same(answers, again)


def test_a_draw_is_that_of_its_number() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    drawn = [
        int(draw(logits, np.array([u]), Decoding(temperature=1.0))[0]) for u in (0.0, 0.49, 0.51, 0.79, 0.81, 0.999)
    ]
    assert drawn == [0, 0, 1, 1, 2, 3]
    nucleus = [int(draw(logits, np.array([u]), Decoding(temperature=1.0, top_p=0.75))[0]) for u in (0.1, 0.63, 0.999)]
    assert nucleus == [0, 1, 1]  # .5 and .3 make up .75; of .8 the first has .625
    cold = draw(np.repeat(logits, 100, 0), np.linspace(0, 0.999, 100), Decoding(temperature=0.05))
    assert set(cold.tolist()) == {0}
    assert (uniforms(0, np.array([1, 2]), 0, 5) == uniforms(0, np.array([1, 2]), 0, 5)).all()
    assert (
        len({uniforms(s, np.array(ids), k, 1)[0] for s, ids, k in ((0, [1], 0), (1, [1], 0), (0, [2], 0), (0, [1], 1))})
        == 4
    )


def test_stop_texts_end_a_completion_and_are_cut(scorer: LMScorer) -> None:
    free = Problem(verdicts(max_tokens=30), "tiny-causal", lm={"temperature": 1.5})
    stopped = Problem(verdicts(max_tokens=30, stop=[" a", "."]), "tiny-causal", lm={"temperature": 1.5})
    table = table_of(scorer)
    whole, cut = (write_request(scorer, table, request_of(p, ("it was",))) for p in (free, stopped))
    texts = list(whole.completion)  # type: ignore[arg-type]
    wanted = [min((t[: t.find(stop)] if stop in t else t for stop in (" a", ".")), key=len) for t in texts]
    assert list(cut.completion) == wanted  # type: ignore[arg-type]
    assert any(" a" in text for text in texts)
    assert (cut.written <= whole.written).all()  # type: ignore[operator]
    assert (cut.written[[a != b for a, b in zip(texts, wanted, strict=True)]] >= 1).all()  # type: ignore[index]


def test_shapes_are_those_of_the_table_and_a_prompt_in_front_is_computed_once(scorer: LMScorer) -> None:
    behind, before = (Problem(verdicts(t), "tiny-causal") for t in (BEHIND, BEFORE))
    table = table_of(scorer)
    for shape, _ in passes_of(table, request_of(behind)):
        assert shape[0] == 0
    requests = request_of(before, WORDS[1:])
    passes = passes_of(table, requests)
    for shape, members in passes:
        assert shape[0] > 0
        assert len(set(requests.prompt[members].tolist())) == 1
        assert len(members) <= shape[2]
    assert sorted(np.concatenate([m for _, m in passes]).tolist()) == list(range(len(requests.prompt)))
    small = WriteTable(32, 100 * 1024, scorer.cache_bytes)
    assert max(shape[2] for shape, _ in passes_of(small, requests)) < 32  # keys and values must find room


def test_memory_that_does_not_suffice_halves_the_pass(scorer: LMScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(verdicts(), "tiny-causal")
    request = request_of(problem)
    wanted = write_request(scorer, table_of(scorer), request)
    forward = scorer.forward.behind_last

    def limited(inputs: dict[str, Any]) -> torch.Tensor:
        if len(inputs["input_ids"]) > 8:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return forward(inputs)

    monkeypatch.setattr(scorer.forward, "behind_last", limited)
    assert same(write_request(scorer, table_of(scorer), request), wanted)


# Tasks.


TASK = {
    "kind": "generation",
    "template": "{text} {prompt}",
    "extractor": "choice:terrible,great",
    "manual_prompt": "it was",
    "max_tokens": 8,
    "splits": {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = verdicts()
    for part in ("train", "dev", "test"):
        rows = [f"{e.fields['text']}\t{e.answer}" for e in task.examples(part)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(["text\tanswer", *rows]) + "\n")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    return tmp_path


def test_a_folder_is_a_generation_task(folder: Path) -> None:
    task = load_task(folder)
    assert (task.kind, task.extractor, task.scorer, task.decoding) == (
        "generation", "choice:terrible,great", "match", {"max_tokens": 8},
    )  # fmt: skip
    assert set(task.answers("train")) == {"terrible", "great"}
    assert task.digest != load_task(folder).judged_by("exact", None).digest
    assert Problem(task, "tiny-causal", lm={"max_tokens": 3}).decoding == Decoding(max_tokens=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": None}, "extractor is missing: what finds the answer in what the LM writes, as last-number"),
        ({"extractor": "os:getcwd"}, "extractor 'os:getcwd' is a function: it comes from code or the command line"),
        ({"scorer": "operator:eq"}, "answer-scorer 'operator:eq' is a function.*never from a file"),
        ({"extractor": "last-number"}, "example 1: the answer '.*' is none that extractor last-number can find"),
        (
            {"label_words": {0: "a", 1: "b"}},
            "label_words is for kind: classification, and this task's kind is generation",
        ),
        ({"metric": "f1"}, "unknown metric 'f1'"),
        ({"template": "{text} {prompt} {mask}"}, "has 1 .mask.; it needs no .mask."),
        ({"template": {"masked": "{text} {prompt} {mask}"}}, "causal LMs write on"),
        ({"max_tokens": 0}, "max_tokens=0: must be a whole number from 1"),
        ({"samples": 3}, "samples=3: with temperature 0 all samples are the same; give a temperature"),
        ({"stop": [""]}, "stop=.*must be a text or a list of texts, none of them empty"),
        ({"top_p": 2}, "top_p=2: must be a number from"),
        ({"columns": {"text": "text"}}, "columns must map 'answer'"),
    ],
)
def test_bad_generation_tasks_get_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    spec = {key: value for key, value in {**TASK, **change}.items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(InputError, match=message) as caught:
        load_task(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny-masked"], "has no template for masked LMs"),
        (["--searcher", "cma-es"], "makes soft prompts, and in task .* the LM writes"),
        (["--objective", "gap"], "objective 'gap' needs label log-probabilities, which this LM does not give"),
        (["--lm", "samples=2"], "with temperature 0 all samples are the same"),
        (["--lm", "max_tokens=200"], "takes 128 tokens in all, and 200 are to be written"),
        (["--extractor", "nope"], "unknown extractor 'nope'"),
        (["--answer-scorer", "nope"], "unknown answer scorer 'nope'"),
        (["--lm", "in_flight=3"], "in_flight=3: is for an LM behind a service"),
    ],
)
def test_what_does_not_go_with_writing(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", "tiny-causal"]
    assert run(app, ["search", str(folder), *model, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error


def test_label_words_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["search", "reviews", "--lm", "temperature=1"]) == 2
    assert "temperature=1" in capsys.readouterr().err
    assert run(app, ["search", "reviews", "--extractor", "exact"]) == 2
    assert "is for generation tasks; reviews has label words" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "mawps"])
def test_arithmetic_tasks(name: str, tmp_path: Path) -> None:
    spec = public_spec(name)
    columns = {key: (value if isinstance(value, str) else value[0]) for key, value in spec["columns"].items()}
    for part, first in (("train", 0), ("test", 500)):
        rows = [
            [*(f"{field} {i} has {i + 1}" for field in columns if field != "answer"), f"so #### 1,{i:03d}"]
            for i in range(first, first + 200)
        ]
        header = [column for field, column in columns.items() if field != "answer"] + [columns["answer"]]
        (tmp_path / f"{part}.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    task = load_task(name, data=tmp_path)
    assert list(task.splits) == [f"64-{seed}" for seed in (13, 21, 42, 87, 100)]
    assert {part: len(task.examples(part)) for part in ("train", "dev", "test")} == {
        "train": 64,
        "dev": 64,
        "test": 200,
    }
    assert task.answers("test")[:2] == ["1500", "1501"]
    shown = task.template("causal").render(task.examples("test")[0].fields, "PROMPT")
    assert shown.startswith("Q: ")
    assert shown.endswith("\nA: PROMPT")
    original = load_task(f"{name}@oirl", data=tmp_path)
    assert original.judge.id.startswith("last-plain-number/1")
    assert original.answers("test")[1] == "501"  # its rule knows no commas
    assert load_task(name, data=tmp_path, split="4-7").examples("train", "4-7") != ()
    assert name in public_names()


# Searches.


@pytest.fixture(scope="module")
def pool(pool_of: PoolOf) -> ScoringPool:
    return pool_of(Problem("reviews", "tiny-causal").lm, 1)


def test_score_gives_values_and_completions(pool: ScoringPool) -> None:
    problem = Problem(verdicts(), "tiny-causal")
    scores = rayprompt.score(["it was", ""], problem, on="dev", pool=pool)
    assert scores.label_log_probs is None
    assert scores.completion is not None
    gold = problem.task.answers("dev")
    wanted = [
        float(("great" if "great" in t else "terrible" if "terrible" in t else "") == gold[e])
        for t, e in zip(scores.completion, scores.example, strict=True)
    ]
    assert scores.value.tolist() == wanted
    assert scores.mean_value()[0] > 0.7 > 0.6 > scores.mean_value()[1]
    assert len(scores.to_dict()["completion"]) == len(scores)


def test_samples_are_charged_stored_and_read_back(pool: ScoringPool, tmp_path: Path) -> None:
    problem = Problem(verdicts(), "tiny-causal", lm={"temperature": 0.8, "samples": 3})
    first = rayprompt.score(["it was"], problem, pool=pool, store=tmp_path)
    assert first.complete().all()
    assert len(first) == 3 * len(problem.gold)
    assert len(set(zip(first.example.tolist(), first.sample.tolist(), strict=True))) == len(first)
    rows = ScoreStore(tmp_path).pairs()
    assert sorted(rows["completion"].to_pylist()) == sorted(first.completion or ())
    assert set(rows["sample"].to_pylist()) == {0, 1, 2}
    assert set(rows["judge"].to_pylist()) == {"choice:terrible,great/3 match/3"}
    again = rayprompt.score(["it was"], problem, pool=pool, store=tmp_path)
    assert again.completion == first.completion
    assert ScoreStore(tmp_path).pairs().num_rows == len(first)
    fewer = Problem(verdicts(), "tiny-causal", lm={"temperature": 0.8, "samples": 2})
    two = rayprompt.score(["it was"], fewer, pool=pool, store=tmp_path)
    assert set(two.completion or ()) <= set(first.completion or ())  # the first two of three are the same


def test_another_extractor_judges_anew_and_asks_nothing(pool: ScoringPool, tmp_path: Path) -> None:
    problem = Problem(verdicts(), "tiny-causal")
    first = rayprompt.score(["it was"], problem, pool=pool, store=tmp_path)
    other = Problem(verdicts(), "tiny-causal", extractor="exact", answer_scorer="contains")
    second = rayprompt.score(["it was"], other, pool=pool, store=tmp_path)
    assert second.completion == first.completion
    assert ScoreStore(tmp_path).pairs().num_rows == len(first)
    judge = Judge.of("exact", "contains")
    assert (
        second.value.tolist()
        == judge.values(
            list(second.completion or ()), [problem.task.answers("train")[i] for i in second.example]
        ).tolist()
    )


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_a_search_raises_success_over_the_empty_prompt_and_resumes(folder: Path, tmp_path: Path) -> None:
    given = {"model": "tiny-causal", "seed": 1}
    whole = rayprompt.search(folder, budget=1280, out=folder / "whole", **given)
    assert whole.test.ci95[0] > whole.baselines["empty"].test.ci95[1]
    assert whole.written > 0
    assert whole.evaluations == 1280
    part = rayprompt.search(folder, budget=640, out=folder / "part", **given)
    assert part.evaluations == 640
    more = rayprompt.resume(folder / "part", budget=1280)
    for name in ("best_prompt", "train", "dev", "test", "finalists", "evaluations", "tokens", "written"):
        assert getattr(more, name) == getattr(whole, name), name
    found = rayprompt.evaluate(whole.best_prompt, Problem(folder, "tiny-causal"), store=folder / "whole")
    assert found.estimate == whole.test
    # What others take from it: a warm start its best, a reward model its pairs with answers.
    agent = load_searcher("nevergrad")(Problem(folder, "tiny-causal"))
    best = known_prompts(agent, folder / "whole", 3)
    values = [f["objective"] for f in whole.finalists if f["key"] in {c.key for c in best}]
    assert best[0].key in {f["key"] for f in whole.finalists if f["objective"] == max(values)}
    data = from_study(folder / "whole")
    assert data.gold is not None
    assert set(data.gold) == {"great", "terrible"}
    column = data.prompts.index(getattr(whole.best_prompt, "text", ""))
    assert np.nanmean(data.correct[:, column]) == whole.train.value
    store = ScoreStore(folder / "whole")
    told: list[str] = []
    (split,) = set(store.pairs()["split"].to_pylist())
    known = agent.problem.task.examples("train")[0].digest
    writer = ShardWriter(store, "other", Context({}), part="train", split=split, examples=[known])
    failed = Answers.empty(1, 0)
    failed.settle()
    writer.add([whole.best_prompt.key], np.zeros(1, int), np.zeros(1, int), np.array([np.nan]), failed)
    writer.flush()
    again = from_study(folder / "whole", told.append)
    assert again.digest == data.digest
    assert told == [f"{folder / 'whole'}: 1 of 1,281 pairs are unanswered and left out"]


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_a_study_with_its_own_extractor_can_be_used_and_one_with_a_function_is_not_run(folder: Path) -> None:
    given: dict[str, Any] = {"model": "tiny-causal", "budget": 640}
    result = rayprompt.search(folder, out=folder / "own", extractor="regex:(great|terrible)", **given)
    data = from_study(folder / "own")  # a task of another judge is another one: it is taken as the study judged
    assert data.answer is not None
    assert {answer for answer in data.answer.ravel() if answer is not None} <= {"great", "terrible"}
    assert result.dev.n == 64
    record = yaml.safe_load((folder / "own" / "study.yaml").read_text())
    record["task"]["judge"]["extractor"] = "os:getcwd"
    (folder / "own" / "study.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(InputError, match="extractor 'os:getcwd' is a function"):
        from_study(folder / "own")


@pytest.mark.usefixtures("kept_pool")
def test_an_exported_prompt_may_not_name_a_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "prompt.json"
    file.write_text(
        '{"schema": "rayprompt.prompt/1", "prompt": {"kind": "text", "text": "it was"}, "template": "",'
        ' "label_words": {}, "judge": {"extractor": "os:getcwd", "scorer": "match", "version": "x"},'
        ' "model": {"name": "tiny-causal"}, "task": {}, "scores": {}}'
    )
    assert run(app, ["evaluate", str(folder), "--prompt-file", str(file)]) == 2
    assert "'os:getcwd' is a function" in capsys.readouterr().err


# Statistics of values between right and wrong.


def test_graded_values_get_the_intervals_of_a_bootstrap_and_a_permutation_test() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(2, 3, size=200)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.006)
    assert high == pytest.approx(values.mean() + half, abs=0.006)
    from scipy.stats import ttest_rel

    other = np.clip(values + rng.normal(0.03, 0.15, size=200), 0, 1)
    assert paired(values, other) == pytest.approx(ttest_rel(values, other).pvalue, abs=0.01)
    assert paired(values, values) == 1.0
    right = (values > 0.5).astype(float)
    assert paired(right, 1 - right) == pytest.approx(rayprompt_mcnemar(right), rel=1e-9)


def rayprompt_mcnemar(right: Any) -> float:
    from scipy.stats import binomtest

    return float(binomtest(int(right.sum()), len(right), 0.5).pvalue)


@pytest.mark.slow  # trains an LM for a minute; quick: a search raises success over the empty prompt, above
@pytest.mark.usefixtures("kept_pool")
def test_arithmetic_is_learned_to_be_asked_for(tmp_path: Path) -> None:
    """The LM of benchmarks/arithmetic.py: many prompts make it calculate, and a search finds one."""
    path = REPOSITORY / "benchmarks" / "arithmetic.py"
    spec = importlib.util.spec_from_file_location("arithmetic", path)
    assert spec is not None
    assert spec.loader is not None
    arithmetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(arithmetic)
    torch.set_num_threads(1)
    arithmetic.write_task(tmp_path / "task")
    arithmetic.train(tmp_path / "lm", steps=400, batch=128)
    model = str(tmp_path / "lm")
    values = rayprompt.score(["", *arithmetic.HELP[:12]], tmp_path / "task", model, on="dev").mean_value()
    assert (values[1:] > values[0] + 0.2).sum() >= 6
    result = rayprompt.search(tmp_path / "task", model=model, searcher="random", budget=1280, out=tmp_path / "study")
    assert result.test.ci95[0] > result.baselines["empty"].test.ci95[1]


@pytest.mark.parametrize("template", [BEHIND, BEFORE])
@pytest.mark.parametrize("samples", [3, 40])
def test_samples_share_what_stands_before_them(
    scorer: LMScorer, template: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of an input are read by all of its samples where they are, or copied to each: the same texts."""
    problem = Problem(verdicts(template), "tiny-causal", lm={"temperature": 1.2, "samples": samples})
    request = request_of(problem, WORDS[:2], examples=5)
    shared = write_request(scorer, table_of(scorer, 16), request)
    monkeypatch.setattr("rayprompt.lm.write.Writer._continues", lambda *_: False)
    copied = write_request(scorer, table_of(scorer, 16), request)
    assert shared.completion is not None
    assert len(set(shared.completion)) > samples
    assert shared.completion.tolist() == copied.completion.tolist()  # type: ignore[union-attr]


def test_a_stop_text_ends_a_row_at_once(scorer: LMScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more forward passes than the longest completion has tokens."""
    problem = Problem(verdicts(), "tiny-causal", lm={"stop": "e", "max_tokens": 30})
    request = request_of(problem, WORDS[:1], examples=4)
    passes: list[int] = []
    forward = Writer._forward

    def counted(self: Writer, *arguments: Any) -> torch.Tensor:
        passes.append(1)
        return forward(self, *arguments)

    monkeypatch.setattr(Writer, "_forward", counted)
    answers = write_request(scorer, table_of(scorer), request)
    assert answers.written is not None
    assert len(passes) <= int(answers.written.max()) + 1 < 30


def test_a_cache_with_room_is_transformers_cache() -> None:
    from transformers.cache_utils import DynamicLayer

    torch.manual_seed(0)
    roomy, plain = RoomyLayer(3), DynamicLayer()
    for rows, tokens in ((1, 5), (4, 1), (4, 1), (4, 7), (2, 1)):
        if plain.is_initialized and rows != len(plain.keys):  # type: ignore[arg-type]
            index = torch.randint(len(plain.keys), (rows,))  # type: ignore[arg-type]
            roomy.batch_select_indices(index)
            plain.batch_select_indices(index)
        states = torch.randn(2, rows, 2, tokens, 4)
        for mine, theirs in zip(roomy.update(*states), plain.update(*states), strict=True):
            assert torch.equal(mine, theirs)
        assert roomy.get_seq_length() == plain.get_seq_length()
