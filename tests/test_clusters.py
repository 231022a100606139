"""Cluster files: those that come with rayprompt, what is written from them, and what the check finds in broken ones."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.clusterfiles.check import check_text
from rayprompt.clusterfiles.images import image_problems, pip_problem
from rayprompt.clusterfiles.located import BadYAML, read_documents
from rayprompt.clusterfiles.write import SHIPPED_RAY, TEMPLATES

CLUSTERS = REPOSITORY / "clusters"
FILES = sorted(path for path in CLUSTERS.iterdir() if path.is_file() and path.suffix != ".md")
SCHEMAS = Path(rayprompt.__file__).parent / "schemas"
RAY = SHIPPED_RAY
PINNED = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_passes(path: Path) -> None:
    kind, findings = check_text(path.read_text(), RAY)
    assert kind is not None
    assert list(findings) == []


def test_they_are_for_the_ray_and_the_version_of_this_repository() -> None:
    assert PINNED is not None
    assert PINNED[1] == RAY
    texts = {path.name: path.read_text() for path in FILES}
    images = {image for text in texts.values() for image in re.findall(r"ghcr.io/\S+", text)}
    assert images == {f"ghcr.io/example/rayprompt:{rayprompt.__version__}-ray{RAY}"}
    assert sorted({template.file for template in TEMPLATES.values()}) == sorted(texts)


class Broken(NamedTuple):
    """A change to a file, and what is found; the first finding is on the change's line, or the first with ``at``."""

    file: str
    old: str
    new: str
    rule: str
    message: str
    at: str | None = None


