"""The floors in pyproject.toml are those of constraints-lowest.txt, and of extras the versions that CI has."""

from __future__ import annotations

import tomllib

from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version


def pinned(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): Version(version) for package, version in pairs}


def test_every_floor_is_what_is_tried() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lowest, newest = pinned("constraints-lowest.txt"), pinned("constraints.txt")
    for requirement in map(Requirement, project["dependencies"]):
        assert floor_of(requirement) == lowest[requirement.name], requirement
    assert lowest["torch"] == newest["torch"]
    others = ("dev", "all", "s3")  # boto3's floor is its first version with conditional writes
    for extra, lines in project["optional-dependencies"].items():
        for requirement in map(Requirement, lines if extra not in others else ()):
            assert floor_of(requirement).release == newest[requirement.name].release[:2], requirement


def floor_of(requirement: Requirement) -> Version:
    (floor,) = (Version(given.version) for given in requirement.specifier if given.operator == ">=")
    return floor
