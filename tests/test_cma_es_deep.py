"""cma-es-deep: turns and rounds, pycma by hand, what stands in the other layers; then whole searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
import yaml
from checkpoints import make_checkpoint
from conftest import task_of
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

import rayprompt
from rayprompt.candidate import Candidate, SoftPrompt
from rayprompt.errors import InputError
from rayprompt.lm.source import load_tokenizer
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop, SearchPlan
from rayprompt.study.results import read_prompt_file
from rayprompt.study.warm import starting_points
from searchers.cma_es_deep import DeepCMAESSearcher
from searchers.random import RandomSoftSearcher

pytestmark = [pytest.mark.usefixtures("unlogged"), pytest.mark.filterwarnings("ignore")]
SMALL: dict[str, Any] = {"intrinsic_dim": 4, "length": 5, "population": 6}
LAYERS = 4  # of tiny-masked


def make(view: Problem, budget: int | None = None, seed: int = 0, **settings: Any) -> DeepCMAESSearcher:
    return DeepCMAESSearcher(view, seed=seed, budget=budget, **{**SMALL, **settings})


def loss_of(z: FloatArray) -> float:
    """What one layer should hold depends on the layer below: what was best under other settings is so no more."""
    rows = np.asarray(z, dtype=np.float64).reshape(LAYERS, -1)
    return float(np.sum((rows[0] - 1) ** 2) + sum(np.sum((b + 2 * a - 1) ** 2) for a, b in itertools.pairwise(rows)))


def told(searcher: DeepCMAESSearcher, prompts: Sequence[Candidate]) -> list[float]:
    losses = [loss_of(p.vector) for p in prompts if isinstance(p, SoftPrompt)]
    searcher.tell(prompts, Scores.of_values(prompts, -np.array(losses)))
    return losses


def by_layer(prompt: Candidate) -> FloatArray:
    assert isinstance(prompt, SoftPrompt)
    return prompt.vector.reshape(len(prompt.subspace.layers), -1)


# Turns.


def test_bbtv2s_count_16_rounds_of_24_layers_of_20_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,000 candidates of 24 layers are 16 rounds, 7,680 candidates; only one layer changes in a turn."""
    monkeypatch.setattr("rayprompt.searcher.problem.load_tokenizer", lambda _: load_tokenizer("tiny-masked"))
    problem = Problem(task_of(), make_checkpoint("roberta", tmp_path, num_hidden_layers=24))
    searcher = DeepCMAESSearcher(problem, budget=8000, intrinsic_dim=3, length=2)
    total, best, standing = 0, math.inf, np.zeros((24, 3), dtype=np.float32)
    while prompts := searcher.ask(20):
        layer = (total // 20) % 24
        rows = np.stack([by_layer(p) for p in prompts])
        others = np.arange(24) != layer
        assert (rows[:, others] == standing[others]).all()
        assert len(np.unique(rows[:, layer], axis=0)) == 20
        losses = [float(np.sum((r - 1) ** 2)) for r in rows]
        searcher.tell(prompts, Scores.of_values(prompts, -np.array(losses)))
        total += len(prompts)
        if min(losses) < best:
            best, standing = min(losses), rows[int(np.argmin(losses))]
    assert total == 16 * 24 * 20 == 7680
    assert searcher.stop() == {"rounds": 16}
    assert searcher.metrics()["round"] == 16
    assert best < 24 * 3 / 2


def test_proposals_are_those_of_a_cma_es_for_each_layer_called_by_hand(view: Problem) -> None:
    """What stands in the other layers is the best prompt measured so far."""
    searcher = make(view, seed=5, sigma=0.5)
    runs = []
    for layer in range(LAYERS):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(5, spawn_key=(layer,))))
        options = {"randn": lambda *n, rng=rng: rng.standard_normal(n), "seed": math.nan, "verbose": -9, "popsize": 6}
        runs.append((np.zeros(4), options))
    started: dict[int, Any] = {}
    best, standing = math.inf, np.zeros((LAYERS, 4), dtype=np.float32)
    for turn in range(40):
        layer = turn % LAYERS
        with threadpool_limits(1):
            if layer not in started:
                started[layer] = cma.CMAEvolutionStrategy(standing[layer].astype(float), 0.5, runs[layer][1])
            points = started[layer].ask()
        prompts = searcher.ask(6)
        expected = np.stack([standing] * 6)
        expected[:, layer] = points
        assert np.array_equal(np.stack([by_layer(p) for p in prompts]), expected)
        losses = told(searcher, prompts)
        with threadpool_limits(1):
            started[layer].tell(points, losses)
        if min(losses) < best:
            best, standing = min(losses), by_layer(prompts[int(np.argmin(losses))])
        assert not started[layer].stop()
    assert searcher.best_loss == best
    mean = by_layer(searcher.nominations()[0])
    assert np.allclose(mean, np.stack([started[layer].mean for layer in range(LAYERS)]), atol=1e-6)


