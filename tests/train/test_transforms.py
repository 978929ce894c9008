"""Images come out at the right size and scale, augmented by no more than the recipe asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from tests.train.stand_in import CIFAR, DIGITS, IMAGENET, StandIn, noise, seed
from unbranch.errors import InputError
from unbranch.train.recipe import load_recipe, recipe_names
from unbranch.train.transforms import Lighting, eval_transform, image_size, mixing, train_transform


def normalised(image: Image.Image, data: StandIn) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).float().div(255)
    pixels = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    return (pixels - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(data.std).view(-1, 1, 1)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in ("digits", "fashion-mnist", "resrep")])
def test_published_transforms_give_images_of_the_published_size(name: str) -> None:
    recipe = load_recipe(name)
    data = CIFAR if recipe.data.image_size == 32 else IMAGENET
    side = recipe.data.image_size or 224
    image = noise(*(data.size or (300, 260)))
    seed(0)
    x = train_transform(recipe, data)(image)
    assert (x.shape, x.dtype) == ((3, side, side), torch.float32)
    side = recipe.evaluate.size or side
    assert eval_transform(recipe, data)(image).shape == (3, side, side)


@pytest.mark.parametrize("name", recipe_names())
def test_augmentation_is_a_function_of_the_seeds(name: str) -> None:
    recipe = load_recipe(name)
    data = DIGITS if name in ("digits", "fashion-mnist") else CIFAR if recipe.data.image_size == 32 else IMAGENET
    transform, image = train_transform(recipe, data), noise(*(data.size or (300, 260)), data.channels)
    found = []
    for number in (1, 2, 1):
        seed(number)
        found.append(transform(image))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_images_of_cifar_are_judged_pixel_by_pixel() -> None:
    recipe, image = load_recipe("acnet-cifar", ["augment.mean=null", "augment.std=null"]), noise(32, 32)
    torch.testing.assert_close(eval_transform(recipe, CIFAR)(image), normalised(image, CIFAR))


def test_statistics_of_the_recipe_come_before_those_of_the_data() -> None:
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    assert eval_transform(load_recipe("acnet-cifar"), CIFAR)(image).unique().tolist() == [1]
    grey = StandIn(channels=1, size=(32, 32), mean=(0.2,), std=(0.1,))
    assert eval_transform(load_recipe("acnet-cifar"), grey)(image.convert("L")).unique().tolist() == [1]
    with pytest.raises(
        InputError, match=r"`augment\.mean` must have one number for each of 1 channels, or one for all"
    ):
        eval_transform(load_recipe("acnet-cifar", ["augment.mean=[0.1, 0.2, 0.3]"]), grey)


def edges() -> Image.Image:
    """A wide image: left third red, middle green, right third blue."""
    image = Image.new("RGB", (300, 100), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 100, 100))
    image.paste((0, 0, 255), (200, 0, 300, 100))
    return image


def shares(x: Tensor) -> list[float]:
    """Of red, green, blue."""
    return [round(float((x.argmax(0) == channel).float().mean()), 2) for channel in range(3)]


PLAIN = ["augment.mean=0", "augment.std=1", "data.image_size=64"]


def test_the_middle_is_judged_unless_the_image_is_squashed() -> None:
    middle = eval_transform(load_recipe("repvgg", PLAIN), IMAGENET)(edges())
    assert shares(middle) == [0, 1, 0]
    squashed = eval_transform(load_recipe("repvgg", [*PLAIN, "evaluate.squash=true"]), IMAGENET)(edges())
    assert shares(squashed) == pytest.approx([1 / 3] * 3, abs=0.03)
    wide = eval_transform(load_recipe("repvgg", [*PLAIN, "evaluate.size=[64, 192]"]), IMAGENET)(edges())
    assert wide.shape == (3, 64, 192)
    assert shares(wide) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_share_of_the_crop_is_that_of_the_shorter_side() -> None:
    image = Image.new("RGB", (256, 256))
    image.paste((255, 255, 255), (16, 16, 240, 240))
    whole = eval_transform(load_recipe("repvgg", ["augment.mean=0", "augment.std=1"]), IMAGENET)(image)
    middle = eval_transform(load_recipe("dbb", ["augment.mean=0", "augment.std=1"]), IMAGENET)(image)
    assert float(middle.min()) == 1
    assert float(whole.min()) == 0


def test_size_is_the_recipes_else_the_datas_else_the_networks() -> None:
    assert image_size(load_recipe("repmlpnet", ["model.name=repmlpnet_b256"]), IMAGENET) == (256, 256)
    assert image_size(load_recipe("repmlpnet"), CIFAR) == (32, 32)
    assert image_size(load_recipe("repmlpnet", ["data.image_size=[96, 128]"]), CIFAR) == (96, 128)
    assert image_size(load_recipe("digits", ["model.name=timm:resnet18"]), IMAGENET) == (224, 224)


def test_padded_crop_shifts_by_whole_pixels_over_a_border_of_the_edge() -> None:
    image, transform = noise(8, 8, 1), train_transform(load_recipe("digits"), DIGITS)
    padded = np.pad(np.array(image), 1, mode="edge")
    windows = [normalised(Image.fromarray(padded[y : y + 8, x : x + 8]), DIGITS) for y in range(3) for x in range(3)]
    seen = set()
    for number in range(100):
        seed(number)
        x = transform(image)
        matches = [i for i, window in enumerate(windows) if torch.allclose(x, window, atol=1e-6)]
        assert len(matches) == 1
        seen.update(matches)
    assert seen == set(range(9))


def test_images_are_mirrored_half_of_the_time_where_the_data_allow_it() -> None:
    changes = ["augment.crop=none", "augment.mean=0", "augment.std=1"]
    image = noise(32, 32)
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)

    def mirrored(data: StandIn, *more: str) -> int:
        transform = train_transform(load_recipe("acnet-cifar", [*changes, *more]), data)
        count = 0
        for number in range(100):
            seed(number)
            x = transform(image)
            same = torch.allclose(x, plain)
            assert same or torch.allclose(x, plain.flip(2))
            count += not same
        return count

    assert 30 < mirrored(CIFAR) < 70
    assert mirrored(StandIn(size=(32, 32), mirrored=False)) == 0
    assert mirrored(CIFAR, "augment.flip=false") == 0


def test_lighting_moves_all_pixels_along_the_principal_components() -> None:
    seed(0)
    x = torch.zeros(3, 2, 2)
    moves = torch.stack([Lighting(0.1)(x)[:, 0, 0] for _ in range(4000)])
    covariance = moves.T @ moves / len(moves)
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ torch.diag(0.1 * torch.tensor([0.2175, 0.0188, 0.0045])).square() @ vectors.T
    torch.testing.assert_close(covariance, expected, rtol=0.1, atol=1e-6)
    assert torch.equal(Lighting(0.1)(x)[:, 0, 0], Lighting(0.0)(x)[:, 0, 0]) is False
    with pytest.raises(InputError, match="needs images in colour, and these have 1 channel"):
        train_transform(load_recipe("dbb", ["augment.color_jitter=null"]), DIGITS)


def test_jitter_of_dbb_leaves_the_contrast_alone() -> None:
    steps = train_transform(load_recipe("dbb"), IMAGENET).transforms  # type: ignore[attr-defined]
    jitter = next(step for step in steps if isinstance(step, ColorJitter))
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
        (0.6, 1.4),
        None,
        (0.6, 1.4),
        (-0.4, 0.4),
    )


def test_erasing_comes_last_with_its_probability() -> None:
    changes = ["augment.erasing=0.5", "augment.erasing_mode=const", "augment.crop=none", "augment.flip=false"]
    recipe = load_recipe("acnet-cifar", [*changes, "augment.mean=-1", "augment.std=1"])
    transform = train_transform(recipe, CIFAR)
    erased = 0
    for number in range(60):
        seed(number)
        erased += bool((transform(noise(32, 32)) == 0).any())  # pixels are from 1 to 2
    assert 15 < erased < 45


# --- mixing


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert mixing(load_recipe("repvgg"), 10) is None


def test_mixed_labels_are_as_mixed_as_the_images_and_smoothed() -> None:
    mix = mixing(load_recipe("repvggplus"), 4)
    assert mix is not None
    seed(0)
    images = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)])
    mixed, targets = mix(images.clone(), torch.arange(4))
    share = float(1 - mixed[0, 0, 0, 0] / 3)
    assert 0 < share < 1
    expected = 0.9 * (share * torch.eye(4) + (1 - share) * torch.eye(4).flip(0)) + 0.1 / 4
    torch.testing.assert_close(targets, expected)


def test_cutmix_pastes_a_rectangle_and_counts_its_area() -> None:
    mix = mixing(load_recipe("repmlpnet", ["augment.mixup=0", "loss.smoothing=0"]), 2)
    assert mix is not None
    seed(3)
    images = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    mixed, targets = mix(images, torch.tensor([0, 1]))
    torch.testing.assert_close(targets[0, 1], mixed[0].mean())
    assert set(mixed.unique().tolist()) == {0, 1}


def test_odd_batch_is_told() -> None:
    mix = mixing(load_recipe("repvggplus"), 4)
    assert mix is not None
    with pytest.raises(InputError, match="need an even number of images on each process, got 3"):
        mix(torch.zeros(3, 3, 4, 4), torch.arange(3))