NIGHTLY = "pip install 'ray[default] @ https://s3-us-west-2.amazonaws.com/ray-wheels/latest/ray-3.0.0.dev0-cp311.whl'"
BROKEN = [
    # The autoscaler's traps.
    Broken(
        "aws.yaml",
        "setup_commands: []\nhead",
        "head",
        "commands",
        "setup_commands is missing.*3.0.0.dev0",
        "cluster_name",
    ),
    Broken(
        "gcp.yaml",
        "setup_commands: []\nhead",
        "head",
        "commands",
        "setup_commands is missing.*3.0.0.dev0",
        "cluster_name",
    ),
    Broken(
        "azure.yaml", "setup_commands: []\nhead", "head", "commands", "setup_commands is missing.*3.0.0", "cluster_name"
    ),
    Broken("aws.yaml", "head_setup_commands: []\n", "", "commands", "runs: pip install 'boto3", "cluster_name"),
    Broken("aws.yaml", "initialization_commands: []\n", "", "commands", "initialization_commands is m", "cluster_name"),
    Broken("aws.yaml", "\nsetup_commands: []", f'\nsetup_commands: ["{NIGHTLY}"]', "ray-install", "nightly", '"pip'),
    Broken(
        "aws.yaml", "worker_setup_commands: []", "worker_setup_commands: [pip install -U ray]", "ray-install", "'ray'"
    ),
    Broken("local.yaml", "\nsetup_commands: []", "\nsetup_commands: [pip install ray==2.9.0]", "ray-install", "==2.60"),
    Broken("aws.yaml", ":0.1.0-ray2.60.0", ":0.1.0-ray2.59.0", "image-version", "has Ray 2.59.0, but Ray 2.60.0"),
    Broken("aws.yaml", "rayprompt:0.1.0-ray2.60.0", "rayprompt", "image-version", "no tag, which means latest"),
    Broken(
        "gcp.yaml", "ghcr.io/example/rayprompt:0.1.0-ray2.60.0", "rayproject/ray:2.60.0-py311", "image-cpu", "no CUDA"
    ),
    Broken(
        "gcp.yaml", "ghcr.io/example/rayprompt:0.1.0-ray2.60.0", "rayproject/ray:2.60.0-gpu", "image-python", "3.11"
    ),
    Broken("aws.yaml", "  image: ghcr", "  # image: ghcr", "image-version", "docker.image is missing", "docker:"),
    Broken("aws.yaml", "{CPU: 48, GPU: 4}", "{CPU: 48, GPU: 0.5}", "type", "0.5 is not of type 'integer'; shares of"),
    Broken("aws.yaml", "max_workers: 8", "max_worker: 8", "key", "'max_worker' is no key.*did you mean 'max_workers'"),
    Broken("aws.yaml", "    min_workers: 0", "    min_worker: 0", "key", "did you mean 'min_workers'"),
    Broken("aws.yaml", "  region: us", "  regoin: us", "key", "'regoin' is no key of provider.*'region'"),
    Broken("aws.yaml", "InstanceMarketOptions", "InstanceMarketOption", "key", "did you mean 'InstanceMarketOptions'"),
    Broken("gcp.yaml", "serviceAccounts:", "serviceAccount:", "key", "did you mean 'serviceAccounts'"),
    Broken("azure.yaml", "        billingProfile", "        billingprofile", "key", "did you mean 'billingProfile'"),
    Broken(
        "aws.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true", "stopped-nodes", "disks are billed on"
    ),
    Broken(
        "aws.yaml", "  cache_stopped_nodes", "  # cache_stopped_nodes", "stopped-nodes", "must be false", "provider:"
    ),
    Broken("aws.yaml", "head_node_type: head", "head_node_type: haed", "head", "'haed': must be one of.*: head, small"),
    Broken("local.yaml", "provider:", "available_node_types: {}\nprovider:", "local-nodes", "Ray has none on machines"),
    Broken("local.yaml", "max_workers: 2", "max_workers: 3", "max-workers", "3, but there are 2 worker_ips"),
    Broken("local.yaml", "192.168.1.12]", "192.168.1.10]", "local-nodes", "each machine once, and not the head"),
    Broken(
        "local.yaml", "RAY_enable_autoscaler_v2=0 ", "", "local-workers", "leaves the last", "head_start_ray_commands"
    ),
    Broken("local.yaml", " --num-cpus=0", "", "head-work", "must have --num-cpus=0", "head_start_ray_commands"),
    Broken("aws.yaml", "type: aws", "type: awz", "provider", "'awz': known here: aws, azure, gcp, local"),
    Broken("aws.yaml", "cluster_name: rayprompt", "cluster_name: 3", "type", "cluster_name: 3 is not of type 'string'"),
    Broken("aws.yaml", "max_workers: 8", "max_workers: 8\nmax_workers: 80", "yaml", "stands twice", "max_workers: 80"),
    Broken("aws.yaml", "{CPU: 48, GPU: 4}", "{CPU: 48, GPU: 4", "yaml", "not YAML", "{CPU: 48+1"),
    # Who works where, and what it costs.
    Broken("aws.yaml", "resources: {CPU: 0}", "resources: {CPU: 8}", "head-work", "head: resources must be {CPU: 0}"),
    Broken(
        "aws.yaml", "InstanceType: m6i.2xlarge", "InstanceType: g5.2xlarge", "head-gpu", "always there", "node_config"
    ),
    Broken(
        "aws.yaml",
        "InstanceType: m6i.2xlarge\n",
        "InstanceType: m6i.2xlarge\n      InstanceMarketOptions: {MarketType: spot}\n",
        "head-spot",
        "if it goes, all goes",
        "  head: #",
    ),
    Broken(
        "aws.yaml", "    resources: {CPU: 0}", "    max_workers: 1\n    resources: {CPU: 0}", "head-workers", "be 0"
    ),
    Broken("aws.yaml", "InstanceType: g6.xlarge", "InstanceType: g6.xlrage", "machine", "did you mean 'g6.xlarge'"),
    Broken("aws.yaml", "{CPU: 4, GPU: 1}", "{CPU: 4, GPU: 2}", "gpus", r"GPU: 2, but the machine has 1 \(L4\)"),
    Broken("gcp.yaml", "{CPU: 48, GPU: 4}", "{CPU: 48, GPU: 1}", "gpus", r"GPU: 1, but the machine has 4 \(A100\)"),
    Broken("azure.yaml", "{CPU: 48, GPU: 2}", "{CPU: 48}", "gpus", "GPU: 0, but the machine has 2"),
    Broken("aws.yaml", "{CPU: 4, GPU: 1}", "{CPU: 40, GPU: 1}", "cpus", "CPU: 40, but the machine has 4"),
    Broken("aws.yaml", "    min_workers: 0", "    min_workers: 2", "min-workers", "billed while nothing runs"),
    Broken("aws.yaml", "    min_workers: 0", "    max_workers: 9", "max-workers", "from 1 to the whole cluster's.*8"),
    Broken("aws.yaml", "max_workers: 8", "max_workers: 0", "max-workers", "max_workers is 0; must be 1 or more"),
    Broken("aws.yaml", "idle_timeout_minutes: 10", "idle_timeout_minutes: 600", "idle-timeout", "must be at most 60"),
    Broken(
        "aws.yaml", "    priority: 10", "    priority: 1", "priority", "higher than that of small-on-demand", "small-s"
    ),
    Broken("aws.yaml", "-e STUDIES=s3://example-bucket", "-e STUDIES=", "studies", "on the disk of one machine"),
    Broken(
        "local.yaml", "-v /mnt/shared:/mnt/shared", "-v /mnt/other:/mnt/other", "studies", "one machine", "-e STUDIES"
    ),
    Broken("aws.yaml", "-e STUDIES=", "-e OTHER=", "studies", "must say where studies go", "run_options"),
    Broken(
        "aws.yaml", "      IamInst", "      # IamInst", "worker-storage", "cannot write to the bucket", "small-spot+4"
    ),
    Broken(
        "gcp.yaml", "/auth/cloud-platform", "/auth/compute", "worker-storage", "no serviceAccounts with", "serviceAcc"
    ),
    Broken(
        "gcp.yaml",
        "project_id: example-project",
        "project_id: other",
        "project",
        "no account of the project other",
        "serviceAccounts",
    ),
    Broken(
        "gcp.yaml",
        "{onHostMaintenance: TERMINATE}",
        "{automaticRestart: true}",
        "maintenance",
        "no GPU machine with",
        "scheduling: #+20",
    ),
    Broken("aws.yaml", "      ImageId", "      # ImageId", "disk-image", "CUDA 11.2", "node_config"),
    Broken("aws.yaml", ", DeleteOnTermination: true", "", "disk-stays", "billed on", "BlockDevice"),
    Broken("gcp.yaml", "autoDelete: true", "autoDelete: false", "disk-stays", "billed on", "boot: true"),
    Broken(
        "aws.yaml", "ray start --head", "ray start", "start-command", "head_start_ray_commands must", "head_start_ray"
    ),
    Broken("aws.yaml", "$RAY_HEAD_IP:6379", "auto", "start-command", "worker_start_ray_commands must", "worker_start"),
    Broken("aws.yaml", "_config.yaml", "_config.yaml --dashboard-host=0.0.0.0", "open-port", "anyone's code", "- >-"),
    Broken(
        "aws.yaml",
        "  region: us-west-2",
        "  security_group: {IpPermissions: [{FromPort: 8265, ToPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}]}\n"
        "  region: us-west-2",
        "open-port",
        "ports 8265 to 8265 open to the world",
    ),
    # KubeRay: what it would leave out, and what it would start.
    Broken("kuberay-cluster.yaml", "maxReplicas: 8", "maxReplica: 8", "key", "did you mean 'maxReplicas'"),
    Broken("kuberay-cluster.yaml", "    rayStartParams:", "    rayStartParam:", "key", "did you mean 'rayStartParams'"),
    Broken("kuberay-cluster.yaml", "    version: v2", "    verison: v2", "key", "did you mean 'version'"),
    Broken("kuberay-cluster.yaml", "nodeSelector:", "nodeSelectors:", "key", "did you mean 'nodeSelector'"),
    Broken("kuberay-cluster.yaml", "minReplicas: 0", 'minReplicas: "0"', "type", "'0' must be a whole number"),
    Broken("kuberay-cluster.yaml", "kind: RayCluster", "kind: RayClutser", "key", "did you mean 'RayCluster'"),
    Broken("kuberay-cluster.yaml", "ray.io/v1", "ray.io/v1alpha1", "key", "must be ray.io/v1"),
    Broken(
        "kuberay-cluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "ray-version", "that of the image, 2.60.0"
    ),
    Broken("kuberay-cluster.yaml", "-ray2.60.0", "-ray2.9.0", "image-version", "has Ray 2.9.0"),
    Broken("kuberay-cluster.yaml", 'num-cpus: "0"', 'num-cpus: "4"', "head-work", 'must have num-cpus: "0"'),
    Broken(
        "kuberay-cluster.yaml",
        'limits: {cpu: "7", memory: 28Gi, nvidia.com/gpu: 1}',
        'limits: {cpu: "7", memory: 28Gi}',
        "gpus",
        "1 in requests and None in limits",
        'requests: {cpu: "7"',
    ),
    Broken(
        "kuberay-cluster.yaml",
        'requests: {cpu: "7", memory: 28Gi, nvidia.com/gpu: 1}',
        'requests: {cpu: "7", memory: 28Gi}',
        "gpus",
        "None in requests and 1 in limits",
        'limits: {cpu: "7"',
    ),
    Broken(
        "kuberay-cluster.yaml",
        'requests: {cpu: "4", memory: 16Gi}',
        'requests: {cpu: "2", memory: 16Gi}',
        "resources",
        "'2' in requests and '4' in limits",
        'limits: {cpu: "4"',
    ),
    Broken(
        "kuberay-cluster.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer", "open-port", "kubectl port-forw"
    ),
    Broken(
        "kuberay-cluster.yaml", "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "autoscaling", "idle"
    ),
    Broken(
        "kuberay-cluster.yaml", "idleTimeoutSeconds: 600", "idleTimeoutSeconds: 86400", "idle-timeout", "at most 3600"
    ),
    Broken(
        "kuberay-cluster.yaml",
        "priority: 10",
        "priority: 1",
        "priority",
        "higher than that of on-demand",
        "groupName: s",
    ),
    Broken(
        "kuberay-cluster.yaml",
        "            - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}\n",
        "",
        "toleration",
        "off their GPU nodes",
        "restartPolicy: Never+22",
    ),
    Broken(
        "kuberay-job.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "shutdown", "GPUs stay"
    ),
    Broken("kuberay-job.yaml", "  activeDeadlineSeconds", "  # activeDeadlineSeconds", "deadline", "for ever", "spec:"),
    Broken(
        "kuberay-job.yaml",
        "    --start-or-resume\n",
        "",
        "resume",
        "finds a study there",
        "entrypoint:",
    ),
    # Slurm.
    Broken("slurm.sh", "tasks-per-node=1", "tasks-per-node=4", "tasks", "must be 1, as Ray starts once on each node"),
    Broken("slurm.sh", "#SBATCH --exclusive\n", "", "exclusive", "take each other's ports", "--output"),
    Broken("slurm.sh", "#SBATCH --time=12:00:00\n", "", "time", "would hold the nodes", "--output"),
    Broken(
        "slurm.sh",
        "--gpus-per-node=4",
        "--gpus-per-node=8",
        "gpus",
        "--num-gpus 4, but #SBATCH asks for 8",
        "--num-gpus",
    ),
    Broken("slurm.sh", "--num-gpus 4", "--num-gpus 2", "gpus", "--num-gpus 2, but #SBATCH asks for 4"),
    Broken("slurm.sh", " --num-gpus 4", "", "gpus", "--num-gpus none", "ray symmetric-run"),
    Broken("slurm.sh", ' -- "${', ' "${', "symmetric-run", "must have '--'", "ray symmetric-run"),
    Broken(
        "slurm.sh", "run --address", "run --head --address", "symmetric-run", "--head: ray symmetric-run refuses it"
    ),
    Broken("slurm.sh", '--min-nodes "$SLURM_JOB_NUM_NODES"', "--min-nodes 4", "nodes", "4, but the job has 2 nodes"),
    Broken(
        "slurm.sh",
        ' --cpus-per-task="$SLURM_CPUS_PER_TASK"',
        "",
        "srun-cpus",
        "Ray would have one core",
        'srun --nodes="$',
    ),
    Broken("slurm.sh", '--num-cpus "$SLURM_CPUS_PER_TASK" ', "", "cpus", "--num-cpus is missing", "ray symmetric-run"),
    Broken("slurm.sh", "export RAY_SYMM", "# export RAY_SYMM", "wait", "gives up after 30 s", 'srun --nodes="$'),
    Broken("slurm.sh", "#SBATCH --exclusive", "#SBATCH --exclusiv", "sbatch exclusive", "did you mean 'exclusive'"),
    Broken(
        "slurm.sh", "set -euo pipefail", "set -euo pipefail\n#SBATCH --mem=0", "sbatch", "behind the first", "--mem=0"
    ),
    Broken("slurm.sh", "--start-or-resume)", "--start-or-resume", "bash", "syntax error|unexpected", "compare=("),
    Broken("slurm.sh", "ray symmetric-run", "ray start", "symmetric-run", "must be one, started by srun", "--num-cpus"),
    # SkyPilot and Docker.
    Broken("skypilot.yaml", "accelerators", "acelerators", "key", "did you mean 'accelerators'"),
    Broken(
        "skypilot.yaml", "docker:ghcr.io/example/rayprompt:0.1.0-ray2.60.0", "ami-1", "image-version", "must be docker:"
    ),
    Broken("skypilot.yaml", "-ray2.60.0", "-ray2.50.0", "image-version", "has Ray 2.50.0"),
    Broken(
        "skypilot.yaml", "    - use_spot: false\n", "", "fallback", "when there are none, the job waits", "resources:"
    ),
    Broken("skypilot.yaml", "  autostop:", "  # autostop:", "autostop", "would keep the machines", "resources:"),
    Broken(
        "skypilot.yaml", "  job_recovery:", "  # job_recovery:", "recovery", "job_recovery is missing", "resources:"
    ),
    Broken("skypilot.yaml", "    ~/sky_templates/ray/stop_cluster", "    ray stop", "ray-stop", "SkyPilot's own Ray"),
    Broken("skypilot.yaml", "  ~/sky_templates/ray/start_cluster\n", "", "nodes", "joins them to no Ray", "run: |"),
    Broken(
        "Dockerfile",
        "FROM rayproject/ray:2.60.0-py311-gpu",
        "FROM rayproject/ray:latest-gpu",
        "image-python image-version",
        "latest-gpu",
    ),
    Broken("Dockerfile", "ray:2.60.0-py311-gpu", "ray:2.61.0-py311-gpu", "image-version", "has Ray 2.61.0"),
    Broken("Dockerfile", "ray:2.60.0-py311-gpu", "ray:2.60.0-py310-gpu", "image-python", "needs Python 3.11"),
    Broken("Dockerfile", '"ray[default,tune]==2.60.0"', '"ray[default,tune]"', "ray-install", "must be ray==2.60.0"),
    Broken("Dockerfile", " /tmp/image/rayprompt-*.whl", "", "no-rayprompt", "installs no rayprompt", "FROM"),
    Broken(
        "Dockerfile",
        "RUN pip install --no-cache-dir boto3",
        "RNU pip install boto3",
        "instruction",
        "did you mean 'RUN'",
    ),
]


