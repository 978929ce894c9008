"""Deployment targets: one file for each runtime. No runtime is imported before it is used."""

from __future__ import annotations

from collections.abc import Iterable

from unbranch.errors import InputError, nearest
from unbranch.runtimes.targets.base import Precision, Runner, Source, Target
from unbranch.runtimes.targets.coreml import CoreMLTarget
from unbranch.runtimes.targets.executorch import ExecuTorchTarget
from unbranch.runtimes.targets.litert import LiteRTTarget
from unbranch.runtimes.targets.mnn import MNNTarget
from unbranch.runtimes.targets.ncnn import NcnnTarget
from unbranch.runtimes.targets.onnx_runtime import OnnxTarget, TensorRTTarget
from unbranch.runtimes.targets.openvino import OpenVINOTarget
from unbranch.runtimes.targets.pytorch import AOTInductorTarget, TorchTarget

__all__ = ["TARGETS", "Precision", "Runner", "Source", "Target", "find_targets"]

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        TorchTarget, AOTInductorTarget, OnnxTarget, OpenVINOTarget, NcnnTarget, MNNTarget, ExecuTorchTarget,
        CoreMLTarget, LiteRTTarget, TensorRTTarget,
    )
}  # fmt: skip
"""Targets by name; a class that is added here works everywhere."""


def find_targets(names: str | Iterable[str]) -> tuple[Target, ...]:
    """Return targets by name: a list, names separated by commas, or ``"all"``.

    Raises:
        InputError: for a name that isn't known, or no name.
    """
    asked = names.split(",") if isinstance(names, str) else list(names)
    asked = list(dict.fromkeys(name.strip().lower() for name in asked if name.strip()))
    if not asked:
        raise InputError(f"`to` must name at least one target of {', '.join(TARGETS)}")
    for name in asked:
        if name not in TARGETS and name != "all":
            raise InputError(f"unknown target {name!r}{nearest(name, TARGETS)} There are {', '.join(TARGETS)} and all")
    return tuple(TARGETS[name]() for name in (TARGETS if "all" in asked else asked))