@pytest.mark.parametrize("incumbent", ["measured", "best-ever", "mean"])
def test_what_stands_in_the_other_layers(incumbent: str, view: Problem) -> None:
    """BBTv2 puts together each layer's best ever, by losses under other settings; ours is worth what was measured."""
    searcher = make(view, incumbent=incumbent)
    bests: dict[int, tuple[float, FloatArray]] = {}
    least, stale = math.inf, 0
    for turn in range(80):
        prompts = searcher.ask(6)
        losses = told(searcher, prompts)
        layer, i = turn % LAYERS, int(np.argmin(losses))
        least = min(least, losses[i])
        if losses[i] < bests.get(layer, (math.inf, None))[0]:
            bests[layer] = losses[i], by_layer(prompts[i])[layer]
        standing = searcher.z.reshape(LAYERS, -1)
        if incumbent == "measured":
            assert loss_of(standing) == pytest.approx(least, rel=1e-5)
        elif incumbent == "best-ever":
            assert all(np.allclose(standing[n], z) for n, (_, z) in bests.items())
            stale += loss_of(standing) > least * 1.01
        else:
            assert np.allclose(standing[layer], searcher.runs[layer].favorite)
    assert stale > 5 or incumbent != "best-ever"
    assert searcher.best_loss == pytest.approx(least)


