"""Cluster files at work: what Ray's own code makes of them, its AWS provider against a mock of AWS (moto), and what
clusters/README.md says word for word."""

from __future__ import annotations

import copy
import json
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_clusters import CLUSTERS, RAY

from rayprompt.cli.main import app, run
from rayprompt.clusterfiles.check import check_text
from rayprompt.clusterfiles.clouds import CLOUDS
from rayprompt.clusterfiles.machines import machines
from rayprompt.clusterfiles.write import TEMPLATES

# Ray's own code, run on the files.


def prepared(name: str) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.ERROR)
    config: dict[str, Any] = prepare_config(yaml.safe_load((CLUSTERS / name).read_text()))
    validate_config(config)
    return config


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_rays_autoscaler_takes_spot_and_falls_back(cloud: str) -> None:
    """Ray's scheduler on the file: spot for one GPU; on demand when spot was just not to be had; never the head."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(prepared(f"{cloud}.yaml"), skip_content_hash=True)

    def launched(gpus: int, available: dict[str, float]) -> dict[str, int]:
        requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 1})] * gpus)
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=requests,
            cloud_resource_availabilities=available,
            recoverable_resource_availabilities=available,
        )
        return {node.instance_type: node.count for node in ResourceDemandScheduler().schedule(request).to_launch}

    assert launched(1, {}) == {"small-spot": 1}
    assert launched(1, {"small-spot": 0.0}) == {"small-on-demand": 1}
    assert sum(launched(1000, {}).values()) == 8 + 1  # max_workers and the head, whatever is asked for


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mock of AWS in this process, without accounts, keys or a network; Ray waits for nothing there."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "mock")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        import boto3
        from ray.autoscaler._private.aws import config, utils

        monkeypatch.setattr(config, "time", SimpleNamespace(sleep=lambda seconds: None))
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()
        yield boto3
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()


def test_rays_aws_provider_makes_what_the_file_says(aws: Any, tmp_path: Path) -> None:
    """ray up as far as machines: bootstrap and create_node of Ray's own provider; then what AWS has of it."""
    from ray.autoscaler import tags
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    iam, ec2 = aws.client("iam", "us-west-2"), aws.client("ec2", "us-west-2")
    iam.create_role(RoleName="rayprompt-worker", AssumeRolePolicyDocument="{}")  # as clusters/README.md says
    iam.create_instance_profile(InstanceProfileName="rayprompt-worker")
    iam.add_role_to_instance_profile(InstanceProfileName="rayprompt-worker", RoleName="rayprompt-worker")

    written = prepared("aws.yaml")
    config = AWSNodeProvider.bootstrap_config(written)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, content in config["available_node_types"].items():
        head = name == config["head_node_type"]
        node = {**content["node_config"], **(config["head_node"] if head else {})}
        kind = tags.NODE_KIND_HEAD if head else tags.NODE_KIND_WORKER
        marks = {tags.TAG_RAY_NODE_KIND: kind, tags.TAG_RAY_USER_NODE_TYPE: name, tags.TAG_RAY_NODE_NAME: f"ray-{name}"}
        provider.create_node(node, {**marks, tags.TAG_RAY_LAUNCH_CONFIG: "hash"}, 1)

    found: dict[Any, list[Any]] = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            marks = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            assert marks["ray-cluster-name"] == "rayprompt"
            assert instance["KeyName"] == "ray-autoscaler_us-west-2"
            assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["ray-autoscaler-rayprompt"]
            profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
            key = (marks["ray-user-node-type"], marks["ray-node-type"])
            made = (instance["InstanceType"], instance.get("InstanceLifecycle", "on demand"), profile)
            found.setdefault(key, []).append(made)
    assert found == {
        ("head", "head"): [("m6i.2xlarge", "on demand", "ray-autoscaler-v1")],
        ("small-spot", "worker"): [("g6.xlarge", "spot", "rayprompt-worker")],
        ("small-on-demand", "worker"): [("g6.xlarge", "on demand", "rayprompt-worker")],
        ("large-spot", "worker"): [("g6e.12xlarge", "spot", "rayprompt-worker")],
        ("large-on-demand", "worker"): [("g6e.12xlarge", "on demand", "rayprompt-worker")],
    }

    (group,) = [g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] != "default"]
    inside, ssh = group["IpPermissions"]
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group["GroupId"]]
    assert inside["IpRanges"] == []
    assert (ssh["FromPort"], ssh["ToPort"], ssh["IpRanges"]) == (22, 22, [{"CidrIp": "0.0.0.0/0"}])

    (role,) = iam.get_instance_profile(InstanceProfileName="ray-autoscaler-v1")["InstanceProfile"]["Roles"]
    policies = iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]
    assert {policy["PolicyName"] for policy in policies} == {"AmazonEC2FullAccess", "AmazonS3FullAccess"}
    (key,) = ec2.describe_key_pairs()["KeyPairs"]
    private = tmp_path / ".ssh" / f"{key['KeyName']}.pem"
    assert (config["auth"]["ssh_private_key"], private.stat().st_mode & 0o777) == (str(private), 0o600)

    # What Ray finds out about the machines from AWS is what the file says of them.
    asked = copy.deepcopy(config)
    for name, content in asked["available_node_types"].items():
        content["resources"] = {} if name != "head" else content["resources"]
    filled = AWSNodeProvider.fillout_available_node_types_resources(asked)["available_node_types"]
    for name, content in written["available_node_types"].items():
        assert {kind: filled[name]["resources"][kind] for kind in content["resources"]} == content["resources"]

    # ray down: nothing is stopped and kept, no disk stays.
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    states = {i["State"]["Name"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]}
    assert (states, ec2.describe_volumes()["Volumes"]) == ({"terminated"}, [])


