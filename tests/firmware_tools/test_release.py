"""An index of releases at its publisher: what is added stays as it is, and nothing foreign is ever signed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_tools import release
from firmware_tools.__main__ import main
from firmware_tools.bundles import BundleFacts
from firmware_tools.errors import FirmwareError
from firmware_tools.release import Publisher
from firmware_tools.release_files import _WAITING
from firmware_tools.release_keys import load_keys
from runtime import whole_files
from tests.firmware_tools.release_site import BOARD, DAY, NOW, Site, new_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return new_site(tmp_path / "site")


def test_keys_are_for_their_owner_alone_and_apart_from_what_is_served(site: Site) -> None:
    assert {path.name for path in site.keys.glob("*.key")} == {
        *("root-1.key", "root-2.key", "root-3.key", "targets.key", "snapshot.key", "timestamp.key")
    }
    assert {path.stat().st_mode & 0o777 for path in site.keys.glob("*.key")} == {0o600}
    assert site.keys.stat().st_mode & 0o777 == 0o700
    assert not list(site.index.rglob("*.key"))
    assert not [path for path in site.index.rglob("*.json") if b"PRIVATE" in path.read_bytes()]
    for index, keys in (("a", "a/keys"), ("b/index", "b"), ("c", "c")):
        with pytest.raises(FirmwareError, match="apart from what is served"):
            release.create(site.folder / index, site.folder / keys, NOW)


def test_keys_and_indexes_are_never_overwritten(site: Site) -> None:
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    for index, keys in ((site.index, site.folder / "k"), (site.folder / "i", site.keys)):
        with pytest.raises(FirmwareError, match="never overwritten"):
            release.create(index, keys, NOW)
    assert {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == before


def test_two_of_three_root_keys_are_needed_by_default(site: Site) -> None:
    root = json.loads((site.keys / "root.json").read_text())["signed"]
    assert (root["roles"]["root"]["threshold"], len(root["roles"]["root"]["keyids"])) == (2, 3)
    assert {root["roles"][role]["threshold"] for role in release.ROLES} == {1}
    for count, threshold in ((2, 3), (3, 0), (10, 2)):
        with pytest.raises(FirmwareError, match="expected a threshold"):
            release.create(site.folder / "i", site.folder / "k", NOW, root_keys=count, threshold=threshold)


def test_a_release_is_bound_to_version_board_length_and_hash(site: Site) -> None:
    found = site.release("1.4.0")
    [path] = sorted(site.metadata.glob("*.targets.json"))[-1:]
    target = json.loads(path.read_text())["signed"]["targets"][f"{BOARD}-1.4.0.raucb"]
    assert target == {
        "custom": {"compatible": BOARD, "version": "1.4.0"},
        "hashes": {"sha256": found.sha256},
        "length": 5000,
    }
    assert site.served(found).read_bytes() == (site.folder / "1.4.0.raucb").read_bytes()
    assert site.publisher().index.releases == (found,)


def test_what_was_released_never_changes(site: Site) -> None:
    found = site.release("1.4.0")
    publisher, facts = site.publisher(), BundleFacts(BOARD, "1.4.0")
    assert publisher.add(site.folder / "1.4.0.raucb", facts, NOW) == (found, False)
    (site.folder / "other").write_bytes(b"other")
    with pytest.raises(FirmwareError, match="with other bytes"):
        publisher.add(site.folder / "other", facts, NOW)
    assert site.publisher().index.releases == (found,)


def test_versions_are_compared_as_numbers_and_go_up_for_each_board(site: Site) -> None:
    site.release("1.9.0")
    site.release("1.10.0")
    site.release("0.1.0", board="other-board")
    with pytest.raises(FirmwareError, match=r"1\.9\.1 is below 1\.10\.0, the newest"):
        site.release("1.9.1")
    publisher = site.publisher()
    publisher.add(site.folder / "1.9.1.raucb", BundleFacts(BOARD, "1.9.1"), NOW, older=True)
    versions = [found.version for found in publisher.index.releases if found.compatible == BOARD]
    assert versions == ["1.9.0", "1.9.1", "1.10.0"]


def test_the_floor_rises_and_never_above_what_there_is(site: Site) -> None:
    with pytest.raises(FirmwareError, match="none is released"):
        site.publisher().set_floor(BOARD, "1.0.0", NOW)
    for version in ("1.0.0", "1.4.0"):
        site.release(version)
    with pytest.raises(FirmwareError, match="devices could install nothing"):
        site.publisher().set_floor(BOARD, "1.4.1", NOW)
    site.publisher().set_floor(BOARD, "1.2.0", NOW)
    with pytest.raises(FirmwareError, match=r"the floor is 1\.2\.0"):
        site.publisher().set_floor(BOARD, "1.1.9", NOW)
    publisher = site.publisher()
    (site.folder / "b").write_bytes(b"b")
    with pytest.raises(FirmwareError, match=r"below 1\.2\.0, the lowest version"):
        publisher.add(site.folder / "b", BundleFacts(BOARD, "1.1.0"), NOW, older=True)
    assert site.publisher().index.floors == {BOARD: "1.2.0"}


def test_refreshing_needs_no_key_of_what_is_released(site: Site) -> None:
    found = site.release("1.4.0")
    for name in ("root-1", "root-2", "root-3", "targets"):
        (site.keys / f"{name}.key").unlink()
    before = site.publisher().expiry()
    site.publisher().refresh(NOW + 10 * DAY)
    after = site.publisher().expiry()
    assert after["timestamp"] == after["snapshot"] == before["timestamp"] + 10 * DAY
    assert (after["targets"], after["root"]) == (before["targets"], before["root"])
    assert site.publisher().index.releases == (found,)
    with pytest.raises(FirmwareError, match="expected 1 of the keys targets in the folders"):
        site.release("1.5.0")
    with pytest.raises(FirmwareError, match="expected 2 of the keys root-1, root-2, root-3"):
        site.publisher().refresh(NOW, root=True)


def test_what_is_released_is_renewed_in_time_where_its_key_is_at_hand(site: Site) -> None:
    site.publisher().refresh(NOW + 100 * DAY)
    assert site.publisher().expiry()["targets"] == NOW + 365 * DAY
    site.publisher().refresh(NOW + 200 * DAY)
    assert site.publisher().expiry()["targets"] == NOW + 565 * DAY


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "root-2"])
def test_a_lost_key_is_replaced_and_the_one_before_counts_no_more(site: Site, name: str) -> None:
    site.release("1.4.0")
    lost = (site.keys / f"{name}.key").read_bytes()
    (site.keys / f"{name}.key").unlink()
    path = site.publisher().rotate(name, site.keys, NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    site.release("1.5.0")
    assert len(site.publisher().index.releases) == 2
    path.write_bytes(lost)
    if name == "root-2":
        (site.keys / "root-1.key").unlink()
    with pytest.raises(FirmwareError, match=r"expected \d of the keys"):
        site.publisher().rotate("root-3", site.keys, NOW)


def test_a_key_that_there_is_not_and_one_root_key_change_nothing(site: Site) -> None:
    with pytest.raises(FirmwareError, match="expected one of root-1, root-2, root-3, snapshot"):
        site.publisher().rotate("root-7", site.keys, NOW)
    for number in (1, 2):
        (site.keys / f"root-{number}.key").unlink()
    with pytest.raises(FirmwareError, match="expected 2 of the keys"):
        site.publisher().rotate("timestamp", site.keys, NOW)
    assert not list(site.keys.glob("*.v2.key"))
    assert not (site.metadata / "2.root.json").exists()


def test_keys_may_lie_on_several_media(site: Site) -> None:
    sticks = [site.folder / f"stick-{number}" for number in (1, 3)]
    for stick, number in zip(sticks, (1, 3), strict=True):
        stick.mkdir()
        shutil.move(site.keys / f"root-{number}.key", stick)
    (site.keys / "root-2.key").unlink()
    command = ["release", "rotate-key", str(site.index), "root-2", "--keys", str(site.keys)]
    assert main(command) == 1
    assert main([*command, "--keys", str(sticks[0]), "--keys", str(sticks[1])]) == 0
    assert (site.keys / "root-2.v2.key").exists()


def test_nothing_that_others_put_into_the_folder_is_signed(site: Site, tmp_path: Path) -> None:
    """Who can write to the web server waits for the next `add`, which would sign all of it."""
    other = new_site(tmp_path / "other")
    other.release("9.0.0")
    genuine = site.copy("genuine")
    for names in (["timestamp.json"], ["2.snapshot.json"], ["2.targets.json"], None):
        shutil.rmtree(site.index)
        shutil.copytree(genuine, site.index)
        site.release("1.4.0")
        if names is None:  # all of it, with their own root
            shutil.rmtree(site.index)
            shutil.copytree(other.index, site.index)
        for name in names or []:
            shutil.copy(other.metadata / name, site.metadata / name)
        with pytest.raises(FirmwareError, match="not an index that was signed by its keys"):
            site.release("1.5.0")


def test_keys_that_others_can_read_are_refused(site: Site) -> None:
    (site.keys / "targets.key").chmod(0o644)
    with pytest.raises(FirmwareError, match="chmod 600"):
        load_keys([site.keys])


@pytest.mark.parametrize("action", ["add", "rotate"])
@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_any_write_leaves_a_whole_index(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: int, action: str
) -> None:
    before = site.release("1.4.0")
    count, write, replace = 0, whole_files.write, Path.replace

    def crash() -> None:
        nonlocal count
        if count == step:
            raise KeyboardInterrupt
        count += 1

    def crashing_write(path: Path, data: bytes, mode: int) -> None:
        if path.suffix != ".key":
            crash()
        write(path, data, mode)

    def crashing_replace(self: Path, target: Path) -> Path:
        if self.name == _WAITING:
            crash()
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "write", crashing_write)
        patch.setattr(Path, "replace", crashing_replace)
        try:
            if action == "add":
                site.release("1.5.0")
            else:
                site.publisher().rotate("timestamp", site.keys, NOW)
        except KeyboardInterrupt:
            pass
    publisher = site.publisher()
    assert publisher.index.releases[0] == before
    publisher.refresh(NOW)
    assert site.publisher().index.releases[0] == before


def test_the_commands_show_and_check_what_devices_would_see(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firmware_tools.release_commands.time.time", lambda: NOW)
    found = site.release("1.4.0")
    root = ["--root", str(site.keys / "root.json")]
    assert main(["release", "floor", str(site.index), BOARD, "1.4.0", "--keys", str(site.keys)]) == 0
    assert main(["release", "refresh", str(site.index), "--keys", str(site.keys), "--days", "3"]) == 0
    assert main(["release", "list", str(site.index), *root]) == 0
    shown = capsys.readouterr().out
    assert f"{BOARD}" in shown
    assert f"{found.sha256[:16]} (floor)" in shown
    assert main(["release", "list", str(site.index), *root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["floors"] == {BOARD: "1.4.0"}
    assert main(["release", "verify", str(site.index), *root]) == 0
    assert "good: 1 bundles" in capsys.readouterr().out
    with site.served(found).open("rb+") as file:
        file.write(b"X")
    assert main(["release", "verify", str(site.index), *root]) == 1
    assert "missing or changed" in capsys.readouterr().err
    monkeypatch.setattr("firmware_tools.release_commands.time.time", lambda: NOW + 4 * DAY)
    assert main(["release", "verify", str(site.index), *root]) == 1
    assert "is not good any more" in capsys.readouterr().err


def test_a_publisher_without_its_first_root_says_what_is_missing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.keys / "root.json").unlink()
    assert main(["release", "refresh", str(site.index), "--keys", str(site.keys)]) == 1
    assert "expected root.json of `release init`" in capsys.readouterr().err
    with pytest.raises(FirmwareError, match=r"expected the root\.json"):
        Publisher.open(site.index, b"{}", {})


def test_two_commands_at_once_do_not_mix_their_files(site: Site) -> None:
    """E.g. cron renews the index while somebody adds a release."""
    folders = ["--keys", str(site.keys)]
    command = [sys.executable, "-m", "firmware_tools", "release", "refresh", str(site.index), *folders]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    site.publisher()
    assert (site.metadata / "5.snapshot.json").exists()


def test_where_there_is_no_index_the_command_to_make_one_is_named(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "refresh", str(site.folder / "none"), "--keys", str(site.keys)]) == 1
    assert "make one with `release init`" in capsys.readouterr().err
