"""Provisioning: seeds and records for a fleet at once, and seeds into images."""

import hashlib
import json
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from agent.config import load
from firmware_tools import programs, seed_image
from firmware_tools import seed as seeds
from firmware_tools.__main__ import main
from firmware_tools.device_identity import take_seed
from firmware_tools.errors import FirmwareError
from firmware_tools.ledger import Ledger
from firmware_tools.provisioning import read_serials, serials
from protocol.signing import PrivateKey
from tests.firmware_tools.small_images import MIB, SEED_START, needs, partitioned_image

SERVER_KEY = PrivateKey(bytes(range(32))).public.raw.hex()
needs_fat = needs("mcopy", "mkfs.vfat", "sfdisk")


class Factory:
    """A fleet engineer's folder, with what the server's operator gave him."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.ledger = folder, folder / "seeds", folder / "ledger.sqlite"
        (folder / "ca.crt").write_text("certificate\n")
        (folder / "tokens").mkdir()

    def tokens(self, *names: str) -> None:
        for name in names:
            token = hashlib.sha256(name.encode()).hexdigest()[:40]
            (self.folder / "tokens" / f"{name}.token").write_text(token + "\n")

    def provision(self, *arguments: str, action: str = "identities") -> int:
        return main(
            [
                "provision",
                action,
                *arguments,
                *("--ledger", str(self.ledger), "--output", str(self.output), "--federation", "plant"),
                *("--server-key", SERVER_KEY, "--broker-host", "10.0.0.1"),
                *("--services-ca", str(self.folder / "ca.crt")),
            ]
        )

    def with_tokens(self, *arguments: str, action: str = "identities") -> int:
        return self.provision(*arguments, "--tokens", str(self.folder / "tokens"), action=action)

    def records(self) -> list[dict]:
        with Ledger(self.ledger) as ledger:
            return ledger.records()


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    return Factory(tmp_path)


def test_a_fleet_is_planned_with_its_tokens(factory: Factory) -> None:
    factory.tokens("edge-0001", "edge-0002", "edge-0003")
    assert factory.with_tokens("--count", "3") == 0
    assert [row["serial"] for row in factory.records()] == ["edge-0001", "edge-0002", "edge-0003"]
    assert {row["status"] for row in factory.records()} == {"planned"}
    for name in ("edge-0001", "edge-0003"):
        description, files = seeds.read(factory.output / name)
        assert description.device == name
        assert set(files) == {seeds.TOKEN, seeds.SERVICES_CA}  # no private key
        assert stat.S_IMODE((factory.output / name).stat().st_mode) == 0o700
        assert stat.S_IMODE((factory.output / name / seeds.TOKEN).stat().st_mode) == 0o600
    tokens = {seeds.read(path)[1][seeds.TOKEN] for path in factory.output.iterdir()}
    assert len(tokens) == 3


def test_one_missing_token_leaves_nothing_behind(
    factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.tokens("edge-0001", "edge-0003")
    assert factory.with_tokens("--count", "3") == 1
    assert "edge-0002.token" in capsys.readouterr().err
    assert factory.records() == []
    assert list(factory.output.iterdir()) == []


def test_a_thousand_identities_with_keys_in_one_command(factory: Factory) -> None:
    assert factory.provision("--count", "1000", "--factory-keys") == 0
    keys = {row["public_key"] for row in factory.records()}
    assert len(keys) == 1000
    description, files = seeds.read(factory.output / "edge-0777")
    key = PrivateKey(bytes.fromhex(files[seeds.DEVICE_KEY].decode()))
    assert factory.records()[776]["public_key"] == key.public.raw.hex()
    assert description.secrets == (seeds.DEVICE_KEY,)
    assert factory.provision("--count", "1", "--factory-keys") == 1  # edge-0001 is there


def test_names_come_from_a_file_and_each_once(factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    names = factory.folder / "names"
    names.write_text("# hall 2\npump-1\n\npump-2\n")
    factory.tokens("pump-1", "pump-2")
    assert factory.with_tokens("--names", str(names)) == 0
    assert [row["serial"] for row in factory.records()] == ["pump-1", "pump-2"]
    assert factory.with_tokens("--names", str(names)) == 1
    assert "serial pump-1 has a record" in capsys.readouterr().err
    assert main(["provision", "names", "--count", "2", "--prefix", "fan-", "--start", "9"]) == 0
    assert capsys.readouterr().out == "fan-0009\nfan-0010\n"
    with pytest.raises(FirmwareError, match="got pump-1 twice"):
        read_serials("pump-1\npump-1\n")
    assert serials("x", 2, 99_999) == ["x099999", "x100000"]


def test_what_devices_need_to_enrol_is_asked_for(
    factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert factory.provision("--count", "1") == 1
    assert "--tokens: expected the folder" in capsys.readouterr().err
    (factory.folder / "tokens" / "edge-0001.token").write_text("not a token\n")
    assert factory.with_tokens("--count", "1") == 1
    printed = capsys.readouterr().err
    assert "expected a token" in printed
    assert "not a token" not in printed


def test_a_repaired_device_gets_a_new_seed_and_record(factory: Factory) -> None:
    factory.tokens("edge-0001")
    assert factory.with_tokens("--count", "1") == 0
    (factory.output / "edge-0001").rename(factory.folder / "old-seed")
    assert factory.with_tokens("edge-0001", "--reason", "new board", action="rma") == 0
    assert [(row["status"], row["replaces"]) for row in factory.records()] == [
        ("replaced", None),
        ("planned", "edge-0001"),
    ]
    assert seeds.read(factory.output / "edge-0001")[0].device == "edge-0001"


@needs_fat
def test_seeds_as_images_are_the_same_bytes_from_the_same_seed(factory: Factory) -> None:
    factory.tokens("edge-0001")
    assert factory.with_tokens("--count", "1", "--format", "fat") == 0
    image = factory.output / "edge-0001.seed.img"
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    assert seed_image.read_seed(image).device == "edge-0001"
    folder = factory.folder / "seed"
    folder.mkdir()
    subprocess.run(["mcopy", "-i", image, "::/*", folder], check=True)
    seed_image.make_image(folder, factory.folder / "again.img")
    assert image.read_bytes() == (factory.folder / "again.img").read_bytes()
    with pytest.raises(FirmwareError, match="never overwritten"):
        seed_image.make_image(folder, image)


@needs_fat
@pytest.mark.parametrize("form", ["directory", "fat"])
def test_from_the_factory_to_the_first_boot(
    factory: Factory, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.tokens("edge-0001", "edge-0002")
    assert factory.with_tokens("--count", "2", "--format", form) == 0
    suffix = ".seed.img" if form == "fat" else ""
    image = partitioned_image(factory.folder / "image")
    before = image.read_bytes()
    into = ["provision", "into", str(image), "--ledger", str(factory.ledger), "--seed"]
    assert main([*into, str(factory.output / f"edge-0001{suffix}"), "--medium", "card-7"]) == 0
    after = image.read_bytes()
    assert after[:SEED_START] == before[:SEED_START]
    assert after[SEED_START + 8 * MIB :] == before[SEED_START + 8 * MIB :]
    assert [(row["status"], row["medium"]) for row in factory.records()] == [
        ("provisioned", "card-7"),
        ("planned", None),
    ]
    assert main([*into, str(factory.output / f"edge-0002{suffix}")]) == 1
    assert "expected an empty partition seed" in capsys.readouterr().err
    assert image.read_bytes() == after
    device = factory.folder / "device"
    device.mkdir()
    mounted = device / "seed"
    mounted.mkdir()
    subprocess.run(["mcopy", "-i", f"{image}@@{SEED_START}", "::/*", mounted], check=True)
    take_seed(mounted, device / "identity", device / "agent.toml")
    config = load(device / "agent.toml")
    assert (config.device, config.broker.host) == ("edge-0001", "10.0.0.1")


@needs_fat
def test_a_revoked_device_is_not_provisioned(factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    factory.tokens("edge-0001")
    factory.with_tokens("--count", "1")
    main(["provision", "revoke", "edge-0001", "--ledger", str(factory.ledger)])
    image = partitioned_image(factory.folder / "image")
    before = image.read_bytes()
    into = ["provision", "into", str(image), "--ledger", str(factory.ledger), "--seed"]
    assert main([*into, str(factory.output / "edge-0001")]) == 1
    assert "only a repair (rma) brings the serial back" in capsys.readouterr().err
    assert image.read_bytes() == before


@needs_fat
def test_the_keys_of_a_device_that_has_booted_are_not_formatted_away(factory: Factory) -> None:
    factory.tokens("edge-0001")
    factory.with_tokens("--count", "1")
    image = partitioned_image(factory.folder / "image")
    with image.open("rb+") as file:
        file.seek(SEED_START + 1080)
        file.write(b"\x53\xef another file system")
    with pytest.raises(FirmwareError, match="neither empty nor FAT"):
        seed_image.put(factory.output / "edge-0001", image)
    seed_image.put(factory.output / "edge-0001", image, replace=True)


@needs("sfdisk")
def test_an_image_without_seed_partition_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    with pytest.raises(FirmwareError, match="sfdisk failed"):
        seed_image.seed_partition(image)
    table = b'label: gpt\nstart=1MiB, size=1MiB, name="data"\n'
    subprocess.run(
        ["sfdisk", "--quiet", image], input=table, check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    )
    with pytest.raises(FirmwareError, match="expected one partition named seed, got data"):
        seed_image.seed_partition(image)


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as nothing:
        monkeypatch.setattr(programs, "SEARCH_PATH", nothing)
        with pytest.raises(
            FirmwareError, match=r"mkfs\.vfat is not installed; on Debian: apt install dosfstools"
        ):
            programs.run(["mkfs.vfat", os.devnull])
        assert programs.missing(["mcopy"]) == ["mcopy"]


def test_the_exported_ledger_holds_no_secret(factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    factory.provision("--count", "1", "--factory-keys")
    capsys.readouterr()
    assert main(["provision", "export", "--ledger", str(factory.ledger)]) == 0
    [row] = json.loads(capsys.readouterr().out)
    secret = seeds.read(factory.output / "edge-0001")[1][seeds.DEVICE_KEY].decode().strip()
    assert secret not in json.dumps(row)
    assert secret.encode() not in factory.ledger.read_bytes()
