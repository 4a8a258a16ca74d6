"""The server's keys on disk: made once, followed when the root says so, never a stranger to the root."""

import stat
from pathlib import Path

import pytest

from protocol.sealing import HYBRID, X25519, SealingKey
from protocol.trust import first_root
from runtime import keys as key_files
from runtime.errors import SetupError
from runtime.keys import write_secret
from server import keys
from server.keys import (
    FORMER_SEALING_FILE,
    NEXT_SIGNING_FILE,
    SEALING_FILE,
    SIGNING_FILE,
    ServerKeys,
    replace_sealing_key,
)
from tests.roots import NEXT_SERVER, SERVER, root


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    made = ServerKeys.load_or_make(folder, X25519)
    again = ServerKeys.load_or_make(folder, HYBRID)  # a suite is that of a new key
    assert made.signing.public == again.signing.public
    assert [key.public for key in again.sealing] == [key.public for key in made.sealing]
    assert [key.suite for key in again.sealing] == [X25519]
    assert names(folder) == {SIGNING_FILE, SEALING_FILE}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_hybrid_key_is_made_where_it_is_wanted(tmp_path: Path) -> None:
    [key] = ServerKeys.load_or_make(tmp_path, HYBRID).sealing
    assert key.suite == HYBRID


def test_the_key_that_follows_follows_once_the_root_names_it(tmp_path: Path) -> None:
    write_secret(tmp_path / SIGNING_FILE, SERVER.raw)
    write_secret(tmp_path / NEXT_SIGNING_FILE, NEXT_SERVER.raw)
    first, second = first_root(root()), first_root(root(2, server=[NEXT_SERVER]))
    for held in (None, first):
        assert ServerKeys.load_or_make(tmp_path, X25519, held).signing.public == SERVER.public
        assert NEXT_SIGNING_FILE in names(tmp_path)
    for _ in range(2):
        assert ServerKeys.load_or_make(tmp_path, X25519, second).signing.public == NEXT_SERVER.public
        assert NEXT_SIGNING_FILE not in names(tmp_path)


def test_while_the_root_names_both_the_new_one_signs(tmp_path: Path) -> None:
    write_secret(tmp_path / SIGNING_FILE, SERVER.raw)
    write_secret(tmp_path / NEXT_SIGNING_FILE, NEXT_SERVER.raw)
    both = first_root(root(server=[SERVER, NEXT_SERVER]))
    assert ServerKeys.load_or_make(tmp_path, X25519, both).signing.public == NEXT_SERVER.public


def test_a_key_that_the_root_does_not_name_is_refused(tmp_path: Path) -> None:
    """As after a restored backup: no device would believe what it signs."""
    write_secret(tmp_path / SIGNING_FILE, SERVER.raw)
    with pytest.raises(SetupError, match=r"version 2 of the root does not name the key in .*server\.key"):
        ServerKeys.load_or_make(tmp_path, X25519, first_root(root(2, server=[NEXT_SERVER])))
    assert SIGNING_FILE in names(tmp_path)


def test_a_new_key_beside_a_root_that_does_not_know_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not name the key"):
        ServerKeys.load_or_make(tmp_path, X25519, first_root(root()))


def test_what_was_sealed_to_the_key_before_still_opens(tmp_path: Path) -> None:
    before = ServerKeys.load_or_make(tmp_path, X25519).sealing[0]
    new = replace_sealing_key(tmp_path, HYBRID)
    found = ServerKeys.load_or_make(tmp_path, X25519).sealing
    assert [key.public for key in found] == [new.public, before.public]
    newer = replace_sealing_key(tmp_path, X25519)
    found = ServerKeys.load_or_make(tmp_path, X25519).sealing
    assert [key.public for key in found] == [newer.public, new.public]


def test_a_sealing_key_is_replaced_before_there_is_one(tmp_path: Path) -> None:
    new = replace_sealing_key(tmp_path / "data", X25519)
    assert [key.public for key in ServerKeys.load_or_make(tmp_path / "data", X25519).sealing] == [new.public]


def test_a_crash_while_it_is_replaced_loses_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    before = ServerKeys.load_or_make(tmp_path, X25519).sealing[0]
    with monkeypatch.context() as patch:
        patch.setattr(keys, "write_secret", crash)
        with pytest.raises(Crash):
            replace_sealing_key(tmp_path, X25519)
    assert names(tmp_path) == {SIGNING_FILE, FORMER_SEALING_FILE}
    found = ServerKeys.load_or_make(tmp_path, X25519).sealing
    assert found[0].public != before.public
    assert found[1].public == before.public


@pytest.mark.parametrize("name", [SIGNING_FILE, SEALING_FILE, FORMER_SEALING_FILE])
@pytest.mark.parametrize("text", ["", "hush", "ab" * 31, "zz" * 32])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, name: str, text: str) -> None:
    ServerKeys.load_or_make(tmp_path, X25519)
    (tmp_path / name).write_text(text, "ascii")
    with pytest.raises(SetupError, match=name) as error:
        ServerKeys.load_or_make(tmp_path, X25519)
    assert not text or text not in str(error.value)


def test_a_key_that_is_there_is_not_made_anew(tmp_path: Path) -> None:
    key = SealingKey.generate(HYBRID)
    write_secret(tmp_path / SEALING_FILE, key.raw)
    signing = key_files.make(tmp_path / SIGNING_FILE)
    found = ServerKeys.load_or_make(tmp_path, X25519)
    assert (found.signing.public, found.sealing[0].public) == (signing.public, key.public)
