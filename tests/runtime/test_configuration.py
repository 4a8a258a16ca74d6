"""Configuration files: each mistake names the file and the place in it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.broker import BrokerConfig
from runtime.configuration import load
from runtime.errors import SetupError


@dataclass(frozen=True)
class Config:
    name: str
    sizes: tuple[int, ...] = ()
    broker: BrokerConfig = field(default_factory=BrokerConfig)


def test_a_file_is_read_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('name = "ä"\nsizes = [1, 2]\n[broker]\nhost = "h"\n', "utf-8")
    assert load(Config, path) == Config("ä", (1, 2), BrokerConfig(host="h"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "name: missing; expected text"),
        (b"name = 1", "name: expected text, got int"),
        (b'name = "a"\nname = "b"', "not TOML"),
        (b'name = "\xff"', "not TOML"),
        (b'name = "a"\nsizes = [1, "2"]', r"sizes\[1\]: expected an integer, got str"),
        (b'name = "a"\nsize = 1', "size: unknown key; expected one of broker, name, sizes"),
        (b'name = "a"\n[broker]\nport = 70000', "broker: port: expected 1 to 65535, got 70000"),
        (b'name = "a"\n[broker]\nmqtt_version = "4"', "broker: mqtt_version: expected one of auto, 5, 3.1.1"),
        (b'name = "a"\n[broker]\nkeepalive_seconds = 0', "broker: keepalive_seconds: expected 1 to 3600"),
        (b'name = "a"\n[broker]\ntls_key = "k"', "broker: tls_key: expected a tls_certificate with it"),
    ],
)
def test_a_mistake_names_file_and_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=message) as caught:
        load(Config, path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_or_a_folder_says_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(SetupError, match="name another file with --config"):
            load(Config, path)
