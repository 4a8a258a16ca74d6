"""Layers of a root file system into one tar, the same bytes each time: sorted, of root, of one moment."""

import hashlib
import io
import stat
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from firmware_tools.errors import FirmwareError

MOMENT = 1_700_000_000
"""Unix seconds that every file is of: SOURCE_DATE_EPOCH."""
REMOVED = ("./var/cache/", "./var/lib/apt/lists/", "./var/log/", "./usr/share/doc/", "./tmp/", "./run/")
"""Beginnings of what no device needs."""


def merge(base: Path, layers: Iterable[Mapping[str, "Entry"]], output: Path, moment: int) -> None:
    """Lay files over a base.

    Args:
        base: tar of the base.
        layers: files by their path in the root file system, "./etc/fstab"; later ones win.
        output: tar to write.
        moment: Unix seconds that every file is of.

    Raises:
        FirmwareError: a file would lie below what is no folder.
    """
    over: dict[str, Entry] = {}
    for layer in layers:
        over.update(layer)
    with tarfile.open(base) as source, tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as target:
        known: dict[str, bool] = {}
        """Names that are in the tar; whether it is a folder."""
        for member in source:
            name = _name(member.name)
            if name in over:
                if member.isdir() and over[name].is_folder:  # now: what lies in it comes next
                    over.pop(name).add_to(target, name, moment)
                    known[name] = True
                continue
            if name.startswith(REMOVED) and not member.isdir():
                continue
            known[name] = member.isdir()
            member.name, member.mtime, member.pax_headers = name, moment, _headers(member)
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
        for name in sorted(over):
            _add_folders(target, name, known, moment)
            known[name] = over[name].is_folder
            over[name].add_to(target, name, moment)


class Entry:
    """A file, link or folder of a layer."""

    def __init__(
        self, content: bytes | Path | None = None, *, mode: int = 0o644, link: str = "", owner: int = 0
    ) -> None:
        """Take what it is.

        Args:
            content: bytes, or a file to read; None: a folder, or a link.
            mode: permissions.
            link: target of a symbolic link.
            owner: user and group id.
        """
        self.content = content
        self.mode = mode
        self.link = link
        self.owner = owner

    @property
    def is_folder(self) -> bool:
        """Neither file nor link."""
        return self.content is None and not self.link

    def read(self) -> bytes:
        """Its content; of a folder or link: nothing."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content or b""

    def describe(self) -> str:
        """Its content and kind, for the key of a step."""
        content = self.content.read_bytes() if isinstance(self.content, Path) else self.content
        digest = hashlib.sha256(content).hexdigest() if content is not None else ""
        return f"{self.mode:o} {self.owner} {self.link} {digest}"

    def add_to(self, target: tarfile.TarFile, name: str, moment: int) -> None:
        """Write it."""
        info = tarfile.TarInfo(name)
        info.mtime, info.mode, info.uid, info.gid = moment, self.mode, self.owner, self.owner
        if self.link:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, self.link, 0o777
            target.addfile(info)
        elif self.content is None:
            info.type, info.mode = tarfile.DIRTYPE, self.mode | 0o111
            target.addfile(info)
        elif isinstance(self.content, bytes):
            info.size = len(self.content)
            target.addfile(info, io.BytesIO(self.content))
        else:
            info.size = self.content.stat().st_size
            with self.content.open("rb") as file:
                target.addfile(info, file)


def folder_layer(folder: Path, prefix: str, skip: Iterable[str] = ()) -> dict[str, Entry]:
    """A folder's files as a layer below `prefix`; executable ones stay so, all belong to root."""
    left_out = set(skip)
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = f"{prefix}/{path.relative_to(folder).as_posix()}"
        if left_out & set(path.relative_to(folder).parts):
            continue
        if path.is_symlink():
            entries[name] = Entry(link=str(path.readlink()))
        elif path.is_file():
            runnable = path.stat().st_mode & stat.S_IXUSR
            entries[name] = Entry(path, mode=0o755 if runnable else 0o644)
    return entries


def _add_folders(target: tarfile.TarFile, name: str, known: dict[str, bool], moment: int) -> None:
    parts = name.split("/")[:-1]
    for length in range(2, len(parts) + 1):
        folder = "/".join(parts[:length])
        if not known.get(folder, True):
            raise FirmwareError(
                f"{name} cannot lie in {folder}, which is a link or a file; name the folder that it leads to"
            )
        if folder not in known:
            known[folder] = True
            Entry(mode=0o755).add_to(target, folder, moment)


def _name(name: str) -> str:
    stripped = name.rstrip("/")
    return stripped if stripped.startswith("./") or stripped == "." else f"./{stripped}"


def _headers(member: tarfile.TarInfo) -> dict[str, str]:
    """Without times of finer grain, which differ from build to build."""
    return {k: v for k, v in member.pax_headers.items() if k not in ("mtime", "atime", "ctime")}


def tar_layer(path: Path, prefix: str = ".") -> dict[str, Entry]:
    """A tar's files and links as a layer below `prefix`, all of root."""
    entries = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = f"{prefix}/{_name(member.name)[2:]}"
            if member.issym():
                entries[name] = Entry(link=member.linkname)
            elif content := tar.extractfile(member) if member.isreg() else None:
                entries[name] = Entry(content.read(), mode=0o755 if member.mode & stat.S_IXUSR else 0o644)
    return entries


def write_layer(output: Path, layer: Mapping[str, Entry], moment: int) -> None:
    """Write a layer as a tar of its own."""
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as target:
        known: dict[str, bool] = {}
        for name in sorted(layer):
            _add_folders(target, name, known, moment)
            layer[name].add_to(target, name, moment)
