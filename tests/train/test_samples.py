"""What is random is a function of seed, epoch and image: not of workers, processes, batches or what ran before."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler
from torchvision import transforms

from tests.train.pictures import write_folder
from unbranch.errors import CorruptImage, InputError
from unbranch.train.data import ImageSet, open_data
from unbranch.train.samples import Corrupt, EpochOrder, Samples, loader


class Numbered(ImageSet):
    """Image ``i`` has the brightness ``i``; those in ``broken`` can't be read."""

    def __init__(self, count: int = 40, broken: tuple[int, ...] = ()) -> None:
        self.labels, self.broken = torch.arange(count), broken

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise CorruptImage(self.where(index), "cut off")
        return Image.new("L", (3, 2), index)

    def where(self, index: int) -> str:
        return f"{index}.png"


def drawn(image: Image.Image) -> Tensor:
    """Numbers of all three generators, and of both kinds: whole ones and those drawn in pairs."""
    python = [random.random(), random.gauss(0, 1), random.randrange(9)]
    numpy = [np.random.rand(), np.random.randn(), np.random.randint(9)]
    return torch.cat([torch.tensor([*python, *numpy]).double(), torch.rand(2).double(), torch.randn(3).double()])


def brightness(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0)))


def test_sample_depends_on_seed_epoch_and_index_alone() -> None:
    samples = Samples(Numbered(), drawn, seed=3)
    first = samples[2, 5]["image"]
    samples.__getitems__([(2, 4), (0, 5), (7, 1)])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.randn(), torch.randn(1)  # half of a pair is left over
    assert torch.equal(samples[2, 5]["image"], first)
    assert torch.equal(samples.__getitems__([(2, 4), (2, 5)])[1]["image"], first)
    for other in (samples[2, 6], samples[1, 5], Samples(Numbered(), drawn, seed=4)[2, 5]):
        assert not (other["image"] == first)[[0, 1, 3, 4, 6, 7, 8, 9, 10]].any()


def test_epochs_and_indices_dont_mix() -> None:
    samples = Samples(Numbered(60), drawn, seed=0)
    images = {tuple(samples[epoch, index]["image"].tolist()) for epoch in range(60) for index in range(60)}
    assert len(images) == 3600


def fails(image: Image.Image) -> Tensor:
    drawn(image)
    raise ValueError("crop larger than the image")


@pytest.mark.parametrize("transform", [drawn, fails])
def test_generators_of_the_process_stay_as_they_were(transform: Callable[[Image.Image], Tensor]) -> None:
    samples = Samples(Numbered(), transform, seed=0)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    expected = drawn(Image.new("L", (1, 1)))
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    try:
        samples.__getitems__([(0, 1), (0, 2)])
    except InputError:
        assert transform is fails
    assert torch.equal(drawn(Image.new("L", (1, 1))), expected)


def test_without_randomness_nothing_is_seeded() -> None:
    samples = Samples(Numbered(), drawn, seed=0, random=False)
    assert not torch.equal(samples[0, 1]["image"], samples[0, 1]["image"])


def test_failing_transform_names_the_image_and_its_size() -> None:
    with pytest.raises(InputError, match=r"7\.png, 2×3, can't be transformed: ValueError: crop larger than the image"):
        Samples(Numbered(), fails, seed=0)[0, 7]


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image_stops_with_one_sentence(workers: int) -> None:
    samples = Samples(Numbered(broken=(7,)), brightness, seed=0)
    batches = loader(samples, EpochOrder(40, 8, 0, shuffle=False), 8, workers)
    with pytest.raises(InputError) as caught:
        list(batches)
    advice = "replace or remove it, or skip such images with data.on_corrupt=skip"
    assert str(caught.value) == f"7.png: cut off; {advice}"


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_image_is_replaced_counted_and_named(workers: int) -> None:
    data = Numbered(broken=(7, 8, 39))
    order = EpochOrder(40, 10, 0, shuffle=False)
    corrupt = Corrupt(data)
    found = []
    for batch in loader(Samples(data, brightness, 0, on_corrupt="skip"), order, 10, workers):
        assert len(batch["image"]) == 10
        assert torch.equal(batch["image"], batch["label"])
        corrupt.see(batch)
        found += batch["image"].tolist()
    assert found == [0, 1, 2, 3, 4, 5, 6, 9, 9, *range(9, 39), 0]
    corrupt.add([7])
    assert len(corrupt) == 3
    assert str(corrupt) == (
        "3 images couldn't be decoded and were replaced by others: 7.png: cut off; 8.png: cut off; 39.png: cut off"
    )


