"""Layers in one tar: later ones win, folders come first, and the same files give the same bytes."""

import io
import tarfile
from pathlib import Path

import pytest

from firmware_tools.build.tar_merge import Entry, folder_layer, merge
from firmware_tools.errors import FirmwareError

MOMENT = 1_700_000_000


def base_tar(path: Path, moment: int = 1) -> Path:
    """A small base with an owner, a mode, a link, a hard link, and what no device needs."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, content: bytes | None = None, **values: object) -> None:
            info = tarfile.TarInfo(f"./{name}")
            info.mtime = moment
            info.pax_headers = {"mtime": f"{moment}.5", "SCHILY.xattr.user.x": "1"}
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            for key, value in values.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content or b""))

        add("usr")
        add("usr/bin")
        add("usr/bin/tool", b"tool", mode=0o4755, uid=0, gid=0)
        add("usr/bin/same", b"", type=tarfile.LNKTYPE, linkname="./usr/bin/tool")
        add("bin", b"", type=tarfile.SYMTYPE, linkname="usr/bin")
        add("etc", mode=0o755)
        add("etc/hostname", b"debian\n")
        add("tmp", mode=0o1777)
        add("var")
        add("var/cache")
        add("var/cache/apt.bin", b"x" * 2000)
        add("var/lib", uid=5, gid=6)
        add("var/lib/state", b"state", uid=5, gid=6)
    return path


def merged(tmp_path: Path, *layers: dict[str, Entry]) -> list[tarfile.TarInfo]:
    output = tmp_path / "merged.tar"
    merge(base_tar(tmp_path / "base.tar"), layers, output, MOMENT)
    with tarfile.open(output) as tar:
        return tar.getmembers()


def content(tmp_path: Path, name: str) -> bytes:
    with tarfile.open(tmp_path / "merged.tar") as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def test_later_layers_win_and_nothing_is_there_twice(tmp_path: Path) -> None:
    members = merged(
        tmp_path,
        {"./etc/hostname": Entry(b"one\n"), "./etc/only": Entry(b"1")},
        {"./etc/hostname": Entry(b"two\n", mode=0o600, owner=990)},
    )
    names = [member.name for member in members]
    assert len(names) == len(set(names))
    assert content(tmp_path, "./etc/hostname") == b"two\n"
    assert content(tmp_path, "./etc/only") == b"1"
    found = next(member for member in members if member.name == "./etc/hostname")
    assert (found.mode, found.uid, found.gid) == (0o600, 990, 990)


def test_what_is_of_the_base_keeps_owner_and_mode_and_everything_is_of_one_moment(tmp_path: Path) -> None:
    found = {member.name: member for member in merged(tmp_path, {"./opt/a/b/c": Entry(b"")})}
    assert {member.mtime for member in found.values()} == {MOMENT}
    assert found["./usr/bin/tool"].mode == 0o4755
    assert (found["./var/lib/state"].uid, found["./var/lib/state"].gid) == (5, 6)
    assert found["./usr/bin/same"].islnk()
    assert found["./usr/bin/tool"].pax_headers["SCHILY.xattr.user.x"] == "1"
    assert found["./opt/a"].isdir()
    assert found["./opt/a"].mode == 0o755


def test_folders_come_before_what_lies_in_them_even_where_a_layer_replaces_them(tmp_path: Path) -> None:
    layer = {
        "./var": Entry(mode=0o700),
        "./data": Entry(mode=0o750),
        "./data/x": Entry(b""),
        "./data/y/z": Entry(b""),
        "./etc/a/b": Entry(link="/dev/null"),
    }
    members = merged(tmp_path, layer)
    seen: set[str] = {"."}
    for member in members:
        assert member.name.rpartition("/")[0] in seen
        assert member.name not in seen
        seen.add(member.name)
    found = {member.name: member for member in members}
    assert found["./var"].mode == 0o711
    assert found["./data"].mode == 0o751
    assert "./var/lib/state" in found


def test_what_no_device_needs_is_left_out_but_its_folders(tmp_path: Path) -> None:
    names = {member.name for member in merged(tmp_path)}
    assert "./var/cache/apt.bin" not in names
    assert {"./var/cache", "./tmp"} <= names


def test_the_bytes_do_not_depend_on_times_or_the_order_of_a_layer(tmp_path: Path) -> None:
    layer = {"./etc/b": Entry(b"b"), "./etc/a": Entry(b"a"), "./x/y": Entry(link="/z")}
    outputs = []
    for moment, entries in ((5, layer), (7, dict(reversed(layer.items())))):
        base = base_tar(tmp_path / "base.tar", moment)
        merge(base, [entries], tmp_path / "out.tar", MOMENT)
        outputs.append((tmp_path / "out.tar").read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", ["./bin/tool", "./etc/hostname/x"])
def test_a_file_below_a_link_or_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FirmwareError, match="which is a link or a file"):
        merged(tmp_path, {name: Entry(b"")})


def test_a_folder_becomes_a_layer(tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    (folder / "etc/sub").mkdir(parents=True)
    (folder / "etc/file").write_text("one")
    (folder / "etc/sub/run").write_text("#!/bin/sh\n")
    (folder / "etc/sub/run").chmod(0o700)
    (folder / "etc/link").symlink_to("file")
    layer = folder_layer(folder, ".")
    assert {name: entry.describe().rpartition(" ")[0] for name, entry in layer.items()} == {
        "./etc/file": "644 0 ",
        "./etc/link": "644 0 file",
        "./etc/sub/run": "755 0 ",
    }
    before = layer["./etc/file"].describe()
    (folder / "etc/file").write_text("two")
    assert layer["./etc/file"].describe() != before
    merged(tmp_path, layer)
    assert content(tmp_path, "./etc/file") == b"two"
