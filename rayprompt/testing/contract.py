"""Checks of what Tune gives a searcher at the start: metric, mode and space, and points known before."""

from __future__ import annotations

import math
import warnings
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.result import DEFAULT_METRIC

from rayprompt.candidate import candidates
from rayprompt.testing.faults import Skip, calling, expect, expect_same, short, when
from rayprompt.testing.kit import Kit, check
from rayprompt.testing.play import METRIC, Config

FEW = 14  # trials after which a learner has learned something
HUGE = 1e6  # a value far above all others: whoever takes it in by mistake goes another way


@check("factory")
def factory(kit: Kit) -> None:
    """The factory gives a new searcher each time, with the metric and the mode of the constructor."""
    first, second = kit.make(metric="loss", mode="min"), kit.make(metric="loss", mode="min")
    expect(first is not second, "factory() gave the same searcher twice, right: a new one each time")
    given = (first.metric, first.mode)
    expect(given == ("loss", "min"), f"built with metric='loss', mode='min' it has metric, mode = {given}")


@check("empty-space")
def empty_space(kit: Kit) -> None:
    """The constructor's defaults suffice: with an empty param_space, Tune never calls set_search_properties."""
    if kit.space is not None:
        raise Skip("it takes its space from the Tuner")
    searcher = kit.make()
    with when("built without metric and mode, set_search_properties never called"):
        kit.run(searcher, metric=searcher.metric or DEFAULT_METRIC).play(3)


@check("constants")
def constants(kit: Kit) -> None:
    """Takes a param_space of constants, and adopts metric and mode from the Tuner; None leaves them."""
    searcher = kit.make()
    kit.give(searcher, "loss", "min", constant=1)
    given = (searcher.metric, searcher.mode)
    what = "set_search_properties('loss', 'min', ...)"
    expect(given == ("loss", "min"), f"{what} left metric, mode = {given}")
    with when(f"after {what}"):
        kit.run(searcher, metric="loss", sign=-1.0).play(3)
    if kit.takes_seed and kit.space is None:
        expected = kit.run(kit.new(metric="loss", mode="min", seed=0), metric="loss", sign=-1.0).play(FEW)
        searcher = kit.make(seed=0)
        kit.give(searcher, "loss", "min", constant=1)
        got = kit.run(searcher, metric="loss", sign=-1.0).play(FEW)
        expect_same(got, expected, f"{what} differs from metric and mode of the constructor")
    searcher = kit.make(metric="loss", mode="min")
    kit.give(searcher, None, None, constant=1)
    given = (searcher.metric, searcher.mode)
    expect(
        given == ("loss", "min"), f"set_search_properties(None, None, ...) made the constructor's metric, mode {given}"
    )


@check("modes")
def modes(kit: Kit) -> None:
    """mode=min with values -v does what mode=max does with v, and only the metric counts."""
    expected = kit.run(kit.new(seed=0)).play(FEW)
    decoy = {METRIC: -HUGE}
    for mode, sign in (("max", 1.0), ("min", -1.0)):
        run = kit.run(kit.new(metric="loss", mode=mode, seed=0), metric="loss", sign=sign, extra=decoy)
        expect_same(run.play(FEW), expected, f"metric='loss', mode={mode!r} differs from metric={METRIC!r}, mode='max'")


@check("bare-metric")
def bare_metric(kit: Kit) -> None:
    """Without a metric, only a mode, it learns from the number that a function trainable returns (key '_metric')."""
    expected = kit.run(kit.new(seed=0)).play(FEW)
    run = kit.run(kit.new(metric=None, seed=0), metric=DEFAULT_METRIC)
    if kit.prompt:
        run.extra = {"candidate_scores": ...}
        expected = kit.run(kit.new(seed=0), extra=run.extra).play(FEW)
    expect_same(run.play(FEW), expected, f"metric=None, results under {DEFAULT_METRIC!r}: differs from a named metric")


def _evaluated(kit: Kit) -> list[tuple[Config, float]]:
    """Configs with their values, from another searcher."""
    run = kit.run(kit.new(**kit.maybe_seed(5)))
    found = []
    for _ in range(3):
        trial = run.live[run.must_suggest("blank")]
        found.append((trial.config, sum(trial.values) / len(trial.values)))
        run.complete(next(iter(run.live)))
    return found


def close(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return bool(one == other)


@check("points-to-evaluate")
def points_to_evaluate(kit: Kit) -> None:
    """points_to_evaluate are suggested first, in their order; then it goes on by itself."""
    configs = [config for config, _ in _evaluated(kit)]
    points = [candidate for config in configs for candidate in candidates(config)][:3] if kit.prompt else configs
    batch_size: dict[str, Any] = {"batch_size": 1} if kit.prompt else {}
    run = kit.run(kit.new(points_to_evaluate=points, **kit.maybe_seed(0), **batch_size))
    for number, point in enumerate(points):
        config = run.live[run.must_suggest(f"point {number}")].config
        got = candidates(config)[0] if kit.prompt else config
        expect(
            got == point if kit.prompt else close(got, point),
            f"suggestion {number} is {short(got)}, right: point {number}, {short(point)}",
        )
        run.complete(next(iter(run.live)))
    with when("after the points"):
        run.must_suggest("then")
        run.play(3)


@check("add-evaluated-point")
def add_evaluated_point(kit: Kit) -> None:
    """add_evaluated_point is implemented, for good, failed, pruned and NaN points, before and between trials."""
    points = _evaluated(kit)
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    for _ in range(2):
        for config, value in points:
            with calling(f"add_evaluated_point({short(config, 60)}, {value})"):
                run.searcher.add_evaluated_point(config, value)
        for what in ({"error": True}, {"pruned": True}, {"intermediate_values": [0.1, 0.2]}):
            with calling(f"add_evaluated_point(..., {what})"):
                run.searcher.add_evaluated_point(points[0][0], points[0][1], **what)
        with calling("add_evaluated_point(..., nan)"):
            run.searcher.add_evaluated_point(points[0][0], math.nan)
        with when("after add_evaluated_point"):
            run.must_suggest("then")
            run.play(3)


@check("add-evaluated-trials")
def add_evaluated_trials(kit: Kit) -> None:
    """add_evaluated_trials takes Tune's trials: terminated, failed, and without a result."""
    trials = []
    for config, value in _evaluated(kit):
        trial = TuneTrial("trainable", config=config, stub=True)
        trial.status = TuneTrial.TERMINATED
        trial.run_metadata.last_result = {METRIC: value, "training_iteration": 1, "done": True}
        trials.append(trial)
    trials[1].status = TuneTrial.ERROR
    trials[2].run_metadata.last_result = {"training_iteration": 1, "done": True}
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    with warnings.catch_warnings(), calling("add_evaluated_trials()"):
        warnings.simplefilter("ignore")
        run.searcher.add_evaluated_trials(trials, METRIC)
        run.searcher.add_evaluated_trials(trials[0], METRIC)
    with when("after add_evaluated_trials"):
        run.must_suggest("then")
        run.play(3)
