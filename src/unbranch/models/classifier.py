"""A network with its head: logits of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.models.backbone import Backbone, FeatureLevel
from unbranch.models.input_spec import InputSpec
from unbranch.provenance import provenance_of, set_provenance


class Head(nn.Sequential):
    """Layers whose last one, ``fc``, maps ``(B, num_features)`` to ``(B, num_classes)``.

    Args:
        layers: before ``fc``, by name.
        num_features: that ``fc`` sees.
        num_classes: logits; with 0, ``fc`` is the identity and the features come out.
    """

    fc: nn.Module

    def __init__(self, layers: dict[str, nn.Module], num_features: int, num_classes: int) -> None:
        super().__init__(OrderedDict(layers))
        self.num_features, self.num_classes = num_features, num_classes
        self.reset(num_classes)

    def reset(self, num_classes: int, like: Tensor | None = None) -> None:
        """Put an untrained ``fc`` in, on the device and in the dtype of ``like``."""
        if num_classes < 0:
            raise InputError(f"`num_classes` must be ≥ 0, where 0 gives features alone, got {num_classes}")
        fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.fc = fc if like is None else fc.to(like)
        self.num_classes = num_classes

    def features(self, x: Tensor) -> Tensor:
        """Return what ``fc`` sees, ``(B, num_features)``."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def pooled_head(channels: int, num_classes: int, drop_rate: float = 0.0, norm: nn.Module | None = None) -> Head:
    """Return a head ``fc(dropout(mean(norm(x))))``, with the mean over the whole map."""
    layers: dict[str, nn.Module] = {} if norm is None else {"norm": norm}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "dropout": nn.Dropout(drop_rate)}
    return Head(layers, channels, num_classes)


class Classifier(Backbone):
    """A classifier, ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``, or to features without classes.

    Args:
        stem, stages, levels: see ``Backbone``.
        head: from the last feature map to logits.
        in_channels, min_size, multiple: of the images, see ``InputSpec``.
        num_features: channels of the last feature map, if that is none of the levels.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        head: Head,
        levels: Sequence[FeatureLevel],
        in_channels: int = 3,
        min_size: int = 1,
        multiple: int = 1,
        num_features: int | None = None,
    ) -> None:
        super().__init__(stem, stages, levels, InputSpec(in_channels, min_size, multiple))
        self.head = head
        self.num_features = num_features or self.levels[-1].channels

    @property
    def head_hidden_size(self) -> int:
        """Features of an image that the classifier sees; ``num_features`` counts the channels of the last map."""
        return self.head.num_features

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 for features alone."""
        return self.head.num_classes

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head.fc

    def heads(self) -> list[Head]:
        """Return every head that gives logits, auxiliary ones included."""
        return [self.head]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by an untrained one.

        Files of ``unbranch.save`` have the new number of classes.

        Args:
            num_classes: logits; 0 for features alone.
        """
        like = next(self.parameters(), None)
        for head in self.heads():
            head.reset(num_classes, like)
        history = provenance_of(self)
        if history.network is not None:
            set_provenance(self, replace(history, arguments={**history.arguments, "num_classes": num_classes}))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map or, with ``pre_logits``, what the last layer sees."""
        return self.head.features(x) if pre_logits else cast(Tensor, self.head(x))

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))
