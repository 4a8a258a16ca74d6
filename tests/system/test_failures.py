"""Whatever dies or lies in the middle of a round: the release is the one of an undisturbed run."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.messages import Update, sign_message, verify_message
from tests.system.conftest import Reference
from tests.system.plant import TOPICS, Attacker, Plant, key_of, memory, needs_mosquitto, until

pytestmark = [pytest.mark.system, needs_mosquitto]
LIMIT = 64 * 1024


def envelope_of(plant: Plant, name: str) -> bytes:
    return next(envelope for device, envelope, *_ in plant.store.journalled_updates(1) if device == name)


def test_a_device_is_killed_in_mid_round_and_comes_back(
    tmp_path: Path, fleet: Path, reference: Reference
) -> None:
    with Plant(tmp_path, fleet).running(held=True) as plant:
        victim = plant.agent(plant.names[0])
        plant.kill(victim)
        victim.start()
        assert plant.finish() == reference.release
        assert plant.updates(1) == reference.updates[1]
        assert plant.updates(2) == reference.updates[2]


def test_a_device_is_killed_in_mid_round_and_never_comes_back(
    tmp_path: Path, fleet: Path, reference: Reference
) -> None:
    with Plant(tmp_path, fleet, rounds=1, deadline_seconds=8.0).running(held=True) as plant:
        victim = plant.names[0]
        plant.kill(plant.agent(victim))
        until(lambda: plant.store.rounds()[0]["outcome"], "the round closes at its deadline")
        [row] = plant.store.rounds()
        assert (row["outcome"], row["counted"]) == ("released", 2)
        assert set(row["cohort"]) == set(plant.names)
        expected = dict(reference.updates[1])
        del expected[victim]
        assert plant.updates(1) == expected


def test_the_broker_is_killed_in_mid_round(tmp_path: Path, fleet: Path, reference: Reference) -> None:
    with Plant(tmp_path, fleet).running(held=True) as plant:
        plant.broker.kill()
        plant.broker.start()
        plant.signal(plant.names[0], signal.SIGCONT)
        assert plant.finish() == reference.release
        assert plant.updates(2) == reference.updates[2]


def test_the_broker_is_killed_and_loses_its_memory(tmp_path: Path, fleet: Path, reference: Reference) -> None:
    with Plant(tmp_path, fleet).running(held=True) as plant:
        plant.broker.kill()
        for path in (tmp_path / "broker").glob("*.db*"):
            path.unlink()
        plant.broker.start()
        plant.signal(plant.names[0], signal.SIGCONT)
        assert plant.finish() == reference.release


def test_the_server_is_killed_in_mid_round(tmp_path: Path, fleet: Path, reference: Reference) -> None:
    with Plant(tmp_path, fleet).running(held=True) as plant:
        plant.kill(plant.programs.server)
        plant.signal(plant.names[0], signal.SIGCONT)  # answers while there is no server
        plant.programs.server.start()
        assert plant.finish() == reference.release
        assert plant.updates(1) == reference.updates[1]
        assert plant.updates(2) == reference.updates[2]


def test_updates_that_are_garbage_or_too_large(tmp_path: Path, fleet: Path, reference: Reference) -> None:
    with (
        Plant(tmp_path, fleet, maximum_update_bytes=LIMIT).running(held=True) as plant,
        Attacker(plant.broker.port) as attacker,
    ):
        victim = plant.names[0]
        other = plant.names[1]
        topic, elsewhere = TOPICS.up(victim, "update"), TOPICS.up(other, "update")
        real = envelope_of(plant, other)
        honest = verify_message(Update, real, key_of(other).public, elsewhere)
        signed = key_of(victim)
        sealed = plant.sealing.public.seal(real, topic, 1)
        attacks = [
            bytes(range(256)) * 4,  # noise
            sealed[: len(sealed) // 2],  # a truncated message
            real,  # not sealed
            sealed,  # another device's update
            plant.sealing.public.seal(real[: len(real) // 2], topic, 1),  # a truncated envelope
        ]
        attacks += [
            plant.sealing.public.seal(envelope, topic, 1)
            for envelope in (
                sign_message(replace(honest, body=honest.body[: len(honest.body) // 2]), signed, topic),
                sign_message(replace(honest, body=bytes(len(honest.body))), signed, topic),
                sign_message(replace(honest, weight=1 << 16), signed, topic),
                sign_message(replace(honest, round=2), signed, topic),
                sign_message(replace(honest, base=bytes(8)), signed, topic),
            )
        ]
        for count, payload in enumerate(attacks, 1):
            attacker.publish(topic, payload)
            until(lambda count=count: len(plant.refusals()) >= count, f"attack {count} is refused")
        before = memory(plant.programs.server.pid, "VmHWM")
        size, times = 2 * LIMIT, 100
        for _ in range(times):
            attacker.publish(topic, bytes(size))
        until(lambda: len(plant.refusals()) >= len(attacks) + times, "all that is too large is refused")
        # Fewer bytes than were sent: what is too large is let go at once.
        assert memory(plant.programs.server.pid, "VmHWM") - before < size * times / 2
        assert sum(f"got {size}" in reason for reason in plant.refusals()) == times
        assert set(plant.updates(1)) == set(plant.names) - {victim}
        plant.signal(victim, signal.SIGCONT)
        assert plant.finish() == reference.release
        assert plant.updates(1) == reference.updates[1]
