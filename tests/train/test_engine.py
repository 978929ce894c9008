"""A run trains, collapses, proves; goes on after any break as if there had been none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import unbranch as ub
from tests.train.runs import assert_same_end, lines, losses, run
from unbranch.channels_last import SafeChannelsLast
from unbranch.errors import InputError, TrainingInterrupted, UnbranchError
from unbranch.train import load_recipe, open_data, train
from unbranch.train.progress import TrainingProgress
from unbranch.train.run_directory import CHECKPOINTS, INFO, RunDirectory

STEPS = 28
one_process = pytest.mark.xdist_group("a whole run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a break."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(out) is not None
    return out


@one_process
def test_a_run_leaves_recipe_metrics_checkpoint_and_both_networks(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "recipe.yaml", "metrics.jsonl", "checkpoints", "best.safetensors", "last.safetensors", "deploy.safetensors",
        "result.json",
    }  # fmt: skip
    assert [path.name for path in RunDirectory(whole).checkpoints()] == [f"{STEPS:08d}"]
    assert len(losses(whole)) == STEPS
    assert [line["epoch"] for line in lines(whole) if "validation" in line] == [1, 2]


@one_process
def test_the_result_is_what_the_files_hold(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    trained, plain = ub.load(whole / "last.safetensors"), ub.load(whole / "deploy.safetensors")
    assert result["same_class"] == result["images"] == 359
    assert result["before"]["top1"] == result["after"]["top1"]
    assert result["float64"] < 1e-12
    assert sum(p.numel() for p in trained.parameters()) == result["params"]["training"]
    assert sum(p.numel() for p in plain.parameters()) == result["params"]["deploy"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert ub.verify(trained, plain, torch.randn(2, 1, 8, 8)).ok


@pytest.mark.slow
def test_the_loss_falls(tmp_path: Path) -> None:
    run(tmp_path / "run", "augment.mixup=0", "schedule.epochs=4", "optimizer.lr=0.1", "ema=null")
    found = losses(tmp_path / "run")
    assert sum(found[-5:]) < 0.7 * sum(found[:5])


@pytest.mark.parametrize("at", [6, 14, 27], ids=["in an epoch", "at its end", "before the end"])
@one_process
def test_a_stopped_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path, at: int) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {at} of {STEPS}; continue with --resume"):
        run(out, on_progress=stop)
    torch.manual_seed(123)  # what happened in between doesn't matter
    run(out, resume=True)
    assert_same_end(whole, out)


@pytest.mark.slow
@one_process
def test_a_killed_run_loses_only_steps_since_its_checkpoint(whole: Path, tmp_path: Path) -> None:
    """kill -9 in the tenth step: on from the eighth."""
    out = tmp_path / "run"
    killer = (
        "import os, signal, torch; from pathlib import Path; from tests.train.runs import run\n"
        "torch.set_num_threads(1)\n"
        "def kill(progress):\n"
        "    if progress.step == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run(Path({str(out)!r}), on_progress=kill)"
    )
    done = subprocess.run([sys.executable, "-c", killer], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in RunDirectory(out).checkpoints()] == ["00000008"]
    said: list[str] = []
    run(out, resume=True, log=said.append)
    assert "resumed after step 8 of 28" in said
    assert_same_end(whole, out)


@one_process
def test_a_finished_run_resumed_only_collapses_again(whole: Path) -> None:
    before = lines(whole)
    assert run(whole, resume=True) is not None
    assert lines(whole) == before


@one_process
def test_a_half_written_checkpoint_is_swept_away(whole: Path) -> None:
    half = whole / CHECKPOINTS / ".abc"
    half.mkdir()
    run(whole, resume=True)
    assert not half.exists()


def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path: Path) -> None:
    changes = (
        "model.name=tests.train.runs:normless", "model.block=null", "model.drop_path=null",
        "augment.mixup=0", "schedule.epochs=1", "ema=null",
    )  # fmt: skip
    for parts in (1, 4):
        run(tmp_path / str(parts), *changes, f"training.accumulate={parts}")
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), rel=1e-4)


@one_process
def test_another_recipe_or_other_data_dont_continue_a_run(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is another recipe than this one"):
        run(whole, "optimizer.lr=0.3", resume=True)
    with pytest.raises(InputError, match="holds a run already: continue it with --resume"):
        run(whole)


@one_process
def test_a_changed_environment_is_logged(whole: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    said: list[str] = []
    try:
        run(whole, resume=True, log=said.append)
    finally:
        torch.set_num_threads(threads)
    assert any("the resumed run won't be bit-identical: threads 1 → 2" in line for line in said)


@one_process
def test_a_run_directory_of_version_0_1_is_resumed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    info = RunDirectory(out).checkpoints()[-1] / INFO
    values = json.loads(info.read_text())
    values["circumstances"] = values.pop("environment")
    info.write_text(json.dumps(values))
    recipe = out / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("about: ResNet-8", "about: a ResNet-8"))  # of another version
    messages: list[str] = []
    assert run(out, resume=True, log=messages.append) is not None
    assert messages == [f"resumed after step {STEPS} of {STEPS}"]


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, "schedule.epochs=1")
    weights = RunDirectory(out).checkpoints()[-1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"can't be read .*: remove it"):
        run(out, "schedule.epochs=1", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) after step \d+: try a smaller optimizer.lr"):
        run(tmp_path / "run", "optimizer.lr=1e12", "schedule.epochs=1", "schedule.warmup_epochs=0")


def test_a_batch_larger_than_the_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1,438 images are fewer than one batch of 2,000"):
        run(tmp_path / "run", "data.batch_size=2000")
    assert not (tmp_path / "run").exists()


def test_a_collapsed_network_that_differs_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: nn.Module, *rest: object) -> nn.Module:
        plain = ub.collapse(network, *rest)
        with torch.no_grad():
            next(plain.parameters()).mul_(1.001)
        return plain

    monkeypatch.setattr("unbranch.train.evaluate.collapse", wrong)
    with pytest.raises(UnbranchError, match="computes another function"):
        run(tmp_path / "run", "schedule.epochs=1")
    assert (tmp_path / "run" / "last.safetensors").exists()
    assert not (tmp_path / "run" / "deploy.safetensors").exists()


@pytest.mark.slow
def test_half_precision_layout_and_recomputed_activations_go_together(tmp_path: Path) -> None:
    changes = ("training.precision=bf16", "training.channels_last=true", "training.checkpointing=true")
    result = run(tmp_path / "run", *changes, "schedule.epochs=1", "model.drop_path=null")
    assert result is not None
    assert result.proof.same_class == 359
    assert ub.load(tmp_path / "run" / "deploy.safetensors").head.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("last", [True, False])
def test_steps_are_safe_in_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    entered: list[object] = []
    monkeypatch.setattr(SafeChannelsLast, "__enter__", lambda context: entered.append(context))
    monkeypatch.setattr(SafeChannelsLast, "__exit__", lambda *_: None)
    options = ("model.name=tests.train.runs:normless", "model.block=null", "model.drop_path=null")
    run(tmp_path / "run", *options, "schedule.epochs=1", f"training.channels_last={str(last).lower()}")
    assert len(entered) == (14 if last else 0)


def with_pictures(folder: Path) -> Path:
    """Forty images of two classes, of which a training and a validation image can't be read."""
    for half, count in (("train", 16), ("val", 4)):
        for name, level in (("dark", 40), ("light", 200)):
            place = folder / half / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (level, level, i)).save(place / f"{i:02d}.png")
    for broken in ("train/dark/03.png", "val/light/00.png"):
        (folder / broken).write_bytes(b"not a picture")
    return folder


