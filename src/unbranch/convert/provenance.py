"""The provenance of a collapsed network: which layers stand where something was merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from unbranch.convert.report import Report
from unbranch.provenance import provenance_of, record_report, record_transform, set_provenance

COLLAPSE: Final = "collapse"  # kind of the transform
_USUAL = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}


def record_collapse(network: nn.Module, plain: nn.Module, report: Report, inputs: tuple[Any, ...] | None) -> None:
    """Give the collapsed network the provenance of its training form and the report.

    A transform is added if anything was merged or dropped. If the inputs are a single tensor, its size without the
    batch axis is recorded, too.
    """
    set_provenance(plain, provenance_of(network))
    if report.merges or report.dropped:
        record_transform(network, plain, {"kind": COLLAPSE, "layers": layers_of(plain, report)})
    record_report(plain, COLLAPSE, report)
    if inputs is not None and len(inputs) == 1 and isinstance(inputs[0], Tensor):
        set_provenance(plain, replace(provenance_of(plain), input_size=tuple(inputs[0].shape[1:])))


def layers_of(plain: nn.Module, report: Report) -> list[list[str]]:
    """Return the layers where something was merged, in order: for each its path and its kind in words."""
    merged = {merge.path for merge in report.merges}
    leaves = [(path, module) for path, module in plain.named_modules() if not module._modules]
    return [
        [path, _words(module)] for path, module in leaves if any(parent in merged for parent in _with_parents(path))
    ]


def _with_parents(path: str) -> Iterator[str]:
    """Yield the path and those of all modules that contain it; the network's own is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _words(module: nn.Module) -> str:
    """Return a layer's class and its options that aren't the defaults: ``Conv2d stride=(2, 2) padding=(1, 1)``."""
    given = [
        (name, getattr(module, name)) for name, usual in _USUAL.items() if _unusual(getattr(module, name, usual), usual)
    ]
    return " ".join([type(module).__name__, *(f"{name}={value}" for name, value in given)])


def _unusual(value: Any, usual: Any) -> bool:
    return any(v != usual for v in value) if isinstance(value, tuple) else value != usual
