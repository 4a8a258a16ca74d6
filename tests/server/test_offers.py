"""What may be pulled in chunks: the package and the newest two keyframes, exactly the bytes, nothing else."""

from pathlib import Path

import pytest

from protocol.artifacts import CHUNK_BYTES, describe
from protocol.errors import ArtifactError, EncodingError
from protocol.messages import ChunkRequest
from server.offers import Offers

PACKAGE = bytes(range(256)) * 600
KEYFRAMES = [bytes([number]) * (CHUNK_BYTES + number) for number in range(4)]


@pytest.fixture
def offers(tmp_path: Path) -> Offers:
    path = tmp_path / "package.zip"
    path.write_bytes(PACKAGE)
    offers = Offers()
    offers.offer_package(describe(PACKAGE), path)
    return offers


def pulled(offers: Offers, sha256: bytes, *indices: int) -> list[tuple[int, bytes]]:
    return [(chunk.index, chunk.data) for chunk in offers.chunks(ChunkRequest(sha256, indices))]


def test_package_and_keyframe_come_in_the_chunks_of_their_description(offers: Offers) -> None:
    keyframe = offers.offer_keyframe(KEYFRAMES[3])
    for artifact, data in ((describe(PACKAGE), PACKAGE), (keyframe, KEYFRAMES[3])):
        found = pulled(offers, artifact.sha256, 1, 0)
        assert [index for index, _ in found] == [1, 0]
        for index, chunk in found:
            artifact.check_chunk(index, chunk)
            start, end = artifact.chunk_range(index)
            assert chunk == data[start:end]


def test_the_keyframe_before_the_newest_stays_and_older_ones_go(offers: Offers) -> None:
    artifacts = [offers.offer_keyframe(data) for data in KEYFRAMES]
    offers.offer_keyframe(KEYFRAMES[3])  # published again, as after each reconnect
    for artifact, data in zip(artifacts[2:], KEYFRAMES[2:], strict=True):
        assert pulled(offers, artifact.sha256, 0) == [(0, data[:CHUNK_BYTES])]
    for artifact in artifacts[:2]:
        with pytest.raises(EncodingError, match="is on offer"):
            pulled(offers, artifact.sha256, 0)


@pytest.mark.parametrize("index", [-1, 3, 2**60])
def test_a_chunk_that_there_is_not_is_refused_before_any_is_sent(offers: Offers, index: int) -> None:
    for sha256 in (describe(PACKAGE).sha256, offers.offer_keyframe(KEYFRAMES[0]).sha256):
        with pytest.raises(EncodingError, match="expected chunks below"):
            next(offers.chunks(ChunkRequest(sha256, (0, index))))


def test_without_a_package_nothing_is_on_offer() -> None:
    with pytest.raises(EncodingError, match="is on offer"):
        pulled(Offers(), bytes(32), 0)


def test_a_package_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    offers = Offers()
    offers.offer_package(describe(PACKAGE), tmp_path / "gone.zip")
    with pytest.raises(ArtifactError, match="push it again"):
        pulled(offers, describe(PACKAGE).sha256, 0)
