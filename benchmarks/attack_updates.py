"""Attacks on updates, by who owns the broker and by a device: forged, replayed, cut, moved, read.

Played in two rounds of a real server that three real agents take part in. Everything that the broker's owner
can do is done through the back door of the stage. `Finding.succeeded`: other updates are counted than the
devices made, one is counted twice, or somebody else reads one.
"""

import struct
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.attack_book import Attacks, Finding
from benchmarks.attack_client import AttackError
from benchmarks.attack_stage import MACHINES, Stage
from protocol.errors import ProtocolError
from protocol.messages import Update, sign_message, verify_message
from protocol.sealing import SealingKey, unseal
from protocol.signing import PrivateKey
from server import incidents

UPDATES: Attacks[Stage] = Attacks("updates")
VICTIM, COUNTED, OTHER = MACHINES
HEADER_BYTES = 10
WINDOW_BYTES = 8
"""So many bytes of an update do not stand in its sealed form by chance."""


def _topic(stage: Stage, device: str) -> str:
    return stage.topics.up(device, "update")


def _envelope(stage: Stage, device: str, key: PrivateKey, **changes: object) -> bytes:
    """An update for `device` that the server would count if `key` were the device's."""
    of_other = stage.updates(1)[COUNTED]
    found = verify_message(Update, of_other, stage.key(COUNTED).public, _topic(stage, COUNTED))
    return sign_message(replace(found, **changes), key, _topic(stage, device))


def _seal(stage: Stage, device: str, envelope: bytes, number: int = 1) -> bytes:
    return stage.keys.sealing[0].public.seal(envelope, _topic(stage, device), number)


def _inject(stage: Stage, device: str, payloads: Iterable[bytes]) -> str:
    """Publish as the broker's owner, and wait until the server is through; the control."""
    for payload in payloads:
        stage.hand.publish(_topic(stage, device), payload)
    return stage.honest_word()


def _offered(stage: Stage, device: str, payloads: list[bytes], words: str = "") -> Finding:
    """Inject something for `device`, which must leave what is counted as it is."""
    before, mark = (stage.updates(1), stage.updates(2)), stage.logs.mark()
    control = _inject(stage, device, payloads)
    changed = (stage.updates(1), stage.updates(2)) != before
    return Finding(changed, control, stage.logs.server(mark, device, words), f"{len(payloads)} tried")


@UPDATES.add("forge an update as a device", "own key and certificate, the victim's topic")
def _forge_as_device(stage: Stage) -> Finding:
    stage.reach(1)
    mark, forged = stage.logs.mark(), _seal(stage, VICTIM, _envelope(stage, VICTIM, stage.key("mallory")))
    with stage.connected("mallory") as mallory:
        answer = mallory.publish(_topic(stage, VICTIM), forged)
    control = stage.honest_word()
    trace = stage.logs.broker(mark, incidents.DENIED, device="mallory")
    return Finding(answer == "Success" or VICTIM in stage.updates(1), control, trace)


@UPDATES.add("forge an update as the broker", "a key of its own, sealed, on the victim's topic")
def _forge_as_broker(stage: Stage) -> Finding:
    forged = [
        _seal(stage, VICTIM, _envelope(stage, VICTIM, key))
        for key in (stage.key("mallory"), PrivateKey.generate())
    ]
    # Signed for the attacker's own topic, by a registered device.
    forged.append(_seal(stage, VICTIM, _envelope(stage, "mallory", stage.key("mallory"))))
    return _offered(stage, VICTIM, forged)


@UPDATES.add("send an update that is not sealed", "signed by the victim's own key, in plain sight")
def _unsealed(stage: Stage) -> Finding:
    return _offered(stage, VICTIM, [_envelope(stage, VICTIM, stage.key(VICTIM))], "sealed")


@UPDATES.add("seal an update to another key", "signed by the victim's own key")
def _sealed_to_another(stage: Stage) -> Finding:
    envelope, other = _envelope(stage, VICTIM, stage.key(VICTIM)), SealingKey.generate().public
    sealed = other.seal(envelope, _topic(stage, VICTIM), 1)
    renamed = sealed[:1] + stage.keys.sealing[0].public.id + sealed[5:]
    return _offered(stage, VICTIM, [sealed, renamed])


