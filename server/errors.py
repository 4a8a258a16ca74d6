"""Errors that an operator sees."""


class ServerError(Exception):
    """Something on the server's side that an operator can mend; the message says what."""
