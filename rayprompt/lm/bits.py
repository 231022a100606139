"""What kind of machine scores come from, and whether they have the same bits wherever buffers lie in memory.

Matrix products may sum in another order when their operands start at another address. Where an input lies in a pass
decides the addresses of everything that is computed for it, so its score would depend on its neighbors. MKL keeps the
order in its strict mode, which ``import rayprompt`` asks for (``MKL_CBWR``). Whether that holds, and whether it does in
other libraries, is tested when an LM loads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.lm.encode import EncodedPart, Segment
from rayprompt.lm.labels import Labels
from rayprompt.lm.loads import Request, score_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import DeviceClass, table_of

if TYPE_CHECKING:
    import torch

SHIFTS = (0, 4, 8, 16, 32)  # bytes behind an address that is a multiple of 64, where torch's own allocator puts data
STRICT = 0x10000  # MKL_CBWR_STRICT
BRANCHES = {3: "compatible", 8: "avx", 10: "avx2", 12: "avx512", 14: "avx512_e1"}  # MKL_CBWR_*, those still in use
ROUNDED = ("avx512_bf16", "amx_tile", "amx_fp16")  # instructions that oneDNN uses for half precision
LENGTHS = (1, 2, 3, 5, 9, 14, 17, 26, 40)  # tokens of the texts of the test


def machine_of(device: torch.device, dtype: torch.dtype) -> str:
    """The machine class of a device: what decides the last bits of a score besides the LM, its dtype and its shapes.

    ``cpu:intel-avx512:mkl-2024.2-avx512_e1-strict``, ``cuda:NVIDIA H200:cuda-12.8:cublas-12.8.4.1:torch-2.9.0``.
    """
    import torch

    if device.type != "cpu":
        runtime = f"hip-{torch.version.hip}" if torch.version.hip else f"cuda-{torch.version.cuda}"
        libraries = [runtime, *_cublas(), f"torch-{torch.__version__}"]
        return ":".join([device.type, torch.cuda.get_device_name(device), *libraries])
    parts = ["cpu", f"{_vendor()}-{torch.backends.cpu.get_cpu_capability().lower()}", _blas()]
    if dtype != torch.float32:
        found = [name for name in ROUNDED if getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()]
        parts.append("-".join(["onednn", *found]))
    return ":".join(parts)


def same_bits(scorer: LMScorer) -> bool:
    """Whether a loaded LM gives the same bits to inputs in another order, with data at other addresses on a CPU.

    Takes two forward passes of the shapes that the LM's scores are computed in.
    """
    part, prompts = _inputs(scorer)
    device: DeviceClass = "cpu" if scorer.device.type == "cpu" else "cuda"
    table = table_of(device, scorer.token_bytes, scorer.source.max_length, scorer.tokens)
    request = replace(Request.of_all(part, prompts), keep=False)
    expected, _ = score_request(scorer, table, request)
    backward = replace(request, prompt=request.prompt[::-1], example=request.example[::-1])
    if device == "cuda":
        found, _ = score_request(scorer, table, backward)
    else:
        with shifted():
            found, _ = score_request(scorer, table, backward)
    return found[::-1].tobytes() == expected.tobytes()


@contextmanager
def shifted(shifts: tuple[int, ...] = SHIFTS) -> Iterator[None]:
    """In this thread torch's operations on a CPU leave their results at other addresses: each ``shifts`` bytes on."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    rng = np.random.default_rng(0)

    def move(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or x.layout != torch.strided or not x.numel():
            return x
        count = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        flat = torch.empty(count + 128, dtype=x.dtype)
        begin = -flat.data_ptr() % 64 + shifts[rng.integers(len(shifts))]
        moved = flat.as_strided(x.shape, x.stride(), -(-begin // x.element_size()))
        return moved.copy_(x)

    class Shifted(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            fresh = all(returned.alias_info is None for returned in func._schema.returns)
            return tree_map_only(torch.Tensor, move, result) if fresh else result

    with Shifted():  # type: ignore[no-untyped-call]
        yield


def _inputs(scorer: LMScorer) -> tuple[EncodedPart, list[tuple[int, ...]]]:
    """Texts of random tokens, and two prompts behind them."""
    rng, source = np.random.default_rng(0), scorer.source

    def tokens(count: int) -> np.ndarray:
        return rng.integers(source.vocab_size // 8, source.vocab_size, count)

    most = max(1, source.max_length - 8)
    before = tuple((Segment(tokens(min(n, most)), field=True),) for n in LENGTHS)
    after = tuple((Segment(tokens(1), field=False),) for _ in LENGTHS)
    read = ("after", 0) if scorer.forward.family.reads_mask else None
    labels = Labels(tuple((int(i),) for i in tokens(2)))
    part = EncodedPart("same-bits", before, after, None, read, labels, 0, source.max_length)
    return part, [tuple(tokens(n).tolist()) for n in (2, 5)]


@cache
def _vendor() -> str:
    """The maker of the CPU: MKL and oneDNN choose by it."""
    known = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return known.get(found[1], found[1].lower()) if found else platform.machine().lower()


def _blas() -> str:
    """torch's library of linear algebra; MKL with its version, its branch and whether it is strict."""
    import torch

    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        names = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
        return names[1].lower() if names else "blas"
    number = re.search(r"Math Kernel Library Version (\d+(?:\.\d+)*)", torch.__config__.show())
    name = f"mkl-{number[1]}" if number else "mkl"
    torch.mm(torch.ones(2, 2), torch.ones(2, 2))  # MKL reads its environment at the first product
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        mode, best = library.mkl_serv_cbwr_get(-1), library.mkl_serv_cbwr_get_auto_branch()
    except (OSError, AttributeError):  # built another way: what it was told
        return "-".join([name, os.environ.get("MKL_CBWR", "off").lower().replace(",", "-")])
    branch = best if mode & 0xFFFF == 2 else mode & 0xFFFF
    kind = "off" if mode & 0xFFFF == 1 else BRANCHES.get(branch, "auto")
    return "-".join([name, kind, *(["strict"] if mode & STRICT else [])])


def _cublas() -> list[str]:
    for package in ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"):
        try:
            return [f"cublas-{version(package)}"]
        except PackageNotFoundError:
            continue
    return []
