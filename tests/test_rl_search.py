"""The RL searcher: rewards, memory, collapse, given prompts, presets, state; and whole searches with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_objective import scores_of
from test_rl import WORDS, blank, make, trained

import rayprompt
from rayprompt.budget import Ledger
from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError
from rayprompt.lm.backbone import load_backbone
from rayprompt.lm.source import describe_model, load_tokenizer
from rayprompt.objective import gap
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.step import ask_score_tell
from searchers.rl import WINDOW, RLPromptSearcher, z_scores
from searchers.rl_settings import PRESETS, RLPromptSettings, resolved

pytestmark = pytest.mark.usefixtures("unlogged")

Row = tuple[int, ...]


def step(searcher: RLPromptSearcher, value: Callable[[Row], float]) -> list[Any]:
    """Ask, and tell what ``value`` gives for each prompt's row."""
    asked = searcher.ask(searcher.generation)
    values = np.array([value(searcher.pending[c.key]) for c in asked], dtype=np.float64)
    searcher.tell(asked, Scores.of_values(asked, values))
    return asked


# Rewards.


def test_rewards_and_z_scores_are_those_of_the_paper() -> None:
    scores = scores_of([[np.log([0.9, 0.1]).tolist(), np.log([0.6, 0.4]).tolist()]], [0, 1])
    assert gap(scores, np.array([0, 1]))[0] == pytest.approx(62.0, abs=1e-9)
    z = z_scores(np.array([10.0, 20.0, 60.0]))
    assert z.tolist() == pytest.approx([-0.925816, -0.462908, 1.388724], abs=1e-6)
    assert (5 * z).tolist() == pytest.approx([-4.629079, -2.314540, 6.943619], abs=1e-6)


def test_rewards_over_a_step_an_input_or_the_run(view: Problem) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.9, size=(4, len(view.gold)))
    scores = scores_of(np.log(np.stack([p, 1 - p], axis=-1)).tolist(), view.gold.tolist())
    rows = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    own = np.where(view.gold == 0, p, 1 - p)
    reward = np.where(own > 0.5, 200.0, 180.0) * (2 * own - 1)
    mean = reward.mean(axis=1)
    expected = {
        "none": mean,
        "input": ((reward - reward.mean(axis=0)) / (reward.std(axis=0) + 1e-4)).mean(axis=1),
        "step": (mean - mean.mean()) / (mean.std() + 1e-4),
        "run": (mean - mean.mean()) / (mean.std() + 1e-4),
    }
    for how, z in expected.items():
        searcher = make(view, tokens=WORDS, length=3, normalise=how, scale=3.0, offset=1.0)
        searcher.pending.update(zip((c.key for c in scores.candidates), rows, strict=True))
        searcher.tell(scores.candidates, scores)
        assert searcher.memory.rewards == pytest.approx(mean.tolist())
        assert searcher.memory.shaped == pytest.approx((3 * z + 1).tolist())
    step(searcher, lambda row: 1000.0)  # in a run what came before is measured anew
    everything = np.array(searcher.memory.rewards)
    again = 3 * (everything - everything.mean()) / (everything.std() + 1e-4) + 1
    assert searcher._shaped(np.arange(len(everything))) == pytest.approx(again)


def test_what_failed_counts_as_the_worst_and_what_was_not_scored_teaches_nothing(view: Problem) -> None:
    searcher = make(view, tokens=WORDS, length=3)
    step(searcher, lambda row: float(row[0]))
    worst, known = min(searcher.memory.rewards), len(searcher.memory.rows)
    asked = searcher.ask(16)
    rows = [searcher.pending[c.key] for c in asked]
    values = np.arange(len(asked), dtype=np.float64)
    values[0] = np.nan
    searcher.tell(asked, Scores.of_values(asked, values, np.arange(len(asked)) < 4))
    assert searcher.memory.rows[known:] == rows[:4]
    assert searcher.memory.rewards[known:] == [worst, 1.0, 2.0, 3.0]


# Learning.


