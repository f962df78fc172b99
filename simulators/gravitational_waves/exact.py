"""The exact posterior of five parameters of a binary in one detector: an oracle for learned posteriors.

Model, with sky and orientation fixed and their complex response absorbed into the whitened waveform u at 1 Mpc:

    h(f) = u(f; m1, m2) e^{2 i phi_c} e^{-2πi f t_c} / d_L,

prior: masses uniform in a square (either may be the larger), phi_c uniform in [0, 2π), t_c uniform, d_L of any
smooth density between bounds. Nothing is sampled or fitted to get it: phi_c is integrated by the Bessel function, the
other four by quadrature that is refined until evidence and marginals no longer change (exact_grid.py). Draws are
independent: masses from the interpolated marginal, then time, distance and phase given the masses drawn, from
the likelihood at these masses.

Several detectors with a fixed sky are one series: join data, waveforms and frequencies along the bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbiflow.checks import check_count, check_finite, check_shape
from simulators.gravitational_waves.curve import Curve, linear_draw
from simulators.gravitational_waves.exact_grid import Event, Grid, Level, Waveforms, first_grid, integrate
from simulators.gravitational_waves.likelihood import log_likelihood, log_noise_evidence
from simulators.gravitational_waves.panels import ORDER, STEPS, TO_STEPS, Panels

NAMES = ("mass_1", "mass_2", "phi_c", "t_c", "d_L")
_EVIDENCE, _JSD, _LEVELS = 1e-3, 1e-4, 5  # largest change of ln Z and of a marginal [nats]; halvings tried
_DRAWS = 256  # of a block


def uniform_in_volume(distance: Tensor) -> Tensor:
    """The density of a distance in Euclidean space, up to a constant: d^2."""
    return distance.square()


@dataclass(frozen=True, eq=False)
class ExactPosterior:
    """Evidence, marginals and independent draws.

    Attributes:
        log_evidence: ln p(d), normalised over the data as `likelihood.log_likelihood`.
        marginals: densities of the parameters in the order of `NAMES` [solar masses, rad, s, Mpc].
        change_log_evidence, change_jsd: change of ln Z and largest Jensen-Shannon divergence [nats] of a marginal
            in the last halving of the grid; the error left is smaller.
    """

    log_evidence: float
    marginals: tuple[Curve, ...]
    change_log_evidence: float
    change_jsd: float
    event: Event
    grid: Grid
    level: Level

    def marginal(self, name: str) -> Curve:
        """The density of a parameter, with pdf, cdf and quantile."""
        if name not in NAMES:
            raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
        return self.marginals[NAMES.index(name)]

    def marginal_cdf(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Grid and probability below it, (G,) each."""
        curve = self.marginal(name)
        return curve.grid, curve.cumulative

    def log_prob(self, theta: Tensor) -> Tensor:
        """ln p(theta | d): (n, 5) -> (n,), -inf outside the prior."""
        check_shape(theta, "theta", ("n", len(NAMES)))
        theta = theta.double()
        found = torch.full((len(theta),), -torch.inf, dtype=torch.float64)
        inside = _log_prior(self.event, theta).isfinite()
        for rows in inside.nonzero()[:, 0].split(_DRAWS):
            likelihood = log_likelihood(self.event.data, model(self.event, theta[rows]))
            found[rows] = likelihood + _log_prior(self.event, theta[rows]) - self.log_evidence
        return found

    def sample(self, n: int, seed: int) -> Tensor:
        """Independent draws, (n, 5) float64 in the order of `NAMES`; the same seed gives the same draws."""
        check_count(n, "n")
        rng = np.random.default_rng(seed)
        masses = _draw_masses(self.grid, self.level, rng, n)
        return torch.cat([_draw_rest(self.event, self.grid, m, rng) for m in masses.split(_DRAWS)])


