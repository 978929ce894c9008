"""A recipe is read as it is meant, or one sentence says what is wrong with it and where."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unbranch.errors import InputError
from unbranch.train.recipe import FOLDER, Recipe, load_recipe, recipe_names, to_yaml
from unbranch.train.schema import dotted
from unbranch.train.settings import Ema, Model, Rule
from unbranch.train.yaml12 import parse, write


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_recipe_is_read_back_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    text = to_yaml(recipe)
    assert load_recipe(written(tmp_path, text)) == recipe
    assert yaml.safe_load(text)["training"]["precision"] == recipe.training.precision  # by other readers, too


def test_recipe_of_every_kind_of_value_is_read_back(tmp_path: Path) -> None:
    changes = [
        "model.expand={block: dbb, where: [a.*, b], options: {internal_channels: 8}}",
        "model.options={a: '1e-3', b: no}",
        "optimizer.betas=[0.9, 0.95]", "ema.decay=0.99", "data.image_size=[96, 128]", "model.pretrained=true",
        "optimizer.rules=[{match: x, lr_scale: 0.1}]", "block.init=single", "augment.color_jitter=[0.1, 0.2, 0.3]",
    ]  # fmt: skip
    recipe = load_recipe("digits", changes)
    assert recipe.model.options == {"a": "1e-3", "b": "no"}
    assert recipe.model.expand is not None
    assert recipe.model.expand.where == ("a.*", "b")
    assert recipe.data.image_size == (96, 128)
    assert recipe.model.pretrained is True
    assert recipe.optimizer.rules == (Rule(match=("x",), lr_scale=0.1),)
    assert recipe.ema == Ema(decay=0.99)
    assert load_recipe(written(tmp_path, to_yaml(recipe))) == recipe


def test_recipe_extends_one_of_the_package_or_a_file_beside_it(tmp_path: Path) -> None:
    written(tmp_path, "extends: repvgg\nschedule: {epochs: 200, warmup_epochs: 5}\n", "base.yaml")
    path = written(tmp_path, "extends: base.yaml\nschedule: {warmup_epochs: 1}\naugment: {auto: original}\n")
    recipe = load_recipe(path, ["schedule.min_lr=1e-5"])
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.schedule.min_lr) == (200, 1, 1e-5)
    assert recipe.augment.auto == "original"
    assert recipe.optimizer == load_recipe("repvgg").optimizer


def test_later_override_counts_and_null_takes_a_section_away() -> None:
    recipe = load_recipe("replknet", ["ema.decay=0.9", "optimizer.lr=1", "ema=null", "optimizer.lr=2"])
    assert recipe.ema is None
    assert recipe.optimizer.lr == 2
    assert load_recipe("repvgg", ["ema.every=8"]).ema == Ema(every=8)


def test_one_value_stands_for_a_list_of_one() -> None:
    recipe = load_recipe("resrep-base", ["augment.mean=0.4", "schedule.milestones=9", "optimizer.rules=[]"])
    assert recipe.augment.mean == (0.4,)
    assert recipe.schedule.milestones == (9,)
    assert recipe.optimizer.rules == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("5E3", 5e3), ("-.5", -0.5), ("3", 3), ("no", "no"), ("on", "on"), ("true", True), ("null", None),
     ("2020-01-01", "2020-01-01"), ("'1e-4'", "1e-4"), ("rand-m9-mstd0.5", "rand-m9-mstd0.5"), ("", None)],
)  # fmt: skip
def test_plain_values_are_what_they_look_like(text: str, value: Any) -> None:
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()))
def test_plain_values_are_written_and_read_back(values: dict[str, Any]) -> None:
    found = parse(write(values), "here")
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


OVERRIDES = {
    "optimizer.momentun=0.8": "`optimizer.momentun` is unknown; did you mean momentum?",
    "momentum=0.8": "`momentum` is unknown; did you mean optimizer.momentum or prune.momentum?",
    "schedule.momentum=0.8": "`schedule.momentum` is unknown; did you mean optimizer.momentum or prune.momentum?",
    "optimiser.lr=1": "`optimiser` is unknown; did you mean optimizer?",
    "xyz=1": "`xyz` is unknown; the keys are about, source, model",
    "optimizer.lr.base=1": "`optimizer.lr` must be a number, got {'base': 1}",
    "schedule.epochs=ten": "`schedule.epochs` must be an integer, got 'ten'",
    "schedule.epochs='10'": "`schedule.epochs` must be an integer, got '10'",
    "schedule.epochs=1.5": "`schedule.epochs` must be an integer, got 1.5",
    "schedule.epochs=2.0": "`schedule.epochs` must be an integer, got 2.0",
    "schedule.epochs=true": "`schedule.epochs` must be an integer, got True",
    "schedule.epochs=0": "`schedule.epochs` must be greater than or equal to 1, got 0",
    "schedule.epochs=": "`schedule.epochs` must be an integer, got None",
    "optimizer.lr=-0.1": "`optimizer.lr` must be greater than 0, got -0.1",
    "optimizer.lr=true": "`optimizer.lr` must be a number, got True",
    "optimizer.lr=.inf": "`optimizer.lr` must be a finite number, got inf",
    "optimizer.lr=.nan": "`optimizer.lr` must be a finite number, got nan",
    "augment.mean=[.nan]": "`augment.mean.0` must be a finite number, got nan",
    "optimizer.momentum=1": "`optimizer.momentum` must be less than 1, got 1",
    "optimizer.betas=[0.9]": "`optimizer.betas` must be a list of 2, got [0.9]",
    "optimizer.betas=[0.9, 1]": "`optimizer.betas.1` must be less than 1, got 1",
    "optimizer.layer_decay=0": "`optimizer.layer_decay` must be greater than 0, got 0",
    "optimizer.decay_1d=no": "`optimizer.decay_1d` must be true or false, got 'no'",
    "optimizer.decay_1d=1": "`optimizer.decay_1d` must be true or false, got 1",
    "optimizer.name=3": "`optimizer.name` must be text, got 3",
    "optimizer.rules=[{lr_scale: 2}]": "`optimizer.rules.0.match` is missing",
    "optimizer.rules=[{match: a}]": "the rule for a must have `decay_scale` or `lr_scale`",
    "optimizer.rules=[{match: a, scale: 1}]": "`optimizer.rules.0.scale` is unknown; did you mean lr_scale or decay",
    "optimizer.rules=3": "`optimizer.rules` must be keys and values, got 3",
    "optimizer={lr: 0, eps: x}": "`optimizer.lr` must be greater than 0, got 0; `optimizer.eps` must be a number",
    "augment.erasing=1.5": "`augment.erasing` must be less than or equal to 1, got 1.5",
    "augment.auto=raug51": "got 'raug51'; did you mean raug15",
    "augment.auto=m9": "`augment.auto` must be raug15 or a policy of timm, whose name starts with one of rand, augmix",
    "augment.color_jitter=0.4": "`augment.color_jitter` must have three numbers",
    "augment.color_jitter=[0, 0, 0, 0.6]": "the hue in `augment.color_jitter` must be at most 0.5, got 0.6",
    "augment.scale=[1, 0.1]": "`augment.scale` must go from the smaller to the larger number, got 1, 0.1",
    "augment.crop=rezise": "`augment.crop` must be 'resize', 'pad' or 'none', got 'rezise'; did you mean resize?",
    "augment.interpolation=[a]": "`augment.interpolation` must be 'nearest', 'bilinear', 'bicubic' or 'random', got",
    "evaluate.interpolation=random": "must be 'nearest', 'bilinear' or 'bicubic', got 'random'",
    "data.image_size=[1, 2, 3]": "`data.image_size` must be an integer or a list of 2, got [1, 2, 3]",
    "data.image_size=[1, a]": "`data.image_size.1` must be an integer, got 'a'",
    "data.batch_size=1": "`data.batch_size` must be greater than or equal to 2, got 1",
    "schedule.warmup_epochs=120": "`schedule.warmup_epochs` must be less than schedule.epochs=120, got 120",
    "schedule.name=step": "`schedule.milestones` must be given for schedule.name=step, and only then; got []",
    "schedule.milestones=[3]": "`schedule.milestones` must be given for schedule.name=step, and only then; got [3.0]",
    "schedule.min_lr=1": "`schedule.min_lr` must be at most optimizer.lr=0.1, got 1",
    "ema.from_epoch=500": "`ema.from_epoch` must be less than schedule.epochs=120, got 500",
    "training.accumulate=3": "`data.batch_size` must be a multiple of `training.accumulate`, got 256 and 3",
    "block.init=tripple": "`block.init` must be a number or 'single', 'zero' or 'identity', got 'tripple'",
    "model=repvgg_a0": "`model` must be keys and values, got 'repvgg_a0'",
    "model.options=3": "`model.options` must be keys and values, got 3",
    "model.options={1: 2}": "`model.options.1` must be text, got 1",
    "model.expand={where: a}": "`model.expand.block` is missing",
    "prune.minimum=1.5": "`prune.minimum` must be an integer or less than 1, got 1.5",
    "loss=null": "`loss` must be keys and values, got None",
    "extends=dbb": "`extends` is unknown",
    "seed": "a change must read KEY=VALUE, such as optimizer.lr=0.2; got 'seed'",
    "=3": "a change must read KEY=VALUE",
    "optimizer..lr=3": "a change must read KEY=VALUE",
    "seed=[1": "seed=[1 isn't YAML of plain values in line 1",
    "seed=!!python/name:os.system": "could not determine a constructor for the tag",
    "seed=9999999999999999999999999999e99999999": "`seed` must be an integer, got inf",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_invalid_override_names_the_setting_and_the_rule(override: str) -> None:
    with pytest.raises(InputError) as told:
        load_recipe("repvgg", [override])
    assert OVERRIDES[override] in str(told.value)
    assert len(str(told.value)) < 250


def test_pairs_are_needed_where_images_are_mixed() -> None:
    for change in ("augment.mixup=0.2", "augment.cutmix=1"):
        with pytest.raises(InputError, match=r"`data\.batch_size` must be even .*; got 255$"):
            load_recipe("repvgg", [change, "data.batch_size=255"])
    with pytest.raises(InputError, match="got 30 in 2 parts"):
        load_recipe("repvgg", ["augment.mixup=0.2", "data.batch_size=30", "training.accumulate=2"])


@pytest.mark.parametrize("milestones", ["[180, 120]", "[120, 120]", "[120, 240]"])
def test_milestones_rise_and_lie_before_the_end(milestones: str) -> None:
    with pytest.raises(InputError, match=r"must increase and be less than schedule\.epochs=240"):
        load_recipe("resrep-base", [f"schedule.milestones={milestones}"])


FILES = {
    "": "a recipe must hold keys and values, such as `extends: repvgg`; {} holds nothing",
    "- a\n- b\n": "{} holds a list",
    "three": "{} holds a str",
    "seed: 1": "`model.name` is missing",
    "model: {name: a": "{} isn't YAML of plain values in line 1",
    "seed: 1\nmodel: {name: a}\nseed: 2\n": "{} isn't YAML of plain values in line 1: 'seed' is given twice",
    "model: !!python/object/apply:os.system ['true']": "could not determine a constructor for the tag",
    "model: &a\n  name: x\n  options: {b: *a}\n": "in line 3: *a refers to another value, which has to be written",
    "model: {name: x, options: {a: !!set {b}}}": "`model.options.a` must be",
    "model: {name: x, options: {a: .nan}}": "`model.options` must be finite numbers, text, lists and mappings",
    "extends: 3": "`extends` must be the name of a recipe or a file",
    "extends: [dbb]": "`extends` must be the name of a recipe or a file",
    "extends: repvg": "'repvg' is neither a recipe (see `unbranch recipes`) nor a .yaml file; did you mean repvgg",
    "extends: other.yaml": "there is no file",
    "extends: mine.yaml": "a recipe can't extend itself: mine extends mine",
    "1: 2\nmodel: {name: a}": "`1` is unknown",
    "[1, 2]: 3": "isn't YAML of plain values",
}


@pytest.mark.parametrize("text", FILES)
def test_file_that_is_no_recipe_is_told(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as told:
        load_recipe(path)
    assert FILES[text].format(path) in str(told.value)


def test_circle_of_files_is_told(tmp_path: Path) -> None:
    for name, base in {"a": "b", "b": "c", "c": "a"}.items():
        written(tmp_path, f"extends: {base}.yaml", f"{name}.yaml")
    with pytest.raises(InputError, match="can't extend itself: a extends b extends c extends a"):
        load_recipe(tmp_path / "a.yaml")


def test_file_of_other_bytes_depths_and_kinds_is_told(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00model")
    (tmp_path / "folder.yaml").mkdir()
    written(tmp_path, "a: " + "[" * 5000, "deep.yaml")
    written(tmp_path, "seed: " + "9" * 5000, "long.yaml")
    for name in ("bytes", "folder", "deep", "long"):
        with pytest.raises(InputError):
            load_recipe(tmp_path / f"{name}.yaml")


def test_nobody_runs_code_from_a_recipe(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    text = f"model: {{name: x, options: {{a: !!python/object/apply:pathlib.Path.touch [{trap}]}}}}"
    with pytest.raises(InputError):
        load_recipe(written(tmp_path, text))
    assert not trap.exists()


def test_recipe_made_in_python_is_checked_across_its_sections() -> None:
    recipe = Recipe(model=Model(name="repvgg_a0"))
    with pytest.raises(InputError, match=r"`schedule\.warmup_epochs` must be less than"):
        dataclasses.replace(recipe.schedule, warmup_epochs=1000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3  # type: ignore[misc]


def test_every_key_is_documented_where_it_is_defined() -> None:
    for field in dataclasses.fields(Recipe):
        default = field.default_factory if field.default_factory is not dataclasses.MISSING else None
        if default is None:
            continue
        for key in dataclasses.fields(default):
            assert re.search(rf"\b{key.name}\b", default.__doc__ or ""), f"{field.name}.{key.name}"


def test_recipes_are_small_and_say_only_what_differs() -> None:
    for path in FOLDER.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert len(path.read_text().splitlines()) < 40
        assert set(values) <= {"extends", *(key for key in dotted(Recipe) if "." not in key)}


def test_recipe_is_json_too() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(load_recipe("repvggplus"))))["schedule"]["epochs"] == 300