def test_many_corrupt_images_are_shortened_and_none_is_said() -> None:
    corrupt = Corrupt(Numbered(broken=tuple(range(30))))
    assert str(corrupt) == "all images could be decoded"
    corrupt.add(range(30))
    assert str(corrupt).endswith("9.png: cut off; and 20 more")


def test_data_that_is_gone_isnt_skipped_for_ever() -> None:
    data = Numbered(400, broken=tuple(range(400)))
    with pytest.raises(InputError, match=r"100 images in a row can't be decoded, up to 104\.png: is the data still"):
        Samples(data, brightness, 0, on_corrupt="skip")[0, 5]
    with pytest.raises(InputError, match="3 images in a row"):
        Samples(Numbered(3, broken=(0, 1, 2)), brightness, 0, on_corrupt="skip")[0, 1]


def test_unknown_policy_is_told() -> None:
    with pytest.raises(InputError, match="`on_corrupt` must be one of stop, skip, got 'ignore'"):
        Samples(Numbered(), brightness, 0, on_corrupt="ignore")


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    order = EpochOrder(40, 8, seed=1)
    order.at(2)
    first = list(order)
    assert {epoch for epoch, _ in first} == {2}
    assert sorted(index for _, index in first) == list(range(40))
    assert first == list(order)
    other = EpochOrder(40, 8, seed=2)
    other.at(2)
    order.at(3)
    assert [index for _, index in order] != [index for _, index in first] != [index for _, index in other]


def test_order_goes_on_from_a_step() -> None:
    order = EpochOrder(43, 8, seed=1)
    whole = list(order)
    assert len(whole) == len(order) == 40
    for step in range(6):
        order.at(0, step)
        assert list(order) == whole[step * 8 :]
        assert len(order) == 40 - step * 8


def test_validation_takes_every_image_in_its_order() -> None:
    assert list(EpochOrder(11, 4, 0, shuffle=False)) == [(0, n) for n in range(11)]


def test_fewer_images_than_a_batch_are_told() -> None:
    with pytest.raises(InputError, match=r"1,000 images are fewer than one batch of 4,096: make data\.batch_size"):
        EpochOrder(1000, 4096, 0)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_see_together_what_one_sees(processes: int, split: bool) -> None:
    order = EpochOrder(43, 8, seed=5)
    order.at(1, 2)
    one = list(BatchSampler(order, 8, drop_last=False))
    inner = BatchSampler(order, 8 if split else 8 // processes, drop_last=False)
    shards = [list(BatchSamplerShard(inner, processes, rank, split_batches=split)) for rank in range(processes)]
    assert {len(shard) for shard in shards} == {len(one)} == {3}
    assert [[key for shard in shards for key in shard[step]] for step in range(3)] == one


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without_workers_in_every_epoch(tmp_path: Path, workers: int) -> None:
    data = open_data(write_folder(tmp_path / "x", count=20))
    steps = [transforms.RandomCrop(8, 4, pad_if_needed=True), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    order = EpochOrder(len(data.train), 8, seed=0)
    samples = Samples(data.train, transforms.Compose(steps), seed=0)
    batches = loader(samples, order, 4, workers)
    assert batches.persistent_workers == (workers > 0)
    for epoch, step in ((0, 0), (1, 0), (1, 2)):
        order.at(epoch, step)
        expected = [[samples[key] for key in keys] for keys in BatchSampler(order, 4, drop_last=False)]
        for batch, one_by_one in zip(batches, expected, strict=True):
            assert torch.equal(batch["image"], torch.stack([sample["image"] for sample in one_by_one]))
            assert batch["label"].tolist() == [sample["label"] for sample in one_by_one]
            assert batch["index"].tolist() == [sample["index"] for sample in one_by_one]


def test_iterating_leaves_the_generators_of_the_process_alone() -> None:
    batches = loader(Samples(Numbered(), drawn, 0), EpochOrder(40, 8, 0), 8, 0)
    before: Any = random.getstate(), torch.get_rng_state()
    list(batches)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def interruptible(_: Image.Image) -> Tensor:
    return torch.tensor(signal.getsignal(signal.SIGINT) != signal.SIG_IGN)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """As in a terminal; a test that is started in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_is_left_to_the_main_process() -> None:
    for workers, expected in ((0, True), (1, False)):
        batches = loader(Samples(Numbered(), interruptible, 0), EpochOrder(40, 40, 0), 40, workers)
        assert next(iter(batches))["image"].unique().tolist() == [expected]
