"""Errors of the firmware room."""


class FirmwareError(Exception):
    """Something on the fleet engineer's side is not as it should be; the message says what to do."""
