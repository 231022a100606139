"""YAML of Ray's cluster launcher (``ray up``): what Ray says of it, and what Ray does not say."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rayprompt.clusterfiles.clouds import CLOUDS
from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.images import image_problems, pip_problem
from rayprompt.clusterfiles.located import Document, Place
from rayprompt.clusterfiles.nodes import check_nodes
from rayprompt.clusterfiles.schema import anything, check_schema
from rayprompt.errors import did_you_mean

BEFORE = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
START = ["head_start_ray_commands", "worker_start_ray_commands"]
LOCAL = {"worker_ips": [str], **anything("type head_ip external_head_ip coordinator_address")}
LONGEST_IDLE = 60  # minutes
REMOTE = re.compile(r"^(s3|gs|gcs|abfss?|hdfs)://")


def check_launcher(file: Document, findings: Findings, ray: str) -> None:
    """Keys and types first; then our rules; in the end what ``ray up`` makes of it."""
    provider = file.get("provider", "type")
    _check_rays_schema(file, findings)
    if not findings.found:
        _check_open_keys(file, findings, provider)
    if findings.found:
        return
    _check_commands(file, findings, ray)
    _check_docker(file, findings, ray)
    _check_costs(file, findings)
    if provider == "local":
        _check_local(file, findings)
    else:
        check_nodes(file, findings, CLOUDS[provider])
    if not findings.found:
        _ask_ray(file, findings)


def _check_rays_schema(file: Document, findings: Findings) -> None:
    """Ray validates what it has filled up with defaults, and names no lines: here its schema is held to the file."""
    import jsonschema

    schema = _rays_schema(local=file.get("provider", "type") == "local")
    for error in jsonschema.Draft7Validator(schema).iter_errors(file.data):
        place = tuple(error.absolute_path)
        name = ".".join(map(str, place)) or "the file"
        known = error.schema.get("properties", {})
        if error.validator == "additionalProperties":
            for key in sorted(set(error.instance) - set(known)):
                message = f"{key!r} is no key of {name}{did_you_mean(key, known)}"
                findings.add(file.line(*place, key), "key", message)
        else:
            whole = "; shares of a GPU are for actors, not nodes" if "resources" in place else ""
            findings.add(file.line(*place), "type", f"{name}: {error.message}{whole}")


@cache
def _rays_schema(local: bool) -> dict[str, Any]:
    import ray.autoscaler

    text = (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    if local:
        schema["properties"]["min_workers"] = {"type": "integer"}  # Ray takes it away before it validates
    return schema


def _check_open_keys(file: Document, findings: Findings, provider: str) -> None:
    """Where Ray's schema takes any key, and Ray forgets those that it does not know."""
    if provider == "local":
        check_schema(file, findings, ("provider",), LOCAL)
    elif provider in CLOUDS:
        cloud = CLOUDS[provider]
        check_schema(file, findings, ("provider",), cloud.provider)
        for name in file.get("available_node_types") or ():
            check_schema(file, findings, ("available_node_types", name, "node_config"), cloud.node)
    else:
        known = ", ".join(sorted([*CLOUDS, "local"]))
        findings.add(file.line("provider", "type"), "provider", f"provider type {provider!r}: known here: {known}")


def _check_commands(file: Document, findings: Findings, ray: str) -> None:
    defaults = _rays_defaults(file.data["provider"]["type"])
    for name in (*BEFORE, *START):
        if name not in file.data:
            runs = "; ".join(str(command) for command in defaults.get(name, [])) or "nothing, today"
            right = f"{name}: []" if name in BEFORE else f"{name} with 'ray stop' and 'ray start ...'"
            findings.add(file.line(), "commands", f"{name} is missing, and Ray's default runs: {runs}. Write {right}")
    lists: list[Place] = [(name,) for name in (*BEFORE, *START)]
    for kind in file.get("available_node_types") or ():
        lists += [("available_node_types", kind, name) for name in ("initialization_commands", "worker_setup_commands")]
    for place in lists:
        for i, command in enumerate(file.get(*place) or []):
            problem = pip_problem(command, ray)
            if problem:
                findings.add(file.line(*place, i), "ray-install", problem)
    _check_start(file, findings, START[0], ("ray start", "--head", "--autoscaling-config="))
    _check_start(file, findings, START[1], ("ray start", "--address=$RAY_HEAD_IP"))


def _check_start(file: Document, findings: Findings, name: str, needed: tuple[str, ...]) -> None:
    commands = file.get(name)
    if commands is None:
        return
    flat = [re.sub(r"\s+", " ", command) for command in commands]
    if not any(all(part in command for part in needed) for command in flat):
        findings.add(file.line(name), "start-command", f"{name} must have a command with {' ... '.join(needed)}...")
    if not any("ray stop" in command for command in flat):
        message = f"{name} must begin with ray stop: on a node that is set up again, Ray runs already"
        findings.add(file.line(name), "start-command", message)
    for i, command in enumerate(flat):
        if re.search(r"--dashboard-host[= ]0\.0\.0\.0", command):
            findings.add(
                file.line(name, i),
                "open-port",
                "--dashboard-host=0.0.0.0: Ray's dashboard runs anyone's code; leave it out, and use: ray dashboard",
            )


