"""The conformance kit: every registered searcher passes it, faults are found, and what Ray's own searchers fail."""

from __future__ import annotations

import math
import pickle
import random
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nevergrad as ng
import numpy as np
import pytest
from ray import tune
from ray.tune.result import DEFAULT_METRIC
from ray.tune.search import Searcher
from ray.tune.search.nevergrad import NevergradSearch
from ray.tune.search.optuna import OptunaSearch
from safetensors.numpy import load_file
from test_rl import WORDS

from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.candidate import candidates as candidates_of
from rayprompt.errors import InputError
from rayprompt.lm.source import load_tokenizer, model_folder
from rayprompt.scores import Scores
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher, searcher_paths
from rayprompt.testing import CHECKS, ConformanceError, Outcome, check_searcher, run_checks
from searchers.random import RandomSearcher

pytestmark = pytest.mark.usefixtures("unlogged")
NAMES = sorted(searcher_paths())


def evaluate(config: dict[str, Any]) -> float:
    return -((config["x"] - 0.7) ** 2) - (config["y"] - 0.2) ** 2


def failed(outcomes: list[Outcome]) -> set[str]:
    return {outcome.check for outcome in outcomes if not outcome.passed}


# Every registered searcher.


# What the checks want to be done takes less time so; whether a searcher learns is seen with its own settings.
QUICK: dict[str, dict[str, Any]] = {
    "cma-es": {"population": 8},
    "cma-es-deep": {"population": 8},
    "nevergrad": {"population": 8},
    "nevergrad-soft": {"population": 8},
    "reward-model": {"population": 8, "warmup": 16, "proposals": 60},
    "rl": {"prompts": 8, "replay": 4, "length": 3, "tokens": WORDS},
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_registered_searchers_conform(name: str, check: str, view: Problem) -> None:
    cls = load_searcher(name)
    small: dict[str, Any] = {"intrinsic_dim": 10, "length": 5} if cls.kind == "soft" else {}
    # A policy learns what words mean: numbers of tokens, which the kit's own landscape is made of, say nothing to it.
    evaluate = near_in_meaning() if name == "rl" and check == "learns" else None
    if check != "learns":
        small |= QUICK.get(name, {})
    check_searcher(lambda **keywords: cls(view, **small, **keywords), only=check, evaluate=evaluate)


def near_in_meaning(goal: str = "overall the story was wonderful") -> Callable[[dict[str, Any]], float]:
    """How near a prompt is to a goal: the mean cosine of the embeddings of their tokens, place by place."""
    tokenizer = load_tokenizer("tiny-causal")
    weights = load_file(model_folder("tiny-causal") / "model.safetensors")
    table = next(value for name, value in weights.items() if name.endswith("wte.weight"))
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    goals = table[tokenizer(" " + goal)["input_ids"]]

    def evaluate(config: dict[str, Any]) -> float:
        ids = tokenizer(" " + candidates_of(config)[0].to_json()["text"])["input_ids"]
        places = [float(a @ b) for a, b in zip(table[ids], goals, strict=False)]
        return sum(places) / max(len(ids), len(goals))

    return evaluate


SOFT_OPTIMIZERS = [
    "TwoPointsDE", "DE", "LhsDE", "RotatedTwoPointsDE", "PSO", "RealSpacePSO", "CMA", "DiagonalCMA", "TBPSA",
    "NaiveTBPSA", "OnePlusOne", "RandomSearch",
]  # fmt: skip
TEXT_OPTIMIZERS = [
    "DiscreteOnePlusOne", "DoubleFastGADiscreteOnePlusOne", "DiscreteLenglerOnePlusOne", "PortfolioDiscreteOnePlusOne",
    "FastGADiscreteOnePlusOne", "TwoPointsDE", "RotatedTwoPointsDE", "PSO", "CMA", "EDA", "TBPSA", "RandomSearch",
]  # fmt: skip
TOO_SIMPLE = ("OnePlusOne", "RandomSearch", "EDA")  # to beat random draws in 480 candidates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*(("nevergrad-soft", o) for o in SOFT_OPTIMIZERS), *(("nevergrad", o) for o in TEXT_OPTIMIZERS)],
)
def test_nevergrads_optimizers_conform(name: str, optimizer: str, view: Problem) -> None:
    cls = load_searcher(name)
    small = {"intrinsic_dim": 10, "length": 5} if cls.kind == "soft" else {}
    skip = ["learns"] if optimizer in TOO_SIMPLE else []
    # One that asks for the same point again and again has a longer record.
    check_searcher(
        lambda **keywords: cls(view, optimizer=optimizer, **small, **keywords), skip=skip, bytes_per_trial=16_384
    )


