"""Recipes: the settings of a training run as a typed value, from small YAML files that extend one another.

A recipe lists what differs from the defaults in ``unbranch.train.settings``, or from another recipe that it extends::

    extends: repvgg
    schedule: {epochs: 200, warmup_epochs: 5}
    augment: {auto: original, mixup: 0.2}

The recipes of the package are published training settings; ``source`` names the publication.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config

from unbranch.errors import InputError, nearest
from unbranch.render import plain
from unbranch.train.schema import validate
from unbranch.train.settings import (
    Augment,
    BlockSettings,
    DataSettings,
    Ema,
    Evaluate,
    Loss,
    Model,
    Optimizer,
    Prune,
    Schedule,
    Training,
)
from unbranch.train.settings.bounds import Text, Whole
from unbranch.train.yaml12 import parse, write

FOLDER = Path(__file__).parent / "recipes"
ENDINGS = (".yaml", ".yml")
OLD_KEYS = {"prune": {"pull": "masked_strength", "settle": "stop_when_met"}}
"""New name by old one, for each section: keys of version 0.1."""


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training setting.

    Args:
        about: what it is for, in one line.
        source: where it is published.
        seed: of everything random.
    """

    about: Text = ""
    source: Text = ""
    model: Model
    data: DataSettings = field(default_factory=DataSettings)
    augment: Augment = field(default_factory=Augment)
    evaluate: Evaluate = field(default_factory=Evaluate)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    ema: Ema | None = None
    block: BlockSettings = field(default_factory=BlockSettings)
    prune: Prune | None = None
    training: Training = field(default_factory=Training)
    seed: Whole = 0

    def __post_init__(self) -> None:
        batch, parts, epochs = self.data.batch_size, self.training.accumulate, self.schedule.epochs
        if batch % parts:
            raise InputError(f"`data.batch_size` must be a multiple of `training.accumulate`, got {batch} and {parts}")
        if self.augment.mixes and batch // parts % 2:
            raise InputError(
                "`data.batch_size` must be even with `augment.mixup` or `augment.cutmix`, which mix pairs of images; "
                f"got {batch}" + (f" in {parts} parts" if parts > 1 else "")
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise InputError(
                f"`schedule.min_lr` must be at most optimizer.lr={self.optimizer.lr:g}, got {self.schedule.min_lr:g}"
            )
        if self.ema is not None:
            _check_below("ema.from_epoch", self.ema.from_epoch, epochs)
        if self.prune is not None:
            _check_below("prune.warmup_epochs", self.prune.warmup_epochs, epochs)
            if self.prune.runtime is not None and self.prune.metric != "latency":
                raise InputError(f"`prune.runtime` needs prune.metric=latency, got {self.prune.metric}")
            if self.ema is not None:
                raise InputError("`ema` must be null with `prune`: averaged weights have no rows that are zero")


def _check_below(name: str, value: float, epochs: int) -> None:
    if value >= epochs:
        raise InputError(f"`{name}` must be less than schedule.epochs={epochs}, got {value:g}")


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe of the package: its name, where it is published, and what it is for, in one line."""

    name: str
    source: str
    about: str


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe of the package or a file, with some values changed.

    Args:
        name_or_path: name of a recipe of the package, or path of a YAML file.
        overrides: changes such as ``"optimizer.lr=0.2"``, ``"augment.auto=null"`` or
            ``"optimizer.betas=[0.9, 0.95]"``; the value is YAML.

    Raises:
        InputError: if there is no such recipe, or a setting is unknown or has an invalid value; the message has its
            dotted path.

    Example:
    >>> recipe = load_recipe("repvgg", ["model.name=repvgg_b1", "schedule.epochs=10"])
    >>> recipe.model.name, recipe.schedule.epochs, recipe.optimizer.weight_decay
    ('repvgg_b1', 10, 0.0001)
    """
    values = _resolved(str(name_or_path), Path(), ())
    for override in overrides:
        values = _merged(values, _overriding(override))
    return validate(Recipe, {"model": {}, **values})


def list_recipes() -> list[RecipeInfo]:
    """Return the recipes of the package, sorted by name."""
    found = ((name, load_recipe(name)) for name in recipe_names())
    return [RecipeInfo(name, recipe.source, recipe.about) for name, recipe in found]


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def to_yaml(recipe: Recipe) -> str:
    """Return all values of a recipe as YAML, which ``load_recipe`` reads back as the same recipe."""
    return write(plain(recipe))


def _resolved(name: str, folder: Path, extended: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values of a recipe, merged over those of the recipes that it extends."""
    path = _find(name, folder)
    if path in extended:
        chain = " extends ".join(p.stem for p in (*extended[extended.index(path) :], path))
        raise InputError(f"a recipe can't extend itself: {chain}")
    values = _read(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"`extends` must be the name of a recipe or a file, got {base!r} in {path}")
    return _merged(_resolved(base, path.parent, (*extended, path)), values)


def _find(name: str, folder: Path) -> Path:
    """Return the file of a recipe: one of the package, else a path relative to ``folder``."""
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    path = folder / name
    if path.suffix not in ENDINGS:
        raise InputError(
            f"{name!r} is neither a recipe (see `unbranch recipes`) nor a .yaml file{nearest(name, names)}"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path.resolve()


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    values = parse(text, str(path))
    if not isinstance(values, dict):
        what = "nothing" if values is None else f"a {type(values).__name__}"
        raise InputError(f"a recipe must hold keys and values, such as `extends: repvgg`; {path} holds {what}")
    return _with_new_keys(values)


def _overriding(text: str) -> dict[str, Any]:
    """Return ``{"optimizer": {"lr": 0.2}}`` for ``"optimizer.lr=0.2"``."""
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise InputError(f"a change must read KEY=VALUE, such as optimizer.lr=0.2; got {text!r}")
    values: Any = parse(value, text)
    for key in reversed(keys):
        values = {key: values}
    return _with_new_keys(values)


def _with_new_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe with old keys renamed, with a DeprecationWarning for each."""
    renamed = dict(values)
    for section, names in OLD_KEYS.items():
        inside = values.get(section)
        if isinstance(inside, dict):
            renamed[section] = {_new_key(section, key, names): value for key, value in inside.items()}
    return renamed


def _new_key(section: str, key: Any, names: dict[str, str]) -> Any:
    if key not in names:
        return key
    message = f"the setting `{section}.{key}` is deprecated, use `{section}.{names[key]}`"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return names[key]


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the base with the changes, merged section by section; lists are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
