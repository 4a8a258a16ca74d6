"""Pre-training on the source devices of a fleet directory."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.augmentation import Augmentation
from models.backbones import Conv1dBackbone, default_adapter
from models.errors import AdapterError, TrainingError
from models.fleet_data import SourceDevices, read_fleet, read_sources
from models.pretrain import pretrain
from protocol.input_schema import InputSchema, WindowSpec
from tests.models.fleets import write_fleet, write_recording


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fleet(tmp_path_factory.mktemp("fleet"))


def test_two_kinds_of_oscillation_are_told_apart_on_later_windows(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = pretrain(fleet, epochs=6, batch=16)
    assert trained.metrics["held_out_balanced_accuracy"] > 0.9
    assert not trained.backbone.training
    assert not list(tmp_path.iterdir()), "no logs and no checkpoints are left behind"


def test_equal_seeds_give_equal_backbones(fleet: Path) -> None:
    first, second, other = (
        torch.cat([p.flatten() for p in pretrain(fleet, epochs=1, seed=seed).backbone.parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_held_out_windows_share_no_row_with_those_trained_on(tmp_path: Path) -> None:
    rows = 640
    write_fleet(tmp_path, rows=rows, sources=1)
    for label in ("slow", "quick"):
        counter = np.arange(rows, dtype=float)
        write_recording(
            tmp_path / "source0" / f"{label}.csv", np.stack([counter, counter], 1), [label] * rows
        )
    windows = read_sources(tmp_path, read_fleet(tmp_path), held_out=0.25)
    for index in (0, 1):
        trained, held = windows.x[windows.y == index], windows.held_x[windows.held_y == index]
        assert len(trained)
        assert len(held)
        assert float(trained.max()) < float(held.min())


def test_a_rare_class_is_drawn_as_often_as_the_others(tmp_path: Path) -> None:
    write_fleet(tmp_path, rows=3200)
    for device in ("source0", "source1"):
        file = tmp_path / device / "quick.csv"
        file.write_text("\n".join(file.read_text().splitlines()[:300]) + "\n")
    batches = SourceDevices(tmp_path, batch=32).train_dataloader()
    labels = torch.cat([y for _ in range(10) for _, y in batches])
    assert 0.4 < float((labels == 1).double().mean()) < 0.6


def test_unlabelled_windows_are_not_trained_on(tmp_path: Path) -> None:
    write_fleet(tmp_path, sources=1)
    before = len(SourceDevices(tmp_path).windows.y)
    write_recording(tmp_path / "source0" / "unknown.csv", np.zeros((320, 2)), [""] * 320)
    assert len(SourceDevices(tmp_path).windows.y) == before


def test_normalisation_is_that_of_the_source_data(fleet: Path) -> None:
    data = SourceDevices(fleet)
    backbone = Conv1dBackbone.build(data.fleet.schema, data.fleet.window)
    backbone.set_normalisation(*data.normalisation())
    normalised = (data.windows.x - backbone.mean) / backbone.deviation
    torch.testing.assert_close(normalised.mean((0, 2)), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std((0, 2)), torch.ones(2), rtol=1e-3, atol=0)


def test_windows_of_devices_with_other_sensors_become_alike(tmp_path: Path) -> None:
    """Each source device is normalised by its own statistics, whatever its gain and offset."""
    for folder, gain in ((tmp_path / "one", 1.0), (tmp_path / "two", 50.0)):
        write_fleet(folder)
        random = np.random.default_rng(1)
        for index, device in enumerate(("source0", "source1")):
            for label in ("slow", "quick"):
                samples = random.normal(0, 1, (320, 2)).round(3) * (gain if index else 1.0) + 7 * index
                write_recording(folder / device / f"{label}.csv", samples, [label] * 320)
    one, two = (SourceDevices(tmp_path / name, normalisation="device").windows for name in ("one", "two"))
    torch.testing.assert_close(one.x, two.x, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.held_x, two.held_x, rtol=0, atol=1e-4)
    raw = SourceDevices(tmp_path / "two").windows
    assert float(raw.x.abs().max()) > 20 > float(two.x.abs().max())
    assert torch.equal(raw.y, two.y)
    centred = SourceDevices(tmp_path / "two", normalisation="device-mean").windows
    assert abs(float(centred.x.mean())) < 1 < float(raw.x.mean())
    assert float(centred.x.abs().max()) > 20


def test_what_the_command_line_says_comes_before_the_description(fleet: Path, tmp_path: Path) -> None:
    write_fleet(tmp_path)
    file = tmp_path / "fleet.toml"
    file.write_text(file.read_text().replace("[window]", 'normalisation = "device"\n[window]'))
    chosen = [
        SourceDevices(folder, normalisation=option).fleet.schema.normalisation
        for folder, option in (
            (fleet, None), (fleet, "none"), (fleet, "device"), (tmp_path, None), (tmp_path, "none"),
        )
    ]  # fmt: skip
    assert chosen == [None, None, "device", "device", None]


def test_a_constant_channel_is_not_blown_up() -> None:
    backbone = Conv1dBackbone(2, 2)
    backbone.set_normalisation(torch.tensor([0.0, 5.0]), torch.tensor([2.0, 0.0]))
    assert backbone.deviation.flatten().tolist() == [2.0, 1.0]


def test_a_malformed_recording_is_named_with_its_line(tmp_path: Path) -> None:
    write_fleet(tmp_path)
    file = tmp_path / "source1" / "slow.csv"
    lines = file.read_text().splitlines()
    lines[5] = "1.0,broken,slow"
    file.write_text("\n".join(lines))
    with pytest.raises(TrainingError, match=rf"{re.escape(str(file))}.*line 6.*speed.*'broken'"):
        pretrain(tmp_path, epochs=1)


def test_a_class_without_source_data_is_named(tmp_path: Path) -> None:
    write_fleet(tmp_path, sources=1)
    (tmp_path / "source0" / "quick.csv").unlink()
    with pytest.raises(TrainingError, match=r"class 'quick': .* no labelled window of 64 rows"):
        pretrain(tmp_path, epochs=1)


def test_a_fleet_without_source_devices_is_refused(tmp_path: Path) -> None:
    write_fleet(tmp_path, sources=0)
    with pytest.raises(TrainingError, match="no device has the role 'source'"):
        pretrain(tmp_path, epochs=1)


def test_a_directory_that_is_no_fleet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a readable fleet description"):
        pretrain(tmp_path)


def test_a_device_without_recordings_is_named(tmp_path: Path) -> None:
    write_fleet(tmp_path)
    for file in (tmp_path / "source0").iterdir():
        file.unlink()
    with pytest.raises(TrainingError, match="source0: expected recordings"):
        pretrain(tmp_path, epochs=1)


def test_augmentation_of_strength_0_changes_nothing() -> None:
    window = torch.randn(4, 2, 50)
    same = Augmentation(0, 0, 0, 0, 0)(window, torch.ones(2, 1), torch.Generator())
    torch.testing.assert_close(same, window)


def test_augmentation_keeps_shape_and_finite_values_and_varies_every_window() -> None:
    window = torch.randn(16, 2, 50)
    random = torch.Generator().manual_seed(0)
    varied = Augmentation(shift=0.9, speed=0.5)(window, torch.ones(2, 1), random)
    assert varied.shape == window.shape
    assert varied.isfinite().all()
    assert ((varied - window).abs().amax((1, 2)) > 0.05).all()


@pytest.mark.parametrize("length", [32, 100, 128, 600, 1024])
def test_the_backbone_takes_windows_of_any_usual_length(length: int) -> None:
    schema = InputSchema("timeseries", ("a", "b"), 10.0, ("x", "y", "z"))
    backbone = Conv1dBackbone.build(schema, WindowSpec(length, length)).eval()
    assert backbone(torch.randn(2, 2, length)).shape == (2, 3)
    assert backbone.stem(torch.randn(2, 2, length)).shape[-1] >= 15


def test_windows_too_short_for_the_backbone_are_refused() -> None:
    schema = InputSchema("timeseries", ("a",), 10.0, ("x", "y"))
    with pytest.raises(AdapterError, match="at least 32 rows, got 16"):
        Conv1dBackbone.build(schema, WindowSpec(16, 8))


def test_the_default_recipes_name_layers_of_the_backbone() -> None:
    names = {name for name, _ in Conv1dBackbone(1, 2).named_modules()}
    for kind in ("bottleneck", "lora", "head"):
        spec = default_adapter(kind)
        assert {*spec.layers, spec.head} <= names
