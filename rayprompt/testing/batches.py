"""Checks of how a PromptSearcher cuts generations into Tune's trials, and puts them together again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray import cloudpickle
from ray.tune.search import Repeater

from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt, candidates
from rayprompt.errors import InputError
from rayprompt.scores import Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.testing.asktell import GENERATIONS, ask, make, tell
from rayprompt.testing.faults import Failed, calling, expect, expect_same, form, short
from rayprompt.testing.kit import Kit, check
from rayprompt.testing.play import METRIC, Config, TuneRun
from rayprompt.testing.state import in_flight, same_future

BYTES_PER_CANDIDATE = 1024
BYTES_PER_SUGGESTION = 16_384


class Spy:
    """Listens to a searcher's ask and tell: keys of the candidates, call by call, and the values told."""

    def __init__(self, searcher: PromptSearcher) -> None:
        self.asked: list[list[str]] = []
        self.told: list[list[str]] = []
        self.values: list[list[float]] = []
        self.told_before_ask: list[int] = []  # how many tells there were before each ask
        ask, tell = searcher.ask, searcher.tell

        def spied_ask(n: int) -> list[Candidate]:
            found = ask(n)
            self.told_before_ask.append(len(self.told))
            self.asked.append([candidate.key for candidate in found])
            return found

        def spied_tell(batch: Sequence[Candidate], scores: Scores) -> None:
            self.told.append([candidate.key for candidate in batch])
            self.values.append([float(value) for value in searcher.objective(scores)])
            tell(batch, scores)

        vars(searcher).update(ask=spied_ask, tell=spied_tell)


def suggested(run: TuneRun) -> list[str]:
    """The forms of all candidates of a run's trials."""
    return [form(candidate.to_json()) for config in run.forms for candidate in candidates(json.loads(config))]


def odd_size(kit: Kit) -> int:
    """A batch size that does not divide the generation (nor is it 1, where the generation is 3 or more)."""
    return kit.generation // 2 + 1


def limited(kit: Kit, limit: int | None, **keywords: Any) -> PromptSearcher:
    """A searcher that limits its live trials by itself; None: it was not told to."""
    searcher = make(kit, **keywords)
    if limit is not None:
        with calling(f"set_max_concurrency({limit})"):
            taken = searcher.set_max_concurrency(limit)
        expect(taken is True, f"set_max_concurrency({limit}) returned {taken!r}, right: True (it does the limiting)")
    return searcher


@check("config", prompt=True)
def config_of_trial(kit: Kit) -> None:
    """A trial's config is JSON, numbers its batch from 0 on, and gives its candidates back; it stays small."""
    for batch_size in (None, 1):
        searcher = make(kit, batch_size=batch_size)
        run = kit.run(searcher)
        for number in range(GENERATIONS):
            config = run.live[run.must_suggest("blank")].config
            _check_config(config, number, searcher)
            run.complete(next(iter(run.live)))


def _check_config(config: Config, number: int, searcher: PromptSearcher) -> None:
    with calling("json.dumps() of a config"):
        again = json.loads(json.dumps(config))
    expect(config.get("batch") == number, f"config['batch'] is {config.get('batch')!r}, right: {number}")
    given = config.get("objective")
    expect(given == searcher.objective_name, f"config['objective'] is {given!r}, right: {searcher.objective_name!r}")
    with calling("rayprompt.candidates(config)"):
        found = candidates(again)
    same = [c.key for c in found] == [c.key for c in candidates(config)]
    expect(same and len(found) > 0, "rayprompt.candidates(config) gives other candidates after JSON")
    # A soft prompt is dim numbers of four bytes, as base64.
    numbers = sum(6 * len(c.z) for c in found if isinstance(c, SoftPrompt))
    size, most = len(cloudpickle.dumps(config)), BYTES_PER_SUGGESTION + BYTES_PER_CANDIDATE * len(found) + numbers
    expect(size <= most, f"a config of {len(found)} candidates is {size:,} bytes pickled, right: {most:,} at most")


