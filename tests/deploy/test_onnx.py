"""An ONNX file is checked and compared, takes any batch, and isn't there if anything went wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbranch.deploy import export_onnx, onnx, write_onnx
from unbranch.errors import DifferenceError, InputError, MissingPackageError

onnxruntime = pytest.importorskip("onnxruntime")


class Branching(nn.Module):
    """Can't be exported: its path depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_file_takes_any_batch_and_agrees(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net, path = network(), tmp_path / "net.onnx"
    written = export_onnx(net, torch.randn(1, 3, 8, 9), str(path))
    assert net.training
    assert written.path == path
    assert written.max_rel is not None
    assert written.max_rel < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 8, 9)
    (found,) = session.run(None, {"input": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), net.eval()(x), atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


def test_network_that_can_not_be_exported_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch can't export this network to ONNX"):
        export_onnx(Branching(), torch.randn(2, 3), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_file_that_computes_another_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = onnx._export

    def wrong(net: nn.Module, example: Tensor, path: Path) -> None:
        original(nn.Sequential(net, nn.Hardtanh()), example, path)

    monkeypatch.setattr(onnx, "_export", wrong)
    scaled = nn.Conv2d(3, 4, 1)
    nn.init.constant_(scaled.bias, 9.0)
    with pytest.raises(DifferenceError, match="ONNX Runtime computes another function"):
        export_onnx(scaled, torch.randn(1, 3, 4, 4), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_library_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MissingPackageError, match=r"onnxscript isn't installed: pip install 'unbranch\[onnx\]'"):
        write_onnx(network(), torch.randn(1, 3, 4, 4), tmp_path / "net.onnx")


def test_runtime_that_is_not_installed_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert export_onnx(network(), torch.randn(1, 3, 4, 4), tmp_path / "net.onnx").max_rel is None


def test_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`example_input` must be a tensor"):
        write_onnx(network(), ([torch.rand(3, 4, 4)],), tmp_path / "net.onnx")
