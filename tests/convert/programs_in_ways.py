"""Random programs with conditions on their input, written as data that a forward interprets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = ("conv", "norm", "point", "other norm", "block")
_PLAIN = (
    *LAYERS, "relu", "relu_", "scale", "scale_", "keep", "add kept", "kept +=", "replace by kept", "flip", "view",
    "clone", "slice =",
)  # fmt: skip
_HARMLESS = ("flip", "view", "clone", "keep", "replace by kept")  # what a way may run alone
CONDITIONS = ("batch > 5", "odd width", "height > width")
ON_NUMBERS = ("large", "negative")  # can't be read


@dataclass(frozen=True)
class If:
    """Steps that are run where a condition holds, and others that are run where it doesn't."""

    condition: str
    then: tuple[Any, ...]
    otherwise: tuple[Any, ...]


def steps() -> st.SearchStrategy[tuple[Any, ...]]:
    """Rows of steps with conditions in conditions: most on sizes and harmless, some of any kind."""
    plain = st.sampled_from(_PLAIN)

    def conditional(inside: tuple[str, ...], conditions: tuple[str, ...]) -> st.SearchStrategy[Any]:
        rows = st.lists(st.sampled_from(inside), max_size=3).map(tuple)
        one = st.builds(If, st.sampled_from(conditions), rows, rows)
        deeper = st.lists(st.sampled_from(inside) | one, max_size=2).map(tuple)
        return st.builds(If, st.sampled_from(conditions), deeper, deeper)

    harmless = conditional(_HARMLESS, CONDITIONS)
    step = st.one_of(plain, harmless, plain, harmless, plain, conditional(_PLAIN, CONDITIONS + ON_NUMBERS))
    rows = st.lists(step, max_size=3).map(tuple)
    return st.tuples(rows, rows, rows).map(lambda r: (*r[0], "conv", *r[1], "norm", *r[2]))


class Program(nn.Module):
    """A forward that interprets steps on images of four channels; all steps keep their size."""

    def __init__(self, program: tuple[Any, ...]) -> None:
        super().__init__()
        self.program = program
        self.conv, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.program, x, x, x)[0]

    def _run(self, program: tuple[Any, ...], x: Tensor, kept: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        for step in program:
            if isinstance(step, If):
                chosen = step.then if self._holds(step.condition, given) else step.otherwise
                x, kept = self._run(chosen, x, kept, given)
            elif step == "keep":
                kept = x
            elif step == "replace by kept":
                x = kept
            elif step == "kept +=" and kept is not given:
                kept += 1.0
            else:
                x = self._step(step, x, kept, given)
        return x, kept

    def _holds(self, condition: str, given: Tensor) -> Any:
        if condition == "batch > 5":
            return given.shape[0] > 5
        if condition == "odd width":
            return given.shape[-1] % 2
        if condition == "height > width":
            return given.shape[2] > given.shape[3]
        return given.max() > 50 if condition == "large" else given.sum() < 0

    def _step(self, step: str, x: Tensor, kept: Tensor, given: Tensor) -> Tensor:
        if step in LAYERS:
            name = {"other norm": "other"}.get(step, step)
            return self.get_submodule(name)(x)  # type: ignore[no-any-return]
        writes = step in ("relu_", "scale_", "slice =")
        x = x + 0 if writes and x is given else x
        if step == "slice =":
            x[:, :, 0] = 0.5
            return x
        made = {
            "relu": F.relu, "relu_": torch.relu_, "scale": lambda y: y * 0.5, "scale_": lambda y: y.mul_(0.5),
            "add kept": lambda y: y + kept, "flip": lambda y: y.flip(-1), "view": lambda y: y[:], "clone": torch.clone,
        }  # fmt: skip
        return made[step](x) if step in made else x
