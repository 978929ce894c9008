"""What a file has to know of a conversion: the layers that it left where it merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from unbranch.convert.report import Report
from unbranch.history import history_of, set_history, with_step

KIND = "collapse"
_USUAL = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}


def record_step(network: nn.Module, plain: nn.Module, report: Report, inputs: tuple[Any, ...] | None) -> None:
    """Give the collapsed network the history of its training form, and one step more if anything was merged or dropped.

    If the inputs are a single tensor, its size without the batch axis goes into the history, too.
    """
    if report.merges or report.dropped:
        with_step(network, plain, {"kind": KIND, "layers": layers_of(plain, report)})
    if inputs is not None and len(inputs) == 1 and isinstance(inputs[0], Tensor):
        set_history(plain, replace(history_of(plain), input_size=tuple(inputs[0].shape[1:])))


def layers_of(plain: nn.Module, report: Report) -> list[list[str]]:
    """The layers at the places of merges, in order, each as its path and its kind in words; numbers aren't told."""
    places = {merge.path for merge in report.merges}
    leaves = [(path, module) for path, module in plain.named_modules() if not module._modules]
    return [[path, _words(module)] for path, module in leaves if any(place in places for place in _lineage(path))]


def _lineage(path: str) -> Iterator[str]:
    """The path, and those of all modules around it; the network's own is empty."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _words(module: nn.Module) -> str:
    """A layer's class and what of its geometry is unusual: ``Conv2d stride=(2, 2) padding=(1, 1)``."""
    given = [
        (name, getattr(module, name)) for name, usual in _USUAL.items() if _unusual(getattr(module, name, usual), usual)
    ]
    return " ".join([type(module).__name__, *(f"{name}={value}" for name, value in given)])


def _unusual(value: Any, usual: Any) -> bool:
    return any(v != usual for v in value) if isinstance(value, tuple) else value != usual
