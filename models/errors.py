"""Errors of the models room: one root, so that the command line can turn any of them into one line."""


class ModelError(Exception):
    """A model, its data or its package is not what this room can work with.

    Attributes:
        hint: what the user can do about it; empty when the message says it all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message and the hint apart, so that a screen can set them on two lines."""
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}; {self.hint}" if self.hint else message


class AdapterError(ModelError):
    """An adapter cannot be put where it was asked for."""


class ExportError(ModelError):
    """A module cannot become a model package; the message names the layer or operator."""


class TrainingError(ModelError):
    """Pre-training cannot work with the fleet's data."""
