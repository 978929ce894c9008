"""Networks that aren't classifiers of one image: they get verified files, or one sentence that says what to do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unbranch.deploy import TARGETS, deploy
from unbranch.errors import InputError

RUNTIMES = [name for name in ("torch", "onnx", "openvino") if TARGETS[name]().unavailable() is None]


@dataclass
class Output:
    """As of Hugging Face's models."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class Net(nn.Module):
    """Two convolutions, and an output that a function makes."""

    def __init__(self, output: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.output = output
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(8, 5, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x).relu()
        return [stem, self.body(stem).relu()]

    def scores(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)[-1])

    def forward(self, x: Tensor) -> Any:
        return self.output(self, x)


class TwoInputs(Net):
    """A network of an image and its depth, which may be missing."""

    def __init__(self) -> None:
        super().__init__(lambda *_: None)
        self.depth = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, rgb: Tensor, depth: Tensor | None = None, *, flip: bool = False) -> Tensor:
        x = self.stem(rgb.flip(-1) if flip else rgb)
        return self.classifier(x if depth is None else x + self.depth(depth)).mean((2, 3))


def segmenter(net: Net, x: Tensor) -> Any:
    full = nn.functional.interpolate(net.scores(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return OrderedDict(out=full, aux=None)


def detector(net: Net, x: Tensor) -> Any:
    boxes = net.scores(x).flatten(2)
    maps = net.features(x)
    return torch.cat([boxes[:, :4] * 8, boxes[:, 4:].sigmoid()], 1), {"boxes": boxes[:, :4], "maps": maps, "stride": 2}


TRAITS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "data class": (lambda: Net(lambda n, x: Output(n.scores(x).mean((2, 3)))), ["logits"]),
    "data class of a tuple": (
        lambda: Net(lambda n, x: Output(n.scores(x), tuple(n.features(x)))),
        ["logits", "hidden_states_0", "hidden_states_1"],
    ),
    "dictionary with None": (lambda: Net(segmenter), ["out"]),
    "list of maps": (lambda: Net(lambda n, x: n.features(x)), ["output_0", "output_1"]),
    "nested": (lambda: Net(detector), ["output_0", "output_1_boxes", "output_1_maps_0", "output_1_maps_1"]),
    "integers": (lambda: Net(lambda n, x: (n.scores(x).argmax(1), n.scores(x) > 0)), ["output_0", "output_1"]),
    "its own input": (lambda: Net(lambda n, x: (n.scores(x), x)), ["output_0", "output_1"]),
    "scalar": (lambda: Net(lambda n, x: n.scores(x).mean()), ["output"]),
    "optional input": (TwoInputs, ["output"]),
}


@pytest.mark.parametrize("trait", TRAITS)
def test_network_of_any_output_gets_verified_files(tmp_path: Path, trait: str) -> None:
    torch.manual_seed(0)
    make, names = TRAITS[trait]
    result = deploy(make(), torch.randn(3, 3, 8, 10), tmp_path, to=RUNTIMES, rounds=0)
    assert [a.status for a in result.artifacts] == ["verified"] * len(RUNTIMES), [a.reason for a in result.artifacts]
    assert [spec.name for spec in result.signature.outputs] == names


def test_network_of_two_inputs_gets_verified_files(tmp_path: Path) -> None:
    images = torch.randn(3, 3, 8, 10), torch.randn(3, 1, 8, 10)
    result = deploy(TwoInputs(), images, tmp_path, to=RUNTIMES, rounds=0)
    assert all(artifact.ok for artifact in result.artifacts)
    assert [spec.name for spec in result.signature.inputs] == ["rgb", "depth"]


def branches(net: Net, x: Tensor) -> Tensor:
    return net.scores(x) if x.sum() > 0 else net.scores(-x)


def slices(net: Net, x: Tensor) -> Tensor:
    return net.scores(x)[..., : int(x.argmax()) % 3 + 1]


def counts(net: Net, x: Tensor) -> Tensor:
    scores = net.scores(x).flatten()
    kept = (scores > 0).nonzero()
    return scores[kept].mean() if len(kept) > 3 else scores.mean()


@pytest.mark.parametrize("output", [branches, slices, counts])
def test_computation_that_depends_on_values_is_one_sentence_with_the_place(
    tmp_path: Path, output: Callable[[Net, Tensor], Tensor]
) -> None:  # fmt: skip
    with pytest.raises(InputError) as error:
        deploy(Net(output), torch.randn(2, 3, 8, 8), tmp_path / "out", to="torch", rounds=0)
    message = str(error.value)
    assert "\n" not in message
    assert "backbone" in message
    assert f"{Path(__file__).name}, line" in message
    assert output.__name__ in message
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("unbranch_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_operator_of_the_users_code_is_a_row_that_names_it(tmp_path: Path) -> None:
    network = Net(lambda n, x: doubled(n.scores(x)))
    (artifact,) = deploy(network, torch.randn(2, 3, 8, 8), tmp_path, to="torch", rounds=0).artifacts
    assert artifact.status == "failed"
    assert "unbranch_tests::doubled" in artifact.reason


@pytest.mark.sweep(2)
@pytest.mark.parametrize("target", ["torch", pytest.param("aotinductor", marks=pytest.mark.slow)])
def test_operators_of_a_library_are_found_by_its_name(tmp_path: Path, target: str) -> None:
    ops = pytest.importorskip("torchvision").ops
    if (reason := TARGETS[target]().unavailable()) is not None:
        pytest.skip(reason)

    def pooled(net: Net, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0.0, 0.0, 5.0, 4.0]])
        return ops.roi_align(net.scores(x), boxes, output_size=2)

    (artifact,) = deploy(Net(pooled), torch.randn(2, 3, 8, 8), tmp_path, to=target, rounds=0).artifacts
    assert artifact.ok, artifact.reason


def test_output_that_vanishes_in_float32_is_noted(tmp_path: Path) -> None:
    def vanishing(net: Net, x: Tensor) -> Tensor:
        return net.scores(x) * 1e-30 * 1e-30

    result = deploy(Net(vanishing), torch.randn(2, 3, 8, 8), tmp_path, to="torch", rounds=0)
    assert not result.artifacts[0].ok
    assert any("output" in note for note in result.notes)


def hugging_face() -> nn.Module:
    t = pytest.importorskip("transformers")
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
    return t.ResNetForImageClassification(t.ResNetConfig(**shape))


def feature_maps() -> nn.Module:
    return pytest.importorskip("timm").create_model("resnet10t", features_only=True)


def unet() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None, classes=3)


def ssd() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=5)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("make", [hugging_face, feature_maps, unet, lambda: ssd().backbone])
def test_networks_of_libraries_get_verified_files(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    result = deploy(make().eval(), torch.randn(2, 3, 64, 64), tmp_path, to=RUNTIMES, rounds=0)
    assert all(artifact.ok for artifact in result.artifacts), [a.reason for a in result.artifacts]


@pytest.mark.slow
def test_detector_with_its_selection_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        deploy(ssd().eval(), torch.randn(1, 3, 320, 320), tmp_path, to="torch", rounds=0)
    assert "\n" not in str(error.value)
    assert "backbone" in str(error.value)
