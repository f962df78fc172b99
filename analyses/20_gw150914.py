"""GW150914: eleven parameters of the first gravitational wave, by a flow, importance weights and nested sampling.

The flow is trained for the noise of the event (its two PSDs) on `network.eleven_parameters`, with distances uniform;
its draws are weighted to the exact likelihood of all 8 s of both detectors and to distances uniform in volume. Nested
sampling on the same prior, with the reduced likelihood and phase and distance integrated out (reduced.py,
marginal.py), shares nothing with that but the waveform and the data; two such samplings give the floor of every
comparison.

The waveform is IMRPhenomD: spins along the orbit, no precession, no higher modes. Errors of the detectors'
calibration are absent. The prior is narrowed around the event: chirp mass 25 to 40 solar masses (detector's frame),
arrival at Hanford within 30 ms of the trigger.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import gw_figures
from common import Number, options, output_folder, report_numbers, save_figure
from gw_networks import SETUPS, network
from gw_reference import LIVE, MAX_CALLS, NAME, WALKS, Quality, gw150914, nested, target

import sbiflow as sf
from sbiflow.calibration.jsd import MarginalJsd
from sbiflow.importance import LogLikelihood
from sbiflow.seeding import torch_generator
from simulators.gravitational_waves.event import Event
from simulators.gravitational_waves.network import eleven_parameters, volume_prior

FAST_POWER = 0.02
"""--fast takes the likelihood to this power: a flow of few steps and a short sampler can follow it."""
COMPARED = 10_000
THREADS = os.cpu_count() or 1


def exact_likelihood(event: Event, power: float) -> LogLikelihood:
    """The event's, on all cores; relative to that of noise taken to a power."""
    noise = event.log_noise_evidence

    def log_likelihood(theta: Tensor, _: Tensor) -> Tensor:
        with ThreadPoolExecutor(THREADS) as threads:
            found = torch.cat(list(threads.map(event.log_likelihood, theta.split(512))))
        return noise + power * (found - noise)

    return log_likelihood


def references(event: Event, arguments: Namespace, folder: Path) -> list[tuple[Tensor, Quality]]:
    """Two independent nested samplings: draws and quality of each."""
    fast, nlive = arguments.fast, 100 if arguments.fast else arguments.nlive
    chosen = target(event, components=64, draws=400) if fast else target(event)
    power = FAST_POWER if fast else 1.0
    settings = {"walks": 8, "dlogz": 0.5} if fast else {"walks": WALKS, "max_calls": MAX_CALLS}
    found = [
        nested(chosen, folder / f"nested-{nlive}-{seed}.h5", seed=seed, power=power, nlive=nlive, **settings)
        for seed in (1, 2)
    ]
    rows = torch.cat([theta[:200] for theta, _ in found])
    error = (chosen.reduced(rows) - event.log_likelihood(rows)).abs().max()
    print(f"reduced against exact ln L on {len(rows)} of the sampler's draws: at most {float(error):.1e}")
    return found


def compared(first: Tensor, second: Tensor, prior: sf.Prior, seed: int) -> MarginalJsd:
    """Divergence of every marginal between as many draws of two sets."""
    periods = [m.support[1] - m.support[0] if m.periodic else None for m in prior.marginals]
    n = min(COMPARED, len(first), len(second))
    return sf.marginal_jsd(first[:n], second[:n], names=prior.names, periods=periods, seed=seed)


def in_mnat(found: MarginalJsd) -> str:
    """Mean and worst excess over the sampling floor."""
    mean = sum(row.excess for row in found.rows) / len(found.rows)
    return f"{1e3 * mean:.2f}, {1e3 * found.worst.excess:.2f} ({found.worst.name})"


