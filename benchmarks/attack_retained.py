"""Attacks on what devices hear, by who owns the broker, on real agents: old and forged retained messages.

Played after the last round of the stage. Old messages are those that the server signed itself and that passed
through the broker. `Finding.succeeded`: a device goes back, or believes what the server did not say.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.config import STORE_FILE
from benchmarks.attack_book import Attacks, Finding
from benchmarks.attack_client import AttackError
from benchmarks.attack_stage import MACHINES, Stage
from protocol.identity import Trust
from protocol.messages import Announcement, Release, Round, peek, sign_message
from protocol.sealing import SealingKey
from server import incidents

RETAINED: Attacks[Stage] = Attacks("retained messages")
WITNESS = MACHINES[1]
TIGHTENED_EPOCHS = 1


def _held(stage: Stage) -> dict[str, Any]:
    """What a device holds: release, version of the package, outbox, policy and keys."""
    path = stage.home(WITNESS) / STORE_FILE
    names = ("release", "base", "version", "package", "policy", "sending", "schedule")
    with contextlib.closing(sqlite3.connect(path)) as database:
        facts = dict(database.execute("SELECT name, value FROM facts").fetchall())
        outbox = database.execute("SELECT sha256 FROM outbox ORDER BY sha256").fetchall()
    return {**{name: facts.get(name) for name in names}, "outbox": outbox}


def _said(stage: Stage, kind: str) -> list[bytes]:
    """What the server said to all, oldest first."""
    return stage.hand.payloads(stage.topics.all(kind))


def _served(stage: Stage, kind: str, old: bytes, words: str, newest: bytes) -> Finding:
    """Swap a retained message for another, also before the device starts anew; then put it right."""
    before, mark, topic = _held(stage), stage.logs.mark(), stage.topics.all(kind)
    stage.hand.publish(topic, old, retain=True)
    trace = stage.logs.device(mark, WITNESS, words)
    mark = stage.logs.mark()
    session = stage.row(WITNESS)["session"]
    stage.restart(stage.programs.agents[WITNESS])
    stage.until(lambda: stage.row(WITNESS)["session"] > session, f"{WITNESS} is back")
    again = stage.logs.device(mark, WITNESS, words)
    after = _held(stage)
    stage.hand.publish(topic, newest, retain=True)
    detail = "refused before and after a restart" if trace.where and again.where else ""
    return Finding(before != after, f"{WITNESS} came back and was heard", trace, detail)


@RETAINED.add("serve an old release", "release 0, signed by the server, retained by the broker")
def _old_release(stage: Stage) -> Finding:
    stage.reach(3)
    said = _said(stage, "release")
    if peek(Release, said[-1]).number <= peek(Release, said[0]).number:
        raise AttackError("there is no older release")
    return _served(stage, "release", said[0], "older", said[-1])


@RETAINED.add("serve an old word on the keys", "of before the server's restart, retained by the broker")
def _old_trust(stage: Stage) -> Finding:
    old = _said(stage, "trust")[0]
    stage.restart(stage.programs.server)
    issued = peek(Trust, old).issued
    stage.until(lambda: peek(Trust, _said(stage, "trust")[-1]).issued > issued, "a newer word on the keys")
    said = [old, _said(stage, "trust")[-1]]
    return _served(stage, "trust", said[0], "older", said[-1])


@RETAINED.add("serve an old charter", "of before the operator tightened it, same version of the package")
def _old_charter(stage: Stage) -> Finding:
    known, before = _said(stage, "announcement"), _held(stage)
    stage.set_epochs(TIGHTENED_EPOCHS)
    stage.restart(stage.programs.server)
    stage.until(lambda: _held(stage)["policy"] != before["policy"], "the device follows the new charter")
    return _served(stage, "announcement", known[-1], "announced again", _said(stage, "announcement")[-1])


def _forgery(kind: str, what: str, change: Callable[[Stage, bytes], Any]) -> None:
    @RETAINED.add(f"forge {what}", "a key of its own, retained, and with mallory's certificate")
    def play(stage: Stage) -> Finding:
        newest, topic = _said(stage, kind)[-1], stage.topics.all(kind)
        forged = sign_message(change(stage, newest), stage.key("mallory"), topic)
        before, mark = _held(stage), stage.logs.mark()
        with stage.connected("mallory") as mallory:
            answer = mallory.publish(topic, forged, retain=True)
        if answer == "Success" or not stage.logs.broker(mark, incidents.DENIED, device="mallory").where:
            return Finding(True, "", detail="a device may publish it")
        stage.hand.publish(topic, forged, retain=True)
        trace = stage.logs.device(mark, WITNESS, kind)
        after = _held(stage)
        stage.hand.publish(topic, newest, retain=True)
        return Finding(before != after, stage.honest_word(), trace)


def _charter(_stage: Stage, data: bytes) -> Announcement:
    found = peek(Announcement, data)
    return replace(
        found, version=found.version + 1, training=replace(found.training, clipping_bound=15.0, epochs=1)
    )


def _release(_stage: Stage, data: bytes) -> Release:
    found = peek(Release, data)
    return replace(found, number=found.number + 1, adapter_sha256=bytes(32))


def _round(_stage: Stage, data: bytes) -> Round:
    found = peek(Round, data)
    return replace(found, number=found.number + 100)


def _trust(_stage: Stage, data: bytes) -> Trust:
    found = peek(Trust, data)
    return replace(found, sealing_key=SealingKey.generate().public.raw, issued=found.issued + 1)


_forgery("announcement", "an announcement with another charter", _charter)
_forgery("release", "a release", _release)
_forgery("round", "a round", _round)
_forgery("trust", "a word on the keys, with the attacker's sealing key", _trust)
