"""Attacks on who is who: tokens, names, requests for certificates and the answers to them.

Played at the real server's two doors, for newcomers and for devices. `Finding.succeeded`: somebody gets a
certificate, or a registered key, that is not meant for it.
"""

from dataclasses import replace

from cryptography import x509

from benchmarks.attack_book import Attacks, Finding
from benchmarks.attack_client import AttackError
from benchmarks.attack_stage import Stage
from protocol.identity import CertificateResponse, EnrolmentRequest, RenewalRequest
from protocol.messages import peek, sign_message
from protocol.signing import PrivateKey
from server import incidents
from server.authority import server_name

IDENTITY: Attacks[Stage] = Attacks("identity")


def _registered(stage: Stage) -> dict[str, bytes]:
    return {row["id"]: bytes(row["public_key"]) for row in stage.store.devices()}


def _refused(stage: Stage, name: str, folder: str, token: str, words: str) -> Finding:
    """Ask for a certificate that is not to be given."""
    before, mark = _registered(stage), stage.logs.mark()
    answer = stage.enrol(name, token, folder)
    certified = stage.files(folder).validity() is not None
    honest = f"new-{len(before)}"
    if stage.enrol(honest):
        raise AttackError("a device with a good token does not get in")
    with stage.connected(honest) as client:
        client.publish(stage.topics.up(honest, "state"), stage.state(honest))
    changed = {k: v for k, v in _registered(stage).items() if k != honest} != before
    control = "a device with a good token got in"
    return Finding(certified or changed, control, stage.logs.server_log(mark, name, words), answer)


@IDENTITY.add("guess a token", "random tokens of the right form")
def _guessed(stage: Stage) -> Finding:
    stage.token("wanted")  # the name has a token, but another one
    return _refused(stage, "wanted", "guesser", "0" * 40, "token")


@IDENTITY.add("enrol without a token", "a name that nobody has")
def _without(stage: Stage) -> Finding:
    return _refused(stage, "nobody", "nobody", "", "token")


@IDENTITY.add("use a token for another name", "a good token, the name of a device that is there")
def _other_name(stage: Stage) -> Finding:
    return _refused(stage, "pump-1", "impostor", stage.token("imp"), "token")


@IDENTITY.add("use a token twice", "the copy of a device's card: token used, another key")
def _cloned(stage: Stage) -> Finding:
    token = stage.token("card", replacing=True)  # another key may come with it, but only once
    if stage.enrol("card", token):
        raise AttackError("a device with a good token does not get in")
    return _refused(stage, "card", "copy-of-card", token, "another key")


@IDENTITY.add("take the name of a service", "a token for graftwork-server-..., as if an operator made one")
def _service_name(stage: Stage) -> Finding:
    name = server_name(stage.topics.federation)
    key, files, mark = PrivateKey.generate(), stage.files("service"), stage.logs.mark()
    stage.home("service").mkdir(exist_ok=True)
    token, nonce = stage.token(name), "nonce-of-service"
    request = EnrolmentRequest("x", key.public.raw, files.signing_request(), token)
    object.__setattr__(request, "device", name)  # what no honest program can build
    topic = stage.topics.enroll(nonce, "request")
    with stage.client(None, nonce, stage.enrolment_port) as client:
        client.connect()
        client.listen(stage.topics.enroll(nonce, "response"))
        client.publish(topic, stage.keys.sealing[0].public.seal(sign_message(request, key, topic), topic, 0))
        trace = stage.logs.server(mark, "?")
        got = bool(client.heard)
    if name in trace.reason:  # the server does not know whether it is one: it stands in the text
        trace = replace(trace, device=name)
    return Finding(got or name in _registered(stage), stage.honest_word(), trace)


@IDENTITY.add(
    "ask for a certificate in another's name", "own token, the victim's name in the signing request"
)
def _other_csr(stage: Stage) -> Finding:
    files = stage.files("pretender")
    stage.home("pretender").mkdir(exist_ok=True)
    victims = type(files)(stage.home("pretender"), "pump-1")
    victims.signing_request()  # names pump-1, and is what the program below sends
    answer = stage.enrol("pretender")
    certificate = x509.load_pem_x509_certificate(stage.identity("pretender").certificate.read_bytes())
    found = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    stolen = [str(attribute.value) for attribute in found] != ["pretender"]
    with stage.connected("pretender") as client:
        client.publish(stage.topics.up("pretender", "state"), stage.state("pretender"))
        mark = stage.logs.mark()
        denied = client.publish(stage.topics.up("pump-1", "state"), stage.state("pretender"))
    trace = stage.logs.broker(mark, incidents.DENIED, device="pretender")
    control = "it got a certificate in its own name"
    return Finding(stolen or denied == "Success", control, trace, answer)


