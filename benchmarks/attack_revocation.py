"""A device is revoked: how long until its session ends, and whether anything that it says later counts.

The time runs from the operator's `graftwork-server devices revoke` to the end of the connection, as the
device's own client sees it.
"""

import time

from benchmarks.attack_book import Attacks, Finding, Trace
from benchmarks.attack_client import AttackError
from benchmarks.attack_stage import MACHINES, Stage
from protocol.messages import Update, sign_message, verify_message
from server import incidents

REVOCATION: Attacks[Stage] = Attacks("revocation")
DEVICE = "revoked"
MORE_DEVICES = ("revoked-too", "revoked-as-well")


def revocation_seconds(stage: Stage, name: str) -> float:
    """Revoke a device that is connected; seconds until its connection is closed.

    Raises:
        AttackError: the command fails.
    """
    with stage.connected(name, clean_start=False) as live:
        live.listen(stage.topics.down(name, "receipt"))
        started = time.monotonic()
        command = stage.command("devices", "revoke", name)
        live.wait_for_the_end()
        seconds = time.monotonic() - started
    output, _ = command.communicate(timeout=60)
    if command.returncode:
        raise AttackError(f"devices revoke failed: {output}")
    return seconds


@REVOCATION.add("stay connected after revocation", "live sessions, revoked by the operator's command")
def _live(stage: Stage) -> Finding:
    for name in (DEVICE, *MORE_DEVICES):
        if stage.enrol(name):
            raise AttackError("a device with a good token does not get in")
        with stage.connected(name) as client:
            client.publish(stage.topics.up(name, "state"), stage.state(name))
        stage.revocation_seconds.append(revocation_seconds(stage, name))
    row = stage.row(DEVICE)
    reason = f"{row['status']} {row['status_reason']}, session ended" if row["session_ended_at"] else ""
    seconds = ", ".join(f"{value:.2f}" for value in stage.revocation_seconds)
    # One that was not closed would have raised.
    return Finding(False, stage.honest_word(), Trace("server", DEVICE, reason), f"closed after {seconds} s")


@REVOCATION.add("connect with a revoked certificate", "again and again, also with its old session")
def _again(stage: Stage) -> Finding:
    mark, got = stage.logs.mark(), []
    for clean in (True, False):
        with stage.client(stage.identity(DEVICE), DEVICE) as client:
            got.append(client.connect(clean_start=clean).connected)
    return Finding(any(got), stage.honest_word(), stage.logs.broker(mark, incidents.CERTIFICATE_REFUSED))


@REVOCATION.add("speak after revocation", "update and state by its own key, sealed, with the broker's help")
def _later_updates(stage: Stage) -> Finding:
    mark, topic = stage.logs.mark(), stage.topics.up(DEVICE, "update")
    other = MACHINES[1]
    found = verify_message(
        Update, stage.updates(2)[other], stage.key(other).public, stage.topics.up(other, "update")
    )
    envelope = sign_message(found, stage.key(DEVICE), topic)
    stage.hand.publish(topic, stage.keys.sealing[0].public.seal(envelope, topic, found.round))
    stage.hand.publish(stage.topics.up(DEVICE, "state"), stage.state(DEVICE))
    session, control = stage.row(DEVICE)["session"], stage.honest_word()
    heard = DEVICE in stage.updates(found.round) or stage.row(DEVICE)["session"] != session
    trace = stage.logs.server(mark, DEVICE, "revoked")
    return Finding(heard or not trace.where, control, trace)


@REVOCATION.add("enrol again with a revoked key", "a new token, the same key")
def _enrol_again(stage: Stage) -> Finding:
    mark, answer = stage.logs.mark(), stage.enrol(DEVICE)
    trace = stage.logs.server_log(mark, DEVICE, "revoked")
    status = stage.row(DEVICE)["status"]
    return Finding(not answer or status != "revoked", stage.honest_word(), trace, answer)
