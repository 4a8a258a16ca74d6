"""Pulling in chunks: never too many at once, again what did not come, nothing that is not the artifact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.download import TIMEOUT_SECONDS, WINDOW, Download
from protocol.artifacts import describe
from protocol.errors import ArtifactError
from protocol.messages import Chunk

DATA = bytes(range(200)) * 5
ARTIFACT = describe(DATA, 100)
COUNT = len(ARTIFACT.chunk_sha256)


def chunk(index: int) -> Chunk:
    start, end = ARTIFACT.chunk_range(index)
    return Chunk(ARTIFACT.sha256, index, DATA[start:end])


def asked(download: Download, now: float) -> tuple[int, ...]:
    request = download.request(now)
    assert request is None or request.artifact == ARTIFACT.sha256
    return request.indices if request else ()


def test_chunks_are_asked_for_a_window_at_a_time() -> None:
    download = Download(ARTIFACT)
    assert asked(download, 0.0) == (0, 1, 2, 3)
    assert asked(download, 1.0) == ()
    assert download.receive(chunk(2))
    assert asked(download, 2.0) == (4,)


def test_what_does_not_come_is_asked_for_again() -> None:
    download = Download(ARTIFACT)
    asked(download, 0.0)
    download.receive(chunk(1))
    assert asked(download, TIMEOUT_SECONDS - 0.1) == (4,)
    assert asked(download, TIMEOUT_SECONDS) == (0, 2, 3)


def test_after_a_restart_of_the_link_everything_is_asked_for_at_once() -> None:
    download = Download(ARTIFACT)
    asked(download, 0.0)
    download.restart()
    assert asked(download, 0.1) == (0, 1, 2, 3)


def test_a_download_goes_on_with_what_is_missing() -> None:
    download = Download(ARTIFACT, have=[0, 1, 2, 4, 5, 6, 7, 8, 9])
    assert download.progress == pytest.approx(0.9)
    assert asked(download, 0.0) == (3,)
    assert download.receive(chunk(3))
    assert download.complete
    assert asked(download, 1.0) == ()


def test_with_everything_there_nothing_is_asked_for() -> None:
    download = Download(ARTIFACT, have=range(COUNT))
    assert download.complete
    assert download.progress == 1.0
    assert download.request(0.0) is None


def test_a_chunk_counts_once() -> None:
    download = Download(ARTIFACT)
    assert download.receive(chunk(5))
    assert not download.receive(chunk(5))


def test_a_chunk_of_another_artifact_is_ignored() -> None:
    download = Download(ARTIFACT)
    assert not download.receive(Chunk(b"x" * 32, 0, chunk(0).data))
    assert download.progress == 0.0


@pytest.mark.parametrize(
    ("index", "data"), [(0, b"evil"), (0, DATA[100:200]), (COUNT, b""), (-1, DATA[900:])]
)
def test_a_wrong_chunk_is_refused_and_asked_for_again(index: int, data: bytes) -> None:
    download = Download(ARTIFACT)
    asked(download, 0.0)
    with pytest.raises(ArtifactError):
        download.receive(Chunk(ARTIFACT.sha256, index, data))
    assert download.progress == 0.0
    assert asked(download, TIMEOUT_SECONDS) == (0, 1, 2, 3)


@settings(max_examples=60)
@given(st.data())
def test_a_lossy_link_delivers_in_the_end(data: st.DataObject) -> None:
    download, now, received = Download(ARTIFACT), 0.0, set[int]()
    lost = data.draw(st.lists(st.booleans(), max_size=30))
    while not download.complete:
        indices = asked(download, now)
        assert len(indices) <= WINDOW
        assert received.isdisjoint(indices)
        for index in data.draw(st.permutations(indices)):
            if lost and lost.pop():
                continue
            assert download.receive(chunk(index))
            received.add(index)
        now += TIMEOUT_SECONDS
    assert received == set(range(COUNT))


def test_a_clock_that_goes_back_does_not_keep_a_chunk_waiting() -> None:
    download = Download(ARTIFACT)
    first = download.request(1_000_000.0)
    assert first is not None
    assert download.request(1_000_001.0) is None  # on its way
    assert download.request(0.0) == first
