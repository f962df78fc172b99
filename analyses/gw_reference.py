"""GW150914 as measured, and the nested-sampling posterior that 20_gw150914.py compares with, kept in a folder.

The sampler takes an hour or more; run it on its own, in the background if need be:
`.venv/bin/python analyses/gw_reference.py --seed 1` (and `--seed 2` for the independent repetition).
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
LIVE, WALKS, MAX_CALLS = 4000, 300, 1_000_000_000
"""With 80 steps to a walk the two runs of 400 live points differ by 2.5 nats: spins and mass ratio do not mix."""
_KEY = 0x6E657374


@dataclass(frozen=True)
class Quality:
    """What a nested-sampling reference says of itself; evidences in nats.

    Attributes:
        ess: the smallest effective sample size of a parameter.
        runs: log-evidence and error of each run.
        seconds: of both runs.
    """

    converged: bool
    reasons: tuple[str, ...]
    ess: float
    log_evidence: float
    log_evidence_error: float
    runs: tuple[tuple[float, float], ...]
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


def nested(
    target: MarginalLikelihood, path: Path, *, seed: int, power: float = 1.0, **settings: float
) -> tuple[Tensor, Quality]:
    """Equally weighted draws (m, 11) and their quality: from the file at `path`, or sampled and written there.

    The likelihood may be taken to a power, relative to that of noise. A file that belongs to other data or another
    prior is refused.
    """
    event, notes = target.reduced.event, path.with_suffix(".json")
    x, noise = torch.view_as_real(event.whitened).flatten(), event.log_noise_evidence
    if not path.exists():
        begun = time.monotonic()
        found = sf.nested_reference(
            lambda theta, _: noise + power * (target(theta) - noise),
            target.prior,
            x,
            seed=seed,
            progress=sys.stderr.isatty(),
            **settings,  # type: ignore[arg-type]
        )
        state = found.converged, found.reasons, float(found.ess.min())
        evidence = found.log_evidence, found.log_evidence_error, found.runs
        quality = Quality(*state, *evidence, found.n_likelihood_calls, time.monotonic() - begun)
        print(found)
        notes.write_text(json.dumps(asdict(quality)))
        found.samples().save(path)
    kept = samples.load(path)
    if kept.prior.spec() != target.prior.spec() or not torch.equal(kept.x, x):
        raise ValueError(
            f"{path}: expected draws of this event under this prior, got others: remove the file"
        )
    return target.complete(kept.theta, torch_generator(seed, _KEY)), Quality(**json.loads(notes.read_text()))


def main() -> None:
    arguments = options(__doc__ or "", nlive=LIVE)
    chosen = target(gw150914())
    path = output_folder(NAME) / f"nested-{arguments.nlive}-{arguments.seed}.h5"
    settings = {"nlive": arguments.nlive, "walks": WALKS, "max_calls": MAX_CALLS}
    theta, quality = nested(chosen, path, seed=arguments.seed, **settings)
    exact = chosen.reduced.event.log_likelihood(theta[:500])
    error = (chosen.reduced(theta[:500]) - exact).abs().max()
    print(f"{quality}\nreduced against exact ln L on 500 draws: at most {float(error):.1e}\n{path}")


if __name__ == "__main__":
    main()
