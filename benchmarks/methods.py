"""Ways to learn in a fleet, from training alone to ours, each from a laboratory to an adapter per device.

Published methods follow their papers with what this system trains: the adapter, in `ROUNDS` rounds of the
charter's local epochs. "local" has as many epochs as an agent's "local_full" at the end, and like it trains
on the labels that others hold out.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from agent.dataset import Labelled
from agent.engine import Floats
from agent.ensemble import Ensemble
from agent.objective import mean_loss
from benchmarks.laboratory import Adapters, Bench, Laboratory, Tried, pool
from benchmarks.our_fleet import OurFleet

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
    """What agents and server of this project do; see our_fleet.py."""
    fleet = OurFleet(lab, list(lab.devices))
    for _ in range(ROUNDS + 1):
        fleet.release()
    return fleet.used


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
