"""The journal of updates, read again: each one is decided on as when it came, and summed.

For a server that starts, for a round that opens with late updates waiting for it, and for replay.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from protocol import records
from protocol.charter import StalenessPolicy, TrainingPolicy
from protocol.errors import ProtocolError
from protocol.package import Manifest
from protocol.topics import Topics
from server import withdrawals
from server.counting import Counting
from server.intake import Accepted, Lateness, Rejected, RoundTerms, examine, open_update
from server.ledger import Ledger
from server.ledger_records import JournalledUpdate, ReleaseRecord, RoundRecord
from server.rules.policy import AggregationPolicy

log = logging.getLogger(__name__)

Journal = Iterable[JournalledUpdate]
"""The updates that are counted in a round, in any order."""
TermsOf = Callable[[int], RoundTerms | None]
"""The terms of a round by its number; None: they are gone."""


def sum_journal(
    store: Ledger,
    record: RoundRecord,
    base: ReleaseRecord,
    *,
    manifest: Manifest,
    federation: str,
    placement: Mapping[str, int] | None = None,
) -> tuple[Counting, frozenset[str]]:
    """Begin to count a round with what is journalled for it.

    Args:
        store: the server's.
        record: the round.
        base: the release that it started from.
        manifest: of the package.
        federation: its name.
        placement: domain of each device, where the round's release splits the federation.

    Returns:
        The sum, and those of the cohort who are counted.
    """
    if placement is None:
        counting = counting_of(
            record, base, manifest, base.domains, store.placement(record.package_version, base.number)
        )
    else:
        counting = counting_of(record, base, manifest, max(placement.values()) + 1, placement)
    counted = set()
    journal = store.journalled_updates(record.number)

    def earlier(number: int) -> RoundTerms | None:
        return terms_of(store, number, record.package_version)

    for journalled, decision in examine_journal(journal, earlier, counting, federation, manifest):
        if isinstance(decision, Rejected) or not counting.has_room(decision):
            reason = decision.reason if isinstance(decision, Rejected) else "the round has no room for it"
            log.error("the journalled update of device=%s is not counted: %s", journalled.device, reason)
            continue
        counting.add(journalled.device, decision)
        if journalled.round == record.number:
            counted.add(journalled.device)
    return counting, frozenset(counted)


def examine_journal(
    journal: Journal, earlier: TermsOf, counting: Counting, federation: str, manifest: Manifest
) -> Iterator[tuple[JournalledUpdate, Accepted | Rejected]]:
    """Decide again on each journalled update, with the key that it was accepted under.

    What was counted stays counted, whatever became of the device or its key since. An update that does not
    bear its key's signature any more is rejected with the reason.
    """
    topics = Topics(federation)
    for journalled in journal:
        decision: Accepted | Rejected
        device, envelope = journalled.device, journalled.envelope
        try:
            update = open_update(envelope, journalled.key, topics, device, len(envelope))
        except ProtocolError as error:
            decision = Rejected("refused", str(error))
        else:
            of_this_round = journalled.round == counting.terms.number
            decision = examine(
                update,
                device,
                counting.terms if of_this_round else earlier(journalled.round),
                counting.lateness,
                federation=federation,
                manifest=manifest,
            )
        yield journalled, decision


def counting_of(
    record: RoundRecord,
    base: ReleaseRecord,
    manifest: Manifest,
    domains: int,
    placement: Mapping[str, int],
) -> Counting:
    """Begin to sum a round, under the policies that it was opened with.

    Args:
        record: the round.
        base: the release that it started from.
        manifest: of the package.
        domains: adapters that its release holds.
        placement: domain of the devices whose updates start from a release of one adapter.

    Raises:
        ProtocolError: they cannot be read.
    """
    staleness = records.from_named(StalenessPolicy, record.staleness)
    lateness = Lateness(base.number, staleness)
    aggregation = records.from_named(AggregationPolicy, record.aggregation)
    return Counting(
        _terms(record, base),
        lateness,
        manifest,
        record.release_step_ratio,
        aggregation,
        domains=domains,
        placement=placement,
    )


def terms_of(store: Ledger, number: int, package_version: int, *, pruned: bool = False) -> RoundTerms | None:
    """The terms of a round of a package, open or closed.

    None: they are gone, of another package, or the release that it started from was withdrawn.

    Args:
        store: the server's.
        number: of the round.
        package_version: of the package.
        pruned: also where the round's updates were forgotten; such a round takes no more of them.

    Raises:
        ProtocolError: its policy cannot be read.
        ServerError: the release that it started from is damaged.
    """
    record = store.round_record(number)
    base = store.release(record.base_release) if record else None
    if record is None or base is None or record.package_version != package_version:
        return None
    if withdrawals.of_withdrawn(record) or (not pruned and store.undone(base.number)):
        return None  # what was learned from it undoes what was withdrawn, and would undo it a second time
    return _terms(record, base) if record.pruned_at is None or pruned else None


def _terms(record: RoundRecord, base: ReleaseRecord) -> RoundTerms:
    policy = records.from_named(TrainingPolicy, record.training)
    return RoundTerms(record.number, base.number, base.sha256, frozenset(record.cohort), policy, base.domains)
