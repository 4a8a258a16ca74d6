"""The agent's commands, run as they are typed: facts on stdout, each mistake in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from agent.__main__ import main
from agent.installation import Installation
from agent.store import Store
from protocol.artifacts import describe
from protocol.charter import SendingPolicy, TrainingPolicy
from tests.builders import PARAMETERS, private_key, tiny_package, two_levels, write_recording

SERVER = private_key(100).public.raw.hex()
PACKAGE = tiny_package()
ARTIFACT = describe(PACKAGE)


class Owner:
    """Types commands into a folder with a configuration."""

    def __init__(self, folder: Path, output: pytest.CaptureFixture[str]) -> None:
        self.folder, self.output = folder, output
        self.configure()
        (folder / "spool").mkdir()

    def configure(self, more: str = "") -> None:
        text = f'device = "pump-1"\nfederation = "pumps"\nserver_key = "{SERVER}"\n'
        text += '[source]\ndirectory = "spool"\n'
        (self.folder / "agent.toml").write_text(text + more, "utf-8")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(self.folder / "agent.toml"), *arguments])
        out, errors = self.output.readouterr()
        return status, out, errors

    def mistake(self, *arguments: str) -> str:
        status, _, errors = self(*arguments)
        assert status == 1
        assert errors.count("\n") == 1
        assert errors.startswith("error: ")
        return errors.removeprefix("error: ").rstrip()

    def install(self) -> Store:
        """As if the agent had run: a package on disk and in the store."""
        state = self.folder / "state"
        installation = Installation(state / "packages", tuple)
        installation.write_chunk(ARTIFACT, 0, PACKAGE)
        installation.install(ARTIFACT)
        store = Store(state / "agent.sqlite")
        store.install(3, ARTIFACT.sha256, np.zeros(PARAMETERS, np.float32), TrainingPolicy(), SendingPolicy())
        return store


@pytest.fixture
def owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Owner:
    return Owner(tmp_path, capsys)


def test_the_key_is_made_once(owner: Owner) -> None:
    status, first, _ = owner("key")
    assert status == 0
    assert len(bytes.fromhex(first.strip())) == 32
    assert owner("key")[1] == first


def test_before_its_first_run_there_is_no_status(owner: Owner) -> None:
    assert owner.mistake("status").endswith("agent.sqlite: the agent has not run yet")


def test_the_status_of_a_device_that_waits(owner: Owner) -> None:
    (owner.folder / "state").mkdir()
    Store(owner.folder / "state" / "agent.sqlite").close()
    status, out, _ = owner("status", "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["device"], facts["package"], facts["release"], facts["uses"]) == (
        "pump-1",
        None,
        None,
        None,
    )
    assert "package version            -" in owner("status")[1]


def test_the_status_of_a_device_that_learns(owner: Owner) -> None:
    store = owner.install()
    vector = np.zeros(PARAMETERS, np.float32)
    facts = {"windows": "12", "holdout_windows": "4", "gain": "0.5"}
    store.adopt(7, b"b" * 32, {"global": vector}, "personal", facts)
    store.answer(9, b"s" * 32, b"e", 1.0)
    store.close()
    status, out, errors = owner("status", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(out) == {
        "device": "pump-1",
        "federation": "pumps",
        "package": ARTIFACT.sha256.hex(),
        "package_version": 3,
        "release": 7,
        "uses": "personal",
        "gain": 0.5,
        "held_out_windows": 4,
        "training_windows": 12,
        "newest_round_answered": 9,
        "updates_without_receipt": 1,
        "training_progress": None,
        "training_paused": None,
        "schedule": None,
        "certificate": "none",
    }
    assert "personal" in owner("status")[1]


def test_a_good_configuration_is_said_to_be_good(owner: Owner) -> None:
    write_recording(owner.folder / "spool" / "a.csv", two_levels(1))
    status, out, errors = owner("check-config")
    assert (status, errors) == (0, "")
    assert "good: device pump-1 of federation pumps" in out
    assert "recordings     1 in" in out
    assert "not read: no package is installed" in out
    assert owner("key")[1].strip() in out


def test_with_a_package_every_recording_is_read(owner: Owner) -> None:
    owner.install().close()
    write_recording(owner.folder / "spool" / "a.csv", two_levels(1))
    assert owner("check-config")[0] == 0
    (owner.folder / "spool" / "b.csv").write_text("x,label\n1.0,medium\n")
    assert "b.csv: line 2: column 'label': expected a class" in owner.mistake("check-config")


def test_a_mapping_that_does_not_fit_the_package_is_named(owner: Owner) -> None:
    owner.install().close()
    config = owner.folder / "agent.toml"
    config.write_text(config.read_text("utf-8") + '\n[source.channels.y]\ncolumn = "z"\n', "utf-8")
    assert "agent.toml: channels.y: expected one of the package's channels, x" in owner.mistake(
        "check-config"
    )


def test_a_missing_source_folder_is_named(owner: Owner) -> None:
    (owner.folder / "spool").rmdir()
    assert "source.directory: there is no folder" in owner.mistake("check-config")


def test_a_damaged_key_is_named(owner: Owner) -> None:
    (owner.folder / "state").mkdir()
    (owner.folder / "state" / "device.key").write_text("no key")
    assert "device.key: expected a key of 64 hexadecimal digits" in owner.mistake("key")


def test_a_damaged_store_is_named(owner: Owner) -> None:
    (owner.folder / "state").mkdir()
    (owner.folder / "state" / "agent.sqlite").write_bytes(b"damaged" * 500)
    assert "cannot open the store" in owner.mistake("status")


def test_a_configuration_mistake_is_one_line(owner: Owner) -> None:
    owner.configure("colour = 1\n")
    assert "source.colour: unknown key" in owner.mistake("key")
    (owner.folder / "agent.toml").unlink()
    assert "name another file with --config" in owner.mistake("status")


def test_an_unknown_command_is_explained(owner: Owner) -> None:
    with pytest.raises(SystemExit) as caught:
        owner("fly")
    assert caught.value.code == 2
