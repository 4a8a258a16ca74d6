"""Large objects in chunks: cut, described, checked."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.artifacts import CHUNK_BYTES, MAX_CHUNKS, Artifact, describe
from protocol.errors import ArtifactError

DIGEST = b"d" * 32


@given(st.binary(min_size=1, max_size=200), st.integers(1, 40))
def test_chunks_cover_the_whole_in_order(data: bytes, chunk_bytes: int) -> None:
    artifact = describe(data, chunk_bytes)
    ranges = [artifact.chunk_range(index) for index in range(len(artifact.chunk_sha256))]
    assert b"".join(data[start:end] for start, end in ranges) == data
    for index, (start, end) in enumerate(ranges):
        artifact.check_chunk(index, data[start:end])


def test_the_default_chunk_fits_a_hosted_broker() -> None:
    artifact = describe(bytes(CHUNK_BYTES + 1))
    assert CHUNK_BYTES < 64 * 1024
    assert [artifact.chunk_range(index) for index in (0, 1)] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES + 1),
    ]


@pytest.mark.parametrize("data", [b"", b"abc", b"abce", b"abcdx", b"efgh"])
def test_other_bytes_than_the_chunk_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="chunk 0 does not have the announced hash"):
        describe(b"abcdefgh", 4).check_chunk(0, data)


@pytest.mark.parametrize("index", [-1, 2, 2**40])
def test_a_chunk_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(ArtifactError, match=f"expected a chunk below 2, got {index}"):
        describe(b"abcdefgh", 4).check_chunk(index, b"abcd")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": b"short"},
        {"chunk_sha256": (DIGEST, b"short")},
        {"chunk_sha256": (DIGEST,)},
        {"chunk_sha256": (DIGEST,) * 3},
        {"size": 0},
        {"size": -8},
        {"size": 9},
        {"chunk_bytes": 0},
        {"chunk_bytes": -4},
        {"chunk_bytes": 17 * 1024 * 1024},
    ],
)
def test_a_description_that_does_not_add_up_is_refused(change: dict[str, object]) -> None:
    artifact = Artifact(DIGEST, 8, 4, (DIGEST, DIGEST))
    with pytest.raises(ValueError, match="expected"):
        replace(artifact, **change)


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Artifact(DIGEST, MAX_CHUNKS + 1, 1, (DIGEST,) * (MAX_CHUNKS + 1))


def test_nothing_cannot_be_described() -> None:
    with pytest.raises(ValueError, match="expected"):
        describe(b"")
