"""Importers on small archives of the real layout: what is parsed, where it goes and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import DataError
from protocol.recording import Recording
from simulation.importers import import_dataset
from simulation.importers.smellnet_gas import GASES, KINDS
from simulation.recordings import read_device, read_fleet

FOODS = [food for foods in KINDS.values() for food in foods]
SILENCE = 1e-6


def write(folder: Path, name: str, arrays: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder


def joined(parts: list[NDArray[Any]]) -> dict[str, Any]:
    return {"x": np.concatenate(parts), "offsets": np.cumsum([0, *(len(part) for part in parts)])}


def read(target: Path) -> dict[str, dict[str, Recording]]:
    fleet = read_fleet(target)
    found = {device.id: read_device(target, fleet, device) for device in fleet.devices}
    assert [error for device in found.values() for error in device.errors] == []
    return {identity: {part.name: part for part in device.recordings} for identity, device in found.items()}


def smells() -> dict[str, Any]:
    """Six takes of 50 foods and an online one of an almond; 25 rows, NO2 says which take, CO which food.

    The channels come in another order than the fleet has them, and the test takes before the others.
    """
    takes = [("offline_testing", 5), *(("offline_training", take) for take in range(5))]
    names = [(food, split, take) for split, take in takes for food in FOODS] + [("almond", "online_nuts", 9)]
    channels = [*reversed(GASES), "Pressure"]
    parts = []
    for food, _, take in names:
        rows = np.full((25, len(channels)), 7.0)
        rows[:, channels.index("NO2")] = take
        rows[:, channels.index("CO")] = FOODS.index(food)
        rows[:, channels.index("Benzene")] = 2**32 - 3
        parts.append(rows)
    # Cut off: what is there has moved into other columns.
    parts[-1][-1] = [23.0, 0.0, 25.5, 1_019.0, 26.0, 527.5, -19.5, np.nan]
    foods, splits, _ = zip(*names, strict=True)
    arrays = {"substance": np.array(foods), "split": np.array(splits), "channels": np.array(channels)}
    return joined(parts) | arrays


def test_smells_go_to_the_nose_of_their_stall(tmp_path: Path) -> None:
    source = write(tmp_path / "smellnet_gas", "smellnet_gas", smells())
    import_dataset("smellnet_gas", source, tmp_path / "fleet")
    noses = read(tmp_path / "fleet")
    assert len(noses) == 11
    for identity in set(noses) - {"online"}:
        stall, nose = int(identity[5]), int(identity[-1])
        expected = {
            f"{take}-{food}.csv": (take, FOODS.index(food), label)
            for take in range(3 * nose, 3 * nose + 3)
            for label, foods in enumerate(KINDS.values())
            for food in foods[2 * stall : 2 * stall + 2]
        }
        found = {
            name: (part.samples[0, 0], part.samples[0, 3], part.labels[0])
            for name, part in noses[identity].items()
        }
        assert found == expected
    assert set(noses["online"]) == {"0-almond.csv"}


def test_wrapped_counts_are_negative_and_a_cut_off_row_is_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "smellnet_gas", "smellnet_gas", smells())
    import_dataset("smellnet_gas", source, tmp_path / "fleet")
    [almond] = read(tmp_path / "fleet")["online"].values()
    assert almond.samples.tolist() == [[9.0, 7.0, 7.0, 0.0, 7.0, 7.0, -3.0]] * 24
    assert almond.labels.tolist() == [0] * 24


def test_a_food_of_no_known_kind_is_refused_by_name(tmp_path: Path) -> None:
    arrays = smells()
    arrays["substance"][3] = "durian"
    source = write(tmp_path / "smellnet_gas", "smellnet_gas", arrays)
    with pytest.raises(DataError, match=r"expected the 50 foods of SmellNet, found also durian"):
        import_dataset("smellnet_gas", source, tmp_path / "fleet")


def test_a_missing_gas_channel_is_refused_by_name(tmp_path: Path) -> None:
    arrays = smells()
    arrays["channels"][0] = "Methane"
    source = write(tmp_path / "smellnet_gas", "smellnet_gas", arrays)
    with pytest.raises(
        DataError, match=r"does not hold the expected data: expected channels .*, found .*Meth"
    ):
        import_dataset("smellnet_gas", source, tmp_path / "fleet")


def tones(takes: int = 2, rate: int = 8_000) -> dict[str, Any]:
    """Two people say ten digits: a tone of 200 Hz more per digit, louder with each take; takes in no order.

    The last take of the second person is longer than a window.
    """
    parts, digits, speakers, indices = [], [], [], []
    for speaker in ("ann", "george"):
        for take in reversed(range(takes)):
            for digit in range(10):
                length = 12_000 if (speaker, take) == ("george", takes - 1) else 2_000
                wave = 1_000 * (take + 1) * np.sin(2 * np.pi * 200 * (digit + 1) * np.arange(length) / 8_000)
                parts.append(wave.astype(np.int16))
                digits.append(digit)
                speakers.append(speaker)
                indices.append(take)
    return joined(parts) | {
        "y": np.array(digits, np.uint8),
        "speaker": np.array(speakers),
        "index": np.array(indices, np.uint8),
        "sample_rate": np.array(rate, np.int32),
    }


def test_a_clip_is_one_window_of_energies_with_silence_around_it(tmp_path: Path) -> None:
    source = write(tmp_path / "fsdd_audio", "fsdd_audio", tones())
    import_dataset("fsdd_audio", source, tmp_path / "fleet")
    fleet, devices = read_fleet(tmp_path / "fleet"), read(tmp_path / "fleet")
    assert {device.id: device.role for device in fleet.devices} == {
        "ann-0": "edge",
        "ann-1": "edge",
        "george-0": "source",
        "george-1": "source",
    }
    parts = list(devices["ann-0"].values())
    assert [len(part.labels) for part in parts] == [fleet.window.length] * 10
    assert [part.labels[0] for part in parts] == list(range(10))
    for part in parts:
        loud = np.flatnonzero(part.samples.max(1) > SILENCE)
        # 2,000 samples in the middle of 64 frames that begin every 128 samples.
        assert (loud[0], loud[-1]) == (23, 40)
        assert (part.samples >= 0).all()
    pitch = [int(part.samples.sum(0).argmax()) for part in parts]
    assert pitch == sorted(set(pitch)), "each higher tone is in a higher band"


def test_takes_are_in_order_of_time_and_long_ones_lose_their_ends(tmp_path: Path) -> None:
    source = write(tmp_path / "fsdd_audio", "fsdd_audio", tones(takes=4))
    import_dataset("fsdd_audio", source, tmp_path / "fleet")
    devices = read(tmp_path / "fleet")
    loudness = [
        float(window.max())
        for half in ("george-0", "george-1")
        for window in np.split(devices[half]["5-five.parquet"].samples, 2)
    ]
    assert loudness == sorted(loudness)
    assert (devices["george-1"]["5-five.parquet"].samples[64:].max(1) > 1).all(), "no silence around it"


def test_sound_at_another_rate_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "fsdd_audio", "fsdd_audio", tones(rate=16_000))
    with pytest.raises(DataError, match=r"expected sound at 8000 Hz, got 16000"):
        import_dataset("fsdd_audio", source, tmp_path / "fleet")


def test_too_few_takes_for_two_devices_are_refused_by_person_and_digit(tmp_path: Path) -> None:
    source = write(tmp_path / "fsdd_audio", "fsdd_audio", tones(takes=1))
    with pytest.raises(DataError, match=r"expected at least 2 takes of zero by ann, found 1"):
        import_dataset("fsdd_audio", source, tmp_path / "fleet")


@pytest.mark.parametrize("name", ["fsdd_audio", "smellnet_gas"])
def test_an_archive_of_another_data_set_names_the_missing_array(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / name, name, {"x": np.zeros(3), "offsets": np.array([0, 3])})
    with pytest.raises(DataError, match=rf"data set '{name}': .* does not hold the expected data: .*archive"):
        import_dataset(name, source, tmp_path / "fleet")
