"""The relatedness of a federation's devices, from the updates that its journal holds."""

import numpy as np
from numpy.typing import NDArray

from protocol.charter import StalenessPolicy
from protocol.domains import adapter_of
from protocol.errors import ProtocolError
from protocol.package import DISCRIMINANT, Manifest, unpack
from protocol.quantisation import to_float
from protocol.topics import Topics
from server.errors import ServerError
from server.intake import Accepted, Lateness, RoundTerms, examine, open_update
from server.journal import terms_of
from server.ledger import Ledger
from server.ledger_records import JournalledUpdate
from server.relatedness.directions import Directions, Relatedness


def of_journal(store: Ledger, federation: str, rounds: int) -> Relatedness:
    """Compare the devices by their updates of the last rounds of the package that runs.

    Raises:
        ServerError: there is no package, or it is damaged.
    """
    package = store.newest_package()
    if package is None:
        raise ServerError("there is no package yet, so no device has sent an update")
    try:
        manifest = unpack(store.package_path(package.sha256).read_bytes(), None).manifest
    except ProtocolError as error:
        raise ServerError(f"package {package.name!r} is damaged on disk: {error}") from error
    return directions(store, federation, package.version, manifest, rounds).relatedness()


def learned_by_gradients(manifest: Manifest) -> NDArray[np.int64]:
    """Parameters that tell who learns alike, int64: all but the discriminant head.

    Its steps are full of what a few windows happened to be, and far longer than the others.
    """
    head = manifest.task_slices().get(DISCRIMINANT, slice(0, 0))
    return np.delete(np.arange(manifest.parameters), head)


def directions(
    store: Ledger, federation: str, package_version: int, manifest: Manifest, rounds: int
) -> Directions:
    """Sum up where the devices' updates of the last rounds of a package point.

    An update belongs to the round that it answers, also where a later one counts it: it started from the same
    release as the others of that round. Rounds with fewer than two updates in the journal are passed over.

    Args:
        store: of the federation.
        federation: its name.
        package_version: of the package.
        manifest: of the package.
        rounds: most rounds to look at.
    """
    compared = learned_by_gradients(manifest)
    found_directions, topics = Directions(compared.size), Topics(federation)
    looked_at = 0
    for row in store.rounds():  # newest first
        if looked_at == rounds or row["package_version"] != package_version:
            break
        terms = terms_of(store, row["number"], package_version)
        base = store.release(terms.release) if terms else None
        if terms is None or base is None:
            continue
        # In one order, whatever the database's: sums of floats depend on it.
        answers = sorted(store.answers(terms.number), key=lambda answer: answer.device)
        found = [
            (answer.device, accepted)
            for answer in answers
            if (accepted := _read(answer, terms, topics, manifest)) is not None
        ]
        if len(found) > 1:
            looked_at += 1
            devices = [device for device, _ in found]
            # What each has become, and not by how much: after a split they do not start from one adapter.
            vectors = [
                (adapter_of(base.adapter, manifest.parameters, accepted.domain) + to_float(accepted.vector))[
                    compared
                ]
                for _, accepted in found
            ]
            found_directions.add_round(
                terms.number, devices, vectors, [accepted.weight for _, accepted in found]
            )
    return found_directions


def _read(
    journalled: JournalledUpdate, terms: RoundTerms, topics: Topics, manifest: Manifest
) -> Accepted | None:
    """Decode an update as its round did; None: it cannot be any more, which `replay` explains."""
    envelope = journalled.envelope
    try:
        update = open_update(envelope, journalled.key, topics, journalled.device, len(envelope))
    except ProtocolError:
        return None
    decision = examine(
        update,
        journalled.device,
        terms,
        Lateness(terms.release, StalenessPolicy(maximum=0)),
        federation=topics.federation,
        manifest=manifest,
    )
    return decision if isinstance(decision, Accepted) else None
