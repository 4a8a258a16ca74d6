"""Errors that the owner of a device sees."""


class AgentError(Exception):
    """Something on the device that its owner can mend; the message says what."""


class EngineError(AgentError):
    """A training engine refuses its model or its input."""
