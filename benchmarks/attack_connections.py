"""Attacks on connections, client ids and topics of the broker, with a certificate or without.

`Finding.succeeded`: the attacker got in, was heard in another's name, or heard what was meant for another.
"""

import ssl
import warnings
from collections.abc import Callable

from benchmarks.attack_book import NOTHING, Attacks, Finding, Trace
from benchmarks.attack_client import AttackError, Client, Identity
from benchmarks.attack_parties import clock
from benchmarks.attack_stage import Stage
from runtime.broker import BrokerConfig
from runtime.link import Disconnected, Link
from server import broker_config, certificates, incidents
from server.authority import server_name
from server.broker import BrokerSupervisor, free_port

CONNECTIONS: Attacks[Stage] = Attacks("connections and topics")
DAY = 86_400.0
FORGED = b"forged by mallory"


@CONNECTIONS.add("publish as another device", "own certificate, every topic of a victim, all/ and srv/")
def _publish_as_another(stage: Stage) -> Finding:
    mark, topics = stage.logs.mark(), stage.topics
    wanted = [topics.up("pump-1", kind) for kind in ("state", "update", "report", "get", "renew")]
    wanted += [topics.down("pump-1", "receipt"), topics.all("release"), topics.server_state()]
    with stage.connected("mallory") as mallory:
        answers = [
            mallory.publish(topic, FORGED, retain=retain) for topic in wanted for retain in (False, True)
        ]
        own = mallory.publish(topics.up("mallory", "state"), stage.state("mallory"))
    control = _expect(own == "Success", "mallory heard under its own name") + ", " + stage.honest_word()
    heard = FORGED in {message.payload for message in stage.hand.heard}
    trace = stage.logs.broker(mark, incidents.DENIED, device="mallory")
    return Finding(
        heard or set(answers) != {"Not authorized"}, control, trace, f"{len(answers)} publications"
    )


@CONNECTIONS.add("leave a last will on another device's topic", "own certificate, will on the victim's state")
def _foreign_will(stage: Stage) -> Finding:
    mark, topic = stage.logs.mark(), stage.topics.up("pump-1", "state")
    with stage.connected("mallory", will=(topic, FORGED)) as mallory:
        mallory.close(with_will=True)
    own, will = stage.topics.up("mallory", "state"), stage.state("mallory")
    with stage.connected("mallory", will=(own, will)) as mallory:
        mallory.close(with_will=True)
    stage.hand.wait_for(own, will)
    trace = stage.logs.broker(mark, incidents.DENIED, device="mallory")
    return Finding(FORGED in stage.hand.payloads(topic), "a will on the own topic was heard", trace)


@CONNECTIONS.add("take over the session of a connected device", "own certificate, the victim's client id")
def _live_session(stage: Stage) -> Finding:
    topic = stage.topics.down("honest", "receipt")
    with stage.connected("honest") as honest:
        honest.listen(topic)
        mark = stage.logs.mark()
        with stage.client(stage.identity("mallory"), "honest") as mallory:
            mallory.connect(clean_start=False)
            mallory.listen(topic)
            answer = mallory.publish(stage.topics.up("honest", "state"), FORGED)
            stage.hand.publish(topic, b"for honest alone")
            honest.wait(lambda: honest.disconnected or honest.payloads(topic), "its message or its end")
            got = bool(honest.disconnected or mallory.heard) or answer == "Success"
    trace = stage.logs.broker(mark, incidents.DENIED, incidents.SUBSCRIPTION, device="mallory")
    return Finding(got, "the victim stayed connected and heard its message", trace)


@CONNECTIONS.add("take over the session of a sleeping device", "the victim's client id, its queue is waiting")
def _sleeping_session(stage: Stage) -> Finding:
    topic, identity = stage.topics.down("honest", "receipt"), stage.identity("honest")
    with stage.client(identity, "honest") as sleeper:
        sleeper.connect(clean_start=False)
        sleeper.listen(topic)
    stage.hand.publish(topic, b"queued")
    mark = stage.logs.mark()
    with (
        stage.client(stage.identity("mallory"), "honest") as insider,
        stage.client(None, "honest", stage.enrolment_port) as newcomer,
    ):
        insider.connect(clean_start=False)
        newcomer.connect(clean_start=False)
        insider.listen(topic)
        newcomer.listen(topic)
        with stage.client(identity, "honest") as awake:
            awake.connect(clean_start=False)
            awake.wait(lambda: awake.payloads(topic) or insider.heard or newcomer.heard, "the queue")
        stolen = insider.heard + newcomer.heard
    trace = stage.logs.broker(mark, incidents.SUBSCRIPTION, device="mallory")
    return Finding(bool(stolen), "the victim found its queue", trace)


