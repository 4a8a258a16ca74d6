"""Recompute a release from the journal, and say whether the same bits come out.

A release is a function of what the server keeps: the release it starts from with its residual, the updates
of its round with the keys that they were accepted under, and the policy of that round. So anyone who holds
the journal can check what the server made of it. Nothing is written here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from protocol.errors import ProtocolError
from protocol.package import Manifest, ModelPackage, unpack
from protocol.release_coding import adapter_sha256
from server.errors import ServerError
from server.intake import Rejected
from server.journal import Journal, TermsOf, counting_of, examine_journal, terms_of
from server.ledger import Ledger
from server.ledger_records import ReleaseRecord, RoundRecord
from server.withdrawals import replacement

SAME, DIFFERENT, PRUNED = "same", "different", "pruned"


@dataclass(frozen=True)
class Replay:
    """What became of recomputing one release."""

    release: int
    round: int | None
    """None: a package's initial adapter, or a release that withdraws another one."""
    verdict: str
    """"same", "different", or "pruned": the journal holds none of the updates any more."""
    updates: int
    """Updates that went into the recomputed release."""
    sha256: bytes
    """Of the adapter, as the server keeps it."""
    replayed: bytes
    """Of the recomputed adapter; empty where there is none."""
    reason: str = ""
    """What differs, or why nothing could be computed."""


class _GoneError(ServerError):
    """What a release was made of is not kept any more."""


def replay(store: Ledger, number: int, federation: str) -> Replay:
    """Recompute the release `number` from what the store holds.

    Raises:
        ServerError: there is no such release, or its row is not readable.
    """
    stored = store.release(number)
    if stored is None:
        raise ServerError(f"there is no release {number}")
    try:
        package = _package(store, stored.package_version)
        if stored.withdraws is not None:
            restored = stored.withdraws - 1 if stored.restores is None else stored.restores
            return replay_withdrawal(stored, store.release(restored), store.release(stored.withdraws))
        if stored.round is None:
            return replay_initial(stored, package)
        record, base = _origin(store, stored.round)
        return replay_round(
            stored,
            base,
            record,
            store.journalled_updates(record.number),
            lambda number: terms_of(store, number, record.package_version, pruned=True),
            placement=store.placement(record.package_version, base.number),
            manifest=package.manifest,
            federation=federation,
        )
    except _GoneError as error:
        return Replay(number, stored.round, PRUNED, 0, stored.sha256, b"", str(error))
    except (ServerError, ProtocolError) as error:
        return Replay(number, stored.round, DIFFERENT, 0, stored.sha256, b"", str(error))


def replay_all(store: Ledger, federation: str) -> Iterator[Replay]:
    """Recompute every release, newest first, one at a time in memory."""
    for row in store.releases():
        try:
            yield replay(store, row["number"], federation)
        except ServerError as error:
            yield Replay(row["number"], row["round"], DIFFERENT, 0, row["sha256"], b"", str(error))


def replay_initial(stored: ReleaseRecord, package: ModelPackage) -> Replay:
    """Compare a release without a round with the initial adapter of its package."""
    found = adapter_sha256(package.adapter)
    differences = _damage(stored)
    if found != stored.sha256:
        differences.append("adapter: not the initial adapter of its package")
    return _verdict(stored, 0, found, differences)


def replay_withdrawal(
    stored: ReleaseRecord, restored: ReleaseRecord | None, withdrawn: ReleaseRecord | None
) -> Replay:
    """Compare a release that withdraws another one with the one that it goes back to."""
    if restored is None or withdrawn is None:
        raise _GoneError(f"release {(stored.withdraws or 0) - 1}, that it goes back to, is not kept any more")
    expected = replacement(withdrawn, restored, stored.created_at)
    differences = _damage(stored) + _damage(restored)
    differences += _carried_over(expected, stored)
    if stored.sha256 != expected.sha256:
        differences.append(f"adapter: not that of release {restored.number}")
    if stored.parent != expected.parent:
        differences.append(f"parent: expected {expected.parent.hex()[:16]}, got {stored.parent.hex()[:16]}")
    return _verdict(stored, 0, restored.sha256, differences)


