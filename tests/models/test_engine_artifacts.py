"""Members for other engines: what is refused, what is said, and what is written where the converters are."""

import hashlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import engine_artifacts
from models.__main__ import main
from models.engine_artifacts import CASES, Traced, check_writers, make_cases, other_engines
from models.engine_checks import check_engines
from models.errors import ExportError, ModelError
from models.export import export
from models.litert_conversion import convolution
from models.tracing import cut
from protocol.package import ENGINES as ENGINE_MEMBERS
from protocol.package import (
    LITERT,
    ONNXRUNTIME,
    ONNXRUNTIME_TRAINING,
    STEP_TFLITE,
    ModelPackage,
    pack,
    unpack,
)
from runtime import litert, onnxruntime_training
from tests.models import networks
from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, adapted, relative, some_windows


@pytest.fixture(scope="module")
def traced() -> Traced:
    module, windows = adapted(networks.Convolutions, "lora", ("second.0",), "head"), some_windows(BATCH)
    return Traced(module, cut(module, module.trainable(), windows), windows)


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    module = adapted(networks.Perceptron, "lora", ("1",), "5")
    return unpack(export(module, SCHEMA, WINDOW, KEY, name="plain", batch=BATCH), KEY.public)


def promising(package: ModelPackage, engine: str, content: dict[str, bytes]) -> ModelPackage:
    """The package, rightly signed, with these members for another engine."""
    members = {**package.members, **content}
    files = {name: hashlib.sha256(data).digest() for name, data in members.items()}
    manifest = replace(package.manifest, files=files, engines=(ONNXRUNTIME, engine))
    return unpack(pack(manifest, members, KEY), KEY.public)


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(2, 3),
    rows=st.integers(1, 9),
    data=st.data(),
)
def test_a_dilated_transposed_convolution_is_spelt_without_dilation(  # noqa: PLR0917 - Hypothesis names them
    kernel: int, stride: int, padding: int, dilation: int, rows: int, data: st.DataObject
) -> None:
    output_padding = data.draw(st.integers(0, max(stride, dilation) - 1))
    length = (rows - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    random = torch.Generator().manual_seed(kernel * 100 + rows)
    value = torch.randn(2, 3, rows, generator=random)
    weight = torch.randn(3, 4, kernel, generator=random)
    arguments = ([stride], [padding], [dilation], True, [output_padding], 1)
    if length < 1:
        return
    expected = torch.ops.aten.convolution.default(value, weight, None, *arguments)
    found = convolution(value, weight, None, *arguments)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_cases_are_what_autograd_says_and_the_last_batch_is_short(traced: Traced) -> None:
    cases = make_cases(traced)
    assert len(cases) == CASES
    assert all(case.weights.all() for case in cases[:-1])
    assert not cases[-1].weights.all()
    case, small = cases[0], 1e-2
    direction = np.random.default_rng(0).normal(size=case.adapter.shape)
    direction /= np.linalg.norm(direction)

    def loss(adapter: np.ndarray) -> float:
        flat = torch.from_numpy(adapter.astype(np.float32))
        logits = traced.cut.tail(
            *engine_artifacts.unflatten(flat, traced.shapes), torch.from_numpy(case.features)
        )
        weights = torch.from_numpy(case.weights)
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(case.labels), reduction="none")
        return float((losses * weights).sum() / weights.sum())

    assert loss(case.adapter) == pytest.approx(case.expected.loss, rel=1e-5)
    slope = (loss(case.adapter + small * direction) - loss(case.adapter - small * direction)) / (2 * small)
    assert slope == pytest.approx(float(case.expected.gradient @ direction), rel=2e-2, abs=1e-3)


def test_without_other_engines_nothing_is_added(traced: Traced) -> None:
    written = other_engines([ONNXRUNTIME], traced, None, None)
    assert (written.members, written.errors, written.engines) == ({}, {}, (ONNXRUNTIME,))


def test_an_unknown_engine_is_refused(traced: Traced) -> None:
    with pytest.raises(ExportError, match="engine 'tensorflow': expected one of onnxruntime"):
        other_engines(["tensorflow"], traced, None, None)


def test_an_interpreter_without_onnxruntime_training_is_told_what_to_install(tmp_path: Path) -> None:
    if onnxruntime_training.installed():
        pytest.skip("it is installed here")
    with pytest.raises(ExportError, match="not installed there") as caught:
        check_writers([ONNXRUNTIME_TRAINING], Path(sys.executable))
    assert "onnxruntime-training-cpu==1.19.2" in caught.value.hint
    with pytest.raises(ExportError, match="cannot write artefacts"):
        check_writers([ONNXRUNTIME_TRAINING], tmp_path / "no-such-python")


def test_pretraining_does_not_begin_where_the_converter_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("litert_torch") is not None:
        pytest.skip("the converter is installed here")
    output = tmp_path / "out.zip"
    assert main(["pretrain", str(tmp_path), "--output", str(output), "--engine", "litert"]) == 1
    assert "litert-torch, which is not installed" in capsys.readouterr().err
    assert not output.exists()


def test_an_onnx_backbone_cannot_become_tflite(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_artifacts, "check_writers", lambda *_: None)
    with pytest.raises(ExportError, match="the part before the cut is an ONNX graph"):
        other_engines([LITERT], traced, b"front", None)


def test_a_plain_package_leaves_nothing_unchecked(package: ModelPackage) -> None:
    assert check_engines(package) == {}


def test_an_engine_of_a_later_version_is_named_as_not_run(package: ModelPackage) -> None:
    later = promising(package, "executorch", {"step.pte": b"later"})
    assert check_engines(later) == {"executorch": "this version does not know the engine"}


def test_members_that_are_no_flatbuffers_are_found_without_a_runtime(package: ModelPackage) -> None:
    content = dict.fromkeys(ENGINE_MEMBERS[LITERT], b"\x1c\0\0\0TFL3" + bytes(64))
    broken = promising(package, LITERT, {**content, STEP_TFLITE: b"not a graph"})
    with pytest.raises(ModelError, match=r"step\.tflite: expected a file with the identifier TFL3"):
        check_engines(broken)


@pytest.mark.parametrize("engine", [LITERT, ONNXRUNTIME_TRAINING])
def test_what_cannot_be_run_here_is_said(package: ModelPackage, engine: str) -> None:
    if litert.installed() if engine == LITERT else onnxruntime_training.installed():
        pytest.skip("its runtime is installed here")
    identifier = b"TFL3" if engine == LITERT else b"ODTC"
    extra = set(ENGINE_MEMBERS[engine]) - set(package.members)
    there = promising(package, engine, dict.fromkeys(extra, b"\x1c\0\0\0" + identifier + bytes(64)))
    assert "installed here" in check_engines(there)[engine]


def test_litert_members_compute_what_torch_computes(traced: Traced) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra models-litert (make test-engines)")
    written = other_engines([LITERT], traced, None, None)
    assert set(written.members) == set(ENGINE_MEMBERS[LITERT])
    assert set(written.errors) == {
        f"litert.{name}_error" for name in ("features", "loss", "gradient", "logits")
    }
    case = make_cases(traced)[-1]
    found = litert.LiteRTGraph(written.members[STEP_TFLITE]).run(
        {"adapter": case.adapter, "features": case.features, "labels": case.labels, "weights": case.weights}
    )
    assert relative(found["gradient"], case.expected.gradient) <= 1e-5
