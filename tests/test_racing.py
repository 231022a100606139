"""Racing: the error rate is held whatever the values, evaluations are spared, and a race is a search like another."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PoolOf, finish, plan_of
from jsonschema import Draft202012Validator

import rayprompt
from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.racing import BET, MOST, Race, error_of, looks_of, reference_row
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.race import Racer
from rayprompt.store.store import ScoreStore
from rayprompt.study.loop import SearchLoop
from searchers.nevergrad import NevergradSearcher
from searchers.random import RandomSearcher
from searchers.reward_model import RewardModelSearcher

pytestmark = pytest.mark.usefixtures("kept_pool", "trials_here")
ERROR = 0.05


def raced(rows: FloatArray, reference: FloatArray, most: float, seed: int, error: float = ERROR) -> tuple[Any, Any]:
    """(C,) which rows (C, E) a race drops before it has seen all of them, and how many examples each took."""
    race = Race(len(rows), reference, most - reference, error, np.random.default_rng(seed))
    start, taken = 0, np.full(len(rows), rows.shape[1])
    out = np.zeros(len(rows), dtype=bool)
    for look in race.looks:
        which = np.flatnonzero(~out)
        race.enter(which, start, rows[which][:, race.order[start:look]])
        start = look
        if look < rows.shape[1]:
            new = which[race.dropped[which]]
            out[new], taken[new] = True, look
    return out, taken


def like_mr(candidates: int, examples: int, rng: np.random.Generator) -> FloatArray:
    """Log-probabilities of the gold label, spread as those of 800 random prompts are on MR (16-shot, minilm-reviews).

    There the difference of the two labels' logits is a bias of the prompt (quantiles below), what the text adds for
    every prompt (mean 0.13 for the gold label, sd 0.44), more for some prompts than for others (sd 0.25), and a rest
    (sd 0.2). The means over examples then have MR's quantiles within 0.03: -1.10, -0.91, -0.77 at the quarters.
    """
    label = np.where(np.arange(examples) % 2, 1.0, -1.0)
    text = 0.13 * label + rng.normal(0, 0.44, examples)
    quantiles = [-2.05, 0.01, 0.93, 1.51, 2.05, 2.90, 4.15]
    bias = np.interp(rng.random((candidates, 1)), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1], quantiles)
    logit = bias + text * rng.normal(1, 0.25, (candidates, 1)) + rng.normal(0, 0.2, (candidates, examples))
    return -np.logaddexp(0.0, -label * logit)


def null_rows(kind: str, count: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, float]:
    """Rows (count, 32) whose sum is that of the reference (32,), to the last bit or so, and the greatest value."""
    shape = (count, 32)
    if kind == "mr":
        rows, most = like_mr(count + 1, 32, rng), 0.0
    elif kind == "accuracy":
        rows, most = np.repeat((np.arange(32) < 20)[None].astype(float), count + 1, axis=0), 1.0
        rows = rng.permuted(rows, axis=1)
    elif kind == "a few disasters":  # many examples a little better than the reference, one much worse
        rows, most = np.full((count + 1, 32), -0.5), 0.0
        rows[1:, 0] = -12.0
        rows = np.vstack([rows[:1], rng.permuted(rows[1:], axis=1)])
    else:  # a few triumphs: most examples worse, the rest perfect, which is what the test must wait for
        rows, most = np.vstack([np.full((1, 32), -1.0), np.full(shape, -1.0)]), 0.0
        rows[1:, :4] = 0.0
        rows[1:] = rng.permuted(rows[1:], axis=1)
    reference = rows[0]
    gap = (rows[1:].sum(axis=1) - reference.sum()) / 32
    rows = rows[1:] - gap[:, None]
    most = max(most, float(rows.max()))
    return rows, reference, most


@pytest.mark.parametrize("kind", ["mr", "accuracy", "a few disasters", "a few triumphs"])
@pytest.mark.parametrize("error", [0.05, 0.2])
def test_what_is_as_good_as_the_last_finalist_is_dropped_at_most_at_the_stated_rate(kind: str, error: float) -> None:
    rng = np.random.default_rng(1)
    rounds, count = 200, 20
    dropped = 0
    for seed in range(rounds):
        rows, reference, most = null_rows(kind, count, rng)
        dropped += int(raced(rows, reference, most, seed, error)[0].sum())
    # Rows of a round share their order: count rounds, not rows, as what is independent.
    assert dropped / (rounds * count) <= error + 3 * math.sqrt(error * (1 - error) / rounds)


def test_the_bets_are_those_of_the_formula() -> None:
    """Against the same in plain Python, one candidate, one example at a time."""
    rng = np.random.default_rng(0)
    rows = like_mr(60, 24, rng)
    reference = reference_row(rows[:5], np.ones(24))
    race = Race(55, reference, -reference, ERROR, np.random.default_rng(3))
    order = race.order.tolist()
    assert sorted(order) == list(range(24))
    assert set(order[:6]) == set(np.argsort(reference)[:6].tolist())  # a quarter: where there is the most room
    race.enter(np.arange(55), 0, rows[5:][:, race.order])
    for i, row in enumerate(rows[5:].tolist()):
        wealth, seen, gone = 1.0, 0.0, False
        for t, e in enumerate(order):
            x = row[e] - reference[e]
            if t >= 6:
                mean, most = -seen / (24 - t), max(-reference[k] for k in order[t:])
                if most > mean:
                    wealth *= 1 + BET * (mean - x) / (most - mean)
            seen += x
            rest = sum(-reference[k] for k in order[t + 1 :])
            gone = gone or wealth >= 1 / ERROR or seen + rest < -1e-7
        assert race.dropped[i] == gone
        assert race.sums[i] == pytest.approx(sum(row) - reference.sum())
        assert math.exp(race.log_wealth[i]) == pytest.approx(wealth, rel=1e-9)


def test_a_spread_like_mrs_spares_two_fifths_and_keeps_the_best() -> None:
    """Whole searches of 800 candidates in generations of 16, against the fifth best so far."""
    lost, shares = 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = like_mr(800, 32, rng)
        means, top, taken = rows.mean(axis=1), list(range(16)), 16 * 32
        for first in range(16, 800, 16):
            finalists = sorted(top, key=lambda i: -means[i])[:5]
            mine = rows[first : first + 16]
            out, took = raced(mine, reference_row(rows[finalists], np.ones(32)), 0.0, seed * 1000 + first)
            top += [first + int(i) for i in np.flatnonzero(~out)]
            taken += int(took.sum())
        lost += int(np.argmax(means)) not in top
        shares.append(1 - taken / rows.size)
    assert np.mean(shares) >= 0.4
    assert lost <= 20 * ERROR + 3 * math.sqrt(20 * ERROR * (1 - ERROR))


def test_looks_begin_with_the_hard_ones_and_end_with_all() -> None:
    for size in (1, 2, 3, 31, 32, 64, 1000):
        looks = looks_of(size, min(size // 4, 8))
        assert looks[-1] == size
        assert all(a < b for a, b in pairwise(looks))
    assert looks_of(32, 8)[:4] == [8, 9, 10, 11]
    assert looks_of(64, 8)[-4:] == [46, 51, 57, 64]


def test_the_reference_has_the_last_finalists_sum() -> None:
    rows = like_mr(5, 32, np.random.default_rng(0))
    for weights in (np.ones(32), np.arange(1, 33)):
        assert reference_row(rows * weights, weights).sum() == pytest.approx((rows[-1] * weights).sum())


@pytest.mark.parametrize("given", [0.0, 1.0, -0.1, float("nan")])
def test_an_error_rate_is_a_probability(given: float) -> None:
    with pytest.raises(InputError, match=r"race error .*: must be a probability between 0 and 1, as 0\.05"):
        error_of(True, given)


def test_error_rates() -> None:
    assert (error_of(True, ERROR), error_of(True, 0.1), error_of(False, ERROR)) == (0.05, 0.1, None)


class FirstOnes(RandomSearcher):
    """Random search that ends after 120 candidates; keeps what it was told."""

    most = 120

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.taken = 0
        self.told: list[tuple[list[str], list[float], list[bool]]] = []

    def ask(self, n: int) -> list[Candidate]:
        found = super().ask(min(n, self.most - self.taken))
        self.taken += len(found)
        return found

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        self.told.append(([c.key for c in candidates], self.values(scores).tolist(), scores.dropped.tolist()))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.taken = state["taken"]


def test_a_race_finds_what_full_scores_find_and_takes_less(pool: ScoringPool, problem: Problem, tmp_path: Path) -> None:
    """The same 120 prompts: in full, and racing. The same finalists, estimates below them, every pair accounted for."""
    full, race = FirstOnes(problem.for_search()), FirstOnes(problem.for_search())
    whole = finish(SearchLoop(full, pool, plan_of(tmp_path / "full", 120 * 64)))
    less = finish(SearchLoop(race, pool, plan_of(tmp_path / "race", 120 * 64, race=ERROR)))
    assert [keys for keys, _, _ in full.told] == [keys for keys, _, _ in race.told]
    assert [f.candidate.key for f in less.finalists.best] == [f.candidate.key for f in whole.finalists.best]
    assert less.finalists.best[0] == whole.finalists.best[0]
    less.close()
    report = less.report()
    dropped = sum(sum(out) for _, _, out in race.told)
    assert (report["race_error"], report["race_dropped"], report["candidates"]) == (ERROR, dropped, 120)
    assert report["evaluations"] == 120 * 64 - report["race_spared"] == len(ScoreStore(tmp_path / "race").pairs())
    assert report["race_spared"] > 0.4 * 120 * 64
    assert not any(race.told[0][2])  # nobody to race yet
    true = {k: v for keys, values, _ in full.told for k, v in zip(keys, values, strict=True)}
    told = [(k, v) for keys, values, out in race.told for k, v, o in zip(keys, values, out, strict=True) if o]
    last = less.finalists.best[-1].objective
    assert all(value < last for _, value in told)
    errors = [value - true[key] for key, value in told]
    assert abs(float(np.mean(errors))) < 0.3  # examples that are hard for all are not held against anyone
    assert np.corrcoef([value for _, value in told], [true[key] for key, _ in told])[0, 1] > 0.8
    kept = [(k, v) for keys, values, out in race.told for k, v, o in zip(keys, values, out, strict=True) if not o]
    assert all(value == true[key] for key, value in kept)  # scored in full, to the same bits


@pytest.mark.slow
def test_the_same_seed_races_the_same_on_one_scorer_and_two(pool_of: PoolOf, problem: Problem, tmp_path: Path) -> None:
    told = []
    for scorers in (1, 2):
        searcher = FirstOnes(problem.for_search(), seed=4)
        loop = SearchLoop(searcher, pool_of(problem.lm, scorers), plan_of(tmp_path / str(scorers), 2500, race=0.1))
        finish(loop)
        told.append((searcher.told, loop.ledger.evaluations, loop.end))
    assert str(told[0]) == str(told[1])  # NaN for what the budget's end left out
    assert told[0][1:] == (2500, "budget")


def test_a_race_that_dies_or_gets_more_budget_goes_on_as_if_nothing_had_been(
    pool: ScoringPool, problem: Problem, tmp_path: Path
) -> None:
    whole = FirstOnes(problem.for_search())
    loop = finish(SearchLoop(whole, pool, plan_of(tmp_path / "whole", 2600, race=ERROR)))
    begun = FirstOnes(problem.for_search())
    short = SearchLoop(begun, pool, plan_of(tmp_path / "parts", 2001, race=ERROR))
    finish(short, steps=3)  # dies: no snapshot, what is not flushed is lost
    short.writer.flush()
    again = FirstOnes(problem.for_search())
    more = SearchLoop(again, pool, plan_of(tmp_path / "parts", 2001, race=ERROR))
    assert more.generation == 3
    finish(more).close()
    assert (more.end, more.ledger.evaluations) == ("budget", 2001)
    last = FirstOnes(problem.for_search())
    end = finish(SearchLoop(last, pool, plan_of(tmp_path / "parts", 2600, race=ERROR)))
    assert end.ledger.evaluations == loop.ledger.evaluations == 2600
    assert end.finalists.best == loop.finalists.best
    assert end.report()["race_dropped"] == loop.report()["race_dropped"]
    assert end.report()["race_spared"] == loop.report()["race_spared"]
    assert str(last.told[-1]) == str(whole.told[-1])


def test_prompts_that_come_again_are_not_raced_again(pool: ScoringPool, problem: Problem, tmp_path: Path) -> None:
    searcher = RandomSearcher(problem.for_search())
    loop = SearchLoop(searcher, pool, plan_of(tmp_path, 64 * 64, race=ERROR))
    first = searcher.ask(48)
    ids = [problem.token_ids(c) for c in first]
    loop.evaluator.score(first[:16], ids[:16])
    racer = Racer(searcher, ERROR)
    once = racer.score(loop.evaluator, first[16:] + first[16:20], first[:5], 7)
    counts, spent = (racer.dropped, racer.spared), loop.ledger.evaluations
    again = racer.score(loop.evaluator, first, first[:5], 8)
    assert (racer.dropped, racer.spared) == counts
    assert loop.ledger.evaluations == spent == 48 * 64 - racer.spared
    assert again.dropped[16:].tolist() == once.dropped[:32].tolist()
    assert counts[0] == once.dropped[:32].sum() > 0


@pytest.mark.parametrize(
    "name",
    [
        "nevergrad",
        "reward-model",
        "random-soft",
        pytest.param("random", marks=pytest.mark.slow),
        pytest.param("nevergrad-soft", marks=pytest.mark.slow),
    ],
)
def test_searchers_race_within_their_budget(few: Problem, tmp_path: Path, name: str) -> None:
    found = rayprompt.search(few, budget=999, searcher=name, race=True, scorers=1, out=tmp_path / "s")
    searched = [row for row in ScoreStore(tmp_path / "s").pairs().column("search").to_pylist() if "report" not in row]
    assert found.evaluations == 999 == len(searched)
    assert found.race is not None
    assert found.race["dropped"] > 0 or "soft" in name  # soft prompts begin much alike
    content = found.to_json()
    schema = Path(rayprompt.__file__).parent / "schemas" / "search-1.json"
    Draft202012Validator(json.loads(schema.read_text())).validate(content)
    if name == "random":
        assert rayprompt.resume(tmp_path / "s", task=few.task).to_json() == content
        more = rayprompt.resume(tmp_path / "s", budget=1200, task=few.task)
        assert more.evaluations == 1200
        assert more.race is not None
        assert more.race["error"] == 0.05


@pytest.mark.parametrize("name", ["cma-es", "rl", "cma-es-deep"])
def test_searchers_that_need_full_rows_are_told(name: str, tmp_path: Path) -> None:
    line = (
        f"--race: searcher {name} needs every candidate's score on all examples; those that race: nevergrad, "
        "nevergrad-soft, random, random-soft, reward-model"
    )
    with pytest.raises(InputError) as caught:
        rayprompt.search(budget=640, searcher=name, race=True, out=tmp_path / "s")
    assert str(caught.value) == line
    assert not (tmp_path / "s").exists()


def test_reward_model_races_if_its_inner_searcher_does(view: Problem) -> None:
    assert RewardModelSearcher(view).partial_rows
    with pytest.raises(InputError, match="--race: searcher reward-model needs every"):
        Racer(RewardModelSearcher(view, inner="rl", inner_settings={"preset": "fast"}), ERROR)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--race-error", "0.1"], "--race-error 0.1: is for --race, which was not given"),
        (["--race", "--race-error", "2"], "race error 2.0: must be a probability between 0 and 1, as 0.05"),
        (
            ["--race", "--tune-native"],
            "--race with --tune-native: there candidates are scored whole; leave one of them out",
        ),
        (["--race", "--objective", "f1"], "--race: objective f1 is not a mean over examples with a greatest value; "
         "accuracy, cross_entropy, hinge, gap are"),
    ],
)  # fmt: skip
def test_what_cannot_race_is_said_in_a_line(
    options: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(app, ["search", "--searcher", "random", "--out", str(tmp_path / "s"), *options]) == 2
    assert line in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_comparison_races_those_that_can(few: Problem, tmp_path: Path) -> None:
    found = rayprompt.compare(
        few.task,
        ["random", "cma-es"],
        seeds=1,
        budget=650,
        race=True,
        race_error=0.1,
        baselines=[],
        out=tmp_path / "c",
        scorers=1,
    )
    races = {run.searcher: run.race for run in found.runs}
    assert races["cma-es"] is None
    assert races["random"] is not None
    assert races["random"]["error"] == 0.1
    assert any("cma-es: scored in full, for they need every" in line for line in found.remarks)
    assert any(line.startswith("random raced: ") for line in found.remarks)
    assert {run.evaluations for run in found.runs} == {650}
    assert rayprompt.read_comparison(tmp_path / "c").runs == found.runs


def test_nevergrad_is_told_the_estimates(pool: ScoringPool, problem: Problem, tmp_path: Path) -> None:
    searcher = NevergradSearcher(problem.for_search())
    loop = finish(SearchLoop(searcher, pool, plan_of(tmp_path, 64 * 40, race=ERROR)))
    assert loop.racer is not None
    assert loop.racer.dropped > 0
    told = sum(loss is not None for loss in searcher.losses.values())
    cut = 16  # of the generation in which the budget ended, at most
    assert loop.evaluator.candidates - cut <= told <= loop.evaluator.candidates
    assert told > loop.evaluator.candidates - loop.racer.dropped  # more than were scored in full


def test_every_objective_that_races_has_the_greatest_value_it_says(problem: Problem) -> None:
    """Log-probabilities of all kinds: no value above, and one that comes close."""
    rng = np.random.default_rng(0)
    gold = problem.gold
    chances = rng.dirichlet([0.05] * len(problem.task.labels), size=len(gold) * 50)
    log_probs = np.log(np.maximum(chances, 1e-13))
    candidates = [problem.prompt(str(i)) for i in range(50)]
    example = np.tile(np.arange(len(gold)), 50)
    from rayprompt.objective import pair_values
    from rayprompt.scores import right

    scores = Scores(
        tuple(candidates), np.arange(len(gold)), np.repeat(np.arange(50), len(gold)), example,
        np.zeros(len(example), dtype=np.int64), right(log_probs, gold[example]), log_probs,
        np.ones(len(example), dtype=np.int64), np.zeros(len(example)),
    )  # fmt: skip
    for name, most in MOST.items():
        values = pair_values(name, scores, gold)
        assert values is not None
        assert most - 0.02 * max(1.0, abs(most)) < np.nanmax(values) <= most + 1e-9


def test_ledger_is_charged_block_by_block(pool: ScoringPool, problem: Problem, tmp_path: Path) -> None:
    """An evaluator that is asked for some examples charges and scores those, and the rest when it is asked for it."""
    searcher = RandomSearcher(problem.for_search())
    loop = SearchLoop(searcher, pool, plan_of(tmp_path, 10**6))
    prompts = searcher.ask(3)
    ids = [problem.token_ids(c) for c in prompts]
    some = np.array([3, 1, 60])
    part = loop.evaluator.score(prompts, ids, some)
    assert isinstance(loop.ledger, Ledger)
    assert (loop.ledger.evaluations, loop.ledger.cache_hits, len(part)) == (9, 0, 9)
    assert sorted(set(part.example.tolist())) == [1, 3, 60]
    whole = loop.evaluator.score(prompts, ids)
    assert (loop.ledger.evaluations, loop.ledger.cache_hits) == (3 * 64, 9)
    assert np.array_equal(whole.dense()[:, some], part.dense()[:, some])
    assert len(loop.evaluator.recall(prompts, ids)) == 3 * 64
    assert loop.ledger.cache_hits == 9
