"""``unbranch demo``: train, collapse, verify, time and export a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unbranch.cli.app import app
from unbranch.cli.arguments import AsJson, report_errors
from unbranch.cli.output import print_result
from unbranch.display import training_bar


@app.command(
    "demo",
    epilog="""Examples:\n
  unbranch demo\n
  unbranch demo --block repvgg --epochs 5\n
  unbranch demo --data fashion-mnist --data-dir data""",
)
@report_errors
def demo_command(
    block: Annotated[str, typer.Option(help="acb, dbb or repvgg.")] = "dbb",
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; about a minute of training by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
    output: Annotated[
        Path,
        typer.Option("--output", "--out", "-o", help="Directory for the plain network, its ONNX file and the results."),
    ] = Path("demo-out"),
    data_dir: Annotated[Path | None, typer.Option(help="Directory with the files of fashion-mnist.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a small network with branches on real images, collapse it, verify that both forms agree, time both."""
    from unbranch.demo import DemoSettings, run_demo

    settings = DemoSettings(block, data, epochs, seed, output, data_dir)
    with training_bar() as (on_progress, _):
        result = run_demo(settings, on_progress=on_progress)
    print_result(result, as_json)
