"""Where the contract's packages come from, and which engine is on trial."""

import importlib.util
import os
from pathlib import Path

import pytest

from agent.engines import CANDIDATES
from tests.engines.cases import NAMES, Case, read, write

CASES, ENGINE = "GRAFTWORK_ENGINE_CASES", "GRAFTWORK_ENGINE"
"""Environment variables: the folder of written cases; the engine that must not be skipped."""


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get(CASES):
        return Path(os.environ[CASES])
    if importlib.util.find_spec("torch") is None:
        pytest.skip(f"needs torch, or cases from tests.engines.cases in ${CASES}")
    folder = tmp_path_factory.mktemp("cases")
    write(folder)
    return folder


@pytest.fixture(scope="session", params=NAMES)
def case(request: pytest.FixtureRequest, case_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("package")
    for suffix in ("zip", "npz"):
        (folder / f"{request.param}.{suffix}").write_bytes(
            (case_folder / f"{request.param}.{suffix}").read_bytes()
        )
    return read(folder, request.param)


ON_TRIAL = [name for name in CANDIDATES if CANDIDATES[name].installed() or name == os.environ.get(ENGINE)]


@pytest.fixture(params=ON_TRIAL or [None])
def engine_name(request: pytest.FixtureRequest, case: Case) -> str:
    name: str | None = request.param
    if name is None:
        pytest.skip("no engine's runtime is installed here")
    if name not in case.manifest.engines and os.environ.get(ENGINE) != name:
        pytest.skip(f"the cases were written without members for {name} (make test-engines)")
    return name
