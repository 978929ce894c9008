"""Networks in 8-bit integers keep their accuracy, by the first way that is good enough; all of them are measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from unbranch.blocks import RepVGG
from unbranch.deploy import deploy
from unbranch.deploy.int8 import engines, ladder
from unbranch.errors import InputError

pytestmark = pytest.mark.slow
one_process = pytest.mark.xdist_group("deployment in integers")

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="NNCF isn't installed")


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


class Net(nn.Module):
    """RepVGG blocks with random kernels, and a linear classifier that is fitted to their outputs."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = RepVGG(1, width, 3, padding=1)
        self.body = nn.ModuleList(RepVGG(width, width, 3, padding=1) for _ in range(2))
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(width * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.body:
            x = torch.relu(block(x))
        return self.pool(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def fitted(dead: int = 0) -> Net:
    """Return a network that classifies digits, with some channels of each block that are always zero."""
    torch.manual_seed(0)
    net, (images, labels) = Net(), digits()
    with torch.no_grad():
        for channel in range(dead):  # a bias far below zero, as a channel that has died in training has it
            for block in (net.stem, *net.body[:-1]):
                block.conv_kxk.bn.bias[channel] = -50.0
        for _ in range(30):
            net.features(images[:400])
        for block in net.body:  # what longer training comes to
            assert block.identity is not None
            block.identity.bn.running_mean[:dead], block.identity.bn.running_var[:dead] = 0.0, 1e-9
        net.eval()
        features = net.features(images[:1200]).double()
        one = torch.cat([features, torch.ones(len(features), 1)], 1)
        wanted = nn.functional.one_hot(labels[:1200], 10).double()
        solved = torch.linalg.solve(one.T @ one + 0.1 * torch.eye(one.shape[1]), one.T @ wanted)
        net.head.weight.copy_(solved[:-1].T)
        net.head.bias.copy_(solved[-1])
    return net


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[1200:1500], labels[1200:1500]


def quantized(tmp_path: Path, net: nn.Module, data: Any, to: str = "onnx", **options: Any) -> Any:
    return deploy(net, data, tmp_path, to=to, int8=True, rounds=0, images=4, calibration=64, **options)


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory, data: Any) -> Any:
    folder = tmp_path_factory.mktemp("mended")
    return quantized(folder, fitted(dead=2), data, to="onnx,openvino", max_drop=1.0)


@nncf
@one_process
def test_dead_channels_ruin_plain_quantisation_and_are_mended(mended: Any) -> None:
    result = mended
    assert result.accuracy is not None
    plain, better = result.ladder.rungs
    assert plain.drop > 1
    assert better.drop <= 1
    assert better.rms < 0.6 * plain.rms
    assert not plain.notes
    assert better.notes
    assert result.ladder.chosen == better
    assert any("calibration" in note for note in result.notes)  # one tensor is given for both
    for artifact in result.artifacts:
        assert artifact.status == "verified", artifact.reason
        assert artifact.path.exists()
        if artifact.precision == "int8":
            assert artifact.accuracy >= result.ladder.rungs[1].accuracy - 0.01


@nncf
@one_process
def test_file_has_integer_weights_and_any_batch(mended: Any, data: Any) -> None:
    import onnx
    import onnxruntime

    path = mended.artifacts[1].path
    stored = {value.data_type for value in onnx.load(path).graph.initializer if len(value.dims) > 1}
    assert stored == {onnx.TensorProto.INT8}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": data[0][:7].numpy()})
    assert found.shape == (7, 10)


@nncf
@one_process
def test_network_that_is_kept_is_that_of_the_float_files(mended: Any, data: Any) -> None:
    net = fitted(dead=2)
    plain = ub.load(mended.directory / "model.safetensors", into=net)
    assert torch.allclose(plain(data[0][:5]), net(data[0][:5]), atol=1e-4)


@nncf
def test_cpu_without_8_bit_instructions_gets_7_bit_weights(tmp_path: Path, data: Any) -> None:
    import onnx
    from onnx import numpy_helper

    largest = {}
    for cpu in ("avx2", "vnni"):
        result = quantized(tmp_path / cpu, fitted(), data, max_drop=5.0, cpu=cpu)
        model = onnx.load(result.artifacts[1].path)
        kernels = [numpy_helper.to_array(v) for v in model.graph.initializer if v.data_type == onnx.TensorProto.INT8]
        largest[cpu] = max(int(abs(kernel.astype(int)).max()) for kernel in kernels if kernel.ndim > 1)
        assert result.ladder.reduce_range == (cpu == "avx2")
    assert largest["avx2"] <= 64 < largest["vnni"]


@nncf
def test_all_rungs_are_tried_before_it_is_given_up(
    tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(ladder, "drop_of", lambda *_: 100.0)
    images, labels = data
    result = quantized(tmp_path, fitted(dead=2), (images[:100], labels[:100]), max_drop=0.0)
    assert [rung.problem for rung in result.ladder.rungs] == [""] * 4
    assert len({rung.name for rung in result.ladder.rungs}) == 4
    assert all(rung.accuracy > 0.5 for rung in result.ladder.rungs)


def test_without_nncf_onnx_runtime_quantises(
    tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(ladder, "default_engine", engines.OnnxRuntimeEngine)
    result = quantized(tmp_path, fitted(), data, max_drop=2.0)
    assert result.ladder.rungs[0].engine == "onnxruntime"
    assert result.artifacts[1].status == "verified"
    assert result.artifacts[1].size < 0.6 * result.artifacts[0].size


def test_tensorrt_gets_signed_symmetric_integers(tmp_path: Path, data: Any) -> None:
    import onnx
    from onnx import numpy_helper

    result = quantized(tmp_path, fitted(), data, to="tensorrt", max_drop=2.0)
    artifact = result.artifacts[1]
    assert artifact.status == "not verified"
    model = onnx.load(artifact.path)
    values = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    zeros = [values[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear" and len(n.input) > 2]
    assert zeros
    assert all(zero.dtype == "int8" and not zero.any() for zero in zeros)
    assert "--stronglyTyped" in (artifact.path.parent / "build.sh").read_text()


class Maps(nn.Module):
    """Not a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = RepVGG(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def test_network_without_classes_is_quantised_but_not_called_verified(tmp_path: Path, data: Any) -> None:
    result = quantized(tmp_path, Maps().eval(), data[0])
    artifact = result.artifacts[1]
    assert artifact.status == "not verified"
    assert 0 < artifact.rms < 0.2
    assert artifact.path.parent.name == "onnx-int8-not-verified"
    assert result.ladder.rungs[0].drop is None


@pytest.mark.parametrize(
    "given",
    [{"data": None}, {"max_drop": -1}, {"max_drop": 101}, {"cpu": "z80"}, {"calibration": 0}, {"evaluation": 0}],
    ids=str,
)
def test_unusable_setting_is_one_error(tmp_path: Path, data: Any, given: dict[str, Any]) -> None:
    images = given.pop("data", data)
    with pytest.raises(InputError):
        deploy(Net(), images, tmp_path, to="onnx", **{"int8": True, "rounds": 0, **given})
    assert not list(tmp_path.iterdir())


def test_training_images_calibrate_and_validation_images_decide(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pydantic")
    net = fitted()
    net.pretrained_cfg = {"input_size": (1, 8, 8)}  # type: ignore[assignment]
    result = quantized(tmp_path, net, "digits", max_drop=100.0, evaluation=40)
    assert "validation" in result.data
    assert not any("calibration" in note for note in result.notes)
    assert result.ladder.rungs[0].accuracy is not None
    assert result.ladder.rungs[0].accuracy * 40 == pytest.approx(round(result.ladder.rungs[0].accuracy * 40))
