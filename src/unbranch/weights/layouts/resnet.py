"""Names of ResNets in the code of ACNet, ResRep, DBB, timm and torchvision."""

from __future__ import annotations

from unbranch.weights.layouts.layout import Block, LayoutFamily, acnet, chained, dbb, resrep, unit
from unbranch.weights.layouts.tables import Table


def _basic_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    return (*unit("conv1", "stem", block), *chained(stage(s) for s in range(4)), ("linear.", "head.fc."))


def _bottleneck_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.block*", f"stages.{s}.*"
        return (
            *unit(f"stage{s + 1}.projection", f"stages.{s}.0.shortcut", block, relu=False),
            *unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *unit(f"{at}.conv2", f"{ours}.conv2", block, infix="acb"),
            *unit(f"{at}.conv3", f"{ours}.conv3", block, relu=False),
        )

    return (*unit("conv1", "stem", block), *chained(stage(s) for s in range(4)), ("fc.", "head.fc."))


def _cifar_acnet(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.block*", f"stages.{s}.*"
        return (
            *unit(f"stage{s + 1}.projection", f"stages.{s}.0.shortcut", block, relu=False),
            *unit(f"{at}.conv1", f"{ours}.conv1", block, infix="acb"),
            *unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    return (*unit("stage1.conv1", "stem", block), *chained(stage(s) for s in range(3)), ("linear.", "head.fc."))


def _resnet_dbb(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *unit(f"{at}.conv1", f"{ours}.conv1", block),
            *unit(f"{at}.conv2", f"{ours}.conv2", block, relu=False),
        )

    old = unit("conv1", "stem", block)  # in files from before the stem was a stage
    return (
        *unit("stage0.conv1", "stem", block), *old, *chained(stage(s) for s in range(4)), ("linear.", "head.fc."),
    )  # fmt: skip


def _bottleneck_dbb(block: Block) -> Table:
    def stage(s: int) -> Table:
        at, ours = f"stage{s + 1}.*", f"stages.{s}.*"
        return (
            *unit(f"{at}.shortcut", f"{ours}.shortcut", block, relu=False),
            *unit(f"{at}.conv1", f"{ours}.conv1", block),
            *unit(f"{at}.conv2", f"{ours}.conv2", block),
            *unit(f"{at}.conv3", f"{ours}.conv3", block, relu=False),
        )

    old = unit("conv1", "stem", block)
    return (
        *unit("stage0.conv1", "stem", block), *old, *chained(stage(s) for s in range(4)), ("linear.", "head.fc."),
    )  # fmt: skip


def _resnet_timm(block: Block) -> Table:  # noqa: ARG001 (they have plain ones only)
    def stage(s: int) -> Table:
        at, ours = f"layer{s + 1}.*", f"stages.{s}.*"
        convs = ((f"{at}.conv{n}.", f"{ours}.conv{n}.conv.") for n in (1, 2, 3))
        norms = ((f"{at}.bn{n}.", f"{ours}.conv{n}.bn.") for n in (1, 2, 3))
        shortcut = ((f"{at}.downsample.0.", f"{ours}.shortcut.conv."), (f"{at}.downsample.1.", f"{ours}.shortcut.bn."))
        return (*convs, *norms, *shortcut)

    stem: Table = (("conv1.", "stem.conv."), ("bn1.", "stem.bn."))
    return (*stem, *chained(stage(s) for s in range(4)), ("fc.", "head.fc."))


_TIMM = LayoutFamily("timm", _resnet_timm)
_BASIC = (acnet(_basic_acnet), dbb(_resnet_dbb), _TIMM)
_CIFAR = (acnet(_cifar_acnet), resrep(_cifar_acnet))
LAYOUTS: dict[str, tuple[LayoutFamily, ...]] = {
    "resnet18": _BASIC,
    "resnet34": _BASIC,
    "resnet50": (acnet(_bottleneck_acnet), resrep(_bottleneck_acnet), dbb(_bottleneck_dbb), _TIMM),
    "resnet*_cifar": _CIFAR,
}
