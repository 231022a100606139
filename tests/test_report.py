"""`rayprompt report`: what stands on the page, that it is escaped, and that it holds what the studies hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PoolOf
from scipy.stats import binomtest
from test_search import check

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.report.board import arenas_of, charts_of
from rayprompt.report.details import MOST_BYTES, _listed_part, tallies
from rayprompt.report.examples import Part, matrices
from rayprompt.report.markup import VOID, embedded, escaped, printable, tag
from rayprompt.report.page import render, write_report
from rayprompt.report.read import read_study
from rayprompt.report.rebuilt import rebuilt
from rayprompt.study.progress import Progress
from rayprompt.study.statistics import sign_test

pytestmark = pytest.mark.usefixtures("kept_pool", "trials_here")

HOSTILE = '</script><script>alert(1)</script> 🤖 "quotes" & <b>'
BAD_TEXT = "<img src=x onerror=alert(2)> the film was {} , number {} ."
PHRASES = [HOSTILE, "it was", "overall", "<!-- --> ]]> \\u003c", "it simply was", "{{x}} ${y} `z`", "the film", "so"]


@pytest.fixture(scope="module")
def hostile_task() -> rayprompt.Task:
    rows = [{"text": BAD_TEXT.format("good" if i % 2 else "bad", i), "label": i % 2} for i in range(48)]
    return rayprompt.Task.from_examples(
        "small & <i>odd</i>",
        template={"masked": "{text} {prompt} {mask} .", "causal": "{text} {prompt}"},
        label_words={0: "terrible", 1: "great"},
        manual_prompt=HOSTILE,
        train=rows[:12],
        dev=rows[12:24],
        test=rows[24:],
    )


@pytest.fixture(scope="module")
def searched(kept_pool: None, trials_here: None, tmp_path_factory: pytest.TempPathFactory) -> rayprompt.Result:
    """A search on the bundled task whose prompts are hostile."""
    return rayprompt.search(
        searcher="random", budget=64 * len(PHRASES), settings={"phrases": PHRASES}, scorers=1, finalists=8,
        out=tmp_path_factory.mktemp("report") / "searched",
    )  # fmt: skip


@pytest.fixture(scope="module")
def compared(
    pool_of: PoolOf, trials_here: None, hostile_task: rayprompt.Task, tmp_path_factory: pytest.TempPathFactory
) -> rayprompt.Comparison:
    """Three searchers, one of them of soft prompts, on a task whose examples are hostile."""

    @contextmanager
    def kept(source: Any, *_: Any) -> Iterator[Any]:
        yield pool_of(source, 1)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("rayprompt.comparison.compare.loaded", kept)
        return rayprompt.compare(
            hostile_task, searchers=["random", "nevergrad", "random-soft"], seeds=2, budget=12 * 40, baselines=[],
            settings={"*": {"length": 2}}, out=tmp_path_factory.mktemp("report") / "compared", max_concurrent=2,
        )  # fmt: skip


class Page(HTMLParser):
    """Parses a page strictly: every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    def handle_decl(self, decl: str) -> None:
        assert decl == "doctype html"

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(study: Path) -> Page:
    return Page((study / "report.html").read_text())


@pytest.fixture(scope="module", params=["searched", "compared"])
def page(request: pytest.FixtureRequest) -> Page:
    return page_of(request.getfixturevalue(request.param).study_dir)


# The page


def test_it_stands_by_itself(page: Page) -> None:
    """One file, two scripts of which one is data, a policy that forbids the rest, and no address of anything."""
    assert [attributes.get("type") for attributes in page.all("script")] == ["application/json", None]
    policies = [a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")
    assert "unsafe" not in policies[0]
    for name, attributes in page.elements:
        assert name not in ("img", "iframe", "object", "embed", "base", "form", "style" if name != "style" else "")
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "style", "action")]
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#")[:1] == "#" or attributes[key] == "data:,"
    assert not re.findall(r"(?:https?:)?//[\w.-]+", page.scripts[1].replace("http://www.w3.org/2000/svg", ""))


