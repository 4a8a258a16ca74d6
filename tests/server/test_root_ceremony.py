"""Making a root of trust: drafted, carried from holder to holder, installed; and the commands for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keyring import Keyring
from agent.store import Store as AgentStore
from protocol.errors import SignatureError, TrustError
from protocol.identity import Trust
from protocol.messages import Receipt, sign_message
from protocol.signing import PrivateKey, PublicKey
from protocol.topics import Topics
from protocol.trust import MAX_ROOT_BYTES, first_root, next_root
from runtime.keys import read
from server import tables
from server.errors import ServerError
from server.root_ceremony import add_signature, describe, draft
from server.store import Store
from tests.builders import PUBLISHER, SEALING, private_key
from tests.roots import EXPIRES, HOLDERS, NEXT_SERVER, SERVER, changed, root
from tests.server.databases import Database
from tests.server.test_command_line import Operator

ONE, TWO, THREE = HOLDERS
TOPICS = Topics("pumps")


def test_a_draft_says_what_it_was_asked_to() -> None:
    said = describe(root(3, [ONE], publishers=[PUBLISHER.public]))
    assert said == {
        "federation": "pumps",
        "version": 3,
        "expires": "2033-05-18T03:33:20+00:00",
        "root_keys": [key.public.raw.hex() for key in HOLDERS],
        "threshold": 2,
        "server_keys": [SERVER.public.raw.hex()],
        "publishers": [PUBLISHER.public.raw.hex()],
        "signatures": 1,
    }
    assert describe(root())["publishers"] == []


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_cannot_be_reached_is_refused(threshold: int) -> None:
    with pytest.raises(TrustError, match="expected a threshold of 1 to 3 root keys"):
        root(threshold=threshold)
    with pytest.raises(TrustError, match="expected a threshold of 1 to 1 root keys, got 2"):
        root(holders=[ONE, ONE], threshold=2)


def test_the_servers_key_is_no_root_key() -> None:
    with pytest.raises(TrustError, match="it would not be offline"):
        root(holders=[ONE, SERVER])


def test_holders_sign_one_after_another_in_any_order() -> None:
    for order in ([ONE, TWO], [TWO, ONE], [THREE, ONE], [ONE, ONE, THREE]):
        assert first_root(root(signers=order)).version == 1
    assert describe(root(signers=[ONE, ONE, TWO]))["signatures"] == 2


def test_a_signature_does_not_outlive_a_change_of_the_draft() -> None:
    signed = root(signers=[ONE])
    changed_after = changed(signed, lambda tree: tree["signed"].update(expires="2034-01-01T00:00:00Z"))
    with pytest.raises(TrustError, match="has 1 of the 2"):
        first_root(add_signature(changed_after, TWO))


def test_a_stranger_may_sign_and_counts_for_nothing() -> None:
    with pytest.raises(TrustError, match="has 1 of the 2"):
        first_root(root(signers=[ONE, private_key(66)]))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"{}", b"[" * 9000, b'{"signed": {"_type": "root"}, "signatures": []}']
)
def test_what_is_no_draft_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError, match="not the root of a federation"):
        add_signature(data, ONE)
    with pytest.raises(TrustError, match="not the root of a federation"):
        describe(data)


def test_a_draft_of_another_hand_is_shown_whatever_it_lacks() -> None:
    odd = changed(root(), lambda tree: tree["signed"]["roles"]["root"].update(keyids=["unlisted"]))
    assert describe(odd)["root_keys"] == []


class TestInTheDatabase:
    @pytest.fixture
    def store(self, tmp_path: Path, database: Database) -> Iterator[Store]:
        store = Store(tmp_path / "data", database(tmp_path / "data"))
        yield store
        store.close()

    def test_versions_follow_one_another(self, store: Store) -> None:
        assert (store.newest_root(), store.roots()) == (None, [])
        roots = [root(), root(2, server=[NEXT_SERVER]), root(3)]
        for data in roots:
            assert store.add_root(data, "pumps", 1000.0).data == data
        assert store.roots() == roots
        newest = store.newest_root()
        assert newest is not None
        assert (newest.version, newest.server_keys) == (3, (SERVER.public,))

    def test_what_does_not_follow_is_not_kept(self, store: Store) -> None:
        store.add_root(root(), "pumps", 1000.0)
        for data in (root(), root(3), root(2, [ONE]), root(2, federation="fans"), b"{}"):
            with pytest.raises(TrustError):
                store.add_root(data, "pumps", 1000.0)
        assert store.roots() == [root()]

    def test_of_another_federation_or_expired_it_is_not_kept(self, store: Store) -> None:
        with pytest.raises(ServerError, match="expected the root of federation pumps, got that of fans"):
            store.add_root(root(federation="fans"), "pumps", 1000.0)
        with pytest.raises(ServerError, match="version 1 of the root has expired already"):
            store.add_root(root(), "pumps", EXPIRES + 1)
        assert store.roots() == []

    def test_a_damaged_database_is_named(self, store: Store) -> None:
        store.add_root(root(), "pumps", 1000.0)
        with store._database.engine.begin() as connection:
            connection.execute(tables.roots.update().values(data=root(signers=[ONE])))
        with pytest.raises(ServerError, match="do not follow one another"):
            store.newest_root()


class Ceremony(Operator):
    """The holders' and the operator's commands, and a device that was given the first version."""

    def keygen(self, name: str) -> str:
        status, out, _ = self("root", "keygen", str(self.folder / name))
        assert status == 0
        return out.strip()

    def draft(self, *arguments: str) -> str:
        status, out, errors = self("root", "draft", str(self.folder / "root.json"), *arguments)
        assert (status, errors) == (0, "")
        return out

    def sign(self, *names: str) -> str:
        said = ""
        for name in names:
            status, out, _ = self(
                "root", "sign", str(self.folder / "root.json"), "--key", str(self.folder / name)
            )
            assert status == 0
            said += out
        return said

    def install(self) -> None:
        status, out, errors = self("root", "install", str(self.folder / "root.json"))
        assert (status, errors) == (0, "")
        assert "of the root holds; restart the server" in out

    def roots(self) -> list[bytes]:
        store = Store(self.folder / "data")
        found = store.roots()
        store.close()
        return found

    def begin(self) -> list[str]:
        """Three holders, a first version that two of them signed."""
        keys = [self.keygen(name) for name in ("one", "two", "three")]
        self.draft(*[argument for key in keys for argument in ("--root-key", key)])
        self.sign("one", "three")
        self.install()
        return keys


@pytest.fixture
def ceremony(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ceremony:
    return Ceremony(tmp_path, capsys)


def test_from_keys_to_a_root_that_holds(ceremony: Ceremony) -> None:
    keys = [ceremony.keygen(name) for name in ("one", "two", "three")]
    assert [read(ceremony.folder / name).public.raw.hex() for name in ("one", "two", "three")] == keys
    out = ceremony.draft(*[argument for key in keys for argument in ("--root-key", key)])
    assert '"threshold": 2' in out  # a majority
    assert "2 holders: graftwork-server root sign" in out
    assert (
        "not complete: version 1 of the root has 0 of the 2"
        in ceremony("root", "show", str(ceremony.folder / "root.json"))[1]
    )
    assert "0 of the 2 signatures" in ceremony.mistake("root", "install", str(ceremony.folder / "root.json"))
    ceremony.sign("one")
    assert "1 of the 2 signatures" in ceremony.mistake("root", "install", str(ceremony.folder / "root.json"))
    ceremony.sign("three")
    assert (
        "signed by enough of its own keys" in ceremony("root", "show", str(ceremony.folder / "root.json"))[1]
    )
    ceremony.install()
    [data] = ceremony.roots()
    server = PublicKey.from_hex(ceremony("key")[1].strip())
    assert first_root(data).server_keys == (server,)
    assert json.loads(ceremony("root", "show")[1])["version"] == 1
    exported = ceremony.folder / "for-devices.json"
    assert f'root = "{exported.name}"' in ceremony("root", "export", str(exported))[1]
    assert exported.read_bytes() == data


def test_the_servers_key_changes_and_a_device_follows(ceremony: Ceremony) -> None:
    ceremony.begin()
    first = ceremony("key")[1].strip()
    following = ceremony("key", "--next")[1].strip()
    assert following != first
    assert ceremony("key", "--next")[1].strip() == following
    out = ceremony.draft()
    assert json.loads(out[: out.rindex("}") + 1])["server_keys"] == [following]
    ceremony.sign("two", "three")
    ceremony.install()
    roots = ceremony.roots()
    assert [first_root(roots[0]).version, next_root(first_root(roots[0]), roots[1]).version] == [1, 2]

    store = AgentStore(":memory:")
    keyring = Keyring(store, "pumps", lambda: 1_800_000_000.0, root=roots[0])
    topic, receipt = TOPICS.down("pump-1", "receipt"), Receipt(bytes(32), 1, "counted")
    old = read(ceremony.folder / "data" / "server.key")
    new = read(ceremony.folder / "data" / "server.key.next")
    word = Trust(tuple(roots), SEALING.public.raw, 1_800_000_000.0, 1_900_000_000.0)
    assert keyring.take(sign_message(word, new, TOPICS.all("trust")), TOPICS.all("trust"))
    assert keyring.verify(Receipt, sign_message(receipt, new, topic), topic) == receipt
    with pytest.raises(SignatureError):
        keyring.verify(Receipt, sign_message(receipt, old, topic), topic)
    store.close()


def test_a_draft_keeps_what_is_not_changed(ceremony: Ceremony) -> None:
    keys = ceremony.begin()
    publisher = PUBLISHER.public.raw.hex()
    ceremony.draft("--publisher", publisher)
    ceremony.sign("one", "two")
    ceremony.install()
    ceremony.draft("--threshold", "3")
    ceremony.sign("one", "two", "three")
    ceremony.install()
    said = json.loads(ceremony("root", "show")[1])
    assert (said["version"], said["root_keys"], said["threshold"], said["publishers"]) == (
        3,
        keys,
        3,
        [publisher],
    )
    ceremony.draft()
    ceremony.sign("one", "two")
    assert "has 2 of the 3" in ceremony.mistake("root", "install", str(ceremony.folder / "root.json"))


def test_publishers_of_the_configuration_come_into_the_first_version(ceremony: Ceremony) -> None:
    publisher = PUBLISHER.public.raw.hex()
    ceremony.configure(f'publishers = ["{publisher}"]\n')
    ceremony.begin()
    assert json.loads(ceremony("root", "show")[1])["publishers"] == [publisher]


def test_holders_change(ceremony: Ceremony) -> None:
    ceremony.begin()
    fresh = [ceremony.keygen("four"), ceremony.keygen("five")]
    ceremony.draft(*[argument for key in fresh for argument in ("--root-key", key)])
    said = ceremony.sign("one", "two")
    assert said.count("the draft does not name this root key; it counts only if the version before does") == 2
    assert "has 0 of the 2 signatures that it needs by its own" in ceremony.mistake(
        "root", "install", str(ceremony.folder / "root.json")
    )
    assert "note:" not in ceremony.sign("four", "five")
    ceremony.install()
    assert json.loads(ceremony("root", "show")[1])["root_keys"] == fresh


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("draft", "FILE"), "expected --root-key HEX for each holder"),
        (("draft", "FILE", "--root-key", "zz"), "expected 64 hexadecimal digits"),
        (
            ("draft", "FILE", "--root-key", ONE.public.raw.hex(), "--threshold", "2"),
            "expected a threshold of 1 to 1",
        ),
        (
            ("draft", "FILE", "--root-key", ONE.public.raw.hex(), "--days", "nan"),
            "--days: expected 1 to 36500",
        ),
        (
            ("draft", "FILE", "--root-key", ONE.public.raw.hex(), "--days", "-5"),
            "--days: expected 1 to 36500",
        ),
        (("export", "FILE"), "there is no root yet"),
        (("show",), "there is no root yet"),
        (("show", "FILE"), "No such file"),
        (("install", "FILE"), "No such file"),
        (("sign", "FILE", "--key", "FILE"), "not readable"),
    ],
)
def test_mistakes_are_one_line(ceremony: Ceremony, arguments: tuple[str, ...], message: str) -> None:
    file = str(ceremony.folder / "nothing.json")
    assert message in ceremony.mistake("root", *(argument.replace("FILE", file) for argument in arguments))


def test_a_file_that_is_no_root_is_refused(ceremony: Ceremony) -> None:
    path = ceremony.folder / "root.json"
    for data, message in (
        (b"x", "not the root"),
        (b" " * (MAX_ROOT_BYTES + 1), "expected a root of at most"),
    ):
        path.write_bytes(data)
        for arguments in (("show", str(path)), ("install", str(path))):
            assert message in ceremony.mistake("root", *arguments)
    path.write_bytes(root(federation="fans"))
    assert "expected the root of federation pumps, got that of fans" in ceremony.mistake(
        "root", "install", str(path)
    )


def test_a_root_key_is_never_overwritten(ceremony: Ceremony) -> None:
    key = ceremony.keygen("one")
    assert "a key is never overwritten" in ceremony.mistake("root", "keygen", str(ceremony.folder / "one"))
    assert PrivateKey(bytes.fromhex((ceremony.folder / "one").read_text("ascii"))).public.raw.hex() == key
    assert (ceremony.folder / "one").stat().st_mode & 0o777 == 0o600


def test_a_new_sealing_key_keeps_the_one_before(ceremony: Ceremony) -> None:
    ceremony("key", "--new-sealing")
    first = (ceremony.folder / "data" / "sealing.key").read_text("ascii")
    assert "made a new sealing key" in ceremony("key", "--new-sealing")[1]
    assert (ceremony.folder / "data" / "sealing.key.before").read_text("ascii") == first
    ceremony.configure('[trust]\nsealing = "mlkem768-x25519"\n')
    ceremony("key", "--new-sealing")
    assert len(bytes.fromhex((ceremony.folder / "data" / "sealing.key").read_text("ascii"))) == 96


def test_a_draft_is_made_of_what_it_is_given() -> None:
    data = draft(
        "pumps", 1, root_keys=[ONE.public], threshold=1, server_keys=[SERVER.public, NEXT_SERVER.public],
        publishers=[PUBLISHER.public], expires=EXPIRES + 0.7,
    )  # fmt: skip
    found = first_root(add_signature(data, ONE))
    assert found.server_keys == (SERVER.public, NEXT_SERVER.public)
    assert found.expires == EXPIRES
