"""Ways to learn in a fleet, from training alone to ours, each from a laboratory to an adapter per device.

Published methods follow their papers with what this system trains: the adapter, in `ROUNDS` rounds of the
charter's local epochs. "local" has as many epochs as an agent's "local_full" at the end, and like it trains
on the labels that others hold out.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from agent import domains
from agent.dataset import Labelled
from agent.engine import Floats
from agent.ensemble import Ensemble
from agent.objective import mean_loss
from agent.verdict import judge
from benchmarks.laboratory import Adapters, Bench, Laboratory, Tried, pool
from protocol.domains import adapter_of, restacked
from server import domains as splitting
from server.evaluation import FIRST, fleet_default
from server.relatedness.directions import Directions
from server.relatedness.groups import suggest

ROUNDS = 10
DITTO_PULL = 0.1
AMP_TEMPERATURE = 0.15
AMP_WARM_ROUNDS = 3
IFCA_CENTRES = 3


def backbone(lab: Laboratory) -> Floats | Adapters:
    """The untouched initial adapter."""
    return lab.initial


def local(lab: Laboratory) -> Adapters:
    """Training alone, on all labels: without a fleet there is nothing to decide, so nothing is held out."""
    return _alone(lab, lambda bench: bench.labelled, "local_full")


def local_held_out(lab: Laboratory) -> Adapters:
    """Training alone, as an agent does that holds windows out for its gate."""
    return _alone(lab, lambda bench: bench.training, "local")


def _alone(lab: Laboratory, windows: Callable[[Bench], Labelled], chain: str) -> Adapters:
    """The same trainings, to the bit, as an agent's: a device of ours that uses them differs in nothing."""
    adapters = dict.fromkeys(lab.devices, lab.initial)
    for number in range(ROUNDS + 1):
        adapters = {
            name: lab.train(adapters[name], windows(bench), name, number, chain)
            for name, bench in lab.devices.items()
        }
    return adapters


def fedavg(lab: Laboratory) -> Floats:
    """One model for all (McMahan et al. 2017, arXiv:1602.05629)."""
    release = lab.initial
    for number in range(ROUNDS):
        release = lab.mean(lab.personal(release, number))
    return release


def fedavg_fine_tuned(lab: Laboratory) -> Adapters:
    """FedAvg, then local training on each device."""
    return lab.personal(fedavg(lab), ROUNDS)


def ditto(lab: Laboratory) -> Adapters:
    """A personal model beside the global one, pulled towards it (Li et al. 2021, arXiv:2012.04221)."""
    release, own = lab.initial, dict.fromkeys(lab.devices, lab.initial)
    for number in range(ROUNDS):
        own = {
            name: lab.train(
                own[name], bench.training, name, number, "ditto", anchor=release, proximal=DITTO_PULL
            )
            for name, bench in lab.devices.items()
        }
        release = lab.mean(lab.personal(release, number))
    return own


def fedamp(lab: Laboratory) -> Adapters:
    """A cloud model per device, of the models that are like its own (Huang et al. 2021, arXiv:2007.03797).

    Likeness is the cosine of the differences to a common start, after a few rounds of FedAvg.
    """
    release: Floats = lab.initial
    for number in range(AMP_WARM_ROUNDS):
        release = lab.mean(lab.personal(release, number))
    clouds: Adapters = dict.fromkeys(lab.devices, release)
    for number in range(AMP_WARM_ROUNDS, ROUNDS):
        models = lab.personal(clouds, number)
        stacked = np.stack([models[name] for name in lab.devices]).astype(np.float64)
        shares = attention(stacked - release, lab.weights)
        clouds = {
            name: np.asarray(share @ stacked, np.float32)
            for name, share in zip(lab.devices, shares, strict=True)
        }
    return clouds


