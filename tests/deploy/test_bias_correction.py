"""Full bias correction works for networks with branches, and changes biases only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from unbranch.deploy.int8.bias_correction import restored, separable
from unbranch.deploy.int8.engines import NNCFEngine
from unbranch.runtimes.arrays import write_arrays
from unbranch.runtimes.signature import FlatNetwork
from unbranch.runtimes.source import write_source
from unbranch.runtimes.targets.base import Quantization

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

WIDTH = 16  # ONNX Runtime fuses layers of other widths in other ways


class Net(nn.Module):
    """Layers between which branches part and meet, in the way that a function says."""

    def __init__(self, body: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.stem, self.a, self.b = (nn.Conv2d(c, WIDTH, 3, padding=1) for c in (3, WIDTH, WIDTH))
        self.c, self.d, self.e = (nn.Conv2d(c, WIDTH, 1) for c in (WIDTH, WIDTH, 2 * WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


def projection(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    return n.scores(n.d((n.b(n.a(x).relu()) + n.c(x)).relu()).relu())


def projection_first(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    y = n.c(x)
    return n.scores(n.d((y + n.b(n.a(x).relu())).relu()).relu())


def identity(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    return n.scores(n.d((n.b(n.a(x).relu()) + x).relu()).relu())


def inception(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    return n.scores(n.e(torch.cat([n.c(x), n.b(n.a(x).relu())], 1)))


def dense(n: Net, x: Tensor) -> Tensor:
    x = n.stem(x).relu()
    return n.scores(n.e(torch.cat([x, n.a(x)], 1).relu()))


def squeeze(n: Net, x: Tensor) -> Tensor:
    y = n.a(n.stem(x).relu()).relu()
    return n.scores(n.d(y * n.c(y.mean((2, 3), keepdim=True)).sigmoid()).relu())


def layers_on_the_input(n: Net, x: Tensor) -> Tensor:
    return n.scores((n.stem(x) + n.stem(x.flip(-1))).relu())


def outputs_within(n: Net, x: Tensor) -> tuple[Tensor, ...]:
    x = n.stem(x).relu()
    y = n.a(x)
    z = n.b(y)
    return n.scores(y.relu() + z.sigmoid()), y, n.c(z), x


BODIES = (
    projection, projection_first, identity, inception, dense, squeeze, layers_on_the_input, outputs_within,
)  # fmt: skip
NETWORKS = {
    **{body.__name__: lambda body=body: Net(body) for body in BODIES},
    "resnet8": lambda: ub.create_model("resnet8_cifar", num_classes=5, block="repvgg"),
}


def source_of(name: str, folder: Path) -> Any:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # so that collapsed layers have biases
            nn.init.normal_(layer.bias)
    x = torch.randn(4, 3, 12, 12)
    return write_source(FlatNetwork(ub.collapse(network.eval(), x), x), folder)


def outputs(model: Any, images: Tensor) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {"input": images.numpy()})
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_file_to_cut_is_equal_and_comes_back(name: str, tmp_path: Path) -> None:
    model = onnx.load(source_of(name, tmp_path).onnx)
    before, images = model.SerializeToString(deterministic=True), torch.randn(3, 3, 12, 12)
    expected = outputs(model, images)
    environment = dict(os.environ)
    with separable(model) as parts:
        onnx.checker.check_model(parts, full_check=True)
        readers = [name for node in parts.graph.node for name in node.input]
        layers = [node for node in parts.graph.node if node.op_type in ("Conv", "Gemm")]
        assert all(readers.count(node.input[0]) == 1 for node in layers)
        found = outputs(parts, images)
    assert environment == dict(os.environ)
    assert all((a == b).all() or abs(a - b).max() < 1e-5 for a, b in zip(expected, found, strict=True))
    assert restored(parts).SerializeToString(deterministic=True) == before


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.xdist_group("deployment in integers")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_branches_get_corrected_biases(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    source, calls = source_of(name, tmp_path), tmp_path / "calls.npz"
    images = [torch.randn(1, 3, 12, 12).numpy() for _ in range(4)]
    write_arrays(calls, [[image] for image in images])
    made = {}
    for full in (False, True):
        how = Quantization(calls, full_bias_correction=full)
        feeds = [{"input": image} for image in images]
        made[full] = NNCFEngine().quantize(onnx.load(source.onnx), feeds, replace(source, quantization=how))
    kinds = [sorted(node.op_type for node in model.graph.node) for model in made.values()]
    assert kinds[0] == kinds[1]
    weights = [{v.name: v.raw_data for v in model.graph.initializer if len(v.dims) > 1} for model in made.values()]
    assert weights[0] == weights[1]
    biases = [
        {v.name: v.raw_data for v in model.graph.initializer if v.name.endswith("bias")} for model in made.values()
    ]
    assert biases[0].keys() == biases[1].keys()
    assert biases[0] != biases[1]
    assert not made[True].metadata_props
