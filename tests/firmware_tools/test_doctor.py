"""The doctor: what does not work is named with the packages that bring it."""

import json
import subprocess
from pathlib import Path

import pytest

from firmware_tools import doctor
from firmware_tools.__main__ import main
from firmware_tools.doctor import PROBES, examine, install_line
from tests.firmware_tools.small_images import needs

NEEDED = {probe.name for probe in PROBES if not probe.optional}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a single tool."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(doctor, "SUFFIX", "")
    monkeypatch.setattr(doctor, "ARM64_PROGRAM", b"no program of any machine")


@pytest.mark.usefixtures("bare")
def test_on_a_bare_machine_everything_is_missing_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = {finding.name: finding for finding in examine()}
    assert not any(finding.works for finding in found.values())
    assert found["rauc"].detail == "rauc is not installed"
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [tool["name"] for tool in told["tools"]] == [probe.name for probe in PROBES]
    assert told["install"].startswith("apt install --no-install-recommends dosfstools fdisk grub-common")
    assert "bmap-tools" not in told["install"]  # nice to have
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISSING") == len(NEEDED)
    assert printed.splitlines()[-1] == told["install"]


@needs("sfdisk")
def test_one_tool_that_is_missing_is_the_only_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    call = doctor._call

    def without_rauc(command: list[str], **values: object) -> str:
        if command[0] in ("rauc", "qemu-system-x86_64", "mmdebstrap"):
            raise doctor._FailedError(f"{command[0]} is not installed")
        return call(command, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "_call", without_rauc)
    probes = [probe for probe in PROBES if probe.name in ("rauc", "partitions")]
    monkeypatch.setattr(doctor, "PROBES", probes)
    assert install_line(examine()) == "apt install --no-install-recommends rauc"


def test_a_tool_that_is_there_and_does_not_work_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sfdisk = tmp_path / "sfdisk"
    sfdisk.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    sfdisk.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(doctor, "PROBES", [probe for probe in PROBES if probe.name == "partitions"])
    [finding] = examine()
    assert (finding.works, finding.detail, finding.packages) == (False, "no such option", "fdisk")
    sfdisk.chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "SUFFIX", "")
    [finding] = examine()
    assert finding.detail == "sfdisk cannot be started: Permission denied"


def test_a_tool_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_values: object) -> None:
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    monkeypatch.setattr(doctor, "PROBES", [probe for probe in PROBES if probe.name == "rauc"])
    assert examine()[0].detail == "rauc did not end within 60 s"


def test_where_all_works_nothing_is_to_be_installed() -> None:
    assert install_line([]) == ""


def test_a_machine_that_does_not_run_foreign_programs_is_told_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ARM64_PROGRAM", b"no program of any machine")
    with pytest.raises(doctor._FailedError, match=r"Exec format error; .*binfmt_misc/register"):
        doctor._foreign(tmp_path)


def test_the_foreign_program_is_one_of_arm64() -> None:
    header = doctor.ARM64_PROGRAM
    assert header[:5] == b"\x7fELF\x02"
    assert int.from_bytes(header[18:20], "little") == 183
    assert len(header) == 0x84
