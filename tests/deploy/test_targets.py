"""Every runtime that is installed computes what PyTorch computes, with one and several inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbranch.blocks import RepVGG
from unbranch.deploy import TARGETS, deploy
from unbranch.errors import InputError

SLOW = ("aotinductor", "executorch", "coreml", "litert")


class Several(nn.Module):
    """Two images to a map and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = RepVGG(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(4, 4, 2, 2), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.a(left)) + self.up(torch.relu(self.b(right)))
        return {"map": y, "vector": self.head(y.mean((2, 3)))}


class Gelu(nn.Module):
    """A GELU between convolutions, which some runtimes approximate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(x) * 3)).flatten(1)


NETWORKS = {
    "several": (Several, lambda: (torch.randn(3, 3, 8, 12), torch.randn(3, 3, 8, 12))),
    "gelu": (Gelu, lambda: torch.randn(3, 3, 9, 10)),
}


ROWS = [(target, network) for target in TARGETS for network in NETWORKS if target not in SLOW or network == "several"]


@pytest.mark.parametrize(
    ("target", "network"), [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in SLOW)) for row in ROWS]
)
def test_runtime_computes_the_same(tmp_path: Path, target: str, network: str) -> None:
    if (reason := TARGETS[target]().unavailable()) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    make, images = NETWORKS[network]
    result = deploy(make(), images(), tmp_path, to=target, rounds=1, batches=(1,), half=target != "aotinductor")
    runs = TARGETS[target]().unrunnable() is None
    for artifact in result.artifacts:
        assert artifact.status == ("verified" if runs else "not verified"), artifact.reason
        assert artifact.path is not None
        assert artifact.path.exists()
        assert bool(artifact.timings) == runs
    if runs and result.artifacts[0].target != "mnn":
        assert result.artifacts[0].error is not None
        assert result.artifacts[0].error <= 1e-5


def test_names_are_those_of_the_targets() -> None:
    assert all(name == target.name and issubclass(target, object) for name, target in TARGETS.items())


@pytest.mark.parametrize("name", ["", " , ", "onx", "onnx,tflite", ["torch", "x"]])
def test_unknown_targets_are_one_error(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError):
        deploy(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), tmp_path, to=name)
