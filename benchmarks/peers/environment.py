"""Environments of the peers: one each under .venv-peers, made when it is first needed.

Their requirements exclude ours, or are large and wanted by nobody but a benchmark. No peer is imported here.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv-peers"


@dataclass(frozen=True)
class Environment:
    """One virtual environment."""

    name: str
    """Of the peer, and of its folder."""
    needs: tuple[str, ...]
    """Requirements for pip."""
    alone: tuple[str, ...] = ()
    """Requirements that are installed without what they require in turn."""

    @property
    def interpreter(self) -> Path:
        """Its python, whether it is there or not."""
        return FOLDER / self.name / "bin" / "python"

    @property
    def complete(self) -> bool:
        """Whether it is there, made from these requirements."""
        return self._stamp.exists() and self._stamp.read_text("utf-8") == self._requirements

    def make(self) -> Path:
        """Its interpreter; made now if it is not there.

        Raises:
            SystemExit: it cannot be made.
        """
        if self.complete:
            return self.interpreter
        folder = FOLDER / self.name
        print(f"setting up {self.name} in {folder}: takes minutes, once", file=sys.stderr, flush=True)
        install = [str(self.interpreter), "-m", "pip", "install", "--quiet"]
        commands = [[sys.executable, "-m", "venv", "--clear", str(folder)], [*install, *self.needs]]
        if self.alone:
            commands.append([*install, "--no-deps", *self.alone])
        for command in commands:
            if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
                sys.exit(f"{self.name}: its environment cannot be made, see above: {' '.join(command)}")
        self._stamp.write_text(self._requirements, "utf-8")
        return self.interpreter

    @property
    def _stamp(self) -> Path:
        return FOLDER / self.name / "complete"

    @property
    def _requirements(self) -> str:
        return "\n".join((*self.needs, *self.alone)) + "\n"


FLOWER = Environment("flower", ("flwr==1.41.0", "torch==2.13.0", "numpy"))  # needs Python 3.11 or newer
BYZFL = Environment("byzfl", ("torch==2.13.0", "numpy", "scipy"), alone=("byzfl==0.0.11",))
"""What its harness for experiments needs beside (torchvision and more) is left out: byzfl_oracle.py does
not load it, and torchvision's wheels load only beside the one build of torch that they were made for."""
