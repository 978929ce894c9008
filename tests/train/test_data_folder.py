"""Folders of images open as torchvision opens them, and every mishap is told with its remedy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from tests.train.pictures import encoded, grey, halves, write_folder
from unbranch.errors import CorruptImage, InputError
from unbranch.train.data import open_data


def both(root: Path, count: int = 5) -> Path:
    write_folder(root / "train", count=count)
    write_folder(root / "val", count=2)
    return root


def test_folder_has_two_halves_and_describes_itself(tmp_path: Path) -> None:
    data = open_data(both(tmp_path))
    assert str(data) == f"{tmp_path}: 10 + 4 images of 2 classes, 6×8, colour"
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    image, label = data.train[7]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (8, 6), (50, 2, 9), 1)
    assert data.notes == ()
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_order_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "b/x/1.png", "b/X/1.png", "B/1.PNG", "a b/1.png", "é/1.jpeg", "b.c/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        halves().save(tmp_path / name)
    theirs = ImageFolder(str(tmp_path))
    ours = open_data(tmp_path)
    files = {**{ours.train.where(i): int(y) for i, y in enumerate(ours.train.labels)}}
    files |= {ours.val.where(i): int(y) for i, y in enumerate(ours.val.labels)}
    assert ours.classes == tuple(theirs.classes)
    assert files == dict(theirs.samples)
    write_folder(tmp_path / "two" / "train", ("b", "a"), count=4)
    write_folder(tmp_path / "two" / "train" / "a", ("-", "3.png.d"), count=1)
    shutil.copytree(tmp_path / "two" / "train", tmp_path / "two" / "test")
    whole = open_data(tmp_path / "two")
    assert [whole.train.where(i) for i in range(10)] == [path for path, _ in ImageFolder(whole.name + "/train").samples]


@pytest.mark.parametrize("val", ["val", "VAL", "Valid", "validation", "test"])
def test_validation_folder_by_any_usual_name(tmp_path: Path, val: str) -> None:
    write_folder(tmp_path / "Train")
    write_folder(tmp_path / val, count=3)
    assert len(open_data(tmp_path).val) == 6


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    write_folder(both(tmp_path) / "test", count=1)
    assert len(open_data(tmp_path).val) == 4


def test_lone_folder_is_split_the_same_way_every_time_and_says_so(tmp_path: Path) -> None:
    data = open_data(write_folder(tmp_path, count=12))
    held = {data.val.where(i) for i in range(len(data.val))}
    kept = {data.train.where(i) for i in range(len(data.train))}
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    assert len(kept) == 20
    assert not kept & held
    assert "every fifth image of a class" in data.notes[0]
    again = open_data(str(tmp_path))
    assert {again.val.where(i) for i in range(4)} == held
    for n in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / "cat" / f"!{n}.png")
    grown = open_data(tmp_path)
    assert len(held & {grown.val.where(i) for i in range(5)}) >= 3
    assert grown.fingerprint != data.fingerprint == again.fingerprint


def test_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_data(write_folder(tmp_path, ("plane", "train"))).classes == ("plane", "train")


def test_train_alone_is_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    assert str(open_data(tmp_path)).startswith(f"{tmp_path}: 8 + 2 images")


def test_what_systems_leave_behind_is_passed_over(tmp_path: Path) -> None:
    both(tmp_path)
    for name in (".DS_Store", "train/.DS_Store", "train/cat/._0.png", "train/cat/Thumbs.db", "val/dog/desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    for name in ("__MACOSX/cat", ".ipynb_checkpoints", "train/.ipynb_checkpoints", "train/@eaDir"):
        (tmp_path / name).mkdir(parents=True)
    data = open_data(tmp_path)
    assert str(data).endswith("10 + 4 images of 2 classes, 6×8, colour")
    assert data.notes == ()


def test_other_files_are_counted(tmp_path: Path) -> None:
    both(tmp_path)
    (tmp_path / "train" / "cat" / "a.heic").write_bytes(b"1")
    (tmp_path / "train" / "loose.png").write_bytes(encoded(halves()))
    notes = open_data(tmp_path).notes
    assert notes[0].startswith("1 images directly in ")
    assert notes[1].endswith("as no images: 1 .heic")


def test_suffixes_in_capitals_count(tmp_path: Path) -> None:
    both(tmp_path)
    halves().save(tmp_path / "train" / "cat" / "A.JPEG")
    assert len(open_data(tmp_path).train) == 11


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    pool = write_folder(tmp_path / "pool", count=3)
    root = tmp_path / "root"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(pool / "cat")
    (root / "dog" / "1.png").symlink_to(pool / "dog" / "1.png")
    (root / "dog" / "2.png").symlink_to(pool / "dog" / "2.png")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "dog" / "self.png").symlink_to(root / "dog" / "self.png")
    (root / "dog" / "nowhere.png").symlink_to(root / "missing.png")
    data = open_data(root)
    assert len(data.train) + len(data.val) == 7
    places = [(half, i) for half in (data.train, data.val) for i in range(len(half))]
    broken = [half.where(i) for half, i in places if "self" in half.where(i) or "nowhere" in half.where(i)]
    assert len(broken) == 2
    for half, i in places:
        if half.where(i) in broken:
            with pytest.raises(CorruptImage):
                half[i]


def test_pipe_that_would_block_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(both(tmp_path) / "train" / "cat" / "p.png")
    assert len(open_data(tmp_path).train) == 10


def test_grey_images_of_one_size(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        grey(9).save(tmp_path / name)
    data = open_data(tmp_path)
    assert str(data).endswith("2 + 2 images of 2 classes, 4×5, grey")
    assert data.train[0][0].mode == "L"
    assert len(data.mean) == len(data.std) == 1
    halves(4, 5).save(tmp_path / "a" / "3.png")
    assert str(open_data(tmp_path)).endswith("4×5, colour")


def test_images_of_several_sizes_have_no_size(tmp_path: Path) -> None:
    halves(9, 9).save(both(tmp_path) / "val" / "dog" / "9.png")
    assert open_data(tmp_path).size is None
    assert "of several sizes" in str(open_data(tmp_path))


def test_corrupt_image_doesnt_stop_the_listing(tmp_path: Path) -> None:
    (both(tmp_path) / "train" / "cat" / "0.png").write_bytes(b"")
    data = open_data(tmp_path)
    assert data.size == (6, 8)
    with pytest.raises(CorruptImage, match=r"train/cat/0\.png: no image of a supported format"):
        data.train[0]


def test_name_that_isnt_text_is_shown(tmp_path: Path) -> None:
    raw = os.fsencode(both(tmp_path) / "train" / "cat") + b"/\xff.png"
    with open(raw, "wb") as file:
        file.write(encoded(halves(6, 8)))
    data = open_data(tmp_path)
    place = next(i for i in range(11) if "xff" in data.train.where(i))
    assert data.train[place][0].size == (8, 6)
    data.train.where(place).encode()


def test_a_folder_of_a_mac_has_the_classes_of_one_of_linux(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cafe\u0301", "b"))
    write_folder(tmp_path / "val", ("caf\u00e9", "b"))
    assert open_data(tmp_path).classes == ("b", "caf\u00e9")


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_data(both(tmp_path), on_listing=lambda *step: seen.append(step))
    assert seen[0] == (f"folders of {tmp_path / 'train'}", 0, 2)
    assert seen[2][1:] == (2, 2)


def empty_class(root: Path) -> None:
    (both(root) / "train" / "emu").mkdir()


def heic_class(root: Path) -> None:
    empty_class(root)
    (root / "train" / "emu" / "1.heic").write_bytes(b"1")


def strange_class(root: Path) -> None:
    write_folder(both(root) / "val", ("Cat",))


def lacking_class(root: Path) -> None:
    write_folder(both(root) / "train", ("emu",))


def one_class(root: Path) -> None:
    write_folder(root, ("cat",))


def images_alone(root: Path) -> None:
    for n in range(3):
        halves().save(root / f"{n}.png")


def one_too_high(root: Path) -> None:
    both(root / "pets")


def val_alone(root: Path) -> None:
    write_folder(root / "val")


def nothing(root: Path) -> None:
    (root / "readme.txt").write_text("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_class, r"the class .*emu has no images: add some, or remove the folder"),
        (heic_class, r"emu has no images; it holds 1 \.heic"),
        (strange_class, r"differ in their classes: .*train lacks 'Cat'; both must have the same folders"),
        (lacking_class, r"val lacks 'emu'"),
        (one_class, r"has only one class, 'cat': put each class into a folder"),
        (images_alone, r"has 3 images directly in it: put each class into a folder of its own, as in .*cat/1\.jpg"),
        (one_too_high, r"holds only pets: name .*pets$"),
        (val_alone, r"has val/ but no train/"),
        (nothing, r"holds 1 \.txt, but no folders of images: expected train/CLASS"),
    ],
)
def test_folder_that_cant_be_used_says_what_to_do(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        open_data(tmp_path)


def test_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scan = both(tmp_path) / "train" / "dog", os.scandir

    def scandir(path: Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"dog can't be read: Permission denied; chmod"):
        open_data(tmp_path)


def test_archive_and_file_in_place_of_a_folder(tmp_path: Path) -> None:
    for name, message in (
        ("a.zip", r"unpack it \(unzip .*a\.zip\) and name the folder"),
        ("a.tar", r"unpack it \(tar -xf .*or read it as shards of webdataset with wds:"),
        ("a.png", "is a file, not a folder"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=message):
            open_data(tmp_path / name)
