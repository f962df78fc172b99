"""GW150914: eleven parameters of the first gravitational wave, by a flow, importance weights and Markov chains.

The flow is trained for the noise of the event (its two PSDs) on `network.eleven_parameters`, with distances uniform;
its draws are weighted to the exact likelihood of all 8 s of both detectors and to distances uniform in volume. emcee on
the same prior, with the reduced likelihood and phase and distance integrated out (reduced.py, marginal.py), shares
nothing with that but the waveform and the data; two such runs give the floor of every comparison.

The waveform is IMRPhenomD: spins along the orbit, no precession, no higher modes. Errors of the detectors'
calibration are absent. The prior is narrowed around the event: chirp mass 25 to 40 solar masses (detector's frame),
arrival at Hanford within 30 ms of the trigger.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import gw_figures
from common import HERE, Number, options, output_folder, report_numbers, save_figure
from gw_networks import SETUPS, network
from gw_reference import NAME, STEPS, WALKERS, Quality, chain, gw150914, target

import sbiflow as sf
from sbiflow.calibration.jsd import MarginalJsd
from sbiflow.importance import LogLikelihood
from sbiflow.seeding import torch_generator
from simulators.gravitational_waves.event import Event
from simulators.gravitational_waves.network import eleven_parameters, volume_prior

FAST_POWER = 0.02
"""--fast takes the likelihood to this power: a flow of few steps and a short sampler can follow it."""
COMPARED, KEPT = 10_000, 100_000
"""Draws whose marginals are compared, and of emcee for the figures."""
THREADS = os.cpu_count() or 1


def exact_likelihood(event: Event, power: float) -> LogLikelihood:
    """The event's, on all cores; relative to that of noise taken to a power."""
    noise = event.log_noise_evidence

    def log_likelihood(theta: Tensor, _: Tensor) -> Tensor:
        with ThreadPoolExecutor(THREADS) as threads:
            found = torch.cat(list(threads.map(event.log_likelihood, theta.split(512))))
        return noise + power * (found - noise)

    return log_likelihood


def references(event: Event, fast: bool, folder: Path) -> list[tuple[Tensor, Quality]]:
    """Two independent runs of emcee: draws and quality of each."""
    walkers, steps = (24, 400) if fast else (WALKERS, STEPS)
    chosen = target(event, components=64, draws=400) if fast else target(event)
    if fast:  # those of earlier code or of another power of the likelihood
        for old in folder.glob("chain-*"):
            old.unlink()
    found = [
        chain(
            chosen, folder / f"chain-{walkers}-{steps}-{seed}.h5", seed=seed, walkers=walkers, steps=steps,
            power=FAST_POWER if fast else 1.0,
        )
        for seed in ((1, 1) if fast else (1, 2))
    ]  # fmt: skip
    rows = torch.cat([theta[:200] for theta, _ in found])
    error = (chosen.reduced(rows) - event.log_likelihood(rows)).abs().max()
    print(f"reduced against exact ln L on {len(rows)} of the chains' draws: at most {float(error):.1e}")
    return found


def compared(first: Tensor, second: Tensor, prior: sf.Prior, seed: int) -> MarginalJsd:
    """Divergence of every marginal between as many draws of two sets."""
    periods = [m.support[1] - m.support[0] if m.periodic else None for m in prior.marginals]
    n, generator = min(COMPARED, len(first), len(second)), torch_generator(seed, 2)
    first, second = (draws[torch.randperm(len(draws), generator=generator)[:n]] for draws in (first, second))
    return sf.marginal_jsd(first, second, names=prior.names, periods=periods, seed=seed)


def in_mnat(found: MarginalJsd) -> str:
    """Mean and worst of the marginals, sampling included."""
    mean, worst = (
        sum(row.jsd for row in found.rows) / len(found.rows),
        max(found.rows, key=lambda row: row.jsd),
    )
    return f"{1e3 * mean:.2f}, {1e3 * worst.jsd:.2f} ({worst.name})"


