"""The default engine: the exported training step on stock onnxruntime.

The device never differentiates: `step.onnx` holds forward and backward pass as ordinary operators. Execution
providers are tried in the order TensorRT, CUDA, CPU; one that cannot start, or fails later, is replaced by
the CPU.

Inputs and outputs stay numpy arrays. Binding them to preallocated buffers gains nothing: the optimiser works
on the host, so every step crosses over anyway (CPU, 9,637 parameters, batch 32: 0.09 ms per step either way).
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agent.engine import Floats, PackageEngine, count_of
from protocol.package import EMBEDDING, ONNXRUNTIME, PREDICT, PREFIX, STEP, Manifest
from runtime import memory

log = logging.getLogger(__name__)

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS = {"tensorrt": TENSORRT, "cuda": CUDA, "cpu": CPU}
"""Names in the agent's configuration, in the order in which they are tried."""
GPU_MEMORY_BYTES = 1 << 30


class OnnxruntimeEngine(PackageEngine):
    """Runs prefix, step and prediction of an installed package; sessions are opened when first needed."""

    name = ONNXRUNTIME
    embeds = True

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        threads: int = 1,
        providers: Sequence[str] = (),
        gpu_memory_bytes: int = GPU_MEMORY_BYTES,
    ) -> None:
        """Take an installed package.

        Args:
            directory: where prefix.onnx, step.onnx and predict.onnx lie.
            manifest: the package's description.
            threads: of onnxruntime, per graph.
            providers: names of PROVIDERS to use; none: all that onnxruntime was built with.
            gpu_memory_bytes: most that onnxruntime takes of a GPU, per graph.
        """
        super().__init__(manifest)
        self._directory = directory
        self._threads = threads
        self._gpu_memory = gpu_memory_bytes
        self._providers = _usable(providers)
        self._sessions: dict[str, Any] = {}

    def describe(self) -> str:
        """Name, version and what it runs on, for the log."""
        providers = ", ".join(self._providers)
        return f"{self.name} {onnxruntime.__version__}, {providers}, {count_of(self._threads, 'thread')}"

    def _run_prefix(self, windows: Floats) -> Floats:
        [features] = self._run(PREFIX, {"window": windows})
        return np.asarray(features)

    def _run_step(
        self, adapter: Floats, features: Floats, labels: NDArray[np.int64], weights: Floats
    ) -> tuple[float, Floats]:
        loss, gradient = self._run(
            STEP, {"adapter": adapter, "features": features, "labels": labels, "weights": weights}
        )
        return float(loss), gradient

    def _run_predict(self, adapter: Floats, features: Floats) -> Floats:
        [logits] = self._run(PREDICT, {"adapter": adapter, "features": features})
        return np.asarray(logits)

    def _run_embedding(self, features: Floats) -> Floats:
        [embedded] = self._run(EMBEDDING, {"features": features})
        return np.asarray(embedded)

    def _run(self, member: str, inputs: dict[str, NDArray[np.generic]]) -> list[Any]:
        if member != PREFIX:
            # The prefix runs only when new windows come; meanwhile its memory is given back.
            self._sessions.pop(PREFIX, None)
        try:
            return self._session(member, inputs)
        except Exception as error:
            if self._providers == [CPU]:
                raise
            log.warning("%s failed on %s, going on with the CPU: %s", member, self._providers[0], error)
            self._providers = [CPU]
            self._sessions.clear()
            return self._session(member, inputs)

    def _session(self, member: str, inputs: dict[str, NDArray[np.generic]]) -> list[Any]:
        if member not in self._sessions:
            self._sessions[member] = self._open(member)
        result: list[Any] = self._sessions[member].run(None, inputs)
        return result

    def _open(self, member: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Threads that spin between operators would take the CPU from what else the device does.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # TensorRT builds its engine for minutes and computes in TF32: for the prefix that pays, for the
        # gradient it does not.
        wanted = [name for name in self._providers if member == PREFIX or name != TENSORRT]
        try:
            session = self._start(member, options, wanted)
        except Exception as error:
            if wanted == [CPU]:
                raise
            self._leave(wanted[0], member, error)
            return self._open(member)
        started = session.get_providers()
        for name in wanted:
            if name not in started:
                self._leave(name, member, f"onnxruntime took {started[0]}")
        memory.release_start_up()  # what registering kernels and optimising the graph touched
        return session

    def _start(self, member: str, options: Any, providers: list[str]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says less than what is logged
            return onnxruntime.InferenceSession(
                str(self._directory / member),
                options,
                providers=[(name, self._options(name)) for name in providers],
                enable_fallback=0,  # its own would go on without the limits of `_options`
            )

    def _leave(self, provider: str, member: str, reason: object) -> None:
        log.warning("%s cannot start on this device for %s: %s", provider, member, reason)
        self._providers = [name for name in self._providers if name != provider]

    def _options(self, provider: str) -> dict[str, str]:
        if provider == TENSORRT:
            cache = str(self._directory / "tensorrt")
            return {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": cache,
                "trt_max_workspace_size": str(self._gpu_memory),
            }
        if provider == CUDA:
            # TF32 would round the factors of every product to 11 bits.
            return {
                "gpu_mem_limit": str(self._gpu_memory),
                "arena_extend_strategy": "kSameAsRequested",
                "use_tf32": "0",
            }
        return {}


def _usable(names: Sequence[str]) -> list[str]:
    """Execution providers to try, in order; the CPU is always the last."""
    built_with = onnxruntime.get_available_providers()
    usable = []
    for name, provider in PROVIDERS.items():
        if names and name not in names:
            continue
        if provider in built_with:
            usable.append(provider)
        elif names and provider != CPU:
            log.warning("%s: this onnxruntime was built without it (it has %s)", name, ", ".join(built_with))
    return usable if CPU in usable else [*usable, CPU]