def small_problem(seed: int, interactions: float = 0.5) -> FloatArray:
    """(40, 40, 40) a reward of every prompt of three of 40 tokens: of each place, and of each two places."""
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(3, 40)), rng.normal(size=(3, 40, 40)) * interactions
    places = one[0][:, None, None] + one[1][None, :, None] + one[2][None, None, :]
    return np.asarray(places + two[0][:, :, None] + two[1][None, :, :] + two[2][:, None, :])


def small_searcher(view: Problem, seed: int) -> RLPromptSearcher:
    """A searcher of the prompts of :func:`small_problem`."""
    vocabulary = make(view).vocabulary
    words = [vocabulary.text((i,)) for i in range(0, 2000, 50)]
    return make(view, seed=seed, length=3, tokens=words)


def prompts_until_the_best(view: Problem, seed: int, most: int) -> int | None:
    """How many prompts it has scored when it has the best of all; None where it does not find it."""
    reward, searcher, asked = small_problem(seed), small_searcher(view, seed), 0
    while asked < most:
        asked += len(step(searcher, lambda row: float(reward[row])))
        if max(searcher.memory.rewards) == reward.max():
            return asked
    return None


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_where_the_good_prompts_of_a_small_problem_are(view: Problem, seed: int) -> None:
    """Its last 160 of 800 prompts are better than 160 drawn at random by four standard errors; the next test finds."""
    reward, searcher = small_problem(seed), small_searcher(view, seed)
    while len(searcher.memory.rewards) < 800:
        step(searcher, lambda row: float(reward[row]))
    last = np.array(searcher.memory.rewards[-160:])
    assert last.mean() > reward.mean() + 4 * reward.std() / np.sqrt(len(last))


@pytest.mark.slow
def test_it_finds_the_best_prompt_in_nine_seeds_of_ten(view: Problem) -> None:
    found = [prompts_until_the_best(view, seed, 6400) for seed in range(10)]
    print("prompts until the best of 64,000:", found)
    assert sum(n is not None for n in found) >= 9


# State, bits, repetition.


@pytest.mark.parametrize("settings", [{}, {"preset": "paper", "greedy_every": 2, "on_collapse": "restart"}])
def test_a_restored_policy_goes_on_to_the_same_bits(view: Problem, settings: dict[str, Any]) -> None:
    def value(row: Row) -> float:
        return float(row[0] % 7 - row[-1] % 3)

    whole = make(view, **settings)
    for _ in range(3):
        step(whole, value)
    copy = make(view, **settings)
    copy.load_state_dict(whole.state_dict())
    for _ in range(4):
        assert [c.key for c in step(whole, value)] == [c.key for c in step(copy, value)]
    ours, theirs = (blank(s).state_dict() for s in (whole, copy))
    assert ours["theta"].tobytes() == theirs["theta"].tobytes()
    assert ours["bar"].tobytes() == theirs["bar"].tobytes()
    assert whole.metrics() == copy.metrics()
    assert whole.nominations() == copy.nominations()


