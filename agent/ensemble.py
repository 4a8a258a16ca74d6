"""Members that predict together: what a device uses, and the candidates that its gate compares.

The ensemble sums the logits of three adapters: training alone, the release as it is, and what was trained
from it. Where the package has a discriminant head (discriminant.py), the combined one adds its classifier.
Networks that were trained apart err on different windows, so together they are better than each (deep
ensembles, Lakshminarayanan et al. 2017, arXiv:1612.01474); where one of the three is bad, two outvote it. So
the ensemble may help where no single adapter proves to be better than training alone. The mean of the
parameters does not do this: they come from different starts, and what lies between them was never trained.

Logits are divided by their spread first: else the adapter that was trained longest would decide alone. The
classifier counts for all three adapters together, as it errs on other windows than they.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.discriminant import Discriminant
from agent.engine import Engine, Floats
from agent.errors import AgentError
from agent.objective import spread
from agent.store import Store
from protocol.package import DISCRIMINANT

FULL = "_full"
"""Ends the name of what is trained on all labelled windows, also on those that the gate holds out."""
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "local": ("local",),
    "personal": ("personal",),
    "global": ("global",),
    "backbone": ("initial",),
    "ensemble": ("local", "global", "personal"),
    "discriminant": (DISCRIMINANT,),
    "combined": ("local", "global", "personal", DISCRIMINANT),
}
"""By choice of the gate, the members that predict: as the gate judges them, with windows held out."""
TRAINED = ("local", "personal")
"""Adapters that a device trains from a release, each twice: with windows held out, and on all of them."""
LEARNED = (*TRAINED, DISCRIMINANT)
"""All members that depend on the device's own labels, and so come twice."""
SHARES = {DISCRIMINANT: 3.0}
"""How much the logits of a member count, where not 1."""


@dataclass(frozen=True)
class Member:
    """What predicts."""

    vector: Floats
    """An adapter, float32 [parameters], or a discriminant classifier."""
    scale: float = 1.0
    """What its logits are divided by."""
    discriminant: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")

    def logits(self, engine: Engine, features: Floats) -> NDArray[np.float64]:
        """Logits as they are, float64 [n, classes], of features, float32 [n, feature_size]."""
        if self.discriminant:
            return Discriminant.of(self.vector, engine.classes).logits(engine.embed(features))
        return engine.predict(self.vector, features).astype(np.float64)


@dataclass(frozen=True)
class Ensemble:
    """One or more members, ready to predict any number of windows, a single one as well."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members: expected at least one")

    def logits(self, engine: Engine, features: Floats) -> NDArray[np.float64]:
        """Sum of the members' logits, float64 [n, classes], of features, float32 [n, feature_size].

        A member whose logits of a window are not finite has no say there; where none has, they are NaN.
        """
        total = np.zeros((len(features), engine.classes), np.float64)
        heard = np.zeros((len(features), 1), bool)
        for member in self.members:
            logits = member.logits(engine, features) / member.scale
            finite = np.isfinite(logits).all(axis=1, keepdims=True)
            total += np.where(finite, logits, 0)
            heard |= finite
        return np.where(heard, total, np.nan)


def single(adapter: Floats) -> Ensemble:
    """An adapter, float32 [parameters], that predicts by itself."""
    return Ensemble((Member(adapter),))


def together(names: Sequence[str], adapters: Mapping[str, Floats], scales: Mapping[str, float]) -> Ensemble:
    """Members as one ensemble.

    Args:
        names: of the members.
        adapters: by name, float32 [parameters], and classifiers.
        scales: by name, what a member's logits are divided by; a single member needs none.
    """
    if len(names) == 1:
        return Ensemble((_member(names[0], adapters),))
    return Ensemble(
        tuple(
            _member(name, adapters, scales[name] / SHARES.get(name.removesuffix(FULL), 1.0)) for name in names
        )
    )


def spreads(
    engine: Engine, names: Iterable[str], adapters: Mapping[str, Floats], features: Floats
) -> dict[str, float]:
    """By name, the spread of a member's logits on windows, features float32 [n, feature_size]."""
    return {name: spread(_member(name, adapters).logits(engine, features)) for name in names}


def choices(adapters: Mapping[str, Floats]) -> dict[str, tuple[str, ...]]:
    """By choice of the gate its members, where all of them are there."""
    return {choice: names for choice, names in MEMBERS.items() if set(names) <= set(adapters)}


def names_in_use(choice: str) -> tuple[str, ...]:
    """The members that a device uses after a choice of the gate: those trained on all labelled windows."""
    return tuple(name + FULL if name in LEARNED else name for name in MEMBERS[choice])


def in_use(store: Store) -> Ensemble | None:
    """What a device uses now; None before it installed a package.

    Raises:
        AgentError: the store lost an adapter.
    """
    choice = store.text("choice")
    if not choice:
        return None
    names = names_in_use(choice)
    adapters = {name: store.adapter(name) for name in names}
    present = {name: adapter for name, adapter in adapters.items() if adapter is not None}
    if len(present) < len(names):
        raise AgentError("the store lost its adapters; remove the state directory")
    return together(names, present, {name: float(store.text(f"scale_{name}") or 1) for name in names})


def as_facts(scales: Mapping[str, float]) -> dict[str, str]:
    """What the store keeps of the scales, so that a single window can be predicted later."""
    return {f"scale_{name}": repr(scale) for name, scale in scales.items()}


def _member(name: str, adapters: Mapping[str, Floats], scale: float = 1.0) -> Member:
    return Member(adapters[name], scale, name.removesuffix(FULL) == DISCRIMINANT)
