"""Attacks on what a device believes: old, expired and forged words, roots, receipts and certificates.

Played on a device in this process (attack_trial.py), whose root names the server and the publisher.
`Finding.succeeded`: anything that the device holds, believes or owes has changed.
"""

from collections.abc import Callable
from dataclasses import replace

from agent.enrolment import Enrolment
from agent.identity import Identity
from benchmarks.attack_book import Attacks, Finding, Trace
from benchmarks.attack_client import AttackError
from benchmarks.attack_trial import Trial
from benchmarks.attack_voices import DAY, DEVICE, VALIDITY
from protocol.messages import Release, peek
from protocol.sealing import SealingKey
from protocol.signing import PrivateKey

WORDS: Attacks[Trial] = Attacks("what a device believes")
OTHER = "fan-1"


@WORDS.add("replay an old release", "after a newer one, and again after a restart of the device")
def _old_release(trial: Trial) -> Finding:
    old = trial.released(trial.release)
    trial.honest_release()
    found = trial.refuses([old], lambda: "")
    trial.restart()
    again = trial.refuses([old], trial.honest_release)
    return _both(found, again)


@WORDS.add("replay an old announcement", "of an older package, and again after a restart of the device")
def _old_announcement(trial: Trial) -> Finding:
    older = trial.announced(trial.announcement(trial.packed(description="older"), trial.version))
    trial.version += 1
    trial.hear(trial.announced(trial.announcement(trial.package, trial.version)))
    found = trial.refuses([older], lambda: "")
    trial.restart()
    again = trial.refuses([older], trial.honest_release)
    return _both(found, again)


@WORDS.add("replay an old charter", "of the same version of the package, before it was tightened")
def _old_charter(trial: Trial) -> Finding:
    old = trial.announcement(trial.package, trial.version)
    trial.clock.advance(60)
    tight = replace(old, training=replace(old.training, clipping_bound=1.0), issued=trial.clock())
    trial.hear(trial.announced(tight))
    if trial.store.policy().clipping_bound != 1.0:
        raise AttackError("the device does not follow a tighter charter")
    found = trial.refuses([trial.announced(old)], lambda: "")
    trial.restart()
    return _both(found, trial.refuses([trial.announced(old)], trial.honest_release))


@WORDS.add("replay an old word on the keys", "with the sealing key of before")
def _old_trust(trial: Trial) -> Finding:
    old = trial.trust(sealing_key=SealingKey.generate().public.raw)
    trial.honest_trust()
    found = trial.refuses([old], lambda: "")
    trial.restart()
    return _both(found, trial.refuses([old], trial.honest_trust))


@WORDS.add("replay expired words", "keys, package and release after their time, held back until then")
def _expired(trial: Trial) -> Finding:
    newer = trial.announcement(trial.packed(description="held back"), trial.version + 1)
    held_back = [
        trial.trust(sealing_key=SealingKey.generate().public.raw),
        trial.announced(newer),
        trial.released(trial.release + 1),
    ]
    trial.clock.advance(VALIDITY + 60)
    found = trial.refuses(held_back, trial.honest_trust)
    trial.version += 1  # not used: what was refused must not stand in the way
    return replace(found, control=f"{found.control}, {trial.honest_release()}")


@WORDS.add("replay an expired release to a clock that was set back", "device restarted a year back in time")
def _clock_set_back(trial: Trial) -> Finding:
    held_back = trial.released(trial.release + 1)
    trial.clock.advance(VALIDITY + DAY)
    trial.honest_trust()
    trial.hear(trial.announced(trial.announcement(trial.package, trial.version)))  # signed now
    trial.clock.advance(-VALIDITY - DAY)
    trial.restart()
    found = trial.refuses([held_back], lambda: "")
    trial.clock.advance(VALIDITY + DAY)
    return replace(found, control=trial.honest_release())


def _forged(what: str, make: Callable[[Trial, PrivateKey], list[tuple[str, bytes]]]) -> None:
    @WORDS.add(f"forge {what}", "another key than the root names")
    def play(trial: Trial) -> Finding:
        return trial.refuses(make(trial, PrivateKey.generate()), trial.honest_release)


_forged("a release to a device", lambda trial, key: [trial.released(trial.release + 5, key)])
_forged(
    "a charter to a device",
    lambda trial, key: [
        trial.announced(replace(found, training=replace(found.training, clipping_bound=15.0)), key)
        for found in [trial.announcement(trial.package, trial.version + step) for step in (0, 1)]
    ],
)
_forged("a round to a device", lambda trial, key: [trial.opened(trial.round + 5, key)])
_forged(
    "a word on the keys to a device",
    lambda trial, key: [
        trial.trust(key=key, sealing_key=SealingKey.generate().public.raw, issued=trial.clock() + 1)
    ],
)


@WORDS.add("move a signed message to another topic", "the server's own words, where they were not said")
def _moved(trial: Trial) -> Finding:
    moved = [
        (trial.topics.all("release"), trial.announced(trial.announcement(trial.package, 99))[1]),
        (trial.topics.all("announcement"), trial.released(99)[1]),
        (trial.topics.all("round"), trial.released(99)[1]),
        (trial.topics.all("trust"), trial.released(99)[1]),
    ]
    other = _of_another_federation(trial)
    return trial.refuses([*moved, other], trial.honest_release)


