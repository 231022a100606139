"""The documents: their code runs, their commands are the ones that CI runs, and no machine's paths stand in them."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

import rayprompt
from rayprompt.lm import family as families
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.scores import Scores
from rayprompt.searcher.problem import Problem

README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def module_of(code: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code block as an importable module."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_contributed_searcher(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = module_of(blocks(CONTRIBUTING, "python")[0], "mutate", tmp_path, monkeypatch).MutateSearcher
    searcher = cls(problem.for_search(), seed=1, length=2)
    first = searcher.ask(8)
    searcher.tell(first, Scores.of_values(first, np.arange(8.0)))
    assert searcher.best == first[-1].text.split()
    copy = pickle.loads(pickle.dumps(searcher))
    assert [c.key for c in copy.ask(8)] == [c.key for c in searcher.ask(8)]


def test_contributed_searcher_searches(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = module_of(blocks(CONTRIBUTING, "python")[0], "mutate", tmp_path, monkeypatch).MutateSearcher
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["mutate"])
    result = rayprompt.search(searcher=cls, budget=64 * 20, scorers=1, out=tmp_path / "s", settings={"length": 2})
    assert result.searcher == "mutate"
    assert result.evaluations <= 64 * 20


def test_contributed_task() -> None:
    space: dict[str, object] = {}
    exec(blocks(CONTRIBUTING, "python")[1], space)
    task = space["task"]
    assert isinstance(task, rayprompt.Task)
    assert task.label_words == ("terrible", "great")
    assert len(Problem(task, "tiny-masked").part("train")) == 2


def test_contributed_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import torch
    from conftest import task_of
    from transformers import GPT2Config, GPT2DoubleHeadsModel

    from rayprompt.lm.source import BUNDLED

    module = module_of(blocks(CONTRIBUTING, "python")[2], "contributed", tmp_path, monkeypatch)
    point = SimpleNamespace(load=lambda: module.GPT2DoubleHeads)
    monkeypatch.setattr(families, "entry_points", lambda group: [point] if group == "rayprompt.families" else [])
    torch.manual_seed(0)
    tokenizer = json.loads((BUNDLED / "tiny-causal" / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    folder = tmp_path / "model"
    GPT2DoubleHeadsModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        folder
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((BUNDLED / "tiny-causal" / name).read_text())
    problem = Problem(task_of(train=2), str(folder))
    part = problem.part("train")
    log_probs, _, _ = LMScorer(problem.lm).score(Bucket(part.key, 32, 2, ((),), np.zeros(2, int), np.arange(2)), part)
    assert np.exp(log_probs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_readme_python(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README, "python")
    space: dict[str, object] = {}
    exec(code.replace("budget=6400", "budget=640"), space)
    assert isinstance(space["result"], rayprompt.Result)


def test_readme_task_is_a_task(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    spec = yaml.safe_load(text)
    for file in spec["splits"].values():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"sentence\tlabel\ngood {file}\t1\nbad {file}\t0\n")
    (tmp_path / "task.yaml").write_text(text)
    assert rayprompt.load_task(tmp_path).name == "mr"


def test_readme_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from rayprompt.cli.main import app, run

    for line in "\n".join(blocks(README, "bash")).splitlines():
        if not line.startswith("rayprompt "):
            continue
        words = line.split("#")[0].split()
        assert run(app, [words[1], "--help"]) == 0
        text = capsys.readouterr().out
        for option in (w for w in words if w.startswith("--")):
            assert option in text, f"{words[1]} has no {option}"


def test_ci_runs_the_readmes_test_command() -> None:
    install, tests = [b.strip() for b in blocks(README, "bash") if ".venv/bin/pip install" in b]
    assert "rayprompt search" in install
    assert tests.endswith("/pytest")
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "README.md" in ci, ".ci/run takes the test command from the README"


def test_no_paths_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.split()
    found = []
    for name in files:
        path = REPOSITORY / name
        if path.suffix in (".safetensors", ".tsv") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(r"(^|[^A-Za-z0-9_./])/(home|root|work|Users)/", line):
                found.append(f"{name}:{number}")
    assert found == []
