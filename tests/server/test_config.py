"""The server's configuration: paths, ranges and mistakes, each named with file and key."""

from pathlib import Path

import pytest

from runtime.errors import SetupError
from server.config import load
from server.round import RoundPolicy

MINIMAL = 'federation = "pumps"\ndata_directory = "data"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_minimal_file_gets_defaults_and_its_own_folder(tmp_path: Path) -> None:
    config = load(write(tmp_path, MINIMAL))
    assert config.data_directory == str(tmp_path / "data")
    assert (config.enrolment, config.publishers, config.round) == ("closed", (), RoundPolicy())


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    config = load(write(tmp_path, 'federation = "pumps"\ndata_directory = "/var/lib/graftwork"\n'))
    assert config.data_directory == "/var/lib/graftwork"


def test_every_part_can_be_set(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + f'enrolment = "open"\npublishers = ["{"ab" * 32}"]\nmaximum_update_bytes = 2048\n'
        + "release_step_ratio = 1.5\n"
        + '[aggregation]\nrule = "multi_krum"\nserver_optimizer = "adam"\n'
        + "[broker]\nport = 8883\n[round]\nminimum_devices = 5\n[training]\nepochs = 2\n"
    )
    config = load(write(tmp_path, text))
    assert (config.enrolment, config.publishers, config.maximum_update_bytes) == ("open", ("ab" * 32,), 2048)
    assert config.release_step_ratio == 1.5
    assert (config.aggregation.rule, config.aggregation.server_optimizer) == ("multi_krum", "adam")
    assert (config.broker.port, config.round.minimum_devices, config.training.epochs) == (8883, 5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "federation: missing; expected text"),
        ('federation = "pumps"', "data_directory: missing"),
        (MINIMAL + "colour = 1", "colour: unknown key"),
        (MINIMAL + '[aggregation]\nrule = "vote"', "rule: expected one of mean, bounded_mean"),
        (MINIMAL + "[aggregation]\nassumed_attackers = 0.5", r"assumed_attackers: expected 0 to 0.49"),
        (MINIMAL + "[round]\nquorums = 1", r"round\.quorums: unknown key"),
        (MINIMAL + "[round]\nquorum = 2.0", "round: quorum: expected more than 0"),
        (MINIMAL + "[training]\nepochs = 0", "training: epochs: expected 1 to 1000, got 0"),
        (MINIMAL + '[training]\nepochs = "5"', r"training\.epochs: expected an integer, got str"),
        (MINIMAL + "[broker]\nport = 0", "broker: port: expected 1 to 65535"),
        (
            MINIMAL + 'enrolment = "ajar"',
            "enrolment: expected one of closed, open, token, approval, got 'ajar'",
        ),
        (MINIMAL + "maximum_update_bytes = 1", "maximum_update_bytes: expected 1 KiB to 16 MiB"),
        (MINIMAL + "release_step_ratio = 0.01", "release_step_ratio: expected 0.015625 to 16, got 0.01"),
        (MINIMAL + "release_step_ratio = nan", "release_step_ratio: expected 0.015625 to 16, got nan"),
        (MINIMAL.replace("pumps", "a/b"), "expected 1 to 64 characters"),
        (MINIMAL + "=", "not TOML"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SetupError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
