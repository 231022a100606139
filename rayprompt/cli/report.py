"""``rayprompt report``: studies as a page that people look at."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rayprompt.cli.options import JsonOption
from rayprompt.cli.say import say, say_json

REPORT_SCHEMA = "rayprompt.report/1"


def report(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY...", help="Directories of searches or comparisons, finished or not."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file; STUDY/report.html unless said, of several ./report.html."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write what studies found as one HTML file that needs no network: leaderboard, curves, cost, prompts, examples."""
    from rayprompt.report.page import write_report
    from rayprompt.study.place import is_uri

    path = write_report(studies, out)
    there = out is None and len(studies) == 1 and is_uri(studies[0])
    at, mark, query = studies[0].partition("?")
    place = f"{at}/{path.name}{mark}{query}" if there else str(path)
    say(f"report in {shlex.quote(place)}")
    if json_:
        content = {
            "schema": REPORT_SCHEMA,
            "report": place if there else str(path.resolve()),
            "studies": [s if is_uri(s) else str(Path(s).expanduser().resolve()) for s in studies],
        }
        say_json({**content, "bytes": path.stat().st_size})
