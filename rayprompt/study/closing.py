"""The closing report: dev picks the winner, then test is opened, once, for the winner and the baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayprompt.budget import Ledger
from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt
from rayprompt.errors import ScoringError
from rayprompt.objective import NEEDS_LOG_PROBS, OBJECTIVES, get_objective
from rayprompt.scores import BoolArray, IntArray, Scores, tally_of
from rayprompt.scoring.evaluator import Evaluator
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.conditioned import score_candidates
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.study.measure import evaluator_of, judging_of
from rayprompt.study.results import Baseline
from rayprompt.study.statistics import Estimate, answers, estimate, paired_test, test_name, wilson

TOP = 3  # of the best on dev: papers give the mean of their test scores


@dataclass(frozen=True)
class Closing:
    """The winner and the baselines with their estimates; the fields of ``Result`` of the same names."""

    best_prompt: Candidate
    train: Estimate
    dev: Estimate
    test: Estimate
    baselines: Mapping[str, Baseline]
    p_value: float | None
    p_test: str
    finalists: tuple[dict[str, Any], ...]
    report_evaluations: int
    round_trips: bool
    truncated: Mapping[str, int]
    decoded: Baseline | None = None
    unanswered: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    top: tuple[Estimate, ...] = ()  # test of the best on dev, the winner first

    def fields(self) -> dict[str, Any]:
        """As keyword arguments for ``Result``, which has ``top`` only where there are several."""
        return {**self.__dict__, "top": self.top if len(self.top) > 1 else ()}


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
                judging=judging_of(problem, part),
            )
        else:
            self.evaluator, spent, _ = evaluator_of(
                problem, pool, part, ledger, store=store, search=search, report=True
            )
            for name, value in vars(spent).items():
                setattr(ledger, name, getattr(ledger, name) + value)

    def scores(self, prompts: Sequence[Candidate]) -> list[Scores]:
        """The scores of each prompt on the whole part; all are scored in one request, and stored."""
        self.score(prompts)
        return [score_candidates(self.problem, self.evaluator, [p]) for p in prompts]

    def score(self, prompts: Sequence[Candidate], pairs: BoolArray | None = None) -> Scores:
        """The scores of prompts (C), stored; on all examples, or on those that ``pairs`` (C, E) says."""
        scores = score_candidates(self.problem, self.evaluator, prompts, pairs)
        writer = self.evaluator.writer
        if writer is not None and writer.buffer.rows:
            writer.add_asks(0, prompts)
            writer.close()
        return scores

    def estimate(self, scores: Scores) -> Estimate:
        """The task metric of one prompt's scores."""
        return estimate(self.metric, scores, self.gold, OBJECTIVES[self.metric])

    def best_first(self, scores: Sequence[Scores]) -> list[int]:
        """Positions of prompts, best first: of equal metrics the likelier labels decide, then the earlier one."""
        read = all(s.label_log_probs is not None for s in scores)
        known = [float(OBJECTIVES["cross_entropy"](s, self.gold)[0]) if read else math.nan for s in scores]
        likelihood = [float("-inf") if math.isnan(x) else x for x in known]
        values = [self.estimate(s).value for s in scores]
        return sorted(range(len(scores)), key=lambda i: (-values[i], -likelihood[i], i))


