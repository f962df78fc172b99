"""The exact five-parameter posterior against brute force, importance sampling and its own symmetries.

`chirp` is a smooth stand-in with few bins, cheap enough for millions of prior draws; the black holes of setup (a)
come with IMRPhenomD.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from simulators.gravitational_waves import exact, exact_grid
from simulators.gravitational_waves.curve import Curve
from simulators.gravitational_waves.exact import NAMES, ExactPosterior, exact_posterior, model
from simulators.gravitational_waves.exact_grid import Event, Waveforms
from simulators.gravitational_waves.likelihood import log_likelihood, log_noise_evidence
from simulators.gravitational_waves.noise import PSD
from simulators.gravitational_waves.waveform import imrphenomd

FEW = torch.arange(20, 68, 3, dtype=torch.float64)
BINS = torch.arange(20, 512, dtype=torch.float64)
SCALE = (4 / PSD.design(BINS).values).sqrt()
BOUNDS = {"masses": (35.0, 80.0), "times": (-0.1, 0.1), "distances": (1000.0, 3000.0)}


def chirp(strength: float) -> Waveforms:
    """A chirp in the manner of a Newtonian one, whose SNR at 1 Gpc is about half of `strength`."""

    def waveforms(mass_1: Tensor, mass_2: Tensor) -> Tensor:
        chirp_mass = ((mass_1 * mass_2) ** 0.6 / (mass_1 + mass_2) ** 0.2)[:, None] / 50
        phase = 60 * (chirp_mass * FEW / 20) ** (-5 / 3) + 2 * (mass_1 + mass_2)[:, None] / 100 * FEW / 20
        return torch.polar(250 * strength * chirp_mass ** (5 / 6) * (FEW / 20) ** (-7 / 6), -phase)

    return waveforms


def black_holes(mass_1: Tensor, mass_2: Tensor) -> Tensor:
    """IMRPhenomD in the design noise, 1 s of data."""
    zero = torch.zeros_like(mass_1)
    return imrphenomd(mass_1, mass_2, zero, zero, BINS, f_ref=75.0) * SCALE


def event(waveforms: Waveforms, frequencies: Tensor, **bounds: tuple[float, float]) -> Event:
    data = torch.zeros(len(frequencies), dtype=torch.complex128)
    return Event(data, frequencies, waveforms, **(BOUNDS | bounds), distance_density=torch.square)


def observed(world: Event, theta: tuple[float, ...], seed: int) -> Tensor:
    """A signal with noise; seed 0 is without."""
    signal = model(world, torch.tensor([theta], dtype=torch.float64))[0]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(signal), 2, generator=generator, dtype=torch.float64)
    return signal + (torch.view_as_complex(noise) if seed else 0.0)


def posterior_of(world: Event, data: Tensor, **changes: object) -> ExactPosterior:
    prior = {"masses": world.masses, "times": world.times, "distances": world.distances}
    return exact_posterior(data, world.waveforms, world.frequencies, **(prior | changes))  # type: ignore[arg-type]


def prior_draws(world: Event, n: int, seed: int) -> Tensor:
    u = torch.from_numpy(np.random.default_rng(seed).random((n, 5)))
    low, high = torch.tensor(
        [world.masses, world.masses, (0.0, 2 * math.pi), world.times, world.distances], dtype=torch.float64
    ).T
    u[:, 4] = (torch.lerp(low[4] ** 3, high[4] ** 3, u[:, 4]) ** (1 / 3) - low[4]) / (high[4] - low[4])
    return torch.lerp(low, high, u)


@cache
def black_hole_case(seed: int = 3) -> tuple[Event, ExactPosterior]:
    """SNR 19: broad in the masses, which are not far from the prior's lower bound."""
    world = event(black_holes, BINS)
    return world, posterior_of(world, observed(world, (52.0, 41.0, 1.0, 0.01, 2700.0), seed))


def weighted_ks(x: np.ndarray, weights: np.ndarray, curve: Curve) -> float:
    """Largest difference of the weighted draws' distribution from the curve, in units of 1 / sqrt(ESS)."""
    order = np.argsort(x)
    w = weights[order] / weights.sum()
    return float(np.abs(np.cumsum(w) - w / 2 - curve.cdf(x[order])).max() / math.sqrt((w**2).sum()))


KS_GATE = 2.23  # Kolmogorov: exceeded with probability 1e-4


# --- evidence and marginals against draws from the prior ---------------------------------------------------------


