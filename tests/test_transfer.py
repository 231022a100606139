"""Transfer: what was found on one LM, on others. The diagonal is the study's own figure; dev picks, then test opens."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PoolOf
from jsonschema import Draft202012Validator
from test_cli_errors import check_one_line

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.cli.transfer import as_csv, as_json, as_markdown, as_text
from rayprompt.comparison import transfer as module
from rayprompt.comparison.significance import holm
from rayprompt.comparison.transfer import Transfer, sources_of, transfer
from rayprompt.errors import InputError
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.study.closing import PartScorer

SCHEMA = json.loads((Path(rayprompt.__file__).parent / "schemas" / "transfer-1.json").read_text())
CAUSAL_FOLDER = Path(rayprompt.__file__).parent / "bundled" / "models" / "tiny-causal"
BUDGET = 64 * 20

pytestmark = pytest.mark.usefixtures("kept_pool", "trials_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def study(kept_pool: None, trials_here: None, folder: Path) -> rayprompt.Result:
    return rayprompt.search(budget=BUDGET, seed=3, scorers=1, out=folder / "words")


@pytest.fixture(scope="module")
def soft_study(kept_pool: None, trials_here: None, folder: Path) -> rayprompt.Result:
    settings = {"length": 3, "intrinsic_dim": 10}
    return rayprompt.search(
        searcher="random-soft", budget=64 * 6, seed=1, scorers=1, settings=settings, out=folder / "vectors"
    )


@pytest.fixture(scope="module")
def causal(pool_of: PoolOf) -> ScoringPool:
    return pool_of(Problem("reviews", "tiny-causal").lm, 1)


@pytest.fixture(scope="module")
def opened() -> list[tuple[str, str]]:
    """(LM, part) of every request for scores, in order, while ``found`` was made."""
    return []


@pytest.fixture(scope="module")
def session_pools(pool_of: PoolOf) -> Iterator[None]:
    """Prompts are scored in the session's pools."""

    @contextmanager
    def kept(source: Any, *others: Any) -> Iterator[ScoringPool]:
        yield pool_of(source, 1)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(module, "loaded", kept)
        yield


@pytest.fixture(scope="module")
def found(
    study: rayprompt.Result,
    soft_study: rayprompt.Result,
    session_pools: None,
    folder: Path,
    opened: list[tuple[str, str]],
) -> Transfer:
    """Both studies on both LMs."""

    class Spied(PartScorer):
        def __init__(self, problem: Problem, pool: ScoringPool, part: str, *others: Any, **more: Any) -> None:
            super().__init__(problem, pool, part, *others, **more)
            opened.append((problem.lm.name, part))

        def scores(self, prompts: Any) -> Any:
            opened.append((self.problem.lm.name, "test" if len(self.gold) == 480 else "dev"))
            return super().scores(prompts)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr("rayprompt.study.closing.PartScorer", Spied)
        return rayprompt.transfer(
            [study.study_dir, soft_study.study_dir], ["tiny-causal"], store=folder / "scores", scorers=1
        )


def test_the_diagonal_is_the_studys_own_figure(
    found: Transfer, study: rayprompt.Result, soft_study: rayprompt.Result
) -> None:
    own = found.cell("words", "tiny-masked")
    assert own.picked == own.winner
    assert own.picked.carried.prompt == study.best_prompt
    assert own.picked.carried.exact
    assert (own.picked.dev, own.picked.test, own.p_value) == (study.dev, study.test, study.p_value)
    assert own.dev == tuple(row["dev"] for row in study.finalists)
    assert found.targets[0].baselines == study.baselines
    soft = found.cell("vectors", "tiny-masked").picked
    assert soft_study.decoded is not None
    assert (soft.carried.prompt, soft.test) == (soft_study.decoded.prompt, soft_study.decoded.test)
    assert found.sources[1].as_text
    assert found.sources[1].finalists == (soft_study.decoded.prompt,)


def test_elsewhere_it_is_what_evaluate_says(found: Transfer, study: rayprompt.Result, causal: ScoringPool) -> None:
    def evaluated(text: str, on: str) -> rayprompt.Estimate:
        return rayprompt.evaluate(text, "reviews", "tiny-causal", on=on, pool=causal).estimate

    cell = found.cell("words", "tiny-causal")
    for measured in (cell.picked, cell.winner):
        text = found.sources[0].finalists[measured.finalist].text
        assert measured.carried.prompt == Problem("reviews", "tiny-causal").prompt(text)
        assert not measured.carried.exact
        assert (measured.dev, measured.test) == (evaluated(text, "dev"), evaluated(text, "test"))
    assert cell.winner.carried.prompt.text == study.best_prompt.to_json()["text"]
    assert cell.dev[cell.picked.finalist] == max(cell.dev)
    assert found.targets[1].baselines["manual"].test == evaluated("it was", "test")


