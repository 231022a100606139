"""The node types of a launcher YAML: machines and what Ray is told of them, the head, spot and its fallback."""

from __future__ import annotations

from typing import Any

from rayprompt.clusterfiles.clouds import Cloud
from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.located import Document, Place
from rayprompt.clusterfiles.machines import Machine, machines
from rayprompt.errors import did_you_mean


def check_nodes(file: Document, findings: Findings, cloud: Cloud) -> None:
    """One head that does no work, workers whose machines have what Ray is told, and what the cloud itself wants."""
    head, types = file.get("head_node_type"), file.get("available_node_types") or {}
    if head not in types:
        known = ", ".join(types) or "none, so Ray takes small machines without GPUs"
        message = f"head_node_type {head!r}: must be one of available_node_types: {known}"
        findings.add(file.line("head_node_type"), "head", message)
        return
    for name, content in types.items():
        machine = _machine(file, findings, cloud, name)
        if name == head:
            _check_head(file, findings, cloud, name, machine)
        else:
            _check_worker(file, findings, name, content, machine)
    _check_fallback(file, findings, cloud, {name: content for name, content in types.items() if name != head})
    cloud.check(file, findings)


def _machine(file: Document, findings: Findings, cloud: Cloud, name: str) -> Machine | None:
    place: Place = ("available_node_types", name, "node_config", *cloud.nested, cloud.machine_key)
    given, known = file.get(*place), machines(cloud.name)
    if given not in known:
        hint = did_you_mean(given, known) or ", as in " + next(iter(known))
        findings.add(
            file.line(*place),
            "machine",
            f"{name}: {cloud.machine_key} {given!r} is not known{hint}; if there is such a machine: # check: off "
            "machine",
        )
        return None
    machine, more = known[given], cloud.extra_gpus(file, name)
    return Machine(machine.cpus, machine.gpus + more, machine.gpu)


def _check_head(file: Document, findings: Findings, cloud: Cloud, name: str, machine: Machine | None) -> None:
    place = ("available_node_types", name)
    resources = file.get(*place, "resources")
    if resources.get("CPU") != 0 or resources.get("GPU", 0) != 0:
        findings.add(
            file.line(*place, "resources"),
            "head-work",
            f"{name}: resources must be {{CPU: 0}}, not {resources}: work on the head can take the cluster down",
        )
    if cloud.is_spot(file, name):
        findings.add(
            file.line(*place), "head-spot", f"{name} is a spot machine: if it goes, all goes; only workers may be"
        )
    if machine and machine.gpus:
        findings.add(
            file.line(*place, "node_config"),
            "head-gpu",
            f"{name}: a machine with GPUs that is always there and does no work",
        )
    for key in ("min_workers", "max_workers"):
        if file.get(*place, key):
            findings.add(file.line(*place, key), "head-workers", f"{name}: {key} must be 0: there is one head")


def _check_worker(
    file: Document, findings: Findings, name: str, content: dict[str, Any], machine: Machine | None
) -> None:
    place = ("available_node_types", name)
    if machine:
        _check_counts(file, findings, name, content["resources"], machine)
    if content.get("min_workers", 0) and (machine is None or machine.gpus):
        findings.add(
            file.line(*place, "min_workers"),
            "min-workers",
            f"{name}: min_workers {content['min_workers']}: so many machines with GPUs are billed while nothing "
            "runs; must be 0",
        )
    own, most = content.get("max_workers"), file.get("max_workers")
    if isinstance(own, int) and isinstance(most, int) and not 0 < own <= most:
        findings.add(
            file.line(*place, "max_workers"),
            "max-workers",
            f"{name}: max_workers {own}: must be from 1 to the whole cluster's max_workers, {most}",
        )


def _check_counts(file: Document, findings: Findings, name: str, numbers: dict[str, int], machine: Machine) -> None:
    place = ("available_node_types", name, "resources")
    if numbers.get("GPU", 0) != machine.gpus:
        kind = f" ({machine.gpu})" if machine.gpu else ""
        findings.add(
            file.line(*place, "GPU"),
            "gpus",
            f"{name}: GPU: {numbers.get('GPU', 0)}, but the machine has {machine.gpus}{kind}: must be GPU: "
            f"{machine.gpus}",
        )
    if numbers.get("CPU", machine.cpus) > machine.cpus or numbers.get("CPU") == 0:
        findings.add(
            file.line(*place, "CPU"),
            "cpus",
            f"{name}: CPU: {numbers['CPU']}, but the machine has {machine.cpus}: must be from 1 to {machine.cpus}",
        )


def _check_fallback(file: Document, findings: Findings, cloud: Cloud, workers: dict[str, dict[str, Any]]) -> None:
    """For each spot machine, the same on demand, which Ray takes when there is no spot capacity."""

    def machine(name: str) -> Any:
        return file.get("available_node_types", name, "node_config", *cloud.nested, cloud.machine_key)

    on_demand = [name for name in workers if not cloud.is_spot(file, name)]
    for name in workers:
        if name in on_demand or machine(name) not in machines(cloud.name):
            continue
        same = [other for other in on_demand if machine(other) == machine(name)]
        line = file.line("available_node_types", name)
        if not same:
            findings.add(
                line,
                "fallback",
                f"{name}: no other node type has {machine(name)} on demand; when there is no spot capacity, "
                "searches wait",
            )
        elif all(workers[other].get("priority", 0) >= workers[name].get("priority", 0) for other in same):
            findings.add(
                line,
                "priority",
                f"{name}: its priority must be higher than that of {same[0]}, or Ray takes the dearer machine first",
            )