def test_it_is_made_for_those_who_do_not_see_it(page: Page) -> None:
    names = [name for name, _ in page.elements]
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert names.count("caption") == names.count("table")
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for link in page.all("a"):
        assert (link["href"] or "").removeprefix("#") in ids
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-labelledby"] in ids)
    assert page.all("html") == [{"lang": "en"}]


def test_hostile_prompts_and_examples_are_text(searched: rayprompt.Result, compared: rayprompt.Comparison) -> None:
    for study, parts in ((searched.study_dir, [HOSTILE]), (compared.study_dir, [HOSTILE, "small & <i>odd</i>"])):
        page = page_of(study)
        for part in parts:
            assert part in page.words
        data = json.loads(page.scripts[0])["matrices"]
        assert any(prompt.startswith(HOSTILE) for matrix in data for prompt in matrix["prompts"])
    assert BAD_TEXT.split(" the")[0] in page.words
    texts = [example["t"] for part in data[0]["parts"].values() for example in part["examples"]]
    assert sorted(texts) == sorted(BAD_TEXT.format("good" if i % 2 else "bad", i) for i in range(48))


def test_nothing_is_lost_or_let_through() -> None:
    text = "\x00\x1b[31m \x85 \ud800 </script> \u2028 <!-- & \"'"
    page = Page(f"<p>{tag('q', text, title=text, data_x=None)}{embedded({'a': text}, 'data')}</p>")
    assert page.text[0] == printable(text) == "\u2400\u241b[31m \ufffd \ufffd </script> \u2028 <!-- & \"'"
    assert page.elements[1][1] == {"title": printable(text)}
    assert "<" not in page.scripts[0]
    assert json.loads(page.scripts[0])["a"].endswith("</script> \u2028 <!-- & \"'")
    assert escaped(tag("b", 1)) == "<b>1</b>"


