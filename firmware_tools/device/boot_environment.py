"""Which slot boots: two checksummed copies on a small FAT partition, overwritten in place, one at a time.

    state0, state1           1,024 bytes as GRUB's load_env reads them: sequence, primary, a_state, b_state
    state0.sum, state1.sum   SHA-256 of the copy beside it, as GRUB's sha256sum --check reads it
    tries                    boots of each slot since it was last healthy; GRUB counts, health sets back

A change goes to the copy with the lower sequence, or to the damaged one: first the copy, then its checksum,
each to the disk. A power cut in between leaves that copy without a right checksum, and the other one holds.
The files keep their size and place, so nothing of the file system changes.

States of a slot: "good" was healthy once; "trial" was just installed, and boots as long as its tries last;
"bad" does not boot. GRUB gives every slot three tries.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from firmware_tools.errors import FirmwareError

SLOTS = ("A", "B")
GOOD, TRIAL, BAD = "good", "trial", "bad"
STATES = (GOOD, TRIAL, BAD)
TRIES = 3
BLOCK = 1024
_HEADER = b"# GRUB Environment Block\n"
_COPIES = (0, 1)


@dataclass(frozen=True)
class BootState:
    """What GRUB decides by."""

    sequence: int = 1
    """Grows with every change."""
    primary: str = "A"
    """The slot that is tried first."""
    a_state: str = GOOD
    b_state: str = BAD

    def __post_init__(self) -> None:
        if self.primary not in SLOTS or not {self.a_state, self.b_state} <= set(STATES):
            raise ValueError(f"expected a slot of {SLOTS} and states of {STATES}, got {self}")
        if not 1 <= self.sequence < 1 << 31:
            raise ValueError(f"sequence: expected 1 to 2**31 - 1, got {self.sequence}")

    def state_of(self, slot: str) -> str:
        """State of a slot."""
        return self.a_state if slot == "A" else self.b_state

    def with_state(self, slot: str, state: str) -> "BootState":
        """The same with another state of a slot."""
        return replace(self, a_state=state) if slot == "A" else replace(self, b_state=state)


class BootEnvironment:
    """The files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> BootState:
        """The copy with the higher sequence, of those that are whole.

        Raises:
            FirmwareError: neither is.
        """
        found = [state for state in map(self._copy, _COPIES) if state is not None]
        if not found:
            raise FirmwareError(f"{self._folder}: neither copy of the boot environment is whole")
        return max(found, key=lambda state: state.sequence)

    def copies(self) -> tuple[BootState | None, BootState | None]:
        """Both copies; None: it is damaged."""
        return self._copy(0), self._copy(1)

    def write(self, state: BootState) -> BootState:
        """Change what GRUB decides by; returns what was written, with its sequence.

        Raises:
            FirmwareError: what was written does not read back; the other copy still holds.
        """
        copies = self.copies()
        sequences = [-1 if copy is None else copy.sequence for copy in copies]
        number = sequences.index(min(sequences))
        written = replace(state, sequence=max(*sequences, 0) + 1)
        block = encode_state(written)
        self._overwrite(f"state{number}", block)
        self._overwrite(f"state{number}.sum", checksum(number, block))
        if self._copy(number) != written:
            raise FirmwareError(f"{self._folder / f'state{number}'}: what was written does not read back")
        return written

    def tries(self) -> dict[str, int] | None:
        """Boots of each slot since it was last healthy; None: damaged, and no slot on trial boots."""
        try:
            values = decode_block((self._folder / "tries").read_bytes())
            return {slot: int(values[f"{slot.lower()}_tries"]) for slot in SLOTS}
        except (OSError, ValueError, KeyError):
            return None

    def given_up(self, slot: str) -> bool:
        """Whether GRUB does not try a slot any more, as it is bad or has used up its tries."""
        state, tries = self.read().state_of(slot), self.tries()
        if tries is None:
            return state != GOOD
        return state == BAD or tries[slot] >= TRIES

    def set_tries(self, tries: dict[str, int]) -> None:
        """Set the counts back."""
        self._overwrite("tries", encode_tries(tries))

    def _copy(self, number: int) -> BootState | None:
        try:
            block = (self._folder / f"state{number}").read_bytes()
            if (self._folder / f"state{number}.sum").read_bytes() != checksum(number, block):
                return None
            values = decode_block(block)
            return BootState(int(values["sequence"]), values["primary"], values["a_state"], values["b_state"])
        except (OSError, ValueError, KeyError):
            return None

    def _overwrite(self, name: str, content: bytes) -> None:
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, content, 0)
            if os.fstat(descriptor).st_size != len(content):  # damaged: at that size it would never be whole
                os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def factory_files() -> dict[str, bytes]:
    """The files of a new image: slot A is good, B holds nothing."""
    files = {"tries": encode_tries(dict.fromkeys(SLOTS, 0))}
    for number in _COPIES:
        block = encode_state(BootState(sequence=number + 1))
        files[f"state{number}"] = block
        files[f"state{number}.sum"] = checksum(number, block)
    return files


def encode_state(state: BootState) -> bytes:
    """One copy, 1,024 bytes."""
    return _block(
        {
            "sequence": str(state.sequence),
            "primary": state.primary,
            "a_state": state.a_state,
            "b_state": state.b_state,
        }
    )


def encode_tries(tries: dict[str, int]) -> bytes:
    """The counts, 1,024 bytes. `counted` says that they can be read."""
    return _block({"counted": "1", **{f"{slot.lower()}_tries": str(tries[slot]) for slot in SLOTS}})


def checksum(number: int, block: bytes) -> bytes:
    """What stands beside a copy."""
    return f"{hashlib.sha256(block).hexdigest()}  state{number}\n".encode()


def decode_block(block: bytes) -> dict[str, str]:
    """The variables of a block.

    Raises:
        ValueError: it is none.
    """
    if len(block) != BLOCK or not block.startswith(_HEADER):
        raise ValueError("expected an environment block of GRUB, 1,024 bytes")
    lines = block[len(_HEADER) :].decode("ascii").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _block(values: dict[str, str]) -> bytes:
    text = _HEADER + "".join(f"{name}={value}\n" for name, value in values.items()).encode()
    return text + b"#" * (BLOCK - len(text))
