"""What agents and server do, in a laboratory: domains, ensemble, classifier, the fleet's default, the gate.

Updates are clipped, quantised and aggregated by the charter's and the server's defaults, as in a federation;
entropy coding changes nothing, and the coding of releases is left out.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agent import classifiers, domains
from agent.dataset import Labelled
from agent.engine import Floats
from agent.update import clip
from agent.verdict import Verdict, judge
from benchmarks.laboratory import Adapters, Laboratory
from protocol.domains import adapter_of, restacked
from protocol.package import DISCRIMINANT
from protocol.quantisation import dequantise, dither_seed, quantise, to_float
from protocol.release_coding import add_difference
from server import domains as splitting
from server.evaluation import first_default, fleet_default
from server.relatedness.directions import Directions
from server.relatedness.from_journal import learned_by_gradients
from server.relatedness.groups import suggest
from server.rules.policy import AggregationPolicy
from server.rules.rule import Fixed
from server.tasks import Tasks

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
        self._stack, self._default = lab.initial, first_default(lab.manifest.tasks)
        self._compared = learned_by_gradients(lab.manifest)
        self._directions = Directions(self._compared.size)
        self._chosen: dict[str, int] = {}
        self._alone = {chain: dict.fromkeys(names, lab.initial) for chain in ("local", "local_full")}
        self._number = 0
        self._members: dict[str, dict[str, Floats]] = {}
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
        personal = {name: self._personal(name, starts[name]) for name in names}
        reports = []
        for name in names:
            verdict = self._judge(name, starts[name], personal[name])
            held_out = len(self._lab.devices[name].holdout)
            gains = {f"{choice}_gain": gain for choice, gain in verdict.gains.items()}
            reports.append({"holdout_windows": held_out, **gains})
        self._default = fleet_default(reports, self._default, self._lab.manifest.tasks)
        self._stack = self._aggregated(starts, personal)
        self._number += 1

    def members(self, name: str) -> Adapters:
        """By name, what a device learned from the last release, and the release's own adapter, "global"."""
        return self._members[name]

    def _personal(self, name: str, start: Floats) -> Floats:
        windows = self._lab.devices[name].training
        if DISCRIMINANT in self._lab.manifest.tasks:
            start = classifiers.with_step(self._lab.engine, self._lab.manifest, start, windows, self._number)
        return self._train(name, start, "personal", windows)

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
        if DISCRIMINANT in self._lab.manifest.tasks:
            candidates |= classifiers.of_release(
                self._lab.engine, self._lab.manifest, release, bench.training, bench.labelled
            )
        verdict = judge(self._lab.engine, candidates, bench.training, bench.holdout, self._default)
        self._members[name] = candidates
        self.used[name] = verdict.used(candidates)
        return verdict

    def _aggregated(self, starts: Adapters, personal: Adapters) -> Floats:
        placed: Mapping[str, int] = self._chosen
        sent = {name: self._sent(name, personal[name] - starts[name]) for name in personal}
        if self._stack.size == self._lab.engine.parameters and self._number < splitting.ROUNDS:
            moved = [to_float(vector[self._compared]) for vector in sent.values()]
            self._directions.add_round(
                self._number + 1, list(sent), moved, [float(self._weight(name)) for name in sent]
            )
            found = self._directions.relatedness()
            groups = suggest(found)
            if groups.count > 1:
                # From the next release on the devices choose anew, as wherever there are other domains.
                placed, self._chosen = splitting.place(self._directions, list(found.devices), groups), {}
        size = self._lab.engine.parameters
        count = max(self._stack.size // size, max(placed.values()) + 1)
        parts = restacked(self._stack, size, count).reshape(count, -1).copy()
        for domain in range(count):
            tasks = Tasks(self._lab.manifest, AggregationPolicy(), count)
            for name, vector in sent.items():
                if placed[name] == domain:
                    tasks.add(vector, self._weight(name))
            if tasks.updates:  # else the domain stays as it was
                parts[domain] = add_difference(parts[domain], tasks.mean())
        return np.asarray(parts.reshape(-1), np.float32)

    def _weight(self, name: str) -> int:
        return min(len(self._lab.devices[name].training), self._lab.policy.maximum_weight)

    def _sent(self, name: str, difference: Floats) -> Fixed:
        """What the server reads of a device's update, int64 [parameters]."""
        policy, manifest = self._lab.policy, self._lab.manifest
        seed = dither_seed("laboratory", name, self._number, str(self._lab.seed).encode())
        parts = list(manifest.slices().values())
        ratios = manifest.step_ratios(policy.step_ratio)
        return dequantise(quantise(clip(difference, policy.clipping_bound), parts, seed, ratios), parts, seed)
