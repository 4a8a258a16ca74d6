"""Which backbone for which data: accuracy of a fleet's devices that start from one or another.

    python -m benchmarks.backbones [--data DIR] [--fleets NAMES] [--backbones NAMES] [--labels 5]
        [--seeds 0,1,2] [--orientation DEGREES] [--silence CHANCE] [--json]

Per fleet and backbone: it is pre-trained on the source devices, and the edge devices learn from it as in
accuracy.py. Mean accuracy over devices and seeds, in per cent. `demo` is the demo's simulated fleet.
`--orientation` and `--silence` set those augmentations for series (default: the project's).
"""

import argparse
import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.laboratory import Laboratory
from benchmarks.methods import METHODS
from benchmarks.rehearsal import FLEETS, data_directory
from models.augmentation import Augmentation, default_variation
from models.backbones import choose, default_adapter
from models.errors import AdapterError
from models.export import adapt, export
from models.fleet_data import read_fleet
from models.pretrain import pretrain
from protocol.signing import PrivateKey
from simulation import importers, vibration

SHOWN = ("local", "fedavg", "fedavg_fine_tuned", "ours")
DEMO = "demo"


def main() -> None:
    """Run and print a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the data sets (default: $GRAFTWORK_DATA)")
    parser.add_argument("--fleets", default=",".join(FLEETS), help="names, comma-separated")
    parser.add_argument("--backbones", default="conv1d,time-frequency", help="names, comma-separated")
    parser.add_argument("--labels", type=int, default=5, help="labelled windows per class and device")
    parser.add_argument("--seeds", default="0,1,2", help="of backbone, labels and training")
    parser.add_argument("--orientation", type=float, help="largest angle of the augmentation, degrees")
    parser.add_argument("--silence", type=float, help="chance of a dead channel in the augmentation")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    options = parser.parse_args()
    strengths = {name: getattr(options, name) for name in ("orientation", "silence")}
    changed = {name: value for name, value in strengths.items() if value is not None}
    seeds = [int(text) for text in options.seeds.split(",")]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.fleets.split(","):
            fleet = Path(folder) / name
            if name == DEMO:
                vibration.write_fleet(fleet, 0)
            else:
                importers.import_dataset(name, data_directory(options.data), fleet)
            for backbone in options.backbones.split(","):
                try:
                    runs = [measure(fleet, backbone, options.labels, seed, changed) for seed in seeds]
                except AdapterError as error:
                    print(f"{name:18} {backbone:16} {error}", flush=True)
                    continue
                figures = {key: round(100 * float(np.mean([run[key] for run in runs])), 2) for key in SHOWN}
                results.append({"fleet": name, "backbone": backbone, **figures})
                if not options.json:
                    shown = "  ".join(f"{key} {value:5.1f}" for key, value in figures.items())
                    print(f"{name:18} {backbone:16} {shown}", flush=True)
    print(json.dumps({"labels": options.labels, "seeds": len(seeds), "results": results}))


def measure(
    fleet: Path, backbone: str, labels: int, seed: int, strengths: dict[str, float]
) -> dict[str, float]:
    """Pre-train a backbone; return each method's mean accuracy over the devices, from 0 to 1.

    Raises:
        AdapterError: the backbone does not fit the fleet's data.
    """
    description = read_fleet(fleet)
    kind = choose(backbone, description.schema, description.window)
    variation = default_variation(kind.NAME, description.schema.channels)
    if isinstance(variation, Augmentation):
        variation = replace(variation, **strengths)
    trained = pretrain(fleet, seed=seed, backbone=backbone, augmentation=variation)
    adapted = adapt(
        trained.backbone, default_adapter(backbone=kind), trained.schema, trained.window, seed=seed
    )
    package = export(
        adapted, trained.schema, trained.window, PrivateKey.generate(), name=backbone, windows=trained.windows
    )
    with contextlib.closing(Laboratory(fleet, package, seed, labels)) as lab:
        return {name: float(lab.accuracy(METHODS[name](lab)).mean()) for name in SHOWN}


if __name__ == "__main__":
    main()