@pytest.mark.parametrize(
    ("strength", "truth"),
    [
        (12.0, (60.0, 45.0, 1.0, 0.01, 1400.0)),
        (9.0, (36.0, 79.0, 5.0, -0.0995, 1050.0)),  # in a corner of the prior
        (0.5, (50.0, 50.0, 3.0, 0.05, 2000.0)),  # all noise
    ],
)
def test_evidence_and_marginals_equal_brute_force(strength: float, truth: tuple[float, ...]) -> None:
    """A million draws from the prior; the gates are 4 standard errors and KS at 1e-4."""
    world = event(chirp(strength), FEW)
    data = observed(world, truth, 5)
    posterior = posterior_of(world, data)
    theta = torch.cat([prior_draws(world, 50_000, seed) for seed in range(20)])
    log_l = torch.cat([log_likelihood(data, model(world, rows)) for rows in theta.split(20_000)])
    weights = (log_l - posterior.log_evidence).exp().numpy()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.05
    assert abs(weights.mean() - 1) < 4 * error
    for column, curve in zip(theta.T.numpy(), posterior.marginals, strict=True):
        assert weighted_ks(column, weights, curve) < KS_GATE


def test_evidence_equals_one_integral_where_masses_and_time_do_not_matter() -> None:
    """One bin at 0 Hz and a constant waveform leave the distance: scipy's quadrature, to 1e-6."""
    data = torch.tensor([3.0 - 2.0j], dtype=torch.complex128)
    posterior = exact_posterior(
        data,
        lambda a, b: torch.full((len(a), 1), 5000.0 + 1000.0j, dtype=torch.complex128),
        torch.zeros(1, dtype=torch.float64),
        distance_density=lambda d: d,
    )
    overlap, power = abs(3.0 - 2.0j) * abs(5000.0 + 1000.0j), abs(5000.0 + 1000.0j) ** 2

    def integrand(d: float) -> float:
        return 2 * d / (3000**2 - 1000**2) * np.i0(overlap / d) * math.exp(-power / (2 * d * d))

    want = math.log(integrate.quad(integrand, 1000, 3000, epsrel=1e-12)[0]) - 13 / 2 - math.log(2 * math.pi)
    assert posterior.log_evidence == pytest.approx(want, abs=1e-6)


def test_without_a_signal_the_posterior_is_the_prior() -> None:
    world = event(chirp(1e-9), FEW)
    data = observed(world, (50.0, 50.0, 3.0, 0.05, 2000.0), 5)
    posterior = posterior_of(world, data)
    assert posterior.log_evidence == pytest.approx(float(log_noise_evidence(data)), abs=1e-6)
    want = (
        *[stats.uniform(35, 45)] * 2,
        stats.uniform(0, 2 * math.pi),
        stats.uniform(-0.1, 0.2),
        stats.powerlaw(3, 0, 3000),
    )
    for name, law in zip(NAMES, want, strict=True):
        low, high = law.cdf([world.distances[0] if name == "d_L" else -np.inf, np.inf])
        x = law.ppf(np.linspace(low, high, 200))
        got = posterior.marginal(name).cdf(x)
        assert np.abs(got - np.linspace(0, 1, 200)).max() < 1e-4, name


# --- black holes -------------------------------------------------------------------------------------------------


