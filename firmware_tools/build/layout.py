"""The partitions of a target's images; which ones it has depends on its way to boot.

    seed       FAT    who the device is to be: written by `provision into`, taken at the first boot
    identity   ext4   the device's keys, made at the first boot
    data       ext4   all else that lasts, made at the first boot; the last one, so that it can grow

These are on every image; slots and what boots them stand in build/ways.
"""

from firmware_tools.build.partitions import SLOTS, Layout, Partition, lay_out
from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.ways import way_of

__all__ = ["SLOTS", "Layout", "Partition", "layout_of"]


def layout_of(spec: TargetSpec) -> Layout:
    """The partitions that a target's images have."""
    return lay_out(spec, way_of(spec).partitions(spec))