def _subscription(what: str, *filters: str) -> None:
    shown = ", ".join(filters).replace("{prefix}", "...")

    @CONNECTIONS.add(f"subscribe to {what}", f"own certificate, filters {shown}")
    def play(stage: Stage) -> Finding:
        mark, prefix = stage.logs.mark(), stage.topics.down("x", "y").removesuffix("/dn/x/y")
        receipt, update = stage.topics.down("honest", "receipt"), stage.topics.up("honest", "update")
        with stage.connected("honest") as honest, stage.connected("mallory") as mallory:
            honest.listen(receipt)
            mallory.listen(*(text.format(prefix=prefix) for text in filters))
            mallory.listen(stage.topics.down("mallory", "receipt"))
            stage.hand.publish(receipt, b"secret word")
            stage.hand.publish(update, b"secret update")
            stage.hand.publish(stage.topics.down("mallory", "receipt"), b"own")
            honest.wait_for(receipt, b"secret word")
            mallory.wait_for(stage.topics.down("mallory", "receipt"), b"own")
            stolen = [
                heard
                for heard in mallory.heard
                if heard.topic.startswith((f"{prefix}/dn/", f"{prefix}/up/")) and heard.payload != b"own"
            ]
        trace = stage.logs.broker(mark, incidents.SUBSCRIPTION, device="mallory")
        return Finding(bool(stolen), "the victim and mallory heard what was theirs", trace)


_subscription("everything", "#", "+/#")
_subscription("another device's downlink", "{prefix}/dn/honest/receipt", "{prefix}/dn/honest/#")
_subscription("every device's downlink", "{prefix}/dn/+/+")
_subscription("every device's updates", "{prefix}/up/+/update", "{prefix}/up/#")
_subscription("a share of others' messages", "$share/g/{prefix}/dn/#", "$share/g/{prefix}/up/#")


def _self_signed(stage: Stage) -> Identity:
    key, subject = certificates.new_key(), certificates.name("mallory", stage.topics.federation)
    validity = certificates.Validity(certificates.moment(clock() - DAY), certificates.moment(clock() + DAY))
    signer = certificates.Signer(certificates.self_signed(key, subject, validity), key)
    issued = certificates.sign(
        signer, subject, key.public_key(), validity=validity, purpose=certificates.CLIENT
    )
    return stage.keep("self-signed", issued.certificate, certificates.key_pem(key))


def _claim(stage: Stage) -> Identity:
    credential = stage.authority.issue_claim("batch-7", clock(), 30)
    return stage.keep("claim", credential.certificate, credential.key)


def _written(stage: Stage, stem: str) -> Identity:
    return Identity(stage.written / f"{stem}.crt", stage.written / f"{stem}.key")


def _connection(
    what: str,
    make: Callable[[Stage], Identity | None],
    kind: str = incidents.CERTIFICATE_REFUSED,
    *,
    service: bool = False,
) -> None:
    where = "the server's listener" if service else "the devices' listener"

    @CONNECTIONS.add(f"connect with {what}", f"TLS 1.3 to {where}", nameless=what == "no certificate")
    def play(stage: Stage) -> Finding:
        identity, mark = make(stage), stage.logs.mark()
        port = stage.service_port if service else stage.port
        with stage.client(identity, "mallory" if not service else f"mallory-{free_port()}", port) as attacker:
            attempt = attacker.connect()
        trace = stage.logs.broker(mark, kind)
        return Finding(attempt.connected, stage.honest_word(), trace, attempt.reason[:80])


_connection("no certificate", lambda _: None, incidents.CERTIFICATE_MISSING)
_connection("an expired certificate", lambda stage: stage.issue("mallory", at=-10 * DAY, days=9))
_connection("a certificate that is not yet valid", lambda stage: stage.issue("mallory", at=DAY))
_connection("a certificate of another CA", lambda stage: stage.issue("mallory", foreign=True))
_connection("a certificate that it signed itself", _self_signed)
_connection("a claim certificate", _claim)
_connection("the bridge's certificate", lambda stage: _written(stage, "bridge"))
_connection("the broker's own certificate", lambda stage: _written(stage, "broker"))
_connection("a device's certificate, as the server", lambda s: s.identity("mallory"), service=True)
_connection("a claim certificate, as the server", _claim, service=True)


@CONNECTIONS.add("connect without TLS", "MQTT in plain text to all three listeners", nameless=True)
def _plaintext(stage: Stage) -> Finding:
    mark, got = stage.logs.mark(), []
    for port in (stage.port, stage.enrolment_port, stage.service_port):
        with Client(port, "mallory") as attacker:
            got.append(attacker.connect().connected)
    trace = stage.logs.broker(mark, incidents.HANDSHAKE)
    return Finding(any(got), stage.honest_word(), trace)


