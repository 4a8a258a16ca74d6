"""What agents and server do, in a laboratory: domains, the ensemble, the fleet's default, the gate."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent import domains
from agent.dataset import Labelled
from agent.engine import Floats
from agent.verdict import Verdict, judge
from benchmarks.laboratory import Adapters, Laboratory
from protocol.domains import adapter_of, restacked
from server import domains as splitting
from server.evaluation import FIRST, fleet_default
from server.relatedness.directions import Directions
from server.relatedness.groups import suggest

if TYPE_CHECKING:
    from agent.ensemble import Ensemble


class OurFleet:
    """Devices that take part; `release` by release they learn, and their updates make the next one."""

    def __init__(self, lab: Laboratory, names: Sequence[str]) -> None:
        """Begin with the package's adapter.

        Args:
            lab: holds the devices.
            names: of those that take part from the start.
        """
        self._lab = lab
        self._stack, self._default = lab.initial, FIRST
        self._directions = Directions(lab.engine.parameters)
        self._chosen: dict[str, int] = {}
        self._alone = {chain: dict.fromkeys(names, lab.initial) for chain in ("local", "local_full")}
        self._number = 0
        self.used: dict[str, Ensemble] = {}
        """What each device uses now."""

    def join(self, names: Sequence[str]) -> None:
        """Let devices take part from the next release on; they have learned nothing before."""
        for adapters in self._alone.values():
            adapters.update(dict.fromkeys(names, self._lab.initial))

    def release(self) -> None:
        """Every device learns from the newest release, and their updates make the next one."""
        names, size = list(self._alone["local"]), self._lab.engine.parameters
        for name in names:
            windows, held = self._lab.devices[name].labelled, self._chosen.get(name)
            self._chosen[name] = domains.choose(self._lab.engine, self._stack, windows, held)
        starts = {name: adapter_of(self._stack, size, domain) for name, domain in self._chosen.items()}
        personal = {
            name: self._train(name, starts[name], "personal", self._lab.devices[name].training)
            for name in names
        }
        reports = []
        for name in names:
            verdict = self._judge(name, starts[name], personal[name])
            held_out = len(self._lab.devices[name].holdout)
            reports.append({"holdout_windows": held_out, "ensemble_gain": verdict.ensemble_gain})
        self._default = fleet_default(reports, self._default)
        self._stack = self._aggregated(starts, personal)
        self._number += 1

    def _train(self, name: str, start: Floats, purpose: str, windows: Labelled) -> Floats:
        return self._lab.train(start, windows, name, self._number, purpose)

    def _judge(self, name: str, release: Floats, personal: Floats) -> Verdict:
        bench = self._lab.devices[name]
        for chain, windows in (("local", bench.training), ("local_full", bench.labelled)):
            self._alone[chain][name] = self._train(name, self._alone[chain][name], chain, windows)
        candidates = {
            **{chain: adapters[name] for chain, adapters in self._alone.items()},
            "personal": personal,
            "personal_full": self._train(name, release, "personal_full", bench.labelled),
            "global": release,
            "initial": self._lab.initial,
        }
        verdict = judge(self._lab.engine, candidates, bench.training, bench.holdout, self._default)
        self.used[name] = verdict.used(candidates)
        return verdict

    def _aggregated(self, starts: Adapters, personal: Adapters) -> Floats:
        placed: Mapping[str, int] = self._chosen
        if self._stack.size == self._lab.engine.parameters and self._number < splitting.ROUNDS:
            moved = [personal[name].astype(np.float64) - starts[name] for name in personal]
            weights = [float(len(self._lab.devices[name].training)) for name in personal]
            self._directions.add_round(self._number + 1, list(personal), moved, weights)
            found = self._directions.relatedness()
            groups = suggest(found)
            if groups.count > 1:
                # From the next release on the devices choose anew, as wherever there are other domains.
                placed, self._chosen = splitting.place(self._directions, list(found.devices), groups), {}
        size = self._lab.engine.parameters
        count = max(self._stack.size // size, max(placed.values()) + 1)
        parts = restacked(self._stack, size, count).reshape(count, -1).copy()
        for domain in range(count):
            members = [name for name in personal if placed[name] == domain]
            if members:  # else the domain stays as it was
                parts[domain] = self._lab.mean(personal, members)
        return np.asarray(parts.reshape(-1), np.float32)
