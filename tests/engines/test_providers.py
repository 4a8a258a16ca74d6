"""Execution providers of the onnxruntime engine: tried in order, replaced by the CPU where they fail."""

import logging
from typing import Any

import numpy as np
import pytest

from agent.config import PROVIDER_NAMES
from tests.engines.cases import Case

onnxruntime = pytest.importorskip("onnxruntime", reason="the runtime of onnxruntime is not installed")

from agent import onnxruntime_engine  # noqa: E402 - after the check for its runtime
from agent.onnxruntime_engine import CPU, CUDA, PROVIDERS, TENSORRT, OnnxruntimeEngine  # noqa: E402
from protocol.package import PREFIX  # noqa: E402


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that says it has GPU providers; the real one behind it cannot start them."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


def step(engine: OnnxruntimeEngine, case: Case) -> float:
    features = engine.features(case.torch["windows"][: engine.batch])
    rows = slice(0, engine.batch)
    loss, _ = engine.loss_and_gradient(
        case.torch["adapter"], features, case.torch["labels"][rows], case.torch["weights"][rows]
    )
    return loss


def test_the_configuration_knows_every_provider() -> None:
    assert tuple(PROVIDERS) == PROVIDER_NAMES


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((), "TensorrtExecutionProvider, CUDAExecutionProvider, CPUExecutionProvider"),
        (("cpu",), "CPUExecutionProvider"),
        (("cuda",), "CUDAExecutionProvider, CPUExecutionProvider"),
        (("cuda", "tensorrt"), "TensorrtExecutionProvider, CUDAExecutionProvider, CPUExecutionProvider"),
    ],
)
def test_providers_are_tried_in_order_and_the_cpu_last(
    wanted: tuple[str, ...], expected: str, case: Case
) -> None:
    engine = OnnxruntimeEngine(case.folder, case.manifest, providers=wanted)
    assert engine.describe() == f"onnxruntime {onnxruntime.__version__}, {expected}, 1 thread"


def test_a_provider_that_was_not_built_in_is_named(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    engine = OnnxruntimeEngine(case.folder, case.manifest, providers=("cuda",))
    assert "CUDAExecutionProvider" not in engine.describe()
    assert "cuda: this onnxruntime was built without it" in caplog.text


@pytest.mark.usefixtures("gpu_build")
def test_where_no_gpu_starts_the_cpu_computes_the_same(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    engine = OnnxruntimeEngine(case.folder, case.manifest)
    with caplog.at_level(logging.WARNING):
        loss = step(engine, case)
    assert loss == pytest.approx(float(case.torch["loss"]), rel=1e-5)
    assert "CUDAExecutionProvider cannot start on this device" in caplog.text
    assert engine.describe().endswith(", CPUExecutionProvider, 1 thread")


@pytest.mark.usefixtures("gpu_build")
def test_cuda_keeps_its_limits_where_tensorrt_is_missing(
    case: Case, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[list[tuple[str, dict[str, str]]]] = []
    real = onnxruntime.InferenceSession

    def without_tensorrt(
        path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any
    ) -> Any:
        asked.append(providers)
        if providers[0][0] == TENSORRT:
            raise RuntimeError("Please install TensorRT libraries")
        session = real(path, options, providers=[CPU])
        session.get_providers = lambda: [name for name, _ in providers]
        return session

    monkeypatch.setattr(onnxruntime_engine.onnxruntime, "InferenceSession", without_tensorrt)
    engine = OnnxruntimeEngine(case.folder, case.manifest)
    engine.features(case.torch["windows"])
    assert "TensorrtExecutionProvider cannot start on this device" in caplog.text
    assert [name for name, _ in asked[-1]] == [CUDA, CPU]
    assert "gpu_mem_limit" in dict(asked[-1])[CUDA]


@pytest.mark.usefixtures("gpu_build")
def test_a_gpu_that_fails_in_the_middle_hands_over_to_the_cpu(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    class Exhausted:
        """A session on a GPU that has no memory left."""

        def __init__(
            self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any
        ) -> None:
            self.providers = [name for name, _ in providers]
            self.real = real(path, options, providers=[CPU])

        def get_providers(self) -> list[str]:
            return self.providers

        def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if CUDA in self.providers:
                raise RuntimeError("CUDA error cudaErrorMemoryAllocation: out of memory")
            found: list[np.ndarray] = self.real.run(outputs, inputs)
            return found

    monkeypatch.setattr(onnxruntime_engine.onnxruntime, "InferenceSession", Exhausted)
    engine = OnnxruntimeEngine(case.folder, case.manifest, providers=("cuda",))
    assert step(engine, case) == pytest.approx(float(case.torch["loss"]), rel=1e-5)
    assert "out of memory" in caplog.text
    assert engine.describe().endswith(", CPUExecutionProvider, 1 thread")


@pytest.mark.usefixtures("gpu_build")
def test_only_the_prefix_runs_on_tensorrt_and_cuda_memory_is_bounded(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[tuple[str, dict[str, str]]]] = {}
    real = onnxruntime.InferenceSession

    def record(path: str, options: Any, providers: list[tuple[str, dict[str, str]]], **_: Any) -> Any:
        asked[path.rpartition("/")[2]] = providers
        session = real(path, options, providers=[CPU])
        session.get_providers = lambda: [name for name, _ in providers]
        return session

    monkeypatch.setattr(onnxruntime_engine.onnxruntime, "InferenceSession", record)
    step(OnnxruntimeEngine(case.folder, case.manifest, gpu_memory_bytes=1 << 28), case)
    assert [name for name, _ in asked.pop(PREFIX)] == [TENSORRT, CUDA, CPU]
    for providers in asked.values():
        assert [name for name, _ in providers] == [CUDA, CPU]
        assert dict(providers)[CUDA]["gpu_mem_limit"] == str(1 << 28)
        assert dict(providers)[CUDA]["use_tf32"] == "0"
