"""Container images: which Ray is in them, as their tags say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version

_RAYS_OWN = re.compile(r"^(docker\.io/)?rayproject/ray(-\w+)?$")
_RAY = re.compile(r"ray(\[[\w,-]*\])?([=<>~!@].*)?")  # a requirement of pip's that is Ray
OLDEST_PYTHON = (3, 11)  # what rayprompt needs


def installed_ray() -> str:
    """The version of Ray in this environment, without importing it."""
    return version("ray")


def image_problems(image: object, ray: str, gpu: bool) -> Iterator[tuple[str, str]]:
    """(rule, message) of what is wrong with an image; ``gpu``: whether nodes with GPUs run it."""
    right = f"rayproject/ray:{ray}-py311-gpu, or an image of yours whose tag says it, as NAME:0.1.0-ray{ray}"
    if not isinstance(image, str) or not image:
        yield "image-version", f"the image is {image!r}: must be {right}"
        return
    name, tag = _parted(image)
    if tag is None:
        yield "image-version", f"{image} has no tag, which means latest: must be {right}"
        return
    own = _RAYS_OWN.match(name) is not None
    found = re.match(r"(\d+\.\d+\.\d+)(?![\d.])", tag) if own else re.search(r"ray-?(\d+\.\d+\.\d+)(?![\d.])", tag)
    if found is None:
        yield "image-version", f"{image}: its tag names no version of Ray; must be {right}"
    elif found[1] != ray:
        yield "image-version", f"{image} has Ray {found[1]}, but Ray {ray} is used here: must be {right}"
    if own:
        python = re.search(r"-py3(\d+)", tag)
        if python is None or (3, int(python[1])) < OLDEST_PYTHON:
            yield "image-python", f"{image}: rayprompt needs Python 3.11, as in rayproject/ray:{ray}-py311-gpu"
        if gpu and not re.search(r"-(gpu|cu\d+)", tag):
            yield "image-cpu", f"{image} has no CUDA: on nodes with GPUs take rayproject/ray:{ray}-py311-gpu"


def _parted(image: str) -> tuple[str, str | None]:
    """(name, tag) of an image; a digest is left out."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        return name, None
    return head, tag


def pip_problem(command: str, ray: str) -> str | None:
    """Why a shell command that installs Ray with pip is wrong; None where it does not, or installs this version."""
    for part in re.split(r"&&|\|\||[;|\n]", command):
        found = re.search(r"\b(?:pip3?|uv)\b.*?\binstall\b(.*)", part)
        if found is None:
            continue
        if re.search(r"ray-wheels/latest|ray-3\.0\.0\.dev", found[1]):
            return f"installs a nightly Ray: must be ray=={ray}, or nothing, as the image has it"
        for word in re.sub(r"\s*([=<>~!@]+)\s*", r"\1", found[1]).replace("'", " ").replace('"', " ").split():
            requirement = _RAY.fullmatch(word)
            if requirement and requirement[2] != f"=={ray}":
                return f"installs {word!r}: must be ray=={ray}, or nothing, as the image has it"
    return None
