"""How ``rayprompt recommend eval`` shows what it found."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from rayprompt.reward.assess import Assessment


def show(result: Assessment) -> None:
    """Three tables: probabilities, choices, calls."""
    console = Console()
    table = Table(box=box.SIMPLE, title=f"{result.model} on {result.llm}, {result.n:,} instances", title_justify="left")
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
        table.add_row(name, f"{q.n:,}", *(f"{v:.3f}" for v in values))
    console.print(table)
    table = Table(box=box.SIMPLE)
    for name in ("choice", "success", "se", "over best on train", "se", "LM calls"):
        table.add_column(name, justify="left" if name == "choice" else "right")
    for o in result.outcomes:
        table.add_row(o.rule, f"{o.success:.3f}", f"{o.se:.3f}", f"{o.gain:+.3f}", f"{o.gain_se:.3f}", f"{o.calls:g}")
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
