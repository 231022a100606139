"""The check that a searcher learns."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable

from rayprompt.candidate import Candidate, SoftPrompt, candidates
from rayprompt.errors import InputError
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher, searcher_paths
from rayprompt.testing.asktell import make
from rayprompt.testing.faults import Skip, expect
from rayprompt.testing.kit import Kit, check
from rayprompt.testing.play import Config

LEARNING_TRIALS = 90  # of any searcher, for each seed; thirds of them are compared
LEARNING_CANDIDATES = 480  # of a PromptSearcher, for each seed
SEEDS = range(5)


@check("learns")
def learns(kit: Kit) -> None:
    """Its last trials are better than its first; a PromptSearcher finds better prompts than random draws do."""
    if kit.baseline:
        raise Skip("a baseline does not learn")
    if kit.prompt:
        return better_than_random(kit)
    if kit.evaluate is None:
        raise Skip("no evaluate was given")
    gains = [_gain(kit, kit.evaluate, seed) for seed in SEEDS]
    gain = statistics.median(gains)
    expect(
        gain > 0.5,
        f"the mean of the last third of {LEARNING_TRIALS} trials is {gain:.2f} standard deviations above that of the "
        f"first (median of {len(gains)} seeds), right: more than 0.5",
    )


def _gain(kit: Kit, evaluate: Callable[[Config], float], seed: int) -> float:
    """By how many standard deviations the last third of the trials is better than the first."""
    run = kit.run(kit.new(**kit.maybe_seed(seed)), evaluate=evaluate)
    run.play(LEARNING_TRIALS)
    third = len(run.values) // 3
    first, last = run.values[:third], run.values[-third:]
    spread = statistics.mean([statistics.pstdev(first), statistics.pstdev(last)])
    return (statistics.mean(last) - statistics.mean(first)) / max(spread, 1e-12)


def better_than_random(kit: Kit) -> None:
    """Looking for a hidden prompt, the median of its best beats the best of all runs of the random baseline."""
    searcher = make(kit)
    if not searcher.learns:
        raise Skip("it does not learn, as it declares")
    baseline = _baseline(searcher)
    evaluate = kit.evaluate or _hidden(searcher.problem, baseline(99).ask(1)[0])
    best = {
        name: [_best(kit, build(seed), evaluate) for seed in SEEDS]
        for name, build in (("searcher", lambda seed: make(kit, seed=seed)), ("random", baseline))
    }
    median, most = statistics.median(best["searcher"]), max(best["random"])
    expect(
        median > most,
        f"the best of {LEARNING_CANDIDATES} candidates is {median:.4f} (median of {len(SEEDS)} seeds), "
        f"right: above {most:.4f}, the best of as many random runs",
    )


def _best(kit: Kit, searcher: PromptSearcher, evaluate: Callable[[Config], float]) -> float:
    run = kit.run(searcher, evaluate=evaluate)
    run.play(-(-LEARNING_CANDIDATES // searcher.generation))
    return max(run.values[:LEARNING_CANDIDATES], default=-math.inf)


def _baseline(searcher: PromptSearcher) -> Callable[[int], PromptSearcher]:
    """The registered searcher of this kind that does not learn, with the settings that the two share."""
    for name in searcher_paths():
        try:
            cls = load_searcher(name)
        except InputError:
            continue
        if cls.kind == searcher.kind and not cls.learns:
            names = [f.name for f in dataclasses.fields(cls.Settings) if hasattr(searcher.settings, f.name)]
            shared = {name: getattr(searcher.settings, name) for name in names}
            return lambda seed: cls(searcher.problem, seed=seed, **shared)
    raise Skip(f"no baseline of kind {searcher.kind!r} is registered to compare with")


def _hidden(problem: Problem, goal: Candidate) -> Callable[[Config], float]:
    """How near a prompt is to ``goal``: a smooth function of its token ids, or of its vector."""

    def near(config: Config) -> float:
        candidate = candidates(config)[0]
        if isinstance(candidate, SoftPrompt) and isinstance(goal, SoftPrompt):
            return -math.dist(candidate.z, goal.z)
        ids, goals = problem.token_ids(candidate), problem.token_ids(goal)
        places = [1 - abs(a - b) / problem.lm.vocab_size for a, b in zip(ids, goals, strict=False)]
        return sum(places) / max(len(ids), len(goals), 1)

    return near
