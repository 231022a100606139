"""The whole page: one HTML file that loads nothing, and may not."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayprompt import __version__
from rayprompt.errors import InputError
from rayprompt.report.board import Arena, arenas_of
from rayprompt.report.details import again, examples, prompts, settings
from rayprompt.report.examples import Matrix, matrices
from rayprompt.report.markup import Markup, embedded, join, tag
from rayprompt.report.model import Study
from rayprompt.report.read import read_study
from rayprompt.report.sections import cost, curves, found, leaderboard, overall
from rayprompt.store.files import Folder
from rayprompt.study.place import is_uri, opened
from rayprompt.study.whole import write_whole
from rayprompt.task import Task
from rayprompt.typed import shown

FILE = "report.html"
HERE = Path(__file__).parent
GENERATOR = "rayprompt report"


def write_report(locations: Sequence[str | Path], out: Path | None = None, tasks: Sequence[Task] = ()) -> Path:
    """Write the report of studies, finished or not, and give its path: here, also where the study is elsewhere.

    Args:
        locations: the studies' directories.
        out: the file; None is ``report.html`` in the study's directory, of several studies in the working directory.
        tasks: those that are in memory: they need not be read again.

    Raises:
        InputError: one is not a study, or there is another file where the report should go.
        StoreError: it cannot be written.
    """
    studies = [read_study(location) for location in locations]
    there = len(locations) == 1 and out is None and is_uri(locations[0])
    if out is None:
        out = Path(FILE) if len(locations) > 1 else opened(locations[0]) / FILE
    check_out(out)
    try:
        page = render(studies, tasks)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        names = ", ".join(str(location) for location in locations)
        raise InputError(f"STUDY {names}: its files hold what cannot be shown ({shown(error)})") from error
    write_whole(out, page)
    if there:
        Folder.at(locations[0]).write(FILE, out.read_bytes())
    return out


def check_out(out: Path) -> None:
    """Raise ``InputError`` where a file would be lost that is no report, or there is no place for one."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: must be a file in a directory that is there")
    if os.path.lexists(out) and not out.is_file():
        raise InputError(f"--out {out}: is a device, a pipe or a broken link, and no file; it is not written over")
    if out.is_file():
        with out.open("rb") as stream:
            begin = stream.read(2000)
        if begin and GENERATOR.encode() not in begin:
            raise InputError(f"--out {out}: is there already, and no report of rayprompt's; it is not written over")


def render(studies: Sequence[Study], tasks: Sequence[Task] = ()) -> str:
    """The page as text. The same studies give the same page."""
    studies = _named_apart(studies)
    arenas, notes = arenas_of(studies)
    remarks = [f"{study.name}: {line}" if len(studies) > 1 else line for study in studies for line in study.remarks]
    named = matrices(studies, tasks, remarks)
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    main: list[Markup | None] = []
    data: list[dict[str, Any]] = []
    several = len(arenas) > 1
    main += [_notes([*notes, *remarks])] if several and (notes or remarks) else []
    for study in studies:
        whole = next((table for table in study.tables if table["task"] is None), None)
        if whole is not None:
            main.append(tag("section", tag("h2", "All together"), overall(whole), id="overall"))
    for i, arena in enumerate(arenas):
        own = [(name, m) for name, m in named if (m.stratum[0], m.stratum[2]) == (arena.task, arena.model)]
        own = [(name, m) for name, m in own if name in {study.name for study in arena.studies}]
        parts, listed = _arena(arena, f"a{i}", own, several, len(named))
        if several:
            main.append(tag("section", tag("h2", arena.title), parts, id=f"a{i}", class_="arena"))
        else:
            main += [parts[0], _notes([*notes, *remarks]) if notes or remarks else None, *parts[1:]]
        data += listed
    main.append(_section("settings", "Settings and versions", [settings(study) for study in studies]))
    main.append(_section("again", "How to do it again", [_named_again(study, len(studies) > 1) for study in studies]))
    title = _title(studies, arenas)
    body = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag(
            "header",
            tag("p", "rayprompt", class_="brand"),
            tag("h1", title),
            tag("p", _subtitle(studies)),
            _nav(arenas, bool(data)),
        ),
        tag("main", main, id="main"),
        tag("footer", tag("p", f"Written by rayprompt {__version__}. This page loads nothing from anywhere.")),
        embedded({"matrices": data}, "data"),
        Markup(f"<script>{script}</script>"),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - rayprompt"),
        Markup(f"<style>{style}</style>"),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _arena(
    arena: Arena, id_: str, named: Sequence[tuple[str, Matrix]], several: bool, share: int
) -> tuple[list[Markup], list[dict[str, Any]]]:
    """The sections on one task and LM, what was found first."""
    at = "" if not several else f"{id_}-"
    level = "h3" if several else "h2"
    parts = [
        _section(f"{at}found", "What was found", [found(arena)], level),
        _section(f"{at}leaderboard", "Leaderboard", [leaderboard(arena)], level),
        _section(f"{at}curves", "Curves", [curves(arena, id_)], level),
        _section(f"{at}cost", "Cost", [cost(arena, id_)], level),
        _section(f"{at}prompts", "Prompts", [prompts(arena)], level),
    ]
    data: list[dict[str, Any]] = []
    if named:
        shown, data = examples(named, share, "h4" if several else "h3")
        about = tag("p", "Which examples one prompt gets right and another does not.", class_="quiet")
        parts.append(_section(f"{at}examples", "Examples", [about, shown], level))
    return parts, data


