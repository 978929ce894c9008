"""Tar shards are indexed, and read at any place; one that is damaged is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from tests.train.pictures import encoded, grey, halves
from unbranch.errors import CorruptImage, InputError
from unbranch.train.data import open_data


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(count: int, start: int = 0, classes: int = 3) -> list[tuple[str, bytes]]:
    return [
        part
        for n in range(start, start + count)
        for part in ((f"{n:05}.png", encoded(grey(n))), (f"{n:05}.cls", f"{n % classes}\n".encode()))
    ]


def both(root: Path) -> Path:
    write_shard(root / "train-000.tar", samples(6))
    write_shard(root / "train-001.tar", samples(6, 6))
    write_shard(root / "val-000.tar", samples(4, 12))
    return root


@pytest.mark.parametrize(
    "pattern",
    ["train-{000..001}.tar,{0}/val-000.tar", "train-*.tar, {0}/val-*.tar", "*.tar", "{{train,val}}-*.tar", ""],
)
def test_shards_by_patterns_or_by_what_they_are_called(tmp_path: Path, pattern: str) -> None:
    both(tmp_path)
    source = f"wds:{tmp_path}/" + pattern.replace("{0}", str(tmp_path)).replace("{{", "{").replace("}}", "}")
    data = open_data(source)
    assert str(data) == f"{source}: 12 + 4 images of 3 classes, 4×5, grey"
    for index in (7, 0, 11):
        image, label = data.train[index]
        assert (image.getpixel((0, 0)), label) == (index, index % 3)
    assert data.val[1][0].getpixel((0, 0)) == 13
    assert data.train.where(7) == f"00007 in {tmp_path}/train-001.tar"
    assert open_data(source).fingerprint == data.fingerprint


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_shards_that_webdataset_wrote_are_read_as_it_reads_them(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for n in range(10):
            writer.write({"__key__": f"x/{n}", "JPG": encoded(halves(), "JPEG"), "cls": n % 2, "json": {"label": 5}})
    data = open_data(f"wds:{tmp_path / 'a.tar'}")
    theirs = [int(sample["cls"]) for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    assert (len(data.train), len(data.val), data.channels) == (8, 2, 3)
    assert sorted([*data.train.labels.tolist(), *data.val.labels.tolist()]) == sorted(theirs)
    assert "every fifth" in data.notes[0]


def test_labels_as_names_in_json_and_long_names_of_members(tmp_path: Path) -> None:
    long = "d" * 150 + "/" + "é" * 60
    kinds = ("owl", "cat", "owl", "cat")
    members = [
        part
        for n, kind in enumerate(kinds)
        for part in (
            (f"{long}{n}.seg.png", encoded(grey(n))),
            (f"{long}{n}.json", json.dumps({"class": kind}).encode()),
        )
    ]
    write_shard(tmp_path / "train.tar", members)
    write_shard(tmp_path / "val.tar", members[:4])
    data = open_data(f"wds:{tmp_path}")
    assert (data.classes, data.train.labels.tolist()) == (("cat", "owl"), [1, 0, 1, 0])
    assert data.train[2][0].getpixel((0, 0)) == 2


def test_names_of_classes_lie_beside_the_shards(tmp_path: Path) -> None:
    (both(tmp_path) / "classnames.txt").write_text("a\nb\nc\n")
    assert open_data(f"wds:{tmp_path}").classes == ("a", "b", "c")


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [("._00001.png", b"\0"), ("readme", b"x"), *samples(6)])
    assert len(open_data(f"wds:{tmp_path}").train) == 3


def test_broken_image_in_a_shard_is_corrupt(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.tar", [("9.png", b"no image"), ("9.cls", b"0"), *samples(6)])
    write_shard(tmp_path / "val.tar", samples(3))
    data = open_data(f"wds:{tmp_path}")
    with pytest.raises(CorruptImage, match=r"^9 in .*train\.tar: no image of a supported format"):
        data.train[0]
    (tmp_path / "train.tar").unlink()
    with pytest.raises(CorruptImage, match=r"^00000 in .*train\.tar: No such file"):
        data.train[1]


def test_progress_counts_shards(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_data(f"wds:{both(tmp_path)}", on_listing=lambda *step: seen.append(step))
    assert seen[:3] == [("shards", 0, 2), ("shards", 1, 2), ("shards", 2, 2)]


def cut(content: bytes) -> bytes:
    return content[: 512 * 3 + 30]


def overwritten(content: bytes) -> bytes:
    return content[: 512 * 4] + b"garbage!" * 64 + content[512 * 5 :]


@pytest.mark.parametrize("damage", [cut, overwritten, lambda c: c[:512] + c[512:700], lambda _: b"<html>" * 200])
def test_damaged_shard_is_told(tmp_path: Path, damage: Any) -> None:
    path = write_shard(tmp_path / "a.tar", samples(6))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.tar is (damaged|no tar file, packed or cut off): copy it again"):
        open_data(f"wds:{path}")


def packed(root: Path) -> str:
    with tarfile.open(root / "a.tar.gz", "w:gz"):
        pass
    return str(root / "a.tar.gz")


def only(*members: tuple[str, bytes]) -> Any:
    return lambda root: str(write_shard(root / "a.tar", list(members)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (packed, r"unpack it with gunzip"),
        (only(), r"holds no samples: a file of an image and one of its label"),
        (only(("1.png", b"x"), ("1.txt", b"a dog")), r"1 in .* has no label \(cls or json\), only png, txt"),
        (only(("1.cls", b"1")), r"1 in .* has no image, only cls"),
        (only(("1.png", b"x"), ("1.cls", b"")), r"1\.cls in .* holds no label"),
        (only(("1.png", b"x"), ("1.json", b'{"caption": 1}')), r"1\.json in .* holds no label"),
        (only(("1.png", b"x"), ("1.json", b"[" * 9999)), r"1\.json in .* holds no label"),
        (only(("1.png", b"x"), ("1.cls", b"-1")), r"labels from -1 to -1: classes must be numbered from 0"),
        (only(("1.png", b"x"), ("1.cls", b"a")), r"only one class, 'a'"),
        (only(("1.png", b"x"), ("1.cls", b"a"), ("1.PNG", b"x")), r"holds 1\.PNG twice"),
        (lambda root: str(root / "train-{000..146}.tar"), r"no shard .*train-000\.tar: name local files"),
        (lambda root: str(root / "*.tar"), r"no shard .*\*\.tar"),
        (lambda root: str(root / "a-{0..1.tar"), r"unbalanced braces"),
        (lambda root: "https://host/a.tar", r"is remote: download the shards first"),
        (lambda root: "a,b,c", r"has 3 patterns"),
        (lambda root: str(write_shard(root / "val.tar", samples(4))), r"only shards for validation"),
    ],
)
def test_shards_that_cant_be_used_say_why(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(f"wds:{make(tmp_path)}")


def test_class_in_validation_that_training_lacks_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.tar", samples(6))
    write_shard(tmp_path / "val.tar", samples(6, classes=4))
    with pytest.raises(InputError, match="have the class '3', which those for training lack"):
        open_data(f"wds:{tmp_path}")
