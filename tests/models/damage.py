"""Over a thousand files that are damaged, hostile or none of ours, made from a few good ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

File = tuple[str, bytes]  # its suffix and its content

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, "", "x", "a\nb", "\ud800", "../../x", "y" * 100_000, [], [[]], {}, {"kind": []},
    [1, "a"], {"": None}, [None] * 1000, 1e999,
]  # fmt: skip
NAMES = [
    "os:system", "builtins:eval", "builtins:exec", "subprocess:run", "torch:load", "unbranch.cli:main", "", ":", "\x00",
    "torch.hub:load", "timm:../../x", "timm:", "timm:hf-hub:a/b", "timm:hf_hub:a/b", "timm:local-dir:/tmp",
    "timm:resnet18.a.b", "timm:resnet18.no_such_tag", "timm:resnet18;import os", "timm:resnet18\n",
    "timm:ＲＥＳＮＥＴ18", "torchvision:../x", "torchvision:resnet18 ", "TIMM:resnet18",
    "torchvision:quantized_resnet18", "resnet8_cifar ", "resnet8_cifar:", "timm:vit_giant_patch14_224",
    "timm:convnext_xxlarge", "torchvision:vit_h_14", "torchvision:regnet_y_128gf",
]  # fmt: skip
ARGUMENTS: list[dict[str, Any]] = [
    {"width": 10**12}, {"width": -3}, {"width": 0}, {"width": 1.5}, {"width": "4"}, {"width": None}, {"width": [4]},
    {"width": 2**20}, {"num_classes": 2**21}, {"num_classes": -(2**21)}, {"width": 1e308}, {"width": True},
    {"block": "os:system"}, {"block": {}}, {"block": []}, {"stem_stride": 0}, {"stem_stride": 10**6}, {"self": 1},
    {"in_channels": 10**9}, {"": 1}, {"name": "x"}, {"builder": 1}, {"weights": "DEFAULT"}, {"pretrained": True},
]  # fmt: skip
FOREIGN_ARGUMENTS: list[dict[str, Any]] = [
    {"pretrained": True}, {"pretrained_cfg": "a"}, {"pretrained_cfg_overlay": {"file": "a.pth"}}, {"cache_dir": "/tmp"},
    {"checkpoint_path": "a.pth"}, {"weights": "IMAGENET1K_V1"}, {"weights_backbone": "DEFAULT"}, {"scriptable": True},
    {"exportable": True}, {"model_name": "resnet50"}, {"num_classes": 10**15}, {"num_classes": 4_000_000},
    {"layers": [10**6] * 3}, {"layers": [10**3] * 4}, {"depth": 10**5}, {"act_layer": "os.system"}, {"in_chans": 10**6},
    {"block_args": {"a": {"b": 1}}}, {"features_only": True}, {"norm_layer": "eval"}, {"drop_path_rate": 1e300},
]  # fmt: skip
STEPS: list[Any] = [
    [{}], [{"kind": None}], [{"kind": "os:system"}], [{"kind": "collapse"}], [{"kind": "collapse", "layers": 3}],
    [{"kind": "collapse", "layers": [[]]}], [{"kind": "collapse", "layers": [["stem"]]}], [{"kind": ["collapse"]}],
    [{"kind": "collapse", "layers": [["stem", None]] * 1000}], [{"kind": "collapse", "layers": [["", "\n" * 999]]}],
    [{"kind": "expand"}], [{"kind": "\x00"}], [{}] * 17, [[]], [{"kind": "k" * 10**5}],
    [{"kind": "collapse", "layers": {}}], [3],
]  # fmt: skip


def damaged_files(good: list[File], marker: str) -> Iterator[tuple[str, File]]:
    """Files with a word on each; ``marker`` is a path that appears where one of them is executed.

    Args:
        good: files of ours first, as many as end in .safetensors and have a manifest.
    """
    chance = random.Random(0)
    for number, (suffix, content) in enumerate(good):
        for what, damage, times in (
            ("truncated", _truncated, 25),
            ("flipped", _flipped, 50),
            ("flipped at the start", _flipped_early, 30),
            ("blank in part", _blanked, 12),
            ("shuffled", _shuffled, 8),
            ("longer", _longer, 5),
        ):
            for _ in range(times):
                yield f"{number} {what}", (suffix, damage(content, chance))
        for other in (".pth", ".pt", ".safetensors", ".bin"):
            if other != suffix:
                yield f"{number} as {other}", (other, content)
        if suffix == ".safetensors":
            yield from ((f"{number} {what}", (suffix, edited)) for what, edited in _headers(content, chance))
    for suffix in (".safetensors", ".pth", ".pt"):
        for content in (
            b"",
            b"\x00",
            bytes(8),
            bytes(1000),
            b"not a file of weights",
            b"PK\x03\x04",
            b"\x80\x02",
            b"{}",
        ):
            yield "nonsense", (suffix, content)
        yield "noise", (suffix, chance.randbytes(5000))
    yield from (("pickle", (suffix, content)) for content in _pickles(marker) for suffix in (".pth", ".pt"))


def with_steps(content: bytes, steps: list[Any]) -> bytes:
    """Return a saved file with these steps in its manifest."""
    header, data = _parts(content)
    manifest = json.loads(header["__metadata__"]["unbranch"])
    return _joined({**header, "__metadata__": {"unbranch": json.dumps({**manifest, "steps": steps})}}, data)


def manifests(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file of ours with other manifests."""
    header, data = _parts(content)
    manifest = json.loads(header["__metadata__"]["unbranch"])
    for text in _texts(manifest, chance):
        yield f"manifest {text[:60]!r}", _joined({**header, "__metadata__": {"unbranch": text}}, data)
    for metadata in ({"unbranch": 3}, {"unbranch": None}, [], 3, {"unbranch": {"a": "b"}}):
        yield f"metadata {metadata}", _joined({**header, "__metadata__": metadata}, data)


