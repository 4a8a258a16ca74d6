"""The attack table against a secured federation, a fleet that enrols through kills, and secrets in logs."""

import base64
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks import enrolment
from benchmarks.attack_book import NOTHING, Attacks, Finding, Result, Trace, summary
from benchmarks.attack_packages import positions, regions
from benchmarks.trust import NAMES, Played, cost, play
from tests.system.plant import PACKAGE, needs_mosquitto

pytestmark = [pytest.mark.system]
DEVICES = 24
UNNOTICED = {
    "leave a last will on another device's topic",  # mosquitto writes no line of a will that it drops
    "replay an update in its round",  # looks like a message that MQTT delivers once more
    "offer an update of round 1 in round 2",
    "replay updates after a restart of the server",
    "count a device twice in a round",  # the receipt says so, to the device
}
"""What leaves no entry in any log of today; nothing else may join them."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("trust"))


@needs_mosquitto
@pytest.mark.parametrize("name", NAMES)
def test_an_attack_fails_while_an_honest_control_works(played: Played, name: str) -> None:
    [result] = [result for result in played.results if result.name == name]
    assert not result.finding.succeeded, f"{result.tried}: {result.finding.detail}"
    assert result.finding.control


@needs_mosquitto
def test_whatever_can_be_seen_of_an_attack_is_in_a_log_with_its_reason(played: Played) -> None:
    unseen = {r.name for r in played.results if not r.passive and not r.finding.trace.where}
    assert unseen <= UNNOTICED
    assert all(result.finding.trace.reason for result in played.results if result.finding.trace.where)


@needs_mosquitto
def test_a_device_is_named_in_the_log_wherever_it_proved_its_name(played: Played) -> None:
    unnamed = {r.name for r in played.results if r.finding.trace.where and not r.logged}
    # mosquitto writes nothing of a certificate that it refuses, not even whose it says it is.
    assert {name for name in unnamed if not name.startswith("connect with ")} == set()


@needs_mosquitto
def test_a_revoked_device_is_cut_off_by_its_own_connections_word(played: Played) -> None:
    assert played.revocation_seconds > 0


@needs_mosquitto
@pytest.mark.timeout(240)
def test_every_device_enrols_once_whatever_is_killed_on_the_way(tmp_path: Path) -> None:
    with enrolment.Site(tmp_path) as site:
        for number, victim in enumerate(enrolment.VICTIMS):
            kill = enrolment.make_kill(3, number, DEVICES)
            assert kill.victim == victim
            names = [f"device-{number}-{index:02d}" for index in range(DEVICES)]
            outcome = enrolment.run(site, names, kill)
            assert outcome.problems == ()
            assert outcome.enrolled == DEVICES
        assert site.registered() == DEVICES * len(enrolment.VICTIMS)
        keys = {bytes(row["public_key"]) for row in site.store.devices()}
        assert len(keys) == site.registered()


def test_a_kill_can_be_repeated_and_comes_before_the_end() -> None:
    kills = [enrolment.make_kill(1, number, 1000) for number in range(30)]
    assert kills == [enrolment.make_kill(1, number, 1000) for number in range(30)]
    assert {kill.victim for kill in kills} == set(enrolment.VICTIMS)
    assert all(1 <= kill.after < 900 for kill in kills)


def test_bits_are_changed_in_every_region_of_a_package() -> None:
    package = PACKAGE.read_bytes()
    chosen, found = positions(package), regions(package)
    assert len(chosen) >= 200
    for name, region in found.items():
        assert set(chosen) & set(region), name
    parts = [region for name, region in found.items() if name != "signature"]
    assert sum(map(len, parts)) == len(package)  # nothing lies between them


def test_an_attack_counts_as_logged_only_with_reason_and_name() -> None:
    attacks: Attacks[None] = Attacks("group")
    traces = {
        "named": Trace("server", "pump-1", "why"),
        "unnamed": Trace("broker", "", "why"),
        "nameless": Trace("broker", "", "why"),
        "unseen": NOTHING,
        "passive": NOTHING,
    }
    for name, trace in traces.items():
        finding = Finding(name == "unseen", "control", trace)
        attacks.add(name, "tried", passive=name == "passive", nameless=name == "nameless")(
            lambda _, finding=finding: finding  # type: ignore[misc]
        )
    results: list[Result] = []
    attacks.play(None, results.append)
    assert [result.name for result in results if result.logged] == ["named", "nameless"]
    assert summary(results) == {
        "attacks": 5,
        "succeeded": 1,
        "logged": 0.5,
        "logged_reason_only": 0.25,
        "passive": 1,
    }


def test_signature_and_seal_add_bytes_that_do_not_depend_on_the_update() -> None:
    milliseconds, added = cost()
    assert milliseconds > 0
    assert 64 + 16 + 32 < added < 200  # a signature, a tag, an encapsulated key, and headers


SECRET_FILES = re.compile(r".*\.key|token|identity\.pem|enrolment\.conf(\.running)?")


def secrets_of(run: Path) -> dict[str, list[bytes]]:
    """By file, the forms in which its secret could stand somewhere else."""
    found = {}
    for path in sorted(run.rglob("*")):
        if not path.is_file() or not SECRET_FILES.fullmatch(path.name):
            continue
        text = path.read_text("ascii").strip()
        if "PRIVATE KEY" in text:
            pem = text[: text.index("-----END PRIVATE KEY")] + "-----END PRIVATE KEY-----\n"
            key = load_pem_private_key(pem.encode(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            raw = key.private_numbers().private_value.to_bytes(32, "big")
            forms = [raw, *(line.encode() for line in pem.splitlines()[1:2])]
        elif path.name.startswith("enrolment"):
            [bridge] = re.findall(r"^local_clientid (\S+)$", text, re.MULTILINE)
            raw, forms = bytes.fromhex(bridge), []
        else:
            raw = bytes.fromhex(text)
            forms = [raw]
        forms += [raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw).rstrip(b"=")]
        found[str(path.relative_to(run))] = forms
    return found


def leaks(secrets: dict[str, list[bytes]], texts: dict[Path, bytes]) -> list[str]:
    """Which secret stands where."""
    return [
        f"{name} stands in {path}"
        for name, forms in secrets.items()
        for path, text in texts.items()
        if any(form in text for form in forms)
    ]


@needs_mosquitto
@pytest.mark.timeout(240)
def test_no_secret_is_written_anywhere_but_into_its_own_file(tmp_path: Path, fleet: Path) -> None:
    command = [sys.executable, "-m", "simulation", "run", "--data", str(fleet), "--package", str(PACKAGE)]
    options = ["--secure", "--verbose", "--rounds", "1", "--epochs", "2", "--labels-per-class", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [*command, *options, "--directory", str(tmp_path / "run")],
        capture_output=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    run = tmp_path / "run"
    (run / "printed").write_bytes(result.stdout + result.stderr)
    secrets = secrets_of(run)
    assert len(secrets) >= 3 * 3 + 3 + 2 + 3 + 3  # devices, root, server, CAs, services
    texts = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and not SECRET_FILES.fullmatch(path.name)
    }
    logs = [text for path, text in texts.items() if path.suffix == ".log"]
    assert len(logs) == 2 + 1 + 3  # brokers, server, devices
    assert (run / "report.json") in texts
    # mosquitto writes the ids of its clients into its own log, the bridge's, too: it is secret like its
    # configuration.
    own = run / "broker" / "enrolment.log"
    assert not stat.S_IMODE(own.stat().st_mode) & 0o077
    of_bridge = {name: forms for name, forms in secrets.items() if "enrolment.conf" in name}
    others = {name: forms for name, forms in secrets.items() if name not in of_bridge}
    assert leaks(others, texts) == []
    assert leaks(of_bridge, {path: text for path, text in texts.items() if path != own}) == []
    token = (run / "devices" / "pump-1" / "token").read_bytes()
    assert leaks(secrets, {Path("planted.log"): b"uses " + token}) != []
    for name in secrets:
        assert not stat.S_IMODE((run / name).stat().st_mode) & 0o077, f"{name} is not the owner's alone"