PICTURES = (
    "model.name=resnet8_cifar", "model.options.width=4", "data.batch_size=8", "data.image_size=8",
    "schedule.epochs=1", "schedule.warmup_epochs=0",
)  # fmt: skip


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path) -> None:
    recipe = load_recipe("digits", [*PICTURES, "data.on_corrupt=skip"])
    result = train(recipe, open_data(with_pictures(tmp_path / "data")), tmp_path / "run")
    assert result is not None
    assert (result.corrupt, result.proof.images) == (1, 7)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["corrupt"] == 1


def test_an_unreadable_image_stops_the_run_by_its_name(tmp_path: Path) -> None:
    recipe = load_recipe("digits", [*PICTURES, "data.on_corrupt=stop"])
    with pytest.raises(InputError, match=r"dark/03\.png"):
        train(recipe, open_data(with_pictures(tmp_path / "data")), tmp_path / "run")


@pytest.mark.slow
def test_merged_branches_learn_what_separate_ones_learn(tmp_path: Path) -> None:
    changes = ("model.block=dbb", "augment.mixup=0", "schedule.epochs=1", "optimizer.lr=0.01")
    for way in ("null", "merged"):
        run(tmp_path / way, *changes, f"training.cheaper={way}")
    separate, merged = losses(tmp_path / "null"), losses(tmp_path / "merged")
    assert merged[:2] == pytest.approx(separate[:2], rel=1e-5)
    assert merged == pytest.approx(separate, rel=2e-3)


def test_branches_trained_online_collapse_like_others(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "model.block=repvgg", "block.options.online=true", "schedule.epochs=1")
    assert result is not None
    assert result.proof.same_class == 359
    assert result.report.after.layers["convolution"] == 9