@cache
def _rays_defaults(provider: str) -> Mapping[str, Any]:
    from ray.autoscaler._private.providers import _get_default_config

    defaults: Mapping[str, Any] = _get_default_config({"type": provider})
    return defaults


def _check_docker(file: Document, findings: Findings, ray: str) -> None:
    docker = file.get("docker") or {}
    if not (docker.get("image") or (docker.get("head_image") and docker.get("worker_image"))):
        findings.add(
            file.line("docker"),
            "image-version",
            f"docker.image is missing, so nodes run what their disk has: must be an image with Ray {ray}, as "
            f"NAME:0.1.0-ray{ray}",
        )
        return
    places: list[tuple[Place, bool]] = [(("docker", "image"), True), (("docker", "worker_image"), True)]
    places.append((("docker", "head_image"), False))
    for name in file.get("available_node_types") or ():
        places.append((("available_node_types", name, "docker", "worker_image"), True))
    for place, gpu in places:
        if file.get(*place) is not None:
            for rule, message in image_problems(file.get(*place), ray, gpu):
                findings.add(file.line(*place), rule, message)
    _check_studies(file, findings)


def _check_studies(file: Document, findings: Findings) -> None:
    """Studies must outlive the machines: in a bucket, or in a directory that all share."""
    options = [str(option) for option in file.get("docker", "run_options") or []]
    mounted = re.findall(r"(?:-v|--volume)[ =]\S+?:([^:\s]+)", " ".join(options))
    for i, option in enumerate(options):
        found = re.search(r"(?:-e|--env)[ =]STUDIES=(\S+)", option)
        if found:
            if not REMOTE.match(found[1]) and not any(found[1].startswith(folder) for folder in mounted):
                findings.add(
                    file.line("docker", "run_options", i),
                    "studies",
                    f"studies in {found[1]} are on the disk of one machine, and go with it: must be s3://, gs:// or "
                    "abfs://BUCKET/FOLDER, or in a shared directory that -v mounts",
                )
            return
    findings.add(
        file.line("docker", "run_options"),
        "studies",
        "run_options must say where studies go: -e STUDIES=s3://BUCKET/FOLDER (gs://, abfs://, or a shared directory)",
    )


def _check_costs(file: Document, findings: Findings) -> None:
    """The bounds on what a forgotten cluster costs."""
    most, idle = file.get("max_workers"), file.get("idle_timeout_minutes")
    if most is None or most < 1:
        given = "is missing: Ray's default is 2" if most is None else f"is {most}"
        findings.add(file.line("max_workers"), "max-workers", f"max_workers {given}; must be 1 or more")
    if idle is None or not 0 < idle <= LONGEST_IDLE:
        given = "is missing" if idle is None else f"is {idle}"
        findings.add(
            file.line("idle_timeout_minutes"),
            "idle-timeout",
            f"idle_timeout_minutes {given}: must be at most {LONGEST_IDLE}, and not 0; idle GPUs are billed that long",
        )


def _check_local(file: Document, findings: Findings) -> None:
    for key in ("available_node_types", "head_node_type"):
        if key in file.data:
            findings.add(file.line(key), "local-nodes", f"{key}: Ray has none on machines of your own; leave it out")
    if "coordinator_address" in file.data["provider"]:
        return
    head, workers = file.get("provider", "head_ip"), file.get("provider", "worker_ips")
    if not head or not workers:
        findings.add(file.line("provider"), "local-nodes", "provider must have head_ip, and worker_ips as a list")
        return
    if head in workers or len(set(workers)) < len(workers):
        message = "worker_ips: each machine once, and not the head"
        findings.add(file.line("provider", "worker_ips"), "local-nodes", message)
    if file.get("max_workers") != len(workers):
        message = f"max_workers is {file.get('max_workers')}, but there are {len(workers)} worker_ips: must be the same"
        findings.add(file.line("max_workers"), "max-workers", message)
    start = " ".join(file.get(START[0]) or [])
    if start and "RAY_enable_autoscaler_v2=0" not in start:
        findings.add(
            file.line(START[0]),
            "local-workers",
            "Ray's newer autoscaler takes the head for a worker and leaves the last one out: must be "
            "RAY_enable_autoscaler_v2=0 ray start --head ...",
        )
    if start and not re.search(r"--num-cpus[ =]0\b", start):
        findings.add(
            file.line(START[0]),
            "head-work",
            "ray start --head must have --num-cpus=0 --num-gpus=0: no work on the head, whose CPUs Ray counts itself",
        )


def _ask_ray(file: Document, findings: Findings) -> None:
    """What ``ray up`` does first: fill in the defaults and validate. What Ray prints meanwhile is its reason."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    printed = io.StringIO()
    try:
        with silent(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            validate_config(prepare_config(copy.deepcopy(file.data)))
    except Exception as error:  # Ray raises anything: its reason is the finding
        reason = str(error) or printed.getvalue().strip() or type(error).__name__
        named = [key for key in file.data if re.search(rf"\b{re.escape(key)}\b", reason)]
        findings.add(file.line(*named[:1]), "ray", f"Ray refuses it: {reason}")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing is logged meanwhile."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