@IDENTITY.add("steal a token at the broker", "all bytes of an enrolment that pass", passive=True)
def _stolen(stage: Stage) -> Finding:
    token, before = stage.token("watched"), len(stage.hand.heard)
    if stage.enrol("watched", token):
        raise AttackError("a device with a good token does not get in")
    passed = stage.hand.heard[before:]
    if not any("/enroll/" in heard.topic for heard in passed):
        raise AttackError("the enrolment did not pass through the broker")
    forms = (token.encode(), bytes.fromhex(token))
    seen = any(form in heard.payload for form in forms for heard in passed)
    return Finding(seen, "the device enrolled with it")


@IDENTITY.add(
    "replay a request to enrol", "recorded at the broker, on its topic and the attacker's", nameless=True
)
def _replayed(stage: Stage) -> Finding:
    mark, before = stage.logs.mark(), _registered(stage)
    requests = [heard for heard in stage.hand.heard if heard.topic.endswith("/request")]
    last = requests[-1]
    response = last.topic.replace("/request", "/response")
    answers = len(stage.hand.payloads(response))
    topic = stage.topics.enroll("nonce-of-mallory", "request")
    with stage.client(None, "nonce-of-mallory", stage.enrolment_port) as mallory:
        mallory.connect()
        mallory.listen(stage.topics.enroll("nonce-of-mallory", "response"))
        mallory.publish(topic, last.payload)
        stage.hand.publish(last.topic, last.payload)
        stage.hand.wait(lambda: len(stage.hand.payloads(response)) > answers, "the answer to the replay")
        control = stage.honest_word()
        got = bool(mallory.heard)
    same = len({_certificate(payload) for payload in stage.hand.payloads(response)}) == 1
    trace = stage.logs.server(mark, "?")
    detail = "the same certificate again, for the same key"
    return Finding(got or not same or _registered(stage) != before, control, trace, detail)


@IDENTITY.add("renew in another's name as a device", "own certificate, the victim's topic")
def _renewal(stage: Stage) -> Finding:
    mark, topic = stage.logs.mark(), stage.topics.up("honest", "renew")
    request = RenewalRequest(stage.files("mallory").signing_request())
    with stage.connected("mallory") as mallory:
        answer = mallory.publish(topic, sign_message(request, stage.key("mallory"), topic))
    trace = stage.logs.broker(mark, incidents.DENIED, device="mallory")
    return Finding(answer == "Success", stage.honest_word(), trace)


@IDENTITY.add(
    "renew in another's name as the broker", "own key on the victim's topic, a replay on the own one"
)
def _renewal_by_broker(stage: Stage) -> Finding:
    mark, topic = stage.logs.mark(), stage.topics.up("honest", "renew")
    certificates = len(stage.store.certificates("honest"))
    forged = RenewalRequest(stage.files("mallory").signing_request())
    stage.hand.publish(topic, sign_message(forged, stage.key("mallory"), topic))
    stage.honest_word()
    if len(stage.store.certificates("honest")) != certificates:
        return Finding(True, "", detail="a certificate for another's key")
    request = RenewalRequest(stage.files("honest").signing_request())
    genuine = sign_message(request, stage.key("honest"), topic)
    answered = stage.topics.down("honest", "certificate")
    with stage.connected("honest") as honest:
        honest.listen(answered)
        honest.publish(topic, genuine)
        honest.wait(lambda: honest.payloads(answered), "the answer to an honest renewal")
    stage.hand.publish(stage.topics.up("mallory", "renew"), genuine)  # recorded, moved
    stage.hand.publish(topic, genuine)  # recorded, again
    stage.honest_word()
    count = len(stage.store.certificates("honest")), len(stage.store.certificates("mallory"))
    trace = stage.logs.server(mark, "honest", "signature")
    return Finding(count != (certificates + 1, 1), "the device itself renews", trace)


def _certificate(payload: bytes) -> bytes:
    return peek(CertificateResponse, payload).certificate
