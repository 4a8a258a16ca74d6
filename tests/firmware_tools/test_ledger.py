"""The ledger of identities: nothing is given twice, whatever is tried, and nothing is forgotten."""

import csv
import io
import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools.__main__ import main
from firmware_tools.errors import FirmwareError
from firmware_tools.ledger import Ledger, parse_keys
from protocol.signing import PrivateKey

KEYS = [PrivateKey(bytes([n]) * 32).public for n in range(1, 6)]
NOW = 1_700_000_000.0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def test_a_device_from_plan_to_enrolment(ledger: Ledger) -> None:
    ledger.plan({"edge-1": None}, NOW)
    ledger.record("edge-1", NOW + 1, status="provisioned", medium="card-a", image_sha256="ab" * 32)
    assert ledger.record_enrolled({"edge-1": KEYS[0], "not-ours": KEYS[1]}, NOW + 2) == 1
    assert ledger.record_enrolled({"edge-1": KEYS[0]}, NOW + 3) == 0
    [row] = ledger.records()
    assert (row["status"], row["medium"], row["public_key"]) == ("enrolled", "card-a", KEYS[0].raw.hex())
    assert [entry["at"] - NOW for entry in ledger.history("edge-1")] == [0, 1, 2]


def test_a_serial_is_refused_a_second_time_with_record_and_time(ledger: Ledger) -> None:
    ledger.plan({"edge-1": None}, NOW)
    with pytest.raises(FirmwareError, match=r"edge-1 has a record: edge-1 \(planned, 2023-11-14 22:13 UTC\)"):
        ledger.plan({"edge-0": None, "edge-1": None}, NOW)
    assert [row["serial"] for row in ledger.records()] == ["edge-1"]


def test_the_key_of_another_device_is_refused(ledger: Ledger) -> None:
    ledger.plan({"edge-1": KEYS[0], "edge-2": None}, NOW)
    with pytest.raises(FirmwareError, match=r"has a record: edge-1 .* copy of a card"):
        ledger.record("edge-2", NOW, public_key=KEYS[0])
    with pytest.raises(FirmwareError, match="copy of a card"):
        ledger.record_enrolled({"edge-2": KEYS[1], "edge-1": KEYS[2]}, NOW)
    assert {row["status"] for row in ledger.records()} == {"planned"}


def test_the_medium_of_another_device_is_refused_even_after_its_revocation(ledger: Ledger) -> None:
    ledger.plan({"edge-1": None, "edge-2": None}, NOW)
    ledger.record("edge-1", NOW, status="provisioned", medium="card-a")
    with pytest.raises(FirmwareError, match=r"flashing would erase its keys"):
        ledger.note_flashed("card-a", "cd" * 32, NOW)
    ledger.revoke("edge-1", "stolen", NOW)
    ledger.note_flashed("card-a", "cd" * 32, NOW)
    with pytest.raises(FirmwareError, match=r"card-a has a record: edge-1 \(revoked"):
        ledger.record("edge-2", NOW, medium="card-a")


def test_a_provisioned_medium_can_be_flashed_again_for_its_own_device_until_it_has_keys(
    ledger: Ledger,
) -> None:
    ledger.plan({"edge-1": None}, NOW)
    ledger.note_flashed("card-a", "ab" * 32, NOW, "edge-1")
    ledger.note_flashed("card-a", "cd" * 32, NOW, "edge-1")
    [row] = ledger.records()
    assert (row["status"], row["image_sha256"]) == ("provisioned", "cd" * 32)
    ledger.record_enrolled({"edge-1": KEYS[0]}, NOW)
    with pytest.raises(FirmwareError, match="keys that flashing would erase"):
        ledger.check_flash("card-a", "edge-1")


def test_a_repair_replaces_the_record_and_keeps_its_history(ledger: Ledger) -> None:
    ledger.plan({"edge-1": KEYS[0]}, NOW)
    ledger.record("edge-1", NOW, status="provisioned", medium="emmc-1")
    ledger.revoke("edge-1", "broken", NOW)
    ledger.rma("edge-1", NOW + 9, key=KEYS[1], keep_medium=True)
    old, new = ledger.records()
    assert (old["status"], old["medium"], old["public_key"]) == ("replaced", "emmc-1", KEYS[0].raw.hex())
    assert (new["status"], new["medium"], new["replaces"]) == ("planned", "emmc-1", "edge-1")
    with pytest.raises(FirmwareError, match="a key is never used again"):
        ledger.rma("edge-1", NOW, key=KEYS[0])
    ledger.rma("edge-1", NOW, new_serial="edge-9")
    with pytest.raises(FirmwareError, match=r"was used: edge-1 .*, by edge-9"):
        ledger.plan({"edge-1": None}, NOW)


