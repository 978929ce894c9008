"""A network as a user writes it, and the manifests of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unbranch.blocks import DBB


class MyNet(nn.Module):
    """Code of a user: branches, a sum in its forward, a rebuilt root, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = DBB(3, 6, 3, 1, 1)
        self.wide = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(6, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.wide(x) + self.narrow(x)))
        x = torch.relu(self.first(x.mean((2, 3)))) * self.scale
        return self.second(x)


IMAGES = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def manifest_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["unbranch"])


def rewritten(path: Path, **changes: Any) -> None:
    """Change fields of a file's manifest."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(tensors, path, metadata={"unbranch": json.dumps({**manifest_of(path), **changes})})
