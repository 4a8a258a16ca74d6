"""Which column of a recording holds each channel of the input schema, and how its values are converted.

In this order: what the device's owner says; a column with the channel's name; an alias of the schema. A
recording in which a channel cannot be found, or a unit that cannot be converted, is refused: a device that
guesses would train on degrees Fahrenheit as if they were Celsius, and nobody would notice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import units
from protocol.errors import DataError, shown
from protocol.input_schema import RESERVED, ColumnSpec, InputSchema

Columns = Mapping[str, ColumnSpec]
"""By channel, what the owner of a device says."""

FLOAT32_LIMIT = 2.0**128 - 2.0**103
"""From half a step above the largest float32 on, rounding goes to infinity."""
_NAMES_SHOWN = 200


class ChannelError(DataError):
    """The columns of a device do not give the channels of the input schema."""

    def __init__(self, message: str, channel: str = "", columns: Sequence[str] = ()) -> None:
        """Say what is wrong.

        Args:
            message: what was expected and what came.
            channel: the one that is missing, if one is.
            columns: of the recording, that may be this channel.
        """
        super().__init__(message)
        self.channel = channel
        self.columns = tuple(columns)


@dataclass(frozen=True)
class Reading:
    """How a channel is read: values of `column` times `scale`, plus `offset`, are in the channel's unit."""

    column: str
    scale: float = 1.0
    offset: float = 0.0

    @property
    def converts(self) -> bool:
        """Whether values change."""
        return (self.scale, self.offset) != (1.0, 0.0)


def check(schema: InputSchema, owner: Columns) -> None:
    """Check what can be checked without a recording: names of channels, and units of owner and aliases.

    Raises:
        ChannelError: names the owner's entry, or the alias.
    """
    if owner and schema.of_images:
        raise ChannelError(f"channels.{min(owner)}: expected none: pictures have no columns")
    for channel, spec in owner.items():
        if channel not in schema.channels:
            raise ChannelError(
                f"channels.{channel[:80]}: expected one of the package's channels, {_names(schema.channels)}"
            )
        _reading(schema, channel, spec, f"channels.{channel}")
    for alias in schema.aliases or ():
        _reading(
            schema, alias.channel, alias.spec, f"alias {shown(alias.column)} of channel {alias.channel!r}"
        )


def resolve(schema: InputSchema, columns: Sequence[str], owner: Columns) -> tuple[Reading, ...]:
    """Find every channel among the columns of a recording.

    Args:
        schema: says which channels there are.
        columns: names of the recording's columns.
        owner: what the device's owner says about channels.

    Returns:
        One reading for each channel, in their order.

    Raises:
        ChannelError: a channel is not there, is there twice, or its unit cannot be converted.
    """
    check(schema, owner)
    readings: list[Reading] = []
    present, used = set(columns), set[str]()
    for channel in schema.channels:
        reading = _found(schema, channel, present, owner)
        if reading is None:
            taken = used | set(schema.channels) | set(RESERVED)
            raise ChannelError(
                f"expected a column {_expected(schema, channel, owner)}, found {_names(columns)}",
                channel,
                [column for column in columns if column not in taken],
            )
        if reading.column in used:
            raise ChannelError(f"column {reading.column!r}: expected for one channel, wanted for two")
        used.add(reading.column)
        readings.append(reading)
    return tuple(readings)


def convert(
    values: NDArray[np.float32], readings: Sequence[Reading], place: str, first: int
) -> NDArray[np.float32]:
    """Bring raw values, float32 [rows, channels], into the units of the channels; the same array if they are.

    Args:
        values: as they stand in the recording.
        readings: one for each channel.
        place: "line" or "row", for messages.
        first: number of the first row.

    Raises:
        DataError: a value leaves the range of float32.
    """
    changed = [index for index, reading in enumerate(readings) if reading.converts]
    if not changed:
        return values
    out: NDArray[np.float32] = values.copy()
    for index in changed:
        reading = readings[index]
        exact = values[:, index].astype(np.float64) * reading.scale + reading.offset
        bad = np.flatnonzero(~(np.abs(exact) < FLOAT32_LIMIT))
        if bad.size:
            raise DataError(
                f"{place} {first + int(bad[0])}: column {reading.column!r}: expected a number in the range "
                f"of float32, got {exact[bad[0]]:g} in the unit of its channel"
            )
        out[:, index] = exact
    return out


def _found(schema: InputSchema, channel: str, columns: Collection[str], owner: Columns) -> Reading | None:
    if channel in owner:
        reading = _reading(schema, channel, owner[channel], f"channels.{channel}")
        return reading if reading.column in columns else None
    if channel in columns:
        return Reading(channel)
    known = [a for a in schema.aliases or () if a.channel == channel and a.column in columns]
    if len(known) > 1:
        raise ChannelError(
            f"channel {channel!r}: expected one of {_names([a.column for a in known])}, found all",
            channel,
            [alias.column for alias in known],
        )
    return _reading(schema, channel, known[0].spec, f"alias {known[0].column!r}") if known else None


def _reading(schema: InputSchema, channel: str, spec: ColumnSpec, where: str) -> Reading:
    wanted = schema.unit(channel)
    scale, offset = 1.0, 0.0
    if spec.unit and not wanted:
        raise ChannelError(
            f"{where}: unit: the package states no unit for channel {channel!r}; expected scale and offset"
        )
    if spec.unit:
        try:
            scale, offset = units.conversion(spec.unit, wanted)
        except ValueError as error:
            raise ChannelError(f"{where}: unit: {error}") from None
    return Reading(spec.column or channel, scale * spec.scale, scale * spec.offset + offset)


def _expected(schema: InputSchema, channel: str, owner: Columns) -> str:
    if channel in owner:
        return f"{owner[channel].column or channel!r} for channel {channel!r}"
    named = [(channel, schema.unit(channel))]
    named += [(alias.column, alias.unit) for alias in schema.aliases or () if alias.channel == channel]
    return " or ".join(f"{column!r} ({unit})" if unit else repr(column) for column, unit in named)[
        :_NAMES_SHOWN
    ]


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)[:_NAMES_SHOWN]
