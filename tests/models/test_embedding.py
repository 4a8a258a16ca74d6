"""The frozen embedding: taken where the network says, what the formula says, on any onnxruntime."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from models import embedding, graphs
from models.backbones import BACKBONES, default_adapter
from models.embedding import FEATURES, FIRST, LAST, deviations, finish, hadamard, raw, run_in_batches
from models.errors import ModelError
from models.export import adapt, export
from models.packages import DOMAINS
from models.prefix_quantisation import features as prefix_features
from protocol.package import PREDICT, PREFIX, ModelPackage, unpack
from tests.models.networks import (
    BATCH,
    KEY,
    SCHEMA,
    WINDOW,
    Encoder,
    Perceptron,
    adapted,
    prepared,
    relative,
    some_windows,
)
from tests.models.test_backbones import INPUTS, build

COUNT = 3 * BATCH + 5
WINDOWS = some_windows(COUNT)
GROUPS = np.arange(COUNT) % 6


class Squashed(nn.Sequential):
    """A network that has no layer of logits to go by."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(96, 20), nn.GELU(), nn.Linear(20, 4), nn.Tanh())


def package_of(build_module: type[nn.Module], layer: str, head: str | None = None) -> ModelPackage:
    module = adapted(build_module, "lora", (layer,), head)
    return unpack(export(module, SCHEMA, WINDOW, KEY, name="test", batch=BATCH), KEY.public)


PERCEPTRON = package_of(Perceptron, "1", "5")
ROWS = prefix_features(PERCEPTRON.members[PREFIX], WINDOWS.numpy(), BATCH)


def part(where: str, package: ModelPackage = PERCEPTRON) -> embedding.Raw:
    return raw(package.members[PREDICT], package.adapter, where)


@pytest.mark.parametrize(("where", "layers"), [(FIRST, 3), (LAST, 5)])
def test_an_embedding_is_what_the_network_computes_at_its_place(where: str, layers: int) -> None:
    # Adapters start as the identity, so that the network is the user's own.
    expected = WINDOWS
    for layer in list(prepared(Perceptron).children())[:layers]:
        expected = layer(expected)
    assert relative(part(where).run(ROWS), expected.detach().numpy()) <= 1e-5


def test_the_embedding_of_features_is_what_the_prefix_gives() -> None:
    found = part(FEATURES)
    assert (found.nodes, found.output, found.batch) == ((), "features", BATCH)
    np.testing.assert_array_equal(found.run(ROWS), ROWS.astype(np.float64))


def test_features_too_wide_for_a_device_give_way_to_what_the_head_takes_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "MOST_FEATURES", ROWS.shape[1] - 1)
    np.testing.assert_array_equal(part(FEATURES).run(ROWS), part(LAST).run(ROWS))


@pytest.mark.parametrize("where", [FIRST, LAST])
def test_a_network_without_such_a_place_is_refused_with_what_to_do(where: str) -> None:
    package = package_of(Squashed, "1")
    with pytest.raises(ModelError, match=f"the network has no place '{where}' to take it from") as refusal:
        part(where, package)
    assert "leave --discriminant out" in str(refusal.value)
    assert part(FEATURES, package).output == "features"


def test_a_network_with_logits_but_another_activation_has_a_last_place_only() -> None:
    package = package_of(Encoder, "blocks.0.up", "head")
    rows = prefix_features(package.members[PREFIX], WINDOWS.numpy(), BATCH)
    assert part(LAST, package).run(rows).shape == (COUNT, 16)
    with pytest.raises(ModelError, match="no place 'first'"):
        part(FIRST, package)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_place_that_it_names(name: str) -> None:
    schema, window = INPUTS[name]
    module = adapt(build(name), default_adapter(None, backbone=BACKBONES[name]), schema, window)
    package = unpack(export(module, schema, window, KEY, name=name, batch=BATCH), KEY.public)
    found = raw(package.members[PREDICT], package.adapter, BACKBONES[name].EMBEDDING)
    rows = np.random.Generator(np.random.PCG64(0)).normal(size=(9, package.manifest.feature_size))
    values = found.run(rows.astype(np.float32))
    assert np.isfinite(values).all()
    assert values.std(axis=0).max() > 0


def graph_of(where: str, dimension: int) -> tuple[bytes, NDArray[np.float64]]:
    found = part(where)
    values = found.run(ROWS)
    return finish(found, values, GROUPS, dimension), values


