"""Mutations of files and of command lines: seeded, so that each can be made again by its number."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from test_task import YAML, write_folder

from rayprompt.cli.main import app, run

SECONDS = 20.0
NOWHERE = ["--address", "127.0.0.1:1"]  # what is right so far ends there, before Ray is started
ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3.5,
    1e400,
    float("nan"),
    1 << 31,
    1 << 63,
    10**30,
    10**4000,
    "",
    " ",
    "a",
    "²",
    "٣",
    "\u202e",
    "\x1b[31m",
    "\x00",
    "a\nb",
    "../..",
    "~",
    "~nobody/x",
    "/dev/null",
    "/proc/self/mem",
    "a" * 300,
    "a" * 5000,
    "s3://KEY:SECRET@b/x",
    "endpoint:",
    "replay:",
    "replay:.",
    "os:system",
    "\ud83d",
    "2026-02-30",
    "inf",
    "1e999",
    "9" * 5000,
    "İ",
    "none",
    "null",
    [],
    {},
    [[]],
    [None],
    ["a", "a"],
    {"a": {"b": {}}},
    {"": ""},
    "{text} {prompt}",
    "{",
    "{mask}{mask}",
    "regex:(",
    "choice:a",
    "text:",
    "tokens:" + "9" * 30,
    "all",
    "999999999999",
]
TEXTS = [
    "[" * 20_000,
    "{",
    "}",
    "\x00",
    "\ufeff",
    "\t",
    "&a [*a]",
    "*a",
    "!!python/object:os.system x",
    "- - - -",
    "'",
    '"',
    "\\ud83d",
    "9" * 5000,
    "2026-02-30",
    "NaN",
    "Infinity",
    "\r",
    "\u2028",
    "---\n",
    "<<: *x",
    ": ",
    "? ",
    "%YAML 9",
    "\x1b]0;x\x07",
    "#",
    "\n\n",
]


def dumped(value: Any, name: str, rng: random.Random) -> str:
    """As JSON, or YAML with whatever it makes of odd values."""
    if name.endswith((".json", ".jsonl")):
        return json.dumps(value, ensure_ascii=True)
    return json.dumps(value) if rng.random() < 0.2 else yaml.safe_dump(value, allow_unicode=True, sort_keys=False)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        found += places(value[key])
    return found


def mutated_data(value: Any, rng: random.Random) -> Any:
    """Nested data with one to three values replaced, dropped, doubled, or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        where = places(value)
        if not where:
            return rng.choice(ODD)
        container, key = rng.choice(where)
        kind = rng.random()
        if kind < 0.55:
            container[key] = rng.choice(ODD)
        elif kind < 0.75:
            del container[key]
        elif kind < 0.85:
            other, name = rng.choice(where)
            with contextlib.suppress(LookupError):
                container[key] = json.loads(json.dumps(other[name]))
        elif isinstance(container, dict):
            container[str(rng.choice(ODD))[:400]] = rng.choice(ODD)
        else:
            container.insert(key, rng.choice(ODD))
    return value


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut, repeated or put in."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(found) + 1)
        kind = rng.random()
        if kind < 0.3 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind < 0.5:
            del found[at : at + rng.randrange(1, 40)]
        elif kind < 0.6:
            del found[at:]
        elif kind < 0.75:
            found[at:at] = found[at : at + rng.randrange(1, 200)]
        else:
            found[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return bytes(found)


def mutate(path: Path, rng: random.Random) -> None:
    """Change a file: by its values where it has some, else, or now and then, by its bytes."""
    structured = path.suffix in (".yaml", ".json") and rng.random() < 0.7
    if structured:
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        with contextlib.suppress(ValueError, yaml.YAMLError, UnicodeError):
            path.write_bytes(dumped(mutated_data(value, rng), path.name, rng).encode("utf-8", "surrogatepass"))
            return
    path.write_bytes(mutated_bytes(path.read_bytes(), rng))


@dataclass(frozen=True)
class Target:
    """A file in a fresh folder, which is changed, and the commands that read it."""

    name: str
    make: Callable[[Path], Path]
    commands: Callable[[Path], Sequence[Sequence[str]]]


ROWS = [{"text": f"a film {i}", "label": str(i % 2)} for i in range(8)]


def task_with(suffix: str) -> Callable[[Path], Path]:
    """A task whose train table is of that type."""

    def make(folder: Path) -> Path:
        write_folder(folder, YAML.replace("train.tsv", f"train{suffix}"))
        table = folder / f"train{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), table)
        elif suffix == ".jsonl":
            table.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        else:
            mark = "," if suffix == ".csv" else "\t"
            table.write_text(f"text{mark}label\n" + "".join(f"{r['text']}{mark}{r['label']}\n" for r in ROWS))
        return table

    return make


def task_yaml(folder: Path) -> Path:
    """A task's task.yaml."""
    write_folder(folder)
    return folder / "task.yaml"


def config(folder: Path) -> Path:
    """A study file."""
    folder.mkdir()
    content = {
        "task": {"name": "reviews", "manual_prompt": "so"},
        "model": "tiny-masked",
        "searcher": "random",
        "budget": 640,
        "seed": 1,
        "settings": {"length": 3, "vocabulary": 50},
        "objective": "accuracy",
        "finalists": 3,
        "lm": {"dtype": "fp32", "tokens": 512},
        "race": False,
        "race_error": 0.05,
        "store": "scores",
        "scorers": 1,
        "split": None,
        "out": "made",
        "start_or_resume": False,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def comparison(folder: Path) -> Path:
    """A study file of compare."""
    folder.mkdir()
    content = {
        "tasks": ["reviews"],
        "searchers": ["random", "nevergrad"],
        "settings": {"random": {"length": {"randint": [1, 4]}}},
        "samples": 2,
        "models": ["tiny-masked"],
        "seeds": [0, 1],
        "budget": 640,
        "baselines": ["in-context"],
        "scheduler": None,
        "target": 0.9,
        "lm": {"dtype": "fp32"},
        "out": "made",
        "max_concurrent": 2,
        "price_per_hour": 1.5,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def file_of(study: Path, name: str) -> Callable[[Path], Path]:
    """A file of a copy of a study; ``name`` may be a pattern."""

    def make(folder: Path) -> Path:
        shutil.copytree(study, folder)
        return sorted(folder.glob(name))[0]

    return make


def cluster(name: str) -> Callable[[Path], Path]:
    """A cluster file that comes with the package."""

    def make(folder: Path) -> Path:
        from rayprompt.clusterfiles.shipped import shipped

        folder.mkdir()
        shutil.copy(shipped(name), folder / name)
        return folder / name

    return make


def targets(study: Path, compared: Path) -> list[Target]:
    """Every kind of file."""

    def of_study(path: Path) -> list[list[str]]:
        at = str(path)
        return [
            ["report", at, "--out", f"{at}-r.html"],
            ["search", "--resume", at, "--budget", "1280", *NOWHERE],
            ["transfer", at, *NOWHERE],
            ["search", "--warm-start", at, "--searcher", "random", *NOWHERE],
            ["search", "--model", f"replay:{at}", *NOWHERE],
            ["recommend", "collect", at, "--out", f"{at}-d.parquet"],
            ["store", "info", at],
            ["search", "--searcher", "cma-es", "--set", f"p0={at}", *NOWHERE],
            ["evaluate", "reviews", "--prompt-file", f"{at}/prompt.json", *NOWHERE],
        ]

    def of_comparison(path: Path) -> list[list[str]]:
        at = str(path)
        return [
            ["report", at, "--out", f"{at}-r.html"],
            ["compare", "--resume", at, *NOWHERE],
            ["transfer", at, *NOWHERE],
        ]

    def of_table(path: Path) -> list[list[str]]:
        return [
            ["list", "task", str(path.parent)],
            ["score", "reviews", "--prompts", str(path), *NOWHERE],
            ["recommend", "run", "none", str(path)],
            ["recommend", "check", str(path)],
        ]

    found = [Target(f"train{s}", task_with(s), of_table) for s in (".tsv", ".csv", ".jsonl", ".parquet")]
    found += [
        Target(
            "task.yaml", task_yaml, lambda p: [["list", "task", str(p.parent)], ["search", str(p.parent), *NOWHERE]]
        ),
        Target("search.yaml", config, lambda p: [["search", "--config", str(p), *NOWHERE]]),
        Target("compare.yaml", comparison, lambda p: [["compare", "--config", str(p), *NOWHERE]]),
    ]
    inside = (
        "study.yaml",
        "prompt.json",
        "result.json",
        "runs/*.json",
        "scores/*.parquet",
        "candidates/*.parquet",
        "store.json",
    )
    found += [Target(name, file_of(study, name), lambda p: of_study(_root(p))) for name in inside]
    inside = ("study.yaml", "comparison.json", "runs/*.json")
    found += [Target(f"compared {name}", file_of(compared, name), lambda p: of_comparison(_root(p))) for name in inside]
    for name in (
        "aws.yaml",
        "gcp.yaml",
        "azure.yaml",
        "local.yaml",
        "kuberay-cluster.yaml",
        "kuberay-job.yaml",
        "skypilot.yaml",
        "slurm.sh",
        "Dockerfile",
    ):
        found.append(Target(name, cluster(name), lambda p: [["clusters", "check", str(p)]]))
    return found


def _root(path: Path) -> Path:
    return path.parent if (path.parent / "study.yaml").is_file() or path.name == "study.yaml" else path.parent.parent


LINES = [
    [
        "search",
        "reviews",
        "--searcher",
        "random",
        "--budget",
        "640",
        "--seed",
        "1",
        "--set",
        "length=3",
        "--lm",
        "dtype=fp32",
        "--race",
        "--finalists",
        "3",
    ],
    ["search", "--config", "none.yaml"],
    ["search", "--searcher", "cma-es", "--set", "intrinsic_dim=5", "--set", "p0=text:so", "--objective", "hinge"],
    [
        "compare",
        "reviews",
        "--searchers",
        "a=random,nevergrad",
        "--seeds",
        "3,5",
        "--set",
        "a.length={randint:[1,5]}",
        "--target",
        "0.9",
        "--samples",
        "2",
    ],
    ["evaluate", "reviews", "--prompt", "it", "--on", "dev"],
    ["list", "task", "reviews", "--split", "8-3"],
    ["store", "info", "."],
    ["transfer", "x", "--models", "tiny-causal", "--format", "md"],
    ["report", "x", "--out", "r.html"],
    ["recommend", "run", "x", "y", "--rule", "switch"],
    ["clusters", "init", "aws", "--region", "eu-west-1", "--max-workers", "3", "--out", "c.yaml"],
    ["score", "reviews", "--prompts", "x.txt", "--out", "y.parquet"],
    [
        "search",
        "--scorers",
        "1:3",
        "--gpus-per-scorer",
        "0.5",
        "--out",
        "o",
        "--store",
        "s",
        "--proxy-model",
        "tiny-causal",
        "--extractor",
        "exact",
    ],
]


def mutated_line(rng: random.Random) -> list[str]:
    """A command line with one to three arguments changed, dropped, doubled or swapped."""
    line = list(rng.choice(LINES))
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(1, len(line)) if len(line) > 1 else 0
        odd = str(rng.choice([o for o in ODD if not (isinstance(o, int) and o > 1 << 70)]))
        kind = rng.random()
        if kind < 0.5:
            key, equals, _ = line[at].partition("=")
            line[at] = f"{key}={odd}" if equals and rng.random() < 0.7 else odd
        elif kind < 0.65 and len(line) > 1:
            del line[at]
        elif kind < 0.8:
            line.insert(at, line[at])
        elif kind < 0.9:
            other = rng.randrange(len(line))
            line[at], line[other] = line[other], line[at]
        else:
            line.insert(at, odd)
    # Without an address that ends it, what is right would be run.
    return [*line, *NOWHERE] if line[:1] and line[0] in ("search", "compare", "evaluate", "score", "transfer") else line


def outcome(arguments: Sequence[str]) -> tuple[int, str, float]:
    """Exit code, standard error, and seconds of a command in this process."""
    out, error = io.StringIO(), io.StringIO()
    begun = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run(app, list(arguments))
    return code, error.getvalue(), time.monotonic() - begun


def wrong(arguments: Sequence[str]) -> str:
    """What is wrong with how a command ends; empty where nothing is."""
    try:
        code, error, seconds = outcome(arguments)
    except BaseException as raised:
        return f"raised {raised!r}"
    lines = [
        line
        for line in error.splitlines()
        if line.startswith("rayprompt: ") and not line.startswith("rayprompt: note: ")
    ]
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in error:
        return "a traceback"
    if "rayprompt: unexpected " in error:
        return lines[-1]
    if code == 2 and len(lines) != 1:
        return f"{len(lines)} lines of error"
    if any(character in error for character in "\x1b\x07\u202e\x00"):
        return "a control character"
    if "SECRET" in error:
        return "a secret"
    return f"{seconds:.0f} seconds" if seconds > SECONDS else ""


def fuzz(numbers: range, studies: tuple[Path, Path], folder: Path) -> list[str]:
    """What is wrong, each with the number by which it is made again."""
    found = []
    kinds = targets(*studies)
    for number in numbers:
        rng = random.Random(number)
        if number % 4 == 0:
            arguments = mutated_line(rng)
        else:
            target = kinds[number % len(kinds)]
            path = target.make(folder / str(number))
            mutate(path, rng)
            arguments = list(rng.choice(target.commands(path)))
        why = wrong(arguments)
        if why:
            found.append(ascii(f"{number}: {why} ({arguments})"))
    return found


if __name__ == "__main__":  # a process that is not connected to a cluster: begin, count, study, comparison, folder
    begin, count, *paths = sys.argv[1:]
    study, compared, work = map(Path, paths)
    (work / "here").mkdir()
    os.chdir(work / "here")
    print("\n".join(fuzz(range(int(begin), int(begin) + int(count)), (study, compared), work)))