@pytest.mark.parametrize(
    ("budget", "settings", "turns"),
    [
        (6 * 4 * 3 + 23, {}, 12),
        (6 * 4 * 3 - 1, {}, 8),
        (5, {}, 4),  # one round at least: the budget cuts it short
        (6 * 4 * 3, {"rounds": 2}, 8),
        (6 * 4, {"rounds": 2}, 8),
        (None, {"rounds": 2}, 8),
        (6 * 10, {"layers": "1,3"}, 10),
        (6 * 10, {"layers": "2"}, 10),
        (6 * 10, {"layers": "0"}, 10),  # not deep, and works
    ],
)
def test_rounds(budget: int | None, settings: dict[str, Any], turns: int, view: Problem) -> None:
    searcher = make(view, budget, **settings)
    count = 0
    while prompts := searcher.ask(6):
        assert not searcher.stop()
        searcher.tell(prompts, Scores.of_values(prompts, np.arange(6.0)))
        count += 1
        assert count <= turns
    assert count == turns
    assert searcher.stop() == {"rounds": turns // len(searcher.layers)}
    assert searcher.space.subspace.layers == searcher.layers


def test_without_a_budget_it_goes_on_and_a_larger_budget_means_more_rounds(view: Problem) -> None:
    endless = make(view)
    assert all(told(endless, endless.ask(6)) for _ in range(50))
    searcher, more = make(view, 6 * 4 * 2), make(view, 6 * 4 * 5)
    first = [p.key for _ in range(8) for p in _turn(searcher)]
    assert searcher.ask(6) == []
    searcher.extend(6 * 4 * 5 + 3)
    assert not searcher.stop()
    first += [p.key for _ in range(12) for p in _turn(searcher)]
    assert searcher.ask(6) == []
    assert first == [p.key for _ in range(20) for p in _turn(more)]
    fixed = make(view, 6 * 4, rounds=1)
    fixed.extend(10**6)
    assert fixed.rounds == 1


def _turn(searcher: DeepCMAESSearcher) -> list[Candidate]:
    prompts = searcher.ask(6)
    told(searcher, prompts)
    return prompts


def test_failures_and_what_is_cut(view: Problem) -> None:
    """A candidate that failed ranks last; a turn of nothing but failures changes nothing that stands."""
    searcher = make(view)
    prompts = searcher.ask(6)
    searcher.tell(prompts, Scores.of_values(prompts, np.full(6, np.nan)))
    assert not searcher.z.any()
    assert searcher.learned == 1
    prompts = searcher.ask(6)
    assert not by_layer(prompts[0])[0].any()
    values = np.array([np.nan, -2.0, np.nan, -1.0, -3.0, np.nan])
    searcher.tell(prompts, Scores.of_values(prompts, values))
    assert np.allclose(searcher.z.reshape(LAYERS, -1), by_layer(prompts[3]))
    prompts = searcher.ask(6)
    searcher.tell(prompts[:2], Scores.of_values(prompts[:2], np.array([5.0, 6.0])))  # the rest is still out
    assert searcher.best_loss == 1.0
    assert searcher.learned == 2


def test_a_layer_whose_distribution_has_collapsed_begins_anew_around_what_stands(view: Problem) -> None:
    searcher = make(view, intrinsic_dim=2)
    for _ in range(60 * LAYERS):
        prompts = searcher.ask(6)
        searcher.tell(prompts, Scores.of_values(prompts, np.array([-round(loss_of(p.vector), 1) for p in prompts])))  # type: ignore[union-attr]
        if searcher.restarts:
            break
    assert searcher.restarts == 1
    layer = (searcher.learned - 1) % LAYERS
    run = searcher.runs[layer]
    assert (run.generations, run.strategy.sigma) == (0, 1.0)
    assert np.array_equal(run.favorite, searcher.z.reshape(LAYERS, -1)[layer])


def test_it_goes_on_from_a_better_prompt_that_it_did_not_ask_for(view: Problem) -> None:
    source = make(view)
    good = source.space.prompt(np.tile([1.0, -1.0, 3.0, -5.0], (4, 1)).T.reshape(-1))
    assert loss_of(good.vector) == 0
    for first in (True, False):
        searcher = make(view, points_to_evaluate=[good]) if first else make(view)
        if first:
            assert searcher.ask_generation() == (good,)
        else:
            told(searcher, searcher.ask(6))
        told(searcher, [good])
        assert np.array_equal(searcher.z, good.vector)
        changed, prompts = (0 if first else 1), searcher.ask(6)
        assert all(
            np.array_equal(np.delete(by_layer(p), changed, 0), np.delete(by_layer(good), changed, 0)) for p in prompts
        )
        steps = np.stack([by_layer(p)[changed] for p in prompts]) - by_layer(good)[changed]
        assert np.abs(steps).max() < 4  # it begins there, too
        worse = searcher.space.prompt(np.zeros(16))
        told(searcher, [worse])
        assert np.array_equal(searcher.z, good.vector)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "0-9"}, "setting layers='0-9': tiny-masked has layers 0 to 3"),
        ({"layers": "1,x"}, "must be 'all', or layers as '0,4-7'; 'x' is none"),
        ({"layers": "3-1"}, "'3-1' is none"),
        ({"layers": ""}, "'' is none"),
        ({"incumbent": "best"}, "unknown setting incumbent 'best'"),
        ({"covariance": "ful"}, "did you mean 'full'"),
        ({"dev": "all"}, "unknown setting dev 'all'; known: mean, none"),
        ({"population": 1}, "population=1: must be 2 or more, or 0"),
        ({"rounds": 0}, "rounds=0: must be 1 or more"),
        ({"intrinsic_dim": 0}, "intrinsic_dim=0: must be greater than 0"),
        ({"length": 200}, "setting length=200: must be 128 or less, the longest input of this LM"),
    ],
)
def test_bad_settings_get_one_clear_line(settings: dict[str, Any], message: str, view: Problem) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(view, **settings)
    assert "\n" not in str(caught.value)