@check("same-as-ask-tell", prompt=True)
def same_as_ask_tell(kit: Kit) -> None:
    """In batches of any size, trials are what direct ask and tell give with the same seed."""
    generation = kit.generation
    for batch_size in dict.fromkeys((generation, 1, odd_size(kit), generation + 3)):
        whole = max(generation, batch_size)
        pieces = -(-whole // batch_size)
        run = kit.run(make(kit, batch_size=batch_size))
        run.play(GENERATIONS * pieces, live=pieces, order=max)
        direct, expected = make(kit), []
        for start in range(0, GENERATIONS * whole, whole):
            batch = ask(direct, whole)
            expected += [form(candidate.to_json()) for candidate in batch]
            tell(direct, batch, (run.values[start:] + [math.nan] * len(batch))[: len(batch)])
        what = f"batch_size={batch_size}, generation of {generation}: differs from direct ask and tell"
        expect_same(suggested(run), expected, what)


@check("one-tell", prompt=True)
def one_tell(kit: Kit) -> None:
    """A generation that went out in several batches is told once, whole, in the order it was asked for."""
    searcher = make(kit, batch_size=odd_size(kit))
    spy = Spy(searcher)
    run = kit.run(searcher)
    pieces = -(-searcher.generation // odd_size(kit))
    run.play(GENERATIONS * pieces, live=pieces, order=random.Random(0).choice)
    expect(
        len(spy.told) == GENERATIONS,
        f"{GENERATIONS} generations are complete, and tell was called {len(spy.told)} times",
    )
    expect(spy.told == spy.asked[:GENERATIONS], "tell got the candidates in another order than ask gave them")
    got = [value for values in spy.values for value in values]
    expect(got == run.values[: len(got)], "tell got other values than the trials reported")


@check("order-of-completion", prompt=True)
def order_of_completion(kit: Kit) -> None:
    """The order in which trials complete changes nothing, with one generation out or with three."""
    for limit, batch_size in ((None, odd_size(kit)), (3, None), (3, odd_size(kit))):
        runs = []
        for order in (None, max, random.Random(0).choice, random.Random(1).choice):
            run = kit.run(limited(kit, limit, batch_size=batch_size))
            run.play(12, live=6, order=order)
            runs.append(run)
        what = f"batch_size={batch_size}, set_max_concurrency({limit}): the order of completion changes the suggestions"
        for run in runs[1:]:
            expect_same(run.forms, runs[0].forms, what)


@check("restore-mid-generation", prompt=True)
def restore_mid_generation(kit: Kit) -> None:
    """Saved with a generation in pieces, some told, some live, some not out yet, it is restored and goes on."""
    for limit in (None, 3):
        how = {"batch_size": odd_size(kit)}
        searcher = limited(kit, limit, **how)
        run = in_flight(kit, searcher)
        copy = run.fork(kit.restored(searcher, **how))
        same_future(run, copy, f"saved in the middle of a generation, set_max_concurrency({limit})")


@check("window", prompt=True)
def window(kit: Kit) -> None:
    """set_max_concurrency(3) lets three generations out, of a barrier one; before an ask all earlier ones are told."""
    for limit in (None, 3):
        searcher = limited(kit, limit)
        open_ = 3 if limit and not searcher.barrier else 1
        spy, run = Spy(searcher), kit.run(searcher)
        while len(run.live) < 6 and run.suggest() is not None:
            pass
        right_ = open_ if searcher.learns else limit or 6
        what = f"set_max_concurrency({limit}), learns={searcher.learns}, barrier={searcher.barrier}"
        expect(len(run.live) == right_, f"{what}: {len(run.live)} trials can be live, right: {right_}")
        run.play(6, live=6, order=random.Random(0).choice)
        if not searcher.learns:
            continue
        for generation, told in enumerate(spy.told_before_ask):
            due = max(0, generation + 1 - open_)
            expect(told == due, f"{what}: {told} generations were told before ask number {generation}, right: {due}")


@check("budget", prompt=True)
def budget(kit: Kit) -> None:
    """With a budget of n candidates it suggests n and then FINISHED; the rest of the last generation is told as NaN."""
    for batch_size in (None, odd_size(kit)):
        most = 2 * kit.generation + 1
        searcher = make(kit, budget=most, batch_size=batch_size)
        spy, run = Spy(searcher), kit.run(searcher)
        run.play(4 * most, live=2)
        what = f"budget={most}, batch_size={batch_size}"
        expect(run.finished, f"{what}: no FINISHED")
        expect(len(run.values) == most, f"{what}: {len(run.values)} candidates were suggested, right: {most}")
        asked, told = (sum(map(len, keys)) for keys in (spy.asked, spy.told))
        expect(asked == told, f"{what}: {asked} candidates were asked for and {told} told")
        evaluated = sum(math.isfinite(value) for values in spy.values for value in values)
        expect(evaluated == most, f"{what}: {evaluated} were told with a value, right: {most}, and NaN for the others")


@check("candidate-scores", prompt=True)
def candidate_scores(kit: Kit) -> None:
    """A result's candidate_scores are told one by one, else its metric for all; negated where mode is min."""
    searcher = make(kit, mode="min")
    spy, run = Spy(searcher), kit.run(searcher)
    trial_id = run.must_suggest("blank")
    given = [i / 8 for i in range(len(run.live[trial_id].values))]
    run.tell(trial_id, run.result(trial_id, candidate_scores=given))
    expected = [[-value for value in given]]
    expect(spy.values == expected, f"mode='min', candidate_scores {short(given, 40)}: told {short(spy.values)}")
    trial_id = run.must_suggest("after a trial")
    run.tell(trial_id, run.result(trial_id, candidate_scores=..., **{METRIC: 0.25}))
    told = spy.values[-1]
    expect(set(told) == {-0.25}, f"mode='min', {METRIC}=0.25 and no candidate_scores: told {short(told)}, right: -0.25")


@check("restarted-batch", prompt=True)
def restarted_batch(kit: Kit) -> None:
    """A batch that comes back under a new id is told: instead of the old trial, or again where that one failed."""
    searcher = make(kit)
    spy, run = Spy(searcher), kit.run(searcher)
    old = run.must_suggest("blank")
    result = run.result(old)
    run.tell("new", result)
    run.tell(old, result)
    expect(len(spy.told) == 1, f"an open batch came under a new id, then its own: told {len(spy.told)} times, right: 1")
    failed = run.must_suggest("after a trial")
    result = run.result(failed)
    run.tell(failed, None, error=True)
    expect(len(spy.told) == 2 and not np.isfinite(spy.values[-1]).any(), "a batch failed: not told as NaN")
    run.must_suggest("after a failed trial")
    for number in (3, 3):
        run.tell("newer", result)
        expect(
            len(spy.told) == number, f"a failed batch came back (twice): told {len(spy.told)} times, right: {number}"
        )
    expect(spy.values[-1] == result["candidate_scores"], "a failed batch came back: told other values than it reported")
    run.play(2)


@check("points-as-prompts", prompt=True)
def points_as_prompts(kit: Kit) -> None:
    """points_to_evaluate may be texts, candidates or their JSON forms: together they are the first generation."""
    source = ask(make(kit, seed=5), 8)[-3:]
    points: list[Any] = [candidate if i % 2 else candidate.to_json() for i, candidate in enumerate(source)]
    if isinstance(source[0], TextPrompt):
        points[0] = source[0].text
    run = kit.run(make(kit, points_to_evaluate=points, batch_size=max(kit.generation, 3)))
    run.must_suggest("blank")
    wanted = [candidate.to_json() for candidate in source]
    got = [c.to_json() for c in candidates(run.live[next(iter(run.live))].config)]
    same = [f.get("text", f.get("z")) for f in got] == [f.get("text", f.get("z")) for f in wanted]
    expect(same, f"the first trial holds {short(got)}, right: the points, {short(wanted)}")
    run.play(3)


@check("repeater", prompt=True)
def repeater(kit: Kit) -> None:
    """In a Repeater a batch of one candidate is told the mean of its trials; larger batches are refused."""
    searcher = make(kit, batch_size=1, mode="min")
    spy, run = Spy(searcher), kit.run(Repeater(searcher, repeat=2), sign=-1.0)
    run.play(4 * searcher.generation, live=4)
    told = [value for values in spy.values for value in values]
    means = [(first + second) / 2 for first, second in zip(run.values[::2], run.values[1::2], strict=True)]
    expect(len(told) == len(means), f"{len(means)} candidates were repeated, and {len(told)} told")
    expect(np.allclose(told, means, rtol=0, atol=1e-12), "tell got other values than the means of the trials")
    try:
        Repeater(make(kit, batch_size=2), repeat=2).suggest("00000000")
    except InputError as error:
        expect("batch_size=1" in str(error), f"the error does not name batch_size=1: {error}")
    else:
        raise Failed("batch_size=2 in a Repeater, which tells one value for both: accepted, right: an InputError")


@check("pause", prompt=True)
def pause(kit: Kit) -> None:
    """Paused and resumed (HyperBandForBOHB), a trial is still out; stopped, it counts with what it reported last."""
    twin, run = kit.run(make(kit)), kit.run(make(kit))
    for _ in range(GENERATIONS):
        trial_id = run.must_suggest("after paused trials")
        for what in ("on_pause", "on_unpause"):
            for name in (trial_id, "unknown"):
                with calling(f"{what}()"):
                    getattr(run.searcher, what)(name)
        run.complete(trial_id)
    twin.play(GENERATIONS)
    expect_same(run.forms, twin.forms, "on_pause and on_unpause change the suggestions")
    searcher = make(kit)
    spy, run = Spy(searcher), kit.run(searcher)
    trial_id = run.must_suggest("blank")
    result = run.result(trial_id)
    run.report(trial_id, {**result, "done": False})
    searcher.on_pause(trial_id)
    run.tell(trial_id, None)
    expect(spy.values[-1:] == [result["candidate_scores"]], f"stopped while paused: told {short(spy.values[-1:])}")
