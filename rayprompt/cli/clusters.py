"""``rayprompt clusters``: check the files that start a cluster, write one, ask a running one for GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayprompt.cli.options import JsonOption
from rayprompt.cli.say import note, say, say_json
from rayprompt.errors import InputError

CHECK_SCHEMA = "rayprompt.clusters-check/1"
INIT_SCHEMA = "rayprompt.clusters-init/1"

app = typer.Typer(help="Cluster files for AWS, Google Cloud, Azure, Kubernetes, Slurm...", rich_markup_mode=None)
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="VERSION", help="The Ray that the cluster runs; the one installed here unless said."),
]


@app.command()
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Launcher YAMLs, KubeRay manifests, Slurm scripts, SkyPilot tasks, Dockerfiles."
        ),
    ],
    ray: RayOption = None,
    json_: JsonOption = False,
) -> None:
    """Find what is wrong in cluster files, before it costs money. Exit status 1 when something is."""
    from rayprompt.clusterfiles.check import check_file
    from rayprompt.clusterfiles.images import installed_ray

    version = ray or installed_ray()
    checked = [check_file(path, version) for path in files]
    count = sum(len(file.findings) for file in checked)
    for file in checked:
        for finding in file.findings:
            say(f"{file.path}:{finding.line}: {finding.rule}: {finding.message}", to_stderr=json_)
    say(
        f"{len(files)} {_plural('file', len(files))}, {count} {_plural('finding', count)} (Ray {version})",
        to_stderr=json_,
    )
    if json_:
        content: dict[str, Any] = {"schema": CHECK_SCHEMA, "ray": version, "findings": count}
        content["files"] = [
            {
                "file": str(file.path),
                "kind": file.kind,
                "findings": [{"line": f.line, "rule": f.rule, "message": f.message} for f in file.findings],
            }
            for file in checked
        ]
        say_json(content)
    if count:
        raise typer.Exit(1)


@app.command()
def init(
    provider: Annotated[
        str, typer.Argument(help="aws, gcp, azure, local, kuberay, kuberay-job, slurm, skypilot or docker.")
    ],
    out: Annotated[Path | None, typer.Option(help="The file; its name in clusters/ unless said.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the cluster or job.")] = None,
    region: Annotated[str | None, typer.Option(help="aws, gcp, azure: the cloud's region.")] = None,
    zone: Annotated[str | None, typer.Option(help="gcp: the zone; REGION-a unless said.")] = None,
    project: Annotated[str | None, typer.Option(help="gcp: the project's id.")] = None,
    group: Annotated[str | None, typer.Option(help="azure: the resource group.")] = None,
    small: Annotated[str | None, typer.Option(help="aws, gcp, azure: the small GPU machine.")] = None,
    large: Annotated[str | None, typer.Option(help="aws, gcp, azure: the large GPU machine.")] = None,
    max_workers: Annotated[
        int | None, typer.Option(help="aws, gcp, azure, kuberay: the most machines or pods with GPUs at a time.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="slurm, skypilot: how many nodes.")] = None,
    gpus: Annotated[int | None, typer.Option(help="kuberay, slurm: GPUs of a pod or node.")] = None,
    accelerators: Annotated[str | None, typer.Option(help="skypilot: as L4:1.")] = None,
    head: Annotated[str | None, typer.Option(help="local: the address of the head.")] = None,
    workers: Annotated[str | None, typer.Option(metavar="A,B", help="local: those of the workers.")] = None,
    user: Annotated[str | None, typer.Option(help="local: who logs in with ssh.")] = None,
    image: Annotated[
        str | None, typer.Option(help="The container image that you built from clusters/Dockerfile.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="docker: the image that it is built from.")] = None,
    studies: Annotated[
        str | None, typer.Option(help="Where studies go: s3://, gs:// or abfs://BUCKET/FOLDER, or a shared directory.")
    ] = None,
    ray: RayOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a cluster file with values of yours. What it writes passes: rayprompt clusters check."""
    from rayprompt.clusterfiles.images import installed_ray
    from rayprompt.clusterfiles.write import TEMPLATES, cluster_file

    options = {
        "name": name,
        "region": region,
        "zone": zone,
        "project": project,
        "group": group,
        "small": small,
        "large": large,
        "max-workers": max_workers,
        "nodes": nodes,
        "gpus": gpus,
        "accelerators": accelerators,
        "head": head,
        "workers": workers,
        "user": user,
        "image": image,
        "base": base,
        "studies": studies,
    }
    given = {option: str(value) for option, value in options.items() if value is not None}
    text = cluster_file(provider, given, ray or installed_ray())
    path = out or Path(TEMPLATES[provider].file)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: is there already; give another name with --out") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    if text.startswith("#!"):
        path.chmod(0o755)
    missing = [f"--{option}" for option in TEMPLATES[provider].options if option not in given]
    say(
        f"{path}: written" + (f"; an example's values stand for {', '.join(missing)}" if missing else ""),
        to_stderr=json_,
    )
    if "example" in text:
        note(f"change what says 'example' in {path} before you use it")
    if json_:
        say_json({"schema": INIT_SCHEMA, "provider": provider, "file": str(path), "options": given})


@app.command()
def scale(
    gpus: Annotated[int, typer.Option(help="How many GPUs there are to be; 0 lets idle machines go.")],
    address: Annotated[str, typer.Option(help="Ray cluster: auto or host:port.")] = "auto",
    patience: Annotated[float, typer.Option(help="At most so many seconds to wait for them.")] = 1200.0,
) -> None:
    """Ask a cluster's autoscaler for GPUs, and wait for them. Asked for is asked for: --gpus 0 in the end."""
    from rayprompt.clusterfiles.scale import scale as run

    run(gpus, address, patience, say)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
