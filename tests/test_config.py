"""Study files: what they say, where their paths lead, tasks in them; and the recipes of published figures."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from test_docs import blocks
from test_public_tasks import write_data

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.cli.main import search as search_command
from rayprompt.errors import InputError
from rayprompt.lm.vectors import read_vectors
from rayprompt.objective import OBJECTIVES
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.searcher.settings import make_settings
from rayprompt.study.config import KEYS, REMARKS, read_config, read_study_file
from rayprompt.study.manifest import task_location
from rayprompt.study.search import _recorded_problem
from rayprompt.task import BUNDLED, load_task
from searchers.cma_es import CMAESSettings

RECIPES = REPOSITORY / "benchmarks" / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
DOCS = (REPOSITORY / "docs" / "config.md").read_text()


def write(folder: Path, content: Any, name: str = "study.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder / name


def reviews(folder: Path, split: str = "") -> Path:
    """The tables of the bundled task, laid out as few-shot data; test is short."""
    (folder / split).mkdir(parents=True)
    for part in ("train", "dev"):
        shutil.copy(BUNDLED / "reviews" / f"{part}.tsv", folder / split)
    lines = (BUNDLED / "reviews" / "test.tsv").read_text().splitlines(keepends=True)
    (folder / "test.tsv").write_text("".join(lines[:101]))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asks `search` for."""
    seen: dict[str, Any] = {}

    def search(**options: Any) -> None:
        seen.update(options)
        raise InputError("seen")

    monkeypatch.setattr("rayprompt.study.search.search", search)
    return seen


# What a file says.


def test_a_file_says_all_that_the_options_say() -> None:
    python = set(inspect.signature(rayprompt.search).parameters) - {"listener"}
    options = {name.strip("_") for name in inspect.signature(search_command).parameters}
    assert set(KEYS) == python == options - {"context", "config", "allow_code", "resume", "json", "set"} | {"settings"}


def test_the_command_line_wins(tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "description": "a first\ntry", "expected": {"test_accuracy": 0.9}, "task": "mr", "budget": 640, "seed": 3,
        "allow_leaks": True, "settings": {"length": 3, "optimizer": "DE"}, "gpus_per_scorer": 0.5, "split": None,
    }  # fmt: skip
    file = str(write(tmp_path, content))
    assert run(app, ["search", "--config", file]) == 2
    assert "note: a first try\n" in capsys.readouterr().err
    assert (asked["task"], asked["budget"], asked["seed"], asked["gpus_per_scorer"]) == ("mr", 640, 3, 0.5)
    assert (asked["model"], asked["searcher"], asked["split"], asked["finalists"]) == (
        "tiny-masked", "nevergrad", None, 5,
    )  # fmt: skip
    assert asked["settings"] == {"length": 3, "optimizer": "DE"}
    assert asked["allow_leaks"] is True
    arguments = ["reviews", "--budget", "20000", "--seed", "0", "--set", "length=4", "--no-allow-leaks"]
    assert run(app, ["search", "--config", file, *arguments]) == 2
    assert (asked["task"], asked["budget"], asked["seed"], asked["allow_leaks"]) == ("reviews", 20000, 0, False)
    assert asked["settings"] == {"length": "4", "optimizer": "DE"}


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    here = tmp_path / "here"
    (here / "my-lm").mkdir(parents=True)
    (here / "earlier").mkdir()
    content = {
        "task": "../task", "data": "few-shot", "out": "../out", "store": "s3://scores", "warm_start": "earlier",
        "model": "my-lm", "proxy_model": "org/my-lm", "settings": {"phrases": "p.txt", "p0": "earlier", "length": 3},
    }  # fmt: skip
    given = read_config(write(here, content))
    assert given == {
        "task": str(tmp_path / "task"), "data": str(here / "few-shot"), "out": str(tmp_path / "out"),
        "store": "s3://scores", "warm_start": str(here / "earlier"), "model": str(here / "my-lm"),
        "proxy_model": "org/my-lm",
        "settings": {"phrases": str(here / "p.txt"), "p0": str(here / "earlier"), "length": 3},
    }  # fmt: skip
    named = {
        "task": "sst-2@bbt", "data": "hf://datasets/x/y", "model": "roberta-large", "proxy_model": "./lm",
        "settings": {"phrases": ["it was"], "p0": "text:" + "it was " * 99},
    }  # fmt: skip
    assert read_config(write(here, named)) == {**named, "proxy_model": str(here / "lm")}
    assert read_config(write(here, {"settings": {"p0": "v.safetensors"}}))["settings"]["p0"] == str(
        here / "v.safetensors"
    )