def changed(broken: Broken) -> tuple[str, int]:
    """The broken file, and the line that the finding must have."""
    text = (CLUSTERS / broken.file).read_text()
    assert broken.old in text
    start = text.index(broken.old)
    text = text.replace(broken.old, broken.new, 1)
    if broken.at is None:
        return text, text[: start + len(broken.new) - len(broken.new.lstrip("\n"))].count("\n") + 1
    anchor, _, below = broken.at.partition("+")
    return text, text[: text.index(anchor)].count("\n") + 1 + int(below or 0)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: f"{b.file}-{b.rule}-{b.new.strip()[:24]}")
def test_a_broken_file_is_found(broken: Broken) -> None:
    text, line = changed(broken)
    _, findings = check_text(text, RAY)
    assert (findings[0].line, {finding.rule for finding in findings}) == (line, set(broken.rule.split())), findings
    assert re.search(broken.message, findings[0].message)


def test_a_rule_can_be_off_on_a_line() -> None:
    text = (CLUSTERS / "aws.yaml").read_text().replace("InstanceType: g6.xlarge", "InstanceType: g9.xlarge")
    _, findings = check_text(text, RAY)
    assert {finding.rule for finding in findings} == {"machine"}
    assert "if there is such a machine: # check: off machine" in findings[0].message
    _, findings = check_text(text.replace("g9.xlarge", "g9.xlarge # check: off machine"), RAY)
    assert list(findings) == []


