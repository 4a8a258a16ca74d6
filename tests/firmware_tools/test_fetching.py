"""A device that follows an index: the attacks on it, with what people are told, and clocks that are wrong."""

import contextlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from firmware_tools import device_commands
from firmware_tools.__main__ import main
from firmware_tools.device import fetching, floor, health, updates
from firmware_tools.device.fetching import Fetched, fetch
from firmware_tools.device.installing import bundle_version, install
from firmware_tools.errors import FirmwareError
from firmware_tools.release_client import ReleaseClient
from firmware_tools.release_index import Release
from tests.firmware_tools.fake_device import FakeDevice
from tests.firmware_tools.release_site import BOARD, DAY, NOW, Site, following_device, new_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return new_site(tmp_path / "site")


@pytest.fixture
def device(site: Site, tmp_path: Path) -> FakeDevice:
    return following_device(tmp_path / "device", site.keys / "root.json")


def look(device: FakeDevice, site: Site | Path | str, now: float = NOW, **options: bool) -> Fetched:
    source = site.index if isinstance(site, Site) else site
    return fetch(device, str(source), now, **options)


def reported(device: FakeDevice) -> str:
    state = updates.load(device.state_file)
    return state.text if state is not None else ""


def bundles(device: FakeDevice) -> list[str]:
    folder = device.data / "update/bundles"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def put_back(copy: Path, site: Site) -> None:
    shutil.rmtree(site.index)
    shutil.copytree(copy, site.index)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder on the loopback."""

    endless: str = ""
    """End of a path for which zeros never end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, request: object, address: object, server: Server) -> None:
        super().__init__(request, address, server, directory=str(server.folder))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if not self.server.endless or not self.path.endswith(self.server.endless):
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(site.index) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["folder", "web"])
def test_from_offered_to_healthy(site: Site, device: FakeDevice, server: Server, way: str) -> None:
    released = site.release("1.1.0")
    found = look(device, site if way == "folder" else server.url)
    assert found.bundle == device.data / f"update/bundles/{BOARD}-1.1.0.raucb"
    assert found.bundle.read_bytes() == site.served(released).read_bytes()
    assert found.text == f"downloaded 1.1.0: graftwork-firmware device update {found.bundle}"
    assert reported(device) == "downloaded 1.1.0"
    install(device, found.bundle, lambda path: bundle_version(device, path))
    assert device.restart() == "B"
    assert health.pass_gate(device) == ""
    assert reported(device) == "healthy 1.1.0"
    assert look(device, site).text == "1.1.0 runs, and the newest is 1.1.0: nothing to do"
    assert bundles(device) == []  # it is not needed any more


def test_the_newest_for_this_board_is_taken(site: Site, device: FakeDevice) -> None:
    assert look(device, site).text == f"the index has nothing for {BOARD}"
    site.release("9.0.0", board="other-board")
    site.release("1.9.0")
    site.release("1.10.0")
    device.programs.bundle = "1.10.0"
    assert look(device, site).text.startswith("downloaded 1.10.0")