# The kit bites: a correct searcher passes, and one with one fault fails what is meant for it and nothing else.


class Climber(Searcher):
    """A hill climber on the unit square that does all that Tune asks for."""

    def __init__(
        self,
        metric: str | None = "score",
        mode: str = "max",
        seed: int = 0,
        points_to_evaluate: Sequence[dict[str, float]] | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self.rng = random.Random(seed)
        self.points = list(points_to_evaluate or ())
        self.left = math.inf if limit is None else limit
        self.live: dict[str, dict[str, float]] = {}
        self.best = {"x": self.rng.random(), "y": self.rng.random()}
        self.best_value = -math.inf

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.left < 1:
            return Searcher.FINISHED
        self.left -= 1
        self.live[trial_id] = self.points.pop(0) if self.points else self.draw()
        return dict(self.live[trial_id])

    def draw(self) -> dict[str, float]:
        return {name: min(max(value + self.rng.gauss(0, 0.05), 0.0), 1.0) for name, value in self.best.items()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        config = self.live.pop(trial_id, None)
        if config is not None and result and not error:
            self.learn(config, result.get(self.metric or DEFAULT_METRIC))

    def learn(self, config: dict[str, float], value: Any) -> None:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return
        value = -value if self.mode == "min" else value
        if value > self.best_value:
            self.best, self.best_value = config, value

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        if not error:
            self.learn(parameters, value)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))


class RaisesOnUnknownId(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.live[trial_id]
        super().on_trial_complete(trial_id, result, error)


class LearnsFromUnknownIds(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.live.setdefault(trial_id, self.best)
        super().on_trial_complete(trial_id, result, error)


class LearnsFromLateResults(Climber):
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in self.live:
            self.learn({"x": 0.5, "y": 0.5}, result.get(self.metric or DEFAULT_METRIC))


class NoneWhenIdle(Climber):
    calls = 0

    def suggest(self, trial_id: str) -> Any:
        self.calls += 1
        return None if self.calls == 150 and not self.live else super().suggest(trial_id)


class NoneWhenExhausted(Climber):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(limit=150, **keywords)

    def suggest(self, trial_id: str) -> Any:
        given = super().suggest(trial_id)
        return None if given == Searcher.FINISHED else given


class GoesOnAfterFinished(Climber):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(limit=150, **keywords)

    def suggest(self, trial_id: str) -> Any:
        given = super().suggest(trial_id)
        if given == Searcher.FINISHED:
            self.left = 1
        return given


class IgnoresSeed(Climber):
    def __init__(self, seed: int = 0, **keywords: Any) -> None:
        super().__init__(**keywords)


class TouchesGlobalGenerator(Climber):
    def suggest(self, trial_id: str) -> Any:
        np.random.random()
        return super().suggest(trial_id)


class ForgetsGenerator(Climber):
    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps({k: v for k, v in self.__dict__.items() if k != "rng"}))


class LosesLiveTrials(Climber):
    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path)
        self.live = {}


class SaveDisturbs(Climber):
    def save(self, checkpoint_path: str) -> None:
        self.rng.random()
        super().save(checkpoint_path)


class CannotSave(Climber):
    save = Searcher.save
    restore = Searcher.restore