def _section(id_: str, title: str, content: Sequence[object], level: str = "h2") -> Markup:
    return tag("section", tag(level, title), content, id=id_)


def _notes(lines: Sequence[str]) -> Markup:
    heading = tag("h2", "What to know")
    return tag(
        "section", heading, tag("ul", [tag("li", line) for line in dict.fromkeys(lines)]), id="notes", class_="notes"
    )


def _nav(arenas: Sequence[Arena], compared: bool) -> Markup:
    """Of several tasks or LMs a link each, of one a link to each of its sections."""
    names = ["found", "leaderboard", "curves", "cost", "prompts", *(["examples"] if compared else [])]
    links = [tag("a", name.capitalize(), href=f"#{name}") for name in names]
    if len(arenas) > 1:
        links = [tag("a", arena.title, href=f"#a{i}") for i, arena in enumerate(arenas)]
    links += [tag("a", "Settings", href="#settings"), tag("a", "Do it again", href="#again")]
    return tag("nav", links, aria_label="Sections")


def _title(studies: Sequence[Study], arenas: Sequence[Arena]) -> str:
    if len(studies) > 1:
        return f"{len(studies)} studies on {', '.join(dict.fromkeys(arena.task for arena in arenas))}"
    pairs = list(dict.fromkeys(f"{arena.task} on {arena.model}" for arena in arenas))
    return pairs[0] if len(pairs) == 1 else f"{len(pairs)} comparisons: {', '.join(pairs)}"


def _subtitle(studies: Sequence[Study]) -> str:
    """What was done, in a line."""
    parts = []
    for study in studies[:4]:
        searchers = list(dict.fromkeys(run.group for run in study.runs))
        seeds = {run.seed for run in study.runs}
        budget = max(run.budget for run in study.runs)
        many = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {next(iter(seeds))}"
        state = "" if study.finished else "not finished; "
        parts.append(f"{study.name}: {state}{', '.join(searchers)}; {many}, {budget:,} evaluations a run")
    more = [f"and {len(studies) - 4} more"] if len(studies) > 4 else []
    return ". ".join([*parts, *more]) + "."


def _named_again(study: Study, several: bool) -> Markup:
    return join([tag("h3", study.name) if several else None, again(study)])


def _named_apart(studies: Sequence[Study]) -> list[Study]:
    """Studies under different names: where directories share theirs, with the parents'."""
    names = [study.name for study in studies]
    found = []
    for study in studies:
        twice = names.count(study.name) > 1
        found.append(study.renamed(f"{study.path.parent.name}/{study.path.name}") if twice else study)
    return found


def _asset(name: str) -> str:
    """A file of the package that stands in the page, without its comments."""
    text = (HERE / name).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\n\s*(//[^\n]*)?(?=\n)", "", text).strip()


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, and nothing run but these two."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