def test_the_random_baseline_draws_deep_prompts_too(view: Problem) -> None:
    deep = RandomSoftSearcher(view, seed=3, intrinsic_dim=4, length=5, layers="all", alpha=0.2)
    prompts = deep.ask(200)
    assert prompts[0].subspace == make(view, seed=3).space.subspace  # type: ignore[union-attr]
    z = np.stack([by_layer(p) for p in prompts])
    assert z.shape == (200, LAYERS, 4)
    assert z.std(axis=(0, 2)) == pytest.approx(1.0, rel=0.1)


# Whole searches.


@pytest.fixture(scope="module")
def found(
    kept_pool: None, trials_here: None, few: Problem, tmp_path_factory: pytest.TempPathFactory
) -> rayprompt.Result:
    out = tmp_path_factory.mktemp("deep") / "study"
    settings = {**SMALL, "alpha": 2.0}
    return rayprompt.search(few, searcher="cma-es-deep", budget=16 * 50, settings=settings, out=out, scorers=1)


def test_result_and_files(found: rayprompt.Result, few: Problem, pool: ScoringPool) -> None:
    best, study = found.best_prompt, found.study_dir
    assert isinstance(best, SoftPrompt)
    assert (found.evaluations, found.end) == (16 * 48, "rounds=2")
    assert found.searcher_metrics["round"] == 2
    manifest = yaml.safe_load((study / "study.yaml").read_text())
    space = manifest["searcher"]["subspace"]
    assert (space["layers"], space["hidden"], len(space["scales"])) == ([0, 1, 2, 3], few.lm.hidden_size, 4)
    assert best.subspace.form == space
    tensors = load_file(study / "prompt.safetensors")
    vectors = pool.vectors(best, few.vectors)
    assert set(tensors) == {"prompt", "token_ids", "layer.1", "layer.2", "layer.3"}
    for layer in range(1, 4):
        assert np.array_equal(tensors[f"layer.{layer}"], vectors[layer])
    exported = read_prompt_file(study / "prompt.json").on(few)
    assert exported == best
    assert rayprompt.evaluate(exported, few, on="test", pool=pool).estimate == found.test
    assert found.decoded is not None
    assert len(found.decoded.prompt.token_ids or ()) == 5
    again = DeepCMAESSearcher(few, budget=50, **{**SMALL, "alpha": 2.0})
    assert again.space.subspace == best.subspace  # measured here as by the pool


@pytest.mark.slow
def test_the_same_run_whatever_is_shared_and_with_two_scorers(
    found: rayprompt.Result, few: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL, "alpha": 2.0}
    for name, more in (("two", {"scorers": 2}), ("native", {"scorers": 1, "tune_native": True})):
        again = rayprompt.search(
            few, searcher="cma-es-deep", budget=16 * 50, settings=settings, out=tmp_path / name, **more
        )
        assert again.best_prompt == found.best_prompt
        assert (again.train, again.dev, again.test) == (found.train, found.dev, found.test)


def test_a_larger_budget_goes_on_where_it_ended_as_if_it_had_been_there_from_the_start(
    found: rayprompt.Result, few: Problem, tmp_path: Path
) -> None:
    settings, study = {**SMALL, "alpha": 2.0}, tmp_path / "first"
    arguments: dict[str, Any] = {"searcher": "cma-es-deep", "settings": settings, "scorers": 1}
    rayprompt.search(few, budget=16 * 50, out=study, **arguments)
    more = rayprompt.resume(study, budget=16 * 100, task=few.task, scorers=1)
    whole = rayprompt.search(few, budget=16 * 100, out=tmp_path / "whole", **arguments)
    assert (more.evaluations, more.end) == (whole.evaluations, whole.end) == (16 * 96, "rounds=4")
    assert more.replay_differs == 0
    assert more.best_prompt == whole.best_prompt
    assert more.test == whole.test


def test_a_larger_budget_is_not_forgotten_where_the_search_was_interrupted(
    few: Problem, tmp_path: Path, kept_pool: None, trials_here: None
) -> None:
    """study.yaml has the larger budget then, and the searcher's plan is still that of the smaller one."""
    settings, study = {**SMALL, "alpha": 2.0}, tmp_path / "study"
    rayprompt.search(few, searcher="cma-es-deep", settings=settings, budget=16 * 50, out=study, scorers=1)
    manifest = yaml.safe_load((study / "study.yaml").read_text())
    (study / "study.yaml").write_text(yaml.safe_dump({**manifest, "budget": 16 * 100}))
    (study / "result.json").unlink()
    again = rayprompt.resume(study, task=few.task, scorers=1)
    assert (again.evaluations, again.end) == (16 * 96, "rounds=4")