def test_other_files_are_not_cluster_files() -> None:
    for text in ("", "a: 1", "[]", "just words", "apiVersion: v1\nkind: Pod\n"):
        kind, (finding,) = check_text(text, RAY)
        assert (kind, finding.line, finding.rule) == (None, 1, "kind")
    both = (CLUSTERS / "kuberay-cluster.yaml").read_text() + "---\napiVersion: v1\nkind: ConfigMap\n"
    assert check_text(both, RAY) == ("kuberay", [])


def test_only_ray_knows() -> None:
    """What no rule of ours says: Ray's own reason, with the line of the key that it names."""
    text = (CLUSTERS / "aws.yaml").read_text()
    broken = text.replace("  container_name: rayprompt\n", "")
    _, (finding,) = check_text(broken, RAY)
    assert (finding.rule, finding.message) == ("ray", "Ray refuses it: Must provide a container & image name")
    broken = (CLUSTERS / "kuberay-cluster.yaml").read_text().replace('cpu: "7"', 'cpu: "seven"')
    _, (finding, *_) = check_text(broken, RAY)
    assert (finding.rule, "Invalid number format" in finding.message) == ("ray", True)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from places(inner, (*place, key))


@pytest.mark.parametrize(
    "name", ["aws.yaml", "gcp.yaml", "azure.yaml", "local.yaml", "kuberay-job.yaml", "skypilot.yaml"]
)
def test_any_value_anywhere_is_survived(name: str) -> None:
    """Nothing that a user may write ends in a traceback: another type at each place, another one at each."""
    content = yaml.safe_load((CLUSTERS / name).read_text())
    values: list[Any] = [None, "x", 3, [], {}, ["y"], {"a": 1}]
    for i, place in enumerate(list(places(content))[1:]):
        broken = copy.deepcopy(content)
        inner = broken
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = values[i % len(values)]
        check_text(yaml.safe_dump(broken), RAY)


