"""Packages from ONNX files without source: they compute what the file does, and a device trains them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from agent.onnxruntime_engine import OnnxruntimeEngine
from models import graphs, onnx_file
from models.__main__ import main
from models.adapt import AdaptedFile, Placement, adapt
from models.errors import AdapterError, ExportError
from models.export import export
from models.onnx_operators import OPERATORS
from models.packages import verify
from protocol.input_schema import ONE_PICTURE, ImageSpec, InputSchema, WindowSpec
from protocol.package import ModelPackage
from protocol.signing import PublicKey
from tests.models import networks
from tests.models.networks import KEY, SCHEMA, WINDOW, prepared, relative
from tests.models.onnx_files import LongShort, Residual, built, exported, normal

BATCH = 8
PICTURES = InputSchema("image", ("grey",), 1.0, ("zero", "one", "two", "three"), ImageSpec(16, 16))


def package_of(
    adapted: AdaptedFile, schema: InputSchema = SCHEMA, window: WindowSpec = WINDOW
) -> ModelPackage:
    data = export(adapted.module, schema, window, KEY, name="test", batch=BATCH, front=adapted.front)
    return verify(data, KEY.public)


def installed(package: ModelPackage, folder: Path) -> OnnxruntimeEngine:
    for name, content in package.members.items():
        (folder / name).write_bytes(content)
    return OnnxruntimeEngine(folder, package.manifest)


def losses_of_training(
    engine: OnnxruntimeEngine, package: ModelPackage, shape: tuple[int, ...]
) -> list[float]:
    """Train on windows whose class shows in their mean, as a device does: features once, then steps."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 5 * BATCH - 3)
    windows = random.standard_normal((len(labels), *shape)).astype(np.float32)
    windows += labels.reshape(-1, *[1] * len(shape)).astype(np.float32)
    features, adapter = engine.features(windows), package.adapter.copy()
    losses = []
    for _ in range(30):
        total = 0.0
        for start in range(0, len(labels), BATCH):
            rows = slice(start, start + BATCH)
            loss, gradient = engine.loss_and_gradient(
                adapter, features[rows], labels[rows], np.ones(len(labels[rows]), np.float32)
            )
            adapter = adapter - np.float32(0.1) * gradient
            total += loss
        losses.append(total)
    return losses


def test_a_convolutional_file_becomes_a_package_that_a_device_trains(tmp_path: Path) -> None:
    module = prepared(networks.Convolutions)
    file = onnx_file.read(exported(module, (3, 32), tmp_path / "a.onnx"))
    adapted = adapt(file, Placement("relu", rank=4, keep_head=True), SCHEMA, WINDOW, batch=BATCH)
    package = package_of(adapted)
    assert list(package.manifest.slices()) == ["relu.bottleneck", "logits"]
    assert max(vars(package.manifest.parity).values()) <= 1e-5
    engine = installed(package, tmp_path)
    windows = normal(20, 3, 32)
    # Adapters start as the identity and the head is kept, so the package says what the module says.
    logits = engine.predict(package.adapter, engine.features(windows))
    assert relative(logits, module(torch.from_numpy(windows)).detach()) <= 1e-5
    losses = losses_of_training(engine, package, (3, 32))
    assert losses[-1] < 0.8 * losses[0]


def test_depthwise_convolutions_before_the_cut_and_a_residual_block_behind(tmp_path: Path) -> None:
    file = onnx_file.read(
        exported(prepared(Residual), (1, 16, 16), tmp_path / "a.onnx", dynamo=False, opset=13)
    )
    at = "/lower/lower.5/Mul_output_0"
    adapted = adapt(file, Placement(at, "lora", rank=2), PICTURES, ONE_PICTURE, batch=BATCH)
    package = package_of(adapted, PICTURES, ONE_PICTURE)
    # A new head of four classes: nothing of the old classifier is left.
    assert [name.rpartition(".")[2] for name in package.manifest.slices()] == ["lora", "lora", "head"]
    assert package.manifest.slices()["head"].stop == package.manifest.parameters
    losses = losses_of_training(installed(package, tmp_path), package, (1, 16, 16))
    assert losses[-1] < 0.8 * losses[0]


def test_a_depthwise_convolution_behind_the_cut_is_refused_by_its_name(tmp_path: Path) -> None:
    file = onnx_file.read(exported(prepared(Residual), (1, 16, 16), tmp_path / "a.onnx", dynamo=False))
    adapted = adapt(
        file, Placement("/lower/lower.2/Clip_output_0", rank=2), PICTURES, ONE_PICTURE, batch=BATCH
    )
    with pytest.raises(ExportError, match=r"layer '/lower/lower_3/Conv_output_0': a grouped convolution"):
        package_of(adapted, PICTURES, ONE_PICTURE)


