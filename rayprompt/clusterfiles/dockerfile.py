"""Dockerfiles of the image that nodes run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.images import image_problems, pip_problem
from rayprompt.clusterfiles.schema import anything
from rayprompt.errors import did_you_mean

INSTRUCTIONS = anything(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME "
    "WORKDIR"
)


def instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, instruction, rest), continued lines joined and comments left out."""
    line, parts = 0, list[str]()
    for number, given in enumerate(text.splitlines(), start=1):
        if given.lstrip().startswith("#") or (not given.strip() and not parts):
            continue
        line = line or number
        parts.append(given.strip().removesuffix("\\"))
        if not given.rstrip().endswith("\\"):
            name, _, rest = " ".join(parts).strip().partition(" ")
            yield line, name, rest.strip()
            line, parts = 0, []


def check_dockerfile(text: str, findings: Findings, ray: str) -> None:
    """Which Ray is in the image, by what it is built from and by what is installed; that rayprompt is in it."""
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    last, rayprompt = 1, False
    for line, name, rest in instructions(text):
        word = name.upper()
        if word not in INSTRUCTIONS:
            hint = did_you_mean(word, INSTRUCTIONS)
            findings.add(line, "instruction", f"{name}: Docker has no such instruction{hint}")
        elif word == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value.strip("\"'")
        elif word == "FROM":
            image, stage = _from(rest, arguments)
            if image not in stages:
                for rule, message in image_problems(image, ray, gpu=True):
                    findings.add(line, rule, message)
            stages.add(stage)
            last, rayprompt = line, False
        elif word == "RUN":
            problem = pip_problem(rest, ray)
            if problem:
                findings.add(line, "ray-install", problem)
            rayprompt = rayprompt or ("install" in rest and "rayprompt" in rest)
    if not rayprompt:
        findings.add(last, "no-rayprompt", "the last stage installs no rayprompt: RUN pip install /tmp/rayprompt-*.whl")


def _from(rest: str, arguments: dict[str, str]) -> tuple[str, str]:
    """(image, stage) of a FROM; arguments of the build have their defaults."""
    words = [word for word in rest.split() if not word.startswith("--")]
    image = re.sub(r"\$\{?(\w+)\}?", lambda found: arguments.get(found[1], ""), words[0]) if words else ""
    return image, words[2] if len(words) == 3 and words[1].lower() == "as" else ""