def test_bits_do_not_depend_on_the_number_of_threads(view: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for workers in (1, 3):
        monkeypatch.setattr("rayprompt.limits.cpus", lambda workers=workers: workers)
        searcher = make(view)
        for _ in range(6):
            step(searcher, lambda row: float(row[0] % 7))
        states.append(blank(searcher).state_dict()["theta"].tobytes())
    assert states[0] == states[1]


def test_prompts_are_new_unless_the_paper_is_followed(view: Problem) -> None:
    fresh = make(view, tokens=WORDS[:4], length=2)
    keys: list[str] = []
    while batch := step(fresh, lambda row: float(row[0])):
        keys += [c.key for c in batch]
    assert len(keys) == len(set(keys)) >= 12  # of 16; what is left may be beyond the reach of its tries
    paper = make(view, preset="paper", tokens=WORDS[:4], length=2)
    for _ in range(3):
        assert len(step(paper, lambda row: float(row[0]))) == 16


@pytest.mark.parametrize("answer", ["report", "temperature", "restart"])
def test_a_collapse_is_told_and_answered(view: Problem, answer: str) -> None:
    searcher = make(view, preset="paper", tokens=WORDS, length=2, on_collapse=answer)
    step(searcher, lambda row: 1.0)
    learning, theta = trained(searcher)
    learning.theta = theta * 30  # writes one prompt again and again
    for _ in range(WINDOW + 1):
        step(searcher, lambda row: -1.0)
        if searcher.collapses:
            break
    metrics = searcher.metrics()
    assert metrics["collapses"] == 1
    assert metrics["distinct"] <= 4
    assert metrics["heat"] == (1.0 if answer == "report" else 1.5)
    if answer == "restart":
        assert searcher.best[1] is not None
        assert blank(searcher).theta.numpy().tobytes() == searcher.best[1].tobytes()
        step(searcher, lambda row: 0.0)
        assert searcher.metrics()["distinct"] > 8


def test_health_is_of_the_last_step(view: Problem) -> None:
    searcher = make(view, preset="paper", tokens=WORDS, length=3)
    names = set(searcher.metrics())
    asked = step(searcher, lambda row: float(row[0]))
    rows, health = searcher.memory.rows, searcher.metrics()
    assert set(health) == names
    assert health["distinct"] == health["new_prompts"] == len(rows) == len({c.key for c in asked})
    assert health["new_pairs"] == len(rows) * len(view.gold)
    assert health["reward_best"] == max(row[0] for row in rows)
    assert min(searcher.memory.rewards) < health["reward"] < health["reward_best"]
    assert 0 < health["entropy"] <= np.log(len(WORDS)) + 1e-6
    assert health["round_trips"] == 1.0
    step(searcher, lambda row: float(row[0]))
    assert searcher.metrics()["new_pairs"] == (len(searcher.memory.rows) - health["distinct"]) * len(view.gold)


# What it writes.


def test_prompts_that_do_not_round_trip_are_told_and_can_be_refused(view: Problem) -> None:
    told = make(view, preset="paper", length=4)
    step(told, lambda row: 0.0)
    assert 0 < told.metrics()["round_trips"] < 1
    strict = make(view, preset="paper", length=4, round_trip=True)
    asked = [c for _ in range(3) for c in step(strict, lambda row: 0.0)]
    assert asked
    assert strict.metrics()["round_trips"] == 1.0
    tokenizer = load_tokenizer("tiny-causal")
    for row in strict.memory.rows:
        ids = strict.vocabulary.tokens[list(row)].tolist()
        assert tokenizer(" " + " ".join(tokenizer.decode(ids).split()))["input_ids"] == ids


def test_the_policys_tokens_are_spliced_in_or_read_again_by_the_tasks_lm(view: Problem) -> None:
    own = Problem("reviews", "tiny-causal").for_search()
    spliced = make(own, tokens="all", ids=True)
    for candidate in spliced.ask(16):
        assert isinstance(candidate, TextPrompt)
        assert candidate.token_ids == tuple(spliced.vocabulary.tokens[list(spliced.pending[candidate.key])])
    for candidate in make(view, tokens="all").ask(16):
        assert isinstance(candidate, TextPrompt)
        assert candidate == view.prompt(candidate.text)
    with pytest.raises(InputError, match="ids=True: tiny-masked has another vocabulary than the policy's tiny-causal"):
        make(view, ids=True)


def test_off_policy_prompts_are_given_ones(view: Problem, tmp_path: Path) -> None:
    file = tmp_path / "given.txt"
    file.write_text("it was\nall in all the film was very good\nnothing else\n")
    searcher = make(view, data="off-policy", given=str(file), length=4)
    begins = [["it", "was"], ["all", "in", "all", "the"], ["nothing", "else"]]
    asked = [c.text for c in searcher.ask(6) if isinstance(c, TextPrompt)]
    for text, words in zip(asked, sorted(begins * 2, key=lambda words: len(words) < 4), strict=True):
        assert text.split()[: len(words)] == words or text.split()[:2] in begins
    assert asked.count("all in all the") == 2
    mixed = make(view, given=["it was"], length=4)
    assert mixed.settings.data == "mixed"
    assert sum(c.text.startswith("it was") for c in mixed.ask(16) if isinstance(c, TextPrompt)) >= 7
    assert make(view, data="mixed").settings.given == ["it was"]  # the task's manual prompt
    told = make(view, length=2)
    known = [view.prompt(text) for text in ("it was", "much too long for it")]
    told.tell(known, Scores.of_values(known, np.array([3.0, 4.0])))
    assert [told.vocabulary.text(row) for row in told.memory.rows] == ["it was"]
    with pytest.raises(InputError, match="no given prompt that the policy can write"):
        make(view, given=["1 2 3"], data="off-policy")


# Settings.


def test_presets_are_as_published_and_settings_go_before_them() -> None:
    paper = resolved(RLPromptSettings(preset="paper"), "here")
    published = {
        "steps": 12_000, "prompts": 16, "learning_rate": 5e-5, "clip": 5.0, "target": "polyak", "target_rate": 1e-3,
        "top_k": 256, "scale": 5.0, "offset": 0.0, "normalise": "step", "loss": "v2+v3", "coefficient": None,
        "length": 5, "updates": 1, "replay": 0, "logit_bias": 0.0, "source": "classification", "tokens": "all",
    }  # fmt: skip
    assert {name: getattr(paper, name) for name in published} == published
    changed = resolved(RLPromptSettings(preset="paper", learning_rate=1e-3, steps=7), "here")
    assert (changed.learning_rate, changed.steps) == (1e-3, 7)
    assert set(PRESETS["paper"]) == set(PRESETS["fast"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "quick"}, "unknown setting preset 'quick'.*known: fast, paper"),
        ({"loss": "v2+v4"}, "unknown setting loss 'v4'"),
        ({"length": 21}, "setting length=21: must be from 1 to 20"),
        ({"learning_rate": 0.0}, "setting learning_rate=0.0: must be greater than 0"),
        ({"top_p": 0.0}, "setting top_p=0.0: must be from 1e-06 to 1"),
        ({"target": "hard"}, "unknown setting target 'hard'"),
        ({"policy_model": "tiny-masked"}, "policy_model='tiny-masked': a masked LM; the policy's is causal"),
        ({"policy_model": "no-such-lm/x/y"}, "no such model folder"),
        ({"tokens": ["wonderfulness of", "it"]}, "setting tokens: 'wonderfulness of' is [0-9]+ tokens in tiny-causal"),
        ({"tokens": ["it"]}, "1 tokens of tiny-causal; 2 at least"),
        ({"tokens": "no-such-file"}, "no such file: no-such-file"),
        ({"source": ""}, "setting source='': is 0 tokens; must be 1 to 123"),
        ({"on_collapse": "pray"}, "unknown setting on_collapse 'pray'"),
    ],
)
def test_settings_are_refused_with_a_line(view: Problem, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(view, **settings)
    assert "\n" not in str(caught.value)


def test_the_lm_is_not_loaded_before_the_first_ask(view: Problem) -> None:
    searcher = make(view)
    assert searcher.state_dict()["learning"] is None
    assert "policy" not in vars(searcher)
    source, _ = describe_model("tiny-causal")
    assert load_backbone(source, "cpu") is blank(searcher).policy.trunk
    assert isinstance(searcher.ask(1)[0], TextPrompt)


# Whole searches.


class Counting:
    """A pool that counts its requests."""

    def __init__(self, pool: ScoringPool) -> None:
        self.pool, self.requests = pool, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def answers(self, part: Any, prompts: Any, prompt: Any, *where: Any, **how: Any) -> Any:
        self.requests.append(len(prompt))
        return self.pool.answers(part, prompts, prompt, *where, **how)


def test_a_step_is_one_request_of_the_pool(pool: ScoringPool, problem: Problem) -> None:
    counting: Any = Counting(pool)
    evaluator = Evaluator(counting, problem.part("train"), problem.gold, Ledger(10**6))
    searcher = make(problem)
    for _ in range(3):
        assert len(ask_score_tell(searcher, evaluator).candidates) == 16
    assert counting.requests == [16 * len(problem.gold)] * 3


@pytest.mark.slow  # quick: a searcher that was restored goes on with the same bits, above
@pytest.mark.usefixtures("kept_pool")
def test_a_search_given_more_goes_on_as_if_it_had_had_it(problem: Problem, tmp_path: Path) -> None:
    """Resumed from its files in another process: the same prompts, and the same bits of the policy."""
    step_cost, settings = 16 * len(problem.gold), {"tokens": [*WORDS, "so", "to"], "uniform_steps": 1}
    whole, parts = (
        rayprompt.search(problem, searcher="rl", budget=n * step_cost, settings=settings, out=tmp_path / str(n))
        for n in (4, 2)
    )
    resumed = rayprompt.resume(parts.study_dir, budget=4 * step_cost)
    names = ("best_prompt", "train", "dev", "test", "evaluations", "searcher_metrics", "finalists")
    assert {n: getattr(resumed, n) for n in names} == {n: getattr(whole, n) for n in names}
    assert resumed.replay_differs == 0


@pytest.mark.slow  # quick: presets and health of a step, above
@pytest.mark.usefixtures("kept_pool")
def test_the_papers_protocol_health_in_tensorboard_and_an_objective_of_ones_own(
    problem: Problem, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"preset": "paper", "steps": 6, "greedy_every": 1, "learning_rate": 0.01, "tokens": "words"}
    result = rayprompt.search(
        problem, searcher="rl", budget=10**6, settings=settings, objective="own_objective:brevity", out=tmp_path / "s"
    )
    assert result.end == "steps=6"
    record = yaml.safe_load((result.study_dir / "study.yaml").read_text())["searcher"]
    assert record["objective"] == "own_objective:brevity"
    assert record["content"] == {"policy_model": describe_model("tiny-causal")[0].digest}
    (folder,) = result.study_dir.glob("rl-s0")
    reports = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    greedy = [form["text"] for form in reports[-1]["nominations"]]
    assert 1 <= len(greedy) <= 6
    assert [f["text"] for f in result.finalists] == greedy  # and none of the best on train
    best = sorted(result.finalists, key=lambda f: -f["dev"])[0]
    assert result.dev.value == best["dev"]
    assert len(result.top) == (min(3, len(greedy)) if len(greedy) > 1 else 0)
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    health = ("reward", "entropy", "distinct", "new_pairs", "repeated_tokens", "round_trips", "collapses", "loss")
    assert {f"ray/tune/searcher/{name}" for name in health} <= tags


LOGICAL_GPU = """
import json, sys
import ray, rayprompt
from ray.cluster_utils import Cluster
from rayprompt.errors import InputError

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
free = []

def listen(event):
    if event.phase == "search":
        free.append(ray.available_resources().get("GPU", 0.0))

how = dict(searcher="rl", budget=4096, settings={"tokens": ["it", "was", "so", "all", "the", "good"]})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
try:
    rayprompt.search("reviews", gpus_per_scorer=1, out=sys.argv[1] + "/whole", **how)
    refused = ""
except InputError as error:
    refused = str(error)
result = rayprompt.search("reviews", out=sys.argv[1] + "/share", listener=listen, **how)
print(json.dumps({"refused": refused, "end": result.end, "evaluations": result.evaluations, "free": free}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow  # quick: what scorers leave of a GPU, tests/test_pool.py
def test_the_policy_gets_its_share_of_the_only_gpu(tmp_path: Path) -> None:
    """A cluster with one logical GPU: a scorer that took the whole of it would starve the trial for ever."""
    done = subprocess.run(
        [sys.executable, "-c", LOGICAL_GPU, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "1 scorers with 1 GPUs each leave no GPU with the share of 0.2" in found["refused"]
    assert (found["end"], found["evaluations"]) == ("budget", 4096)
    assert found["free"]
    assert max(found["free"]) < 0.01  # 0.8 of it are the scorer's, 0.2 the policy's


@pytest.mark.slow  # quick: an objective of one's own is in the test above
def test_an_objective_beside_the_command(tmp_path: Path) -> None:
    """``--objective module:function`` finds a file in the working directory; the searches' processes need not."""
    (tmp_path / "rewards.py").write_text("def short(scores, gold):\n    return scores.mean_value() * 0.5\n")
    command = [
        *(Path(sys.executable).with_name("rayprompt"), "search", "--searcher", "random", "--budget", "1024"),
        *("--objective", "rewards:short", "--out", "study", "--json"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    result = json.loads(done.stdout.splitlines()[-1])
    best = result["finalists"][0]
    assert best["objective"] == pytest.approx(best["train"] / 2)
