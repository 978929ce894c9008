"""Two processes see what one sees: the same losses for the same global batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.runs import lines, losses, run
from tests.train.test_sync import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]

ROOT = Path(__file__).parents[2]
CHANGES = (
    "augment.mixup=0", "model.drop_path=0", "model.block=dbb", "training.sync_norm=true", "schedule.epochs=1",
    "optimizer.lr=0.01",
)  # fmt: skip


PRUNING = (
    *CHANGES, "model.block=null", "ema=null", "optimizer.name=momentum", "prune.target=0.6", "prune.multiple=1",
    "prune.warmup_epochs=0.2", "prune.interval=2", "prune.granularity=8", "prune.masked=true",
)  # fmt: skip
UNEVEN = ("data.batch_size=95", "augment.mixup=0")

PROGRAM = f"""
import os, sys
from pathlib import Path
import torch, torch.distributed as dist, unbranch as ub
from tests.train.runs import run

torch.set_num_threads(1)
out, rank = Path(sys.argv[1]), os.environ["RANK"]
run(out / "losses", *{CHANGES!r})
run(out / "pruning", *{PRUNING!r})
try:
    run(out / "uneven", *{UNEVEN!r})
except ub.errors.InputError as error:
    (out / f"uneven {{rank}}").write_text(str(error))

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
torch.save([m.mask for m in compactors] + [torch.tensor(latency)], out / f"masks {{rank}}")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave under torchrun, with gloo: of all runs, since processes take long to start."""
    out = tmp_path_factory.mktemp("two")
    script = out / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, str(script), str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_two_processes_have_the_losses_of_one(two: Path, tmp_path: Path) -> None:
    run(tmp_path, *CHANGES)
    ours, theirs = losses(tmp_path), losses(two / "losses")
    assert len(ours) == len(theirs) == 14
    assert theirs[:2] == pytest.approx(ours[:2], rel=1e-6)  # forward, and backward
    assert theirs == pytest.approx(ours, rel=2e-3)  # the error of float32 grows with each step
    scores = [[line["validation"] for line in lines(out) if "validation" in line] for out in (tmp_path, two / "losses")]
    assert scores[0][0]["images"] == scores[1][0]["images"] == 359
    assert scores[1][0]["loss"] == pytest.approx(scores[0][0]["loss"], rel=5e-3)


def test_a_batch_that_two_processes_cant_share_is_told(two: Path) -> None:
    for rank in (0, 1):
        message = (two / f"uneven {rank}").read_text()
        assert "`data.batch_size` must be a multiple of 2 processes × 1 parts, got 95" in message


def test_masks_are_the_same_on_both_processes(two: Path) -> None:
    first, second = (torch.load(two / f"masks {rank}") for rank in (0, 1))
    assert any((mask == 0).any() for mask in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # and the latency that they go by


def test_two_processes_prune_as_one_does(two: Path, tmp_path: Path) -> None:
    run(tmp_path, *PRUNING)
    ours, theirs = (
        [line["pruning"] for line in lines(out) if "pruning" in line] for out in (tmp_path, two / "pruning")
    )
    assert [line["masked"] for line in theirs] == [line["masked"] for line in ours]
    assert theirs[-1]["masked"] > 0
