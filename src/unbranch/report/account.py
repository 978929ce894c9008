"""The demo's account: what training with branches gave, and what serving without them costs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unbranch.collapse import Report
from unbranch.deploy import Latency, OnnxFile
from unbranch.report.console import count, show_files


@dataclass(frozen=True)
class Equality:
    """How far the logits of both forms are apart over all test images, relative to the largest.

    ``noise`` is float32 against float64 of the same, uncollapsed network.
    """

    images: int
    same_class: int
    float64: float
    float32: float
    noise: float


@dataclass(frozen=True)
class Account:
    """What the demo found; accuracies as fractions, times in seconds, a latency for each batch size."""

    block: str
    data: str
    seed: int
    train_images: int
    epochs: int
    train_seconds: float
    collapse_seconds: float
    accuracy_before: float
    accuracy_after: float
    equality: Equality
    report: Report
    latency: dict[int, Latency]
    onnx: OnnxFile
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the list of merges."""
        plain = asdict(self)
        plain["report"] = {"before": plain["report"]["before"], "after": plain["report"]["after"]}
        done: dict[str, Any] = json.loads(json.dumps(plain, default=str))
        return done


def show_account(account: Account) -> RenderableType:
    """A table of both forms, the proof that they are one function, and the files."""
    epochs = "1 epoch" if account.epochs == 1 else f"{account.epochs} epochs"
    return Group(
        Text(f"\nA small residual network of {account.block.upper()} blocks on {account.data}", style="bold"),
        Text(
            f"trained on {account.train_images:,} images, {epochs}, in {account.train_seconds:.0f} s; "
            f"collapsed in {account.collapse_seconds:.1f} s\n"
        ),
        _forms(account),
        Text(f"\n{_proof(account.equality)}\n{_onnx(account.onnx)}"),
        show_files(account.files),
    )


def _forms(account: Account) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "trained form", "collapsed form", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("test accuracy", f"{account.accuracy_before:.2%}", f"{account.accuracy_after:.2%}", "")
    before, after = account.report.before, account.report.after
    rows = (
        ("MACs per image", before.macs, after.macs),
        ("parameters", before.params, after.params),
        ("operations launched", before.launches, after.launches),
    )
    for name, first, second in rows:
        ratio = f"{first / second:.1f}×" if first and second else ""
        table.add_row(name, count(first), count(second), ratio)
    for size, latency in account.latency.items():
        name = f"latency, {size} image{'s' if size > 1 else ''}, {latency.threads} threads"
        table.add_row(
            name, f"{latency.first_ms:.2f} ms", f"{latency.second_ms:.2f} ms", Text(f"{latency.ratio:.1f}×", "bold")
        )
    return table


def _proof(equality: Equality) -> str:
    return (
        f"same class on {equality.same_class:,} of {equality.images:,} test images; worst logit difference, of the "
        f"largest logit: {equality.float64:.0e} in float64,\n{equality.float32:.0e} in float32, where float32 itself "
        f"is {equality.noise:.0e} away from float64"
    )


def _onnx(onnx: OnnxFile) -> str:
    agrees = "" if onnx.max_rel is None else f"; ONNX Runtime agrees to {onnx.max_rel:.0e}"
    return f"ONNX graph of {onnx.nodes} nodes{agrees}\n"
