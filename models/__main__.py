"""graftwork-models: pre-train a backbone, export any module, and look at model packages.

Only arguments, files and the screen are handled here. Mistakes of the user end with one line and status 1.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from models import adapt_command, package_commands
from models.errors import AdapterError, ModelError
from protocol.errors import SignatureError
from protocol.input_schema import NORMALISATIONS
from protocol.signing import PrivateKey
from runtime import keys
from runtime.errors import SetupError

if TYPE_CHECKING:
    from torch import Tensor

    from models.adapters import AdaptedModule
    from models.calibration import Calibration
    from models.fleet_data import SourceWindows
    from protocol.input_schema import InputSchema, WindowSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except ModelError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        return 1
    except (SetupError, SignatureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graftwork-models", description="Make and check model packages.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "pretrain", help="train a backbone on a fleet's source devices and export it"
    )
    command.add_argument(
        "fleet", type=Path, metavar="FLEET_DIR", help="holds fleet.toml and the devices' data"
    )
    command.add_argument(
        "--backbone",
        choices=("auto", "conv1d", "time-frequency", "mlp", "conv2d", "transformer"),
        default="auto",
        help="auto: conv2d for pictures, mlp for windows below 32 rows, else conv1d (docs/backbones.md)",
    )
    command.add_argument(
        "--layer", action="append", metavar="NAME", help="adapt these layers and not the default ones"
    )
    command.add_argument(
        "--epochs", type=int, default=30, help="passes over the source windows (default: 30)"
    )
    command.add_argument("--seed", type=int, default=0, help="of weights, batches, adapters (default: 0)")
    command.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="default: 0.2")
    command.add_argument(
        "--normalisation",
        choices=("none", *NORMALISATIONS),
        help="by statistics of each device's own windows: device: to mean 0 and deviation 1; device-mean: to "
        "mean 0 (default: as fleet.toml says, else none)",
    )
    _add_adapter(command, None)
    _add_output(command)
    command.set_defaults(command=_pretrain)

    command = commands.add_parser("export", help="export a torch module of your own")
    command.add_argument(
        "--module", required=True, metavar="FILE:FUNCTION", help="builds it, e.g. my_model:build"
    )
    command.add_argument(
        "--schema", required=True, type=Path, metavar="TOML", help="fleet.toml or schema.toml"
    )
    command.add_argument(
        "--layer", action="append", default=[], metavar="NAME", help="layer to adapt; repeat for more"
    )
    command.add_argument("--head", metavar="NAME", help="layer that is trained as a whole")
    command.add_argument(
        "--fresh-head", action="store_true", help="replace the head for the schema's classes"
    )
    command.add_argument("--seed", type=int, default=0, help="of the adapters' initial values (default: 0)")
    _add_adapter(command, "bottleneck")
    _add_output(command)
    _add_calibration(command)
    command.set_defaults(command=_export)

    command = commands.add_parser("adapt", help="put adapters into an ONNX file whose source is gone")
    adapt_command.add_options(command)
    _add_adapter(command, "bottleneck")
    _add_output(command, required=False)
    _add_calibration(command)
    command.set_defaults(command=_adapt)

    package_commands.add(commands)

    command = commands.add_parser("keygen", help="make a publisher's key")
    command.add_argument("file", type=Path)
    command.set_defaults(command=_keygen)
    return parser


def _add_adapter(command: argparse.ArgumentParser, default: str | None) -> None:
    command.add_argument(
        "--adapter",
        choices=("bottleneck", "lora", "head"),
        default=default,
        help=f"default: {default or 'bottleneck for conv1d and time-frequency, else lora'}",
    )
    rank = "16" if default else "16; of lora, but in conv1d and time-frequency, 8"
    command.add_argument("--rank", type=int, help=f"inner width of the adapters (default: {rank})")
    command.add_argument(
        "--freeze-a", action="store_true", help="lora: train only the second factor (FFA-LoRA)"
    )


def _add_calibration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calibrate",
        type=Path,
        metavar="FLEET_DIR",
        help="its source devices' windows set the ranges of --quantise-prefix (default: random windows) and "
        "begin the discriminant head",
    )


def _add_output(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument(
        "--output", required=required, type=Path, metavar="PACKAGE", help="where to write it"
    )
    command.add_argument(
        "--key", type=Path, metavar="FILE", help="signs the package; without it, a one-time key"
    )
    command.add_argument("--name", help="of the package (default: that of the output file)")
    command.add_argument(
        "--version", type=int, default=1, help="grows with every package of a name (default: 1)"
    )
    command.add_argument("--batch", type=int, default=32, help="rows of every graph input (default: 32)")
    command.add_argument("--description", default="", help="for operators")
    command.add_argument(
        "--expires-days",
        type=float,
        metavar="N",
        help="no device installs it after so many days (default: never)",
    )
    command.add_argument(
        "--quantise-prefix", action="store_true", help="int8 prefix; its cost is measured and kept"
    )
    command.add_argument(
        "--discriminant",
        type=int,
        metavar="N",
        help="add a discriminant head of at most N dimensions, 0 for none (default: 128 where there are "
        "labelled windows of source devices: in pretrain, and with --calibrate)",
    )
    command.add_argument(
        "--anomaly-rank",
        type=int,
        default=0,
        metavar="N",
        help="add a head for anomaly detection with N directions, 8 is a good choice (default: 0, none)",
    )
    command.add_argument(
        "--engine",
        action="append",
        default=[],
        choices=("onnxruntime", "onnxruntime-training", "litert"),
        help="write members for this engine, too; repeat for more (onnxruntime is always there)",
    )
    command.add_argument(
        "--onnxruntime-training-python",
        type=Path,
        metavar="PYTHON",
        help="interpreter with onnxruntime-training-cpu and onnx (default: "
        "$GRAFTWORK_ONNXRUNTIME_TRAINING_PYTHON)",
    )


# torch takes seconds to import: `inspect --help` or `keygen` must not wait for it.


def _pretrain(options: argparse.Namespace) -> None:
    from models.backbones import choose, default_adapter  # noqa: PLC0415
    from models.engine_artifacts import check_writers  # noqa: PLC0415
    from models.export import adapt  # noqa: PLC0415
    from models.fleet_data import read_fleet  # noqa: PLC0415
    from models.pretrain import pretrain  # noqa: PLC0415

    check_writers(options.engine, options.onnxruntime_training_python)
    fleet = read_fleet(options.fleet)
    kind = choose(options.backbone, fleet.schema, fleet.window)
    spec = default_adapter(options.adapter, options.rank, freeze_a=options.freeze_a, backbone=kind)
    if options.layer is not None:
        spec = replace(spec, layers=tuple(options.layer))
    trained = pretrain(
        options.fleet,
        seed=options.seed,
        epochs=options.epochs,
        backbone=options.backbone,
        held_out=options.held_out,
        normalisation=options.normalisation,
        progress=sys.stderr.isatty(),
    )
    windows, accuracy = (trained.metrics[name] for name in ("source_windows", "held_out_balanced_accuracy"))
    print(f"pre-trained {kind.NAME} on {windows:.0f} windows, held-out balanced accuracy {accuracy:.3f}")
    _write(
        options,
        adapt(trained.backbone, spec, trained.schema, trained.window, seed=options.seed),
        (trained.schema, trained.window),
        metrics=trained.metrics,
        windows=trained.windows,
        source=trained.source,
        embedding=kind.EMBEDDING,
    )


def _export(options: argparse.Namespace) -> None:
    from models.adapters import AdapterSpec, shown_layers  # noqa: PLC0415
    from models.export import adapt  # noqa: PLC0415
    from models.user_modules import import_module, read_schema  # noqa: PLC0415

    schema, window = read_schema(options.schema)
    module = import_module(options.module, Path.cwd())
    if options.adapter != "head" and not options.layer:
        raise AdapterError(
            f"{options.adapter}: no layer to adapt",
            f"name some with --layer; there are: {shown_layers(module)}",
        )
    if options.adapter == "head" and options.head is None:
        raise AdapterError("head: no layer named", f"name one with --head; there are: {shown_layers(module)}")
    spec = AdapterSpec(
        options.adapter,
        tuple(options.layer),
        options.head,
        16 if options.rank is None else options.rank,
        options.freeze_a,
        len(schema.classes) if options.fresh_head else None,
    )
    _write(options, adapt(module, spec, schema, window, seed=options.seed), (schema, window))


def _adapt(options: argparse.Namespace) -> None:
    if options.list:
        print(adapt_command.listed(options))
        return
    adapted, schema, window = adapt_command.prepare(options)
    print(f"imported what is behind {options.at}: within {adapted.error:.1e} of the file")
    _write(options, adapted.module, (schema, window), front=adapted.front)


def _write(
    options: argparse.Namespace,
    module: "AdaptedModule",
    inputs: "tuple[InputSchema, WindowSpec]",
    *,
    metrics: dict[str, float] | None = None,
    windows: "Tensor | None" = None,
    front: bytes | None = None,
    source: "SourceWindows | None" = None,
    embedding: str = "features",
) -> None:
    from models.anomaly_head import add_anomaly_head  # noqa: PLC0415
    from models.export import export  # noqa: PLC0415

    key = PrivateKey.generate() if options.key is None else keys.read(options.key)
    data = export(
        module,
        *inputs,
        key,
        name=options.name or options.output.stem,
        version=options.version,
        batch=options.batch,
        windows=windows,
        front=front,
        calibration=_calibration(options, inputs, source),
        engines=options.engine,
        training_python=options.onnxruntime_training_python,
        metrics=metrics,
        description=options.description,
        expires=time.time() + 86_400 * options.expires_days if options.expires_days else 0.0,
    )
    data = _discriminating(data, options, key, source or _calibrating(options, inputs), embedding)
    if options.anomaly_rank:
        data = add_anomaly_head(data, options.anomaly_rank, key)
    # Whole or not at all: whoever watches for the file must not read half of it.
    unfinished = options.output.with_name(f".{options.output.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(options.output)
    except OSError as error:
        raise ModelError(f"{options.output}: cannot be written: {error.strerror}") from error
    print(f"wrote {options.output}: {len(data):,} bytes")
    if options.key is None:
        print("signed with a one-time key that is not kept; for a fleet of your own, make one with keygen")
    print(f"publisher {key.public.raw.hex()}")


def _discriminating(
    data: bytes,
    options: argparse.Namespace,
    key: PrivateKey,
    source: "SourceWindows | None",
    embedding: str,
) -> bytes:
    """Add a discriminant head where one is asked for, or labelled windows are there to begin it with."""
    from models.discriminant_head import DIMENSION, Sources, add_discriminant_head  # noqa: PLC0415

    asked = options.discriminant
    if asked == 0 or (asked is None and source is None):
        return data
    if source is None:
        raise ModelError("--discriminant: expected labelled windows", "name a fleet with --calibrate")
    windows = Sources(source.x.numpy(), source.y.numpy(), source.group.numpy())
    return add_discriminant_head(data, asked or DIMENSION, key, windows, embedding)


def _calibrating(
    options: argparse.Namespace, inputs: "tuple[InputSchema, WindowSpec]"
) -> "SourceWindows | None":
    """The source windows of --calibrate, where they have the package's classes."""
    from models import calibration  # noqa: PLC0415

    if options.calibrate is None or options.discriminant == 0:
        return None
    return calibration.sources(options.calibrate, *inputs)


def _calibration(
    options: argparse.Namespace, inputs: "tuple[InputSchema, WindowSpec]", source: "SourceWindows | None"
) -> "Calibration | None":
    """Return the windows for --quantise-prefix: those of the training, of a fleet, or random ones."""
    from models import calibration  # noqa: PLC0415

    if not options.quantise_prefix:
        return None
    if source is not None:
        return calibration.from_source(source)
    if options.calibrate is not None:
        # Only an exported module brings a head that knows the classes.
        labelled = not getattr(options, "fresh_head", False) and getattr(options, "keep_head", True)
        return calibration.from_fleet(options.calibrate, *inputs, labelled=labelled)
    return calibration.at_random(*inputs)


def _keygen(options: argparse.Namespace) -> None:
    key = keys.make(options.file)
    print(f"wrote {options.file} (keep it secret)\npublisher {key.public.raw.hex()}")


if __name__ == "__main__":
    sys.exit(main())
