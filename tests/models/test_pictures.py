"""Users' own modules of pictures, pre-training on image fleets, and a federation of cameras."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.__main__ import main
from models.adapters import AdapterSpec
from models.backbones import Conv2dBackbone
from models.errors import AdapterError, ExportError, TrainingError
from models.export import adapt, export
from models.fleet_data import SourceDevices
from models.image_augmentation import ImageAugmentation
from models.pretrain import pretrain
from protocol import discriminant
from protocol.charter import TrainingPolicy
from protocol.input_schema import ONE_PICTURE
from protocol.package import unpack
from server.round import RoundPolicy
from simulation.experiment import Settings, prepare
from simulation.in_process import InProcessFederation
from tests.models import networks
from tests.models.networks import BATCH, KEY, PICTURES, SCHEMA, WINDOW, prepared
from tests.pictures import write_fleet

CASES: dict[str, tuple[type[nn.Module], AdapterSpec]] = {
    "lora below max pooling and a residual": (
        networks.PictureNetwork,
        AdapterSpec("lora", ("first.0", "second.0", "third"), "head", 3),
    ),
    "bottleneck between convolutions": (
        networks.PictureNetwork,
        AdapterSpec("bottleneck", ("first", "third"), "head", 3),
    ),
    "a convolution trained as a whole": (networks.PictureNetwork, AdapterSpec("head", (), "third")),
    "lora in torch's encoder": (
        networks.PatchTransformer,
        AdapterSpec("lora", ("patch", "encoder.layers.0.linear1", "encoder.layers.1.linear2"), "head", 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_users_module_of_pictures_is_exported_within_the_limit(case: str) -> None:
    """`export` compares loss, gradient and logits with torch, and refuses more than 1e-5."""
    build, spec = CASES[case]
    adapted = adapt(prepared(build), spec, PICTURES, ONE_PICTURE)
    data = export(adapted, PICTURES, ONE_PICTURE, KEY, name="user", batch=BATCH)
    manifest = unpack(data, KEY.public).manifest
    assert max(vars(manifest.parity).values()) <= 1e-5
    assert manifest.input_shape == (3, 12, 16)


def test_a_module_of_windows_is_refused_for_pictures() -> None:
    with pytest.raises(
        ExportError, match=r"does not take windows of \[4, 3, 12, 16\] \[batch, .*height, width\]"
    ):
        adapt(prepared(networks.Convolutions), AdapterSpec("head", (), "head"), PICTURES, ONE_PICTURE)


def test_low_rank_detours_of_2d_convolutions_start_as_the_identity() -> None:
    module = prepared(networks.PictureNetwork)
    pictures = torch.randn(2, 3, 12, 16)
    adapted = adapt(module, AdapterSpec("lora", ("first.0", "third"), None, 3), PICTURES, ONE_PICTURE)
    torch.testing.assert_close(adapted(pictures), module(pictures), rtol=1e-4, atol=1e-5)
    shapes = [tuple(dict(adapted.named_parameters())[name].shape) for name in adapted.trainable()]
    assert shapes == [(3, 3, 3, 3), (8, 3, 1, 1), (3, 8, 3, 2), (12, 3, 1, 1)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fleet(tmp_path_factory.mktemp("fleet"), pictures=15, edges=3)


def test_a_fleet_of_cameras_pre_trains_and_federates(fleet: Path, tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path / "package.zip"), "--epochs", "6"]
    assert main(["pretrain", str(fleet), *arguments]) == 0
    package = (tmp_path / "package.zip").read_bytes()
    manifest = unpack(package, None).manifest
    assert manifest.metrics["held_out_accuracy"] > 0.9
    of_graphs = ["project.1.lora", "blocks.0.0.lora", "blocks.1.0.lora", "head"]
    assert list(manifest.slices()) == [*of_graphs, *discriminant.SEGMENTS]
    experiment = prepare(tmp_path / "run", fleet, Settings(labels_per_class=4))
    spools = {p.device.id: p.directory / "spool" for p in experiment.participants}
    with InProcessFederation(
        tmp_path / "federation",
        package,
        spools,
        RoundPolicy(minimum_devices=3, rounds=2),
        training=TrainingPolicy(epochs=2),
    ) as federation:
        federation.run()
        assert len(spools) == 3
        for name in spools:
            assert federation.agent_stores[name].state().release == 2


def test_inspect_tells_the_size_of_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted = adapt(prepared(networks.PictureNetwork), AdapterSpec("head", (), "head"), PICTURES, ONE_PICTURE)
    file = tmp_path / "p.zip"
    file.write_bytes(export(adapted, PICTURES, ONE_PICTURE, KEY, name="p", batch=BATCH))
    assert main(["inspect", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"]["image"] == {"height": 12, "width": 16}
    assert main(["verify", str(file), "--publisher", KEY.public.raw.hex()]) == 0


def test_the_last_pictures_of_every_class_are_held_out(fleet: Path) -> None:
    windows = SourceDevices(fleet, held_out=0.2).windows
    assert windows.x.shape == (48, 1, 16, 12)
    assert windows.held_x.shape == (12, 1, 16, 12)
    assert windows.held_y.bincount().tolist() == [6, 6]


def test_time_series_backbones_refuse_the_fleet(fleet: Path) -> None:
    with pytest.raises(
        AdapterError, match="backbone conv1d: expected time series, got a schema of kind 'image'"
    ):
        pretrain(fleet, epochs=1, backbone="conv1d")


def test_a_broken_picture_of_a_source_device_is_named(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path, pictures=3)
    (fleet / "source0" / "dark" / "bad.png").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"source0: dark/bad\.png: expected a readable JPEG or PNG"):
        pretrain(fleet, epochs=1)


def test_a_source_device_without_folders_of_classes_is_named(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path, pictures=3)
    for file in list((fleet / "source1").rglob("*.png")):
        file.rename(fleet / "source1" / f"{file.parent.name}{file.name}")
    with pytest.raises(TrainingError, match=r"source1: expected a folder of pictures .* for each class"):
        pretrain(fleet, epochs=1)


def test_augmentation_of_strength_0_changes_nothing_and_else_every_picture() -> None:
    pictures, deviation = torch.rand(4, 3, 12, 16), torch.ones(3, 1, 1)
    still = ImageAugmentation(0, 0, 0, 0, 0, 0)(pictures, deviation, torch.Generator())
    torch.testing.assert_close(still, pictures, rtol=1e-4, atol=1e-5)
    varied = ImageAugmentation()(pictures, deviation, torch.Generator().manual_seed(0))
    assert varied.shape == pictures.shape
    assert varied.isfinite().all()
    assert ((varied - pictures).abs().amax((1, 2, 3)) > 0.05).all()


def test_a_schema_file_of_pictures_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camera_model.py").write_text(
        "from tests.models.networks import PictureNetwork, prepared\n"
        "def build():\n    return prepared(PictureNetwork)\n"
    )
    (tmp_path / "schema.toml").write_text(
        '[schema]\nkind = "image"\nchannels = ["red", "green", "blue"]\n'
        'classes = ["rest", "walk", "run", "fall"]\n\n[image]\nheight = 12\nwidth = 16\n'
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--module", "camera_model:build", "--schema", "schema.toml", "--layer", "third"]
    assert main(["export", *arguments, "--head", "head", "--rank", "2", "--output", "mine.zip"]) == 0
    assert unpack((tmp_path / "mine.zip").read_bytes(), None).manifest.schema == PICTURES


def test_windows_and_pictures_are_told_apart_by_the_manifest() -> None:
    assert SCHEMA.input_shape(WINDOW) == (3, 32)
    assert PICTURES.input_shape(ONE_PICTURE) == (3, 12, 16)
    assert Conv2dBackbone.build(PICTURES, ONE_PICTURE).mean.shape == (3, 1, 1)
