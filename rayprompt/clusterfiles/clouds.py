"""What each cloud has of its own in a launcher YAML: names of keys, spot machines, accounts, disk images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayprompt.clusterfiles.findings import Findings
from rayprompt.clusterfiles.located import Document, Place
from rayprompt.clusterfiles.schema import anything

STAYS = "the disk stays when the machine goes, and is billed on"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True)
class Cloud:
    """One cloud: ``provider`` and ``node`` (of node_config) are schemas, ``machine_key`` stands at ``nested`` in it."""

    name: str
    machine_key: str
    nested: Place
    provider: dict[str, Any]
    node: dict[str, Any]
    is_spot: Callable[[Document, str], bool]
    check: Callable[[Document, Findings], None]
    extra_gpus: Callable[[Document, str], int] = lambda file, name: 0


def _node(file: Document, name: str, *place: str | int) -> Any:
    return file.get("available_node_types", name, "node_config", *place)


def _names(file: Document) -> list[str]:
    types = file.get("available_node_types")
    return [str(name) for name in types] if isinstance(types, dict) else []


def _workers(file: Document) -> list[str]:
    return [name for name in _names(file) if name != file.get("head_node_type")]


def _check_stopped(file: Document, findings: Findings) -> None:
    if file.get("provider", "cache_stopped_nodes") is not False:
        findings.add(
            file.line("provider", "cache_stopped_nodes"),
            "stopped-nodes",
            "cache_stopped_nodes must be false: Ray's default stops machines instead of ending them, and their "
            "disks are "
            "billed on",
        )


# AWS


def _aws_spot(file: Document, name: str) -> bool:
    return bool(_node(file, name, "InstanceMarketOptions", "MarketType") == "spot")


def _check_aws(file: Document, findings: Findings) -> None:
    _check_stopped(file, findings)
    for name in _names(file):
        place = ("available_node_types", name, "node_config")
        if not _node(file, name, "ImageId"):
            findings.add(
                file.line(*place),
                "disk-image",
                f"{name}: no ImageId, and Ray's default is an image of 2023 with CUDA 11.2; must be a Deep "
                "Learning Base "
                "GPU AMI, as resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
                "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
            )
        market = _node(file, name, "InstanceMarketOptions")
        if market is not None and not _aws_spot(file, name):
            findings.add(
                file.line(*place, "InstanceMarketOptions"),
                "spot",
                f"{name}: InstanceMarketOptions must be {{MarketType: spot}}, or be left out for on demand",
            )
        for i, disk in enumerate(_node(file, name, "BlockDeviceMappings") or []):
            if "Ebs" in disk and disk["Ebs"].get("DeleteOnTermination") is not True:
                line = file.line(*place, "BlockDeviceMappings", i, "Ebs")
                findings.add(line, "disk-stays", f"{name}: must have DeleteOnTermination: true, or {STAYS}")
    for name in _workers(file):
        if not _node(file, name, "IamInstanceProfile"):
            findings.add(
                file.line("available_node_types", name, "node_config"),
                "worker-storage",
                f"{name}: no IamInstanceProfile, so its searches cannot write to the bucket: Ray gives one to the head "
                "alone; must be {Name: rayprompt-worker} (clusters/README.md makes it)",
            )
    rules = file.get("provider", "security_group", "IpPermissions") or []
    for i, rule in enumerate(rules if isinstance(rules, list) else []):
        ranges = [r.get("CidrIp") or r.get("CidrIpv6") for r in rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])]
        if {"0.0.0.0/0", "::/0"} & set(ranges) and (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            findings.add(
                file.line("provider", "security_group", "IpPermissions", i),
                "open-port",
                f"ports {rule.get('FromPort')} to {rule.get('ToPort')} open to the world: Ray runs the code of whoever "
                "reaches it; use ray dashboard FILE, which goes through ssh",
            )


# Google Cloud


def _gcp_scheduling(file: Document, name: str) -> dict[str, Any]:
    given = _node(file, name, "scheduling")
    parts = given if isinstance(given, list) else [given]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _gcp_spot(file: Document, name: str) -> bool:
    scheduling = _gcp_scheduling(file, name)
    return scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible") is True


def _gcp_gpus(file: Document, name: str) -> int:
    given = _node(file, name, "guestAccelerators")
    parts = given if isinstance(given, list) else []
    return sum(part.get("acceleratorCount", 0) for part in parts if isinstance(part, dict))


def _check_gcp(file: Document, findings: Findings) -> None:
    _check_stopped(file, findings)
    project = file.get("provider", "project_id")
    if not project:
        findings.add(file.line("provider", "project_id"), "project", "provider.project_id is missing: Ray must know it")
    for name in _names(file):
        for i, disk in enumerate(_node(file, name, "disks") or []):
            if disk.get("autoDelete") is not True:
                line = file.line("available_node_types", name, "node_config", "disks", i)
                findings.add(line, "disk-stays", f"{name}: must have autoDelete: true, or {STAYS}")
    for name in _workers(file):
        place = ("available_node_types", name, "node_config")
        if _gcp_scheduling(file, name).get("onHostMaintenance") != "TERMINATE":
            findings.add(
                file.line(*place, "scheduling"),
                "maintenance",
                f"{name}: scheduling must have onHostMaintenance: TERMINATE; Google starts no GPU machine without it",
            )
        account = _node(file, name, "serviceAccounts", 0) or {}
        if SCOPE not in account.get("scopes", []):
            findings.add(
                file.line(*place, "serviceAccounts"),
                "worker-storage",
                f"{name}: no serviceAccounts with the scope {SCOPE}, so its searches cannot write to the bucket: Ray "
                "gives one to the head alone",
            )
        elif project and f"@{project}." not in str(account.get("email", "")):
            findings.add(
                file.line(*place, "serviceAccounts"),
                "project",
                f"{name}: {account.get('email')!r} is no account of the project {project}",
            )


# Azure


def _azure_spot(file: Document, name: str) -> bool:
    return str(_node(file, name, "azure_arm_parameters", "priority")).lower() == "spot"


def _check_azure(file: Document, findings: Findings) -> None:
    _check_stopped(file, findings)
    for key in ("location", "resource_group"):
        if not file.get("provider", key):
            findings.add(file.line("provider"), "project", f"provider.{key} is missing: Ray must know it")
    for name in _names(file):
        place = ("available_node_types", name, "node_config")
        if not any(_node(file, name, "azure_arm_parameters", key) for key in ("imageOffer", "imageId")):
            findings.add(
                file.line(*place), "disk-image", f"{name}: no imagePublisher, imageOffer, imageSku and imageVersion"
            )


CLOUDS = {
    "aws": Cloud(
        "aws",
        "InstanceType",
        (),
        provider=anything(
            "type region availability_zone cache_stopped_nodes use_internal_ips use_external_head_ip key_pair "
            "cloudwatch aws_credentials"
        )
        | {"security_group": {"GroupName": str, "IpPermissions": [dict]}},
        node={
            "InstanceType!": str,
            "IamInstanceProfile": dict,
            "InstanceMarketOptions": dict,
            "BlockDeviceMappings": [{"Ebs": dict, **anything("DeviceName NoDevice VirtualName")}],
            **anything(
                "AdditionalInfo CapacityReservationSpecification CpuOptions CreditSpecification "
                "DisableApiStop DisableApiTermination EbsOptimized EnablePrimaryIpv6 EnclaveOptions HibernationOptions "
                "ImageId InstanceInitiatedShutdownBehavior Ipv6AddressCount Ipv6Addresses KernelId KeyName "
                "LaunchTemplate LicenseSpecifications MaintenanceOptions MetadataOptions Monitoring NetworkInterfaces "
                "NetworkPerformanceOptions Placement PrivateDnsNameOptions PrivateIpAddress RamdiskId SecurityGroupIds "
                "SecurityGroups SubnetId SubnetIds TagSpecifications UserData"
            ),
        },
        is_spot=_aws_spot,
        check=_check_aws,
    ),
    "gcp": Cloud(
        "gcp",
        "machineType",
        (),
        provider=anything(
            "type region availability_zone project_id cache_stopped_nodes use_internal_ips gcp_credentials"
        ),
        node={
            "machineType!": str,
            "guestAccelerators": [dict],
            "disks": [dict],
            "serviceAccounts": [{"email!": str, "scopes!": list}],
            **anything(
                "advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description "
                "displayDevice hostname labels metadata minCpuPlatform networkInterfaces "
                " networkPerformanceConfig params reservationAffinity resourcePolicies scheduling "
                "shieldedInstanceConfig sourceMachineImage tags"
            ),
        },
        is_spot=_gcp_spot,
        check=_check_gcp,
        extra_gpus=_gcp_gpus,
    ),
    "azure": Cloud(
        "azure",
        "vmSize",
        ("azure_arm_parameters",),
        provider=anything(
            "type location resource_group subscription_id availability_zone cache_stopped_nodes use_internal_ips "
            "use_external_head_ip tags unique_id subnet_mask msi_name msi_resource_group msi_identity_id "
            "msi_identity_principal_id"
        ),
        node={
            "azure_arm_parameters!": {
                "vmSize!": str,
                **anything(
                    "imagePublisher imageOffer imageSku imageVersion imageId osDiskSize priority evictionPolicy "
                    "billingProfile availability_zone enableAcceleratedNetworking adminUsername publicKey"
                ),
            },
            "tags": dict,
        },
        is_spot=_azure_spot,
        check=_check_azure,
    ),
}
