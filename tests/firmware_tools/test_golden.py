"""Golden images: a file of one device in the root file system is found, with the reason."""

from pathlib import Path

import pytest

from firmware_tools.__main__ import main
from firmware_tools.errors import FirmwareError
from firmware_tools.golden import check

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in {
        "etc/machine-id": "",
        "etc/ssh/sshd_config": "HostKey /etc/ssh/ssh_host_ed25519_key\n",
        "etc/graftwork/agent.toml": 'federation = "plant"\n',
        "usr/lib/libcrypto.so": "\0-----BEGIN PRIVATE KEY-----\0-----BEGIN RSA PRIVATE KEY-----\n\0",
        "etc/ssl/certs/ca.pem": "-----BEGIN CERTIFICATE-----\nMIIB" + "A" * 60 + "\n",
        "etc/keyboard.key": "de",
    }.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "root/var/lib/dbus").mkdir(parents=True)
    (tmp_path / "root/var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    return tmp_path / "root"


def test_a_fresh_system_is_golden(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root) == []
    assert main(["verify", "golden", str(root)]) == 0
    assert "is golden" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("etc/machine-id", "0" * 32 + "\n", "the same machine id"),
        ("var/lib/systemd/random-seed", "x" * 32, "a random seed"),
        ("etc/ssh/ssh_host_ed25519_key", "x", "an SSH host key"),
        ("etc/ssh/ssh_host_ed25519_key.pub", "x", "an SSH host key"),
        ("etc/ssl/private/snakeoil.pem", PEM, "a private key"),
        ("home/pi/.ssh/id_rsa", PEM.replace("PRIVATE", "OPENSSH PRIVATE"), "a private key"),
        ("opt/old.key", PEM.replace("\n", "\r\n"), "a private key"),
        ("etc/tls.pem", "Bag Attributes\n" + PEM.replace("PRIVATE", "EC PRIVATE"), "a private key"),
        ("var/lib/graftwork-agent/device.key", "ab" * 32 + "\n", "a private key of Graftwork"),
        ("var/lib/graftwork-agent/agent.sqlite", "", "state of an agent"),
        ("var/lib/graftwork-agent/identity.pem", "", "certificate and key"),
        ("identity/enrolment.token", "x", "an enrolment token"),
        ("identity/seed.toml", "x", "a device's seed"),
        ("etc/graftwork/agent.toml", 'device = "edge-1"\n', "configuration with a device's name"),
    ],
)
def test_what_is_of_one_device_is_found(root: Path, name: str, content: str, reason: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, newline="")
    [finding] = check(root)
    assert finding.path == name
    assert reason in finding.reason


def test_a_system_without_machine_id_is_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "etc/machine-id").unlink()
    assert "read-only root" in check(root)[0].reason
    assert main(["verify", "golden", str(root), "--json"]) == 1
    assert '"path": "etc/machine-id"' in capsys.readouterr().out


def test_links_are_not_followed_out_of_the_tree(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "key.pem").write_text(PEM)
    (root / "opt").symlink_to(tmp_path / "outside")
    (root / "etc" / "key.pem").symlink_to(tmp_path / "outside" / "key.pem")
    assert check(root) == []


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FirmwareError, match="expected the folder of a root file system"):
        check(tmp_path / "none")
