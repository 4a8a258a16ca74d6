"""The tree of devices: average linkage on cosine distances (Sokal & Michener 1958), and its cuts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Join:
    """Two branches become one."""

    left: int
    """A leaf, 0 to n - 1, or n + the number of an earlier join."""
    right: int
    distance: float
    """Mean over all pairs of one leaf of each."""
    leaves: int
    """Of both together."""


def average_linkage(distances: Matrix) -> tuple[Join, ...]:
    """Join the two nearest branches until one is left; ties go to the lowest numbers.

    Args:
        distances: float64 [n, n], symmetric.

    Returns:
        n - 1 joins, by distance.
    """
    count = len(distances)
    current = np.array(distances, np.float64)
    np.fill_diagonal(current, np.inf)
    names, sizes = list(range(count)), np.ones(count)
    joins: list[Join] = []
    for step in range(count - 1):
        row, column = sorted(divmod(int(current.argmin()), count))
        size = sizes[row] + sizes[column]
        merged = (sizes[row] * current[row] + sizes[column] * current[column]) / size
        joins.append(Join(names[row], names[column], float(current[row, column]), int(size)))
        current[row] = current[:, row] = merged
        current[column] = current[:, column] = current[row, row] = np.inf
        names[row], sizes[row] = count + step, size
    return tuple(joins)


def order(joins: tuple[Join, ...], count: int) -> list[int]:
    """The leaves as they hang on the tree, from top to bottom."""
    if count < 2:
        return list(range(count))
    hanging: dict[int, list[int]] = {leaf: [leaf] for leaf in range(count)}
    for step, join in enumerate(joins):
        hanging[count + step] = hanging.pop(join.left) + hanging.pop(join.right)
    [leaves] = hanging.values()
    return leaves


def cut(joins: tuple[Join, ...], count: int, clusters: int) -> Labels:
    """Cluster of each leaf, int64 [n], numbered by first occurrence on the tree."""
    branch = {leaf: [leaf] for leaf in range(count)}
    for step, join in enumerate(joins[: count - clusters]):
        branch[count + step] = branch.pop(join.left) + branch.pop(join.right)
    place = {leaf: index for index, leaf in enumerate(order(joins, count))}
    labels = np.zeros(count, np.int64)
    for number, leaves in enumerate(
        sorted(branch.values(), key=lambda one: min(place[leaf] for leaf in one))
    ):
        labels[leaves] = number
    return labels


def silhouette(distances: Matrix, labels: Labels) -> float:
    """Mean silhouette (Rousseeuw 1987), -1 to 1: how much nearer the own cluster is than the next one.

    Args:
        distances: float64 [n, n].
        labels: int64 [n], two clusters or more; a leaf alone in its cluster counts 0.
    """
    member = labels[:, None] == np.unique(labels)[None, :]
    sizes = member.sum(0)
    to_clusters = distances @ member
    own = sizes[member.argmax(1)]
    inside = to_clusters[member] / np.maximum(own - 1, 1)
    outside = np.where(member, np.inf, to_clusters / sizes).min(1)
    scores = np.where(own > 1, (outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12), 0)
    return float(scores.mean())
