"""What is compared: searchers with their settings, on cells of task, split and LM, with several seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain
from ray.tune.search.variant_generator import generate_variants

from rayprompt.errors import InputError, unknown
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.registry import load_searcher
from rayprompt.searcher.settings import make_settings
from rayprompt.store.schema import safe_name

LABEL = re.compile(r"[A-Za-z0-9][\w-]*")
RANGES = ("choice", "grid_search", "lograndint", "loguniform", "qloguniform", "quniform", "randint", "randn", "uniform")
SAMPLES = 8
MOST_RUNS = 10_000
FILES = ("p0", "phrases", "prompts", "start")  # settings that may name a file
Settings = Mapping[str, Any]
Stratum = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """A searcher with settings.

    Attributes:
        label: its name in the comparison; ``cma-es#2`` is the second configuration of ``cma-es``.
        group: the name that was given; several entries share it where Tune draws settings.
        searcher: a registered name, or a class.
        settings: of the searcher; those that were not given are its own.
    """

    label: str
    group: str
    searcher: str | type[PromptSearcher]
    settings: Settings = field(default_factory=dict)

    @property
    def cls(self) -> type[PromptSearcher]:
        """The searcher's class."""
        return load_searcher(self.searcher) if isinstance(self.searcher, str) else self.searcher


def resources_of(entries: Iterable[Entry]) -> dict[str, float]:
    """What a trial that may run any of the entries wants for a searcher's own work."""
    wanted: dict[str, float] = {}
    for entry in entries:
        for name, share in entry.cls.resources(entry.settings).items():
            wanted[name] = max(wanted.get(name, 0.0), share)
    return wanted


@dataclass(frozen=True)
class Run:
    """One search of the comparison: a Tune trial."""

    name: str
    entry: Entry
    stratum: Stratum  # task, split, model
    seed: int

    @property
    def config(self) -> dict[str, Any]:
        """The trial's config, which TensorBoard shows as its hyper-parameters."""
        task, split, model = self.stratum
        about = {"searcher": self.entry.label, "task": task, "split": split, "model": model, "seed": self.seed}
        return {"run": self.name, **about, "settings": dict(self.entry.settings)}