def exact_posterior(
    data_w: Tensor,
    waveforms: Waveforms,
    frequencies: Tensor,
    *,
    masses: tuple[float, float] = (35.0, 80.0),
    times: tuple[float, float] = (-0.1, 0.1),
    distances: tuple[float, float] = (1000.0, 3000.0),
    distance_density: Callable[[Tensor], Tensor] = uniform_in_volume,
) -> ExactPosterior:
    """The posterior of (mass_1, mass_2, phi_c, t_c, d_L) given one observation.

    Args:
        data_w: whitened data (F,), complex.
        waveforms: masses (n,), (n,) [solar masses] -> whitened waveforms at 1 Mpc (n, F), complex; not changed by
            an exchange of the masses, and smooth in them.
        frequencies: (F,) [Hz], of the bins.
        masses, times, distances: bounds of the prior [solar masses, s, Mpc].
        distance_density: prior density of d_L, tensor to tensor, smooth and > 0; need not be normalised.

    Raises:
        ValueError: wrong shapes, NaN or inf, empty ranges.
        FloatingPointError: the quadrature does not converge, with the changes in its last step.
    """
    event = Event(data_w, frequencies, waveforms, masses, times, distances, distance_density)
    _check(event)
    grid = first_grid(event)
    level = integrate(event, grid)
    marginals = _marginals(grid, level)
    for _ in range(_LEVELS):
        former_level, former_marginals = level, marginals
        grid = grid.refined(level)
        level = integrate(event, grid)
        marginals = _marginals(grid, level)
        change = abs(level.log_evidence - former_level.log_evidence)
        jsd = max(new.jsd(old) for new, old in zip(marginals, former_marginals, strict=True))
        if change < _EVIDENCE and jsd < _JSD:
            log_evidence = level.log_evidence + float(log_noise_evidence(event.data))
            return ExactPosterior(log_evidence, marginals, change, jsd, event, grid, level)
    raise FloatingPointError(
        f"the quadrature changes by {change:.2g} in ln Z and {jsd:.2g} nats in a marginal after {_LEVELS} "
        f"halvings, expected less than {_EVIDENCE} and {_JSD}: are the waveforms smooth in the masses?"
    )


def model(event: Event, theta: Tensor) -> Tensor:
    """Whitened signals: (n, 5) -> (n, F), complex128."""
    mass_1, mass_2, phi_c, t_c, d_l = theta.double().unbind(1)
    turn = torch.polar(1 / d_l, 2 * phi_c)[:, None]
    return event.waveforms(mass_1, mass_2).to(torch.complex128) * turn * event.shifts(-t_c)


def _check(event: Event) -> None:
    check_shape(event.frequencies, "frequencies", ("F",))
    check_shape(event.data, "data_w", tuple(event.frequencies.shape))
    if not event.data.is_complex():
        raise ValueError(f"data_w: expected complex numbers, got {event.data.dtype}")
    check_finite(event.data, "data_w")
    check_finite(event.frequencies, "frequencies")
    for name, (low, high), least in (
        ("masses", event.masses, 0.0),
        ("times", event.times, -np.inf),
        ("distances", event.distances, 0.0),
    ):
        if not least < low < high < np.inf:
            raise ValueError(f"{name}: expected {least:g} < low < high < inf, got ({low}, {high})")


def _log_prior(event: Event, theta: Tensor) -> Tensor:
    """Normalised, -inf outside: (n, 5) -> (n,)."""
    bounds = (event.masses, event.masses, (0.0, 2 * np.pi), event.times, event.distances)
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    inside = ((theta >= low) & (theta <= high)).all(1)
    volume = float((high - low)[:4].log().sum()) + event.log_prior_norm()
    return torch.where(inside, event.distance_density(theta[:, 4]).log() - volume, -torch.inf)


def _marginals(grid: Grid, level: Level) -> tuple[Curve, ...]:
    mass = _mass_marginal(grid, level)
    inverse = grid.inverse.curve(level.log_inverse)
    distance = Curve.normalised(1 / inverse.grid[::-1], (inverse.density * inverse.grid**2)[::-1])
    return mass, mass, level.phase, grid.times.curve(level.log_time), distance


