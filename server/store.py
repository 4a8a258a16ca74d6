"""The server's memory: one database and a folder of packages.

Every change is one transaction, committed before anything that depends on it is published; a server that is
killed at any point goes on from the last commit.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from server.admission import Admissions
from server.database import Database
from server.identities import Identities
from server.ledger import Ledger
from server.ledger_records import JournalledUpdate, PackageRecord, ReleaseRecord, RoundRecord
from server.registry import Registry
from server.roots import Roots


class Store(Ledger, Registry, Identities, Admissions, Roots):
    """All reads and writes of the server: its ledger, registry and identities in one database."""

    def __init__(self, directory: Path, url: str = "") -> None:
        """Open or create the store.

        Raises:
            ServerError: the database cannot be opened, or was written by a newer version.
        """
        database = Database(directory, url)
        Ledger.__init__(self, database, directory / "packages")
        Registry.__init__(self, database)
        Identities.__init__(self, database)
        Admissions.__init__(self, database)
        Roots.__init__(self, database)

    def only_server(self) -> AbstractContextManager[None]:
        """Hold the store as its only server.

        Raises:
            ServerError: another server holds it.
        """
        return self._database.only_server()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()


__all__ = ["JournalledUpdate", "PackageRecord", "ReleaseRecord", "RoundRecord", "Store"]
