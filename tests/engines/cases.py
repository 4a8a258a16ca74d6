"""Packages and what torch makes of them, written where torch is and read where an engine is.

    python -m tests.engines.cases FOLDER [--engine NAME ...] [--onnxruntime-training-python PYTHON]

Reading needs numpy only: an engine's environment has no torch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protocol.package import Manifest, unpack

if TYPE_CHECKING:
    import torch

    from models.adapters import AdaptedModule

NAMES = ("convolutions", "transformer")
STEPS, LEARNING_RATE = 50, np.float32(0.1)
SHORT = 3
"""Rows of the short batch."""


@dataclass(frozen=True)
class Case:
    """An installed package and torch's results for it."""

    folder: Path
    """Holds the package's members, as a device unpacks them."""
    manifest: Manifest
    initial: NDArray[np.float32]
    torch: dict[str, NDArray[np.generic]]


def read(folder: Path, name: str) -> Case:
    """Read a case that `write` wrote."""
    package = unpack((folder / f"{name}.zip").read_bytes(), None)
    members = folder / name
    members.mkdir(exist_ok=True)
    for member, content in package.members.items():
        (members / member).write_bytes(content)
    with np.load(folder / f"{name}.npz") as arrays:
        return Case(members, package.manifest, package.adapter, dict(arrays))


def write(folder: Path, engines: Sequence[str] = (), training_python: Path | None = None) -> None:
    """Export both packages, for onnxruntime and `engines`, and let torch compute the same by itself."""
    from models.export import export  # noqa: PLC0415 - needs torch
    from tests.models import networks  # noqa: PLC0415
    from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, adapted  # noqa: PLC0415

    linear = tuple(f"blocks.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "up", "down"))
    modules = {
        "convolutions": adapted(networks.Convolutions, "bottleneck", ("first", "dense"), "head"),
        "transformer": adapted(networks.Encoder, "lora", linear, "head"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        data = export(
            module,
            SCHEMA,
            WINDOW,
            KEY,
            name=name,
            batch=BATCH,
            engines=engines,
            training_python=training_python,
        )
        (folder / f"{name}.zip").write_bytes(data)
        np.savez(folder / f"{name}.npz", **_by_torch(module, unpack(data, None).adapter))


def _by_torch(module: "AdaptedModule", initial: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    import torch  # noqa: PLC0415

    from tests.models.networks import BATCH, SCHEMA, some_windows  # noqa: PLC0415

    random = np.random.default_rng(3)
    adapter = initial + random.normal(0, 0.2, initial.shape).astype(np.float32)
    windows = some_windows(2 * BATCH + SHORT)
    labels = torch.from_numpy(random.integers(0, len(SCHEMA.classes), len(windows)))
    weights = torch.from_numpy(random.uniform(0.1, 2, len(windows)).astype(np.float32))
    full, short = slice(0, BATCH), slice(2 * BATCH, 2 * BATCH + SHORT)
    loss, gradient, _ = _step(module, adapter, windows[full], labels[full], weights[full])
    short_loss, short_gradient, _ = _step(module, adapter, windows[short], labels[short], weights[short])
    *_, logits = _step(module, adapter, windows, labels, weights)
    trained, curve = initial.copy(), []
    for _ in range(STEPS):
        at, slope, _ = _step(module, trained, windows[full], labels[full], weights[full])
        trained = trained - LEARNING_RATE * slope
        curve.append(at)
    return {
        "adapter": adapter,
        "windows": windows.numpy(),
        "labels": labels.numpy(),
        "weights": weights.numpy(),
        "loss": np.float32(loss),
        "gradient": gradient,
        "short_loss": np.float32(short_loss),
        "short_gradient": short_gradient,
        "logits": logits,
        "curve": np.array(curve, np.float32),
    }  # type: ignore[dict-item]


def _step(
    module: "AdaptedModule",
    adapter: NDArray[np.float32],
    windows: "torch.Tensor",
    labels: "torch.Tensor",
    weights: "torch.Tensor",
) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
    """Loss, gradient and logits by autograd, written without any code of the exporter."""
    import torch  # noqa: PLC0415
    from torch.func import functional_call  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    parameters = dict(module.named_parameters())
    leaves, start = {}, 0
    for name in module.trainable():
        count = parameters[name].numel()
        values = torch.from_numpy(adapter[start : start + count].copy())
        leaves[name] = values.reshape(parameters[name].shape).requires_grad_()
        start += count
    logits = functional_call(module, leaves, (windows,))
    loss = (functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), torch.cat([g.flatten() for g in gradients]).numpy(), logits.detach().numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", action="append", default=[])
    parser.add_argument("--onnxruntime-training-python", type=Path)
    options = parser.parse_args()
    write(options.folder, options.engine, options.onnxruntime_training_python)
