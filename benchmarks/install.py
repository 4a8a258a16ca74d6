"""What a device has to install: bytes on disk, and on which boards it resolves.

    python -m benchmarks.install [--extra agent] [--json]

Installs `.[agent]` into a fresh environment and counts the bytes of its site-packages, bytecode included,
pip and setuptools not. Then asks pip's resolver, with its platform flags and wheels only, whether the same
installs on 64-bit Arm and x86-64 with each supported Python; no board is needed. `loaded_bytes` are those of
the files that an agent loads until it has trained one step: what an image could not do without.
`trimmed_bytes` is what is left after `graftwork-firmware trim`; a step is trained in what is left.

pip evaluates environment markers of dependencies (`; python_version < "3.11"`) for the Python that it runs
on. Those of our own requirements are therefore evaluated here, for the target.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from protocol import toml

ROOT = Path(__file__).resolve().parent.parent
GOAL_BYTES = 120_000_000
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = {
    # A board takes every tag up to its own glibc: Debian 11 and JetPack 6 have at least 2.31.
    "aarch64": ("manylinux2014_aarch64", "manylinux_2_28_aarch64"),
    "x86_64": ("manylinux2014_x86_64", "manylinux_2_28_x86_64"),
}
LOADED = """
import importlib, json, sys, tempfile
from importlib import resources
from pathlib import Path
import numpy as np
import agent.__main__, agent.daemon
from agent.config import EngineConfig
from agent.engines import open_engine
from protocol.package import unpack
package = unpack((resources.files("simulation") / "demo" / "vibration.zip").read_bytes(), None)
with tempfile.TemporaryDirectory() as folder:
    for name, content in package.members.items():
        (Path(folder) / name).write_bytes(content)
    engine = open_engine(Path(folder), package.manifest, EngineConfig(), threads=1)
    features = engine.features(np.zeros((engine.batch, *package.manifest.input_shape), np.float32))
    labels, weights = np.zeros(engine.batch, np.int64), np.ones(engine.batch, np.float32)
    engine.loss_and_gradient(package.adapter, features, labels, weights)
mapped = {line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps") if "site-packages" in line}
modules = [module for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
files = mapped | {module.__file__ for module in modules} | {getattr(m, "__cached__", None) for m in modules}
found = {Path(file).resolve() for file in files if file and "site-packages" in file}
print(json.dumps(sum(file.stat().st_size for file in found if file.is_file())))
"""
"""Prints the bytes of all files in site-packages that training one step loads."""
NOT_COUNTED = ("pip", "setuptools", "wheel")


def main() -> None:
    """Install, count, resolve, and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extra", default="agent")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    sizes, loaded, trimmed = install(options.extra)
    resolved = {
        f"{machine} {python}": resolve(options.extra, machine, python)
        for machine in PLATFORMS
        for python in PYTHONS
    }
    result = {
        "extra": options.extra,
        "python": sys.version.split()[0],
        "installed_bytes": sum(sizes.values()),
        "trimmed_bytes": trimmed,
        "loaded_bytes": loaded,
        "goal_bytes": GOAL_BYTES,
        "distributions": sizes,
        "resolves": {name: not reason for name, reason in resolved.items()},
        "reasons": {name: reason for name, reason in resolved.items() if reason},
    }
    if not options.json:
        for name, size in sizes.items():
            print(f"{name:24} {size / 1e6:7.2f} MB")
        print(f"{'together':24} {sum(sizes.values()) / 1e6:7.2f} MB, goal {GOAL_BYTES / 1e6:.0f} MB")
        print(f"{'after trimming':24} {trimmed / 1e6:7.2f} MB")
        print(f"{'loaded by a training':24} {loaded / 1e6:7.2f} MB")
        for name, reason in resolved.items():
            print(f"{name:24} {reason or 'resolves'}")
    print(json.dumps(result))


def install(extra: str) -> tuple[dict[str, int], int, int]:
    """Install the project with an extra into a fresh environment, and trim it.

    Returns:
        Bytes by distribution, largest first; those of the files that a training loads; all after trimming.

    Raises:
        SystemExit: pip fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "venv", folder])
        python = str(Path(folder) / "bin" / "python")
        run([python, "-m", "pip", "install", "--quiet", "--no-warn-script-location", f"{ROOT}[{extra}]"])
        [site] = Path(folder).glob("lib/python*/site-packages")
        sizes = distribution_bytes(site)
        run([python, "-m", "firmware_tools", "trim", folder], folder)
        distribution_bytes.cache_clear()
        trimmed = sum(distribution_bytes(site).values())
        safe_path = "-P" if sys.version_info >= (3, 11) else "-I"
        return sizes, int(run([python, safe_path, "-c", LOADED], folder)), trimmed


@functools.cache
def distribution_bytes(site: Path) -> dict[str, int]:
    """Bytes of each distribution in a site-packages folder, largest first; "other" is what no one owns."""
    sizes: dict[str, int] = {}
    counted: set[Path] = set()
    for distribution in metadata.distributions(path=[str(site)]):
        files = {Path(str(file.locate())).resolve() for file in distribution.files or ()}
        files = {file for file in files - counted if file.is_file() and site.resolve() in file.parents}
        counted |= files
        sizes[distribution.metadata["Name"]] = sum(file.stat().st_size for file in files)
    everything = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    sizes["other"] = everything - sum(sizes.values())
    kept = {name: size for name, size in sizes.items() if name not in NOT_COUNTED and size}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def closure_bytes(site: Path, roots: list[str]) -> int:
    """Bytes of some distributions in a site-packages folder, with all that they require and that is there."""
    sizes = {_normal(name): size for name, size in distribution_bytes(site).items()}
    needs = {
        _normal(found.metadata["Name"]): [Requirement(line) for line in found.requires or ()]
        for found in metadata.distributions(path=[str(site)])
    }
    wanted, counted = [_normal(root) for root in roots], set()
    while wanted:
        name = wanted.pop()
        if name in counted or name not in sizes:
            continue
        counted.add(name)
        wanted += [
            _normal(need.name)
            for need in needs[name]
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return sum(sizes[name] for name in counted)


def resolve(extra: str, machine: str, python: str) -> str:
    """Ask pip whether the project installs on a machine, from wheels; "" or the reason why not."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "extra": "",
    }
    wanted = [
        str(requirement).partition(";")[0].strip()
        for requirement in requirements(extra)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--only-binary=:all:", "--target", folder, "--implementation", "cp"]
        command += ["--python-version", python]
        command += [flag for tag in PLATFORMS[machine] for flag in ("--platform", tag)]
        result = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if not result.returncode:
        return ""
    return next((line for line in result.stderr.splitlines() if line.startswith("ERROR")), "pip failed")


def requirements(extra: str) -> list[Requirement]:
    """What the project requires, with an extra."""
    project: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def run(command: list[str], folder: str | Path = ROOT) -> str:
    """Run a command and return its output; end with its message when it fails.

    Raises:
        SystemExit: it fails.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
    return result.stdout


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