def _texts(manifest: dict[str, Any], chance: random.Random) -> Iterator[str]:
    def changed(**values: Any) -> str:
        return json.dumps({**manifest, **values})

    text = json.dumps(manifest)
    for field in manifest:
        yield json.dumps({key: value for key, value in manifest.items() if key != field})
        yield from (changed(**{field: value}) for value in VALUES)
    yield from (changed(network=name, arguments={}) for name in NAMES)
    yield from (changed(arguments={**manifest["arguments"], **arguments}) for arguments in ARGUMENTS)
    for name in ("timm:resnet18", "timm:vit_tiny_patch16_224", "torchvision:resnet18"):
        yield from (changed(network=name, arguments=arguments) for arguments in FOREIGN_ARGUMENTS)
    yield from (changed(steps=steps) for steps in STEPS)
    yield from (text[: chance.randrange(len(text))] for _ in range(30))
    for _ in range(60):
        place = chance.randrange(len(text))
        yield text[:place] + chance.choice('"{}[],:0x\\\u0000é') + text[place + 1 :]
    yield from ("", "null", "[]", "3", "NaN", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, " " * (9 << 20), "\ud800")


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _headers(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """A safetensors file with other headers."""
    header, data = _parts(content)
    for length in (0, 1, 7, 2**20, 2**27, 2**31, 2**40, 2**63, 2**64 - 1, len(content), len(content) - 8):
        yield f"header of {length}", struct.pack("<Q", length) + content[8:]
    keys = [key for key in header if key != "__metadata__"]
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda entry: entry.update(dtype=chance.choice(["F64", "I32", "BOOL", "F8_E5M2", "F4", "X", 3])),
        lambda entry: entry.update(shape=[n + chance.choice([-1, 1, 10**9, 2**62]) for n in entry["shape"]]),
        lambda entry: entry.update(shape=chance.choice([None, "x", [-1], [2**63], [[]], [1] * 500])),
        lambda entry: entry.update(shape=entry["shape"][::-1]),
        lambda entry: entry.update(data_offsets=[0, chance.choice([0, 1, 2**40, -1])]),
        lambda entry: entry.update(data_offsets=entry["data_offsets"][::-1]),
        lambda entry: entry.pop(chance.choice(["dtype", "shape", "data_offsets"])),
        lambda entry: entry.clear(),
    ]
    for change in changes:
        for _ in range(4):
            edited = json.loads(json.dumps(header))
            change(edited[chance.choice(keys)])
            yield "other header", _joined(edited, data)
    for _ in range(10):
        edited = dict(header)
        edited[chance.choice(["a", "\n", "../x", "stem\x00", "é" * 200, ""])] = edited.pop(chance.choice(keys))
        yield "other name", _joined(edited, data)
    for odd in ([], None, {}, {"__metadata__": {"unbranch": "{}"}}, "x"):
        yield "no header", _joined(odd, data)


def _truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    return _flip(content, chance, len(content))


def _flipped_early(content: bytes, chance: random.Random) -> bytes:
    return _flip(content, chance, min(len(content), 600))


def _flip(content: bytes, chance: random.Random, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8, 50])):
        changed[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _blanked(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    size = min(chance.choice([8, 100, 2000]), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def _shuffled(content: bytes, chance: random.Random) -> bytes:
    parts = [content[start : start + 512] for start in range(0, len(content), 512)]
    chance.shuffle(parts)
    return b"".join(parts)


def _longer(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(16) + content if chance.random() < 0.5 else content + chance.randbytes(4000)


class _Calls:
    """Unpickles by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _pickles(marker: str) -> Iterator[bytes]:
    """Pickles that would create the marker, bare and as PyTorch writes them, and odd ones."""
    attacks: list[Any] = [
        _Calls(os.system, f"touch {marker}"),
        _Calls(eval, f"open({marker!r}, 'w')"),
        _Calls(exec, f"open({marker!r}, 'w').close()"),
        _Calls(open, marker, "w"),
        _Calls(torch.save, 1, marker),
        _Calls(torch.load, marker),
        _Calls(getattr, os, "system"),
    ]
    for attack in attacks:
        hidden = {"state_dict": {"0.weight": attack}, "model": torch.zeros(1)}
        for value in (attack, hidden, [attack]):
            yield from (pickle.dumps(value, protocol) for protocol in (0, 2, 4) if _picklable(value, protocol))
            if _picklable(value, 2):
                yield from (_saved(value, zipped=zipped) for zipped in (True, False))
    plain: list[Any] = [
        nn.Linear(2, 2), {1: 2}, {"a": "b"}, {"model": {}}, {"a": torch.zeros(1).to_sparse()}, torch.Size([3]),
        {"0.weight": torch.zeros(1, device="meta")}, {"0.weight": torch.zeros(()).expand(10**6, 10**6)}, {}, [], None,
        _endless(),
    ]  # fmt: skip
    for value in plain:
        yield from (_saved(value, zipped=zipped) for zipped in (True, False))
    yield pickle.dumps(_Calls(bytearray, -1))
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(20 << 20))
        yield file.getvalue()


def _endless() -> dict[str, Any]:
    """A table of tensors that holds itself."""
    endless: dict[str, Any] = {"a": torch.zeros(1)}
    endless["model"] = endless
    return endless


def _picklable(value: Any, protocol: int) -> bool:
    try:
        return bool(pickle.dumps(value, protocol))
    except Exception:
        return False


def _saved(value: Any, *, zipped: bool) -> bytes:
    with io.BytesIO() as file:
        torch.save(value, file, _use_new_zipfile_serialization=zipped)
        return file.getvalue()
