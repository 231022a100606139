"""Who may import whom, and what `import rayprompt` must not bring in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

import rayprompt

# From the top down; a module may import from its own layer and from those below.
LAYERS = [
    "cli",
    "clusterfiles",
    "testing",
    "report",
    "comparison",
    "study",
    "searcher",
    "scoring",
    "reward",
    "lm",
    "plain",
]


def layer_of(module: str) -> str:
    part = module.split(".")[1] if "." in module else "plain"
    part = "cli" if part == "__main__" else part
    return part if part in LAYERS else "plain"


def imports_of(path: Path) -> Iterator[str]:
    """Every module a file imports, those for type checking only excepted."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "rayprompt":
                public = vars(rayprompt)["_WHERE"]
                yield from (public.get(alias.name, f"rayprompt.{alias.name}") for alias in node.names)
            elif node.module:
                yield node.module


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("rayprompt"), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_point_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    own = LAYERS.index(layer_of(module))
    for name in imports_of(path):
        top = name.split(".")[0]
        assert top != "searchers", f"{module} imports {name}: searchers import rayprompt, never the reverse"
        if top == "rayprompt" and name != "rayprompt":
            assert LAYERS.index(layer_of(name)) >= own, f"{module} imports {name}, which is above it"
        if layer_of(module) == "plain" and module != "rayprompt.__init__":
            assert top not in ("ray", "torch", "transformers"), f"{module} is plain data but imports {name}"
        if layer_of(module) in ("lm", "reward"):
            assert top != "ray", f"{module} must not know Ray"


@pytest.mark.parametrize(
    "statement", ["import rayprompt", "import rayprompt.cli.main", "rayprompt.TextPrompt, rayprompt.Task"]
)
def test_import_brings_neither_torch_nor_ray(statement: str) -> None:
    code = (
        f"import rayprompt, sys; {statement}; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trials_and_routers_do_not_import_torch() -> None:
    code = "import rayprompt.study.trial, rayprompt.scoring.router, searchers.nevergrad, searchers.random, sys; "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_loads() -> None:
    for name in rayprompt.__all__:
        assert getattr(rayprompt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = rayprompt.nope
    assert rayprompt.__version__ in (REPOSITORY / "pyproject.toml").read_text()
