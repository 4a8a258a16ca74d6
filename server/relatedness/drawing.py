"""The relatedness of a fleet as an operator sees it: matrix, tree and groups in text, and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from server.errors import ServerError
from server.relatedness.directions import Matrix, Relatedness
from server.relatedness.groups import Groups
from server.relatedness.tree import Join, average_linkage, order

NAMED = 120
"""Devices up to which a picture names them."""
CLEARLY = 0.25
"""Cosine from which on a cell is coloured."""


def joins_of(found: Relatedness) -> tuple[Join, ...]:
    """The tree."""
    return average_linkage(1 - found.cosine)


def as_mapping(found: Relatedness, groups: Groups) -> Mapping[str, Any]:
    """For JSON: devices, matrix and groups in the order of the tree; branches by the number of their join."""
    joins, count = joins_of(found), len(found.devices)
    leaves = order(joins, count)
    place = {leaf: position for position, leaf in enumerate(leaves)}
    return {
        "rounds": list(found.rounds),
        "devices": [found.devices[leaf] for leaf in leaves],
        "cosine": [[round(float(found.cosine[row, column]), 4) for column in leaves] for row in leaves],
        "tree": [
            {
                "left": place.get(join.left, join.left),
                "right": place.get(join.right, join.right),
                "cosine": round(1 - join.distance, 4),
                "devices": join.leaves,
            }
            for join in joins
        ],
        "groups": [groups.labels[leaf] for leaf in leaves],
        "suggested_groups": groups.count,
        "silhouette": round(groups.silhouette, 4),
        "chance": round(groups.chance, 4),
        "reason": groups.reason,
    }


def table_of(found: Relatedness, width: int) -> Table | None:
    """The matrix in hundredths, its devices in the order of the tree; columns are numbered as rows are.

    Args:
        found: what to show.
        width: of the terminal, in characters; None is returned where the matrix does not fit into it.
    """
    leaves = order(joins_of(found), len(found.devices))
    if 5 * len(leaves) + max(map(len, found.devices)) + 10 > width:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("device", overflow="fold")
    for number in range(1, len(leaves) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, row in enumerate(leaves, 1):
        cells = [_cell(float(found.cosine[row, column])) for column in leaves]
        table.add_row(str(number), found.devices[row], *cells)
    return table


def tree_of(found: Relatedness, groups: Groups) -> str:
    """The tree, a line per fork (with the mean cosine between its branches) and device (with its group)."""
    joins, count = joins_of(found), len(found.devices)
    lines: list[str] = []
    # What is left to draw, the next one last: branch, what stands before it, what stands before its branches.
    left = [(count + len(joins) - 1, "", "")] if count else []
    while left:
        node, before, below = left.pop()
        if node < count:
            group = f"  group {groups.labels[node] + 1}" if groups.count > 1 else ""
            lines.append(f"{before}─ {found.devices[node]}{group}")
            continue
        join = joins[node - count]
        lines.append(f"{before}┬ {1 - join.distance:.2f}")
        left += [(join.right, f"{below}└─", f"{below}  "), (join.left, f"{below}├─", f"{below}│ ")]
    return "\n".join(lines)


def summary_of(groups: Groups) -> str:
    """The suggestion in a sentence."""
    number = "one group" if groups.count == 1 else f"{groups.count} groups"
    return (
        f"suggested: {number}. {groups.reason} "
        f"(held-out silhouette {groups.silhouette:.2f}, chance of luck {groups.chance:.3f})"
    )


def plot(file: Path, found: Relatedness, groups: Groups) -> None:
    """Write the tree beside the matrix as a picture.

    Raises:
        ServerError: matplotlib is not installed, or does not know the kind of picture.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra of its own, and slow to import

        mpl.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError as error:
        raise ServerError("--plot needs matplotlib: pip install 'graftwork[server,server-plot]'") from error

    joins, count = joins_of(found), len(found.devices)
    leaves = order(joins, count)
    side = float(np.clip(1.5 + 0.17 * count, 3.5, 22))
    figure, (tree, heat) = plt.subplots(
        1, 2, figsize=(side + 3, side + 0.6), width_ratios=(1, side / 2), layout="constrained"
    )
    _dendrogram(tree, joins, leaves)
    ordered = found.cosine[np.ix_(leaves, leaves)]
    picture = heat.imshow(ordered, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    starts = [row for row in range(1, count) if groups.labels[leaves[row]] != groups.labels[leaves[row - 1]]]
    for start in starts:
        heat.axhline(start - 0.5, color="black", linewidth=1)
        heat.axvline(start - 0.5, color="black", linewidth=1)
    heat.set_xticks([])
    heat.yaxis.tick_right()
    names = [found.devices[leaf] for leaf in leaves]
    heat.set_yticks(*((range(count), names) if count <= NAMED else ([],)), fontsize=7)
    number = "one group" if groups.count == 1 else f"{groups.count} groups"
    heat.set_title(f"update cosine of {count} devices over {len(found.rounds)} rounds: {number}", fontsize=10)
    figure.colorbar(picture, ax=heat, shrink=0.6, pad=0.02, label="cosine")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(file, dpi=130)
    except ValueError as error:
        raise ServerError(f"{file}: {error}") from error
    finally:
        plt.close(figure)


def _dendrogram(axis: Any, joins: tuple[Join, ...], leaves: list[int]) -> None:
    """Draw the tree with its leaves on the rows of the matrix, the root at the left."""
    count = len(leaves)
    height: Matrix = np.zeros(count + len(joins))
    middle: Matrix = np.zeros(count + len(joins))
    middle[leaves] = np.arange(count)
    for step, join in enumerate(joins):
        node = count + step
        height[node], middle[node] = join.distance, (middle[join.left] + middle[join.right]) / 2
        for branch in (join.left, join.right):
            axis.plot(
                [join.distance, join.distance, height[branch]],
                [middle[node], middle[branch], middle[branch]],
                color="#444444",
                linewidth=0.9,
            )
    axis.set_xlim(max([1.0, *height]) * 1.03, 0)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_yticks([])
    axis.set_xlabel("1 - cosine", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "left", "right"]].set_visible(False)


def _cell(value: float) -> str:
    text = str(round(100 * value))
    colour = "green" if value >= CLEARLY else "red" if value <= -CLEARLY else ""
    return f"[{colour}]{text}[/{colour}]" if colour else text
