"""graftwork-models as a user meets it: files in, packages out, one line for a mistake."""

import hashlib
import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from models.__main__ import main
from models.errors import ModelError
from models.packages import verify
from protocol import discriminant
from protocol.package import (
    ANOMALY,
    DISCRIMINANT,
    EMBEDDING,
    PREFIX,
    STEP,
    TASKS,
    Manifest,
    pack,
    unpack,
)
from protocol.signing import PrivateKey, PublicKey
from tests.models.fleets import FLEET, write_fleet

MODULE = """\
import torch
from torch import nn

def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(12, 10), nn.Dropout(0.2), nn.Linear(10, 3),
    )

def nothing() -> None:
    pass

def fails() -> nn.Module:
    raise RuntimeError("weights.pt is missing")
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a user's module and schema, and it is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    (tmp_path / "my_model.py").write_text(MODULE)
    (tmp_path / "schema.toml").write_text(FLEET.replace('"quick"]', '"quick", "off"]'))
    return tmp_path


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A package by `pretrain`, its publisher and the key's file."""
    folder = tmp_path_factory.mktemp("package")
    fleet = write_fleet(folder / "fleet")
    assert main(["keygen", str(folder / "key")]) == 0
    file = folder / "demo.graft"
    arguments = ["--output", str(file), "--epochs", "1", "--key", str(folder / "key"), "--version", "3"]
    assert main(["pretrain", str(fleet), *arguments]) == 0
    key = PrivateKey(bytes.fromhex((folder / "key").read_text().strip()))
    return file, key.public.raw.hex(), folder / "key"


