"""Ways to boot: what an image is made of depends on what starts its kernel, and is said here alone."""

from collections.abc import Mapping

from firmware_tools.build.spec import TargetSpec
from firmware_tools.build.ways import grub_efi, jetson, rpi_tryboot
from firmware_tools.build.ways.way import WayToBoot

WAYS: Mapping[str, WayToBoot] = {
    "grub-efi": grub_efi.GrubEfi(),
    "rpi-tryboot": rpi_tryboot.RaspberryPi(),
    "jetson": jetson.Jetson(),
}


def way_of(spec: TargetSpec) -> WayToBoot:
    """The way that a target boots."""
    return WAYS[spec.boot]