def test_lines_of_yaml() -> None:
    (document,) = read_documents("# a\na:\n  - b: 1\n    c: {d: 2}\n")
    assert document.data == {"a": [{"b": 1, "c": {"d": 2}}]}
    assert [document.line(*place) for place in [("a",), ("a", 0, "b"), ("a", 0, "c", "d"), ("a", 0, "x", 7)]] == [
        2,
        3,
        4,
        3,
    ]
    assert document.get("a", 0, "c", "d") == 2
    assert document.get("a", 1, "c") is None
    with pytest.raises(BadYAML, match="'a' stands twice: on line 1, too") as error:
        read_documents("a: 1\nb: 2\na: 3\n")
    assert error.value.line == 3


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1\n\tb: 2", "1: x", "on: x", "? {a: 1}\n: 2", "a: &a [*a]", "a: *b", "a: !x 1", "\0"]
)
def test_bad_yaml_is_a_finding(text: str) -> None:
    kind, (finding,) = check_text("cluster_name: x\nprovider: {type: aws}\n" + text, RAY)
    assert (kind, finding.rule) == (None, "yaml")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("pip install boto3", None),
        ("pip install ray==2.60.0", None),
        ("pip3 install -q 'ray[default,tune]==2.60.0' boto3", None),
        ("pip install ray-haystack rayprompt /tmp/rayprompt-0.1.0.whl", None),
        ("echo ray && ls", None),
        ("which ray || pip install ray", "'ray'"),
        ("uv pip install -U 'ray[tune]>=2'", "ray[tune]>=2"),
        ("python -m pip install boto3 ray==2.9.0", "ray==2.9.0"),
        (NIGHTLY, "nightly"),
    ],
)
def test_what_installs_another_ray(command: str, problem: str | None) -> None:
    found = pip_problem(command, RAY)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)


