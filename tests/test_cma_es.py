"""cma-es: pycma by hand, restarts, bounds, what goes to dev, warm starts."""

from __future__ import annotations

import math
from typing import Any

import cma
import numpy as np
import pytest
from cma.restricted_gaussian_sampler import GaussVkDSampler
from threadpoolctl import threadpool_limits

from rayprompt.candidate import SoftPrompt, candidates
from rayprompt.errors import InputError
from rayprompt.scores import Scores
from rayprompt.searcher.problem import Problem
from searchers.cma_es import CMAESSearcher
from searchers.nevergrad import NevergradSoftSearcher

pytestmark = [pytest.mark.usefixtures("unlogged"), pytest.mark.filterwarnings("ignore")]
SMALL = {"intrinsic_dim": 10, "length": 5}


def make(view: Problem, seed: int = 0, **settings: Any) -> CMAESSearcher:
    return CMAESSearcher(view, seed=seed, **{**SMALL, **settings})


def sphere(prompts: list[Any], centre: float = 1.0) -> Scores:
    """Minus the squared distance of z to a point; rounded as a real loss is not, so that ranks are clear."""
    return Scores.of_values(prompts, np.array([-float(np.sum((p.vector - centre) ** 2)) for p in prompts]))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"popsize": 20}),
        ({"population": 0}, {"popsize": 4 + int(3 * math.log(10))}),
        ({"bound": 1.5, "sigma": 0.5}, {"popsize": 20, "bounds": [-1.5, 1.5]}),
        ({"covariance": "separable"}, {"popsize": 20, "CMA_diagonal": True}),
        ({"covariance": "limited-memory"}, "vkd"),
        ({"intrinsic_dim": 500}, {"popsize": 20}),
    ],
)
def test_proposals_are_those_of_pycma_called_by_hand(settings: dict[str, Any], options: Any, view: Problem) -> None:
    searcher = make(view, seed=5, **settings)
    rng = np.random.Generator(np.random.PCG64(5))

    def randn(*shape: int) -> Any:
        return rng.standard_normal(shape)

    if options == "vkd":
        options = GaussVkDSampler.extend_cma_options({"popsize": 20, "CMA_sampler_options": {"randn": randn}})
    by_hand = cma.CMAEvolutionStrategy(
        np.zeros(settings.get("intrinsic_dim", 10)),
        settings.get("sigma", 1.0),
        {**options, "randn": randn, "seed": math.nan, "verbose": -9},
    )
    for _ in range(12):
        with threadpool_limits(1):  # the last bits of linear algebra depend on their number
            points = by_hand.ask()
        prompts = searcher.ask(searcher.generation)
        assert len(prompts) == len(points)
        for prompt, point in zip(prompts, points, strict=True):
            assert isinstance(prompt, SoftPrompt)
            assert prompt.z == tuple(np.asarray(point, dtype=np.float32).tolist())
            assert "bound" not in settings or max(map(abs, prompt.z)) <= 1.5
        scores = sphere(prompts)
        searcher.tell(prompts, scores)
        assert scores.objective is not None
        with threadpool_limits(1):
            by_hand.tell(points, (-scores.objective).tolist())
    assert searcher.strategy.mean.tolist() == by_hand.mean.tolist()


def test_numpys_global_generator_is_left_alone_in_500_dimensions(view: Problem) -> None:
    """There pycma checks itself with numbers drawn from it."""
    np.random.seed(3)
    before = repr(np.random.get_state())
    searcher = make(view, intrinsic_dim=500)
    for _ in range(8):
        prompts = searcher.ask(20)
        searcher.tell(prompts, sphere(prompts))
    assert repr(np.random.get_state()) == before


def test_it_learns_in_any_covariance(view: Problem) -> None:
    for covariance in ("full", "separable", "limited-memory"):
        searcher = make(view, covariance=covariance)
        best = []
        for _ in range(60):
            prompts = searcher.ask(20)
            scores = sphere(prompts)
            searcher.tell(prompts, scores)
            best.append(float(np.max(scores.objective)))
        assert max(best) > -1e-2, covariance


