"""Removing from a device's environment what an agent never loads: a third of what pip installs.

The wheels of onnxruntime hold the runtime twice, as a Python module and as a library for C programs; those of
numpy hold its tests, headers and a Fortran wrapper generator. A device needs none of it. Only files that an
installed distribution owns are removed, by fixed patterns; `pip install --force-reinstall` brings them back,
and upgrading works as ever. An environment that others use as well is left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

from firmware_tools.errors import FirmwareError

PATTERNS = {
    "onnxruntime": (
        "onnxruntime/capi/libonnxruntime.so*",  # for C programs; the Python module links its own copy
        "onnxruntime/datasets/*",
        "onnxruntime/quantization/*",
        "onnxruntime/tools/*",
        "onnxruntime/transformers/*",
    ),
    "numpy": (
        "numpy/*/tests/*",
        "numpy/tests/*",
        "numpy/f2py/*",
        "numpy/distutils/*",
        "numpy/_core/include/*",
        "numpy/_core/lib/*",
        "*.pyi",
        "*.a",
    ),
}
"""By distribution, what goes; a * also stands for folders below."""
OWN = "graftwork"


@dataclass(frozen=True)
class Trimmed:
    """What was removed, or would be."""

    files: int
    bytes: int
    by_distribution: dict[str, int]
    """Bytes by distribution."""


def trim(environment: Path, *, dry_run: bool = False) -> Trimmed:
    """Remove what an agent never loads from an environment.

    Args:
        environment: a virtual environment, or the root of one in a device's image.
        dry_run: remove nothing, only count.

    Raises:
        FirmwareError: there is no such environment, Graftwork is not in it, or something else in it needs
            what would be removed.
    """
    site = _site_packages(environment)
    installed = {_normal(found.metadata["Name"]): found for found in metadata.distributions(path=[str(site)])}
    _check_users(environment, installed)
    removed: dict[str, int] = {}
    files = 0
    for name, patterns in PATTERNS.items():
        if name not in installed:
            continue
        for path in list(_matching(installed[name], site, patterns)):
            files += 1
            removed[name] = removed.get(name, 0) + path.stat().st_size
            if not dry_run:
                path.unlink()
    if not dry_run:
        _remove_empty_folders(site)
    return Trimmed(files, sum(removed.values()), removed)


def _site_packages(environment: Path) -> Path:
    found = sorted(environment.glob("lib/python3.*/site-packages"))
    if len(found) != 1:
        raise FirmwareError(
            f"{environment}: expected a virtual environment with one lib/python3.*/site-packages, "
            f"found {len(found)}"
        )
    return found[0]


def _check_users(environment: Path, installed: dict[str, metadata.Distribution]) -> None:
    """Refuse an environment in which more than an agent lives."""
    if OWN not in installed:
        raise FirmwareError(f"{environment}: expected an environment with {OWN} in it")
    needed = _closure(OWN, installed)
    for name, distribution in installed.items():
        users = {_normal(_name(line)) for line in distribution.requires or ()} & set(PATTERNS)
        if name not in needed and users:
            raise FirmwareError(
                f"{environment}: {name} is installed there as well and needs {', '.join(sorted(users))}; "
                f"trim an environment that only the agent uses"
            )


def _closure(root: str, installed: dict[str, metadata.Distribution]) -> set[str]:
    """What `root` requires, with any extra, and what that requires without extras."""
    found: set[str] = set()
    wanted = [root]
    while wanted:
        name = wanted.pop()
        if name in found or name not in installed:
            continue
        found.add(name)
        # What other rooms than the agent's need (torch, amqtt) is no part of a device.
        wanted += [
            _normal(_name(line))
            for line in installed[name].requires or ()
            if "extra ==" not in line or (name == OWN and "agent" in line.partition("extra ==")[2])
        ]
    return found


def _matching(distribution: metadata.Distribution, site: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for file in distribution.files or ():
        # Bytecode goes with its source: tests/__pycache__/x.pyc is below tests/, too.
        if any(fnmatchcase(file.as_posix(), pattern) for pattern in patterns):
            path = Path(str(distribution.locate_file(file)))
            if path.is_file() and site.resolve() in path.resolve().parents:
                yield path


def _remove_empty_folders(site: Path) -> None:
    for folder in sorted((path for path in site.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _name(requirement: str) -> str:
    """The name at the start of a requirement, e.g. of `numpy>=1.26; extra == "x"`."""
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            return requirement[:index]
    return requirement


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
