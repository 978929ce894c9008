"""Stacks of convolutions and poolings: VGG-16 and cifar-quick for CIFAR, AlexNet for ImageNet.

Simonyan, Zisserman: "Very Deep Convolutional Networks", ICLR 2015, with batch norms and one hidden layer of 512.
Krizhevsky: "One weird trick for parallelizing convolutional neural networks", 2014, with batch norms.
cifar-quick is the example network of Caffe, with batch norms.

    stage   units of convolution, norm and ReLU, and a pooling
    head    the map at a fixed size, flattened, hidden layers with ReLU (and dropout), fc

Adaptive averaging gives the map its fixed size; for images of the published size it does nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from unbranch.models.accuracy import CIFAR10, reported
from unbranch.models.backbone import FeatureLevel
from unbranch.models.classifier import Classifier, Head
from unbranch.models.registry import CIFAR, register_models
from unbranch.models.stage import Stage, no_drop_path
from unbranch.models.units import Block, Units


class Conv(NamedTuple):
    """A unit; padding half the kernel unless given."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int | None = None


class Pool(NamedTuple):
    """A max or average pooling that ends a stage."""

    make: type[nn.Module]
    kernel: int
    stride: int = 2


MAX2, MAX3, MEAN3 = Pool(nn.MaxPool2d, 2), Pool(nn.MaxPool2d, 3), Pool(nn.AvgPool2d, 3)

VARIANTS: dict[str, dict[str, Any]] = {
    "vgg16_cifar": {
        "stages": (
            *((*(Conv(width),) * depth, MAX2) for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))),
        ),
        "side": 1,
        "hidden": (512,),
        "min_size": 32,
    },
    "cifar_quick": {
        "stages": ((Conv(32, 5), MAX3), (Conv(32, 5), MEAN3), (Conv(64, 5), MEAN3)),
        "side": 3,
        "hidden": (64,),
        "min_size": 15,
    },
    "alexnet": {
        "stages": (
            (Conv(64, 11, 4, 2), MAX3),
            (Conv(192, 5), MAX3),
            (Conv(384), Conv(384), Conv(256), MAX3),
        ),
        "side": 6,
        "hidden": (4096, 4096),
        "drop_rate": 0.5,
        "min_size": 63,
    },
}

RENAMED = {"widths": "pruned_widths", "smallest": "min_size"}


@register_models(
    {"alexnet": VARIANTS["alexnet"]},
    family="plain stack",
    paper="One weird trick for parallelizing convolutional neural networks, 2014, https://arxiv.org/abs/1404.5997",
    accuracy=reported("DingXiaoH/DiverseBranchBlock", 224, {"alexnet": {None: 57.23, "acb": 58.43, "dbb": 59.19}}),
    renamed_options=RENAMED,
)
@register_models(
    {"cifar_quick": VARIANTS["cifar_quick"]},
    family="plain stack",
    paper="Caffe: Convolutional Architecture for Fast Feature Embedding, 2014, https://arxiv.org/abs/1408.5093",
    input_size=CIFAR,
    num_classes=10,
    aliases={"cifar_quick": ("cfqkbnc",)},
    accuracy=reported("DingXiaoH/ACNet", 32, {"cifar_quick": {None: 86.20, "acb": 86.87}}, CIFAR10),
    renamed_options=RENAMED,
)
@register_models(
    {"vgg16_cifar": VARIANTS["vgg16_cifar"]},
    family="plain stack",
    paper="Very Deep Convolutional Networks, ICLR 2015, https://arxiv.org/abs/1409.1556",
    input_size=CIFAR,
    num_classes=10,
    aliases={"vgg16_cifar": ("vc", "VGG-16")},
    accuracy=reported("DingXiaoH/ACNet", 32, {"vgg16_cifar": {None: 93.99, "acb": 94.54}}, CIFAR10),
    renamed_options=RENAMED,
)
def vgg(
    stages: Sequence[Sequence[Conv | Pool]],
    side: int,
    hidden: Sequence[int],
    min_size: int,
    *,
    num_classes: int,
    in_channels: int,
    block: Block = None,
    block_options: dict[str, Any] | None = None,
    pruned_widths: Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a stack; the units of all stages are numbered ``conv1``, ``conv2``, …"""
    no_drop_path(drop_path_rate, "a plain stack")
    units, channels, number, reduction = Units(block, block_options, pruned_widths), in_channels, 0, 1
    made, levels = [], []
    for position, rows in enumerate(stages, 1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for row in rows:
            reduction *= row.stride
            if isinstance(row, Pool):
                layers["pool"] = row.make(row.kernel, row.stride)
                continue
            number += 1
            width = units.width(row.width)
            layers[f"conv{number}"] = units.unit(channels, width, row.kernel, row.stride, row.padding, prunable=True)
            channels = width
        made.append(Stage(layers))
        levels.append(FeatureLevel(position, channels, reduction))
    units.finish()
    head = _head(channels, side, hidden, num_classes, drop_rate)
    return Classifier(nn.Identity(), made, head, levels, in_channels, min_size)


def _head(channels: int, side: int, hidden: Sequence[int], num_classes: int, drop_rate: float) -> Head:
    layers: dict[str, nn.Module] = {"pool": nn.AdaptiveAvgPool2d(side), "flatten": nn.Flatten()}
    features = channels * side * side
    for i, width in enumerate(hidden, 1):
        layers |= {f"linear{i}": nn.Linear(features, width), f"act{i}": nn.ReLU()}
        if drop_rate:
            layers[f"dropout{i}"] = nn.Dropout(drop_rate)
        features = width
    return Head(layers, features, num_classes)