def test_a_pretrained_package_verifies_and_tells_what_it_is(
    package: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, publisher, _ = package
    assert main(["verify", str(file), "--publisher", publisher]) == 0
    assert "good: demo version 3" in capsys.readouterr().out
    assert main(["inspect", str(file), "--publisher", publisher, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["signature"] == f"good, by {publisher}"
    assert facts["segments"] == {
        "blocks.0.bottleneck": 4496,
        "blocks.1.bottleneck": 4496,
        "head": 258,
        **discriminant.sizes(128, 2),
    }
    assert facts["bytes"] < 1_000_000
    assert max(facts["parity"].values()) <= 1e-5
    assert 0 <= facts["metrics"]["held_out_accuracy"] <= 1
    assert facts["schema"]["classes"] == ["slow", "quick"]


def test_inspect_shows_a_table_and_says_that_nobody_vouches(
    package: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(package[0])]) == 0
    shown = capsys.readouterr().out
    assert "demo version 3" in shown
    assert "not checked" in shown
    assert "segments.head" in shown


def test_inspect_says_when_someone_else_signed(
    package: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = PrivateKey(bytes(32)).public.raw.hex()
    assert main(["inspect", str(package[0]), "--publisher", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"].startswith("BAD")


def test_verify_refuses_another_publisher(
    package: tuple[Path, str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = PrivateKey(bytes(32)).public.raw.hex()
    assert main(["verify", str(package[0]), "--publisher", other]) == 1
    assert "error: the signature does not match" in capsys.readouterr().err


def test_verify_refuses_a_flipped_byte_anywhere(package: tuple[Path, str, Path]) -> None:
    file, publisher, _ = package
    data = file.read_bytes()
    for position in range(100, len(data) - 1000, len(data) // 23):
        flipped = bytearray(data)
        flipped[position] ^= 1
        with pytest.raises(ModelError):
            verify(bytes(flipped), PublicKey.from_hex(publisher))


def resigned(file: Path, key_file: Path, member: str, content: bytes) -> tuple[bytes, PublicKey]:
    """The package with one member replaced, signed as its publisher would."""
    key = PrivateKey(bytes.fromhex(key_file.read_text().strip()))
    opened = unpack(file.read_bytes(), key.public)
    members = {**opened.members, member: content}
    files = {name: hashlib.sha256(data).digest() for name, data in members.items()}
    manifest: Manifest = replace(opened.manifest, files=files, backbone_sha256=files[PREFIX])
    return pack(manifest, members, key), key.public


def test_verify_refuses_a_signed_graph_that_is_not_onnx(package: tuple[Path, str, Path]) -> None:
    data, publisher = resigned(package[0], package[2], STEP, b"no graph")
    with pytest.raises(ModelError, match=r"step\.onnx: not a valid ONNX graph"):
        verify(data, publisher)


def test_verify_refuses_a_signed_graph_with_other_inputs(package: tuple[Path, str, Path]) -> None:
    members = unpack(package[0].read_bytes(), None).members
    data, publisher = resigned(package[0], package[2], STEP, members["predict.onnx"])
    with pytest.raises(ModelError, match=r"step\.onnx: expected inputs .*labels.*, got"):
        verify(data, publisher)


def test_verify_refuses_operators_of_one_runtime_only(package: tuple[Path, str, Path]) -> None:
    members = unpack(package[0].read_bytes(), None).members
    model = onnx.load_from_string(members["predict.onnx"])
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.node.insert(
        0, onnx.helper.make_node("Gelu", ["features"], ["unused"], domain="com.microsoft", name="gelu")
    )
    data, publisher = resigned(package[0], package[2], "predict.onnx", model.SerializeToString())
    with pytest.raises(ModelError, match=r"predict\.onnx: expected standard operators only"):
        verify(data, publisher)


def test_a_users_module_becomes_a_package(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--module", "my_model:build", "--schema", "schema.toml", "--layer", "0", "--layer", "5"]
    arguments += ["--head", "7", "--rank", "3", "--batch", "4", "--adapter", "lora", "--output", "mine.graft"]
    arguments += ["--anomaly-rank", "2"]
    assert main(["export", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "one-time key" in shown
    publisher = shown.split("publisher ")[1].split()[0]
    opened = verify((workplace / "mine.graft").read_bytes(), PublicKey.from_hex(publisher))
    assert opened.manifest.name == "mine"
    assert opened.manifest.batch == 4
    assert list(opened.manifest.slices()) == ["0.lora", "5.lora", "7", "anomaly"]
    assert not list(workplace.glob(".*.part"))


@pytest.mark.parametrize("dimension", [0, 7])
def test_pretrain_adds_a_discriminant_head_of_the_size_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dimension: int
) -> None:
    fleet, target = write_fleet(tmp_path / "fleet"), tmp_path / "a.graft"
    arguments = ["--output", str(target), "--epochs", "1", "--discriminant", str(dimension)]
    assert main(["pretrain", str(fleet), *arguments, "--anomaly-rank", "2"]) == 0
    publisher = capsys.readouterr().out.split("publisher ")[1].split()[0]
    manifest = verify(target.read_bytes(), PublicKey.from_hex(publisher)).manifest
    assert manifest.embedding_size == dimension
    assert manifest.tasks == tuple(task for task in TASKS if dimension or task != DISCRIMINANT)
    assert (EMBEDDING in manifest.files) == bool(dimension)
    heads = (*discriminant.SEGMENTS, ANOMALY) if dimension else (ANOMALY,)
    assert tuple(manifest.slices())[-len(heads) :] == heads


EXPORT = ("--module", "my_model:build", "--schema", "schema.toml", "--layer", "0", "--head", "7")


def test_export_begins_a_head_with_a_fleet_and_has_none_without_it(workplace: Path) -> None:
    fleet = str(write_fleet(workplace / "fleet"))
    (workplace / "schema.toml").write_text(FLEET)
    (workplace / "my_model.py").write_text(MODULE.replace("nn.Linear(10, 3)", "nn.Linear(10, 2)"))

    def size(*more: str) -> int:
        assert main(["export", *EXPORT, "--output", "mine.graft", *more]) == 0
        return unpack((workplace / "mine.graft").read_bytes(), None).manifest.embedding_size

    assert size() == 0
    assert size("--calibrate", fleet, "--discriminant", "0") == 0
    assert size("--calibrate", fleet, "--discriminant", "5") == 5
    assert 5 < size("--calibrate", fleet) <= 128


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("calibrated", [False, True], ids=["no windows", "other classes"])
def test_a_head_without_labelled_windows_of_the_packages_classes_is_refused(
    calibrated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--calibrate", str(write_fleet(Path("fleet")))] if calibrated else []
    assert main(["export", *EXPORT, "--output", "mine.graft", "--discriminant", "8", *more]) == 1
    shown = capsys.readouterr().err
    assert "error: --discriminant: expected labelled windows\n" in shown
    assert "name a fleet with --calibrate" in shown
    assert not Path("mine.graft").exists()


@pytest.mark.parametrize("dimension", ["1", "-3", "2000"])
def test_a_head_of_a_size_out_of_range_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dimension: str
) -> None:
    fleet, target = write_fleet(tmp_path / "fleet"), tmp_path / "a.graft"
    arguments = ["--output", str(target), "--epochs", "1", "--discriminant", dimension]
    assert main(["pretrain", str(fleet), *arguments]) == 1
    assert f"error: discriminant: expected 2 to 1024 dimensions, got {dimension}" in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--module": "my_model"}, "expected file:function"),
        ({"--module": "your_model:build"}, "no module named 'your_model'"),
        ({"--module": "my_model:make"}, "has no function 'make'"),
        ({"--module": "my_model:nothing"}, "expected it to return a torch.nn.Module, got NoneType"),
        ({"--module": "my_model:fails"}, "RuntimeError: weights.pt is missing"),
        ({"--layer": "conv"}, "no layer named 'conv'\n       the module has: 0, 1, 2"),
        ({"--layer": None}, "no layer to adapt\n       name some with --layer; there are: 0, 1"),
        ({"--schema": "missing.toml"}, "missing.toml: not readable"),
        ({"--schema": "my_model.py"}, "expected TOML"),
        ({"--key": "missing.key"}, "missing.key: not readable"),
        ({"--key": "my_model.py"}, "expected a key of 64 hexadecimal digits"),
        ({"--rank": "0"}, "rank: expected 1 to 4096, got 0"),
        ({"--output": "missing/mine.graft"}, "cannot be written"),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_answered_with_one_line_and_status_1(
    changed: dict[str, str | None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "--module": "my_model:build",
        "--schema": "schema.toml",
        "--layer": "5",
        "--output": "mine.graft",
    }
    chosen = {**options, **changed}
    arguments = [part for name, value in chosen.items() if value is not None for part in (name, value)]
    assert main(["export", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert "Traceback" not in shown
    assert not Path("mine.graft").exists()


def test_a_schema_with_an_unknown_table_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "schema.toml").write_text(FLEET + "[model]\n")
    arguments = ["--module", "my_model:build", "--schema", "schema.toml", "--layer", "5", "--output", "a"]
    assert main(["export", *arguments]) == 1
    assert "expected the tables [schema] and [window]" in capsys.readouterr().err


def test_a_key_is_readable_by_its_owner_only_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    assert main(["keygen", str(file)]) == 0
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PrivateKey(bytes.fromhex(text)).public.raw.hex() in capsys.readouterr().out
    assert main(["keygen", str(file)]) == 1
    assert file.read_text() == text


def test_a_file_that_is_no_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text"
    file.write_text("hello")
    assert main(["inspect", str(file)]) == 1
    assert "error: not a readable archive" in capsys.readouterr().err


def test_help_and_keys_need_no_torch() -> None:
    script = "import sys, models.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
