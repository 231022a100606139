"""``rayprompt clusters check``: which kind a file is, by its content, and what is wrong in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayprompt.clusterfiles.dockerfile import check_dockerfile
from rayprompt.clusterfiles.findings import Finding, Findings
from rayprompt.clusterfiles.kuberay import check_kuberay
from rayprompt.clusterfiles.launcher import check_launcher
from rayprompt.clusterfiles.located import BadYAML, Document, read_documents
from rayprompt.clusterfiles.skypilot import check_skypilot
from rayprompt.clusterfiles.slurm import check_slurm
from rayprompt.foreign import read_text

KINDS = {
    "launcher": "a launcher YAML (cluster_name, provider)",
    "kuberay": "a KubeRay manifest (apiVersion: ray.io/v1)",
    "skypilot": "a SkyPilot task (resources, run)",
    "slurm": "a Slurm script (#SBATCH)",
    "dockerfile": "a Dockerfile (FROM)",
}
_OF_YAML: dict[str, Callable[[Document, Findings, str], None]] = {
    "launcher": check_launcher,
    "kuberay": check_kuberay,
    "skypilot": check_skypilot,
}


@dataclass(frozen=True)
class Checked:
    """What was found in one file; ``kind`` is None where it is of none that is known."""

    path: Path
    kind: str | None
    findings: Sequence[Finding]


def check_file(path: Path, ray: str) -> Checked:
    """Check one file for use with this version of Ray.

    Raises:
        InputError: it cannot be read.
    """
    kind, findings = check_text(read_text(path, "YAML"), ray)
    return Checked(path, kind, findings)


def check_text(text: str, ray: str) -> tuple[str | None, Sequence[Finding]]:
    """The kind of a file with this content, and the findings."""
    findings = Findings(text)
    if re.search(r"^#SBATCH\b", text, re.MULTILINE):
        check_slurm(text, findings, ray)
        return "slurm", findings.ordered()
    if re.search(r"^FROM\s+\S+", text, re.MULTILINE | re.IGNORECASE):
        check_dockerfile(text, findings, ray)
        return "dockerfile", findings.ordered()
    try:
        documents = [document for document in read_documents(text) if document.data is not None]
    except BadYAML as error:
        findings.add(error.line, "yaml", str(error))
        return None, findings.ordered()
    kinds = [_kind(document) for document in documents]
    for document, kind in zip(documents, kinds, strict=True):
        if kind is not None:
            found = Findings(text)  # of its own: a rule may look whether there was any yet
            _OF_YAML[kind](document, found, ray)
            findings.found += found.found
    known = next((kind for kind in kinds if kind), None)
    if known is None:
        findings.add(1, "kind", "no cluster file: must be " + ", ".join(KINDS.values()))
    return known, findings.ordered()


def _kind(document: Document) -> str | None:
    keys = set(document.data) if isinstance(document.data, dict) else set()
    if "apiVersion" in keys:
        version, kind = str(document.get("apiVersion")), str(document.get("kind"))
        return "kuberay" if version.startswith("ray.io") or kind.startswith("Ray") else None
    if "cluster_name" in keys or "provider" in keys:
        return "launcher"
    return "skypilot" if "run" in keys or "resources" in keys else None
