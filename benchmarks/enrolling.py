"""Devices that enrol: the agent's own program on real TLS links, one device or many in waves.

    python -m benchmarks.enrolling PLAN {enrol,check}

Runs a part of a fleet in this process (see `Plan`; benchmarks/enrolment.py starts several). A connection
takes three file descriptors and paho waits for them with select(), so a process holds some 300 of them; the
broker for newcomers takes 100 at a time.
"""

import argparse
import json
import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.config import CERTIFICATE_FILE, KEY_FILE
from agent.enrolment import Enrolment
from agent.identity import Identity
from agent.keyring import Keyring
from agent.store import Store
from benchmarks import attack_client
from protocol.messages import DeviceState, sign_message
from protocol.topics import Topics
from runtime.broker import BrokerConfig
from runtime.keys import read
from runtime.link import Link
from runtime.loop import serve

PATIENCE_SECONDS = 240.0
"""For one device: several times the longest wait between two attempts to connect."""
TICK_SECONDS = 0.25


@dataclass(frozen=True)
class Plan:
    """What a process of devices has to do."""

    directory: str
    """With a folder per device for its identity."""
    tokens: dict[str, str]
    """By device."""
    federation: str
    enrolment_port: int
    port: int
    """For devices with a certificate."""
    trusted: str
    """File of the services' CA."""
    root: str
    """File of the root of trust."""
    at_once: int
    """Devices that are connected at the same time."""
    outcome: str
    """File to write: by device, what went wrong, or empty."""

    def write(self, path: Path) -> None:
        """Write the plan for a process."""
        path.write_text(json.dumps(asdict(self)), "utf-8")
        path.chmod(0o600)


class _UntilAnswered(Enrolment):
    """Asks until the server has answered, whatever it says: who waits for an operator would wait for ever."""

    @property
    def finished(self) -> bool:
        return self._done or bool(self.outcome)

    @finished.setter
    def finished(self, done: bool) -> None:
        self._done = done


def enrol(
    directory: Path,
    device: str,
    token: str,
    *,
    federation: str,
    port: int,
    trusted: Path,
    root: bytes,
    patience_seconds: float = PATIENCE_SECONDS,
) -> str:
    """Get a certificate as an agent does; what the server said if it gives none, else empty.

    Args:
        directory: of the device's identity.
        device: its name.
        token: one-time token.
        federation: its name.
        port: of the broker for newcomers.
        trusted: file of the services' CA.
        root: the federation's root of trust.
        patience_seconds: after which it gives up.
    """
    store = Store(":memory:")
    stopping = threading.Event()
    timer = threading.Timer(patience_seconds, stopping.set)
    link: Link | None = None

    def publish(topic: str, payload: bytes, retain: bool) -> bool:
        return link is not None and link.publish(topic, payload, retain=retain)

    try:
        keyring = Keyring(store, federation, _now, root=root)
        program = _UntilAnswered(
            device,
            Topics(federation),
            publish,
            _now,
            identity=Identity(directory, device),
            keyring=keyring,
            token=token,
        )
        broker = BrokerConfig(host="localhost", port=port, tls_ca=str(trusted))
        link = Link(broker, program.nonce, program.subscriptions, persistent=False)
        timer.start()
        serve(program, link, stopping, tick_seconds=TICK_SECONDS)
    finally:
        timer.cancel()
        store.close()
    if program.finished:
        return program.outcome
    return f"no answer within {patience_seconds:.0f} s"


def check(directory: Path, device: str, *, federation: str, port: int, trusted: Path) -> str:
    """Connect with the certificate and say something on the device's own topic; what went wrong, or empty."""
    topic = Topics(federation).up(device, "state")
    path = directory / CERTIFICATE_FILE
    try:
        key = read(directory / KEY_FILE)
        state = sign_message(DeviceState(False, int(_now() * 1000), key.public.raw), key, topic)
        identity = attack_client.Identity(path, path)
        with attack_client.Client(port, device, identity=identity, trusted=trusted) as client:
            attempt = client.connect()
            if not attempt.connected:
                return f"does not get in: {attempt.reason}"
            answer = client.publish(topic, state)
    except (OSError, ValueError, attack_client.AttackError) as error:
        return str(error)
    return "" if answer == "Success" else f"may not publish: {answer}"


def main() -> int:
    """Do a plan's part; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("action", choices=("enrol", "check"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    plan = Plan(**json.loads(options.plan.read_text("utf-8")))
    trusted, root = Path(plan.trusted), Path(plan.root).read_bytes()

    def enrol_one(device: str) -> str:
        return enrol(
            Path(plan.directory) / device,
            device,
            plan.tokens[device],
            federation=plan.federation,
            port=plan.enrolment_port,
            trusted=trusted,
            root=root,
        )

    def check_one(device: str) -> str:
        folder = Path(plan.directory) / device
        return check(folder, device, federation=plan.federation, port=plan.port, trusted=trusted)

    one = enrol_one if options.action == "enrol" else check_one
    with ThreadPoolExecutor(plan.at_once) as pool:
        outcomes = dict(zip(plan.tokens, pool.map(one, plan.tokens), strict=True))
    Path(plan.outcome).write_text(json.dumps(outcomes), "utf-8")
    return int(any(outcomes.values()))


def _now() -> float:
    return time.time()  # noqa: TID251 - certificates are checked by the clocks of all programs


if __name__ == "__main__":
    sys.exit(main())
