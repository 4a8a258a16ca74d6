"""`graftwork-models adapt`: its options, the list of places to cut, and a schema from the graph."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError
from protocol.input_schema import COLOURS, IMAGE, ONE_PICTURE, TIMESERIES, ImageSpec, InputSchema, WindowSpec

if TYPE_CHECKING:
    from models.adapt import AdaptedFile
    from models.onnx_file import OnnxFile


def add_options(command: argparse.ArgumentParser) -> None:
    """Add what only this command has."""
    command.add_argument("file", type=Path, metavar="ONNX", help="the backbone; float32, opset 11 to 23")
    command.add_argument(
        "--list", action="store_true", help="show the tensors to cut at, and do nothing else"
    )
    command.add_argument("--at", metavar="TENSOR", help="cut here: what is before stays as it is")
    command.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="NAME",
        help="tensor or node behind the cut to adapt; repeat for more (bottleneck: besides the cut; "
        "lora: only these, by default every linear and convolution)",
    )
    command.add_argument(
        "--keep-head", action="store_true", help="train the file's classifier instead of a new one"
    )
    command.add_argument(
        "--features", metavar="TENSOR", help="what the new head reads (default: what the old did)"
    )
    command.add_argument("--logits", metavar="TENSOR", help="the output to use, where the file has several")
    command.add_argument("--seed", type=int, default=0, help="of adapters and head (default: 0)")
    command.add_argument(
        "--schema", type=Path, metavar="TOML", help="fleet.toml or schema.toml; without it, from the graph:"
    )
    command.add_argument("--classes", metavar="A,B,...", help="names of the classes")
    command.add_argument("--channels", metavar="X,Y,...", help="names of the channels (default: c0,c1,...)")
    command.add_argument("--rate", type=float, metavar="HZ", help="rows per second; needed for time series")
    command.add_argument(
        "--window", type=int, metavar="ROWS", help="window length, where the graph leaves it open"
    )


def listed(options: argparse.Namespace) -> str:
    """Describe the tensors that the file can be cut at, one a line.

    Raises:
        ModelError: the file cannot be read.
    """
    from models import onnx_file  # noqa: PLC0415 - torch takes seconds to import
    from models.onnx_graph import classifier, connect, cut_points  # noqa: PLC0415

    file = onnx_file.read(options.file)
    graph = connect(file, options.logits)
    last = classifier(graph)
    points = cut_points(graph)
    lines = [
        f"{options.file}: opset {onnx_file.opset_of(file.original)}",
        f"{'weights before':>14}  {'behind':>12}  {'written by':<20}  {'shape':<20}  tensor",
    ]
    for point in points[:-1]:
        shape = f"[{', '.join('?' if size is None else str(size) for size in point.shape)}]"
        note = "  (the classifier reads it)" if last is not None and point.name == last.features else ""
        counts = f"{point.before:>14,}  {point.behind:>12,}"
        lines.append(f"{counts}  {point.operator:<20}  {shape:<20}  {point.name}{note}")
    beside = len(graph.dependent) - len(points)
    lines.append(f"{beside} more tensors have a branch beside them on the way to the logits {graph.output!r}")
    return "\n".join(lines)


def prepare(options: argparse.Namespace) -> "tuple[AdaptedFile, InputSchema, WindowSpec]":
    """Read and adapt the file.

    Raises:
        ModelError: an option is missing, or the file cannot be adapted.
    """
    from models import onnx_file  # noqa: PLC0415
    from models.adapt import Placement, adapt  # noqa: PLC0415
    from models.user_modules import read_schema  # noqa: PLC0415

    if options.at is None:
        raise ModelError(
            "--at: no tensor to cut at", f"graftwork-models adapt {options.file} --list shows them"
        )
    if options.output is None:
        raise ModelError("--output: expected a file for the package")
    if (options.schema is None) == (options.classes is None):
        raise ModelError("expected either --schema, or --classes and what the graph does not say")
    file = onnx_file.read(options.file)
    schema, window = read_schema(options.schema) if options.schema else schema_of(file, options)
    placement = Placement(
        options.at,
        options.adapter,
        tuple(options.layer),
        16 if options.rank is None else options.rank,
        options.freeze_a,
        options.keep_head,
        options.features,
        options.logits,
    )
    adapted = adapt(file, placement, schema, window, batch=options.batch, seed=options.seed)
    return adapted, schema, window


def schema_of(file: "OnnxFile", options: argparse.Namespace) -> tuple[InputSchema, WindowSpec]:
    """Describe the sensor data by the graph's input and the options.

    Raises:
        ModelError: the graph leaves open what the options do not say.
    """
    classes = tuple(options.classes.split(","))
    shape = file.input_shape[1:]
    names = tuple(options.channels.split(",")) if options.channels else None
    try:
        if len(shape) == 3 and None not in shape:
            return _pictures(tuple(size or 0 for size in shape), classes, names, options.rate or 1.0)
        if len(shape) > 2 or shape[0] is None:
            raise ModelError(
                f"the graph's input is {['any' if size is None else size for size in shape]} per window",
                "describe the data with --schema",
            )
        if options.rate is None:
            raise ModelError("--rate: expected the rows per second of the time series")
        # One value per channel is a window of one row.
        length = (shape[1] if len(shape) == 2 else 1) or options.window
        if length is None:
            raise ModelError("--window: expected the window length, which the graph leaves open")
        names = names or tuple(f"c{i}" for i in range(shape[0]))
        schema = InputSchema(TIMESERIES, names, options.rate, classes)
        return schema, WindowSpec(length, length)
    except ValueError as error:
        raise ModelError(f"the schema from the graph: {error}", "describe the data with --schema") from error


def _pictures(
    shape: tuple[int, ...], classes: tuple[str, ...], names: tuple[str, ...] | None, rate: float
) -> tuple[InputSchema, WindowSpec]:
    # Three sizes are a picture; its channels stand first, or last as TensorFlow has them.
    counts = [len(colours) for colours in COLOURS]
    channels, height, width = shape if shape[0] in counts else (shape[2], shape[0], shape[1])
    names = names or next((colours for colours in COLOURS if len(colours) == channels), None)
    if names is None:
        raise ModelError(
            f"the graph's input is {list(shape)}, which has neither 1 nor 3 channels",
            "describe the data with --schema",
        )
    return InputSchema(IMAGE, names, rate, classes, ImageSpec(height, width)), ONE_PICTURE