def test_a_revoked_device_stays_out(ledger: Ledger) -> None:
    ledger.plan({"edge-1": None}, NOW)
    ledger.revoke("edge-1", "stolen", NOW)
    with pytest.raises(FirmwareError, match=r"revoked.*: stolen; only a repair"):
        ledger.record("edge-1", NOW, status="enrolled")
    with pytest.raises(FirmwareError, match="no record of 'edge-7'"):
        ledger.revoke("edge-7", "", NOW)


def test_a_failure_before_the_commit_leaves_nothing(ledger: Ledger) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ledger.plan({"edge-1": KEYS[0]}, NOW, before_commit=full)
    assert ledger.records() == []


def test_files_that_are_no_ledger_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is no database, but a long enough text. " * 50)
    with pytest.raises(FirmwareError, match="expected a ledger"):
        Ledger(tmp_path / "text")
    database = sqlite3.connect(tmp_path / "newer")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(FirmwareError, match="expected a ledger of version 1, got 99"):
        Ledger(tmp_path / "newer")


def test_commands_list_revoke_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "ledger.sqlite")
    with Ledger(Path(path)) as ledger:
        ledger.plan({"edge-1": KEYS[0], "edge-2": None}, NOW)
    assert main(["provision", "revoke", "edge-2", "--ledger", path, "--reason", "lost, found"]) == 0
    capsys.readouterr()
    assert main(["provision", "export", "--ledger", path, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["serial"], row["reason"]) for row in rows] == [("edge-1", ""), ("edge-2", "lost, found")]
    devices = tmp_path / "devices.json"
    devices.write_text(json.dumps([{"id": "edge-1", "public_key": KEYS[0].raw.hex(), "status": "active"}]))
    assert main(["provision", "record", "--devices", str(devices), "--ledger", path]) == 0
    assert main(["provision", "list", "--status", "enrolled", "--ledger", path]) == 0
    out = capsys.readouterr().out
    assert "1 devices have enrolled" in out
    assert "1 records" in out
    assert main(["provision", "history", "edge-2", "--ledger", path]) == 0
    assert "2023-11-14 22:13:20Z  planned\n" in capsys.readouterr().out
    assert main(["provision", "record", "edge-1", "--public-key", "ff", "--ledger", path]) == 1
    assert "--public-key: " in capsys.readouterr().err
    with pytest.raises(FirmwareError, match="expected a list with id and public_key"):
        parse_keys([{"id": "edge-1"}])


NAMES, MEDIA = st.sampled_from(["a", "b", "c"]), st.sampled_from(["m1", "m2", None])
KEY = st.sampled_from([*KEYS, None])
CHANGES = st.one_of(
    st.tuples(st.just("plan"), NAMES, KEY),
    st.tuples(st.just("record"), NAMES, KEY, MEDIA, st.sampled_from(["provisioned", "enrolled", None])),
    st.tuples(st.just("revoke"), NAMES),
    st.tuples(st.just("rma"), NAMES, NAMES, KEY, st.booleans()),
    st.tuples(st.just("flash"), st.sampled_from(["m1", "m2"]), st.one_of(st.none(), NAMES)),
)


@given(st.lists(CHANGES, max_size=15))
def test_whatever_is_tried_nothing_is_ever_given_twice(changes: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder, "ledger.sqlite")) as ledger:
        ledger._database.execute("PRAGMA synchronous = OFF").close()  # rules are tested, not the disk
        known: dict[int, str] = {}
        for kind, *given_ in changes:
            before = ledger.records()
            try:
                _try(ledger, kind, given_)
            except FirmwareError:
                assert ledger.records() == before  # refused as a whole
            rows = ledger.records()
            keys = [row["public_key"] for row in rows if row["public_key"]]
            assert len(keys) == len(set(keys))
            current = [row["serial"] for row in rows if row["status"] != "replaced"]
            assert len(current) == len(set(current))
            media = [row["medium"] for row in rows if row["medium"] and row["status"] != "replaced"]
            assert len(media) == len(set(media))
            for number, row in enumerate(rows):  # a key, once noted, stays that of its record
                assert known.setdefault(number, row["public_key"] or "") in ("", row["public_key"])
                known[number] = row["public_key"] or ""


def _try(ledger: Ledger, kind: str, given_: list) -> None:
    match kind:
        case "plan":
            ledger.plan({given_[0]: given_[1]}, NOW)
        case "record":
            name, key, medium, status = given_
            ledger.record(name, NOW, public_key=key, medium=medium, status=status)
        case "revoke":
            ledger.revoke(given_[0], "lost", NOW)
        case "rma":
            name, new, key, keep = given_
            ledger.rma(name, NOW, new_serial=new, key=key, keep_medium=keep)
        case "flash":
            ledger.note_flashed(given_[0], "ab" * 32, NOW, given_[1])
