"""A network without its head, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.models.backbone import Backbone
from unbranch.models.classifier import Classifier


class FeatureExtractor(Backbone):
    """A network without its head, ``(B, in_channels, H, W)`` to a list of feature maps, finest first.

    Args:
        model: whose parts it uses.
        out_indices: which of its levels; all by default. Negative indices count from the end, an integer n gives the
            last n.
        norms: put a batch norm on each map, as detectors with RepLKNet-XL do.

    Raises:
        InputError: if there is no such level.
    """

    def __init__(self, model: Classifier, out_indices: Sequence[int] | int | None = None, norms: bool = False) -> None:
        indices = _chosen(len(model.levels), out_indices)
        levels = [model.levels[i] for i in indices]
        stages = list(model.stages)[: levels[-1].position]
        super().__init__(model.stem, stages, levels, model.input_spec)
        self.norms = nn.ModuleDict({str(i): nn.BatchNorm2d(model.levels[i].channels) for i in indices if norms})

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check(x)
        maps, wanted = [], {level.position for level in self.levels}
        for position, part in enumerate([self.stem, *self.stages]):
            x = part(x)
            if position in wanted:
                maps.append(x)
        return [norm(y) for norm, y in zip(self.norms.values(), maps, strict=True)] if len(self.norms) else maps


def _chosen(known: int, out_indices: Sequence[int] | int | None) -> list[int]:
    """Return which of ``known`` levels are meant, finest first."""
    if out_indices is None:
        return list(range(known))
    if isinstance(out_indices, int):
        wanted = list(range(known - out_indices, known)) if out_indices <= known else []
    else:
        wanted = list(out_indices)
    if not wanted or any(not isinstance(i, int) or not -known <= i < known for i in wanted):
        raise InputError(
            f"`out_indices` must be one or more of {-known} to {known - 1}, or how many from the end, "
            f"got {out_indices!r}"
        )
    return sorted({i % known for i in wanted})
