"""KubeRay manifests: a strict check of their keys (KubeRay's own is told what it knows and says nothing), and rules."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.images import image_problems
from rayprompt.clusterfiles.launcher import silent
from rayprompt.clusterfiles.located import Document, Place
from rayprompt.clusterfiles.schema import anything, check_schema
from rayprompt.errors import did_you_mean

GPU = "nvidia.com/gpu"
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-provisioning": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


# The fields are those of ray.io/v1 and of Kubernetes' pods.
CONTAINER = {
    "name!": str,
    "image!": str,
    "resources": {"requests": dict, "limits": dict, "claims": None},
    **anything(
        "args command env envFrom imagePullPolicy lifecycle livenessProbe ports readinessProbe resizePolicy "
        "restartPolicy securityContext startupProbe stdin stdinOnce terminationMessagePath "
        "terminationMessagePolicy tty "
        "volumeDevices volumeMounts workingDir"
    ),
}
POD = {
    "metadata": anything("name namespace labels annotations"),
    "spec!": {
        "containers!": [CONTAINER],
        "initContainers": [CONTAINER],
        "nodeSelector": dict,
        "tolerations": [dict],
        "restartPolicy": str,
        **anything(
            "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
            "hostAliases hostIPC hostNetwork hostPID hostname imagePullSecrets nodeName os overhead preemptionPolicy "
            "priority priorityClassName readinessGates resourceClaims runtimeClassName schedulerName schedulingGates "
            "securityContext serviceAccount serviceAccountName shareProcessNamespace subdomain "
            "terminationGracePeriodSeconds topologySpreadConstraints volumes"
        ),
    },
}
GROUP = {"rayStartParams": dict, "template!": POD, "resources": dict, "labels": dict}
CLUSTER = {
    "rayVersion!": str,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "version": str,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        **anything("resources image imagePullPolicy env envFrom volumeMounts securityContext"),
    },
    "headGroupSpec!": {**GROUP, "serviceType": str, "headService": dict, "enableIngress": bool},
    "workerGroupSpecs!": [
        {
            **GROUP,
            "groupName!": str,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "numOfHosts": int,
            "idleTimeoutSeconds": int,
            "priority": int,
            "suspend": bool,
            "scaleStrategy": dict,
        }
    ],
    **anything("authOptions gcsFaultToleranceOptions headServiceAnnotations managedBy suspend upgradeStrategy"),
}
JOB = {
    "entrypoint!": str,
    "rayClusterSpec": CLUSTER,
    "runtimeEnvYAML": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "clusterSelector": dict,
    **anything(
        "deletionStrategy entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
        "preRunningDeadlineSeconds submitterConfig submitterPodTemplate suspend"
    ),
}
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB}
TOP = anything("apiVersion kind")


def check_kuberay(file: Document, findings: Findings, ray: str) -> None:
    """The keys first; the rules only of a manifest whose keys are right."""
    kind, version = file.get("kind"), file.get("apiVersion")
    if version != "ray.io/v1":
        findings.add(file.line("apiVersion"), "key", f"apiVersion {version!r}: must be ray.io/v1")
    if not isinstance(kind, str) or kind not in KINDS:
        known = " or ".join(KINDS)
        findings.add(file.line("kind"), "key", f"kind {kind!r}{did_you_mean(kind, KINDS)}: must be {known}")
        return
    schema = {**TOP, "metadata!": {"name!": str, **anything("namespace labels annotations")}, "spec!": KINDS[kind]}
    check_schema(file, findings, (), schema)
    if findings.found:
        return
    if kind == "RayJob":
        _check_job(file, findings)
        if file.get("spec", "rayClusterSpec") is not None:
            _check_cluster(file, findings, ("spec", "rayClusterSpec"), ray)
    else:
        _check_cluster(file, findings, ("spec",), ray)


def _check_job(file: Document, findings: Findings) -> None:
    spec = file.get("spec")
    own = "rayClusterSpec" in spec
    if own == ("clusterSelector" in spec):
        findings.add(file.line("spec"), "job", "spec must have either rayClusterSpec or clusterSelector")
    if own and spec.get("shutdownAfterJobFinishes") is not True:
        findings.add(
            file.line("spec", "shutdownAfterJobFinishes"),
            "shutdown",
            "shutdownAfterJobFinishes must be true: else the cluster's GPUs stay when the job is done",
        )
    if "activeDeadlineSeconds" not in spec:
        findings.add(
            file.line("spec"),
            "deadline",
            "activeDeadlineSeconds is missing: a job that hangs would hold its GPUs for ever; as in 43200 (twelve "
            "hours)",
        )
    if "rayprompt" in spec["entrypoint"] and spec.get("backoffLimit", 0) and "-resume" not in spec["entrypoint"]:
        findings.add(
            file.line("spec", "entrypoint"),
            "resume",
            "with backoffLimit the entrypoint runs again: it must have --start-or-resume, or the "
            "second run finds a study there and fails",
        )


def _check_cluster(file: Document, findings: Findings, spec: Place, ray: str) -> None:
    given = file.get(*spec, "rayVersion")
    if given != ray:
        message = f"rayVersion {given!r}, but Ray {ray} is used here: must be that of the image, {ray}"
        findings.add(file.line(*spec, "rayVersion"), "ray-version", message)
    head: Place = (*spec, "headGroupSpec")
    workers = [(*spec, "workerGroupSpecs", i) for i in range(len(file.get(*spec, "workerGroupSpecs")))]
    for group in (head, *workers):
        for place in _containers(file, group):
            for rule, message in image_problems(
                file.get(*place, "image"), ray, group != head and _gpus(file, group) > 0
            ):
                findings.add(file.line(*place, "image"), rule, message)
        _check_resources(file, findings, group)
    _check_head(file, findings, head)
    _check_autoscaling(file, findings, spec, workers)
    _check_fallback(file, findings, workers)
    if not findings.found:
        _ask_ray(file, findings, spec)


def _containers(file: Document, group: Place) -> Iterator[Place]:
    for i in range(len(file.get(*group, "template", "spec", "containers"))):
        yield (*group, "template", "spec", "containers", i)


def _amount(file: Document, group: Place, part: str, resource: str) -> Any:
    """Of the first container, in which Ray runs."""
    return file.get(*group, "template", "spec", "containers", 0, "resources", part, resource)


def _gpus(file: Document, group: Place) -> int:
    given = _amount(file, group, "limits", GPU) or _amount(file, group, "requests", GPU) or 0
    return int(given) if str(given).isascii() and str(given).isdigit() else 0


def _is_spot(file: Document, group: Place) -> bool:
    selector = file.get(*group, "template", "spec", "nodeSelector") or {}
    return any(str(selector.get(key)).lower() == value.lower() for key, value in SPOT.items())


def _cpus(text: object) -> float | None:
    try:
        return float(str(text)[:-1]) / 1000 if str(text).endswith("m") else float(str(text))
    except ValueError:
        return None


def _check_resources(file: Document, findings: Findings, group: Place) -> None:
    container: Place = (*group, "template", "spec", "containers", 0)
    name = file.get(*group, "groupName") or "headGroupSpec"
    for resource in ("cpu", "memory", GPU):
        limit, request = (_amount(file, group, part, resource) for part in ("limits", "requests"))
        if resource == GPU and limit is None and request is None:
            continue
        if limit is None or str(limit) != str(request):
            where = "limits" if limit is not None else "requests"
            findings.add(
                file.line(*container, "resources", where, resource),
                "gpus" if resource == GPU else "resources",
                f"{name}: {resource} is {request!r} in requests and {limit!r} in limits: must stand in both, the same",
            )
    gpus = _amount(file, group, "limits", GPU)
    if gpus is not None and not (str(gpus).isascii() and str(gpus).isdigit()):
        findings.add(
            file.line(*container, "resources", "limits", GPU), "gpus", f"{name}: {GPU}: {gpus!r} must be a whole number"
        )
    cpus = _cpus(_amount(file, group, "limits", "cpu"))
    if cpus is not None and not math.isclose(cpus, round(cpus)):
        findings.add(
            file.line(*container, "resources", "limits", "cpu"),
            "resources",
            f"{name}: cpu {cpus:g}: must be whole, as Ray rounds it up and starts more than there is room for",
        )
    params = file.get(*group, "rayStartParams") or {}
    for key, value in params.items():
        if not isinstance(value, str):
            findings.add(
                file.line(*group, "rayStartParams", key),
                "type",
                f'{name}: rayStartParams.{key} must be a string: "{value}"',
            )
    if "num-gpus" in params and str(params["num-gpus"]) != str(_gpus(file, group)):
        findings.add(
            file.line(*group, "rayStartParams", "num-gpus"),
            "gpus",
            f"{name}: num-gpus {params['num-gpus']!r}, but the container has {_gpus(file, group)}: leave it out",
        )


def _check_head(file: Document, findings: Findings, head: Place) -> None:
    params = file.get(*head, "rayStartParams") or {}
    cpu = (file.get(*head, "resources") or {}).get("CPU", params.get("num-cpus"))
    if str(cpu) != "0" or _gpus(file, head):
        findings.add(
            file.line(*head, "rayStartParams", "num-cpus"),
            "head-work",
            'rayStartParams of the head must have num-cpus: "0", and its container no GPU: work on the head can '
            "take the "
            "cluster down",
        )
    if _is_spot(file, head):
        findings.add(
            file.line(*head, "template", "spec", "nodeSelector"),
            "head-spot",
            "the head on a spot node: if it goes, all goes; only workers may be there",
        )
    if file.get(*head, "serviceType") in ("LoadBalancer", "NodePort") or file.get(*head, "enableIngress"):
        key = "enableIngress" if file.get(*head, "enableIngress") else "serviceType"
        findings.add(
            file.line(*head, key),
            "open-port",
            f"{key} {file.get(*head, key)}: Ray's dashboard runs anyone's code; must be serviceType: ClusterIP, "
            "and kubectl "
            "port-forward",
        )


def _check_autoscaling(file: Document, findings: Findings, spec: Place, workers: list[Place]) -> None:
    scales = file.get(*spec, "enableInTreeAutoscaling") is True
    if not scales:
        findings.add(
            file.line(*spec, "enableInTreeAutoscaling"),
            "autoscaling",
            "enableInTreeAutoscaling must be true: else idle GPUs stay",
        )
    options = file.get(*spec, "autoscalerOptions") or {}
    if scales and options.get("version") != "v2":
        findings.add(
            file.line(*spec, "autoscalerOptions", "version"), "autoscaling", "autoscalerOptions.version must be v2"
        )
    if not 0 < options.get("idleTimeoutSeconds", 60) <= 3600:
        findings.add(
            file.line(*spec, "autoscalerOptions", "idleTimeoutSeconds"),
            "idle-timeout",
            f"idleTimeoutSeconds {options['idleTimeoutSeconds']}: must be more than 0 and at most 3600",
        )
    for group in workers:
        name = file.get(*group, "groupName")
        least, most = file.get(*group, "minReplicas"), file.get(*group, "maxReplicas")
        start = file.get(*group, "replicas")
        if least and _gpus(file, group):
            findings.add(
                file.line(*group, "minReplicas"),
                "min-workers",
                f"{name}: minReplicas {least}: so many pods with GPUs are billed while nothing runs; must be 0",
            )
        if most < 1 or least > most or (start is not None and not least <= start <= most):
            findings.add(
                file.line(*group, "maxReplicas"),
                "max-workers",
                f"{name}: minReplicas {least}, replicas {start}, maxReplicas {most}: must be in this order, the "
                "last 1 or "
                "more",
            )
        if scales and file.get(*group, "template", "spec", "restartPolicy") != "Never":
            findings.add(
                file.line(*group, "template", "spec", "restartPolicy"),
                "autoscaling",
                f"{name}: restartPolicy must be Never: autoscaler v2 replaces pods itself",
            )
        if _gpus(file, group) and not any(
            toleration.get("key") in (GPU, None)
            for toleration in file.get(*group, "template", "spec", "tolerations") or []
        ):
            findings.add(
                file.line(*group, "template", "spec"),
                "toleration",
                f"{name}: no toleration of {GPU}: clouds keep pods without it off their GPU nodes",
            )


def _check_fallback(file: Document, findings: Findings, workers: list[Place]) -> None:
    spot = [group for group in workers if _is_spot(file, group)]
    on_demand = [group for group in workers if group not in spot]
    for group in spot:
        same = [other for other in on_demand if _gpus(file, other) == _gpus(file, group)]
        name = file.get(*group, "groupName")
        if not same:
            findings.add(
                file.line(*group),
                "fallback",
                f"{name}: no other group has {_gpus(file, group)} GPUs on demand; when there is no spot capacity, "
                "searches wait",
            )
        elif all((file.get(*other, "priority") or 0) >= (file.get(*group, "priority") or 0) for other in same):
            findings.add(
                file.line(*group),
                "priority",
                f"{name}: its priority must be higher than that of {file.get(*same[0], 'groupName')}, or Ray takes the "
                "dearer node first",
            )


def _ask_ray(file: Document, findings: Findings, spec: Place) -> None:
    """What Ray's autoscaler makes of the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "check", "namespace": "check"}, "spec": copy.deepcopy(file.get(*spec))}
    try:
        with silent():
            _derive_autoscaling_config_from_ray_cr(resource)
    except Exception as error:  # Ray raises anything: its reason is the finding
        findings.add(file.line(*spec), "ray", f"Ray's autoscaler refuses it: {error or type(error).__name__}")
