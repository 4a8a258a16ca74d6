"""The agent's configuration: paths, ranges and mistakes, each named with file and key."""

from pathlib import Path

import pytest

from agent.config import load
from runtime.errors import SetupError
from tests.builders import private_key

KEY = private_key(100).public.raw.hex()
TOP = f'device = "pump-1"\nfederation = "pumps"\nserver_key = "{KEY}"\n'
SOURCE = '[source]\ndirectory = "spool"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, "utf-8")
    return path


def test_paths_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, TOP + SOURCE))
    assert config.state_directory == str(tmp_path / "state")
    assert config.source.directory == str(tmp_path / "spool")
    assert (config.source.kind, config.publishers, config.limits.threads) == ("spool", (), 1)


def test_absolute_paths_stay(tmp_path: Path) -> None:
    text = (
        TOP
        + 'state_directory = "/var/lib/agent"\n[source]\ndirectory = "/data"\nkind = "replay"\nspeed = 10\n'
    )
    config = load(write(tmp_path, text))
    assert (config.state_directory, config.source.directory) == ("/var/lib/agent", "/data")
    assert (config.source.kind, config.source.speed) == ("replay", 10.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOP, "source: missing"),
        (TOP + "[source]\n", "source.directory: missing"),
        (TOP.replace("pump-1", "graftwork-server-x") + SOURCE, "does not begin with graftwork-"),
        (TOP.replace("server_key", "#") + SOURCE, "server_key and root: expected one of them"),
        (TOP + 'root = "root.json"\n' + SOURCE, "server_key and root: expected one of them"),
        (TOP + SOURCE + "[enrolment]\nport = 8884\n", "broker.tls_ca: expected the file"),
        (TOP.replace("device", "devise") + SOURCE, "devise: unknown key"),
        (TOP.replace("pump-1", "a/b") + SOURCE, "expected 1 to 64 characters"),
        (TOP + SOURCE + 'kind = "stream"', "source: kind: expected one of spool, replay"),
        (TOP + SOURCE + "speed = 0", "source: speed: expected a positive number"),
        (TOP + SOURCE + "speed = nan", "source: speed: expected a positive number"),
        (TOP + SOURCE + "[limits]\nthreads = 0", "limits: threads: expected 1 to 256"),
        (
            TOP + SOURCE + "[limits]\nfeature_cache_bytes = 5",
            "limits: feature_cache_bytes: expected at least 1 MiB",
        ),
        (TOP + SOURCE + "[limits]\ntraining_windows = 1", "limits: training_windows: expected at least 16"),
    ],
)
def test_a_mistake_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SetupError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
