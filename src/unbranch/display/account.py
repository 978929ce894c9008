"""The demo's account: what training with branches gave, and what serving without them costs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unbranch.convert import Report
from unbranch.deploy import Latency, OnnxFile
from unbranch.display.console import count, show_files
from unbranch.train.evaluate import Proof


@dataclass(frozen=True)
class Account:
    """What the demo found; times in seconds, a latency for each batch size."""

    block: str
    data: str
    seed: int
    train_images: int
    epochs: int
    train_seconds: float
    collapse_seconds: float
    proof: Proof
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
        Text(f"\n{_proof(account.proof)}\n{_onnx(account.onnx)}"),
        show_files(account.files),
    )


def _forms(account: Account) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "trained form", "collapsed form", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("test accuracy", f"{account.proof.before.top1:.2f} %", f"{account.proof.after.top1:.2f} %", "")
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


def _proof(proof: Proof) -> str:
    return (
        f"same class on {proof.same_class:,} of {proof.images:,} test images; worst logit difference, of the "
        f"largest logit: {proof.float64:.0e} in float64,\n{proof.float32:.0e} in float32, where float32 itself "
        f"is {proof.noise:.0e} away from float64"
    )


def _onnx(onnx: OnnxFile) -> str:
    agrees = "" if onnx.max_rel is None else f"; ONNX Runtime agrees to {onnx.max_rel:.0e}"
    return f"ONNX graph of {onnx.nodes} nodes{agrees}\n"
