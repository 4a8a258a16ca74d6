"""overlay/grub.cfg, played: which slot boots in which state, and that every try is counted."""

import shutil
import subprocess
from pathlib import Path

import pytest

import firmware_tools
from firmware_tools.build.layout import layout_of
from firmware_tools.build.spec import load_spec
from firmware_tools.build.ways.grub_efi import grub_configuration
from firmware_tools.device.boot_environment import BootEnvironment, BootState, factory_files
from tests.firmware_tools.boot_loader import boot, kernel_line

FOLDER = Path(firmware_tools.__file__).parent / "targets"
TARGETS = [
    name for name in sorted(path.stem for path in FOLDER.glob("*.toml")) if load_spec(name).boot == "grub-efi"
]


@pytest.fixture
def environment(tmp_path: Path) -> BootEnvironment:
    for name, content in factory_files().items():
        (tmp_path / name).write_bytes(content)
    return BootEnvironment(tmp_path)


@pytest.mark.parametrize(
    ("primary", "a", "b", "tries", "slot"),
    [
        ("A", "good", "bad", (0, 0), "A"),
        ("A", "good", "bad", (2, 0), "A"),
        ("A", "good", "bad", (3, 0), "A"),  # nothing else is there: begin anew
        ("A", "good", "good", (3, 0), "B"),
        ("A", "good", "good", (3, 3), "A"),
        ("B", "good", "trial", (0, 0), "B"),
        ("B", "good", "trial", (0, 2), "B"),
        ("B", "good", "trial", (0, 3), "A"),
        ("B", "good", "trial", (3, 3), "A"),
        ("B", "good", "bad", (0, 0), "A"),
        ("B", "bad", "good", (0, 3), "B"),
        ("A", "bad", "good", (0, 0), "B"),
        ("A", "trial", "good", (3, 0), "B"),
        ("A", "trial", "bad", (3, 0), "A"),
        ("B", "bad", "trial", (0, 3), "B"),
        ("B", "good", "trial", None, "A"),  # without counts a trial could boot for ever
        ("B", "good", "good", None, "B"),
    ],
)
def test_which_slot_boots(  # noqa: PLR0917 - a table
    environment: BootEnvironment,
    tmp_path: Path,
    primary: str,
    a: str,
    b: str,
    tries: tuple[int, int] | None,
    slot: str,
) -> None:
    environment.write(BootState(primary=primary, a_state=a, b_state=b))
    if tries is None:
        (tmp_path / "tries").write_bytes(bytes(1024))
    else:
        environment.set_tries(dict(zip("AB", tries, strict=True)))
    before = {name: (tmp_path / name).read_bytes() for name in ("state0", "state1")}
    assert boot(tmp_path) == slot
    if tries is not None:  # a slot that had none left boots only where everything begins anew
        index = "AB".index(slot)
        assert (environment.tries() or {})[slot] == (1 if tries[index] == 3 else tries[index] + 1)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_trial_that_never_becomes_healthy_boots_three_times(
    environment: BootEnvironment, tmp_path: Path
) -> None:
    environment.write(BootState(primary="B", b_state="trial"))
    assert [boot(tmp_path) for _ in range(4)] == ["B", "B", "B", "A"]


def test_the_copy_with_the_higher_sequence_counts_in_numbers(
    environment: BootEnvironment, tmp_path: Path
) -> None:
    for _ in range(7):  # to 9; as text, 10 is less
        environment.write(BootState())
    assert environment.write(BootState(primary="B", b_state="good")).sequence == 10
    assert boot(tmp_path) == "B"


def test_a_damaged_copy_does_not_count(environment: BootEnvironment, tmp_path: Path) -> None:
    environment.write(BootState(primary="B", b_state="good"))
    content = bytearray((tmp_path / "state0").read_bytes())
    content[200] ^= 1
    (tmp_path / "state0").write_bytes(content)
    assert boot(tmp_path) == "A"


def test_without_any_copy_slot_a_boots(environment: BootEnvironment, tmp_path: Path) -> None:
    environment.write(BootState(primary="B", b_state="good"))
    for number in (0, 1):
        (tmp_path / f"state{number}").unlink()
    assert boot(tmp_path) == "A"


def test_the_kernel_is_told_its_slot_and_whether_it_is_on_trial(
    environment: BootEnvironment, tmp_path: Path
) -> None:
    layout = layout_of(load_spec("qemu-x86_64"))
    words = kernel_line(tmp_path).split()
    assert words[1] == "gpt3/vmlinuz"
    assert f"root=PARTUUID={layout['rootfs-a'].uuid}" in words
    assert "graftwork.trial=0" in words
    environment.write(BootState(primary="B", b_state="trial"))
    words = kernel_line(tmp_path).split()
    assert words[1] == "gpt4/vmlinuz"
    assert {f"root=PARTUUID={layout['rootfs-b'].uuid}", "rauc.slot=B", "graftwork.trial=1"} <= set(words)


@pytest.mark.parametrize("target", TARGETS)
def test_every_mark_is_replaced(target: str) -> None:
    assert "@" not in grub_configuration(load_spec(target))


@pytest.mark.skipif(
    shutil.which("grub-script-check") is None, reason="needs grub-script-check: apt install grub-common"
)
@pytest.mark.parametrize("target", TARGETS)
def test_grub_parses_the_configuration(target: str) -> None:
    text = grub_configuration(load_spec(target)).encode()
    subprocess.run(["grub-script-check"], input=text, check=True, capture_output=True)
    broken = subprocess.run(
        ["grub-script-check"], input=text + b"if true; then\n", check=False, capture_output=True
    )
    assert broken.returncode != 0