@dataclass(frozen=True)
class Choice:
    """What dev has fixed, before test is opened.

    Attributes:
        finalists: best on train first, nominations behind; ``on_train`` and ``dev`` are theirs, in the same order.
        winner: the position of the best on dev.
        top: positions of the best on dev, the winner first.
        baselines: name -> prompt and its dev.
        decoded: the text nearest to a soft winner, and its dev.
        unanswered: how many pairs on dev, of finalists and baselines.
    """

    finalists: tuple[Candidate, ...]
    on_train: tuple[Mapping[str, Any], ...]
    dev: tuple[Estimate, ...]
    winner: int
    top: tuple[int, ...]
    baselines: Mapping[str, tuple[TextPrompt, Estimate]]
    decoded: tuple[TextPrompt, Estimate] | None = None
    unanswered: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The winner."""
        return self.finalists[self.winner]

    @property
    def prompts(self) -> list[Candidate]:
        """All that is to be scored on test, the winner first."""
        text = [] if self.decoded is None else [self.decoded[0]]
        tops = [self.finalists[i] for i in self.top if i != self.winner]
        return [self.best, *(prompt for prompt, _ in self.baselines.values()), *text, *tops]


class Closer:
    """Closes searches on one problem: :meth:`choose` on dev, and when all is fixed :meth:`measure` on test.

    Args:
        problem, pool: what is scored, on what.
        ledger: counts what the report costs.
        store, search: where the pairs are kept and looked up, and under which name.
    """

    def __init__(
        self,
        problem: Problem,
        pool: ScoringPool,
        ledger: Ledger,
        *,
        store: ScoreStore | None = None,
        search: str = "report",
    ) -> None:
        self.problem = problem
        self.pool = pool
        self.ledger = ledger
        self.store = store
        self.search = search
        self._scorers: dict[str, PartScorer] = {}

    def scorer(self, part: str) -> PartScorer:
        """One for each part: what it has asked for is counted once."""
        if part not in self._scorers:
            self._scorers[part] = PartScorer(
                self.problem, self.pool, part, self.ledger, store=self.store, search=self.search
            )
        return self._scorers[part]

    def choose(
        self,
        finalists: Sequence[Candidate],
        on_train: Sequence[Mapping[str, Any]],
        *,
        nominations: Sequence[Candidate] = (),
        objective: str = "cross_entropy",
        tops: int = 1,
        alone: bool = False,
    ) -> Choice:
        """Pick the winner on dev, and the ``tops`` best; find the text that is nearest to a soft winner.

        Args:
            finalists: best on train first.
            on_train: for each its ``metric``, ``objective`` and ``n`` on train, and its JSON form.
            nominations: further candidates for dev; what is not known of them on train is scored, as report.
            objective: the search's.
            tops: how many of the best on dev are to be measured on test.
            alone: dev picks among the nominations only, where there are any.
        """
        if alone and nominations:
            finalists, on_train = [], []
        finalists, on_train = _with_nominations(self.scorer, finalists, on_train, nominations, objective)
        if not finalists:
            raise ScoringError("the search ended without a candidate that could be scored")
        baselines = baseline_prompts(self.problem)
        dev = self.scorer("dev")
        scores = dev.scores([*finalists, *baselines.values()])
        estimates = [dev.estimate(s) for s in scores]
        order = dev.best_first(scores[: len(finalists)])  # finalists are best on train first
        decoded = None
        if isinstance(finalists[order[0]], SoftPrompt) and self.pool.replays is None:
            text = _likeliest(self.scorer, decode(self.problem, self.pool, finalists[order[0]]))
            decoded = (text, dev.estimate(dev.scores([text])[0]))
        return Choice(
            finalists=tuple(finalists),
            on_train=tuple(on_train),
            dev=tuple(estimates[: len(finalists)]),
            winner=order[0],
            top=tuple(order[:tops]),
            baselines=dict(
                zip(baselines, zip(baselines.values(), estimates[len(finalists) :], strict=True), strict=True)
            ),
            decoded=decoded,
            unanswered=tally_of(scores),
        )

    def measure(self, choice: Choice) -> Closing:
        """Score on test what was chosen."""
        problem, best = self.problem, choice.best
        test = self.scorer("test")
        prompts = choice.prompts
        scores = dict(zip(prompts, test.scores(prompts), strict=True))
        estimates = {prompt: test.estimate(s) for prompt, s in scores.items()}
        front = best.subspace.front if isinstance(best, SoftPrompt) else 0
        manual = choice.baselines.get("manual")
        rows = zip(choice.on_train, choice.finalists, choice.dev, strict=True)
        text, metric = choice.decoded, problem.task.metric
        return Closing(
            best_prompt=best,
            train=_on_train(self.scorer, problem, best, choice.on_train[choice.winner]),
            dev=choice.dev[choice.winner],
            test=estimates[best],
            baselines={
                name: Baseline(prompt, dev, estimates[prompt]) for name, (prompt, dev) in choice.baselines.items()
            },
            p_value=None if manual is None else paired_test(metric, scores[best], scores[manual[0]], test.gold),
            p_test=test_name(metric, *(answers(scores[p], metric) for p in (best, *([manual[0]] if manual else [])))),
            finalists=tuple(
                {
                    **f["candidate"],
                    "key": c.key,
                    "train": f["metric"],
                    "n": f["n"],
                    "objective": f["objective"],
                    "dev": d.value,
                }
                for f, c, d in rows
            ),
            report_evaluations=self.ledger.report_evaluations,
            round_trips=not isinstance(best, SoftPrompt) and problem.round_trips(best),
            truncated={
                part: problem.part(part).reserving(front).truncated(len(problem.token_ids(best)))
                for part in ("train", "dev", "test")
            },
            decoded=None if text is None else Baseline(text[0], text[1], estimates[text[0]]),
            unanswered={"dev": choice.unanswered, "test": tally_of(list(scores.values()))},
            top=tuple(estimates[choice.finalists[i]] for i in choice.top),
        )


def baseline_prompts(problem: Problem) -> dict[str, TextPrompt]:
    """The prompts that nobody searched for: the empty one and, where the task has one, the manual one."""
    baselines = {"empty": TextPrompt("", ())}
    if problem.task.manual_prompt is not None:
        baselines["manual"] = problem.prompt(problem.task.manual_prompt)
    return baselines


def decode(problem: Problem, pool: ScoringPool, prompt: Candidate) -> list[TextPrompt]:
    """The texts that are nearest to a prompt: of a soft one its nearest tokens, with and without its initial ones."""
    if isinstance(prompt, TextPrompt):
        return [prompt]
    if not isinstance(prompt, SoftPrompt):
        return list(prompt.different)
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
            "objective": _objective(s, objective, train.gold),
            "n": train.estimate(s).n,
        }
        for c, s in zip(new, train.scores(new), strict=True)
    ]
    return [*finalists, *new], [*on_train, *rows]


def _objective(scores: Scores, name: str, gold: IntArray) -> float | None:
    """The objective of one prompt's scores; None where it got no answer."""
    value = float(get_objective(name if _gives(scores, name) else "accuracy")(scores, gold)[0])
    return value if math.isfinite(value) else None


def _gives(scores: Scores, objective: str) -> bool:
    """Whether an objective can be worked out: where a proxy was searched on, its own may ask for more than there is."""
    return scores.label_log_probs is not None or objective not in NEEDS_LOG_PROBS


def _on_train(
    scorer: Callable[[str], PartScorer], problem: Problem, winner: Candidate, found: Mapping[str, Any]
) -> Estimate:
    """The winner on train. It was searched on: the value is optimistic, and the interval is only that of n examples.

    Accuracy needs its value alone; the interval of another metric needs the pairs, which count as report once more.
    """
    if problem.task.metric == "accuracy" and problem.judge is None:
        value, n = float(found["metric"]), int(found["n"])
        return Estimate("accuracy", value, n, wilson(round(value * n), n))
    train = scorer("train")
    return train.estimate(train.scores([winner])[0])
