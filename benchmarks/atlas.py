"""Every kind of network of the large libraries, one process each: what is merged, what stays and why.

    python -m benchmarks.atlas                        # all that is installed, for hours; goes on where it stopped
    python -m benchmarks.atlas --only timm:mix        # the rows whose name contains this
    python -m benchmarks.atlas --list                 # the names
    python -m benchmarks.atlas --table                # docs/atlas.md from the rows that were measured

Rows are the smallest variant of every model file and family of timm and torchvision, ultralytics' configurations of the
smallest scale, transformers' vision models and a few for sound as their configurations make them,
segmentation-models-pytorch, open_clip's MobileCLIP image towers, and 1-D and 3-D networks of monai. A row is measured
with random weights and random statistics: layers and norms before, after, and by the library's own conversion;
multiply-accumulates; the largest error in float64 at two sizes, relative to the largest output; and the reason for each
norm that stays.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import unbranch as ub
from unbranch.convert.costs import layer_counts
from unbranch.graph.float64 import PerturbedRounding
from unbranch.models import randomise_statistics

RESULTS = Path(__file__).parent / "results" / "atlas.jsonl"
NAMES = RESULTS.with_name("atlas_names.json")  # finding the smallest variants takes minutes
TABLE = Path(__file__).parent.parent / "docs" / "atlas.md"
LIBRARIES = (
    "timm",
    "torchvision",
    "ultralytics",
    "transformers",
    "segmentation_models_pytorch",
    "open_clip",
    "monai",
)
SECONDS = 600  # for one row
EXACT = 1e-9  # larger errors are compared with what another rounding does to the network itself

Made = tuple[nn.Module, list[Any], Callable[[nn.Module], nn.Module] | None]
"""A network, inputs of two sizes as far as it takes them, and the library's own conversion if it has one."""


# --- names ------------------------------------------------------------------------------------------


def names() -> Iterator[str]:
    """All rows of the libraries that are installed, as ``library:name``."""
    known: dict[str, list[str]] = json.loads(NAMES.read_text()) if NAMES.exists() else {}
    for library in filter(_is_installed, LIBRARIES):
        version = f"{library} {_version_of(library)}"
        if version not in known:
            known[version] = globals()[f"_names_of_{library}"]()
            NAMES.parent.mkdir(exist_ok=True)
            NAMES.write_text(json.dumps(known, indent=1) + "\n")
        yield from (f"{library}:{name}" for name in known[version])


def _names_of_timm() -> list[str]:
    import timm

    families: dict[tuple[str, str], list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module, exclude_filters="test_*"):
            families.setdefault((module, _FAMILY.match(name).group()), []).append(name)  # type: ignore[union-attr]
    return [_smallest(found, timm.create_model) for found in families.values()]


def _names_of_torchvision() -> list[str]:
    from torchvision import models

    files: dict[str, list[str]] = {}
    for name in models.list_models():
        files.setdefault(models.get_model_builder(name).__module__, []).append(name)
    make = lambda name: models.get_model(name, weights=None)  # noqa: E731
    return [_smallest(found, make) for found in files.values()]


_FAMILY = re.compile(r"(?:tf_|ese_|legacy_)?[a-z]+")
_SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "tiny",
    "mini",
    "small",
    "_xxs",
    "_xs",
    "_s0",
    "_t0",
    "_m0",
    "_00",
    "_050",
    "_18",
)


def _smallest(found: list[str], make: Callable[[str], nn.Module]) -> str:
    """The name of the network with the fewest parameters, of those whose name says that they are small."""
    small = [name for name in found if any(word in name for word in _SMALL)]
    sizes = {}
    for name in (small or found)[:4]:
        with contextlib.suppress(Exception), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes[name] = sum(p.numel() for p in make(name).parameters())
    return min(sizes, key=sizes.__getitem__) if sizes else found[0]