def test_lora_in_a_transformer_block_of_a_file_with_its_own_gelu(tmp_path: Path) -> None:
    module = prepared(networks.Encoder)
    # Opset 20 has Gelu as one operator; an older opset could not hold the front of this file.
    file = onnx_file.read(exported(module, (3, 32), tmp_path / "a.onnx", opset=20))
    names = {node.op_type: node.output[0] for node in reversed(file.model.graph.node)}
    adapted = adapt(file, Placement(names["Add"], "lora", rank=2), SCHEMA, WINDOW, batch=BATCH)
    package = package_of(adapted)
    assert sum(name.endswith(".lora") for name in package.manifest.slices()) == 8
    losses = losses_of_training(installed(package, tmp_path), package, (3, 32))
    assert losses[-1] < 0.8 * losses[0]


def test_a_file_with_the_batch_in_its_second_dimension_is_cut_inside(tmp_path: Path) -> None:
    module = prepared(networks.TorchEncoder)
    file = onnx_file.read(exported(module, (3, 32), tmp_path / "a.onnx", dynamo=False, opset=17))
    at = "/layers.0/norm2/LayerNormalization_output_0"
    adapted = adapt(file, Placement(at, keep_head=True), SCHEMA, WINDOW, batch=BATCH)
    windows = normal(BATCH, 3, 32)
    (value,) = graphs.run(graphs.load(adapted.front), window=windows)
    assert value.shape == (BATCH, 32, 16)
    with torch.no_grad():
        found, expected = (
            part(torch.from_numpy(x)) for part, x in ((adapted.module, value), (module, windows))
        )
    assert relative(found, expected) <= 1e-5


def test_a_recurrent_layer_may_stand_before_the_cut_and_not_behind(tmp_path: Path) -> None:
    file = onnx_file.read(exported(prepared(LongShort), (3, 32), tmp_path / "a.onnx", dynamo=False, opset=17))
    by_operator = {node.op_type: node.output[0] for node in file.model.graph.node}
    adapted = adapt(file, Placement(by_operator["Gather"], "head"), SCHEMA, WINDOW, batch=BATCH)
    assert adapted.error <= 1e-5
    assert adapted.module.segments[0].name == "head"
    with pytest.raises(
        ExportError, match=r"operator LSTM \(node '/memory/LSTM'\).*recurrence is not supported"
    ):
        adapt(file, Placement(by_operator["Relu"]), SCHEMA, WINDOW, batch=BATCH)


def test_every_kind_of_operator_behind_an_adapter_has_its_gradient(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["window", "w"], ["cut"], pads=[1, 1]),
        node("BatchNormalization", ["cut", "s", "b", "m", "v"], ["normed"]),
        node("MaxPool", ["normed"], ["pooled"], kernel_shape=[3], strides=[2], pads=[1, 0]),
        node("HardSwish", ["pooled"], ["a1"]), node("LeakyRelu", ["a1"], ["a2"]),
        node("AveragePool", ["a2"], ["a3"], kernel_shape=[2], strides=[2]),
        node("InstanceNormalization", ["a3", "s", "b"], ["a4"]), node("Clip", ["a4", "low", "high"], ["a5"]),
        node("Gelu", ["a5"], ["a6"]), node("Erf", ["a6"], ["a7"]), node("HardSigmoid", ["a7"], ["a8"]),
        node("PRelu", ["a8", "slope"], ["a9"]), node("Pad", ["a9", "pads"], ["b1"]),
        node("Slice", ["b1", "one", "last", "axis2"], ["b2"]),
        node("Transpose", ["b2"], ["b3"], perm=[0, 2, 1]),
        node("LayerNormalization", ["b3", "s", "b"], ["b4"]), node("Softmax", ["b4"], ["b5"]),
        node("Gather", ["b5", "chosen"], ["b6"], axis=2),
        node("ReduceL2", ["b6", "axis2"], ["b7"], keepdims=0),
        node("ReduceMax", ["b4", "axis2"], ["b8"], keepdims=0), node("Tanh", ["b8"], ["b9"]),
        node("Softplus", ["b7"], ["c1"]), node("Mul", ["b9", "c1"], ["c2"]),
        node("Concat", ["c2", "b7"], ["c3"], axis=1), node("Elu", ["c3"], ["c4"]),
        node("Gemm", ["c4", "head"], ["logits"]),
    ]  # fmt: skip
    ints = lambda *values: np.array(values, np.int64)  # noqa: E731
    weights = {
        "w": normal(6, 3, 3), "s": np.abs(normal(6)), "b": normal(6, seed=1), "m": normal(6, seed=2),
        "v": np.abs(normal(6, seed=3)), "low": np.array(-1.5, np.float32), "high": np.array(1.5, np.float32),
        "slope": normal(6, 1), "pads": ints(0, 0, 1, 0, 0, 2), "one": ints(1), "last": ints(2**40),
        "axis2": ints(2), "chosen": ints(5, 0, 1), "head": normal(20, 4),
    }  # fmt: skip
    file = built(nodes, weights, ("n", 3, 32), tmp_path / "a.onnx", opset=20)
    adapted = adapt(onnx_file.read(file), Placement("cut", rank=3), SCHEMA, WINDOW, batch=BATCH)
    package = package_of(adapted)
    assert list(package.manifest.slices()) == ["cut.bottleneck", "head"]
    assert package.manifest.parity.gradient <= 1e-5


