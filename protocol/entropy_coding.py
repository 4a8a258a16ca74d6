"""Entropy coding of small integers: interleaved static rANS in numpy, several symbols at a time.

Range asymmetric numeral systems (Duda 2013, arXiv:1311.2540) with interleaved lanes (Giesen 2014,
arXiv:1402.3392), so that numpy codes a symbol per lane at once. Where few distinct symbols occur, which is
the rule below 3 bit, a step codes a tuple of them: the symbols are taken as independent, so the frequencies
of the tuples follow from those of the symbols and need no byte, and there are fewer steps. 32-bit states,
16-bit words, frequencies of symbols of 12 bits, of tuples of 14. Body:

    u8       format (high nibble, 1) and log2 of the number of lanes (low nibble)
    varint   number of distinct symbols, then for each: varint gap to the one before (the first: zigzag
             value), varint frequency; frequencies sum to 4096
    u32[]    final encoder state of each lane, little-endian
    u16[]    words in the order in which the decoder takes them, little-endian

The number of symbols is not in the body: the model package fixes it. Bodies of format 0, which journals may
hold, are decoded, too: they code one symbol per step, with its frequency of 12 bits.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.errors import EncodingError

FORMAT = 1
SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
"""What the frequencies of the symbols sum to."""
TUPLE_SCALE_BITS = 14
TUPLE_SCALE = 1 << TUPLE_SCALE_BITS
"""What the frequencies of the tuples sum to."""
MAX_TUPLES = 512
"""More would leave too little of the scale to each; the symbols of a tuple multiply."""
MAX_TUPLE_LENGTH = 5
"""The product of so many frequencies fits into 64 bits."""
LOW = 1 << 16
"""States stand in [LOW, LOW << 16) between steps."""
MEMORY_PER_SYMBOL = 32
"""Bytes that `decode` takes at most for each symbol that is wanted, beside MEMORY_OF_TABLES."""
MEMORY_OF_TABLES = 1 << 20
MAX_LANES_LOG2 = 10
MAX_SYMBOL = 1 << 20


def encode(symbols: NDArray[np.int32]) -> bytes:
    """Encode symbols, int32 [n], n >= 1, |symbol| <= 2**20, at most 4096 distinct ones.

    Raises:
        EncodingError: more, or larger ones.
    """
    values, indices, counts = _distinct(symbols)
    frequencies = _normalise(counts)
    length = _tuple_length(values.size)
    tuple_frequencies = _tuple_frequencies(frequencies, length)
    lanes_log2 = _lanes_log2(symbols.size)
    tuples = _to_tuples(indices, values.size, length, 1 << lanes_log2, int(np.argmax(frequencies)))
    # A state is below 2**32, so that float64 holds it, and the floor of a quotient is exact; numpy divides
    # floats several times faster than integers.
    chosen = tuple_frequencies.astype(np.float64)[tuples]
    starts = (np.cumsum(tuple_frequencies) - tuple_frequencies).astype(np.float64)[tuples]
    ceilings = chosen * float(1 << (32 - TUPLE_SCALE_BITS))
    state = np.full(1 << lanes_log2, float(LOW))
    words: list[NDArray[np.uint16]] = []
    for row in range(tuples.shape[0] - 1, -1, -1):
        full = np.flatnonzero(state >= ceilings[row])
        if full.size:
            leaving = state[full].astype(np.uint32)
            words.append(leaving.astype(np.uint16))  # keeps the low 16 bits
            state[full] = leaving >> np.uint32(16)
        quotient = np.floor(state / chosen[row])
        # quotient * TUPLE_SCALE + remainder + start
        state += quotient * (TUPLE_SCALE - chosen[row]) + starts[row]
    stream = np.concatenate([*words[::-1], np.zeros(0, np.uint16)]).astype("<u2").tobytes()
    table = _write_table(values, frequencies)
    return bytes([FORMAT << 4 | lanes_log2]) + table + state.astype("<u4").tobytes() + stream


def decode(body: bytes, count: int) -> NDArray[np.int32]:
    """Decode exactly `count` symbols, int32 [count].

    Memory: at most MEMORY_PER_SYMBOL * count + MEMORY_OF_TABLES, whatever the body.

    Raises:
        EncodingError: not a body that `encode` writes for `count` symbols.
    """
    if not body or body[0] >> 4 not in (0, FORMAT) or body[0] & 15 != _lanes_log2(count):
        raise EncodingError("unexpected format or number of lanes")
    of_tuples = body[0] >> 4 == FORMAT
    lanes = 1 << (body[0] & 15)
    values, frequencies, position = _read_table(body, 1)
    if len(body) < position + 4 * lanes or (len(body) - position) % 2:
        raise EncodingError("the entropy-coded body ends early")
    length, bits, tuple_frequencies = 1, SCALE_BITS, frequencies
    if of_tuples:
        length, bits = _tuple_length(values.size), TUPLE_SCALE_BITS
        tuple_frequencies = _tuple_frequencies(frequencies, length)
    state = np.frombuffer(body, "<u4", lanes, position).astype(np.uint32)
    words = np.frombuffer(body, "<u2", offset=position + 4 * lanes).astype(np.uint32)
    rows = -(-count // (lanes * length))
    if words.size > rows * lanes:
        raise EncodingError("the entropy-coded body is longer than its symbols can need")
    starts = np.cumsum(tuple_frequencies) - tuple_frequencies
    slot_tuple = np.repeat(np.arange(tuple_frequencies.size), tuple_frequencies)
    slot_frequency = tuple_frequencies[slot_tuple].astype(np.uint32)
    slot_offset = (np.arange(1 << bits) - starts[slot_tuple]).astype(np.uint32)
    slots = np.empty((rows, lanes), np.uint32)
    mask, sixteen, scale_bits = np.uint32((1 << bits) - 1), np.uint32(16), np.uint32(bits)
    taken = 0
    for row in range(rows):
        slot = np.bitwise_and(state, mask, out=slots[row])
        state = slot_frequency[slot] * (state >> scale_bits) + slot_offset[slot]
        low = np.flatnonzero(state < LOW)
        if low.size:
            if taken + low.size > words.size:
                raise EncodingError("the entropy-coded body ends early")
            state[low] = (state[low] << sixteen) | words[taken : taken + low.size]
            taken += low.size
    if taken != words.size or not (state == LOW).all():
        raise EncodingError("the entropy-coded body does not end where its symbols end")
    symbols: NDArray[np.int32] = _members(values, length)[slot_tuple[slots.reshape(-1)]].reshape(-1)
    if of_tuples and (symbols[count:] != values[np.argmax(frequencies)]).any():
        raise EncodingError("the last tuple of the entropy-coded body is not filled up as agreed")
    return np.asarray(symbols[:count])


def _distinct(
    symbols: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct symbols in ascending order, each symbol's index among them, and their counts."""
    lowest, highest = int(symbols.min()), int(symbols.max())
    if max(-lowest, highest) > MAX_SYMBOL:
        raise EncodingError(f"expected symbols up to {MAX_SYMBOL}, got {max(-lowest, highest)}")
    # Counting beats sorting; the range is bounded.
    histogram = np.bincount(symbols - lowest)
    present = np.flatnonzero(histogram)
    if present.size > SCALE:
        raise EncodingError(f"expected at most {SCALE} distinct symbols, got {present.size}")
    place = np.zeros(histogram.size, np.int64)
    place[present] = np.arange(present.size)
    return present + lowest, place[symbols - lowest], histogram[present]


