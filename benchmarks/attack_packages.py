"""Attacks on packages: one bit changed anywhere, other chunks, other signers, versions of before.

Played on a device in this process, by a broker, and by a server whose signing key was stolen: then only the
publisher's signature stands between a device and foreign graphs. `Finding.succeeded`: a device installs
something else than the publisher signed.
"""

import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace

from benchmarks.attack_book import Attacks, Finding, Trace
from benchmarks.attack_client import AttackError
from benchmarks.attack_trial import Trial
from protocol.artifacts import Artifact, describe
from protocol.messages import Chunk
from protocol.package import MANIFEST
from protocol.signing import PrivateKey

PACKAGES: Attacks[Trial] = Attacks("packages")
PER_MEMBER, PER_MANIFEST = 12, 60
END_BYTES, LOCAL_HEADER_BYTES, SIGNATURE_BYTES = 22, 30, 64


def regions(package: bytes) -> dict[str, range]:
    """The parts of an archive: headers and contents of its members, the directory, the record at its end."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        infos, directory = archive.infolist(), archive.start_dir
    found: dict[str, range] = {}
    for info in infos:
        content = info.header_offset + LOCAL_HEADER_BYTES + len(info.filename)
        found[f"header of {info.filename}"] = range(info.header_offset, content)
        found[info.filename] = range(content, content + info.file_size)
    manifest = found[MANIFEST]
    found["signature"] = range(manifest.stop - SIGNATURE_BYTES, manifest.stop)
    end = len(package) - END_BYTES
    return {**found, "directory": range(directory, end), "end of directory": range(end, len(package))}


def positions(package: bytes) -> list[int]:
    """Bytes to change, spread over all regions: at least 200."""
    chosen: set[int] = set()
    for name, region in regions(package).items():
        few = PER_MANIFEST if name in (MANIFEST, "directory") else PER_MEMBER
        step = max(1, len(region) // few)
        chosen |= {*region[::step], region[0], region[-1]}
    return sorted(chosen)


def _flipped(package: bytes, position: int) -> bytes:
    data = bytearray(package)
    data[position] ^= 1 << position % 8
    return bytes(data)


@PACKAGES.add(
    "change one bit of a package on its way", "a chunk by the broker; and as the server's disk rots"
)
def _bits_on_the_way(trial: Trial) -> Finding:
    package = trial.packed(description="next")
    artifact, places = describe(package), positions(package)
    before = trial.snapshot()
    trial.forget_log()
    trial.hear(trial.announced(trial.announcement(package, trial.version + 1, offer=False)))
    for place in places:
        index = place // artifact.chunk_bytes
        start, stop = artifact.chunk_range(index)
        topic, good = trial.chunk(Chunk(artifact.sha256, index, package[start:stop]))
        rotten = Chunk(artifact.sha256, index, _flipped(package, place)[start:stop])
        trial.hear((topic, _flipped(good, 40 + place % (len(good) - 40))), trial.chunk(rotten))
    changed, trace = trial.snapshot() != before, trial.trace()
    trial.version += 1
    return _found(changed, lambda: trial.honest_package(package), trace, f"{len(places)} bits")


@PACKAGES.add(
    "announce a package with one bit changed", "by the server's stolen key, with the changed hashes"
)
def _bits_by_the_server(trial: Trial) -> Finding:
    package = trial.packed(description="changed")
    original = dict(trial.members)
    places, harmless, harmful = positions(package), 0, []
    trial.forget_log()
    for place in places:
        before = trial.store.state().package
        trial.version += 1
        trial.hear(trial.announced(trial.announcement(_flipped(package, place), trial.version)))
        installed = trial.store.state().package
        if installed == before:
            continue
        folder = trial.state / "packages" / installed.hex()
        same = all((folder / name).read_bytes() == content for name, content in original.items())
        if same and trial.installed() == replace(trial.manifest, description="changed"):
            harmless += 1
        else:
            harmful.append(place)
    trace = trial.trace()
    trial.version += 1
    control = trial.honest_package(trial.package)
    detail = (
        f"{len(places)} bits; {harmless} in fields that mean nothing, installed as the publisher signed it"
    )
    return Finding(bool(harmful), control, trace, detail)


def _found(changed: bool, control: Callable[[], str], trace: Trace, detail: str = "") -> Finding:
    """A device that follows the attacker follows nobody else: then there is no control."""
    return Finding(changed, "" if changed else control(), trace, detail)


def _hostile(trial: Trial, packages: Iterable[bytes]) -> Finding:
    """The server's key is stolen: it announces packages that the publisher did not sign."""
    before, trace = trial.snapshot()[0].package, Trace()
    changed = False
    for package in packages:
        trial.forget_log()
        trial.version += 1
        trial.hear(trial.announced(trial.announcement(package, trial.version)))
        changed |= trial.store.state().package != before
        trace = trial.trace()
    return _found(changed, trial.honest_release, trace)