def main() -> None:
    started = time.monotonic()
    setup = SETUPS["c"]
    arguments = options(__doc__ or "", simulations=setup.simulations, steps=setup.train.steps or 20_000,
                        proposals=1_000_000, model="")  # fmt: skip
    fast, seed = arguments.fast, arguments.seed
    try:
        folder, event = output_folder(NAME, fast), gw150914()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
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

    (first, one), (second, other) = references(event, fast, folder)
    generator = torch_generator(seed, 1)
    both = torch.cat([first, second])
    both = both[torch.randperm(len(both), generator=generator)[:KEPT]]
    print(f"emcee\n{gw_figures.table(both)}\n{one}\n{other}\n")
    ours = weighted.resample(COMPARED, seed).theta
    change = (prior.log_prob(draws.theta) - simulator.prior.log_prob(draws.theta)).exp()
    raw = draws.theta[torch.multinomial(change, COMPARED, replacement=True, generator=generator)]
    corrected, uncorrected = compared(both, ours, prior, seed), compared(both, raw, prior, seed)
    floor = compared(first, second, prior, seed)
    print(f"reweighted flow against emcee\n{corrected}\n\nthe two runs of emcee\n{floor}\n")

    maps = gw_figures.sky_density(weighted.theta, weighted.weights), gw_figures.sky_density(both)
    areas = [gw_figures.credible_areas(density, (0.5, 0.9)) for density in maps]
    save_figure(gw_figures.corner(weighted.theta, weighted.weights, both), folder / "corner.png")
    figures = {"sky": gw_figures.sky_map(*maps), "signal": gw_figures.signal_figure(event, ours[:500])}
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
        if arguments.record:
            save_figure(figure, HERE / "results" / f"{NAME}-{name}.png")
    save_figure(weighted.weight_histogram(), folder / "weights.png")

    worst = max(row.jsd for row in corrected.rows)
    numbers = [
        Number("simulator calls, training", f"{posterior.info.simulations:,}"),
        Number("training time, minutes", f"{posterior.info.training_seconds / 60:.1f}"),
        Number("proposals", f"{quality.n:,}"),
        Number("importance-sampling efficiency", f"{quality.efficiency:.2%}"),
        Number("effective samples", f"{quality.ess:,.0f}", "1,000", "10,000", quality.ess >= 1000),
        Number("Pareto k̂ (limit 0.7)", f"{quality.khat:.2f}", "0.7", "", quality.khat < 0.7),
        Number("log-evidence", f"{quality.log_evidence:.3f} ± {quality.log_evidence_error:.3f}"),
        Number("log Bayes factor, signal against noise", f"{quality.log_evidence - event.log_noise_evidence:.3f}"),
        Number("emcee: smallest ESS, largest R-hat", f"{one.ess:,.0f} and {other.ess:,.0f}, {max(one.rhat, other.rhat):.4f}"),
        Number("emcee: converged by every criterion", f"{one.converged}, {other.converged}"),
        Number("emcee: likelihoods, minutes", f"{one.calls + other.calls:,}, {(one.seconds + other.seconds) / 60:.0f}"),
        Number(f"JSD of {corrected.n_samples:,} draws: exact ones have", f"{1e3 * corrected.rows[0].floor:.2f} mnat"),
        Number("  raw flow, mean and worst marginal, mnat", in_mnat(uncorrected)),
        Number("  reweighted flow, mean and worst marginal, mnat", in_mnat(corrected), "10", "2", worst <= 10e-3),
        Number("  emcee against emcee, mean and worst marginal, mnat", in_mnat(floor)),
        Number("sky, 50 % and 90 % area, deg², reweighted", " and ".join(f"{a:,.0f}" for a in areas[0])),
        Number("sky, 50 % and 90 % area, deg², emcee", " and ".join(f"{a:,.0f}" for a in areas[1])),
        Number("novelty p-values: input, embedding", f"{float(novelty.input):.3f}, {float(novelty.embedding):.3f}"),
        Number("everything, minutes", f"{(time.monotonic() - started) / 60:.1f}"),
        *(Number(f"{row.name} [{row.unit}]" if row.unit else row.name, f"{row.median:.4g} ({row.low:.4g} to {row.high:.4g})")
          for row in gw_figures.table(weighted.theta, weighted.weights)),
    ]  # fmt: skip
    title = "GW150914" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
