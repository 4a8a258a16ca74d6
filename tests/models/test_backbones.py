"""The project's backbones: each takes its data, carries its adapters, and is exported as torch computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.adapters import AdapterSpec
from models.backbones import (
    BACKBONES,
    Backbone,
    Conv1dBackbone,
    Conv2dBackbone,
    MlpBackbone,
    TimeFrequencyBackbone,
    TransformerBackbone,
    choose,
    default_adapter,
)
from models.errors import AdapterError
from models.export import adapt, export, random_windows
from models.tracing import cut
from protocol.input_schema import ONE_PICTURE, ImageSpec, InputSchema, WindowSpec
from protocol.package import unpack
from tests.models.networks import BATCH, KEY, prepared

SERIES = InputSchema("timeseries", ("a", "b"), 10.0, ("x", "y", "z"))
IMAGES = InputSchema("image", ("grey",), 1.0, ("x", "y", "z"), ImageSpec(32, 20))
Inputs = tuple[InputSchema, WindowSpec]
INPUTS: dict[str, Inputs] = {
    "time-frequency": (SERIES, WindowSpec(64, 32)),
    "conv1d": (SERIES, WindowSpec(64, 32)),
    "mlp": (SERIES, WindowSpec(5, 5)),
    "conv2d": (IMAGES, ONE_PICTURE),
    "transformer": (SERIES, WindowSpec(70, 35)),
}


def build(name: str, inputs: Inputs | None = None) -> Backbone:
    schema, window = inputs or INPUTS[name]
    module = prepared(lambda: BACKBONES[name].build(schema, window))
    assert isinstance(module, Backbone)
    return module


@pytest.mark.parametrize("kind", ["bottleneck", "lora"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_with_every_adapter_is_exported_within_the_limit(name: str, kind: str) -> None:
    """`export` compares loss, gradient and logits with torch, and refuses more than 1e-5."""
    schema, window = INPUTS[name]
    adapted = adapt(build(name), default_adapter(kind, backbone=BACKBONES[name]), schema, window)
    manifest = unpack(export(adapted, schema, window, KEY, name=name, batch=BATCH), KEY.public).manifest
    assert max(vars(manifest.parity).values()) <= 1e-5
    assert manifest.input_shape == schema.input_shape(window)
    assert manifest.parameters < 15_000


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [
        ("conv1d", "lora", ("stem.0", "stem.3", "stem.6")),
        ("conv2d", "bottleneck", ("stem.2", "stem.5")),
        ("conv2d", "lora", ("stem.3", "stem.6", "stem.9")),
    ],
)
def test_adapters_below_convolutions_are_exported_within_the_limit(
    name: str, kind: str, layers: tuple[str, ...]
) -> None:
    schema, window = INPUTS[name]
    adapted = adapt(build(name), AdapterSpec(kind, layers, "head", 4), schema, window)
    manifest = unpack(export(adapted, schema, window, KEY, name=name, batch=BATCH), KEY.public).manifest
    assert max(vars(manifest.parity).values()) <= 1e-5


@pytest.mark.parametrize(
    ("schema", "length", "expected"),
    [
        (SERIES, 32, Conv1dBackbone),
        (SERIES, 31, MlpBackbone),
        (SERIES, 1, MlpBackbone),
        (IMAGES, 1, Conv2dBackbone),
    ],
)
def test_auto_goes_by_the_data(schema: InputSchema, length: int, expected: type[Backbone]) -> None:
    assert choose("auto", schema, WindowSpec(length, length)) is expected
    assert choose("transformer", schema, WindowSpec(length, length)) is TransformerBackbone
    assert choose("time-frequency", schema, WindowSpec(length, length)) is TimeFrequencyBackbone


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        AdapterError, match=r"expected one of auto, conv1d, time-frequency, mlp, conv2d, .* got 'vgg'"
    ):
        choose("vgg", SERIES, WindowSpec(64, 64))


@pytest.mark.parametrize("name", BACKBONES)
def test_data_of_the_other_kind_are_refused(name: str) -> None:
    other = (SERIES, WindowSpec(64, 64)) if name == "conv2d" else (IMAGES, ONE_PICTURE)
    with pytest.raises(AdapterError, match=f"backbone {name}: expected .*, got a schema of kind"):
        BACKBONES[name].build(*other)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("conv1d", 31, "at least 32 rows, got 31"),
        ("time-frequency", 63, "at least 64 rows, got 63"),
        ("transformer", 7, "at least 8 rows, got 7"),
        ("mlp", 5000, "at most 4,096 values per window, got 10,000"),
    ],
)
def test_windows_that_do_not_suit_are_refused_with_a_way_out(name: str, length: int, message: str) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        BACKBONES[name].build(SERIES, WindowSpec(length, length))
    assert "--backbone" in caught.value.hint


@pytest.mark.parametrize(("length", "segment"), [(64, 16), (100, 16), (1000, 128), (5000, 256)])
def test_spectra_are_those_of_a_fourier_transform(length: int, segment: int) -> None:
    window = WindowSpec(length, length)
    module = build("time-frequency", (SERIES, window))
    assert isinstance(module, TimeFrequencyBackbone)
    signal = random_windows(SERIES, window, 3)
    hann = np.hanning(2 * segment + 1)[1::2]
    parts = np.lib.stride_tricks.sliding_window_view(signal.numpy(), segment, -1)[:, :, :: segment // 2]
    transformed = np.fft.rfft(parts.astype(np.float64) * hann)[..., 1 : segment // 2 + 1]
    power = 2 * np.abs(transformed / hann.sum()) ** 2
    expected = np.log(power + 1e-4).swapaxes(2, 3)
    expected -= expected.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(module.spectra(signal).numpy(), expected.reshape(3, segment, -1), atol=1e-3)


def test_another_gain_of_the_sensor_does_not_change_the_spectra() -> None:
    schema, window = INPUTS["time-frequency"]
    module = build("time-frequency")
    assert isinstance(module, TimeFrequencyBackbone)
    signal = 30 * random_windows(schema, window, 8)
    torch.testing.assert_close(module.spectra(signal), module.spectra(7 * signal), rtol=0, atol=0.1)


def test_the_course_of_a_signal_without_a_spectrum_still_tells_classes_apart() -> None:
    """A level is no vibration: only the view over time sees it."""
    schema, window = INPUTS["time-frequency"]
    module = build("time-frequency")
    signal = random_windows(schema, window, 4)
    assert (module(signal) - module(signal + 0.5)).abs().max() > 1e-3


@pytest.mark.parametrize("length", [1, 2, 31, 200])
def test_the_perceptron_takes_windows_of_any_length(length: int) -> None:
    window = WindowSpec(length, length)
    assert build("mlp", (SERIES, window))(random_windows(SERIES, window, 3)).shape == (3, 3)


@pytest.mark.parametrize("length", [8, 33, 64, 1000])
def test_the_transformer_takes_windows_of_any_length_with_few_tokens(length: int) -> None:
    window = WindowSpec(length, length)
    module = build("transformer", (SERIES, window))
    assert isinstance(module, TransformerBackbone)
    assert module.tokens <= 32
    assert length - module.tokens * module.patch < module.patch
    assert module(random_windows(SERIES, window, 3)).shape == (3, 3)


@pytest.mark.parametrize("size", [(1, 1), (8, 100), (32, 20), (64, 64), (65, 65), (224, 224)])
@pytest.mark.parametrize("channels", [("grey",), ("red", "green", "blue")])
def test_the_picture_backbone_takes_any_size_down_to_few_positions(
    size: tuple[int, int], channels: tuple[str, ...]
) -> None:
    schema = replace(IMAGES, channels=channels, image=ImageSpec(*size))
    module = build("conv2d", (schema, ONE_PICTURE))
    assert isinstance(module, Conv2dBackbone)
    pictures = random_windows(schema, ONE_PICTURE, 2)
    assert module(pictures).shape == (2, 3)
    assert max(module.stem(pictures).shape[2:]) <= 6


def test_every_recipe_names_layers_of_its_backbone() -> None:
    for name, backbone in BACKBONES.items():
        names = {layer for layer, _ in build(name).named_modules()}
        for kind in ("bottleneck", "lora", "head"):
            spec = default_adapter(kind, backbone=backbone)
            assert {*spec.layers, spec.head} <= names
        assert default_adapter(backbone=backbone).kind == backbone.ADAPTER


def test_a_device_keeps_few_numbers_per_picture() -> None:
    schema, window = INPUTS["conv2d"]
    adapted = adapt(build("conv2d"), default_adapter(backbone=Conv2dBackbone), schema, window)
    assert cut(adapted, adapted.trainable(), random_windows(schema, window, 4)).feature_size == 768 + 128


def test_the_normalisation_of_pictures_is_per_channel() -> None:
    module = Conv2dBackbone(3, 2, 8, 8)
    module.set_normalisation(torch.tensor([0.1, 0.2, 0.5]), torch.tensor([0.5, 0.0, 0.25]))
    assert module.deviation.shape == (3, 1, 1)
    found = module.normalised(torch.ones(1, 3, 8, 8))[0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([1.8, 0.8, 2.0]))