@PACKAGES.add(
    "announce a package of another signer", "by the server's stolen key, signed by it and by a stranger"
)
def _other_signer(trial: Trial) -> Finding:
    return _hostile(
        trial, [trial.packed(key, description="x") for key in (trial.server, PrivateKey.generate())]
    )


@PACKAGES.add("announce an older package", "by the server's stolen key, what the publisher signed once")
def _older(trial: Trial) -> Finding:
    newer = trial.packed(version=7)
    trial.honest_package(newer)
    before = trial.store.state().package
    trial.version += 1
    trial.forget_log()
    trial.hear(trial.announced(trial.announcement(trial.packed(version=6, description="old"), trial.version)))
    changed, trace = trial.store.state().package != before, trial.trace()
    return _found(changed, lambda: trial.honest_package(trial.packed(version=8)), trace)


@PACKAGES.add("announce an expired package", "by the server's stolen key, signed by the publisher")
def _expired(trial: Trial) -> Finding:
    package = trial.packed(version=20, expires=trial.clock() - 1)
    before = trial.store.state().package
    trial.version += 1
    trial.forget_log()
    trial.hear(trial.announced(trial.announcement(package, trial.version)))
    changed, trace = trial.store.state().package != before, trial.trace()
    good = trial.packed(version=20, expires=trial.clock() + 3600)
    return _found(changed, lambda: trial.honest_package(good), trace)


@PACKAGES.add(
    "announce other chunks than the package's", "by the server's stolen key: hash of one, chunks of another"
)
def _other_chunks(trial: Trial) -> Finding:
    good, evil = trial.packed(version=21), trial.packed(PrivateKey.generate(), version=22)
    named, chunks = describe(good), describe(evil)
    mixed = Artifact(named.sha256, chunks.size, chunks.chunk_bytes, chunks.chunk_sha256)
    before = trial.store.state().package
    trial.version += 1
    announcement = replace(trial.announcement(evil, trial.version, offer=False), package=mixed)
    trial.offer(mixed.sha256, evil)
    trial.forget_log()
    trial.hear(trial.announced(announcement))
    changed, trace = trial.store.state().package != before, trial.trace()
    return _found(changed, lambda: trial.honest_package(good), trace)


@PACKAGES.add("swap the chunks of a package", "one under another's number, unsigned, for another device")
def _swapped_chunks(trial: Trial) -> Finding:
    package = trial.packed(version=23)
    artifact, before = describe(package), trial.snapshot()
    trial.forget_log()
    trial.hear(trial.announced(trial.announcement(package, trial.version + 1, offer=False)))
    parts = [package[slice(*artifact.chunk_range(index))] for index in range(len(artifact.chunk_sha256))]
    last = len(parts) - 1
    swapped = [Chunk(artifact.sha256, index, parts[last - index]) for index in range(len(parts))]
    topic = trial.chunk(swapped[0])[0]
    trial.hear(*(trial.chunk(chunk) for chunk in swapped if chunk.index != last - chunk.index))
    trial.hear(
        *(
            trial.chunk(Chunk(artifact.sha256, i, part), key=PrivateKey.generate())
            for i, part in enumerate(parts)
        )
    )
    trial.hear(*((topic, trial.chunk(Chunk(artifact.sha256, i, p), "fan-1")[1]) for i, p in enumerate(parts)))
    trial.hear(trial.chunk(Chunk(artifact.sha256, len(parts), b"more")))
    changed, trace = trial.snapshot() != before, trial.trace()
    if any((trial.state / "packages").glob("*.partial")):
        raise AttackError("a chunk was kept that is not the package's")
    trial.version += 1
    return _found(changed, lambda: trial.honest_package(package), trace)
