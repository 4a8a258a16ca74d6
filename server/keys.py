"""The server's own keys: the one that signs everything, and the one that devices seal to.

Both lie in the data directory, readable by their owner alone. While the sealing key is replaced, the one
before stays beside it: devices learn of the new one when they connect, and what they sealed before still
opens.
"""

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import SealingError
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey
from protocol.trust import Root
from runtime.errors import SetupError
from runtime.keys import load_or_make, read, read_secret, write_secret

SIGNING_FILE, NEXT_SIGNING_FILE = "server.key", "server.key.next"
SEALING_FILE, FORMER_SEALING_FILE = "sealing.key", "sealing.key.before"


@dataclass(frozen=True)
class ServerKeys:
    """What the server signs and opens with."""

    signing: PrivateKey
    sealing: tuple[SealingKey, ...]
    """The newest first; devices are told of that one."""

    @classmethod
    def load_or_make(cls, directory: Path, suite: str, root: Root | None = None) -> "ServerKeys":
        """Read the keys of a data directory; make those that are missing.

        Where the root names the key that was made to follow, it follows now.

        Args:
            directory: the server's data directory.
            suite: of a sealing key that has to be made, see protocol.sealing.
            root: the root that holds; None: there is none.

        Raises:
            SetupError: a file cannot be read or written, holds something else, or is not the key that the
                root names.
        """
        following = directory / NEXT_SIGNING_FILE
        if root and following.exists() and read(following).public in root.server_keys:
            following.replace(directory / SIGNING_FILE)
        signing = load_or_make(directory / SIGNING_FILE)
        if root and signing.public not in root.server_keys:
            raise SetupError(
                f"version {root.version} of the root does not name the key in {directory / SIGNING_FILE}: no "
                "device would believe this server; restore the key, or draft and install a root that names it"
            )
        if not (directory / SEALING_FILE).exists():
            write_secret(directory / SEALING_FILE, SealingKey.generate(suite).raw)
        files = [directory / SEALING_FILE, directory / FORMER_SEALING_FILE]
        return cls(signing, tuple(_sealing_key(file) for file in files if file.exists()))


def replace_sealing_key(directory: Path, suite: str) -> SealingKey:
    """Make a new sealing key; the one before is kept until the next time.

    Raises:
        SetupError: a file cannot be written.
    """
    current = directory / SEALING_FILE
    if current.exists():
        current.replace(directory / FORMER_SEALING_FILE)
    key = SealingKey.generate(suite)
    write_secret(current, key.raw)
    return key


def _sealing_key(path: Path) -> SealingKey:
    try:
        return SealingKey(read_secret(path))
    except SealingError as error:
        raise SetupError(f"{path}: {error}") from None
