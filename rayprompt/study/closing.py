"""The closing report: dev picks the winner, then test is opened, once, for the winner and the baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt
from rayprompt.errors import ScoringError
from rayprompt.objective import OBJECTIVES
from rayprompt.scores import IntArray, Scores
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.measure import evaluator_of
from rayprompt.study.results import Baseline
from rayprompt.study.statistics import Estimate, answers, estimate, mcnemar, wilson


@dataclass(frozen=True)
class Closing:
    """The winner and the baselines with their estimates; the fields of ``Result`` of the same names."""

    best_prompt: Candidate
    train: Estimate
    dev: Estimate
    test: Estimate
    baselines: Mapping[str, Baseline]
    p_value: float | None
    finalists: tuple[dict[str, Any], ...]
    report_evaluations: int
    round_trips: bool
    truncated: Mapping[str, int]
    decoded: Baseline | None = None

    def fields(self) -> dict[str, Any]:
        """As keyword arguments for ``Result``."""
        return dict(self.__dict__)


class PartScorer:
    """Scores single prompts on one part of a problem, counted as report."""

    def __init__(
        self,
        problem: Problem,
        pool: ScoringPool,
        part: str,
        ledger: Ledger,
        *,
        store: ScoreStore | None = None,
        search: str = "report",
    ) -> None:
        self.problem = problem
        self.gold: IntArray = problem.task.gold(part, problem.split)
        self.metric = problem.task.metric
        if store is None:
            self.evaluator = Evaluator(
                pool,
                problem.part(part),
                self.gold,
                ledger,
                examples=problem.digests(part),
                report=True,
                p0=problem.vectors,
            )
        else:
            self.evaluator, spent, _ = evaluator_of(
                problem, pool, part, ledger, store=store, search=search, report=True
            )
            ledger.lm_evaluations += spent.lm_evaluations

    def scores(self, prompts: Sequence[Candidate]) -> list[Scores]:
        """The scores of each prompt on the whole part; all are scored in one request, and stored."""
        ids = [self.problem.token_ids(p) for p in prompts]
        self.evaluator.score(prompts, ids)
        writer = self.evaluator.writer
        if writer is not None and writer.buffer.rows:
            writer.add_asks(0, prompts)
            writer.close()
        return [self.evaluator.score([p], [i]) for p, i in zip(prompts, ids, strict=True)]

    def estimate(self, scores: Scores) -> Estimate:
        """The task metric of one prompt's scores."""
        return estimate(self.metric, scores, self.gold, OBJECTIVES[self.metric])


