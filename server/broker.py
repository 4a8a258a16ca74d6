"""Broker supervisor: runs an MQTT broker on loopback as a child process.

The system's mosquitto when it is there; else amqtt, which is for trying out only: MQTT 3.1.1, and its queues
do not survive a restart. It can also run what `graftwork-server broker-config` wrote: one broker or two.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from runtime import whole_files
from server.errors import ServerError
from server.supervised_process import SupervisedProcess

MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
log_dest file {directory}/mosquitto.log
log_type error
log_type warning
log_type notice
"""
MOSQUITTO_SETTINGS = {
    "persistence": "true",
    "autosave_on_changes": "true",
    "autosave_interval": "1",
    "max_queued_messages": "10000",
    "max_inflight_messages": "64",
    "persistent_client_expiration": "30d",
}
AMQTT_CONFIG = """\
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""
START_SECONDS = 15
_LOG_FILE = re.compile(r"^log_dest file (.+)$", re.MULTILINE)
_LISTENER = re.compile(r"^listener (\d+)", re.MULTILINE)


def find_mosquitto() -> str | None:
    """Path of the system's mosquitto, or None. Debian keeps it in sbin, off an ordinary user's PATH."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class BrokerSupervisor:
    """Starts and stops a broker, and starts one again that ends by itself; use as a context manager."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        kind: str | None = None,
        message_size_limit: int = 40 * 1024 * 1024,
        settings: Mapping[str, str] | None = None,
        configuration: Path | None = None,
    ) -> None:
        """Choose the broker; `start` runs it.

        Args:
            directory: for its configuration, log and persistence.
            port: loopback port; None takes a free one.
            kind: "mosquitto" or "amqtt"; None takes mosquitto when there is one.
            message_size_limit: largest payload in bytes (mosquitto only).
            settings: of mosquitto.conf, instead of MOSQUITTO_SETTINGS or beside them.
            configuration: a mosquitto.conf to run as it is, or a folder that `broker_config.write` wrote, of
                which every broker is run. What it says holds, so port, size limit and settings are not used.
        """
        self.kind = "mosquitto" if configuration else kind or ("mosquitto" if find_mosquitto() else "amqtt")
        self._directory = directory
        self._configuration = configuration
        self._ports = [port or free_port()] if configuration is None else _ports(self._configurations())
        self.port = self._ports[0]
        self._settings = {
            **MOSQUITTO_SETTINGS,
            "message_size_limit": str(message_size_limit),
            "max_packet_size": str(message_size_limit + 1024),
            **(settings or {}),
        }
        self._processes: list[SupervisedProcess] = []

    @property
    def description(self) -> str:
        """What an operator should know about this broker."""
        if self.kind == "mosquitto":
            return f"mosquitto on 127.0.0.1:{self.port}"
        return (
            f"amqtt on 127.0.0.1:{self.port} - for trying out only: MQTT 3.1.1, no durable queue "
            "(install mosquitto for real use)"
        )

    @property
    def log_file(self) -> Path:
        """Where the broker's output goes."""
        for written in self._configurations():
            if found := _LOG_FILE.search(written.read_text("utf-8")):
                return Path(found[1])
        return self._directory / f"{self.kind}.log"

    def start(self) -> None:
        """Run the broker and wait until it takes connections.

        Raises:
            ServerError: it is not installed, or does not start; with what it printed.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for port in self._ports:
            _check_free(port)
        commands = self._mosquitto() if self.kind == "mosquitto" else [self._amqtt()]
        output = self._directory / f"{self.kind}.out"
        self._processes = [SupervisedProcess(command, output) for command in commands]
        deadline = time.monotonic() + START_SECONDS
        missing = list(self._ports)
        while time.monotonic() < deadline:
            if any(not process.runs for process in self._processes):
                break
            missing = [port for port in missing if not _takes_connections(port)]
            if not missing:
                for process in self._processes:
                    process.keep()
                return
            time.sleep(0.05)
        self.stop()
        ports = ", ".join(map(str, missing))
        raise ServerError(f"{self.kind} did not start on port {ports}; its output is in {self._directory}")

    def stop(self) -> None:
        """End the broker in good order, by force if it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a power cut would."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> "BrokerSupervisor":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, number: signal.Signals) -> None:
        processes, self._processes = self._processes, []
        for process in processes:
            process.end(number)
        for process in processes:
            process.wait()

    def _mosquitto(self) -> list[list[str]]:
        binary = find_mosquitto()
        if binary is None:
            raise ServerError("mosquitto is not installed; on Debian: apt install mosquitto")
        # As root it would drop to a user that cannot write the directory.
        user = "user root\n" if os.geteuid() == 0 else ""
        if self._configuration is None:
            config = self._directory / "mosquitto.conf"
            settings = {"persistence_location": f"{self._directory.resolve()}/", **self._settings}
            text = MOSQUITTO_CONFIG.format(port=self.port, directory=self._directory.resolve())
            text += "".join(f"{name} {value}\n" for name, value in settings.items())
            config.write_text(text + user, "utf-8")
            return [[binary, "-c", str(config)]]
        commands = []
        for written in self._configurations():
            config = self._directory / f"{written.name}.running"
            text = written.read_text("utf-8") + user
            whole_files.write(config, text.encode(), whole_files.SECRET)  # as the one that is copied
            commands.append([binary, "-c", str(config)])
        return commands

    def _configurations(self) -> list[Path]:
        """The files to run: of a folder mosquitto.conf, and what lies beside it."""
        path = self._configuration
        if path is None or not path.is_dir():
            return [path] if path else []
        return sorted(path.glob("*.conf"), key=lambda file: (file.name != "mosquitto.conf", file.name))

    def _amqtt(self) -> list[str]:
        if importlib.util.find_spec("amqtt") is None:
            raise ServerError(
                "no broker: install mosquitto (Debian: apt install mosquitto), "
                'or for trying out: pip install "amqtt>=0.12"'
            )
        config = self._directory / "amqtt.yaml"
        config.write_text(AMQTT_CONFIG.format(port=self.port), "utf-8")
        return [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]


def _ports(configurations: list[Path]) -> list[int]:
    """Ports of all listeners, in their order."""
    try:
        texts = [path.read_text("utf-8") for path in configurations]
    except OSError as error:
        raise ServerError(
            f"{error.filename}: {error.strerror}; run `graftwork-server broker-config`"
        ) from error
    ports = [int(port) for text in texts for port in _LISTENER.findall(text)]
    if not ports:
        raise ServerError("expected a mosquitto.conf with a listener; run `graftwork-server broker-config`")
    return ports


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(f"port {port} is taken: {error.strerror}") from error


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
