"""Two processes see what one sees: the same losses for the same global batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import lines, losses, run
from tests.train.test_sync import free_port

ROOT = Path(__file__).parents[2]
CHANGES = (
    "augment.mixup=0", "model.drop_path=0", "model.block=dbb", "training.sync_norm=true", "schedule.epochs=1",
    "optimizer.lr=0.01",
)  # fmt: skip


def run_on_two(out: Path, *changes: str, resume: bool = False) -> subprocess.CompletedProcess[str]:
    """The run under torchrun, with gloo."""
    script = out.parent / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.train.runs import run\nimport torch\ntorch.set_num_threads(1)\n"
        f"run(Path({str(out)!r}), *{changes!r}, resume={resume})\n"
    )
    return on_two(script)


def on_two(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*command, str(script), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    run(tmp_path / "one", *CHANGES)
    done = run_on_two(tmp_path / "two", *CHANGES)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 14
    assert two[:2] == pytest.approx(one[:2], rel=1e-6)  # forward, and backward
    assert two == pytest.approx(one, rel=2e-3)  # the error of float32 grows with each step
    scores = [
        [line["validation"] for line in lines(tmp_path / name) if "validation" in line] for name in ("one", "two")
    ]
    assert scores[0][0]["images"] == scores[1][0]["images"] == 359
    assert scores[1][0]["loss"] == pytest.approx(scores[0][0]["loss"], rel=5e-3)


@pytest.mark.slow
def test_a_batch_that_two_processes_cant_share_is_told(tmp_path: Path) -> None:
    done = run_on_two(tmp_path / "run", "data.batch_size=95", "augment.mixup=0")
    assert done.returncode != 0
    assert "`data.batch_size` must be a multiple of 2 processes × 1 parts, got 95" in done.stderr


MASKS = """
import sys, torch, torch.distributed as dist, unbranch as ub
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
x = torch.randn(1, 3, 16, 16)
net = ub.prune.insert_compactors(ub.create_model("resnet8_cifar", num_classes=10), x)
resrep = ub.prune.ResRep(net, x, target=0.6, multiple=1, granularity=60)
compactors = [m for m in net.modules() if isinstance(m, ub.blocks.Compactor)]
torch.manual_seed(dist.get_rank())  # so that the processes would choose differently
with torch.no_grad():
    for m in compactors:
        m.conv.weight += 0.5 * torch.randn_like(m.conv.weight)
resrep.update_masks()
latency = ub.prune.ResRep(net, x, target=0.999, metric="latency", multiple=1).cost(resrep.widths())
torch.save([m.mask for m in compactors] + [torch.tensor(latency)], f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_masks_are_the_same_on_both_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MASKS)
    done = on_two(script, str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert any((mask == 0).any() for mask in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # and the latency that they go by


@pytest.mark.slow
def test_two_processes_prune_as_one_does(tmp_path: Path) -> None:
    changes = (
        *CHANGES, "model.block=null", "ema=null", "optimizer.name=momentum", "prune.target=0.6", "prune.multiple=1",
        "prune.warmup_epochs=0.2", "prune.interval=2", "prune.granularity=8", "prune.masked=true",
    )  # fmt: skip
    run(tmp_path / "one", *changes)
    done = run_on_two(tmp_path / "two", *changes)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([line["pruning"] for line in lines(tmp_path / n) if "pruning" in line] for n in ("one", "two"))
    assert [line["masked"] for line in two] == [line["masked"] for line in one]
    assert two[-1]["masked"] > 0
