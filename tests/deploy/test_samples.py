"""Images come in every usual form, with their labels, in a reproducible order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unbranch.deploy.batches import repeatable
from unbranch.deploy.samples import load_samples
from unbranch.errors import InputError

IMAGES, LABELS = torch.randn(10, 3, 4, 5), torch.arange(10)


def classifier(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class Dictionaries(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": IMAGES[index], "label": int(LABELS[index])}


FORMS: dict[str, tuple[Callable[[], Any], bool]] = {
    "tensor": (lambda: IMAGES, False),
    "tensor and labels": (lambda: (IMAGES, LABELS), True),
    "list of batches": (lambda: [IMAGES[:3], IMAGES[3:]], False),
    "list of pairs": (lambda: [(IMAGES[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:])], True),
    "generator": (lambda: (IMAGES[i : i + 2] for i in range(0, 10, 2)), False),
    "loader": (lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4), True),
    "loader of images": (lambda: DataLoader(TensorDataset(IMAGES), batch_size=4), False),
    "data set": (lambda: TensorDataset(IMAGES, LABELS), True),
    "data set of dictionaries": (lambda: Dictionaries(), True),
    "loader of dictionaries": (lambda: DataLoader(Dictionaries(), batch_size=3), True),
    "dictionaries": (lambda: [{"images": IMAGES, "labels": LABELS}], True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [4, 10, 99])
def test_each_form_gives_images_one_by_one(form: str, limit: int) -> None:
    make, labelled = FORMS[form]
    samples = load_samples(make(), classifier(), limit=limit)
    assert len(samples) == min(limit, 10)
    assert all(len(call) == 1 and call[0].shape == (1, 3, 4, 5) for call in samples.calls)
    places = [next(i for i in range(10) if torch.equal(IMAGES[i], call[0][0])) for call in samples.calls]
    assert len(set(places)) == len(places)
    assert (samples.labels is not None) == labelled
    if samples.labels is not None:
        assert samples.labels.tolist() == places
    assert str(min(limit, 10)) in samples.description


def test_several_inputs_stay_together() -> None:
    other = torch.arange(40.0).view(10, 4)
    samples = load_samples((IMAGES, other), classifier(), limit=3)
    for image, vector in samples.calls:
        place = int(vector[0, 0]) // 4
        assert torch.equal(image[0], IMAGES[place])
    assert [value.shape for value in samples.batch(2)] == [(2, 3, 4, 5), (2, 4)]


def test_choice_depends_on_the_seed_alone() -> None:
    first, again, other = (load_samples(IMAGES, classifier(), limit=4, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first.calls, again.calls, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first.calls, other.calls, strict=True))


def test_batches_cover_everything_once() -> None:
    samples = load_samples(IMAGES, classifier(), limit=10)
    batches = [batch[0] for batch in samples.batches(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), IMAGES)


WRONG: dict[str, Any] = {
    "no images": IMAGES[:0],
    "lengths differ": (IMAGES, torch.randn(9, 4)),
    "texts": ["a", "b"],
    "empty list": [],
    "unbatched": [torch.randn(5)],
    "dictionary without images": [{"x": IMAGES}],
    "number": 3,
    "text among tensors": [(IMAGES, "cat")],
}


@pytest.mark.parametrize("data", WRONG)
def test_unusable_images_are_one_error(data: str) -> None:
    with pytest.raises(InputError) as error:
        load_samples(WRONG[data], classifier(), limit=4)
    assert "\n" not in str(error.value)


# --- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images of different sizes, a broken one, and a text."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for number in range(6):
        path = tmp_path / ("cat" if number < 3 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image.new("RGB", (30 + number, 20), (40 * number, 0, 0)).save(path)
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8no")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    return tmp_path


class Sized(nn.Sequential):
    """Says which images it takes, as timm's networks do."""

    def __init__(self, classes: int) -> None:
        super().__init__(*classifier(classes))
        self.pretrained_cfg = {
            "input_size": (3, 16, 24), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_pct": 1.0,
            "interpolation": "bicubic",
        }  # fmt: skip


def test_folder_of_classes_is_read_as_the_network_was_evaluated(folder: Path) -> None:
    samples = load_samples(folder, Sized(2), limit=99)
    assert len(samples) == 6
    assert all(call[0].shape == (1, 3, 16, 24) for call in samples.calls)
    assert samples.labels is not None
    red = torch.stack([(call[0][0, 0, 8, 12] * 0.25 + 0.5) * 255 for call in samples.calls])  # undo the normalisation
    numbers = (red / 40).round().long()
    assert sorted(numbers.tolist()) == list(range(6))
    assert samples.labels.tolist() == (numbers >= 3).long().tolist()
    assert any("broken" in note for note in samples.notes)


