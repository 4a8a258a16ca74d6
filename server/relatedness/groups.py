"""Whether a fleet falls into groups, and into how many; "one group" is an answer, and the usual one.

Any tree can be cut, and every cut of noise looks like groups on the updates that it was made from. So the
tree of one half of the rounds is cut, and the cut is judged by the silhouette (Rousseeuw 1987) on the other
half, both ways. A number of groups is taken where that is more than luck, by a permutation test, and enough
to matter.
"""

from dataclasses import dataclass

import numpy as np

from server.relatedness.directions import Matrix, Relatedness
from server.relatedness.tree import Labels, average_linkage, cut, silhouette

MAXIMUM_GROUPS = 8
FEWEST = 7
MINIMUM_SILHOUETTE = 0.25
"""Below it there is no substantial structure (Kaufman & Rousseeuw 1990)."""
LUCK = 0.05
"""Largest accepted chance that a cut only seems to repeat; fewer than seven devices cannot reach it."""
_DEALS = 199


@dataclass(frozen=True)
class Groups:
    """A suggestion."""

    count: int
    labels: tuple[int, ...]
    """Group of each device, from 0, in the order of the devices."""
    silhouette: float
    """Of the best cut into two or more groups, on rounds that it was not made from."""
    chance: float
    """That labels dealt at random do as well, with any of the numbers of groups that were tried."""
    reason: str


def suggest(found: Relatedness, maximum: int = MAXIMUM_GROUPS) -> Groups:
    """Suggest a number of groups, the smallest of the best.

    Args:
        found: on the devices.
        maximum: most groups.
    """
    count = len(found.devices)
    one = (0,) * count
    if count < FEWEST:
        return Groups(1, one, 0.0, 1.0, f"groups of fewer than {FEWEST} devices cannot be told from luck")
    if found.halves is None:
        return Groups(1, one, 0.0, 1.0, "needs two rounds or more with every device in both halves of them")
    first, second = (1 - half for half in found.halves)
    cuts = {
        groups: (_labels(first, groups), _labels(second, groups))
        for groups in range(2, min(maximum, count // 2) + 1)
    }
    scores = {groups: _held_out(first, second, labels) for groups, labels in cuts.items()}
    best = max(scores, key=lambda groups: scores[groups])
    chance = _luck(first, second, list(cuts.values()), scores[best])
    if chance > LUCK:
        return Groups(1, one, scores[best], chance, "no cut repeats from round to round by more than luck")
    if scores[best] < MINIMUM_SILHOUETTE:
        return Groups(1, one, scores[best], chance, "the devices differ, but without gaps between groups")
    labels = cut(average_linkage(1 - found.cosine), count, best)
    return Groups(best, tuple(labels.tolist()), scores[best], chance, "the cut repeats from round to round")


def _held_out(first: Matrix, second: Matrix, labels: tuple[Labels, Labels]) -> float:
    """Silhouette of the cut of each half on the other, averaged."""
    return (silhouette(second, labels[0]) + silhouette(first, labels[1])) / 2


def _luck(first: Matrix, second: Matrix, cuts: list[tuple[Labels, Labels]], reached: float) -> float:
    """How often the best cut reaches that with labels dealt anew; the observed deal is one of them."""
    random = np.random.Generator(np.random.PCG64(len(first)))
    hits = 1
    for _ in range(_DEALS):
        deal = random.permutation(len(first))
        best = max(_held_out(first, second, (one[deal], other[deal])) for one, other in cuts)
        hits += best >= reached - 1e-12
    return hits / (_DEALS + 1)


def _labels(distances: Matrix, groups: int) -> Labels:
    return cut(average_linkage(distances), len(distances), groups)
