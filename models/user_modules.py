"""A user's own module and schema: `my_model:build` imported, schema.toml or fleet.toml read.

Importing runs the user's code, in the user's own session, at the user's word; nothing else does.
"""

import importlib
import sys
from pathlib import Path

from torch import nn

from models.errors import ModelError
from protocol import fleet as fleet_format
from protocol import toml
from protocol.errors import DataError, SchemaError
from protocol.input_schema import InputSchema, WindowSpec
from protocol.records import from_named


def import_module(reference: str, folder: Path) -> nn.Module:
    """Import a user's function, call it and return the module that it builds, in evaluation mode.

    Args:
        reference: "package.file:function"; the function takes nothing and returns an nn.Module.
        folder: importable besides what is installed; usually the current directory.

    Raises:
        ModelError: there is no such function, it fails, or it returns something else.
    """
    file, _, function = reference.partition(":")
    if not file or not function.isidentifier():
        raise ModelError(f"--module: expected file:function, e.g. my_model:build, got {reference!r}")
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        imported = importlib.import_module(file)
    except ModuleNotFoundError as error:
        if error.name != file.partition(".")[0] and error.name != file:
            raise ModelError(f"{file}: needs the package {error.name!r}", "install it here") from error
        raise ModelError(
            f"no module named {file!r}", f"run this where {file}.py is, or install it"
        ) from error
    except Exception as error:  # a user's code may fail in any way
        raise ModelError(f"importing {file!r} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
    build = getattr(imported, function, None)
    if not callable(build):
        raise ModelError(f"{file!r} has no function {function!r}")
    try:
        module = build()
    except Exception as error:
        raise ModelError(f"{reference} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{reference}: expected it to return a torch.nn.Module, got {type(module).__name__}")
    return module.eval()


def read_schema(file: Path) -> tuple[InputSchema, WindowSpec]:
    """Read [schema] and [window] or [image] from a TOML file; a fleet.toml, with its devices, is one.

    Raises:
        ModelError: the file is missing or malformed.
    """
    try:
        text = file.read_text(encoding="utf-8")
        document = toml.loads(text)
    except OSError as error:
        raise ModelError(f"{file}: not readable: {error.strerror}") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: expected TOML: {error}") from error
    try:
        if "device" in document:
            fleet = fleet_format.parse(text, str(file))
            return fleet.schema, fleet.window
        if len(document) != 2 or "schema" not in document or not {"window", "image"} & set(document):
            expected = "[schema] and [window], of pictures [schema] and [image]"
            raise ModelError(f"{file}: expected the tables {expected}, got {sorted(document)}")
        inputs = fleet_format.inputs_of(document)
        return (
            from_named(InputSchema, inputs["schema"], "schema"),
            from_named(WindowSpec, inputs.get("window", {}), "window"),
        )
    except DataError as error:
        raise ModelError(str(error)) from error
    except (SchemaError, TypeError) as error:
        raise ModelError(f"{file}: {error}") from error
