"""Recipes: how a network is trained, as a typed value, from small YAML files that extend one another.

A recipe gives what differs from the defaults in ``unbranch.train.settings``, or from another recipe that it extends::

    extends: repvgg
    schedule: {epochs: 200, warmup_epochs: 5}
    augment: {auto: original, mixup: 0.2}

Those of the package are the published training settings; ``source`` says whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbranch.errors import InputError, nearest
from unbranch.train.documents import parse, write
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
from unbranch.train.settings.bounds import Whole
from unbranch.train.typed import build

FOLDER = Path(__file__).parent / "recipes"
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training setting; ``about`` says in a line what it is for, ``source`` where it is published."""

    about: str = ""
    source: str = ""
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
        batch, parts = self.data.batch_size, self.training.accumulate
        if batch % parts:
            raise InputError(f"data.batch_size is a multiple of training.accumulate; got {batch} and {parts}")
        if self.augment.mixes and batch // parts % 2:
            raise InputError(
                "augment.mixup and augment.cutmix mix pairs of images, which needs an even data.batch_size; "
                f"got {batch}" + (f" in {parts} parts" if parts > 1 else "")
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise InputError(
                f"schedule.min_lr is at most optimizer.lr, {self.optimizer.lr:g}; got {self.schedule.min_lr:g}"
            )
        if self.ema is not None and self.ema.from_epoch >= self.schedule.epochs:
            raise InputError(
                f"ema.from_epoch is less than schedule.epochs, {self.schedule.epochs}; got {self.ema.from_epoch:g}"
            )
        if self.prune is not None:
            self._check_pruning(self.prune)

    def _check_pruning(self, prune: Prune) -> None:
        if self.ema is not None:
            raise InputError("averaged weights have no rows that are zero: ema=null with prune")
        if prune.warmup_epochs >= self.schedule.epochs:
            raise InputError(
                f"prune.warmup_epochs is less than schedule.epochs, {self.schedule.epochs}; got {prune.warmup_epochs:g}"
            )


@dataclass(frozen=True)
class Listed:
    """A recipe of the package: its name, where it is published, and what it is for in a line."""

    name: str
    source: str
    about: str


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or a file, with values changed by ``overrides`` such as ``"optimizer.lr=0.2"``.

    The text behind the sign is YAML: ``augment.auto=null``, ``optimizer.betas=[0.9, 0.95]``.

    Raises:
        InputError: if there is no such recipe, or it says what no recipe can say; with the dotted path.

    >>> recipe = load_recipe("repvgg", ["model.name=repvgg_b1", "schedule.epochs=10"])
    >>> recipe.model.name, recipe.schedule.epochs, recipe.optimizer.weight_decay
    ('repvgg_b1', 10, 0.0001)
    """
    values = _resolved(str(name_or_path), Path(), ())
    for override in overrides:
        values = _merged(values, _overriding(override))
    return build(Recipe, values)


def list_recipes() -> list[Listed]:
    """The recipes of the package, by name."""
    found = ((name, load_recipe(name)) for name in recipe_names())
    return [Listed(name, recipe.source, recipe.about) for name, recipe in found]


def recipe_names() -> list[str]:
    """Names of the recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def to_yaml(recipe: Recipe) -> str:
    """All values of a recipe, from which ``load_recipe`` makes the same one."""
    return write(_plain(asdict(recipe)))


def _resolved(name: str, folder: Path, extended: tuple[Path, ...]) -> dict[str, Any]:
    """What a recipe and those that it extends say together."""
    path = _find(name, folder)
    if path in extended:
        chain = " extends ".join(p.stem for p in (*extended[extended.index(path) :], path))
        raise InputError(f"a recipe can't extend itself: {chain}")
    values = _read(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"extends is the name of a recipe or a file; {path} has {base!r}")
    return _merged(_resolved(base, path.parent, (*extended, path)), values)


def _find(name: str, folder: Path) -> Path:
    """The file of a recipe: one of the package, else a path, relative to the folder of the one that extends it."""
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    path = folder / name
    if path.suffix not in ENDINGS:
        raise InputError(
            f"{name!r} is neither a recipe, see `unbranch recipes`, nor a .yaml file{nearest(name, names)}"
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
        raise InputError(f"a recipe holds keys and their values, such as `extends: repvgg`; {path} holds {what}")
    return values


def _overriding(text: str) -> dict[str, Any]:
    """``"optimizer.lr=0.2"`` to ``{"optimizer": {"lr": 0.2}}``."""
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise InputError(f"a value is changed with KEY=VALUE, such as optimizer.lr=0.2; got {text!r}")
    values: Any = parse(value, text)
    for key in reversed(keys):
        values = {key: values}
    changed: dict[str, Any] = values
    return changed


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The changes on top of the base, section by section; lists are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(inside) for key, inside in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(inside) for inside in value]
    return value
