"""Bars of several figures side by side, written as a picture: ours in green, others in grey."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OURS, OTHERS = "#1b7f5c", "#9a9a9a"


@dataclass(frozen=True)
class Panel:
    """One figure of all contestants."""

    title: str
    values: Sequence[float]
    """One for each contestant, in their order."""


def draw(
    file: Path, names: Sequence[str], others: Sequence[str], panels: Sequence[Panel], height: float
) -> None:
    """Write the picture.

    Args:
        file: where to; its format follows from its name.
        names: of the contestants, from top to bottom.
        others: those of them that are not ours.
        panels: from left to right.
        height: of the picture, in inches.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only for --plot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(panels), figsize=(12, height), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        bars = axis.barh(names, panel.values, color=[OTHERS if name in others else OURS for name in names])
        axis.bar_label(bars, labels=[f"{value:.3g}" for value in panel.values], padding=3, fontsize=8)
        axis.set_title(panel.title, fontsize=10)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].invert_yaxis()
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
