"""The federation's roots of trust in the database: every version, for devices walk from theirs on."""

import sqlalchemy as sql

from protocol.errors import TrustError
from protocol.trust import Root, first_root, next_root
from server import tables
from server.database import Database
from server.errors import ServerError


class Roots:
    """Versions of the root."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def roots(self) -> list[bytes]:
        """Every version, oldest first."""
        rows = self._database.all(sql.select(tables.roots.c.data).order_by(tables.roots.c.version))
        return [bytes(row["data"]) for row in rows]

    def newest_root(self) -> Root | None:
        """The root that holds; None: the federation has none.

        Raises:
            ServerError: what is kept does not verify.
        """
        root: Root | None = None
        try:
            for data in self.roots():
                root = first_root(data) if root is None else next_root(root, data)
        except TrustError as error:
            raise ServerError(f"the roots in the database do not follow one another: {error}") from error
        return root

    def add_root(self, data: bytes, federation: str, now: float) -> Root:
        """Keep the next version of the root.

        Raises:
            TrustError: it is not signed by enough keys, or does not follow the one that is kept.
            ServerError: it is of another federation, or has expired.
        """
        newest = self.newest_root()
        root = first_root(data) if newest is None else next_root(newest, data)
        if root.federation != federation:
            raise ServerError(f"expected the root of federation {federation}, got that of {root.federation}")
        if root.expires <= now:
            raise ServerError(f"version {root.version} of the root has expired already")
        with self._database.engine.begin() as connection:
            connection.execute(
                tables.roots.insert().values(version=root.version, data=data, installed_at=now)
            )
        return root
