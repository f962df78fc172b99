"""Setup (b) of 22_gw_oracle.py against emcee, with phase and distance integrated out of the chains' likelihood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import Number, save_figure
from torch import Tensor

import sbiflow as sf
from sbiflow.pairs import draw_pairs
from simulators.gravitational_waves.binary import Binary

EVENTS, SAMPLES = 2, 10_000


def six(theta: Tensor) -> Tensor:
    """Draws of (b) without phi_c and d_L."""
    return theta[:, [0, 1, 3, 5, 6, 7]]


def marginal_likelihood(simulator: Binary, x: Tensor, nodes: int = 96) -> Callable[[Tensor, Tensor], Tensor]:
    """ln L of `six` parameters of (b) for one observation, up to a constant.

    The mean over phi_c is a Bessel function, that over distances a Gauss-Legendre sum in ln d_L: chains in all eight
    parameters hardly move (acceptance 0.01, 5,000 steps of autocorrelation).
    """
    data = torch.complex(*simulator.strain(x[None])[0, 0])
    low, high = np.log(float(simulator.prior.low[4])), np.log(float(simulator.prior.high[4]))
    points, weights = np.polynomial.legendre.leggauss(nodes)
    distance = torch.from_numpy(np.exp(low + (high - low) * (points + 1) / 2))
    log_weight = (
        torch.from_numpy(np.log(weights)) + distance.log() + simulator.prior.marginals[4].log_prob(distance)
    )

    def log_likelihood(theta: Tensor, _: Tensor) -> Tensor:
        full = torch.zeros(len(theta), 8, dtype=torch.float64)
        full[:, [0, 1, 3, 5, 6, 7]], full[:, 4] = theta, 1.0
        signal = simulator.model(full)[:, 0]
        overlap = (signal.conj() @ data).abs()[:, None] / distance
        power = signal.abs().square().sum(1)[:, None] / distance**2
        bessel = torch.log(torch.special.i0e(overlap)) + overlap
        return torch.logsumexp(log_weight + bessel - power / 2, 1)

    return log_likelihood


def against_emcee(
    posterior: sf.Posterior, simulator: Binary, seed: int, fast: bool, folder: Path
) -> list[Number]:
    """A few events of (b); the chains start three times wider than the raw flow's draws."""
    count, n = (1, 1000) if fast else (EVENTS, 100_000)
    _, x, _ = draw_pairs(simulator, count, seed=seed + 1000)
    numbers = []
    prior = sf.Prior(*(m for m in simulator.prior.marginals if m.name not in ("phi_c", "d_L")))
    for i in range(count):
        draws = posterior.sample(x[i], n, seed=seed + i)
        weighted = draws.reweight(simulator.log_likelihood)
        walkers, steps = (32, 400) if fast else (200, 8000)
        chain = sf.emcee_reference(
            marginal_likelihood(simulator, x[i]), prior, x[i], seed=seed + i, start=six(draws.theta[:5000]),
            walkers=walkers, max_steps=steps,
        )  # fmt: skip
        own, other = six(weighted.resample(SAMPLES, seed=seed).theta), chain.theta
        other = other[torch.randperm(len(other), generator=torch.Generator().manual_seed(seed))[:SAMPLES]]
        jsd = sf.marginal_jsd(other, own, names=prior.names, seed=seed)
        table = sf.compare(six(weighted.theta), chain, weighted.weights)
        print(f"\nevent {i}\n{weighted}\n{chain}\n{table}\n{jsd}\n", flush=True)
        found = weighted.diagnostics
        numbers += [
            Number(f"event {i}: JSD with emcee, mean and worst; sampling floor, mnat", f"{1e3 * jsd.mean:.2f}, {1e3 * jsd.worst.jsd:.2f} ({jsd.worst.name}); {1e3 * jsd.rows[0].floor:.2f}"),
            Number(f"event {i}: emcee's smallest ESS, largest R-hat, converged", f"{chain.ess.min():,.0f}, {chain.rhat.max():.4f}, {chain.converged}"),
            Number(f"event {i}: worst median shift", f"{table.worst_shift:.3f} σ"),
            Number(f"event {i}: efficiency, k-hat, ln Z", f"{found.efficiency:.3f}, {found.khat:.2f}, {found.log_evidence:.3f} ± {found.log_evidence_error:.3f}"),
        ]  # fmt: skip
        if i == 0:
            save_figure(weighted.corner(label="flow, reweighted"), folder / "corner.png")
    return numbers