def test_json_is_read_too(tmp_path: Path) -> None:
    file = write(tmp_path, '{\n\t"task": "reviews",\n\t"settings": {"length": 2}\n}', "study.json")
    assert read_config(file) == {"task": "reviews", "settings": {"length": 2}}


def test_small_numbers_may_be_written_with_an_exponent() -> None:
    settings = make_settings(load_searcher("cma-es"), {"alpha": "1e-1", "sigma": "2.5E+1", "p0": "1e-1"})
    assert (settings.alpha, settings.sigma, settings.p0) == (0.1, 25.0, "1e-1")


# Tasks in a file.


def test_a_built_in_task_with_changes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "sst-2", "sst-2")
    template = {"masked": "{text} {prompt}{mask} ."}
    spec = {"name": "sst-2@bbt", "manual_prompt": "It was", "template": template}
    plain, task = load_task("sst-2@bbt", data=data), load_task(spec, data=data)
    assert (task.name, task.manual_prompt, task.label_words) == ("sst-2@bbt", "It was", plain.label_words)
    assert task.template("masked").source == template["masked"]
    assert task.digest != plain.digest
    location = task_location(task)
    assert location == spec
    assert load_task(location, data=task.data).digest == task.digest
    assert load_task({"name": "reviews", "manual_prompt": "so"}).manual_prompt == "so"
    assert load_task({"name": "reviews", "manual_prompt": "so"}).digest == load_task("reviews").digest


def test_a_whole_task_and_its_study_taken_up_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews(tmp_path / "tables")
    (text,) = (b for b in blocks(DOCS, "yaml") if "name: mine" in b)
    (given,) = read_config(write(tmp_path, text.replace("data/", "tables/"))).values()
    assert given["splits"]["train"] == str(tmp_path / "tables" / "train.tsv")
    monkeypatch.chdir(tmp_path)
    relative = {**given, "splits": {part: f"tables/{part}.tsv" for part in ("train", "dev", "test")}}
    assert load_task(relative).inline == given
    problem = Problem(given, "tiny-masked")
    location = yaml.safe_load(yaml.safe_dump(task_location(problem.task)))
    record = {
        "task": {"name": "mine", "location": location, "data": None, "split": problem.split},
        "model": {"location": "tiny-masked", "name": "tiny-masked"},
        "searcher": {"subspace": None},
        "allow_leaks": False,
    }
    monkeypatch.chdir("/")
    assert _recorded_problem(record, tmp_path, None).task.digest == problem.task.digest
    assert len(problem.part("test")) == 100


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        ({"manual_prompt": "x"}, None, "a task given as a mapping needs a name"),
        ({"name": "sst2@bbt", "manual_prompt": "x"}, None, "unknown task 'sst2@bbt' (did you mean 'sst-2'?)"),
        ({"name": "sst-2@bb", "manual_prompt": "x"}, None, "unknown variant 'bb' in task sst-2"),
        ({"name": "mr", "manual": "x"}, None, "can be changed, not 'manual' (did you mean 'manual_prompt'?)"),
        ({"name": "mr", "splits": {}}, None, "a task with tables of its own needs another name"),
        ({"name": "mine", "template": "{text} {prompt}"}, None, "task mine: splits is missing"),
        ({"name": "mine", "tempate": "", "splits": {}}, None, "unknown key 'tempate' in task mine (did you mean"),
        ({"name": "reviews"}, "x", "--data x: is for the public tasks"),
    ],
)
def test_mappings_that_are_no_task(spec: dict[str, Any], data: str | None, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_task(spec, data=data)


# docs/config.md.


def test_the_documented_example_has_every_key(tmp_path: Path) -> None:
    example = blocks(DOCS, "yaml")[0]
    assert set(yaml.safe_load(example)) == set(KEYS) | set(REMARKS)
    given = read_study_file(write(tmp_path / "here", example))
    assert given.arguments["store"] == str(tmp_path / "scores")
    assert given.arguments["budget"] == 256_000
    settings = make_settings(load_searcher(given.arguments["searcher"]), given.arguments["settings"])
    assert settings.p0 == "text:It was"
    for text in blocks(DOCS, "yaml")[1:]:
        read_study_file(write(tmp_path, text))


# The recipes.


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(RECIPES).with_suffix("")))
def test_recipe(file: Path, tmp_path: Path) -> None:
    recipe = read_study_file(file)
    given, expected = recipe.arguments, recipe.expected
    base = file.stem.removesuffix("-20k").removesuffix("-pretrained")
    name = given["task"] if isinstance(given["task"], str) else given["task"]["name"]
    assert name == f"{base}@bbt"
    assert set(given) == {
        "task", "split", "model", "searcher", "seed", "objective", "budget", "finalists", "settings",
    }  # fmt: skip
    assert (given["split"], given["model"], given["searcher"], given["seed"]) == (
        "16-42", "roberta-large", "cma-es", 42,
    )  # fmt: skip
    pairs = base in ("mrpc", "snli", "rte")
    assert given["objective"] in OBJECTIVES
    assert given["objective"] == ("hinge" if pairs else "cross_entropy")

    data = write_data(tmp_path / base, base, lambda part, label: {"train": 50, "dev": 0, "test": 1}[part])
    task = load_task(given["task"], data=data, split=given["split"])
    calls = 20_000 if "20k" in file.stem else 8_000
    assert given["budget"] == calls * len(task.examples("train", "16-42")) == calls * 16 * len(task.labels)
    assert f"test_{task.metric}" in expected
    assert expected["calls"] == calls

    pretrained, released = file.stem.endswith("-pretrained"), file.parent.name == "released"
    settings = make_settings(load_searcher(given["searcher"]), given["settings"])
    assert settings == CMAESSettings(
        intrinsic_dim=500, length=50, population=20, sigma=1, restarts="none", dev="generations", dev_every=5,
        projection="normal" if released else "uniform", bound=None if released else 5,
        placement="concat" if pretrained else "add",
        p0=str(file.parent / "nli_base_prompt.safetensors") if pretrained else "tokens",
    )  # fmt: skip
    # In front of the input the published code has no ' . ' between prompt and text.
    fields = dict.fromkeys(task.template("masked").fields, "S")
    assert task.template("masked").render(fields, "", "<mask>").startswith(".") == (
        not pretrained and base != "dbpedia"
    )


