"""What a person sees while a search runs and when it ends. Everything goes to standard error but the result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rayprompt.candidate import SoftPrompt
from rayprompt.cli.say import say
from rayprompt.printable import flat
from rayprompt.racing import race_line
from rayprompt.study.progress import Progress
from rayprompt.study.results import VECTORS_FILE, Result
from rayprompt.unanswered import shown

PLAIN_EVERY_SECONDS = 5.0


class Display:
    """A listener: one live line per search in a terminal, plain lines every few seconds elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.latest: dict[str, Progress] = {}
        self.live: Live | None = None
        self.last_plain = -math.inf

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(console=self.console, transient=True, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __call__(self, progress: Progress) -> None:
        if progress.phase != "search":
            self.console.print(flat(progress.message), style="dim", highlight=False, markup=False, soft_wrap=True)
            return
        self.latest[progress.search] = progress
        if self.live is not None:
            self.live.update(self._lines())
        elif time.monotonic() - self.last_plain >= PLAIN_EVERY_SECONDS:
            self.last_plain = time.monotonic()
            self.console.print(flat(_plain(progress)), highlight=False, markup=False, soft_wrap=True)

    def _lines(self) -> Group:
        """A line per search, cut at the terminal's edge: what is cut is the end of the prompt."""
        return Group(*(Text(flat(_plain(p)), no_wrap=True, overflow="ellipsis") for p in self.latest.values()))


def show_result(result: Result, *, to_stderr: bool) -> None:
    """The outcome: the prompt, how good it is, the baselines, and where everything lies."""
    prompt = result.best_prompt
    text = f"soft, {prompt.subspace.length} tokens" if isinstance(prompt, SoftPrompt) else repr(prompt.text)
    rows = [("best prompt", text, result.dev, result.test)]
    if result.decoded is not None:
        decoded = result.decoded
        rows.append(("as text", repr(_short(decoded.prompt.text)), decoded.dev, decoded.test))
    rows += [(f"{name} prompt", repr(b.prompt.text), b.dev, b.test) for name, b in result.baselines.items()]
    table = [("", "prompt", f"dev {result.dev.metric}", f"test {result.test.metric} [95 % interval]")]
    for name, prompt_shown, dev, test in rows:
        interval = f"[{test.ci95[0]:.3f}, {test.ci95[1]:.3f}]"
        table.append((name, prompt_shown, f"{dev.value:.3f}", f"{test.value:.3f} {interval}"))
    for line in (*columns(table), *_remarks(result)):
        say(line, to_stderr=to_stderr)


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, the cells of each column under each other."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _remarks(result: Result) -> list[str]:
    lines = []
    if result.p_value is not None:
        gain = result.test.value - result.baselines["manual"].test.value
        lines.append(
            f"against the manual prompt on test: {gain:+.3f}, "
            f"p = {result.p_value:.2g} ({result.p_test}, n={result.test.n})"
        )
        if gain <= 0:
            lines.append("the search found nothing better than the manual prompt: more train and dev examples may help")
    if result.top:
        values = [e.value for e in result.top]
        mean = sum(values) / len(values)
        lines.append(f"test {result.test.metric} of the {len(values)} best on dev, as papers give it: mean {mean:.3f}")
    if result.test_opened > 1:
        lines.append(
            f"test was opened {result.test_opened} times, with a growing budget: its figures are no longer untouched"
        )
    if result.replay_differs:
        lines.append(
            f"{result.replay_differs} recorded generations were not what the searcher asked for after the resume "
            "(other versions of libraries?): the record was kept, the run cannot be repeated bit for bit"
        )
    if isinstance(result.best_prompt, SoftPrompt):
        lines.append(f"its vectors are in {result.study_dir}/{VECTORS_FILE}; 'as text' are the tokens nearest to them")
    elif not result.round_trips:
        lines.append("the prompt's text does not give its tokens back: use the token ids in prompt.json")
    if line := shown(result.unanswered):
        lines.append(line)
    if result.cut:
        lines.append(f"{result.cut:,} completions were cut at the limit of new tokens (--lm max_tokens)")
    for part, count in result.truncated.items():
        if count:
            lines.append(f"{count} texts of {part} were truncated to fit {result.model}")
    for parts, count in result.leaks.items():
        lines.append(f"warning: {count} texts stand in both parts of {parts}")
    if result.proxy_model is not None:
        lines.append(
            f"searched on {result.proxy_model}, then decoded to text: all figures here are those of {result.model}"
        )
    if result.race is not None:
        lines.append(f"race: {race_line([result.race])}")
    if result.tokens and (result.written or result.cost is not None):
        money = "" if result.cost is None else f"; search and report cost {result.cost:.4g}"
        lines.append(f"the search took {result.tokens:,} tokens, {result.written:,} of them written{money}")
    lines.append(
        f"{result.evaluations:,} evaluations at {result.evaluations_per_second:,.0f}/s, "
        f"{result.seconds:.0f} s in all (ended: {result.end}); study in {result.study_dir}"
    )
    return lines


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _plain(p: Progress) -> str:
    # A search that was just resumed has scored nothing since.
    rate = f"{p.evaluations_per_second:,.0f}/s, ETA {clock(p.eta_seconds)}" if p.evaluations_per_second else "resumed"
    spent = f"{p.evaluations:,} of {p.budget:,} evaluations"
    return f"{p.search}: best on train {p.best_score:.3f}, {spent}, {rate}: {p.best_prompt}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = max(0, int(seconds))
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
