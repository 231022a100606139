"""The lowest versions that pyproject.toml allows are those that CI installs and tries."""

from __future__ import annotations

import tomllib

from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version

TRIED = ("tensorboard", "wandb", "mlflow", "datasets", "style")  # extras; that of xgboost is in constraints.txt


def pinned(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): Version(version) for package, version in pairs}


def test_every_floor_is_what_is_tried() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    given = [*project["dependencies"], *(line for extra in TRIED for line in project["optional-dependencies"][extra])]
    lowest, newest = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    for requirement in map(Requirement, given):
        floors = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        assert floors == [lowest[requirement.name]], requirement
    (xgboost,) = map(Requirement, project["optional-dependencies"]["xgboost"])
    assert xgboost.specifier.contains(newest["xgboost"])
    assert Version(next(iter(xgboost.specifier)).version).release[:2] == newest["xgboost"].release[:2]
    assert lowest["torch"] == newest["torch"]