def test_every_colour_can_be_read() -> None:
    """WCAG AA: text 4.5 to 1, what is drawn 3 to 1, on both papers."""
    css = (Path(rayprompt.__file__).parent / "report" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colours in (light, dark):
        for paper in ("paper", "panel"):
            for name in ("ink", "soft", "accent", "level", *(f"c{i}" for i in range(8))):
                high, low = sorted((luminance(colours[name]), luminance(colours[paper])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= (4.5 if name in ("ink", "soft", "accent") else 3), (name, paper)


# What it says


def test_what_was_found_by_a_search(searched: rayprompt.Result) -> None:
    page = page_of(searched.study_dir)
    low, high = searched.test.ci95
    assert f"Test accuracy{searched.test.value:.3f}95 % interval [{low:.3f}, {high:.3f}], 480 examples" in page.words
    gain = searched.test.value - searched.baselines["manual"].test.value
    assert f"{gain:+.3f} against the manual prompt, p = {searched.p_value:.2g}" in page.words
    manifest = (searched.study_dir / "study.yaml").read_text()
    assert all(digest in page.words for digest in re.findall(r"digest: (\w+)", manifest))
    command = page.words.partition("# the same again, bit for bit on one device class ")[2].partition(" # ")[0]
    assert f"--budget {searched.budget} \\ --seed {searched.seed}" in command


def test_what_a_comparison_says(compared: rayprompt.Comparison) -> None:
    page = page_of(compared.study_dir)
    table = compared.tables[0]
    for row in table["rows"]:
        low, high = row["test"]["ci95"]
        assert f"{row['searcher']}{row['test']['mean']:.3f}[{low:.3f}, {high:.3f}]" in page.words
    for baseline in table["baselines"]:
        assert f"{baseline['name']} (baseline)" in page.words
    assert "nearest words" in page.words


def test_every_searcher_has_a_line_in_every_chart(compared: rayprompt.Comparison) -> None:
    (arena,), _ = arenas_of([read_study(compared.study_dir)])
    charts = {chart.measure: chart for chart in charts_of(arena)}
    assert set(charts) == {"objective", "score", "dev", "seconds"}
    for chart in charts.values():
        assert {series.name for series in chart.series} == {"random", "nevergrad", "random-soft"}
        assert {series.runs for series in chart.series} == {2}
    ((_, matrix),) = matrices([read_study(compared.study_dir)], [], [])
    assert arena.best is not None
    assert arena.best.winner == matrix.entries[0].prompt
    ends = {series.name: series.points[-1].value for series in charts["score"].series}
    for row in compared.tables[0]["rows"]:
        assert ends[row["searcher"]].mean == pytest.approx(row["score"]["mean"])
        assert [ends[row["searcher"]].low, ends[row["searcher"]].high] == pytest.approx(row["score"]["ci95"])


def test_wins_and_losses_are_those_in_the_files(searched: rayprompt.Result) -> None:
    """Counted anew from the Parquet files: the winner against the manual prompt on test."""
    ((_, matrix),) = matrices([read_study(searched.study_dir)], [], remarks := [])
    assert not remarks
    frame = pq.read_table(searched.study_dir / "scores").to_pandas()
    test = frame[frame["part"] == "test"].pivot_table(
        index="example", columns="candidate", values="value", observed=True
    )
    first, second = (next(e for e in matrix.entries if role in e.roles) for role in ("best", "manual prompt"))
    a, b = test[first.prompt.key], test[second.prompt.key]
    found = tallies(matrix.parts["test"], matrix.entries.index(first), matrix.entries.index(second))
    assert (found["wins"], found["losses"]) == (int((a > b).sum()), int((a < b).sum()))
    assert found["n"] == searched.test.n
    assert matrix.parts["test"].values[matrix.entries.index(first)].mean() == pytest.approx(searched.test.value)
    listed = json.loads(page_of(searched.study_dir).scripts[0])["matrices"][0]["parts"]["test"]
    at = (matrix.entries.index(first), matrix.entries.index(second))
    assert listed["wins"][at[0]][at[1]] == found["wins"]
    assert sign_test(found["wins"], found["losses"]) == pytest.approx(searched.p_value)
    # Test was opened for the winner and the baselines alone; the other finalists have no figures there.
    opened = {matrix.entries[i].prompt.key for i in range(len(matrix.entries)) if listed["scored"][i]}
    assert opened == set(test.columns)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (5, 12), (700, 640)])
def test_the_sign_test_is_exact(wins: int, losses: int) -> None:
    expected = 1.0 if wins + losses == 0 else binomtest(wins, wins + losses, 0.5).pvalue
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-6)


def test_many_examples_stay_small_and_every_count_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (16, 30_000)).astype(float)
    values[3, :100] = np.nan
    texts = tuple("long text 🤖 " * 60 for _ in range(30_000))
    listed = _listed_part(Part(values, texts, ("great",) * 30_000), 500_000)
    assert len(json.dumps(listed, ensure_ascii=False).encode()) < 600_000 < MOST_BYTES
    assert 0 < len(listed["examples"]) < 30_000 == listed["n"]
    assert listed["wins"][0][3] == int((values[0] > values[3]).sum())
    assert listed["both"][0][3] == 29_900
    graded = _listed_part(Part(values[:2] / 3, texts, ("",) * 30_000), 100_000)
    assert not graded["binary"]
    assert set(graded["values"][0]) == {0.0, 0.333}


# However far a study has come


def test_a_search_without_result_is_reported_as_far_as_it_came(searched: rayprompt.Result, tmp_path: Path) -> None:
    study = tmp_path / "cut"
    shutil.copytree(searched.study_dir, study)
    (study / "result.json").unlink()
    for name in ("runs", "report.html"):
        shutil.rmtree(study / name) if (study / name).is_dir() else (study / name).unlink()
    page = Page(render([read_study(study)]))
    assert "Not finished" in page.words
    assert f"to go on: rayprompt search --resume {study}" in page.words
    assert f"{searched.evaluations:,} of {searched.budget:,} evaluations" in page.words
    assert "on train so far" in page.words
    # The run's own file and what is made out of the store alone say the same.
    (whole,) = read_study(searched.study_dir).runs
    (cut,) = read_study(study).runs
    assert cut.best_score == whole.best_score
    assert cut.evaluations == whole.evaluations
    best = {row[0]: row[3] for row in whole.curve}
    assert all(best[row[0]] == row[3] for row in cut.curve if row[0] in best)
    assert cut.finalists[0].train == whole.best_score
    assert rebuilt(replace(cut, search="nobody"), str(study), None).evaluations == cut.evaluations


