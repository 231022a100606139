"""What runs tell Ray's metrics, the Grafana dashboard that asks for it, and how that comes to where Grafana looks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import task_of
from lm_server import Server
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_default_grafana_dashboard

import rayprompt
from rayprompt.cli.grafana import NAME, OURS, RAYS, dashboard_file, default_folder
from rayprompt.cli.main import app, run
from rayprompt.lm.encode import sizes_of
from rayprompt.lm.loads import Request, fill_of, loads_of, passes_of
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import table_of
from rayprompt.scoring import metrics
from rayprompt.scoring.metrics import METRICS, Meter, PoolMeter, SearchMeter
from rayprompt.scoring.router import Router
from rayprompt.searcher.problem import Problem

REPORT_SECONDS = 15.0  # Ray sends what a living process has every second here
BOARD = json.loads(dashboard_file().read_text())
Sample = tuple[str, dict[str, str], float]


def scrape() -> list[Sample]:
    """Every sample that the node's agent exports."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def scrape_until(right: Callable[[list[Sample]], bool]) -> list[Sample]:
    """What is exported once that is right, or after ten seconds and some."""
    started = time.monotonic()
    while not right(samples := scrape()) and time.monotonic() - started < REPORT_SECONDS:
        time.sleep(0.5)
    return samples


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum over processes."""
    return sum(value for n, own, value in samples if n == name and labels.items() <= own.items())


def expressions() -> list[str]:
    """Every query of the dashboard: those of its panels and of its variables."""
    panels = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return panels + [v["definition"] for v in BOARD["templating"]["list"] if "definition" in v]


@pytest.fixture(scope="module")
def studies(kept_pool: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, rayprompt.Result]:
    """A search that is resumed with more, and one in a trial a batch, which a store answers in part."""
    folder = tmp_path_factory.mktemp("metrics")
    options: dict[str, Any] = {"searcher": "random", "seed": 1, "scorers": 1, "store": folder / "store"}
    rayprompt.search(budget=64 * 8, out=folder / "first", **options)
    first = rayprompt.resume(folder / "first", budget=64 * 12)
    native = rayprompt.search(budget=64 * 16, out=folder / "native", tune_native=True, **options)
    return {"first": first, "native": native}


def test_counters_are_those_of_the_ledger(studies: dict[str, rayprompt.Result]) -> None:
    """Of a resumed search, too: what it took up from its files is not counted again."""
    last = "ray_rayprompt_evaluations_total"
    samples = scrape_until(lambda s: all(total(s, last, study=n) == r.evaluations for n, r in studies.items()))
    for study, result in studies.items():
        own = {"study": study, "searcher": "random", "model": "tiny-masked", "task": "reviews"}
        assert total(samples, last, run="random-s1", **own) == result.evaluations
        for name in ("lm_evaluations", "tokens"):
            assert total(samples, f"ray_rayprompt_{name}_total", **own) == getattr(result, name)
        assert total(samples, "ray_rayprompt_lm_seconds_total", **own) == pytest.approx(result.lm_seconds)
        assert total(samples, "ray_rayprompt_candidates_total", **own) == result.evaluations / 64
    assert studies["native"].cache_hits == 64 * 12  # from the store
    assert total(samples, "ray_rayprompt_cache_hits_total", study="native") == 64 * 12
    assert total(samples, "ray_rayprompt_cache_hits_total", study="first") == 0
    for name, value in (("best_score", studies["native"].train.value), ("budget_spent", 64 * 16), ("budget", 64 * 16)):
        shown = {v for n, labels, v in samples if n == f"ray_rayprompt_{name}" and labels.get("study") == "native"}
        assert shown <= {value}  # Ray drops the gauges of a process that has ended, sooner or later


def test_the_dashboard_asks_for_what_is_exported(studies: dict[str, rayprompt.Result], server: Server) -> None:
    task = task_of()
    rayprompt.search(task, model=server.model, searcher="random", budget=8, out=studies["first"].study_dir.parent / "s")
    wanted = {name for metric in METRICS for name in metric.exported}
    samples = scrape_until(lambda s: wanted <= {name for name, _, _ in s})
    labels: dict[str, set[str]] = {}
    for name, own, _ in samples:
        labels[name] = labels.get(name, set(own)) & set(own)
    assert wanted - set(labels) == set()
    asked = set()
    for expression in expressions():
        names = set(re.findall(r"ray_rayprompt_\w+", expression))
        used = set(re.findall(r"(\w+)=~", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            used |= {label.strip() for label in group.split(",")}
        for name in names:
            assert used <= labels[name], f"{expression}: {name} has no {used - labels[name]}"
        assert names or "ray_node_" in expression
        assert not re.search(r"by \([^)]*WorkerId", expression)
        asked |= names
    shown = {m.name for m in METRICS if set(m.exported) & asked}
    assert shown == {m.name for m in METRICS}, "a metric that nobody looks at"
    assert "ray_node_cpu_utilization" in labels  # Ray's own, that the dashboard shows beside


def test_a_lost_scorer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scorer:
        """Is away once, and answers then."""

        def __init__(self) -> None:
            self.score = self.ready = self
            self.calls = 0

        async def remote(self, *arguments: object) -> bytes:
            self.calls += 1
            if self.calls == 1:
                raise ray.exceptions.ActorUnavailableError("away", b"0" * 16)
            return b"answer"

    scorer = Scorer()
    monkeypatch.setattr("rayprompt.scoring.router.ray.get_actor", lambda name, namespace=None: scorer)
    sent: dict[str, list[float]] = {}
    monkeypatch.setattr(Meter, "_send", lambda self, name, method, values: sent.setdefault(name, []).extend(values))

    async def play() -> None:
        router = Router([("only", 1)], "an-lm")
        assert await router.run("a", b"order", None) == (b"answer", 2, 1)
        router.meter.send()

    asyncio.run(play())
    assert sent["rayprompt_restarts"][-1] == 1
    assert sent["rayprompt_scorers_alive"][-1] == 1
    assert sent["rayprompt_queue_depth"][-1] == sent["rayprompt_in_flight"][-1] == 0
    assert len(sent["rayprompt_order_seconds"]) == 1
    assert sent["rayprompt_scorer_passes"] == [1]
    assert sent["rayprompt_scorer_restarts"][-1] == 1


def test_a_pool_stops_sending_when_there_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SEND_SECONDS", 0.01)
    waiting = 2

    async def play() -> list[float]:
        depths: list[float] = []
        meter = PoolMeter("an-lm", lambda: {"rayprompt_queue_depth": waiting, "rayprompt_in_flight": 0})
        monkeypatch.setattr(meter.meter, "show", lambda name, value: depths.append(value) if "queue" in name else None)
        monkeypatch.setattr(meter.meter, "observe", lambda name, values: None)
        meter.wake()
        await asyncio.sleep(0.05)
        nonlocal waiting
        waiting = 0
        await asyncio.sleep(0.05)
        assert meter.sending is None
        return depths

    depths = asyncio.run(play())
    assert (set(depths[:-1]), depths[-1]) == ({2}, 0)


def test_metrics_that_cannot_be_sent_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("metrics are switched off")

    monkeypatch.setattr("ray.util.metrics.Counter", broken)
    names = {"study": "/a/b/study", "run": "r", "searcher": "s", "task": "t", "model": "/models/own"}
    meter = SearchMeter(**names, counted={})
    assert meter.meter.tags == {**names, "study": "study", "model": "own"}  # no path in a legend
    meter.update({"evaluations": 5, "best_score": float("-inf")})
    assert meter.meter.off
    meter.update({"evaluations": 9}, now=True)


def test_fill_is_the_share_that_is_no_padding() -> None:
    problem = Problem("reviews", "tiny-masked")
    scorer = LMScorer(problem.lm)
    part, prompts = problem.part("train"), [problem.prompt("it was").token_ids or ()]
    request = Request.of_all(part, prompts)
    tokens = int(part.lengths(sizes_of(prompts)[request.prompt], request.example).sum())
    packed = table_of("cpu", scorer.token_bytes, problem.lm.max_length, scorer.tokens)
    padded = table_of("cpu", None, problem.lm.max_length)
    for table, slots in ((packed, lambda shape: shape[0]), (padded, lambda shape: shape[0] * shape[1])):
        passes = passes_of(table, request)
        filled = [fill_of(load, part) * slots(shape) for shape, one in passes for load in
                  loads_of(table, request, [(shape, one)])]  # fmt: skip
        assert sum(filled) == pytest.approx(tokens)


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = BOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(OURS)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(refs)) == len(refs)
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    for expression in expressions():
        assert set(re.findall(r"\$(\w+)", expression)) <= variables | {"__rate_interval", "__range"}
        assert expression.count("(") == expression.count(")")


def test_install(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rays = json.loads(generate_default_grafana_dashboard()[0])  # as a head node writes it
    (tmp_path / RAYS).write_text(json.dumps(rays))
    monkeypatch.setenv("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", str(tmp_path))
    assert run(app, ["grafana", "install"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "Ray's Metrics page" in printed
    assert json.loads((tmp_path / NAME).read_text()) == BOARD
    shown = json.loads((tmp_path / RAYS).read_text())
    assert shown["uid"] == rays["uid"]
    assert [p["id"] for p in shown["panels"]] == [p["id"] for p in BOARD["panels"]] + [p["id"] for p in rays["panels"]]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in BOARD["panels"])
    theirs = [p for p in shown["panels"] if p["id"] not in OURS]
    assert all(
        new["gridPos"]["y"] == old["gridPos"]["y"] + height for new, old in zip(theirs, rays["panels"], strict=True)
    )
    names = [variable["name"] for variable in shown["templating"]["list"]]
    assert len(set(names)) == len(names)
    assert {"datasource", "SessionName", "Instance", "searcher"} <= set(names)
    before = (tmp_path / RAYS).read_text()
    assert run(app, ["grafana", "install", "--dir", str(tmp_path)]) == 0  # again: nothing is there twice
    assert (tmp_path / RAYS).read_text() == before
    (tmp_path / RAYS).write_text(json.dumps(rays))
    assert run(app, ["grafana", "install", "--no-page"]) == 0
    assert json.loads((tmp_path / RAYS).read_text()) == rays


def test_install_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["grafana", "install", "--dir", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no folder of Grafana dashboards; start Ray's head node here" in capsys.readouterr().err
    (tmp_path / RAYS).write_text("[]")
    assert run(app, ["grafana", "install", "--dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no dashboard of Ray's; --no-page leaves it alone" in error
    assert error.count("\n") == 1


def test_the_folder_is_found_as_ray_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", "RAY_METRICS_OUTPUT_ROOT", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert default_folder() == Path("/tmp/ray/session_latest/metrics/grafana/dashboards")
    monkeypatch.setenv("RAY_METRICS_OUTPUT_ROOT", "/metrics")
    assert default_folder() == Path("/metrics/grafana/dashboards")
    assert os.path.basename(dashboard_file()) == "rayprompt.json"
