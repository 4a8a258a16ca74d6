"""Targets: chunks and requests for them, packages, and the adapter inside."""

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import cbor2
import numpy as np
import safetensors.numpy

from agent.download import Download
from agent.partial import PartialFiles
from protocol import cbor
from protocol import package as packages
from protocol.artifacts import CHUNK_BYTES, describe
from protocol.messages import Chunk, ChunkRequest, verify_message
from protocol.package import (
    ADAPTER,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PREFIX,
    extract,
    read_adapter,
    write_adapter,
)
from protocol.records import to_numbered
from protocol.signing import sign, signed_payload
from protocol.topics import Topics, context
from server.offers import Offers
from tests.builders import PARAMETERS, PUBLISHER, private_key, tiny_package
from tests.fuzz import mutations
from tests.fuzz.target import Case, Raw, Target

LIMIT = 8192
SERVER = private_key(100)
TOPICS = Topics("pumps")
CONTENT = bytes(range(200))
ARTIFACT = describe(CONTENT, 64)


class _Folder:
    """A folder in memory where there is one, made when first needed."""

    def __init__(self) -> None:
        shared = Path("/dev/shm")  # noqa: S108 - a disk would be worn for nothing
        self._folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        self.partial = PartialFiles(Path(self._folder.name))


_FOLDERS: list[_Folder] = []


def _chunk(data: bytes) -> Case:
    """What the server signed as a chunk, on its way to the device's disk."""
    if not _FOLDERS:
        _FOLDERS.append(_Folder())
    partial, topic = _FOLDERS[0].partial, TOPICS.down("pump-1", "chunk")
    envelope = sign(data, SERVER, context(topic))
    download = Download(ARTIFACT)
    download.request(0.0)

    def decode(passed: Callable[[], None]) -> object:
        chunk = verify_message(Chunk, envelope, SERVER.public, topic, limit=LIMIT)
        passed()
        if not download.receive(chunk):
            return None
        partial.write_chunk(ARTIFACT, chunk.index, chunk.data)
        assert partial.path(ARTIFACT).stat().st_size <= ARTIFACT.size
        return chunk

    return Case(decode, LIMIT)


def _chunk_seeds() -> list[bytes]:
    ranges = [ARTIFACT.chunk_range(index) for index in range(4)]
    chunks = [Chunk(ARTIFACT.sha256, index, CONTENT[a:b]) for index, (a, b) in enumerate(ranges)]
    return [cbor.encode(to_numbered(chunk)) for chunk in [*chunks, Chunk(bytes(32), 9, bytes(500))]]


def _mutate_chunk(data: bytes, random: Random, change: Raw) -> bytes:
    if random.random() < 0.2:
        start, end = ARTIFACT.chunk_range(random.randrange(4))
        index = random.choice((0, 1, 2, 3, 4, -1, 1 << 40))
        return cbor2.dumps({1: ARTIFACT.sha256, 2: index, 3: CONTENT[start:end]})
    return mutations.cbor_item(data, random, change)


def _request(data: bytes) -> Case:
    """What a registered device signed as a request for chunks, to the server's answer."""
    topic = TOPICS.up("pump-1", "get")
    envelope = sign(data, private_key(1), context(topic))

    def decode(passed: Callable[[], None]) -> object:
        request = verify_message(ChunkRequest, envelope, _DEVICE_KEY, topic)
        passed()
        return sum(len(chunk.data) for chunk in _OFFERS.chunks(request))

    return Case(decode, LIMIT + CHUNK_BYTES)


_DEVICE_KEY = private_key(1).public
_OFFERS = Offers()
_OFFERED = _OFFERS.offer_keyframe(CONTENT * 400)


def _request_seeds() -> list[bytes]:
    indices = ([0], [0, 1], [1] * 16, list(range(16)), [2])
    requests = [ChunkRequest(_OFFERED.sha256, tuple(wanted)) for wanted in indices]
    return [cbor.encode(to_numbered(request)) for request in requests]


def _package(data: bytes) -> Case:
    """An archive as the agent takes it: block by block, then the initial adapter."""

    def decode(passed: Callable[[], None]) -> object:
        adapter = bytearray()

        def write(name: str, block: bytes) -> None:
            passed()  # the manifest is read, and the members are those that it names
            if name == ADAPTER:
                adapter.extend(block)

        manifest = extract(io.BytesIO(data), PUBLISHER.public, write)
        return read_adapter(bytes(adapter), manifest.parameters)

    return Case(decode, min(packages.EXTRACT_MEMORY, 128 * 1024 + 16 * len(data)))


def _package_seeds() -> list[bytes]:
    return [tiny_package(), tiny_package(filler=900), tiny_package((1.0,) * PARAMETERS, name="other")]


def _mutate_package(data: bytes, random: Random, change: Raw) -> bytes:
    return mutations.archive(data, random, change, _packed)


def _packed(members: dict[str, bytes], random: Random, change: Raw) -> bytes:
    """Change a member or the manifest, and let hashes and signature be right again."""
    manifest = members.pop(MANIFEST, b"")
    name = random.choice([*members, MANIFEST, MANIFEST])
    if name == ADAPTER:
        members[name] = mutations.safetensors_file(members[name], random, change)
    elif name != MANIFEST:
        members[name] = change(members[name])
    if random.random() < 0.1:
        members[random.choice(("..", "a/b", "/etc/x", "\u20ac", "", "x" * 300, "manifest.cbor"))] = b"more"
    hashes = {member: hashlib.sha256(content).digest() for member, content in members.items()}
    try:
        payload = signed_payload(manifest, limit=MAX_MANIFEST_BYTES)
        fields = cbor2.loads(payload)
        if name == MANIFEST and random.random() < 0.8:
            fields = cbor2.loads(mutations.cbor_item(payload, random, change))
        else:
            fields.update({9: hashes.get(PREFIX, b""), 10: hashes})
        signed = sign(cbor2.dumps(fields), PUBLISHER, packages.CONTEXT)
    except Exception:  # noqa: BLE001 - not readable: whatever the reason
        signed = sign(change(manifest), PUBLISHER, packages.CONTEXT)
    return _zip({MANIFEST: signed, **members})


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return out.getvalue()


def _adapter(data: bytes) -> Case:
    def decode(passed: Callable[[], None]) -> object:
        try:
            return read_adapter(data, PARAMETERS)
        except packages.ArtifactError as error:
            if "malformed" not in str(error):
                passed()
            raise

    return Case(decode, 8192)


def _adapter_seeds() -> list[bytes]:
    odd = np.asarray([np.nan, np.inf, 0, 1, 2, 3], np.float32)
    others = {"adapter": np.zeros(6, np.float64), "x": np.zeros((2, 3), np.int8)}
    return [write_adapter(np.zeros(6, np.float32)), write_adapter(odd), safetensors.numpy.save(others)]


TARGETS = (
    Target("chunk", _chunk, _chunk_seeds, _mutate_chunk, 4096, "signature and fields"),
    Target("chunk_request", _request, _request_seeds, mutations.cbor_item, 512, "signature and fields"),
    Target("package", _package, _package_seeds, _mutate_package, 8192, "archive, signature, manifest"),
    Target("adapter", _adapter, _adapter_seeds, mutations.safetensors_file, 4096, "safetensors header"),
)
