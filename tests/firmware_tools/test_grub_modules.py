"""GRUB for a foreign architecture: its modules come out of a package, and fit this machine's grub-mkimage."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from firmware_tools.build.plan import Plan, Step
from firmware_tools.build.spec import load_spec
from firmware_tools.build.tar_merge import MOMENT, Entry, write_layer
from firmware_tools.build.ways import grub_efi
from firmware_tools.build.ways.grub_efi import GrubEfi, grub_configuration
from firmware_tools.errors import FirmwareError

SPEC = load_spec("arm64-generic")
FOLDER = "./usr/lib/grub/arm64-efi"


def packed(files: Mapping[str, bytes]) -> Callable[[Path, Mapping[str, Path]], None]:
    def work(output: Path, _outputs: Mapping[str, Path]) -> None:
        write_layer(output, {f"{FOLDER}/{name}": Entry(content) for name, content in files.items()}, MOMENT)

    return work


@pytest.mark.skipif(shutil.which("grub-mkimage") is None, reason="needs GRUB: apt install grub-common")
@pytest.mark.parametrize("version", [b"\x002.99-1\x00", b"without any"])
def test_modules_of_another_version_than_grub_mkimage_are_refused(tmp_path: Path, version: bytes) -> None:
    files = {"normal.mod": b"\x7fELF" + version, "monolithic/grubaa64.efi": b"a whole GRUB"}
    modules = Step("modules", "", ".tar", work=packed(files))
    _, loader, _ = GrubEfi().after(SPEC)
    with pytest.raises(FirmwareError, match=r"modules for arm64-efi are version .*, and grub-mkimage is"):
        Plan([modules, loader]).run(tmp_path, say=lambda _line: None)
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["modules"]


def test_they_are_of_this_machines_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "os-release"
    monkeypatch.setattr(grub_efi, "_HOST", release)
    for text, suite in (("VERSION_CODENAME=trixie\n", "trixie"), ("ID=arch\n", "stable")):
        release.write_text(text)
        assert GrubEfi().after(SPEC)[0].commands[0][-2:] == (suite, "{output}")
    release.unlink()
    assert GrubEfi().after(SPEC)[0].commands[0][-2:] == ("stable", "{output}")


def test_only_the_terminal_and_the_console_differ_from_x86() -> None:
    spec = load_spec("x86_64-uefi")
    one = grub_configuration(SPEC).split("# The copy with", 1)[1]
    other = grub_configuration(spec).split("# The copy with", 1)[1]
    different = [line for line in one.splitlines() if line not in other.splitlines()]
    assert len(different) == 2
    assert "set uuid=" in different[0]
    assert "console=tty0 console=ttyAMA0,115200" in different[1]
    assert "serial" not in grub_configuration(SPEC).split("set timeout", 1)[0].split("\n", 2)[2]