def _mass_marginal(grid: Grid, level: Level) -> Curve:
    """Of either mass: every cell counts on one axis and, off the diagonal, its mirror image on the other."""
    value = (level.log_mass - level.log_mass.max()).exp()
    weights = grid.masses.weights[0]
    total = torch.zeros(len(grid.masses.left), ORDER, dtype=torch.float64)
    total.index_add_(0, grid.cells[:, 0], value @ weights)
    mirrored = (grid.multiplicity - 1)[:, None] * (weights @ value)
    total.index_add_(0, grid.cells[:, 1], mirrored)
    used = total.amax(1) > 0
    return Panels(grid.masses.left[used], grid.masses.width).curve(total[used].log())


def _draw_masses(grid: Grid, level: Level, rng: np.random.Generator, n: int) -> Tensor:
    """(n, 2): from the density bilinear on STEPS x STEPS squares of every cell."""
    value = (TO_STEPS @ (level.log_mass - level.log_mass.max()) @ TO_STEPS.T).exp()
    corners = torch.stack([value[:, :-1, :-1], value[:, :-1, 1:], value[:, 1:, :-1], value[:, 1:, 1:]], -1)
    probability = corners.sum(-1) * grid.multiplicity[:, None, None]
    cumulative = probability.flatten().cumsum(0)
    u = torch.from_numpy(rng.random((4, n)))
    square = torch.searchsorted(cumulative, u[0] * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)
    a, b, c, d = corners.view(-1, 4)[square].T  # at (0, 0), (0, 1), (1, 0), (1, 1)
    x = linear_draw(a + b, c + d, u[1])
    y = linear_draw(a + (c - a) * x, b + (d - b) * x, u[2])
    cell, place = square // STEPS**2, square % STEPS**2
    steps = torch.stack([place // STEPS + x, place % STEPS + y], 1) / STEPS
    masses = grid.masses.left[grid.cells[cell]] + grid.masses.width * steps
    return torch.where((u[3] < 0.5)[:, None], masses, masses.flip(1))


def _draw_rest(event: Event, grid: Grid, masses: Tensor, rng: np.random.Generator) -> Tensor:
    """Draws (n, 5) given masses (n, 2): time, distance, phase, each given those before."""
    u = torch.from_numpy(rng.random((2, len(masses))))
    overlap, rho2 = event.overlaps(masses[:, 0], masses[:, 1])
    size = (overlap @ event.shifts(grid.times.nodes.flatten()).T).abs()
    given_time = (_log_joint(event, grid, size, rho2) + grid.inverse.weights.log()).flatten(2).logsumexp(2)
    t_c = grid.times.draw(given_time.view(len(u[0]), -1, ORDER), u[0])
    z = (overlap * event.shifts(t_c)).sum(1)
    y = grid.inverse.draw(_log_joint(event, grid, z.abs()[:, None], rho2)[:, 0], u[1])
    twice = rng.vonmises(z.angle().numpy(), (z.abs() * y).numpy())
    half_turns = rng.integers(2, size=len(masses))
    phi_c = torch.from_numpy(np.remainder(twice / 2 + np.pi * half_turns, 2 * np.pi))
    return torch.cat([masses, torch.stack([phi_c, t_c, 1 / y], 1)], 1)


def _log_joint(event: Event, grid: Grid, size: Tensor, rho2: Tensor) -> Tensor:
    """Log-density in y = 1 / d_L, the phase integrated, up to a constant: |z| (n, T) -> (n, T, P, ORDER)."""
    y = grid.inverse.nodes
    kappa = size[:, :, None, None] * y
    return (
        torch.special.i0e(kappa).log()
        + kappa
        - rho2[:, None, None, None] / 2 * y.square()
        + event.log_prior(grid.inverse)
    )
