"""Errors of the protocol: one root, so that a boundary can catch everything a peer may have caused."""

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = 12


def shown(value: object) -> str:
    """Cut the `repr` of a value for an error's text.

    What a peer sent may be megabytes, and ten times that where its characters have to be escaped.
    """
    return _SHORT.repr(value)


class ProtocolError(Exception):
    """Something that came from outside is not what the protocol allows."""


class EncodingError(ProtocolError):
    """Bytes are not the bounded, canonical encoding that was expected."""


class SchemaError(ProtocolError):
    """Decoded data do not have the expected fields, types or ranges."""


class SignatureError(ProtocolError):
    """A signature is missing, broken, or by another key."""


class IdentityError(ProtocolError):
    """A device is not registered, was revoked, or let its certificate expire."""


class LimitError(ProtocolError):
    """A device sends more than it may; the text is the name of the limit."""


class SealingError(ProtocolError):
    """A message is not sealed, or not to the expected key and context."""


class TrustError(ProtocolError):
    """A root of trust, or what rests on it, is not signed by enough of the right keys, too old or expired."""


class ArtifactError(ProtocolError):
    """A package, chunk or archive does not match its manifest."""


class DataError(ProtocolError):
    """A recording or fleet description is malformed; the message names file, row and expectation."""
