"""The int8 prefix: smaller, close, standard, and its cost said."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models import calibration, graphs, parity
from models.__main__ import main
from models.calibration import Calibration
from models.errors import ExportError, ModelError
from models.export import export
from models.packages import DOMAINS, verify
from models.prefix_quantisation import features, quantise
from models.tracing import cut
from protocol.package import PREDICT, PREFIX, STEP, ModelPackage
from protocol.signing import PublicKey
from tests.models import networks
from tests.models.fleets import write_fleet
from tests.models.networks import BATCH, KEY, SCHEMA, WINDOW, adapted, relative, some_windows


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def both() -> tuple[ModelPackage, ModelPackage, list[str]]:
    """One module exported twice, with a float32 and with an int8 prefix; and what was said."""
    module = adapted(networks.Convolutions, "bottleneck", ("second",), "head")
    lines: list[str] = []
    windows, labels = some_windows(60).numpy(), np.arange(60) % 4
    given = Calibration(some_windows(100, 1).numpy(), (windows, labels), report=lines.append)
    packages = [
        verify(export(module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH, calibration=chosen), KEY.public)
        for chosen in (None, given)
    ]
    return packages[0], packages[1], lines


def test_the_int8_prefix_is_another_backbone_close_to_the_first(
    both: tuple[ModelPackage, ModelPackage, list[str]],
) -> None:
    before, after, _ = both
    assert after.manifest.backbone_sha256 == hashlib.sha256(after.members[PREFIX]).digest()
    assert after.manifest.backbone_sha256 != before.manifest.backbone_sha256
    windows = some_windows(50, 9).numpy()
    error = relative(
        features(after.members[PREFIX], windows, BATCH), features(before.members[PREFIX], windows, BATCH)
    )
    assert 1e-5 < error < 0.1
    assert error == pytest.approx(after.manifest.metrics["prefix_int8_feature_error"], rel=0.5)


def test_its_operators_are_standard_and_its_weights_are_int8(
    both: tuple[ModelPackage, ModelPackage, list[str]],
) -> None:
    model = onnx.load_from_string(both[1].members[PREFIX])
    assert {node.domain for node in model.graph.node} <= set(DOMAINS)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    writers = {node.output[0]: node for node in model.graph.node}
    assert len(convolutions) == 2
    for node in convolutions:
        assert {writers[name].op_type for name in node.input[:2]} == {"DequantizeLinear"}
    int8 = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert any(len(tensor.dims) == 3 for tensor in int8)


def test_the_step_on_int8_features_is_that_of_torch(
    both: tuple[ModelPackage, ModelPackage, list[str]],
) -> None:
    _, package, _ = both
    module = adapted(networks.Convolutions, "bottleneck", ("second",), "head")
    parts = cut(module, module.trainable(), some_windows(BATCH))
    rows = features(package.members[PREFIX], some_windows(BATCH, 4).numpy(), BATCH)
    members = package.members[STEP], package.members[PREDICT]
    assert max(vars(parity.measure_step(module, parts, members, rows)).values()) <= parity.LIMIT
    assert max(vars(package.manifest.parity).values()) <= parity.LIMIT
    other = adapted(networks.Convolutions, "bottleneck", ("second",), "head")
    with torch.no_grad():
        other.backbone.dense.bias.add_(0.1)
    changed = cut(other, other.trainable(), some_windows(BATCH))
    assert parity.measure_step(other, changed, members, rows).gradient > 100 * parity.LIMIT


def test_the_cost_is_measured_and_said(both: tuple[ModelPackage, ModelPackage, list[str]]) -> None:
    before, after, lines = both
    metrics = after.manifest.metrics
    assert metrics["prefix_int8_bytes"] == len(after.members[PREFIX])
    assert metrics["prefix_float32_bytes"] == len(before.members[PREFIX])
    assert metrics["prefix_calibrated_on_real_windows"] == 1
    windows, labels = some_windows(60), np.arange(60) % 4
    for package, name in ((before, "float32"), (after, "int8")):
        rows = features(package.members[PREFIX], windows.numpy(), BATCH)
        predict = graphs.load(package.members[PREDICT])
        right = 0
        for start in range(0, 60, BATCH):
            part = np.resize(rows[start : start + BATCH], (BATCH, rows.shape[1]))
            (logits,) = graphs.run(predict, adapter=package.adapter, features=part)
            known = labels[start : start + BATCH]
            right += int((logits.argmax(1)[: len(known)] == known).sum())
        assert metrics[f"prefix_{name}_held_out_accuracy"] == pytest.approx(right / 60)
    assert "int8 prefix: features" in lines[0]
    assert "held-out accuracy" in lines[1]


def test_ranges_come_from_the_windows_that_are_given() -> None:
    module = adapted(networks.Convolutions, "head", (), "head")
    prefix = graphs.to_onnx(
        cut(module, module.trainable(), some_windows(BATCH)).prefix,
        (some_windows(BATCH),), ["window"], ["features"],
    )  # fmt: skip
    fitting = quantise(prefix, Calibration(some_windows(64).numpy(), report=silent), BATCH)
    narrow = quantise(prefix, Calibration(some_windows(64).numpy() * 0.1, report=silent), BATCH)
    windows = some_windows(40, 5).numpy()
    wanted = features(prefix, windows, BATCH)
    errors = [relative(features(found.data, windows, BATCH), wanted) for found in (fitting, narrow)]
    assert errors[0] < 0.1
    assert errors[1] > 3 * errors[0]


def test_a_prefix_without_products_is_refused() -> None:
    module = adapted(networks.Perceptron, "head", (), "1")
    with pytest.raises(ExportError, match="no convolution and no matrix product to quantise"):
        export(
            module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH,
            calibration=calibration.at_random(SCHEMA, WINDOW),
        )  # fmt: skip


def test_an_int8_prefix_and_the_litert_engine_exclude_each_other() -> None:
    module = adapted(networks.Perceptron, "head", (), "5")
    with pytest.raises(ExportError, match="an int8 prefix is for onnxruntime only"):
        export(
            module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH, engines=("litert",),
            calibration=calibration.at_random(SCHEMA, WINDOW),
        )  # fmt: skip


def test_a_fleet_of_other_windows_cannot_calibrate(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path / "fleet")
    with pytest.raises(ModelError, match=r"expected windows of \[3, 32\], got \[2, "):
        calibration.from_fleet(fleet, SCHEMA, WINDOW, labelled=False)


def test_pretrain_quantises_with_the_fleets_windows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, target = write_fleet(tmp_path / "fleet"), tmp_path / "a.graft"
    arguments = ["--output", str(target), "--epochs", "1", "--quantise-prefix", "--batch", "4"]
    assert main(["pretrain", str(fleet), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "calibrated on random windows" not in shown
    package = verify(target.read_bytes(), PublicKey.from_hex(shown.split("publisher ")[1].split()[0]))
    metrics = package.manifest.metrics
    assert metrics["prefix_float32_held_out_accuracy"] == pytest.approx(
        metrics["held_out_accuracy"], abs=1e-6
    )
    assert metrics["prefix_int8_bytes"] < 0.6 * metrics["prefix_float32_bytes"]
