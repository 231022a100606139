"""Checks of what Tune does with a searcher while it runs: results of all sorts, any ids, any order, no end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from rayprompt.testing.contract import FEW, HUGE
from rayprompt.testing.faults import Failed, Skip, calling, expect, expect_same, short, when
from rayprompt.testing.kit import Kit, check
from rayprompt.testing.play import METRIC, TuneRun

MANY = 200  # trials in a row


def _survives(kit: Kit, what: str, result: Any, *, error: bool = False) -> None:
    """Trials that end so, some in a row, do not stop a search."""
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    run.play(2)
    with when(what):
        for _ in range(4):
            trial_id = run.must_suggest("after a few of them")
            given = result if result is None or result == {} else run.result(trial_id, **result)
            if given:
                run.report(trial_id, {**given, "done": False})
            run.tell(trial_id, given, error)
        run.must_suggest("after a few of them")
        run.play(3)


@check("nan-and-infinity")
def nan_and_infinity(kit: Kit) -> None:
    """A metric of NaN, inf or -inf is survived."""
    for value in (math.nan, math.inf, -math.inf):
        _survives(kit, f"metric is {value}", {METRIC: value, "candidate_scores": ...})
        if kit.prompt:
            _survives(kit, f"candidate_scores are {value}", {"candidate_scores": [value]})


@check("missing-metric")
def missing_metric(kit: Kit) -> None:
    """A result without the metric, with None for it, or with nothing at all is survived."""
    _survives(kit, "result without the metric", {METRIC: ..., "candidate_scores": ...})
    _survives(kit, "metric is None", {METRIC: None, "candidate_scores": ...})
    _survives(kit, "result is {}", {})


@check("failed-trials")
def failed_trials(kit: Kit) -> None:
    """A trial that fails, or ends before it reported, is survived."""
    _survives(kit, "trials fail", None, error=True)
    _survives(kit, "trials fail after a result", {METRIC: 0.5}, error=True)
    _survives(kit, "trials end without a result", None)


@check("odd-results")
def odd_results(kit: Kit) -> None:
    """Extra keys in a result, texts, lists, None and nested ones, are survived."""
    extra = {"note": "text", "list": [1, "two"], "nothing": None, "nested": {"a": {"b": math.nan}, "empty": {}}}
    _survives(kit, "extra keys in the result", extra)


@check("unknown-ids")
def unknown_ids(kit: Kit) -> None:
    """A result, a completion or a failure of an id that it never saw is survived and has no effect."""

    def disturb(run: TuneRun) -> None:
        stranger = {METRIC: HUGE, "training_iteration": 1, "done": True}
        run.report("unknown1", stranger)
        run.tell("unknown1", stranger)
        run.tell("unknown2", None, error=True)
        run.tell("unknown3", None)

    _no_effect(kit, "an unknown trial id", disturb)


@check("repeated-completion")
def repeated_completion(kit: Kit) -> None:
    """The second completion of a trial is survived and has no effect."""

    def disturb(run: TuneRun) -> None:
        last = f"{len(run.forms) - 1:08x}"
        run.tell(last, {METRIC: HUGE, "training_iteration": 1, "done": True})
        run.tell(last, {METRIC: HUGE, "training_iteration": 1, "done": True})
        run.tell(last, None, error=True)

    _no_effect(kit, "a trial that was complete is completed again", disturb)


@check("late-results")
def late_results(kit: Kit) -> None:
    """A result that comes after the completion of its trial is survived and has no effect."""

    def disturb(run: TuneRun) -> None:
        run.report(f"{len(run.forms) - 1:08x}", {METRIC: HUGE, "training_iteration": 2, "done": False})

    _no_effect(kit, "a result comes after the completion", disturb)
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    with when("a result and a completion come after the failure"):
        trial_id = run.must_suggest("blank")
        late = run.result(trial_id)
        run.tell(trial_id, None, error=True)
        run.report(trial_id, late)
        run.tell(trial_id, late)
        run.play(3)


def _no_effect(kit: Kit, what: str, disturb: Any) -> None:
    """``disturb`` is survived; and, compared with a twin's, it does not change what is suggested."""
    with when(what):
        run = kit.run(kit.new(**kit.maybe_seed(0)))
        run.play(2)
        disturb(run)
        run.play(2)
        twin = kit.run(kit.new(seed=0))
        twin.play(FEW)
        run = kit.run(kit.new(seed=0))
        for _ in range(2):
            run.play(FEW // 4)
            disturb(run)
        run.play(FEW - len(run.forms))
        expect_same(run.forms, twin.forms, "it changes the suggestions")


@check("any-order")
def any_order(kit: Kit) -> None:
    """Trials may complete in any order."""
    picks: dict[str, Callable[[list[str]], str]] = {"newest first": max, "shuffled": random.Random(0).choice}
    for name, order in picks.items():
        with when(f"four trials live, {name}"):
            run = kit.run(kit.new(**kit.maybe_seed(0)))
            expect(len(run.play(12, live=4, order=order)) == 12 or run.finished, "it stopped before 12 trials")


@check("never-idle")
def never_idle(kit: Kit) -> None:
    """Never None with no trial live, in a long run of one trial at a time, some of which fail."""
    run = kit.run(kit.new(**kit.maybe_seed(0)))
    for number in range(MANY):
        with when(f"{number} trials complete, none live"):
            trial_id = run.suggest()
            if run.finished or trial_id is None:
                return
            if number % 5 == 3:
                run.tell(trial_id, None, error=True)
            else:
                run.complete(trial_id)


@check("finished")
def finished(kit: Kit) -> None:
    """FINISHED, once given, is given for ever, whatever completes afterwards."""
    budget: dict[str, Any] = {"budget": 3 * kit.generation} if kit.prompt else {}
    run = kit.run(kit.new(**kit.maybe_seed(0), **budget))
    live: list[str] = []
    while not run.finished and len(run.forms) < MANY:
        trial_id = run.suggest()
        if trial_id is not None:
            live.append(trial_id)
        if live and (trial_id is None or len(live) > 2) and not run.finished:
            run.complete(live.pop(0))
    if not run.finished:
        raise Skip(f"it does not finish within {MANY} trials")
    for number in range(len(live) + 4):
        with calling("suggest()"):
            given = run.searcher.suggest(f"after{number}")
        expect(
            str(given) == Searcher.FINISHED, f"after FINISHED, suggest() gave {short(given)}, right: FINISHED for ever"
        )
        if live:
            run.complete(live.pop(0))


@check("concurrency-limiter")
def concurrency_limiter(kit: Kit) -> None:
    """In a ConcurrencyLimiter, batch or not, there are never more trials live than allowed, and it is never stuck."""
    for most in (1, 3):
        for batch in (False, True):
            with when(f"ConcurrencyLimiter(max_concurrent={most}, batch={batch})"):
                _limited(kit.run(kit.limited(most, batch=batch)), most)


def _limited(run: TuneRun, most: int) -> None:
    order = random.Random(0)
    while len(run.forms) < 24 and not run.finished:
        while run.suggest() is not None:
            expect(len(run.live) <= most, f"{len(run.live)} trials are live, right: {most} at most")
        if not run.live and not run.finished:
            raise Failed("no trial is live and none is suggested")
        if run.live:
            trial_id = order.choice(list(run.live))
            if order.random() < 0.2:
                run.tell(trial_id, None, error=True)
            else:
                run.complete(trial_id)


@check("restart-errored")
def restart_errored(kit: Kit) -> None:
    """A failed trial that Tune runs again under a new id (Tuner.restore, restart_errored=True) is survived."""
    for limit in (None, 2):
        with when("a failed trial completes under a new id" + (", in a ConcurrencyLimiter" if limit else "")):
            run = kit.run(kit.limited(limit) if limit else kit.new(**kit.maybe_seed(0)))
            run.play(2)
            trial_id = run.must_suggest("after two trials")
            result = run.result(trial_id, trial_id="restarted")
            run.tell(trial_id, None, error=True)
            run.report("restarted", result)
            run.tell("restarted", result)
            run.must_suggest("then")
            run.play(3)
