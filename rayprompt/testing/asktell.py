"""Checks of a PromptSearcher's own methods: ask, tell and its state."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt, TextPrompt
from rayprompt.scores import PairError, Scores, right
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.testing.faults import Failed, calling, expect, expect_same, short, when
from rayprompt.testing.kit import Kit, check

GENERATIONS = 3
PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)


def make(kit: Kit, **keywords: Any) -> PromptSearcher:
    """A searcher of the kit's, seed 0 unless said otherwise."""
    searcher = kit.new(**{"seed": 0, **keywords})
    assert isinstance(searcher, PromptSearcher)
    return searcher


def ask(searcher: PromptSearcher, n: int | None = None) -> list[Candidate]:
    """Candidates, of which there must be some."""
    count = searcher.generation if n is None else n
    with calling(f"ask({count})"):
        found = list(searcher.ask(count))
    expect(found, f"ask({count}) gave no candidates")
    return found


def tell(searcher: PromptSearcher, batch: Sequence[Candidate], values: Sequence[float]) -> None:
    """Tell one number per candidate."""
    with calling(f"tell({len(batch)} candidates, {short(list(values), 60)})"):
        searcher.tell(tuple(batch), Scores.of_values(batch, np.array(values, dtype=np.float64)))


def play(searcher: PromptSearcher, generations: int = GENERATIONS, above: float = 0.0) -> list[str]:
    """Direct ask and tell, each candidate better than those before and than ``above``; the keys of all."""
    keys: list[str] = []
    for _ in range(generations):
        batch = ask(searcher)
        tell(searcher, batch, [above + (len(keys) + i) / 1000 for i in range(len(batch))])
        keys += [candidate.key for candidate in batch]
    return keys


@check("ask", prompt=True)
def asks(kit: Kit) -> None:
    """ask(n) gives n candidates at most, of the searcher's kind, and no fewer than one."""
    searcher = make(kit)
    kinds = {"text": TextPrompt, "soft": SoftPrompt}
    for n in (1, 3, searcher.generation, 2 * searcher.generation + 1):
        batch = ask(searcher, n)
        expect(len(batch) <= n, f"ask({n}) gave {len(batch)} candidates, right: {n} at most")
        for candidate in batch:
            right_kind = isinstance(candidate, kinds[searcher.kind])
            expect(right_kind, f"ask({n}) gave {short(candidate)}, right: kind {searcher.kind!r}, as it declares")
        tell(searcher, batch, [0.5] * len(batch))


@check("tell", prompt=True)
def tells(kit: Kit) -> None:
    """tell takes NaN and infinities, any order, candidates again, strangers, and none at all."""
    searcher = make(kit)
    batch = ask(searcher)
    odd = [math.nan, math.inf, -math.inf, 1.0, 0.0]
    tell(searcher, batch[::-1], [odd[i % len(odd)] for i in range(len(batch))])
    tell(searcher, batch[:2], [0.25] * len(batch[:2]))
    strangers = ask(make(kit, seed=99))[-3:]
    if searcher.kind == "text":
        strangers = [*strangers, TextPrompt("never asked for"), TextPrompt("")]
    tell(searcher, strangers, [0.5] * len(strangers))
    tell(searcher, [], [])
    tell(searcher, batch, [math.nan] * len(batch))
    with when("after odd tells"):
        play(searcher)


def partial_scores(problem: Problem, batch: Sequence[Candidate], seed: int = 0) -> Scores:
    """Made-up scores of an LM: the first candidate on all examples, the last on none, the others on about half."""
    rng = np.random.default_rng(seed)
    pairs = rng.random((len(batch), len(problem.gold))) < 0.5
    pairs[0], pairs[-1] = True, len(batch) == 1
    candidate, example = np.nonzero(pairs)
    logits = rng.normal(size=(len(candidate), max(len(problem.label_ids), 1)))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = len(problem.label_ids) > 1
    missing = np.argwhere(~pairs)
    return Scores(
        candidates=tuple(batch),
        examples=np.arange(len(problem.gold)),
        candidate=candidate,
        example=example,
        sample=np.zeros(len(candidate), dtype=np.int32),
        value=right(log_probs, problem.gold[example]) if labels else rng.random(len(candidate)),
        label_log_probs=log_probs if labels else None,
        tokens=np.full(len(candidate), 12),
        seconds=np.full(len(candidate), 1e-3),
        errors=tuple(PairError(int(c), int(e), "made up") for c, e in missing[:1]),
    )


@check("partial-rows", prompt=True)
def partial_rows(kit: Kit) -> None:
    """tell takes scores of an LM where candidates were evaluated on some examples only, on none, or failed."""
    searcher = make(kit)
    for seed in range(GENERATIONS):
        batch = ask(searcher)
        with calling("tell(scores with partial rows)"):
            searcher.tell(tuple(batch), partial_scores(searcher.problem, batch, seed))
    with when("after scores with partial rows"):
        play(searcher)


@check("state-dict", prompt=True)
def state_dict(kit: Kit) -> None:
    """state_dict, taken in the middle of a generation, goes on identically in a new searcher, and is a copy."""
    searcher = make(kit)
    play(searcher)
    batch = ask(searcher)
    half = len(batch) // 2
    tell(searcher, batch[:half], [0.5] * half)
    with calling("state_dict() and pickle.dumps() of it"):
        state = searcher.state_dict()
        pickled = pickle.dumps(state)
    rest = batch[half:]
    tell(searcher, rest, [0.6] * len(rest))
    expected = play(searcher, above=0.7)
    expect(pickle.dumps(state) == pickled, "state_dict() changed when its searcher went on, right: a copy of the state")
    copy = make(kit)
    with calling("load_state_dict()"):
        copy.load_state_dict(pickle.loads(pickled))
    tell(copy, rest, [0.6] * len(rest))
    expect_same(play(copy, above=0.7), expected, "load_state_dict() of a pickled state: it differs from the original")


@check("plain-state", prompt=True)
def plain_state(kit: Kit) -> None:
    """state_dict is plain data: containers, numbers, texts and NumPy arrays; no tensor, no handle of an actor."""
    searcher = make(kit)
    play(searcher)
    ask(searcher)
    with calling("state_dict()"):
        state = searcher.state_dict()
    with calling("pickle of state_dict()"):
        pickle.loads(pickle.dumps(state))
    _walk(state, "state_dict()")


def _walk(value: Any, path: str) -> None:
    if isinstance(value, PLAIN):
        return
    if isinstance(value, np.ndarray) and value.dtype != object:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            _walk(key, f"a key of {path}")
            _walk(inner, f"{path}[{short(key, 40)}]")
    elif isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        for number, inner in enumerate(value):
            _walk(inner, f"{path}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name in (f.name for f in dataclasses.fields(value)):
            _walk(getattr(value, name), f"{path}.{name}")
    else:
        kind = type(value)
        raise Failed(f"{path} is a {kind.__module__}.{kind.__qualname__}, right: plain data (np.asarray for a tensor)")
