"""Signed but wrong: what a device refuses, asked of the real RAUC with the configuration of its image.

RAUC checks the payload of a bundle while it installs it, block by block (dm-verity), which needs a device.
Here the same hash tree is checked by extracting; what an index names is refused before RAUC sees it.
"""

import dataclasses
import datetime as dt
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from firmware_tools.__main__ import main
from firmware_tools.build.rootfs import device_files
from firmware_tools.build.spec import load_spec
from firmware_tools.bundles import BundleFacts, Signer, make_bundle, verify_bundle
from firmware_tools.device import floor, health, updates
from firmware_tools.device.fetching import fetch
from firmware_tools.device.installing import bundle_version, install
from firmware_tools.errors import FirmwareError
from firmware_tools.release import create
from firmware_tools.signing_keys import KEYRING, make_keys, make_signer
from tests.firmware_tools.fake_device import FakeDevice, new_device
from tests.firmware_tools.release_site import BOARD, DAY
from tests.firmware_tools.test_bundles import NOW, YEAR, sign_past_rauc, signer_of

pytestmark = pytest.mark.skipif(
    shutil.which("rauc") is None or shutil.which("mksquashfs") is None,
    reason="needs rauc, mksquashfs: apt install rauc squashfs-tools",
)
POSITIONS = 60


