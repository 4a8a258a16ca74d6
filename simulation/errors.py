"""Errors of an experiment."""


class SimulationError(Exception):
    """An experiment cannot start or go on; the message says why."""
