"""Packages on the device's disk: chunks into a partial file, a checked package into its own folder.

A chunk is written where it belongs; after a restart the file's chunks are hashed again, so nothing but the
file itself says what is there. A package appears under its name only when every byte of it was checked.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from agent.errors import AgentError
from agent.partial import PartialFiles
from protocol import cbor, records
from protocol.artifacts import Artifact
from protocol.errors import ArtifactError, ProtocolError, SignatureError
from protocol.package import ADAPTER, Manifest, extract, read_adapter
from protocol.signing import PublicKey
from runtime import whole_files

MANIFEST_FILE = "manifest.cbor"


class Installation:
    """The folder of packages."""

    def __init__(
        self,
        directory: Path,
        publishers: Callable[[], Sequence[PublicKey]],
        accept: Callable[[Manifest], None] = lambda _manifest: None,
    ) -> None:
        """Take a folder.

        Args:
            directory: for packages and partial files.
            publishers: whose packages are installed now; none: any that was announced.
            accept: raises a ProtocolError where the device cannot work with a package.
        """
        self._accept = accept
        self._directory = directory
        self._publishers = publishers
        self._partial = PartialFiles(directory)

    def have(self, artifact: Artifact) -> list[int]:
        """Chunks of an artifact that are on disk from an earlier attempt."""
        return self._partial.have(artifact)

    def write_chunk(self, artifact: Artifact, index: int, data: bytes) -> None:
        """Keep a checked chunk."""
        self._partial.write_chunk(artifact, index, data)

    def install(self, artifact: Artifact) -> Manifest:
        """Check the whole package and put it into its folder.

        Raises:
            ProtocolError: it is not what was announced, not of a known publisher, or not for this device; it
                is thrown away.
        """
        path = self._partial.path(artifact)
        unpacked = path.with_suffix(".unpacked")
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        try:
            with path.open("rb") as stream:
                if _digest(stream) != artifact.sha256:
                    raise ArtifactError("the package does not have the announced hash")
                manifest = self._extract(stream, unpacked)
            read_adapter((unpacked / ADAPTER).read_bytes(), manifest.parameters)
            self._accept(manifest)
        except ProtocolError:
            shutil.rmtree(unpacked, ignore_errors=True)
            path.unlink()
            raise
        (unpacked / MANIFEST_FILE).write_bytes(cbor.encode(records.to_numbered(manifest)))
        target = self.path(artifact.sha256)
        shutil.rmtree(target, ignore_errors=True)
        whole_files.rename_folder(unpacked, target)
        path.unlink()
        return manifest

    def path(self, package: bytes) -> Path:
        """Folder of an installed package."""
        return self._directory / package.hex()

    def manifest(self, package: bytes) -> Manifest:
        """Description of an installed package.

        Raises:
            AgentError: it is not there or damaged; an agent that starts fetches it anew.
        """
        path = self.path(package) / MANIFEST_FILE
        try:
            return records.from_numbered(Manifest, cbor.decode(path.read_bytes(), limit=1 << 20))
        except (OSError, ProtocolError) as error:
            raise AgentError(f"{path}: {error}; start the agent, which fetches it anew") from error

    def damage(self, package: bytes) -> str:
        """What is wrong with an installed package, after every byte of it was read; empty: nothing."""
        try:
            manifest = self.manifest(package)
            for name, expected in manifest.files.items():
                with (self.path(package) / name).open("rb") as stream:
                    if _digest(stream) != expected:
                        return f"{name} does not have the hash that the manifest names"
        except (AgentError, OSError) as error:
            return str(error)
        return ""

    def keep_only(self, package: bytes) -> None:
        """Remove all other packages."""
        for other in self._directory.iterdir():
            if other.is_dir() and other != self.path(package):
                shutil.rmtree(other, ignore_errors=True)

    def _extract(self, stream: BinaryIO, target: Path) -> Manifest:
        def write(name: str, block: bytes) -> None:
            if Path(name).name != name:
                raise ArtifactError(f"member {name!r}: expected a plain file name")
            with (target / name).open("ab") as file:
                file.write(block)

        publishers = self._publishers()
        for publisher in publishers:
            try:
                stream.seek(0)
                return extract(stream, publisher, write)
            except SignatureError:
                continue  # nothing was written yet: the manifest comes first
        if publishers:
            raise SignatureError("the package is not signed by a publisher that this device knows")
        stream.seek(0)
        return extract(stream, None, write)


def _digest(stream: BinaryIO) -> bytes:
    """SHA-256 of a stream, block by block (hashlib.file_digest needs Python 3.11)."""
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.digest()
