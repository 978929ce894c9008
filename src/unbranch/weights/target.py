"""The model that a checkpoint is loaded into: its form, and the names that it knows in either form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.models.build import build_model
from unbranch.models.classifier import Classifier
from unbranch.provenance import Provenance, provenance_of
from unbranch.weights.canonical import canonical_shapes


@dataclass(frozen=True)
class Target:
    """A model, its form and its names.

    Args:
        model: without wrappers.
    """

    model: nn.Module

    @property
    def history(self) -> Provenance:
        return provenance_of(self.model)

    @property
    def is_collapsed(self) -> bool:
        """Whether the model has the deploy form."""
        return is_collapsed(self.history)

    @property
    def has_one_form(self) -> bool:
        """Whether only the model's own names are known: it is collapsed, and its training form can't be made."""
        return self.is_collapsed and (self.history.network is None or len(self.history.transforms) > 1)

    @cached_property
    def training(self) -> nn.Module:
        """The structure of the training form: the model itself, or, if it is collapsed, one on the meta device."""
        if not self.is_collapsed:
            return self.model
        with torch.device("meta"):
            return training_form(self.model)

    @cached_property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Shapes of the model's own tensors by name."""
        return {key: value.shape for key, value in self.model.state_dict().items() if isinstance(value, Tensor)}

    @cached_property
    def canonical_shapes(self) -> Mapping[str, torch.Size]:
        """Shapes by the names of both forms, see ``unbranch.weights.canonical``."""
        return canonical_shapes(self.training)


def is_collapsed(history: Provenance) -> bool:
    """Whether ``collapse`` was the last transform of a model; other transforms have no layout."""
    return bool(history.transforms) and history.transforms[-1].get("kind") == "collapse"


def training_form(model: nn.Module) -> nn.Module:
    """Build the model before it was collapsed, with random weights and as many classes as it has now.

    Raises:
        InputError: if the model isn't one of ``create_model``, or was transformed otherwise.
    """
    history = provenance_of(model)
    require_name(history)
    training = build_model(str(history.network), **history.arguments).eval()
    if not isinstance(model, Classifier) or not isinstance(training, Classifier):
        return training
    if training.num_classes != model.num_classes:
        training.reset_classifier(model.num_classes)
    return training


def require_name(history: Provenance) -> None:
    """Raise InputError unless a model comes from ``create_model`` and was at most collapsed."""
    steps = [str(step.get("kind")) for step in history.transforms]
    if history.network is None or steps not in ([], ["collapse"]):
        done = f" after {', '.join(steps)}" if steps else ""
        raise InputError(
            "published names are known only for a model from create_model, as it was made or collapsed; this one is "
            f"{history.network or history.source_class}{done}"
        )
