"""No older package than the newest that was installed under its name, but by a signed order to go back."""

from collections.abc import Sequence

from agent.store import Store
from protocol.errors import ArtifactError
from protocol.messages import Announcement
from protocol.package import Manifest
from protocol.rollback import read_rollback
from protocol.signing import PublicKey


def check_version(
    store: Store, manifest: Manifest, announcement: Announcement, signers: Sequence[PublicKey], now: float
) -> None:
    """Refuse a package that is too old or has expired.

    Args:
        store: knows the newest version that was installed.
        manifest: of the package.
        announcement: that the package came with; may bring an order to go back.
        signers: who may order it.
        now: Unix seconds.

    Raises:
        ProtocolError: names both versions, and what would be needed.
    """
    if manifest.expires and now > manifest.expires:
        raise ArtifactError(f"package {manifest.name} {manifest.version} has expired")
    held = store.number(_name(manifest), -1)
    if manifest.version >= held:
        return
    wanted = f"package {manifest.name} {manifest.version} is older than {held}, which this device had"
    if not announcement.rollback:
        raise ArtifactError(f"{wanted}; going back needs a signed order (graftwork-models rollback)")
    order = read_rollback(announcement.rollback, signers)
    if not order.allows(manifest.name, held, manifest.version, announcement.package.sha256, now):
        raise ArtifactError(f"{wanted}; the signed order to go back is for another step, or has expired")


def note_version(store: Store, manifest: Manifest) -> None:
    """Note that a package was installed; after an order to go back, its version is the newest."""
    store.note_blob(_name(manifest), str(manifest.version).encode())


def _name(manifest: Manifest) -> str:
    return f"package_version {manifest.name}"