@CONNECTIONS.add("force an old version of TLS", "TLS 1.2 with a good certificate", nameless=True)
def _old_tls(stage: Stage) -> Finding:
    mark = stage.logs.mark()
    identity, version = stage.identity("mallory"), ssl.TLSVersion.TLSv1_2
    with stage.client(identity, "mallory", maximum_tls=version) as attacker:
        attempt = attacker.connect()
    return Finding(attempt.connected, stage.honest_word(), stage.logs.broker(mark, incidents.HANDSHAKE))


@CONNECTIONS.add(
    "stand between device and broker", "a broker with a certificate of another CA", nameless=True
)
def _middle(stage: Stage) -> Finding:
    folder, ports = stage.written.parent / "middle", [free_port() for _ in range(3)]
    names = dict(zip(("port", "enrolment_port", "service_port"), ports, strict=True))
    federation = stage.topics.federation
    broker_config.write(
        folder, federation, stage.foreign, hosts=["localhost"], now=clock(), bind="127.0.0.1", **names
    )
    identity = stage.identity("honest")
    config = BrokerConfig(
        host="localhost",
        port=names["port"],
        tls_ca=str(stage.trusted),
        tls_certificate=str(identity.certificate),
        tls_key=str(identity.key),
    )
    with BrokerSupervisor(folder, configuration=folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # paho leaves a socket to the garbage collector
        link = Link(config, "honest", [stage.topics.all("trust")])
        link.start()
        try:
            event = link.events.get(timeout=30)
        finally:
            link.stop()
    # The agent's loop writes the reason into its log (runtime/loop.py).
    reason = event.reason if isinstance(event, Disconnected) else ""
    trace = Trace("device", "honest", reason[-120:]) if "CERTIFICATE_VERIFY_FAILED" in reason else NOTHING
    return Finding(not isinstance(event, Disconnected), stage.honest_word(), trace, reason[-80:])


@CONNECTIONS.add("speak for others from the newcomers' door", "no certificate, a device's id, fleet's topics")
def _from_the_door(stage: Stage) -> Finding:
    mark, topics = stage.logs.mark(), stage.topics
    wanted = [topics.up("honest", "state"), topics.down("honest", "receipt"), topics.all("trust")]
    wanted += [
        topics.all("release"),
        topics.enroll("another", "request"),
        topics.enroll("another", "response"),
    ]
    answers = []
    with stage.connected("honest") as honest:
        for user in (None, "honest", server_name(topics.federation)):
            with stage.client(None, "honest", stage.enrolment_port, username=user) as attacker:
                attacker.connect()
                answers += [attacker.publish(topic, FORGED) for topic in wanted]
        answer = honest.publish(topics.up("honest", "state"), stage.state("honest"))
        control = _expect(answer == "Success" and not honest.disconnected, "the device of that id stayed")
    heard = FORGED in {message.payload for message in stage.hand.heard}
    trace = stage.logs.newcomers(mark, incidents.DENIED, device="honest")
    return Finding(heard or set(answers) != {"Not authorized"}, control, trace)


@CONNECTIONS.add(
    "get a certificate whose name is a pattern", "names +, #, a/b, %u, ../x at the CA", nameless=True
)
def _pattern_names(stage: Stage) -> Finding:
    issued, reason = [], ""
    for name in ("+", "#", "a/b", "%u", "../x", "", server_name(stage.topics.federation)):
        try:
            stage.issue(name)
        except Exception as error:  # noqa: BLE001 - whatever refuses it
            reason = str(error)
        else:
            issued.append(name)
    return Finding(bool(issued), stage.honest_word(), Trace("server", "", reason), ", ".join(issued))


@CONNECTIONS.add("use the broker's credentials as a device", "the server's certificate, a device's topic")
def _service_as_device(stage: Stage) -> Finding:
    mark, topic = stage.logs.mark(), stage.topics.up("pump-1", "update")
    answers, got = [], []
    for stem, folder in (("broker-client", stage.data), ("bridge", stage.written)):
        identity = Identity(folder / f"{stem}.crt", folder / f"{stem}.key")
        with stage.client(identity, f"thief-of-{stem}", stage.service_port) as thief:
            got.append(thief.connect().connected)
            answers.append(thief.publish(topic, FORGED))
    control = _expect(all(got), "both may connect there, for their own topics")
    trace = stage.logs.broker(mark, incidents.DENIED, device="thief-of-broker-client")
    return Finding(set(answers) != {"Not authorized"} or FORGED in stage.hand.payloads(topic), control, trace)


def _expect(holds: bool, control: str) -> str:
    """The control's text.

    Raises:
        AttackError: it failed.
    """
    if not holds:
        raise AttackError(f"an honest control failed: {control}")
    return control
