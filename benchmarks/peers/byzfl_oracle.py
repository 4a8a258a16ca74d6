"""ByzFL's aggregators and attacks on given vectors; runs in an environment of its own (environment.py).

    python byzfl_oracle.py CALLS.npz RESULTS.npz

CALLS holds tables of vectors, float64 [vectors, parameters], and "calls", a JSON text: a list of objects with
"result" (the name to give), "vectors" (the name of a table), and "steps", a list of [class, arguments], each
applied to what the one before gave. RESULTS holds every call's result. Nothing of Graftwork's is imported.
"""

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("aggregators.aggregators", "aggregators.preaggregators", "attacks.attacks")


def classes() -> dict[str, Callable[..., Any]]:
    """ByzFL's classes by name.

    The package's own `__init__` loads its harness for experiments, which wants torchvision and plots: the
    package is entered here without it.
    """
    found = importlib.util.find_spec("byzfl")
    if found is None or found.submodule_search_locations is None:
        sys.exit("byzfl is not installed here")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["byzfl"] = package
    modules = [importlib.import_module(f"byzfl.{part}") for part in PARTS]
    return {name: kind for module in modules for name, kind in vars(module).items() if isinstance(kind, type)}


def main(source: Path, target: Path) -> None:
    """Answer all calls."""
    kinds = classes()
    with np.load(source) as tables:
        results: dict[str, Any] = {}
        for call in json.loads(str(tables["calls"])):
            value = np.array(tables[call["vectors"]], np.float64)  # a copy: some change what they are given
            for name, arguments in call["steps"]:
                value = kinds[name](**arguments)(value)
            results[call["result"]] = np.asarray(value, np.float64)
    np.savez(target, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