def test_it_ends_with_pycmas_reasons(view: Problem) -> None:
    searcher = make(view, restarts="none")
    for _ in range(60):
        assert searcher.stop() == {}
        prompts = searcher.ask(20)
        searcher.tell(prompts, Scores.of_values(prompts, np.zeros(20)))
        if searcher.stop():
            break
    assert {"tolfun", "tolfunhist", "tolflatfitness"} & set(searcher.stop())
    assert searcher.metrics()["stops"] == ", ".join(f"{k}={v}" for k, v in searcher.stop().items())


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_it_begins_anew_with_larger_populations(restarts: str, view: Problem) -> None:
    searcher = make(view, restarts=restarts, population=4)
    populations = [4]
    for _ in range(400):
        prompts = searcher.ask(searcher.generation)
        searcher.tell(prompts, Scores.of_values(prompts, np.zeros(len(prompts))))
        if len(searcher.stops) >= len(populations):
            populations.append(searcher.generation)
        if len(populations) > 5:
            break
    assert searcher.stop() == {}
    assert searcher.metrics()["restarts"] == 5
    if restarts == "ipop":  # Auger and Hansen, 2005: twice as large each time
        assert populations == [4, 8, 16, 32, 64, 128]
    else:  # Hansen, 2009: now and then a small one, between the first and half the last large one
        large = [p for p, kind in zip(populations[1:], [*searcher.runs[1:], searcher.run], strict=False)
                 if kind[0] == "large"]  # fmt: skip
        assert large == [8 * 2**i for i in range(len(large))]
        small = [p for p in populations[1:] if p not in large]
        assert small
        assert all(4 <= p <= max(large) for p in small)


def test_a_restart_goes_on_from_its_state(view: Problem) -> None:
    searcher = make(view, restarts="bipop", population=4)
    while len(searcher.stops) < 3:
        prompts = searcher.ask(searcher.generation)
        searcher.tell(prompts, Scores.of_values(prompts, np.zeros(len(prompts))))
    half = searcher.ask(2)
    searcher.tell(half[:1], sphere(half[:1]))
    again = make(view, restarts="bipop", population=4)
    again.load_state_dict(searcher.state_dict())
    for s in (searcher, again):
        rest = s.ask(100)
        s.tell([half[1], *rest], sphere([half[1], *rest]))
    assert [c.key for c in searcher.ask(9)] == [c.key for c in again.ask(9)]
    assert searcher.stops == again.stops


def test_a_generation_is_told_when_it_is_whole_and_failures_count_as_worst(view: Problem) -> None:
    one, two = make(view), make(view)
    prompts = one.ask(20)
    assert [c.key for c in two.ask(7)] + [c.key for c in two.ask(20)] == [c.key for c in prompts]
    values = np.array(sphere(prompts).objective)
    values[3] = np.nan
    one.tell(prompts, Scores.of_values(prompts, values))
    for i in (*range(10, 20), *range(10)):
        assert two.learned == 0
        two.tell(prompts[i : i + 1], Scores.of_values(prompts[i : i + 1], values[i : i + 1]))
    worst = np.where(np.isnan(values), np.nanmin(values) - 1, values)
    three = make(view)
    three.tell(three.ask(20), Scores.of_values(prompts, worst))
    keys = [[c.key for c in s.ask(20)] for s in (one, two, three)]
    assert keys[0] == keys[1] == keys[2]


def test_what_goes_to_dev(view: Problem) -> None:
    expected = {"none": 0, "mean": 1, "generations": 2, "all": 3}
    for dev, count in expected.items():
        searcher = make(view, dev=dev, dev_every=2)
        assert searcher.nominations() == []
        bests = []
        for _ in range(5):
            prompts = searcher.ask(20)
            scores = sphere(prompts)
            searcher.tell(prompts, scores)
            bests.append(prompts[int(np.argmax(scores.objective))])
        found = searcher.nominations()
        assert len(found) == count
        if dev in ("generations", "all"):
            assert found[:2] == [bests[1], bests[3]]
        if dev in ("mean", "all"):
            assert isinstance(found[-1], SoftPrompt)
            assert np.allclose(found[-1].vector, searcher.strategy.mean, atol=1e-6)


