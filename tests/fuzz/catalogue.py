"""All targets by name, and the inputs of each that are kept."""

from pathlib import Path

from tests.fuzz import artifact_targets, coding_targets, identity_targets, message_targets
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *coding_targets.TARGETS,
        *message_targets.TARGETS,
        *identity_targets.TARGETS,
        *artifact_targets.TARGETS,
    )
}
CORPUS = Path(__file__).parent / "corpus"


def kept(name: str) -> list[Path]:
    """Files of a target's corpus, in the order of their names."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())
