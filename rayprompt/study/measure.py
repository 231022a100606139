"""Evaluators that stand on a score store."""

from __future__ import annotations

from rayprompt.budget import Ledger
from rayprompt.scoring.evaluator import Evaluator, Judging
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.replay import ReplayPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.schema import Context
from rayprompt.store.store import ScoreStore, Spent
from rayprompt.store.writer import ShardWriter


def context_of(problem: Problem, pool: ScoringPool) -> Context:
    """What decides the scores of a problem on a pool, candidate and example apart."""
    if isinstance(pool, ReplayPool):
        return Context(pool.context(problem.content))
    return Context({**problem.content, **pool.content(problem.part("train"))})


def judging_of(problem: Problem, part: str) -> Judging | None:
    """How a part's completions are judged; None where the LM is only read."""
    return None if problem.judge is None else Judging(problem.judge, problem.answers(part))


def evaluator_of(
    problem: Problem,
    pool: ScoringPool,
    part: str,
    ledger: Ledger,
    *,
    store: ScoreStore,
    search: str,
    report: bool = False,
    alone: bool = False,
    skips: bool = True,
) -> tuple[Evaluator, Spent, ShardWriter]:
    """An evaluator of one part that knows what the store knows and writes to it; and what ``search`` has spent.

    ``alone``: it knows what ``search`` itself has stored, and nothing else. ``skips``: see :class:`Evaluator`.
    """
    examples = problem.digests(part)
    context = context_of(problem, pool)
    writer = ShardWriter(
        store,
        search,
        context,
        part=part,
        split=problem.split,
        examples=list(dict.fromkeys(examples)),
        origin="report" if report else "search",
        samples=problem.part(part).samples,
        judge="" if problem.judge is None else problem.judge.id,
    )
    evaluator = Evaluator(
        pool,
        problem.part(part),
        problem.task.gold(part, problem.split),
        ledger,
        examples=examples,
        writer=writer,
        search=search,
        report=report,
        p0=problem.vectors,
        judging=judging_of(problem, part),
        skips=skips,
    )
    # What a service refused to another search it may answer this one; an LM that overflowed will again.
    if pool.replays is not None:
        for key in (context.key, *_earlier(context, pool)):
            ScoreStore(pool.replays).load(evaluator.table, key, part)
    # Of other machine classes what the search itself has stored, and that first: it goes on with what it has seen.
    before = [store.load(evaluator.table, key, part, search, alone=True) for key in _earlier(context, pool)]
    spent = store.load(evaluator.table, context.key, part, search, alone=alone, failed=pool.deterministic)
    return evaluator, sum(before, spent), writer


def _earlier(context: Context, pool: ScoringPool) -> list[str]:
    """The keys of the same context on the other machine classes that a study has scores from."""
    contexts = [Context({**context.content, "device_class": name}) for name in (*pool.earlier, pool.device_class)]
    return [other.key for other in contexts if other.key != context.key]
