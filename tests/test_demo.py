"""The demo from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unbranch import cli
from unbranch.weights import load


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("block", ["dbb", "acb", "repvgg"])
def test_demo_trains_collapses_proves_and_writes(block: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = CliRunner().invoke(cli.app, ["demo", "--block", block, "--epochs", "2", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "same class on 359 of 359 images" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["account.json", "deploy.onnx", "deploy.safetensors"]
    account = json.loads((out / "account.json").read_text())
    assert account["proof"]["before"]["top1"] == account["proof"]["after"]["top1"]
    assert account["proof"]["after"]["top1"] > 50
    assert account["proof"]["float64"] < 1e-12
    before, after = account["report"]["before"], account["report"]["after"]
    assert all(after[kind] < before[kind] for kind in ("params", "macs", "launches"))
    assert load(out / "deploy.safetensors")(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
