"""What a device does with the discriminant head of a release: its step of it, its classifiers."""

from agent import discriminant
from agent.dataset import Labelled
from agent.engine import Engine, Floats
from agent.ensemble import FULL
from protocol.discriminant import Statistics
from protocol.package import DISCRIMINANT, Manifest


def with_step(engine: Engine, manifest: Manifest, start: Floats, windows: Labelled, release: int) -> Floats:
    """An adapter, float32 [parameters], whose discriminant head has made the device's step; a copy.

    Args:
        engine: embeds.
        manifest: of the package.
        start: the release's adapter.
        windows: labelled; without any the adapter stays.
        release: its number.
    """
    if not (engine.embedding_size and len(windows)):
        return start
    part = manifest.task_slices()[DISCRIMINANT]
    changed: Floats = start.copy()
    changed[part] = discriminant.advance(start[part], engine.embed(windows.features), windows.labels, release)
    return changed


def of_release(
    engine: Engine, manifest: Manifest, release: Floats, training: Labelled, labelled: Labelled
) -> dict[str, Floats]:
    """By name, the device's classifiers from a release: for the gate, and for use; none without labels.

    Args:
        engine: embeds.
        manifest: of the package.
        release: its adapter, float32 [parameters].
        training: labelled windows without those held out.
        labelled: all of them.
    """
    if not (engine.embedding_size and len(training)):
        return {}
    statistics = Statistics.of(release[manifest.task_slices()[DISCRIMINANT]], engine.embedding_size)
    return {
        name: discriminant.fit(statistics, engine.embed(windows.features), windows.labels).vector()
        for name, windows in ((DISCRIMINANT, training), (DISCRIMINANT + FULL, labelled))
    }
