"""Checks of what a searcher is made of: saved and pickled state, random generators, memory."""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle
from ray.tune.search import Searcher

from rayprompt.testing.contract import FEW
from rayprompt.testing.faults import calling, expect, expect_same, when
from rayprompt.testing.kit import Kit, check
from rayprompt.testing.play import METRIC, TuneRun

GROWTH_TRIALS = 40


def same_future(run: TuneRun, copy: TuneRun, what: str) -> None:
    """Original and copy, given the same results, suggest the same; the original goes first, which must not matter."""
    for one in (run, copy):
        with when(f"{what}, the copy" if one is copy else f"{what}, the original"):
            in_flight = list(one.live)
            one.suggest()
            for trial_id in in_flight:
                one.complete(trial_id)
            one.suggest()
            one.play(FEW)
    expect_same(copy.forms, run.forms, f"{what}: the copy differs from the original")


@check("restore-blank")
def restore_blank(kit: Kit) -> None:
    """Saved before its first suggestion and restored into a blank instance, it goes on identically."""
    searcher = kit.new(**kit.maybe_seed(0))
    copy = kit.restored(searcher)
    if kit.takes_seed:
        same_future(kit.run(searcher), kit.run(copy), "saved blank")
    else:
        kit.run(copy).play(3)


@check("restore-used")
def restore_used(kit: Kit) -> None:
    """Saved between trials and restored into a blank instance, it goes on identically; saving changes nothing."""
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    run.play(FEW)
    for what in ("saved after some trials", "saved, and saved again later"):
        copy = run.fork(kit.restored(run.searcher))
        same_future(run, copy, what)
        run = copy
    if kit.takes_seed:
        run, twin = (kit.run(kit.new(seed=0)) for _ in range(2))
        run.play(3)
        kit.restored(run.searcher)
        run.play(FEW - 3)
        expect_same(run.forms, twin.play(FEW), "saved on the way: it differs from one that never was")


@check("restore-in-flight")
def restore_in_flight(kit: Kit) -> None:
    """Saved with trials live, it is restored with them: they are completed on the copy, which goes on identically."""
    run = in_flight(kit, kit.new(**kit.maybe_seed(0)))
    same_future(run, run.fork(kit.restored(run.searcher)), "saved with trials live")


@check("restore-limited")
def restore_limited(kit: Kit) -> None:
    """The same in a ConcurrencyLimiter, whose state Tune saves too."""
    run = in_flight(kit, kit.limited(3))
    what = "saved with trials live, in a ConcurrencyLimiter"
    same_future(run, run.fork(kit.restored(run.searcher, limit=3)), what)


def in_flight(kit: Kit, searcher: Searcher) -> TuneRun:
    """A run with up to three trials live, the best so far, of which the second is complete."""
    run = kit.run(searcher)
    run.play(FEW // 2)
    while len(run.live) < 3 and run.suggest() is not None:
        pass
    if len(run.live) > 1:
        run.complete(list(run.live)[1])
    return run


@check("cloudpickle")
def pickles(kit: Kit) -> None:
    """cloudpickle copies it, blank (Tune writes it to tuner.pkl before anything else) and used, with trials live."""
    blank = kit.make(metric=METRIC, mode="max", **kit.maybe_seed(0))
    copy = _pickled(blank)
    if kit.space is not None:
        kit.give(blank, METRIC, "max")
        kit.give(copy, METRIC, "max")
    if kit.takes_seed:
        same_future(kit.run(blank), kit.run(copy), "pickled blank")
    else:
        kit.run(copy).play(3)
    run = in_flight(kit, kit.new(**kit.maybe_seed(0)))
    same_future(run, run.fork(_pickled(run.searcher)), "pickled with trials live")


def _pickled(searcher: Searcher) -> Searcher:
    with calling("cloudpickle.dumps()"):
        data = cloudpickle.dumps(searcher)
    with calling("cloudpickle.loads()"):
        copy: Searcher = cloudpickle.loads(data)
    return copy


@check("seed")
def seeds(kit: Kit) -> None:
    """The same seed gives the same suggestions, another seed others."""
    first, second, other = (kit.run(kit.new(seed=seed)).play(FEW) for seed in (0, 0, 1))
    expect_same(second, first, "seed=0 twice gives different suggestions")
    expect(first != other, f"seed=0 and seed=1 give the same {FEW} suggestions, right: different ones")


def _random_states() -> dict[str, Any]:
    states = {"random": random.getstate(), "numpy.random": np.random.get_state(legacy=True)}
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state()
    return states


@check("global-random-state")
def global_random_state(kit: Kit) -> None:
    """The global generators of random, NumPy and torch are neither drawn from nor seeded."""
    before = _random_states()
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    run.play(FEW // 2)
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        kit.save(run.searcher, folder)
    changed = [name for name, state in _random_states().items() if repr(state) != repr(before[name])]
    random.setstate(before["random"])
    np.random.set_state(before["numpy.random"])
    if "torch" in before:
        sys.modules["torch"].set_rng_state(before["torch"])
    expect(not changed, f"building, suggesting, completing and saving changed the global state of {', '.join(changed)}")


@check("state-growth")
def state_growth(kit: Kit) -> None:
    """The saved state grows by no more than bytes_per_trial (4 kB) for a completed trial."""
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    run.play(GROWTH_TRIALS)
    before = _saved_size(run.searcher)
    run.play(2 * GROWTH_TRIALS)
    growth = (_saved_size(run.searcher) - before) / max(len(run.forms) - GROWTH_TRIALS, 1)
    expect(
        growth <= kit.bytes_per_trial,
        f"the saved state grows by {growth:,.0f} bytes a trial, right: {kit.bytes_per_trial:,} at most",
    )


def _saved_size(searcher: Searcher) -> int:
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        path = Path(folder, "state")
        with calling("save()"):
            searcher.save(str(path))
        return path.stat().st_size
