"""What latency depends on: the CPU, and versions of runtimes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "unbranch", "torch", "onnx", "onnxruntime", "openvino", "nncf", "ncnn", "pnnx", "MNN", "executorch", "coremltools",
    "litert-torch", "ai-edge-litert",
)  # fmt: skip
INSTRUCTIONS = {  # flags of /proc/cpuinfo, by usual names
    "avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16", "amx_int8": "AMX", "asimddp": "dot product", "i8mm": "I8MM",
}  # fmt: skip
INT8 = {"AVX-VNNI", "AVX-512 VNNI", "AMX", "dot product", "I8MM"}


def environment() -> dict[str, Any]:
    """Return the CPU, its vector instructions, the system, and versions of the installed runtimes."""
    name, flags = _cpu()
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "instructions": [label for flag, label in INSTRUCTIONS.items() if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
    }


def has_int8_instructions() -> bool:
    """Whether this CPU multiplies 8-bit integers without saturating."""
    return not INT8.isdisjoint(environment()["instructions"])


def _cpu() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(values.get("flags", values.get("Features", "")).split())
    return values.get("model name", platform.machine()), flags


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
