"""From the root file system to what is brought onto a board: the steps of the target's way to boot."""

from firmware_tools.build.plan import Step
from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.ways import way_of


def image_steps(spec: TargetSpec) -> list[Step]:
    """Steps from the root file system to the image."""
    return way_of(spec).after(spec)