def attention(differences: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of every device goes into each one's cloud model, float64 [devices, devices], rows sum to 1.

    Args:
        differences: to a common start, float64 [devices, parameters].
        weights: of the devices, float64 [devices].
    """
    centred = differences - differences.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = centred @ centred.T / np.maximum(norms * norms.T, 1e-12)
    others = np.where(np.eye(len(cosine), dtype=bool), -np.inf, cosine)
    # A device is to itself what the device most like it is to it: otherwise it would listen to itself alone.
    np.fill_diagonal(cosine, others.max(1))
    shares = np.exp(cosine / AMP_TEMPERATURE) * weights
    return np.asarray(shares / shares.sum(1, keepdims=True))


def ifca(lab: Laboratory) -> Adapters:
    """A few models; each device trains the best for its windows (Ghosh et al. 2020, arXiv:2006.04088)."""
    first = lab.personal(lab.initial, 0)
    random = np.random.Generator(np.random.PCG64(lab.seed))
    chosen = random.choice(len(lab.devices), min(IFCA_CENTRES, len(lab.devices)), replace=False)
    centres = [first[list(lab.devices)[index]] for index in chosen]
    for number in range(1, ROUNDS + 1):
        choice = {
            name: int(np.argmin([mean_loss(lab.engine, centre, bench.labelled) for centre in centres]))
            for name, bench in lab.devices.items()
        }
        starts = {name: centres[index] for name, index in choice.items()}
        if number == ROUNDS:
            break
        trained = lab.personal(starts, number)
        for index in range(len(centres)):
            members = [name for name, chosen_index in choice.items() if chosen_index == index]
            if members:
                centres[index] = lab.mean(trained, members)
    return starts


def pooled(lab: Laboratory) -> Floats:
    """One model on all devices' labels in one place: what a fleet avoids."""
    data = pool([bench.labelled for bench in lab.devices.values()])
    return lab.train(lab.initial, data, "pooled")


def ours(lab: Laboratory) -> Mapping[str, Ensemble]:
    """What agents and server of this project do: domains, an ensemble, the fleet's default, the gate."""
    stack, default = lab.initial, FIRST
    directions = Directions(lab.engine.parameters)
    chosen: dict[str, int] = {}
    alone = {"local": dict.fromkeys(lab.devices, lab.initial)}
    alone["local_full"] = dict(alone["local"])
    used: dict[str, Ensemble] = {}
    for number in range(ROUNDS + 1):
        for name, bench in lab.devices.items():
            chosen[name] = domains.choose(lab.engine, stack, bench.labelled, chosen.get(name))
        releases = {name: adapter_of(stack, lab.engine.parameters, domain) for name, domain in chosen.items()}
        personal = lab.personal(releases, number)
        reports = []
        for name, bench in lab.devices.items():
            release = releases[name]
            windows = {"local": bench.training, "local_full": bench.labelled}
            for chain, adapters in alone.items():
                adapters[name] = lab.train(adapters[name], windows[chain], name, number, chain)
            candidates = {
                **{chain: adapters[name] for chain, adapters in alone.items()},
                "personal": personal[name],
                "personal_full": lab.train(release, bench.labelled, name, number, "personal_full"),
                "global": release,
                "initial": lab.initial,
            }
            verdict = judge(lab.engine, candidates, bench.training, bench.holdout, default)
            used[name] = verdict.used(candidates)
            reports.append({"holdout_windows": len(bench.holdout), "ensemble_gain": verdict.ensemble_gain})
        default = fleet_default(reports, default)
        if stack.size == lab.engine.parameters and number < splitting.ROUNDS:
            moved = [personal[name].astype(np.float64) - releases[name] for name in lab.devices]
            directions.add_round(number + 1, list(lab.devices), moved, lab.weights.tolist())
            found = directions.relatedness()
            groups = suggest(found)
            if groups.count > 1:
                placed = splitting.place(directions, list(found.devices), groups)
                stack, chosen = _by_domain(lab, personal, placed, stack), {}
                continue
        stack = _by_domain(lab, personal, chosen, stack)
    return used


def _by_domain(lab: Laboratory, personal: Adapters, chosen: Mapping[str, int], before: Floats) -> Floats:
    """The mean of each domain's devices, stacked; a domain without any stays as it was."""
    count = max(before.size // lab.engine.parameters, max(chosen.values()) + 1)
    parts = restacked(before, lab.engine.parameters, count).reshape(count, -1).copy()
    for domain in range(count):
        members = [name for name, other in chosen.items() if other == domain]
        if members:
            parts[domain] = lab.mean(personal, members)
    return np.asarray(parts.reshape(-1), np.float32)


METHODS: dict[str, Callable[[Laboratory], Tried]] = {
    "backbone": backbone,
    "local": local,
    "local_held_out": local_held_out,
    "fedavg": fedavg,
    "fedavg_fine_tuned": fedavg_fine_tuned,
    "ditto": ditto,
    "fedamp": fedamp,
    "ifca": ifca,
    "ours": ours,
    "pooled": pooled,
}