@pytest.mark.parametrize(
    ("image", "rules"),
    [
        ("rayproject/ray:2.60.0-py311-gpu", []),
        ("rayproject/ray:2.60.0-py312-cu128", []),
        ("docker.io/rayproject/ray:2.60.0-py311-gpu@sha256:0123", []),
        ("registry.example.com:5000/team/x:ray2.60.0", []),
        ("x:1-ray-2.60.0-cuda", []),
        ("registry.example.com:5000/team/x", ["image-version"]),
        ("x:2.60.0", ["image-version"]),
        ("x:ray2.60.01", ["image-version"]),
        ("rayproject/ray:2.60.01-py311-gpu", ["image-version"]),
        ("rayproject/ray:nightly-py311-gpu", ["image-version"]),
        ("rayproject/ray-ml:2.60.0-py39", ["image-python", "image-cpu"]),
        (None, ["image-version"]),
    ],
)
def test_images(image: str | None, rules: list[str]) -> None:
    assert [rule for rule, _ in image_problems(image, RAY, gpu=True)] == rules


def test_check_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = str(CLUSTERS / "aws.yaml"), tmp_path / "bad.yaml"
    assert run(app, ["clusters", "check", good, "--ray", RAY]) == 0
    assert capsys.readouterr().out == f"1 file, 0 findings (Ray {RAY})\n"
    bad.write_text((CLUSTERS / "aws.yaml").read_text().replace("{CPU: 4, GPU: 1}", "{CPU: 4, GPU: 2}", 1))
    assert run(app, ["clusters", "check", good, str(bad), "--json", "--ray", RAY]) == 1
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    jsonschema.validate(content, json.loads((SCHEMAS / "clusters-check-1.json").read_text()))
    (finding,) = content["files"][1]["findings"]
    assert (content["findings"], content["files"][0]["kind"], finding["rule"]) == (1, "launcher", "gpus")
    assert f"{bad}:{finding['line']}: gpus: " in printed.err
    assert run(app, ["clusters", "check", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert run(app, ["clusters", "check", good, "--ray", "2.61.0"]) == 1
    assert "has Ray 2.60.0, but Ray 2.61.0 is used here" in capsys.readouterr().out


GIVEN = {
    "name": "films",
    "region": {"aws": "eu-west-1", "gcp": "europe-west4", "azure": "westeurope"},
    "zone": "europe-west4-c",
    "project": "films-1234",
    "group": "films",
    "small": {"aws": "g5.2xlarge", "gcp": "g2-standard-4", "azure": "Standard_NC24ads_A100_v4"},
    "large": {"aws": "p4d.24xlarge", "gcp": "a3-highgpu-8g", "azure": "Standard_ND96isr_H100_v5"},
    "max-workers": "3",
    "nodes": "5",
    "gpus": "8",
    "accelerators": "A100:8",
    "head": "10.0.0.1",
    "workers": "10.0.0.2, 10.0.0.3,10.0.0.4",
    "user": "me",
    "image": "registry.example.com:5000/team/rayprompt:7-ray2.61.0",
    "base": "rayproject/ray:2.61.0-py312-cu128",
    "studies": "s3://films: 1/all",
}


@pytest.mark.parametrize("provider", TEMPLATES)
def test_what_init_writes_passes(provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With every option that it has, for another Ray; every value is in it, and the comments of the example are."""
    options = {name: GIVEN[name] for name in TEMPLATES[provider].options}
    options = {name: value[provider] if isinstance(value, dict) else value for name, value in options.items()}
    if provider == "slurm":
        options["studies"] = "/shared/films"
    out = tmp_path / "file"
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert run(app, ["clusters", "init", provider, "--out", str(out), "--ray", "2.61.0", "--json", *words]) == 0
    content = json.loads(capsys.readouterr().out)
    jsonschema.validate(content, json.loads((SCHEMAS / "clusters-init-1.json").read_text()))
    text = out.read_text()
    assert check_text(text, "2.61.0")[1] == []
    assert "2.60.0" not in text
    for value in options.values():
        for part in value.split(","):
            assert part.strip() in text
    example = (CLUSTERS / TEMPLATES[provider].file).read_text()
    assert re.findall("#.*", example.replace(RAY, "2.61.0")) == re.findall("#.*", text) or provider in (
        "slurm",
        "docker",
    )
    assert (out.stat().st_mode & 0o111 != 0) == (provider == "slurm")


def test_init_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "file")]
    for words, message in {
        "awz": "unknown provider 'awz' (did you mean 'aws'?)",
        "aws --small g5.2xlrage": "unknown machine of aws 'g5.2xlrage' (did you mean 'g5.2xlarge'?)",
        "aws --large m6i.large": "--large m6i.large: has no GPU",
        "aws --gpus 4": "--gpus: aws has no such option; it has --name, --region",
        "aws --max-workers 0": "aws with these options: max_workers is 0; must be 1 or more",
        "aws --image mine:latest": "aws with these options: mine:latest: its tag names no version of Ray",
        "slurm --nodes two": "Invalid value for '--nodes'",
        "docker --base rayproject/ray:nightly-py311-gpu": "docker with these options: rayproject/ray:nightly",
    }.items():
        assert run(app, ["clusters", "init", *words.split(), *out, "--ray", RAY]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "file").exists()
    assert run(app, ["clusters", "init", "aws", *out]) == 0
    assert run(app, ["clusters", "init", "aws", *out]) == 2
    assert "is there already; give another name with --out" in capsys.readouterr().err


def test_neither_torch_nor_an_installed_package_is_needed() -> None:
    """As in a plain checkout on a laptop without PyTorch."""
    words = ["clusters", "check", "clusters/aws.yaml", "clusters/slurm.sh", "--ray", RAY]
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['rayprompt', *{words}]; import rayprompt.__main__"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"2 files, 0 findings (Ray {RAY})\n"), done.stderr