def test_dev_picks_for_all_before_test_is_opened(found: Transfer, opened: list[tuple[str, str]]) -> None:
    assert [lm for lm, _ in opened] == sorted((lm for lm, _ in opened), reverse=True)  # one LM after the other
    for target in ("tiny-masked", "tiny-causal"):
        assert [part for lm, part in opened if lm == target] == ["dev", "dev", "dev", "test", "test"]


def test_the_tests_are_corrected_for_being_many(found: Transfer) -> None:
    assert [cell.p_holm for cell in found.cells] == holm([cell.p_value or 0.0 for cell in found.cells])
    for cell in found.cells:
        target = next(t for t in found.targets if t.name == cell.target)
        above = cell.picked.test.value > target.baselines["manual"].test.value
        assert cell.better == (above and cell.p_holm is not None and cell.p_holm <= 0.05)
    cells = [replace(cell, p_value=None, p_holm=None, better=None) for cell in found.cells]
    assert module._judged(cells, found.targets) == cells  # a task without a manual prompt


def test_every_format_says_the_same(found: Transfer) -> None:
    content = json.loads(as_json(found))
    Draft202012Validator(SCHEMA).validate(content)
    assert content == json.loads(json.dumps(found.to_json()))
    cell = found.cell("words", "tiny-causal")

    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(rows) == 2 * (2 + 2 * 2)
    (row,) = [r for r in rows if (r["source"], r["target"], r["prompt"]) == ("words", "tiny-causal", "picked")]
    assert (row["text"], float(row["dev"])) == (cell.picked.carried.prompt.text, cell.picked.dev.value)
    assert (float(row["test"]), float(row["low"]), float(row["high"])) == (
        cell.picked.test.value,
        *cell.picked.test.ci95,
    )
    assert (float(row["p_value"]), row["better"], row["exact"]) == (cell.p_value, str(cell.better), "False")
    (row,) = [r for r in rows if (r["target"], r["prompt"]) == ("tiny-masked", "manual")]
    assert float(row["test"]) == found.targets[0].baselines["manual"].test.value

    lines = as_markdown(found).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    assert table[0] == ["found by", "found on", "picked on", "on tiny-masked", "on tiny-causal"]
    shown = f"{cell.picked.test.value:.3f} [{cell.picked.test.ci95[0]:.3f}, {cell.picked.test.ci95[1]:.3f}]"
    assert table[1][0:2] == ["words", "tiny-masked"]
    assert table[1][4].rstrip("\\*") == shown
    assert table[3][1] == "tiny-masked, as text"

    text = as_text(found)
    assert shown in text
    picked = f"words on tiny-causal: {cell.picked.carried.prompt.text!r}, dev {cell.picked.dev.value:.3f}; against"
    assert picked in text
    assert "vectors is a search of soft prompts: here is the text whose tokens are nearest to its winner" in text
    assert "the study measured" not in text
    starred = sum(line.count("]*") for line in text.splitlines())
    assert starred == sum(cell.better is False for cell in found.cells) > 0


def test_what_happens_to_a_prompt_on_the_way_is_said(found: Transfer, problem: Problem) -> None:
    causal = Problem("reviews", "tiny-causal")
    prompt = rayprompt.TextPrompt("zqx jvk " * 60, (5, 6))
    there = module._carried(prompt, problem, causal)
    assert (there.exact, there.round_trips, there.shortened) == (False, False, True)
    assert prompt.text.startswith(there.prompt.text)
    assert there.prompt == causal.prompt(there.prompt.text)
    here = module._carried(prompt, problem, problem)
    assert (here.prompt, here.exact, here.shortened) == (prompt, True, False)
    cell = found.cell("words", "tiny-causal")
    changed = replace(cell, picked=replace(cell.picked, carried=there, truncated=3))
    text = as_text(replace(found, cells=tuple(changed if c is cell else c for c in found.cells)))
    assert "; shortened to fit; its text does not give the tokens back that were found; 3 test texts were tr" in text
    other = replace(found.sources[0], test=replace(found.sources[0].test, value=0.5))
    assert "words: the study measured 0.500 on tiny-masked" in as_text(
        replace(found, sources=(other, found.sources[1]))
    )