def replay_round(
    stored: ReleaseRecord,
    base: ReleaseRecord,
    record: RoundRecord,
    journal: Journal,
    earlier: TermsOf,
    *,
    manifest: Manifest,
    federation: str,
    placement: Mapping[str, int] | None = None,
) -> Replay:
    """Recompute the release of a round and compare it with the one that is kept.

    Args:
        stored: the release that is kept.
        base: the release that the round started from.
        record: the round, with its policy and step ratio.
        journal: updates that are counted in the round.
        earlier: terms of the rounds before, for late updates.
        manifest: of the package.
        federation: its name, which the updates' signatures and dither are bound to.
        placement: domain of each device whose update started before the federation was split.

    Raises:
        ProtocolError: the round's policy cannot be read.
        ServerError: the base has another size, or the updates weigh more than a round can sum.
    """
    size = base.domains * manifest.parameters
    if base.adapter.size != size or np.size(base.residual) not in (1, size):
        raise ServerError(f"release {base.number}: expected {size} parameters")
    counting = counting_of(record, base, manifest, stored.domains, stored.placement or placement or {})
    differences = _damage(base) + _damage(stored)
    if stored.parent != base.sha256:
        differences.append(f"parent: expected {base.sha256.hex()[:16]}, got {stored.parent.hex()[:16]}")
    rows = 0
    for journalled, decision in examine_journal(journal, earlier, counting, federation, manifest):
        rows += 1
        if isinstance(decision, Rejected) and decision.verdict == "late":
            continue  # nor was it counted then: its package was superseded while it waited for a round
        if isinstance(decision, Rejected):
            differences.append(f"update of {journalled.device}: {decision.reason}")
        else:
            counting.add(journalled.device, decision)
    if not rows and stored.updates:
        reason = f"the journal holds none of its {stored.updates} updates any more"
        return Replay(stored.number, stored.round, PRUNED, 0, stored.sha256, b"", reason)
    # Reports decide on the default alone; the adapter and what is carried over do not depend on them.
    replayed = counting.release(base, [], stored.created_at, coded=stored.difference is not None)
    differences += _carried_over(replayed, stored)
    if replayed.difference != stored.difference:
        differences.append("difference: not the one that devices were sent")
    differences += [
        f"{name}: expected {getattr(stored, name)}, the journal gives {getattr(replayed, name)}"
        for name in ("updates", "weight")
        if getattr(stored, name) != getattr(replayed, name)
    ]
    if replayed.sha256 != stored.sha256:
        differences.append(
            f"adapter: expected {stored.sha256.hex()[:16]}, the journal gives {replayed.sha256.hex()[:16]}"
        )
    return _verdict(stored, replayed.updates, replayed.sha256, differences)


def as_row(replayed: Replay) -> dict[str, object]:
    """The columns of a table of replays."""
    return asdict(replayed)


def _origin(store: Ledger, number: int) -> tuple[RoundRecord, ReleaseRecord]:
    """A round and the release that it started from."""
    record = store.round_record(number)
    base = store.release(record.base_release) if record else None
    if record is None:
        raise ServerError(f"round {number} is gone")
    if base is None:
        raise _GoneError(f"release {record.base_release}, that it started from, is not kept any more")
    return record, base


def _package(store: Ledger, version: int) -> ModelPackage:
    record = store.package(version)
    if record is None:
        raise ServerError(f"package version {version} is gone")
    path = store.package_path(record.sha256)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ServerError(f"{path}: cannot be read: {error.strerror}") from error
    package = unpack(data, None)  # checked against the publishers when it was pushed
    if package.sha256 != record.sha256:
        raise ServerError(f"package {record.name!r} changed on disk")
    return package


def _carried_over(replayed: ReleaseRecord, stored: ReleaseRecord) -> Iterator[str]:
    """What differs in what is kept for the next release."""
    if not np.array_equal(np.asarray(replayed.residual), np.asarray(stored.residual)):
        yield "residual: not what the recomputed difference leaves over"
    one, other = replayed.moments, stored.moments
    if (one is None) != (other is None) or (
        one is not None and other is not None and not (one == other).all()
    ):
        yield "moments: not those that the server's optimiser comes to"


def _damage(release: ReleaseRecord) -> list[str]:
    if adapter_sha256(release.adapter) == release.sha256:
        return []
    return [f"release {release.number}: the adapter that is kept does not have the hash that is kept"]


def _verdict(stored: ReleaseRecord, updates: int, found: bytes, differences: list[str]) -> Replay:
    verdict = DIFFERENT if differences else SAME
    return Replay(stored.number, stored.round, verdict, updates, stored.sha256, found, "; ".join(differences))