@pytest.mark.parametrize(("classes", "names", "labelled"), [
    (2, ("cat", "dog"), True), (3, ("cat", "dog"), False), (10, ("3", "7"), True), (5, ("3", "7"), False),
    (1000, ("n01440764", "n02084071"), False), (1000, ("n01440764", "n01443537"), True),
])  # fmt: skip
def test_labels_are_known_only_where_folders_are_classes(
    folder: Path, classes: int, names: tuple[str, str], labelled: bool
) -> None:
    for old, new in zip(("cat", "dog"), names, strict=True):
        (folder / old).rename(folder / new)
    samples = load_samples(str(folder), Sized(classes), limit=99)
    assert (samples.labels is not None) == labelled
    if samples.labels is not None and names[0].isdigit():
        assert set(samples.labels.tolist()) == {3, 7}
    if not labelled:
        assert any("accuracy" in note for note in samples.notes)


def test_folder_without_classes_has_no_labels(folder: Path) -> None:
    samples = load_samples(folder / "dog", Sized(3), limit=2)
    assert len(samples) == 2
    assert samples.labels is None


def test_folder_without_readable_images_is_one_error(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(InputError):
        load_samples(folder, Sized(2), limit=4)
    for path in folder.rglob("*.*"):
        path.unlink()
    with pytest.raises(InputError):
        load_samples(folder, Sized(2), limit=4)


def test_named_data_gives_either_half() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("pydantic")
    network = classifier()
    network.pretrained_cfg = {"input_size": (1, 8, 8)}  # type: ignore[assignment]
    val, train = (load_samples("digits", network, limit=2000, train=train) for train in (False, True))
    assert (len(val), len(train)) == (359, 1438)
    assert val.calls[0][0].shape == (1, 1, 8, 8)
    assert val.labels is not None
    assert set(val.labels.tolist()) == set(range(10))


def test_random_numbers_are_said_to_be_so() -> None:
    samples = load_samples(None, Sized(2), limit=3)
    assert samples.calls[0][0].shape == (1, 3, 16, 24)
    assert "random" in samples.description


# --- forms that data sets have outside PyTorch


class Stream(torch.utils.data.IterableDataset[Any]):
    """Gives single images, with a length, which some have."""

    def __iter__(self) -> Any:
        return iter(zip(IMAGES, LABELS.tolist(), strict=True))

    def __len__(self) -> int:
        return 10


OTHER_FORMS: dict[str, tuple[Callable[[], Any], bool]] = {
    "array": (IMAGES.numpy, False),
    "arrays": (lambda: (IMAGES.numpy(), LABELS.numpy()), True),
    "labels in a list": (lambda: (IMAGES, LABELS.tolist()), True),
    "batches of arrays": (lambda: [(IMAGES.numpy(), LABELS.numpy())], True),
    "stream": (Stream, True),
    "with a gradient": (lambda: IMAGES.clone().requires_grad_(), False),
    "masks instead of labels": (lambda: [{"images": IMAGES, "labels": torch.zeros(10, 4, 5)}], False),
    "column of labels": (lambda: [{"images": IMAGES, "labels": LABELS[:, None]}], True),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_other_forms_give_images_one_by_one(form: str) -> None:
    make, labelled = OTHER_FORMS[form]
    samples = load_samples(make(), classifier(), limit=99)
    assert [call[0].shape for call in samples.calls] == [(1, 3, 4, 5)] * 10
    assert all(call[0].numpy().dtype == "float32" for call in samples.calls)
    assert (samples.labels is not None) == labelled
    if samples.labels is not None:
        assert samples.labels.tolist() == LABELS.tolist()


MISMATCHED: dict[str, Any] = {
    "fewer labels": (IMAGES, LABELS[:9]),
    "more labels": (IMAGES, torch.arange(11)),
    "fewer labels in a batch": [(IMAGES, LABELS[:9]), (IMAGES, torch.arange(11))],
    "labels of text": (IMAGES, list("abcdefghij")),
    "labels of numbers with fractions": (IMAGES, torch.rand(10)),
    "bfloat16": IMAGES.bfloat16(),
    "without values": IMAGES.to("meta"),
    "data set with texts": type("Texts", (torch.utils.data.Dataset,), {
        "__len__": lambda _: 2, "__getitem__": lambda _, i: (IMAGES[i], "cat"),
    })(),
    "data set with other images": type("Others", (torch.utils.data.Dataset,), {
        "__len__": lambda _: 2, "__getitem__": lambda _, i: (object(), i),
    })(),
}  # fmt: skip


@pytest.mark.parametrize("data", MISMATCHED)
def test_labels_and_images_that_do_not_fit_are_one_error(data: str) -> None:
    with pytest.raises(InputError) as error:
        load_samples(MISMATCHED[data], classifier(), limit=20)
    assert "\n" not in str(error.value)


def test_generator_is_read_once_and_no_further_than_needed() -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield IMAGES, LABELS

    data = repeatable(endless(), 25)
    assert len(read) == 3
    assert [len(load_samples(data, classifier(), limit=25)) for _ in range(2)] == [25, 25]
    assert repeatable(IMAGES, 3) is IMAGES


def test_linked_folders_are_read_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "bird").symlink_to(folder)  # a loop
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "dog"
    (folder / "dog").rename(elsewhere)
    (folder / "dog").symlink_to(elsewhere)
    samples = load_samples(folder, Sized(2), limit=99)
    assert len(samples) == 6
    assert samples.labels is not None
    assert samples.labels.sum() == 3
