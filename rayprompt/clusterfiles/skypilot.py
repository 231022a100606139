"""SkyPilot tasks."""

from __future__ import annotations

import re
from typing import Any

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.images import image_problems
from rayprompt.clusterfiles.located import Document
from rayprompt.clusterfiles.schema import anything, check_schema

RESOURCES: dict[str, Any] = {
    "image_id!": None,
    **anything(
        "infra cloud region zone accelerators accelerator_args cpus memory instance_type use_spot job_recovery "
        "disk_size disk_tier network_tier local_disk max_hourly_cost ports labels autostop priority volumes"
    ),
}
CHOICE = {key.rstrip("!"): schema for key, schema in RESOURCES.items()}
TASK = {
    "resources!": {**RESOURCES, "any_of": [CHOICE], "ordered": [CHOICE]},
    "run!": str,
    "num_nodes": int,
    **anything(
        "name workdir file_mounts storage_mounts volumes setup envs secrets service pool inputs outputs event_callback "
        "experimental config"
    ),
}


def check_skypilot(file: Document, findings: Findings, ray: str) -> None:
    """Keys and types first; then image, what a forgotten cluster costs, and that SkyPilot's own Ray is left alone."""
    check_schema(file, findings, (), TASK)
    if findings.found:
        return
    if file.get("num_nodes") is not None and file.get("num_nodes") < 1:
        findings.add(file.line("num_nodes"), "nodes", f"num_nodes {file.get('num_nodes')}: must be 1 or more")
    image = file.get("resources", "image_id")
    if not isinstance(image, str) or not image.startswith("docker:"):
        line = file.line("resources", "image_id")
        findings.add(
            line, "image-version", f"image_id {image!r}: must be docker:NAME:0.1.0-ray{ray}, for the same Ray on all"
        )
    else:
        for rule, message in image_problems(image.removeprefix("docker:"), ray, gpu=True):
            findings.add(file.line("resources", "image_id"), rule, message)
    _check_spot(file, findings)
    if not file.get("resources", "autostop"):
        findings.add(
            file.line("resources"),
            "autostop",
            "autostop is missing: sky launch would keep the machines; must be {idle_minutes: 10, down: true}",
        )
    _check_run(file, findings)


def _check_spot(file: Document, findings: Findings) -> None:
    resources = file.get("resources")
    choices: list[Any] = resources.get("any_of") or resources.get("ordered") or [{}]
    spot = [{**resources, **choice}.get("use_spot", False) for choice in choices]
    if any(spot) and all(spot):
        findings.add(
            file.line("resources", "use_spot"),
            "fallback",
            "spot machines alone: when there are none, the job waits; add under ordered a choice with use_spot: false",
        )
    if any(spot) and not resources.get("job_recovery"):
        findings.add(
            file.line("resources"), "recovery", "job_recovery is missing: must be as in {max_restarts_on_errors: 2}"
        )


def _check_run(file: Document, findings: Findings) -> None:
    run = file.get("run")
    first = file.line("run") + 1  # the text of a block begins on the line behind its key
    for i, line in enumerate(run.splitlines()):
        found = re.search(r"\bray (stop|symmetric-run)\b", line.partition("#")[0])
        if found:
            findings.add(
                first + i,
                "ray-stop",
                f"ray {found[1]} stops SkyPilot's own Ray, too: must be ~/sky_templates/ray/start_cluster, and "
                "stop_cluster",
            )
    if (file.get("num_nodes") or 1) > 1 and not re.search(r"start_cluster|ray start", run):
        findings.add(
            file.line("run"),
            "nodes",
            "several nodes, and run joins them to no Ray: ~/sky_templates/ray/start_cluster does",
        )