def _names_of_ultralytics() -> list[str]:
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    found = (f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*.yaml"))
    return sorted(name for name in found if not _LARGER.search(name))


_LARGER = re.compile(r"yolov10[smblx]|rtdetr-x|resnet101|yolov9[sm]$|cls-resnet18")  # the last wants a download


def _names_of_transformers() -> list[str]:
    from transformers.models.auto import modeling_auto

    found = list(_AUDIO)
    for task, (_, mapping) in _TASKS.items():
        found += [f"{task}/{name}" for name in sorted(getattr(modeling_auto, mapping))]
    return found


_TASKS = {
    "classification": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "detection": ("AutoModelForObjectDetection", "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES"),
    "segmentation": ("AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES"),
    "depth": ("AutoModelForDepthEstimation", "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES"),
    "image": ("AutoModelForImageToImage", "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES"),
}
_AUDIO = ("audio/wav2vec2", "audio/wav2vec2-conformer", "audio/hubert", "audio/sew", "audio/encodec", "audio/dac")


def _names_of_open_clip() -> list[str]:
    import open_clip

    return [name for name in open_clip.list_models() if name.startswith("MobileCLIP")] + ["RN50", "convnext_base"]


def _names_of_monai() -> list[str]:
    volumes = ("resnet10", "DenseNet121", "UNet", "SegResNet", "VNet", "HighResNet", "DynUNet", "AttentionUnet")
    return [f"{name}-3d" for name in volumes] + ["resnet10-1d", "DenseNet121-1d", "UNet-1d", "SENet154-3d"]


def _names_of_segmentation_models_pytorch() -> list[str]:
    import segmentation_models_pytorch as smp

    decoders = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    return [f"{decoder}/{encoder}" for decoder in decoders for encoder in ("resnet18", "mobilenet_v2")]


# --- making -----------------------------------------------------------------------------------------


def made(row: str) -> Made:
    """The network of a row."""
    library, _, name = row.partition(":")
    result: Made = globals()[f"_{library}"](name)
    return result


def _images(channels: int, side: int) -> list[Tensor]:
    return [torch.randn(2, channels, side, side), torch.randn(1, channels, side + 32, side + 64)]


def _timm(name: str) -> Made:
    import timm

    network = timm.create_model(name)
    size = network.default_cfg.get("input_size", (3, 224, 224))
    return network, _images(size[0], min(size[1], 288)), timm.utils.reparameterize_model


def _torchvision(name: str) -> Made:
    from torchvision import models

    builder = models.get_model_builder(name).__module__
    options: dict[str, Any] = {"weights": None}
    if "detection" in builder or "segmentation" in builder:
        options["weights_backbone"] = None
    if "detection" in builder and not name.startswith("ssd"):
        options |= {"min_size": 160, "max_size": 256}  # instead of 800 and 1333, which takes ten minutes
        options |= {"rpn_post_nms_top_n_test": 50} if "rcnn" in name else {}
    network = models.get_model(name, **options)
    if "detection" in builder:
        return network, [[torch.rand(3, 120, 160)], [torch.rand(3, 160, 160), torch.rand(3, 90, 130)]], None
    if "video" in builder:
        return network, [torch.randn(1, 3, 16, 112, 112), torch.randn(2, 3, 16, 144, 112)], None
    if "optical_flow" in builder:
        return network, [(torch.rand(1, 3, 128, 160), torch.rand(1, 3, 128, 160))], None
    return network, _images(3, 224), None


def _ultralytics(name: str) -> Made:
    from ultralytics.nn import tasks

    file = f"{name.split('/')[1]}.yaml"
    kinds = {
        "-cls": "ClassificationModel",
        "-seg": "SegmentationModel",
        "-pose": "PoseModel",
        "-obb": "OBBModel",
        "-depth": "DepthModel",
        "-sem": "SemanticSegmentationModel",
    }
    kind = next((k for suffix, k in kinds.items() if suffix in file), "DetectionModel")
    if "yoloe" in file:
        kind = "YOLOESegModel" if "-seg" in file else "YOLOEModel"
    kind = "RTDETRDetectionModel" if "rtdetr" in file else "WorldModel" if "world" in file else kind
    network = getattr(tasks, kind)(file, verbose=False)
    images = [torch.randn(2, 3, 192, 192), torch.randn(1, 3, 256, 320)]
    return network, images, lambda net: net.fuse(verbose=False)


def _transformers(name: str) -> Made:
    import transformers

    task, _, kind = name.partition("/")
    config = transformers.AutoConfig.for_model(kind)
    if task == "audio":
        sound = [torch.randn(2, 16000), torch.randn(1, 24000)]
        network = transformers.AutoModel.from_config(config)
        return network, [s[:, None] for s in sound] if kind in ("encodec", "dac") else sound, None
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False
    config.architectures = config.architectures or []
    network = getattr(transformers, _TASKS[task][0]).from_config(config)
    side = getattr(config, "image_size", 224)
    side = max(side) if isinstance(side, list | tuple) else side
    return network, _images(getattr(config, "num_channels", 3), side if isinstance(side, int) else 224), None


def _open_clip(name: str) -> Made:
    import open_clip

    network = open_clip.create_model(name).visual
    side = getattr(network, "image_size", 224)
    return network, _images(3, side if isinstance(side, int) else side[0]), None


def _monai(name: str) -> Made:
    from monai.networks import nets

    name, _, axes = name.partition("-")
    n = int(axes[0])
    options: dict[str, Any] = {"spatial_dims": n, "in_channels": 1, "out_channels": 2}
    if name in ("UNet", "AttentionUnet"):
        options |= {"channels": (8, 16, 32), "strides": (2, 2), "norm": "batch"}
        options |= {"num_res_units": 2} if name == "UNet" else {}
        options.pop("norm") if name == "AttentionUnet" else None
    elif name == "SegResNet":
        options |= {"norm": "batch"}
    elif name == "DynUNet":
        kernels, strides = [3, 3, 3], [1, 2, 2]
        options |= {
            "kernel_size": kernels,
            "strides": strides,
            "upsample_kernel_size": strides[1:],
            "norm_name": "batch",
        }
    elif name.startswith("resnet"):
        options = {"spatial_dims": n, "n_input_channels": 1, "num_classes": 2}
    elif name == "SENet154":
        options = {"spatial_dims": n, "in_channels": 1, "num_classes": 2}
    network = getattr(nets, name)(**options)
    return network, [torch.randn(2, 1, *(32,) * n), torch.randn(1, 1, 48, *(32,) * (n - 1))], None


def _segmentation_models_pytorch(name: str) -> Made:
    import segmentation_models_pytorch as smp

    decoder, encoder = name.split("/")
    return smp.create_model(decoder, encoder, encoder_weights=None), _images(3, 128), None


# --- measuring --------------------------------------------------------------------------------------


def measured(row: str) -> dict[str, Any]:
    """Everything that the table says of a row."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    network, inputs, own = made(row)
    network.eval()
    randomise_statistics(network)
    calls = [_in_double(given if isinstance(given, tuple) else (given,)) for given in inputs]
    network.double()
    outputs = [_output(network, args) for args in calls]
    found: dict[str, Any] = {"row": row, "before": layers(network), "macs": [macs(network, calls[0])]}
    if own is not None:
        with contextlib.suppress(Exception):
            theirs = own(copy.deepcopy(network)).eval()
            found["own"] = layers(theirs)
            found["own_differs"] = not difference(_run(theirs, calls[0]), outputs[0]) < 1e-3
    start = time.perf_counter()
    plain = ub.collapse(network)
    found["seconds"] = round(time.perf_counter() - start, 1)
    report = ub.report(plain, "collapse")
    found |= {"after": layers(plain), "merges": len(report.merges), "reasons": reasons(report), "errors": []}
    found["macs"].append(macs(plain, calls[0]))
    for args, theirs in zip(calls, outputs, strict=True):
        found["errors"].append(None if theirs is None else difference(_run(plain, args), theirs))
        if theirs is not None and not found["errors"][-1] < EXACT:
            with PerturbedRounding(torch.float64) as run:
                shaken = run.values(_run(network, args))
            found.setdefault("rounding", []).append(difference(shaken, theirs))
    return found


def _in_double(args: Any) -> Any:
    return tree_map(lambda v: v.double() if isinstance(v, Tensor) else v, args)


def _run(network: nn.Module, args: tuple[Any, ...]) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(*args)


def _output(network: nn.Module, args: tuple[Any, ...]) -> Any:
    """What the network gives, None where it doesn't take this size."""
    with contextlib.suppress(Exception):
        return _run(network, args)


def macs(network: nn.Module, args: tuple[Any, ...]) -> float | None:
    """Multiply-accumulates of a call, in units of 10⁹."""
    with contextlib.suppress(Exception), FlopCounterMode(display=False) as counter:
        _run(network, args)
        return round(counter.get_total_flops() / 2e9, 3)
    return None


def layers(network: nn.Module) -> tuple[int, int]:
    """Convolution and linear layers together, and batch norms."""
    counts = layer_counts(network)
    return counts["convolution"] + counts["linear"], counts["batch norm"]


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of each tensor."""
    if len(tree_leaves(ours)) != len(tree_leaves(theirs)):
        return float("inf")
    pairs = zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
    floats = [(a, b) for a, b in pairs if isinstance(b, Tensor) and b.is_floating_point() and b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in floats), default=0.0)


def reasons(report: ub.Report) -> dict[str, int]:
    """Why something stays, most frequent first."""
    counts = Counter(refusal.reason for refusal in (*report.refusals, *report.norms))
    return dict(counts.most_common(3))


def measure(row: str) -> dict[str, Any]:
    """A row in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.atlas", "--row", row]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"row": row, "failed": f"longer than {SECONDS} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["killed"]
        return {"row": row, "failed": lines[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# --- table ------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """``docs/atlas.md``."""
    versions = ", ".join(f"{n} {_version_of(n)}" for n in ("torch", *LIBRARIES) if _is_installed(n))
    skipped = [n for n in LIBRARIES if not _is_installed(n)]
    missing = f"; not installed: {', '.join(skipped)}" if skipped else ""
    lines = [
        f"""# Atlas

Made by `python -m benchmarks.atlas` with {versions}{missing}.

Each row has convolution and linear layers / batch norms: before, after the library's own conversion, and after
Unbranch's. Then multiply-accumulates of one call; the largest error of the outputs in float64 at two sizes; seconds
of the conversion on one core of a busy machine, comparable only with each other; and what is skipped, with the
reason. ≠ means that the library's conversion changes the outputs, mostly by dropping some; – that the network doesn't
accept this size. Where an error is large, the change that rounding the layers by 1e-14 causes in the original network
is given beside it: a detector with random weights then selects other boxes, too.

{_summary(rows)}

| network | before | own | unbranch | 10⁹ MACs | errors | seconds | skipped |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['row']} | | | | | | | **failed**: {_cell(row['failed'])} |")
            continue
        counts = [" / ".join(map(str, row[k])) if k in row else "" for k in ("before", "own", "after")]
        counts[1] += " ≠" if row.get("own_differs") else ""
        errors = " ".join("–" if e is None else f"{e:.0e}" for e in row["errors"])
        errors += f" (rounding: {' '.join(f'{e:.0e}' for e in row['rounding'])})" if "rounding" in row else ""
        why = "; ".join(f"{n} × {_cell(reason)}" for reason, n in row["reasons"].items())
        macs = " → ".join("–" if n is None else f"{n:.2f}" for n in row.get("macs", ()))
        lines.append(f"| {row['row']} | {' | '.join(counts)} | {macs} | {errors} | {row['seconds']} | {why} |")
    return "\n".join(lines) + "\n"


def _summary(rows: list[dict[str, Any]]) -> str:
    """The whole table in a few sentences."""
    done = [row for row in rows if "failed" not in row]
    normed = [row for row in done if row["before"][1]]
    own = [row for row in done if "own" in row]
    errors = [e for row in done if "rounding" not in row for e in row["errors"] if e is not None]
    worse = [
        row
        for row in own
        if not row.get("own_differs") and any(a > o for a, o in zip(row["after"], row["own"], strict=True))
    ]
    kinds = {name: sum(row[name][1] for row in own) for name in ("own", "after")}
    return (
        f"{len(rows)} networks, of which {len(rows) - len(done)} couldn't be made or took too much time or memory. "
        f"Of {len(normed)} with batch norms {sum(not row['after'][1] for row in normed)} have none left; "
        f"{sum(row['before'][1] for row in done):,} norms become {sum(row['after'][1] for row in done):,}. "
        f"Where the library has a conversion of its own, that leaves {kinds['own']:,} norms, Unbranch "
        f"{kinds['after']:,}; more layers or norms than its own are left in {len(worse)} networks. "
        f"The largest error is {max(errors):.0e}."
    )


def _version_of(library: str) -> str:
    return importlib.metadata.version({"open_clip": "open_clip_torch"}.get(library, library))


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:140]


def _measured_before() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["row"]: row for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--table", action="store_true", help="write the table and measure nothing")
    parser.add_argument("--again", action="store_true", help="measure rows again that were measured before")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measured(options.row)))
        return
    known = _measured_before()
    chosen = [] if options.table else [name for name in names() if options.only in name]
    if options.list:
        print("\n".join(chosen))
        return
    RESULTS.parent.mkdir(exist_ok=True)
    for j, row in enumerate(chosen):
        if row in known and not options.again:
            continue
        known[row] = measure(row)
        found = known[row]
        with RESULTS.open("a") as file:
            file.write(json.dumps(found) + "\n")
        state = found.get("failed") or f"{found['before']} -> {found['after']}, {found['errors']}"
        print(f"{j + 1}/{len(chosen)} {row}: {state}", flush=True)
    TABLE.write_text(table(sorted(known.values(), key=lambda row: row["row"])))


if __name__ == "__main__":
    main()
