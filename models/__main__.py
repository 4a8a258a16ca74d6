"""graftwork-models: pre-train a backbone, export any module, and look at model packages.

Only arguments, files and the screen are handled here. Mistakes of the user end with one line and status 1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from models.errors import AdapterError, ModelError
from protocol.errors import SignatureError
from protocol.package import MAX_PACKAGE_BYTES
from protocol.signing import PrivateKey, PublicKey
from runtime import keys
from runtime.errors import SetupError

if TYPE_CHECKING:
    from torch import Tensor

    from models.adapters import AdaptedModule
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
    command.add_argument("fleet", type=Path, metavar="FLEET_DIR", help="holds fleet.toml and recordings")
    command.add_argument(
        "--epochs", type=int, default=30, help="passes over the source windows (default: 30)"
    )
    command.add_argument("--seed", type=int, default=0, help="of weights, batches, adapters (default: 0)")
    command.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="default: 0.2")
    _add_adapter(command)
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
    _add_adapter(command)
    _add_output(command)
    command.set_defaults(command=_export)

    command = commands.add_parser("inspect", help="show what a package says of itself")
    command.add_argument("package", type=Path)
    command.add_argument("--publisher", metavar="HEX", help="public key; checks the signature")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(command=_inspect)

    command = commands.add_parser("verify", help="check signature, hashes and graphs; status 1 if any fails")
    command.add_argument("package", type=Path)
    command.add_argument("--publisher", required=True, metavar="HEX", help="who must have signed it")
    command.set_defaults(command=_verify)

    command = commands.add_parser("keygen", help="make a publisher's key")
    command.add_argument("file", type=Path)
    command.set_defaults(command=_keygen)
    return parser


def _add_adapter(command: argparse.ArgumentParser) -> None:
    command.add_argument("--adapter", choices=("bottleneck", "lora", "head"), default="bottleneck")
    command.add_argument("--rank", type=int, help="inner width of the adapters (default: 16)")
    command.add_argument(
        "--freeze-a", action="store_true", help="lora: train only the second factor (FFA-LoRA)"
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", required=True, type=Path, metavar="PACKAGE", help="where to write it")
    command.add_argument(
        "--key", type=Path, metavar="FILE", help="signs the package; without it, a one-time key"
    )
    command.add_argument("--name", help="of the package (default: that of the output file)")
    command.add_argument(
        "--version", type=int, default=1, help="grows with every package of a name (default: 1)"
    )
    command.add_argument("--batch", type=int, default=32, help="rows of every graph input (default: 32)")
    command.add_argument("--description", default="", help="for operators")


# torch takes seconds to import: `inspect --help` or `keygen` must not wait for it.


def _pretrain(options: argparse.Namespace) -> None:
    from models.backbones import default_adapter  # noqa: PLC0415
    from models.export import adapt  # noqa: PLC0415
    from models.pretrain import pretrain  # noqa: PLC0415

    spec = default_adapter(options.adapter, options.rank, freeze_a=options.freeze_a)
    trained = pretrain(
        options.fleet,
        seed=options.seed,
        epochs=options.epochs,
        held_out=options.held_out,
        progress=sys.stderr.isatty(),
    )
    windows, accuracy = (trained.metrics[name] for name in ("source_windows", "held_out_balanced_accuracy"))
    print(f"pre-trained on {windows:.0f} windows, held-out balanced accuracy {accuracy:.3f}")
    _write(
        options,
        adapt(trained.backbone, spec, trained.schema, trained.window, seed=options.seed),
        (trained.schema, trained.window),
        metrics=trained.metrics,
        windows=trained.windows,
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


def _write(
    options: argparse.Namespace,
    module: "AdaptedModule",
    inputs: "tuple[InputSchema, WindowSpec]",
    *,
    metrics: dict[str, float] | None = None,
    windows: "Tensor | None" = None,
) -> None:
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
        metrics=metrics,
        description=options.description,
    )
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


def _inspect(options: argparse.Namespace) -> None:
    from models.packages import describe  # noqa: PLC0415

    publisher = PublicKey.from_hex(options.publisher) if options.publisher else None
    facts = describe(_read(options.package), publisher)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title=f"{facts['name']} version {facts['version']}", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            table.add_section()
            for entry, content in value.items():
                table.add_row(f"{name}.{entry}", _text(content))
            table.add_section()
        else:
            table.add_row(name, _text(value))
    Console().print(table)


def _verify(options: argparse.Namespace) -> None:
    from models.packages import verify  # noqa: PLC0415

    package = verify(_read(options.package), PublicKey.from_hex(options.publisher))
    manifest = package.manifest
    print(f"good: {manifest.name} version {manifest.version}, sha256 {package.sha256.hex()}")


def _keygen(options: argparse.Namespace) -> None:
    key = keys.make(options.file)
    print(f"wrote {options.file} (keep it secret)\npublisher {key.public.raw.hex()}")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_PACKAGE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error.strerror}") from error


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
