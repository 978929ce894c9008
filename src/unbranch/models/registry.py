"""The registry: every network of the zoo by name; the files of the families register theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from unbranch.errors import InputError, nearest
from unbranch.extras import library
from unbranch.models.accuracy import Accuracy, Reported
from unbranch.models.classifier import Classifier
from unbranch.models.features import FeatureExtractor
from unbranch.models.units import Block
from unbranch.provenance import Provenance, set_provenance

IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)
SOURCES = ("timm", "torchvision")  # other libraries whose networks have names here
Builder = TypeVar("Builder", bound=Callable[..., Classifier])


@dataclass(frozen=True)
class ModelEntry:
    """A network of the zoo.

    Args:
        name: ours.
        family: for listings.
        build: called with ``arguments`` and the caller's options.
        arguments: the network's row in the table of its family.
        paper: title, venue and address.
        input_size: of the images that it is published for, ``(channels, height, width)``.
        num_classes: that it is published with.
        aliases: other spellings, those of the published code among them.
        timm: its name in timm; None if timm doesn't have it.
        accuracy: that its authors report, by block; None is its own.
        renamed_options: new name of an option by its old one.
    """

    name: str
    family: str
    build: Callable[..., Classifier]
    arguments: Mapping[str, Any]
    paper: str
    input_size: tuple[int, int, int] = IMAGENET
    num_classes: int = 1000
    aliases: tuple[str, ...] = ()
    timm: str | None = None
    accuracy: Mapping[str | None, Accuracy] = field(default_factory=dict)
    renamed_options: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Return the names of the arguments of the family's builder; those in the table can be overridden."""
        return list(inspect.signature(self.build).parameters)

    def current_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with the old names among them replaced."""
        return {self.renamed_options.get(name, name): value for name, value in options.items()}

    def make(
        self,
        num_classes: int | None = None,
        in_channels: int = 3,
        block: Block = None,
        *,
        features_only: bool = False,
        out_indices: Sequence[int] | int | None = None,
        feature_norms: bool = False,
        **options: Any,
    ) -> nn.Module:
        """Build the network with random weights; see ``create_model`` for the arguments."""
        self._check(num_classes, in_channels, options)
        if not features_only and (out_indices is not None or feature_norms):
            raise InputError("`out_indices` and `feature_norms` need features_only=True")
        classes = self.num_classes if num_classes is None else num_classes
        model = self.build(**{**self.arguments, **options}, num_classes=classes, in_channels=in_channels, block=block)
        made = FeatureExtractor(model, out_indices, feature_norms) if features_only else model
        set_provenance(made, Provenance(source_class=self.name, input_size=(in_channels, *self.input_size[1:])))
        return made

    def _check(self, num_classes: int | None, in_channels: int, options: Mapping[str, Any]) -> None:
        integers = {"num_classes": (num_classes, 0), "in_channels": (in_channels, 1)}
        for name, (number, least) in integers.items():
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
                raise InputError(f"`{name}` must be an integer ≥ {least}, got {number!r}")
        for name in ("drop_rate", "drop_path_rate"):
            rate = options.get(name, 0.0)
            if not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise InputError(f"`{name}` must be in [0, 1), got {rate!r}")
        known = self.options()
        unknown = [name for name in options if name not in known]
        if unknown:
            every = [*known, "features_only", "out_indices", "feature_norms"]
            close = nearest(unknown[0], every)
            raise InputError(f"{self.name} has no option {unknown[0]!r}; it has {', '.join(every)}{close}")


MODELS: dict[str, ModelEntry] = {}
"""The networks of the zoo by name, in the order of ``list_models``; a file can name these and no other code."""
_SPELLINGS: dict[str, str] = {}


def register_models(
    variants: Mapping[str, Mapping[str, Any]],
    *,
    family: str,
    paper: str,
    input_size: tuple[int, int, int] = IMAGENET,
    input_sizes: Mapping[str, tuple[int, int, int]] | None = None,
    num_classes: int = 1000,
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    timm: Iterable[str] = (),
    accuracy: Reported | None = None,
    renamed_options: Mapping[str, str] | None = None,
) -> Callable[[Builder], Builder]:
    """Register networks that the decorated function builds, one for each row of a table.

    Args:
        variants: arguments of the function by name of the network.
        input_sizes: of networks that are published for another size than ``input_size``.
        timm: names of the networks that timm has under the same name.
        accuracy: by name and block.
        family, paper, input_size, num_classes, aliases, renamed_options: see ``ModelEntry``.

    Example:
        A network of your own in the zoo::

            @register_models({"my_net": {"width": 64}}, family="MyNet", paper="")
            def my_net(width, *, num_classes, in_channels, block=None): ...
    """
    in_timm = frozenset(timm)

    def register(build: Builder) -> Builder:
        for name, arguments in variants.items():
            entry = ModelEntry(
                name,
                family,
                build,
                arguments,
                paper,
                (input_sizes or {}).get(name, input_size),
                num_classes,
                (aliases or {}).get(name, ()),
                name if name in in_timm else None,
                (accuracy or {}).get(name, {}),
                renamed_options or {},
            )
            MODELS[name] = entry
            _SPELLINGS.update({_letters(spelling): name for spelling in (name, *entry.aliases)})
        return build

    return register


def _letters(name: str) -> str:
    """Return a spelling without case and signs, in which spellings differ."""
    return "".join(c for c in name.casefold() if c.isalnum())


def resolve(name: str) -> str | None:
    """Return our name of a network in any of its spellings, None if there is no such network.

    Example:
        >>> resolve("RepVGG-A0"), resolve("repghostnet_1_0x"), resolve("src56")
        ('repvgg_a0', 'repghostnet_100', 'resnet56_cifar')
    """
    return name if name in MODELS else _SPELLINGS.get(_letters(name))


def list_models(pattern: str | Iterable[str] = "*") -> list[str]:
    """Return the names of networks that match a pattern, or one of several, by family.

    Args:
        pattern: with ``*`` and ``?``, or any spelling of a name. ``timm:PATTERN`` and ``torchvision:PATTERN`` list the
            networks of those libraries.

    Example:
        >>> list_models("repvgg_b1*")
        ['repvgg_b1', 'repvgg_b1g2', 'repvgg_b1g4']
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    spelled = {resolve(p) for p in patterns}
    found = [name for name in MODELS if name in spelled or any(fnmatchcase(name, p.casefold()) for p in patterns)]
    for source in SOURCES:
        wanted = [p.removeprefix(f"{source}:") for p in patterns if p.startswith(f"{source}:")]
        if wanted:
            known = library(source).list_models() if source == "timm" else library(source).models.list_models()
            found += [f"{source}:{name}" for name in known if any(fnmatchcase(name, p) for p in wanted)]
    return found
