"""Plays NVIDIA's nvbootctrl: fake_nvbootctrl.py FILE -t rootfs COMMAND; prints as version 36 does."""

import json
import sys
from pathlib import Path


def main() -> int:
    """Answer one call; returns the exit status."""
    file, option, kind, *words = sys.argv[1:]
    state = json.loads(Path(file).read_text("utf-8"))
    if (option, kind) != ("-t", "rootfs"):
        return 1
    match words:
        case ["get-current-slot"]:
            sys.stdout.write(f"{state['current']}\n")
        case ["set-active-boot-slot", ("0" | "1") as slot]:
            state["active"] = int(slot)
        case ["mark-boot-successful"]:
            state["tries"][state["current"]] = 3
        case ["dump-slots-info"]:
            sys.stdout.write(f"Current rootfs slot: {'AB'[state['current']]}\n")
            sys.stdout.write(f"Active rootfs slot: {'AB'[state['active']]}\nnum_slots: {state['slots']}\n")
            for slot in range(state["slots"]):
                sys.stdout.write(
                    f"slot: {slot},             retry_count: {state['tries'][slot]},             "
                    f"status: {state['status'][slot]}\n"
                )
        case _:
            sys.stderr.write(f"nvbootctrl: no such command: {words}\n")
            return 2
    Path(file).write_text(json.dumps(state), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
