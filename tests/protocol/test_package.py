"""Model packages: what is packed is opened, and no byte of it can be changed unseen."""

import contextlib
import hashlib
import io
import json
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import cbor, discriminant, records
from protocol.errors import ArtifactError, ProtocolError, SignatureError
from protocol.input_schema import DEVICE
from protocol.package import (
    ADAPTER,
    ANOMALY,
    CLASSIFICATION,
    CONTEXT,
    DISCRIMINANT,
    EMBEDDING,
    EXTRACT_MEMORY,
    MANIFEST,
    MAX_ADAPTER_HEADER_BYTES,
    MEMBERS,
    PREFIX,
    STEP,
    TASKS,
    Manifest,
    Segment,
    extract,
    pack,
    read_adapter,
    unpack,
    write_adapter,
)
from protocol.signing import sign
from tests.builders import (
    CLASSES,
    FEATURES,
    PARAMETERS,
    PUBLISHER,
    SCHEMA,
    SEGMENTS,
    private_key,
    repacked,
    tiny_manifest,
    tiny_members,
    tiny_package,
)

INITIAL = (0.5, -1.0, 0.0, 2.0, 3.0, -4.0)
PACKAGE = tiny_package(INITIAL)


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Write a ZIP of exactly these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def contents() -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(PACKAGE)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


def test_what_is_packed_is_opened() -> None:
    package = unpack(PACKAGE, PUBLISHER.public)
    assert package.members == tiny_members(INITIAL)
    assert package.manifest == tiny_manifest(tiny_members(INITIAL))
    assert package.adapter.tolist() == list(INITIAL)
    assert package.sha256 == hashlib.sha256(PACKAGE).digest()
    assert unpack(PACKAGE, None).manifest == package.manifest


def test_equal_contents_give_equal_bytes() -> None:
    assert tiny_package(INITIAL) == PACKAGE
    members = tiny_members(INITIAL)
    assert pack(tiny_manifest(members), dict(reversed(members.items())), PUBLISHER) == PACKAGE


def test_members_come_in_blocks_after_the_manifest_is_checked() -> None:
    parts: dict[str, bytes] = {}
    filler = 3 << 20
    data = tiny_package(INITIAL, filler=filler)
    sizes = []

    def write(name: str, block: bytes) -> None:
        sizes.append(len(block))
        parts[name] = parts.get(name, b"") + block

    extract(io.BytesIO(data), PUBLISHER.public, write)
    assert parts == tiny_members(INITIAL, filler)
    assert max(sizes) <= 1 << 20


def test_nothing_is_written_of_a_package_by_another_publisher() -> None:
    written: list[str] = []
    with pytest.raises(SignatureError):
        extract(io.BytesIO(PACKAGE), private_key(9).public, lambda name, _: written.append(name))
    assert written == []


def test_segments_stand_one_after_the_other() -> None:
    manifest = tiny_manifest(tiny_members())
    assert manifest.parameters == PARAMETERS
    assert manifest.slices() == {"weight": slice(0, 4), "bias": slice(4, 6)}


def test_a_flipped_byte_is_refused_or_changes_nothing_that_is_used() -> None:
    genuine = unpack(PACKAGE, PUBLISHER.public)
    refused = 0
    for position in range(len(PACKAGE)):
        damaged = bytearray(PACKAGE)
        damaged[position] ^= 0x55
        try:
            opened = unpack(bytes(damaged), PUBLISHER.public)
        except ProtocolError:
            refused += 1
            continue
        assert (opened.manifest, opened.members) == (genuine.manifest, genuine.members)
        assert opened.adapter.tolist() == genuine.adapter.tolist()
    assert refused > len(PACKAGE) / 2


def test_a_package_cut_anywhere_is_refused() -> None:
    for end in range(0, len(PACKAGE), 7):
        with pytest.raises(ProtocolError):
            unpack(PACKAGE[:end], PUBLISHER.public)


@settings(max_examples=60)
@given(st.binary(max_size=200), st.integers(0, len(PACKAGE)))
def test_hostile_bytes_are_refused(data: bytes, position: int) -> None:
    with pytest.raises(ProtocolError):
        unpack(data, None)
    with contextlib.suppress(ProtocolError):
        unpack(PACKAGE[:position] + data + PACKAGE[position:], PUBLISHER.public)


def test_a_compressed_member_is_refused() -> None:
    with pytest.raises(ArtifactError, match="expected a stored member"):
        unpack(archive(contents(), zipfile.ZIP_DEFLATED), PUBLISHER.public)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused() -> None:
    with pytest.raises(ArtifactError, match="twice"):
        unpack(archive([*contents(), (STEP, b"other")]), PUBLISHER.public)


