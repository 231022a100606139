"""Finds searchers by name: entry points of the group ``rayprompt.searchers``, resolved late."""

from __future__ import annotations

import contextlib
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from rayprompt.errors import InputError, unknown
from rayprompt.searcher.base import PromptSearcher

GROUP = "rayprompt.searchers"


def searcher_paths() -> dict[str, str]:
    """Name -> ``module:Class`` of every registered searcher.

    In a plain checkout without installed metadata (as a Ray runtime environment sends it) the entry points are read
    from pyproject.toml.
    """
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    if not found:
        project = Path(__file__).parents[2] / "pyproject.toml"
        if project.is_file():
            found = tomllib.loads(project.read_text())["project"]["entry-points"][GROUP]
    return dict(sorted(found.items()))


def load_searcher(name: str) -> type[PromptSearcher]:
    """The class of the searcher called ``name``.

    Raises:
        InputError: no such searcher, or its module cannot be imported.
    """
    paths = searcher_paths()
    if name not in paths:
        raise unknown("searcher", name, paths)
    module, _, attribute = paths[name].partition(":")
    try:
        cls: type[PromptSearcher] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"searcher {name}: {paths[name]} cannot be loaded ({error})") from None
    return cls


def largest_gpu_share() -> float:
    """The largest share of a GPU that a registered searcher wants for its own work, unless it is told otherwise."""
    shares = [0.0]
    for name in searcher_paths():
        with contextlib.suppress(InputError):  # one that cannot be imported runs nowhere
            shares.append(load_searcher(name).resources({}).get("GPU", 0.0))
    return max(shares)
