"""Which engine is chosen: by configuration, by what the package holds, and by what is installed."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from agent import engines
from agent.config import AUTO, ENGINE_NAMES, EngineConfig
from agent.engine import PackageEngine
from agent.engines import CANDIDATES, open_engine
from agent.errors import EngineError
from protocol.package import ENGINES, LITERT, ONNXRUNTIME, ONNXRUNTIME_TRAINING, Manifest
from tests.builders import tiny_manifest, tiny_members

EVERY = (ONNXRUNTIME, ONNXRUNTIME_TRAINING, LITERT)


def manifest_for(*names: str) -> Manifest:
    """A package with members for these engines."""
    members = tiny_members() | {member: b"graph" for name in names for member in ENGINES[name]}
    return replace(tiny_manifest(members | tiny_members()), engines=names)


class Opened(PackageEngine):
    """Stands where a runtime would, and remembers what it was opened with."""

    def __init__(self, name: str, manifest: Manifest, threads: int) -> None:
        super().__init__(manifest)
        self.name, self.threads = name, threads

    def describe(self) -> str:
        return f"{self.name} 1.0 on nothing"

    def _run_prefix(self, *_: object) -> None:
        raise NotImplementedError

    _run_step = _run_predict = _run_prefix


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, broken: tuple[str, ...] = ()) -> None:
    """Make a device on which these runtimes are installed, some of them unusable."""

    def candidate(name: str) -> engines.Candidate:
        def opens(_: Path, manifest: Manifest, __: EngineConfig, threads: int) -> PackageEngine:
            if name in broken:
                raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.32' not found")
            return Opened(name, manifest, threads)

        return engines.Candidate(CANDIDATES[name].extra, lambda: name in names, opens)

    monkeypatch.setattr(engines, "CANDIDATES", {name: candidate(name) for name in CANDIDATES})


def choose(manifest: Manifest, name: str = AUTO) -> PackageEngine:
    return open_engine(Path(), manifest, EngineConfig(name), threads=2)


@pytest.mark.parametrize(
    ("held", "there", "expected"),
    [
        (EVERY, (ONNXRUNTIME, LITERT), ONNXRUNTIME),
        (EVERY, (LITERT,), LITERT),
        # Whoever installed the training build, in the place of onnxruntime, wants it.
        (EVERY, EVERY, ONNXRUNTIME_TRAINING),
        ((ONNXRUNTIME, LITERT), EVERY, ONNXRUNTIME),
        ((ONNXRUNTIME,), EVERY, ONNXRUNTIME),
    ],
)
def test_auto_takes_the_first_that_the_package_and_the_device_have(
    held: tuple[str, ...], there: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, *there)
    engine = choose(manifest_for(*held))
    assert (engine.name, engine.threads) == (expected, 2)


@pytest.mark.parametrize("name", EVERY)
def test_the_configured_engine_wins_over_the_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *EVERY)
    assert choose(manifest_for(*EVERY), name).name == name


def test_the_choice_stands_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, LITERT)
    with caplog.at_level(logging.INFO):
        choose(manifest_for(*EVERY))
    assert "engine litert 1.0 on nothing" in caplog.text


def test_a_package_without_the_configured_engine_names_the_export_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, *EVERY)
    with pytest.raises(EngineError, match=r"for litert, 'tiny' is for onnxruntime; .*--engine litert"):
        choose(manifest_for(ONNXRUNTIME), LITERT)


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ONNXRUNTIME)
    with pytest.raises(EngineError, match=r"install graftwork\[agent-ort-training\]"):
        choose(manifest_for(*EVERY), ONNXRUNTIME_TRAINING)


def test_a_device_without_any_runtime_is_told_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(EngineError, match=r"graftwork\[agent\] or graftwork\[agent-litert\]"):
        choose(manifest_for(ONNXRUNTIME, LITERT))


def test_a_runtime_that_does_not_fit_the_board_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed(monkeypatch, ONNXRUNTIME, LITERT, broken=(ONNXRUNTIME,))
    assert choose(manifest_for(*EVERY)).name == LITERT
    assert "onnxruntime does not start here: libstdc++" in caplog.text


def test_if_the_only_runtime_does_not_fit_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ONNXRUNTIME, broken=(ONNXRUNTIME,))
    with pytest.raises(EngineError, match="GLIBCXX"):
        choose(manifest_for(ONNXRUNTIME))


def test_the_configuration_knows_every_engine() -> None:
    assert set(ENGINE_NAMES) == {AUTO, *CANDIDATES} == {AUTO, *ENGINES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "tensorflow"}, "name: expected one of auto, onnxruntime"),
        ({"providers": ("rocm",)}, "providers: expected some of tensorrt, cuda, cpu, got 'rocm'"),
        ({"gpu_memory_bytes": 1}, "gpu_memory_bytes"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**settings)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((LITERT,), "engines: expected onnxruntime"),
        ((ONNXRUNTIME, ONNXRUNTIME), "no name twice"),
        ((ONNXRUNTIME, LITERT), r"files: expected predict\.tflite for the engine litert"),
    ],
)
def test_a_manifest_that_promises_what_it_does_not_hold_is_refused(
    names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny_manifest(tiny_members()), engines=names)


def test_an_engine_of_a_later_version_is_kept_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, *EVERY)
    manifest = replace(tiny_manifest(tiny_members()), engines=(ONNXRUNTIME, "executorch"))
    assert choose(manifest).name == ONNXRUNTIME
