"""``rayprompt grafana install``: the dashboard of searches beside Ray's own, and on Ray's Metrics page.

Ray writes its Grafana dashboards into a folder that Grafana reads again every few seconds. Its Metrics page shows one
of them whole, the default one: the panels of rayprompt are put on top of it. A head node that starts writes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import typer

from rayprompt.cli.say import say
from rayprompt.clusterfiles.shipped import shipped
from rayprompt.errors import InputError
from rayprompt.foreign import read_json
from rayprompt.typed import check

NAME = "rayprompt_grafana_dashboard.json"
RAYS = "default_grafana_dashboard.json"  # what the tab Core of the Metrics page shows
OURS = range(9000, 9100)  # ids of our panels: Ray's are smaller

app = typer.Typer(help="The Grafana dashboard of searches.", rich_markup_mode=None)


@app.callback()
def root() -> None:
    """The Grafana dashboard of searches."""


@app.command()
def install(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Where Grafana finds dashboards. RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR unless said, else where the "
            "head node that runs here writes Ray's.",
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Also on the Metrics page of Ray's dashboard, above Ray's panels.")
    ] = True,
) -> None:
    """Put the dashboard where Grafana finds Ray's. Run it on the head node, again whenever that was started anew."""
    from rayprompt.study.results import write_json

    where = folder.expanduser() if folder is not None else default_folder()
    if not where.is_dir():
        raise InputError(
            f"{where}: no folder of Grafana dashboards; start Ray's head node here (ray start --head), or say where it "
            "is with --dir"
        )
    board = read_json(dashboard_file())
    write_json(where / NAME, board)
    rays = where / RAYS
    if page and rays.is_file():
        write_json(rays, with_panels(_read(rays), board))
        say(f"{where / NAME}: written, and put on Ray's Metrics page ({RAYS}); Grafana shows it within 10 s")
    else:
        say(f"{where / NAME}: written; Grafana shows it within 10 s as dashboard 'rayprompt'")


# What is read of a dashboard of Ray's.
class Place(TypedDict):
    y: int


class Panel(TypedDict):
    gridPos: Place
    panels: NotRequired[list[dict[str, Any]] | None]


class Variable(TypedDict):
    name: str


class Variables(TypedDict):
    list: NotRequired[list[Variable]]


class Dashboard(TypedDict):
    panels: list[Panel]
    templating: NotRequired[Variables]


def dashboard_file() -> Path:
    """The dashboard that comes with rayprompt."""
    return shipped("grafana/rayprompt.json")


def default_folder() -> Path:
    """Where the head node on this machine writes Ray's dashboards, as Ray itself finds it."""
    given = os.environ.get("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR")
    if given:
        return Path(given)
    session = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "session_latest" / "metrics"
    return Path(os.environ.get("RAY_METRICS_OUTPUT_ROOT") or session) / "grafana" / "dashboards"


def with_panels(rays: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Ray's dashboard with our panels above its own and our variables behind its own; what was there of ours goes."""
    theirs = [panel for panel in rays.get("panels", []) if panel.get("id") not in OURS]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in ours["panels"])
    top = min((panel["gridPos"]["y"] for panel in theirs), default=0)
    moved = [_moved(panel, height - top) for panel in theirs]
    names = {variable["name"] for variable in ours["templating"]["list"]}
    own = {"datasource", "SessionName"}  # Ray's dashboard has these, and its page sets them
    variables = [v for v in rays.get("templating", {}).get("list", []) if v["name"] not in names - own]
    have = {variable["name"] for variable in variables}
    variables += [variable for variable in ours["templating"]["list"] if variable["name"] not in have]
    templating = {**rays.get("templating", {}), "list": variables}
    return {**rays, "panels": [*ours["panels"], *moved], "templating": templating}


def _moved(panel: dict[str, Any], by: int) -> dict[str, Any]:
    """A panel, or a row with the panels that are folded into it, that much lower."""
    place = {**panel["gridPos"], "y": panel["gridPos"]["y"] + by}
    inside = {"panels": [_moved(p, by) for p in panel["panels"]]} if panel.get("panels") else {}
    return {**panel, "gridPos": place, **inside}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        check(content, Dashboard, str(path))
    except InputError as error:
        raise InputError(f"{error}: is no dashboard of Ray's; --no-page leaves it alone") from None
    return content
