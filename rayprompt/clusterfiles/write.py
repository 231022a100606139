"""``rayprompt clusters init``: a file of clusters/ with other values in place; its comments stay."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rayprompt.clusterfiles.check import check_text
from rayprompt.clusterfiles.located import Place, read_documents, replace_values
from rayprompt.clusterfiles.machines import machines
from rayprompt.clusterfiles.shipped import shipped
from rayprompt.errors import InputError, unknown
from rayprompt.store.files import refuse_credentials

SHIPPED_RAY = "2.60.0"  # the Ray of the files in clusters/
Edits = Callable[[str], Mapping[Place, str]]


@dataclass(frozen=True)
class Template:
    """A file of clusters/: for each option where its value goes, in YAML by place, in other files by pattern."""

    file: str
    edits: Mapping[str, Edits] | None = None
    patterns: Mapping[str, str] | None = None

    @property
    def options(self) -> list[str]:
        """The options that this file takes."""
        return list(self.edits or self.patterns or {})


def _scalar(value: str) -> str:
    """Plain where YAML reads it as this string or number anywhere, else in quotes."""
    return value if re.fullmatch(r"[A-Za-z0-9][\w./-]*", value) else json.dumps(value)


def _at(*places: Place) -> Edits:
    return lambda value: dict.fromkeys(places, _scalar(value))


def _studies(index: int) -> Edits:
    return lambda value: {("docker", "run_options", index): _scalar(f"-e STUDIES={value}")}


def _machine(cloud: str, name: str, *key: str) -> Edits:
    """The machine of two node types, spot and on demand, with what Ray must know of it."""

    def edits(value: str) -> Mapping[Place, str]:
        known = machines(cloud)
        if value not in known:
            raise unknown(f"machine of {cloud}", value, [name for name, machine in known.items() if machine.gpus])
        if not known[value].gpus:
            raise InputError(f"--{name} {value}: has no GPU")
        found: dict[Place, str] = {}
        for kind in ("spot", "on-demand"):
            place: Place = ("available_node_types", f"{name}-{kind}")
            found[(*place, "node_config", *key)] = value
            found[(*place, "resources", "CPU")] = str(known[value].cpus)
            found[(*place, "resources", "GPU")] = str(known[value].gpus)
        return found

    return edits


def _project(value: str) -> Mapping[Place, str]:
    found: dict[Place, str] = {("provider", "project_id"): _scalar(value)}
    for name in ("small", "large"):
        for kind in ("spot", "on-demand"):
            place = ("available_node_types", f"{name}-{kind}", "node_config", "serviceAccounts", 0, "email")
            found[place] = f"ray-autoscaler-sa-v1@{value}.iam.gserviceaccount.com"
    return found


def _launcher(cloud: str, region: Edits, *key: str) -> dict[str, Edits]:
    return {
        "name": _at(("cluster_name",)),
        "region": region,
        "small": _machine(cloud, "small", *key),
        "large": _machine(cloud, "large", *key),
        "max-workers": _at(("max_workers",)),
        "image": _at(("docker", "image")),
        "studies": _studies(1),
    }


def _kuberay(*spec: str) -> dict[str, Edits]:
    groups: list[Place] = [(*spec, "workerGroupSpecs", i) for i in range(2)]
    pods: list[Place] = [(*group, "template", "spec", "containers", 0) for group in ((*spec, "headGroupSpec"), *groups)]
    gpus = [(*pod, "resources", part, "nvidia.com/gpu") for pod in pods[1:] for part in ("requests", "limits")]
    return {
        "name": _at(("metadata", "name")),
        "gpus": _at(*gpus),
        "max-workers": _at(*((*group, "maxReplicas") for group in groups)),
        "image": _at(*((*pod, "image") for pod in pods)),
        "studies": _at(*((*pod, "env", 0, "value") for pod in pods)),
    }


TEMPLATES = {
    "aws": Template("aws.yaml", _launcher("aws", _at(("provider", "region")), "InstanceType")),
    "gcp": Template(
        "gcp.yaml",
        {
            **_launcher(
                "gcp",
                lambda value: {("provider", "region"): value, ("provider", "availability_zone"): f"{value}-a"},
                "machineType",
            ),
            "zone": _at(("provider", "availability_zone")),
            "project": _project,
        },
    ),
    "azure": Template(
        "azure.yaml",
        {
            **_launcher("azure", _at(("provider", "location")), "azure_arm_parameters", "vmSize"),
            "group": _at(("provider", "resource_group")),
        },
    ),
    "local": Template(
        "local.yaml",
        {
            "name": _at(("cluster_name",)),
            "head": _at(("provider", "head_ip")),
            "workers": lambda value: {
                ("provider", "worker_ips"): f"[{', '.join(_scalar(ip.strip()) for ip in value.split(','))}]",
                ("max_workers",): str(len(value.split(","))),
            },
            "user": _at(("auth", "ssh_user")),
            "image": _at(("docker", "image")),
            "studies": _studies(2),
        },
    ),
    "kuberay": Template("kuberay-cluster.yaml", _kuberay("spec")),
    "kuberay-job": Template("kuberay-job.yaml", _kuberay("spec", "rayClusterSpec")),
    "skypilot": Template(
        "skypilot.yaml",
        {
            "name": _at(("name",)),
            "nodes": _at(("num_nodes",)),
            "accelerators": _at(("resources", "accelerators")),
            "image": lambda value: {("resources", "image_id"): _scalar(f"docker:{value}")},
            "studies": _at(("envs", "STUDIES")),
        },
    ),
    "slurm": Template(
        "slurm.sh",
        patterns={
            "name": r"(?<=^#SBATCH --job-name=)\S+",
            "nodes": r"(?<=^#SBATCH --nodes=)\S+",
            "gpus": r"(?<=^#SBATCH --gpus-per-node=)\S+|(?<=--num-gpus )\d+",
            "studies": r"(?<=^STUDIES=)\S+",
        },
    ),
    "docker": Template("Dockerfile", patterns={"base": r"(?<=^FROM )\S+"}),
}


def cluster_file(provider: str, given: Mapping[str, str], ray: str) -> str:
    """The text of a cluster file with the ``given`` options, for this version of Ray. It passes the check.

    Raises:
        InputError: no such provider, an option that it does not have, or values with which the check finds something.
    """
    if provider not in TEMPLATES:
        raise unknown("provider", provider, TEMPLATES)
    template = TEMPLATES[provider]
    for option in given:
        if option not in template.options:
            options = ", ".join(f"--{name}" for name in template.options)
            raise InputError(f"--{option}: {provider} has no such option; it has {options}")
        refuse_credentials(given[option])
    text = shipped(template.file).read_text(encoding="utf-8").replace(SHIPPED_RAY, ray)
    if template.edits:
        values: dict[Place, str] = {}
        for option in (name for name in template.options if name in given):
            values |= template.edits[option](given[option])
        text = replace_values(text, read_documents(text), values)
    for option, pattern in (template.patterns or {}).items():
        if option in given:
            text = re.sub(pattern, given[option].replace("\\", r"\\"), text, flags=re.MULTILINE)
    _, findings = check_text(text, ray)
    if findings:
        raise InputError(f"{provider} with these options: {findings[0].message}")
    return text