def test_a_search_goes_on_with_the_scales_that_it_began_with(
    few: Problem, pool: ScoringPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a comparison too, where each trial asks for them: measured elsewhere they would have other last bits."""
    ScoreStore(tmp_path).prepare()
    plan = SearchPlan("one", 16 * 30, 3, str(tmp_path), str(tmp_path))
    first = SearchLoop(make(few.for_search(), 30, alpha=2.0), pool, plan)
    for _ in range(3):
        first.step()
    first.close()
    for shards in (tmp_path / "snapshots").glob("*.snapshot"):  # it goes through its record again
        shards.unlink()
    view = few.for_search()
    view.layer_scales = {}
    monkeypatch.setattr(type(pool), "hidden_stds", lambda *a, **k: dict.fromkeys((1, 2, 3), 1.0))
    again = SearchLoop(make(view, 30, alpha=2.0), pool, plan)
    assert again.searcher.subspace == first.searcher.subspace
    assert (again.generation, again.replay_differs) == (3, 0)
    assert again.searcher.metrics() == first.searcher.metrics()


def test_a_warm_start_from_another_space_does_not_load_the_lm(
    found: rayprompt.Result, few: Problem, tmp_path: Path, kept_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = rayprompt.search(
        few, searcher="random-soft", settings={"intrinsic_dim": 4, "length": 5}, budget=16 * 20, out=tmp_path / "a",
        scorers=1,
    )  # fmt: skip
    monkeypatch.setattr("rayprompt.searcher.soft._measured_here", lambda *a: pytest.fail("the LM was loaded"))
    view = Problem(few.task, "tiny-masked")
    with pytest.raises(InputError, match="can be used here: cma-es-deep takes soft"):
        starting_points(make(view), shallow.study_dir)
    same = DeepCMAESSearcher(view, **{**SMALL, "alpha": 2.0})
    assert starting_points(same, found.study_dir)
    with pytest.raises(InputError, match="holds a deep prompt, of several layers"):
        DeepCMAESSearcher(view, intrinsic_dim=4, p0=str(found.study_dir / "prompt.safetensors"))


def test_it_begins_with_what_an_earlier_study_found(found: rayprompt.Result, few: Problem, tmp_path: Path) -> None:
    """Its scales are taken over with its prompts: the LM is not asked again."""
    settings = {**SMALL, "alpha": 2.0, "rounds": 1, "projection_seed": 0}
    again = rayprompt.search(
        few, searcher="cma-es-deep", budget=16 * 40, seed=7, settings=settings, out=tmp_path / "warm",
        warm_start=found.study_dir, scorers=1,
    )  # fmt: skip
    best = max(f["objective"] for f in found.finalists)
    assert max(f["objective"] for f in again.finalists) >= best
    assert again.evaluations >= 16 * 24


def test_a_deep_prompt_is_no_p0(found: rayprompt.Result, few: Problem) -> None:
    with pytest.raises(InputError, match="its prompt is a deep one, of several layers; p0 is of layer 0 alone"):
        DeepCMAESSearcher(few, intrinsic_dim=4, p0=str(found.study_dir))


@pytest.mark.slow
def test_a_comparison_with_the_random_baseline_of_its_own_space(kept_pool: None, few: Problem, tmp_path: Path) -> None:
    result = rayprompt.compare(
        few.task, searchers=["cma-es-deep", "random-soft"], seeds=[0, 1], budget=16 * 48, objective="cross_entropy",
        settings={"cma-es-deep": SMALL, "random-soft": {"intrinsic_dim": 4, "length": 5, "layers": "all"}},
        baselines=[], out=tmp_path / "compared", scorers=1,
    )  # fmt: skip
    assert len(result.runs) == 4
    assert all(run.evaluations == 16 * 48 for run in result.runs)
