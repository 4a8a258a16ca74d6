"""Spoken digits: a device is a microphone that one person uses, two per person, so a fleet of 12.

A person is a domain: another voice, accent and microphone, a hard shift. Both devices of a person have takes
of their own. The devices hear what an audio front end gives: the energy in 24 bands of pitch, 62.5 times a
second. A backbone on the waveform itself (4 kHz, conv1d, the same source devices) knew 35 % of other people's
digits, one on the bands 48 %, with less than half the values per clip and a seventh of the arithmetic.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.fleet import Device, FleetDescription, Split
from protocol.input_schema import InputSchema, WindowSpec
from protocol.recording import Recording
from simulation.recordings import write_fleet_description, write_recording

DESCRIPTION = (
    "Free Spoken Digit Dataset (Jackson et al.), from github.com/Jakobovski/free-spoken-digit-dataset. "
    "Licence: CC BY-SA 4.0. 8 kHz speech as log(1 + energy) in 24 mel bands at 62.5 Hz; each clip in the "
    "middle of 1.04 s, with silence around it; of longer clips the middle."
)
SAMPLE_RATE_HZ = 8_000
FRAME, HOP = 256, 128
"""Samples: 32 ms of sound at every 16 ms."""
FRAMES = 64
"""Rows of a window, one clip: 1.04 s; 99.5 % of the clips are no longer."""
BANDS = 24
LOWEST_HZ = 60.0
QUIET = 1e6
"""Energy, in squared 16-bit samples: what is far below comes out as 0, like the silence around a clip."""
SOURCE_SPEAKERS = ("george", "jackson")
DEVICES_PER_SPEAKER = 2
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCHEMA = InputSchema(
    "timeseries", tuple(f"band{band:02d}" for band in range(BANDS)), SAMPLE_RATE_HZ / HOP, DIGITS
)


def import_fleet(source: Path, target: Path) -> None:
    """Write 12 devices, 24 channels, a recording per digit with one window per take; two speakers are source.

    A recording per take would leave pre-training nothing to hold out: it holds out the end of each recording.

    Raises:
        FileNotFoundError: fsdd_audio.npz is missing in `source`.
        KeyError, ValueError: it holds other arrays, or sound at another rate.
    """
    with np.load(source / "fsdd_audio.npz") as data:
        samples, offsets, takes = data["x"], data["offsets"], data["index"]
        digits, speakers, rate = data["y"], data["speaker"], int(data["sample_rate"])
    if rate != SAMPLE_RATE_HZ:
        raise ValueError(f"expected sound at {SAMPLE_RATE_HZ} Hz, got {rate}")
    bands = _mel_bands()
    devices = []
    for speaker in np.unique(speakers).tolist():
        role = "source" if speaker in SOURCE_SPEAKERS else "edge"
        for part in range(DEVICES_PER_SPEAKER):
            device = Device(f"{speaker}-{part}", speaker, role)
            devices.append(device)
            folder = target / device.id
            folder.mkdir(parents=True)
            for digit, name in enumerate(DIGITS):
                clips = np.flatnonzero((speakers == speaker) & (digits == digit))
                if len(clips) < DEVICES_PER_SPEAKER:
                    wanted = f"at least {DEVICES_PER_SPEAKER} takes of {name} by {speaker}"
                    raise ValueError(f"expected {wanted}, found {len(clips)}")
                clips = np.array_split(clips[np.argsort(takes[clips])], DEVICES_PER_SPEAKER)[part]
                rows = [_energies(samples[offsets[clip] : offsets[clip + 1]], bands) for clip in clips]
                labels = np.full(len(rows) * FRAMES, digit, np.int64)
                file = f"{digit}-{name}.parquet"
                write_recording(folder / file, Recording(file, np.concatenate(rows), labels), SCHEMA)
    window = WindowSpec(FRAMES, FRAMES)
    fleet = FleetDescription(SCHEMA, window, tuple(devices), Split("time"), "fsdd_audio", DESCRIPTION)
    write_fleet_description(target, fleet)


def _energies(clip: NDArray[np.int16], bands: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return log(1 + energy) of a clip: float32 [FRAMES, BANDS]."""
    length = (FRAMES - 1) * HOP + FRAME
    first = max(0, len(clip) - length) // 2
    middle = clip[first : first + length].astype(np.float64)
    before = (length - len(middle)) // 2
    sound = np.pad(middle, (before, length - len(middle) - before))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return np.log1p(power @ bands / QUIET).astype(np.float32)


def _mel_bands() -> NDArray[np.float64]:
    """Triangles of equal width on the mel scale (Davis and Mermelstein 1980), [FRAME // 2 + 1, BANDS]."""

    def mel(hertz: float) -> float:
        return float(2595 * np.log10(1 + hertz / 700))

    edges = 700 * (10 ** (np.linspace(mel(LOWEST_HZ), mel(SAMPLE_RATE_HZ / 2), BANDS + 2) / 2595) - 1)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    hertz = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE_HZ)[:, np.newaxis]
    rising, falling = (hertz - lower) / (centre - lower), (upper - hertz) / (upper - centre)
    bands: NDArray[np.float64] = np.minimum(rising, falling).clip(0)
    return bands
