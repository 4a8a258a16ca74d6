"""Entropy coding of small integers: interleaved static rANS in numpy.

Range asymmetric numeral systems (Duda 2013, arXiv:1311.2540) with several interleaved lanes (Giesen 2014,
arXiv:1402.3392), so that numpy codes a symbol per lane at once. 32-bit states, 16-bit words, frequencies
of 12 bits. Body:

    u8       log2 of the number of lanes
    varint   number of distinct symbols, then for each: varint gap to the one before (the first: zigzag
             value), varint frequency; frequencies sum to 4096
    u32[]    final encoder state of each lane, little-endian
    u16[]    words in the order in which the decoder takes them, little-endian

The number of symbols is not in the body: the model package fixes it.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.errors import EncodingError

SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
LOW = 1 << 16
"""States stand in [LOW, LOW << 16) between symbols."""
MAX_LANES_LOG2 = 10
MAX_SYMBOL = 1 << 20


def encode(symbols: NDArray[np.int32]) -> bytes:
    """Encode symbols, int32 [n], n >= 1, |symbol| <= 2**20, at most 4096 distinct ones."""
    lanes_log2 = _lanes_log2(symbols.size)
    lanes = 1 << lanes_log2
    values, indices, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    if values.size > SCALE or max(-int(values[0]), int(values[-1])) > MAX_SYMBOL:
        raise EncodingError(f"expected at most {SCALE} distinct symbols up to {MAX_SYMBOL}")
    frequencies = _normalise(counts)
    starts = np.cumsum(frequencies) - frequencies
    padded = np.full(-(-symbols.size // lanes) * lanes, int(np.argmax(counts)))
    padded[: symbols.size] = indices
    rows = padded.reshape(-1, lanes)
    row_frequencies = frequencies[rows].astype(np.uint64)
    row_starts = starts[rows].astype(np.uint64)
    ceilings = row_frequencies << np.uint64(32 - SCALE_BITS)
    state = np.full(lanes, LOW, np.uint64)
    words: list[NDArray[np.uint16]] = []
    sixteen, scale_bits = np.uint64(16), np.uint64(SCALE_BITS)
    for row in range(rows.shape[0] - 1, -1, -1):
        full = state >= ceilings[row]
        words.append(state[full].astype(np.uint16))  # keeps the low 16 bits
        state[full] >>= sixteen
        quotient, rest = np.divmod(state, row_frequencies[row])
        state = (quotient << scale_bits) + rest + row_starts[row]
    table = _write_table(values, frequencies)
    stream = np.concatenate(words[::-1]).astype("<u2").tobytes()
    return bytes([lanes_log2]) + table + state.astype("<u4").tobytes() + stream


def decode(body: bytes, count: int) -> NDArray[np.int32]:
    """Decode exactly `count` symbols, int32 [count].

    Raises:
        EncodingError: not a body that `encode` writes for `count` symbols.
    """
    if not body or body[0] != _lanes_log2(count):
        raise EncodingError("unexpected number of lanes")
    lanes = 1 << body[0]
    values, frequencies, position = _read_table(body, 1)
    if len(body) < position + 4 * lanes or (len(body) - position) % 2:
        raise EncodingError("the entropy-coded body ends early")
    state = np.frombuffer(body, "<u4", lanes, position).astype(np.uint64)
    words = np.frombuffer(body, "<u2", offset=position + 4 * lanes).astype(np.uint64)
    rows = -(-count // lanes)
    if words.size > rows * lanes:
        raise EncodingError("the entropy-coded body is longer than its symbols can need")
    slot_symbol = np.repeat(np.arange(values.size), frequencies)
    slot_frequency = frequencies[slot_symbol].astype(np.uint64)
    slot_offset = (np.arange(SCALE) - (np.cumsum(frequencies) - frequencies)[slot_symbol]).astype(np.uint64)
    slots = np.empty((rows, lanes), np.int64)
    mask, sixteen, scale_bits = np.uint64(SCALE - 1), np.uint64(16), np.uint64(SCALE_BITS)
    taken = 0
    for row in range(rows):
        slot = (state & mask).astype(np.int64)
        slots[row] = slot
        state = slot_frequency[slot] * (state >> scale_bits) + slot_offset[slot]
        low = np.flatnonzero(state < LOW)
        if low.size:
            if taken + low.size > words.size:
                raise EncodingError("the entropy-coded body ends early")
            state[low] = (state[low] << sixteen) | words[taken : taken + low.size]
            taken += low.size
    if taken != words.size or not (state == LOW).all():
        raise EncodingError("the entropy-coded body does not end where its symbols end")
    return np.asarray(values[slot_symbol[slots.reshape(-1)[:count]]], np.int32)


def _lanes_log2(count: int) -> int:
    """More lanes are faster and cost 4 bytes each: one for every 1,024 symbols, as a power of two."""
    return min(MAX_LANES_LOG2, max(0, (count // 1024).bit_length() - 1))


def _normalise(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Scale counts to frequencies >= 1 that sum to SCALE."""
    frequencies: NDArray[np.int64] = np.maximum(1, counts * SCALE // counts.sum())
    excess = int(frequencies.sum()) - SCALE
    for index in np.argsort(-frequencies, kind="stable"):
        if excess == 0:
            break
        # The most frequent symbols give or take, where a unit changes the code length least.
        change = min(excess, int(frequencies[index]) - 1) if excess > 0 else excess
        frequencies[index] -= change
        excess -= change
    return frequencies


def _write_table(values: NDArray[np.int32], frequencies: NDArray[np.int64]) -> bytes:
    out = bytearray(_varint(values.size))
    previous = None
    for value, frequency in zip(values.tolist(), frequencies.tolist(), strict=True):
        gap = (value << 1 if value >= 0 else (-value << 1) - 1) if previous is None else value - previous
        out += _varint(gap) + _varint(frequency)
        previous = value
    return bytes(out)


def _read_table(body: bytes, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    size, position = _read_varint(body, position)
    if not 1 <= size <= SCALE:
        raise EncodingError(f"expected 1 to {SCALE} distinct symbols, got {size}")
    values, frequencies = np.empty(size, np.int64), np.empty(size, np.int64)
    value = 0
    for index in range(size):
        gap, position = _read_varint(body, position)
        frequency, position = _read_varint(body, position)
        if index == 0:
            value = gap >> 1 if gap % 2 == 0 else -((gap + 1) >> 1)
        elif gap < 1:
            raise EncodingError("expected symbols in ascending order")
        else:
            value += gap
        if abs(value) > MAX_SYMBOL or not 1 <= frequency <= SCALE:
            raise EncodingError("symbol or frequency out of range")
        values[index], frequencies[index] = value, frequency
    if frequencies.sum() != SCALE:
        raise EncodingError(f"expected frequencies that sum to {SCALE}, got {frequencies.sum()}")
    return values, frequencies, position


def _varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the low ones first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        if position >= len(body):
            raise EncodingError("the symbol table ends early")
        byte = body[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise EncodingError("a number of the symbol table is too long")
