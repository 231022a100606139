"""The kit: how checks are registered and run, and how they make searchers."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher, SearchGenerator

from rayprompt.testing.faults import Failed, Skip, calling, expect, one_line, short
from rayprompt.testing.play import METRIC, Config, TuneRun

SPEC = {"stop": None, "num_samples": 1000, "time_budget_s": None}  # what Tune adds to set_search_properties


@dataclass(frozen=True)
class Outcome:
    """What came of one check; ``message`` says what was done, what came and what is right, or why it was skipped."""

    check: str
    passed: bool
    message: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Check:
    """A check: ``run`` raises :class:`Failed` or :class:`Skip`."""

    name: str
    run: Callable[[Kit], None]
    prompt: bool

    @property
    def description(self) -> str:
        """The first line of the docstring of ``run``."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def outcome(self, kit: Kit) -> Outcome:
        """Run the check; whatever is raised becomes a message."""
        if self.prompt and not kit.prompt:
            return Outcome(self.name, True, "for PromptSearchers only", skipped=True)
        try:
            self.run(kit)
        except Failed as fault:
            return Outcome(self.name, False, str(fault))
        except Skip as reason:
            return Outcome(self.name, True, str(reason), skipped=True)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            return Outcome(self.name, False, f"the check itself broke ({at.filename}:{at.lineno}): {one_line(error)}")
        return Outcome(self.name, True)


REGISTERED: dict[str, Check] = {}


def check(name: str, *, prompt: bool = False) -> Callable[[Callable[[Kit], None]], Callable[[Kit], None]]:
    """Register a check; ``prompt``: it is for PromptSearchers only."""

    def register(run: Callable[[Kit], None]) -> Callable[[Kit], None]:
        REGISTERED[name] = Check(name, run, prompt)
        return run

    return register


@dataclass(frozen=True)
class Kit:
    """How to make searchers of the kind under test, and what else the caller of the kit said about them."""

    factory: Callable[..., Searcher]
    evaluate: Callable[[Config], float] | None = None
    space: Config | None = None
    baseline: bool = False
    bytes_per_trial: int = 4096

    @cached_property
    def prompt(self) -> bool:
        """Whether they are PromptSearchers, whose trials are batches of candidates."""
        from rayprompt.searcher.base import PromptSearcher

        return isinstance(self.make(metric=METRIC, mode="max"), PromptSearcher)

    @cached_property
    def takes_seed(self) -> bool:
        """Whether the factory takes a seed."""
        try:
            self.make(seed=0)
        except Failed:
            return False
        return True

    @cached_property
    def generation(self) -> int:
        """Candidates in a generation of the PromptSearchers."""
        return int(getattr(self.make(), "generation", 1))

    def make(self, **keywords: Any) -> Searcher:
        """What the factory gives, blank: it knows nothing of the caller's space yet."""
        given = ", ".join(f"{name}={short(value, 30)}" for name, value in keywords.items())
        try:
            searcher = self.factory(**keywords)
        except Exception as error:
            found = re.search(r"(unexpected|multiple values for) keyword argument '(\w+)'", str(error))
            if isinstance(error, TypeError) and found and found[2] in keywords:
                what = "the constructor takes no" if found[1] == "unexpected" else "the factory itself gives a"
                raise Failed(f"{what} {found[2]}") from error
            raise Failed(f"factory cannot be called: factory({given}) raised {one_line(error)}") from error
        expect(isinstance(searcher, Searcher), f"factory({given}) gave {short(searcher)}, right: a Searcher")
        return searcher

    def new(self, *, metric: str | None = METRIC, mode: str | None = "max", **keywords: Any) -> Searcher:
        """A searcher that is ready to suggest: it has a metric, a mode and a space."""
        searcher = self.make(metric=metric, mode=mode, **keywords)
        if self.space is not None:
            self.give(searcher, metric, mode)
        return searcher

    def give(self, searcher: Searcher, metric: str | None, mode: str | None, **constants: Any) -> None:
        """What Tune does with a non-empty ``param_space``: the caller's space, and constants."""
        config = {**(self.space or {}), **constants}
        what = f"set_search_properties({metric!r}, {mode!r}, {short(config)})"
        with calling(what):
            taken = SearchGenerator(searcher).set_search_properties(metric, mode, config, **SPEC)
        expect(taken is not False, f"{what} returned False, right: True, and metric and mode adopted")

    def limited(self, most: int, *, batch: bool = False) -> ConcurrencyLimiter:
        """A searcher that is ready to suggest, in a ConcurrencyLimiter."""
        limiter = ConcurrencyLimiter(self.make(metric=METRIC, mode="max", **self.maybe_seed(0)), most, batch)
        if self.space is not None:
            self.give(limiter, METRIC, "max")
        return limiter

    def maybe_seed(self, seed: int) -> dict[str, Any]:
        """The keyword ``seed`` where the factory takes one: for checks that gain from it but do not need it."""
        return {"seed": seed} if self.takes_seed else {}

    def run(self, searcher: Searcher, **how: Any) -> TuneRun:
        """A :class:`TuneRun` of a searcher."""
        return TuneRun(self, searcher, **how)

    def save(self, searcher: Searcher, folder: str) -> None:
        """Save a searcher the way Tune does it, which goes on where a searcher does not implement it."""
        with calling("save()"):
            SearchGenerator(searcher).save_to_dir(folder, "session")

    def restored(self, searcher: Searcher, limit: int | None = None, **keywords: Any) -> Searcher:
        """A blank searcher, restored from what ``searcher`` saves, the way Tune does it.

        Args:
            searcher: whose state it is.
            limit: both are in a ConcurrencyLimiter of so many trials.
            keywords: for the factory.
        """
        blank = self.make(metric=METRIC, mode="max", **self.maybe_seed(0), **keywords)
        if limit is not None:
            blank = ConcurrencyLimiter(blank, max_concurrent=limit)
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            self.save(searcher, folder)
            with calling("restore() into a blank searcher"):
                SearchGenerator(blank).restore_from_dir(folder)
        return blank