def test_the_command(
    found: Transfer, study: rayprompt.Result, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store knows all pairs, and dev of one study alone picks the same."""
    out = folder / "transfer.json"
    arguments = ["transfer", str(study.study_dir), "--models", "tiny-causal, tiny-masked", "--scorers", "1"]
    assert run(app, [*arguments, "--store", str(folder / "scores"), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out.splitlines()[-1])
    Draft202012Validator(SCHEMA).validate(content)
    assert json.loads(out.read_text()) == content
    assert "on tiny-causal" in printed.err
    assert content["lm_evaluations"] == 0 < content["evaluations"]
    assert [target["name"] for target in content["targets"]] == ["tiny-masked", "tiny-causal"]
    for cell in content["cells"]:
        before = found.cell(cell["source"], cell["target"]).to_json()
        assert json.loads(json.dumps(before["picked"])) == cell["picked"]
        assert before["p_value"] == cell["p_value"]


@pytest.fixture
def changed(study: rayprompt.Result, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the study with something else in its study.yaml."""

    def change(name: str = "copy", **parts: dict[str, Any]) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        shutil.copy(study.study_dir / "result.json", copy)
        record = yaml.safe_load((study.study_dir / "study.yaml").read_text())
        content = {key: {**value, **parts[key]} if key in parts else value for key, value in record.items()}
        (copy / "study.yaml").write_text(yaml.safe_dump(content))
        return copy

    return change


def test_bad_input(
    study: rayprompt.Result, changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(study.study_dir)
    unfinished, objects = changed("unfinished"), changed("objects", task={"location": None})
    (unfinished / "result.json").unlink()
    other, sst = changed("other", task={"digest": "0" * 32}), changed("sst", task={"name": "sst-2", "split": "16-13"})
    lm = changed("lm", model={"digest": "0" * 32})
    cases = [
        ([], "Missing argument 'STUDY"),
        ([str(tmp_path / "none")], "no such directory; a study's is wanted (rayprompt search --out DIR)"),
        ([str(tmp_path)], "not a study (it holds no study.yaml)"),
        (
            [str(unfinished)],
            f"not finished (it holds no result.json); to go on: rayprompt search --resume {unfinished}",
        ),
        ([one], "--models: name the LMs to go to; all that was found was found on tiny-masked"),
        ([one, "--models", "tiny-casual"], "unknown model 'tiny-casual' (did you mean 'tiny-causal'?)"),
        ([one, "--models", "tiny-causal,tiny-causal"], "--models tiny-causal: given twice"),
        (
            [one, "--models", f"tiny-causal,{CAUSAL_FOLDER}"],
            f"{CAUSAL_FOLDER}: the same LM as tiny-causal; give it once",
        ),
        ([one, one, "--models", "tiny-causal"], f"STUDY {one}: given twice"),
        ([one, str(sst)], "task sst-2, split 16-13 is another one than task reviews, split default of"),
        ([one, str(other)], "a transfer is within one task and split"),
        ([str(other), "--models", "tiny-causal"], f"task reviews was {'0' * 32} when it was searched on and is "),
        ([str(lm), "--models", "tiny-causal"], "model tiny-masked is another one than when it was searched on"),
        ([str(objects)], "its task 'reviews' is made of Python objects; give it: rayprompt.transfer(..., task=...)"),
        ([one, "--data", "x", "--models", "tiny-causal"], "--data x: is for the public tasks"),
        ([one, "--format", "cvs"], "--format cvs (did you mean 'csv'?): must be text, md, csv, json"),
        ([one, "--out", str(tmp_path / "none" / "x.json")], "must be a file in a directory that is there"),
    ]
    for arguments, message in cases:
        assert run(app, ["transfer", *arguments]) == 2, message
        check_one_line(capsys.readouterr().err, message)


def test_sources(study: rayprompt.Result, changed: Callable[..., Path]) -> None:
    """A task of Python objects is given; what was decoded from a proxy belongs to the LM that counted."""
    objects = sources_of(changed("objects", task={"location": None}))
    task = rayprompt.load_task("reviews")
    assert module._task_of(objects, task, None) is task
    with pytest.raises(InputError, match="could not be compared"):
        module._task_of(objects, replace(task, metric="f1"), None)
    causal = Problem("reviews", "tiny-causal").lm
    target = {"name": causal.name, "location": causal.location, "digest": causal.digest}
    path = changed("proxied")
    record = yaml.safe_load((path / "study.yaml").read_text())
    (path / "study.yaml").write_text(yaml.safe_dump({**record, "target": target}))
    (source,) = sources_of(path)
    assert (source.model, source.model_digest) == ("tiny-causal", causal.digest)
    same = [sources_of(study.study_dir)[0], sources_of(changed("words"))[0]]
    assert [s.name for s in module._named(same)] == [str(s.path) for s in same]
    with pytest.raises(InputError, match="transfer of what"):
        transfer([])