def _of_another_federation(trial: Trial) -> tuple[str, bytes]:
    """A release that the same server signed for another federation, on this one's topic."""
    topic = trial.topics.all("release").replace("/plant/", "/field/")
    _, envelope = trial.released(trial.release + 9)
    message = peek(Release, envelope)
    return trial.topics.all("release"), trial.said(topic, message)[1]


@WORDS.add("forge a receipt", "own key, the server's receipt to another device, a device's own key")
def _receipt(trial: Trial) -> Finding:
    update = trial.honest_round()
    topic = trial.topics.down(DEVICE, "receipt")
    forged = [
        trial.receipt(update, key=PrivateKey.generate()),
        trial.receipt(update, key=trial.identity.key()),
        (topic, trial.receipt(update, OTHER)[1]),
        trial.receipt(bytes(32)),  # of an update that nobody made: good, and clears nothing
    ]

    def control() -> str:
        trial.hear(trial.receipt(update))
        if trial.store.outbox():
            raise AttackError("the server's receipt does not clear the outbox")
        return "the server's receipt clears the outbox"

    return trial.refuses(forged, control)


@WORDS.add("use the server's former key", "after a new root names another, and it was stolen")
def _former_key(trial: Trial) -> Finding:
    former, trial.server = trial.server, PrivateKey.generate()
    trial.roots.append(trial.root(len(trial.roots) + 1))
    trial.honest_trust()
    trial.honest_release()
    forged = [
        trial.released(trial.release + 5, former),
        trial.announced(trial.announcement(trial.package, trial.version + 5), former),
        trial.trust(key=former, issued=trial.clock() + 5),
        trial.trust(roots=trial.roots[:1], key=former, issued=trial.clock() + 5),
    ]
    found = trial.refuses(forged, lambda: "")
    trial.restart()
    return _both(found, trial.refuses(forged, trial.honest_release))


@WORDS.add("install a root with too few signatures", "one of two, none, the same twice, by other holders")
def _root(trial: Trial) -> Finding:
    thief, version = PrivateKey.generate(), len(trial.roots) + 1
    others = [PrivateKey.generate() for _ in range(3)]
    one = trial.root(version, server=thief, signers=trial.holders[:1])
    drafts = [
        one,
        trial.root(version, server=thief, signers=[]),
        trial.root(version, server=thief, signers=trial.holders[:1] * 2),
        trial.root(version, server=thief, holders=others),
        trial.root(version + 1, server=thief),  # a version is left out
        trial.root(version, server=thief, federation="field"),
        trial.root(version, server=thief, days=-1),
        one.replace(b'"threshold": 2', b'"threshold": 1').replace(b'"threshold":2', b'"threshold":1'),
    ]
    words = [trial.trust(roots=[*trial.roots, root], key=thief, issued=trial.clock() + 1) for root in drafts]
    found = trial.refuses(words, lambda: "", f"{len(words)} tried")

    def control() -> str:
        trial.roots.append(trial.root(version))
        return trial.honest_trust()

    return replace(found, control=control())


@WORDS.add("give a device another certificate", "answers to its renewal by other keys, and for other keys")
def _certificate(trial: Trial) -> Finding:
    topic, good = trial.topics.down(DEVICE, "certificate"), trial.certificate(trial.identity, DEVICE)
    of_thief = trial.certificate(Identity(trial.state / "thief", DEVICE), DEVICE)
    messages = [
        trial.said(topic, good, PrivateKey.generate()),
        (topic, trial.said(trial.topics.down(OTHER, "certificate"), good)[1]),
        trial.said(topic, of_thief),
        trial.said(topic, replace(of_thief, request=good.request)),  # the server, mistaken
    ]

    def control() -> str:
        trial.hear(trial.said(topic, good))
        if trial.identity.validity() is None:
            raise AttackError("the server's answer gives the device no certificate")
        return "the server's answer gives it its certificate"

    return trial.refuses(messages, control)


@WORDS.add("forge the answer to a newcomer", "the attacker's certificate, its own key, another's answer")
def _newcomer(trial: Trial) -> Finding:
    identity = Identity(trial.state / "newcomer", "newcomer")
    program = Enrolment(
        "newcomer",
        trial.topics,
        lambda *_: True,
        trial.clock,
        identity=identity,
        keyring=trial.keyring,
        token="t" * 40,
    )
    program.tick()
    topic, answer = trial.topics.enroll(program.nonce, "response"), trial.certificate(identity, "newcomer")
    thief = Identity(trial.state / "thief", "newcomer")
    of_thief = trial.certificate(thief, "newcomer")
    trial.forget_log()
    for forged in (
        trial.said(topic, answer, PrivateKey.generate()),
        (topic, trial.said(trial.topics.enroll("another", "response"), answer)[1]),
        trial.said(topic, of_thief),
        trial.said(topic, replace(of_thief, request=answer.request)),  # the server, mistaken
    ):
        program.handle(*forged)
    got, trace = program.finished or identity.validity() is not None, trial.trace()
    program.handle(*trial.said(topic, answer))
    if not program.finished:
        raise AttackError("the server's answer gives the newcomer no certificate")
    return Finding(got, "the server's answer gives it its certificate", replace(trace, device="newcomer"))


def _both(first: Finding, second: Finding) -> Finding:
    """Before and after a restart."""
    trace = first.trace if second.trace.where else Trace()
    return replace(second, succeeded=first.succeeded or second.succeeded, trace=trace)