@UPDATES.add("cut an update short", "prefixes of an update that would be counted as a whole")
def _truncated(stage: Stage) -> Finding:
    whole = _seal(stage, VICTIM, _envelope(stage, VICTIM, stage.key(VICTIM)))
    lengths = {*range(1, 70, 3), *range(70, len(whole), max(1, len(whole) // 40))}
    lengths |= {0, HEADER_BYTES, len(whole) - 17, len(whole) - 16, len(whole) - 1}
    prefixes = [whole[:length] for length in sorted(lengths)] + [whole + b"\0"]
    return _offered(stage, VICTIM, prefixes)


@UPDATES.add("change bits of an update on its way", "one in the header, key, ciphertext and tag")
def _flipped(stage: Stage) -> Finding:
    whole = _seal(stage, VICTIM, _envelope(stage, VICTIM, stage.key(VICTIM)))
    places = [*range(HEADER_BYTES + 32), *range(HEADER_BYTES + 32, len(whole), max(1, len(whole) // 40))]
    places += range(len(whole) - 16, len(whole), 3)
    changed = []
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        changed.append(bytes(data))
    return _offered(stage, VICTIM, changed)


@UPDATES.add("swap two devices' updates", "each on the other's topic, and both on a third one's")
def _swapped(stage: Stage) -> Finding:
    first, second = stage.sealed(COUNTED, 1), stage.sealed(OTHER, 1)
    before, mark = stage.updates(1), stage.logs.mark()
    for device, payload in ((COUNTED, second), (OTHER, first), (VICTIM, first), (VICTIM, second)):
        stage.hand.publish(_topic(stage, device), payload)
    control = stage.honest_word()
    return Finding(stage.updates(1) != before, control, stage.logs.server(mark, COUNTED))


@UPDATES.add("replay an update in its round", "the same bytes three times")
def _replayed(stage: Stage) -> Finding:
    mark, finding = stage.logs.mark(), _offered(stage, COUNTED, [stage.sealed(COUNTED, 1)] * 3)
    return replace(finding, trace=stage.logs.server_log(mark, COUNTED, "duplicate"))


@UPDATES.add("count a device twice in a round", "a device's own key, another update of the same round")
def _second_update(stage: Stage) -> Finding:
    second = _envelope(stage, COUNTED, stage.key(COUNTED), weight=1)
    mark, finding = stage.logs.mark(), _offered(stage, COUNTED, [_seal(stage, COUNTED, second)])
    return replace(finding, trace=stage.logs.server_log(mark, COUNTED, "another update of this round"))


@UPDATES.add(
    "read an update at the broker", "all bytes that pass through, without the server's key", passive=True
)
def _read(stage: Stage) -> Finding:
    seen = 0
    for device in (COUNTED, OTHER):
        envelope, topic = stage.updates(1)[device], _topic(stage, device)
        update = verify_message(Update, envelope, stage.key(device).public, topic)
        secret = {part for text in (envelope, update.steps, update.body) for part in _windows(text)}
        for sealed in stage.hand.payloads(topic):
            seen += len(secret & set(_windows(sealed)))
            seen += _opens(sealed, SealingKey.generate(), topic)
    if not _opens(stage.sealed(COUNTED, 1), stage.keys.sealing[0], _topic(stage, COUNTED)):
        raise AttackError("the server's own key does not open an update")
    return Finding(bool(seen), "the server's key opens them", detail=f"{seen} pieces seen")


@UPDATES.add("offer an update of round 1 in round 2", "as it is")
def _later_round(stage: Stage) -> Finding:
    stage.reach(2)
    before, mark = (stage.updates(1), stage.updates(2)), stage.logs.mark()
    control = ""
    for device in MACHINES:
        control = _inject(stage, device, [stage.sealed(device, 1)])
    changed = (stage.updates(1), stage.updates(2)) != before
    return Finding(changed, control, stage.logs.server_log(mark, VICTIM, "duplicate"))


@UPDATES.add("call an update of round 1 one of round 2", "the round in its header changed")
def _renumbered(stage: Stage) -> Finding:
    sealed = stage.sealed(VICTIM, 1)
    return _offered(stage, VICTIM, [sealed[:5] + struct.pack(">BI", 0, 2) + sealed[HEADER_BYTES:]], "open")


@UPDATES.add("seal an update of round 1 for round 2", "what the device signed for round 1, if it leaked")
def _resealed(stage: Stage) -> Finding:
    return _offered(stage, VICTIM, [_seal(stage, VICTIM, stage.updates(1)[VICTIM], 2)], "number")


@UPDATES.add("replay updates after a restart of the server", "kill -9, then updates of both rounds")
def _after_restart(stage: Stage) -> Finding:
    before = (stage.updates(1), stage.updates(2))
    stage.restart(stage.programs.server)
    mark = stage.logs.mark()
    for device, number in ((COUNTED, 1), (COUNTED, 2), (VICTIM, 1)):
        stage.hand.publish(_topic(stage, device), stage.sealed(device, number))
    stage.honest_word()
    changed = (stage.updates(1), stage.updates(2)) != before
    trace = stage.logs.server_log(mark, COUNTED, "duplicate")
    stage.reach(3)
    for number in (1, 2):
        _check_journal(stage, number)
    return Finding(changed, "both releases count every device once, by its own signature", trace)


def _check_journal(stage: Stage, number: int) -> None:
    """Whether a round counted what the devices made, and nothing else.

    Raises:
        AttackError: it did not.
    """
    row = next(row for row in stage.store.releases() if row["number"] == number)
    counted = stage.updates(number)
    if row["updates"] != len(MACHINES) or set(counted) != set(MACHINES):
        raise AttackError(f"release {number} counts {row['updates']} updates, of {', '.join(counted)}")
    for device, envelope in counted.items():
        if verify_message(Update, envelope, stage.key(device).public, _topic(stage, device)).round != number:
            raise AttackError(f"{device} made no update of round {number}")
        sent = stage.hand.payloads(_topic(stage, device))
        if not any(_content(stage, device, sealed) == envelope for sealed in sent):
            raise AttackError(f"{device} did not send the update of round {number} that is counted")


def _content(stage: Stage, device: str, sealed: bytes) -> bytes:
    try:
        return unseal(sealed, stage.keys.sealing, _topic(stage, device), limit=1 << 24).plaintext
    except ProtocolError:
        return b""


def _opens(sealed: bytes, key: SealingKey, topic: str) -> bool:
    """Whether a key opens a message, also when its header says that it is for that key."""
    try:
        unseal(sealed[:1] + key.public.id + sealed[5:], [key], topic, limit=1 << 24)
    except ProtocolError:
        return False
    return True


def _windows(data: bytes) -> Iterable[bytes]:
    return (data[start : start + WINDOW_BYTES] for start in range(len(data) - WINDOW_BYTES + 1))