def entries_of(
    searchers: Sequence[str | type[PromptSearcher]] | Mapping[str, str | type[PromptSearcher]],
    settings: Mapping[str, Settings],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[Entry]:
    """The entries: one for each searcher, or for each configuration of one whose settings hold ranges.

    Args:
        searchers: registered names, ``LABEL=NAME``, or classes; or label -> name or class.
        settings: label -> settings. A range is an object of ``ray.tune`` (``tune.uniform(1, 20)``) or a mapping, as
            ``{"uniform": [1, 20]}``. Under the label ``*`` stand settings of every searcher that has them.
        samples: configurations that are drawn of a searcher with random ranges.
        seed: of the drawing.

    Raises:
        InputError: no searcher, a label that is none or comes twice, or settings of a searcher that is not there.
    """
    named = _named(searchers)
    for label in settings:
        if label != "*" and label not in named:
            raise unknown("searcher", label, named, "the settings")
    common = dict(settings.get("*", {}))
    used: set[str] = set()
    entries = []
    for label, searcher in named.items():
        cls = load_searcher(searcher) if isinstance(searcher, str) else searcher
        mine = {key: value for key, value in common.items() if key in getattr(cls.Settings, "__dataclass_fields__", {})}
        used |= set(mine)
        mine |= settings.get(label, {})
        configurations = _configurations(label, mine, samples, seed, _mappings(cls))
        several = len(configurations) > 1
        entries += [
            Entry(f"{label}#{i}" if several else label, label, searcher, _typed(cls, configuration))
            for i, configuration in enumerate(configurations, start=1)
        ]
    if set(common) - used:
        raise InputError(f"--set {min(set(common) - used)}=...: none of {', '.join(named)} has this setting")
    return entries


def runs_of(entries: Sequence[Entry], strata: Sequence[Stratum], seeds: Sequence[int]) -> list[Run]:
    """All runs, the first seed of everything first: what is there when half is done can be compared.

    Raises:
        InputError: they are more than ``MOST_RUNS``.
    """
    if len(seeds) * len(strata) * len(entries) > MOST_RUNS:
        total = len(seeds) * len(strata) * len(entries)
        raise InputError(f"{total:,} runs ({len(seeds)} seeds); at most {MOST_RUNS:,} are compared")
    varying = [len({stratum[i] for stratum in strata}) > 1 for i in range(3)]
    runs: list[Run] = []
    for seed in seeds:
        for stratum in strata:
            for entry in entries:
                # Of a folder its name: a trial's name is a directory's.
                where = [Path(part).name for part, varies in zip(stratum, varying, strict=True) if varies]
                name = "-".join(safe_name(part) for part in (entry.label, *where, f"s{seed}"))
                runs.append(Run(name, entry, stratum, seed))
    twice = {name for name, count in Counter(run.name for run in runs).items() if count > 1}
    return [Run(f"{r.name}-{i}", r.entry, r.stratum, r.seed) if r.name in twice else r for i, r in enumerate(runs)]


def parse_seeds(seeds: int | Iterable[int]) -> list[int]:
    """Seeds as a list: a number is so many, from 0 on.

    Raises:
        InputError: none, one twice, one below 0, or more than ``MOST_RUNS``.
    """
    if isinstance(seeds, int) and seeds > MOST_RUNS:
        raise InputError(f"seeds {seeds}: at most {MOST_RUNS:,} runs are compared")
    try:
        listed = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    except (TypeError, ValueError, OverflowError):
        listed = []
    if not listed or len(set(listed)) < len(listed) or min(listed) < 0:
        raise InputError(f"seeds {seeds}: must be a number of seeds (1 or more), or different ones, each 0 or more")
    return listed


def _named(
    searchers: Sequence[str | type[PromptSearcher]] | Mapping[str, str | type[PromptSearcher]],
) -> dict[str, str | type[PromptSearcher]]:
    """Label -> searcher."""
    pairs: list[tuple[str, str | type[PromptSearcher]]] = []
    for item in searchers.items() if isinstance(searchers, Mapping) else searchers:
        if isinstance(item, str):
            label, equals, name = item.partition("=")
            pairs.append((label, name if equals else label))
        elif isinstance(item, tuple):
            pairs.append(item)
        else:
            pairs.append((getattr(item, "name", repr(item)), item))
    named: dict[str, str | type[PromptSearcher]] = {}
    for label, searcher in pairs:
        if not (isinstance(searcher, str) or (isinstance(searcher, type) and issubclass(searcher, PromptSearcher))):
            raise InputError(f"--searchers: {searcher!r} is neither a searcher's name nor its class")
        if not LABEL.fullmatch(label):
            raise InputError(f"--searchers: {label!r} is not a name of letters, digits, - and _")
        if label in named:
            raise InputError(f"--searchers: {label} stands there twice; give one another name, as mine={label}")
        named[label] = searcher
    if not named:
        raise InputError("--searchers: names none; as in --searchers random,nevergrad (see: rayprompt list searchers)")
    return named


def _typed(cls: type[PromptSearcher], settings: Settings) -> dict[str, Any]:
    """Settings as the searcher reads them: on the command line they are texts."""
    made = make_settings(cls, dict(settings))
    return {key: getattr(made, key) for key in settings}


def _mappings(cls: type[PromptSearcher]) -> set[str]:
    """The settings of a searcher whose value is a mapping, which is no range."""
    fields = getattr(cls.Settings, "__dataclass_fields__", {})
    return {name for name, field in fields.items() if "dict" in str(field.type)}


def _configurations(
    label: str, settings: Settings, samples: int, seed: int, mappings: set[str]
) -> list[dict[str, Any]]:
    """The settings, with a value drawn for each range."""
    space = {
        key: value if key in mappings and not (isinstance(value, Mapping) and set(value) & set(RANGES))
        else _range(label, key, _storable(label, key, value))
        for key, value in settings.items()
    }  # fmt: skip
    drawn = any(isinstance(value, Domain) for value in space.values())
    if not drawn and not any(_is_grid(value) for value in space.values()):
        return [space]
    if not 1 <= samples <= MOST_RUNS:
        raise InputError(f"--samples {samples}: must be from 1 to {MOST_RUNS:,} configurations")
    random = np.random.RandomState(seed)
    specs = [
        spec["config"]
        for _ in range(samples if drawn else 1)
        for _, spec in generate_variants({"config": space}, random_state=random)
    ]
    return [{key: _plain(spec[key]) for key in space} for spec in specs]


def _range(label: str, key: str, value: Any) -> Any:
    """``{"uniform": [1, 20]}`` as Tune's own object; other values as they are."""
    if not isinstance(value, Mapping) or _is_grid(value):
        return value
    if len(value) != 1 or next(iter(value)) not in RANGES:
        raise InputError(
            f"setting {label}.{key}={dict(value)}: a range is one of {', '.join(RANGES)}, as {{uniform: [1, 20]}}"
        )
    ((kind, arguments),) = value.items()
    try:
        if kind in ("choice", "grid_search"):
            if not (isinstance(arguments, Sequence) and arguments) or isinstance(arguments, str):
                raise ValueError("it needs a list of values")
            return getattr(tune, kind)(list(arguments))
        domain = getattr(tune, kind)(*arguments)
        domain.sample(random_state=np.random.RandomState(0))
        return domain
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        raise InputError(f"setting {label}.{key}: {kind}({arguments}) is not a range ({error})") from None


def _storable(label: str, key: str, value: Any) -> Any:
    """A setting as study.yaml can hold it; files by their absolute path."""
    if isinstance(value, Domain):
        return value
    if isinstance(value, Path) or (key in FILES and isinstance(value, str) and Path(value).expanduser().exists()):
        return str(Path(value).expanduser().absolute())
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise InputError(f"setting {label}.{key}={value!r}: must be a number, a text or a list of them") from None
    return value


def _is_grid(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"grid_search"} and isinstance(value["grid_search"], list)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