def test_machines_are_as_aws_says() -> None:
    types = pytest.importorskip("moto.ec2.models.instance_types").INSTANCE_TYPES
    for name, machine in machines("aws").items():
        gpus = types[name].get("GpuInfo", {}).get("Gpus", [])
        said = (types[name]["VCpuInfo"]["DefaultVCpus"], sum(gpu["Count"] for gpu in gpus))
        assert (machine.cpus, machine.gpus) == said, name
        assert {gpu["Name"] for gpu in gpus} <= {machine.gpu}


def test_keys_are_as_the_providers_say() -> None:
    """The keys of a node: those of AWS' RunInstances, and the parameters of Ray's template for Azure."""
    session = pytest.importorskip("botocore.session").get_session()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    rays_own, set_by_ray = {"SubnetIds"}, {"MinCount", "MaxCount", "ClientToken", "DryRun"}
    known = {key.rstrip("!") for key in CLOUDS["aws"].node}
    assert known - rays_own <= set(shape.members)
    assert set(shape.members) - known - set_by_ray <= {
        "ElasticGpuSpecification",
        "ElasticInferenceAccelerators",
        "Operator",
        "SecondaryInterfaces",
    }
    import ray.autoscaler

    folder = Path(ray.autoscaler.__file__).parent / "_private" / "_azure"
    template = json.loads((folder / "azure-vm-template.json").read_text())
    set_by_ray = {"vmName", "vmTags", "vmCount", "provisionPublicIp", "msi", "nsg", "subnet", "zones"}
    known = {key.rstrip("!") for key in CLOUDS["azure"].node["azure_arm_parameters!"]}
    assert known - {"availability_zone"} == set(template["parameters"]) - set_by_ray


def test_local_cluster_is_rays() -> None:
    """On machines of one's own: the head Ray is told of, and as many workers as there are addresses."""
    config = prepared("local.yaml")
    (node,) = config["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"], config["max_workers"]) == (2, 2, 2)


# What the pages say.

README = (CLUSTERS / "README.md").read_text()


def calls() -> Iterator[list[str]]:
    """Every call of rayprompt and of ray in clusters/README.md, also those that another command runs."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`((?:rayprompt|ray) [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    commands = [line for line in [*"\n".join(blocks).splitlines(), *inline] if line.strip()]
    while commands:
        words = shlex.split(commands.pop(0), comments=True)
        commands += [word for word in words if re.match(r"(rayprompt|ray) ", word)]
        for call in " ".join(words).split(" -- "):
            if re.match(r"(rayprompt|ray) ", call):
                yield call.split()


def test_the_readmes_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every rayprompt command and option in it; and every ray command and option, as Ray's command line knows it."""
    import ray.scripts.scripts as rays
    from click.testing import CliRunner

    counts = {"rayprompt": 0, "ray": 0}
    for program, *words in calls():
        counts[program] += 1
        names = words[:2] if words[0] in ("clusters", "grafana", "job") else words[:1]
        if program == "ray":
            done = CliRunner().invoke(rays.cli, [*names, "--help"])
            code, text = done.exit_code, done.output
        else:
            code, text = run(app, [*names, "--help"]), capsys.readouterr().out
        assert code == 0, words
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in text, f"{words}: {names} has no {option}"
    assert min(counts.values()) > 10


def test_the_readmes_init_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word; what they write passes."""
    monkeypatch.chdir(tmp_path)
    written = [words for _, *words in calls() if words[:2] == ["clusters", "init"] and "--help" not in words]
    assert {words[2] for words in written} == set(TEMPLATES)
    for words in written:
        out = Path(words[words.index("--out") + 1])
        out.unlink(missing_ok=True)
        assert run(app, [*words, "--ray", RAY]) == 0
        assert check_text(out.read_text(), RAY)[1] == []


def test_the_readmes_files_and_links_exist() -> None:
    for name in re.findall(r"clusters/([\w.-]+\.(?:yaml|sh))|\bclusters/(Dockerfile)", README):
        assert (CLUSTERS / "".join(name)).is_file(), name
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (CLUSTERS / target).exists(), target
    for template in TEMPLATES.values():
        assert template.file in README


def test_scale_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        "--gpus -1": "--gpus -1: must be 0 or more",
        "--gpus 1 --address local": "there is no cluster to scale",
    }.items():
        assert run(app, ["clusters", "scale", *words.split()]) == 2
        assert message in capsys.readouterr().err


def test_scale_asks_and_waits(ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Here is no autoscaler that brings any: what was asked for is with Ray, for the autoscaler to read."""
    from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    assert run(app, ["clusters", "scale", "--gpus", "3", "--patience", "0.2"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "0 GPUs of 3 are there\n"
    assert "0 GPUs of 3 are there after 0.2 s; they stay asked for (--gpus 0 takes it back)" in printed.err
    assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)) == [{"GPU": 1}] * 3
    assert run(app, ["clusters", "scale", "--gpus", "0"]) == 0
    assert json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)) == []