def main() -> None:
    started = time.monotonic()
    setup = SETUPS["c"]
    arguments = options(__doc__ or "", simulations=setup.simulations, steps=setup.train.steps or 20_000,
                        proposals=1_000_000, nlive=LIVE, model="")  # fmt: skip
    fast, seed = arguments.fast, arguments.seed
    folder, event = output_folder(NAME, fast), gw150914()
    simulator = eleven_parameters(event.psds, event.trigger)
    prior, x = volume_prior(simulator.prior), event.x(simulator)
    training = replace(setup.train, steps=arguments.steps)
    posterior = network(
        replace(setup, simulations=arguments.simulations, train=training), simulator, arguments, folder
    )

    draws = posterior.sample(x, 3_000 if fast else arguments.proposals, seed=seed)
    weighted = draws.reweight(exact_likelihood(event, FAST_POWER if fast else 1.0), prior)
    weighted.save(folder / "posterior.h5")
    quality, novelty = weighted.diagnostics, posterior.novelty_check(x)
    print(f"\n{weighted}\n\nreweighted flow\n{gw_figures.table(weighted.theta, weighted.weights)}\n")

    (first, one), (second, other) = references(event, arguments, folder)
    generator = torch_generator(seed, 1)
    both = torch.cat([first, second])[torch.randperm(len(first) + len(second), generator=generator)]
    print(f"nested sampling\n{gw_figures.table(both)}\n{one}\n{other}\n")
    ours = weighted.resample(COMPARED, seed).theta
    change = (prior.log_prob(draws.theta) - simulator.prior.log_prob(draws.theta)).exp()
    raw = draws.theta[torch.multinomial(change, COMPARED, replacement=True, generator=generator)]
    corrected, uncorrected = compared(both, ours, prior, seed), compared(both, raw, prior, seed)
    floor = compared(first, second, prior, seed)
    print(f"reweighted flow against nested sampling\n{corrected}\n\nthe two nested samplings\n{floor}\n")

    maps = gw_figures.sky_density(weighted.theta, weighted.weights), gw_figures.sky_density(both)
    areas = [gw_figures.credible_areas(density, (0.5, 0.9)) for density in maps]
    save_figure(gw_figures.corner(weighted.theta, weighted.weights, both), folder / "corner.png")
    save_figure(gw_figures.sky_map(*maps), folder / "sky.png")
    save_figure(gw_figures.signal_figure(event, ours[:500]), folder / "signal.png")
    save_figure(weighted.weight_histogram(), folder / "weights.png")

    evidence = (one.log_evidence + other.log_evidence) / 2
    spread = max((one.log_evidence_error**2 + other.log_evidence_error**2) ** 0.5,
                 abs(one.log_evidence - other.log_evidence)) / 2  # fmt: skip
    gap, error = quality.log_evidence - evidence, (quality.log_evidence_error**2 + spread**2) ** 0.5
    worst = max(row.excess for row in corrected.rows)
    numbers = [
        Number("simulator calls, training", f"{posterior.info.simulations:,}"),
        Number("training time, minutes", f"{posterior.info.training_seconds / 60:.1f}"),
        Number("proposals", f"{quality.n:,}"),
        Number("importance-sampling efficiency", f"{quality.efficiency:.2%}", "1%", "10%", quality.efficiency >= 0.01),
        Number("effective samples", f"{quality.ess:,.0f}", "10,000", "", quality.ess >= 10_000),
        Number("Pareto k̂ (limit 0.7)", f"{quality.khat:.2f}", "0.7", "", quality.khat < 0.7),
        Number("log-evidence", f"{quality.log_evidence:.3f} ± {quality.log_evidence_error:.3f}"),
        Number("log Bayes factor, signal against noise", f"{quality.log_evidence - event.log_noise_evidence:.3f}"),
        Number("log-evidence, nested sampling", f"{evidence:.3f} ± {spread:.3f}"),
        Number("log-evidence less that of nested sampling", f"{gap:+.3f} ± {error:.3f}", "3 σ", "0.1", abs(gap) <= 3 * error),
        Number("nested samplings converged", f"{one.converged}, {other.converged}", "True", "", one.converged and other.converged),
        Number("nested: smallest ESS, likelihoods, minutes", f"{one.ess + other.ess:,.0f}, {one.calls + other.calls:,}, {(one.seconds + other.seconds) / 60:.0f}"),
        Number("JSD above its floor, raw: mean and worst, mnat", in_mnat(uncorrected)),
        Number("JSD above its floor, reweighted: mean and worst, mnat", in_mnat(corrected), "2", "1", worst <= 2e-3),
        Number("JSD above its floor, nested against nested, mnat", in_mnat(floor)),
        Number("sampling floor of the JSD, mnat, draws", f"{1e3 * corrected.rows[0].floor:.2f}, {corrected.n_samples:,}"),
        Number("sky, 50 % and 90 % area, deg², reweighted", " and ".join(f"{a:,.0f}" for a in areas[0])),
        Number("sky, 50 % and 90 % area, deg², nested", " and ".join(f"{a:,.0f}" for a in areas[1])),
        Number("novelty p-values: input, embedding", f"{float(novelty.input):.3f}, {float(novelty.embedding):.3f}"),
        Number("everything, minutes", f"{(time.monotonic() - started) / 60:.1f}"),
        *(Number(f"{row.name} [{row.unit}]" if row.unit else row.name, f"{row.median:.4g} ({row.low:.4g} to {row.high:.4g})")
          for row in gw_figures.table(weighted.theta, weighted.weights)),
    ]  # fmt: skip
    title = "GW150914" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
