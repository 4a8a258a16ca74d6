"""Errors of setting up a program."""


class SetupError(Exception):
    """A file or setting is not what the program needs; the message says what to do."""