def test_what_others_found_is_looked_at_and_moves_the_search(view: Problem) -> None:
    """Points to evaluate are asked for first, then stand in CMA-ES's own generation; nothing else is disturbed."""
    plain = make(view)
    good = plain.space.prompt(np.full(10, 0.9))
    told = CMAESSearcher(view, points_to_evaluate=[good], **SMALL)
    points = told.ask_generation()
    assert points == (good,)
    told.tell(points, sphere(list(points)))
    generation = told.ask_generation()
    assert good in generation
    told.tell(generation, sphere(list(generation)))
    first = plain.ask_generation()
    plain.tell(first, sphere(list(first)))
    near = [float(np.sum((s.strategy.mean - 1) ** 2)) for s in (told, plain)]
    assert near[0] < near[1]


@pytest.mark.parametrize("bound", [None, 1.5])
def test_a_point_that_stands_twice_in_a_generation_is_learned_once(bound: float | None, view: Problem) -> None:
    """As after a warm start from a search with the same seed: what was injected is drawn as well."""
    first = make(view, bound=bound)
    points = first.ask(20)[:4]
    searcher = CMAESSearcher(view, points_to_evaluate=[points[0], *points], **SMALL, bound=bound)
    begin = searcher.ask_generation()
    searcher.tell(begin, sphere(list(begin)))
    searcher.add_evaluated_point({"candidates": [points[1].to_json()]}, -1.0)
    for number in range(3):
        generation = searcher.ask_generation()
        if number == 0:
            assert {p.key for p in points} <= {c.key for c in generation}
        searcher.tell(generation, sphere(list(generation)))
        assert searcher.learned == number + 1
        assert searcher.open == []


def test_after_a_restart_the_mean_is_that_of_the_run_before(view: Problem) -> None:
    searcher = make(view, restarts="ipop", population=4)
    while not searcher.stops:
        mean = searcher.strategy.mean.copy()
        prompts = searcher.ask(4)
        searcher.tell(prompts, Scores.of_values(prompts, np.zeros(4)))
    (found,) = searcher.nominations()
    assert isinstance(found, SoftPrompt)
    assert np.linalg.norm(found.vector - mean) < np.linalg.norm(found.vector - searcher.strategy.mean)


def test_what_the_budget_cut_teaches_nothing_in_a_tuner_either(view: Problem) -> None:
    searcher = make(view, population=20)
    searcher.most_candidates = 25
    for number, size in enumerate([20, 5]):
        config = searcher.suggest(f"t{number}")
        assert len(candidates(config)) == size
        result = {"score": 1.0, "candidate_scores": list(range(size))}
        searcher.on_trial_complete(f"t{number}", result)
    assert searcher.suggest("t2") == "FINISHED"
    assert searcher.learned == 1


def test_nevergrad_takes_points_at_its_bounds(view: Problem) -> None:
    """As float32 they lie a little outside."""
    for bound in (0.1, 0.3):
        made = NevergradSoftSearcher(view, bound=bound, sigma=1.0, seed=1, **SMALL)
        points = [made.space.prompt(np.full(10, bound)), made.space.prompt(np.full(10, 5.0))]
        searcher = NevergradSoftSearcher(view, bound=bound, sigma=1.0, seed=1, points_to_evaluate=points, **SMALL)
        for _ in range(4):
            asked = searcher.ask_generation()
            searcher.tell(asked, sphere(list(asked)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance": "ful"}, "unknown setting covariance 'ful' .did you mean 'full'"),
        ({"restarts": "twice"}, "unknown setting restarts 'twice'"),
        ({"dev": "best"}, "unknown setting dev 'best'"),
        ({"population": 1}, "population=1"),
        ({"dev_every": 0}, "dev_every=0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, view: Problem) -> None:
    with pytest.raises(InputError, match=message):
        make(view, **settings)