def _tuple_length(distinct: int) -> int:
    """Symbols per step: as many as keep the tuples few."""
    length = 1
    while length < MAX_TUPLE_LENGTH and distinct ** (length + 1) <= MAX_TUPLES:
        length += 1
    return length


def _tuple_frequencies(frequencies: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Frequencies of all tuples, the first symbol the most significant; they sum to TUPLE_SCALE."""
    products = np.ones(1, np.uint64)
    for _ in range(length):
        products = np.multiply.outer(products, frequencies.astype(np.uint64)).reshape(-1)
    return _normalise(products, length * SCALE_BITS, TUPLE_SCALE_BITS)


def _to_tuples(
    indices: NDArray[np.int64], distinct: int, length: int, lanes: int, filler: int
) -> NDArray[np.int64]:
    """Number the tuples, int64 [rows, lanes]; the last row is filled up with the likeliest symbol."""
    rows = -(-indices.size // (lanes * length))
    padded = np.full(rows * lanes * length, filler)
    padded[: indices.size] = indices
    members = padded.reshape(-1, length)
    numbers = members[:, 0]
    for place in range(1, length):
        numbers = numbers * distinct + members[:, place]
    return numbers.reshape(rows, lanes)


def _members(values: NDArray[np.int64], length: int) -> NDArray[np.int32]:
    """The symbols of every tuple, int32 [tuples, length]."""
    places = np.indices((values.size,) * length).reshape(length, -1)
    return np.asarray(values[places.T], np.int32)


def _lanes_log2(count: int) -> int:
    """More lanes are faster and cost 4 bytes each: one for every 1,024 symbols, as a power of two."""
    return min(MAX_LANES_LOG2, max(0, (count // 1024).bit_length() - 1))


def _normalise(
    counts: NDArray[np.int64] | NDArray[np.uint64],
    total_bits: int | None = None,
    scale_bits: int = SCALE_BITS,
) -> NDArray[np.int64]:
    """Scale counts to frequencies >= 1 that sum to 2**scale_bits; in integers, the same everywhere.

    Args:
        counts: at most 2**scale_bits of them.
        total_bits: log2 of their sum, where that is a power of two and products would overflow.
        scale_bits: log2 of the new sum.
    """
    if total_bits is None:
        scaled = counts.astype(np.int64) * (1 << scale_bits) // int(counts.sum())
    elif total_bits >= scale_bits:
        scaled = (counts >> np.uint64(total_bits - scale_bits)).astype(np.int64)
    else:
        scaled = counts.astype(np.int64) << (scale_bits - total_bits)
    frequencies: NDArray[np.int64] = np.maximum(1, scaled)
    excess = int(frequencies.sum()) - (1 << scale_bits)
    for index in np.argsort(-frequencies, kind="stable"):
        if excess == 0:
            break
        # The most frequent symbols give or take, where a unit changes the code length least.
        change = min(excess, int(frequencies[index]) - 1) if excess > 0 else excess
        frequencies[index] -= change
        excess -= change
    return frequencies


def _write_table(values: NDArray[np.int64], frequencies: NDArray[np.int64]) -> bytes:
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