@dataclasses.dataclass(frozen=True)
class RealDevice(FakeDevice):
    """A device whose `rauc info` is the real one; installing ends where RAUC would write."""

    def run(self, command: Sequence[str], *, limit: float = 60.0) -> tuple[int, str]:
        """Run RAUC with the configuration of the image."""
        if list(command[:2]) != ["rauc", "info"]:
            return super().run(command, limit=limit)
        self.programs.called.append(tuple(command))
        return self.rauc(command[1:])

    def rauc(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run the real RAUC as this device has it set up."""
        configuration = f"--conf={self.root / 'etc/rauc/system.conf'}"
        done = subprocess.run(
            ["rauc", configuration, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout + done.stderr


def real_device(folder: Path, keyring: Path) -> RealDevice:
    found = new_device(folder)
    device = RealDevice(found.root)
    files = device_files(load_spec("x86_64-uefi"), "1.0.0", keyring.read_bytes())
    (folder / "etc/rauc").mkdir()
    shutil.copy(keyring, folder / "etc/rauc/keyring.pem")
    content = files["./etc/rauc/system.conf"].content
    assert isinstance(content, bytes)
    text = (
        content.decode().replace("/etc/rauc", str(folder / "etc/rauc")).replace("/data", str(folder / "data"))
    )
    (folder / "etc/rauc/system.conf").write_text(text)
    assert health.pass_gate(device) == ""
    return device


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, "plant", NOW)
    return folder


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rootfs") / "rootfs.squashfs"
    path.write_bytes(random.Random(2).randbytes(300_000))  # noqa: S311 - data, no secret
    return path


@pytest.fixture(scope="module")
def good(keys: Path, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(rootfs, keys, tmp_path_factory.mktemp("bundles"), "1.1.0")


@pytest.fixture
def device(keys: Path, tmp_path: Path) -> RealDevice:
    return real_device(tmp_path / "device", keys / KEYRING)


def bundle_of(rootfs: Path, keys: Path, folder: Path, version: str, board: str = BOARD) -> Path:
    path = folder / f"{board}-{version}.raucb"
    make_bundle(rootfs, path, BundleFacts(board, version), signer_of(keys))
    return path


def update(device: RealDevice, bundle: Path, *, allow_downgrade: bool = False) -> str:
    return install(
        device, bundle, lambda path: bundle_version(device, path), allow_downgrade=allow_downgrade
    ).text


def untouched(device: RealDevice) -> bool:
    """Whether nothing was written, and nothing is claimed."""
    installed = any(command[:2] == ("rauc", "install") for command in device.programs.called)
    return not installed and updates.load(device.state_file) is None


def test_the_right_bundle_is_taken(device: RealDevice, good: Path) -> None:
    assert update(device, good) == "installed 1.1.0"


def test_a_downgrade_is_refused(device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path) -> None:
    old = bundle_of(rootfs, keys, tmp_path, "0.9.0")
    with pytest.raises(FirmwareError, match=r"1\.0\.0 runs: .* use --allow-downgrade"):
        update(device, old)
    floor.note_signed(device, "1.0.0")
    with pytest.raises(FirmwareError, match="nothing on the device goes below it"):
        update(device, old, allow_downgrade=True)
    assert untouched(device)


def test_a_bundle_for_another_board_is_refused(
    device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    other = bundle_of(rootfs, keys, tmp_path, "1.1.0", "graftwork-rpi4")
    with pytest.raises(FirmwareError, match=f"is for graftwork-rpi4, and this device is {BOARD}"):
        update(device, other, allow_downgrade=True)
    assert untouched(device)


def test_a_bundle_under_other_roots_is_refused(device: RealDevice, rootfs: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "others", "plant", NOW)  # of the same name
    other = bundle_of(rootfs, tmp_path / "others", tmp_path, "1.1.0")
    with pytest.raises(FirmwareError, match="signature verification failed"):
        update(device, other)
    assert untouched(device)


def test_a_signer_that_had_expired_when_it_signed_is_refused_on_the_device(
    device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(keys, tmp_path / "keys")
    make_signer(folder, "plant", "root-1", NOW - 5 * YEAR)
    sign_past_rauc(rootfs, tmp_path / "late.raucb", signer_of(folder))
    with pytest.raises(FirmwareError, match="certificate has expired"):
        update(device, tmp_path / "late.raucb")
    assert untouched(device)


def test_a_signer_that_was_not_yet_good_when_it_signed_is_refused_on_the_device(
    device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(keys, tmp_path / "keys")
    make_signer(folder, "plant", "root-1", NOW + YEAR)
    sign_past_rauc(rootfs, tmp_path / "early.raucb", signer_of(folder))
    with pytest.raises(FirmwareError, match="certificate is not yet valid"):
        update(device, tmp_path / "early.raucb")
    assert untouched(device)


def short_lived(keys: Path, folder: Path, seconds: float) -> tuple[Signer, float]:
    """A signer under our root that expires in some seconds; also when."""
    root_key = serialization.load_pem_private_key((keys / "root-1.key").read_bytes(), None)
    signer = x509.load_pem_x509_certificate((keys / "signer.crt").read_bytes())
    end = dt.datetime.now(dt.timezone.utc).replace(microsecond=0) + dt.timedelta(seconds=seconds)
    builder = x509.CertificateBuilder(
        signer.issuer, signer.subject, signer.public_key(), x509.random_serial_number(),
        signer.not_valid_before_utc, end,
    )  # fmt: skip
    for extension in signer.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(root_key, hashes.SHA256())  # type: ignore[arg-type]
    (folder / "short.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return Signer(str(folder / "short.crt"), str(keys / "signer.key")), end.timestamp()


def test_a_signer_that_expired_since_is_good_on_the_device_and_not_at_the_publisher(
    device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    """By the time of signing: a device in a drawer for years still takes the update that mends it."""
    bundle, seconds = tmp_path / "short.raucb", 3.0
    while True:
        signer, end = short_lived(keys, tmp_path, seconds)
        bundle.unlink(missing_ok=True)
        make_bundle(rootfs, bundle, BundleFacts(BOARD, "1.1.0"), signer)
        if dt.datetime.now(dt.timezone.utc).timestamp() < end:
            break
        seconds *= 2
    time.sleep(max(0.0, end + 1.1 - dt.datetime.now(dt.timezone.utc).timestamp()))
    with pytest.raises(FirmwareError, match="certificate has expired"):
        verify_bundle(bundle, keys / KEYRING)
    assert update(device, bundle) == "installed 1.1.0"


def places(bundle: Path) -> list[int]:
    """Positions over the whole file, all its ends, and many in the signature."""
    content = bundle.read_bytes()
    signature = len(content) - 8 - int.from_bytes(content[-8:], "big")
    assert content[signature] == 0x30  # DER begins
    random_ones = random.Random(3)  # noqa: S311 - positions
    found = {0, len(content) - 1, len(content) - 8, signature, signature - 1, content.find(b"[update]")}
    found |= {len(content) * n // 30 for n in range(30)}
    found |= {random_ones.randrange(signature, len(content)) for _ in range(20)}
    found |= {random_ones.randrange(signature) for _ in range(POSITIONS)}
    return sorted(found)[:: max(1, len(found) // POSITIONS)]


def tampered(bundle: Path, folder: Path, places: Sequence[int]) -> Iterator[tuple[int, Path]]:
    content = bundle.read_bytes()
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        (folder / "bad.raucb").write_bytes(changed)
        yield place, folder / "bad.raucb"


def test_a_bit_changed_anywhere_is_refused(device: RealDevice, good: Path, tmp_path: Path) -> None:
    passed, tried = [], places(good)
    assert len(tried) >= 40
    for place, bad in tampered(good, tmp_path, tried):
        status, _ = device.rauc(["extract", str(bad), str(tmp_path / "content")])
        if status == 0:
            passed.append(place)
        shutil.rmtree(tmp_path / "content", ignore_errors=True)
    assert passed == []


def test_a_bit_changed_in_the_signature_is_refused_before_anything_is_written(
    device: RealDevice, good: Path, tmp_path: Path
) -> None:
    size = good.stat().st_size
    signature = size - 8 - int.from_bytes(good.read_bytes()[-8:], "big")
    tried = list(range(signature, size, max(1, (size - signature) // 40)))
    assert len(tried) >= 40
    for place, bad in tampered(good, tmp_path, tried):
        with pytest.raises(FirmwareError):
            pytest.fail(f"byte {place}: {update(device, bad)}")
    assert untouched(device)


def publish(good: Path, keys: Path, folder: Path) -> Path:
    """An index of real bundles, made with the commands."""
    index, own = folder / "index", folder / "release-keys"
    assert main(["release", "init", str(index), "--keys", str(own)]) == 0
    add = ["release", "add", str(index), str(good), "--keys", str(own), "--keyring", str(keys / KEYRING)]
    assert main(add) == 0
    assert main(add) == 0  # it is there already
    return index


def test_an_index_leads_the_device_to_the_bundle_and_nothing_changed_gets_that_far(
    device: RealDevice, good: Path, keys: Path, tmp_path: Path
) -> None:
    index = publish(good, keys, tmp_path)
    (device.root / "etc/graftwork").mkdir()
    shutil.copy(tmp_path / "release-keys/root.json", device.root / "etc/graftwork/release-root.json")
    [served] = (index / "targets").iterdir()
    content = served.read_bytes()
    tried = places(good)
    for place, bad in tampered(good, tmp_path, tried):
        served.write_bytes(bad.read_bytes())
        with pytest.raises(FirmwareError, match="is not what was signed"):
            pytest.fail(f"byte {place}: {fetch(device, str(index), NOW).text}")
    served.write_bytes(content)
    with pytest.raises(FirmwareError, match="is not good any more"):
        fetch(device, str(index), NOW + 15 * DAY)
    found = fetch(device, str(index), NOW)
    assert found.bundle is not None
    assert update(device, found.bundle) == "installed 1.1.0"


def test_a_bundle_that_does_not_verify_is_not_published(
    good: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(tmp_path / "index", tmp_path / "release-keys", NOW)
    before = sorted(path.name for path in (tmp_path / "index").rglob("*"))
    middle = good.stat().st_size // 2  # in the payload: the signature alone would not tell
    [(_, bad)] = tampered(good, tmp_path, [middle])
    command = ["release", "add", str(tmp_path / "index"), str(bad), "--keys", str(tmp_path / "release-keys")]
    assert main([*command, "--keyring", str(keys / KEYRING)]) == 1
    assert "rauc: " in capsys.readouterr().err
    make_keys(tmp_path / "others", "plant", NOW)
    command[3] = str(good)
    assert main([*command, "--keyring", str(tmp_path / "others" / KEYRING)]) == 1
    assert sorted(path.name for path in (tmp_path / "index").rglob("*")) == before


def test_rauc_takes_a_configuration_with_a_floor(
    device: RealDevice, rootfs: Path, keys: Path, tmp_path: Path
) -> None:
    """That it then refuses what is below is seen only while it installs, on a device."""
    configuration = device.root / "etc/rauc/system.conf"
    lowest = "[system]\nmin-bundle-version=1.0.0\n"
    configuration.write_text(configuration.read_text().replace("[system]\n", lowest))
    status, said = device.rauc(["info", str(bundle_of(rootfs, keys, tmp_path, "1.1.0"))])
    if "Invalid key 'min-bundle-version'" in said:
        pytest.skip("this RAUC is too old to know min-bundle-version; devices have 1.13")
    assert status == 0