@pytest.mark.parametrize("dimension", [4, 16, 200])
@pytest.mark.parametrize("where", [FEATURES, FIRST, LAST])
def test_the_graph_computes_the_formula(where: str, dimension: int) -> None:
    graph, values = graph_of(where, dimension)
    found = run_in_batches(graphs.load(graph), ROWS, BATCH)
    assert found.shape == (COUNT, min(dimension, values.shape[1]))
    # In numpy: pulled in, less the mean, by the scatter within groups, turned.
    pulled = np.arcsinh(2 * values)
    means = np.stack([pulled[group == GROUPS].mean(axis=0) for group in range(6)])
    counts = np.bincount(GROUPS)
    widened = (pulled - means[GROUPS]) * np.sqrt(counts / (counts - 1))[GROUPS][:, None]
    scatter = np.sqrt(np.mean(widened**2, axis=0))
    floor = max(0.1 * np.sqrt(np.mean(scatter**2)), 1e-6)
    scaled = (pulled - pulled.mean(axis=0)) / np.maximum(scatter, floor)
    expected = scaled @ hadamard(values.shape[1], dimension)
    assert relative(found, expected) <= 1e-5
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("where", [FEATURES, FIRST, LAST])
def test_the_graph_is_one_that_any_onnxruntime_loads(where: str) -> None:
    graph, _ = graph_of(where, 8)
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [entry.version for entry in model.opset_import]) == (10, [18])
    assert {entry.domain for entry in model.opset_import} <= set(DOMAINS)
    assert {node.domain for node in model.graph.node} <= set(DOMAINS)
    assert [value.name for value in model.graph.input] == ["features"]
    assert [value.name for value in model.graph.output] == ["embedding"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [BATCH, ROWS.shape[1]]


def test_equal_packages_get_equal_embeddings() -> None:
    assert graph_of(FIRST, 8)[0] == graph_of(FIRST, 8)[0]


def test_far_values_are_pulled_in_and_nothing_is_blown_up() -> None:
    graph, _ = graph_of(FEATURES, 16)
    session = graphs.load(graph)
    far = run_in_batches(session, ROWS * np.float32(1e6), BATCH)
    near = run_in_batches(session, ROWS, BATCH)
    assert np.isfinite(far).all()
    assert np.linalg.norm(far) < 30 * np.linalg.norm(near)


def test_a_dimension_that_never_varied_has_no_say() -> None:
    values = np.random.Generator(np.random.PCG64(1)).normal(size=(40, 6))
    values[:, 2] = 0.5
    found = embedding.Raw((), (), "features", BATCH, 6)
    graph = finish(found, values, np.arange(40) % 4, 6)
    moved = values.copy()
    moved[:, 2] += 1e-3  # hardly more than noise of the sensor
    one, other = (run_in_batches(graphs.load(graph), v.astype(np.float32), BATCH) for v in (values, moved))
    assert np.abs(one - other).max() < 0.02 * np.abs(one).max()
    constant = finish(found, np.zeros((40, 6)), np.arange(40) % 4, 6)
    assert np.isfinite(run_in_batches(graphs.load(constant), np.ones((3, 6), np.float32), BATCH)).all()


@given(st.integers(1, 70))
def test_turning_preserves_distances_where_nothing_is_left_out(size: int) -> None:
    padded = 1 << (size - 1).bit_length()
    matrix = hadamard(size, size)
    assert matrix.shape == (size, size)
    if size == padded:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-9)
    np.testing.assert_allclose((matrix**2).sum(axis=1), 1, atol=1e-9)  # a dimension keeps its length
    np.testing.assert_array_equal(matrix, hadamard(size, size))


@settings(max_examples=20)
@given(st.integers(0, 1 << 32))
def test_turning_nearly_preserves_distances_where_much_is_left_out(seed: int) -> None:
    points = np.random.Generator(np.random.PCG64(seed)).normal(size=(12, 700))
    found = points @ hadamard(700, 128)
    assert found.shape == (12, 128)
    before = np.linalg.norm(points[:, None] - points[None], axis=2)
    after = np.linalg.norm(found[:, None] - found[None], axis=2)
    apart = ~np.eye(12, dtype=bool)
    assert np.abs(after[apart] / before[apart] - 1).max() < 0.35


def test_turning_spreads_one_dimension_over_all() -> None:
    matrix = hadamard(256, 64)
    np.testing.assert_allclose(np.abs(matrix), 1 / 8, atol=1e-12)


def test_deviations_have_the_scatter_of_their_group_however_few_there_are() -> None:
    random = np.random.Generator(np.random.PCG64(3))
    groups = np.repeat(np.arange(3000), 2)
    values = 5 * random.normal(size=(3000, 2))[groups] + random.normal(size=(6000, 2))
    found = deviations(values, groups)
    assert np.mean(found**2) == pytest.approx(1.0, abs=0.06)  # and not the half that a mean of two leaves
    single = deviations(values[:3], np.arange(3))
    assert not single.any()


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1])
def test_short_batches_are_padded_and_cut(count: int) -> None:
    graph, _ = graph_of(FEATURES, 8)
    session = graphs.load(graph)
    found = run_in_batches(session, ROWS[:count], BATCH)
    np.testing.assert_array_equal(found, run_in_batches(session, ROWS, BATCH)[:count])