def test_a_member_that_the_manifest_does_not_name_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"'extra\.bin' is missing or not in the manifest"):
        unpack(archive([*contents(), ("extra.bin", b"")]), PUBLISHER.public)


def test_a_missing_member_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"'step\.onnx' is missing or not in the manifest"):
        unpack(archive([entry for entry in contents() if entry[0] != STEP]), PUBLISHER.public)


def with_directory(directory: bytes, start: int = 0, before_end: bytes = b"") -> bytes:
    """An archive with this central directory at `start`, and nothing else."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    return directory + before_end + end


def directory_entry(name: bytes, offset: int = 0, extra: bytes = b"") -> bytes:
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), len(extra), 0, 0, 0, 0, offset
    )
    return head + name + extra


def test_a_long_directory_is_refused_before_it_is_read() -> None:
    archive = with_directory(b"".join(directory_entry(b"%06d" % number) for number in range(20_000)))
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="a directory of at most"):
        unpack(archive, PUBLISHER.public)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < EXTRACT_MEMORY


def test_a_directory_that_hides_behind_a_comment_or_zip64_is_refused() -> None:
    package = tiny_package()
    with pytest.raises(ArtifactError, match="without a comment"):
        unpack(package[:-2] + b"\x03\x00abc", PUBLISHER.public)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    with pytest.raises(ArtifactError, match="without ZIP64"):
        unpack(package[:-22] + locator + package[-22:], PUBLISHER.public)


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1, 1 << 62])
def test_a_member_that_stands_beyond_any_file_is_refused(offset: int) -> None:
    extra = struct.pack("<2HQ", 1, 8, offset)
    archive = with_directory(directory_entry(MANIFEST.encode(), 0xFFFFFFFF, extra))
    with pytest.raises(ArtifactError):
        unpack(archive, PUBLISHER.public)


def test_an_adapter_larger_than_its_parameters_is_refused_before_it_is_read() -> None:
    members = tiny_members()
    huge = members[ADAPTER] + bytes(MAX_ADAPTER_HEADER_BYTES)
    package = repacked(tiny_manifest(members), ADAPTER, huge, members)
    written: set[str] = set()
    with pytest.raises(ArtifactError, match="expected at most"):
        extract(io.BytesIO(package), PUBLISHER.public, lambda name, _: written.add(name))
    assert not written
    with pytest.raises(ArtifactError, match="expected at most"):
        read_adapter(huge, PARAMETERS)


def test_an_archive_without_manifest_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.cose inside"):
        unpack(archive([entry for entry in contents() if entry[0] != MANIFEST]), PUBLISHER.public)


def test_an_exchanged_member_is_refused() -> None:
    swapped = [(name, b"evil" if name == STEP else content) for name, content in contents()]
    with pytest.raises(ArtifactError, match=r"'step\.onnx': expected SHA-256"):
        unpack(archive(swapped), PUBLISHER.public)


def test_a_manifest_signed_for_something_else_is_refused() -> None:
    payload = cbor.encode(records.to_numbered(tiny_manifest(tiny_members(INITIAL))))
    forged = [(MANIFEST, sign(payload, PUBLISHER, CONTEXT + b"x")), *contents()[1:]]
    with pytest.raises(SignatureError):
        unpack(archive(forged), PUBLISHER.public)


def test_pack_checks_what_it_signs() -> None:
    members = tiny_members()
    with pytest.raises(ArtifactError, match="expected SHA-256"):
        pack(tiny_manifest(members), {**members, STEP: b"other"}, PUBLISHER)
    with pytest.raises(ArtifactError, match="missing or not in the manifest"):
        pack(tiny_manifest(members), {**members, "more": b""}, PUBLISHER)


@pytest.mark.parametrize(
    "adapter",
    [
        np.zeros(PARAMETERS + 1, np.float32),
        np.zeros((2, 3), np.float32),
        np.full(PARAMETERS, np.nan, np.float32),
        np.array([0, 0, 0, 0, 0, -np.inf], np.float32),
    ],
)
def test_an_adapter_of_another_shape_or_with_nan_is_refused(adapter: Any) -> None:
    members = tiny_members()
    data = repacked(tiny_manifest(members), ADAPTER, write_adapter(adapter), members)
    with pytest.raises(ArtifactError, match=r"expected one tensor|NaN"):
        unpack(data, PUBLISHER.public)


def safetensors_file(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        struct.pack("<Q", 1 << 60),
        safetensors_file({}, b""),
        safetensors_file({"other": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors_file({"adapter": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors_file({"adapter": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors_file({"adapter": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)),
        safetensors_file({"adapter": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(7)),
        safetensors_file({"adapter": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        safetensors_file({"adapter": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}, bytes(8)),
    ],
)
def test_hostile_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_adapter(data, 2)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_an_adapter_comes_back_from_safetensors(values: list[float]) -> None:
    adapter = np.array(values, np.float32)
    assert read_adapter(write_adapter(adapter), len(values)).tobytes() == adapter.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"format_version": 1, "schema": replace(SCHEMA, normalisation=DEVICE)},
        {"format_version": 3, "schema": replace(SCHEMA, normalisation=DEVICE)},
        {"segments": ()},
        {"segments": (Segment("a", 4_000_001),)},
        {"batch": 0},
        {"batch": 4097},
        {"feature_size": 0},
        {"files": {}},
        {"files": {PREFIX: b""}},
        {"backbone_sha256": bytes(32)},
    ],
)
def test_a_manifest_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(tiny_manifest(tiny_members()), **change)


HEAD = Segment(ANOMALY, FEATURES)
WITH_ANOMALY, WITH_DISCRIMINANT = (CLASSIFICATION, ANOMALY), (CLASSIFICATION, DISCRIMINANT)
DIMENSION = 3
DISCRIMINANT_SEGMENTS = tuple(
    Segment(name, size) for name, size in discriminant.sizes(DIMENSION, len(CLASSES)).items()
)
DISCRIMINANT_PARAMETERS = sum(segment.size for segment in DISCRIMINANT_SEGMENTS)


def manifest_of(tasks: tuple[str, ...], *heads: Segment) -> Manifest:
    """Of a package that has an embedding as well."""
    manifest = tiny_manifest({**tiny_members(), EMBEDDING: b"embedding"})
    return replace(manifest, tasks=tasks, segments=(*SEGMENTS, *heads))


def test_a_package_of_two_tasks_says_what_the_graphs_see() -> None:
    manifest = replace(tiny_manifest(tiny_members()), tasks=WITH_ANOMALY, segments=(*SEGMENTS, HEAD))
    assert (manifest.parameters, manifest.graph_parameters) == (PARAMETERS + FEATURES, PARAMETERS)
    parts = {CLASSIFICATION: slice(0, PARAMETERS), ANOMALY: slice(PARAMETERS, PARAMETERS + FEATURES)}
    assert manifest.task_slices() == parts
    assert manifest.embedding_size == 0
    payload = cbor.decode(cbor.encode(records.to_numbered(manifest)), limit=1 << 16)
    assert records.from_numbered(Manifest, payload) == manifest


def test_a_package_of_three_tasks_says_what_the_graphs_see() -> None:
    manifest = manifest_of(TASKS, *DISCRIMINANT_SEGMENTS, HEAD)
    assert (manifest.graph_parameters, manifest.embedding_size) == (PARAMETERS, DIMENSION)
    between = PARAMETERS + DISCRIMINANT_PARAMETERS
    assert manifest.task_slices() == {
        CLASSIFICATION: slice(0, PARAMETERS),
        DISCRIMINANT: slice(PARAMETERS, between),
        ANOMALY: slice(between, between + FEATURES),
    }
    assert manifest.parameters == between + FEATURES
    payload = cbor.decode(cbor.encode(records.to_numbered(manifest)), limit=1 << 16)
    assert records.from_numbered(Manifest, payload) == manifest


@pytest.mark.parametrize(("ratio", "fine"), [(2.5, discriminant.STEP_RATIO), (0.5, 0.5), (0.25, 0.25)])
def test_only_the_discriminant_head_is_coded_finer_than_the_charter_says(ratio: float, fine: float) -> None:
    manifest = manifest_of(TASKS, *DISCRIMINANT_SEGMENTS, HEAD)
    assert manifest.step_ratios(ratio) == (ratio, ratio, fine, fine, fine, fine, ratio)
    # A layer of the user's may have been called like that.
    assert replace(manifest, tasks=(CLASSIFICATION,)).step_ratios(ratio) == (ratio,) * 7


def test_a_package_with_an_embedding_is_packed_and_opened_and_not_without_it() -> None:
    members = {
        **tiny_members((0.0,) * (PARAMETERS + DISCRIMINANT_PARAMETERS)),
        EMBEDDING: b"embedding",
    }
    manifest = replace(
        tiny_manifest(members), tasks=WITH_DISCRIMINANT, segments=(*SEGMENTS, *DISCRIMINANT_SEGMENTS)
    )
    package = unpack(pack(manifest, members, PUBLISHER), PUBLISHER.public)
    assert package.members[EMBEDDING] == b"embedding"
    with pytest.raises(ArtifactError):
        pack(manifest, {name: content for name, content in members.items() if name != EMBEDDING}, PUBLISHER)


def test_a_package_from_before_there_were_tasks_is_for_classification() -> None:
    # A layer of the user's may have been called like that.
    numbered = records.to_numbered(replace(tiny_manifest(tiny_members()), segments=(*SEGMENTS, HEAD)))
    del numbered[15]
    manifest = records.from_numbered(Manifest, numbered)
    assert manifest.graph_parameters == manifest.parameters == PARAMETERS + FEATURES
    assert list(manifest.task_slices()) == [CLASSIFICATION]


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": WITH_ANOMALY},  # no head
        {"tasks": (), "segments": (*SEGMENTS, HEAD)},
        {"tasks": (ANOMALY,), "segments": (*SEGMENTS, HEAD)},
        {"tasks": (ANOMALY, CLASSIFICATION), "segments": (*SEGMENTS, HEAD)},
        {"tasks": (CLASSIFICATION, "forecast"), "segments": (*SEGMENTS, HEAD)},
        {"tasks": WITH_ANOMALY, "segments": (HEAD,)},
        {"tasks": WITH_ANOMALY, "segments": (HEAD, *SEGMENTS)},
        {"tasks": WITH_ANOMALY, "segments": (*SEGMENTS, Segment(ANOMALY, FEATURES + 1))},
        {"tasks": TASKS, "segments": (*SEGMENTS, HEAD)},  # one head of two
    ],
)
def test_tasks_without_their_segments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(tiny_manifest(tiny_members()), **change)


HEADS = DISCRIMINANT_SEGMENTS
TWICE = (*HEADS[:2], Segment(discriminant.BETWEEN, 1), *HEADS[3:])


@pytest.mark.parametrize(
    ("tasks", "segments", "message"),
    [
        (WITH_DISCRIMINANT, SEGMENTS, "segments: expected discriminant.within"),
        (WITH_DISCRIMINANT, HEADS, "behind those of the graphs"),
        (WITH_DISCRIMINANT, (*HEADS, *SEGMENTS), "behind those of the graphs"),
        (WITH_DISCRIMINANT, (*SEGMENTS, *HEADS[::-1]), "behind those of the graphs"),
        (WITH_DISCRIMINANT, (*SEGMENTS, *HEADS[:-1]), "behind those of the graphs"),
        (WITH_DISCRIMINANT, (*SEGMENTS, *TWICE), "a discriminant head of 2 classes"),
        (TASKS, (*SEGMENTS, HEAD, *HEADS), "behind those of the graphs"),
        ((CLASSIFICATION, ANOMALY, DISCRIMINANT), (*SEGMENTS, HEAD, *HEADS), "tasks: expected"),
        ((DISCRIMINANT,), (*SEGMENTS, *HEADS), "tasks: expected"),
        ((*WITH_DISCRIMINANT, DISCRIMINANT), (*SEGMENTS, *HEADS), "tasks: expected"),
    ],
)
def test_a_discriminant_head_out_of_place_or_size_is_refused(
    tasks: tuple[str, ...], segments: tuple[Segment, ...], message: str
) -> None:
    manifest = tiny_manifest({**tiny_members(), EMBEDDING: b"embedding"})
    with pytest.raises(ValueError, match=message):
        replace(manifest, tasks=tasks, segments=segments)


def test_a_discriminant_head_without_its_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"files: expected embedding\.onnx for the task discriminant"):
        replace(tiny_manifest(tiny_members()), tasks=WITH_DISCRIMINANT, segments=(*SEGMENTS, *HEADS))


def test_an_empty_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="segment 'a': expected a positive size, got 0"):
        Segment("a", 0)


def test_a_manifest_crosses_the_wire() -> None:
    manifest = replace(tiny_manifest(tiny_members()), metrics={"accuracy": 0.5}, description="text")
    payload = cbor.decode(cbor.encode(records.to_numbered(manifest)), limit=1 << 16)
    assert records.from_numbered(Manifest, payload) == manifest
    assert set(manifest.files) == set(MEMBERS)
