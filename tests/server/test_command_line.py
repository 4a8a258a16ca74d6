"""The operators' commands, run as they are typed: results on stdout, each mistake in one line."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from protocol.charter import WithdrawalPolicy
from protocol.release_coding import adapter_sha256
from server.__main__ import main
from server.guard import judge
from server.store import JournalledUpdate, ReleaseRecord, RoundRecord, Store
from server.withdrawals import replacement
from tests.builders import PARAMETERS, PUBLISHER, private_key, tiny_package

KEY = private_key(1).public.raw.hex()


class Operator:
    """Types commands into a folder with a configuration."""

    def __init__(self, folder: Path, output: pytest.CaptureFixture[str]) -> None:
        self.folder, self.output = folder, output
        self.configure()

    def configure(self, more: str = "") -> None:
        text = f'federation = "pumps"\ndata_directory = "data"\n{more}'
        (self.folder / "server.toml").write_text(text, "utf-8")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = main(["--config", str(self.folder / "server.toml"), *arguments])
        out, errors = self.output.readouterr()
        return status, out, errors

    def table(self, *arguments: str) -> list[dict[str, object]]:
        status, out, errors = self(*arguments, "--json")
        assert (status, errors) == (0, "")
        rows: list[dict[str, object]] = json.loads(out)
        return rows

    def mistake(self, *arguments: str) -> str:
        status, out, errors = self(*arguments)
        assert (status, out) == (1, "")
        assert errors.count("\n") == 1
        assert errors.startswith("error: ")
        return errors.removeprefix("error: ").rstrip()

    def package(self, data: bytes | None = None) -> str:
        path = self.folder / "model.zip"
        path.write_bytes(tiny_package() if data is None else data)
        return str(path)


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, capsys)


def test_the_key_is_made_once(operator: Operator) -> None:
    status, first, _ = operator("key")
    assert status == 0
    assert len(bytes.fromhex(first.strip())) == 32
    assert operator("key")[1] == first


def test_a_push_becomes_a_release(operator: Operator) -> None:
    status, out, _ = operator("push", operator.package())
    assert status == 0
    assert "the package's own signature is not checked" in out
    assert "pushed tiny 1 as version 1" in out
    assert "6 adapter parameters" in out
    [release] = operator.table("releases")
    assert (release["number"], release["round"], release["package_version"]) == (0, None, 1)
    operator("push", operator.package(tiny_package(filler=9)))
    assert [row["package_version"] for row in operator.table("releases")] == [2, 1]


def test_a_push_of_a_known_publisher_is_checked(operator: Operator) -> None:
    status, out, _ = operator("push", operator.package(), "--publisher", PUBLISHER.public.raw.hex())
    assert status == 0
    assert "note:" not in out
    assert "signature does not match" in operator.mistake("push", operator.package(), "--publisher", KEY)


def test_any_configured_publisher_may_push(operator: Operator) -> None:
    operator.configure(f'publishers = ["{KEY}", "{PUBLISHER.public.raw.hex()}"]\n')
    assert operator("push", operator.package())[0] == 0
    operator.configure(f'publishers = ["{KEY}"]\n')
    assert "signature does not match" in operator.mistake("push", operator.package())


def test_a_broken_package_is_not_pushed(operator: Operator) -> None:
    operator.configure(f'publishers = ["{PUBLISHER.public.raw.hex()}"]\n')
    assert "not a readable archive" in operator.mistake("push", operator.package(b"not a zip"))
    assert "missing.zip" in operator.mistake("push", str(operator.folder / "missing.zip"))
    assert operator.table("releases") == []


def test_devices_come_and_go(operator: Operator) -> None:
    assert operator("devices", "add", "pump-1", KEY) == (0, "registered pump-1\n", "")
    assert operator("devices", "add", "pump-1", KEY)[0] == 0
    [device] = operator.table("devices")
    assert (device["id"], device["public_key"], device["online"], device["last_seen"]) == (
        "pump-1",
        KEY,
        False,
        None,
    )
    assert "pump-1" in operator("devices", "list")[1]
    assert operator("devices", "remove", "pump-1") == (0, "removed pump-1\n", "")
    assert operator.table("devices") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "a/b", KEY), "expected 1 to 64 characters"),
        (("add", "pump-1", "00"), "expected an Ed25519 public key of 32 bytes, got 1"),
        (("add", "pump-1", "x" * 64), "expected 64 hexadecimal digits"),
        (("remove", "pump-9"), "no device 'pump-9' is registered"),
    ],
)
def test_a_wrong_devices_command_says_what_was_expected(
    operator: Operator, arguments: tuple[str, ...], message: str
) -> None:
    assert message in operator.mistake("devices", *arguments)


@pytest.mark.parametrize("arguments", [("add", "pump-1"), ("add",), ("remove",), ("dance",)])
def test_a_devices_command_without_what_it_needs_shows_its_usage(
    operator: Operator, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        operator("devices", *arguments)
    assert "usage: graftwork-server devices" in capsys.readouterr().err


def test_a_taken_name_is_refused(operator: Operator) -> None:
    operator("devices", "add", "pump-1", KEY)
    other = private_key(2).public.raw.hex()
    assert "registered with another key" in operator.mistake("devices", "add", "pump-1", other)


def test_rounds_releases_and_refusals_are_listed(operator: Operator) -> None:
    operator("push", operator.package())
    store = Store(operator.folder / "data")
    store.open_round(RoundRecord(1, 1, 0, ("a", "b"), 5.0, 100.0))
    update = JournalledUpdate("a", b"e", private_key(1).public, 1)
    store.journal_update(update, b"s" * 32, counted_in=1, now=6.0)
    store.close_round(
        1,
        ReleaseRecord(
            1, 1, 1, b"p" * 32, b"h" * 32, np.zeros(PARAMETERS, np.float32), 7.0, 1, 9, {"loss": 0.25}
        ),
        7.0,
    )
    store.open_round(RoundRecord(2, 1, 1, ("a",), 8.0, 100.0))
    store.add_refusal("a", "too large", 9.0)
    store.close()
    rounds = operator.table("rounds")
    assert [(row["number"], row["cohort"], row["counted"], row["outcome"]) for row in rounds] == [
        (2, 1, 0, "open"),
        (1, 2, 1, "released"),
    ]
    [newest, _] = operator.table("releases")
    assert (newest["round"], newest["updates"], newest["metrics"]) == (1, 1, {"loss": 0.25})
    assert newest["sha256"] == "68" * 32
    [refusal] = operator.table("refusals")
    assert (refusal["device"], refusal["reason"]) == ("a", "too large")
    for command in ("rounds", "releases", "refusals", "devices"):
        status, out, _ = operator(command)
        assert (status, "number" in out or "reason" in out or "id" in out) == (0, True)


def test_withdrawn_releases_are_named_with_the_reason(operator: Operator) -> None:
    operator("push", operator.package())
    assert operator.table("withdrawals") == []
    assert "withdrawn" not in operator("releases")[1]
    store = Store(operator.folder / "data")
    adapters = [np.full(PARAMETERS, level, np.float32) for level in (1, 2)]
    for number, adapter in enumerate(adapters, 1):
        store.open_round(RoundRecord(number, 1, number - 1, ("a",), 5.0, 100.0))
        release = ReleaseRecord(
            number,
            1,
            number,
            b"p" * 32,
            adapter_sha256(adapter),
            adapter,
            7.0,
            updates=1,
            weight=9,
            metrics={},
        )
        store.close_round(number, release, 7.0)
    reports = {
        f"d{index}": {"release_gain": -0.5, "holdout_windows": 8, "compared_with": 1} for index in range(8)
    }
    evidence = judge(reports, 2, WithdrawalPolicy())
    good, bad = store.release(1), store.release(2)
    assert good is not None
    assert bad is not None
    assert store.withdraw(evidence.reason, asdict(evidence), replacement(bad, good, 8.0))
    assert not store.withdraw("again", {}, replacement(bad, good, 9.0))  # it is not the newest any more
    store.close()
    found = operator.table("releases")
    assert [(row["number"], row["withdraws"]) for row in found] == [(3, 2), (2, None), (1, None), (0, None)]
    assert [row["withdrawn_by"] for row in found] == [None, 3, None, None]
    assert [row["reason"] for row in found] == [None, evidence.reason, None, None]
    assert found[0]["sha256"] == found[2]["sha256"] != found[1]["sha256"]
    assert f"release 2 was withdrawn: {evidence.reason}\n" in operator("releases")[1]
    [row] = operator.table("withdrawals")
    assert (row["release"], row["replacement"], row["reason"]) == (2, 3, evidence.reason)
    assert row["evidence"]["gains"] == dict.fromkeys(reports, -0.5)
    assert "worse for 8 of 8" in " ".join(operator("withdrawals")[1].split())


def test_a_missing_configuration_says_how_to_name_another(operator: Operator) -> None:
    (operator.folder / "server.toml").unlink()
    assert "name another file with --config" in operator.mistake("key")


def test_a_configuration_mistake_is_one_line(operator: Operator) -> None:
    operator.configure("colour = 1\n")
    assert "colour: unknown key" in operator.mistake("rounds")


def test_an_unknown_command_is_explained(operator: Operator) -> None:
    with pytest.raises(SystemExit) as caught:
        operator("fly")
    assert caught.value.code == 2
