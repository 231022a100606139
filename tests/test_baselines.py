"""Gradient-tuned soft prompts and in-context examples: what searched prompts are measured against."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import transformers
from checkpoints import ENCODER_DECODERS, FAMILIES, make_checkpoint
from conftest import task_of

from rayprompt.budget import Ledger
from rayprompt.candidate import SoftPrompt, TextPrompt
from rayprompt.comparison.baselines import BaselinePrompt, gradient_tuned, in_context, tuned_prompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.adam import AdamW
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.lm.soft import SoftBlock, block_of
from rayprompt.lm.source import load_tokenizer
from rayprompt.lm.tuning import Tuned, Tuner, TuningPlan, tune
from rayprompt.lm.vectors import write_vectors
from rayprompt.scores import FloatArray
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from rayprompt.study.closing import Closer
from rayprompt.task import Task
from rayprompt.template import Template

FEW = TuningPlan(steps=4, learning_rate=0.02, checkpoints=2)  # so small that the loss of any LM falls
ALL_FAMILIES = FAMILIES | ENCODER_DECODERS


def start_of(problem: Problem, placement: str = "add", p0: str = "tokens", length: int = 5) -> SoftPrompt:
    settings = SoftSettings(intrinsic_dim=1, length=length, placement=placement, p0=p0)
    return SoftPrompt((0.0,), SoftSpace.of(problem, settings, 0).subspace)


def tuned_on(
    scorer: LMScorer, problem: Problem, start: SoftPrompt, plan: TuningPlan = FEW, seed: int = 0, **more: Any
) -> Tuned:
    block = block_of([start], problem.vectors)
    return tune(scorer, problem.part("train"), problem.gold, block, plan, seed=seed, **more)


def scored(scorer: LMScorer, problem: Problem, prompt: SoftPrompt | TextPrompt, part: str = "train") -> FloatArray:
    """(E, L) log-probabilities through LMScorer, in passes of eight rows."""
    encoded, ids = problem.part(part), problem.token_ids(prompt)
    soft = isinstance(prompt, SoftPrompt)
    front = prompt.subspace.front if isinstance(prompt, SoftPrompt) else 0
    block = block_of([prompt], problem.vectors) if isinstance(prompt, SoftPrompt) else None
    count = len(encoded)
    longest = int(encoded.reserving(front).lengths(np.full(count, len(ids)), np.arange(count)).max()) + front
    rows = np.zeros(count, dtype=np.int64)
    soft_rows = np.zeros(1, dtype=np.int64) if soft else None
    bucket = Bucket(encoded.key, longest, 8, (ids,), rows, np.arange(count), soft_rows, front)
    return scorer.score(bucket, encoded, block)[0]


def loss_of(log_probs: FloatArray, problem: Problem) -> float:
    return -float(log_probs[np.arange(len(problem.gold)), problem.gold].mean())


@pytest.fixture(scope="module")
def make_problem(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small task on a small random LM of a family; each is made once."""
    made: dict[str, Problem] = {}

    def make(family: str) -> Problem:
        if family not in made:
            folder = make_checkpoint(family, tmp_path_factory.mktemp(family))
            with pytest.MonkeyPatch.context() as monkey:
                # By the model's type some families would get a tokenizer class of their own.
                location = folder if family == "t5" else "tiny-masked"
                monkey.setattr("rayprompt.searcher.problem.load_tokenizer", lambda _: load_tokenizer(location))
                made[family] = Problem(task_of(train=6), folder)
                made[family].encoder  # noqa: B018 (cached)
        return made[family]

    return make


# Gradients.


