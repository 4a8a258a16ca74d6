"""Packages on disk: resumed after a crash, refused when anything is wrong, never outside their folder."""

import hashlib
from pathlib import Path

import pytest

from agent.errors import AgentError
from agent.installation import Installation
from protocol.artifacts import Artifact, describe
from protocol.channels import ChannelError
from protocol.errors import ArtifactError, SignatureError
from protocol.package import MEMBERS, PREFIX, Manifest, pack
from tests.builders import PUBLISHER, private_key, tiny_manifest, tiny_members, tiny_package

CHUNK = 500
PACKAGE = tiny_package(filler=3000)
ARTIFACT = describe(PACKAGE, CHUNK)
COUNT = len(ARTIFACT.chunk_sha256)


def write(installation: Installation, data: bytes, artifact: Artifact, *, only: range | None = None) -> None:
    for index in only or range(len(artifact.chunk_sha256)):
        start, end = artifact.chunk_range(index)
        installation.write_chunk(artifact, index, data[start:end])


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "packages", lambda: [private_key(9).public, PUBLISHER.public])


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "packages").iterdir())


def test_a_package_is_installed_under_its_hash(installation: Installation, tmp_path: Path) -> None:
    write(installation, PACKAGE, ARTIFACT)
    manifest = installation.install(ARTIFACT)
    folder = installation.path(ARTIFACT.sha256)
    assert folders(tmp_path) == [hashlib.sha256(PACKAGE).hexdigest()]
    assert {name: (folder / name).read_bytes() for name in MEMBERS} == tiny_members(filler=3000)
    assert installation.manifest(ARTIFACT.sha256) == manifest == tiny_manifest(tiny_members(filler=3000))


def test_chunks_are_found_again_after_a_restart(installation: Installation, tmp_path: Path) -> None:
    assert installation.have(ARTIFACT) == []
    write(installation, PACKAGE, ARTIFACT, only=range(COUNT - 1, 3, -2))
    again = Installation(tmp_path / "packages", lambda: [PUBLISHER.public])
    expected = sorted(range(COUNT - 1, 3, -2))
    assert again.have(ARTIFACT) == expected
    write(again, PACKAGE, ARTIFACT)
    assert again.have(ARTIFACT) == list(range(COUNT))
    again.install(ARTIFACT)


def test_a_chunk_damaged_on_disk_is_fetched_again(installation: Installation, tmp_path: Path) -> None:
    write(installation, PACKAGE, ARTIFACT)
    [partial] = (tmp_path / "packages").iterdir()
    content = bytearray(partial.read_bytes())
    content[2 * CHUNK + 5] ^= 1
    partial.write_bytes(content)
    assert installation.have(ARTIFACT) == [index for index in range(COUNT) if index != 2]


def test_a_partial_file_cut_by_a_crash_is_no_error(installation: Installation, tmp_path: Path) -> None:
    write(installation, PACKAGE, ARTIFACT)
    [partial] = (tmp_path / "packages").iterdir()
    partial.write_bytes(partial.read_bytes()[: 3 * CHUNK + 7])
    assert installation.have(ARTIFACT) == [0, 1, 2]


def test_a_package_of_another_hash_is_thrown_away(installation: Installation, tmp_path: Path) -> None:
    other = Artifact(b"h" * 32, ARTIFACT.size, CHUNK, ARTIFACT.chunk_sha256)
    write(installation, PACKAGE, other)
    with pytest.raises(ArtifactError, match="does not have the announced hash"):
        installation.install(other)
    assert folders(tmp_path) == []


def test_a_package_of_an_unknown_publisher_is_thrown_away(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "packages", lambda: [private_key(9).public, private_key(8).public])
    write(installation, PACKAGE, ARTIFACT)
    with pytest.raises(SignatureError, match="not signed by a publisher that this device knows"):
        installation.install(ARTIFACT)
    assert folders(tmp_path) == []


def test_a_package_that_the_device_cannot_work_with_is_thrown_away(tmp_path: Path) -> None:
    def accept(manifest: Manifest) -> None:
        raise ChannelError(f"no column for {manifest.schema.channels[0]}")

    installation = Installation(tmp_path / "packages", lambda: [PUBLISHER.public], accept)
    write(installation, PACKAGE, ARTIFACT)
    with pytest.raises(ChannelError, match="no column for x"):
        installation.install(ARTIFACT)
    assert folders(tmp_path) == []


def test_without_publishers_what_is_announced_is_installed(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "packages", list)
    write(installation, PACKAGE, ARTIFACT)
    installation.install(ARTIFACT)
    assert folders(tmp_path) == [ARTIFACT.sha256.hex()]


@pytest.mark.parametrize(
    "name",
    ["../evil", "/tmp/evil", "sub/evil", "..", ".", "a/../../evil", "./evil"],  # noqa: S108 - an attack
)
def test_a_member_with_a_path_in_its_name_is_refused(
    installation: Installation, tmp_path: Path, name: str
) -> None:
    members = {**tiny_members(), name: b"evil"}
    data = pack(tiny_manifest(members), members, PUBLISHER)
    artifact = describe(data, CHUNK)
    write(installation, data, artifact)
    with pytest.raises(ArtifactError):
        installation.install(artifact)
    assert folders(tmp_path) == []
    assert [path for path in tmp_path.rglob("*") if "evil" in path.name] == []


def test_what_is_no_archive_is_refused(installation: Installation, tmp_path: Path) -> None:
    data = b"no archive" * 100
    artifact = describe(data, CHUNK)
    write(installation, data, artifact)
    with pytest.raises(ArtifactError, match="not a readable archive"):
        installation.install(artifact)
    assert folders(tmp_path) == []


def test_what_a_crash_left_unpacked_is_replaced(installation: Installation, tmp_path: Path) -> None:
    write(installation, PACKAGE, ARTIFACT)
    leftover = tmp_path / "packages" / f"{ARTIFACT.sha256.hex()}.unpacked"
    leftover.mkdir()
    (leftover / "prefix.onnx").write_bytes(b"half")
    installation.install(ARTIFACT)
    assert (installation.path(ARTIFACT.sha256) / "prefix.onnx").read_bytes() == tiny_members(filler=3000)[
        PREFIX
    ]


def test_a_newer_download_replaces_an_older_one(installation: Installation, tmp_path: Path) -> None:
    write(installation, PACKAGE, ARTIFACT, only=range(2))
    newer = tiny_package(filler=2000)
    write(installation, newer, describe(newer, CHUNK), only=range(1))
    assert folders(tmp_path) == [f"{hashlib.sha256(newer).hexdigest()}.partial"]


def test_only_the_running_package_stays(installation: Installation, tmp_path: Path) -> None:
    artifacts = []
    for filler in (0, 1):
        data = tiny_package(filler=filler)
        artifacts.append(describe(data, CHUNK))
        write(installation, data, artifacts[-1])
        installation.install(artifacts[-1])
    assert len(folders(tmp_path)) == 2
    installation.keep_only(artifacts[1].sha256)
    assert folders(tmp_path) == [artifacts[1].sha256.hex()]


def test_a_package_that_is_gone_or_damaged_says_what_to_do(installation: Installation) -> None:
    with pytest.raises(AgentError, match="start the agent, which fetches it anew"):
        installation.manifest(ARTIFACT.sha256)
    write(installation, PACKAGE, ARTIFACT)
    installation.install(ARTIFACT)
    (installation.path(ARTIFACT.sha256) / "manifest.cbor").write_bytes(b"\xff")
    with pytest.raises(AgentError, match="start the agent, which fetches it anew"):
        installation.manifest(ARTIFACT.sha256)