def test_a_comparison_without_outcome_is_reported(compared: rayprompt.Comparison, tmp_path: Path) -> None:
    study = tmp_path / "cut"
    shutil.copytree(compared.study_dir, study)
    (study / "comparison.json").unlink()
    next((study / "runs").glob("*_nevergrad-s1.json")).unlink()
    page = Page(render([read_study(study)]))
    assert "not finished: 5 of 6 runs have ended" in page.words
    assert "dev and test not opened" in page.words
    (arena,), _ = arenas_of([read_study(study)])
    assert len(arena.rows) == 3
    assert {series.name for series in charts_of(arena)[0].series} == {"random", "nevergrad", "random-soft"}


def test_several_studies_are_put_side_by_side_where_they_can_be(
    searched: rayprompt.Result, compared: rayprompt.Comparison, tmp_path: Path
) -> None:
    other = rayprompt.search(
        searcher="random", budget=64 * 4, seed=1, settings={"phrases": PHRASES}, scorers=1, out=tmp_path / "other"
    )
    page = Page(render([read_study(s.study_dir) for s in (searched, other, compared)]))
    assert "figures of different tasks or LMs are not comparable" in page.words
    assert "the budgets are not equal" in page.words
    assert "random (512 evaluations)" in page.words
    again = tmp_path / "again"
    shutil.copytree(searched.study_dir, again)
    (arena,), notes = arenas_of([read_study(searched.study_dir), read_study(again)])
    assert not notes
    assert len(arena.rows) == 1
    assert "it counts once" in arena.remarks[0]
    shutil.copytree(searched.study_dir, tmp_path / "changed")
    yaml = tmp_path / "changed" / "study.yaml"
    text = yaml.read_text().rpartition("# sha256: ")[0]  # edited by hand
    yaml.write_text(re.sub(r"(task:(?:.*\n)*?  digest: )\w+", r"\g<1>'0000'", text, count=1))
    arenas, notes = arenas_of([read_study(searched.study_dir), read_study(tmp_path / "changed")])
    assert len(arenas) == 2
    assert "changed is not comparable with searched on reviews, tiny-masked" in notes[0]
    page = Page(render([read_study(searched.study_dir), read_study(tmp_path / "changed")]))
    assert "its task has changed since: examples are shown by their digests" in page.words


def test_a_page_that_cannot_be_written_costs_a_line(tmp_path: Path) -> None:
    lines: list[str] = []

    def listen(progress: Progress) -> None:
        lines.append(progress.message)
        if progress.phase == "report":
            (tmp_path / "s" / "report.html").mkdir(exist_ok=True)

    found = rayprompt.search(
        searcher="random", budget=64 * 2, settings={"phrases": PHRASES}, scorers=1, out=tmp_path / "s", listener=listen
    )
    assert found.test.n > 0
    assert (tmp_path / "s" / "result.json").is_file()
    assert re.fullmatch(r"warning: .*report.html was not written \(InputError: .*\); the result is whole", lines[-1])


# The command