def close(
    problem: Problem,
    pool: ScoringPool,
    finalists: Sequence[Candidate],
    on_train: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    *,
    store: ScoreStore | None = None,
    search: str = "report",
    before_test: Callable[[], None] = lambda: None,
    nominations: Sequence[Candidate] = (),
    objective: str = "cross_entropy",
) -> Closing:
    """Pick the winner on dev and measure it on test. The text that is nearest to a soft winner is measured with it.

    Args:
        finalists: best on train first.
        ledger: counts what the report costs.
        on_train: for each its ``metric``, ``objective`` and ``n`` on train, and its JSON form.
        store, search: where the pairs are kept and looked up, and under which name.
        before_test: called when the winner is fixed, before test is opened.
        nominations: further candidates for dev; what is not known of them on train is scored, and counted as report.
        objective: the search's.
    """

    @cache
    def scorer(part: str) -> PartScorer:
        """One for each part: what it has asked for is counted once."""
        return PartScorer(problem, pool, part, ledger, store=store, search=search)

    finalists, on_train = _with_nominations(scorer, finalists, on_train, nominations, objective)
    if not finalists:
        raise ScoringError("the search ended without a candidate that could be scored")
    baselines = {"empty": TextPrompt("", ())}
    if problem.task.manual_prompt is not None:
        baselines["manual"] = problem.prompt(problem.task.manual_prompt)

    dev = scorer("dev")
    dev_scores = dev.scores([*finalists, *baselines.values()])
    dev_estimates = [dev.estimate(s) for s in dev_scores]
    known = [float(OBJECTIVES["cross_entropy"](s, dev.gold)[0]) for s in dev_scores]
    log_likelihood = [float("-inf") if math.isnan(x) else x for x in known]
    # Of equal dev metrics the likelier labels decide, then the better on train (the earlier one).
    winner = max(range(len(finalists)), key=lambda i: (dev_estimates[i].value, log_likelihood[i], -i))

    text = None
    if isinstance(finalists[winner], SoftPrompt):
        text = _likeliest(scorer, decode(problem, pool, finalists[winner]))
        text_on_dev = dev.estimate(dev.scores([text])[0])

    before_test()
    test = scorer("test")
    others = [*baselines.values(), *([] if text is None else [text])]
    test_scores = test.scores([finalists[winner], *others])
    best = finalists[winner]
    front = best.subspace.front if isinstance(best, SoftPrompt) else 0
    names = list(baselines)
    manual = test_scores[1 + names.index("manual")] if "manual" in baselines else None
    return Closing(
        best_prompt=best,
        train=_on_train(scorer, problem.task.metric, best, on_train[winner]),
        dev=dev_estimates[winner],
        test=test.estimate(test_scores[0]),
        baselines={
            name: Baseline(prompt, dev_estimates[len(finalists) + i], test.estimate(test_scores[1 + i]))
            for i, (name, prompt) in enumerate(baselines.items())
        },
        p_value=None if manual is None else mcnemar(answers(test_scores[0]), answers(manual)),
        finalists=tuple(
            {
                **f["candidate"],
                "key": c.key,
                "train": f["metric"],
                "n": f["n"],
                "objective": f["objective"],
                "dev": d.value,
            }
            for f, c, d in zip(on_train, finalists, dev_estimates, strict=False)
        ),
        report_evaluations=ledger.report_evaluations,
        round_trips=isinstance(best, TextPrompt) and problem.round_trips(best),
        truncated={
            part: problem.part(part).reserving(front).truncated(len(problem.token_ids(best)))
            for part in ("train", "dev", "test")
        },
        decoded=None if text is None else Baseline(text, text_on_dev, test.estimate(test_scores[-1])),
    )


def decode(problem: Problem, pool: ScoringPool, prompt: Candidate) -> list[TextPrompt]:
    """The texts that are nearest to a prompt: of a soft one its nearest tokens, with and without its initial ones."""
    if isinstance(prompt, TextPrompt):
        return [prompt]
    return [problem.decoded(ids) for ids in pool.nearest(prompt, problem.vocabulary, problem.vectors)]


def _likeliest(scorer: Callable[[str], PartScorer], texts: Sequence[TextPrompt]) -> TextPrompt:
    """The text with the least cross-entropy on train."""
    train = scorer("train")
    values = [float(OBJECTIVES["cross_entropy"](s, train.gold)[0]) for s in train.scores(texts)]
    return texts[int(np.argmax(np.nan_to_num(values, nan=-np.inf)))]


def _with_nominations(
    scorer: Callable[[str], PartScorer],
    finalists: Sequence[Candidate],
    on_train: Sequence[Mapping[str, Any]],
    nominations: Sequence[Candidate],
    objective: str,
) -> tuple[list[Candidate], list[Mapping[str, Any]]]:
    """The finalists, and behind them what was nominated and is not among them; each with its figures on train."""
    known = {c.key for c in finalists}
    new = [c for c in dict.fromkeys(nominations) if c.key not in known]
    if not new:
        return list(finalists), list(on_train)
    train = scorer("train")
    rows = [
        {
            "candidate": c.to_json(),
            "metric": train.estimate(s).value,
            "objective": float(OBJECTIVES[objective](s, train.gold)[0]),
            "n": train.estimate(s).n,
        }
        for c, s in zip(new, train.scores(new), strict=True)
    ]
    return [*finalists, *new], [*on_train, *rows]


def _on_train(
    scorer: Callable[[str], PartScorer], metric: str, winner: Candidate, found: Mapping[str, Any]
) -> Estimate:
    """The winner on train. It was searched on: the value is optimistic, and the interval is only that of n examples.

    Accuracy needs its value alone; the interval of another metric needs the pairs, which count as report once more.
    """
    if metric == "accuracy":
        value, n = float(found["metric"]), int(found["n"])
        return Estimate("accuracy", value, n, wilson(round(value * n), n))
    train = scorer("train")
    return train.estimate(train.scores([winner])[0])
