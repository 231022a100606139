"""Machine types of the clouds: vCPUs and GPUs. A type that is not here can be let through with # check: off machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Machine:
    """What one machine has; ``gpu`` is the kind of its GPUs."""

    cpus: int
    gpus: int = 0
    gpu: str = ""


# name, vCPUs, GPUs, kind
_GPU_MACHINES = {
    "aws": """
        g4dn.xlarge 4 1 T4, g4dn.2xlarge 8 1 T4, g4dn.4xlarge 16 1 T4, g4dn.8xlarge 32 1 T4, g4dn.16xlarge 64 1 T4,
        g4dn.12xlarge 48 4 T4, g4dn.metal 96 8 T4,
        g5.xlarge 4 1 A10G, g5.2xlarge 8 1 A10G, g5.4xlarge 16 1 A10G, g5.8xlarge 32 1 A10G, g5.16xlarge 64 1 A10G,
        g5.12xlarge 48 4 A10G, g5.24xlarge 96 4 A10G, g5.48xlarge 192 8 A10G,
        g6.xlarge 4 1 L4, g6.2xlarge 8 1 L4, g6.4xlarge 16 1 L4, g6.8xlarge 32 1 L4, g6.16xlarge 64 1 L4,
        g6.12xlarge 48 4 L4, g6.24xlarge 96 4 L4, g6.48xlarge 192 8 L4, gr6.4xlarge 16 1 L4, gr6.8xlarge 32 1 L4,
        g6e.xlarge 4 1 L40S, g6e.2xlarge 8 1 L40S, g6e.4xlarge 16 1 L40S, g6e.8xlarge 32 1 L40S,
        g6e.16xlarge 64 1 L40S, g6e.12xlarge 48 4 L40S, g6e.24xlarge 96 4 L40S, g6e.48xlarge 192 8 L40S,
        p3dn.24xlarge 96 8 V100, p4d.24xlarge 96 8 A100, p4de.24xlarge 96 8 A100, p5.4xlarge 16 1 H100,
        p5.48xlarge 192 8 H100, p5e.48xlarge 192 8 H200, p5en.48xlarge 192 8 H200, p6-b200.48xlarge 192 8 B200""",
    "gcp": """
        g2-standard-4 4 1 L4, g2-standard-8 8 1 L4, g2-standard-12 12 1 L4, g2-standard-16 16 1 L4,
        g2-standard-32 32 1 L4, g2-standard-24 24 2 L4, g2-standard-48 48 4 L4, g2-standard-96 96 8 L4,
        a2-highgpu-1g 12 1 A100, a2-highgpu-2g 24 2 A100, a2-highgpu-4g 48 4 A100, a2-highgpu-8g 96 8 A100,
        a2-megagpu-16g 96 16 A100, a2-ultragpu-1g 12 1 A100, a2-ultragpu-2g 24 2 A100, a2-ultragpu-4g 48 4 A100,
        a2-ultragpu-8g 96 8 A100, a3-highgpu-1g 26 1 H100, a3-highgpu-2g 52 2 H100, a3-highgpu-4g 104 4 H100,
        a3-highgpu-8g 208 8 H100, a3-megagpu-8g 208 8 H100, a3-ultragpu-8g 224 8 H200, a4-highgpu-8g 224 8 B200""",
    "azure": """
        Standard_NC4as_T4_v3 4 1 T4, Standard_NC8as_T4_v3 8 1 T4, Standard_NC16as_T4_v3 16 1 T4,
        Standard_NC64as_T4_v3 64 4 T4, Standard_NV36ads_A10_v5 36 1 A10, Standard_NV72ads_A10_v5 72 2 A10,
        Standard_NC24ads_A100_v4 24 1 A100, Standard_NC48ads_A100_v4 48 2 A100, Standard_NC96ads_A100_v4 96 4 A100,
        Standard_ND96asr_v4 96 8 A100, Standard_ND96amsr_A100_v4 96 8 A100, Standard_NC40ads_H100_v5 40 1 H100,
        Standard_NC80adis_H100_v5 80 2 H100, Standard_ND96isr_H100_v5 96 8 H100, Standard_ND96isr_H200_v5 96 8 H200""",
}
_AWS_FAMILIES = ("m5", "r5", "m6i", "m6a", "c6i", "c6a", "r6i", "m7i", "m7a", "c7i", "c7a", "r7i")
_AWS_SIZES = {"large": 2, "xlarge": 4, **{f"{n}xlarge": 4 * n for n in (2, 4, 8, 12, 16, 24)}}
_GCP_FAMILIES = {"e2": (2, 4, 8, 16, 32), "n2": (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)}
_GCP_FAMILIES |= {"n1": (1, 2, 4, 8, 16, 32, 64, 96), "n2d": (2, 4, 8, 16, 32, 48, 64, 80, 96, 128)}
_AZURE_SERIES = ("s_v3", "s_v5", "as_v5", "ds_v5", "ads_v5", "s_v6", "as_v6")


@cache
def machines(cloud: str) -> dict[str, Machine]:
    """The machine types of ``aws``, ``gcp`` or ``azure`` that are known here."""
    known = {}
    for entry in _GPU_MACHINES[cloud].split(","):
        name, cpus, gpus, gpu = entry.split()
        known[name] = Machine(int(cpus), int(gpus), gpu)
    if cloud == "aws":
        known |= {f"{family}.{size}": Machine(n) for family in _AWS_FAMILIES for size, n in _AWS_SIZES.items()}
    elif cloud == "gcp":
        for family, sizes in _GCP_FAMILIES.items():
            known |= {f"{family}-{kind}-{n}": Machine(n) for n in sizes for kind in ("standard", "highmem")}
    else:
        sizes = (2, 4, 8, 16, 32, 48, 64)
        known |= {f"Standard_D{n}{series}": Machine(n) for series in _AZURE_SERIES for n in sizes}
    return known
