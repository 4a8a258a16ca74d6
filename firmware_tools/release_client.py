"""Following an index of releases: python-tuf's client over the web or a folder, on any clock.

The client refuses what is rolled back, frozen, mixed, signed by others, cut short or endless; its reasons get
words here. A device's time is its clock, but never less than the newest moment that a root or an index it
believes was signed: so a clock that starts in 1970 is no dead end, and no index is good again that was not.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from firmware_tools.errors import FirmwareError
from firmware_tools.release_index import (
    BUNDLES,
    METADATA,
    Index,
    Release,
    check_root,
    read_index,
    signed_at,
    written,
)
from runtime import whole_files

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKET_SECONDS = 30
"""Between two pieces of an answer."""
_PIECE = 1 << 18


class FolderFetcher(FetcherInterface):
    """Reads an index from a folder, e.g. of a USB stick."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url)
        if not path.exists():
            raise DownloadHTTPError(f"{path} is not there", 404)
        if not path.is_file():  # a pipe would never end
            raise DownloadError(f"{path} is no regular file")
        return self._pieces(path)

    def _pieces(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece


class ReleaseClient:
    """One look at an index."""

    def __init__(self, first_root: bytes, store: Path, source: str, now: float) -> None:
        """Prepare it; nothing is read from the source yet.

        Args:
            first_root: that is believed.
            store: folder for what was seen, kept from one look to the next.
            source: URL or folder.
            now: Unix seconds, as the clock says; it may be wrong.

        Raises:
            FirmwareError: the root is none, or the folder cannot be written to.
        """
        web = source.startswith(("http://", "https://"))
        if not web and not Path(source).is_dir():
            raise FirmwareError(f"{source}: expected http://, https:// or a folder that is there")
        self._source = source if web else str(Path(source).resolve())
        self._fetcher: FetcherInterface = Urllib3Fetcher(SOCKET_SECONDS) if web else FolderFetcher()
        for name in ("tuf", "securesystemslib", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)  # what they log is said below, once
        root = check_root(first_root, name="the root of releases")
        try:
            store.mkdir(parents=True, exist_ok=True)
            self.time = max(now, signed_at(root.signed.unrecognized_fields), _newest_signed(store))
            self._updater = Updater(
                str(store), f"{self._source}/{METADATA}/", fetcher=self._fetcher, bootstrap=first_root
            )
        except RepositoryError as error:
            raise FirmwareError(f"{store}: the root of releases cannot be used: {error}") from error
        except OSError as error:
            raise FirmwareError(f"{error.filename or store}: {error.strerror}") from error
        # The client has no other way to be told the time.
        self._updater._trusted_set.reference_time = dt.datetime.fromtimestamp(  # noqa: SLF001
            self.time, dt.timezone.utc
        )

    def index(self) -> Index:
        """Read the index.

        Raises:
            FirmwareError: it cannot be had, or is refused; says why.
        """
        with self._in_words("the index"):
            self._updater.refresh()
            return read_index(self._updater._trusted_set.targets)  # noqa: SLF001 - all of it, not one name

    def download(self, release: Release, path: Path) -> None:
        """Write a release's bundle to a file, whose bytes are then on the disk and those that were signed.

        A bundle is larger than many a device's memory, so it goes to its place piece by piece, and not by way
        of /tmp as the client would have it.

        Raises:
            FirmwareError: it cannot be had, or is not what the index says; then there is no file.
        """
        target = TargetFile(release.length, {"sha256": release.sha256}, release.name)
        partial = path.with_name(f".{path.name}.part")
        try:
            with self._in_words(release.name):
                with partial.open("wb+") as file:
                    received = 0
                    for piece in self._fetcher.fetch(f"{self._source}/{BUNDLES}/{release.file_name}"):
                        received += len(piece)
                        if received > release.length:
                            raise DownloadLengthMismatchError(f"more than {release.length} bytes")
                        file.write(piece)
                    file.seek(0)
                    target.verify_length_and_hashes(file)
                whole_files.rename(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def is_whole(self, release: Release, path: Path) -> bool:
        """Whether a file is the bundle of a release."""
        try:
            with path.open("rb") as file:
                TargetFile(release.length, {"sha256": release.sha256}, release.name).verify_length_and_hashes(
                    file
                )
        except (OSError, RepositoryError):
            return False
        return True

    def close(self) -> None:
        """Let go of connections."""
        if isinstance(self._fetcher, Urllib3Fetcher):
            for pool in self._fetcher._proxy_env._pool_managers.values():  # noqa: SLF001 - no other way
                pool.clear()

    @contextlib.contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except ExpiredMetadataError as error:
            raise FirmwareError(
                f"{what} is not good any more: {error}, and here it is {written(self.time)}; whoever "
                "publishes it: graftwork-firmware release refresh; or this clock is wrong"
            ) from error
        except BadVersionNumberError as error:
            raise FirmwareError(
                f"{what} is older than one that was seen here before, or put together of several: {error}; "
                "somebody serves an old copy"
            ) from error
        except UnsignedMetadataError as error:
            raise FirmwareError(
                f"{what} is not signed by the keys that are believed here: {error}"
            ) from error
        except DownloadLengthMismatchError as error:
            raise FirmwareError(f"{what} is longer than it may be: {error}") from error
        except LengthOrHashMismatchError as error:
            raise FirmwareError(
                f"{what} is not what was signed: {error}; it was cut short, changed, or mixed with "
                "another copy"
            ) from error
        except RepositoryError as error:
            raise FirmwareError(f"{what} cannot be understood: {error}") from error
        except DownloadError as error:
            reason = error.__cause__ or error
            raise FirmwareError(f"{what} cannot be had from {self._source}: {reason}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FirmwareError(f"{what} cannot be had from {self._source}: {error}") from error


def _newest_signed(store: Path) -> float:
    """When the newest index that was seen here was signed; 0: none was, or its key counts no more."""
    try:
        timestamp: Metadata[Any] = Metadata.from_bytes((store / "timestamp.json").read_bytes())
        root: Metadata[Root] = Metadata.from_bytes((store / "root.json").read_bytes())
        root.signed.verify_delegate(Timestamp.type, timestamp.signed_bytes, timestamp.signatures)
        return signed_at(timestamp.signed.unrecognized_fields)
    except (OSError, RepositoryError, ValueError):
        return 0.0
