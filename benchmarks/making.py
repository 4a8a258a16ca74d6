"""Makes the benchmarks' task: a pre-trained backbone, its packages, the same weights for PyTorch, windows.

    python -m benchmarks.making DIRECTORY [--data vibration|sp_sw_har] [--windows 2000] [--seed 0]
    python -m benchmarks.making DIRECTORY --export ENGINE

`vibration` is the demo's simulated plant and needs nothing; `sp_sw_har` is real human motion and needs the
data sets' folder in $GRAFTWORK_DATA. The backbone is pre-trained on the source devices as `graftwork-models
pretrain` does it; the windows are those of the edge devices, and held out are the latest of every
recording. With `--export` a package of the same weights is written for another engine. Needs the extra
`models`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.task import DATA, ROOT, Task, vibration_recordings
from models.backbones import Conv1dBackbone, default_adapter
from models.export import adapt, export
from protocol.fleet import Split
from protocol.package import unpack
from protocol.signing import PrivateKey
from protocol.windows import Windows, concatenate, cut
from simulation import vibration
from simulation.machines import machines
from simulation.recordings import read_device, read_fleet
from simulation.splits import divide

KEY = PrivateKey(hashlib.sha256(b"benchmark").digest())
DEVELOPMENT_WINDOWS = 12
"""Of a simulated recording of 15; the latest three are held out."""

Part = tuple[NDArray[np.float32], NDArray[np.int64]]


def main() -> None:
    """Make a task, or a further package of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", choices=DATA, default="vibration")
    parser.add_argument("--windows", type=int, default=2000, help="labelled windows to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", metavar="ENGINE", help="add a package for another engine")
    parser.add_argument("--training-python", type=Path, help="interpreter with onnxruntime-training")
    options = parser.parse_args()
    if options.export:
        export_for(Task(options.directory), options.export, options.training_python)
        return
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    make = simulated if options.data == "vibration" else imported
    training, held_out = make(options.directory / "fleet", options.data, options.windows, options.seed)
    save(options.directory, "training", training, options.windows)
    save(options.directory, "held_out", held_out, len(held_out[1]))
    facts = {"data": options.data, "seed": options.seed, "windows": options.windows}
    facts |= {"held_out_windows": len(held_out[1]), **pretrained(options.directory, options.seed)}
    # Written last: a task is there when this file is.
    (options.directory / "task.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def simulated(fleet: Path, _data: str, windows: int, seed: int) -> tuple[Part, Part]:
    """Windows of the demo's edge machines; writes a fleet of its source machines."""
    everything = machines(seed)
    vibration.write_fleet(fleet, seed, tuple(machine for machine in everything if machine.role == "source"))
    edge = [machine for machine in everything if machine.role == "edge"]
    # Twice the recordings that the training needs, so that the held-out windows are many.
    takes = 2 * -(-windows // (len(edge) * len(vibration.CLASSES) * DEVELOPMENT_WINDOWS))
    recordings = [
        recording
        for index, machine in enumerate(edge)
        for recording in vibration_recordings(machine, index, seed, takes)
    ]
    division = divide(recordings, Split("time", 0.2))
    parts = (division.development, division.test)
    development, test = (concatenate([cut(one, vibration.WINDOW) for one in part]) for part in parts)
    return labelled(development), labelled(test)


def imported(fleet: Path, data: str, _windows: int, _seed: int) -> tuple[Part, Part]:
    """Windows of an imported fleet's edge devices."""
    source = os.environ.get("GRAFTWORK_DATA", "data")
    command = [sys.executable, "-m", "simulation", "import", data, source, str(fleet)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    description = read_fleet(fleet)
    training, held = [], []
    for device in description.of_role("edge"):
        division = divide(read_device(fleet, description, device).recordings, description.split)
        training += [cut(recording, description.window) for recording in division.development]
        held += [cut(recording, description.window) for recording in division.test]
    return labelled(concatenate(training)), labelled(concatenate(held))


def labelled(windows: Windows) -> Part:
    """Windows and labels of those that have one."""
    known = np.flatnonzero(windows.y >= 0)
    return windows.x[known], windows.y[known]


def save(directory: Path, name: str, part: Part, count: int) -> None:
    """Keep `count` windows, evenly spaced over all of them.

    Raises:
        SystemExit: there are not as many.
    """
    x, y = part
    if len(y) < count:
        sys.exit(f"expected {count} labelled windows for {name}, the data have {len(y)}")
    chosen = np.linspace(0, len(y) - 1, count).round().astype(np.int64)
    np.save(directory / f"{name}_x.npy", np.ascontiguousarray(x[chosen]))
    np.save(directory / f"{name}_y.npy", y[chosen])


def pretrained(directory: Path, seed: int) -> dict[str, Any]:
    """Pre-train, export the packages, and keep the weights for PyTorch."""
    from models.pretrain import pretrain  # noqa: PLC0415 - an export needs no Lightning

    trained = pretrain(directory / "fleet", seed=seed, progress=sys.stderr.isatty())
    arrays = {name: value.numpy() for name, value in trained.backbone.state_dict().items()}
    for name, kind in (("head", "head"), ("package", "bottleneck")):
        module = adapt(trained.backbone, default_adapter(kind), trained.schema, trained.window, seed=seed)
        data = export(
            module, trained.schema, trained.window, KEY,
            name=name, windows=trained.windows, metrics=trained.metrics,
        )  # fmt: skip
        (directory / f"{name}.zip").write_bytes(data)
    stem: Any = trained.backbone.stem
    arrays |= {f"adapters.{name}": value.numpy() for name, value in module.adapters.state_dict().items()}
    arrays["strides"] = np.array([stem[index].stride[0] for index in (0, 3, 6)])
    np.savez(directory / "weights.npz", **arrays)
    return {
        "parameters": len(module.flat_adapter()),
        "backbone_parameters": sum(value.numel() for value in trained.backbone.parameters()),
        "pretrained_held_out_accuracy": trained.metrics["held_out_accuracy"],
        "torch": torch.__version__,
    }


def export_for(task: Task, engine: str, training_python: Path | None) -> None:
    """Write a package of the same weights that another engine can take, too."""
    manifest = unpack(task.package.read_bytes(), None).manifest
    backbone = Conv1dBackbone.build(manifest.schema, manifest.window)
    with np.load(task.weights) as arrays:
        names = backbone.state_dict()
        backbone.load_state_dict({name: torch.from_numpy(arrays[name]) for name in names})
    module = adapt(
        backbone.eval(), default_adapter(), manifest.schema, manifest.window, seed=task.facts["seed"]
    )
    data = export(
        module, manifest.schema, manifest.window, KEY,
        name=f"package-{engine}",
        windows=torch.from_numpy(task.windows("training")[0][:256]),
        engines=(engine,),
        training_python=training_python,
    )  # fmt: skip
    (task.directory / f"package-{engine}.zip").write_bytes(data)


if __name__ == "__main__":
    main()
