"""ONNX files as they come: read, listed, cut and opened for any batch, or refused with a reason."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models import graphs, onnx_file
from models.errors import ExportError, ModelError
from models.onnx_cut import cut, opened
from models.onnx_front import arrange, fixed_front
from models.onnx_graph import classifier, connect, cut_points
from models.onnx_import import ImportedTail
from tests.models import networks
from tests.models.networks import prepared, relative
from tests.models.onnx_files import Residual, built, exported, normal


def perceptron(file: Path, *, opset: int = 18, kind: int = TensorProto.FLOAT) -> Path:
    """Two layers in two manners: a Gemm, then MatMul and Add; a softmax at the end."""
    nodes = [
        helper.make_node("Gemm", ["window", "w", "b"], ["hidden"], name="first", transB=1),
        helper.make_node("Relu", ["hidden"], ["active"], name="active"),
        helper.make_node("MatMul", ["active", "v"], ["product"], name="last"),
        helper.make_node("Add", ["c", "product"], ["scores"], name="bias"),
        helper.make_node("Softmax", ["scores"], ["logits"], axis=-1),
    ]
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    weights = {"w": normal(8, 6), "b": normal(8), "v": normal(8, 4), "c": normal(4)}
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    return built(nodes, weights, ("n", 6), file, opset=opset, kind=kind)


def test_the_list_names_every_place_to_cut_and_what_lies_on_both_sides(tmp_path: Path) -> None:
    graph = connect(onnx_file.read(perceptron(tmp_path / "a.onnx")))
    assert graph.output == "scores"
    assert [(point.name, point.before, point.behind) for point in cut_points(graph)] == [
        ("window", 0, 92), ("hidden", 56, 36), ("active", 56, 36), ("product", 88, 4), ("scores", 92, 0),
    ]  # fmt: skip
    last = classifier(graph)
    assert last is not None
    assert (last.features, last.output, last.classes) == ("active", "scores", 4)


def test_a_residual_block_can_be_cut_around_but_not_inside(tmp_path: Path) -> None:
    file = exported(prepared(Residual), (1, 16, 16), tmp_path / "a.onnx", dynamo=False)
    graph = connect(opened(onnx_file.read(file), (1, 16, 16)))
    names = [point.name for point in cut_points(graph)]
    assert "/lower/lower.5/HardSwish_output_0" in names
    assert "/first/Conv_output_0" not in names
    with pytest.raises(ExportError) as caught:
        cut(graph, "/first/Conv_output_0", graph.output)
    assert "a branch runs beside it" in str(caught.value)
    assert "the next tensor that is: '/Add_output_0'" in str(caught.value)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("hid", "no tensor 'hid'; near: hidden"),
        ("first", "the graph has no tensor 'first'"),
        ("w", "'w' does not depend on the window"),
    ],
)
def test_a_wrong_tensor_is_answered_with_what_could_be_meant(at: str, message: str, tmp_path: Path) -> None:
    graph = connect(opened(onnx_file.read(perceptron(tmp_path / "a.onnx")), (6,)))
    with pytest.raises(ExportError) as caught:
        cut(graph, at, graph.output)
    assert message in str(caught.value)


def test_a_cut_behind_the_end_of_the_import_is_refused(tmp_path: Path) -> None:
    graph = connect(opened(onnx_file.read(perceptron(tmp_path / "a.onnx")), (6,)))
    with pytest.raises(ExportError, match="'product' stands behind 'hidden'"):
        cut(graph, "product", "hidden")


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 21, 22, 23])
def test_every_accepted_opset_computes_the_same(opset: int, tmp_path: Path) -> None:
    file = perceptron(tmp_path / "a.onnx", opset=opset)
    read = onnx_file.read(file)
    assert onnx_file.LOWEST <= read.opset <= onnx_file.HIGHEST
    graph = connect(opened(read, (6,)))
    parts = cut(graph, "hidden", "scores")
    window = normal(5, 6)
    (value,) = graphs.run(
        graphs.load(fixed_front(parts, arrange((6, 1), (6,)), 5)), window=window[:, :, None]
    )
    found = torch.softmax(ImportedTail(parts)(torch.from_numpy(value)), -1).detach().numpy()
    (expected,) = graphs.run(graphs.load(file.read_bytes()), window=window)
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("opset", [9, 24])
def test_an_opset_beyond_what_is_known_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"expected opset 11 to 23, got {opset}"):
        onnx_file.read(perceptron(tmp_path / "a.onnx", opset=opset))


def test_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is float16, expected float32 throughout"):
        onnx_file.read(perceptron(tmp_path / "a.onnx", kind=TensorProto.FLOAT16))


def test_an_operator_of_one_runtime_is_refused_by_name(tmp_path: Path) -> None:
    model = onnx.load(perceptron(tmp_path / "a.onnx"))
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", "QuickGelu"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(
        ExportError, match=r"com\.microsoft\.QuickGelu \(node 'active'\) is not a standard one"
    ):
        onnx_file.read(tmp_path / "b.onnx")


def test_weights_in_a_file_beside_it_are_read(tmp_path: Path) -> None:
    model = onnx.load(perceptron(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    graph = connect(onnx_file.read(tmp_path / "b.onnx"))
    assert cut_points(graph)[0].behind == 92
    (tmp_path / "b.data").unlink()
    with pytest.raises(ModelError, match="its weights are not readable"):
        onnx_file.read(tmp_path / "b.onnx")


@pytest.mark.parametrize("place", ["../a.onnx", "/etc/hostname", "..", "sub/a.onnx"])
def test_weights_from_anywhere_else_are_refused(place: str, tmp_path: Path) -> None:
    model = onnx.load(perceptron(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    hostile = onnx.load(tmp_path / "b.onnx", load_external_data=False)
    for tensor in hostile.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place if entry.key == "location" else entry.value
    (tmp_path / "c.onnx").write_bytes(hostile.SerializeToString())
    with pytest.raises(ExportError, match="expected a file beside it"):
        onnx_file.read(tmp_path / "c.onnx")


def test_a_tensor_larger_than_any_machine_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Expand", ["window", "shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["logits"], keepdims=0),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "bomb",
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["n", 1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])],
            [onnx.numpy_helper.from_array(np.array([10**6, 10**6], np.int64), "shape")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    (tmp_path / "bomb.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"tensor 'large': .* is too large"):
        onnx_file.read(tmp_path / "bomb.onnx")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_an_error_and_nothing_worse(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    if not file.exists():
        perceptron(file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        graph = connect(onnx_file.read(damaged))
        graph = connect(opened(graph.file, [size or 1 for size in graph.file.input_shape[1:]]))
        points = cut_points(graph)
        ImportedTail(cut(graph, points[0].name, points[-1].name))
    except ModelError as error:
        assert str(error)  # noqa: PT017 - many files are damaged in a way that still means something


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("case", ["Convolutions", "Encoder", "Residual"])
def test_a_file_for_a_batch_of_one_is_opened_for_any(case: str, dynamo: bool, tmp_path: Path) -> None:
    build, shape = (Residual, (1, 16, 16)) if case == "Residual" else (getattr(networks, case), (3, 32))
    module = prepared(build)
    file = exported(module, shape, tmp_path / "a.onnx", dynamo=dynamo, batch=1)
    read = onnx_file.read(file)
    assert read.batch == 1
    graph = connect(opened(read, shape))
    tail = ImportedTail(cut(graph, "window", "logits")).eval()
    windows = torch.from_numpy(normal(7, *shape))
    with torch.no_grad():
        assert relative(tail(windows), module(windows)) <= 1e-5


@pytest.mark.parametrize(
    ("window", "taken", "found"),
    [
        ((3, 32), (3, 32), (3, 32)), ((3, 32), (32, 3), (32, 3)), ((3, 32), (None, 3), (32, 3)),
        ((3, 32), (96,), (96,)), ((6, 1), (6,), (6,)), ((3, 32), (1, 3, 32), (1, 3, 32)),
        ((1, 16, 20), (16, 20, 1), (16, 20, 1)), ((3, 16, 20), (16, 20, 3), (16, 20, 3)),
        ((1, 16, 20), (16, 20), (16, 20)), ((3, 32), (3, None), (3, 32)),
    ],
)  # fmt: skip
def test_windows_are_laid_out_as_the_graph_takes_them(
    window: tuple[int, ...], taken: tuple[int | None, ...], found: tuple[int, ...]
) -> None:
    arrangement = arrange(window, taken)
    assert arrangement.taken == found
    windows = normal(2, *window)
    laid_out = arrangement(windows)
    assert laid_out.shape == (2, *found)
    nodes, weights = arrangement.nodes(2, "window", "logits")
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "layout",
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, [2, *window])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (in_graph,) = graphs.run(graphs.load(model.SerializeToString()), window=windows)
    assert np.array_equal(in_graph, laid_out)


@pytest.mark.parametrize("taken", [(32, 4), (95,), (3, 32, 2)])
def test_windows_that_fit_in_no_layout_are_refused(taken: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match=r"the schema gives \[3, 32\]"):
        arrange((3, 32), taken)
