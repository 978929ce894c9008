"""The demo from end to end, and that it refuses to show a network that changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from unbranch import cli, demo
from unbranch.errors import UnbranchError
from unbranch.models import create, load


@pytest.mark.slow
@pytest.mark.parametrize("block", ["acb", "dbb", "repvgg"])
def test_demo_trains_collapses_proves_and_writes(block: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = CliRunner().invoke(cli.app, ["demo", "--block", block, "--epochs", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "same class on 359 of 359 test images" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["account.json", "deploy.onnx", "deploy.safetensors"]
    account = json.loads((out / "account.json").read_text())
    assert account["accuracy_before"] == account["accuracy_after"]
    assert account["accuracy_after"] > 0.5
    assert account["equality"]["float64"] < 1e-12
    before, after = account["report"]["before"], account["report"]["after"]
    assert all(after[kind] < before[kind] for kind in ("params", "macs", "launches"))
    assert load(out / "deploy.safetensors")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_demo_refuses_a_network_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x) + 1e-6

    network = create("resnet8_cifar", block="repvgg", in_channels=1, width=4).eval()
    monkeypatch.setattr(demo, "collapse", lambda net, _: Off(net))
    with pytest.raises(UnbranchError, match="the collapsed network is another function"):
        demo.prove(network, network, torch.randn(4, 1, 8, 8))
