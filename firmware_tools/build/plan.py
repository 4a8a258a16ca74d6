"""Steps of a build: commands, the content that they depend on, and the file that comes out.

A step's key is the hash of its commands, its inputs' bytes and the keys of the steps before it. What was made
for a key lies in the cache under that key, so nothing is made twice, and a file in the cache is whole: it
gets its name when the step has ended well.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firmware_tools.errors import FirmwareError

log = logging.getLogger(__name__)

Work = Callable[[Path, Mapping[str, Path]], None]
"""(file to write, outputs of the steps before by name): what a step does in Python."""


@dataclass(frozen=True)
class Step:
    """One step; it has commands, or work, or both: the work comes last."""

    name: str
    summary: str
    """For people."""
    suffix: str
    """Of the file that it makes, e.g. ".tar"."""
    commands: tuple[tuple[str, ...], ...] = ()
    """Arguments may hold {output}, {scratch}, {NAME} for an output of `after`, or one of `files`."""
    after: tuple[str, ...] = ()
    """Names of the steps whose outputs it uses."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What else decides on its output, by name: settings, hashes of files."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files that the commands name as {NAME}; their content counts for the key, and not where they lie."""
    work: Work | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Plan:
    """Steps in their order."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.keys: dict[str, str] = {}
        for step in self.steps:
            self.keys[step.name] = self._key(step)

    def describe(self) -> str:
        """Every command, as `--plan` prints it."""
        lines = []
        for step in self.steps:
            lines.append(f"# {step.name}: {step.summary} ({self.keys[step.name][:16]}{step.suffix})")
            lines += [f"#   {{{name}}} is {path}" for name, path in step.files.items()]
            lines += [_shell(command) for command in step.commands]
            if step.work is not None:
                lines.append(f"#   and in Python: {step.work.__doc__ or step.summary}".rstrip())
            lines.append("")
        return "\n".join(lines)

    def run(self, cache: Path, *, say: Callable[[str], None]) -> dict[str, Path]:
        """Make what is not in the cache; returns each step's output by name.

        Args:
            cache: folder of outputs, kept from build to build.
            say: takes a line for people at each step.

        Raises:
            FirmwareError: a command is missing or fails; with what it printed last.
        """
        cache.mkdir(parents=True, exist_ok=True)
        outputs: dict[str, Path] = {}
        for step in self.steps:
            output = cache / f"{step.name}-{self.keys[step.name][:32]}{step.suffix}"
            if output.exists():
                say(f"{step.name}: as before")
            else:
                started = time.monotonic()
                self._make(step, output, outputs, cache)
                say(f"{step.name}: {step.summary}, {time.monotonic() - started:.1f} s")
            outputs[step.name] = output
        return outputs

    def _make(self, step: Step, output: Path, outputs: Mapping[str, Path], cache: Path) -> None:
        scratch = cache / f".scratch-{step.name}-{os.getpid()}"
        partial = cache / f".partial-{step.name}-{os.getpid()}{step.suffix}"
        scratch.mkdir(parents=True)
        try:
            values = {
                "output": str(partial),
                "scratch": str(scratch),
                **{n: str(p) for n, p in {**outputs, **step.files}.items()},
            }
            for command in step.commands:
                _run(step, [argument.format_map(values) for argument in command], scratch)
            if step.work is not None:
                step.work(partial, outputs)
            if not partial.exists():
                raise FirmwareError(f"step {step.name} ended without its output")
            partial.replace(output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            partial.unlink(missing_ok=True)

    def _key(self, step: Step) -> str:
        content = {
            "commands": step.commands,
            "inputs": dict(step.inputs),
            "environment": dict(step.environment),
            "files": {name: file_sha256(path) for name, path in step.files.items()},
            "after": {name: self.keys[name] for name in step.after},
            "suffix": step.suffix,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _run(step: Step, command: list[str], scratch: Path) -> None:
    if shutil.which(command[0]) is None:
        raise FirmwareError(
            f"step {step.name}: {command[0]} is not installed; see: graftwork-firmware doctor"
        )
    log.debug("%s: %s", step.name, _shell(command))
    result = subprocess.run(  # noqa: S603 - commands of the plan, which --plan shows
        command,
        cwd=scratch,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **step.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if result.returncode:
        last = result.stdout.decode("utf-8", "replace").strip().splitlines()[-12:]
        raise FirmwareError(
            f"step {step.name}: {command[0]} ended with status {result.returncode}:\n" + "\n".join(last)
        )


def _shell(command: Sequence[str]) -> str:
    return " ".join(argument if argument.isalnum() else f"'{argument}'" for argument in command)