def test_a_bundle_that_is_here_is_not_fetched_again(
    site: Site, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.release("1.1.0")
    look(device, site)
    monkeypatch.setattr(ReleaseClient, "download", lambda *_: pytest.fail("fetched again"))
    assert look(device, site).bundle is not None
    site.release("1.2.0")
    device.programs.bundle = "1.2.0"
    monkeypatch.undo()
    look(device, site)
    assert bundles(device) == [f"{BOARD}-1.2.0.raucb"]


def test_an_older_index_is_refused(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    old = site.copy("old")
    site.release("1.2.0")
    device.programs.bundle = "1.2.0"
    look(device, site)
    put_back(old, site)
    with pytest.raises(FirmwareError, match="the index is older than one that was seen here before"):
        look(device, site)
    assert reported(device) == "downloaded 1.2.0"


def test_an_index_that_is_kept_from_changing_is_refused_in_the_end(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    look(device, site, NOW + 13 * DAY)
    with pytest.raises(
        FirmwareError, match=r"not good any more: timestamp\.json is expired, and here it is 2027"
    ):
        look(device, site, NOW + 15 * DAY)
    site.publisher().refresh(NOW + 15 * DAY)
    assert look(device, site, NOW + 15 * DAY).bundle is not None


@pytest.mark.parametrize("name", ["snapshot", "targets"])
def test_parts_of_two_indexes_are_not_one(site: Site, device: FakeDevice, name: str) -> None:
    site.release("1.1.0")
    old = (site.metadata / f"2.{name}.json").read_bytes()
    site.release("1.2.0")
    (site.metadata / f"3.{name}.json").write_bytes(old)
    with pytest.raises(FirmwareError, match="mixed with another copy"):
        look(device, site)
    assert reported(device) == ""


@pytest.mark.parametrize("names", [["timestamp.json"], None])
def test_an_index_of_others_is_refused(
    site: Site, device: FakeDevice, tmp_path: Path, names: list[str] | None
) -> None:
    other = new_site(tmp_path / "other")
    other.release("6.6.6")
    site.release("1.1.0")
    if names is None:
        put_back(other.index, site)
    for name in names or []:
        shutil.copy(other.metadata / name, site.metadata / name)
    with pytest.raises(FirmwareError, match="not signed by the keys that are believed here"):
        look(device, site)


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
@pytest.mark.parametrize("left", [0, 100, -1])
def test_an_index_that_was_cut_short_is_refused(site: Site, device: FakeDevice, name: str, left: int) -> None:
    site.release("1.1.0")
    path = site.metadata / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(FirmwareError, match=r"cannot be understood|is not what was signed"):
        look(device, site)


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json", "2.root.json"])
def test_metadata_without_an_end_is_refused(
    site: Site, device: FakeDevice, server: Server, name: str
) -> None:
    site.release("1.1.0")
    server.endless = name
    with pytest.raises(FirmwareError, match="the index is longer than it may be"):
        look(device, server.url)
    with (site.metadata / name).open("ab") as file:
        file.truncate(6_000_000)
    with pytest.raises(FirmwareError, match="the index is longer than it may be"):
        look(device, site)


def test_a_bundle_without_an_end_is_refused(site: Site, device: FakeDevice, server: Server) -> None:
    site.release("1.1.0")
    server.endless = ".raucb"
    with pytest.raises(FirmwareError, match="longer than it may be: more than 5000 bytes"):
        look(device, server.url)
    assert (reported(device), bundles(device)) == ("offered 1.1.0", [])


@pytest.mark.parametrize("damage", ["changed", "short", "empty", "gone"])
def test_a_bundle_that_is_not_the_one_is_refused(site: Site, device: FakeDevice, damage: str) -> None:
    path = site.served(site.release("1.1.0"))
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"changed": bytes(content), "short": bytes(content[:4000]), "empty": b""}[damage])
    with pytest.raises(
        FirmwareError, match="cannot be had" if damage == "gone" else "cut short, changed, or mixed"
    ):
        look(device, site)
    assert (reported(device), bundles(device)) == ("offered 1.1.0", [])


def test_a_pipe_on_the_stick_does_not_hang_the_device(site: Site, device: FakeDevice) -> None:
    (site.metadata / "timestamp.json").unlink()
    os.mkfifo(site.metadata / "timestamp.json")
    with pytest.raises(FirmwareError, match="no regular file"):
        look(device, site)


def test_a_bundle_of_another_version_than_the_index_says_is_refused(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    device.programs.bundle = "1.0.5"
    with pytest.raises(FirmwareError, match=r"is version 1\.0\.5, and the index says 1\.1\.0"):
        look(device, site)
    assert (reported(device)[:13], bundles(device)) == ("1.1.0 failed:", [])


@pytest.mark.parametrize("clock", [0.0, NOW - 400 * DAY])
def test_a_clock_that_starts_in_1970_is_no_dead_end(site: Site, device: FakeDevice, clock: float) -> None:
    site.release("1.1.0")
    assert look(device, site, clock).bundle is not None
    site.release("1.2.0", now=NOW + 100 * DAY)
    device.programs.bundle = "1.2.0"
    assert look(device, site, clock).bundle is not None


def test_a_clock_in_1970_does_not_make_an_old_index_good(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site", NOW - 100 * DAY)
    site.release("1.1.0", now=NOW - 100 * DAY)
    old = (site.metadata / "timestamp.json").read_bytes()
    site.publisher().refresh(NOW, root=True)
    # The image has the root of today, which says that it is at least today.
    device = following_device(tmp_path / "device", site.metadata / "2.root.json")
    (site.metadata / "timestamp.json").write_bytes(old)
    with pytest.raises(FirmwareError, match="is not good any more"):
        look(device, site, 0.0)


def test_a_clock_that_is_set_back_does_not_make_an_old_index_good(site: Site, device: FakeDevice) -> None:
    site.publisher().refresh(NOW, days=1)
    look(device, site)
    site.publisher().refresh(NOW + 50 * DAY, days=30)
    look(device, site, NOW + 50 * DAY)
    with pytest.raises(FirmwareError, match="is not good any more"):
        look(device, site, NOW + 81 * DAY)
    site.publisher().refresh(NOW + 20 * DAY, days=1)  # by who stole the keys that are online
    with pytest.raises(FirmwareError, match="is not good any more"):
        look(device, site, 0.0)


def test_a_stolen_key_that_spoke_of_2099_is_got_over_with_a_new_key(site: Site, device: FakeDevice) -> None:
    site.publisher().refresh(NOW + 25_000 * DAY)
    with contextlib.suppress(FirmwareError):
        look(device, site, 0.0)
    site.publisher().rotate("timestamp", site.keys, NOW)
    site.release("1.1.0")
    with contextlib.suppress(FirmwareError):  # the first look brings the root that withdraws the key
        look(device, site, 0.0)
    assert look(device, site, 0.0).bundle is not None


def test_a_device_follows_every_new_key(site: Site, device: FakeDevice) -> None:
    look(device, site)
    for name in ("root-1", "targets", "root-2", "snapshot", "root-3", "timestamp"):
        site.publisher().rotate(name, site.keys, NOW)
        (site.keys / f"{name}.key").unlink()
    site.release("1.1.0")
    assert look(device, site).bundle is not None
    fresh = following_device(site.folder / "fresh", site.keys / "root.json")
    assert look(fresh, site).bundle is not None


def test_a_replaced_key_signs_nothing_for_devices_that_know(site: Site, device: FakeDevice) -> None:
    old = site.copy("old")
    site.publisher().rotate("timestamp", site.keys, NOW)
    look(device, site)
    shutil.copy(old / "metadata/timestamp.json", site.metadata)
    with pytest.raises(FirmwareError, match="not signed by the keys"):
        look(device, site)


def test_the_floor_of_the_index_stays_when_the_index_is_gone(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    site.release("1.2.0")
    site.publisher().set_floor(BOARD, "1.1.0", NOW)
    device.programs.bundle = "1.2.0"
    look(device, site)
    device.programs.bundle = "1.0.9"
    for allow in (False, True):
        with pytest.raises(
            FirmwareError, match=r"below 1\.1\.0: the lowest .* nothing on the device goes below"
        ):
            install(device, Path("x"), lambda path: bundle_version(device, path), allow_downgrade=allow)
    assert floor.lowest(device) == "1.1.0"


def test_a_version_that_was_rolled_back_is_not_tried_again_unasked(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    found = look(device, site)
    assert found.bundle is not None
    install(device, found.bundle, lambda path: bundle_version(device, path))
    assert [device.restart() for _ in range(4)] == ["B", "B", "B", "A"]
    assert health.pass_gate(device) == ""
    found = look(device, site)
    assert found.bundle is None
    assert found.text.startswith("rolled back from 1.1.0 to 1.0.0")
    assert found.text.endswith("to try it once more, use --again")
    assert look(device, site, again=True).bundle is not None


def test_nothing_is_fetched_over_an_update_that_waits_for_its_reboot(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    found = look(device, site)
    assert found.bundle is not None
    install(device, found.bundle, lambda path: bundle_version(device, path))
    site.release("1.2.0")
    with pytest.raises(FirmwareError, match="waits for a reboot"):
        look(device, site)
    assert reported(device) == "installed 1.1.0"


def test_the_power_going_off_while_downloading_costs_nothing(
    site: Site, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.release("1.1.0")

    def cut(_client: ReleaseClient, _release: Release, path: Path) -> None:
        path.with_name(f".{path.name}.part").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReleaseClient, "download", cut)
        with pytest.raises(KeyboardInterrupt):
            look(device, site)
    assert reported(device) == "offered 1.1.0"
    assert device.restart() == "A"
    assert health.pass_gate(device) == ""
    assert reported(device) == "offered 1.1.0"
    assert look(device, site).bundle is not None
    assert bundles(device) == [f"{BOARD}-1.1.0.raucb"]


def test_what_stopped_booting_after_an_offer_is_told(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    found = look(device, site)
    assert found.bundle is not None
    install(device, found.bundle, lambda path: bundle_version(device, path))
    device.restart()
    assert health.pass_gate(device) == ""
    site.release("1.2.0")
    device.programs.bundle = "1.2.0"
    look(device, site)
    assert [device.restart() for _ in range(4)] == ["B", "B", "B", "A"]
    assert health.pass_gate(device) == ""
    assert reported(device).startswith(
        "rolled back from 1.1.0 to 1.0.0: it ran when another version was offered"
    )


def test_a_full_device_says_so_before_it_fetches(
    site: Site, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.release("1.1.0")
    monkeypatch.setattr(fetching, "KEPT_FREE", 1 << 60)
    with pytest.raises(FirmwareError, match="free some, or use `device update`"):
        look(device, site)
    assert bundles(device) == []


def test_damaged_metadata_on_the_device_is_fetched_anew(site: Site, device: FakeDevice) -> None:
    site.release("1.1.0")
    look(device, site)
    for path in (device.data / "update/tuf").rglob("*.json"):
        path.write_bytes(b"\0" * 100)
    site.release("1.2.0")
    device.programs.bundle = "1.2.0"
    assert look(device, site).bundle is not None


def test_sources_that_are_none_are_named(site: Site, device: FakeDevice, server: Server) -> None:
    with pytest.raises(FirmwareError, match="expected http://, https:// or a folder"):
        look(device, site.folder / "nowhere")
    with pytest.raises(FirmwareError, match="the index cannot be had from"):
        look(device, site.folder)
    with pytest.raises(FirmwareError, match=r"the index cannot be had from http.*404"):
        look(device, f"{server.url}/nowhere")
    port = server.server_port
    with pytest.raises(FirmwareError, match="the index cannot be had from"):
        look(device, f"http://127.0.0.1:{port if port == 1 else 1}")
    (device.root / fetching.ROOT).write_bytes(b"{}")
    with pytest.raises(FirmwareError, match=r"expected the root\.json"):
        look(device, site)
    (device.root / fetching.ROOT).unlink()
    with pytest.raises(FirmwareError, match="build one with --release-root"):
        look(device, site)


@pytest.mark.parametrize("automatic", [True, False])
def test_the_timer_installs_only_where_it_was_told_to(
    site: Site,
    device: FakeDevice,
    automatic: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.release("1.1.0")
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    monkeypatch.setattr(fetching, "clock", lambda: NOW)
    assert main(["device", "fetch", "--unattended"]) == 1
    assert "expected --from URL|FOLDER, or index" in capsys.readouterr().err
    settings = device.root / "etc/graftwork/update.toml"
    settings.write_text(f'index = "{site.index}"\nautomatic = {str(automatic).lower()}\n')
    assert main(["device", "fetch"]) == 0
    assert reported(device) == "downloaded 1.1.0"
    assert main(["device", "fetch", "--unattended"]) == 0
    assert reported(device) == ("installed 1.1.0" if automatic else "downloaded 1.1.0")
    assert (("systemctl", "reboot") in device.programs.called) is automatic
    (device.data / "update/update.toml").write_text('indexes = "x"\n')
    assert main(["device", "fetch"]) == 1
    assert "indexes" in capsys.readouterr().err


def test_the_command_fetches_and_installs(
    site: Site, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.release("1.1.0")
    monkeypatch.setattr(device_commands, "Device", lambda: device)
    monkeypatch.setattr(fetching, "clock", lambda: 0.0)
    command = ["device", "fetch", "--from", str(site.index), "--install", "--no-reboot"]
    assert main(command) == 0
    assert "installed 1.1.0 into slot B" in capsys.readouterr().out
    assert ("systemctl", "reboot") not in device.programs.called


@pytest.mark.parametrize("role", ["timestamp", "2.root"])
def test_hostile_metadata_is_refused_in_words(site: Site, device: FakeDevice, role: str) -> None:
    """Whatever bytes come before the signatures can be checked."""
    site.publisher().refresh(NOW, root=True)
    path = site.metadata / f"{role}.json"
    good = json.loads(path.read_text())
    values = (None, -1, 1.5, 1e308, "x", [], {}, [[]], {"x": {"y": 1.5}}, True, "\udc80")
    signatures = (None, 3, [1], [{}], [{"keyid": 1, "sig": 2}], [good["signatures"][0]] * 2, "x")
    hostile: list[Any] = [[], None, 3, "text", {}, {"signed": 1, "signatures": []}]
    hostile += [
        {**good, "signed": {**good["signed"], field: value}} for field in good["signed"] for value in values
    ]
    hostile += [{**good, "signatures": value} for value in signatures]
    texts = [json.dumps(found) for found in hostile]
    texts += ["[" * 100_000, '{"signed":' * 3000, "\N{BYTE ORDER MARK}{}", "1e999", "NaN", "9" * 5000]
    for text in texts:
        path.write_text(text)
        with contextlib.suppress(FirmwareError):  # some mean the same as before, e.g. no spec_version
            assert look(device, site).text == f"the index has nothing for {BOARD}", text[:500]
