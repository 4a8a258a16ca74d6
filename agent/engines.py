"""Which engine trains: the configured one, or the first that the package holds and this device can run.

onnxruntime-training stands in onnxruntime's place, so where it is installed, someone wants it. Of the others
onnxruntime comes first: it is the default, and every package holds its members.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.config import AUTO, EngineConfig
from agent.engine import PackageEngine
from agent.errors import EngineError
from protocol.package import LITERT, ONNXRUNTIME, ONNXRUNTIME_TRAINING, Manifest
from runtime import litert, memory, onnxruntime_training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """An engine that this version of the agent knows."""

    extra: str
    """Of graftwork, which installs its runtime."""
    installed: Callable[[], bool]
    open: Callable[[Path, Manifest, EngineConfig, int], PackageEngine]
    """Import the runtime and take a package; ImportError or OSError where it does not fit the system."""


def open_engine(directory: Path, manifest: Manifest, config: EngineConfig, *, threads: int) -> PackageEngine:
    """Choose an engine for an installed package, and say in the log which.

    Args:
        directory: of the installed package.
        manifest: the package's description.
        config: what the device's owner chose.
        threads: of the engine.

    Raises:
        EngineError: the package or the device lacks what the configuration asks for, or they have nothing in
            common.
    """
    names = list(CANDIDATES) if config.name == AUTO else [config.name]
    held = [name for name in names if name in manifest.engines]
    if not held:
        raise EngineError(
            f"expected a package for {_listed(names)}, {manifest.name!r} is for {_listed(manifest.engines)}; "
            f"export it with --engine {names[-1]}, or change [engine] name in the agent's configuration"
        )
    usable = [name for name in held if CANDIDATES[name].installed()]
    refusals = []
    for name in usable:
        try:
            engine = CANDIDATES[name].open(directory, manifest, config, threads)
        except (ImportError, OSError) as error:  # installed, but not for this board: a missing library, glibc
            refusals.append(f"{name} does not start here: {error}")
            log.warning("%s", refusals[-1])
            continue
        log.info("engine %s", engine.describe())
        memory.release_start_up()  # what importing the runtime touched
        return engine
    missing = [f"graftwork[{CANDIDATES[name].extra}]" for name in held if name not in usable]
    reasons = refusals + ([f"install {' or '.join(missing)}"] if missing else [])
    raise EngineError(
        f"expected a runtime for {_listed(held)}, which the package {manifest.name!r} is for; "
        + "; ".join(reasons)
    )


def _onnxruntime(directory: Path, manifest: Manifest, config: EngineConfig, threads: int) -> PackageEngine:
    from agent.onnxruntime_engine import OnnxruntimeEngine  # noqa: PLC0415 - its runtime may not be there

    return OnnxruntimeEngine(
        directory,
        manifest,
        threads=threads,
        providers=config.providers,
        gpu_memory_bytes=config.gpu_memory_bytes,
    )


def _onnxruntime_training(
    directory: Path, manifest: Manifest, _config: EngineConfig, threads: int
) -> PackageEngine:
    from agent.onnxruntime_training_engine import OnnxruntimeTrainingEngine  # noqa: PLC0415 - as above

    return OnnxruntimeTrainingEngine(directory, manifest, threads=threads)


def _litert(directory: Path, manifest: Manifest, _config: EngineConfig, threads: int) -> PackageEngine:
    from agent.litert_engine import LiteRTEngine  # noqa: PLC0415 - as above

    return LiteRTEngine(directory, manifest, threads=threads)


CANDIDATES: dict[str, Candidate] = {
    ONNXRUNTIME_TRAINING: Candidate(
        "agent-ort-training", onnxruntime_training.installed, _onnxruntime_training
    ),
    ONNXRUNTIME: Candidate(
        "agent", lambda: importlib.util.find_spec("onnxruntime") is not None, _onnxruntime
    ),
    LITERT: Candidate("agent-litert", lambda: litert.installed() is not None, _litert),
}
"""In the order in which they are tried."""


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return " or ".join(names)
