"""GW150914 as measured, and the Markov chains that 20_gw150914.py compares with, kept in a folder.

emcee climbs the likelihood with phase and distance integrated out (marginal.py), nine parameters from the prior on,
and draws both back exactly; it knows nothing of a flow. Acceptance is low (spins and mass ratio are hard), so that the
chains are long and many walkers wide; what they say of their convergence is printed and kept. Nested sampling
(`sf.nested_reference`) with 400 live points and 80 steps to a walk did not converge on this posterior.
Each seed takes a quarter of an hour: `.venv/bin/python analyses/gw_reference.py --seed 2` makes one beforehand.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import options, output_folder

import sbiflow as sf
from sbiflow import datasets, samples
from sbiflow.seeding import torch_generator
from simulators.gravitational_waves import network
from simulators.gravitational_waves.data import read_gwosc
from simulators.gravitational_waves.event import Event, load_event
from simulators.gravitational_waves.marginal import MarginalLikelihood
from simulators.gravitational_waves.noise import PSD
from simulators.gravitational_waves.reduced import ReducedLikelihood

NAME = "20_gw150914"
WALKERS, STEPS = 400, 14_000
_KEY = 0x6E657374


@dataclass(frozen=True)
class Quality:
    """What a chain says of itself; `ess` and `rhat` are those of the worst parameter."""

    converged: bool
    reasons: tuple[str, ...]
    ess: float
    rhat: float
    calls: int
    seconds: float


def gw150914() -> Event:
    """The 8 s around GW150914.

    Raises:
        FileNotFoundError: the strain or the PSDs are not on this machine; the message says how to get them.
    """
    strains = [read_gwosc(datasets.find(f"{i}-{i}1_LOSC_4_V2-1126259446-32.hdf5")) for i in "HL"]
    psds = [PSD.from_file(datasets.find(f"GW150914_PSD_{i}1.txt"), f"{i}1 PSD") for i in "HL"]
    return load_event(strains, psds, network.GW150914)


def target(event: Event, **basis: int) -> MarginalLikelihood:
    """What the sampler climbs: nine parameters, distances uniform in volume."""
    base = network.prior()
    return MarginalLikelihood(ReducedLikelihood.build(event, base, **basis), network.volume_prior(base))


def chain(
    target: MarginalLikelihood, path: Path, *, seed: int, walkers: int, steps: int, power: float = 1.0
) -> tuple[Tensor, Quality]:
    """Draws (m, 11) of a Markov chain and its quality: from the file at `path`, or sampled and written there.

    The likelihood may be taken to a power, relative to that of noise. A file that belongs to other data or another
    prior is refused.
    """
    event, notes = target.reduced.event, path.with_suffix(".json")
    x, noise = torch.view_as_real(event.whitened).flatten(), event.log_noise_evidence
    if not notes.exists():
        begun = time.monotonic()
        found = sf.emcee_reference(
            lambda theta, _: noise + power * (target(theta) - noise),
            target.prior,
            x,
            seed=seed,
            walkers=walkers,
            max_steps=steps,
            progress=sys.stderr.isatty(),
        )
        print(found)
        found.samples().save(path)
        worst = float(found.ess.min()), float(found.rhat.max())
        seconds = time.monotonic() - begun
        quality = Quality(found.converged, found.reasons, *worst, found.n_likelihood_calls, seconds)
        notes.write_text(json.dumps(asdict(quality)))
    kept = samples.load(path)
    if kept.prior.spec() != target.prior.spec() or not torch.equal(kept.x, x):
        raise ValueError(
            f"{path}: expected draws of this event under this prior, got others: remove the file"
        )
    return target.complete(kept.theta, torch_generator(seed, _KEY)), Quality(**json.loads(notes.read_text()))


def main() -> None:
    arguments = options(__doc__ or "", walkers=WALKERS, steps=STEPS)
    chosen, seed = target(gw150914()), arguments.seed
    path = output_folder(NAME) / f"chain-{arguments.walkers}-{arguments.steps}-{seed}.h5"
    theta, quality = chain(chosen, path, seed=seed, walkers=arguments.walkers, steps=arguments.steps)
    print(f"{len(theta):,} draws, {quality}\n{path}")


if __name__ == "__main__":
    main()