def test_the_table_of_the_recipes_has_their_figures() -> None:
    text = (RECIPES / "README.md").read_text()
    rows = re.findall(r"^\| .* \| ([\d,]+) \| \[.*?\]\((.*?)\) \| ([\d.]+)(?: ± ([\d.]+))? \|", text, re.MULTILINE)
    assert sorted(RECIPES / row[1] for row in rows) == FILES
    for calls, file, mean, std in rows:
        expected = read_study_file(RECIPES / file).expected
        figure = next(value for name, value in expected.items() if name.startswith("test_"))
        assert int(calls.replace(",", "")) == expected["calls"]
        assert float(mean) == pytest.approx(100 * figure)
        assert float(std or 0) == pytest.approx(100 * expected.get("std", 0))


def test_the_published_prompt_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = torch.nn.Embedding(50, 32)
    torch.save(table, "nli_base_prompt.pt")
    (code,) = blocks((RECIPES / "README.md").read_text(), "python")
    exec(code, {})
    vectors, tokens = read_vectors(tmp_path / "nli_base_prompt.safetensors")
    assert np.array_equal(vectors, table.weight.detach().numpy())
    assert tokens is None


@pytest.mark.slow  # quick: every recipe is read, above
def test_a_recipe_runs(ray_session: None, kept_pool: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = reviews(tmp_path / "data", "16-42")
    small = ["--model", "tiny-masked", "--data", str(data), "--budget", "1280"]
    settings = ["--set", "length=5", "--set", "intrinsic_dim=10", "--set", "dev_every=1"]
    file = RECIPES / "bbt" / "sst-2.yaml"
    arguments = ["search", "--config", str(file), *small, *settings, "--out", str(tmp_path / "study"), "--json"]
    assert run(app, arguments) == 0
    out, err = capsys.readouterr()
    assert "note: BBT on SST-2: RoBERTa-large" in err
    assert f"expected, says {file}: test_accuracy 0.8956, std 0.0025, splits 3, calls 8000" in err
    content = json.loads(out.splitlines()[-1])
    assert (content["evaluations"], content["searcher"], content["split"]) == (1280, "cma-es", "16-42")
    assert content["best_prompt"]["kind"] == "soft"
    record = yaml.safe_load((tmp_path / "study" / "study.yaml").read_text())
    assert record["searcher"]["settings"] == {
        **vars(CMAESSettings()),
        **read_config(file)["settings"], "length": 5, "intrinsic_dim": 10, "dev_every": 1,
    }  # fmt: skip
    assert (record["task"]["name"], record["searcher"]["seed"]) == ("sst-2@bbt", 42)


def test_a_task_mapping_is_searched_and_resumed(
    ray_session: None, kept_pool: None, trial_here: None, tmp_path: Path
) -> None:
    content = {
        "task": {"name": "reviews", "manual_prompt": "so"}, "searcher": "random", "budget": 640, "out": "s",
    }  # fmt: skip
    first = rayprompt.search(**read_config(write(tmp_path, content)), scorers=1)
    assert first.baselines["manual"].prompt.text == "so"
    again = rayprompt.resume(tmp_path / "s", budget=704, scorers=1)
    assert again.evaluations == 704
    assert again.baselines["manual"].prompt.text == "so"
