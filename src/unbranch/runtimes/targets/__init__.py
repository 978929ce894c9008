"""Deployment targets: one file for each runtime. No runtime is imported before it is used."""

from __future__ import annotations

import re
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
    """Return targets by name in any case: a list, names separated by commas, or ``"all"``.

    Raises:
        InputError: for a name that isn't known, no name, or a target whose name can't be that of a directory.
    """
    asked = names.split(",") if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(name, str) for name in asked):
        raise InputError(f"`to` must be names of targets, got {names!r}")
    asked = [name.strip().lower() for name in asked if name.strip()]
    if not asked:
        raise InputError(f"`to` must name at least one target of {', '.join(TARGETS)}")
    known = {name.lower(): name for name in TARGETS}
    for name in asked:
        if name not in known and name != "all":
            raise InputError(f"unknown target {name!r}{nearest(name, TARGETS)} There are {', '.join(TARGETS)} and all")
    chosen = TARGETS if "all" in asked else dict.fromkeys(known[name] for name in asked)
    for name in chosen:
        _require_usable(name, TARGETS[name])
    return tuple(TARGETS[name]() for name in chosen)


def _require_usable(name: str, target: type[Target]) -> None:
    """Raise InputError for a target that was registered in a way that can't work."""
    if not isinstance(target, type) or not issubclass(target, Target):
        raise InputError(f"`TARGETS[{name!r}]` must be a subclass of Target, got {target!r}")
    if target.__module__ == "__main__" or "<locals>" in target.__qualname__:
        raise InputError(
            f"the target {name!r} is {target.__module__}:{target.__qualname__}, which worker processes can't "
            "import: define it on the top level of a module"
        )
    if target.name != name or not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(
            f"a target is registered under its own `name`, of letters, digits, '-', '_' and '.': got {name!r} for one "
            f"whose name is {target.name!r}"
        )