def test_the_command(
    searched: rayprompt.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = str(searched.study_dir)
    assert run(app, ["report", study, "--out", "page.html", "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    check(content)
    assert content["studies"] == [study]
    assert content["bytes"] == (tmp_path / "page.html").stat().st_size < 2_000_000
    assert (tmp_path / "page.html").read_text() == (searched.study_dir / "report.html").read_text()
    assert run(app, ["report", study, study]) == 0
    assert (tmp_path / "report.html").is_file()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert run(app, ["report", study, "--out", "mine.html"]) == 2
    assert "no report of rayprompt's" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, "not a study that has begun"),
        ({"study.yaml": "schema: other/1"}, "schema 'other/1'; a study has one of"),
        ({"study.yaml": "{"}, "study.yaml, line 1: not YAML ("),
        ({"study.yaml": "schema: rayprompt.study/4"}, "study.yaml: id is missing; it must be text"),
    ],
)
def test_what_is_no_study_gets_one_line(made: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        write_report([tmp_path])
    with pytest.raises(InputError, match="no such directory"):
        write_report([tmp_path / "nowhere"])


def test_it_needs_neither_torch_nor_ray(searched: rayprompt.Result, tmp_path: Path) -> None:
    arguments = ["report", str(searched.study_dir), "--out", str(tmp_path / "p.html")]
    code = f"import sys; from rayprompt.cli.main import app, run; run(app, {arguments!r}); "
    code += "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# In a browser: nothing goes wrong, tables sort, charts tell their values, nothing breaks on a phone


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if browser.missing():
        pytest.skip(browser.missing())
    with browser.browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(
    searched: rayprompt.Result, compared: rayprompt.Comparison, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Of a search, of a comparison, of both."""
    both = tmp_path_factory.mktemp("pages") / "both.html"
    write_report([searched.study_dir, compared.study_dir], both)
    return [searched.study_dir / "report.html", compared.study_dir / "report.html", both]


@pytest.fixture
def shown(driver: Any, pages: list[Path]) -> Iterator[Any]:
    """The comparison's, on a desktop; whatever a test does there, the console stays empty."""
    driver.get_log("browser")
    browser.show(driver, pages[1])
    yield driver
    assert driver.get_log("browser") == []


def find(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def test_no_page_says_anything_on_the_console_or_asks_the_network(driver: Any, pages: list[Path]) -> None:
    driver.get_log("browser")
    for page in pages:
        for width, mode in ((1280, "light"), (390, "dark")):
            browser.show(driver, page, width=width, mode=mode)
            assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
            # None of the scripts in prompts and examples has run, nor become an element.
            assert len(find(driver, "script")) == 2
            assert not find(driver, "img")
            with pytest.raises(Exception, match="no such alert"):
                driver.switch_to.alert.accept()
            assert driver.execute_script("return document.documentElement.classList.contains('scripted')")
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 768, 390, 360])
def test_nothing_hangs_over_the_edge(driver: Any, pages: list[Path], width: int) -> None:
    for page in pages:
        browser.show(driver, page, width=width)
        wide = driver.execute_script(
            "for (const d of document.querySelectorAll('details')) d.open = true;"
            "return document.documentElement.scrollWidth"
        )
        assert wide <= width


def test_dark_is_dark(driver: Any, pages: list[Path]) -> None:
    colours = []
    for mode in ("light", "dark"):
        browser.show(driver, pages[1], mode=mode)
        colours.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_hostile_prompts_are_shown_as_they_are(shown: Any) -> None:
    assert any(HOSTILE in element.text for element in find(shown, ".compare strong"))


def test_tables_sort_by_mouse_and_by_keyboard(shown: Any) -> None:
    board = find(shown, "table.board")[0]
    headers = board.find_elements("css selector", "thead th")
    names = [header.text.split("\n")[0].strip() for header in headers]

    def values(column: str) -> list[float]:
        at = names.index(column) + 1
        cells = board.find_elements("css selector", f"tbody:first-of-type tr > :nth-child({at})")
        return [float(cell.get_attribute("data-v")) for cell in cells]

    assert headers[1].get_attribute("aria-sort") == "descending"
    assert values("test accuracy") == sorted(values("test accuracy"), reverse=True)
    for expected, down in (("descending", True), ("ascending", False)):
        headers[names.index("dev")].find_element("css selector", "button").click()
        assert headers[names.index("dev")].get_attribute("aria-sort") == expected
        assert headers[1].get_attribute("aria-sort") is None
        assert values("dev") == sorted(values("dev"), reverse=down)
    button = headers[0].find_element("css selector", "button")
    button.send_keys("\ue007")  # Enter
    searchers = [th.text for th in board.find_elements("css selector", "tbody:first-of-type th")]
    assert searchers == sorted(searchers, reverse=True)
    assert len(board.find_elements("css selector", "tbody:nth-of-type(2) tr")) == 2  # baselines stay below


def test_every_chart_has_a_line_for_every_searcher(shown: Any) -> None:
    charts = find(shown, ".chart")
    assert len(charts) == 4
    for chart in charts:
        lines = chart.find_elements("css selector", ".plot .series")
        assert {line.get_attribute("data-name") for line in lines} == {"random", "nevergrad", "random-soft"}
        for line in lines:
            path = line.find_element("css selector", "path.line")
            assert shown.execute_script("return arguments[0].getTotalLength()", path) > 20
            assert path.value_of_css_property("stroke") != "none"


def test_hover_and_arrow_keys_read_the_values(shown: Any, compared: rayprompt.Comparison) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chart = shown.find_element("id", "a0-score")
    plot = chart.find_element("css selector", ".plot")
    tip = chart.find_element("css selector", ".tip")
    assert not tip.is_displayed()
    shown.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    right = plot.size["width"] // 2 - 4
    ActionChains(shown).move_to_element_with_offset(plot, right, 0).perform()
    assert tip.is_displayed()
    assert tip.text.startswith("480 evaluations")
    for row in compared.tables[0]["rows"]:
        assert f"{row['searcher']}\n{row['score']['mean']:.3f}" in tip.text
    ActionChains(shown).move_to_element(find(shown, "h1")[0]).perform()
    assert not tip.is_displayed()
    shown.execute_script("arguments[0].focus()", plot)
    said = []
    for key in ("\ue010", "\ue012", "\ue011"):  # End, left, Home
        plot.send_keys(key)
        said.append(plot.get_attribute("aria-valuetext"))
    assert said[0].startswith("480 evaluations: ")
    assert len(set(said)) == 3
    assert plot.get_attribute("role") == "slider"
    assert tip.is_displayed()


def test_any_two_prompts_can_be_held_against_each_other(shown: Any) -> None:
    from selenium.webdriver.support.ui import Select

    data = json.loads(shown.find_element("id", "data").get_attribute("textContent"))["matrices"][0]
    selects = [Select(element) for element in find(shown, ".controls select")]
    first, second, part, kind = selects
    assert [option.text for option in part.options] == ["train", "dev", "test"]
    part.select_by_value("dev")
    first.select_by_index(1)
    second.select_by_index(3)
    here = data["parts"]["dev"]
    pairs = list(zip(here["values"][1], here["values"][3], strict=True))
    wins, losses = pairs.count(("1", "0")), pairs.count(("0", "1"))
    text = find(shown, ".pair")[0].text
    assert f"better on {wins}, worse on {losses}, alike on {12 - wins - losses} of 12 examples" in text
    for name, number in (("better", wins), ("worse", losses), ("good", pairs.count(("1", "1")))):
        kind.select_by_value(name)
        items = find(shown, ".pair ol li")
        assert len(items) == number
        assert all("onerror=alert(2)> the film was" in item.text for item in items)


def test_it_can_be_read_without_scripts(driver: Any, pages: list[Path]) -> None:
    browser.show(driver, pages[1], scripts=False)
    try:
        source = driver.execute_cdp_cmd("DOM.getDocument", {"depth": -1})
        body = driver.execute_cdp_cmd("DOM.querySelector", {"nodeId": source["root"]["nodeId"], "selector": "main"})
        text = driver.execute_cdp_cmd("DOM.getOuterHTML", body)["outerHTML"]
        assert "better on" in text
        assert "<button" not in text
        assert text.count("<figure") == 4
    finally:
        browser.show(driver, pages[1])


def test_what_a_screen_reader_gets(shown: Any) -> None:
    """Every control and every picture has a name in the browser's own accessibility tree."""
    shown.execute_cdp_cmd("Accessibility.enable", {})
    nodes = shown.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            found.setdefault(role, []).append(name)
    for role in ("button", "combobox", "slider", "table", "link", "region"):
        assert found[role], role
        assert all(found[role]), role
    assert len(found["slider"]) == 4
    assert found["combobox"] == ["first prompt", "second prompt", "part", "examples"]
