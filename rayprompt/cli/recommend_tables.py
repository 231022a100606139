"""How ``rayprompt recommend eval`` shows what it found."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from rayprompt.printable import flat
from rayprompt.reward.assess import Assessment

WIDE = 160  # columns, where there is no terminal


def show(result: Assessment) -> None:
    """Tables: probabilities, choices, calls, and the two kinds of votes at as many calls."""
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=WIDE, markup=False)  # nobody's window: headings are not cut
    title = flat(f"{result.model} on {result.llm}, {result.n:,} instances")
    table = Table(box=box.SIMPLE, title=title, title_justify="left")
    for name in (
        "probabilities on",
        "n",
        "AUC",
        "within query",
        "Brier",
        "(prior)",
        "accuracy",
        "(majority)",
        "cal. error",
    ):
        table.add_column(name, justify="left" if name == "probabilities on" else "right")
    for name, q in result.quality.items():
        values = (q.auc, q.auc_within, q.brier, q.brier_prior, q.accuracy, q.majority, q.calibration)
        table.add_row(flat(name), f"{q.n:,}", *(f"{v:.3f}" for v in values))
    console.print(table)
    table = Table(box=box.SIMPLE)
    for name in ("choice", "n", "success", "se", "over best on train", "se", "LM calls"):
        table.add_column(name, justify="left" if name == "choice" else "right")
    for o in result.outcomes:
        numbers = (f"{o.success:.3f}", f"{o.se:.3f}", f"{o.gain:+.3f}", f"{o.gain_se:.3f}", f"{o.calls:g}")
        table.add_row(o.rule, f"{o.n:,}", *numbers)
    console.print(table)
    if result.votes:
        table = Table(box=box.SIMPLE)
        for name in ("votes", "LM calls", "success", "se", "price of a call"):
            table.add_column(name, justify="left" if name == "votes" else "right")
        for kind, points in (("majority of the k best", result.votes), ("cost-aware", result.frontier)):
            for p in points:
                price = "" if p.price is None else f"{p.price:g}"
                table.add_row(kind, f"{p.calls:.2f}", f"{p.success:.3f}", f"{p.se:.3f}", price)
        console.print(table)
        table = Table(box=box.SIMPLE)
        for name in ("LM calls", "majority", "cost-aware", "difference", "se"):
            table.add_column(name, justify="right")
        for c in result.compared:
            rates = (f"{c.majority:.3f}", f"{c.cost_aware:.3f}", f"{c.gain:+.3f}", f"{c.gain_se:.3f}")
            table.add_row(str(c.calls), *rates)
        console.print(table)
    if result.note:
        console.print(flat(result.note))