def small(folder: Path, last: str = "Gemm") -> Path:
    nodes = [
        helper.make_node("Conv", ["window", "w"], ["mixed"], name="mix", pads=[1, 1]),
        helper.make_node("Relu", ["mixed"], ["active"], name="activate"),
        helper.make_node("Conv", ["active", "u"], ["higher"], name="again"),
        helper.make_node("ReduceMean", ["higher", "axis"], ["pooled"], name="pool", keepdims=0),
        helper.make_node("Gemm", ["pooled", "v"], ["logits"], name="classify"),
    ]
    weights = {"w": normal(6, 3, 3), "u": normal(5, 6, 2), "axis": np.array([2]), "v": normal(5, 3)}
    if last != "Gemm":
        return built(nodes[:3], weights, ("n", 3, 32), folder / "a.onnx", output="higher")
    return built(nodes, weights, ("n", 3, 32), folder / "a.onnx")


def test_a_file_without_a_classifier_gets_a_head_on_the_mean_over_time(tmp_path: Path) -> None:
    file = onnx_file.read(small(tmp_path, "Conv"))
    adapted = adapt(file, Placement("active", "head"), SCHEMA, WINDOW, batch=BATCH)
    value = torch.from_numpy(normal(BATCH, 6, 32))
    kernel = torch.from_numpy(normal(5, 6, 2))
    expected = adapted.module.backbone.head(nn.functional.conv1d(value, kernel).mean(2))
    assert relative(adapted.module(value).detach(), expected.detach()) <= 1e-6


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement("active", layers=("poled",)), "no layer 'poled' behind 'active'; near: pool"),
        (Placement("active", layers=("mix",)), "no layer 'mix' behind 'active'"),
        (Placement("active", "lora", layers=("pool",)), "lora fits an ungrouped Linear"),
        (Placement("pooled", "lora"), "no linear layer or convolution behind 'pooled'"),
        (Placement("higher", "lora"), "no linear layer or convolution behind 'higher'"),
        (Placement("active", keep_head=True), "the file has 3 logits, the schema has 4 classes"),
        (Placement("active", features="highest"), "no tensor 'highest'; near: higher"),
        (Placement("active", logits="logit"), "no tensor 'logit'; near: logits"),
        (Placement("active", "head", layers=("higher",)), "head: only the head is trained"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(placement: Placement, message: str, tmp_path: Path) -> None:
    with pytest.raises((AdapterError, ExportError)) as caught:
        adapt(onnx_file.read(small(tmp_path)), placement, SCHEMA, WINDOW, batch=BATCH)
    assert message in str(caught.value)


def test_an_import_that_differs_from_the_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda _node: lambda value: torch.relu(value) * 1.001)
    with pytest.raises(
        ExportError, match=r"import: expected 'pooled' within 1e-05 of the file, got 1\.0e-03"
    ):
        adapt(onnx_file.read(small(tmp_path)), Placement("mixed"), SCHEMA, WINDOW, batch=BATCH)


def test_the_command_lists_adapts_and_quantises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = small(tmp_path), tmp_path / "mine.graft"
    assert main(["adapt", str(file), "--list"]) == 0
    shown = capsys.readouterr().out
    assert "active" in shown
    assert "pooled  (the classifier reads it)" in shown
    arguments = ["--at", "active", "--classes", "a,b,c,d,e", "--rate", "100", "--output", str(target)]
    arguments += ["--layer", "again", "--rank", "2", "--batch", "4", "--quantise-prefix"]
    assert main(["adapt", str(file), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "imported what is behind active" in shown
    assert "calibrated on random windows" in shown
    package = verify(target.read_bytes(), PublicKey.from_hex(shown.split("publisher ")[1].split()[0]))
    assert package.manifest.schema.channels == ("c0", "c1", "c2")
    assert list(package.manifest.slices()) == ["active.bottleneck", "higher.bottleneck", "head"]
    assert 0 < package.manifest.metrics["prefix_int8_feature_error"] < 0.1
    assert zipfile.ZipFile(io.BytesIO(target.read_bytes())).testzip() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "a,b", "--rate", "1", "--output", "x"], "no tensor to cut at"),
        (["--at", "active", "--classes", "a,b", "--rate", "1"], "--output: expected"),
        (["--at", "active", "--output", "x"], "expected either --schema, or --classes"),
        (["--at", "active", "--classes", "a,b", "--output", "x"], "--rate: expected"),
        (["--at", "active", "--classes", "a,a", "--rate", "1", "--output", "x"], "classes: expected"),
        (["--at", "activated", "--classes", "a,b", "--rate", "1", "--output", "x"], "near: active"),
        (["--at", "active", "--classes", "a,b", "--channels", "x", "--rate", "1", "--output", "x"],
         "the graph takes [3, 32] per window, the schema gives [1, 32]"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_one_line_and_status_1(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(small(tmp_path)), *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