def mixture(draws: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A defensive proposal: 400 Student-t densities of 5 degrees of freedom on exact draws -> (n, 5), log q (n,).

    The scale is the covariance of the 60 nearest draws, so that it follows curved modes.
    """
    rng = np.random.default_rng(seed)
    spread = draws.std(0).numpy()
    points = draws.numpy() / spread
    near = np.argsort(((points[:400, None] - points) ** 2).sum(-1), 1)[:, :60]
    laws = [stats.multivariate_t(c, np.cov(points[k].T), 5) for c, k in zip(points[:400], near, strict=True)]
    counts = np.bincount(rng.integers(400, size=n), minlength=400)
    theta = np.concatenate(
        [law.rvs(k, random_state=rng).reshape(k, 5) for law, k in zip(laws, counts, strict=True)]
    )
    log_q = np.full(n, -np.inf)
    for law in laws:
        log_q = np.logaddexp(log_q, law.logpdf(theta) - math.log(400))
    return torch.from_numpy(theta * spread), torch.from_numpy(log_q) - float(np.log(spread).sum())


def test_black_holes_by_importance_sampling() -> None:
    """The likelihood itself reweights a proposal that overshoots the posterior: ln Z and all marginals.

    Wherever exact draws and quadrature were wrong, this estimate is right, as long as the proposal covers
    the posterior; phi_c is folded into [0, π), which loses nothing.
    """
    _, posterior = black_hole_case()
    draws = posterior.sample(4000, 1)
    draws[:, 2] %= math.pi
    theta, log_q = mixture(draws, 20_000, 2)
    keep = (theta[:, 2] >= 0) & (theta[:, 2] < math.pi)
    weights = (posterior.log_prob(theta) + math.log(2) - log_q).exp().where(keep, 0.0).numpy()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.01
    assert abs(weights.mean() - 1) < 4 * error
    phase = posterior.marginal("phi_c")
    half = Curve.normalised(phase.grid[: len(phase.grid) // 2 + 1], phase.density[: len(phase.grid) // 2 + 1])
    for i, name in enumerate(NAMES):
        curve = half if name == "phi_c" else posterior.marginal(name)
        assert weighted_ks(theta[:, i].numpy(), weights, curve) < KS_GATE, name


@pytest.mark.parametrize(
    "truth",
    [
        (52.0, 41.0, 1.0, 0.01, 2700.0),
        (36.0, 36.0, 2.0, 0.03, 1000.0),  # SNR 43
        (80.0, 79.0, 6.0, 0.0999, 1000.0),  # SNR 80, at three bounds
    ],
)
def test_a_finer_grid_changes_nothing(truth: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    world = event(black_holes, BINS)
    data = observed(world, truth, 3)
    posterior = posterior_of(world, data)
    monkeypatch.setattr(exact_grid, "_WIDEST_MASS", 3.1)
    monkeypatch.setattr(exact_grid, "_WIDEST_TIME", 1e-3)
    monkeypatch.setattr(exact_grid, "_WIDEST_SIGMA", 1.8)
    monkeypatch.setattr(exact_grid, "DROP", 32.0)
    finer = posterior_of(world, data)
    assert abs(posterior.log_evidence - finer.log_evidence) < 1e-3
    assert max(a.jsd(b) for a, b in zip(posterior.marginals, finer.marginals, strict=True)) < 1e-4


def test_draws_follow_the_marginals() -> None:
    _, posterior = black_hole_case()
    draws = posterior.sample(20_000, 4).numpy()
    for i, name in enumerate(NAMES):
        assert stats.kstest(draws[:, i], posterior.marginal(name).cdf).pvalue > 1e-4, name
    p = np.array([0.0, 0.05, 0.5, 1.0])
    curve = posterior.marginal("d_L")
    assert curve.cdf(curve.quantile(p)) == pytest.approx(p, abs=1e-12)


def test_same_seed_same_draws() -> None:
    _, posterior = black_hole_case()
    assert torch.equal(posterior.sample(300, 1), posterior.sample(300, 1))
    assert not torch.equal(posterior.sample(300, 1), posterior.sample(300, 2))
    assert posterior.sample(1, 1).shape == (1, 5)


# --- ranks of the truth ------------------------------------------------------------------------------------------


def ranks(world: Event, n: int, seed: int) -> np.ndarray:
    """cdf of every parameter at truths drawn from the prior, (n, 5)."""
    found = []
    for i, theta in enumerate(prior_draws(world, n, seed).tolist()):
        posterior = posterior_of(world, observed(world, tuple(theta), 1 + i))
        found.append(
            [posterior.marginal(name).cdf(np.array(v)) for name, v in zip(NAMES, theta, strict=True)]
        )
    return np.array(found)


def test_truths_have_uniform_ranks() -> None:
    """24 events with SNR of 4 to 20; each of five KS tests at 1e-4."""
    found = ranks(event(chirp(30.0), FEW, times=(-0.02, 0.02)), 24, 7)
    for i, name in enumerate(NAMES):
        assert stats.kstest(found[:, i], "uniform").pvalue > 1e-4, name


@pytest.mark.slow
def test_truths_have_uniform_ranks_for_black_holes() -> None:
    """100 events of setup (a); each of five KS tests at 1e-4."""
    found = ranks(event(black_holes, BINS), 100, 8)
    for i, name in enumerate(NAMES):
        assert stats.kstest(found[:, i], "uniform").pvalue > 1e-4, name


# --- symmetries --------------------------------------------------------------------------------------------------


def test_shifted_turned_and_rescaled_data() -> None:
    world = event(chirp(8.0), FEW)
    data = observed(world, (60.0, 45.0, 1.0, 0.01, 1400.0), 5)
    plain = posterior_of(world, data)
    later = posterior_of(world, data * world.shifts(torch.tensor(-0.3)), times=(0.2, 0.4))
    assert later.log_evidence == pytest.approx(plain.log_evidence, abs=1e-6)
    p = np.linspace(0.01, 0.99, 9)
    assert later.marginal("t_c").quantile(p) - 0.3 == pytest.approx(
        plain.marginal("t_c").quantile(p), abs=1e-6
    )
    turned = posterior_of(world, data * torch.polar(torch.tensor(1.0).double(), torch.tensor(0.8).double()))
    assert turned.log_evidence == pytest.approx(plain.log_evidence, abs=1e-6)
    phi = np.linspace(0.4, 6.2, 50)
    want = plain.marginal("phi_c").pdf(phi - 0.4)
    assert np.abs(turned.marginal("phi_c").pdf(phi) / want - 1).max() < 1e-2
    farther = exact_posterior(data, chirp(16.0), FEW, distances=(2000.0, 6000.0))
    assert farther.log_evidence == pytest.approx(plain.log_evidence, abs=1e-6)


def test_two_detectors_are_one_series_with_more_bins() -> None:
    """Half the power in each of two copies is the same information as one."""
    world = event(chirp(8.0), FEW)
    signal = observed(world, (60.0, 45.0, 1.0, 0.01, 1400.0), 0)

    def both(mass_1: Tensor, mass_2: Tensor) -> Tensor:
        return torch.cat([world.waveforms(mass_1, mass_2)] * 2, 1) / math.sqrt(2)

    one = posterior_of(world, signal)
    two = exact_posterior(torch.cat([signal, signal]) / math.sqrt(2), both, torch.cat([FEW, FEW]))
    assert two.log_evidence == pytest.approx(one.log_evidence - len(FEW) * math.log(2 * math.pi), abs=1e-6)


def test_masses_and_half_turns_are_exchangeable() -> None:
    _, posterior = black_hole_case()
    assert posterior.marginal("mass_1") is posterior.marginal("mass_2")
    theta = posterior.sample(50, 3)
    swapped, turned = theta[:, [1, 0, 2, 3, 4]], theta.clone()
    turned[:, 2] = torch.remainder(turned[:, 2] + math.pi, 2 * math.pi)
    for other in (swapped, turned):
        assert torch.allclose(posterior.log_prob(other), posterior.log_prob(theta), atol=1e-8)


# --- at the boundary ---------------------------------------------------------------------------------------------


def test_log_prob_is_minus_infinity_outside_the_prior() -> None:
    _, posterior = black_hole_case()
    theta = posterior.sample(1, 1).expand(5, 5).clone()
    theta[range(5), range(5)] = torch.tensor([34.9, 80.1, 6.3, 0.11, 999.0]).double()
    assert posterior.log_prob(theta).tolist() == [-math.inf] * 5


def test_waveforms_that_are_not_smooth_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_LEVELS", 3)

    def rough(mass_1: Tensor, mass_2: Tensor) -> Tensor:
        turn = torch.polar(torch.ones_like(mass_1), 1e4 * torch.sin(1e4 * mass_1 * mass_2))
        return chirp(20.0)(mass_1, mass_2) * (1 + turn[:, None])

    world = event(rough, FEW, masses=(50.0, 51.0), times=(0.0, 1e-3))
    with pytest.raises(FloatingPointError, match="are the waveforms smooth"):
        posterior_of(world, observed(event(chirp(20.0), FEW), (50.5, 50.2, 1.0, 5e-4, 1400.0), 5))


def test_errors_name_what_was_expected() -> None:
    data = torch.zeros(len(FEW), dtype=torch.complex128)
    with pytest.raises(ValueError, match=r"data_w: expected shape \(16,\), got \(1, 16\)"):
        exact_posterior(data[None], chirp(1.0), FEW)
    with pytest.raises(ValueError, match="data_w: expected complex"):
        exact_posterior(data.real, chirp(1.0), FEW)
    with pytest.raises(ValueError, match="data_w: expected finite"):
        exact_posterior(data + torch.nan, chirp(1.0), FEW)
    with pytest.raises(ValueError, match="distances: expected 0 < low < high"):
        exact_posterior(data, chirp(1.0), FEW, distances=(0.0, 10.0))
    with pytest.raises(ValueError, match="masses: expected 0 < low < high"):
        exact_posterior(data, chirp(1.0), FEW, masses=(80.0, 35.0))
    with pytest.raises(ValueError, match=r"waveforms: expected complex of shape \(\d+, 16\)"):
        exact_posterior(data, lambda a, b: a[:, None] + FEW, FEW)
    _, posterior = black_hole_case()
    with pytest.raises(ValueError, match="name: expected one of mass_1"):
        posterior.marginal("chirp_mass")
    with pytest.raises(ValueError, match=r"theta: expected shape \(n, 5\)"):
        posterior.log_prob(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="n: expected a whole number >= 1"):
        posterior.sample(0, 1)
