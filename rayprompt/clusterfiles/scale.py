"""``rayprompt clusters scale``: ask the autoscaler for GPUs and wait for them, as a search takes what is there."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring.cluster import connect


def scale(gpus: int, address: str, patience: float, say: Callable[[str], None]) -> int:
    """Ask for that many GPUs, and wait at most ``patience`` seconds for them; returns how many there are.

    What was asked for stays asked for, also when this process is gone: 0 lets idle machines go.

    Raises:
        InputError: no cluster at the address, or a negative number.
        ScoringError: they did not come in time.
    """
    if gpus < 0:
        raise InputError(f"--gpus {gpus}: must be 0 or more")
    if address == "local":
        raise InputError("--address local: there is no cluster to scale; must be auto or host:port")
    connect(address)
    import ray
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1}] * gpus)
    started, last = time.monotonic(), -1
    while True:
        there = int(ray.cluster_resources().get("GPU", 0))
        if there != last:
            say(f"{there} GPUs of {gpus} are there")
        if there >= gpus:
            return there
        if time.monotonic() - started > patience:
            raise ScoringError(
                f"{there} GPUs of {gpus} are there after {patience:g} s; they stay asked for (--gpus 0 takes it "
                "back), and "
                "ray status says what the autoscaler is waiting for"
            )
        last = there
        time.sleep(min(2.0, patience / 10))