class Leaks(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.__dict__.setdefault("log", []).append([0.0] * 1000)
        super().on_trial_complete(trial_id, result, error)


class IgnoresMode(Climber):
    def learn(self, config: dict[str, float], value: Any) -> None:
        super().learn(config, -value if self.mode == "min" and value is not None else value)


class KnowsOneMetric(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        score = (result or {}).get("score", (result or {}).get(DEFAULT_METRIC))
        super().on_trial_complete(trial_id, {str(self.metric or DEFAULT_METRIC): score}, error)


class RaisesOnNan(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        math.floor((result or {}).get(self.metric) or 0)
        super().on_trial_complete(trial_id, result, error)


class NeedsMetric(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is not None and trial_id in self.live:
            result[self.metric or DEFAULT_METRIC]
        super().on_trial_complete(trial_id, result, error)


class NeedsResult(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self.live:
            result.get(self.metric)  # type: ignore[union-attr]
        super().on_trial_complete(trial_id, result, error)


class NumbersOnly(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        for value in (result or {}).values():
            assert not isinstance(value, list)
        super().on_trial_complete(trial_id, result, error)


class InTurnOnly(Climber):
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        assert trial_id not in self.live or trial_id == next(iter(self.live))
        super().on_trial_complete(trial_id, result, error)


class PointsBackwards(Climber):
    def __init__(self, points_to_evaluate: Any = None, **keywords: Any) -> None:
        super().__init__(points_to_evaluate=(points_to_evaluate or [])[::-1], **keywords)


class NoWarmStart(Climber):
    add_evaluated_point = Searcher.add_evaluated_point


class DoesNotLimit(Climber):
    def set_max_concurrency(self, max_concurrent: int) -> bool:
        return True


class HoldsLock(Climber):
    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.lock = threading.Lock()

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps({k: v for k, v in self.__dict__.items() if k != "lock"}))


class NoDefaults(Climber):
    def __init__(self, metric: str | None = None, mode: str | None = None, **keywords: Any) -> None:
        super().__init__(metric=metric, mode=mode, **keywords)  # type: ignore[arg-type]

    def suggest(self, trial_id: str) -> Any:
        assert self.mode, "no mode"
        return super().suggest(trial_id)


class RefusesConstants(Climber):
    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return False


class DoesNotLearn(Climber):
    def learn(self, config: dict[str, float], value: Any) -> None:
        pass


FAULTS: dict[type[Climber], set[str]] = {
    RaisesOnUnknownId: {"unknown-ids", "repeated-completion", "late-results", "restart-errored"},
    LearnsFromUnknownIds: {"unknown-ids", "repeated-completion"},
    LearnsFromLateResults: {"unknown-ids", "late-results"},
    NoneWhenIdle: {"never-idle"},
    NoneWhenExhausted: {"never-idle", "finished"},
    GoesOnAfterFinished: {"finished"},
    IgnoresSeed: {"seed"},
    TouchesGlobalGenerator: {"global-random-state"},
    ForgetsGenerator: {"restore-used", "restore-in-flight", "restore-limited"},
    LosesLiveTrials: {"restore-in-flight", "restore-limited"},
    SaveDisturbs: {"restore-used"},
    CannotSave: {"restore-blank", "restore-used", "restore-in-flight", "restore-limited", "state-growth"},
    Leaks: {"state-growth"},
    IgnoresMode: {"modes"},
    KnowsOneMetric: {"modes"},
    RaisesOnNan: {"nan-and-infinity"},
    NeedsMetric: {"missing-metric"},
    NeedsResult: {"failed-trials", "never-idle", "late-results", "concurrency-limiter", "restart-errored"},
    NumbersOnly: {"odd-results"},
    InTurnOnly: {"any-order", "concurrency-limiter", "restore-in-flight", "restore-limited", "cloudpickle"},
    PointsBackwards: {"points-to-evaluate"},
    NoWarmStart: {"add-evaluated-point", "add-evaluated-trials"},
    DoesNotLimit: {"concurrency-limiter"},
    HoldsLock: {"cloudpickle"},
    NoDefaults: {"empty-space"},
    RefusesConstants: {"constants"},
    DoesNotLearn: {"learns"},
}


@pytest.mark.parametrize("limit", [None, 150])
def test_a_correct_searcher_passes(limit: int | None) -> None:
    outcomes = run_checks(lambda **keywords: Climber(limit=limit, **keywords), evaluate=evaluate)
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert [outcome.check for outcome in outcomes] == list(CHECKS)
    assert ("finished" in {o.check for o in outcomes if o.skipped}) is (limit is None)


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_fails_the_checks_meant_for_it(cls: type[Climber]) -> None:
    outcomes = run_checks(cls, evaluate=evaluate)
    assert failed(outcomes) == FAULTS[cls], [o for o in outcomes if not o.passed]
    for outcome in outcomes:
        assert "\n" not in outcome.message
        assert "the check itself broke" not in outcome.message
        assert outcome.passed or outcome.message


# The same for prompt searchers.


class WordClimber(RandomSearcher):
    """Changes one word of the best prompt so far."""

    learns = True

    def __init__(self, problem: Problem, **keywords: Any) -> None:
        super().__init__(problem, **keywords)
        self.best: list[int] = []
        self.best_value = -math.inf

    def ask(self, n: int) -> list[Candidate]:
        return [self.draw() for _ in range(n)]

    def draw(self) -> Candidate:
        places = self.rng.integers(len(self.slots.options), size=self.slots.length).tolist()
        changed = int(self.rng.integers(self.slots.length))
        if self.best:
            places = [*self.best[:changed], places[changed], *self.best[changed + 1 :]]
        return self.slots.prompt(places)

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        for candidate, value in zip(candidates, self.values(scores), strict=True):
            places = self.slots.places(candidate) if isinstance(candidate, TextPrompt) else None
            if value > self.best_value and places is not None:
                self.best[:], self.best_value = places, float(value)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "best": list(self.best), "best_value": self.best_value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.best, self.best_value = list(state["best"]), state["best_value"]


class AsksForMore(WordClimber):
    def ask(self, n: int) -> list[Candidate]:
        return super().ask(n + 1)


class RaisesOnStrangers(WordClimber):
    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        assert all(c.token_ids for c in candidates if isinstance(c, TextPrompt))
        super().tell(candidates, scores)


class WantsWholeRows(WordClimber):
    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        assert scores.complete().all()
        super().tell(candidates, scores)


class SharesState(WordClimber):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best}


class KeepsTensor(WordClimber):
    def state_dict(self) -> dict[str, Any]:
        import torch

        return {**super().state_dict(), "weights": {"policy": [torch.zeros(2)]}}


class TellsAtOnce(WordClimber):
    """Tells a batch when it is complete, and then its generation."""

    def suggest(self, trial_id: str) -> Any:
        config = super().suggest(trial_id)
        if isinstance(config, dict):
            self.__dict__.setdefault("given", {})[trial_id] = candidates_of(config)
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        batch = self.__dict__.get("given", {}).pop(trial_id, ())
        values = (result or {}).get("candidate_scores", ())
        if len(values) == len(batch) > 0 and self.mode == "max":
            self.tell(batch, Scores.of_values(batch, np.array(values)))
        super().on_trial_complete(trial_id, result, error)


class KnowsNoBudget(WordClimber):
    def __init__(self, problem: Problem, budget: int | None = None, **keywords: Any) -> None:
        super().__init__(problem, **keywords)


class ClaimsToLearn(RandomSearcher):
    learns = True


PROMPT_FAULTS: dict[type[RandomSearcher], set[str]] = {
    WordClimber: set(),
    AsksForMore: {"ask", "same-as-ask-tell", "one-tell", "budget"},
    RaisesOnStrangers: {"tell"},
    WantsWholeRows: {"partial-rows", "budget"},
    SharesState: {"state-dict"},
    KeepsTensor: {"plain-state"},
    TellsAtOnce: {"one-tell", "order-of-completion", "window", "budget", "restarted-batch"}
    | {"restore-limited", "restore-mid-generation"},
    KnowsNoBudget: {"budget"},
    ClaimsToLearn: {"learns"},
}


@pytest.mark.parametrize("cls", PROMPT_FAULTS, ids=lambda cls: cls.__name__)
def test_a_fault_of_a_prompt_searcher(cls: type[RandomSearcher], view: Problem) -> None:
    outcomes = run_checks(lambda **keywords: cls(view, **keywords))
    assert failed(outcomes) == PROMPT_FAULTS[cls], [o for o in outcomes if not o.passed]


# Ray's own searchers, as found with Ray 2.60, Nevergrad 1.0.12 and Optuna 5.0.

NO_SEED = {"modes", "bare-metric", "late-results", "seed"}  # checks that need one
UNKNOWN_ID = {"unknown-ids", "restart-errored"}
OWN_SPACE = {"empty-space", "constants"}  # metric and mode from the Tuner do not reach one that was built with a space
NEVERGRAD = NO_SEED | UNKNOWN_ID | {"repeated-completion", "missing-metric", "global-random-state"}
NEVERGRAD |= {"add-evaluated-point", "add-evaluated-trials"}
OPTUNA = UNKNOWN_ID | {"missing-metric", "add-evaluated-point"}


def unit_square() -> dict[str, Any]:
    return {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)}


def nevergrad_search(**keywords: Any) -> Searcher:
    return NevergradSearch(optimizer=ng.optimizers.OnePlusOne, **keywords)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "expected"), [(nevergrad_search, NEVERGRAD), (OptunaSearch, OPTUNA)], ids=["nevergrad", "optuna"]
)
def test_what_rays_searchers_fail(build: Callable[..., Searcher], expected: set[str]) -> None:
    own = run_checks(lambda **keywords: build(space=unit_square(), **keywords), evaluate=evaluate)
    assert failed(own) == expected | OWN_SPACE
    tuners = run_checks(build, space=unit_square(), evaluate=evaluate)
    assert failed(tuners) == expected


# The kit's own interface.


def test_every_check_says_what_is_right() -> None:
    for name, description in CHECKS.items():
        assert re.fullmatch("[a-z-]+", name)
        assert re.fullmatch(r".{20,130}\.", description), name


def test_all_failures_are_listed_a_line_each() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_searcher(NoWarmStart, only=["add-evaluated-point", "add-evaluated-trials", "seed"])
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 3 checks failed"
    assert [line.split(":")[0].strip() for line in lines] == ["add-evaluated-point", "add-evaluated-trials"]
    assert isinstance(caught.value, AssertionError)


def test_checks_are_chosen_by_name() -> None:
    assert run_checks(IgnoresSeed, only="factory") == [Outcome("factory", True)]
    check_searcher(IgnoresSeed, skip=["seed"])
    with pytest.raises(InputError, match="unknown check 'sede'.*did you mean 'seed'"):
        run_checks(IgnoresSeed, only="sede")
    with pytest.raises(InputError, match="unknown check 'sede'"):
        run_checks(IgnoresSeed, skip=["sede"])
    (learns,) = run_checks(DoesNotLearn, evaluate=evaluate, only="learns", baseline=True)
    assert learns.skipped
    (growth,) = run_checks(Leaks, only="state-growth", bytes_per_trial=10_000)
    assert growth.passed


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda **keywords: 1 / 0,
            "factory cannot be called: factory(metric='score', mode='max') raised ZeroDivisionE",
        ),
        (lambda **keywords: "searcher", "gave 'searcher', right: a Searcher"),
        (lambda seed=0: Climber(seed=seed), "the constructor takes no metric"),
    ],
)
def test_a_factory_that_does_not_work(build: Callable[..., Any], message: str) -> None:
    outcomes = run_checks(build)
    assert message in outcomes[0].message
    assert [outcome.skipped for outcome in outcomes] == [False] + [True] * (len(CHECKS) - 1)
    with pytest.raises(ConformanceError, match="1 of"):
        check_searcher(build)


def test_a_factory_that_takes_no_seed() -> None:
    outcomes = run_checks(lambda metric="score", mode="max": Climber(metric=metric, mode=mode), only="seed")
    assert outcomes == [Outcome("seed", False, "the constructor takes no seed")]
    outcomes = run_checks(lambda **keywords: Climber(**keywords, **{"seed": 3}), only="seed")
    assert outcomes == [Outcome("seed", False, "the factory itself gives a seed")]
