"""Update cosine: which devices pull the adapter the same way, measured over several rounds.

After FedAMP and clustered federated learning (Huang et al. 2021, arXiv:2007.03797; Sattler et al. 2020,
arXiv:1910.01991). All devices of a round start from one release, so most of each update is what all have in
common; only the difference to the round's mean tells devices apart. One such difference is mostly noise: of
the batches' order, of few labels, of the quantiser. So they are averaged over rounds before cosines are
taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SKETCH = 1 << 14
"""Parameters above which vectors are sketched to this length: memory is then bounded by the devices alone."""
_SEED = 200_703_797


@dataclass(frozen=True)
class Relatedness:
    """What the updates of some rounds say of the devices."""

    devices: tuple[str, ...]
    """In alphabetical order."""
    cosine: Matrix
    """float64 [devices, devices], symmetric, -1 to 1, 1 on the diagonal."""
    rounds: tuple[int, ...]
    """Numbers of the rounds that were looked at."""
    halves: tuple[Matrix, Matrix] | None = None
    """The same of every other round each, to see what repeats; None: not every device is in both."""


class Directions:
    """Each device's sum of differences to its rounds' means."""

    def __init__(self, parameters: int) -> None:
        """Start with no round.

        Args:
            parameters: of the adapter.
        """
        self._sketch = _Sketch(parameters) if parameters > SKETCH else None
        self._sums: tuple[dict[str, Matrix], dict[str, Matrix]] = ({}, {})
        self._rounds: list[int] = []

    def add_round(
        self, number: int, devices: Sequence[str], updates: Sequence[Matrix], weights: Sequence[float]
    ) -> None:
        """Look at the updates of a round, which all start from one release.

        Args:
            number: of the round; one by one, in any order.
            devices: who sent them.
            updates: float64 [parameters] each.
            weights: labelled windows behind each; above the median they count as the median.
        """
        if len(devices) < 2:
            return  # nobody to differ from
        vectors = np.stack([self._sketch(update) if self._sketch else update for update in updates])
        centred = vectors - _bounded_mean(vectors, np.asarray(weights, np.float64))
        half = self._sums[len(self._rounds) % 2]
        self._rounds.append(number)
        for device, difference in zip(devices, centred, strict=True):
            half[device] = half[device] + difference if device in half else difference

    def in_both_halves(self) -> tuple[str, ...]:
        """Devices whose updates are in every other round and in the rounds between, in alphabetical order."""
        return tuple(sorted({*self._sums[0]} & {*self._sums[1]}))

    def sum_of(self, device: str) -> Matrix:
        """Sum of a device's differences to its rounds' means, float64 [parameters, or SKETCH]."""
        none = np.zeros(1)
        one, other = (half.get(device, none) for half in self._sums)
        return np.asarray(one + other)

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that were seen, in alphabetical order."""
        return tuple(sorted({*self._sums[0], *self._sums[1]}))

    def relatedness(self, devices: Sequence[str] | None = None) -> Relatedness:
        """What all rounds say together.

        Args:
            devices: of whom; by default of all.
        """
        chosen = self.devices if devices is None else tuple(sorted(devices))
        halves = None
        if chosen and set(chosen) <= set(self.in_both_halves()):
            first, second = ([half[device] for device in chosen] for half in self._sums)
            halves = (cosines(np.stack(first)), cosines(np.stack(second)))
        total = [self.sum_of(device) for device in chosen]
        cosine = cosines(np.stack(total)) if chosen else np.zeros((0, 0))
        return Relatedness(chosen, cosine, tuple(sorted(self._rounds)), halves)


def cosines(vectors: Matrix) -> Matrix:
    """Cosines of the rows of float64 [n, d], float64 [n, n]; a row of zeros is like none but itself."""
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(norms > 0, norms, 1)[:, None]
    found = np.clip(unit @ unit.T, -1, 1)
    found = (found + found.T) / 2
    np.fill_diagonal(found, 1)
    return np.asarray(found)


def _bounded_mean(vectors: Matrix, weights: Matrix) -> Matrix:
    """Mean to which no device adds more than the median device, float64 [d]: so a liar cannot become it."""
    norms = np.linalg.norm(vectors, axis=1)
    scale = np.minimum(1, np.median(norms) / np.where(norms > 0, norms, 1))
    shares = np.minimum(weights, np.median(weights))
    return np.asarray((shares * scale) @ vectors / shares.sum())


class _Sketch:
    """Count sketch (Charikar et al. 2002): sums of randomly signed parts; a cosine errs by 0.01."""

    def __init__(self, parameters: int) -> None:
        random = np.random.Generator(np.random.PCG64(_SEED))
        self._bucket = random.integers(0, SKETCH, parameters)
        self._sign = random.choice(np.array([-1.0, 1.0]), parameters)

    def __call__(self, vector: Matrix) -> Matrix:
        return np.asarray(np.bincount(self._bucket, vector * self._sign, SKETCH), np.float64)
