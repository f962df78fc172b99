"""The solver of Lotka-Volterra and SIR against scipy's and against the equations' constant of motion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from simulators.benchmark import task
from simulators.benchmark.ode import _fixed, exchange


def central(name: str, n: int) -> torch.Tensor:
    """Parameters within the central 90 % of every marginal."""
    prior = task(name).prior
    uniform = torch.rand(n, prior.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return prior.from_uniform(0.05 + 0.9 * uniform)


def test_lotka_volterra_solves_its_equations():
    theta = central("lotka_volterra", 12)
    found = task("lotka_volterra").signal(theta).exp().numpy()
    for (alpha, beta, gamma, delta), row in zip(theta.tolist(), found, strict=True):
        right = solve_ivp(
            lambda _, y, a=alpha, b=beta, c=gamma, d=delta: [
                a * y[0] - b * y[0] * y[1],
                -c * y[1] + d * y[0] * y[1],
            ],
            (0, 18.9), [30.0, 1.0], method="DOP853", rtol=1e-12, atol=1e-14, t_eval=np.linspace(0, 18.9, 10),
        ).y  # fmt: skip
        np.testing.assert_allclose(row, right.ravel(), rtol=1e-6)


def test_sir_solves_its_equations():
    theta = central("sir", 12)
    found = task("sir").signal(theta).numpy()
    for (beta, gamma), row in zip(theta.tolist(), found, strict=True):
        right = solve_ivp(
            lambda _, y, b=beta, c=gamma: [-b * y[0] * y[1] / 1e6, b * y[0] * y[1] / 1e6 - c * y[1], c * y[1]],
            (0, 153), [1e6 - 1, 1.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-14, t_eval=17.0 * np.arange(10),
        ).y[1]  # fmt: skip
        np.testing.assert_allclose(row, right / 1e6, rtol=1e-6)


def test_first_output_of_sir_is_the_same_for_all():
    signal = task("sir").signal(task("sir").prior.sample(50, torch.Generator().manual_seed(1)))
    np.testing.assert_allclose(signal[:, 0].numpy(), 1e-6, rtol=1e-12)
    assert (signal[:, 1:].std(0) > 1e-6).all()


def test_constant_of_motion_all_over_the_prior():
    """d e^u - c u + b e^v - a v never changes: it sees errors of the solver that another solver might share."""
    rates = task("lotka_volterra").prior.sample(300, torch.Generator().manual_seed(2))
    a, b, c, d = rates[:, :, None].unbind(1)
    start = (math.log(30.0), 0.0)

    def drift(tolerance: float) -> float:
        u, v = exchange(start, rates, 2.1, 10, tolerance).unbind(1)
        energy = d * u.exp() - c * u + b * v.exp() - a * v
        scale = d * u.exp() + (c * u).abs() + b * v.exp() + (a * v).abs()
        return float(((energy - energy[:, :1]).abs() / scale).max())

    assert drift(1e-7) < 1e-7
    assert drift(1e-3) > 1e-7


def test_order_of_the_method_is_eight():
    """A closed form: with a = b = 0, u stays and v = (d e^u - c) t. Otherwise the error falls as step^8."""
    still = torch.tensor([[0.0, 0.0, 0.3, 2.0]], dtype=torch.float64)
    u, v = exchange((0.5, 1.0), still, 1.5, 2)[0, :, 1].tolist()
    assert (u, v) == (0.5, pytest.approx(1.0 + 1.5 * (2.0 * math.exp(0.5) - 0.3), rel=1e-14))
    start, ones = np.array([[0.5], [0.0]]), np.ones((2, 1))
    gain = np.array([[-1.0], [1.0]])
    constant = -gain * ones
    exact = _fixed(start, constant, gain, 2.0, 256)
    errors = [np.abs(_fixed(start, constant, gain, 2.0, steps) - exact).max() for steps in (4, 8)]
    assert 7.5 < math.log2(errors[0] / errors[1]) < 9.5


def test_rows_that_cannot_be_solved_are_nan_and_spoil_no_other():
    good = task("lotka_volterra").prior.sample(3, torch.Generator().manual_seed(1))
    bad = torch.tensor([[math.inf, 1, 1, 1], [1, 1e9, 1, 1e9], [math.nan, 1, 1, 1]], dtype=torch.float64)
    signal = task("lotka_volterra").signal(torch.cat([good, bad]))
    assert signal[3:].isnan().any(1).all()
    torch.testing.assert_close(signal[:3], task("lotka_volterra").signal(good), rtol=1e-9, atol=1e-9)
    likelihood = task("lotka_volterra").log_likelihood(torch.cat([good, bad]), torch.ones(20))
    assert likelihood.isnan().tolist() == [False] * 3 + [True] * 3
    counts = task("sir").observe(torch.full((1, 10), math.nan))
    assert counts.isnan().all()


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(n):
    assert exchange((0.0, 0.0), torch.ones(n, 4), 1.0, 3).shape == (n, 2, 3)