@pytest.mark.parametrize("placement", ["add", "concat"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_gradients_are_those_of_finite_differences(family: str, placement: str, make_problem: Any) -> None:
    problem = make_problem(family)
    scorer = LMScorer(problem.lm)
    scorer.forward.model.double()
    tuner = Tuner(scorer, problem.part("train"), problem.gold, block_of([start_of(problem, placement)], {}))
    vectors = torch.from_numpy(tuner.start).double()
    loss, gradient = tuner.gradient(vectors)
    assert loss == pytest.approx(tuner.loss(vectors), abs=1e-6)
    flat = gradient.flatten()
    for i in [int(flat.abs().argmax()), 3, 70, 155]:
        step = torch.zeros_like(flat)
        step[i] = 0.02
        up, down = (tuner.loss(vectors + sign * step.view_as(vectors)) for sign in (1, -1))
        assert (up - down) / 0.04 == pytest.approx(float(flat[i]), rel=0.02, abs=2e-5)


def test_steps_are_those_of_torchs_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.randn(4, 3, generator=generator).requires_grad_()
    ours, adam = theirs.detach().clone(), AdamW(0.03, 0.1)
    optimizer = torch.optim.AdamW([theirs], lr=0.03, weight_decay=0.1)
    for _ in range(5):
        theirs.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
        ours = adam.step(ours, theirs.grad)
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("placement", ["add", "concat"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_loss_falls_and_is_what_scoring_gives(family: str, placement: str, make_problem: Any) -> None:
    problem = make_problem(family)
    scorer = LMScorer(problem.lm)
    manual = problem.prompt("it was")
    before = scored(scorer, problem, manual)
    start = start_of(problem, placement)
    hooks = hooks_of(scorer)
    tuned = tuned_on(scorer, problem, start)
    assert [state.step for state in tuned.states] == [2, 4]
    assert tuned.start_loss > tuned.states[0].loss > tuned.states[1].loss
    assert tuned.passes == (4 + 4 + 1) * 6
    for state in tuned.states:
        prompt = tuned_prompt(problem, start.subspace, state.vectors)
        assert loss_of(scored(scorer, problem, prompt), problem) == pytest.approx(state.loss, abs=1e-4)
    # The LM is as it was.
    assert scored(scorer, problem, manual).tobytes() == before.tobytes()
    assert hooks_of(scorer) == hooks
    assert all(p.grad is None and not p.requires_grad for p in scorer.forward.model.parameters())


def hooks_of(scorer: LMScorer) -> int:
    assert scorer.soft  # makes its own hook, once
    modules = list(scorer.forward.model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)


@pytest.mark.parametrize("p0", ["tokens", "zeros", "text:it was", "FILE"])
@pytest.mark.parametrize("placement", ["add", "concat"])
def test_it_begins_where_the_searchers_of_soft_prompts_begin(
    placement: str, p0: str, problem: Problem, tmp_path: Path
) -> None:
    if p0 == "FILE":
        p0 = str(tmp_path / "p0.safetensors")
        vectors = np.random.default_rng(0).normal(0, 0.5, (5, problem.lm.width))
        write_vectors(Path(p0), vectors, ())
    scorer = LMScorer(problem.lm)
    start = start_of(problem, placement, p0)
    quiet = TuningPlan(steps=1, checkpoints=1, noise=0.0)
    begins = loss_of(scored(scorer, problem, start), problem)
    assert tuned_on(scorer, problem, start, quiet).start_loss == pytest.approx(begins, abs=1e-4)


def test_a_seed_gives_the_same_bits_and_another_one_others(make_problem: Any) -> None:
    problem = make_problem("bert")
    scorer = LMScorer(problem.lm)
    start = start_of(problem)
    random, torchs = np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[index, union-attr]
    first, again, other = (tuned_on(scorer, problem, start, seed=seed) for seed in (3, 3, 4))
    assert [s.vectors.tobytes() for s in first.states] == [s.vectors.tobytes() for s in again.states]
    assert [s.loss for s in first.states] == [s.loss for s in again.states]
    assert np.abs(first.states[-1].vectors - other.states[-1].vectors).max() > 0.01
    assert np.random.get_state()[1].tobytes() == random  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), torchs)


def test_searches_that_score_meanwhile_get_the_same_bits(problem: Problem) -> None:
    scorer = LMScorer(problem.lm)
    start = start_of(problem)
    prompts = [problem.prompt("it was"), start, start_of(problem, "concat")]
    quiet = [scored(scorer, problem, p).tobytes() for p in prompts]
    alone = tuned_on(scorer, problem, start)
    found: list[Tuned] = []
    thread = threading.Thread(target=lambda: found.append(tuned_on(scorer, problem, start)))
    thread.start()
    rounds = 0
    while thread.is_alive() or not rounds:
        assert [scored(scorer, problem, p).tobytes() for p in prompts] == quiet
        rounds += 1
    thread.join()
    assert found[0].states[-1].vectors.tobytes() == alone.states[-1].vectors.tobytes()


def test_every_step_waits_for_a_lane_and_gives_it_back(make_problem: Any) -> None:
    problem = make_problem("bert")
    entered: list[int] = []

    class Gate:
        def __enter__(self) -> None:
            entered.append(1)

        def __exit__(self, *error: object) -> None:
            entered.append(-1)

    tuned_on(LMScorer(problem.lm), problem, start_of(problem), gate=Gate())
    assert entered == [1, -1] * (1 + 4 + 1)


def test_a_batch_without_memory_is_cut_in_two(make_problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("bert")
    scorer = LMScorer(problem.lm)
    whole = tuned_on(scorer, problem, start_of(problem))
    forward, most = scorer.forward, 2

    def short_of_memory(ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(ids) > most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no memory")
        return forward(ids, *arguments)

    monkeypatch.setattr(scorer, "forward", short_of_memory)
    cut = tuned_on(scorer, problem, start_of(problem))
    assert cut.states[-1].loss == pytest.approx(whole.states[-1].loss, rel=1e-3)
    most = 0
    with pytest.raises(ScoringError, match="out of memory on cpu: not even one input's gradient finds room"):
        tuned_on(scorer, problem, start_of(problem))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "0 steps and 5 checkpoints: both must be 1 or more, and every checkpoint needs a step"),
        ({"steps": 3, "checkpoints": 4}, "3 steps and 4 checkpoints"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be greater than 0"),
        ({"noise": -1.0}, "noise=-1.0: must be 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay=nan: must be 0 or more"),
    ],
)
def test_bad_plans_get_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuningPlan(**values)


def test_checkpoints_are_evenly_spaced_and_end_with_the_last_step() -> None:
    assert TuningPlan(steps=60).at == (12, 24, 36, 48, 60)
    assert TuningPlan(steps=7, checkpoints=3).at == (2, 4, 7)
    assert TuningPlan(steps=2, checkpoints=2).at == (1, 2)


def test_a_loss_that_is_no_number_ends_it(make_problem: Any) -> None:
    problem = make_problem("bert")
    with pytest.raises(ScoringError, match="the loss is nan after 2 steps; take a smaller learning_rate"):
        tuned_on(LMScorer(problem.lm), problem, start_of(problem), TuningPlan(4, learning_rate=1e38, checkpoints=2))


# Through the pool.


@pytest.fixture(scope="module")
def tuned(pool: ScoringPool, problem: Problem) -> tuple[BaselinePrompt, Closer]:
    closer = Closer(problem, pool, Ledger(1))
    plan = TuningPlan(steps=20, checkpoints=4)
    return gradient_tuned(closer, settings=SoftSettings(length=10), plan=plan), closer


def test_tuned_vectors_are_a_candidate_like_any_other(tuned: tuple[BaselinePrompt, Closer], problem: Problem) -> None:
    baseline, closer = tuned
    prompt = baseline.prompt
    assert isinstance(prompt, SoftPrompt)
    assert prompt.z == (0.0,)
    assert np.array_equal(closer.pool.vectors(prompt, problem.vectors)[0], problem.vectors[prompt.subspace.p0])
    train = closer.scorer("train")
    scores = train.scores([prompt])[0]
    loss = loss_of(scores.dense("label_log_probs")[0], problem)
    assert baseline.train_loss == pytest.approx(loss, abs=1e-4)


def test_gradients_beat_the_empty_prompt_on_test(tuned: tuple[BaselinePrompt, Closer], problem: Problem) -> None:
    baseline, closer = tuned
    assert baseline.white_box
    assert baseline.passes == (2 * 20 + 1) * 64
    assert baseline.seconds > 0
    assert baseline.train_loss is not None
    assert baseline.train_loss < 0.1
    assert baseline.dev is not None
    assert baseline.dev.value > 0.9
    test = closer.scorer("test")
    values = [test.estimate(s).value for s in test.scores([baseline.prompt, problem.prompt("")])]
    assert values[0] > values[1] + 0.25


def test_dev_alone_chooses(pool: ScoringPool, problem: Problem) -> None:
    known = set(problem.vectors)
    closer = Closer(problem, pool, Ledger(1))
    found = gradient_tuned(closer, settings=SoftSettings(length=5, placement="concat"), seed=1, plan=FEW)
    assert set(closer._scorers) == {"dev"}
    assert closer.ledger.report_evaluations == FEW.checkpoints * 64
    assert isinstance(found.prompt, SoftPrompt)
    assert (found.prompt.subspace.mode, found.prompt.subspace.tokens) == ("concat", ())
    assert set(problem.vectors) - known == {found.prompt.subspace.p0}  # what lost is not carried about
    local = tuned_on(LMScorer(problem.lm), problem, start_of(problem, "concat"), seed=1)
    assert found.train_loss in [pytest.approx(state.loss, abs=1e-5) for state in local.states]


def test_a_scorer_that_dies_while_it_tunes_is_asked_again(problem: Problem, ray_session: None, tmp_path: Path) -> None:
    class Mortal:
        """Dies of the first question, and is long in coming back."""

        def __init__(self, marker: str) -> None:
            self.marker = marker
            if os.path.exists(marker):
                time.sleep(3)  # longer than asking again without waiting would last

        def ready(self) -> None:
            pass

        def tune(self, part: list[Any], key: str, gold: Any, block: SoftBlock, plan: TuningPlan, seed: int) -> str:
            if not os.path.exists(self.marker):
                Path(self.marker).touch()
                os._exit(1)
            found: EncodedPart = ray.get(part[0])
            return f"{key == found.key} {seed}"

    scorer = ray.remote(Mortal).options(num_cpus=0, max_restarts=-1).remote(str(tmp_path / "died"))
    pool = ScoringPool.__new__(ScoringPool)
    pool.__dict__.update(source=problem.lm, scorers=lambda: [scorer], parts={})
    answer: Any = pool.tune(problem.part("train"), problem.gold, start_of(problem), FEW, seed=7)
    assert answer == "True 7"
    assert (tmp_path / "died").exists()
    ray.kill(scorer)


# In-context examples.


def films(train: list[Any], dev: list[Any], test: list[Any], template: str = "{text} {prompt} {mask} .") -> Task:
    words = {0: "terrible", 1: "great"}
    return Task.from_examples(
        "films", template=template, label_words=words, manual_prompt="it was", train=train, dev=dev, test=test
    )


MASKED = (
    "the horribly built plot gives you an appalling thriller . it was terrible . the publisher told us about the "
    "chapter , which was competent and gorgeous . it was great ."
)
CAUSAL = (
    "the horribly built plot gives you an appalling thriller . it was terrible\nthe publisher told us about the "
    "chapter , which was competent and gorgeous . it was great"
)


@pytest.mark.parametrize(
    ("model", "text", "template"),
    [("tiny-masked", MASKED, " {text} {prompt} {mask} ."), ("tiny-causal", CAUSAL, "\n{text} {prompt}")],
)
def test_examples_stand_in_front_as_the_template_shows_them(model: str, text: str, template: str) -> None:
    problem = Problem("reviews", model)
    before = (problem.template.source, problem.part("dev").key, problem.task.digest)
    found = in_context(problem)
    assert found.text == text
    assert found.problem.template.source == text + template
    assert found.prompt == problem.prompt("it was")
    assert not found.white_box
    assert found.passes == 0
    # One example of each class, of train.
    train = [(e.fields["text"], e.label) for e in problem.task.examples("train", problem.split)]
    assert [label for shown, label in train if shown in text] in ([0, 1], [1, 0])
    # Another problem to the score store, and the first is as it was.
    assert found.problem.content != problem.content
    assert found.problem.part("dev").key != before[1]
    assert found.problem.task.digest != before[2]
    assert (problem.template.source, problem.part("dev").key, problem.task.digest) == before
    assert pickle.loads(pickle.dumps(found.problem)).part("test").key == found.problem.part("test").key


@pytest.mark.parametrize("model", ["tiny-masked", "tiny-causal"])
@pytest.mark.parametrize("prompt", [None, ""])
def test_scores_are_those_of_a_plain_forward_pass_over_the_whole_text(model: str, prompt: str | None) -> None:
    problem = Problem(task_of(train=6), model)
    found = in_context(problem, seed=1, per_class=2, prompt=prompt)
    assert isinstance(found.prompt, TextPrompt)
    ours = scored(LMScorer(problem.lm), found.problem, found.prompt, "test")
    tokenizer = load_tokenizer(model)
    auto = transformers.AutoModelForMaskedLM if model == "tiny-masked" else transformers.AutoModelForCausalLM
    lm = auto.from_pretrained(problem.lm.path, dtype=torch.float32).eval()
    words = found.prompt.text + " " if found.prompt.text else ""
    for example, row in zip(problem.task.examples("test"), ours, strict=True):
        film = example.fields["text"]
        whole = f"{found.text} {film} {words}[MASK] ."
        if model == "tiny-causal":
            whole = f"{found.text}\n{film} {words}".rstrip()
        ids = tokenizer(whole, return_tensors="pt")["input_ids"]
        at = int((ids[0] == tokenizer.mask_token_id).nonzero()) if model == "tiny-masked" else ids.shape[1] - 1
        with torch.inference_mode():
            logits = lm(input_ids=ids).logits[0, at]
        expected = torch.log_softmax(logits[problem.label_ids].double(), -1).numpy()
        assert np.abs(row - expected).max() < 1e-4


def test_what_is_drawn_depends_on_the_seed(problem: Problem) -> None:
    texts = [in_context(problem, seed=seed).text for seed in range(6)]
    assert len(set(texts)) == 6
    assert in_context(problem, seed=3).text == texts[3]
    orders = {text.index("it was great") < text.index("it was terrible") for text in texts}
    assert orders == {True, False}
    own = in_context(problem, per_class=2, seed=0, prompt="I found it")
    assert (own.text.count("I found it great"), own.text.count("I found it terrible")) == (2, 2)
    assert own.prompt == problem.prompt("I found it")


def test_braces_in_a_text_are_text() -> None:
    rows = [{"text": f"a {{mask}} {{{{ and }} {i} {{prompt}}", "label": i % 2} for i in range(6)]
    problem = Problem(films(rows[:2], rows[2:4], rows[4:]), "tiny-masked")
    found = in_context(problem)
    example = problem.task.examples("test")[0]
    whole = found.problem.template.render(example.fields, "it was", "[MASK]")
    assert whole == f"{found.text} {example.fields['text']} it was [MASK] ."
    assert "a {mask} {{ and } 0 {prompt} it was terrible ." in found.text
    again = Template.parse(found.problem.template.source, ["text"], "here")
    assert again.render(example.fields, "it was", "[MASK]") == whole
    row, read, _ = found.problem.part("test").row(0, found.problem.token_ids(found.prompt))
    assert row.tolist() == load_tokenizer("tiny-masked")(whole)["input_ids"]
    assert row[read] == problem.encoder.mask_id


@pytest.mark.parametrize("prompt", ["it was", ""])
@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("tiny-masked", "{prompt} {text} so {mask} !", "{P}{A} so great ! {P}{B} so terrible ! {P}{C} so [MASK] !"),
        ("tiny-masked", "{mask} : {prompt} {text}", "great : {P}{A} terrible : {P}{B} [MASK] : {P}{C}"),
        ("tiny-causal", "{prompt} {text} so", "{P}{A} so great\n{P}{B} so terrible\n{P}{C} so"),
    ],
)
def test_templates_that_begin_with_the_prompt_or_the_mask(model: str, source: str, expected: str, prompt: str) -> None:
    rows = [{"text": text, "label": label} for text, label in (("bad film", 0), ("good film", 1), ("the film", 0))]
    problem = Problem(films(rows[:2], rows[2:], rows[2:], source), model)
    drawn = [in_context(problem, prompt=prompt, seed=seed) for seed in range(9)]
    found = next(f for f in drawn if f.text.index("great") < f.text.index("terrible"))
    shown = {"{P}": prompt + " " if prompt else "", "{A}": "good film", "{B}": "bad film", "{C}": "the film"}
    for name, text in shown.items():
        expected = expected.replace(name, text)
    assert found.problem.template.render(rows[2], prompt, "[MASK]") == expected  # type: ignore[arg-type]
    row, _, _ = found.problem.part("test").row(0, found.problem.token_ids(found.prompt))
    assert row.tolist() == load_tokenizer(model)(expected)["input_ids"]


def test_an_encoder_decoder_reads_its_words_where_the_mask_would_stand(make_problem: Any) -> None:
    problem = make_problem("t5")
    found = in_context(problem)
    assert found.text == "the film was bad , number 0 . it was terrible . the film was good , number 1 . it was great ."
    row, read, _ = found.problem.part("test").row(0, found.problem.token_ids(found.prompt))
    assert row[read] == problem.encoder.mask_id
    assert (row == problem.encoder.mask_id).sum() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"per_class": 6},
            "12 in-context examples leave no room for the texts of train: with the prompt they take .* ",
        ),
        ({"per_class": 0}, "0 of each class: must be 1 or more"),
        ({"per_class": 99}, "split default: train has 32 examples of label '0', 99 wanted"),
    ],
)
def test_what_cannot_be_shown_gets_one_clear_line(options: dict[str, int], message: str, problem: Problem) -> None:
    with pytest.raises(InputError, match=message) as caught:
        in_context(problem, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
